"""The losses and penalties equal the equations of their papers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import random_pyramid
from torch import Tensor

from msggan.losses import (
    LOSSES,
    between,
    compares,
    discriminator_loss,
    generator_loss,
    wgan_gradient_penalty,
    zero_centred_penalty,
)
from msggan.networks import Discriminator
from msggan.steps import judge

RELATIVISTIC = ("relativistic-hinge", "relativistic-logistic", "relativistic-average-logistic")
REAL, FAKE = (1.0, 3.0), (0.0, 1.0)
# softplus: s(0) = ln 2 = 0.6931471806, s(1) = 1.3132616875, s(2) = 2.1269280110, s(−x) = s(x) − x
BY_HAND = {
    # r − f̄ = 0.5, 2.5 and f − r̄ = −2, −1. D: (0.5 + 0)/2 + 0. G: (1.5 + 3.5)/2 + (3 + 2)/2
    "relativistic-hinge": (0.25, 5.0),
    # r − f = 1, 2. D: (s(−1) + s(−2))/2. G: (s(1) + s(2))/2
    "relativistic-logistic": (0.22009484925, 1.72009484925),
    # r − f̄ and f − r̄ as above. D: (s(−0.5) + s(−2.5))/2 + (s(−2) + s(−1))/2. G: (s(2) + s(1))/2 + (s(0.5) + s(2.5))/2
    "relativistic-average-logistic": (0.49657820852, 3.49657820852),
    # D: (0 + 0)/2 + (1 + 2)/2. G: −(0 + 1)/2
    "hinge": (1.5, -0.5),
    # D: (s(−1) + s(−3))/2 + (s(0) + s(1))/2, s(−3) = 0.0485873516. G: (s(0) + s(−1))/2
    "standard": (1.18412895360, 0.50320443405),
    # D: ½ ((0 + 4)/2 + (0 + 1)/2). G: ½ (1 + 0)/2
    "lsgan": (1.25, 0.25),
    # D: ½ − 2 + 0.001 · (1 + 9)/2. G: −½
    "wgan-gp": (-1.495, -0.5),
}

scores = st.lists(st.floats(-20, 20), min_size=1, max_size=6).map(
    lambda drawn: torch.tensor(drawn, dtype=torch.float64)
)
pairs_of_scores = st.integers(1, 6).flatmap(
    lambda count: st.tuples(
        *[
            st.lists(st.floats(-20, 20), min_size=count, max_size=count).map(
                lambda drawn: torch.tensor(drawn, dtype=torch.float64)
            )
        ]
        * 2
    )
)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Losses


@pytest.mark.parametrize("name", BY_HAND)
def test_losses_equal_numbers_worked_out_manually(name: str) -> None:
    d_loss, g_loss = BY_HAND[name]
    assert discriminator_loss(name, column(*REAL), column(*FAKE)).item() == pytest.approx(d_loss, abs=1e-9)
    assert generator_loss(name, column(*REAL), column(*FAKE)).item() == pytest.approx(g_loss, abs=1e-9)


def test_lsgan_sigmoid_equals_numbers_worked_out_manually() -> None:
    """Scores whose sigmoids are ½, ¾ and ½, ¼. D: ½ ((¼ + 1/16)/2 + (¼ + 1/16)/2). G: ½ (¼ + 9/16)/2."""
    real, fake = column(0, math.log(3)), column(0, -math.log(3))
    assert discriminator_loss("lsgan-sigmoid", real, fake).item() == pytest.approx(0.15625, abs=1e-12)
    assert generator_loss("lsgan-sigmoid", real, fake).item() == pytest.approx(0.203125, abs=1e-12)


def test_every_loss_of_the_configuration_has_numbers_worked_out_manually() -> None:
    assert {*BY_HAND, "lsgan-sigmoid"} == set(LOSSES)


@pytest.mark.parametrize("name", RELATIVISTIC)
@given(both=pairs_of_scores, shift=st.floats(-100, 100))
@settings(deadline=None, max_examples=40)
def test_relativistic_losses_do_not_change_when_all_scores_shift(
    name: str, both: tuple[Tensor, Tensor], shift: float
) -> None:
    real, fake = both
    for loss in (discriminator_loss, generator_loss):
        assert loss(name, real + shift, fake + shift).item() == pytest.approx(loss(name, real, fake).item(), abs=1e-9)


@pytest.mark.parametrize("name", RELATIVISTIC)
@given(both=pairs_of_scores)
@settings(deadline=None, max_examples=30)
def test_relativistic_games_are_symmetric(name: str, both: tuple[Tensor, Tensor]) -> None:
    real, fake = both
    assert torch.equal(generator_loss(name, real, fake), discriminator_loss(name, fake, real))


@pytest.mark.parametrize("name", ["hinge", "standard", "lsgan", "lsgan-sigmoid", "wgan-gp"])
@given(fake=scores)
@settings(deadline=None, max_examples=20)
def test_other_losses_need_no_real_scores_for_the_generator(name: str, fake: Tensor) -> None:
    assert not compares(name)
    assert torch.equal(generator_loss(name, None, fake), generator_loss(name, fake + 1, fake))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in {"lsgan", "lsgan-sigmoid", "wgan-gp"}])
@given(both=pairs_of_scores, more=st.floats(0.01, 5))
@settings(deadline=None, max_examples=30)
def test_a_better_discriminator_never_has_a_larger_loss(name: str, both: tuple[Tensor, Tensor], more: float) -> None:
    real, fake = both
    better = discriminator_loss(name, real + more, fake - more).item()
    assert better <= discriminator_loss(name, real, fake).item() + 1e-12


@pytest.mark.parametrize("name", LOSSES)
@given(both=pairs_of_scores)
@settings(deadline=None, max_examples=20)
def test_losses_are_finite_scalars_with_finite_gradients(name: str, both: tuple[Tensor, Tensor]) -> None:
    real, fake = both[0].clone().requires_grad_(), both[1].clone().requires_grad_()
    for loss in (discriminator_loss(name, real, fake), generator_loss(name, real, fake)):
        gradients = torch.autograd.grad(loss, (real, fake), allow_unused=True)
        assert loss.shape == ()
        assert loss.isfinite()
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_least_squares_are_computed_per_sample_and_not_of_the_mean() -> None:
    """Real scores 0 and 2 average to the target 1, and are each one away from it: ½ · 1."""
    assert discriminator_loss("lsgan", column(0, 2), column(0, 0)).item() == 0.5
    assert generator_loss("lsgan", None, column(0, 2)).item() == 0.5


def test_paired_logistic_loss_compares_sample_with_sample() -> None:
    """s(0) for each pair in this order; in the other order s(4) and s(−4)."""
    paired = discriminator_loss("relativistic-logistic", column(0, 4), column(0, 4)).item()
    crossed = discriminator_loss("relativistic-logistic", column(0, 4), column(4, 0)).item()
    assert paired == pytest.approx(math.log(2))
    assert crossed == pytest.approx((math.log1p(math.exp(4)) + math.log1p(math.exp(-4))) / 2)


@pytest.mark.parametrize("name", RELATIVISTIC)
def test_a_relativistic_generator_without_real_scores_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="needs both"):
        generator_loss(name, None, column(1, 2))


@pytest.mark.parametrize("name", ["", "wgan", "HINGE", "relativistic-average", "bce"])
def test_unknown_losses_are_refused_by_name(name: str) -> None:
    for loss in (discriminator_loss, generator_loss):
        with pytest.raises(ValueError, match="Unknown loss"):
            loss(name, column(1, 2), column(1, 2))


# Gradient penalties


def norms_of_slopes(*slopes: float) -> Tensor:
    """(3, scales): squared norms of gradients that are slopes[i] in each number of scale i: slope² · 3 · r²."""
    return torch.tensor([[slope**2 * 3 * (4 << level) ** 2 for level, slope in enumerate(slopes)]] * 3).double()


def norms_at(discriminator: Discriminator, pyramid: Sequence[Tensor]) -> Tensor:
    norms = judge(discriminator, pyramid, penalized=slice(None))[1]
    assert norms is not None
    return norms


def tiny_discriminator(seed: int = 0, *, group: int = 0) -> Discriminator:
    torch.manual_seed(seed)
    return Discriminator(2, 4, stddev_group=group).double()


@torch.no_grad()
def score_gradient(discriminator: Discriminator, pyramid: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of the scores' sum with respect to every number of every scale, by finite differences.

    Every number is moved up and down in a copy of the batch of its own, and all copies are judged in one pass: the
    discriminator's minibatch statistics must stay within groups of a batch.
    """
    step = 1e-5
    gradients = []
    for level, image in enumerate(pyramid):
        moves = step * torch.eye(image.numel(), dtype=image.dtype).view(-1, *image.shape)
        copies = [other.repeat(2 * len(moves), 1, 1, 1) for other in pyramid]
        copies[level] = (image + torch.cat((moves, -moves))).flatten(0, 1)
        above, below = discriminator(copies).view(2, len(moves), len(image)).sum(dim=2)
        gradients.append(((above - below) / (2 * step)).view(image.shape))
    return gradients


