"""The options of the programs beside train, of `python -m msggan.VERB` and `msggan-aml VERB`, and their output."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from msggan.commands.options import (
    DEVICE,
    DEVICE_HELP,
    PACK_SUFFIX,
    WORKERS,
    WORKERS_HELP,
    Command,
    Hardware,
    Number,
    config_option,
    option,
    option_field,
    options_of,
    parse_with,
    path_problems,
    pop_fields,
    refuse,
)
from msggan.commands.program import print_json
from msggan.config import DECODING, POSITIVE, Range, TrainConfig, decoding_options, flag

FILM_SUFFIXES = (".mp4", ".webp")
MAX_SEED = 2**31 - 1
MAX_PICTURES = 100_000
MAX_FRAMES = 20_000
# A film of training progress shows each sample grid for a quarter of a second; a loop takes a second per seed.
SECONDS_PER_GRID = 0.25
SECONDS_PER_SEED = 1.0
MAX_FILES_LISTED = 4

SCALE = Number(int, Range(4, 1024))


def parse_seeds(text: str) -> Sequence[int]:
    """`0-15`, `3,7,9`, `1,4-6` → the seeds in that order. Raises click.BadParameter with every complaint."""
    ranges, problems = [], []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,10})\s*(?:-\s*([0-9]{1,10})\s*)?", part)
        if not match:
            problems.append(f"{part.strip() or 'nothing'} is not a seed")
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            problems.append(f"{part.strip()} goes backwards")
        elif last > MAX_SEED:
            problems.append(f"the largest seed is {MAX_SEED}")
        ranges.append(range(first, last + 1))
    count = sum(map(len, ranges))
    if count > MAX_PICTURES:
        problems.append(f"{count} seeds are too many, at most {MAX_PICTURES}")
    if not problems and len(set(itertools.chain(*ranges))) < count:
        problems.append("a seed is repeated")
    if problems:
        raise click.BadParameter(f"{'; '.join(problems)}. Write 0-15 or 3,7,9.")
    return ranges[0] if len(ranges) == 1 else list(itertools.chain(*ranges))


def format_seeds(seeds: Sequence[int]) -> str:
    """The seeds as `--seeds` takes them, neighbours as a range."""
    parts = []
    for _, run in itertools.groupby(enumerate(seeds), key=lambda pair: pair[1] - pair[0]):
        first, *more = [seed for _, seed in run]
        parts.append(f"{first}-{more[-1]}" if more else str(first))
    return ",".join(parts)


def film_name(name: str) -> str:
    """The name of a film, relative to the folder of the pictures. Raises click.BadParameter."""
    if os.path.splitext(name)[1].lower() not in FILM_SUFFIXES:
        raise click.BadParameter(f"must end in {' or '.join(FILM_SUFFIXES)}.")
    return name


def output_file(example: str) -> Callable[[str], str]:
    """The type of an option that names a file to write. example: a name for it, whose suffix is required."""

    def checked_path(path: str) -> str:
        suffix, stem = Path(example).suffix, path.rstrip(".")
        above = next((folder for folder in Path(path).parents if os.path.exists(folder)), Path())
        if os.path.isdir(path):
            raise click.BadParameter(f"is a directory. Name the file to write: {os.path.join(path, example)}")
        if not path.lower().endswith(suffix) or not Path(path).stem:
            raise click.BadParameter(f"must end in {suffix}, as {stem + suffix if stem else example}")
        if not os.path.isdir(above):
            raise click.BadParameter(f"{above} is not a directory.")
        return path

    return checked_path


def force_field() -> bool:
    """The field `force` of the options of a command that writes files."""
    return option_field(False, "Overwrite existing files.")  # type: ignore[no-any-return]


def best_field() -> bool:
    """The field `best` of the options of a command that reads weights."""
    return option_field(False, "Use the weights that measured best (--best-by of submit) instead of the newest.")  # type: ignore[no-any-return]


def at_field() -> float | None:
    """The field `at` of the options of a command that reads weights."""
    text = "Use the weights of the snapshot nearest to KIMG, see --snapshot-kimg of submit."
    return option_field(None, text, metavar="KIMG", type=Number(float, POSITIVE))  # type: ignore[no-any-return]


def weights_problems(*, best: bool, at: float | None) -> list[str]:
    return ["--best: cannot be combined with --at."] if best and at is not None else []


def existing_problems(path: str | None, *, force: bool, option: str = "") -> list[str]:
    """A complaint if the file to write exists. option: what precedes it in the message."""
    if path is None or force or not os.path.exists(path):
        return []
    return [f"{option}{path}: already exists. Use --force to overwrite it."]


# --- sample -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Which pictures and films to make, of which seeds. `out` None is `generated` in the run folder."""

    seeds: Sequence[int] = field(default=range(16), metadata={"as_text": format_seeds})
    label: Sequence[str] = option_field(
        (),
        "Only this class, of a run with --labels; may be repeated.  [default: every class, in a row of its own]",
        metavar="NAME",
        multiple=True,
    )
    grid: bool = option_field(False, "One image with all samples side by side (the default).")
    files: bool = option_field(False, "One file per image.")
    all_scales: bool = option_field(False, "One column per image, with every scale from 4 pixels up.")
    film: str | None = option_field(
        None,
        "A smooth loop through the seeds and classes, as FILE.mp4 or FILE.webp in --out.",
        metavar="FILE",
        type=film_name,
    )
    progress_film: str | None = option_field(
        None,
        "The run's sample grids during training, as FILE.mp4 or FILE.webp in --out.",
        metavar="FILE",
        type=film_name,
    )
    scale: int | None = option_field(
        None, "The scale to show, such as 16.  [default: the finest]", metavar="PIXELS", type=SCALE
    )
    best: bool = best_field()
    at: float | None = at_field()
    truncation: float = option_field(
        1.0,
        "Truncation trick: from 1 (as trained) to 0 (all images alike).  [default: 1]",
        type=Number(float, Range(0, 1)),
    )
    seconds: float | None = option_field(
        None,
        "Length of a film.  [default: 1 per seed; 0.25 per sample grid]",
        type=Number(float, Range(0, 3600, low_included=False)),
    )
    fps: int = option_field(24, "Frames per second of a film.", type=Number(int, Range(1, 120)))
    out: str | None = option_field(
        None, "The folder for the files.  [default: generated in the run folder]", metavar="FOLDER"
    )
    force: bool = force_field()
    device: str = option_field("auto", DEVICE_HELP, type=DEVICE)

    @property
    def makes_grid(self) -> bool:
        """A grid is the default, if nothing else is requested."""
        return self.grid or not (self.files or self.all_scales or self.film or self.progress_film)

    @property
    def needs_weights(self) -> bool:
        """A film of training progress is made of the sample grids in the run folder."""
        return bool(self.makes_grid or self.files or self.all_scales or self.film)

    @property
    def film_frames(self) -> int:
        return self.frames(SECONDS_PER_SEED * self.film_keys)

    @property
    def film_keys(self) -> int:
        """How many images a film goes through: the seeds in turn, of the classes in turn."""
        return max(len(self.seeds), len(self.label))

    def frames(self, seconds: float) -> int:
        """Frames of a film of this length, unless --seconds sets another."""
        return round((self.seconds or seconds) * self.fps)


