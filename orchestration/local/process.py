"""Processes on this machine that train, and other programs of msggan: start, follow, stop; their results and logs."""

from __future__ import annotations

import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, TextIO

from msggan.commands.program import OUTPUT_VARIABLE, ReportedError, Terminated, signal_handlers, stopped
from msggan.errors import RunFolderError
from msggan.runs.folder import is_held, terminate_holder
from orchestration.errors import JobFailedError

POLL_SECONDS = 0.2
STOP_TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class ExitResult:
    """How a process ended: its exit status (negative: the signal that killed it) and its stdout.

    terminated_by_us: whether SIGTERM was forwarded to it. wrote_to_stderr: whether the terminal showed its stderr.
    """

    status: int
    stdout: str
    terminated_by_us: bool = False
    wrote_to_stderr: bool = True

    def response(self) -> dict[str, Any]:
        """The JSON object that it printed on its last line, empty if there is none. Raises the error in it.

        Libraries may have printed lines before it.
        """
        try:
            response = json.loads(self.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError):
            return {}
        if not isinstance(response, dict):
            return {}
        if error := response.get("error"):
            raise ReportedError(
                error["message"],
                error["hint"],
                code=error["code"],
                exit_code=abs(self.status) or 1,
                on_stderr=self.wrote_to_stderr,
            )
        return response

    def no_response_error(self, *, process: str, hint: str = "", memory_hint: str = "") -> JobFailedError:
        """The error for a process that ended without a response. process: what it did, such as "training"."""
        if self.status >= 0:
            return JobFailedError(f"The {process} process ended with exit code {self.status} without a result.", hint)
        names = {number.value: number.name for number in signal.Signals}
        name = names.get(-self.status, f"signal {-self.status}")
        if name != "SIGKILL":
            return JobFailedError(f"The {process} process was killed by {name}.", hint)
        return JobFailedError(
            f"The {process} process was killed by SIGKILL. The most common cause is running out of memory.",
            " ".join(filter(None, [hint, memory_hint])),
        )


def start(command: list[str], environ: dict[str, str], **streams: Any) -> subprocess.Popen[str]:
    """Starts a command. Raises `JobFailedError` if the program cannot be started."""
    try:
        return subprocess.Popen(  # noqa: S603 - our own command, as a list: no shell reads it
            command, env=environ, encoding="utf-8", errors="replace", **streams
        )
    except OSError as error:
        raise JobFailedError(f"Cannot start {shlex.join(command[:3])}: {error.strerror}.") from None


def follow(command: list[str], environ: dict[str, str]) -> ExitResult:
    """Runs a command to its end. It inherits stderr, so its live progress line works; its stdout is the result.

    Ctrl-C reaches it through the terminal; SIGTERM is forwarded to it.
    """
    child: subprocess.Popen[str] | None = None
    terminated = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        if child is not None:
            child.terminate()

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    handlers: dict[int, Callable[[int, FrameType | None], None]] = {signal.SIGTERM: terminate}
    # A function that does nothing instead of SIG_IGN: a child inherits SIG_IGN and would ignore Ctrl-C. For the same
    # reason a SIGINT that is already ignored (a background job of a script) stays ignored.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        handlers[signal.SIGINT] = ignore
    with signal_handlers(handlers):
        child = start(command, environ, stdout=subprocess.PIPE)
        with child:
            if terminated:  # SIGTERM came while it was being started
                child.terminate()
            stdout, _ = child.communicate()
        return ExitResult(child.returncode, stdout, terminated)


def result_of(module: str, args: list[str], *, expects: str, process: str, hint: str) -> dict[str, Any]:
    """The result of `python -m MODULE args`; its stderr is shown. Raises its error, or JobFailedError if it left none.

    expects: a key of every result. process: what it did, such as "sampling". hint: the next step if it died.
    """
    result = follow([sys.executable, "-m", module, *args], {**os.environ, OUTPUT_VARIABLE: "json"})
    response = result.response()
    if expects in response:
        return response
    if result.terminated_by_us:  # by SIGTERM, before the child could handle it
        raise stopped(Terminated, "Stopped by SIGTERM.")
    raise result.no_response_error(process=process, hint=hint)


class BackgroundProcess:
    """A training in its own session, which Ctrl-C does not reach. log: the file that receives its stderr."""

    def __init__(self, command: list[str], environ: dict[str, str], log: Path | None = None) -> None:
        from tempfile import TemporaryFile

        self._result: ExitResult | None = None
        self._stdout: IO[str] = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with the process
        with open(log or os.devnull, "a") as stderr:
            self.process = start(
                command,
                environ,
                stdin=subprocess.DEVNULL,
                stdout=self._stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        return self.process.poll() is None

    def result(self) -> ExitResult:
        """Waits for its end."""
        if self._result is None:
            status = self.process.wait()
            with self._stdout:
                self._stdout.seek(0)
                self._result = ExitResult(status, self._stdout.read(), wrote_to_stderr=False)
        return self._result

    def detach(self) -> None:
        """Leaves it running. A thread waits for it, so that no zombie process remains in a notebook."""
        self._stdout.close()
        threading.Thread(target=self.process.wait, daemon=True).start()


def stop_owner(folder: object, lock: Path, process: int, machine: str) -> None:
    """Sends SIGTERM to the process that holds the lock of a run or a sweep, and waits until the lock is released.

    folder: named in errors. process, machine: the recorded ones. Raises `RunFolderError` if another process has the
    lock, `JobFailedError` if it is not released.
    """
    if machine != platform.node():
        raise RunFolderError(f"{folder}: is in use on {machine}.", "Cancel it there.")
    if not terminate_holder(lock, process) and is_held(lock):
        raise RunFolderError(
            f"{folder}: is in use, but not by process {process} of this machine.",
            f"Cancel it on the machine that uses it, which is also named {machine}.",
        )
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while is_held(lock):
        if time.monotonic() > deadline:
            raise JobFailedError(
                f"{folder}: process {process} has not stopped within {STOP_TIMEOUT_SECONDS} s.",
                f"Wait for its current step to end, or kill it: kill -9 {process}. Its last checkpoint is kept.",
            )
        time.sleep(POLL_SECONDS)


# --- The log of a run -------------------------------------------------------------------------------------------------


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
        time.sleep(POLL_SECONDS)
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from (line.rstrip("\n") for line in deque(file, maxlen=tail))
        alive = True
        while alive:
            alive = continues()  # before reading, so that the last round reads everything written before the end
            yield from _whole_lines(file, or_rest=not alive)
            if alive:
                time.sleep(POLL_SECONDS)


def _whole_lines(file: TextIO, *, or_rest: bool) -> Iterator[str]:
    """The lines from the current position. A half-written last line is left for later, unless `or_rest`."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith("\n") and not (line and or_rest):
            file.seek(start)
            return
        yield line.rstrip("\n")
