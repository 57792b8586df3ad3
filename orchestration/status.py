"""What targets return and print: RunStatus, Download, ProvisionPlan and Reporter, and runs as text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from msggan.commands.program import EXIT_CODES
from msggan.errors import RefusedError
from msggan.signs import sentences

ACTIVE_STATES = ("queued", "preparing", "running")  # the states of a run before its end


@dataclass(frozen=True)
class RunStatus:
    """The status of a run.

    state: one of queued, preparing, running, completed, failed, cancelled, interrupted. images_total: the number of
    images that the run is to be trained on. next: commands to run next. created, ended: in UTC, ISO 8601. notice: the
    message that nothing was left to train, else empty.
    """

    name: str
    target: str
    state: str
    run_dir: str
    job_id: str | None = None
    portal_url: str | None = None
    images_seen: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    next: list[str] = field(default_factory=list)
    images_total: int | None = None
    created: str | None = None
    ended: str | None = None
    reason: str = ""
    notice: str = ""

    @property
    def signs(self) -> list[str]:
        """Signs of trouble in its newest evaluation, as sentences."""
        return list(sentences(self.metrics).values())

    @property
    def exit_code(self) -> int:
        """The exit code of `submit`: 0 if nothing was left to train, or if the run continues."""
        return 0 if self.notice else EXIT_CODES.get(self.state, 0)

    def as_json(self) -> dict[str, Any]:
        """What `status` prints."""
        return {name: value for name, value in asdict(self).items() if name != "notice"} | {"signs": self.signs}

    def as_submitted(self) -> dict[str, Any]:
        """What `submit` prints."""
        left_out = ("images_total", "created", "ended", "reason", "signs")
        return {name: value for name, value in self.as_json().items() if name not in left_out}


@dataclass(frozen=True)
class Download:
    """The result of a download: the number of files and bytes, and the folder."""

    files: int
    bytes: int
    path: str


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _without_bar(label: str, done: int, total: int) -> None:
    """Shows no bar."""


@dataclass(frozen=True)
class Reporter:
    """info(line): prints a line. progress(label, done, total): updates the progress bar of that label; in bytes."""

    info: Callable[[str], None] = _to_stderr
    progress: Callable[[str, int, int], None] = _without_bar


@dataclass(frozen=True)
class Question:
    """What has to be confirmed before money is spent, line by line. agree: records that it was."""

    lines: Sequence[str]
    agree: Callable[[], None]


# --- Runs as text -----------------------------------------------------------------------------------------------------

SHOWN_METRICS = ("d_loss", "g_loss", "swd")
HEADINGS = ("NAME", "STATE", "KIMG", "SWD", "STARTED", "RUN FOLDER")


def status_lines(run: RunStatus) -> list[str]:
    """The full status of a run: state, last metrics, times, folder and reason."""
    metrics = [f"{name} {_number(run.metrics[name])}" for name in SHOWN_METRICS if run.metrics.get(name) is not None]
    lines = [
        f"{run.name}: {run.state}, {_progress(run)} kimg",
        f"  {'  '.join(metrics)}" if metrics else "",
        *(f"  Warning: {sign}" for sign in run.signs),
        f"  started {format_time(run.created)}" + (f", ended {format_time(run.ended)}" if run.ended else ""),
        f"  {run.run_dir}",
        f"  {run.portal_url}" if run.portal_url else "",
        *(f"  {line}" for line in run.reason.splitlines()),
    ]
    return [line for line in lines if line]


def table(runs: Sequence[RunStatus]) -> list[str]:
    """One line per run, in columns with headings."""
    return columns([HEADINGS, *(_row(run) for run in runs)])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line per row, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(run: RunStatus) -> tuple[str, ...]:
    return run.name, run.state, _progress(run), _number(run.metrics.get("swd")), format_time(run.created), run.run_dir


def _progress(run: RunStatus) -> str:
    seen = f"{(run.images_seen or 0) / 1000:g}"
    return seen if run.images_total is None else f"{seen}/{run.images_total / 1000:g}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.3f}"


def format_time(moment: str | None) -> str:
    """A time as `status` and `list` print it; `-` if there is none."""
    return moment.replace("T", " ").replace("Z", " UTC") if moment else "-"


# --- What `provision` does --------------------------------------------------------------------------------------------

Change = Mapping[str, Any]  # "from" and "to"


def changes_between(before: Mapping[str, Any], desired: Mapping[str, Any]) -> dict[str, Change]:
    """The changes from the existing values, {} for a new resource, to the desired ones."""
    return {name: {"from": before.get(name), "to": to} for name, to in desired.items() if before.get(name) != to}


SIGNS = {"create": "+ create", "change": "~ change", "keep": "  keep", "refuse": "! refuse", "delete": "- delete"}


@dataclass(frozen=True)
class Item:
    """One resource of a plan. action: create, change, keep, refuse or delete. hint: the next step if it is refused.

    costs: what it costs and until when, one sentence each. cost: the same as plain values.
    """

    kind: str
    name: str
    action: str
    changes: Mapping[str, Change] = field(default_factory=dict)
    reason: str = ""
    hint: str = ""
    costs: tuple[str, ...] = ()
    cost: Mapping[str, Any] | None = None

    @property
    def is_to_do(self) -> bool:
        return self.action not in ("keep", "refuse")

    @property
    def full_reason(self) -> str:
        """The reason and what differs, as the end of a sentence."""
        changes = (f"{name} is {change['from']}, not {change['to']}" for name, change in self.changes.items())
        return "; ".join([self.reason.removesuffix("."), *changes])

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "action": self.action,
            "changes": {name: dict(change) for name, change in self.changes.items()},
            "reason": self.reason,
        }

    def as_lines(self) -> list[str]:
        lines = [f"{SIGNS[self.action]} {self.kind} {self.name}" + (f": {self.reason}" if self.reason else "")]
        for name, change in self.changes.items():
            before = "" if change["from"] is None else f"{_written(change['from'])} → "
            lines.append(f"      {name}: {before}{_written(change['to'])}")
        return lines + [f"      {sentence}" for sentence in self.costs]


def _written(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Step:
    """An item of a plan, and the function that applies it. apply(report): report(line) prints progress."""

    item: Item
    apply: Callable[[Callable[[str], None]], Any] | None = None


@dataclass(frozen=True, repr=False)
class ProvisionPlan:
    """The plan of `provision`. Its repr, which a notebook shows, has one line per item and per change."""

    steps: tuple[Step, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(step.item for step in self.steps)

    @property
    def to_do(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.item.is_to_do)

    @property
    def refusal(self) -> RefusedError | None:
        """The error if an item is refused, else None."""
        refused = [item for item in self.items if item.action == "refuse"]
        if not refused:
            return None
        lines = [f"{item.kind} {item.name}: {item.full_reason}." for item in refused]
        return RefusedError("\n".join(lines), "\n".join(item.hint for item in refused if item.hint))

    def as_json(self, *, applied: bool) -> dict[str, Any]:
        cost = next((item.cost for item in self.items if item.cost is not None), None)
        plan = {"plan": [item.as_json() for item in self.items], "applied": applied}
        return plan if cost is None else plan | {"cost": dict(cost)}

    def as_lines(self) -> list[str]:
        return [line for item in self.items for line in item.as_lines()]

    def __repr__(self) -> str:
        return "\n".join(self.as_lines())
