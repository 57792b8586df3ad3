"""What every program of this project shares: output for people or scripts, errors, exit codes, signals.

stderr is for people. With `-o json` stdout has one JSON object, the result or `{"error": …}`, and nothing else. This
module needs the standard library alone, so that it can report that every other package, click included, is missing.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from msggan.errors import MsgganError, UsageError

if TYPE_CHECKING:
    import click

OUTPUT_VARIABLE = "MSGGAN_OUTPUT"
OUTPUTS = ("text", "json")

# The exit code for each state that a run can end in.
EXIT_CODES = {"completed": 0, "failed": 1, "cancelled": 6, "interrupted": 130}


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, like KeyboardInterrupt: no library on the way may take it for its own."""


class StoppedError(MsgganError):
    """The program was stopped before it had a result."""

    def __init__(self, code: str, exit_code: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code
        self.exit_code = exit_code


class OperatingSystemError(MsgganError):
    """The operating system refused something unexpectedly: no permission, no space, no such file."""

    code = "system"
    exit_code = 1


class ReportedError(MsgganError):
    """An error that a child process reported. on_stderr: its text is on stderr already, and only its JSON is left."""

    def __init__(self, message: str, hint: str, *, code: str, exit_code: int, on_stderr: bool = True) -> None:
        super().__init__(message, hint)
        self.code = code
        self.exit_code = exit_code
        self.on_stderr = on_stderr


class MissingPackagesError(MsgganError):
    """This Python lacks packages that are needed."""

    code = "missing_packages"


def stopped(by: type[BaseException], message: str, hint: str = "") -> StoppedError:
    """The error for a stop by SIGTERM (`Terminated`) or Ctrl-C (any other)."""
    state = "cancelled" if issubclass(by, Terminated) else "interrupted"
    return StoppedError(state, EXIT_CODES[state], message, hint)


# --- From a command line to an exit code ------------------------------------------------------------------------------


def run_program(command: click.Command, *, name: str, argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code. The command returns its own, or raises MsgganError."""
    import click

    if isinstance(sys.stdout, io.TextIOWrapper):  # as Python's stderr: a locale may lack a character of a path's
        sys.stdout.reconfigure(errors="backslashreplace")
    # Pillow warns of damaged metadata in files; those that cannot be read are listed by name.
    warnings.filterwarnings("ignore", module="PIL")
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with _signals_as_exceptions():
            return command.main(args=args, prog_name=name, standalone_mode=False) or 0
    except (MsgganError, click.ClickException, click.Abort, OSError, Terminated, ModuleNotFoundError) as problem:
        error = _as_msggan_error(problem, args)
    report(error, as_json=wants_json(args, os.environ))
    return error.exit_code


def report(error: MsgganError, *, as_json: bool) -> None:
    """Prints an error: its text on stderr, and its JSON on stdout if requested.

    Stopping a program is not called an error. Neither is an indented line, which continues another.
    """
    if not (isinstance(error, ReportedError) and error.on_stderr):
        prefix = "" if isinstance(error, StoppedError) else "Error: "
        for problem in error.message.splitlines():
            sys.stderr.write(f"{problem}\n" if problem.startswith(" ") else f"{prefix}{problem}\n")
        if error.hint:
            sys.stderr.write(f"{error.hint}\n")
        sys.stderr.flush()
    if as_json:
        print_json(error.as_json())


def print_json(content: Mapping[str, Any]) -> None:
    """One line of JSON on stdout, in ASCII, which every locale has. Not-a-number and infinity become null."""
    sys.stdout.write(json.dumps(_finite(content), allow_nan=False) + "\n")
    sys.stdout.flush()


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def wants_json(args: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a command line requests JSON, found without click: errors of parsing are reported as JSON too."""
    output = environ.get(OUTPUT_VARIABLE, "")
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        if arg in ("-o", "--output"):
            output = following
        elif arg.startswith("--output="):
            output = arg.removeprefix("--output=")
        elif arg.startswith("-o"):
            output = arg.removeprefix("-o")
    return output == "json"


def _as_msggan_error(problem: BaseException, args: Sequence[str]) -> MsgganError:
    """The MsgganError for what ended a command line. Raises `problem` itself if it is a fault of this project's."""
    import click

    if isinstance(problem, MsgganError):
        return problem
    if isinstance(problem, ModuleNotFoundError):
        return _missing_package(problem)
    if isinstance(problem, click.UsageError):
        path = problem.ctx.command_path if problem.ctx else ""
        message = problem.format_message()
        if isinstance(problem, click.NoSuchOption):
            message = _no_such_option(problem, args)
        return UsageError([message], f"See: {path} --help" if path else "")
    if isinstance(problem, click.ClickException):
        return UsageError([problem.format_message()])
    if isinstance(problem, Terminated):
        return stopped(Terminated, "Stopped by SIGTERM.")
    if isinstance(problem, OSError):
        where = f"{problem.filename}: " if problem.filename else ""
        return OperatingSystemError(f"{where}{problem.strerror or problem}.")
    return stopped(KeyboardInterrupt, "Interrupted.")  # which click calls Abort


def _no_such_option(problem: click.NoSuchOption, args: Sequence[str]) -> str:
    """click's message, but with synonyms too and the most alike option first."""
    from msggan.commands.options import did_you_mean, options_meant

    name = problem.option_name
    if not name.startswith("--"):  # click reads -data as -d and more
        name = next((arg for arg in args if arg.startswith(name)), name)
    meant = options_meant(name, problem.ctx) if problem.ctx else []
    return f"No such option {name!r}.{did_you_mean([repr(option) for option in meant])}"


# --- Missing packages -------------------------------------------------------------------------------------------------

# What training imports, by module, with the bounds of pyproject.toml.
TRAINING = {
    "click": "click>=8.1,<9",
    "filelock": "filelock>=3.13,<5",
    "numpy": "numpy>=1.26,<3",
    "PIL": "pillow>=10.3,<14",
    "safetensors": "safetensors>=0.4.3,<1",
    "torch": "torch>=2.6,<3",
    "torchvision": "torchvision>=0.21,<1",
}
MLFLOW = {"mlflow": "mlflow>=3.5,<=3.15.0"}
AZURE_MLFLOW = {"azureml.mlflow": "azureml-mlflow>=1.62.0.post6,<2"}
OTHERS = {"azure": "azure-ai-ml>=1.30,<2", "imageio_ffmpeg": "imageio-ffmpeg>=0.6,<1"}
OURS = ("msggan", "orchestration", "environments")
JOB_VARIABLE = "AZUREML_RUN_ID"  # which Azure ML sets in its jobs


def training_packages(tracking_uri: str | None) -> dict[str, str]:
    """What training imports, including what it needs to log to MLflow at this address (None: no MLflow)."""
    if tracking_uri is None:
        return TRAINING
    return TRAINING | MLFLOW | (AZURE_MLFLOW if tracking_uri.startswith("azureml:") else {})


def require(packages: Mapping[str, str]) -> None:
    """Raises MissingPackagesError that names every package, by module, that is not installed. Imports none of them."""
    missing = [requirement for module, requirement in packages.items() if not _is_installed(module)]
    if missing:
        raise _missing(missing)


def exit_without_click(tracking_uri: str | None) -> None:
    """Ends the process, naming all that is missing, if click is: without it no options can be read."""
    try:
        if not _is_installed("click"):
            require(training_packages(tracking_uri))
    except MissingPackagesError as error:
        report(error, as_json=wants_json(sys.argv, os.environ))
        sys.exit(error.exit_code)


def _missing_package(error: ModuleNotFoundError) -> MissingPackagesError:
    """The error for an import that failed. Raises it again if the module is ours or Python's own."""
    top = (error.name or "").partition(".")[0]
    if not top or top in OURS or top in sys.stdlib_module_names:
        raise error
    known = TRAINING | MLFLOW | OTHERS | {"azureml": AZURE_MLFLOW["azureml.mlflow"]}
    return _missing([known.get(top, top)])


def _missing(requirements: Iterable[str]) -> MissingPackagesError:
    needed = sorted(requirements)
    names = ", ".join(requirement.partition("<")[0].partition(">")[0] for requirement in needed)
    hint = f"Install: {shlex.join([sys.executable, '-m', 'pip', 'install', *needed])}"
    if os.environ.get(JOB_VARIABLE):
        hint = (
            "The job's environment lacks them. Submit again with --environment curated, which has all that training "
            f"needs, or add them to your own image or conda file: {' '.join(needed)}"
        )
    return MissingPackagesError(f"Missing Python packages: {names}. This Python is {sys.executable}.", hint)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # its parent package is missing; or it is loaded without a spec
        return module in sys.modules


# --- The MLflow to log to ---------------------------------------------------------------------------------------------

TRACKING_FLAG = "--tracking-uri"
TRACKING_VARIABLES = ("MSGGAN_TRACKING_URI", "MLFLOW_TRACKING_URI")
NO_TRACKING = "none"
# The folder of a sweep: in MLflow, the run is nested in the sweep's.
PARENT_VARIABLE = "MSGGAN_MLFLOW_PARENT"

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SCHEMES = ("http", "https", "azureml", "databricks", *DATABASES)
FOR_A_FILE = "For a file on this machine use sqlite:///PATH/mlflow.db."


def default_tracking_uri(runs_dir: str | Path) -> str:
    """The database to log to by default: mlflow.db in the folder of the runs."""
    return f"sqlite:///{(Path(runs_dir) / 'mlflow.db').as_posix()}"


def chosen_tracking_uri(option: str | None, environ: Mapping[str, str]) -> str | None:
    """The address to use, None for no MLflow. Only where `tracking_uri_problems` finds none."""
    _, uri = _configured_uri(option, environ)
    return None if uri in ("", NO_TRACKING) else uri


def tracking_uri_problems(option: str | None, environ: Mapping[str, str]) -> list[str]:
    """What is wrong with the address, a sentence each. Makes no requests."""
    source, uri = _configured_uri(option, environ)
    if source == "":
        return []
    problem = tracking_uri_complaint(uri)
    parts = urlsplit(uri) if not problem else None
    # A command line is visible to everyone on the machine and kept by the shell; a variable is not.
    if parts and source == TRACKING_FLAG and parts.password is not None:
        instead = f"Omit {TRACKING_FLAG} and set {TRACKING_VARIABLES[0]}."
        if parts.scheme in ("http", "https"):
            instead = "Omit it and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        problem = f"contains a password, which a command line must not. {instead}"
    return [f"{source} {without_password(uri)}: {problem}"] if problem else []


def _configured_uri(option: str | None, environ: Mapping[str, str]) -> tuple[str, str]:
    """→ where the address is set, and the address: the option, else a variable; both empty if it is not set."""
    if option is not None:
        return TRACKING_FLAG, option
    return next(((name, environ[name]) for name in TRACKING_VARIABLES if environ.get(name)), ("", ""))


def tracking_uri_complaint(uri: str) -> str:
    """Why this is not the address of an MLflow, as the end of a sentence; empty if it may be one."""
    scheme = _scheme(uri)
    if uri in (NO_TRACKING, "databricks"):
        return ""
    if scheme == "file" or "://" not in uri:
        return f"MLflow no longer supports plain files. {FOR_A_FILE}"
    if scheme not in SCHEMES:
        near = get_close_matches(scheme, SCHEMES, n=1)
        return f"{scheme}:// is not one of {', '.join(SCHEMES)}.{f' Did you mean {near[0]}://?' if near else ''}"
    if scheme == "sqlite":
        path = _sqlite_path(uri)
        if path is None:
            return "needs three slashes before a relative path, four before an absolute one: sqlite:///PATH."
        if path in ("", ":memory:"):
            return f"names no file. {FOR_A_FILE}"
        if os.path.isdir(path):
            return f"is a folder. Name a file in it: sqlite:///{os.path.join(path, 'mlflow.db')}."
        return ""
    if re.search(r"[\s\x00-\x1f]", uri):
        return "contains a space."
    try:
        parts = urlsplit(uri)
        _ = parts.port if scheme in ("http", "https") else None
    except ValueError as error:  # a port that is not a number, or half an IPv6 address
        return f"is not a valid address ({error})."
    if scheme in ("http", "https") and not parts.hostname:
        return f"has no host. Use {scheme}://HOST:PORT."
    if scheme in ("http", "https") and (parts.query or parts.fragment):
        return "must end before its ? or #."
    return ""


def _scheme(uri: str) -> str:
    """The scheme without the driver of a database: sqlite, http, …"""
    return uri.partition(":")[0].partition("+")[0].lower()


def _sqlite_path(uri: str) -> str | None:
    """The path of an sqlite address as it is written there, None where there are too few slashes."""
    match = re.fullmatch(r"[^:]+:///([^?]*)(\?.*)?", uri)
    return match[1] if match else None


def sqlite_file(uri: str) -> Path | None:
    """The database file of an sqlite address, None for any other address."""
    path = _sqlite_path(uri) if _scheme(uri) == "sqlite" else None
    return Path(path) if path else None


def is_database(uri: str) -> bool:
    return _scheme(uri) in DATABASES


def absolute_uri(uri: str) -> str:
    """The address, with the path of an sqlite file made absolute."""
    path = sqlite_file(uri)
    if path is None:
        return uri
    return uri.replace(str(_sqlite_path(uri)), Path(os.path.abspath(path)).as_posix(), 1)


def without_password(uri: str) -> str:
    """The address as it may be displayed and stored: nothing between :// and an @."""
    return re.sub(r"^([^:/]+://)[^/?#]*@", r"\1", uri)


def view_command(uri: str) -> str:
    """How to view what is logged there: a command or an address, empty where there is none."""
    if is_database(uri):
        return f"mlflow ui --backend-store-uri {without_password(uri)}"
    return without_password(uri) if _scheme(uri) in ("http", "https") else ""


# --- Signals ----------------------------------------------------------------------------------------------------------


def raise_pending_signal() -> None:
    """Raises the exception of a signal that arrived and was lost: for loops that wait.

    An exception raised while an object is finalized (`__del__`) goes nowhere; Python only prints it.
    """
    if _received:
        raise _received[0]


_received: list[type[BaseException]] = []


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGTERM unwinds the program as Ctrl-C does. The trainer replaces this by its own, gentler handlers."""
    if threading.current_thread() is threading.main_thread():
        _received.clear()
    # Where Ctrl-C is ignored, as in a shell's background, or has another handler already, that stays.
    numbers = [signal.SIGTERM]
    numbers += [signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []
    with signal_handlers(dict.fromkeys(numbers, _raise)):
        yield


@contextmanager
def signal_handlers(handlers: Mapping[int, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """Installs signal handlers, by signal number, and restores the previous ones at the end of the block.

    Does nothing in other threads than the main one, which alone may install handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    stop = Terminated if number == signal.SIGTERM else KeyboardInterrupt
    _received.append(stop)
    raise stop
