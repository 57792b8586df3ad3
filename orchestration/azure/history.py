"""What does the run history say of a job: its state, why it waits or failed, and where its logs are?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from azure.core.rest import HttpRequest

from orchestration.azure.client import Client


@dataclass(frozen=True)
class Details:
    """A job as it stands. status: the service's word. logs: by name an address that opens the log for some hours."""

    status: str
    started: str | None = None
    ended: str | None = None
    error: str = ""
    warnings: tuple[str, ...] = ()
    logs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """The run history of a workspace."""

    client: Client

    def details(self, job: str) -> Details:
        """How a job stands. Raises MsgganError."""
        with self.client.errors(f"Asking how {job} stands"):
            url = f"https://{self._host}/history/v1.0{self.client.scope}/runs/{job}/details"
            response = self.client.send(HttpRequest("GET", url))
            return build_details(response.json())

    @property
    def _host(self) -> str:
        return urlsplit(str(self.client.about.mlflow_tracking_uri)).netloc


def build_details(told: Mapping[str, Any]) -> Details:
    """What of the service's answer matters here."""
    error = ((told.get("error") or {}).get("error") or {}) if told.get("error") else {}
    warnings = [str(warning.get("message") or "") for warning in told.get("warnings") or []]
    return Details(
        status=str(told.get("status") or ""),
        started=told.get("startTimeUtc"),
        ended=told.get("endTimeUtc"),
        error=str(error.get("message") or ""),
        warnings=tuple(filter(None, warnings)),
        logs=told.get("logFiles") or {},
    )
