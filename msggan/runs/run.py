"""What is there to see of a run, while it trains and afterwards? Its folder, read anew whenever it is looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from msggan.config import TrainConfig
from msggan.display.html import FAINT, Points, chart, escaped, png
from msggan.errors import RunFolderError
from msggan.networks import Generator
from msggan.pictures.grids import find_samples, thumbnail
from msggan.runs.checkpoint import load_generator
from msggan.runs.folder import RunFolder
from msggan.runs.state import RunState, state_of
from msggan.tracking.metrics_log import read_metrics

PICTURE_PX = 360


class Run:
    """A run folder to look at: its state, configuration, metrics, samples, and the generator that it has come to.

    Raises `RunFolderError` where no run lives at the path. A notebook shows the newest samples and the curves.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = RunFolder(path)
        if not self.folder.config.exists():
            raise RunFolderError(f"{self.folder}: holds no run.", "See what runs there are: msggan-aml list")

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def state(self) -> RunState | None:
        """Whether it goes on, or how it ended; None where that was not noted."""
        return state_of(self.folder)

    @property
    def config(self) -> TrainConfig | None:
        """Every setting, as it was resolved. Raises `RunFolderError` where the file is another version's or damaged."""
        return self.folder.load_config()

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The reports, from first to last."""
        return read_metrics(self.folder.metrics)

    @property
    def samples(self) -> dict[int, list[Path]]:
        """The sample grids of each scale, coarse to fine, each from first to last."""
        return find_samples(self.folder.samples)

    @cached_property
    def generator(self) -> Generator:
        """Its averaged generator, as it was when first asked for. Raises `CheckpointError` where there is none yet."""
        return load_generator(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}): {self._standing()}"

    def _repr_html_(self) -> str:
        state = self.state
        reason = f"<div>{escaped(state.reason)}</div>" if state and state.reason else ""
        heading = f"<div><b>{escaped(self.path)}</b>: {escaped(self._standing())}</div>{reason}"
        following = f'<div style="{FAINT}">{escaped(self._next())}</div>'
        return f"<div>{heading}{overview(self.folder)}{following}</div>"

    def _standing(self) -> str:
        """How it stands, how far it is, its last distance."""
        state = self.state
        parts = [f"{state.state if state else 'not begun'}, {self._how_far(state)} kimg"]
        distances = curve(self.metrics, "swd")
        return "  ".join([*parts, f"swd {distances[-1][1]:.0f}"] if distances else parts)

    def _how_far(self, state: RunState | None) -> str:
        reported = [kimg for kimg, _ in curve(self.metrics, "images")]
        seen = max([state.images_seen / 1000 if state else 0.0, *reported[-1:]])
        try:
            config = self.config
        except RunFolderError:
            return f"{seen:g}"
        return f"{seen:g}/{config.kimg:g}" if config else f"{seen:g}"

    def _next(self) -> str:
        """What to type next, as a notebook or a script would."""
        state = self.state.state if self.state else ""
        if state == "running":
            return f"It goes on. Follow it: msggan-aml logs {self.path} --follow"
        if state == "completed":
            return "run.generator makes images of it. Trainer(…).run() with a larger kimg goes on from here."
        return "Trainer(…).run() with the same configuration, data and run_dir goes on from here."


def overview(folder: RunFolder) -> str:
    """HTML: the newest samples beside the curves; what there is of them."""
    metrics = read_metrics(folder.metrics)
    losses = chart({name: curve(metrics, name) for name in ("d_loss", "g_loss")})
    distance = chart({"swd": curve(metrics, "swd")})
    curves = f"<div>{losses}</div><div>{distance}</div>" if losses or distance else ""
    pictures = _newest_picture(folder)
    if not (curves or pictures):
        return f'<div style="{FAINT}">Nothing to see yet.</div>'
    layout = "display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start;margin:6px 0"
    return f'<div style="{layout}"><div>{pictures}</div><div>{curves}</div></div>'


def curve(metrics: Sequence[object], name: str) -> Points:
    """(kimg, value) of each report that has one; what a damaged line holds instead of numbers is passed over."""
    pairs = [(_number(report, "kimg"), _number(report, name)) for report in metrics if isinstance(report, dict)]
    return [(kimg, value) for kimg, value in pairs if kimg is not None and math.isfinite(kimg) and value is not None]


def _number(report: Mapping[str, object], name: str) -> float | None:
    """None where there is none that a chart can hold: an int of JSON may have more digits than a float."""
    value = report.get(name)
    if isinstance(value, float) or (type(value) is int and abs(value) < 2**53):
        return float(value)
    return None


def _newest_picture(folder: RunFolder) -> str:
    grids = find_samples(folder.samples)
    if not grids:
        return ""
    path = grids[max(grids)][-1]
    try:
        content = thumbnail(path, 2 * PICTURE_PX)
    except (OSError, SyntaxError, ValueError):  # SyntaxError is Pillow's word for a broken PNG
        return f"<div>{escaped(path)}: cannot be read as a picture.</div>"
    return png(content, width_px=PICTURE_PX, title=str(path))
