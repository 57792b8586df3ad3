"""The workspace is found from the options, the environment or config.json, and an incomplete one is reported."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from msggan.errors import UsageError
from orchestration.settings import WORKSPACE_VARIABLES, Workspace, read_settings

KEYS = tuple(WORKSPACE_VARIABLES)
VARIABLES = {variable: f"{key}-by-variable" for key, variable in WORKSPACE_VARIABLES.items()}
FLAGS: dict[str, str | bool | None] = {key: f"{key}-by-flag" for key in KEYS}


def written(path: Path, mark: str) -> Path:
    """A file that names a workspace, its parts marked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps({key: f"{key}-by-{mark}" for key in KEYS}))
    else:
        path.write_text("\n".join(["[workspace]", *(f"{key} = '{key}-by-{mark}'" for key in KEYS)]))
    return path


def found(folder: Path, flags: dict[str, str | bool | None] | None = None, **environ: str) -> Workspace | None:
    return read_settings(flags or {}, folder=folder, environ=environ).workspace


def mark(workspace: Workspace | None) -> str:
    """The mark of all three parts, which must be the same."""
    assert workspace is not None
    (found_mark,) = {getattr(workspace, key).removeprefix(f"{key}-by-") for key in KEYS}
    return str(found_mark)


def complaints(folder: Path, flags: dict[str, str | bool | None] | None = None, **environ: str) -> list[str]:
    with pytest.raises(UsageError) as raised:
        found(folder, flags, **environ)
    return list(raised.value.problems)


def test_without_settings_there_is_no_workspace(tmp_path: Path) -> None:
    assert found(tmp_path) is None


def test_the_order_is_flags_variables_files(tmp_path: Path) -> None:
    path = written(tmp_path / "config.json", "file")
    by_flag, by_variable, by_file = (
        found(tmp_path, FLAGS, **VARIABLES),
        found(tmp_path, **VARIABLES),
        found(tmp_path),
    )
    assert [mark(workspace) for workspace in (by_flag, by_variable, by_file)] == ["flag", "variable", "file"]
    assert [workspace.sources for workspace in (by_flag, by_variable, by_file) if workspace] == [
        {key: f"flag --{key.replace('_', '-')}" for key in KEYS},
        {key: f"variable {variable}" for key, variable in WORKSPACE_VARIABLES.items()},
        dict.fromkeys(KEYS, str(path)),
    ]
    assert [workspace.source for workspace in (by_flag, by_variable, by_file) if workspace] == [
        "flag --workspace-name",
        "variable AZUREML_ARM_WORKSPACE_NAME",
        str(path),
    ]


@pytest.mark.parametrize("file", ["config.json", ".azureml/config.json", "msggan.toml"])
def test_a_file_counts_for_the_folders_under_it(tmp_path: Path, file: str) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    path = written(tmp_path / file, "file")
    workspace = found(inner)
    assert mark(workspace) == "file"
    assert workspace is not None
    assert workspace.source == str(path)


def test_the_nearest_folder_wins_and_in_one_folder_msggan_toml(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    written(tmp_path / "msggan.toml", "outer-toml")
    written(inner / "config.json", "inner-json")
    assert mark(found(inner)) == "inner-json"
    written(inner / ".azureml" / "config.json", "inner-azureml")
    assert mark(found(inner)) == "inner-azureml"
    written(inner / "msggan.toml", "inner-toml")
    assert mark(found(inner)) == "inner-toml"


def test_a_workspace_in_one_line_is_read_as_azures_own_tools_read_it(tmp_path: Path) -> None:
    scope = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"Scope": scope}))
    assert found(tmp_path) == Workspace("s", "g", "w", dict.fromkeys(KEYS, str(path)))


