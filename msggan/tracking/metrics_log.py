"""Where a run's numbers go: `metrics.jsonl`, a JSON object a line, which always has them all; and MLflow, if asked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from msggan.commands.tracking_uri import from_anywhere, look_with, without_password
from msggan.runs.files import naming, write_whole
from msggan.tracking.delivered import DeliveryCursor, is_point, load_delivered, undelivered
from msggan.tracking.delivery_process import DeliveryProcess


class Tracker:
    """Appends reports to `metrics.jsonl`; each is on the disk when `report` returns.

    tracking_uri: the MLflow that is told too, from `begin` to `close`, by a process of its own that reads this file.
    """

    def __init__(self, path: Path, *, tracking_uri: str | None = None) -> None:
        self.path = path
        self.tracking_uri = tracking_uri and from_anywhere(tracking_uri)
        self._delivery: DeliveryProcess | None = None

    def report(self, metrics: Mapping[str, float]) -> None:
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def newest(self) -> dict[str, float]:
        """The last report, empty if there is none yet."""
        return next(reversed(read_metrics(self.path)), {})

    def forget_after(self, images_seen: int) -> None:
        """Drops the reports of steps that will be done again, and a last line that was only half written."""
        kept = [line for line in read_metrics(self.path) if line["images"] <= images_seen]
        content = "".join(json.dumps(line) + "\n" for line in kept).encode()
        # One that is good as it is keeps its time, from which MLflow learns when its reports were made.
        if not self.path.exists() or self.path.read_bytes() != content:
            write_whole(self.path, content)

    # MLflow. Nothing here raises: a run does not depend on it.

    def begin(self) -> list[str]:
        """Begins to tell MLflow, after `forget_after`, with all of the run folder there. → what to say."""
        if self.tracking_uri is None:
            return []
        self._delivery = DeliveryProcess(self.path.parent, self.tracking_uri)
        look = look_with(self.tracking_uri)
        see = f" See it: {look}" if look else ""
        return [f"MLflow is told at {without_password(self.tracking_uri)}.{see}"]

    def news(self) -> list[str]:
        """What there is to say of MLflow since the last time, a line each; mostly nothing."""
        return self._delivery.news() if self._delivery else []

    def close(self, state: str, *, wait: bool = True) -> list[str]:
        """Tells MLflow how the run ended, and waits for it, at most a minute and mostly a second. → what to say.

        state: completed, failed, cancelled or interrupted.
        """
        delivery, self._delivery = self._delivery, None
        if delivery is None:
            return []
        said = delivery.news() + delivery.leave(state, wait=wait)
        return said + self._shortfall(delivery.problem) if wait else said

    def is_delivered(self, state: str) -> bool:
        """Whether MLflow has all of a run that ended in `state`, or there is no MLflow to tell."""
        if self.tracking_uri is None:
            return True
        known = self._known()
        return known is not None and known.ended == state and not undelivered(read_metrics(self.path), known)

    def _known(self) -> DeliveryCursor | None:
        return load_delivered(self.path.with_name("mlflow.json"), **self._identity())

    def _shortfall(self, problem: str) -> list[str]:
        """What MLflow did not get, in one line; nothing where it got all."""
        where = without_password(self.tracking_uri or "")
        reports = read_metrics(self.path)
        points = sum(map(is_point, reports))
        missing = undelivered(reports, self._known())
        again = "the same command again delivers them."
        if missing:
            reason = problem or "it was too slow"
            return [
                f"MLflow: {missing} of {points} points were not delivered to {where} ({reason}); "
                f"metrics.jsonl has them all, and {again}"
            ]
        if problem:
            return [f"MLflow: {where} has every point, but not the run's end and its last files ({problem}); {again}"]
        return []

    def _identity(self) -> dict[str, str]:
        return {"tracking_uri": without_password(self.tracking_uri or ""), "name": self.path.parent.resolve().name}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Every whole report of a `metrics.jsonl`, in order; none if there is no file."""
    return reports_in(path.read_bytes()) if path.exists() else []


def newest_values(reports: Iterable[Mapping[str, float]]) -> dict[str, float | None]:
    """The last value of each metric, also of those that are measured now and then."""
    values: dict[str, float | None] = {}
    for report in reports:
        values.update(report)
    return values


def reports_in(content: bytes) -> list[dict[str, float]]:
    """Every whole report in the content of a `metrics.jsonl`, or in the end of one, in order."""
    reports = []
    for line in content.decode("utf-8", errors="replace").splitlines():
        with suppress(ValueError):  # the process died while it wrote this line
            report = json.loads(line)
            if isinstance(report, dict) and "images" in report:
                reports.append(report)
    return reports
