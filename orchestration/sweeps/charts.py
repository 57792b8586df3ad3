"""The charts of a sweep's report, drawn by matplotlib as SVG files; None where there is nothing to draw."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestration.sweeps.space import Dimension, Interval, written
from orchestration.sweeps.status import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

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
    lines = [(trial, [point for point in trial.curve if drawable(point[1])]) for trial in best_last(trials, best)]
    lines = [(trial, points) for trial, points in lines if points]
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
        for trial in best_last(trials, best)
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
            axes.set_xticks(ticks, [written(dimension.values[tick]) for tick in ticks])
            axes.set_xlim(-0.5, len(dimension.values) - 0.5)
        _set_objective_axis(axes, metric, [value for _, _, value in drawn])
    return svg.getvalue()


def best_last(trials: Sequence[Trial], best: Trial | None) -> list[Trial]:
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
