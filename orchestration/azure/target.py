"""How does a run train on Azure ML? As a job, whose run folder lies in the workspace's storage."""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from msggan.errors import MsgganError, RunFolderError, UsageError
from msggan.files import write_whole
from msggan.program import StoppedError, Terminated, stopped
from orchestration.azure.blobs import Store, Tell, open_store
from orchestration.azure.client import Client, configured_workspace, connect, quieten, workspace_scope
from orchestration.azure.copies import GENERATOR, copy_run
from orchestration.azure.data import planned_data
from orchestration.azure.following import Watch
from orchestration.azure.history import Details, History
from orchestration.azure.jobs import DATA_PLACEHOLDER, RUN_PLACEHOLDER, build_body, configuration_hash, has_ended
from orchestration.azure.logs import JOB_LOG, LogReader, log_in
from orchestration.azure.progress import Progress, read_progress
from orchestration.azure.run_jobs import RunJobs, find_jobs, list_runs, portal_url, run_folder_of
from orchestration.azure.standing import build_status, final_state, reason_of
from orchestration.azure.submission import Submission, build_plan, how_to_look
from orchestration.azure.tags import build_tags
from orchestration.runs import COPY_NOTE, is_copy
from orchestration.settings import Settings
from orchestration.spec import Download, Run, RunSpec, RunStatus
from orchestration.voice import Voice

AGREED = ".azure-agreed.json"  # in the folder of the runs: the workspaces in which money may be spent
ASKED_AT_ONCE = 8
STOPS_WITHIN_LOOKS = 60
TO_RESOLVE = "<resolved-at-submit: {}>"


