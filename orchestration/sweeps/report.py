"""The report of a sweep: one HTML file, complete in itself, that a browser opens from disk."""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msggan.commands.options import to_argv
from msggan.config import TrainConfig
from msggan.runs.files import write_whole
from orchestration.sweeps.charts import NARROW, WIDE, draw_curves, draw_scatter, drawable
from orchestration.sweeps.format import short
from orchestration.sweeps.space import read_space, written
from orchestration.sweeps.status import SweepStatus, Trial, sorted_trials

if TYPE_CHECKING:
    from jinja2 import Template

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
LATENT_OPTIONS = ("latent_size", "seed")  # which decide the latents of the samples
NO_SAMPLES = {
    "queued": "Not started yet.",
    "preparing": "No samples yet.",
    "running": "No samples yet.",
}
SVG, PNG = "image/svg+xml", "image/png"


@dataclass(frozen=True)
class Picture:
    """A trial's samples as a data URL, or the lines to show instead."""

    source: str = ""
    instead: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A cell of the table. key: what its column is sorted by, empty where there is no value."""

    text: str
    key: str
    kind: str


def write_report(path: Path, status: SweepStatus, grids: Mapping[int, Path]) -> None:
    """Writes the report of a sweep; an older one at `path` is replaced as a whole.

    grids: each trial's sample grid, a PNG file, by the trial's number; a trial whose file is missing or cannot be read
    gets the reason in its place. Raises `OSError` if the report cannot be written.
    """
    write_whole(path, report(status, grids).encode())


def newest_grid(names: Iterable[str]) -> str | None:
    """The name of a run's last sample grid in full resolution, None if there is none."""
    found = {}
    for name in names:
        if match := re.fullmatch(r"(\d{9,})_(\d+)px\.png", name):
            found[int(match[1]), int(match[2])] = name
    return found[max(found)] if found else None


def report(status: SweepStatus, grids: Mapping[int, Path]) -> str:
    """The report as text; see `write_report`."""
    metric, space = status.objective.metric, read_space(status.space, TrainConfig())
    trials = sorted_trials(status.trials, status.objective)
    best = None if status.warnings else status.best  # a trial that may be best by chance is not marked
    curves, narrow_curves = (draw_curves(trials, best, metric, size=size) for size in (WIDE, NARROW))
    scatters = {axis.name: draw_scatter(axis, trials, best, metric) for axis in space.dimensions}
    columns = _columns(trials, metric, space.names)
    numeric = {heading: all(map(_is_number, values)) for heading, values in columns.items()}
    cells = [[_cell(heading, value, numeric[heading]) for value in values] for heading, values in columns.items()]
    return _template().render(
        status=status,
        objective=status.objective,
        metric=metric,
        facts=_facts(status),
        portal_url=status.portal_url if (status.portal_url or "").startswith("https://") else None,  # not a script
        first=status.best,
        best=best,
        first_settings={name: written(value) for name, value in (status.best.settings if status.best else {}).items()},
        no_answer=_no_answer(status),
        failures=Counter(t.reason for t in trials if t.state == "failed" and t.reason).most_common(5),
        trials=[(trial, _picture(trial, grids.get(trial.number))) for trial in trials],
        latents_differ=" and ".join(name for name in LATENT_OPTIONS if name in space.names),
        curves=curves and _data_url(curves, SVG),
        narrow_curves=narrow_curves and _data_url(narrow_curves, SVG),
        scatters={name: _data_url(svg, SVG) for name, svg in scatters.items() if svg},
        not_drawn=sum(not drawable(trial.objective) for trial in trials),
        headings=numeric,
        rows=list(zip(trials, zip(*cells, strict=True), strict=True)),
    )


def _template() -> Template:
    import jinja2

    # Whatever a sweep contains is escaped: it never becomes HTML.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["short"] = short
    environment.tests["finite"] = _is_finite
    return environment.from_string((files("orchestration.sweeps") / "report.html").read_text(encoding="utf-8"))


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _facts(status: SweepStatus) -> dict[str, str]:
    states = Counter(trial.state for trial in status.trials)
    facts = {
        "state": status.state,
        "target": status.target,
        "trials": ", ".join(f"{count} {state}" for state, count in states.most_common()) or "none",
        "data": status.data,
        "options of all trials": " ".join(to_argv(TrainConfig(**status.config))) or "defaults",
        "folder": status.run_dir,
    }
    return {name: text for name, text in facts.items() if text}


def _no_answer(status: SweepStatus) -> str:
    if not status.trials:
        return "This sweep has no trials yet."
    if all(trial.state == "failed" for trial in status.trials):
        return "Every trial failed."
    return f"No trial has a value of {status.objective.metric} yet."


def _picture(trial: Trial, grid: Path | None) -> Picture:
    try:
        content = grid.read_bytes() if grid else None
    except FileNotFoundError:
        content = None
    except OSError as error:
        return Picture(instead=(f"The samples could not be read: {error.strerror}.",))
    if grid is None or content is None:
        return Picture(instead=(NO_SAMPLES.get(trial.state, "It has no samples."), *filter(None, [trial.reason])))
    if not content.startswith(PNG_SIGNATURE):
        return Picture(instead=(f"The samples could not be read: {grid.name} is not a PNG file.",))
    return Picture(_data_url(content, PNG))


# --- The table --------------------------------------------------------------------------------------------------------


def _columns(trials: Sequence[Trial], metric: str, names: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each column, by its heading."""
    return {
        "trial": [trial.number for trial in trials],
        metric: [trial.objective for trial in trials],
        **{name: [trial.settings.get(name) for trial in trials] for name in names},
        "images seen": [trial.images_seen for trial in trials],
        "state": [trial.state for trial in trials],
        "reason": [trial.reason for trial in trials],
    }


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _cell(heading: str, value: Any, numeric: bool) -> Cell:
    if not numeric:
        text = "" if value is None else written(value)
        return Cell(text or "–", text, heading)
    if not _is_finite(value):
        return Cell("–", "", "number")
    return Cell(f"{value:,}" if isinstance(value, int) else f"{value:.4g}", written(value), "number")
