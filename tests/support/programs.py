"""Runs our programs as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FAST_PYTHON = "TESTS_FAST_PYTHON"

PROGRAMS = {
    "msggan-aml": ["-c", "from orchestration.commands.main import main; main()"],
    "msggan.train": ["-m", "msggan.train"],
    "msggan.sample": ["-m", "msggan.sample"],
    "msggan.pack": ["-m", "msggan.pack"],
    "msggan.check": ["-m", "msggan.check"],
    "msggan.export": ["-m", "msggan.export"],
    "msggan.evaluate": ["-m", "msggan.evaluate"],
}


@dataclass(frozen=True)
class Ended:
    """A process that has exited."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The content of stdout, which must be exactly one line of JSON."""
        (line,) = self.stdout.splitlines()
        result: dict[str, Any] = json.loads(line)
        return result


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without the variables that our programs read, with this checkout's packages first.

    Runs are not logged to MLflow unless a test asks for it, as importing it takes longer than training them.
    """
    ours = ("MSGGAN_", "AZUREML_", "MLFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), kept.get("PYTHONPATH", "")]))
    return {**kept, "PYTHONPATH": path, "MSGGAN_TRACKING_URI": "none", **extra}


def fast_python() -> str:
    """An interpreter that has already imported the large packages, if available. See support.fork_server."""
    return os.environ.get(FAST_PYTHON, sys.executable)


def command_line(program: str, *args: object, python: str = sys.executable) -> list[str]:
    return [python, *PROGRAMS[program], *map(str, args)]


def run_in(folder: Path, program: str, *args: object, python: str | None = None, **variables: str) -> Ended:
    """Runs a program in a folder until it exits. python: the interpreter; by default the fork server's."""
    ended = subprocess.run(
        command_line(program, *args, python=python or fast_python()),
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        encoding="utf-8",
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@contextmanager
def started(
    folder: Path,
    program: str,
    *args: object,
    background: bool = False,
    forks: bool = True,
    python: str = sys.executable,
    **variables: str,
) -> Iterator[subprocess.Popen[str]]:
    """A running program in a folder, in a process group of its own like a terminal's, killed at the end of the test.

    background: it starts with SIGINT ignored, like a script's `command &`. forks: whether what `msggan-aml` starts are
    forks of the server.
    """
    deaf = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"] if background else []
    command = command_line(program, *args, python=python)
    if program == "msggan-aml" and forks:  # the process itself is real, so that it gets the group's Ctrl-C
        command[2] = f"import sys; sys.executable = {fast_python()!r}; {command[2]}"
    with subprocess.Popen(
        [*deaf, *command],
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def stopped(process: subprocess.Popen[str], by: str) -> Ended:
    """Stops a program by Ctrl-C, which a terminal sends to the whole process group, or by SIGTERM to it alone."""
    if by == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.SIGTERM)
    stdout, stderr = process.communicate()
    return Ended(process.returncode, stdout, stderr)


def wait_for(reached: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Waits for a condition. Fails if the process that is to bring it about exits before."""
    while not reached():
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)
