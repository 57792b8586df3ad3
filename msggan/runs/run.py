"""`Run`: a run folder seen from Python, during training and after it. Files are read again at each access."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np

from msggan.config import TrainConfig
from msggan.display.html import FAINT, Points, chart, escaped, png
from msggan.errors import RunFolderError
from msggan.networks import Generator
from msggan.pictures.grids import Label, find_samples, generate, inputs_of, thumbnail
from msggan.runs.checkpoint import load_generator
from msggan.runs.folder import RunFolder, RunState, state_of
from msggan.tracking.metrics_log import read_metrics

PICTURE_PX = 360


class Run:
    """A run folder: its state, configuration, metrics, samples, and the images of its generator.

    Raises `RunFolderError` if the path is not a run folder. A notebook shows the newest samples and the curves.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = RunFolder(path)
        if not self.folder.config.exists():
            raise RunFolderError(f"{self.folder}: is not a run folder.", "List the runs: msggan-aml list")

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def state(self) -> RunState | None:
        """Whether it is running, or how it ended; None if that was not recorded."""
        return state_of(self.folder)

    @property
    def config(self) -> TrainConfig | None:
        """The resolved configuration. Raises `RunFolderError` if the file is damaged or of another version."""
        return self.folder.load_config()

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The reports, in order."""
        return read_metrics(self.folder.metrics)

    @property
    def samples(self) -> dict[int, list[Path]]:
        """The sample grids of each scale, coarse to fine, each in order."""
        return find_samples(self.folder.samples)

    @cached_property
    def generator(self) -> Generator:
        """The EMA generator, loaded at the first access. Raises `CheckpointError` if there are no weights yet."""
        return load_generator(self.path)

    def images(
        self,
        seeds: Iterable[int],
        labels: Label | Sequence[Label] | None = None,
        *,
        best: bool = False,
        at_kimg: float | None = None,
    ) -> np.ndarray:
        """(N, R, R, 3) uint8: the image of each seed, the same that `msggan-aml sample --seeds` writes.

        labels: the names or numbers of classes, as for `inputs_of`. best, at_kimg: of which weights, as in
        `load_generator`. Raises `CheckpointError` if there are none yet.
        """
        is_newest = not best and at_kimg is None
        generator = self.generator if is_newest else load_generator(self.path, best=best, at_kimg=at_kimg)
        inputs, side = inputs_of(generator, seeds, labels), 2 << generator.depth
        images = np.empty((len(inputs), side, side, 3), np.uint8)
        for image, each in zip(images, inputs.unsqueeze(1), strict=True):
            finest = generate(generator, each, chunk=1)[-1]
            image[:] = finest[0].permute(1, 2, 0).numpy()
        return images

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}): {self._status()}"

    def _repr_html_(self) -> str:
        state = self.state
        reason = f"<div>{escaped(state.reason)}</div>" if state and state.reason else ""
        heading = f"<div><b>{escaped(self.path)}</b>: {escaped(self._status())}</div>{reason}"
        following = f'<div style="{FAINT}">{escaped(self._next_step())}</div>'
        return f"<div>{heading}{overview(self.folder, self.metrics)}{following}</div>"

    def _status(self) -> str:
        """State, progress, and the last distance."""
        state, metrics = self.state, self.metrics
        reported = [kimg for kimg, _ in curve(metrics, "images")]
        progress = f"{max([state.images_seen / 1000 if state else 0.0, *reported[-1:]]):g}"
        with suppress(RunFolderError):
            progress += f"/{self.config.kimg:g}" if self.config else ""
        distances = curve(metrics, "swd")
        distance = f"  swd {distances[-1][1]:.0f}" if distances else ""
        return f"{state.state if state else 'not started'}, {progress} kimg{distance}"

    def _next_step(self) -> str:
        """What to type next, in a notebook or a shell."""
        state = self.state.state if self.state else ""
        if state == "running":
            return f"Running. Follow it: msggan-aml logs {self.path} --follow"
        if state == "completed":
            return "Make images: run.images(seeds=range(16)). Trainer(…).run() with a larger kimg continues training."
        return "Trainer(…).run() with the same configuration, data and run_dir resumes it."


def overview(folder: RunFolder, metrics: Sequence[Mapping[str, float]]) -> str:
    """HTML: the newest samples beside the curves of the reports, where there are any."""
    losses = chart({name: curve(metrics, name) for name in ("d_loss", "g_loss")})
    distance = chart({"swd": curve(metrics, "swd")})
    curves = f"<div>{losses}</div><div>{distance}</div>" if losses or distance else ""
    pictures = ""
    if grids := find_samples(folder.samples):
        path = grids[max(grids)][-1]
        try:
            pictures = png(thumbnail(path, 2 * PICTURE_PX), width_px=PICTURE_PX, title=str(path))
        except (OSError, SyntaxError, ValueError):  # Pillow raises SyntaxError for a broken PNG
            pictures = f"<div>{escaped(path)}: is not a readable picture.</div>"
    if not (curves or pictures):
        return f'<div style="{FAINT}">No samples or metrics yet.</div>'
    layout = "display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start;margin:6px 0"
    return f'<div style="{layout}"><div>{pictures}</div><div>{curves}</div></div>'


def curve(metrics: Sequence[object], name: str) -> Points:
    """(kimg, value) of each report that has one; a damaged line without numbers is skipped."""
    pairs = [(_number(report, "kimg"), _number(report, name)) for report in metrics if isinstance(report, dict)]
    return [(kimg, value) for kimg, value in pairs if kimg is not None and math.isfinite(kimg) and value is not None]


def _number(report: Mapping[str, object], name: str) -> float | None:
    """The number as a float; None if it is missing or too large to draw, as an integer in JSON may be."""
    value = report.get(name)
    if isinstance(value, float) or (type(value) is int and abs(value) < 2**53):
        return float(value)
    return None
