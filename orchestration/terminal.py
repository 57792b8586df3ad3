"""How do the commands of `msggan-aml` speak to the person who types, and what do they all read?"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from msggan.errors import UsageError
from msggan.program import StoppedError
from orchestration.settings import Flags, Settings, read_settings, settings_options, settings_problems
from orchestration.targets import TARGETS
from orchestration.workspace import WORKSPACE_TABLE


def settings_here(flags: Flags) -> Settings:
    return read_settings(flags, folder=Path.cwd(), environ=os.environ)


def problems_here(flags: Flags) -> list[str]:
    return settings_problems(flags, folder=Path.cwd(), environ=os.environ)


target_option = click.option(
    "--target",
    default="auto",
    metavar="|".join(TARGETS),
    help="Where the run is.  [default: auto, here if it is here and else on Azure]",
)


def place_of_runs(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what says where runs are: --target, --runs-dir and the workspace; the command gets `target` and `flags`."""
    return target_option(settings_options("runs_dir", WORKSPACE_TABLE)(command))


def refuse(problems: list[str]) -> None:
    """Raises UsageError if there are problems."""
    if problems:
        raise UsageError(problems)


def agree(question: str, *, yes: bool) -> None:
    """Asks on the terminal. Raises UsageError where there is none, StoppedError where the answer is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(["Nothing was done: there is no terminal to ask on."], "Add --yes to do it.")
    if not click.confirm(question, err=True):
        raise StoppedError("declined", 2, "Nothing was done.")


class Bars:
    """Progress bars on stderr, one after the other, for what has a known size."""

    def __enter__(self) -> Bars:
        self.label = ""
        self.bar: Any = None
        return self

    def show(self, label: str, done: int, total: int) -> None:
        if self.bar is None or label != self.label:
            self._end()
            self.label, self.bar = label, click.progressbar(length=total, label=label, file=sys.stderr).__enter__()
        self.bar.update(done - self.bar.pos)
        if done >= total:
            self._end()

    def _end(self) -> None:
        if self.bar is not None:
            self.bar.__exit__(None, None, None)
        self.bar = None

    def __exit__(self, *error: object) -> None:
        self._end()


def echo(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def tell(line: str) -> None:
    """A line for people, which no script reads."""
    click.echo(line, err=True)


def show_next(commands: Iterable[str]) -> None:
    """What to type next."""
    for line in commands:
        click.echo(f"Next: {as_typed(line, program=sys.argv[0], path=os.environ.get('PATH', ''))}")


def as_typed(command: str, *, program: str, path: str) -> str:
    """A command of ours as it can be typed here: by the path of `program` where the shell would not find it."""
    name = Path(program).name
    if name != "msggan-aml" or shutil.which(name, path=path):
        return command
    return command.replace(name, program, 1)
