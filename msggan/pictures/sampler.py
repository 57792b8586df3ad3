"""The pictures and films of a run: all files are planned first, then written one after another."""

from __future__ import annotations

import hashlib
import itertools
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO, TypeVar

import torch
from PIL import Image
from torch import Tensor

from msggan.commands.options import refuse
from msggan.commands.verbs import SECONDS_PER_GRID, SampleOptions, format_seeds, frame_problems, scale_problems
from msggan.device import choose_device, memory_errors
from msggan.display.progress import progress_bar
from msggan.errors import OutOfMemoryError, UsageError
from msggan.pictures.films import MIN_FRAME_PX, loop_frames, size_of_all, slides, write_film
from msggan.pictures.grids import (
    PADDING_PX,
    SHEET_COLUMNS,
    Network,
    TruncatedGenerator,
    all_scales_sheet,
    enlarged,
    enlargement,
    find_samples,
    generate,
    grid_of,
    inputs_of,
    label_problems,
    picture,
)
from msggan.runs.checkpoint import chosen_weights, load_generator
from msggan.runs.folder import RunFolder

# More pictures than fit go into a second grid, a third …: the memory needed does not grow with --num.
MAX_GRID_PX = 6000
MAX_WEBP_BYTES = 1 << 28  # Pillow keeps all frames of a WebP film in memory
MAX_EXISTING_LISTED = 3
MAX_SEEDS_IN_NAME, MAX_LABELS_IN_NAME = 24, 48  # characters

Item = TypeVar("Item")
Tick = Callable[[int], object]
Draw = Callable[[Iterable[list[Tensor]]], Image.Image]  # of pyramids of one image each


@dataclass(frozen=True)
class Output:
    """A file to write. `write` writes it to a path and reports each of its `pictures` to the tick."""

    path: Path
    pictures: int
    write: Callable[[Path, Tick], None]


