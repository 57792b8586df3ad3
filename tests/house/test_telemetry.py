"""The packages that we use send no telemetry unless the user enables it.

The processes start with a login's environment only: pytest's own variables, and CI's, turn MLflow's and onnxruntime's
telemetry off as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import REPOSITORY, command_line, fast_python

from msggan import TELEMETRY_SWITCHES
from orchestration.settings import WORKSPACE_VARIABLES


def login(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a user with this home folder, whose network leads nowhere."""
    home.mkdir(exist_ok=True)
    nowhere = "http://127.0.0.1:9"
    return {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "HTTPS_PROXY": nowhere,
        "HTTP_PROXY": nowhere,
        **variables,
    }


def values_in_a_process(**variables: str) -> list[str]:
    code = f"import os, msggan; print(*map(os.environ.get, {list(TELEMETRY_SWITCHES)!r}))"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), **variables}
    return subprocess.check_output([sys.executable, "-c", code], env=environ, encoding="utf-8").split()


def test_importing_msggan_turns_telemetry_off() -> None:
    assert values_in_a_process() == list(TELEMETRY_SWITCHES.values())


@pytest.mark.parametrize("name", TELEMETRY_SWITCHES)
def test_a_switch_that_the_user_has_set_stays(name: str) -> None:
    assert values_in_a_process(**{name: "mine"}) == [
        "mine" if other == name else TELEMETRY_SWITCHES[other] for other in TELEMETRY_SWITCHES
    ]


def test_the_tests_themselves_turn_it_off() -> None:
    assert TELEMETRY_SWITCHES.items() <= os.environ.items()


@pytest.mark.slow
def test_mlflow_and_onnxruntime_send_no_telemetry_and_store_no_identity(tmp_path: Path) -> None:
    code = (
        "import msggan, mlflow, onnxruntime\n"
        "from mlflow.telemetry import get_telemetry_client\n"
        "print(get_telemetry_client())"
    )
    result = subprocess.check_output([sys.executable, "-c", code], env=login(tmp_path / "home"), encoding="utf-8")
    assert result == "None\n"
    assert list((tmp_path / "home").rglob("*")) == []


@pytest.mark.skipif(os.name == "nt", reason="the Azure CLI here is a shell script")
def test_the_azure_cli_sends_no_telemetry(tmp_path: Path) -> None:
    az = tmp_path / "bin" / "az"
    az.parent.mkdir()
    az.write_text(f'#!/bin/sh\necho "$AZURE_CORE_COLLECT_TELEMETRY" > {tmp_path}/result\necho "az login" >&2\nexit 1\n')
    az.chmod(0o755)
    environ = login(tmp_path / "home", **dict.fromkeys(WORKSPACE_VARIABLES.values(), "w"))
    environ |= {"AZURE_TOKEN_CREDENTIALS": "AzureCliCredential", "PATH": f"{az.parent}{os.pathsep}{environ['PATH']}"}
    ended = subprocess.run(
        command_line("msggan-aml", "list", "--target", "azure", python=fast_python()),
        cwd=tmp_path,
        env=environ,
        check=False,
    )
    assert ended.returncode == 4
    assert (tmp_path / "result").read_text() == "false\n"
