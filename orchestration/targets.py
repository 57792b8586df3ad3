"""Where does a run go? What a target can do, and which one serves when nobody says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from orchestration.spec import Run, RunSpec

TARGETS = ("auto", "local")

WORKSPACE_KEYS = ("subscription_id", "resource_group", "workspace_name")
WORKSPACE_VARIABLES = ("AZUREML_ARM_SUBSCRIPTION", "AZUREML_ARM_RESOURCEGROUP", "AZUREML_ARM_WORKSPACE_NAME")


class Target(Protocol):
    """A place where runs train."""

    def plan(self, spec: RunSpec) -> dict[str, Any]:
        """What `submit` would do, as plain values. Touches nothing."""
        ...

    def submit(self, spec: RunSpec) -> Run:
        """Starts the run, or resumes the one of that name, and follows it to its end."""
        ...


@dataclass(frozen=True)
class Choice:
    """The target that serves, and why, as the end of a sentence."""

    target: str
    reason: str


def target_problems(asked: str) -> list[str]:
    if asked in TARGETS:
        return []
    near = get_close_matches(asked, TARGETS, n=1)
    suggestion = f" Did you mean {near[0]}?" if near else ""
    return [f"--target {asked}: is not one of {', '.join(TARGETS)}.{suggestion}"]


def choose(asked: str, *, folder: Path, environ: Mapping[str, str]) -> Choice:
    """The target for what --target says, in a folder and its environment."""
    if asked != "auto":
        return Choice(asked, "as --target says")
    workspace = find_workspace(folder, environ)
    if workspace is None:
        return Choice("local", "no Azure ML workspace is configured")
    return Choice("local", f"this version does not submit to Azure ML yet, though {workspace} names a workspace")


def build_target(name: str, *, runs_dir: str) -> Target:
    from orchestration.local import LocalTarget  # a target is loaded when it serves

    return {"local": LocalTarget}[name](runs_dir)


def find_workspace(folder: Path, environ: Mapping[str, str]) -> str | None:
    """What names an Azure ML workspace here: environment variables, or a file in `folder` or a folder above it."""
    if all(environ.get(variable) for variable in WORKSPACE_VARIABLES):
        return WORKSPACE_VARIABLES[-1]
    for place in (folder, *folder.parents):
        for path in (place / "config.json", place / ".azureml" / "config.json"):
            if _names_workspace(path):
                return str(path)
        if _has_workspace_table(place / "msggan.toml"):
            return str(place / "msggan.toml")
    return None


def _names_workspace(path: Path) -> bool:
    """Whether this is the file that Azure ML writes. Much else is called config.json, a run's own among it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and all(content.get(key) for key in WORKSPACE_KEYS)


def _has_workspace_table(path: Path) -> bool:
    # Only the heading counts so far, and Python 3.10 has no tomllib.
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return re.search(r"^[ \t]*\[[ \t]*workspace[ \t]*\]", text, flags=re.MULTILINE) is not None
