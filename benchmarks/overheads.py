"""How long until `msggan-aml` answers, and from `submit` to the first step?

    python -m benchmarks.overheads

Adds its rows to benchmarks/results.json: the shortest time of several, in which other programs disturbed it least.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from benchmarks.results import report_rows, row
from msggan.commands.program import NO_TRACKING, TRACKING_VARIABLES

PROGRAM = [sys.executable, "-c", "from orchestration.commands.main import main; main()"]
ONE_STEP = [
    *("submit", "--target", "local", "--name", "run", "--data", "images", "--resolution", "64"),
    *("--batch-size", "4", "--kimg", "0.004", "--num-samples", "4"),
]
IMAGES = 1000


@click.command()
def main() -> None:
    """Measure the start of the commands and of a run."""
    with tempfile.TemporaryDirectory() as folder:
        draw_images(Path(folder) / "images")
        first_step = min(until_first_step(folder) for _ in range(2))
        run(folder, *ONE_STEP)
        shown = shortest(lambda: run(folder, "--help"))
        status = shortest(lambda: run(folder, "status", "run"))
    rows = [
        row("submit: until the first step", f"{IMAGES} images of 256 px", first_step, "s", bar=4.0, most=True),
        row("msggan-aml --help", "this machine", shown, "s", bar=0.12, most=True),
        row("msggan-aml status NAME", "this machine", status, "s", bar=0.15, most=True),
    ]
    report_rows(rows, torch.device("cpu"))


def draw_images(folder: Path) -> None:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 16, 16, 3), np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{number:04d}.jpg")


def until_first_step(folder: str) -> float:
    """Seconds from the start of a new run to the line that comes before its first step."""
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        began = time.perf_counter()
        with subprocess.Popen(  # noqa: S603 - our own command, as a list
            [*PROGRAM, *ONE_STEP, "--runs-dir", runs],
            cwd=folder,
            env=variables(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None  # noqa: S101 - it is a pipe
            found = next(time.perf_counter() - began for line in process.stderr if line.startswith("Training "))
            process.communicate()
    return found


def run(folder: str, *args: str) -> None:
    subprocess.run([*PROGRAM, *args], cwd=folder, env=variables(), capture_output=True, check=True)  # noqa: S603


def variables() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**compiled, TRACKING_VARIABLES[0]: NO_TRACKING, "PYTHONPATH": root}


def shortest(call: Callable[[], object], times: int = 20) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
