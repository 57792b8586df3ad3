"""Which files are to be made of a run, and how is each made? All of them are planned before the first is written."""

from __future__ import annotations

import hashlib
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

from msggan.commands.verbs import (
    SECONDS_PER_GRID,
    SampleOptions,
    format_seeds,
    frame_problems,
    scale_problems,
)
from msggan.device import choose_device, memory_errors
from msggan.display.progress import progress_bar
from msggan.errors import OutOfMemoryError, UsageError
from msggan.pictures.films import LEAST_SIDE_PX, frames_between, size_of_all, slides, write_film
from msggan.pictures.grids import (
    PADDING_PX,
    SHEET_COLUMNS,
    Network,
    all_scales_sheet,
    enlarged,
    enlargement,
    find_samples,
    generate,
    grid_of,
    picture,
)
from msggan.pictures.truncation import TruncatedGenerator
from msggan.randomness import latents_of
from msggan.runs.checkpoint import load_generator
from msggan.runs.folder import RunFolder

# Pictures beyond this go on in a second grid, a third …: what is in memory at a time does not grow with --num.
GRID_SIDE_PX = 6000
# Pillow keeps all the frames of a WebP film in memory.
WEBP_BYTES = 1 << 28
EXISTING_NAMED = 3
LONGEST_SEEDS_IN_NAME = 24

Item = TypeVar("Item")
Tick = Callable[[int], object]
Draw = Callable[[Iterable[list[Tensor]], int], Image.Image]  # of so many pyramids, each of one image


