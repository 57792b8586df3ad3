"""The report of a sweep: one HTML file, complete in itself, that a browser opens from disk."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msggan.commands.options import to_argv
from msggan.config import TrainConfig
from msggan.display.html import embedded
from msggan.errors import MsgganError
from msggan.runs.files import write_whole
from orchestration.sweeps.space import Dimension, Interval, format_value, read_space
from orchestration.sweeps.status import SweepStatus, short
from orchestration.sweeps.trials import Trial, sorted_trials

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
LATENT_OPTIONS = ("latent_size", "seed")  # which decide the latents of the samples
NO_SAMPLES = {"queued": "Not started yet.", "preparing": "No samples yet.", "running": "No samples yet."}
SVG, PNG = "image/svg+xml", "image/png"


def write_report(path: Path, status: SweepStatus, grids: Mapping[int, bytes]) -> None:
    """Writes the report of a sweep; an older one at `path` is replaced as a whole.

    grids: each trial's sample grid, the content of a PNG file, by the trial's number. Raises `OSError` if the report
    cannot be written.
    """
    write_whole(path, report(status, grids).encode())


@contextmanager
def report_result(path: Path, info: Callable[[str], None]) -> Iterator[None]:
    """Prints the path of the report that is written within, or why it cannot be written, which is not raised."""
    try:
        yield
    except (OSError, MsgganError) as error:
        reason = error.message if isinstance(error, MsgganError) else error.strerror or error
        info(f"{path}: cannot be written ({reason}).")
    else:
        info(f"Report: {path}")


def newest_grid(names: Iterable[str]) -> str | None:
    """The name of a run's last sample grid in full resolution, None if there is none."""
    found = {}
    for name in names:
        if match := re.fullmatch(r"(\d{9,})_(\d+)px\.png", name):
            found[int(match[1]), int(match[2])] = name
    return found[max(found)] if found else None


def report(status: SweepStatus, grids: Mapping[int, bytes]) -> str:
    """The report as text; see `write_report`."""
    import jinja2

    metric, space = status.objective.metric, read_space(status.space, TrainConfig())
    trials = sorted_trials(status.trials, status.objective)
    best = None if status.warnings else status.best  # a trial that may be best by chance is not marked
    curves, narrow_curves = (draw_curves(trials, best, metric, size=size) for size in (WIDE, NARROW))
    scatters = {axis.name: draw_scatter(axis, trials, best, metric) for axis in space.dimensions}
    headings, rows = _table(trials, metric, space.names)
    # Whatever a sweep contains is escaped: it never becomes HTML.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["short"] = short
    environment.tests["finite"] = _is_finite
    template = environment.from_string((files("orchestration.sweeps") / "report.html").read_text(encoding="utf-8"))
    return template.render(
        status=status,
        objective=status.objective,
        metric=metric,
        facts=_facts(status),
        portal_url=status.portal_url if (status.portal_url or "").startswith("https://") else None,  # not a script
        first=status.best,
        best=best,
        first_settings={
            name: format_value(value) for name, value in (status.best.settings if status.best else {}).items()
        },
        failures=Counter(t.reason for t in trials if t.state == "failed" and t.reason).most_common(5),
        trials=[(trial, *_picture(trial, grids.get(trial.number))) for trial in trials],
        latents_differ=" and ".join(name for name in LATENT_OPTIONS if name in space.names),
        curves=curves and embedded(curves, SVG),
        narrow_curves=narrow_curves and embedded(narrow_curves, SVG),
        scatters={name: embedded(svg, SVG) for name, svg in scatters.items() if svg},
        not_drawn=sum(not drawable(trial.objective) for trial in trials),
        headings=headings,
        rows=list(zip(trials, rows, strict=True)),
    )


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


def _picture(trial: Trial, grid: bytes | None) -> tuple[str, list[str]]:
    """A trial's samples as a data URL, or the lines to show instead."""
    if grid is None:
        return "", [line for line in (NO_SAMPLES.get(trial.state, "It has no samples."), trial.reason) if line]
    if not grid.startswith(PNG_SIGNATURE):
        return "", ["The samples are not a PNG file."]
    return embedded(grid, PNG), []


def _table(
    trials: Sequence[Trial], metric: str, names: Sequence[str]
) -> tuple[dict[str, bool], list[list[tuple[str, str, str]]]]:
    """The headings, with whether the column is numeric, and for each trial its cells.

    A cell is its text, what its column is sorted by (empty where there is no value), and its CSS class.
    """
    columns: dict[str, list[Any]] = {
        "trial": [trial.number for trial in trials],
        metric: [trial.objective for trial in trials],
        **{name: [trial.settings.get(name) for trial in trials] for name in names},
        "images seen": [trial.images_seen for trial in trials],
        "state": [trial.state for trial in trials],
        "reason": [trial.reason for trial in trials],
    }
    numeric = {
        heading: all(
            value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values
        )
        for heading, values in columns.items()
    }
    rows = [
        [_cell(heading, values[row], numeric[heading]) for heading, values in columns.items()]
        for row in range(len(trials))
    ]
    return numeric, rows


def _cell(heading: str, value: Any, numeric: bool) -> tuple[str, str, str]:
    if not numeric:
        text = "" if value is None else format_value(value)
        return text or "–", text, heading
    if not _is_finite(value):
        return "–", "", "number"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}", format_value(value), "number"


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


# --- The charts, drawn by matplotlib as SVG; None where there is nothing to draw --------------------------------------