def squared_norms(gradients: Sequence[Tensor]) -> Tensor:
    return torch.stack([gradient.square().flatten(1).sum(dim=1) for gradient in gradients], dim=1)


def test_penalties_of_a_linear_score_equal_numbers_worked_out_manually() -> None:
    """Slopes ½ and ¼ over 48 and 192 numbers: squared norms 12 and 12, whose mean is 12; γ/2 · 12."""
    assert zero_centred_penalty(norms_of_slopes(0.5, 0.25), 10).item() == pytest.approx(60)


def test_penalties_are_means_over_scales_and_not_sums() -> None:
    """Slopes ½ and 0: squared norms 12 and 0, whose mean is 6. γ/2 · 6 = 3 for γ = 1."""
    assert zero_centred_penalty(norms_of_slopes(0.5, 0), 1).item() == pytest.approx(3)


def test_wgan_penalty_of_a_linear_score_equals_numbers_worked_out_manually() -> None:
    """Norms √12 and 0: 10 · ((√12 − 1)² + 1)/2 = 5 · (14 − 2√12) = 35.3589838."""
    penalty = wgan_gradient_penalty(norms_of_slopes(0.5, 0))
    assert penalty.item() == pytest.approx(70 - 10 * math.sqrt(12), rel=1e-5)  # √(0 + 1e-12) is not quite 0


