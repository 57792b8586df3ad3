"""Which MLflow is a run told to: where the address comes from, whether it can be one, and how it is shown?"""

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
# A folder, of a sweep: in MLflow, the run is nested in that folder's.
PARENT_VARIABLE = "MSGGAN_MLFLOW_PARENT"

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SCHEMES = ("http", "https", "azureml", "databricks", *DATABASES)
A_FILE_HERE = "For a file on this machine give sqlite:///PATH/mlflow.db."


def said_tracking_uri(text: str | None, environ: Mapping[str, str]) -> tuple[str, str]:
    """Where an address is said, and which: the option's text, else a variable's; an empty address if nowhere."""
    if text is not None:
        return TRACKING_FLAG, text
    said = [(name, environ[name]) for name in TRACKING_VARIABLES if environ.get(name)]
    return said[0] if said else ("", "")


def chosen_tracking_uri(text: str | None, environ: Mapping[str, str]) -> str | None:
    """The address to use, None for no MLflow. Only for what has no `tracking_uri_problems`."""
    _, uri = said_tracking_uri(text, environ)
    return None if uri in ("", NO_TRACKING) else uri


def tracking_uri_problems(text: str | None, environ: Mapping[str, str]) -> list[str]:
    """Every complaint about the address that is said, a sentence each, without asking the network."""
    source, uri = said_tracking_uri(text, environ)
    if source == "" or uri == NO_TRACKING:
        return []
    complaint = tracking_uri_complaint(uri)
    # A command line is seen by everyone on the machine and kept by the shell; a variable is not.
    if not complaint and source == TRACKING_FLAG and urlsplit(uri).password is not None:
        complaint = f"holds a password, which a command line must not. {_where_passwords_go(urlsplit(uri).scheme)}"
    return [f"{source} {without_password(uri)}: {complaint}"] if complaint else []


def tracking_uri_complaint(uri: str) -> str:
    """Why this cannot be an MLflow's address, the end of a sentence; empty if it can be."""
    try:
        return _complaint(uri, urlsplit(uri))
    except ValueError as error:
        return f"is no address ({error})."


def _complaint(uri: str, parts: SplitResult) -> str:
    if uri == NO_TRACKING:
        return ""
    kind = _kind(uri)
    if uri == "databricks":
        return ""
    if kind == "file" or "://" not in uri:
        return f"MLflow no longer keeps runs in plain files. {A_FILE_HERE}"
    if kind not in SCHEMES:
        near = get_close_matches(kind, SCHEMES, n=1)
        return f"{kind}:// is not one of {', '.join(SCHEMES)}.{f' Did you mean {near[0]}://?' if near else ''}"
    if kind == "sqlite":
        return _sqlite_complaint(uri)
    if re.search(r"[\s\x00-\x1f]", uri):
        return "holds a blank."
    if kind in ("http", "https"):
        _ = parts.port  # raises ValueError where it is no number
        if not parts.hostname:
            return f"names no host. It should read {kind}://HOST:PORT."
        if parts.query or parts.fragment:
            return "must end before its ? or #."
    return ""


def _sqlite_complaint(uri: str) -> str:
    path = _sqlite_path(uri)
    if path is None:
        return "should have three slashes before a path from here, four before one from the root: sqlite:///PATH."
    if path in ("", ":memory:"):
        return f"names no file. {A_FILE_HERE}"
    if os.path.isdir(path):
        return f"is a folder. Name a file in it: sqlite:///{os.path.join(path, 'mlflow.db')}."
    return ""


def _where_passwords_go(scheme: str) -> str:
    if scheme in ("http", "https"):
        return "Leave it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
    return f"Leave {TRACKING_FLAG} out and set {TRACKING_VARIABLES[0]}."


def _kind(uri: str) -> str:
    """What stands before the colon, without the driver of a database: sqlite, http, …"""
    return uri.partition(":")[0].partition("+")[0].lower()


def _sqlite_path(uri: str) -> str | None:
    """The path of a database file as it is written there, or None where the address has too few slashes."""
    match = re.fullmatch(r"[^:]+:///([^?]*)(\?.*)?", uri)
    return match[1] if match else None


def sqlite_file(uri: str) -> Path | None:
    """The database file of an sqlite address, None for any other address."""
    path = _sqlite_path(uri) if _kind(uri) == "sqlite" else None
    return Path(path) if path else None


def is_database(uri: str) -> bool:
    return _kind(uri) in DATABASES


def from_anywhere(uri: str) -> str:
    """The address with the path of an sqlite file made absolute, so that it holds whatever folder a process is in."""
    path = sqlite_file(uri)
    if path is None:
        return uri
    return uri.replace(str(_sqlite_path(uri)), Path(os.path.abspath(path)).as_posix(), 1)


def without_password(uri: str) -> str:
    """The address as it may be shown and written down: nothing between :// and an @."""
    return re.sub(r"^([^:/]+://)[^/?#]*@", r"\1", uri)


def look_with(uri: str) -> str:
    """How a person looks at what is there; empty where the address is none that can be opened."""
    shown = without_password(uri)
    if is_database(uri):
        return f"mlflow ui --backend-store-uri {shown}"
    return shown if _kind(uri) in ("http", "https") else ""
