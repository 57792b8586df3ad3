"""Fixtures that all tests share."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from hypothesis import settings
from support.fork_server import ForkServer
from support.images import draw_tiny_images
from support.programs import FAST_PYTHON, Ended, environment, fast_python, run_in

from msggan import TELEMETRY_SWITCHES

if TYPE_CHECKING:
    from azure_local import Settings

pytest_plugins = ["azure_local.fixtures", "support.azure_commands", "support.browser", "support.disks"]

# Files with a fixture for all their tests that trains, exports, executes a notebook, sends every request or starts a
# browser.
SHARED = {
    f"test_{name}"
    for name in ("azure_openapi", "cli", "export", "local_sweep", "notebook", "readme", "sweep_report", "verbs")
}

# One thread: networks this small gain nothing by more, and processes beside each other lose much. torch reads this when
# it is imported, which comes later.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.update(TELEMETRY_SWITCHES)

settings.register_profile("suite", deadline=None, max_examples=30)
settings.load_profile("suite")

# A script's `make test &` starts with Ctrl-C ignored, which all that the tests start would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Starts the fork server once, for all of xdist's workers. It imports nothing before it is needed."""
    if hasattr(config, "workerinput") or not hasattr(os, "pidfd_open"):
        return
    folder = Path(tempfile.mkdtemp(prefix="fork-"))
    server = ForkServer(folder)
    os.environ[FAST_PYTHON] = server.python
    config.add_cleanup(lambda: (server.close(), shutil.rmtree(folder, ignore_errors=True)))


def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """For the whole suite xdist's workers are forks too: importing the packages takes each of them 15 seconds."""
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        for spec in specs:
            spec.python = shlex.quote(fast_python())


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file whose tests share a long set-up runs on one of xdist's workers, and starts early; other tests, on any."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if Path(file).stem in SHARED else nodeid

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def azure_settings() -> Settings:
    """The names in the tests' Azure. Its jobs run by the interpreter that starts at once."""
    from azure_local import Settings

    return Settings(group="msggan-rg", workspace="msggan-ws", account="msgganstore", python=fast_python())


@pytest.fixture(scope="session", autouse=True)
def _folders_of_packages(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In the home folder Jupyter's may be read-only or have kernels; torch puts its own among the temporary files."""
    path = str(tmp_path_factory.mktemp("packages"))
    os.environ.update(IPYTHONDIR=path, JUPYTER_CONFIG_DIR=path, JUPYTER_DATA_DIR=path, TORCHINDUCTOR_CACHE_DIR=path)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database with MLflow's tables, which take seconds to create: once for all of xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "mlflow.db"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            unfinished = path.with_suffix(".part")
            create = f"from mlflow import MlflowClient; MlflowClient('sqlite:///{unfinished}').search_experiments()"
            variables = environment(MSGGAN_TRACKING_URI="", MLFLOW_DISABLE_TELEMETRY="true")
            subprocess.run([fast_python(), "-c", create], env=variables, check=True)
            unfinished.rename(path)
    return path


@pytest.fixture
def tiny_images(tmp_path: Path) -> Path:
    """A folder `tiny` of 24 images of 8 x 8 pixels."""
    return draw_tiny_images(tmp_path / "tiny")


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., Ended]:
    """run_program(PROGRAM, *args, **variables): runs it in the test's folder to its end."""
    return partial(run_in, tmp_path)
