"""How does a sweep become a job? As a run does, with what is searched beside its command, and what was asked kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from azure.ai.ml.sweep import SweepJob

from msggan.errors import UsageError
from orchestration.azure.history import RunJobs, data_of
from orchestration.azure.jobs import JobPlan, run_folder
from orchestration.azure.session import Session
from orchestration.azure.submission import Submission
from orchestration.azure.sweep_jobs import RemainingTrials, build_sweep, whole
from orchestration.spec import SWEEP_NOTE, RunSpec
from orchestration.sweeps.request import SweepRequest
from orchestration.sweeps.spec import ENDED, SweepSpec, Trial


def send_sweep(
    session: Session, sweep: SweepSpec, part: RemainingTrials, before: RunJobs, request: SweepRequest
) -> Any:
    """The sweep's new job, which tries `part` of it. before: its jobs so far. Raises MsgganError.

    request: is kept in the sweep's folder, before the job is sent: there is no job that nobody can read.
    """
    store = session.store(session.settings.datastore)
    folder = run_folder(store.datastore, sweep.name)
    with session.client.errors(f"Writing into {folder.uri}"):
        store.write(f"{folder.path}{SWEEP_NOTE}", request.to_bytes())

    def build(plan: JobPlan) -> SweepJob:
        refuse_other_images(plan, before)
        return build_sweep(plan, sweep, part)

    return Submission(session).send(trial_run(sweep), before, build=build, extra=[*asked(sweep), before.next_name])


def refuse_other_images(plan: JobPlan, before: RunJobs) -> None:
    """Raises `UsageError` where the sweep went on other images so far: its trials could not be compared."""
    if before.newest is not None and (there := data_of(before.newest)) != plan.data.uri:
        raise UsageError(
            [f"--data {plan.spec.data}: the sweep {before.run} is on other images, {there}."],
            "Give those images to go on with it, or give another --name.",
        )


def what_is_left(sweep: SweepSpec, trials: list[Trial], jobs_so_far: int) -> RemainingTrials | None:
    """What the sweep's next job has to try, None if every trial has ended. trials: those of the jobs so far."""
    if not jobs_so_far:
        return whole(sweep)
    ended = [trial for trial in trials if trial.state in ENDED]
    left = sweep.trials - len(ended)
    if sweep.sampling != "grid":
        return RemainingTrials(left, sweep.sampling_seed + jobs_so_far) if left > 0 else None
    tried = [trial.settings for trial in ended]
    grid = itertools.islice(sweep.space.combinations(), sweep.trials)
    untried = tuple(settings for settings in grid if settings not in tried)
    return RemainingTrials(len(untried), sweep.sampling_seed, untried) if untried else None


def trial_run(sweep: SweepSpec) -> RunSpec:
    """What every trial has in common, as a run."""
    return RunSpec(sweep.config, sweep.data, sweep.name, sweep.hardware)


def asked(sweep: SweepSpec) -> Iterator[str]:
    """What makes a sweep another one, beyond what its trials have in common."""
    yield from sweep.space.as_texts()
    yield from (sweep.sampling, str(sweep.sampling_seed), str(sweep.trials))
    yield from map(str, (sweep.objective, sweep.early_stopping))