def test_squared_norms_agree_with_finite_differences() -> None:
    discriminator, pyramid = tiny_discriminator(group=2), random_pyramid(2, 2)
    expected = squared_norms(score_gradient(discriminator, pyramid))
    torch.testing.assert_close(norms_at(discriminator, pyramid).detach(), expected, rtol=1e-6, atol=1e-12)


def test_r1_and_r2_agree_with_finite_differences() -> None:
    discriminator, pyramid = tiny_discriminator(1, group=2), random_pyramid(2, 2, seed=1)
    norms = squared_norms(score_gradient(discriminator, pyramid))
    expected = 7.0 / 2 * norms.sum().item() / (2 * 2)  # two samples, two scales
    assert zero_centred_penalty(norms_at(discriminator, pyramid), 7.0).item() == pytest.approx(expected, rel=1e-6)


def test_the_wgan_penalty_agrees_with_finite_differences() -> None:
    discriminator = tiny_discriminator(2, group=2)
    reals, fakes, epsilon = random_pyramid(2, 2, seed=3), random_pyramid(2, 2, seed=4), column(0.25, 0.75)
    pyramid = between(reals, fakes, epsilon)
    norms = squared_norms(score_gradient(discriminator, pyramid)).sqrt()
    expected = 10 * ((norms - 1) ** 2).sum().item() / (2 * 2)
    assert wgan_gradient_penalty(norms_at(discriminator, pyramid)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["zero-centred", "wgan"])
@pytest.mark.parametrize(
    "weight",
    ["from_rgb.0.weight", "from_rgb.1.weight", "blocks.0.conv_2.weight", "last.conv_1.weight", "last.conv_1.bias"],
)
def test_the_penaltys_gradient_by_a_weight_agrees_with_finite_differences(kind: str, weight: str) -> None:
    discriminator = tiny_discriminator(5)
    reals, fakes, epsilon = random_pyramid(2, 3, seed=6), random_pyramid(2, 3, seed=7), column(0.2, 0.5, 0.8)

    def penalty() -> Tensor:
        if kind == "wgan":
            return wgan_gradient_penalty(norms_at(discriminator, between(reals, fakes, epsilon)))
        return zero_centred_penalty(norms_at(discriminator, reals), 2.0)

    parameter = discriminator.get_parameter(weight)
    (gradient,) = torch.autograd.grad(penalty(), parameter)
    for index in range(0, parameter.numel(), max(1, parameter.numel() // 6)):
        move = torch.zeros(parameter.numel(), dtype=torch.float64)
        move[index] = 1e-5
        values = []
        for sign in (1, -1):
            parameter.data += sign * move.view(parameter.shape)
            values.append(penalty().item())
            parameter.data -= sign * move.view(parameter.shape)
        expected = (values[0] - values[1]) / 2e-5
        assert gradient.flatten()[index].item() == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_penalties_do_not_change_the_images() -> None:
    pyramid = random_pyramid(2, 2)
    before = [image.clone() for image in pyramid]
    zero_centred_penalty(norms_at(tiny_discriminator(), pyramid), 1.0).backward()
    assert all(torch.equal(image, copy) for image, copy in zip(pyramid, before, strict=True))
    assert all(image.grad is None and not image.requires_grad for image in pyramid)


def test_a_samples_scales_share_one_epsilon() -> None:
    """Between reals of 1 and fakes of 0 lies ε itself, at every scale of the sample."""
    ones = [torch.ones(3, 3, side, side, dtype=torch.float64) for side in (4, 8, 16)]
    zeros = [torch.zeros_like(image) for image in ones]
    for image in between(ones, zeros, column(0.0, 0.3, 0.9)):
        assert torch.equal(image, column(0.0, 0.3, 0.9).view(-1, 1, 1, 1).expand_as(image))


def test_a_flat_discriminator_has_penalties_with_finite_gradients() -> None:
    """√ has no derivative at 0, which would fill every weight with not-a-number."""
    discriminator = tiny_discriminator()
    torch.nn.init.zeros_(discriminator.last.conv_3.weight)
    pyramid = random_pyramid(2, 2)
    norms = norms_at(discriminator, pyramid)
    wgan = wgan_gradient_penalty(norms)
    assert wgan.item() == pytest.approx(10, rel=1e-5)
    (wgan + zero_centred_penalty(norms, 1.0)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in discriminator.parameters())
