"""What does a command on Azure stand on? The workspace that the settings name, opened when it is first needed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property

from msggan.errors import MsgganError, RunFolderError
from orchestration.azure.agreement import Agreement
from orchestration.azure.blobs import Store, open_store
from orchestration.azure.client import Client, connect
from orchestration.azure.following import Watch
from orchestration.azure.history import History, RunJobs
from orchestration.data_source import DatastorePath, in_datastore
from orchestration.reporter import Reporter
from orchestration.settings import Settings

STOPS_WITHIN_LOOKS = 60


@dataclass(frozen=True)
class Session:
    """The client, run history and stores of one command; speaks to people by `voice`. Nothing is asked before use."""

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
        """The container in which a run or a sweep is kept, and where. Raises MsgganError."""
        if run.folder is None:
            raise RunFolderError(f"The jobs of {run.run} do not say where they keep it.")
        return self.store(run.folder.datastore), run.folder

    def folder_at(self, uri: str) -> tuple[Store, str]:
        """The container and the path in it of an azureml:// address that a job said. Raises MsgganError."""
        place = in_datastore(uri)
        if place is None:
            raise RunFolderError(f"{uri}: is no path in a datastore.")
        return self.store(place.datastore), place.path

    def environment(self) -> str:
        """The id of the environment that the settings name, which is made if need be. Raises MsgganError."""
        from orchestration.azure.environment import ensure_environment, resolve_recipe

        return ensure_environment(self.client, resolve_recipe(self.client, self.settings.environment))

    def watch(self, job: str, *, with_build_log: bool = False, tail: int | None = None) -> Watch:
        return Watch(
            job,
            lambda: self.history.details(job),
            self.reporter.info,
            self.client.wait_factor_s,
            with_build_log=with_build_log,
            tail=tail,
        )

    def cancel(self, job: str) -> None:
        """Stops a job and waits for its end, unless that takes too long: then its status says so."""
        try:
            with self.client.errors(f"Cancelling {job}"):
                self.client.ml.jobs.begin_cancel(job).result()
        except MsgganError:
            if not self.history.details(job).has_ended:  # it may have ended by itself just then
                raise
        for _ in itertools.islice(self.watch(job).updates(), STOPS_WITHIN_LOOKS):
            """Until it has ended."""

    @cached_property
    def _stores(self) -> dict[str | None, Store]:
        return {}
