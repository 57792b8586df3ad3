"""The options that every command shares: how they are declared, checked all at once, and listed in sections of a help.

Also TrainConfig and the hardware as options, in both directions, and suggestions for options that do not exist.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar

import click

from msggan.commands.program import NO_TRACKING, OUTPUT_VARIABLE, OUTPUTS, TRACKING_FLAG, TRACKING_VARIABLES
from msggan.config import KINDS, RECIPES, Range, TrainConfig, field_types, flag, parse
from msggan.errors import UsageError

# A function that becomes a click command. Decorators return it as it was, with options attached.
Command = TypeVar("Command", bound=Callable[..., Any])

# The sections of a help, in order; options without a section come last.
COMMON, SWEEP, WHAT, HOW_LONG, QUALITY, WHERE, AZURE = SECTIONS = (
    "Common options",
    "Sweep",
    "What to train",
    "How long and how often",
    "Quality",
    "Where",
    "Azure",
)
PROBLEMS = "msggan.problems"  # in a context's `meta`: the complaints about its options
HELP_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


# --- Commands and options that report all complaints at once ----------------------------------------------------------


class _Collected(click.Parameter):
    """A parameter whose complaint is collected: click itself stops at the first wrong option."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().process_value(ctx, value)
        except click.BadParameter as error:
            name = f"{max(self.opts, key=len)} " if isinstance(self, click.Option) else ""
            problems = [f"{name}{value}: {error.message}"]
        except UsageError as error:
            problems = list(error.problems)
        ctx.meta.setdefault(PROBLEMS, []).extend(problems)
        return self.default if isinstance(self.default, str | int | float) else None


