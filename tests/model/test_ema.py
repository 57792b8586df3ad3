"""The generator's moving average: its half-life, counted in images, and its ramp-up."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import small_config
from torch import nn

from msggan.steps import ema_decay, update_ema


def constant_layer(value: float) -> nn.Linear:
    layer = nn.Linear(2, 3).double()
    for parameter in layer.parameters():
        nn.init.constant_(parameter, value)
    return layer


@pytest.mark.parametrize(
    ("batch_size", "images_seen", "half_life_kimg", "ramp", "decay"),
    [
        (32, 32, 0.032, 0.0, 0.5),  # one batch is the half-life
        (16, 10**6, 0.032, 0.0, 0.5**0.5),
        (64, 64, 0.032, 0.0, 0.25),
        (16, 32, 5.0, 0.5, 0.5),  # the ramp holds it at half of 32 images
        (10, 1000, 5.0, 0.05, 0.5**0.2),  # 5 % of 1,000 images are 50
        (10, 10**6, 5.0, 0.05, 0.5**0.002),  # 5 % of a million are more than 5,000: the half-life itself
        (10, 10, 0.0, 0.0, 0.0),  # no half-life, no average: the network itself
        (10, 10, 0.0, 0.05, 0.0),
    ],
)
def test_decay_equals_numbers_worked_out_manually(
    batch_size: int, images_seen: int, half_life_kimg: float, ramp: float, decay: float
) -> None:
    ours = ema_decay(batch_size=batch_size, images_seen=images_seen, half_life_kimg=half_life_kimg, ramp=ramp)
    assert ours == pytest.approx(decay, rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 8, 32, 100])
def test_the_recipe_bmsg_keeps_the_originals_share_a_step_whatever_the_batch(batch_size: int) -> None:
    config = small_config(recipe="bmsg", batch_size=batch_size)
    decay = ema_decay(
        batch_size=batch_size, images_seen=batch_size, half_life_kimg=config.ema_half_life_kimg, ramp=config.ema_ramp
    )
    assert decay == pytest.approx(0.999, rel=1e-12)


@given(
    batch_size=st.integers(1, 4096),
    images_seen=st.integers(1, 10**8),
    half_life_kimg=st.floats(0, 1e4),
    ramp=st.floats(0, 10),
)
@settings(deadline=None)
def test_the_decay_is_a_share_and_the_ramp_only_shortens(
    batch_size: int, images_seen: int, half_life_kimg: float, ramp: float
) -> None:
    ramped, free = (
        ema_decay(batch_size=batch_size, images_seen=images_seen, half_life_kimg=half_life_kimg, ramp=some)
        for some in (ramp, 0.0)
    )
    assert 0 <= ramped <= free <= 1


@pytest.mark.parametrize("batch_size", [1, 20, 50, 500, 1000])
def test_the_weight_halves_after_a_half_life_of_images_at_any_batch_size(batch_size: int) -> None:
    average, network = constant_layer(1.0), constant_layer(0.0)
    for images_seen in range(batch_size, 1000 + batch_size, batch_size):
        decay = ema_decay(batch_size=batch_size, images_seen=images_seen, half_life_kimg=1.0, ramp=0.0)
        update_ema(average, network, decay)
    assert average.weight[0, 0].item() == pytest.approx(0.5, rel=1e-9)


def test_an_update_equals_numbers_worked_out_manually() -> None:
    """¾ · 4 + ¼ · 8 = 5, in weight and bias, and again ¾ · 5 + ¼ · 8 = 5.75."""
    average, network = constant_layer(4.0), constant_layer(8.0)
    for expected in (5.0, 5.75):
        update_ema(average, network, 0.75)
        assert average.weight.eq(expected).all()
        assert average.bias.eq(expected).all()


def test_an_update_changes_the_average_in_place_and_the_network_not_at_all() -> None:
    average, network = constant_layer(1.0), constant_layer(2.0)
    before, kept = copy.deepcopy(network.state_dict()), average.weight
    update_ema(average, network, 0.5)
    assert average.weight is kept
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert average.weight.grad is None


@pytest.mark.parametrize(("decay", "expected"), [(0.0, 2.0), (1.0, 1.0)])
def test_a_decay_of_zero_copies_and_of_one_keeps(decay: float, expected: float) -> None:
    average = constant_layer(1.0)
    update_ema(average, constant_layer(2.0), decay)
    assert average.weight.eq(expected).all()
