"""The memory and the disk space of a run: computed from its shapes, and held against real processes."""

from __future__ import annotations

import pytest

from msggan.config import TrainConfig, resolve
from msggan.networks import Discriminator, Generator
from msggan.resources import _weights, plan


def resolved(resolution: int, latent_size: int, **options: object) -> TrainConfig:
    config = TrainConfig(resolution=resolution, latent_size=latent_size, **options)  # type: ignore[arg-type]
    return resolve(config, shorter_side_px=resolution, device="cpu", has_fast_bfloat16=False)


@pytest.mark.parametrize(("resolution", "latent_size"), [(4, 64), (8, 32), (64, 64), (512, 64)])
def test_the_weights_are_those_of_the_networks(resolution: int, latent_size: int) -> None:
    networks = [network(resolution.bit_length() - 2, latent_size) for network in (Generator, Discriminator)]
    counted = [sum(weight.numel() for weight in network.parameters()) for network in networks]
    assert _weights(resolved(resolution, latent_size)) == pytest.approx(counted, rel=0.03)


def test_more_of_anything_needs_more() -> None:
    base, memory = resolved(64, 64), plan(resolved(64, 64, batch_size=32)).memory_bytes
    for larger in (resolved(128, 64, batch_size=32), resolved(64, 128, batch_size=32), resolved(64, 64, batch_size=64)):
        assert plan(larger).memory_bytes > memory
    for smaller in ({"r2_gamma": 0.0}, {"micro_batch": 4}, {"precision": "bfloat16"}):
        assert plan(resolved(64, 64, batch_size=32, **smaller)).memory_bytes < memory
    assert plan(resolved(64, 64, kimg=200.0, sample_kimg=5.0)).disk_bytes > plan(base).disk_bytes
