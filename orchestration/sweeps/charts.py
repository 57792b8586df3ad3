"""How is a sweep drawn? Its curves and its objective against a swept value, each an SVG that a page holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from msggan.display.html import escaped
from orchestration.sweeps.space import Dimension, Interval, written
from orchestration.sweeps.spec import Trial

LEFT, RIGHT, TOP, BOTTOM = 58, 30, 14, 38
WIDE, NARROW = (1000, 380), (420, 270)  # width and height of a chart across the page, and of one that fits a phone
# Ends of a scale whose values lie further apart than this ratio would hide the small ones if it were even.
RATIO_FOR_LOG = 100
LARGEST_DRAWN = 1e150  # beyond it a difference of two values may not be finite
LABELS_AT_MOST = 8


@dataclass(frozen=True)
class Scale:
    """Where a value from `low` to `high` stands between the pixels `start` and `end`; in the middle if they agree."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @property
    def is_flat(self) -> bool:
        return self.high - self.low <= max(1e-150, 1e-12 * max(abs(self.low), abs(self.high)))

    def place(self, value: float) -> float:
        if self.is_flat:
            return (self.start + self.end) / 2
        share = self._share(value)
        return self.start + share * (self.end - self.start)

    def _share(self, value: float) -> float:
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """The places of round values, and how they are written."""
        if self.is_flat:
            return [(self.place(self.low), f"{self.low:.4g}")]
        values = _log_ticks(self.low, self.high) if self.log else _even_ticks(self.low, self.high)
        digits = 6 if self.log else _digits(self.low, self.high)
        return [(self.place(value), f"{value:.{digits}g}") for value in values]


def drawable(value: float | None) -> bool:
    return value is not None and abs(value) < LARGEST_DRAWN  # NaN is not


def curves(trials: Sequence[Trial], best: Trial | None, metric: str, *, size: tuple[int, int] = WIDE) -> str:
    """The objective of each trial against thousands of images, the best one last and over the others; or nothing.

    size: width and height in pixels, at which the labels are 12 px high. A narrower page shrinks both.
    """
    lines = {trial.number: _points(trial) for trial in trials}
    points = [point for line in lines.values() for point in line]
    if not points:
        return ""
    width, height = size
    across = Scale(min(x for x, _ in points), max(x for x, _ in points), LEFT, width - RIGHT)
    up = _upwards([y for _, y in points], height)
    best_number = None if best is None else best.number
    drawn = sorted((trial for trial in trials if lines[trial.number]), key=lambda trial: trial.number == best_number)
    parts = [
        _line(trial, lines[trial.number], across, up, metric, is_best=trial.number == best_number) for trial in drawn
    ]
    fade = min(0.8, max(0.25, 4 / len(drawn)))
    named = f"{metric} of each trial against thousands of images"
    return _svg(
        width,
        height,
        named,
        _axes(across.ticks(), up, width, height, below="kimg", beside=metric),
        *parts,
        style=f"--fade:{fade:.2f}",
    )


def against(dimension: Dimension, trials: Sequence[Trial], best: Trial | None, metric: str) -> str:
    """The objective of each trial against its value of one swept field; or nothing where no trial has both."""
    able = [trial for trial in trials if drawable(trial.objective) and _has(dimension, trial)]
    if not able:
        return ""
    width, height = NARROW
    up = _upwards([trial.objective for trial in able if trial.objective is not None], height)
    across = _across(dimension, width)
    best_number = None if best is None else best.number
    dots = [
        _dot(trial, _dot_place(dimension, trial, across), up, metric, is_best=trial.number == best_number)
        for trial in sorted(able, key=lambda trial: trial.number == best_number)
    ]
    ticks = across.ticks() if isinstance(dimension, Interval) else _category_ticks(dimension.values, across)
    named = f"{metric} of each trial against {dimension.name}"
    label = dimension.name + (" (log)" if across.log else "")
    return _svg(width, height, named, _axes(ticks, up, width, height, below=label, beside=metric), *dots)


# --- Marks ------------------------------------------------------------------------------------------------------------


def said_of(trial: Trial, metric: str) -> str:
    """A trial in a few words, for who points at its mark."""
    settings = ", ".join(f"{name} {written(value)}" for name, value in trial.settings.items())
    reached = f"{metric} {trial.objective:.4g}" if trial.objective is not None else f"no {metric}"
    return f"Trial {trial.number}: {reached}, {trial.state}\n{settings}"


def _points(trial: Trial) -> list[tuple[float, float]]:
    return [(images / 1000, value) for images, value in trial.curve if drawable(value)]


