"""How does a program of this project begin and end: output for people or for scripts, errors, exit codes, signals?

stderr is for people. On `-o json` stdout carries one JSON object, the result or `{"error": …}`, and nothing else.
"""

from __future__ import annotations

import io
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import click

from msggan.commands.options import did_you_mean, options_meant
from msggan.commands.packages import as_missing_package
from msggan.errors import MsgganError, UsageError

OUTPUT_VARIABLE = "MSGGAN_OUTPUT"
OUTPUTS = ("text", "json")

# What a process ends with for each state that a run can end in.
EXIT_CODES = {"completed": 0, "failed": 1, "cancelled": 6, "interrupted": 130}

Command = TypeVar("Command", bound=Callable[..., Any])


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, like KeyboardInterrupt: no library on the way may take it for its own."""


class StoppedError(MsgganError):
    """The program was stopped before it had a result."""

    def __init__(self, code: str, exit_code: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code
        self.exit_code = exit_code


class OperatingSystemError(MsgganError):
    """The operating system refused something that nobody foresaw: no permission, no space, no such file."""

    code = "system"
    exit_code = 1


class ReportedError(MsgganError):
    """An error that a child process reported. is_told: its text has reached stderr, so that only the rest is left."""

    def __init__(self, message: str, hint: str, *, code: str, exit_code: int, is_told: bool = True) -> None:
        super().__init__(message, hint)
        self.code = code
        self.exit_code = exit_code
        self.is_told = is_told


def stopped(by: type[BaseException], message: str, hint: str = "") -> StoppedError:
    """What a stop is told as, by SIGTERM (`Terminated`) or Ctrl-C (any other)."""
    state = "cancelled" if issubclass(by, Terminated) else "interrupted"
    return StoppedError(state, EXIT_CODES[state], message, hint)


def output_option(command: Command) -> Command:
    """Adds -o/--output; the command gets its text."""
    return click.option(
        "-o",
        "--output",
        default=OUTPUTS[0],
        envvar=OUTPUT_VARIABLE,
        metavar="|".join(OUTPUTS),
        help=f"What stdout gets: lines for people or one JSON object.  [default: text; variable {OUTPUT_VARIABLE}]",
    )(command)


def output_problems(output: str) -> list[str]:
    return [] if output in OUTPUTS else [f"--output {output}: is not one of {', '.join(OUTPUTS)}."]


def run_program(command: click.Command, *, name: str, argv: Sequence[str] | None = None) -> int:
    """Runs a command line to its exit code. The command returns its own, or raises MsgganError."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # as Python's stderr: a locale may lack a character of a path's
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    error: MsgganError
    try:
        with _signals_as_exceptions():
            return command.main(args=words, prog_name=name, standalone_mode=False) or 0
    except (MsgganError, click.ClickException, click.Abort, OSError, Terminated) as problem:
        error = _as_ours(problem, words)
    except ModuleNotFoundError as problem:
        missing = as_missing_package(problem)
        if missing is None:
            raise
        error = missing
    report(error, as_json=asked_for_json(words, os.environ))
    return error.exit_code


def report(error: MsgganError, *, as_json: bool) -> None:
    """Tells an error: its text on stderr, and on stdout its JSON where that was asked for.

    To stop a program is no error: the text does not call it one. Neither is an indented line, which continues another.
    """
    if not (isinstance(error, ReportedError) and error.is_told):
        beginning = "" if isinstance(error, StoppedError) else "Error: "
        for problem in error.message.splitlines():
            click.echo(problem if problem.startswith(" ") else f"{beginning}{problem}", err=True)
        if error.hint:
            click.echo(error.hint, err=True)
    if as_json:
        print_json(error.as_json())


def print_json(content: Mapping[str, Any]) -> None:
    """One line of JSON on stdout, in ASCII, which every locale has. Not-a-number and infinity become null."""
    click.echo(json.dumps(_finite(content), allow_nan=False))


def asked_for_json(words: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a command line asks for JSON, found without click: it must be known where click could not read it."""
    asked = environ.get(OUTPUT_VARIABLE, "")
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word in ("-o", "--output"):
            asked = following
        elif word.startswith("--output="):
            asked = word.removeprefix("--output=")
        elif word.startswith("-o"):
            asked = word.removeprefix("-o")
    return asked == "json"


def _as_ours(problem: BaseException, words: Sequence[str]) -> MsgganError:
    """The error of ours that says what `problem` is, which ended the command line of these words."""
    if isinstance(problem, MsgganError):
        return problem
    if isinstance(problem, click.UsageError):
        path = problem.ctx.command_path if problem.ctx else ""
        message = (
            _no_such_option(problem, words) if isinstance(problem, click.NoSuchOption) else problem.format_message()
        )
        return UsageError([message], f"See: {path} --help" if path else "")
    if isinstance(problem, click.ClickException):
        return UsageError([problem.format_message()])
    if isinstance(problem, Terminated):
        return stopped(Terminated, "Stopped by SIGTERM.")
    if isinstance(problem, OSError):
        where = f"{problem.filename}: " if problem.filename else ""
        return OperatingSystemError(f"{where}{problem.strerror or problem}.")
    return stopped(KeyboardInterrupt, "Interrupted.")  # which click calls Abort


def _no_such_option(problem: click.NoSuchOption, words: Sequence[str]) -> str:
    """As click says it, but with synonyms too and the most alike option first."""
    name = problem.option_name
    if not name.startswith("--"):  # click reads -data as -d and more
        name = next((word for word in words if word.startswith(name)), name)
    return f"No such option {name!r}.{did_you_mean(options_meant(name, problem.ctx)) if problem.ctx else ''}"


def raise_pending_signal() -> None:
    """Raises what a signal asked for since the program began, and a library lost: for loops that wait.

    What a signal raises while an object is taken away (`__del__`) goes nowhere; Python only prints it.
    """
    if _asked_for:
        raise _asked_for[0]


_asked_for: list[type[BaseException]] = []


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGTERM unwinds the program as Ctrl-C does. The trainer puts its own, gentler handlers over this."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    _asked_for.clear()
    # Where Ctrl-C is ignored, as in a shell's background, or somebody's own already, it stays so.
    numbers = [signal.SIGTERM]
    numbers += [signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []
    before = {number: signal.signal(number, _raise) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    stop = Terminated if number == signal.SIGTERM else KeyboardInterrupt
    _asked_for.append(stop)
    raise stop


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
