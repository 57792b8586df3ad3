"""What to train: every knob once, with its help and range, and the recipes that fill the knobs nobody turned."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from functools import cache
from typing import Any, NamedTuple, get_type_hints

from msggan.errors import UsageError
from msggan.losses import LOSSES

# The original's generator average keeps 0.999 of itself a step (facts of BMSG-GAN's train.py), whatever the batch.
BMSG_EMA_DECAY = 0.999

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # What trained stably on a thousand photographs at the least cost; docs/recipes.md has what was tried.
    "auto": {
        "loss": "relativistic-logistic",
        "batch_size": 4,
        "g_lr": 0.002,
        "d_lr": 0.002,
        "beta1": 0.0,
        "beta2": 0.99,
        "r1_gamma": 10.0,
        "r2_gamma": 10.0,
        "penalty_interval": 4,
        "ema_half_life_kimg": 5.0,
        "ema_ramp": 0.05,
        "stddev_group": 0,
        "precision": "auto",
    },
    # BMSG-GAN's own procedure to the letter, float32 included.
    "bmsg": {
        "loss": "relativistic-hinge",
        "batch_size": 32,
        "g_lr": 0.003,
        "d_lr": 0.003,
        "beta1": 0.0,
        "beta2": 0.99,
        "r1_gamma": 0.0,
        "r2_gamma": 0.0,
        "penalty_interval": 1,
        "ema_ramp": 0.0,
        "stddev_group": 0,
        "precision": "float32",
    },
}


# The intervals that follow --kimg: a twentieth of it, at least 1 and at most so many thousand images.
INTERVALS: Mapping[str, float] = {"sample_kimg": math.inf, "metric_kimg": math.inf, "checkpoint_kimg": 20.0}


class Range(NamedTuple):
    """Numbers from `low` to `high`; `low` itself counts only where `low_included`."""

    low: float
    high: float = math.inf
    low_included: bool = True

    def __contains__(self, value: object) -> bool:
        # Not-a-number fails every comparison. math.isfinite would not do: it overflows on an int of 400 digits.
        if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            return False
        return (self.low <= value if self.low_included else self.low < value) and value <= self.high

    def __str__(self) -> str:
        lower = f"{self.low:.12g} or more" if self.low_included else f"more than {self.low:.12g}"
        if math.isinf(self.high):
            return lower
        return f"{lower}, at most {self.high:.12g}"


class Sweep(NamedTuple):
    """How a sweep searches a field.

    low, high: its own range, None where it has none. log: its nature, steps in the logarithm; whole numbers are then
    powers of two. choices: its own values, for a field that is searched value by value.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()


POSITIVE = Range(0, low_included=False)
NOT_NEGATIVE = Range(0)


