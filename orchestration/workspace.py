"""Which Azure ML workspace is meant? A workspace is taken whole, from the first place that names one.

The places, in order: flags, variables, then the folders from the current one upwards, the nearest first. In one folder
msggan.toml comes before Azure ML's own file: it was written for this program, the other for whatever uses Azure ML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msggan.config import flag
from msggan.errors import UsageError
from orchestration.settings_file import SettingsFile

WORKSPACE_TABLE = "workspace"
WORKSPACE_VARIABLES = {
    "subscription_id": "AZUREML_ARM_SUBSCRIPTION",
    "resource_group": "AZUREML_ARM_RESOURCEGROUP",
    "workspace_name": "AZUREML_ARM_WORKSPACE_NAME",
}
WORKSPACE_HELP = {
    "subscription_id": "The subscription of the Azure ML workspace.",
    "resource_group": "The resource group of the Azure ML workspace.",
    "workspace_name": "The name of the Azure ML workspace.",
}
# How `az configure` writes a workspace into config.json, in one line.
SCOPE = re.compile(
    r"/subscriptions/(?P<subscription_id>[^/]+)/resourceGroups/(?P<resource_group>[^/]+)"
    r"/providers/Microsoft\.MachineLearningServices/workspaces/(?P<workspace_name>[^/]+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Workspace:
    """An Azure ML workspace. sources: by part where it was given: a flag, a variable or a file."""

    subscription_id: str
    resource_group: str
    workspace_name: str
    sources: Mapping[str, str]

    @property
    def source(self) -> str:
        """Where the workspace's name was given."""
        return self.sources["workspace_name"]

    def as_json(self) -> dict[str, str]:
        return {**{key: getattr(self, key) for key in WORKSPACE_VARIABLES}, "source": self.source}


def find_workspace(
    flags: Mapping[str, Any], *, folder: Path, environ: Mapping[str, str], file: SettingsFile
) -> Workspace | None:
    """The workspace that is meant, None where none is named. folder: absolute. Raises UsageError for half of one."""
    by_flags = {key: flags[key] for key in WORKSPACE_VARIABLES if flags.get(key) is not None}
    if by_flags:
        flags_of = {key: flag(key) for key in WORKSPACE_VARIABLES}
        return _whole(by_flags, flags_of, {key: f"flag {name}" for key, name in flags_of.items()})
    by_variables = {key: environ[name] for key, name in WORKSPACE_VARIABLES.items() if environ.get(name)}
    if by_variables:
        sources = {key: f"variable {name}" for key, name in WORKSPACE_VARIABLES.items()}
        return _whole(by_variables, WORKSPACE_VARIABLES, sources)
    return next(_in_files(folder, file), None)


def _in_files(folder: Path, file: SettingsFile) -> Iterator[Workspace]:
    for place in (folder, *folder.parents):
        if file.path is not None and file.path.parent == place and WORKSPACE_TABLE in file.tables:
            labels = {key: f"{file.path}: [{WORKSPACE_TABLE}] {key}" for key in WORKSPACE_VARIABLES}
            yield _whole(file.tables[WORKSPACE_TABLE], labels, dict.fromkeys(labels, str(file.path)))
        for path in (place / ".azureml" / "config.json", place / "config.json"):
            if named := _named_in(path):
                labels = {key: f"{path}: {key}" for key in WORKSPACE_VARIABLES}
                yield _whole(named, labels, dict.fromkeys(labels, str(path)))


def _named_in(path: Path) -> dict[str, Any]:
    """The workspace in a file that Azure ML wrote. Much else is called config.json, a run's own among it: {}."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    if scope := SCOPE.fullmatch(str(content.get("Scope", ""))):
        return scope.groupdict()
    named = {key: content.get(key) for key in WORKSPACE_VARIABLES}
    return named if all(named.values()) else {}


def _whole(said: Mapping[str, Any], labels: Mapping[str, str], sources: Mapping[str, str]) -> Workspace:
    """The workspace of which `said` should name all three parts. labels: what a complaint calls each part."""
    problems = [f"{labels[key]}: is missing; a workspace needs all three." for key in labels if key not in said]
    for key, value in said.items():
        if key in labels and not (isinstance(value, str) and re.fullmatch(r"[^\s/?#]+", value)):
            problems.append(f"{labels[key]} {value}: must be a name, without spaces and slashes.")
    if problems:
        raise UsageError(problems)
    return Workspace(**{key: said[key] for key in WORKSPACE_VARIABLES}, sources=sources)
