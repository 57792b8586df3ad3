"""Programs of msggan as child processes: started, followed to their end, their results, errors and logs read."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from msggan.commands.program import OUTPUT_VARIABLE, Terminated, stopped
from msggan.commands.tracking_uri import TRACKING_VARIABLES, without_password
from orchestration.errors import JobFailedError, ReportedError


def mlflow_of(runs_dir: str | Path, tracking_uri: str | None) -> str:
    """The MLflow that the runs in a folder are told to: what is set, `none` for none, by default a database there."""
    return tracking_uri or f"sqlite:///{(Path(runs_dir) / 'mlflow.db').as_posix()}"


def variables_of(mlflow: str, *, with_password: bool) -> dict[str, str]:
    """What a run is told by its environment; an address that holds a password is nothing to be shown."""
    is_shown = with_password or mlflow == without_password(mlflow)
    return {OUTPUT_VARIABLE: "json", **({TRACKING_VARIABLES[0]: mlflow} if is_shown else {})}


@dataclass(frozen=True)
class Ending:
    """How a child process ended: its exit status (negative: the signal that killed it) and what it had said.

    wrote_to_stderr: whether a person has seen what it wrote there.
    """

    status: int
    stdout: str
    terminated_by_us: bool = False
    wrote_to_stderr: bool = True


def follow(command: list[str], environ: dict[str, str]) -> Ending:
    """Runs a command to its end. Its stderr is ours, so its live progress line works; its stdout is its result."""
    with _Signals().passed_on() as signals:
        with start(command, environ, stdout=subprocess.PIPE) as child:
            signals.to(child)
            stdout, _ = child.communicate()
        return Ending(child.returncode, stdout, signals.terminated)


def start(command: list[str], environ: dict[str, str], **streams: Any) -> subprocess.Popen[str]:
    """Starts a command of ours. Raises `JobFailedError` where there is no such program."""
    try:
        return subprocess.Popen(  # noqa: S603 - our own command, as a list: no shell reads it
            command, env=environ, encoding="utf-8", errors="replace", **streams
        )
    except OSError as error:
        raise JobFailedError(f"Cannot start {shlex.join(command[:3])}: {error.strerror}.") from None


def result_of(module: str, words: list[str], *, expects: str, process: str, hint: str) -> dict[str, Any]:
    """What `python -m MODULE words` told of, with all of its stderr shown. Raises its error, or how it died silently.

    expects: a key of every result. process: what it was, as "sampling". hint: what to do if it died.
    """
    ending = follow([sys.executable, "-m", module, *words], {**os.environ, OUTPUT_VARIABLE: "json"})
    told = told_by(ending)
    if expects in told:
        return told
    if ending.terminated_by_us:  # SIGTERM came before the child could have answered it
        raise stopped(Terminated, "Stopped by SIGTERM.")
    raise silent_death(ending.status, process=process, hint=hint)


def told_by(ending: Ending) -> dict[str, Any]:
    """The result that a child told of, empty where it told of none. Raises its error."""
    told = _last_object(ending.stdout)
    if "error" in told:
        error = told["error"]
        raise ReportedError(
            error["message"],
            error["hint"],
            code=error["code"],
            exit_code=abs(ending.status) or 1,
            on_stderr=ending.wrote_to_stderr,
        )
    return told


def silent_death(status: int, *, process: str, hint: str = "", if_out_of_memory: str = "") -> JobFailedError:
    """What to say of a child that ended with this status and left no result. process: what it was, as "training"."""
    if status >= 0:
        return JobFailedError(f"The {process} process ended with exit code {status} and left no result.", hint)
    message = f"The {process} process was killed by {_signal_name(-status)}."
    if -status == getattr(signal, "SIGKILL", 9):  # Windows has none
        message += " Most often the machine had run out of memory."
        return JobFailedError(message, " ".join(filter(None, [hint, if_out_of_memory])))
    return JobFailedError(message, hint)


def _last_object(stdout: str) -> dict[str, Any]:
    """The JSON object on the last line; empty if there is none. A library may have printed something before it."""
    lines = stdout.strip().splitlines()
    try:
        told = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


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


# --- The log of a run -------------------------------------------------------------------------------------------------

PAUSE_SECONDS = 0.2


def last_lines(path: Path, tail: int | None) -> list[str]:
    """The last `tail` lines of a file, all of them for None; none where there is no file."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=tail)]
    except FileNotFoundError:
        return []


def follow_lines(path: Path, tail: int | None, *, continues: Callable[[], bool]) -> Iterator[str]:
    """The last `tail` lines of a file and then each line as it is written, until nothing writes to it any more."""
    while not path.exists():
        if not continues():
            return
        time.sleep(PAUSE_SECONDS)
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from (line.rstrip("\n") for line in deque(file, maxlen=tail))
        alive = True
        while alive:
            alive = continues()  # before reading: what was written up to the end is read in the last round
            yield from _whole_lines(file, or_rest=not alive)
            if alive:
                time.sleep(PAUSE_SECONDS)


def _whole_lines(file: TextIO, *, or_rest: bool) -> Iterator[str]:
    """The lines from here on; a last one that is only half written waits for its end, unless none will come."""
    while True:
        here = file.tell()
        line = file.readline()
        if not line.endswith("\n") and not (line and or_rest):
            file.seek(here)
            return
        yield line.rstrip("\n")
