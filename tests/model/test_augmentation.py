"""What the discriminator sees: its scales agree, and draws depend on seed and position."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import assert_close, random_pyramid
from torch import Tensor

from msggan.augmentation import AdaptiveStrength, augmented, image_gradients, transforms
from msggan.config import LARGEST_STRENGTH
from msggan.data.stream import pyramid
from msggan.randomness import Purpose

IDENTITY = [1.0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 2, 2, 2, 2]
GEOMETRY, COLOUR, SQUARE = slice(0, 6), slice(6, 18), slice(18, 22)


def drawn(count: int, *, strength: float, seed: int = 0, first: int = 0, resolution: int = 32) -> Tensor:
    positions = range(first, first + count)
    return transforms(seed, Purpose.AUGMENT_REAL, positions, strength=strength, resolution=resolution)


def only(part: slice, values: Sequence[float] | Tensor) -> Tensor:
    """A transform (1, 22) that differs from the identity in this part."""
    one = torch.tensor([IDENTITY], dtype=torch.float64)
    one[:, part] = torch.as_tensor(values, dtype=torch.float64)
    return one


def like_photographs(count: int, side: int) -> Tensor:
    """(N, 3, R, R) float64: noise with the spectrum of photographs, an amplitude inverse to the frequency."""
    white = torch.from_numpy(np.random.default_rng(0).standard_normal((count, 3, side, side)))
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.fftfreq(side)[None]).clamp(min=1 / side)
    images = torch.fft.ifft2(torch.fft.fft2(white) / frequency).real
    return images / images.std() / 3


# The scales of a sample


QUARTER_TURN, MIRROR, HALF_AN_IMAGE = [0.0, -1, 0, 1, 0, 0], [-1.0, 0, 0, 0, 1, 0], [1.0, 0, 1, 0, 1, -0.5]


@pytest.mark.parametrize(
    "transform",
    [
        only(GEOMETRY, QUARTER_TURN),
        only(GEOMETRY, MIRROR),
        only(GEOMETRY, HALF_AN_IMAGE),  # by whole pixels of the coarsest scale
        only(SQUARE, [-0.5, 0.5, 0, 1]),
        *(only(COLOUR, drawn(1, strength=LARGEST_STRENGTH, first=first)[:, COLOUR]) for first in range(4)),
    ],
)
def test_scales_agree_exactly_after_what_maps_pixels_to_pixels(transform: Tensor) -> None:
    before = like_photographs(1, 32)
    after = augmented(pyramid(before), transform)
    assert not torch.allclose(after[-1], before, atol=0.01)
    for ours, expected in zip(after, pyramid(after[-1]), strict=True):
        assert_close(ours, expected, within=1e-12)


def test_scales_nearly_agree_after_any_transform() -> None:
    """Root mean square differences relative to the deviation; those of photographs are 0.27, 0.18, 0.13 and 0.09."""
    before = like_photographs(64, 64)
    after = augmented(pyramid(before), drawn(64, strength=LARGEST_STRENGTH, resolution=64))
    differences = [
        ((ours - expected).square().mean().sqrt() / expected.std()).item()
        for ours, expected in zip(after, pyramid(after[-1]), strict=True)
    ]
    assert differences[:-1] == sorted(differences[:-1], reverse=True)
    assert all(d <= b for d, b in zip(differences, [0.35, 0.3, 0.25, 0.2, 0], strict=True))


def test_a_quarter_turn_a_mirror_and_a_shift_are_those_of_pixels() -> None:
    image = like_photographs(1, 8)
    turned, mirrored, shifted = (
        augmented([image], only(GEOMETRY, each))[0] for each in (QUARTER_TURN, MIRROR, [1.0, 0, 0.25, 0, 1, 0])
    )
    assert_close(turned, image.rot90(1, (2, 3)), within=1e-12)
    assert_close(mirrored, image.flip(3), within=1e-12)
    assert_close(shifted, torch.cat([image[..., 1:], image[..., -1:]], dim=3), within=1e-12)  # reflected at the edge


def test_colours_are_those_of_the_matrix_and_the_square_is_grey() -> None:
    image = like_photographs(1, 8)
    matrix = torch.tensor([[0.0, 1, 0, 0.1], [0, 0, 2, 0], [-1, 0, 0, 0]], dtype=torch.float64)
    (recoloured,) = augmented([image], only(COLOUR, matrix.flatten()))
    assert_close(recoloured, torch.stack([image[:, 1] + 0.1, 2 * image[:, 2], -image[:, 0]], dim=1), within=1e-12)
    (covered,) = augmented([image], only(SQUARE, [-0.25, 0.125, 0.5, 1]))  # of x 3, 4 and half of 5; of y 6 and 7
    expected = image.clone()
    expected[:, :, 6:, 3:4], expected[:, :, 6:, 4] = 0, expected[:, :, 6:, 4] / 2
    assert_close(covered, expected, within=1e-12)


# Gradients


def test_gradients_of_both_orders_are_those_of_finite_differences() -> None:
    image = like_photographs(1, 4).requires_grad_()
    transform = drawn(1, strength=LARGEST_STRENGTH, resolution=4)
    assert torch.autograd.gradcheck(lambda x: augmented([x], transform)[0], image)
    assert torch.autograd.gradgradcheck(lambda x: augmented([x], transform)[0].pow(3), image)


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_gradients_by_the_images_are_those_through_their_transforms(precision: torch.dtype) -> None:
    """Their value, and that of their squared norm by what they are computed from: what a penalty needs."""
    images = [image.requires_grad_() for image in random_pyramid(2, 5)]
    transform = drawn(5, strength=LARGEST_STRENGTH)
    outer = [image.detach().flip(0).requires_grad_() for image in random_pyramid(2, 5, seed=1)]
    expected = torch.autograd.grad(augmented(images, transform), images, outer, create_graph=True)
    by_outer = torch.autograd.grad(sum(each.square().sum() for each in expected), outer)
    rounded = [each.detach().to(precision).requires_grad_() for each in outer]
    ours = image_gradients(rounded, transform.to(torch.promote_types(precision, torch.float32)))
    ours_by_outer = torch.autograd.grad(sum(each.double().square().sum() for each in ours), rounded)
    for result, right in zip([*ours, *ours_by_outer], [*expected, *by_outer], strict=True):
        assert result.dtype == precision
        assert (result - right).norm() <= (1e-12 if precision is torch.float64 else 0.02) * right.norm()


# Draws


@given(seed=st.integers(0, 2**31 - 1), first=st.integers(0, 2**40), cut=st.integers(1, 5))
@settings(deadline=None, max_examples=20)
def test_transforms_depend_on_seed_and_position_alone(seed: int, first: int, cut: int) -> None:
    whole = drawn(6, strength=0.5, seed=seed, first=first)
    parts = [
        drawn(cut, strength=0.5, seed=seed, first=first),
        drawn(6 - cut, strength=0.5, seed=seed, first=first + cut),
    ]
    assert torch.equal(whole, torch.cat(parts))
    images = random_pyramid(2, 6)
    after = augmented(images, whole)
    in_parts = [augmented([i[:cut] for i in images], parts[0]), augmented([i[cut:] for i in images], parts[1])]
    for ours, *both in zip(after, *in_parts, strict=True):
        assert torch.equal(ours, torch.cat(both))


def test_real_and_generated_images_have_draws_of_their_own() -> None:
    purposes = (Purpose.AUGMENT_REAL, Purpose.AUGMENT_FAKE, Purpose.AUGMENT_HELD_OUT)
    several = {tuple(transforms(0, each, [5], strength=0.8, resolution=32)[0].tolist()) for each in purposes}
    assert len(several) == 3


@given(seed=st.integers(0, 2**31 - 1), position=st.integers(0, 2**40))
@settings(deadline=None, max_examples=20)
def test_at_strength_zero_nothing_changes(seed: int, position: int) -> None:
    images = random_pyramid(3, 1, dtype=torch.float32)
    assert augmented(images, None) is images
    assert image_gradients(images, None) is images
    none = drawn(1, strength=0.0, seed=seed, first=position).float()
    for after in (augmented(images, none), image_gradients(images, none)):
        assert all(torch.equal(ours, before) for ours, before in zip(after, images, strict=True))


@pytest.mark.parametrize("strength", [0.1, LARGEST_STRENGTH])
def test_each_operation_has_its_probability(strength: float) -> None:
    """Of 8,000 samples, within five standard errors, as far as an operation can be seen in the whole transform."""
    many, p = drawn(8000, strength=strength).numpy(), strength
    linear, offset = many[:, [0, 1, 3, 4]].reshape(-1, 2, 2), many[:, [2, 5]]
    area = np.linalg.det(linear)
    keeps_area, keeps_shape = np.isclose(abs(area), 1), np.isclose(*(linear**2).sum(axis=1).T)
    is_turned = ~np.isclose(linear, linear.round()).all(axis=(1, 2))
    colour = many[:, COLOUR].reshape(-1, 3, 4)
    gain = colour[:, 0, :3].sum(axis=1)  # of greys
    chroma = np.sqrt(np.linalg.det(colour[:, :, :3]) / gain)  # the gain of colours
    cutout = many[:, 19] > many[:, 18]
    shares = {
        "flip": (area < 0, p / 2),
        "scale": (~keeps_area, p),
        "stretch": (~keeps_shape, p),
        "rotation": (is_turned & keeps_area & keeps_shape, p * (1 - p) ** 2),
        "shift": (offset.any(axis=1), 1 - (1 - p) * (1 - p * (1 - 1 / 64))),  # one of 64 is by no pixel
        "brightness": (colour[:, 0, 3] != 0, p),
        "contrast": (~np.isclose(abs(gain), 1), p),
        "luma flip": (gain < 0, p / 2),
        "hue": (~np.isclose(colour[:, 0, 1], colour[:, 1, 0]), p),
        "saturation": (~np.isclose(chroma, abs(gain)), p),
        "cutout": (cutout, p),
    }
    for name, (seen, expected) in shares.items():
        assert abs(seen.mean() - expected) <= 5 * (expected * (1 - expected) / len(many)) ** 0.5, name
    upright = linear[keeps_area & keeps_shape & ~is_turned]
    assert abs(np.isclose(upright[:, 0, 0], 0).mean() - p / 2) <= 5 * (p / 2 * (1 - p / 2) / len(upright)) ** 0.5, (
        "turn"
    )
    assert np.allclose(many[cutout, 19] - many[cutout, 18], 1)


# Adaptive strength


def after(steps: int, *, training: float, fake: float, held_out: float, strength: float = 0.4) -> AdaptiveStrength:
    """After steps of 100 images of each kind, every second of which is followed by 100 held-out ones."""
    adaptive = AdaptiveStrength(strength, LARGEST_STRENGTH, torch.zeros(3, dtype=torch.float64))
    for step in range(steps):
        score(adaptive, step, training=training, fake=fake, held_out=held_out)
    return adaptive


def score(adaptive: AdaptiveStrength, step: int, **scores: float) -> None:
    training, fake, held_out = torch.tensor([*scores.values()], dtype=torch.float64)
    adaptive.add(training, fake, 100)
    if step % 2:
        adaptive.add_held_out(held_out, 100)


@pytest.mark.parametrize("shift", [0.0, -40.0])
@pytest.mark.parametrize("scale", [1.0, 0.01])
@pytest.mark.parametrize(("held_out", "overfitting", "strength"), [(1.0, 0.75, 0.432), (2.5, 0.375, 0.368)])
def test_the_strength_follows_held_out_scores_under_any_shift_and_scale(
    held_out: float, overfitting: float, strength: float, scale: float, shift: float
) -> None:
    """Of the way from 4, training images, to 0, generated ones. 2,000 of the 50,000 images from 0 to 0.8 are 0.032."""
    scores = {"training": 4.0, "fake": 0.0, "held_out": held_out}
    adaptive = after(20, **{name: scale * score + shift for name, score in scores.items()})
    assert adaptive.overfitting == pytest.approx(overfitting, rel=1e-4)
    assert adaptive.strength == pytest.approx(strength)


def test_the_strength_changes_after_a_thousand_held_out_images_and_stays_within_its_bounds() -> None:
    scores = {"training": 4.0, "fake": 0.0}
    assert after(19, held_out=0.0, **scores).strength == after(19, held_out=4.0, **scores).strength == 0.4
    assert after(40, held_out=0.0, strength=0.76, **scores).strength == LARGEST_STRENGTH
    assert after(40, held_out=4.0, strength=0.04, **scores).strength == 0
    assert after(20, held_out=float("nan"), **scores).strength == 0.4
    assert after(20, training=1.0, fake=1.0, held_out=1.1).strength < 0.4  # it cannot tell them apart


def test_the_strength_goes_on_from_plain_values_as_if_never_stopped() -> None:
    scores = {"training": 4.0, "fake": 0.1, "held_out": 0.3}
    through, first = after(50, **scores), after(31, **scores)
    second = AdaptiveStrength(0.0, LARGEST_STRENGTH, torch.zeros(3, dtype=torch.float64))
    second.restore(json.loads(json.dumps(first.plain())))
    for step in range(31, 50):
        score(second, step, **scores)
    assert second.plain() == through.plain()
