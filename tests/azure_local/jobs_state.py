"""The state of one job, from its submission to its end."""

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
    """A job and its MLflow run, which have the same name; times are milliseconds since 1970 or ISO strings."""

    name: str
    properties: dict[str, Any]  # as submitted
    experiment: str
    created: str
    status: str = "NotStarted"
    started: str | None = None
    ended: str | None = None
    error: dict[str, Any] | None = None
    exit_code: int | None = None
    last_lines: str = ""  # of its log
    attempt: int = 1
    parent: str | None = None  # the sweep that a trial belongs to
    statuses: list[str] = field(default_factory=lambda: ["NotStarted"])  # all so far, in order
    metrics: list[Metric] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    service_properties: dict[str, str] = field(default_factory=dict)  # added by the service to the properties
    variables: dict[str, str] = field(default_factory=dict)  # added by the service to the environment variables
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
    def all_properties(self) -> dict[str, str]:
        """The user's properties and those that the service added."""
        return {**(self.properties.get("properties") or {}), **self.service_properties}

    def wait_for(self, *statuses: str, timeout_s: float = 60) -> str:
        """Returns once the job has one of these statuses. Raises TimeoutError if it does not get there."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.status in statuses, timeout_s):
                raise TimeoutError(f"job {self.name} is {self.status}, not {' or '.join(statuses)}")
            return self.status
