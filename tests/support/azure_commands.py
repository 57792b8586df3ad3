"""The command line against the local Azure, run in the test's process because importing the SDK takes seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from msggan.commands.program import run_program
from orchestration.commands import main as cli
from support.images import draw_tiny_images
from support.programs import Ended, fast_python

if TYPE_CHECKING:
    from azure_local import AzureLocal

Command = Callable[..., Ended]

# The SDK's own: of the libraries it stands on, and of connections that it leaves to the garbage collector.
sdk_warnings = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
posix = pytest.mark.skipif(os.name == "nt", reason="signals between processes are POSIX's")


@pytest.fixture
def workdir(tmp_path: Path, azure: AzureLocal) -> Path:
    """A folder with images, and a workspace with a cluster."""
    azure.add_cluster("msggan-gpu")
    draw_tiny_images(tmp_path / "tiny")
    return tmp_path


@pytest.fixture
def msggan_aml(azure: AzureLocal, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """msggan_aml(*args, **variables): the command line in this process, in the folder with images."""
    monkeypatch.chdir(workdir)
    for name, value in azure.variables.items():
        monkeypatch.setenv(name, value)

    def run(*args: object, **variables: str) -> Ended:
        out, err = StringIO(), StringIO()
        with monkeypatch.context() as set_here, redirect_stdout(out), redirect_stderr(err):
            for name, value in variables.items():
                set_here.setenv(name, value)
            set_here.setattr("orchestration.azure.following.PAUSES_S", (0.1,))
            if "--detach" not in args:
                set_here.setattr(sys, "executable", fast_python())  # for its child processes
            code = run_program(cli.msggan_aml, name="msggan-aml", argv=[str(word) for word in args])
        return Ended(code, out.getvalue(), err.getvalue())

    return run
