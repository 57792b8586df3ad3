"""What is there, what should be, and what is to be done about it? The items of a plan, as values and as lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

# Clusters, datastores and environments that were made here bear this tag. Nothing without it is ever deleted.
TAG = {"msggan": "provisioned"}

NOTHING_TO_DO = ("keep", "refuse")
WORDS = {"create": "+ create", "change": "~ change", "keep": "  keep", "refuse": "! refuse", "delete": "- delete"}

Change = Mapping[str, Any]  # "from" and "to"


@dataclass(frozen=True)
class Item:
    """One thing of a plan. action: create, change, keep, refuse or delete. hint: what to type where it is refused.

    costs: what it costs and when that stops, a sentence each, for people.
    """

    kind: str
    name: str
    action: str
    changes: Mapping[str, Change] = field(default_factory=dict)
    reason: str = ""
    hint: str = ""
    costs: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "action": self.action,
            "changes": {name: dict(change) for name, change in self.changes.items()},
            "reason": self.reason,
        }

    @property
    def is_to_do(self) -> bool:
        return self.action not in NOTHING_TO_DO


def is_ours(tags: Mapping[str, str] | None) -> bool:
    """Whether something bears our tag."""
    return TAG.items() <= (tags or {}).items()


def new(values: Mapping[str, Any]) -> dict[str, Change]:
    """The changes from nothing to these values."""
    return {name: {"from": None, "to": value} for name, value in values.items()}


def difference(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Change]:
    """The changes from what is there to what is wanted."""
    return {name: {"from": there[name], "to": value} for name, value in wanted.items() if there[name] != value}


def plan_lines(items: Iterable[Item]) -> Iterator[str]:
    """A plan for people."""
    for item in items:
        reason = f": {item.reason}" if item.reason else ""
        yield f"{WORDS[item.action]} {item.kind} {item.name}{reason}"
        for name, change in item.changes.items():
            before = "" if change["from"] is None else f"{_written(change['from'])} → "
            yield f"      {name}: {before}{_written(change['to'])}"
        yield from (f"      {sentence}" for sentence in item.costs)


def _written(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