def sample_options(command: Command) -> Command:
    """Adds the options of SampleOptions; the command gets what `parse_sample` takes."""
    command = options_of(SampleOptions)(command)
    text = "Generate exactly these seeds: 0-15, 3,7,9 or 1,4-6."
    command = option("--seeds", metavar="LIST", type=parse_seeds, help=text)(command)
    text = "Seed of the first image.  [default: 0]"
    command = option("--seed", type=Number(int, Range(0, MAX_SEED)), help=text)(command)
    text = "Number of images: seeds SEED, SEED + 1, …  [default: 16]"
    return option("--num", type=Number(int, Range(1, MAX_PICTURES)), help=text)(command)


def parse_sample(
    problems: Sequence[str], *, num: int | None, seed: int | None, seeds: Sequence[int] | None, **values: Any
) -> SampleOptions:
    """Raises UsageError with the problems found so far, else with those of options that do not fit together."""
    refuse(problems)
    if seeds is None:
        seeds = range(seed or 0, (seed or 0) + (num or 16))
    elif num is not None or seed is not None:
        problems = ["--seeds: sets all seeds. Leave out --num and --seed."]
    options = SampleOptions(seeds=seeds, **values)
    refuse([*problems, *_cross_field_errors(options)])
    return options


def _cross_field_errors(options: SampleOptions) -> list[str]:
    problems = weights_problems(best=options.best, at=options.at)
    if options.seeds[-1] > MAX_SEED:
        problems.append(f"--num {len(options.seeds)}: exceeds the largest seed, {MAX_SEED}.")
    if options.film is not None and options.film == options.progress_film:
        problems.append(f"--film {options.film}: --progress-film cannot have the same name.")
    if options.scale is not None and options.all_scales and not (options.grid or options.files or options.film):
        problems.append(f"--scale {options.scale}: --all-scales shows them all; add --grid or --files for one.")
    if options.film is not None and options.film_keys == 1:
        problems.append("--film: needs two seeds or more, such as --seeds 0-7, or two --label.")
    elif options.film is not None:
        reason = "a film has at least 2" if options.film_keys < 3 else "there are more images to show"
        problems += frame_problems("--film", options.film_frames, minimum=options.film_keys, reason=reason)
    return problems


