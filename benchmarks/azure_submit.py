"""How long does `msggan-aml submit` take to a job that is accepted, and how many requests, against the bare SDK?

    python -m benchmarks.azure_submit [--images N] [--rounds N]

Both send a folder of small images, the msggan package and a job to the local Azure (tests/azure_local), each from a
fresh process, in turns, and each again under another name, when data and code are there already. On this machine a
request takes no time to travel; to a real region each costs some 30 to 150 ms more. Writes its rows into
benchmarks/results.json and prints them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from benchmarks.results import report_rows, row
from orchestration.azure.submission import build_snapshot
from tests.azure_local import azurite
from tests.azure_local.local import AzureLocal
from tests.azure_local.messages import Recorded

ROOT = Path(__file__).resolve().parent.parent
SIDE_PX = 32
PATIENCE_S = 300
BAR = 1 / 1.2  # at most 1.2 times as slow, and as many requests
SHORT = {"first": "first submission", "again": "again under another name"}

Command = Callable[[str], list[str]]  # a job's name → the command line that submits it


@dataclass(frozen=True)
class Sent:
    """One submission: seconds to the job's acceptance, and the requests until then."""

    seconds: float
    requests: int


@click.command()
@click.option("--images", default=1000, show_default=True, help="Images in the folder.")
@click.option("--rounds", default=3, show_default=True, help="How often each is measured; the minimum counts.")
def main(images: int, rounds: int) -> None:
    """Time submissions against the bare SDK."""
    reason = azurite.missing()
    if reason:
        raise click.ClickException(reason)
    with tempfile.TemporaryDirectory() as name, AzureLocal() as azure:
        folder = Path(name)
        draw_images(folder / "images", images)
        for path, content in build_snapshot().items():
            (folder / "code" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "code" / path).write_bytes(content)
        measured: dict[str, list[dict[str, Sent]]] = {"ours": [], "bare": []}
        for _ in range(rounds):
            for who, sent in measured.items():
                sent.append(submissions(azure, folder, who, str(folder / "code")))
    rows = rows_of(measured, f"{images:,} images of {SIDE_PX} px")
    report_rows(rows, torch.device("cpu"))


def draw_images(folder: Path, number: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(number):
        pixels = random.integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:05d}.png")


def submissions(azure: AzureLocal, folder: Path, who: str, code: str) -> dict[str, Sent]:
    """The first submission into a workspace that has just been provisioned, and one of the same under another name."""
    azure.reset()
    azure.hold_jobs()
    shutil.rmtree(folder / "runs", ignore_errors=True)  # and with it the records of what the workspace has
    subprocess.run(  # noqa: S603 - our own command
        msggan_aml("provision", "--yes"), cwd=folder, env=variables(azure), check=True, capture_output=True
    )
    ((environment, version),) = azure.cloud.environments
    command = bare(code, f"{environment}:{version}") if who == "bare" else ours
    sent = {when: submit(azure, folder, command, f"{who}-{when}") for when in SHORT}
    if complaints := azure.complaints():
        raise click.ClickException("\n".join(complaints))
    return sent


def ours(name: str) -> list[str]:
    words = ("--data", "images", "--name", name, "--resolution", SIDE_PX, "--detach", "--yes")
    return msggan_aml("submit", *words)


def bare(code: str, environment: str) -> Command:
    return lambda name: [sys.executable, "-m", "benchmarks.bare_submit", name, "images", code, environment]


def msggan_aml(*words: object) -> list[str]:
    return [sys.executable, "-c", "from orchestration.commands.main import main; main()", *map(str, words)]


def variables(azure: AzureLocal) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MSGGAN_", "AZURE"))}
    return {**kept, **azure.variables, "PYTHONPATH": str(ROOT)}


def submit(azure: AzureLocal, folder: Path, command: Command, name: str) -> Sent:
    """Runs one submission to its end, and measures to the moment at which the job is there."""
    before = len(azure.requests)
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            command(name), cwd=folder, env=variables(azure), stdout=output, stderr=output
        )
        while name not in azure.cloud.jobs and process.poll() is None and time.perf_counter() < began + PATIENCE_S:
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        if process.wait(PATIENCE_S) != 0 or name not in azure.cloud.jobs:
            output.seek(0)
            raise click.ClickException(f"{name} was not submitted: {output.read().decode()}")
    return Sent(seconds, requests_until(azure.requests[before:], name))


def requests_until(requests: Sequence[Recorded], name: str) -> int:
    """How many there were, up to the one that made the job."""
    return next(
        number
        for number, request in enumerate(requests, start=1)
        if request.method == "PUT" and request.path.endswith(f"/jobs/{name}")
    )


def rows_of(measured: dict[str, list[dict[str, Sent]]], setting: str) -> list[dict[str, Any]]:
    rows = []
    for when, in_words in SHORT.items():
        for name, unit, value in (
            ("submit: time to job accepted", "s", lambda sent: sent.seconds),
            ("submit: requests to job accepted", "requests", lambda sent: sent.requests),
        ):
            found = {who: min(value(sent[when]) for sent in all_sent) for who, all_sent in measured.items()}
            ours, bare = found["ours"], found["bare"]
            rows.append(row(name, f"{setting}, {in_words}", ours, unit, baseline=bare, ratio=bare / ours, bar=BAR))
    return rows


if __name__ == "__main__":
    main()
