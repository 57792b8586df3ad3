"""Shared code of the commands of `msggan-aml`: settings, confirmation, suggestions, logging and terminal output."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from msggan.commands.options import (
    AZURE,
    COMMON,
    WHERE,
    OneOf,
    collecting,
    option,
    refuse,
)
from msggan.commands.program import StoppedError, print_json
from msggan.config import flag
from msggan.errors import UsageError
from orchestration.settings import (
    WORKSPACE_TABLE,
    WORKSPACE_VARIABLES,
    Flags,
    Settings,
    format_value,
    read_settings,
    settings_table,
)
from orchestration.spec import TARGETS
from orchestration.status import Question, Reporter

if TYPE_CHECKING:
    from orchestration.targets import Target

AnyCommand = Callable[..., Any]  # a function that becomes a click command

# --- Options and what they select -------------------------------------------------------------------------------------


def read_settings_here(flags: Flags) -> Settings:
    return read_settings(flags, folder=Path.cwd(), environ=os.environ)


def settings_or_refuse(flags: Flags, problems: Iterable[str]) -> Settings:
    """The settings in the current folder. Raises UsageError with the problems and those of the settings."""
    found = list(problems)
    with collecting(found):
        settings = read_settings_here(flags)
    refuse(found)
    return settings


def find_target(name: str, target: str, flags: Flags, problems: Iterable[str]) -> tuple[Target, str]:
    """The target of a run, a sweep or a trial, and its name there. Raises UsageError with every problem."""
    from orchestration.targets import target_of

    found: list[str] = []
    with collecting(found):
        target_and_name = target_of(name, target, read_settings_here(flags), reporter())
    refuse([*found, *problems])
    return target_and_name


def target_option(text: str, *, section: str = COMMON) -> Callable[[AnyCommand], AnyCommand]:
    """Adds --target. text: its help."""
    return option("--target", default="auto", type=OneOf(*TARGETS), section=section, help=text)


def settings_options(*names: str) -> Callable[[AnyCommand], AnyCommand]:
    """Adds the flags of these settings; `workspace` stands for its three parts.

    The command receives `flags`, their values by name, as `read_settings` takes them.
    """
    options = {key: add for name in names for key, add in _build_options(name).items()}

    def decorate(command: AnyCommand) -> AnyCommand:
        @wraps(command)
        def with_flags(**values: Any) -> Any:
            return command(flags={key: values.pop(key) for key in options}, **values)

        wrapped: AnyCommand = with_flags
        for add in reversed(options.values()):  # the innermost decorator comes last in the help
            wrapped = add(wrapped)
        return wrapped

    return decorate


def _build_options(name: str) -> dict[str, Callable[[AnyCommand], AnyCommand]]:
    if name == WORKSPACE_TABLE:
        return {key: _workspace_option(key, variable) for key, variable in WORKSPACE_VARIABLES.items()}
    (spec,) = (spec for spec in settings_table() if spec.name == name)
    section = WHERE if name in ("runs_dir", "tracking_uri") else AZURE
    facts, default = [str(spec.range)] if spec.range else [], spec.default
    if spec.kind is bool:
        default = flag(name if default else f"no_{name}").removeprefix("--")
    facts += [f"default: {format_value(default)}"] if default is not None else []
    text = f"{spec.help}  [{'; '.join([*facts, f'variable {spec.variables[0]}'])}]"
    if spec.kind is dict:
        return {name: option(spec.flag, name, section=section, metavar="NAME=VALUE", multiple=True, help=text)}
    if spec.kind is bool:
        return {name: option(f"{flag(name)}/{flag(f'no_{name}')}", name, section=section, default=None, help=text)}
    metavars = {"runs_dir": "DIR", "max_cost": "AMOUNT"}
    metavar = metavars.get(name) or {int: "INTEGER", float: "NUMBER"}.get(spec.kind, "TEXT")
    return {name: option(spec.flag or flag(name), name, section=section, metavar=metavar, help=text)}


def _workspace_option(key: str, variable: str) -> Callable[[AnyCommand], AnyCommand]:
    part = key.removeprefix("workspace_").removesuffix("_id").replace("_", " ")
    text = f"The {part} of the Azure ML workspace.  [variable {variable}]"
    return option(flag(key), key, section=AZURE, metavar="TEXT", help=text)


def location_options(command: AnyCommand) -> AnyCommand:
    """Adds --target, --runs-dir and the workspace, which locate runs. The command gets `target` and `flags`."""
    text = "Where the run is.  [default: auto: this machine if it has the run, else Azure]"
    return target_option(text, section="")(settings_options("runs_dir", WORKSPACE_TABLE)(debug_option(command)))


def run_options(command: AnyCommand) -> AnyCommand:
    """Adds the argument RUN, the name or the folder of a run, and `location_options`.

    The command gets its target, `serving`, and its `name` there; wrong options are reported together with a wrong RUN.
    """

    @wraps(command)
    def with_run(*, run: str, target: str, flags: Flags, problems: Iterable[str], **values: Any) -> Any:
        serving, name = find_target(run, target, flags, problems)
        return command(serving=serving, name=name, **values)

    del with_run.__wrapped__  # its parameters are those of `with_run`
    return click.argument("run", metavar="NAME|FOLDER|SWEEP/NUMBER")(location_options(with_run))


def _debug(context: click.Context, param: click.Parameter, value: bool) -> None:
    """Makes the Azure SDK log each request and response to stderr and to a new file until the command ends.

    The SDK redacts headers and query values that may be secret. It logs bodies at level DEBUG only.
    """
    if not value:
        return
    import tempfile

    descriptor, path = tempfile.mkstemp(prefix="msggan-aml-debug-", suffix=".log")  # only its owner may read it
    file = context.with_resource(os.fdopen(descriptor, "w", encoding="utf-8"))
    logger = logging.getLogger("azure")
    context.call_on_close(partial(logger.setLevel, logger.level))
    logging.disable(logging.NOTSET)
    logger.setLevel(logging.INFO)
    for stream in (sys.stderr, file):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        context.call_on_close(partial(logger.removeHandler, handler))
        logger.addHandler(handler)
    info(f"The requests to Azure are logged to {path}, without secrets.")


def debug_option(command: AnyCommand) -> AnyCommand:
    """Adds --debug, which is not passed to the command."""
    text = "Log the requests to Azure with their request IDs to stderr and to a temporary file."
    return option("--debug", is_flag=True, expose_value=False, callback=_debug, section=AZURE, help=text)(command)


def confirm(question: str, *, yes: bool) -> None:
    """Asks for confirmation. Raises UsageError without a terminal, StoppedError if the answer is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            ["Nothing was done: confirmation requires a terminal."], "Use --yes to confirm without a prompt."
        )
    if not click.confirm(question, err=True):
        raise StoppedError("declined", 2, "Nothing was done.")


