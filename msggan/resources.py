"""The memory and the disk space that a run needs, from the shapes of its networks, against what the machine has.

It loads no torch. `tests/model/test_resources.py` holds it against the peaks of real processes.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from msggan.config import TrainConfig
from msggan.errors import RefusedError

BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}
MIB = 2**20
# PyTorch with its libraries once it has trained (2.13 on Linux, measured), or the context of a CUDA device (estimated).
PROGRAM_BYTES = {"cpu": 490 * MIB, "cuda": 500 * MIB, "mps": 500 * MIB}
WORKING_MAPS = 3  # of the largest layer at a time: the gradients of its input and output, and a copy in another layout
BLOCK_CHANNELS = 16  # which libraries compute at a time: of layers with fewer channels they make copies with so many
PIXELS_AT_ONCE = 2**18  # of images that are generated or measured in parts: 256 of 32², one of 512²
PATCH_BYTES = 20 * MIB  # of a scale, in an evaluation: the patches of real and of generated images
CHECKPOINTS_AT_ONCE = 4  # three are kept, and the next is written before the oldest is removed
PNG_SHARE = 0.7  # of the size of the pixels in sample grids (measured)
REPORT_BYTES = 550  # in metrics.jsonl and log.txt (measured), at most every 250 images
TOLERANCE = 1.25  # how much too large an estimate may be: what might fit is not refused


class Plan(NamedTuple):
    """memory_bytes: at the peak, of the device, PyTorch itself included. disk_bytes: of the run folder at its end."""

    memory_bytes: int
    disk_bytes: int

    def __str__(self) -> str:
        return f"{as_size(self.memory_bytes)} of memory and {as_size(self.disk_bytes)} of disk space"


def plan(config: TrainConfig, *, device: str = "cpu", image_bytes: int = 0) -> Plan:
    """What a resolved configuration needs. device: its type. image_bytes: what the images take in the CPU's memory."""
    weight, on_cpu = BYTES["float64" if config.precision == "float64" else "float32"], device == "cpu"
    number = BYTES[config.precision]
    generator, discriminator = _weights(config)
    checkpoint = weight * (4 * generator + 3 * discriminator)  # both networks, two averages of Adam's for each, the EMA
    gradients = weight * (generator + discriminator) + number * max(generator, discriminator)
    kept = PROGRAM_BYTES[device] + checkpoint + number * (generator + discriminator)
    best = weight * generator  # which the memory of the CPU keeps
    checkpoint += best
    between_steps = _pictures(config) + (best + checkpoint if on_cpu else 0)  # a copy while it is written
    # A CUDA graph keeps the memory of its step between steps, too.
    at_once = sum if device == "cuda" and config.part == config.batch_size else max
    memory = kept + gradients + at_once((_step(config), between_steps)) + (image_bytes if on_cpu else 0)

    grids = config.kimg / config.sample_kimg * PNG_SHARE * config.num_samples * 3 * config.resolution**2 * 4 / 3
    reports = config.kimg * 1000 / max(250, config.batch_size) * REPORT_BYTES
    checkpoints = min(CHECKPOINTS_AT_ONCE, math.ceil(config.kimg / config.checkpoint_kimg))
    generators = 2 + (config.kimg / config.snapshot_kimg if config.snapshot_kimg else 0)  # the newest and the best
    return Plan(round(memory), round(checkpoints * checkpoint + generators * weight * generator + grids + reports))


def check(config: TrainConfig, folder: Path, device: str, available_bytes: int | None, *, image_bytes: int = 0) -> str:
    """What a run in this folder needs, as a sentence. Raises `RefusedError` if the device or the disk has too little.

    available_bytes: the memory of the device, None if unknown. A GPU computes a batch that does not fit in parts, so
    that only parts of one image are refused; on the CPU, the system may kill the process instead.
    """
    needed = plan(config, device=device, image_bytes=image_bytes)
    smallest = config if device == "cpu" else replace(config, micro_batch=1)
    if available_bytes and plan(smallest, device=device).memory_bytes > TOLERANCE * available_bytes:
        raise RefusedError(
            f"--resolution {config.resolution}, --latent-size {config.latent_size}, --batch-size {config.batch_size}: "
            f"training needs about {as_size(needed.memory_bytes)} of memory on {device}, which has "
            f"{as_size(available_bytes)}.",
            f"Use {', or '.join([*_fitting(config, device, available_bytes), 'a smaller --latent-size'])}.",
        )
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    missing = needed.disk_bytes - sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if missing > TOLERANCE * (free := shutil.disk_usage(there).free):
        raise RefusedError(
            f"{folder}: the run needs about {as_size(missing)} of disk space, and {as_size(free)} are free.",
            "Free some space, use a folder on another disk, or increase --sample-kimg.",
        )
    has = f"{device} has {as_size(available_bytes)}, and " if available_bytes else ""
    return f"This run needs about {needed}; {has}the disk has {as_size(free)} free."