@pytest.mark.parametrize(
    "content",
    [
        *["[]", "{}", '{"resolution": 8}', '{"Scope": "/elsewhere"}', "[" * 100_000, "// not JSON", '{"a": 1'],
    ],
    ids=range(7),
)
def test_other_files_called_config_json_are_no_workspace(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert found(tmp_path) is None
    (tmp_path / ".azureml" / "config.json").mkdir(parents=True)
    assert found(tmp_path) is None


AGAIN = "Download it again from Azure ML Studio, or delete it."


@pytest.mark.parametrize("file", ["config.json", ".azureml/config.json"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", f": is empty. {AGAIN}"),
        (" \n", f": is empty. {AGAIN}"),
        (
            '{"subscription_id": "s", "resour',
            f": is not JSON: Unterminated string starting at: line 1 column 26. {AGAIN}",
        ),
        ('{"workspace_name": w}', f": is not JSON: Expecting value: line 1 column 20. {AGAIN}"),
        (
            '{"subscription_id": "s", "resource_group": "g"}',
            ": workspace_name: is not set; a workspace requires all three parts.",
        ),
        (
            '{"subscription_id": "s", "resource_group": "g", "workspace_name": ""}',
            ": workspace_name : must be a name without spaces and slashes.",
        ),
        (
            '{"subscription_id": "s", "resource_group": "g", "workspace_name": null}',
            ": workspace_name None: must be a name without spaces and slashes.",
        ),
        ('{"Scope": "/subscriptions/s/resourceGroups/g"}', f": Scope is not the resource ID of a workspace. {AGAIN}"),
    ],
)
def test_a_broken_config_json_is_an_error_and_not_the_absence_of_a_workspace(
    tmp_path: Path, file: str, content: str, problem: str
) -> None:
    written(tmp_path / "config.json", "outer")
    inner = tmp_path / "project" / "inner"
    path = tmp_path / "project" / file
    for folder in (inner, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    assert complaints(inner) == [f"{path}{problem}"]
    assert mark(found(inner, FLAGS)) == "flag"


def test_a_config_json_in_another_encoding_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "config.json", "file")
    path.write_text(path.read_text(), encoding="utf-16")  # as PowerShell redirects output
    assert mark(found(tmp_path)) == "file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_config_json_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "config.json", "file")
    path.chmod(0)
    assert complaints(tmp_path) == [f"{path}: cannot be read: Permission denied."]


def test_a_table_in_a_comment_or_in_another_table_is_no_workspace(tmp_path: Path) -> None:
    (tmp_path / "msggan.toml").write_text("[azure]\n# [workspace]\n")
    assert found(tmp_path) is None


@pytest.mark.parametrize("given", [KEYS[:1], KEYS[1:]])
def test_an_incomplete_workspace_is_reported_with_what_is_missing(tmp_path: Path, given: tuple[str, ...]) -> None:
    missing = [key for key in KEYS if key not in given]
    lacks = "is not set; a workspace requires all three parts."
    variables = {WORKSPACE_VARIABLES[key]: "x" for key in given}
    assert complaints(tmp_path, **variables) == [f"{WORKSPACE_VARIABLES[key]}: {lacks}" for key in missing]
    flags = [f"--{key.replace('_', '-')}: {lacks}" for key in missing]
    assert complaints(tmp_path, dict.fromkeys(given, "x")) == flags
    path = tmp_path / "msggan.toml"
    path.write_text("\n".join(["[workspace]", *(f"{key} = 'x'" for key in given)]))
    assert complaints(tmp_path) == [f"{path}: [workspace] {key}: {lacks}" for key in missing]


@pytest.mark.parametrize("name", ["", "a b", "a/b"])
def test_invalid_names_are_reported(tmp_path: Path, name: str) -> None:
    (problem,) = complaints(tmp_path, {**FLAGS, "workspace_name": name})
    assert problem.startswith(f"--workspace-name {name}: ")
    path = tmp_path / "msggan.toml"
    path.write_text("[workspace]\nsubscription_id = 's'\nresource_group = 'g'\nworkspace_name = 5\n")
    (problem,) = complaints(tmp_path)
    assert problem.startswith(f"{path}: [workspace] workspace_name 5: ")
