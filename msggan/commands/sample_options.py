"""What can be asked of a trained generator, and how is it written on a command line?"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from msggan.commands.options import Command, device_option, device_problems
from msggan.commands.program import print_json
from msggan.config import KINDS, Range, flag
from msggan.errors import UsageError

FILM_SUFFIXES = (".mp4", ".webp")
LARGEST_SEED = 2**31 - 1
MOST_PICTURES = 100_000
MOST_FRAMES = 20_000
# A grid of training samples stays for a quarter of a second; from one seed to the next it takes a second.
SECONDS_A_SAMPLE = 0.25
SECONDS_A_SEED = 1.0
FILES_NAMED = 4

Texts = Mapping[str, Any]  # by name of option: a text, None where nothing was said; for a flag whether it was given


@dataclass(frozen=True)
class Number:
    """An option that is a number."""

    kind: type
    range: Range
    default: float | None = None


NUMBERS = {
    "num": Number(int, Range(1, MOST_PICTURES), 16),
    "seed": Number(int, Range(0, LARGEST_SEED), 0),
    "scale": Number(int, Range(4, 1024)),
    "truncation": Number(float, Range(0, 1), 1.0),
    "seconds": Number(float, Range(0, 3600, low_included=False)),
    "fps": Number(int, Range(1, 120), 24),
}


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Which pictures and films to make, of which seeds. `out` None is `generated` in the run folder."""

    seeds: Sequence[int] = range(16)
    grid: bool = False
    files: bool = False
    all_scales: bool = False
    film: str | None = None
    progress_film: str | None = None
    scale: int | None = None
    truncation: float = 1.0
    seconds: float | None = None
    fps: int = 24
    out: str | None = None
    force: bool = False
    device: str = "auto"

    @property
    def shows_grid(self) -> bool:
        """A grid is what there is when nothing else is asked for."""
        return self.grid or not (self.files or self.all_scales or self.film or self.progress_film)

    @property
    def needs_weights(self) -> bool:
        """A film of training progress is made of what the run has left behind."""
        return bool(self.shows_grid or self.files or self.all_scales or self.film)

    @property
    def film_frames(self) -> int:
        return self.frames(SECONDS_A_SEED * len(self.seeds))

    def frames(self, seconds: float) -> int:
        """Frames of a film that is so long unless --seconds says otherwise."""
        return round((self.seconds or seconds) * self.fps)

    def to_argv(self) -> list[str]:
        """The options that say this; nothing for what is as by default."""
        words = [] if self.seeds == range(16) else ["--seeds", seeds_in_words(self.seeds)]
        for name in ("grid", "files", "all_scales", "force"):
            words += [flag(name)] if getattr(self, name) else []
        for name in ("film", "progress_film", "scale", "truncation", "seconds", "fps", "out", "device"):
            value = getattr(self, name)
            words += [flag(name), str(value)] if value != getattr(SampleOptions, name) else []
        return words


def sample_options(command: Command) -> Command:
    """Adds the options of SampleOptions; the command gets their texts."""
    for add in reversed(_OPTIONS):  # the decorator nearest to the function comes last in the help
        command = add(command)
    return device_option(command)


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--num", metavar="INTEGER", help="How many pictures: seeds SEED, SEED + 1, …  [default: 16]"),
    click.option("--seed", metavar="INTEGER", help="The first picture's seed.  [default: 0]"),
    click.option("--seeds", metavar="LIST", help="Just these seeds, as 0-15 or 3,7,9 or 1,4-6."),
    click.option("--grid", is_flag=True, help="One picture of all, side by side. What is made when nothing is said."),
    click.option("--files", is_flag=True, help="A file for each picture."),
    click.option("--all-scales", is_flag=True, help="A column for each picture, every scale from 4 pixels up."),
    click.option("--film", metavar="FILE", help="A smooth loop from seed to seed, as FILE.mp4 or FILE.webp in --out."),
    click.option(
        "--progress-film", metavar="FILE", help="How the run's sample grids have changed in training, likewise."
    ),
    click.option("--scale", metavar="PIXELS", help="The scale to show, as 16.  [default: the finest]"),
    click.option(
        "--truncation",
        metavar="NUMBER",
        help="From 1, as trained, to 0, all alike: draws pictures towards the typical one.  [default: 1]",
    ),
    click.option(
        "--seconds", metavar="NUMBER", help="How long a film is.  [default: 1 a seed; a quarter a grid of progress]"
    ),
    click.option("--fps", metavar="INTEGER", help="Frames of a film in a second.  [default: 24]"),
    click.option(
        "--out", metavar="FOLDER", help="The folder that gets the files.  [default: generated in the run folder]"
    ),
    click.option("--force", is_flag=True, help="Overwrite files that are there already."),
)


def parse_sample(problems: Sequence[str], texts: Texts) -> SampleOptions:
    """The options in `texts`. Raises UsageError with their complaints and those found elsewhere together."""
    values, complaints = read_numbers(texts, NUMBERS)
    complaints = [*problems, *complaints, *device_problems(texts["device"])]
    complaints += _film_name_problems(texts)
    seeds: Sequence[int]
    try:
        seeds = _seeds(texts, values)
    except UsageError as error:
        seeds = ()
        complaints += error.problems
    kept = ("grid", "files", "all_scales", "film", "progress_film", "out", "force", "device")
    chosen = ("scale", "truncation", "seconds", "fps")
    options = SampleOptions(
        seeds=seeds, **{name: texts[name] for name in kept}, **{name: values[name] for name in chosen if name in values}
    )
    if not complaints:
        complaints = _misfits(options)
    if complaints:
        raise UsageError(complaints)
    return options


