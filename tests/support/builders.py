"""Set-ups that several tests share: a resolved configuration, a batch, a folder of images, a run."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msggan.config import TrainConfig, resolve
from msggan.networks import NO_CLASSES, Generator, with_labels
from msggan.pictures.grids import generate, write_samples
from msggan.randomness import latents
from msggan.runs.checkpoint import save_generator
from msggan.steps import TrainingState

if TYPE_CHECKING:
    from msggan import Trainer

CPU = torch.device("cpu")
CLASSES = {"dress": 30, "hat": 20, "shoes": 50}


def small_config(**values: object) -> TrainConfig:
    """A resolved configuration that steps in milliseconds: two scales (4², 8²), width 8, batches of 4."""
    small = {"recipe": "bmsg", "resolution": 8, "latent_size": 8, "batch_size": 4, "precision": "float64", "kimg": 1.0}
    return resolve(TrainConfig(**{**small, **values}), shorter_side_px=32, device="cpu", has_fast_bfloat16=False)


def training_state(**values: object) -> TrainingState:
    """With --labels folders, of three classes."""
    config = small_config(**values)
    return TrainingState(config, CPU, classes=CLASSES if config.labels == "folders" else NO_CLASSES)


def reals_at(config: TrainConfig, step: int) -> Tensor:
    """(N, 3, R, R) float32 in [-1, 1], different at each step."""
    drawn = np.random.default_rng(step).uniform(-1, 1, (config.batch_size, 3, config.resolution, config.resolution))
    return torch.from_numpy(drawn).float()


def latents_at(config: TrainConfig, step: int) -> Tensor:
    """(N, L) float32 of norm √L, different at each step; with --labels folders (N, L + 3), of each class in turn."""
    positions = range(step * config.batch_size, (step + 1) * config.batch_size)
    drawn = latents(config.seed, positions, config.latent_size)
    return drawn if config.labels == "none" else with_labels(drawn, torch.tensor(positions) % 3, 3)


def random_pyramid(depth: int, count: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Coarse to fine, (N, 3, r, r) in [-1, 1]; the scales are independent of each other."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.rand(count, 3, 4 << level, 4 << level, generator=generator, dtype=dtype) * 2 - 1 for level in range(depth)
    ]


def save_images(folder: Path, count: int, side: int, *, first: int = 0) -> Path:
    """Writes a folder of PNGs of noise, each of which depends on its number alone; they are numbered from `first`."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


def save_run(
    folder: Path,
    *,
    depth: int = 3,
    latent_size: int = 8,
    equalized: bool = True,
    resampling: str = "nearest",
    classes: Mapping[str, int] = NO_CLASSES,
    samples: int = 0,
) -> Path:
    """Writes a run folder like training does: an untrained generator, and this many sample grids."""
    torch.manual_seed(1)
    shape = {"latent_size": latent_size, "equalized": equalized, "resampling": resampling}
    generator = Generator(depth, **shape, classes=classes)
    config = {"resolution": 2 << depth, **shape, **({"classes": classes} if classes else {})}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_generator(folder / "generator.safetensors", generator.state_dict(), config)
    for index in range(samples):
        drawn = latents(index, range(9), latent_size)
        write_samples(folder / "samples", 1000 * index, generate(generator, drawn))
    return folder


def peak_growth_mib(before: str, measured: str) -> float:
    """The peak memory of a statement in MiB, in a process that has executed another statement first. Linux only."""
    peak = "int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    script = f"import re; {before}; began = {peak}; {measured}; print({peak} - began)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, encoding="utf-8")
    return int(ended.stdout) / 1024


def assert_close(ours: Tensor, theirs: Tensor, *, within: float, what: str = "") -> None:
    """Asserts that all elements are equal within an absolute tolerance."""
    assert ours.shape == theirs.shape, what
    farthest = (ours.double() - theirs.double()).abs().max().item()
    assert farthest <= within, f"{what} differs by {farthest:.3g}"


def messages_of(ours: Trainer) -> str:
    """What a trainer with `messages=StringIO()` has printed."""
    messages = ours.progress.stream
    assert isinstance(messages, io.StringIO)
    return messages.getvalue()
