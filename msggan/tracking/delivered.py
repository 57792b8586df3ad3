"""What of a run has reached MLflow already? `mlflow.json` keeps it with the run, so that the next process goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from msggan.runs.files import write_whole

NOTHING = -1  # before the first image


@dataclass(frozen=True)
class DeliveryCursor:
    """One run in one MLflow, and how far it has been told.

    tracking_uri: without a password. name: of the run folder; a copy of the folder under another name is another run.
    delivered_…images: the images seen at the last report and at the last sample grid that MLflow has. ended: the
    state in which the run ended, once MLflow has that and the last files; empty while it goes on.
    """

    tracking_uri: str
    name: str
    experiment_id: str
    run_id: str
    delivered_images: int = NOTHING
    delivered_sample_images: int = NOTHING
    ended: str = ""

    def save(self, path: Path) -> None:
        write_whole(path, json.dumps(asdict(self), indent=2).encode())


def load_delivered(path: Path, *, tracking_uri: str, name: str) -> DeliveryCursor | None:
    """What was delivered of this run to this MLflow; None if nothing was, or if the file cannot be read."""
    try:
        values = json.loads(path.read_bytes())
        found = DeliveryCursor(
            **{spec.name: values[spec.name] for spec in fields(DeliveryCursor) if spec.name != "ended"}
        )
        found = replace(found, ended=values.get("ended", ""))  # older versions did not record it
    except (OSError, ValueError, KeyError, TypeError):
        return None
    good = all(isinstance(number, int) for number in (found.delivered_images, found.delivered_sample_images))
    return found if good and (found.tracking_uri, found.name) == (tracking_uri, name) else None


def is_point(report: Mapping[str, Any]) -> bool:
    """Whether a line of `metrics.jsonl` is a report, and not something that another hand wrote there."""
    images = report.get("images") if isinstance(report, Mapping) else None
    return isinstance(images, int) and not isinstance(images, bool) and 0 <= images < 2**63


def undelivered(reports: Sequence[Mapping[str, Any]], delivered: DeliveryCursor | None) -> int:
    """How many points of a run's curves MLflow does not have yet."""
    after = delivered.delivered_images if delivered else NOTHING
    return sum(1 for report in reports if is_point(report) and report["images"] > after)


@contextmanager
def exclusive_lock(folder: Path, seconds: float) -> Iterator[None]:
    """Within, no other process tells MLflow of what is in `folder`. Raises filelock's `Timeout` after `seconds`."""
    lock = FileLock(folder / ".mlflow.lock")
    try:
        lock.acquire(timeout=seconds)
    except Timeout:  # an OSError, too
        raise
    except (OSError, NotImplementedError):  # some network drives have no locks
        pass
    try:
        yield
    finally:
        lock.release()