class Option(_Collected, click.Option):
    """An option, listed in the section `section` of the help."""

    def __init__(self, *names: Any, section: str = "", **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.section = section
        if isinstance(self.type, OneOf) and self.metavar is None:
            self.metavar = "|".join(self.type.choices)


class Argument(_Collected, click.Argument):
    """An argument; its complaints are collected too."""


class CollectingCommand(click.Command):
    """A command that reports all wrong options at once, in one UsageError, and lists its options in sections.

    A function with a parameter `problems` gets the list of complaints instead, to report its own with them; the wrong
    options then have their defaults.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        problems = ctx.meta.pop(PROBLEMS, [])
        if self.callback is not None and "problems" in inspect.signature(self.callback).parameters:
            ctx.params["problems"] = problems
        else:
            refuse(problems)
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, options in options_by_section(self.get_params(ctx)).items():
            records = [record for option in options if (record := option.get_help_record(ctx))]
            if records:
                with formatter.section(section):
                    formatter.write_dl(records)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)


def options_by_section(params: Iterable[click.Parameter]) -> dict[str, list[click.Option]]:
    """The options by section, in the order of `SECTIONS`; those without a section are the last, `Options`."""
    found: dict[str, list[click.Option]] = {section: [] for section in (*SECTIONS, "")}
    for param in params:
        if isinstance(param, click.Option):
            found[getattr(param, "section", "")].append(param)
    rest = found.pop("")
    sections = {section: options for section, options in found.items() if options}
    return {**sections, ("Other options" if sections else "Options"): rest}


def option(*names: str, **attributes: Any) -> Callable[[Command], Command]:
    """click.option, with the `section` of the help that it belongs to."""
    return click.option(*names, cls=Option, **attributes)


def argument(*names: str, **attributes: Any) -> Callable[[Command], Command]:
    return click.argument(*names, cls=Argument, **attributes)


def command(**attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of `python -m msggan.VERB`."""
    return click.command(cls=CollectingCommand, context_settings=HELP_SETTINGS, **attributes)


def refuse(problems: Sequence[str]) -> None:
    """Raises UsageError if there are problems."""
    if problems:
        raise UsageError(problems)


@contextmanager
def collecting(problems: list[str]) -> Iterator[None]:
    """Within, a UsageError is not raised; its problems are added to `problems`, to be reported with others."""
    try:
        yield
    except UsageError as error:
        problems += error.problems


def checked(problems_of: Callable[[Any], list[str]]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """An option's callback that reports the problems of its value."""

    def callback(context: click.Context, param: click.Parameter, value: Any) -> Any:
        refuse(problems_of(value))
        return value

    return callback


def required(name: str, hint: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """The callback of an option that must be given. hint: what to type."""
    return checked(lambda value: [] if value else [f"{name} is required. {hint}"])


class Number(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """A number in a range, with the messages of TrainConfig. click's FloatRange accepts not-a-number."""

    def __init__(self, kind: type, allowed: Range) -> None:
        self.kind, self.allowed = kind, allowed
        self.name = "integer" if kind is int else "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = self.kind(value)
        except ValueError:
            self.fail(f"is not {KINDS[self.kind]}.")
        if number not in self.allowed:
            self.fail(f"must be {self.allowed}.")
        return number


class OneOf(click.ParamType):  # type: ignore[type-arg]
    """One of some texts. pattern: what is accepted, where the choices are only examples."""

    name = "text"

    def __init__(self, *choices: str, pattern: str = "") -> None:
        self.choices = choices
        self.pattern = pattern or "|".join(map(re.escape, choices))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(self.pattern, value):
            self.fail(must_be_one_of(value, self.choices))
        return str(value)


# --- Options that are fields of a dataclass ---------------------------------------------------------------------------


def option_field(default: Any, help: str, /, *, flag: str = "", **attributes: Any) -> Any:  # noqa: A002 - click's own word
    """A field of a dataclass that is also an option, with its default. attributes: of `option`.

    flag: if it is not the field's name.
    """
    if default not in (None, False) and "[default: " not in help:
        help = f"{help}  [default: {default}]"  # noqa: A001
    kind = {"is_flag": True} if default is False else {"default": default}
    return field(default=default, metadata={"flag": flag, "option": {**kind, "help": help, **attributes}})


def options_of(kind: type[Any]) -> Callable[[Command], Command]:
    """Adds the options of a dataclass, and of the dataclasses in it; the command gets what `pop_fields` takes."""

    def decorate(command: Command) -> Command:
        for spec in reversed(fields(kind)):  # the decorator nearest to the function comes last in the help
            if inner := _inner(spec):
                command = options_of(inner)(command)
            elif "option" in spec.metadata:
                command = option(_flag_of(spec), **spec.metadata["option"])(command)
        return command

    return decorate


def pop_fields(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values of the fields of a dataclass that are options. They are removed from `values`, the options' values."""
    found: dict[str, Any] = {}
    for spec in fields(kind):
        if inner := _inner(spec):
            found[spec.name] = inner(**pop_fields(inner, values))
        elif "option" in spec.metadata:
            found[spec.name] = values.pop(_flag_of(spec).removeprefix("--").replace("-", "_"))
    return found


def argv_of(options: Any, *, left_out: Collection[str] = ()) -> list[str]:
    """The options that set the fields of a dataclass; nothing for defaults. left_out: fields that are no options."""
    args: list[str] = []
    for spec in fields(options):
        value = getattr(options, spec.name)
        if spec.name in left_out or value == spec.default:
            continue
        if _inner(spec):
            args += argv_of(value, left_out=left_out)
        elif value is True:
            args.append(_flag_of(spec))
        elif isinstance(value, tuple):
            args += [text for each in value for text in (_flag_of(spec), each)]
        else:
            args += [_flag_of(spec), spec.metadata.get("as_text", _as_text)(value)]
    return args


def _as_text(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _inner(spec: Field[Any]) -> Any:
    """The class of a field that is a dataclass itself, else None."""
    return spec.default_factory if is_dataclass(spec.default_factory) else None


def _flag_of(spec: Field[Any]) -> str:
    return spec.metadata.get("flag") or flag(spec.name)


# --- What to train: TrainConfig ---------------------------------------------------------------------------------------


def train_options(command: Command) -> Command:
    """Adds one option per field of TrainConfig; the command gets their texts, None where an option is not set."""
    for spec in reversed(_option_fields()):  # the decorator nearest to the function comes last in the help
        command = _build_option(spec)(command)
    return command


def config_option(name: str, *, help: str = "") -> Callable[[Command], Command]:  # noqa: A002 - click's own word for it
    """The option of one field of TrainConfig, for a command that reads no others. help: instead of the field's own."""
    (spec,) = (spec for spec in _option_fields() if spec.name == name)
    return _build_option(spec, help, section="")


def to_argv(config: TrainConfig) -> list[str]:
    """The options that set what `config` sets, in the order of its fields; nothing for fields that are None."""
    args: list[str] = []
    for spec in _option_fields():
        value = getattr(config, spec.name)
        if isinstance(value, bool):
            args.append(flag(spec.name) if value else _negative_flag(spec.name))
        elif value is not None:
            args += [flag(spec.name), repr(float(value)) if field_types()[spec.name] is float else str(value)]
    return args


def from_argv(argv: Sequence[str]) -> TrainConfig:
    """The configuration that options set: `from_argv(to_argv(config)) == config`."""

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
    refuse(problems)
    return config


def _option_fields() -> list[Field[Any]]:
    """The fields that have a flag: those made with `option()`."""
    return [spec for spec in fields(TrainConfig) if "help" in spec.metadata]


def _build_option(spec: Field[Any], text: str = "", *, section: str | None = None) -> Callable[[Command], Command]:
    about = {
        "default": None,
        "help": _help(spec, text),
        "section": spec.metadata["section"] if section is None else section,
    }
    if field_types()[spec.name] is bool:
        return option(f"{flag(spec.name)}/{_negative_flag(spec.name)}", spec.name, **about)
    metavar = {int: "INTEGER", float: "NUMBER"}.get(field_types()[spec.name], "TEXT")
    return option(flag(spec.name), spec.name, metavar="|".join(spec.metadata["choices"]) or metavar, **about)


def _negative_flag(name: str) -> str:
    return flag(f"no_{name}")


def _help(spec: Field[Any], text: str) -> str:
    facts = [str(spec.metadata["range"] or ""), _format_default(spec)]
    known = "; ".join(fact for fact in facts if fact)
    text = text or spec.metadata["help"]
    return f"{text}  [{known}]" if known else text


def _format_default(spec: Field[Any]) -> str:
    """The default of a field, and those of recipes that have another."""
    (default_recipe,) = (field.metadata["default"] for field in _option_fields() if field.name == "recipe")
    defaults = {recipe: values.get(spec.name, spec.metadata["default"]) for recipe, values in RECIPES.items()}
    default = defaults.pop(default_recipe)
    named = {"default": default, **{recipe: value for recipe, value in defaults.items() if value != default}}
    return "; ".join(f"{name}: {_format_value(spec.name, value)}" for name, value in named.items() if value is not None)


def _format_value(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return (flag(name) if value else _negative_flag(name)).removeprefix("--")
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- Where to train: the hardware -------------------------------------------------------------------------------------

DEVICE = OneOf("auto", "cpu", "cuda", "cuda:N", "mps", pattern="auto|cpu|cuda|cuda:[0-9]{1,3}|mps")
DEVICE_HELP = "The device to use.  [default: auto: the fastest available]"
WORKERS = Number(int, Range(0, 256))
WORKERS_HELP = "Threads that decode images (0: chosen by the number of cores).  [default: 0]"


@dataclass(frozen=True)
class Hardware:
    """The part of a machine that trains. workers: threads that decode images, 0 for a number that fits the cores."""

    device: str = option_field("auto", DEVICE_HELP, type=DEVICE, section=COMMON)
    workers: int = option_field(0, WORKERS_HELP, type=WORKERS, section=WHERE)

    def __post_init__(self) -> None:
        problems = []
        for name, kind, value in (("--device", DEVICE, self.device), ("--workers", WORKERS, self.workers)):
            try:
                kind.convert(value, None, None)
            except click.BadParameter as error:
                problems.append(f"{name} {value}: {error.message}")
        refuse(problems)


def tracking_option(command: Command) -> Command:
    """Adds --tracking-uri; None where it is not on the command line."""
    text = (
        "The MLflow server or database to log to: sqlite:///PATH/mlflow.db, http://HOST:PORT, …, or none.  "
        f"[default: {NO_TRACKING}; variable {', then '.join(TRACKING_VARIABLES)}]"
    )
    return option(TRACKING_FLAG, metavar="URI", help=text, section=WHERE)(command)


# --- Paths and output -------------------------------------------------------------------------------------------------


def output_option(command: Command) -> Command:
    """Adds -o/--output."""
    text = f"Print text or one JSON object to stdout.  [default: text; variable {OUTPUT_VARIABLE}]"
    return option("-o", "--output", default=OUTPUTS[0], type=OneOf(*OUTPUTS), envvar=OUTPUT_VARIABLE, help=text)(
        command
    )


PACK_SUFFIX = ".safetensors"
DATA_HELP = "The images: a folder with its subfolders, a zip or a pack."


def data_option(command: Command) -> Command:
    """Adds --data, which must exist."""
    return option("--data", metavar="PATH", help=DATA_HELP, section=COMMON, callback=checked(data_problems))(command)


def data_argument(command: Command) -> Command:
    """Adds --data and, instead of it, an argument; the command gets `data`, the text of either, unchecked."""

    @wraps(command)
    def with_data(*positional: Any, paths: tuple[str, ...] = (), data: str | None, **others: Any) -> Any:
        return command(*positional, data=_only_path(paths, data), **others)

    data_option = option("--data", metavar="PATH", help=DATA_HELP, section=COMMON)
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
    if len(folders) == 1 and all(map(os.path.isfile, paths)):  # as the shell expands FOLDER/*
        raise UsageError([f"{paths[0]} and {len(paths) - 1} more: give the folder of the images: {folders.pop()}."])
    raise UsageError([f"{listed}: give one folder, zip or pack of images."])


def data_problems(data: str | None) -> list[str]:
    """Every complaint about the text of --data that can be made without opening it."""
    if not data:
        return ["--data is required. Name a folder, a zip or a pack of images."]
    return path_problems(data, option="--data ")


def run_dir_option(command: Command) -> Command:
    """Adds --run-dir to a command that reads a run."""

    def problems_of(run_dir: str | None) -> list[str]:
        return path_problems(run_dir, option="--run-dir ") if run_dir else ["--run-dir is required. Name a run folder."]

    text = "The run folder, or a generator.safetensors."
    return option("--run-dir", metavar="DIR", help=text, callback=checked(problems_of))(command)


def path_problems(path: str, *, option: str = "") -> list[str]:
    """A complaint if a path does not exist. option: what precedes it in the message."""
    if os.path.exists(path):  # Path.exists raises where a folder above may not be read
        return []
    folder, name = os.path.split(os.path.normpath(path))
    try:
        beside = [os.path.join(folder, other) for other in get_close_matches(name, os.listdir(folder or "."), n=3)]
    except (OSError, ValueError):
        beside = []
    return [f"{option}{path}: not found.{did_you_mean(beside)}"]


# --- Suggestions ------------------------------------------------------------------------------------------------------

# Names that other programs give to what is an option here.
OPTION_SYNONYMS = {
    synonym: options
    for options, synonyms in {
        "--data": "--dataset --images --input --path --data-dir --data-root --dataroot",
        "--kimg": "--epochs --steps --iterations --max-steps --duration",
        "--resolution": "--image-size --img-size --size --res",
        "--g-lr --d-lr": "--lr --learning-rate",
        "--latent-size": "--z-dim --latent-dim --nz",
        "--batch-size": "--batch --bs",
        "--device": "--gpu --gpus --cuda",
        "--out --run-dir --runs-dir": "--output-dir --outdir --out-dir --logdir",
        "--mirror": "--flip --hflip --augment",
        "--detach": "--background --no-wait -d",
        "--follow --force": "-f",
        "--tail --num --name": "-n",
        "--yes": "-y",
        "--version": "-v",
    }.items()
    for synonym in synonyms.split()
}


def must_be_one_of(value: str, choices: Sequence[str]) -> str:
    """The complaint about a value that is none of the choices."""
    return f"must be one of {', '.join(choices)}.{did_you_mean(nearest(value, choices)[:1])}"


def nearest(name: str, names: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """At most three of `names` that are spelt like `name`, the most alike first; else those that start with it.

    cutoff: how alike, from 0 (anything) to 1 (equal), as in `difflib.get_close_matches`.
    """

    def bare_of(text: str) -> str:
        return text.lstrip("-").lower().replace("_", "-")

    plain, bare = bare_of(name), {bare_of(other): other for other in names}
    if plain in bare:
        return [bare[plain]]
    found = get_close_matches(plain, bare, n=3, cutoff=cutoff) or [other for other in bare if other.startswith(plain)]
    return [bare[other] for other in found[:3]]


def did_you_mean(names: Sequence[str]) -> str:
    """The suggestion, as a sentence to follow another; empty if there is none."""
    return f" Did you mean {' or '.join(names)}?" if names else ""


def options_meant(name: str, context: click.Context) -> list[str]:
    """The options of a command that `name`, which does not exist, may stand for, the likeliest first."""
    names = _option_names(context.command)
    synonyms = [option for option in OPTION_SYNONYMS.get(name, "").split() if option in names]
    if synonyms or not isinstance(context.command, click.Group):
        return synonyms or nearest(name, names)
    inside = [f"{verb} {name}" for verb, inner in context.command.commands.items() if name in _option_names(inner)]
    return inside[:1] or nearest(name, names)


def _option_names(command: click.Command) -> list[str]:
    options = (option for option in command.params if isinstance(option, click.Option))
    return [name for option in options for name in (*option.opts, *option.secondary_opts) if name.startswith("--")]