def frame_problems(name: str, frames: int, *, minimum: int = 2, reason: str = "a film has at least 2") -> list[str]:
    """Every complaint about the number of frames of a film."""
    if frames < minimum:
        number = "one frame" if frames == 1 else f"{frames} frames"
        return [f"{name}: {number} would be too few, {reason}. Make --seconds or --fps larger."]
    if frames > MAX_FRAMES:
        return [f"{name}: {frames} frames are too many, at most {MAX_FRAMES}. Make --seconds or --fps smaller."]
    return []


def scale_problems(scale: int | None, scales: Sequence[int]) -> list[str]:
    """A complaint about a scale, in pixels, that a network does not have."""
    if scale is None or scale in scales:
        return []
    return [f"--scale {scale}: must be a scale of this network: {', '.join(map(str, scales))}."]


def show_files(files: Sequence[str], output: str) -> None:
    """Prints on stdout what was written: all files as JSON, the first few as text."""
    if output == "json":
        print_json({"files": files, "count": len(files)})
        return
    for name in files[:MAX_FILES_LISTED]:
        click.echo(name)
    if len(files) > MAX_FILES_LISTED:
        click.echo(f"and {len(files) - MAX_FILES_LISTED} more.")


# --- evaluate ---------------------------------------------------------------------------------------------------------