@dataclass(frozen=True)
class AzureTarget:
    """The workspace that the settings name. Speaks to people by `voice`."""

    settings: Settings
    voice: Voice = field(default_factory=Voice)
    wait_factor_s: float | None = None

    name = "azure"

    # --- Before anything is sent --------------------------------------------------------------------------------------

    def plan(self, spec: RunSpec) -> dict[str, Any]:
        """What `submit` would send. Asks nobody: what only the service knows stands as `<resolved-at-submit: …>`."""
        quieten()
        scope = workspace_scope(configured_workspace(self.settings))
        datastore = self.settings.datastore or TO_RESOLVE.format("the workspace's default datastore")
        data = planned_data(str(spec.data), datastore)
        job = build_plan(
            self.settings,
            spec,
            data,
            name=spec.name,
            datastore=datastore,
            code=TO_RESOLVE.format("the snapshot of the msggan package"),
            environment=self._planned_environment(),
            tags=build_tags(spec.name, configuration_hash(spec, data), Path.cwd()),
        )
        body = build_body(job, scope)
        return {
            "target": self.name,
            "command": spec.command(data=DATA_PLACEHOLDER, run_dir=RUN_PLACEHOLDER),
            "env": body["properties"]["environmentVariables"],
            "run_dir": job.run_folder.uri,
            "requests": [{"method": "PUT", "path": f"{scope}/jobs/{job.name}", "body": body}],
        }

    def question(self, spec: RunSpec) -> str | None:
        """What a person has to agree to before the first run in this folder: it costs money."""
        if self._scope in self._agreed():
            return None
        where = self.settings
        size, cluster = where.instance_type, where.compute
        machine = f"a machine of size {size}" if size else f"a machine of cluster {cluster}"
        return (
            f"{spec.name} trains on {machine} in workspace {self._scope.rpartition('/')[2]}, which costs money, "
            f"for {where.timeout_hours:g} hours at most (--timeout-hours). This is asked once in {where.runs_dir}."
        )

    # --- The verbs ----------------------------------------------------------------------------------------------------

    def submit(self, spec: RunSpec, *, detach: bool = False) -> Run:
        """Sends the run as a job and follows it to its end; with `detach` it leaves it as soon as it is accepted.

        Raises MsgganError: there is no job then, or the error says that there may be one.
        """
        client = self._client
        submission = Submission(client, self.settings, self.voice, self._store, self._environment)
        before = find_jobs(client, spec.name)
        job = submission.send(spec, before)
        self._agree()
        run = RunJobs(spec.name, (*before.jobs, job), "") if job is not before.newest else before
        self.voice.tell(f"Job {job.name}: {portal_url(job)}")
        if detach:
            return self._status(run, details=self._details_or_less(job), with_progress=False).as_submitted()
        return self._follow(run)

    def runs(self) -> list[RunStatus]:
        """The newest runs, the newest first."""
        found, are_more = list_runs(self._client)
        if are_more:
            self.voice.tell(f"There are more than these {len(found)} runs; the older ones are in the portal.")
        if not found:
            return []
        with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
            return list(threads.map(self._status, found))

    def status(self, name: str) -> RunStatus:
        """How a run stands. Raises `RunFolderError` where there is none."""
        return self._status(self._jobs(name))

    def logs(self, name: str, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """The lines that the run's jobs have written; with `follow` also those that the newest writes until its end."""
        run = self._jobs(name)
        if follow and run.goes_on:
            return self._go_on(run, tail)
        lines: deque[str] = deque(maxlen=tail)
        for job in run.jobs:
            lines.extend(self._lines_so_far(job.name))
        return iter(lines)

    def cancel(self, name: str) -> RunStatus:
        """Stops a run and waits for its end. Raises `UsageError` if it is not running."""
        run = self._jobs(name)
        if not run.goes_on:
            raise UsageError([f"{name}: is not running but {self._status(run, with_progress=False).state}."])
        job = run.jobs[-1].name
        try:
            with self._client.errors(f"Cancelling {job}"):
                self._client.ml.jobs.begin_cancel(job).result()
        except MsgganError:
            if not has_ended(self._history.details(job).status):  # it may have ended by itself just then
                raise
        self._wait_for_end(job)
        return self.status(name)

    def download(self, name: str, to: Path, *, weights: bool, force: bool, tell: Tell) -> Download:
        """Copies a run's folder here, or just its generator. Raises MsgganError where it cannot."""
        store, folder = self._place(self._jobs(name))
        return copy_run(self._client, store, folder, to, weights=weights, force=force, tell=tell)

    def weights(self, name: str) -> str:
        """The folder here in which the run's newest generator lies, brought if it is not there yet."""
        store, folder = self._place(self._jobs(name))
        to = Path(self.settings.runs_dir) / name
        if to.exists() and not is_copy(to):
            raise UsageError(
                [f"{to}: is a run of this machine, and not the one on Azure."],
                f"Bring that one elsewhere: msggan-aml download {name} --target azure --out OTHER",
            )
        with self._client.errors(f"Looking into {folder}"):
            newest = next((blob.etag for blob in store.walk(folder) if blob.name == GENERATOR), None)
        if newest is None or _etag_of_copy(to) != newest or not (to / GENERATOR).is_file():
            copy_run(
                self._client,
                store,
                folder,
                to,
                weights=True,
                force=True,
                tell=lambda done, total: self.voice.show("Fetching the weights", done, total),
            )
            note = {"scope": self._scope, "run": name, "etag": newest}
            write_whole(to / COPY_NOTE, json.dumps(note).encode())
        return str(to)

    # --- Following ----------------------------------------------------------------------------------------------------

    def _follow(self, run: RunJobs) -> Run:
        """Shows what the run's newest job says, to its end. Ctrl-C leaves it to itself and says so."""
        watch = self._watch(run, with_build_log=True)
        try:
            for line in watch.lines():
                self.voice.tell(line)
        except (KeyboardInterrupt, Terminated) as stop:
            raise _detached(run, stop) from None
        except MsgganError as error:
            error.hint = "\n".join(filter(None, [error.hint, f"{run.run} goes on. {how_to_look(run.run)}"]))
            raise
        if final_state(watch.details) == "failed":
            self.voice.tell(f"{run.run} failed. {reason_of(watch.details)}")
        return self._status(run, details=watch.details).as_submitted()

    def _go_on(self, run: RunJobs, tail: int | None) -> Iterator[str]:
        """The last lines of the run, and then those that come."""
        for job in run.jobs[:-1]:
            yield from () if tail is not None else self._lines_so_far(job.name)
        yield from self._watch(run, tail=tail).lines()

    def _watch(self, run: RunJobs, *, with_build_log: bool = False, tail: int | None = None) -> Watch:
        job = run.jobs[-1].name
        return Watch(
            job,
            lambda: self._history.details(job),
            self.voice.tell,
            self._client.wait_factor_s,
            with_build_log=with_build_log,
            tail=tail,
        )

    def _lines_so_far(self, job: str) -> list[str]:
        url = log_in(self._history.details(job), JOB_LOG)
        return [] if url is None else list(LogReader(self._client.wait_factor_s).lines(url, to_the_end=True))

    def _details_or_less(self, job: Any) -> Details:
        """How a job stands; what its submission was answered, where that cannot be had: it is there all the same."""
        try:
            return self._history.details(job.name)
        except MsgganError:
            return Details(job.status)

    def _wait_for_end(self, job: str) -> None:
        watch = Watch(job, lambda: self._history.details(job), self.voice.tell, self._client.wait_factor_s)
        for _ in itertools.islice(watch.looks(), STOPS_WITHIN_LOOKS):
            """Until it has ended, or takes too long: then its status says so."""

    # --- What it stands on --------------------------------------------------------------------------------------------

    @cached_property
    def _client(self) -> Client:
        if self.wait_factor_s is None:
            return connect(self.settings, self.voice.tell)
        return connect(self.settings, self.voice.tell, wait_factor_s=self.wait_factor_s)

    @cached_property
    def _history(self) -> History:
        return History(self._client)

    @cached_property
    def _stores(self) -> dict[str | None, Store]:
        return {}

    def _store(self, datastore: str | None) -> Store:
        if datastore not in self._stores:
            self._stores[datastore] = open_store(self._client, datastore)
        return self._stores[datastore]

    def _environment(self) -> str:
        from orchestration.azure.environment import resolve_environment

        return resolve_environment(self.settings, self._client)

    def _planned_environment(self) -> str:
        return TO_RESOLVE.format(f"the environment {self.settings.environment}")

    def _jobs(self, name: str) -> RunJobs:
        run = find_jobs(self._client, name)
        if run.newest is None:
            where = self._client.workspace.workspace_name
            raise RunFolderError(f"No run {name!r} in workspace {where}.", "See what runs there are: msggan-aml list")
        return run

    def _place(self, run: RunJobs) -> tuple[Store, str]:
        """The datastore that keeps a run, and the run folder's path in it."""
        place = run_folder_of(run.jobs[-1])
        if place is None:
            raise RunFolderError(f"The job {run.jobs[-1].name} does not say where it keeps its run.")
        return self._store(place.datastore), place.path

    def _status(self, run: RunJobs, *, details: Details | None = None, with_progress: bool = True) -> RunStatus:
        details = details or self._history.details(run.jobs[-1].name)
        progress = self._progress(run) if with_progress else Progress()
        return build_status(run, details, progress, self.settings.runs_dir)

    def _progress(self, run: RunJobs) -> Progress:
        """How far a run is; nothing where its storage does not open, which must not hide how its job stands."""
        try:
            store, folder = self._place(run)
            with self._client.errors(f"Reading how far {run.run} is"):
                return read_progress(store, folder)
        except MsgganError as error:
            self.voice.tell(error.message)
            return Progress()

    # --- What a person has agreed to ----------------------------------------------------------------------------------

    @property
    def _scope(self) -> str:
        where = self.settings.workspace
        return f"{where.subscription_id}/{where.resource_group}/{where.workspace_name}" if where else ""

    def _agreed(self) -> list[str]:
        try:
            return [str(scope) for scope in json.loads((Path(self.settings.runs_dir) / AGREED).read_bytes())]
        except (OSError, ValueError, TypeError):
            return []

    def _agree(self) -> None:
        agreed = self._agreed()
        if self._scope not in agreed:
            # The job is there: a full disk, or another submission writing this too, costs one more question at most.
            with suppress(OSError):
                Path(self.settings.runs_dir).mkdir(parents=True, exist_ok=True)
                write_whole(Path(self.settings.runs_dir) / AGREED, json.dumps([*agreed, self._scope]).encode())


def _detached(run: RunJobs, stop: BaseException) -> StoppedError:
    return stopped(
        type(stop),
        f"Detached: {run.run} goes on as job {run.jobs[-1].name}.",
        f"Follow it again: msggan-aml logs {run.run} --follow. Stop it: msggan-aml cancel {run.run}.",
    )


def _etag_of_copy(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / COPY_NOTE).read_bytes())["etag"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