def _line(
    trial: Trial, points: Sequence[tuple[float, float]], across: Scale, up: Scale, metric: str, *, is_best: bool
) -> str:
    places = [(across.place(x), up.place(y)) for x, y in points]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    (x, y), kind = places[-1], "line best" if is_best else "line"
    number = f'<text x="{x + 6:.1f}" y="{y + 4:.1f}">{trial.number}</text>'
    return (
        f'<g class="{kind}"><title>{escaped(said_of(trial, metric))}</title>'
        f'<polyline class="hit" points="{joined}"/><polyline points="{joined}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>{number}</g>'
    )


def _dot(trial: Trial, x: float, up: Scale, metric: str, *, is_best: bool) -> str:
    kind, radius = ("dot best", 6) if is_best else ("dot", 4.5)
    y = up.place(trial.objective or 0.0)
    return (
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
        f"<title>{escaped(said_of(trial, metric))}</title></circle>"
    )


# --- Axes -------------------------------------------------------------------------------------------------------------


def _upwards(values: Sequence[float], height: int) -> Scale:
    low, high = min(values), max(values)
    return Scale(low, high, height - BOTTOM - 8, TOP, log=low > 0 and high / low > RATIO_FOR_LOG)


def _across(dimension: Dimension, width: int) -> Scale:
    start, end = LEFT + 12, width - RIGHT
    if isinstance(dimension, Interval):
        return Scale(dimension.low, dimension.high, start, end, dimension.log)
    return Scale(-0.5, len(dimension.values) - 0.5, start, end)


def _has(dimension: Dimension, trial: Trial) -> bool:
    value = trial.settings.get(dimension.name)
    if isinstance(dimension, Interval):
        return isinstance(value, int | float) and dimension.low <= value <= dimension.high
    return value in dimension.values


def _dot_place(dimension: Dimension, trial: Trial, across: Scale) -> float:
    value = trial.settings[dimension.name]
    if isinstance(dimension, Interval):
        return across.place(value)
    beside = (trial.number * 0.618 % 1 - 0.5) / 3  # the golden ratio spreads those of one value apart
    return across.place(dimension.values.index(value) + beside)


def _category_ticks(values: Sequence[object], across: Scale) -> list[tuple[float, str]]:
    every = math.ceil(len(values) / LABELS_AT_MOST)
    return [(across.place(index), written(value)) for index, value in enumerate(values) if index % every == 0]


def _even_ticks(low: float, high: float) -> list[float]:
    step = _step(low, high)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _step(low: float, high: float) -> float:
    """A round number that goes into the range about five times: 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 5
    ten: float = 10.0 ** math.floor(math.log10(rough))
    return next((ten * round_ for round_ in (1, 2, 5) if ten * round_ >= rough), 10 * ten)


def _digits(low: float, high: float) -> int:
    """How many digits tell two neighbouring ticks apart."""
    largest = max(abs(low), abs(high))
    return max(6, math.floor(math.log10(largest)) - math.floor(math.log10(_step(low, high))) + 1)


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = [10.0**power for power in powers if low <= 10.0**power <= high]
    if len(decades) > 2:
        return decades[:: math.ceil(len(decades) / LABELS_AT_MOST)]
    finer = [value for power in powers for value in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)]
    inside = [value for value in finer if low <= value <= high]
    return inside if len(inside) > 1 else [low, high]


def _axes(across: Sequence[tuple[float, str]], up: Scale, width: int, height: int, *, below: str, beside: str) -> str:
    floor, wall = height - BOTTOM, width - RIGHT
    rows = [
        f'<path class="grid" d="M{LEFT} {y:.1f}H{wall}"/><text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
        f"{escaped(text)}</text>"
        for y, text in up.ticks()
    ]
    columns = [
        f'<path class="axis" d="M{x:.1f} {floor}v4"/><text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">'
        f"{escaped(text)}</text>"
        for x, text in across
    ]
    side = beside + (" (log)" if up.log else "")
    names = (
        f'<text class="name" x="{(LEFT + wall) / 2}" y="{height - 5}" text-anchor="middle">{escaped(below)}</text>'
        f'<text class="name" transform="translate(12 {(TOP + floor) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escaped(side)}</text>"
    )
    return f'{"".join(rows)}<path class="axis" d="M{LEFT} {floor}H{wall}"/>{"".join(columns)}{names}'


def _svg(width: int, height: int, named: str, *parts: str, style: str = "") -> str:
    size = f'viewBox="0 0 {width} {height}" style="max-width:{width}px;{style}"'
    label = f'role="img" aria-label="{escaped(named)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {label}>{"".join(parts)}</svg>'
