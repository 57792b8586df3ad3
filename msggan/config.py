"""`TrainConfig`: every training option once, with its help and range, and the recipes that set the others."""

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

# The decay per step of BMSG-GAN's generator average (its train.py), whatever the batch size.
BMSG_EMA_DECAY = 0.999

RECOMMENDED_IMAGES = 200  # with fewer, training works and its results are poor

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # What trained stably on a thousand photographs at the lowest cost; docs/recipes.md has the experiments.
    # Its batch is that of `batch_for_device`, and its learning rates and beta2 are those of `adam_for_batch`.
    "auto": {
        "loss": "relativistic-logistic",
        "join": "simple",
        "beta1": 0.0,
        "r1_gamma": 10.0,
        "r2_gamma": 10.0,
        "penalty_interval": 4,
        "ema_half_life_kimg": 5.0,
        "ema_ramp": 0.05,
        "stddev_group": 0,
        "precision": "auto",
    },
    # R3GAN's loss, penalties and schedules; docs/recipes.md has how they were scaled. Batch and rates are as `auto`'s.
    "r3": {
        "loss": "relativistic-logistic",
        "lr_final": 0.25,
        "beta1": 0.0,
        "beta2": 0.9,
        "beta2_final": 0.99,
        "r1_gamma": 10.0,
        "r2_gamma": 10.0,
        "gamma_final": 0.1,
        "penalty_interval": 1,
        "ema_half_life_kimg": 0.0,
        "ema_half_life_final_kimg": 5.0,
        "ema_ramp": 0.0,
        "stddev_group": 0,
        "precision": "auto",
    },
    # BMSG-GAN's own procedure exactly, float32 included.
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


NO_INIT = "none"
RESAMPLINGS = ("nearest", "filtered")
JOINS = ("lin-cat", "simple")
AUGMENTATIONS = ("none", "fixed", "adaptive")
FIXED_STRENGTH = 0.3  # as R3GAN at 64 and 256 pixels
LARGEST_STRENGTH = 0.8  # with a higher probability, the generator may learn the transformations (ADA, section 2.2)

DECODING = ("resolution", "background", "fit")  # the fields that determine how images are decoded

# Intervals whose default is a twentieth of --kimg, at least 1, and their largest default in thousands of images.
INTERVALS: Mapping[str, float] = {"sample_kimg": math.inf, "metric_kimg": math.inf, "checkpoint_kimg": 20.0}


class Range(NamedTuple):
    """Numbers from `low` to `high`, inclusive; `low` itself only if `low_included`."""

    low: float
    high: float = math.inf
    low_included: bool = True

    def __contains__(self, value: object) -> bool:
        # NaN fails every comparison. math.isfinite would not do: it overflows on an int of 400 digits.
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

    low, high: its default range, None if it has none. log: on a logarithmic scale; integers are then powers of two.
    choices: its default values, for a field that is searched value by value.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()


POSITIVE = Range(0, low_included=False)
NOT_NEGATIVE = Range(0)


