"""Child processes that run programs of msggan: starting, following, and reading results, errors and logs."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from msggan.commands.program import (
    OUTPUT_VARIABLE,
    TRACKING_VARIABLES,
    ReportedError,
    Terminated,
    default_tracking_uri,
    signal_handlers,
    stopped,
    without_password,
)
from orchestration.errors import JobFailedError


def mlflow_of(runs_dir: str | Path, tracking_uri: str | None) -> str:
    """The MLflow tracking URI of the runs in a folder: `tracking_uri`, by default a database in the folder."""
    return tracking_uri or default_tracking_uri(runs_dir)


def variables_of(mlflow: str, *, with_password: bool) -> dict[str, str]:
    """The environment variables of a run. A tracking URI with a password is left out unless `with_password`."""
    is_shown = with_password or mlflow == without_password(mlflow)
    return {OUTPUT_VARIABLE: "json", **({TRACKING_VARIABLES[0]: mlflow} if is_shown else {})}


@dataclass(frozen=True)
class Ending:
    """The end of a child process: its exit status (negative: the signal that killed it) and its stdout.

    wrote_to_stderr: whether its stderr was shown on the terminal.
    """

    status: int
    stdout: str
    terminated_by_us: bool = False
    wrote_to_stderr: bool = True


def follow(command: list[str], environ: dict[str, str]) -> Ending:
    """Runs a command to its end. It inherits stderr, so its live progress line works; its stdout is the result."""
    with _Signals().passed_on() as signals:
        with start(command, environ, stdout=subprocess.PIPE) as child:
            signals.to(child)
            stdout, _ = child.communicate()
        return Ending(child.returncode, stdout, signals.terminated)


def start(command: list[str], environ: dict[str, str], **streams: Any) -> subprocess.Popen[str]:
    """Starts a command. Raises `JobFailedError` if the program cannot be started."""
    try:
        return subprocess.Popen(  # noqa: S603 - our own command, as a list: no shell reads it
            command, env=environ, encoding="utf-8", errors="replace", **streams
        )
    except OSError as error:
        raise JobFailedError(f"Cannot start {shlex.join(command[:3])}: {error.strerror}.") from None


def result_of(module: str, args: list[str], *, expects: str, process: str, hint: str) -> dict[str, Any]:
    """The result of `python -m MODULE args`; its stderr is shown. Raises its error, or JobFailedError if it left none.

    expects: a key of every result. process: what it did, such as "sampling". hint: the next step if it died.
    """
    ending = follow([sys.executable, "-m", module, *args], {**os.environ, OUTPUT_VARIABLE: "json"})
    told = told_by(ending)
    if expects in told:
        return told
    if ending.terminated_by_us:  # by SIGTERM, before the child could handle it
        raise stopped(Terminated, "Stopped by SIGTERM.")
    raise silent_death(ending.status, process=process, hint=hint)


def told_by(ending: Ending) -> dict[str, Any]:
    """The JSON result that a child printed, empty if there is none. Raises the error in it."""
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
    """The error for a child that ended without a result. process: what it did, such as "training"."""
    if status >= 0:
        return JobFailedError(f"The {process} process ended with exit code {status} without a result.", hint)
    message = f"The {process} process was killed by {_signal_name(-status)}."
    if -status == getattr(signal, "SIGKILL", 9):  # Windows has none
        message += " The most common cause is running out of memory."
        return JobFailedError(message, " ".join(filter(None, [hint, if_out_of_memory])))
    return JobFailedError(message, hint)


def _last_object(stdout: str) -> dict[str, Any]:
    """The JSON object on the last line; empty if there is none. Libraries may have printed lines before it."""
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
    """Signals while a child runs: Ctrl-C reaches it through the terminal, SIGTERM is forwarded to it."""

    def __init__(self) -> None:
        self.terminated = False
        self._child: subprocess.Popen[str] | None = None

    @contextmanager
    def passed_on(self) -> Iterator[_Signals]:
        handlers: dict[int, Callable[[int, FrameType | None], None]] = {signal.SIGTERM: self._terminate}
        # A function that does nothing instead of SIG_IGN: a child inherits SIG_IGN and would ignore Ctrl-C. For the
        # same reason a SIGINT that is already ignored (a background job of a script) stays ignored.
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            handlers[signal.SIGINT] = _do_nothing
        with signal_handlers(handlers):
            yield self

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
    """The last `tail` lines of a file, all for None; [] if there is no file."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=tail)]
    except FileNotFoundError:
        return []


def follow_lines(path: Path, tail: int | None, *, continues: Callable[[], bool]) -> Iterator[str]:
    """The last `tail` lines of a file, then each line as it is written, until `continues` returns False."""
    while not path.exists():
        if not continues():
            return
        time.sleep(PAUSE_SECONDS)
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from (line.rstrip("\n") for line in deque(file, maxlen=tail))
        alive = True
        while alive:
            alive = (
                continues()
            )  # checked before reading, so that the last round reads everything written before the end
            yield from _whole_lines(file, or_rest=not alive)
            if alive:
                time.sleep(PAUSE_SECONDS)


def _whole_lines(file: TextIO, *, or_rest: bool) -> Iterator[str]:
    """The lines from the current position. A half-written last line is left for later, unless `or_rest`."""
    while True:
        here = file.tell()
        line = file.readline()
        if not line.endswith("\n") and not (line and or_rest):
            file.seek(here)
            return
        yield line.rstrip("\n")
