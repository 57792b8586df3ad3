"""Every random number depends on the seed, its purpose and its position alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msggan.randomness import Purpose, epoch_permutation, interpolation, latents, latents_of, mirrored, rng

LARGEST_SEED = 2**31 - 1
seeds = st.integers(0, LARGEST_SEED)
positions = st.integers(0, 2**40)


def drawn(seed: int, purpose: Purpose, position: int, count: int = 8) -> list[float]:
    return rng(seed, purpose, position).random(count).tolist()


@given(seed=seeds, first=positions, counts=st.lists(st.integers(1, 5), min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_numbers_do_not_depend_on_how_the_batch_is_divided(seed: int, first: int, counts: list[int]) -> None:
    ends = [first, *(first + end for end in itertools.accumulate(counts))]
    parts = [range(begin, end) for begin, end in itertools.pairwise(ends)]
    whole = range(first, ends[-1])
    assert torch.equal(torch.cat([latents(seed, part, 6) for part in parts]), latents(seed, whole, 6))
    assert torch.equal(torch.cat([interpolation(seed, part) for part in parts]), interpolation(seed, whole))
    assert np.array_equal(np.concatenate([mirrored(seed, part) for part in parts]), mirrored(seed, whole))


@given(seed=seeds, position=positions, purpose=st.sampled_from(Purpose))
@settings(deadline=None, max_examples=50)
def test_the_same_arguments_give_the_same_numbers(seed: int, position: int, purpose: Purpose) -> None:
    assert drawn(seed, purpose, position) == drawn(seed, purpose, position)


def test_numbers_are_those_of_philox_on_every_machine() -> None:
    """Its first block for this key and counter, four 64-bit words, of which `random` takes the upper 53 bits."""
    raw = np.random.Philox(key=[3, Purpose.MIRROR], counter=[0, 5, 0, 0]).random_raw(2)
    assert drawn(3, Purpose.MIRROR, 5, count=2) == [(int(word) >> 11) / 2**53 for word in raw]


def test_purposes_seeds_and_positions_share_no_numbers() -> None:
    every = [
        number
        for seed in (0, 1, LARGEST_SEED)
        for purpose in Purpose
        for position in (0, 1, 2, 10**9)
        for number in drawn(seed, purpose, position)
    ]
    assert len(set(every)) == len(every)


def test_a_position_may_draw_many_numbers_without_reaching_into_the_next() -> None:
    assert not set(drawn(0, Purpose.PATCH, 4, count=100_000)) & set(drawn(0, Purpose.PATCH, 5, count=100_000))


def test_purposes_have_numbers_of_their_own() -> None:
    assert len({int(purpose) for purpose in Purpose}) == len(Purpose.__members__)


# Latents


@pytest.mark.parametrize("latent_size", [2, 16, 512])
@given(seed=seeds, first=positions)
@settings(deadline=None, max_examples=20)
def test_latents_have_the_norm_of_root_their_length(latent_size: int, seed: int, first: int) -> None:
    drawn_latents = latents(seed, range(first, first + 3), latent_size)
    assert drawn_latents.shape == (3, latent_size)
    assert drawn_latents.dtype == torch.float32
    assert drawn_latents.norm(dim=1).tolist() == pytest.approx([latent_size**0.5] * 3, rel=1e-6)


def test_latents_are_isotropic() -> None:
    """Mean 0 and variance 1 in each of 8 numbers, over 4,000 vectors: within four standard errors."""
    many = latents(1, range(4000), 8)
    assert many.mean(dim=0).abs().max() < 4 / 4000**0.5
    covariance = many.T @ many / 4000
    assert (covariance - torch.eye(8)).abs().max() < 4 * 2**0.5 / 4000**0.5


def test_latents_for_samples_measuring_and_training_differ() -> None:
    several = [latents(0, range(4), 8, purpose) for purpose in (Purpose.LATENT, Purpose.SAMPLE, Purpose.METRIC)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(several, 2))


def test_latents_are_for_training_by_default() -> None:
    assert torch.equal(latents(3, range(2), 4), latents(3, range(2), 4, Purpose.LATENT))


# The rest of a step


@given(seed=seeds, epoch=st.integers(0, 10**6), count=st.integers(1, 300))
@settings(deadline=None, max_examples=50)
def test_an_epoch_shows_every_image_once(seed: int, epoch: int, count: int) -> None:
    assert sorted(epoch_permutation(seed, epoch, count)) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(epoch_permutation(seed, epoch, 50)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def test_about_half_the_images_are_mirrored() -> None:
    """Of 4,000: half, within four standard errors of √(1/4/4000)."""
    shown = mirrored(2, range(4000))
    assert shown.dtype == bool
    assert abs(shown.mean() - 0.5) < 4 * 0.5 / 4000**0.5


def test_interpolation_is_uniform_between_zero_and_one() -> None:
    """Mean ½ and variance 1/12, one number for each sample."""
    shares = interpolation(2, range(4000))
    assert shares.shape == (4000,)
    assert shares.dtype == torch.float32
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert shares.var().item() == pytest.approx(1 / 12, abs=0.005)


def test_the_latent_of_a_seed_does_not_depend_on_the_other_seeds() -> None:
    together = latents_of([3, 7, 3], 16)
    assert together.dtype == torch.float32
    assert torch.equal(together, torch.cat([latents(3, [0], 16), latents(7, [0], 16), latents(3, [0], 16)]))
