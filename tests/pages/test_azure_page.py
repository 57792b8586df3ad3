"""The commands of docs/azure.md, run in order and as typed, do what the page says."""

from __future__ import annotations

import ast
import gc
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from azure_local import AzureLocal
from azure_local.cloud import Version, now
from support.azure_commands import sdk_warnings
from support.images import draw_tiny_images
from support.programs import REPOSITORY

from msggan.commands.program import run_program
from orchestration.commands.main import msggan_aml

pytestmark = sdk_warnings


def commands_in(text: str) -> list[str]:
    return [line.split(" # ")[0].strip() for line in re.findall(r"^    (msggan-aml .*)$", text, re.MULTILINE)]


README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGE = (REPOSITORY / "docs" / "azure.md").read_text(encoding="utf-8")
COMMANDS = commands_in(PAGE)
IN_TEXT = re.findall(r"`(msggan-aml [^`]+)`", PAGE)

# What makes a run short enough for a test; of an option given twice the last counts.
SMALL = ["--resolution", "8", "--latent-size", "8", "--batch-size", "4", "--kimg", "0.04", "--device", "cpu"]


@pytest.fixture
def workdir(azure: AzureLocal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with `photos` in it, and a workspace that has the same as a folder and as a data asset."""
    for name in list(os.environ):
        if name.startswith(("MSGGAN_", "AZURE_", "AZUREML_", "MSI_", "IDENTITY_")):
            monkeypatch.delenv(name)
    for name, value in azure.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for image in draw_tiny_images(tmp_path / "photos").iterdir():
        azure.put_blob(f"photos/{image.name}", image.read_bytes())
    asset = {"dataType": "uri_folder", "dataUri": "azureml://datastores/workspaceblobstore/paths/photos/"}
    azure.cloud.data[("photos", "1")] = Version("photos", "1", asset, now())
    yield tmp_path
    gc.collect()


def as_typed(command: str) -> list[str]:
    """A command's args, agreed to beforehand, as nobody sits at the terminal."""
    args = shlex.split(command)[1:]
    if args[0] in ("submit", "sweep") and args[1] != "best":
        args += SMALL
    if args[0] == "sweep" and args[1] != "best":
        return [*args, "--trials", "2", "--concurrent", "2", "--yes"]
    if args[0] == "pack":
        args += ["--resolution", "8"]
    return [*args, "--yes"] if args[0] in ("submit", "provision") else args


@pytest.mark.slow
def test_the_commands_of_the_page_do_what_they_say_one_after_the_other(azure: AzureLocal, workdir: Path) -> None:
    assert {command.split()[1] for command in COMMANDS} == {
        *("config", "provision", "doctor", "submit", "sweep", "pack", "list", "status", "logs", "cancel", "sample"),
        *("download", "cost"),
    }
    for command in COMMANDS:
        if "--detach" in command:
            azure.hold_jobs()  # one run is enough
        assert run_program(msggan_aml, name="msggan-aml", argv=as_typed(command)) == 0, command
    assert {name: job.status for name, job in azure.cloud.jobs.items()} == {
        "photos": "Completed",
        **dict.fromkeys(("find", "find_0", "find_1"), "Completed"),
        "packed": "Queued",
        "there": "Queued",
        "asset": "Queued",
        "serverless": "Canceled",
    }
    assert {metric.key for metric in azure.job("photos").metrics} >= {"d_loss", "g_loss", "swd", "images_per_second"}
    assert azure.job("photos").parameters["loss_function"] == "relativistic-logistic"
    for printout in ("generator_config.txt", "discriminator_config.txt"):
        assert azure.artifact("photos", printout).startswith((b"Generator(", b"Discriminator("))
    assert (workdir / "photos-run" / "config.json").is_file()
    assert (workdir / "weights" / "generator.safetensors").is_file()
    assert (workdir / "runs" / "photos" / "generated" / "grid_seeds0-15_8px.png").is_file()
    assert "msggan-gpu" not in azure.cloud.computes
    assert azure.blobs_below("photos/"), "deleted what it must not"


@pytest.mark.slow
def test_the_sweep_of_the_guide_runs_on_azure(azure: AzureLocal, workdir: Path) -> None:
    guide = (REPOSITORY / "docs" / "sweeps.md").read_text(encoding="utf-8")
    (command,) = commands_in(re.findall(r"^## On Azure ML$.*?(?=^## )", guide, re.MULTILINE | re.DOTALL)[0])
    azure.add_cluster("msggan-gpu")
    assert run_program(msggan_aml, name="msggan-aml", argv=as_typed(command)) == 0
    assert azure.job("photos-sweep").status == "Completed"


def literals(folder: str) -> list[str]:
    """The texts in the sources below a folder; those of an f-string end where its values begin."""
    return [
        node.value
        for path in sorted((REPOSITORY / folder).glob("**/*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_the_messages_of_the_page_of_troubles_are_those_of_the_commands() -> None:
    page = (REPOSITORY / "docs" / "azure-troubles.md").read_text(encoding="utf-8")
    first_columns = re.findall(r"^\| (?!message|---)(.*?) \| .* \| .* \|$", page, re.MULTILINE)
    messages = [found.strip("`") for column in first_columns for found in re.findall(r"``.+?``|`[^`]+`", column)]
    sources = "\0".join([*literals("orchestration"), *literals("msggan"), *literals("tests/azure_local")])
    sources = re.sub(r"\{\w*\}", "\0", sources)  # the values of a template
    parts = [part.strip() for message in messages for part in re.split(r"…|[()]", message)]
    assert len(parts) > 60
    assert [part for part in parts if part not in sources] == []


def test_the_readme_shows_commands_of_the_page() -> None:
    section = re.search(r"^## Train on Azure ML$.*?(?=^## )", README, re.MULTILINE | re.DOTALL)
    assert section
    shown = commands_in(section[0])
    assert len(shown) >= 2
    assert set(shown) <= set(COMMANDS)


@pytest.mark.parametrize("command", sorted(set(IN_TEXT)))
def test_commands_in_the_text_exist(command: str) -> None:
    verb, *args = shlex.split(command)[1:]
    found = msggan_aml.commands[verb]
    if isinstance(found, click.Group) and args[0] in found.commands:
        found = found.commands[args.pop(0)]
    found.make_parser(click.Context(found)).parse_args(args)


def test_the_python_of_the_readme_trains_on_azure_and_downloads_the_run(workdir: Path) -> None:
    (code,) = re.findall(r"^## Train on Azure ML$.*?```python\n(.*?)```", README, re.MULTILINE | re.DOTALL)
    small = "resolution=8, latent_size=8, batch_size=4, kimg=0.04"
    exec(code.replace("resolution=128", small), {})  # noqa: S102 - what the README shows
    assert (workdir / "photos-run" / "generator.safetensors").is_file()
