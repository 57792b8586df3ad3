"""How does a run on Azure stand? Its newest job's state and reason, and what its run folder says of how far it is."""

from __future__ import annotations

import shlex
from typing import Any

from orchestration.azure.history import Details
from orchestration.azure.jobs import DATA_INPUT, exit_code_of, is_timeout, state_of
from orchestration.azure.progress import Progress
from orchestration.azure.run_jobs import RunJobs, created, portal_url
from orchestration.runs import next_of_trial, place_words
from orchestration.spec import GOES_ON, RunStatus, trial_named

TARGET = "azure"


def build_status(run: RunJobs, details: Details, progress: Progress, runs_dir: str) -> RunStatus:
    """The run of these jobs, of which it has at least one."""
    job = run.jobs[-1]
    state = final_state(details)
    if trial_named(run.run):
        next_lines = next_of_trial(run.run, runs_dir, state)
    else:
        next_lines = next_commands(run.run, data_of(job), state, runs_dir)
    return RunStatus(
        name=run.run,
        target=TARGET,
        state=state,
        run_dir=run.folder.uri if run.folder else "",
        job_id=job.name,
        portal_url=portal_url(job),
        images_seen=progress.images_seen,
        metrics=progress.metrics,
        next=next_lines,
        images_total=progress.images_total,
        created=created(run.jobs[0]),
        ended=to_the_second(details.ended) if state not in GOES_ON else None,
        reason=reason_of(details),
    )


def final_state(details: Details) -> str:
    """Our word for how a job stands. The service calls one whose time was up cancelled; nobody cancelled it."""
    state = state_of(details.status)
    return "failed" if state == "cancelled" and is_timeout(details.error) else state


def reason_of(details: Details) -> str:
    """Why a job waits, or has failed, a line each; empty where there is nothing to say."""
    state = final_state(details)
    if state == "queued":
        return "\n".join(details.warnings)
    if state != "failed":
        return ""
    code = exit_code_of(details.error)
    lines = [f"Its process ended with exit code {code}."] if code is not None else []
    lines += [details.error.strip()] if details.error.strip() else []
    lines += ["Give it longer: --timeout-hours."] if is_timeout(details.error) else []
    return "\n".join(lines)


def next_commands(run: str, data: str, state: str, runs_dir: str) -> list[str]:
    """What to type next: to see a run that goes on, or stop it; to use a complete one; else the same run again."""
    place = place_words(runs_dir)
    if state in GOES_ON:
        verbs = (["logs", run, "--follow"], ["cancel", run])
    elif state == "completed":
        verbs = (["sample", run], ["download", run])
    else:
        verbs = (["logs", run, "--tail", "40"], ["submit", "--data", data, "--name", run])
    return [shlex.join(["msggan-aml", *verb, *place]) for verb in verbs]


def data_of(job: Any) -> str:
    """The images of a job, as --data takes them."""
    given = (job.inputs or {}).get(DATA_INPUT)
    return str(getattr(given, "path", None) or "PATH")


def to_the_second(moment: str | None) -> str | None:
    return f"{moment[:19]}Z" if moment else None
