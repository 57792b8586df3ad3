"""The MLflow to log to: where its address is set, whether it is valid, and how it is displayed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

TRACKING_FLAG = "--tracking-uri"
TRACKING_VARIABLES = ("MSGGAN_TRACKING_URI", "MLFLOW_TRACKING_URI")
NO_TRACKING = "none"
# The folder of a sweep: in MLflow, the run is nested in the sweep's.
PARENT_VARIABLE = "MSGGAN_MLFLOW_PARENT"

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SCHEMES = ("http", "https", "azureml", "databricks", *DATABASES)
FOR_A_FILE = "For a file on this machine use sqlite:///PATH/mlflow.db."


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
    try:
        return "" if uri in (NO_TRACKING, "databricks") else _complaint(uri, urlsplit(uri))
    except ValueError as error:
        return f"is not a valid address ({error})."


def _complaint(uri: str, parts: SplitResult) -> str:
    scheme = _scheme(uri)
    if scheme == "file" or "://" not in uri:
        return f"MLflow no longer supports plain files. {FOR_A_FILE}"
    if scheme not in SCHEMES:
        near = get_close_matches(scheme, SCHEMES, n=1)
        return f"{scheme}:// is not one of {', '.join(SCHEMES)}.{f' Did you mean {near[0]}://?' if near else ''}"
    if scheme == "sqlite":
        return _sqlite_complaint(uri)
    if re.search(r"[\s\x00-\x1f]", uri):
        return "contains a space."
    if scheme in ("http", "https"):
        _ = parts.port  # raises ValueError where it is not a number
        if not parts.hostname:
            return f"has no host. Use {scheme}://HOST:PORT."
        if parts.query or parts.fragment:
            return "must end before its ? or #."
    return ""


def _sqlite_complaint(uri: str) -> str:
    path = _sqlite_path(uri)
    if path is None:
        return "needs three slashes before a relative path, four before an absolute one: sqlite:///PATH."
    if path in ("", ":memory:"):
        return f"names no file. {FOR_A_FILE}"
    if os.path.isdir(path):
        return f"is a folder. Name a file in it: sqlite:///{os.path.join(path, 'mlflow.db')}."
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
