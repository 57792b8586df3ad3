"""One trial of a sweep on this machine: the command line of a run, as a process in a session of its own."""

from __future__ import annotations

import platform
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from typing import IO

from msggan.commands.program import EXIT_CODES
from msggan.errors import MsgganError
from msggan.runs.folder import RunFolder, is_owned, read_state, state_of, terminate_holder
from orchestration.local.process import Ending, silent_death, start, told_by

NEEDS_LESS_MEMORY = "A smaller --batch-size, --resolution or --concurrent needs less memory."


@dataclass(frozen=True)
class Outcome:
    """How a trial's process ended. state: completed, failed, cancelled or interrupted."""

    state: str
    reason: str = ""


class TrialProcess:
    """A training that this sweep started. Its stderr goes to its log.txt; Ctrl-C does not reach it."""

    def __init__(self, folder: RunFolder, command: list[str], environ: dict[str, str]) -> None:
        folder.path.mkdir(parents=True, exist_ok=True)
        self._stdout: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - as long as the trial
        with folder.log.open("a") as log:
            self._child = start(
                command, environ, stdin=subprocess.DEVNULL, stdout=self._stdout, stderr=log, start_new_session=True
            )

    def outcome(self) -> Outcome | None:
        """How it ended, None while it is running."""
        status = self._child.poll()
        if status is None:
            return None
        self._stdout.seek(0)
        ending = Ending(status, self._stdout.read())
        self._stdout.close()
        return _outcome_of(ending)

    def stop(self) -> None:
        """Stops it after the current step, with a checkpoint."""
        self._child.terminate()


class AdoptedTrial:
    """A training that was left running when its sweep was killed; its run folder shows its state."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def outcome(self) -> Outcome | None:
        if is_owned(self._folder):
            return None
        state = state_of(self._folder)
        if state is None or state.state not in EXIT_CODES:
            return Outcome("interrupted")
        return Outcome(state.state, state.reason)

    def stop(self) -> None:
        record = read_state(self._folder)
        if record is not None and record.state == "running" and record.machine == platform.node():
            terminate_holder(self._folder.lock, record.process)


def _outcome_of(ending: Ending) -> Outcome:
    try:
        result = told_by(ending)
        if result.get("state") in EXIT_CODES:
            return Outcome(str(result["state"]))
        if ending.status in (-signal.SIGTERM, EXIT_CODES["cancelled"]):  # it came before training started
            return Outcome("cancelled")
        raise silent_death(ending.status, process="training", if_out_of_memory=NEEDS_LESS_MEMORY)
    except MsgganError as error:
        if error.exit_code == EXIT_CODES["cancelled"]:
            return Outcome("cancelled")
        return Outcome("failed", " ".join(error.message.split()))
