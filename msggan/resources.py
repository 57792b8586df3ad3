"""The memory and the disk space that a run needs, from the shapes of its networks; and the memory that there is.

It loads no torch. `tests/model/test_resources.py` and `make bench` hold it against the peaks of real processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from msggan.config import TrainConfig

BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}
MIB = 2**20
# PyTorch with its libraries once it has trained (2.13 on Linux, measured), or the context of a CUDA device (estimated).
PROGRAM_BYTES = {"cpu": 530 * MIB, "cuda": 500 * MIB, "mps": 500 * MIB}
WORKING_MAPS = 3  # of the largest layer at a time: the gradients of its input and output, and a copy in another layout
PIXELS_AT_ONCE = 2**18  # of samples, which are generated in parts
PATCH_BYTES = 20 * MIB  # of a scale, in an evaluation: the patches of real and of generated images
CHECKPOINTS_AT_ONCE = 4  # three are kept, and the next is written before the oldest is removed
PNG_SHARE = 0.7  # of the size of the pixels in sample grids (measured)
REPORT_BYTES = 300  # in metrics.jsonl and log.txt (measured), at most every 250 images
TOLERANCE = 1.25  # how much too large an estimate may be: what might fit is not refused


class Plan(NamedTuple):
    """memory_bytes: at the peak, of the device, PyTorch itself included. disk_bytes: of the run folder at its end."""

    memory_bytes: int
    disk_bytes: int


def plan(config: TrainConfig, *, device: str = "cpu", image_bytes: int = 0) -> Plan:
    """What a resolved configuration needs. device: its type. image_bytes: what the images take in the CPU's memory."""
    weight, on_cpu = BYTES["float64" if config.precision == "float64" else "float32"], device == "cpu"
    number = BYTES[config.precision]
    generator, discriminator = _weights(config)
    checkpoint = weight * (4 * generator + 3 * discriminator)  # both networks, two averages of Adam's for each, the EMA
    gradients = weight * (generator + discriminator) + number * max(generator, discriminator)
    kept = PROGRAM_BYTES[device] + checkpoint + number * (generator + discriminator)
    between_steps = _pictures(config) + (checkpoint if on_cpu else 0)  # a copy while it is written
    # A CUDA graph keeps the memory of its step between steps, too.
    at_once = sum if device == "cuda" and config.part == config.batch_size else max
    memory = kept + gradients + at_once((_step(config), between_steps)) + (image_bytes if on_cpu else 0)

    grids = config.kimg / config.sample_kimg * PNG_SHARE * config.num_samples * 3 * config.resolution**2 * 4 / 3
    reports = config.kimg * 1000 / max(250, config.batch_size) * REPORT_BYTES
    checkpoints = min(CHECKPOINTS_AT_ONCE, math.ceil(config.kimg / config.checkpoint_kimg))
    return Plan(round(memory), round(checkpoints * checkpoint + weight * generator + grids + reports))


class _Level(NamedTuple):
    """A scale, and the channels that the generator's block takes and returns there, and the discriminator's."""

    side: int
    generator: tuple[int, int]
    discriminator: tuple[int, int]


def _levels(config: TrainConfig) -> Iterator[_Level]:
    """Coarse to fine: the four coarsest scales have the full width, and each finer one half of the one before."""
    for scale in range(config.resolution.bit_length() - 2):
        width, coarser, half = (config.latent_size >> max(0, by) for by in (scale - 3, scale - 4, max(1, scale - 3)))
        yield _Level(4 << scale, (coarser, width), (width, half if scale else width))


def _weights(config: TrainConfig) -> tuple[int, int]:
    """The weights of the generator and of the discriminator, without biases and the conversions from and to RGB."""
    (_, (latent, _), _), *levels = _levels(config)
    generator = sum(9 * (taken + given) * given for _, (taken, given), _ in levels)
    discriminator = sum(9 * taken * (taken + given) for _, _, (taken, given) in levels)
    return 25 * latent**2 + generator, 25 * latent**2 + discriminator


def _step(config: TrainConfig) -> int:
    """The bytes that a step adds: what its gradients need of the activations, and the largest of them a few times."""
    number, part = BYTES[config.precision], config.part
    generated = judged = largest = 0
    for side, (taken, given), (judges, judged_as) in _levels(config):
        generated += side**2 * (taken + 2 * given)  # the input of each convolution, and its norm
        judged += side**2 * (2 * judges + judged_as)
        largest = max(largest, side**2 * judges)
    penalized = sum(gamma > 0 for gamma in (config.r1_gamma, config.r2_gamma)) + (config.loss == "wgan-gp")
    discriminator = 2 * judged + penalized * judged  # the gradient of a penalty is a network of the same shape
    activations = generated + discriminator if part == config.batch_size else max(generated, discriminator)
    images = 4 * 3 * config.resolution**2 * 4 / 3  # real and generated, and both as one batch
    return round(number * (part * (activations + WORKING_MAPS * 2 * largest) + config.batch_size * images))


def _pictures(config: TrainConfig) -> int:
    """The bytes of sampling and evaluating, between steps."""
    at_once = max(1, min(64, PIXELS_AT_ONCE // config.resolution**2))
    generating = 4 * at_once * max(side**2 * (taken + 2 * given) for side, (taken, given), _ in _levels(config))
    return generating + config.num_samples * config.resolution**2 * 12 + config.depth * PATCH_BYTES
