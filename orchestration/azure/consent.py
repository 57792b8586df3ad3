"""The consent to spend money in a workspace: for an amount, recorded in the folder of the runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msggan.runs.files import write_whole
from orchestration.azure.records import today
from orchestration.costs import Estimate
from orchestration.status import Question

if TYPE_CHECKING:
    from orchestration.azure.client import Client

CONSENT_FILE = ".azure-agreed.json"  # in the folder of the runs
FORMAT_VERSION = 2
MAX_AGE = timedelta(days=30)  # after which the price may be another


def consent_question(client: Client, what: str, hours: Estimate, price: Callable[[], Estimate]) -> Question | None:
    """The question before a job that may cost more than was agreed to; None if it may not.

    what: its first words, such as "photos trains". hours: what it needs; `price` is called only if that matters.
    """
    settings, consents = client.settings, read_consents(client)
    if not settings.max_cost and any(covers_hours(consent, hours) for consent in consents):
        return None
    estimate = price()
    if any(covers_amount(consent, estimate) for consent in consents):
        return None
    machine = f"size {estimate.size}" if settings.instance_type else f"cluster {settings.compute}"
    lines = (
        f"{what} on a machine of {machine} in workspace {client.workspace.workspace_name}, which costs money.",
        *estimate.as_lines(),
        f"{_agreed(consents)}This is asked in {settings.runs_dir} before whatever may cost more than you agreed to.",
    )
    return Question(lines, lambda: record_consent(client, estimate))


def _agreed(consents: Sequence[Mapping[str, Any]]) -> str:
    if not consents:
        return ""
    newest = consents[-1]
    amount = (
        f"{newest['machine_hours']:.1f} hours"
        if newest["amount"] is None
        else f"{newest['amount']:.2f} {newest['currency']}"
    )
    return f"The last time you agreed to {amount} on {newest['machine']}. "


def covers_hours(consent: Mapping[str, Any], estimate: Estimate) -> bool:
    """Whether a consent that is not old was for the same machine, and for as many hours."""
    age = datetime.now(timezone.utc) - datetime.fromisoformat(f"{consent['date']}T00:00:00+00:00")
    same = (consent["machine"], consent["low_priority"]) == (estimate.size, estimate.low_priority)
    return same and age < MAX_AGE and estimate.machine_hours <= consent["machine_hours"] + 1e-3


def covers_amount(consent: Mapping[str, Any], estimate: Estimate) -> bool:
    """Whether the amount of a consent is as large. Without a price: whether it was for as many hours."""
    at_most = estimate.at_most
    if at_most is None or consent["amount"] is None:
        return covers_hours(consent, estimate)
    return bool(consent["currency"] == at_most.currency and at_most.value <= consent["amount"])


def record_consent(client: Client, estimate: Estimate) -> None:
    """Adds what was agreed to in this workspace."""
    at_most = estimate.at_most
    consent = {
        "amount": at_most.value if at_most else None,
        "currency": at_most.currency if at_most else None,
        "machine": estimate.size,
        "low_priority": estimate.low_priority,
        "machine_hours": round(estimate.machine_hours, 3),
        "date": today(),
    }
    workspaces = _read_file(client)
    workspaces[client.workspace_key] = [*workspaces.get(client.workspace_key, []), consent]
    path = Path(client.settings.runs_dir) / CONSENT_FILE
    with suppress(OSError):  # a full disk or a concurrent submission costs one more question at most
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"format_version": FORMAT_VERSION, "workspaces": workspaces}, indent=1).encode())


def read_consents(client: Client) -> list[dict[str, Any]]:
    """What was agreed to in this workspace; none in the first format of the file, which has no amounts."""
    return _read_file(client).get(client.workspace_key, [])


def _read_file(client: Client) -> dict[str, list[dict[str, Any]]]:
    """The consents by workspace."""
    try:
        content = json.loads((Path(client.settings.runs_dir) / CONSENT_FILE).read_bytes())
        if content["format_version"] != FORMAT_VERSION:
            return {}
        keys = {"amount", "currency", "machine", "low_priority", "machine_hours", "date"}
        return {name: [one for one in found if keys <= one.keys()] for name, found in content["workspaces"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