def option(
    help: str,  # noqa: A002 - click's own name
    *,
    default: Any = None,
    choices: tuple[str, ...] = (),
    range: Range | None = None,  # noqa: A002
    power_of_two: bool = False,
    pattern: str = "",
    pattern_as_text: str = "",
    may_change: bool = False,
    absent: Any = None,
    sweep: Sweep | None = None,
    section: str = "Quality",
) -> Any:
    """A field that is also a command-line option, None while it is not set. The arguments become its metadata.

    default: what `resolve` uses if neither the user nor the recipe sets the field. may_change: whether a resumed run
    may be given another value. absent: the behaviour of versions before the field, for a stored configuration without
    it; None if every version has the field. sweep: None for a field that cannot be swept, because it determines how
    long, on what or how exactly a run is measured, so that its values could not be compared. section: the one of the
    help, see `msggan.commands.options.SECTIONS`.
    """
    return field(default=None, metadata=dict(locals()))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train. Invalid values raise `UsageError`, all problems at once.

    Fields that are not set are None until `resolve` fills them, once; the annotations are those of resolved values.
    """

    recipe: str = option(
        "Preset for the options that are not set: `auto` trains stably on few images, `r3` has R3GAN's loss and "
        "schedules, `bmsg` is BMSG-GAN's own.",
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
        "Images per step, on all devices together. Recipes `auto` and `r3`: 4 to 32, by device, resolution and number "
        "of images.",
        range=Range(1, 65536),
        sweep=Sweep(4, 32, log=True),
        section="Common options",
    )
    micro_batch: int = option(
        "Compute each batch in parts of at most N images, to need less memory. The numbers stay those of the whole "
        "batch (0: the whole batch at once).",
        default=0,
        range=Range(0, 65536),
        may_change=True,
        absent=0,
        section="How long and how often",
    )
    kimg: float = option(
        "Length of training, in thousands of images shown to the discriminator.",
        default=100.0,
        range=POSITIVE,
        may_change=True,
        section="Common options",
    )
    loss: str = option("Adversarial loss.", choices=LOSSES, sweep=Sweep(choices=LOSSES))
    g_lr: float = option(
        "Generator learning rate (Adam). Recipes `auto` and `r3`: 0.002 × √(batch size / 4).",
        range=POSITIVE,
        sweep=Sweep(0.0005, 0.01, log=True),
    )
    d_lr: float = option(
        "Discriminator learning rate (Adam). Recipes `auto` and `r3`: 0.002 × √(batch size / 4).",
        range=POSITIVE,
        sweep=Sweep(0.0005, 0.01, log=True),
    )
    beta1: float = option("Adam's beta1.", range=Range(0, 0.9999), sweep=Sweep(0.0, 0.9))
    beta2: float = option(
        "Adam's beta2. Recipe `auto`: 0.99^(batch size / 4).", range=Range(0, 0.999999), sweep=Sweep(0.9, 0.999)
    )
    r1_gamma: float = option(
        "Weight of the gradient penalty on real images (0: none).",
        range=NOT_NEGATIVE,
        sweep=Sweep(0.1, 100.0, log=True),
    )
    r2_gamma: float = option(
        "Weight of the gradient penalty on generated images (0: none).",
        range=NOT_NEGATIVE,
        sweep=Sweep(0.1, 100.0, log=True),
    )
    penalty_interval: int = option(
        "Apply gradient penalties every N steps, multiplied by N. With Adam a larger interval weakens them, so it "
        "changes the result, not only the speed.",
        range=Range(1, 1024),
        sweep=Sweep(log=True),
    )
    ema_half_life_kimg: float = option(
        "Half-life of the generator's moving average (EMA), in thousands of images.",
        range=NOT_NEGATIVE,
        sweep=Sweep(0.5, 20.0, log=True),
    )
    ema_ramp: float = option(
        "EMA ramp-up: cap the half-life at this fraction of the images seen (0: no cap).",
        range=NOT_NEGATIVE,
        sweep=Sweep(0.0, 0.2),
    )
    schedule_kimg: float = option(
        "Length of the cosines from learning rates, gammas, beta2 and EMA half-life to their final values, in "
        "thousands of images. Default: --kimg when the run starts.",
        range=POSITIVE,
        absent=100.0,
        sweep=Sweep(5.0, 100.0, log=True),
    )
    warm_up_kimg: float = option(
        "Increase the learning rates linearly from 0 during the first N thousand images (0: no warm-up).",
        default=0.0,
        range=NOT_NEGATIVE,
        absent=0.0,
        sweep=Sweep(0.0, 5.0),
    )
    lr_final: float = option(
        "Final learning rates, as a factor of --g-lr and --d-lr (1: constant).",
        default=1.0,
        range=POSITIVE,
        absent=1.0,
        sweep=Sweep(0.05, 1.0, log=True),
    )
    gamma_final: float = option(
        "Final gradient penalties, as a factor of --r1-gamma and --r2-gamma (1: constant).",
        default=1.0,
        range=NOT_NEGATIVE,
        absent=1.0,
        sweep=Sweep(0.05, 1.0, log=True),
    )
    beta2_final: float = option(
        "Final beta2 (0: constant). Values other than --beta2 need steps without CUDA graphs.",
        default=0.0,
        range=Range(0, 0.999999),
        absent=0.0,
        sweep=Sweep(0.9, 0.999),
    )
    ema_half_life_final_kimg: float = option(
        "Final half-life of the EMA, in thousands of images (0: constant).",
        default=0.0,
        range=NOT_NEGATIVE,
        absent=0.0,
        sweep=Sweep(0.5, 20.0, log=True),
    )
    stddev_group: int = option(
        "Group size of the minibatch standard deviation (0: the whole batch).",
        range=Range(0, 65536),
        sweep=Sweep(choices=(0, 4)),
    )
    equalized: bool = option(
        "Scale weights at run time (equalized learning rate).", default=True, sweep=Sweep(choices=(True, False))
    )
    resampling: str = option(
        "How the networks resize features. `nearest`: nearest neighbour up, average pooling down. `filtered`: with a "
        "low-pass filter, against weaves of two pixels.",
        default="nearest",
        choices=RESAMPLINGS,
        absent="nearest",
        sweep=Sweep(choices=RESAMPLINGS),
    )
    join: str = option(
        "What the discriminator joins to the features of a finer scale. `lin-cat`: features of the image, as BMSG-GAN. "
        "`simple`: the image itself, next to twice as many features.",
        default="lin-cat",
        choices=JOINS,
        absent="lin-cat",
        sweep=Sweep(choices=JOINS),
    )
    augment: str = option(
        "Transform what the discriminator sees at random, real and generated images alike, so that it cannot learn few "
        "images by heart. `fixed`: with the probability of --augment-strength. `adaptive`: with one that follows how "
        "much better it knows training images than held-out ones.",
        default="none",
        choices=AUGMENTATIONS,
        absent="none",
        sweep=Sweep(choices=AUGMENTATIONS),
    )
    augment_strength: float = option(
        "Probability of each transformation of --augment; of `adaptive`, the first. Default: "
        f"{FIXED_STRENGTH} for `fixed`, 0 for `adaptive`.",
        range=Range(0, LARGEST_STRENGTH),
        absent=0.0,
        sweep=Sweep(0.1, LARGEST_STRENGTH),
    )
    init: str = option(
        "Start from the weights of another run, as far as they fit: its name or folder, one of its .safetensors files, "
        "or a .pth file of BMSG-GAN. Options of the networks are then those of that run.",
        default=NO_INIT,
        pattern=r"\S.*",
        pattern_as_text="the name of a run or the path of a file",
        absent=NO_INIT,
        section="What to train",
    )
    mirror: bool = option(
        "Mirror training images at random.", default=True, sweep=Sweep(choices=(True, False)), section="What to train"
    )
    labels: str = option(
        "Classes of images. `folders`: each folder in --data, with all that it contains, is a class; `sample --label` "
        "generates images of one.",
        default="none",
        choices=("none", "folders"),
        absent="none",
        section="What to train",
    )
    background: str = option(
        "Colour behind transparent pixels and of the bars of --fit pad: white, black, grey or #rrggbb.",
        default="white",
        pattern=r"white|black|grey|#[0-9a-fA-F]{6}",
        pattern_as_text="white, black, grey or #rrggbb",
        section="What to train",
    )
    fit: str = option(
        "How images become squares. `crop`: the centre square. `pad`: the whole image, between bars of --background.",
        default="crop",
        choices=("crop", "pad"),
        absent="crop",
        section="What to train",
    )
    precision: str = option(
        "Floating-point format of the networks. `auto`: bfloat16 if the processor has units for it, else float32.",
        choices=("auto", "float32", "bfloat16", "float64"),
    )
    seed: int = option(
        "Seed of every random number in the run.",
        default=0,
        range=Range(0, 2**31 - 1),
        sweep=Sweep(),
        section="What to train",
    )
    sample_kimg: float = option(
        "Write sample grids every N thousand images. Default: a twentieth of --kimg, at least 1.",
        range=POSITIVE,
        may_change=True,
        section="How long and how often",
    )
    metric_kimg: float = option(
        "Compare generated images with held-out ones every N thousand images. Default: a twentieth of --kimg, at least "
        "1.",
        range=POSITIVE,
        may_change=True,
        section="How long and how often",
    )
    checkpoint_kimg: float = option(
        "Save a checkpoint every N thousand images. Default: a twentieth of --kimg, from 1 to 20.",
        range=POSITIVE,
        may_change=True,
        section="How long and how often",
    )
    snapshot_kimg: float = option(
        "Keep the generator of every N thousand images, for `sample --at` (0: none).",
        default=0.0,
        range=NOT_NEGATIVE,
        may_change=True,
        absent=0.0,
        section="How long and how often",
    )
    best_by: str = option(
        "The measure that chooses the weights of --best. `classifier`: how well a linear classifier tells samples from "
        "real images.",
        default="classifier",
        choices=("classifier", "kernel-distance", "swd"),
        may_change=True,
        absent="swd",
        section="How long and how often",
    )
    num_samples: int = option(
        "Number of images in a sample grid.",
        default=36,
        range=Range(1, 1024),
        may_change=True,
        section="How long and how often",
    )

    def __post_init__(self) -> None:
        if problems := problems_of(asdict(self)):
            raise UsageError(problems)

    @property
    def depth(self) -> int:
        """Number of scales: log2(resolution) - 1. Needs a resolved configuration."""
        return depth_of(self.resolution)

    @property
    def has_init(self) -> bool:
        """Whether training starts from the weights of --init; False if that is not set."""
        return self.init not in (None, NO_INIT)

    @property
    def part(self) -> int:
        """The images that are computed at once. Needs a resolved configuration."""
        return min(self.micro_batch or self.batch_size, self.batch_size)

    def __repr__(self) -> str:
        return f"TrainConfig({', '.join(f'{name}={value!r}' for name, value in explicit_values(self).items())})"


def depth_of(resolution: int) -> int:
    """Scales from 4 pixels up to `resolution`: 4 → 1, 8 → 2, …, 1024 → 9."""
    return resolution.bit_length() - 2


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@cache
def field_types() -> Mapping[str, type]:
    """The type of each field once it is set or resolved."""
    return get_type_hints(TrainConfig)


def parse(texts: Mapping[str, str | bool | None]) -> TrainConfig:
    """A configuration from the texts of a command line. Raises `UsageError` with all problems at once."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, text in texts.items():
        if text is None:
            continue
        try:
            values[name] = _converted(text, field_types()[name])
        except ValueError:
            problems.append(f"{flag(name)} {text}: is not {KINDS[field_types()[name]]}.")
    if problems := problems + problems_of(values):
        raise UsageError(problems)
    return TrainConfig(**values)


