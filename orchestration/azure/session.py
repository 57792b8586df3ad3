"""The session of a command with the workspace: client, stores and environment, each opened on first use."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from msggan.errors import RunFolderError
from msggan.runs.files import write_whole
from orchestration.azure.blobs import Store, open_store
from orchestration.azure.client import Client, connect
from orchestration.azure.history import History, RunJobs
from orchestration.settings import Settings
from orchestration.spec import DatastorePath, in_datastore
from orchestration.status import Reporter

AGREED = ".azure-agreed.json"  # in the folder of the runs: the workspaces in which money may be spent


@dataclass(frozen=True)
class Agreement:
    """The consent to spend money in the workspace, asked for once per folder of runs."""

    settings: Settings

    @property
    def scope(self) -> str:
        """The workspace as it is recorded; empty if none is configured."""
        where = self.settings.workspace
        return f"{where.subscription_id}/{where.resource_group}/{where.workspace_name}" if where else ""

    def question(self, what: str) -> str | None:
        """The question before the first job, None afterwards. what: its first words, such as "photos trains"."""
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
        """Records that a job was submitted: the question is not asked again."""
        given = self._given()
        if self.scope not in given:
            # The job exists: a full disk or a concurrent submission costs one more question at most.
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


@dataclass(frozen=True)
class Session:
    """The client, run history and stores of one command. Makes no requests before they are used."""

    settings: Settings
    reporter: Reporter = field(default_factory=Reporter)
    wait_factor_s: float | None = None

    @cached_property
    def client(self) -> Client:
        if self.wait_factor_s is None:
            return connect(self.settings, self.reporter.info)
        return connect(self.settings, self.reporter.info, wait_factor_s=self.wait_factor_s)

    @cached_property
    def history(self) -> History:
        return History(self.client)

    @cached_property
    def agreement(self) -> Agreement:
        return Agreement(self.settings)

    def store(self, datastore: str | None) -> Store:
        """The container of a datastore, the workspace's default one for None. Raises MsgganError."""
        if datastore not in self._stores:
            self._stores[datastore] = open_store(self.client, datastore)
        return self._stores[datastore]

    def folder_of(self, run: RunJobs) -> tuple[Store, DatastorePath]:
        """The container of a run or a sweep, and its run folder. Raises MsgganError."""
        if run.folder is None:
            raise RunFolderError(f"The jobs of {run.run} record no run folder.")
        return self.store(run.folder.datastore), run.folder

    def folder_at(self, uri: str) -> tuple[Store, str]:
        """The container of an azureml:// URI, and the path in it. Raises MsgganError."""
        path = in_datastore(uri)
        if path is None:
            raise RunFolderError(f"{uri}: is not a path in a datastore.")
        return self.store(path.datastore), path.path

    def environment(self) -> str:
        """The ID of the environment that the settings specify; creates it if there is none. Raises MsgganError."""
        from orchestration.azure.environment import ensure_environment, resolve_recipe

        return ensure_environment(self.client, resolve_recipe(self.client, self.settings.environment))

    @cached_property
    def _stores(self) -> dict[str | None, Store]:
        return {}
