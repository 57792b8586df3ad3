"""May money be spent in this workspace? A person is asked once in each folder of runs."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from msggan.runs.files import write_whole
from orchestration.settings import Settings

AGREED = ".azure-agreed.json"  # in the folder of the runs: the workspaces in which money may be spent


@dataclass(frozen=True)
class Agreement:
    """What was agreed to in the folder of runs that the settings name, for the workspace that they name."""

    settings: Settings

    @property
    def scope(self) -> str:
        """The workspace, as it is noted; empty where none is named."""
        where = self.settings.workspace
        return f"{where.subscription_id}/{where.resource_group}/{where.workspace_name}" if where else ""

    def question(self, what: str) -> str | None:
        """What a person has to agree to before the first time, None afterwards. what: will happen, up to the place."""
        if self.scope in self._given():
            return None
        where = self.settings
        size, cluster = where.instance_type, where.compute
        machine = f"a machine of size {size}" if size else f"a machine of cluster {cluster}"
        return (
            f"{what} on {machine} in workspace {self.scope.rpartition('/')[2]}, which costs money, "
            f"for {where.timeout_hours:g} hours at most (--timeout-hours). This is asked once in {where.runs_dir}."
        )

    def give(self) -> None:
        """Notes that a job was sent: from now on nobody is asked."""
        given = self._given()
        if self.scope not in given:
            # The job is there: a full disk, or another submission writing this too, costs one more question at most.
            with suppress(OSError):
                self._note.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self._note, json.dumps([*given, self.scope]).encode())

    @property
    def _note(self) -> Path:
        return Path(self.settings.runs_dir) / AGREED

    def _given(self) -> list[str]:
        try:
            return [str(scope) for scope in json.loads(self._note.read_bytes())]
        except (OSError, ValueError, TypeError):
            return []