@dataclass(frozen=True)
class Output:
    """A file to be. `write` makes it at a path, and tells of each of its `pictures` by the tick."""

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
        self.outputs: list[Output] = []
        problems: list[str] = []
        if options.needs_weights:
            with memory_errors(self._out_of_memory):
                painter = Painter.load(path, truncation=options.truncation, device=options.device)
            self.size = f" of {painter.scales[-1]} px with --latent-size {painter.latent_size}"
            problems += self._plan_pictures(painter)
        if options.progress_film:
            problems += self._plan_progress_film(options.progress_film, RunFolder(folder).samples)
        problems = list(dict.fromkeys(problems))  # a scale may be wrong for both
        if self.out.exists() and not self.out.is_dir():
            problems.append(f"--out {self.out}: is a file, not a folder.")
        problems += [f"{output.path}: is a folder." for output in self.outputs if output.path.is_dir()]
        if problems:
            raise UsageError(problems)
        if not options.force:
            self._refuse_existing()

    def run(self) -> list[Path]:
        """Writes the files, each whole or not at all, and shows how far it is.

        In memory are one picture at all scales, of a sheet eight, and the grid or sheet that is drawn: at most 150 MiB
        for a grid of 6000² pixels, 300 MiB for a sheet of 1024². Raises `UsageError` before the first picture is made
        where a folder cannot be written.
        """
        self._ensure_writable()
        total = sum(output.pictures for output in self.outputs)
        bar = progress_bar(f"Making {total} pictures", total, self.messages)
        with memory_errors(self._out_of_memory), bar:
            for output in self.outputs:
                aside = output.path.with_name(f".{output.path.stem}.part{output.path.suffix}")
                try:
                    output.write(aside, bar.update)
                    aside.replace(output.path)
                finally:
                    aside.unlink(missing_ok=True)
        return [output.path for output in self.outputs]

    def _ensure_writable(self) -> None:
        """Makes the folders of the files. Raises `UsageError` where one cannot be made or written in."""
        for folder in dict.fromkeys(output.path.parent for output in self.outputs):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise UsageError([f"--out {folder}: cannot be written ({error.strerror or error})."]) from error

    def _out_of_memory(self) -> OutOfMemoryError:
        on_cpu = choose_device(self.options.device).type == "cpu"
        return OutOfMemoryError(
            f"Out of memory while making pictures{self.size}.",
            "Close other programs and try again, or use --files: one picture at a time needs the least memory."
            if on_cpu
            else "Try --device cpu.",
        )

    # What there is to make

    def _plan_pictures(self, painter: Painter) -> list[str]:
        """Plans grids, files, sheets and the loop; returns what stands against them."""
        options = self.options
        if problems := scale_problems(options.scale, painter.scales):
            return problems
        side = options.scale or painter.scales[-1]
        level = painter.scales.index(side)

        def draw_grid(pyramids: Iterable[list[Tensor]], count: int) -> Image.Image:
            images = (pyramid[level][0] for pyramid in pyramids)
            return enlarged(grid_of(images, count=count, side=side))

        def draw_one(pyramids: Iterable[list[Tensor]], count: int) -> Image.Image:
            (pyramid,) = pyramids
            return picture(pyramid[level][0])

        if options.makes_grid:
            most = max(1, GRID_SIDE_PX // (side + PADDING_PX)) ** 2
            self._add_pages(painter, "grid", f"_{side}px", most, draw_grid)
        if options.files:
            for seed in options.seeds:
                name = f"seed{seed:06d}_{side}px{self._truncation()}"
                self._add_page(painter, [seed], name, draw_one)
        if options.all_scales:
            self._add_pages(painter, "scales", "", SHEET_COLUMNS, _draw_sheet)
        if options.film is None:
            return []
        self.outputs.append(
            Output(self.out / options.film, options.film_frames, partial(self._write_loop, painter, level))
        )
        return _webp_problems("--film", options.film, options.film_frames, (side, side))

    def _plan_progress_film(self, name: str, folder: Path) -> list[str]:
        """Plans the film of a run's sample grids; returns what stands against it."""
        samples = find_samples(folder)
        if not samples:
            return [f"--progress-film: there are no sample grids in {folder} yet. Training writes them."]
        if problems := scale_problems(self.options.scale, list(samples)):
            return problems
        shown = samples[self.options.scale or max(samples)]
        if len(shown) < 2:
            return [f"--progress-film: of one sample grid, {shown[0]}, it has one frame only. Train on for more."]
        frames = self.options.frames(SECONDS_PER_GRID * len(shown))
        self.outputs.append(Output(self.out / name, frames, partial(self._write_slides, shown, frames)))
        return frame_problems("--progress-film", frames) or _webp_problems(
            "--progress-film", name, frames, size_of_all(shown)
        )

    def _add_pages(self, painter: Painter, kind: str, scale: str, most: int, draw: Draw) -> None:
        """A picture for every so many seeds, named by them."""
        for begin in range(0, len(self.options.seeds), most):
            seeds = self.options.seeds[begin : begin + most]
            self._add_page(painter, seeds, f"{kind}_{named_by(seeds)}{scale}{self._truncation()}", draw)

    def _add_page(self, painter: Painter, seeds: Sequence[int], name: str, draw: Draw) -> None:
        def write(path: Path, tick: Tick) -> None:
            draw((painter.paint(painter.latent(seed)) for seed in ticking(seeds, tick)), len(seeds)).save(path, "PNG")

        self.outputs.append(Output(self.out / f"{name}.png", len(seeds), write))

    def _truncation(self) -> str:
        return "" if self.options.truncation == 1 else f"_trunc{self.options.truncation}"

    def _write_loop(self, painter: Painter, level: int, path: Path, tick: Tick) -> None:
        keys = latents_of(self.options.seeds, painter.latent_size)
        frames = frames_between(keys, self.options.film_frames, paint=lambda latent: painter.paint(latent)[level])
        write_film(path, ticking(frames, tick), fps=self.options.fps)

    def _write_slides(self, shown: Sequence[Path], frames: int, path: Path, tick: Tick) -> None:
        write_film(path, ticking(slides(shown, frames), tick), fps=self.options.fps)

    def _refuse_existing(self) -> None:
        existing = [output.path for output in self.outputs if output.path.exists()]
        problems = [f"{path}: already exists." for path in existing[:EXISTING_NAMED]]
        if len(existing) > EXISTING_NAMED:
            problems.append(f"{self.out}: {len(existing) - EXISTING_NAMED} more of these files already exist.")
        if problems:
            raise UsageError(problems, "Use --force to overwrite, or another --out.")


@dataclass(frozen=True)
class Painter:
    """A trained network that makes pictures one at a time, so that what else is made leaves no trace in them."""

    network: Network
    latent_size: int
    scales: list[int]

    @classmethod
    def load(cls, source: Path, *, truncation: float, device: str) -> Painter:
        """Raises `CheckpointError` where there are no good weights, `UsageError` where there is no such device."""
        generator = load_generator(source).to(choose_device(device))
        network: Network = generator if truncation == 1 else TruncatedGenerator(generator, truncation)
        return cls(network, generator.latent_size, [4 << level for level in range(generator.depth)])

    def latent(self, seed: int) -> Tensor:
        """(1, L) float32: the latent of a seed."""
        return latents_of([seed], self.latent_size)

    def paint(self, latent: Tensor) -> list[Tensor]:
        """latent: (1, L) → its picture at every scale, coarse to fine: (1, 3, r, r) uint8."""
        return generate(self.network, latent, chunk=1)


def _draw_sheet(pyramids: Iterable[list[Tensor]], count: int) -> Image.Image:
    return enlarged(all_scales_sheet([torch.cat(level) for level in zip(*pyramids, strict=True)]))


def named_by(seeds: Sequence[int]) -> str:
    """Seeds in a file's name: `seeds0-15`, `seed7`; a long list by its length and the digest of the list."""
    words = format_seeds(seeds)
    if len(words) > LONGEST_SEEDS_IN_NAME:
        return f"{len(seeds)}seeds-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
    return f"seed{words}" if len(seeds) == 1 else f"seeds{words}"


def _webp_problems(option: str, name: str, frames: int, size: tuple[int, int]) -> list[str]:
    pixels = size[0] * size[1] * enlargement(size, least_side_px=LEAST_SIDE_PX) ** 2
    if not name.lower().endswith(".webp") or frames * pixels * 3 <= WEBP_BYTES:
        return []
    most = WEBP_BYTES // (pixels * 3)
    return [f"{option} {name}: {frames} frames are too many for WebP, at most {most} of this size. Take .mp4."]


def ticking(items: Iterable[Item], tick: Tick) -> Iterator[Item]:
    """The same items, telling of each that it has been used."""
    for item in items:
        yield item
        tick(1)
