"""How does a run train on this machine? As a subprocess: the same command that a person could type."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from msggan.options import to_argv
from msggan.program import OUTPUT_VARIABLE
from orchestration.errors import JobFailedError, ReportedError
from orchestration.spec import EXIT_CODES, Run, RunSpec

RESUMES = "The same command again goes on from the newest checkpoint."


@dataclass(frozen=True)
class LocalTarget:
    """This machine. Runs live in `runs_dir`/NAME; `python` is the interpreter that trains."""

    runs_dir: str | Path = "runs"
    python: str = sys.executable

    name = "local"

    def plan(self, spec: RunSpec) -> dict[str, Any]:
        """What `submit` would start. Touches nothing."""
        run_dir = str(Path(self.runs_dir) / spec.name)
        return {
            "target": self.name,
            "command": spec.command(data=str(spec.data), run_dir=run_dir, python=self.python),
            "env": {OUTPUT_VARIABLE: "json"},
            "run_dir": run_dir,
        }

    def submit(self, spec: RunSpec) -> Run:
        """Trains to the end, or until stopped. Raises MsgganError if the run cannot begin or fails."""
        plan = self.plan(spec)
        ending = follow(plan["command"], {**os.environ, **plan["env"]})
        return build_run(spec, plan["run_dir"], ending, runs_dir=str(self.runs_dir))


@dataclass(frozen=True)
class Ending:
    """How a child process ended: its exit status (negative: the signal that killed it) and what it had said."""

    status: int
    stdout: str
    terminated_by_us: bool = False


def follow(command: list[str], environ: dict[str, str]) -> Ending:
    """Runs a command to its end. Its stderr is ours, so its live progress line works; its stdout is its result."""
    with _Signals().passed_on() as signals:
        try:
            child = subprocess.Popen(  # noqa: S603 - our own command, as a list: no shell reads it
                command, env=environ, stdout=subprocess.PIPE, encoding="utf-8", errors="replace"
            )
        except OSError as error:
            raise JobFailedError(f"Cannot start {shlex.join(command[:3])}: {error.strerror}.") from None
        with child:
            signals.to(child)
            stdout, _ = child.communicate()
        return Ending(child.returncode, stdout, signals.terminated)


def build_run(spec: RunSpec, run_dir: str, ending: Ending, *, runs_dir: str) -> Run:
    """The run that the child told of; raises its error, or one that says how it died without a word."""
    told = _last_object(ending.stdout)
    if "error" in told:
        error = told["error"]
        raise ReportedError(error["message"], error["hint"], code=error["code"], exit_code=abs(ending.status) or 1)
    if told.get("state") in EXIT_CODES:
        return Run(
            name=spec.name,
            target=LocalTarget.name,
            state=told["state"],
            run_dir=told["run_dir"],
            images_seen=told["images_seen"],
            metrics=told["metrics"],
            next=[next_command(spec, runs_dir, told["state"], told["images_seen"])],
        )
    if ending.terminated_by_us:  # SIGTERM came before the child could have answered it
        again = [next_command(spec, runs_dir, "cancelled", 0)]
        return Run(name=spec.name, target=LocalTarget.name, state="cancelled", run_dir=run_dir, next=again)
    raise silent_death(ending.status)


def next_command(spec: RunSpec, runs_dir: str, state: str, images_seen: int) -> str:
    """What to type next: the same run again, and for one that is complete, twice as long."""
    words = ["msggan-aml", "submit", "--data", str(spec.data), "--name", spec.name, "--runs-dir", runs_dir]
    config = spec.config
    if state == "completed":
        config = replace(config, kimg=2 * (config.kimg or images_seen / 1000))
    return shlex.join([*words, *to_argv(config), *spec.place.to_argv()])


def _last_object(stdout: str) -> dict[str, Any]:
    """The JSON object on the last line; empty if there is none. A library may have printed something before it."""
    lines = stdout.strip().splitlines()
    try:
        told = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def silent_death(status: int) -> JobFailedError:
    """What to say of a child that ended with this status and left no result."""
    if status >= 0:
        return JobFailedError(f"The training process ended with exit code {status} and left no result.", RESUMES)
    message = f"The training process was killed by {_signal_name(-status)}."
    if -status == getattr(signal, "SIGKILL", 9):  # Windows has none
        message += " Most often the machine had run out of memory."
        return JobFailedError(message, f"{RESUMES} A smaller --batch-size or --resolution needs less memory.")
    return JobFailedError(message, RESUMES)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Signals:
    """While a child runs, its end is ours: Ctrl-C reaches it by the terminal, SIGTERM is passed on."""

    def __init__(self) -> None:
        self.terminated = False
        self._child: subprocess.Popen[str] | None = None

    @contextmanager
    def passed_on(self) -> Iterator[_Signals]:
        if threading.current_thread() is not threading.main_thread():
            yield self  # handlers are the main thread's
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        # A function that does nothing, and not SIG_IGN: a child inherits SIG_IGN and would be deaf to Ctrl-C. For the
        # same reason a SIGINT that is ignored already (a job in a script's background) stays as it is.
        if before[signal.SIGINT] != signal.SIG_IGN:
            signal.signal(signal.SIGINT, _do_nothing)
        signal.signal(signal.SIGTERM, self._terminate)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def to(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        if self.terminated:  # SIGTERM came while the child was being started
            child.terminate()

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True
        if self._child is not None:
            self._child.terminate()


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass
