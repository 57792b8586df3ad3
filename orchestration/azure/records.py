"""What Azure is known to have, recorded in the folder of the runs. Only a cache: errors with its files are ignored.

Nothing is written elsewhere on the machine, and deleting the folder deletes the records too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msggan.runs.files import write_whole

if TYPE_CHECKING:
    from orchestration.azure.client import Client

DAILY_FILE = ".azure-found.json"
MAX_RECORDS = 100


@dataclass(frozen=True)
class Records:
    """A file that has a pair of values for each key."""

    path: Path

    def find(self, key: str | None) -> tuple[Any, Any] | None:
        return self._read().get(key or "")

    def add(self, key: str, first: str, second: str | int) -> None:
        others = {other: values for other, values in self._read().items() if other != key}
        newest = dict([*others.items(), (key, (first, second))][-MAX_RECORDS:])
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(newest).encode())

    def _read(self) -> dict[str, tuple[Any, Any]]:
        try:
            return {key: (first, second) for key, (first, second) in json.loads(self.path.read_bytes()).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def today() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d")


def once_a_day(client: Client, what: str, find: Callable[[], str]) -> str:
    """The result of `find`, which is called once a day for each `what` of the workspace, unless it raises an error."""
    records, key = _daily(client), f"{client.scope} {what}"
    found = records.find(key)
    if found is None or found[1] != today():
        found = (find(), today())
        records.add(key, *found)
    return str(found[0])


def forget_today(client: Client) -> None:
    """Makes `once_a_day` call its functions again: something may have been deleted."""
    with suppress(OSError):
        _daily(client).path.unlink()


def _daily(client: Client) -> Records:
    return Records(Path(client.settings.runs_dir) / DAILY_FILE)
