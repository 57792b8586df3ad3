"""Which jobs has a run? Its first is called NAME, those that continue it NAME-2, NAME-3 …, all with its tag."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from azure.core.exceptions import ResourceNotFoundError

from orchestration.azure.client import Client, as_ours
from orchestration.azure.jobs import RUN_OUTPUT, RUN_TAG, SWEEP_TAG, has_ended, job_name
from orchestration.data_source import DatastorePath, in_datastore
from orchestration.errors import WorkspaceError

MOST_JOBS = 2000  # looked at for a list
MOST_RUNS = 50


@dataclass(frozen=True)
class RunJobs:
    """The jobs of a run or of a sweep, the newest last, and the name that its next one would have.

    place: where it keeps its run, of a trial, whose job does not say so.
    """

    run: str
    jobs: tuple[Any, ...]
    next_name: str = ""
    place: DatastorePath | None = None

    @property
    def newest(self) -> Any | None:
        return self.jobs[-1] if self.jobs else None

    @property
    def is_sweep(self) -> bool:
        return self.newest is not None and is_sweep(self.newest)

    @property
    def goes_on(self) -> bool:
        return self.newest is not None and not has_ended(self.newest.status)

    @property
    def folder(self) -> DatastorePath | None:
        """Where the newest of its jobs keeps its run, None where that says nothing that can be read."""
        return self.place or (run_folder_of(self.newest) if self.newest is not None else None)


def find_jobs(client: Client, run: str) -> RunJobs:
    """The jobs of a run, none where there is no such run. Jobs of those names that belong to others are passed over."""
    found = []
    for number in itertools.count(1):
        job = get_job(client, job_name(run, number))
        if job is None:
            break
        if run_of(job) == run:
            found.append(job)
    return RunJobs(run, tuple(found), job_name(run, number))


def get_job(client: Client, name: str) -> Any | None:
    """The job of that name, None where there is none."""
    with client.errors(f"Looking for the job {name}"):
        try:
            return client.ml.jobs.get(name)
        except ResourceNotFoundError as error:
            if isinstance(as_ours(error, "", client.workspace), WorkspaceError):
                raise
            return None


def list_runs(client: Client, *, sweeps: bool = False) -> tuple[list[RunJobs], bool]:
    """The newest runs, or sweeps, the newest first, each with its jobs; and whether there are more."""
    by_run: dict[str, list[Any]] = {}
    with client.errors("Listing the jobs"):
        # The service leaves what cannot be read out of a list, and None in its place.
        jobs = (
            job
            for job in client.ml.jobs.list(tag=SWEEP_TAG if sweeps else RUN_TAG)
            if job is not None and is_sweep(job) == sweeps
        )
        for job in itertools.islice(_ours(jobs), MOST_JOBS):
            by_run.setdefault(run_of(job), []).append(job)
    runs = [RunJobs(run, tuple(sorted(jobs, key=created))) for run, jobs in by_run.items()]
    runs.sort(key=lambda run: created(run.jobs[-1]), reverse=True)
    return runs[:MOST_RUNS], len(runs) > MOST_RUNS or sum(map(len, by_run.values())) == MOST_JOBS


def run_of(job: Any) -> str:
    """The run that a job belongs to, empty for a job that is not ours."""
    return str((job.tags or {}).get(RUN_TAG, ""))


def is_sweep(job: Any) -> bool:
    return SWEEP_TAG in (job.tags or {})


def created(job: Any) -> str:
    """When a job was submitted, ISO 8601 in UTC to the second."""
    moment = job.creation_context.created_at
    return str(moment.strftime("%Y-%m-%dT%H:%M:%SZ"))


def run_folder_of(job: Any) -> DatastorePath | None:
    """Where a job keeps its run, None where it says nothing that can be read."""
    output = (job.outputs or {}).get(RUN_OUTPUT)
    return in_datastore(str(output.path)) if output is not None and output.path else None


def portal_url(job: Any) -> str | None:
    return job.studio_url or None


def _ours(jobs: Iterable[Any]) -> Iterator[Any]:
    """Other jobs may carry our tag's name in theirs."""
    return (job for job in jobs if run_of(job))
