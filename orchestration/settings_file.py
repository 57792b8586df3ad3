"""What does the nearest msggan.toml say? Its two tables, checked for keys that do not belong there."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msggan.commands.options import did_you_mean, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "msggan.toml"

# The only places for secrets: a file is copied, committed and mailed, and a command line is there for all to see.
SECRETS = ("MSGGAN_STORAGE_KEY", "MSGGAN_STORAGE_SAS")
SECRET_NAME = re.compile(
    r"(?:^|[_-])(?:keys?|sas|passwords?|pwd|secrets?|tokens?|credentials?|connection[_-]?string)(?:$|[_-])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class SettingsFile:
    """`tables` holds what msggan.toml says, by table and key; `path` is None where there is no such file."""

    path: Path | None = None
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_settings_file(folder: Path, known: Mapping[str, Collection[str]]) -> SettingsFile:
    """The msggan.toml in `folder` or the nearest folder above it. known: the keys that each table may have.

    Raises nothing: every complaint, of a file that cannot be read included, stands in `problems`.
    """
    path = next((place / FILE_NAME for place in (folder, *folder.parents) if os.path.lexists(place / FILE_NAME)), None)
    if path is None:
        return SettingsFile()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        return SettingsFile(path, problems=(f"{path}: cannot be read: {error.strerror or error}.",))
    except UnicodeDecodeError:
        return SettingsFile(path, problems=(f"{path}: is not UTF-8 text.",))
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: a number of 5,000 digits is a ValueError
        return SettingsFile(path, problems=(f"{path}: is not TOML: {error}.",))
    tables = {name: table for name, table in content.items() if name in known and isinstance(table, dict)}
    return SettingsFile(path, tables, tuple(f"{path}: {problem}" for problem in _misplaced(content, known)))


def _misplaced(content: Mapping[str, Any], known: Mapping[str, Collection[str]]) -> list[str]:
    """A complaint for each table and key that means nothing here. Their values, which may be secret, are not told."""
    problems = []
    for name, table in content.items():
        if name not in known:
            problems.append(_stranger(name, "", known))
        elif not isinstance(table, dict):
            problems.append(f"{name} must be a table: write [{name}] on a line of its own.")
        else:
            problems += [_stranger(key, name, known) for key in table if key not in known[name]]
    return problems


def _stranger(key: str, table: str, known: Mapping[str, Collection[str]]) -> str:
    """The complaint about a key in `table`, or about a key or table at the top of the file where `table` is empty."""
    called = f"[{table}] {key}" if table else key
    if SECRET_NAME.search(key):
        return f"{called}: a secret may not stand in a file. Set the variable {' or '.join(SECRETS)} instead."
    home = next((name for name, keys in known.items() if key in keys), None)
    if home is not None:
        return f"{called}: belongs under [{home}]."
    suggestion = did_you_mean(nearest(key, known[table] if table else known, cutoff=0.4)[:1])
    return f"{called}: means nothing here.{suggestion}"