KINDS: Mapping[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _converted(text: str | bool, kind: type) -> Any:
    if kind is bool and text not in (True, False):
        raise ValueError(text)  # bool("false") would be True
    return kind(text)


def problems_of(values: Mapping[str, Any]) -> list[str]:
    """All problems with these values, one sentence each; empty if they can be used together."""
    return field_problems(values) or _cross_field_errors(values)


def field_problems(values: Mapping[str, Any]) -> list[str]:
    """The problems that each of these values has alone, one sentence each."""
    return [
        f"{flag(spec.name)} {f'{value:.12g}' if isinstance(value, float) else value}: {problem}"  # 0, not 0.0
        for spec in fields(TrainConfig)
        if (value := values.get(spec.name)) is not None
        for problem in _field_problems(spec, value)
    ]


def _field_problems(spec: Field[Any], value: Any) -> list[str]:
    about = spec.metadata
    expected = field_types()[spec.name]
    is_int_for_float = expected is float and type(value) is int
    if type(value) is not expected and not is_int_for_float:
        return [f"must be {expected.__name__}, not {type(value).__name__}."]
    if about["choices"] and value not in about["choices"]:
        near = difflib.get_close_matches(value, about["choices"], n=1)
        return [f"must be one of {', '.join(about['choices'])}.{f' Did you mean {near[0]}?' if near else ''}"]
    if about["range"] is not None and value not in about["range"]:
        return [f"must be {about['range']}."]
    if about["power_of_two"] and value & (value - 1):
        below = 1 << (value.bit_length() - 1)
        return [f"must be a power of two; the nearest are {below} and {below * 2}."]
    if about["pattern"] and not re.fullmatch(about["pattern"], value):
        return [f"must be {about['pattern_as_text']}."]
    return []


def _cross_field_errors(values: Mapping[str, Any]) -> list[str]:
    """Problems with values that are valid alone and invalid together."""
    problems = []
    resolution, latent_size = values.get("resolution"), values.get("latent_size")
    if resolution is not None and latent_size is not None and latent_size < smallest_latent_size(resolution):
        problems.append(
            f"--latent-size {latent_size}: too small for --resolution {resolution}, "
            f"which needs {smallest_latent_size(resolution)} or more."
        )
    recipe = RECIPES[values.get("recipe") or "auto"]
    augment, strength = values.get("augment") or recipe.get("augment", "none"), values.get("augment_strength")
    if augment == "none" and strength:
        problems.append(f"--augment-strength {strength:g}: needs --augment fixed or adaptive.")
    batch_size, group = values.get("batch_size"), values.get("stddev_group")
    if batch_size is not None and group and batch_size % group:
        problems.append(f"--stddev-group {group}: must divide --batch-size {batch_size}.")
    return problems


def smallest_latent_size(resolution: int) -> int:
    """The width below which the finest level would have no channel left: max(2, 2^(depth - 4))."""
    return max(2, 1 << max(0, depth_of(resolution) - 4))


def resolve(
    config: TrainConfig,
    *,
    shorter_side_px: int,
    device: str,
    has_fast_bfloat16: bool,
    images: int = sys.maxsize,
) -> TrainConfig:
    """Fills the fields that are not set, once, from the recipe, the data and the device. The result has no None.

    shorter_side_px: the median of the images' shorter sides. device: "cpu", "cuda" or "mps". images: their number,
    where it is known.
    Raises `UsageError` if the values set do not fit those filled in.
    """
    given = explicit_values(config)
    defaults = {spec.name: spec.metadata["default"] for spec in fields(TrainConfig)}
    filled: dict[str, Any] = {**defaults, **RECIPES[config.recipe or defaults["recipe"]], **given}

    if filled["resolution"] is None:
        largest = 32 if device == "cpu" else 256
        filled["resolution"] = max(4, min(largest, 1 << (shorter_side_px.bit_length() - 1)))
    if filled["recipe"] in ("auto", "r3"):
        if "batch_size" not in given:
            filled["batch_size"] = batch_for_device(device, filled["resolution"], images)
        filled = {**filled, **adam_for_batch(filled["batch_size"]), **RECIPES[filled["recipe"]], **given}
    if filled["latent_size"] is None:
        filled["latent_size"] = min(512, max(64, 2 * filled["resolution"]))
    if filled["ema_half_life_kimg"] is None:
        filled["ema_half_life_kimg"] = filled["batch_size"] * math.log(0.5) / math.log(BMSG_EMA_DECAY) / 1000
    if filled["augment_strength"] is None:
        filled["augment_strength"] = FIXED_STRENGTH if filled["augment"] == "fixed" else 0.0
    if filled["schedule_kimg"] is None:
        filled["schedule_kimg"] = filled["kimg"]
    if filled["precision"] == "auto":
        filled["precision"] = "bfloat16" if has_fast_bfloat16 else "float32"
    for name in INTERVALS:
        if filled[name] is None:
            filled[name] = interval_kimg(name, filled["kimg"])
    return TrainConfig(**filled)


def batch_for_device(device: str, resolution: int, images: int) -> int:
    """The batch of `auto` and `r3`: as large as makes a step faster per image, and at most an eighth of the images."""
    largest = min(16, 1024 // resolution) if device == "cpu" else max(16, min(32, 4096 // resolution))
    return max(4, min(largest, 1 << max(0, (images // 8).bit_length() - 1)))


def explain(asked: TrainConfig, config: TrainConfig, *, device: str, images: int) -> str:
    """What recipe `auto` or `r3` has chosen for this device and these images, and why; empty if nothing.

    asked: the configuration before `resolve`; config: after it; device and images: as for `resolve`.
    """
    side, batch = f"{config.resolution} px", config.batch_size
    is_eighth = batch < batch_for_device(device, config.resolution, sys.maxsize)
    chosen = {
        "batch_size": f"batches of {batch} ({f'an eighth of {images} images' if is_eighth else f'{device}, {side}'})",
        "d_lr": f"learning rate {config.d_lr:.2g} (for such batches)",
        "latent_size": f"latent size {config.latent_size} (for {side})",
    }
    given = explicit_values(asked)
    parts = [text for name, text in chosen.items() if name not in given]
    return f"Recipe {config.recipe}: {', '.join(parts)}." if parts and config.recipe != "bmsg" else ""


def too_few(images: int, batch_size: int) -> tuple[str, str] | None:
    """What is wrong with so few images to train on, and what to do; None if there are enough to begin."""
    if images >= batch_size:
        return None
    hint = f"Add images of the same kind, {RECOMMENDED_IMAGES} or more."
    if images < 2:
        return "1 image is not enough to train on.", hint
    smaller = f"To try it anyway, use --batch-size {1 << (images.bit_length() - 1)}."
    return f"{images} images to train on are fewer than --batch-size {batch_size}.", f"{hint} {smaller}"


def adam_for_batch(batch_size: int) -> dict[str, float]:
    """`auto`'s learning rates and beta2 for a batch of this size. `r3` takes the rates.

    The rates grow with the square root of the batch (Malladi et al. 2022, arXiv:2205.10287), and the second moment
    forgets at the same rate per image. γ and the EMA, whose half-life is in images, are the same for all.
    Measured for batches of 4, 8, 16 and 32: docs/recipes.md.
    """
    rate = 0.002 * math.sqrt(batch_size / 4)
    return {"g_lr": rate, "d_lr": rate, "beta2": 0.99 ** (batch_size / 4)}


def interval_kimg(name: str, kimg: float) -> float:
    """The default of an interval, in thousands of images, for a run of `kimg` thousand images."""
    return min(max(1.0, kimg / 20), INTERVALS[name])


def split_init(init: str) -> tuple[str, str]:
    """What --init names, and the SHA-256 of its file, which a run that has started records: NAME@sha256:DIGEST."""
    name, _, digest = init.partition("@sha256:")
    return name, digest


def explicit_values(config: TrainConfig) -> dict[str, Any]:
    """The fields that are set: those that are not None."""
    return {name: value for name, value in asdict(config).items() if value is not None}


def decoding_options(config: TrainConfig) -> dict[str, Any]:
    """The fields of `DECODING`, as options of a dataset."""
    return {name: getattr(config, name) for name in DECODING}


def changed_for_resume(stored: TrainConfig, requested: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The stored configuration with the requested values that may change, and the names of changed fields that may not.

    An interval with the default value for the stored --kimg gets the default value for the new one.
    """
    given = explicit_values(requested)
    if given.get("precision") == "auto":
        del given["precision"]  # the first choice of `auto` is kept
    if "init" in given and given["init"] in (stored.init, split_init(stored.init)[0]):
        del given["init"]  # with the file that the run started from
    refused = [
        spec.name
        for spec in fields(TrainConfig)
        if spec.name in given and not spec.metadata["may_change"] and given[spec.name] != getattr(stored, spec.name)
    ]
    allowed = {name: value for name, value in given.items() if name not in refused}
    kimg = allowed.get("kimg", stored.kimg)
    defaults = {
        name: interval_kimg(name, kimg)
        for name in INTERVALS
        if getattr(stored, name) == interval_kimg(name, stored.kimg)
    }
    return replace(stored, **{**defaults, **allowed}), refused
