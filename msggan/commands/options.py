"""How are TrainConfig's fields written on a command line, and how are they read back?

Click does not convert the values: an option takes its text, and `msggan.config.parse` converts all of them, so that
all wrong options are reported at once and not one at a time.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar

import click

from msggan.commands.tracking_uri import NO_TRACKING, TRACKING_FLAG, TRACKING_VARIABLES
from msggan.config import RECIPES, TrainConfig, field_types, flag, parse
from msggan.errors import UsageError

# A function that becomes a click command. Decorators hand it back as they found it, with options noted on it.
Command = TypeVar("Command", bound=Callable[..., Any])


# --- What to train: TrainConfig ---------------------------------------------------------------------------------------


def train_options(command: Command) -> Command:
    """Adds one option for each field of TrainConfig; the command gets their texts, None where nothing was said."""
    for spec in reversed(_option_fields()):  # the decorator nearest to the function comes last in the help
        command = _build_option(spec)(command)
    return command


def config_option(name: str, *, said: str = "") -> Callable[[Command], Command]:
    """The option of one field of TrainConfig, for a command that reads no others. said: its help, if not its own."""
    (spec,) = (spec for spec in _option_fields() if spec.name == name)
    return _build_option(spec, said)


def to_argv(config: TrainConfig) -> list[str]:
    """The options that say what `config` says, in the order of its fields; nothing for fields that are None."""
    words: list[str] = []
    for spec in _option_fields():
        value = getattr(config, spec.name)
        if isinstance(value, bool):
            words.append(flag(spec.name) if value else _negative_flag(spec.name))
        elif value is not None:
            words += [flag(spec.name), _text(value, field_types()[spec.name])]
    return words


def from_argv(argv: Sequence[str]) -> TrainConfig:
    """The configuration that options say: `from_argv(to_argv(config)) == config`."""

    @click.command(add_help_option=False)
    @train_options
    def command(**texts: str | bool | None) -> None:
        """Only parsed, never invoked."""

    try:
        with command.make_context("options", list(argv)) as context:
            return parse(context.params)
    except click.UsageError as error:
        raise UsageError([error.format_message()]) from None


def parse_with(problems: Sequence[str], texts: Mapping[str, str | bool | None]) -> TrainConfig:
    """The configuration in `texts`. Raises UsageError with its complaints and those found elsewhere together."""
    try:
        config = parse(texts)
    except UsageError as error:
        raise UsageError([*problems, *error.problems], error.hint) from None
    if problems:
        raise UsageError(problems)
    return config


def _option_fields() -> list[Field[Any]]:
    """The fields that have a flag: those made with `option()`."""
    return [spec for spec in fields(TrainConfig) if "help" in spec.metadata]


def _build_option(spec: Field[Any], said: str = "") -> Callable[[Command], Command]:
    if field_types()[spec.name] is bool:
        declaration = f"{flag(spec.name)}/{_negative_flag(spec.name)}"
        return click.option(declaration, spec.name, default=None, help=_help(spec, said))
    return click.option(flag(spec.name), spec.name, default=None, metavar=_metavar(spec), help=_help(spec, said))


def _negative_flag(name: str) -> str:
    return flag(f"no_{name}")


def _metavar(spec: Field[Any]) -> str:
    if spec.metadata["choices"]:
        return "|".join(spec.metadata["choices"])
    return {int: "INTEGER", float: "NUMBER"}.get(field_types()[spec.name], "TEXT")


def _help(spec: Field[Any], said: str = "") -> str:
    text = said or spec.metadata["help"]
    facts = [str(spec.metadata["range"]) if spec.metadata["range"] else "", _default_in_words(spec)]
    known = "; ".join(fact for fact in facts if fact)
    return f"{text}  [{known}]" if known else str(text)


def _default_in_words(spec: Field[Any]) -> str:
    """What a field is when nothing is said, and what the other recipes make of it."""
    if spec.metadata["default"] is not None:
        return f"default: {_value_in_words(spec.name, spec.metadata['default'])}"
    by_recipe = {name: values.get(spec.name) for name, values in RECIPES.items()}
    default = by_recipe.pop(_default_recipe())
    words = [f"default: {_value_in_words(spec.name, default)}"] if default is not None else []
    for recipe, value in by_recipe.items():
        if value not in (None, default):
            words.append(f"{recipe}: {_value_in_words(spec.name, value)}")
    return "; ".join(words)


def _default_recipe() -> str:
    (spec,) = (spec for spec in _option_fields() if spec.name == "recipe")
    return str(spec.metadata["default"])


def _value_in_words(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag(name).removeprefix("--") if value else _negative_flag(name).removeprefix("--")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(value: Any, kind: type) -> str:
    return repr(float(value)) if kind is float else str(value)


# --- Where to train: the hardware -------------------------------------------------------------------------------------

DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")
MOST_WORKERS = 256


@dataclass(frozen=True)
class Hardware:
    """The part of a machine that trains. workers: threads that decode images, 0 for a number that fits the cores."""

    device: str = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        problems = hardware_problems(self.device, str(self.workers))
        if problems:
            raise UsageError(problems)

    def to_argv(self) -> list[str]:
        """The options that say this; nothing for what is as by default."""
        words = ["--device", self.device] if self.device != "auto" else []
        return words + (["--workers", str(self.workers)] if self.workers else [])


def hardware_options(command: Command) -> Command:
    """Adds --device and --workers; the command gets their texts."""
    return device_option(workers_option(command))


def workers_option(command: Command) -> Command:
    return click.option(
        "--workers",
        default="0",
        metavar="INTEGER",
        help="Threads that decode images (0: as many as fit the cores).  [default: 0]",
    )(command)


def device_option(command: Command) -> Command:
    """Adds --device; the command gets its text."""
    return click.option(
        "--device", default="auto", metavar="|".join(DEVICES), help="What computes.  [default: auto, the fastest here]"
    )(command)


def hardware_problems(device: str, workers: str) -> list[str]:
    """Every complaint about the texts of --device and --workers, a sentence each."""
    problems = device_problems(device)
    if not re.fullmatch(r"-?[0-9]+", workers):
        problems.append(f"--workers {workers}: is not a whole number.")
    elif not 0 <= int(workers[:9]) <= MOST_WORKERS:  # nine digits tell; Python refuses to read very long numbers
        problems.append(f"--workers {workers}: must be 0 or more, at most {MOST_WORKERS}.")
    return problems


def device_problems(device: str) -> list[str]:
    if re.fullmatch(r"auto|cpu|cuda|cuda:[0-9]{1,3}|mps", device):
        return []
    return [f"--device {device}: is not one of {', '.join(DEVICES)}."]


def tracking_option(command: Command) -> Command:
    """Adds --tracking-uri; the command gets its text, None where nothing was said on the command line."""
    return click.option(
        TRACKING_FLAG,
        metavar="URI",
        help="An MLflow to tell of the run: sqlite:///PATH/mlflow.db, http://HOST:PORT, …, or none.  "
        f"[default: {NO_TRACKING}; variable {', then '.join(TRACKING_VARIABLES)}]",
    )(command)


# --- What was meant: suggestions --------------------------------------------------------------------------------------

# Names that other programs give to what is an option here.
OPTION_SYNONYMS = {
    **dict.fromkeys(
        ("--dataset", "--images", "--input", "--path", "--data-dir", "--data-root", "--dataroot"), "--data"
    ),
    **dict.fromkeys(("--epochs", "--steps", "--iterations", "--max-steps", "--duration"), "--kimg"),
    **dict.fromkeys(("--image-size", "--img-size", "--size", "--res"), "--resolution"),
    **dict.fromkeys(("--lr", "--learning-rate"), "--g-lr --d-lr"),
    **dict.fromkeys(("--z-dim", "--latent-dim", "--nz"), "--latent-size"),
    **dict.fromkeys(("--batch", "--bs"), "--batch-size"),
    **dict.fromkeys(("--gpu", "--gpus", "--cuda"), "--device"),
    **dict.fromkeys(("--output-dir", "--outdir", "--out-dir", "--logdir"), "--out --run-dir --runs-dir"),
    **dict.fromkeys(("--flip", "--hflip", "--augment"), "--mirror"),
    **dict.fromkeys(("--background", "--no-wait", "-d"), "--detach"),
    **dict.fromkeys(("-f",), "--follow --force"),
    **dict.fromkeys(("-n",), "--tail --num --name"),
    **dict.fromkeys(("-y",), "--yes"),
    "-v": "--version",
}


def nearest(word: str, names: Iterable[str]) -> list[str]:
    """At most three of `names` that are spelt like a word, the most alike first; else those that begin with it."""
    bare = {name.lstrip("-"): name for name in names}
    plain = word.lstrip("-").lower().replace("_", "-")
    if plain in bare:
        return [bare[plain]]
    found = get_close_matches(plain, bare, n=3) or [name for name in bare if name.startswith(plain)]
    return [bare[name] for name in found[:3]]


def did_you_mean(names: Sequence[str]) -> str:
    """The suggestion, as a sentence to follow another; empty where there is none."""
    return f" Did you mean {' or '.join(map(repr, names))}?" if names else ""


def options_meant(word: str, context: click.Context) -> list[str]:
    """The options of a command that `word`, which is none of them, may stand for, the likeliest first."""
    names = _option_names(context.command)
    synonyms = [name for name in OPTION_SYNONYMS.get(word, "").split() if name in names]
    if synonyms or not isinstance(context.command, click.Group):
        return synonyms or nearest(word, names)
    inside = [f"{name} {word}" for name, inner in context.command.commands.items() if word in _option_names(inner)]
    return inside[:1] or nearest(word, names)


def _option_names(command: click.Command) -> list[str]:
    options = (option for option in command.params if isinstance(option, click.Option))
    return [name for option in options for name in (*option.opts, *option.secondary_opts) if name.startswith("--")]


# --- What both programs read ------------------------------------------------------------------------------------------


def data_option(command: Command) -> Command:
    """Adds --data; the command gets its text, None where nothing was said."""
    return click.option("--data", metavar="PATH", help="The images: a folder with its subfolders, a zip or a pack.")(
        command
    )


def data_argument(command: Command) -> Command:
    """Adds --data and, instead of it, an argument; the command gets `data`, the text of either."""

    @wraps(command)
    def with_data(*positional: Any, paths: tuple[str, ...] = (), data: str | None, **others: Any) -> Any:
        return command(*positional, data=_only_path(paths, data), **others)

    return click.argument("paths", nargs=-1, metavar="[PATH]")(data_option(with_data))  # type: ignore[return-value]


def _only_path(paths: tuple[str, ...], data: str | None) -> str | None:
    """The one path that was given. Raises `UsageError` where there are more."""
    if not paths:
        return data
    if data is not None:
        raise UsageError([f"{paths[0]} and --data {data}: give the images once."])
    if len(paths) == 1:
        return paths[0]
    listed, whole = ", ".join(paths), " ".join(paths)
    if os.path.exists(whole):
        raise UsageError([f"{listed}: write a path with spaces in quotes: {shlex.quote(whole)}."])
    folders = {os.path.dirname(path) or "." for path in paths}
    if len(folders) == 1 and all(map(os.path.isfile, paths)):  # as the shell writes FOLDER/*
        raise UsageError([f"{paths[0]} and {len(paths) - 1} more: give the folder of the images: {folders.pop()}."])
    raise UsageError([f"{listed}: give one folder, zip or pack of images."])


def data_problems(data: str | None) -> list[str]:
    """Every complaint about the text of --data that can be made without opening it."""
    if not data:
        return ["--data: is missing. Name a folder, a zip or a pack of images."]
    return path_problems(data, option="--data ")


def path_problems(path: str, *, option: str = "") -> list[str]:
    """A complaint where there is nothing at a path. option: what goes before it."""
    if os.path.exists(path):  # Path.exists raises where a folder above may not be read
        return []
    return [f"{option}{path}: no such file or folder.{neighbours(path)}"]


def run_dir_option(command: Command) -> Command:
    """Adds --run-dir to a command that reads a run; the command gets its text."""
    return click.option("--run-dir", metavar="DIR", help="The run folder, or a generator.safetensors.")(command)


def run_dir_problems(run_dir: str | None) -> list[str]:
    if not run_dir:
        return ["--run-dir: is missing. Name the folder of a run."]
    return path_problems(run_dir, option="--run-dir ")


def neighbours(path: str) -> str:
    """What lies beside `path` under a similar name."""
    folder, name = os.path.split(os.path.normpath(path))
    try:
        near = get_close_matches(name, os.listdir(folder or "."), n=3)
    except (OSError, ValueError):
        return ""
    return f" Did you mean {' or '.join(os.path.join(folder, other) for other in near)}?" if near else ""