class Sampler:
    """Makes pictures and films of a run folder or a `generator.safetensors`.

    Raises `UsageError`, `CheckpointError`, `DataError` or `OutOfMemoryError` before anything is written.
    """

    def __init__(self, source: str | Path, options: SampleOptions, *, messages: TextIO | None = None) -> None:
        path = Path(source)
        folder = path if path.is_dir() else path.parent
        self.options = options
        self.messages = messages or sys.stderr
        self.out = folder / "generated" if options.out is None else Path(options.out)
        self.size = ""  # of the network, once it is known
        self.of = ""  # which weights, in the names of files
        self.outputs: list[Output] = []
        problems: list[str] = []
        if options.label and not options.needs_weights:
            problems.append(f"--label {options.label[0]}: --progress-film shows the run's sample grids.")
        if options.needs_weights:
            with memory_errors(self._out_of_memory):
                weights = chosen_weights(path, best=options.best, at_kimg=options.at)
                generator = load_generator(weights).to(choose_device(options.device))
                if options.best or options.at:  # a snapshot by its own images
                    self.of = "_best" if options.best else f"_at{int(weights.stem) / 1000:g}kimg"
                network = generator if options.truncation == 1 else TruncatedGenerator(generator, options.truncation)
            self.size = f" of {2 << network.depth} px with --latent-size {network.latent_size}"
            problems += self._plan_pictures(network)
        if options.progress_film:
            problems += self._plan_progress_film(options.progress_film, RunFolder(folder).samples)
        if self.out.exists() and not self.out.is_dir():
            problems.append(f"--out {self.out}: is not a directory.")
        problems += [f"{output.path}: is a directory." for output in self.outputs if output.path.is_dir()]
        refuse(list(dict.fromkeys(problems)))  # a scale may be wrong for both
        existing = [output.path for output in self.outputs if output.path.exists()]
        if existing and not options.force:
            problems = [f"{path}: already exists." for path in existing[:MAX_EXISTING_LISTED]]
            if more := len(existing) - len(problems):
                problems.append(f"{self.out}: {more} more of these files already exist.")
            raise UsageError(problems, "Use --force to overwrite, or another --out.")

    def run(self) -> list[Path]:
        """Writes the files, each whole or not at all, with a progress bar, and returns their paths.

        Memory holds one picture at all scales, of a sheet eight, and the grid or sheet that is drawn: at most 150 MiB
        for a grid of 6000² pixels, 300 MiB for a sheet of 1024². Raises `UsageError` before the first picture is made
        if a folder cannot be written.
        """
        for folder in dict.fromkeys(output.path.parent for output in self.outputs):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise UsageError([f"--out {folder}: cannot be written ({error.strerror or error})."]) from error
        total = sum(output.pictures for output in self.outputs)
        bar = progress_bar(f"Making {total} pictures", total, self.messages)
        with memory_errors(self._out_of_memory), bar:
            for output in self.outputs:
                part = output.path.with_name(f".{output.path.stem}.part{output.path.suffix}")
                try:
                    output.write(part, bar.update)
                    part.replace(output.path)
                finally:
                    part.unlink(missing_ok=True)
        return [output.path for output in self.outputs]

    def _out_of_memory(self) -> OutOfMemoryError:
        hint = "Try --device cpu."
        if choose_device(self.options.device).type == "cpu":
            hint = "Close other programs and try again, or use --files: one picture at a time needs the least memory."
        return OutOfMemoryError(f"Out of memory while making pictures{self.size}.", hint)

    def _plan_pictures(self, network: Network) -> list[str]:
        """Plans grids, files, sheets and the loop; returns the complaints."""
        options = self.options
        scales = [4 << level for level in range(network.depth)]
        labels_wrong = label_problems(options.label, network.classes, option="--label")
        if problems := [*scale_problems(options.scale, scales), *labels_wrong]:
            return problems
        labels = options.label or [*network.classes] or [""]
        side = options.scale or scales[-1]
        level = scales.index(side)

        def draw_grid(pyramids: Iterable[list[Tensor]], *, count: int, columns: int) -> Image.Image:
            images = (pyramid[level][0] for pyramid in pyramids)
            return enlarged(grid_of(images, count=count, side=side, columns=columns))

        def draw_one(pyramids: Iterable[list[Tensor]]) -> Image.Image:
            (pyramid,) = pyramids
            return picture(pyramid[level][0])

        def draw_sheet(pyramids: Iterable[list[Tensor]]) -> Image.Image:
            return enlarged(all_scales_sheet([torch.cat(level) for level in zip(*pyramids, strict=True)]))

        def write_loop(path: Path, tick: Tick) -> None:
            keys = zip(range(options.film_keys), itertools.cycle(options.seeds), itertools.cycle(labels))
            frames = loop_frames(
                torch.cat([_input(network, seed, label) for _, seed, label in keys]),
                options.film_frames,
                latent_size=network.latent_size,
                paint=lambda latent: generate(network, latent, chunk=1)[level],
            )
            write_film(path, ticking(frames, tick), fps=options.fps)

        if options.makes_grid:
            per_row = max(1, MAX_GRID_PX // (side + PADDING_PX))
            has_rows = len(labels) > 1 < len(options.seeds)
            for rows in _pages(labels, per_row):
                chosen = rows if options.label or len(rows) < len(labels) else [""]
                for seeds in _pages(options.seeds, per_row if has_rows else per_row**2):
                    shown, columns = [(seed, label) for label in rows for seed in seeds], len(seeds) * has_rows
                    draw = partial(draw_grid, count=len(shown), columns=columns)
                    self._plan_picture(network, shown, f"grid_{named_by(seeds, chosen)}_{side}px", draw)
        for label in labels:
            for seed in options.seeds if options.files else ():
                name = f"seed{seed:06d}{named_by_label([label])}_{side}px"
                self._plan_picture(network, [(seed, label)], name, draw_one)
            for seeds in _pages(options.seeds, SHEET_COLUMNS) if options.all_scales else ():
                shown = [(seed, label) for seed in seeds]
                self._plan_picture(network, shown, f"scales_{named_by(seeds, [label])}", draw_sheet)
        if options.film is None:
            return []
        self.outputs.append(Output(self.out / options.film, options.film_frames, write_loop))
        return _webp_problems("--film", options.film, options.film_frames, (side, side))

    def _plan_progress_film(self, name: str, folder: Path) -> list[str]:
        """Plans the film of a run's sample grids; returns the complaints."""
        samples = find_samples(folder)
        if not samples:
            return [f"--progress-film: there are no sample grids in {folder} yet. Training writes them."]
        if problems := scale_problems(self.options.scale, list(samples)):
            return problems
        shown = samples[self.options.scale or max(samples)]
        if len(shown) < 2:
            return [f"--progress-film: needs two sample grids, and there is only {shown[0]}. Train longer."]
        frames = self.options.frames(SECONDS_PER_GRID * len(shown))

        def write_slides(path: Path, tick: Tick) -> None:
            write_film(path, ticking(slides(shown, frames), tick), fps=self.options.fps)

        self.outputs.append(Output(self.out / name, frames, write_slides))
        too_large = _webp_problems("--progress-film", name, frames, size_of_all(shown))
        return frame_problems("--progress-film", frames) or too_large

    def _plan_picture(self, network: Network, shown: Sequence[tuple[int, str]], name: str, draw: Draw) -> None:
        """shown: seeds with the names of their classes, empty without classes."""

        def write(path: Path, tick: Tick) -> None:
            # One at a time, so that a picture's bytes depend on nothing but its seed and class.
            inputs = (_input(network, seed, label) for seed, label in ticking(shown, tick))
            draw(generate(network, each, chunk=1) for each in inputs).save(path, "PNG")

        truncation = "" if self.options.truncation == 1 else f"_trunc{self.options.truncation}"
        self.outputs.append(Output(self.out / f"{name}{self.of}{truncation}.png", len(shown), write))


def _input(network: Network, seed: int, label: str) -> Tensor:
    return inputs_of(network, [seed], label or None)


def _pages(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def named_by(seeds: Sequence[int], labels: Sequence[str]) -> str:
    """Seeds and classes in a file's name: `seeds0-15`, `seed7_hat`; a long list by its length and its digest."""
    text = format_seeds(seeds)
    if len(text) > MAX_SEEDS_IN_NAME:
        named = f"{len(seeds)}seeds-{_digest(text)}"
    else:
        named = f"seed{text}" if len(seeds) == 1 else f"seeds{text}"
    return named + named_by_label(labels)


def named_by_label(labels: Sequence[str]) -> str:
    """Classes in a file's name, after an underscore: `_hat`, `_hat+dress`; nothing without classes."""
    text = "+".join(re.sub(r'[/\\:*?"<>|]', "_", label) for label in labels)
    if len(text) > MAX_LABELS_IN_NAME:
        text = f"{len(labels)}classes-{_digest(text)}"
    return f"_{text}" if text else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _webp_problems(option: str, name: str, frames: int, size: tuple[int, int]) -> list[str]:
    pixels = size[0] * size[1] * enlargement(size, min_side_px=MIN_FRAME_PX) ** 2
    if not name.lower().endswith(".webp") or frames * pixels * 3 <= MAX_WEBP_BYTES:
        return []
    most = MAX_WEBP_BYTES // (pixels * 3)
    return [f"{option} {name}: {frames} frames are too many for WebP, at most {most} of this size. Use .mp4."]


def ticking(items: Iterable[Item], tick: Tick) -> Iterator[Item]:
    """The same items; each is reported to the tick once it has been used."""
    for item in items:
        yield item
        tick(1)
