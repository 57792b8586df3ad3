"""The status of a run: its newest job's state and reason, and the progress that its run folder records."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field

from msggan.tracking.metrics_log import newest_values, reports_in
from orchestration.azure.blobs import Store
from orchestration.azure.history import Details, RunJobs, created_at, data_of, portal_url
from orchestration.runs import next_of_trial, runs_dir_args
from orchestration.spec import trial_named
from orchestration.status import ACTIVE_STATES, RunStatus

TARGET = "azure"

# The last few hundred reports: the newest value of every metric is among them, also of those measured now and then.
LAST_BYTES = 256 << 10


# --- Progress ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """Images seen and images in all, None where unknown, and each metric's newest value."""

    images_seen: int | None = None
    images_total: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)


def read_progress(store: Store, folder: str) -> Progress:
    """The progress of the run whose folder is at this path of the datastore: from metrics.jsonl and config.json."""
    folder = folder.rstrip("/")
    metrics = newest_values(reports_in(store.read(f"{folder}/metrics.jsonl", last_bytes=LAST_BYTES) or b""))
    seen = metrics.get("images")
    try:
        total = int(1000 * json.loads(store.read(f"{folder}/config.json") or b"")["kimg"] + 0.5)
    except (ValueError, KeyError, TypeError):
        total = None
    return Progress(None if seen is None else int(seen), total, metrics)


# --- Status -----------------------------------------------------------------------------------------------------------


def build_status(run: RunJobs, details: Details, progress: Progress, runs_dir: str) -> RunStatus:
    """The status of the run of these jobs, of which there is at least one. details: of the newest."""
    job = run.jobs[-1]
    state = details.state
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
        created=created_at(run.jobs[0]),
        ended=to_seconds(details.ended) if state not in ACTIVE_STATES else None,
        reason=reason_of(details),
    )


def reason_of(details: Details) -> str:
    """Why a job waits or has failed, one reason per line; else empty."""
    if details.state == "queued":
        return "\n".join(details.warnings)
    if details.state != "failed":
        return ""
    exited = f"The process ended with exit code {details.exit_code}." if details.exit_code is not None else ""
    hint = "Increase --timeout-hours." if details.timed_out else ""
    return "\n".join(filter(None, [exited, details.error.strip(), hint]))


def next_commands(run: str, data: str, state: str, runs_dir: str) -> list[str]:
    """What to type next: follow or cancel an active run, use a completed one, look at and resume another."""
    if state in ACTIVE_STATES:
        verbs = (["logs", run, "--follow"], ["cancel", run])
    elif state == "completed":
        verbs = (["sample", run], ["download", run])
    else:
        verbs = (["logs", run, "--tail", "40"], ["submit", "--data", data, "--name", run])
    return [shlex.join(["msggan-aml", *verb, *runs_dir_args(runs_dir)]) for verb in verbs]


def to_seconds(moment: str | None) -> str | None:
    """A time of the service, ISO 8601 in UTC, without the fraction of its second."""
    return f"{moment[:19]}Z" if moment else None
