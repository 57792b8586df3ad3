"""Where a run's numbers go: `metrics.jsonl`, one JSON object a line, which always has them all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from msggan.files import write_whole


class Tracker:
    """Appends reports to `metrics.jsonl`; each is on the disk when `report` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def report(self, metrics: Mapping[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def newest(self) -> dict[str, float]:
        """The last report, empty if there is none yet."""
        return next(reversed(read_metrics(self.path)), {})

    def forget_after(self, images_seen: int) -> None:
        """Drops the reports of steps that will be done again, and a last line that was only half written."""
        kept = [line for line in read_metrics(self.path) if line["images"] <= images_seen]
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Every whole line of a `metrics.jsonl`, in order; none if there is no file."""
    if not path.exists():
        return []
    reports = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            reports.append(json.loads(line))
        except ValueError:  # the process died while it wrote this line
            continue
    return reports