MAX_EVALUATED = 10_000
EVALUATED_DATA_HELP = "The images that the run was trained on.  [default: where they were then]"
DOWNLOAD = "download"
INCEPTION_HELP = "Also measure FID and KID, with the weights of Inception-v3 at PATH or downloaded from GitHub."
# By name in the JSON result: the name in the table, and what is best.
MEASURES = {
    "precision": ("precision", "as real"),
    "recall": ("recall", "as real"),
    "density": ("density", "as real"),
    "coverage": ("coverage", "as real"),
    "kernel_distance": ("kernel distance", "as real, lower"),
    "classifier_accuracy": ("told apart by a classifier", "0.5"),
    "kid": ("KID", "as real, lower"),
    "fid": ("FID", "as real, lower"),
    "copying": ("farther from training images", "0.5"),
    "c_t": ("the same in deviations, C_T", "0"),
    "copies_by_features": ("copies by features", "as real, lower"),
    "copies_by_pixels": ("copies by pixels", "as real, lower"),
}


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Which samples to compare with which images. data: None for those recorded in the run folder.

    inception: the file of its weights, or `download`; None: without FID and KID.
    """

    data: str | None = option_field(None, EVALUATED_DATA_HELP, metavar="PATH")
    num: int = option_field(
        1000, "Number of samples: seeds SEED, SEED + 1, …", type=Number(int, Range(2, MAX_EVALUATED))
    )
    seed: int = option_field(
        0, "Seed of the first sample.  [default: 0]", type=Number(int, Range(0, MAX_SEED - MAX_EVALUATED))
    )
    inception: str | None = option_field(None, INCEPTION_HELP, metavar=f"PATH|{DOWNLOAD}")
    best: bool = best_field()
    at: float | None = at_field()
    device: str = option_field("auto", DEVICE_HELP, type=DEVICE)


evaluate_options = options_of(EvaluateOptions)


def parse_evaluate(problems: Sequence[str], **values: Any) -> EvaluateOptions:
    """Raises UsageError with the problems found so far and those about the data and the weights."""
    options = EvaluateOptions(**values)
    paths = {"--data ": options.data, "--inception ": options.inception if options.inception != DOWNLOAD else None}
    missing = [problem for name, path in paths.items() if path for problem in path_problems(path, option=name)]
    refuse([*problems, *missing, *weights_problems(best=options.best, at=options.at)])
    return options


def show_evaluation(result: Mapping[str, Any], output: str) -> None:
    """Prints on stdout what was measured."""
    if output == "json":
        print_json(result)
        return
    rows = [("MEASURE", "GENERATED", "REAL", "BEST")]
    for name, measure in result["measures"].items():
        label, best = MEASURES[name]
        rows.append((label, _estimate(measure), _estimate(measure["real"]), best))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if len(rows) > 1 else ():
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for reason in dict.fromkeys(result["not_measured"].values()):
        names = [MEASURES[name][0] for name, why in result["not_measured"].items() if why == reason]
        click.echo(f"Not measured: {', '.join(names)}: {reason}")
    if result["cells"] > 1:
        click.echo(f"C_T is the mean over {result['cells']} clusters of training images.")
    click.echo(_scales_line(result["scale_disagreement"]))
    if gradients := result["scale_gradients"]:
        received = ", ".join(f"{norm:.2g} at {side} px" for side, norm in gradients.items())
        click.echo(f"Gradient that each scale received from the discriminator: {received}.")
    if "copies_by_features" in result["measures"]:
        click.echo(_copies_line(result))
    for path in result["files"]:
        click.echo(path)


def _estimate(measure: Mapping[str, Any]) -> str:
    interval = " ({:.3f} to {:.3f})".format(*measure["interval"]) if "interval" in measure else ""
    return f"{measure['value']:.3f}{interval}"


def _scales_line(scales: Mapping[str, Any]) -> str:
    values = ", ".join(f"{scale['value']:.2f} at {side} px" for side, scale in scales.items())
    return f"Scales of a sample differ from the finest by (0: one picture at all scales): {values}."


def _copies_line(result: Mapping[str, Any]) -> str:
    copied, number = len(result["copied_seeds"]), result["images"]["samples"]
    nearer = f"{copied} of {number} samples are nearer to a training image than 99 % of the held-out images"
    if result["memorised"]:
        return f"Memorised: {nearer}. Look at the closest pairs; train for less time or on more images."
    return f"No sign of memorisation: {nearer}."


# --- export -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Which files to write, None: not this one. scale: of the ONNX file, None for all."""

    onnx: str | None = option_field(
        None,
        "Write an ONNX model, which runs without msggan and torch.",
        metavar="OUT.onnx",
        type=output_file("generator.onnx"),
    )
    pth: str | None = option_field(
        None,
        "Write the weights in the format of BMSG-GAN.",
        metavar="OUT.pth",
        type=output_file("generator.pth"),
    )
    best: bool = best_field()
    at: float | None = at_field()
    scale: int | None = option_field(
        None, "Export only this scale to ONNX, such as 16.  [default: all]", metavar="PIXELS", type=SCALE
    )
    force: bool = force_field()


export_options = options_of(ExportOptions)


