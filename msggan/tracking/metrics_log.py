"""A run's metrics: `metrics.jsonl`, one JSON object per line, and the MLflow that they are also logged to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from msggan.commands.program import absolute_uri, view_command, without_password
from msggan.runs.files import naming, write_whole
from msggan.tracking.mlflow_process import MlflowCursor, MlflowProcess


class Tracker:
    """Appends reports to `metrics.jsonl`; each is on the disk when `report` returns.

    tracking_uri: the MLflow to log to, from `start` to `close`. It can neither stop nor slow the run.
    """

    def __init__(self, path: Path, *, tracking_uri: str | None = None) -> None:
        self.path = path
        self.tracking_uri = absolute_uri(tracking_uri) if tracking_uri else ""
        self._mlflow: MlflowProcess | None = None

    def report(self, metrics: Mapping[str, float]) -> None:
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def newest(self) -> dict[str, float]:
        """The last report, empty if there is none yet."""
        return next(reversed(read_metrics(self.path)), {})

    def forget_after(self, images_seen: int) -> None:
        """Drops the reports of steps that will be repeated, and a last line that is incomplete."""
        kept = [report for report in read_metrics(self.path) if report["images"] <= images_seen]
        content = "".join(json.dumps(report) + "\n" for report in kept).encode()
        # An unchanged file keeps its modification time, which dates the reports in MLflow.
        if not self.path.exists() or self.path.read_bytes() != content:
            write_whole(self.path, content)

    def start(self) -> list[str]:
        """Starts logging the run folder to MLflow, after `forget_after`. → messages for the user."""
        if not self.tracking_uri:
            return []
        self._mlflow = MlflowProcess([str(self.path.parent)], self.tracking_uri)
        view = view_command(self.tracking_uri)
        return [f"Logging to MLflow at {without_password(self.tracking_uri)}." + (f" View it: {view}" if view else "")]

    def messages(self) -> list[str]:
        """Messages about MLflow since the last call; mostly none."""
        return self._mlflow.messages() if self._mlflow else []

    def close(self, state: str, *, wait: bool = True) -> list[str]:
        """Sets the run's final state in MLflow and waits, a minute at most and mostly a second. → messages.

        state: completed, failed, cancelled or interrupted.
        """
        process, self._mlflow = self._mlflow, None
        if process is None:
            return []
        if not wait:
            return process.close(state, wait_seconds=0)
        if state in ("cancelled", "interrupted"):  # the user, or a machine that goes away, wants the end now
            return process.close(state, wait_seconds=5) + self._missing(process.problem)
        return process.close(state) + self._missing(process.problem)

    def is_delivered(self, state: str) -> bool:
        """Whether MLflow has all of a run that ended in `state`, or there is no MLflow to log to."""
        cursor = MlflowCursor.load(self.path.parent, self.tracking_uri)
        return not self.tracking_uri or (cursor is not None and cursor.ended == state and not self._unsent())

    def _unsent(self) -> int:
        """The number of reports that MLflow does not have."""
        cursor = MlflowCursor.load(self.path.parent, self.tracking_uri)
        sent = cursor.delivered_images if cursor else -1
        return sum(report["images"] > sent for report in read_metrics(self.path))

    def _missing(self, problem: str) -> list[str]:
        """What MLflow does not have, in one line; none where it has everything."""
        unsent = self._unsent()
        if not unsent and not problem:
            return []
        what = f"{unsent} of {len(read_metrics(self.path))} reports" if unsent else "the final state and files"
        return [
            f"MLflow at {without_password(self.tracking_uri)} does not have {what} yet ({problem or 'too slow'}). "
            "The same command again logs what is missing."
        ]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Every complete report of a `metrics.jsonl`, in order; none if there is no file."""
    return reports_in(path.read_bytes()) if path.exists() else []


def newest_values(reports: Iterable[Mapping[str, float]]) -> dict[str, float | None]:
    """The last value of each metric, including those that are not in every report."""
    values: dict[str, float | None] = {}
    for report in reports:
        values.update(report)
    return values


def reports_in(content: bytes) -> list[dict[str, float]]:
    """Every complete report in the content of a `metrics.jsonl`, or in the end of one, in order."""
    reports = []
    for line in content.decode("utf-8", errors="replace").splitlines():
        with suppress(ValueError):  # the process died while it wrote this line
            report = json.loads(line)
            images = report.get("images") if isinstance(report, dict) else None
            if type(images) is int and 0 <= images < 2**63:
                reports.append(report)
    return reports