def option(
    help: str,  # noqa: A002 - click's own word for it
    *,
    default: Any = None,
    choices: tuple[str, ...] = (),
    range: Range | None = None,  # noqa: A002
    power_of_two: bool = False,
    pattern: str = "",
    pattern_in_words: str = "",
    may_change: bool = False,
    absent: Any = None,
    sweep: Sweep | None = None,
    section: str = "Quality",
) -> Any:
    """A field that is also a command-line option.

    Every field starts as None, "not said". `default` is what `resolve` falls back to when neither the person nor the
    recipe says; `may_change` marks what a resumed run may be given anew; `absent` is the value that versions before the
    field behaved as, for a stored configuration without it, and None where every version has the field; a field without
    `sweep` cannot be swept: it says how long, on what or how exactly a run is measured, so that its values could not be
    compared; `section` is the one of the help, see `msggan.commands.options.SECTIONS`.
    """
    metadata = {
        "help": help,
        "default": default,
        "choices": choices,
        "range": range,
        "power_of_two": power_of_two,
        "pattern": pattern,
        "pattern_in_words": pattern_in_words,
        "may_change": may_change,
        "absent": absent,
        "sweep": sweep,
        "section": section,
    }
    return field(default=None, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train. Wrong values raise `UsageError`, all complaints at once.

    Fields that are not said are None until `resolve` fills them, once; the annotations are of the resolved values.
    """

    recipe: str = option(
        "The preset that fills what is not said: `auto` trains stably on few images, `bmsg` is BMSG-GAN's own.",
        default="auto",
        choices=tuple(RECIPES),
        sweep=Sweep(choices=tuple(RECIPES)),
        section="Common options",
    )
    resolution: int = option(
        "Side of the largest images, in pixels. Default: the images' own, at most 32 on a CPU and 256 on a GPU.",
        range=Range(4, 1024),
        power_of_two=True,
        section="Common options",
    )
    latent_size: int = option(
        "Length of the latent vector and width of the networks. Default: twice the resolution, from 64 to 512.",
        range=Range(2, 4096),
        power_of_two=True,
        sweep=Sweep(32, 256, log=True),
    )
    batch_size: int = option(
        "Images in one step, on all devices together.",
        range=Range(1, 65536),
        sweep=Sweep(4, 32, log=True),
        section="Common options",
    )
    kimg: float = option(
        "How long to train: thousands of images shown to the discriminator.",
        default=100.0,
        range=POSITIVE,
        may_change=True,
        section="Common options",
    )
    loss: str = option(
        "What the two networks play for.",
        choices=LOSSES,
        sweep=Sweep(choices=LOSSES),
    )
    g_lr: float = option(
        "Adam's learning rate for the generator.",
        range=POSITIVE,
        sweep=Sweep(0.0005, 0.01, log=True),
    )
    d_lr: float = option(
        "Adam's learning rate for the discriminator.",
        range=POSITIVE,
        sweep=Sweep(0.0005, 0.01, log=True),
    )
    beta1: float = option(
        "Adam's decay of the gradient's average.",
        range=Range(0, 0.9999),
        sweep=Sweep(0.0, 0.9),
    )
    beta2: float = option(
        "Adam's decay of the squared gradient's average.",
        range=Range(0, 0.999999),
        sweep=Sweep(0.9, 0.999),
    )
    r1_gamma: float = option(
        "Strength of the gradient penalty on real images (0: none).",
        range=NOT_NEGATIVE,
        sweep=Sweep(0.1, 100.0, log=True),
    )
    r2_gamma: float = option(
        "Strength of the gradient penalty on generated images (0: none).",
        range=NOT_NEGATIVE,
        sweep=Sweep(0.1, 100.0, log=True),
    )
    penalty_interval: int = option(
        "Apply gradient penalties every so many steps, that many times as strong. Under Adam a larger interval "
        "weakens them, so it changes the result and not only the speed.",
        range=Range(1, 1024),
        sweep=Sweep(log=True),
    )
    ema_half_life_kimg: float = option(
        "Half-life of the generator's moving average, in thousands of images.",
        range=NOT_NEGATIVE,
        sweep=Sweep(0.5, 20.0, log=True),
    )
    ema_ramp: float = option(
        "Keep that half-life under this share of the images seen so far (0: no such limit).",
        range=NOT_NEGATIVE,
        sweep=Sweep(0.0, 0.2),
    )
    stddev_group: int = option(
        "Images that share one minibatch standard deviation (0: the whole batch).",
        range=Range(0, 65536),
        sweep=Sweep(choices=(0, 4)),
    )
    equalized: bool = option(
        "Scale weights at run time (equalized learning rate).",
        default=True,
        sweep=Sweep(choices=(True, False)),
    )
    mirror: bool = option(
        "Mirror training images at random.",
        default=True,
        sweep=Sweep(choices=(True, False)),
        section="What to train",
    )
    background: str = option(
        "The colour behind transparent pixels: white, black, grey or #rrggbb.",
        default="white",
        pattern=r"white|black|grey|#[0-9a-fA-F]{6}",
        pattern_in_words="white, black, grey or #rrggbb",
        section="What to train",
    )
    precision: str = option(
        "Arithmetic of the networks. `auto`: bfloat16 where the processor is built for it, else float32.",
        choices=("auto", "float32", "bfloat16", "float64"),
    )
    seed: int = option(
        "Where every random number of the run comes from.",
        default=0,
        range=Range(0, 2**31 - 1),
        sweep=Sweep(),
        section="What to train",
    )
    sample_kimg: float = option(
        "Write sample grids every so many thousand images. Default: a twentieth of --kimg, at least 1.",
        range=POSITIVE,
        may_change=True,
        section="How long and how often",
    )
    metric_kimg: float = option(
        "Measure the sliced Wasserstein distance every so many thousand images. "
        "Default: a twentieth of --kimg, at least 1.",
        range=POSITIVE,
        may_change=True,
        section="How long and how often",
    )
    checkpoint_kimg: float = option(
        "Save the run every so many thousand images. Default: a twentieth of --kimg, from 1 to 20.",
        range=POSITIVE,
        may_change=True,
        section="How long and how often",
    )
    num_samples: int = option(
        "Images in a sample grid.", default=36, range=Range(1, 1024), may_change=True, section="How long and how often"
    )

    def __post_init__(self) -> None:
        problems = problems_of(asdict(self))
        if problems:
            raise UsageError(problems)

    @property
    def depth(self) -> int:
        """Number of scales: log2(resolution) - 1. Needs a resolved configuration."""
        return depth_of(self.resolution)

    def __repr__(self) -> str:
        return f"TrainConfig({', '.join(f'{name}={value!r}' for name, value in explicit_values(self).items())})"


def depth_of(resolution: int) -> int:
    """Scales from 4 pixels up to `resolution`: 4 → 1, 8 → 2, …, 1024 → 9."""
    return resolution.bit_length() - 2


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@cache
def field_types() -> Mapping[str, type]:
    """The type each field has once it is said or resolved."""
    return get_type_hints(TrainConfig)


def parse(texts: Mapping[str, str | bool | None]) -> TrainConfig:
    """A configuration from texts, as a command line gives them. Raises `UsageError` with every complaint at once."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, text in texts.items():
        if text is None:
            continue
        try:
            values[name] = _converted(text, field_types()[name])
        except ValueError:
            problems.append(f"{flag(name)} {text}: is not {KINDS[field_types()[name]]}.")
    problems += problems_of(values)
    if problems:
        raise UsageError(problems)
    return TrainConfig(**values)


KINDS: Mapping[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _converted(text: str | bool, wanted: type) -> Any:
    if wanted is bool and text not in (True, False):
        raise ValueError(text)  # bool("false") would be True
    return wanted(text)


def problems_of(values: Mapping[str, Any]) -> list[str]:
    """Every complaint about the values given, a sentence each; none if they can be used together."""
    problems = [
        f"{flag(spec.name)} {_written(values[spec.name])}: {complaint}"
        for spec in fields(TrainConfig)
        if values.get(spec.name) is not None
        for complaint in _complaints(spec, values[spec.name])
    ]
    if not problems:
        problems = _misfits(values)
    return problems


def _written(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)  # 0 and not 0.0, as a person writes it


def _complaints(spec: Field[Any], value: Any) -> list[str]:
    about = spec.metadata
    wanted = field_types()[spec.name]
    whole_for_a_fraction = wanted is float and type(value) is int
    if type(value) is not wanted and not whole_for_a_fraction:
        return [f"must be {wanted.__name__}, not {type(value).__name__}."]
    if about["choices"] and value not in about["choices"]:
        return [f"is not one of {', '.join(about['choices'])}.{_nearest(value, about['choices'])}"]
    if about["range"] is not None and value not in about["range"]:
        return [f"must be {about['range']}."]
    if about["power_of_two"] and value & (value - 1):
        below = 1 << (value.bit_length() - 1)
        return [f"must be a power of two; the nearest are {below} and {below * 2}."]
    if about["pattern"] and not re.fullmatch(about["pattern"], value):
        return [f"must be {about['pattern_in_words']}."]
    return []


def _nearest(value: str, choices: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(value, choices, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _misfits(values: Mapping[str, Any]) -> list[str]:
    """Complaints about values that are good alone and bad together."""
    problems = []
    resolution, latent_size = values.get("resolution"), values.get("latent_size")
    if resolution is not None and latent_size is not None and latent_size < smallest_latent_size(resolution):
        problems.append(
            f"--latent-size {latent_size}: too small for --resolution {resolution}, "
            f"which needs {smallest_latent_size(resolution)} or more."
        )
    batch_size, group = values.get("batch_size"), values.get("stddev_group")
    if batch_size is not None and group and batch_size % group:
        problems.append(f"--stddev-group {group}: must divide --batch-size {batch_size}.")
    return problems


def smallest_latent_size(resolution: int) -> int:
    """The width below which the finest level would have no channel left: max(2, 2^(depth - 4))."""
    return max(2, 1 << max(0, depth_of(resolution) - 4))


def resolve(config: TrainConfig, *, shorter_side_px: int, device: str, has_fast_bfloat16: bool) -> TrainConfig:
    """Fills what was not said, once, from the recipe, the data and the device. The result has no None.

    shorter_side_px: the median of the images' shorter sides. device: "cpu", "cuda" or "mps".
    Raises `UsageError` where what was said does not fit what was filled in.
    """
    filled: dict[str, Any] = {spec.name: spec.metadata["default"] for spec in fields(TrainConfig)}
    filled.update(RECIPES[config.recipe or filled["recipe"]])
    filled.update(explicit_values(config))

    if filled["resolution"] is None:
        largest = 32 if device == "cpu" else 256
        filled["resolution"] = max(4, min(largest, 1 << (shorter_side_px.bit_length() - 1)))
    if filled["latent_size"] is None:
        filled["latent_size"] = min(512, max(64, 2 * filled["resolution"]))
    if filled["ema_half_life_kimg"] is None:
        filled["ema_half_life_kimg"] = filled["batch_size"] * math.log(0.5) / math.log(BMSG_EMA_DECAY) / 1000
    if filled["precision"] == "auto":
        filled["precision"] = "bfloat16" if has_fast_bfloat16 else "float32"
    for name in INTERVALS:
        if filled[name] is None:
            filled[name] = interval_kimg(name, filled["kimg"])
    return TrainConfig(**filled)


def interval_kimg(name: str, kimg: float) -> float:
    """The default of an interval, in thousands of images, for a run of `kimg` thousand images."""
    return min(max(1.0, kimg / 20), INTERVALS[name])


def explicit_values(config: TrainConfig) -> dict[str, Any]:
    """What the person asked for: the fields that are not None."""
    return {name: value for name, value in asdict(config).items() if value is not None}


def changed_for_resume(stored: TrainConfig, asked: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The stored configuration with what may change taken from `asked`, and the names of fields that may not.

    An interval with the default value for the stored --kimg gets the default value for the new one.
    """
    wanted = explicit_values(asked)
    if wanted.get("precision") == "auto":
        del wanted["precision"]  # what `auto` chose the first time is kept
    refused = [
        spec.name
        for spec in fields(TrainConfig)
        if spec.name in wanted and not spec.metadata["may_change"] and wanted[spec.name] != getattr(stored, spec.name)
    ]
    allowed = {name: value for name, value in wanted.items() if name not in refused}
    kimg = allowed.get("kimg", stored.kimg)
    defaults = {
        name: interval_kimg(name, kimg)
        for name in INTERVALS
        if getattr(stored, name) == interval_kimg(name, stored.kimg)
    }
    return replace(stored, **{**defaults, **allowed}), refused
