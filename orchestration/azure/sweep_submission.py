"""How does a sweep become a job? As a run does, with what is searched beside its command."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from msggan.errors import UsageError
from orchestration.azure.run_jobs import RunJobs
from orchestration.azure.submission import Submission
from orchestration.azure.sweep_jobs import azure_problems, build_sweep
from orchestration.spec import RunSpec
from orchestration.sweep import SweepSpec


def send_sweep(submission: Submission, sweep: SweepSpec, before: RunJobs) -> Any:
    """The sweep's new job; its newest one, where that has completed this very sweep. before: its jobs so far.

    Raises UsageError before anything is asked or uploaded for what the service would refuse; MsgganError.
    """
    problems = azure_problems(sweep)
    if problems:
        raise UsageError(problems)
    also = list(asked(sweep))
    return submission.send(trial_run(sweep), before, build=partial(build_sweep, sweep=sweep), also=also)


def trial_run(sweep: SweepSpec) -> RunSpec:
    """What every trial has in common, as a run."""
    return RunSpec(sweep.config, sweep.data, sweep.name, sweep.place)


def asked(sweep: SweepSpec) -> Iterator[str]:
    """What makes a sweep another one, beyond what its trials have in common."""
    yield from sweep.space.as_texts()
    yield from (sweep.sampling, str(sweep.sampling_seed), str(sweep.trials))
    yield from map(str, (sweep.objective, sweep.early_stopping))
