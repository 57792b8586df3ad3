"""Shared code of the commands of `msggan-aml`: settings, confirmation, suggestions, logging and terminal output."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from msggan.commands.options import AZURE, COMMON, CollectingCommand, OneOf, did_you_mean, nearest, option
from msggan.commands.program import StoppedError, print_json
from msggan.display.progress import progress_bar
from msggan.errors import UsageError
from orchestration.settings import WORKSPACE_TABLE, Flags, Settings, read_settings, settings_options, settings_problems
from orchestration.spec import TARGETS


def settings_here(flags: Flags) -> Settings:
    return read_settings(flags, folder=Path.cwd(), environ=os.environ)


def problems_here(flags: Flags) -> list[str]:
    return settings_problems(flags, folder=Path.cwd(), environ=os.environ)


def target_option(text: str, *, section: str = COMMON) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds --target. text: its help."""
    return option("--target", default="auto", type=OneOf(*TARGETS), section=section, help=text)


def place_of_runs(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --target, --runs-dir and the workspace, which locate runs. The command gets `target` and `flags`."""
    text = "Where the run is.  [default: auto: this machine if it has the run, else Azure]"
    return target_option(text, section="")(settings_options("runs_dir", WORKSPACE_TABLE)(debug_option(command)))


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Disables logging by libraries: the commands report errors themselves."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def debug_logging() -> Iterator[None]:
    """Makes the Azure SDK log each request and response to stderr.

    The SDK redacts headers and query values that may be secret. It logs bodies at level DEBUG only.
    """
    logger, handler, disabled = (
        logging.getLogger("azure"),
        logging.StreamHandler(sys.stderr),
        logging.root.manager.disable,
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    level = logger.level
    logging.disable(logging.NOTSET)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logging.disable(disabled)


def _debug(context: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        context.with_resource(debug_logging())


def debug_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --debug, which is not passed to the command."""
    text = "Log the requests to Azure with their request IDs to stderr."
    return option("--debug", is_flag=True, expose_value=False, callback=_debug, section=AZURE, help=text)(command)


def agree(question: str, *, yes: bool) -> None:
    """Asks for confirmation. Raises UsageError without a terminal, StoppedError if the answer is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            ["Nothing was done: confirmation requires a terminal."], "Use --yes to confirm without a prompt."
        )
    if not click.confirm(question, err=True):
        raise StoppedError("declined", 2, "Nothing was done.")


# --- Commands that do not exist ---------------------------------------------------------------------------------------

# By group, the names of its commands in other programs.
COMMAND_SYNONYMS = {
    "msggan-aml": {
        **dict.fromkeys(("train", "run", "start", "resume", "continue", "restart", "fit", "launch", "new"), "submit"),
        **dict.fromkeys(("ls", "runs", "ps", "jobs"), "list"),
        **dict.fromkeys(("show", "info", "describe", "state"), "status"),
        **dict.fromkeys(("tail", "follow", "watch", "attach"), "logs"),
        **dict.fromkeys(("stop", "kill", "abort", "terminate", "interrupt"), "cancel"),
        **dict.fromkeys(("generate", "gen", "draw", "film", "video", "predict"), "sample"),
        **dict.fromkeys(("get", "fetch", "pull", "copy", "cp"), "download"),
        **dict.fromkeys(("onnx", "convert"), "export"),
        **dict.fromkeys(("tune", "search", "hpo"), "sweep"),
        **dict.fromkeys(("best",), "sweep best"),
        **dict.fromkeys(("setup", "init"), "provision"),
        **dict.fromkeys(("settings", "env"), "config show"),
        **dict.fromkeys(("help", "version"), "--{}"),
    },
    "sweep": dict.fromkeys(("list", "status", "logs", "cancel", "download"), "msggan-aml {}"),
    "config": dict.fromkeys(("list", "ls", "get", "set", "print", "view"), "show"),
}
DELETE = ("delete", "del", "rm", "remove")


class Commands(CollectingCommand, click.Group):
    """A group of commands that suggests a command for an unknown one."""

    command_class = CollectingCommand

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            ctx.fail(self.no_such_command(args[0]))
        return super().resolve_command(ctx, args)

    def no_such_command(self, word: str) -> str:
        """The error message for an unknown command of this group."""
        if word in DELETE:
            return f"No such command {word!r}. A run is a folder: delete the folder. To stop a run, use 'cancel'."
        return f"No such command {word!r}.{did_you_mean([repr(name) for name in self.commands_meant(word)])}"

    def commands_meant(self, word: str) -> list[str]:
        """The suggestions for `word`, an unknown command of this group, the most likely first."""
        synonym = COMMAND_SYNONYMS.get(self.name or "", {}).get(word.lower())
        if synonym:
            return [synonym.format(word.lower())]
        data = [f"submit {shlex.quote(word)}"] if "submit" in self.commands and os.path.exists(word) else []
        return data + nearest(word, self.commands)


class CommandsOrData(Commands):
    """A group that also takes the images as an argument, unless a command comes first."""

    allow_interspersed_args = True  # options may follow arguments, as in a command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_interspersed_args = not (args and args[0] in self.commands)
        rest = super().parse_args(ctx, args)
        for word in ctx.params.get("paths", ())[:1]:
            if not os.path.exists(word):
                self._refuse_command(ctx, word)
        return rest

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """All parameters, without the arguments if a command comes first: what follows belongs to that command."""
        params = super().get_params(ctx)
        takes_data = ctx.command is self and ctx.allow_interspersed_args
        return [param for param in params if takes_data or not isinstance(param, click.Argument)]

    def _refuse_command(self, ctx: click.Context, word: str) -> None:
        """Raises `UsageError` if an argument looks like a command."""
        if word in self.commands:
            ctx.fail(f"Write {word!r} before all options.")
        if self.commands_meant(word):
            ctx.fail(self.no_such_command(word))


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


def echo(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def tell(line: str) -> None:
    """Prints a line to stderr."""
    click.echo(line, err=True)


def show_plan(plan: dict[str, Any], output: str) -> None:
    """Prints what would be started: of a run, or of a sweep with the settings of its trials."""
    if output == "json":
        print_json(plan)
        return
    variables = [f"{name}={shlex.quote(value)}" for name, value in plan["env"].items()]
    click.echo(" ".join([*variables, shlex.join(plan["command"])]))
    for number, settings in enumerate(plan.get("trials", ())):
        click.echo(f"Trial {number}: {' '.join(f'{name}={value}' for name, value in settings.items())}")
    for request in plan.get("requests", ()):
        click.echo(f"{request['method']} {request['path']}\n{json.dumps(request['body'], indent=2)}")


def show_next(commands: Iterable[str]) -> None:
    """Prints the commands to run next."""
    for line in commands:
        click.echo(f"Next: {as_typed(line, program=sys.argv[0], path=os.environ.get('PATH', ''))}")


def as_typed(command: str, *, program: str, path: str) -> str:
    """A command of msggan-aml as the shell finds it: with the path of `program` if it is not on the PATH."""
    name = Path(program).name
    if name != "msggan-aml" or shutil.which(name, path=path):
        return command
    return command.replace(name, program, 1)
