"""What does the run history say of a job: its state, why it waits or failed, where its logs are, and its children?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from azure.core.rest import HttpRequest

from orchestration.azure.client import Client


@dataclass(frozen=True)
class Details:
    """A job as it stands. status: the service's word. logs: by name an address that opens the log for some hours.

    Of a child in a list of them the service tells neither logs nor warnings.
    """

    status: str
    name: str = ""
    started: str | None = None
    ended: str | None = None
    error: str = ""
    warnings: tuple[str, ...] = ()
    logs: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """The run history of a workspace."""

    client: Client

    def details(self, job: str) -> Details:
        """How a job stands. Raises MsgganError."""
        with self.client.errors(f"Asking how {job} stands"):
            return build_details(self._get(f"runs/{job}/details"))

    def children(self, job: str) -> list[Details]:
        """The jobs that a job has begun, in the order of the numbers at the end of their names. Raises MsgganError.

        The SDK's own list ends with its first page: it passes over the token that goes on (azure-sdk-for-python,
        issue 32440).
        """
        with self.client.errors(f"Asking what {job} has begun"):
            found = {child.name: child for child in map(build_details, self._children(job))}
        return sorted(found.values(), key=lambda child: number_of(job, child.name))

    def _children(self, job: str) -> Iterator[Mapping[str, Any]]:
        token = None
        while True:
            page = self._get(f"runs/{job}/children", **({"continuationtoken": token} if token else {}))
            yield from page.get("value") or []
            token = page.get("continuationToken")
            if not token:
                return

    def _get(self, path: str, **query: str) -> Any:
        url = f"https://{self._host}/history/v1.0{self.client.scope}/{path}"
        return self.client.send(HttpRequest("GET", url, params=query)).json()

    @property
    def _host(self) -> str:
        return urlsplit(str(self.client.about.mlflow_tracking_uri)).netloc


def number_of(parent: str, child: str) -> int:
    """The number of a child from 0: the children of NAME are NAME_0, NAME_1 …"""
    ending = child.removeprefix(f"{parent}_")
    return int(ending) if ending.isdecimal() else 0


def build_details(told: Mapping[str, Any]) -> Details:
    """What of the service's answer matters here."""
    error = ((told.get("error") or {}).get("error") or {}) if told.get("error") else {}
    warnings = [str(warning.get("message") or "") for warning in told.get("warnings") or []]
    return Details(
        status=str(told.get("status") or ""),
        name=str(told.get("runId") or ""),
        started=told.get("startTimeUtc"),
        ended=told.get("endTimeUtc"),
        error=str(error.get("message") or ""),
        warnings=tuple(filter(None, warnings)),
        logs=told.get("logFiles") or {},
        tags=told.get("tags") or {},
    )