def read_numbers(texts: Texts, numbers: Mapping[str, Number]) -> tuple[dict[str, Any], list[str]]:
    """The options that are numbers, and every complaint about one."""
    values: dict[str, Any] = {name: number.default for name, number in numbers.items()}
    problems = []
    for name, number in numbers.items():
        text = texts[name]
        if text is None:
            continue
        try:
            value = number.kind(text)
        except ValueError:
            problems.append(f"{flag(name)} {text}: is not {KINDS[number.kind]}.")
            continue
        if value in number.range:
            values[name] = value
        else:
            problems.append(f"{flag(name)} {text}: must be {number.range}.")
    return values, problems


def _seeds(texts: Texts, values: Mapping[str, Any]) -> Sequence[int]:
    if texts["seeds"] is not None:
        named = parse_seeds(texts["seeds"])
        if texts["num"] is not None or texts["seed"] is not None:
            raise UsageError(["--seeds: says all; leave out --num and --seed."])
        return named
    seeds = range(values["seed"], values["seed"] + values["num"])
    if seeds[-1] > LARGEST_SEED:
        raise UsageError([f"--num {len(seeds)}: goes beyond the largest seed, {LARGEST_SEED}."])
    return seeds


def parse_seeds(text: str) -> Sequence[int]:
    """`0-15`, `3,7,9`, `1,4-6` → the seeds in that order. Raises UsageError with every complaint."""
    parts, problems = [], []
    for word in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,10})\s*(?:-\s*([0-9]{1,10})\s*)?", word)
        if not match:
            problems.append(f"--seeds {text}: {word.strip() or 'nothing'} is no seed. Write 0-15 or 3,7,9.")
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            problems.append(f"--seeds {text}: {word.strip()} goes backwards.")
        elif last > LARGEST_SEED:
            problems.append(f"--seeds {text}: the largest seed is {LARGEST_SEED}.")
        parts.append(range(first, last + 1))
    count = sum(map(len, parts))
    if count > MOST_PICTURES:
        problems.append(f"--seeds {text}: are {count}; at most {MOST_PICTURES} are made at a time.")
    if not problems and len(set(itertools.chain(*parts))) < count:
        problems.append(f"--seeds {text}: names a seed twice.")
    if problems:
        raise UsageError(problems)
    return parts[0] if len(parts) == 1 else list(itertools.chain(*parts))


def seeds_in_words(seeds: Sequence[int]) -> str:
    """As `parse_seeds` reads them, neighbours as a range."""
    words = []
    for _, run in itertools.groupby(enumerate(seeds), key=lambda pair: pair[1] - pair[0]):
        first, *more = [seed for _, seed in run]
        words.append(f"{first}-{more[-1]}" if more else str(first))
    return ",".join(words)


def _film_name_problems(texts: Texts) -> list[str]:
    problems = []
    for name in ("film", "progress_film"):
        if texts[name] is not None and os.path.splitext(texts[name])[1].lower() not in FILM_SUFFIXES:
            problems.append(f"{flag(name)} {texts[name]}: must end in {' or '.join(FILM_SUFFIXES)}.")
    if texts["film"] is not None and texts["film"] == texts["progress_film"]:
        problems.append(f"--film {texts['film']}: --progress-film cannot have the same name.")
    return problems


def _misfits(options: SampleOptions) -> list[str]:
    """Complaints about options that are good alone and bad together."""
    problems = []
    if options.scale is not None and options.all_scales and not (options.grid or options.files or options.film):
        problems.append(f"--scale {options.scale}: --all-scales shows them all; add --grid or --files for one.")
    if options.film is None:
        return problems
    if len(options.seeds) == 1:
        problems.append("--film: from one seed to itself it has one frame only. Name two or more, as --seeds 0-7.")
    else:
        shortest = "a film has at least 2" if len(options.seeds) < 3 else "there are more seeds to show"
        problems += frame_problems("--film", options.film_frames, least=len(options.seeds), because=shortest)
    return problems


def frame_problems(name: str, frames: int, *, least: int = 2, because: str = "a film has at least 2") -> list[str]:
    """Every complaint about how many frames a film would have."""
    if frames < least:
        number = "one frame" if frames == 1 else f"{frames} frames"
        return [f"{name}: {number} would be too few, {because}. Make --seconds or --fps larger."]
    if frames > MOST_FRAMES:
        return [f"{name}: {frames} frames are too many, at most {MOST_FRAMES}. Give fewer --seconds or --fps."]
    return []


def scale_problems(scale: int | None, scales: Sequence[int]) -> list[str]:
    """A complaint about a scale, in pixels, that a network does not make."""
    if scale is None or scale in scales:
        return []
    return [f"--scale {scale}: is not made by this network, whose scales are {', '.join(map(str, scales))}."]


def show_files(files: Sequence[str], output: str) -> None:
    """Tells on stdout what has been made: a script of all files, a person of a few by name."""
    if output == "json":
        print_json({"files": files, "count": len(files)})
        return
    for name in files[:FILES_NAMED]:
        click.echo(name)
    if len(files) > FILES_NAMED:
        click.echo(f"and {len(files) - FILES_NAMED} more.")