def _fitting(config: TrainConfig, device: str, available_bytes: int) -> list[str]:
    """The options of the largest resolution that fits, with the largest parts; none if nothing does."""
    for resolution in (config.resolution >> by for by in range(config.depth)):
        for part in (config.part >> by for by in range(config.part.bit_length())):
            smaller = replace(config, resolution=resolution, micro_batch=part)
            if plan(smaller, device=device).memory_bytes <= available_bytes:
                given = [f"--resolution {resolution}"] if resolution < config.resolution else []
                return [" ".join([*given, *([f"--micro-batch {part}"] if part < config.part else [])])]
    return []


def machine_memory() -> int | None:
    """The memory of this machine, or of the container that this process is in; None if it is unknown."""
    known = []
    with suppress(AttributeError, OSError, ValueError):  # Windows
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups, version 2 and 1
        with suppress(OSError, ValueError):  # no limit is "max"
            known.append(int((Path("/sys/fs/cgroup") / limit).read_text(encoding="ascii")))
    return min(known, default=None)


def as_size(count: float) -> str:
    """A number of bytes for people: 56 KiB, 820 MiB, 1.3 GiB."""
    if count >= 1000 * MIB:
        return f"{count / 2**30:.1f} GiB"
    return f"{round(count / MIB)} MiB" if count >= MIB else f"{round(count / 1024)} KiB"


class _Level(NamedTuple):
    """A scale, and the channels that the generator's block takes and returns there, and the discriminator's."""

    side: int
    generator: tuple[int, int]
    discriminator: tuple[int, int]


def _levels(config: TrainConfig) -> Iterator[_Level]:
    """Coarse to fine: the four coarsest scales have the full width, and each finer one half of the one before."""
    for scale in range(config.resolution.bit_length() - 2):
        width, coarser, half = (config.latent_size >> max(0, by) for by in (scale - 3, scale - 4, max(1, scale - 3)))
        joined = coarser if config.join == "simple" else half
        yield _Level(4 << scale, (coarser, width), (width, joined if scale else width))


def _weights(config: TrainConfig) -> tuple[int, int]:
    """The weights of the generator and of the discriminator, without biases and the conversions from and to RGB."""
    (_, (latent, _), _), *levels = _levels(config)
    generator = sum(9 * (taken + given) * given for _, (taken, given), _ in levels)
    discriminator = sum(9 * taken * (taken + given) for _, _, (taken, given) in levels)
    embedded = 16 * latent**2 * (config.labels != "none")  # of a class, beside the latent
    return 25 * latent**2 + embedded + generator, 25 * latent**2 + discriminator


def _step(config: TrainConfig) -> int:
    """The bytes that a step adds: what its gradients need of the activations, and the largest of them a few times."""
    number, part = BYTES[config.precision], config.part
    generated = judged = largest = 0
    for side, (taken, given), (judges, judged_as) in _levels(config):
        generated += side**2 * (taken + 2 * given)  # the input of each convolution, and its norm
        judged += side**2 * (2 * judges + judged_as)
        largest = max(largest, side**2 * max(judges, BLOCK_CHANNELS))
    penalized = sum(gamma > 0 for gamma in (config.r1_gamma, config.r2_gamma)) + 2 * (config.loss == "wgan-gp")
    discriminator = 2 * judged + penalized * judged  # the gradient of a penalty is a network of the same shape
    activations = generated + discriminator if part == config.batch_size else max(generated, discriminator)
    images = 10 * 3 * config.resolution**2  # as read, the pyramids of both kinds, both as one batch, and its gradients
    return round(number * (part * (activations + WORKING_MAPS * 2 * largest) + config.batch_size * images))


def _pictures(config: TrainConfig) -> int:
    """The bytes of sampling and evaluating, between steps."""
    at_once = max(1, min(64, PIXELS_AT_ONCE // config.resolution**2))
    generating = 4 * at_once * max(side**2 * (taken + 2 * given) for side, (taken, given), _ in _levels(config))
    return generating + config.num_samples * config.resolution**2 * 12 + config.depth * PATCH_BYTES
