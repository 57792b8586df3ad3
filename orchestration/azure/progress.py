"""How far is a run on Azure? What its run folder in the datastore says: the end of metrics.jsonl, and config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from msggan.tracking.metrics_log import newest_values, reports_in
from orchestration.azure.blobs import Store

# The last few hundred reports: every metric, those measured now and then too, has its newest value among them.
LAST_BYTES = 256 << 10


@dataclass(frozen=True)
class Progress:
    """Images seen and to be seen, None where nothing is known yet, and each metric's newest value."""

    images_seen: int | None = None
    images_total: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)


def read_progress(store: Store, folder: str) -> Progress:
    """Of the run whose folder lies at this path of the datastore."""
    metrics = newest_values(reports_in(store.read(f"{folder.rstrip('/')}/metrics.jsonl", last_bytes=LAST_BYTES) or b""))
    seen = metrics.get("images")
    return Progress(None if seen is None else int(seen), _images_total(store, folder), metrics)


def _images_total(store: Store, folder: str) -> int | None:
    try:
        return int(1000 * json.loads(store.read(f"{folder.rstrip('/')}/config.json") or b"")["kimg"] + 0.5)
    except (ValueError, KeyError, TypeError):
        return None
