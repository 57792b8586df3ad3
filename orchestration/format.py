"""How is a run told of in words: one in full, many in a table?"""

from __future__ import annotations

from collections.abc import Sequence

from orchestration.spec import RunStatus

METRICS_TOLD = ("d_loss", "g_loss", "swd")
HEADINGS = ("NAME", "STATE", "KIMG", "SWD", "BEGAN", "RUN FOLDER")


def status_lines(run: RunStatus) -> list[str]:
    """A run in full: how it stands, its last metrics, when, where, and why it ended."""
    metrics = [f"{name} {_number(run.metrics[name])}" for name in METRICS_TOLD if run.metrics.get(name) is not None]
    lines = [
        f"{run.name}: {run.state}, {_how_far(run)} kimg",
        f"  {'  '.join(metrics)}" if metrics else "",
        f"  began {_time(run.created)}" + (f", ended {_time(run.ended)}" if run.ended else ""),
        f"  {run.run_dir}",
        *(f"  {line}" for line in run.reason.splitlines()),
    ]
    return [line for line in lines if line]


def table(runs: Sequence[RunStatus]) -> list[str]:
    """A line a run, in columns, under their headings."""
    return columns([HEADINGS, *(_row(run) for run in runs)])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line a row, its cells under those of the rows above."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(run: RunStatus) -> tuple[str, ...]:
    return run.name, run.state, _how_far(run), _number(run.metrics.get("swd")), _time(run.created), run.run_dir


def _how_far(run: RunStatus) -> str:
    seen = f"{(run.images_seen or 0) / 1000:g}"
    return seen if run.images_total is None else f"{seen}/{run.images_total / 1000:g}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.3f}"


def _time(moment: str | None) -> str:
    return moment.replace("T", " ").replace("Z", " UTC") if moment else "-"