def parse_export(problems: Sequence[str], **values: Any) -> ExportOptions:
    """Raises UsageError with the problems found so far, else with those of options that do not fit together."""
    refuse(problems)
    options = ExportOptions(**values)
    errors = weights_problems(best=options.best, at=options.at)
    for kind in ("onnx", "pth"):
        errors += existing_problems(values[kind], force=options.force, option=f"{flag(kind)} ")
    if options.onnx is None and options.pth is None:
        errors.append("Nothing to write. Add --onnx OUT.onnx for onnxruntime, or --pth OUT.pth for BMSG-GAN.")
    elif options.onnx is None and options.scale is not None:
        errors.append(f"--scale {options.scale}: needs --onnx; a .pth file holds the whole generator.")
    refuse(errors)
    return options


# --- pack -------------------------------------------------------------------------------------------------------------

pack_file = output_file(f"images{PACK_SUFFIX}")


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How to decode images, as in TrainConfig; None: the default."""

    resolution: int | None = None
    background: str | None = None
    fit: str | None = None

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(**{name: getattr(self, name) for name in DECODING})


@dataclass(frozen=True, kw_only=True)
class PackOptions(DecodingOptions):
    """How to pack. labels: as in TrainConfig, None: where there are classes."""

    labels: str | None = None
    workers: int = option_field(0, WORKERS_HELP, type=WORKERS)
    force: bool = force_field()


def pack_options(command: Command) -> Command:
    """Adds the options of PackOptions."""
    command = config_option("background")(config_option("fit")(options_of(PackOptions)(command)))
    text = "`folders`: refuse images whose folders are not classes. Otherwise, such a pack has no classes."
    command = config_option("labels", help=text)(command)
    text = "Side of the packed images, in pixels, and the resolution that trains on them. Default: the images' own, at "
    return config_option("resolution", help=f"{text}most 256.")(command)


def parse_pack(
    problems: Sequence[str], out: str | None, *, workers: int, force: bool, **texts: str | None
) -> PackOptions:
    """Raises UsageError with the problems found so far and with those about the images or the file to write."""
    config = parse_with([*problems, *existing_problems(out, force=force)], texts)
    return PackOptions(**decoding_options(config), labels=config.labels, workers=workers, force=force)


def show_pack(result: Mapping[str, Any], output: str) -> None:
    """Prints on stdout which pack was written."""
    if output == "json":
        print_json(result)
        return
    size = f"{result['bytes'] / 2**20:.1f} MiB"
    click.echo(f"{result['path']}: {result['images']} images at {result['resolution']} px, {size}. Train with --data.")


# --- check ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CheckOptions(DecodingOptions):
    """How to examine images."""

    hardware: Hardware = field(default_factory=Hardware)
    html: str | None = option_field(
        None, "Write a page with pictures.", metavar="OUT.html", type=output_file("check.html")
    )
    force: bool = force_field()
    no_time: bool = option_field(False, "Do not train a few steps to estimate the time. PyTorch is then not needed.")


def check_options(command: Command) -> Command:
    """Adds the options of CheckOptions; the command gets what `parse_check` takes."""
    command = config_option("background")(config_option("fit")(options_of(CheckOptions)(command)))
    return config_option("resolution")(command)


def parse_check(problems: Sequence[str], **values: Any) -> CheckOptions:
    """Raises UsageError with the problems found so far and with those about the page to write."""
    existing = existing_problems(values["html"], force=values["force"], option="--html ")
    config = parse_with([*problems, *existing], {name: values.pop(name) for name in DECODING})
    return CheckOptions(**decoding_options(config), **pop_fields(CheckOptions, values))


def show_check(result: Mapping[str, Any], output: str) -> int:
    """Prints what was found; returns the exit code: 2 if no run can train on these images."""
    if output == "json":
        print_json(result)
    else:
        for line in check_lines(result):
            click.echo(line)
    return 0 if result["usable"] else 2


def check_lines(result: Mapping[str, Any]) -> list[str]:
    """What was found, as text; the verdict comes last."""
    lines = [f"{name}: {text}." for name, text in result["facts"].items()]
    for finding in result["findings"]:
        lines += [f"- {finding['message']}", *(f"    {name}" for name in finding["files"]), f"  {finding['hint']}"]
    return [*lines, *([f"Page: {result['html']}"] if result["html"] else []), result["verdict"]]
