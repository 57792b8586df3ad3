"""What is known of one job, from its submission to its end?"""

from __future__ import annotations

import subprocess
import threading
from dataclasses import dataclass, field
from typing import Any

ENDED = ("Completed", "Failed", "Canceled")


@dataclass
class Metric:
    key: str
    value: float
    timestamp: int
    step: int


@dataclass
class Job:
    """A job and its MLflow run, which share their name; times are milliseconds since 1970 or ISO strings."""

    name: str
    properties: dict[str, Any]  # as it was sent
    experiment: str
    created: str
    status: str = "NotStarted"
    started: str | None = None
    ended: str | None = None
    error: dict[str, Any] | None = None
    exit_code: int | None = None
    attempt: int = 1
    parent: str | None = None  # the sweep that a trial belongs to
    statuses: list[str] = field(default_factory=lambda: ["NotStarted"])  # all it went through
    metrics: list[Metric] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    noted: dict[str, str] = field(default_factory=dict)  # what the service itself adds to the properties
    variables: dict[str, str] = field(default_factory=dict)  # what the service itself adds to the environment
    process: subprocess.Popen[bytes] | None = None
    thread: threading.Thread | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    preempted: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def move_to(self, status: str) -> None:
        with self.changed:
            self.status = status
            self.statuses.append(status)
            self.changed.notify_all()

    def add_tags(self, tags: dict[str, str]) -> None:
        with self.changed:
            self.tags = {**self.tags, **tags}

    @property
    def told_properties(self) -> dict[str, str]:
        """The person's and the service's own."""
        return {**(self.properties.get("properties") or {}), **self.noted}

    def wait_for(self, *statuses: str, timeout_s: float = 60) -> str:
        """Returns once it is in one of these states; TimeoutError if that never comes."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.status in statuses, timeout_s):
                raise TimeoutError(f"job {self.name} is {self.status}, not {' or '.join(statuses)}")
            return self.status
