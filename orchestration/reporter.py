"""Output for people: `Reporter`, to which a target prints, and the status of runs as text and as tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestration.spec import RunStatus


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


# --- Runs as text -----------------------------------------------------------------------------------------------------

SHOWN_METRICS = ("d_loss", "g_loss", "swd")
HEADINGS = ("NAME", "STATE", "KIMG", "SWD", "STARTED", "RUN FOLDER")


def status_lines(run: RunStatus) -> list[str]:
    """The full status of a run: state, last metrics, times, folder and reason."""
    metrics = [f"{name} {_number(run.metrics[name])}" for name in SHOWN_METRICS if run.metrics.get(name) is not None]
    lines = [
        f"{run.name}: {run.state}, {_progress(run)} kimg",
        f"  {'  '.join(metrics)}" if metrics else "",
        f"  started {format_time(run.created)}" + (f", ended {format_time(run.ended)}" if run.ended else ""),
        f"  {run.run_dir}",
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
