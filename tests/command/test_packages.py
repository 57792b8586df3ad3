"""A missing package is reported together with all others that are missing, and with the command to install them.

The processes run without site-packages (`python -S`), beside a folder with only the packages that the test names.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.programs import REPOSITORY, Ended, environment

from msggan.commands.program import OTHERS, TRAINING, training_packages

Run = Callable[..., Ended]

NEEDED = "filelock, numpy, pillow, safetensors, torch, torchvision"
IN_AZURE = "azureml://eastus.api.azureml.ms/mlflow/v1.0/w"
WORDS = ("--data", "x", "--run-dir", "y", "--kimg", "nonsense")


@pytest.fixture
def bare(tmp_path: Path) -> Run:
    """bare(PYTHON'S ARGS, has=PACKAGES, **variables): a Python that has these packages and no others."""

    def run(*args: str, has: tuple[str, ...] = (), **variables: str) -> Ended:
        site = tmp_path / "site"
        site.mkdir()
        for name in has:
            spec = find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            (site / name).symlink_to(Path(spec.origin).parent, target_is_directory=True)
        ended = subprocess.run(
            [sys.executable, "-S", *args],
            cwd=tmp_path,
            env=environment(**variables) | {"PYTHONPATH": f"{REPOSITORY}:{site}"},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


def asked_for(names: str) -> str:
    """A pattern of what pip is to install: each name with its bounds."""
    return " ".join(rf"'?{re.escape(name)}[<>=][^' ]*'?" for name in names.split(", "))


def test_training_names_all_that_is_missing_before_it_looks_at_options(bare: Run) -> None:
    ended = bare("-m", "msggan.train", *WORDS, "-o", "json", has=("click",))
    message = f"Missing Python packages: {NEEDED}. This Python is {sys.executable}."
    hint = f"Install: {sys.executable} -m pip install "
    assert ended.exit_code == 2
    assert re.fullmatch(re.escape(f"Error: {message}\n{hint}") + asked_for(NEEDED) + "\n", ended.stderr)
    error = ended.json["error"]
    assert (error["code"], error["message"]) == ("missing_packages", message)
    assert re.fullmatch(re.escape(hint) + asked_for(NEEDED), error["hint"])


@pytest.mark.parametrize("output", ["text", "json"])
def test_all_that_is_missing_is_named_without_click_too(bare: Run, output: str) -> None:
    ended = bare("-m", "msggan.train", *WORDS, MSGGAN_OUTPUT=output, MSGGAN_TRACKING_URI="http://127.0.0.1:9")
    message = (
        f"Missing Python packages: click, {NEEDED.replace('numpy', 'mlflow, numpy')}. This Python is {sys.executable}."
    )
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert message in ended.json["error"]["message"] if output == "json" else ended.stdout == ""


def test_a_job_names_its_environment_and_the_packages_of_mlflow(bare: Run) -> None:
    variables = {"AZUREML_RUN_ID": "one", "MSGGAN_TRACKING_URI": "", "MLFLOW_TRACKING_URI": IN_AZURE}
    ended = bare("-m", "msggan.train", *WORDS, has=("click", "filelock", "safetensors", "numpy"), **variables)
    missing = "azureml-mlflow, mlflow, pillow, torch, torchvision"
    assert ended.exit_code == 2
    result = (
        f"Error: Missing Python packages: {missing}. This Python is {sys.executable}.\n"
        "The job's environment lacks them. Submit again with --environment curated, which has all that training "
        "needs, or add them to your own image or conda file: "
    )
    assert re.fullmatch(re.escape(result) + asked_for(missing) + "\n", ended.stderr)


def test_help_needs_nothing_but_click(bare: Run) -> None:
    ended = bare("-m", "msggan.train", "--help", has=("click",))
    assert (ended.exit_code, "--resolution" in ended.stdout) == (0, True)


@pytest.mark.parametrize(
    ("args", "package"),
    [
        (("msggan.sample", "--run-dir", "."), "(numpy|torch|pillow|imageio-ffmpeg|safetensors)"),
        (("msggan.pack", "--data", ".", "--out", "x.safetensors", "--resolution", "8"), "(numpy|torch|pillow)"),
    ],
)
def test_every_program_names_the_package_it_lacks(bare: Run, args: tuple[str, ...], package: str) -> None:
    ended = bare("-m", *args, has=("click", "filelock"))
    assert ended.exit_code == 2
    result = rf"Error: Missing Python packages: {package}\. This Python is .*\nInstall: .*\n"
    assert re.fullmatch(result, ended.stderr), ended.stderr


def test_a_missing_module_of_ours_is_a_traceback(bare: Run) -> None:
    code = (
        "import click\nfrom msggan.commands.program import run_program\n"
        "@click.command()\ndef one():\n    import msggan.nonsense\n"
        "run_program(one, name='one', argv=[])"
    )
    ended = bare("-c", code, has=("click",))
    assert ended.exit_code == 1
    assert ended.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'msggan.nonsense'"


def test_the_bounds_are_those_that_msggan_declares() -> None:
    declared = {Requirement(line) for line in requires("msggan") or []}
    named = {*training_packages(IN_AZURE).values(), *OTHERS.values()}
    assert {Requirement(line) for line in named} <= declared
    assert training_packages(None) == TRAINING
    assert list(training_packages("sqlite:///x.db")) == [*TRAINING, "mlflow"]
    assert list(training_packages(IN_AZURE)) == [*TRAINING, "mlflow", "azureml.mlflow"]
