"""How large is a checkpoint, how long does it hold up training, and how long does it take to write and to resume?

    python -m benchmarks.checkpoints

The baseline of the time that training is held up is the time that it takes to train from one checkpoint to the next, at
the default interval: their quotient is what checkpoints cost. Adds its rows to benchmarks/results.json.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.bench import SIZES, timed
from benchmarks.results import report_rows, row
from msggan.config import TrainConfig, resolve
from msggan.device import choose_device
from msggan.randomness import latents
from msggan.runs.checkpoint import CheckpointWriter, newest_checkpoint
from msggan.runs.folder import RunFolder
from msggan.steps import TrainingState

BAR = 0.02  # of the time that training takes


@click.command()
@click.option("--device", default="auto", show_default=True)
def main(device: str) -> None:
    """Measure checkpoints at three sizes."""
    place = choose_device(device)
    rows = [each for size in SIZES for each in rows_of(*size, device=place)]
    report_rows(rows, place)


def rows_of(resolution: int, latent_size: int, batch_size: int, *, device: torch.device) -> list[dict[str, Any]]:
    asked = TrainConfig(resolution=resolution, latent_size=latent_size, batch_size=batch_size, precision="float32")
    config = resolve(asked, shorter_side_px=resolution, device=device.type, has_fast_bfloat16=False)
    networks = TrainingState(config, device)
    reals = torch.rand(batch_size, 3, resolution, resolution) * 2 - 1
    drawn = latents(0, range(batch_size), latent_size)
    networks.step(reals, drawn)
    step = min(timed(lambda: networks.step(reals, drawn), device) for _ in range(2))
    interval = step * config.checkpoint_kimg * 1000 / batch_size
    setting = f"{resolution} px, latent {latent_size}, batch {batch_size}, every {config.checkpoint_kimg:g} kimg"
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(place)
        writer = CheckpointWriter(folder, may_write=lambda: None)
        held_up = seconds(lambda: writer.save(networks.images_seen, networks.tensors(), {}, config=asdict(config)))
        written = held_up + seconds(writer.finish)
        size = max(path.stat().st_size for path in folder.checkpoints.iterdir())
        resumed = seconds(lambda: resume(folder.checkpoints, networks))
    return [
        row("checkpoint: size", setting, size / 2**20, "MiB"),
        row(
            "checkpoint: training held up",
            setting,
            held_up,
            "s",
            baseline=interval,
            ratio=held_up / interval,
            bar=BAR,
            most=True,
        ),
        row("checkpoint: written after", setting, written, "s"),
        row("checkpoint: resumed after", setting, resumed, "s"),
    ]


def resume(checkpoints: Path, networks: TrainingState) -> None:
    checkpoint, _ = newest_checkpoint(checkpoints)
    assert checkpoint is not None  # noqa: S101 - it has just been written
    networks.load(checkpoint.tensors, images_seen=checkpoint.images_seen)


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