def answer(question: Question | None, *, yes: bool) -> None:
    """Shows a question about money, if there is one, asks for confirmation and records that it was given."""
    if question is None:
        return
    for line in question.lines:
        info(line)
    confirm("Continue?", yes=yes)
    question.agree()


def ignored_here(target: str, flags: Flags) -> list[str]:
    """Problems with options that a run on this machine would ignore, though it would differ without them."""
    if target != "local" or not flags.get("env"):
        return []
    return ["--env: is for jobs on Azure. A run on this machine has the variables of your shell: set them there."]


# --- Output -----------------------------------------------------------------------------------------------------------


class Bars:
    """Progress bars on stderr, one at a time."""

    def __enter__(self) -> Bars:
        self.label = ""
        self.bar: Any = None
        return self

    def show(self, label: str, done: int, total: int) -> None:
        if self.bar is None or label != self.label:
            self._end()
            from msggan.display.progress import progress_bar

            self.label, self.bar = label, progress_bar(label, total)
        self.bar.update(done - self.bar.n)
        if done >= total:
            self._end()

    def _end(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def __exit__(self, *error: object) -> None:
        self._end()


def reporter() -> Reporter:
    """Prints to stderr; progress bars are closed at the end of the command."""
    bars = click.get_current_context().with_resource(Bars())
    return Reporter(info, bars.show)


def info(line: str) -> None:
    """Prints a line to stderr."""
    click.echo(line, err=True)


def show(output: str, content: Mapping[str, Any], lines: Iterable[str], next_commands: Iterable[str] = ()) -> None:
    """Prints a result: `content` as JSON, or the lines and the commands to run next."""
    if output == "json":
        print_json(content)
        return
    for line in lines:
        click.echo(line)
    for command in next_commands:
        click.echo(f"Next: {as_typed(command, program=sys.argv[0], path=os.environ.get('PATH', ''))}")


def show_plan(output: str, plan: dict[str, Any]) -> None:
    """Prints what would be started: of a run, or of a sweep with the settings of its trials."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in plan["env"].items()]
    lines = [" ".join([*variables, shlex.join(plan["command"])])]
    for number, settings in enumerate(plan.get("trials", ())):
        lines.append(f"Trial {number}: {' '.join(f'{name}={value}' for name, value in settings.items())}")
    for request in plan.get("requests", ()):
        lines.append(f"{request['method']} {request['path']}\n{json.dumps(request['body'], indent=2)}")
    show(output, plan, lines)


def as_typed(command: str, *, program: str, path: str) -> str:
    """A command of msggan-aml as the shell finds it: with the path of `program` if it is not on the PATH."""
    name = Path(program).name
    if name != "msggan-aml" or shutil.which(name, path=path):
        return command
    return command.replace(name, program, 1)
