"""Runs that are killed again and again by SIGKILL, and a comparison byte for byte."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors import safe_open

from msggan.runs.checkpoint import newest_checkpoint
from msggan.tracking.metrics_log import TIMINGS, read_metrics
from support.programs import command_line, environment, fast_python, run_in

if TYPE_CHECKING:
    from torch import Tensor

    from msggan import Trainer

SHARE_AT_START = 0.2  # the share of kills before the first step
LOOK_SECONDS = 0.005


@dataclass(frozen=True)
class Loss:
    """The cost of the kills: their number, and the number of images trained on more than once."""

    kills: int
    images_again: int


OPTIONS = ["--resolution", 8, "--latent-size", 8, "--batch-size", 4, "--penalty-interval", 2, "--num-samples", 4]


def without_timings(reports: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """The reports of evaluations, which do not depend on the speed; of the others, there is one every few seconds."""
    return [{key: line[key] for key in line if key not in TIMINGS} for line in reports if "swd" in line]


def everything(run_dir: Path) -> tuple[dict[str, bytes], list[dict[str, float]], dict[str, bytes]]:
    """What equal runs have in common, byte for byte: the last tensors and weights, the metrics, and what they kept.

    These are samples, snapshots and the best weights, which depend on when the run was evaluated.
    """
    checkpoint, damaged = newest_checkpoint(run_dir / "checkpoints")
    assert checkpoint is not None
    assert not damaged
    tensors = {name: tensor.numpy().tobytes() for name, tensor in checkpoint.tensors.items()}
    kept = {path.name: path.read_bytes() for path in sorted((run_dir / "samples").iterdir())}
    for path in sorted([*run_dir.glob("*.safetensors"), *run_dir.glob("snapshots/*")]):
        with safe_open(path, framework="np") as file:  # the order of the metadata varies
            found = {f"{path.name} {name}": file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
            found[f"{path.name} measured"] = (file.metadata() or {}).get("best", "").encode()
        (tensors if path.name == "generator.safetensors" else kept).update(found)
    return tensors, without_timings(read_metrics(run_dir / "metrics.jsonl")), kept


def stop_at(ours: Trainer, images_seen: int) -> None:
    """Runs, and dies as if at once when it has seen so many images."""
    plain_step = ours.training_state.step

    def step(reals: Tensor, latents: Tensor) -> dict[str, Tensor]:
        if ours.images_seen == images_seen:
            raise KeyboardInterrupt
        return plain_step(reals, latents)

    ours.training_state.step = step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        ours.run()


def kill_and_start_again(
    args: Sequence[object],
    run_dir: Path,
    *,
    kills: int,
    chance: random.Random,
    give_up_at: float = float("inf"),
    workers: Sequence[int] = (0,),
    is_real: bool = True,
) -> Loss:
    """Kills the run of these options this many times, then lets it finish. workers: loader threads of each attempt.

    It is killed at a random moment of its start, or up to half a second after it has got further than before.
    give_up_at: the time.monotonic() after which it is not killed any more. is_real: whether the processes are
    real ones, not forks.
    """
    images_again = done = 0
    while done < kills and time.monotonic() < give_up_at:
        attempt = [*args, "--run-dir", run_dir, "--workers", workers[done % len(workers)]]
        with _started(attempt, sys.executable if is_real else fast_python()) as process:
            _wait_for_the_moment(process, run_dir, chance, start_seconds=3 if is_real else 0.2)
            has_ended = process.poll() is not None
            process.kill()
        if has_ended:
            break
        done += 1
        images_again += max(0, _reported(run_dir) - _saved(run_dir))
    last = run_in(run_dir.parent, "msggan.train", *args, "--run-dir", run_dir)
    assert last.exit_code == 0, last.stderr
    return Loss(done, images_again)


def _started(args: Sequence[object], python: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command_line("msggan.train", *args, python=python),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _wait_for_the_moment(
    process: subprocess.Popen[bytes], run_dir: Path, chance: random.Random, *, start_seconds: float
) -> None:
    if chance.random() < SHARE_AT_START:
        _wait(process, chance.uniform(0, start_seconds))
        return
    reached = _reported(run_dir)
    while process.poll() is None and _reported(run_dir) <= reached:
        time.sleep(LOOK_SECONDS)
    _wait(process, chance.uniform(0, 0.5))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _reported(run_dir: Path) -> int:
    return int(max((line["images"] for line in read_metrics(run_dir / "metrics.jsonl")), default=0))


def _saved(run_dir: Path) -> int:
    return max((int(path.stem) for path in (run_dir / "checkpoints").glob("*.json")), default=0)
