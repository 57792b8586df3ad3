"""What do the tests share? Small images drawn for them, and our programs started as real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msggan.telemetry import SWITCHES

pytest_plugins = ["azure_local.fixtures", "azure_commands"]

# One thread: networks this small gain nothing by more, and processes beside each other lose much. torch reads this when
# it is imported, which comes later.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.update(SWITCHES)

# A script's `make test &` starts with Ctrl-C ignored, which all that the tests start would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent
MOUNT, UMOUNT = shutil.which("mount") or "/bin/mount", shutil.which("umount") or "/bin/umount"

PROGRAMS = {
    "msggan-aml": ["-c", "from orchestration.cli import main; main()"],
    "msggan.train": ["-m", "msggan.train"],
    "msggan.sample": ["-m", "msggan.sample"],
    "msggan.pack": ["-m", "msggan.pack"],
    "msggan.export": ["-m", "msggan.export"],
}


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """What stdout holds, which must be one line of JSON and nothing else."""
        (line,) = self.stdout.splitlines()
        told: dict[str, Any] = json.loads(line)
        return told


@pytest.fixture(scope="session", autouse=True)
def _jupyter_away_from_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The home folder may be read-only, or have kernels and start-up files of its own."""
    place = str(tmp_path_factory.mktemp("jupyter"))
    os.environ.update(IPYTHONDIR=place, JUPYTER_CONFIG_DIR=place, JUPYTER_DATA_DIR=place)


def draw_tiny_images(folder: Path) -> Path:
    """24 different PNGs of 8 x 8 pixels: a coloured square on a coloured ground."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(24):
        pixels = np.empty((8, 8, 3), np.uint8)
        pixels[:] = random.integers(0, 256, 3)
        top, left = random.integers(0, 5, 2)
        pixels[top : top + 4, left : left + 4] = random.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def tiny_images(tmp_path: Path) -> Path:
    """A folder `tiny` of 24 images of 8 x 8 pixels."""
    return draw_tiny_images(tmp_path / "tiny")


@dataclass(frozen=True)
class Disk:
    """A small disk of its own, in memory."""

    path: Path

    def resize(self, *, kib: int) -> None:
        """Has room for so much from now on, what is on it included."""
        subprocess.run([MOUNT, "-o", f"remount,size={kib}k", str(self.path)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of two MiB, where this machine lets us mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = [MOUNT, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    yield Disk(path)
    subprocess.run([UMOUNT, "--lazy", str(path)], check=True)


def environment(**extra: str) -> dict[str, str]:
    """This process's variables without those that our programs read, and with this checkout's packages first.

    Runs are told to no MLflow unless a test says so: importing it takes longer than training them.
    """
    ours = ("MSGGAN_", "AZUREML_", "MLFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), kept.get("PYTHONPATH", "")]))
    return {**kept, "PYTHONPATH": path, "MSGGAN_TRACKING_URI": "none", **extra}


def command_line(program: str, *words: object) -> list[str]:
    return [sys.executable, *PROGRAMS[program], *map(str, words)]


def run_in(folder: Path, program: str, *words: object, **variables: str) -> Ended:
    """Runs a program in a folder to its end."""
    ended = subprocess.run(
        command_line(program, *words),
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        encoding="utf-8",
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@contextmanager
def started(
    folder: Path, program: str, *words: object, background: bool = False, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """A program at work in a folder, in a process group of its own like a terminal's; none of it outlives the test.

    background: it starts with SIGINT ignored, as a script's `command &` does.
    """
    deaf = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"] if background else []
    with subprocess.Popen(
        [*deaf, *command_line(program, *words)],
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def stopped(process: subprocess.Popen[str], by: str) -> Ended:
    """A program that gets Ctrl-C as from a terminal, which sends it to all that run in it, or SIGTERM alone."""
    if by == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.SIGTERM)
    stdout, stderr = process.communicate()
    return Ended(process.returncode, stdout, stderr)


def wait_for(reached: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Until something is so. A process that was to bring it about must not end before."""
    while not reached():
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., Ended]:
    """run_program(PROGRAM, *words, **variables): runs it in the test's folder to its end."""
    return partial(run_in, tmp_path)