WIDE, NARROW = (1000, 380), (420, 270)  # the size in pixels of a chart across the page, and of one that fits a phone
FONT_PX = 12
BEST, OTHER = "#c2410c", "#3d6f9e"
RATIO_FOR_LOG = 100  # values further apart than this are drawn on a log scale
MAX_DRAWN = 1e150  # beyond it the difference of two values may overflow
MIN_LOG = 1e-100  # below it their ratio may
MAX_TICKS = 8
MAX_NUMBERED = 12  # of more trials only the best is labelled with its number
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sweep",  # the same sweep gives the same file
    "text.parse_math": False,
    "font.size": FONT_PX,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#d8dde3",
}


def drawable(value: float | None) -> bool:
    return value is not None and abs(value) < MAX_DRAWN  # NaN is not


def draw_curves(trials: Sequence[Trial], best: Trial | None, metric: str, *, size: tuple[int, int]) -> bytes | None:
    """The objective of each trial against thousands of images, the best one on top."""
    by_trial = ((trial, [point for point in trial.curve if drawable(point[1])]) for trial in _best_last(trials, best))
    lines = [(trial, points) for trial, points in by_trial if points]
    if not lines:
        return None
    faded = min(0.8, max(0.25, 4 / len(lines)))
    with _figure(size) as (axes, svg):
        for trial, points in lines:
            kimg, values = [images / 1000 for images, _ in points], [value for _, value in points]
            (line,) = axes.plot(kimg, values, color=OTHER, alpha=faded, marker="o", markersize=5, markevery=[-1])
            if trial is best:
                line.set(color=BEST, alpha=1, linewidth=3)
            if trial is best or len(lines) <= MAX_NUMBERED:
                _label(axes, trial, kimg[-1], values[-1])
        axes.set_xlabel("kimg")
        _set_objective_axis(axes, metric, [value for _, points in lines for _, value in points])
    return svg.getvalue()


def draw_scatter(dimension: Dimension, trials: Sequence[Trial], best: Trial | None, metric: str) -> bytes | None:
    """The objective of each trial against its value of one searched option."""
    drawn = [
        (trial, x, trial.objective)
        for trial in _best_last(trials, best)
        if trial.objective is not None and drawable(trial.objective) and (x := _position(dimension, trial)) is not None
    ]
    if not drawn:
        return None
    with _figure(NARROW) as (axes, svg):
        for trial, x, value in drawn:
            (dot,) = axes.plot([x], [value], color=OTHER, alpha=0.6, marker="o", markersize=8, clip_on=False)
            if trial is best:
                dot.set(color=BEST, alpha=1, markersize=11)
            if trial is best or len(drawn) <= MAX_NUMBERED:
                _label(axes, trial, x, value)
        axes.set_xlabel(dimension.name)
        if isinstance(dimension, Interval):
            axes.set_xlim(dimension.low, dimension.high)
            if dimension.log:
                axes.set_xscale("log")
                _set_log_ticks(axes.xaxis)
        else:
            step = math.ceil(len(dimension.values) / MAX_TICKS)
            ticks = range(0, len(dimension.values), step)
            axes.set_xticks(ticks, [format_value(dimension.values[tick]) for tick in ticks])
            axes.set_xlim(-0.5, len(dimension.values) - 0.5)
        _set_objective_axis(axes, metric, [value for _, _, value in drawn])
    return svg.getvalue()


def _best_last(trials: Sequence[Trial], best: Trial | None) -> list[Trial]:
    return sorted(trials, key=lambda trial: trial is best)


def _position(dimension: Dimension, trial: Trial) -> float | None:
    """Where a trial is drawn on the axis of a dimension, None if its value is not in it."""
    value = trial.settings.get(dimension.name)
    if isinstance(dimension, Interval):
        is_inside = isinstance(value, int | float) and dimension.low <= value <= dimension.high
        return float(value) if is_inside and value is not None else None
    if value not in dimension.values:
        return None
    return dimension.values.index(value) + (trial.number * 0.618 % 1 - 0.5) / 3  # keeps equal values apart


@contextmanager
def _figure(size: tuple[int, int]) -> Iterator[tuple[Axes, io.BytesIO]]:
    """A figure with one pair of axes, which is saved as SVG at the end. Its units are pixels."""
    import matplotlib
    from matplotlib.figure import Figure

    svg = io.BytesIO()
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")  # SVG has 72 units per inch
        yield figure.add_subplot(), svg
        figure.savefig(svg, format="svg", metadata={"Date": None})


def _label(axes: Axes, trial: Trial, x: float, y: float) -> None:
    axes.annotate(str(trial.number), (x, y), xytext=(6, 0), textcoords="offset points", va="center", color="#5b6470")


def _set_objective_axis(axes: Axes, metric: str, values: Sequence[float]) -> None:
    axes.set_ylabel(metric)
    low, high = min(values), max(values)
    if low > MIN_LOG and high / low > RATIO_FOR_LOG:
        axes.set_yscale("log")
        _set_log_ticks(axes.yaxis)


def _set_log_ticks(axis: Axis) -> None:
    """Ticks at powers of ten, and between them on a short axis, labelled without needless exponents."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    between = (1, 2, 5) if high / low < 1000 else (1,)
    axis.set_major_locator(LogLocator(subs=between, numticks=MAX_TICKS) if high / low > 10 else AutoLocator())
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, position: f"{value:g}")
