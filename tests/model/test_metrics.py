"""The sliced Wasserstein distance: zero for equal images, larger for more different ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import assert_close, peak_growth_mib
from torch import Tensor

from msggan import metrics
from msggan.metrics import DIRECTIONS, Patches, laplacian_pyramid, spectrum_ratio
from msggan.randomness import Purpose, rng


def sliced_wasserstein(reals: Tensor, fakes: Tensor, *, seed: int = 0) -> dict[str, float]:
    """reals, fakes: (N, 3, R, R) uint8."""
    real, fake = (metrics.Patches(len(reals), reals.shape[-1], seed=seed) for _ in range(2))
    real.add(reals)
    fake.add(fakes)
    return metrics.distances(real, fake, seed=seed)


def noise(count: int, side: int, *, seed: int = 0, low: int = 0, high: int = 256) -> Tensor:
    """(N, 3, r, r) uint8."""
    return torch.randint(
        low, high, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def smooth(count: int, side: int, *, seed: int = 1) -> Tensor:
    """(N, 3, r, r) uint8: noise of 4² pixels, enlarged, which has little detail."""
    images = torch.nn.functional.interpolate(noise(count, 4, seed=seed).float(), size=(side, side), mode="bilinear")
    return images.round().to(torch.uint8)


def with_noise(images: Tensor, deviation: float) -> Tensor:
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + deviation * drawn).clamp(0, 255).round().to(torch.uint8)


def coloured(count: int, side: int, *, seed: int = 0) -> Tensor:
    """(N, 3, r, r) uint8: each channel has a mean and a contrast of its own."""
    lows, highs = ((0, 90, 200), (250, 110, 240)) if seed % 2 else ((100, 0, 30), (130, 220, 50))
    channels = [noise(count, side, seed=10 * seed + c, low=lows[c], high=highs[c])[:, c : c + 1] for c in range(3)]
    return torch.cat(channels, dim=1)


def computed_independently(reals: Tensor, fakes: Tensor, *, seed: int = 0) -> dict[str, float]:
    """The definition, patch by patch and channel by channel in float64, with all levels of all images at once."""
    found = {}
    for level, other in zip(laplacian_pyramid(reals.double()), laplacian_pyramid(fakes.double()), strict=True):
        side = level.shape[-1]
        drawn = rng(seed, Purpose.PROJECTION, side).standard_normal((3 * min(7, side) ** 2, DIRECTIONS))
        directions = drawn / np.linalg.norm(drawn, axis=0)
        one, two = (np.sort(patches_of(images.numpy(), seed) @ directions, axis=0) for images in (level, other))
        found[f"swd_{side}"] = 1000 * float(np.abs(one - two).mean())
    return {"swd": float(np.mean(list(found.values()))), **found}


def patches_of(images: np.ndarray, seed: int) -> np.ndarray:
    """images: (N, 3, r, r) → (n·N, 3·p·p)."""
    count, side = len(images), images.shape[-1]
    size, each = min(7, side), 128 if count <= 128 else max(1, 16384 // count)
    tops, lefts = rng(seed, Purpose.PATCH, side).integers(0, side - size + 1, size=(2, count, each))
    patches = np.empty((count, each, size, size, 3))
    for image, places in enumerate(zip(tops, lefts, strict=True)):
        for place, (top, left) in enumerate(zip(*places, strict=True)):
            patches[image, place] = images[image, :, top : top + size, left : left + size].transpose(1, 2, 0)
    for channel in range(3):
        values = patches[..., channel]
        patches[..., channel] = (values - values.mean()) / values.std()
    return patches.reshape(count * each, -1)


# The distance


@pytest.mark.parametrize(("count", "side"), [(40, 4), (40, 8), (150, 16), (20, 64)])
def test_distances_of_coloured_images_equal_an_independent_computation(count: int, side: int) -> None:
    reals, fakes = coloured(count, side), coloured(count, side, seed=1)
    wanted = computed_independently(reals, fakes, seed=3)
    assert sliced_wasserstein(reals, fakes, seed=3) == pytest.approx(wanted, rel=1e-4)


def test_more_than_16384_images_have_one_patch_each() -> None:
    reals, fakes = coloured(2**14 + 5, 8), coloured(2**14 + 5, 8, seed=1)
    assert sliced_wasserstein(reals, fakes) == pytest.approx(computed_independently(reals, fakes), rel=1e-4)


@given(cuts=st.sets(st.integers(1, 79)))
@settings(deadline=None, max_examples=5)
def test_patches_do_not_depend_on_the_parts_that_images_arrive_in(cuts: set[int]) -> None:
    """To the last bit. 80 images of 64² are more than are processed at a time."""
    images = noise(80, 64)
    whole, in_parts = Patches(80, 64), Patches(80, 64)
    whole.add(images)
    for begin, end in itertools.pairwise([0, *sorted(cuts), 80]):
        in_parts.add(images[begin:end])
    assert all(torch.equal(in_parts.normalised(side), whole.normalised(side)) for side in (16, 32, 64))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="where a process can read its largest size")
def test_memory_does_not_grow_with_the_number_of_images() -> None:
    """In MiB, beside the images themselves: all pyramids of these 64 would take 800."""
    growth = peak_growth_mib(
        "import torch; from msggan.metrics import Patches, distances;"
        "images = torch.zeros(64, 3, 256, 256, dtype=torch.uint8); images[::2, :, ::3] = 255;"
        "small = Patches(2, 16); small.add(images[:2, :, :16, :16]); distances(small, small);"
        "sets = [Patches(64, 256), Patches(64, 256)]",
        "sets[0].add(images); sets[1].add(images.flip(0)); distances(*sets)",
    )
    assert 50 < growth < 250


@pytest.mark.parametrize("side", [4, 8, 16, 32, 64])
def test_the_same_images_have_no_distance(side: int) -> None:
    images = noise(12, side)
    assert set(sliced_wasserstein(images, images.clone()).values()) == {0.0}


@pytest.mark.parametrize(
    ("side", "levels"),
    [
        (4, ["swd_4"]),
        (8, ["swd_8"]),
        (16, ["swd_16"]),
        (32, ["swd_16", "swd_32"]),
        (64, ["swd_16", "swd_32", "swd_64"]),
    ],
)
def test_there_is_a_distance_for_each_level_and_their_mean_before_them(side: int, levels: list[str]) -> None:
    distances = sliced_wasserstein(noise(6, side), smooth(6, side))
    assert list(distances) == ["swd", *levels]
    assert all(distance > 0 for distance in distances.values())
    assert distances["swd"] == pytest.approx(np.mean([distances[level] for level in levels]))


def test_the_distance_grows_with_noise() -> None:
    reals = smooth(24, 32)
    distances = [sliced_wasserstein(reals, with_noise(reals, deviation)) for deviation in (0, 4, 16, 64)]
    for level in ("swd", "swd_16", "swd_32"):
        values = [distance[level] for distance in distances]
        assert values == sorted(values)
        assert values[0] == 0
        assert values[-1] > values[1] > 0


def test_detail_that_is_missing_shows_at_its_own_level() -> None:
    """Pictures without their finest detail are far at 32 pixels, and near at 16."""
    reals = with_noise(smooth(64, 32), 30)
    blurred = torch.nn.functional.interpolate(
        torch.nn.functional.avg_pool2d(reals.float(), 2), size=(32, 32), mode="bilinear"
    )
    distances = sliced_wasserstein(reals, blurred.round().to(torch.uint8))
    assert distances["swd_32"] > 2 * distances["swd_16"]


def test_a_distance_equals_a_number_worked_out_manually() -> None:
    """Half the real pictures are white and half black; half the fakes are a chequerboard and half its negative.

    Normalised, a real patch is ±(1, …, 1), a fake one ±c, and both have 48 numbers, with c at a right angle to
    (1, …, 1). Along a random direction the reals lie at ±s and the fakes at ±t, where s and t are nearly independent
    standard normal numbers. Sorted against each other they are ||s| − |t|| apart, whose expectation is
    2 E max(|s|, |t|) − 2 E |s| = 2 · 2/√π − 2 √(2/π) = 0.661; ×1000.
    """
    chequered = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * 255
    white = torch.full((3, 4, 4), 255)
    reals = torch.stack([white, 255 - white] * 8).to(torch.uint8)
    fakes = torch.stack([chequered.expand(3, 4, 4), (255 - chequered).expand(3, 4, 4)] * 8).to(torch.uint8)
    distances = [sliced_wasserstein(reals, fakes, seed=seed)["swd"] for seed in range(4)]
    assert np.mean(distances) == pytest.approx(661, rel=0.2)


def test_of_whole_images_neither_order_brightness_nor_contrast_counts() -> None:
    """Patches of 4² images are the images, normalised over the set: half the contrast is the same picture."""
    reals = noise(16, 4, high=100)
    shuffled = reals[torch.randperm(16, generator=torch.Generator().manual_seed(3))]
    assert sliced_wasserstein(reals, shuffled)["swd"] == pytest.approx(0, abs=1e-2)
    assert sliced_wasserstein(reals, 2 * reals + 20)["swd"] == pytest.approx(0, abs=1e-2)


def test_the_distance_is_the_same_both_ways() -> None:
    one, other = noise(16, 32), smooth(16, 32)
    assert sliced_wasserstein(one, other) == pytest.approx(sliced_wasserstein(other, one), rel=1e-5)


def test_a_measurement_can_be_repeated_and_hardly_depends_on_its_seed() -> None:
    one, other = noise(32, 16), smooth(32, 16)
    distances = [sliced_wasserstein(one, other, seed=seed)["swd"] for seed in (0, 0, 1)]
    assert distances[0] == distances[1]
    assert distances[2] != distances[0]
    assert distances[2] == pytest.approx(distances[0], rel=0.15)


def test_measuring_does_not_change_the_global_random_state() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    sliced_wasserstein(noise(4, 16), smooth(4, 16))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("side", [4, 16, 32])
def test_pictures_of_one_colour_have_a_finite_distance(side: int) -> None:
    """A collapsed generator's: they have no deviation to divide by."""
    black = torch.zeros(6, 3, side, side, dtype=torch.uint8)
    assert set(sliced_wasserstein(black, black).values()) == {0.0}
    assert all(np.isfinite(value) for value in sliced_wasserstein(noise(6, side), black).values())


# The pyramid


def enlarged(images: np.ndarray) -> np.ndarray:
    """Twice the side by the 5×5 binomial filter, written out: a pixel's weight is that of its distance to each source.

    Along one axis, even pixels are (1, 6, 1)/8 of the nearest sources and odd ones (1, 1)/2; the edges mirror the
    enlarged grid, in which the sources are the even places.
    """
    for axis in (-2, -1):
        moved = np.moveaxis(images, axis, -1)
        before = np.concatenate((moved[..., 1:2], moved[..., :-1]), axis=-1)  # place −2 mirrors place 2
        after = np.concatenate((moved[..., 1:], moved[..., -1:]), axis=-1)  # place 2n mirrors place 2n − 2
        result = np.empty((*moved.shape[:-1], 2 * moved.shape[-1]))
        result[..., ::2] = (before + 6 * moved + after) / 8
        result[..., 1::2] = (moved + after) / 2
        images = np.moveaxis(result, -1, axis)
    return images


@given(seed=st.integers(0, 1000), side=st.sampled_from([16, 32, 64, 128]))
@settings(deadline=None, max_examples=12)
def test_the_pyramid_gives_the_image_back(seed: int, side: int) -> None:
    """Each level is what the one below it, enlarged, lacks."""
    images = noise(2, side, seed=seed).double()
    levels = [level.numpy() for level in laplacian_pyramid(images)]
    assert [level.shape[-1] for level in levels] == [size for size in (128, 64, 32, 16) if size <= side]
    rebuilt = levels[-1]
    for detail in reversed(levels[:-1]):
        rebuilt = enlarged(rebuilt) + detail
    np.testing.assert_allclose(rebuilt, images.numpy(), atol=1e-10)


def test_a_plain_picture_has_no_detail() -> None:
    *details, rest = laplacian_pyramid(torch.full((1, 3, 64, 64), 77.0, dtype=torch.float64))
    assert all(detail.abs().max() < 1e-12 for detail in details)
    assert rest.sub(77).abs().max() < 1e-12


@pytest.mark.parametrize("side", [4, 8, 16])
def test_small_images_are_their_own_only_level(side: int) -> None:
    images = noise(2, side).float()
    (level,) = laplacian_pyramid(images)
    assert torch.equal(level, images)


def test_a_weave_of_two_pixels_is_seen_at_the_end_of_the_spectrum_alone() -> None:
    """It multiplies the power there: noise of variance 1/3 in three channels, and a weave of ±1 in all of them."""
    noise = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    woven = noise + torch.tensor([1.0, -1.0]).repeat(8)
    assert torch.equal(spectrum_ratio(noise, noise), torch.ones(9))
    ratio = spectrum_ratio(noise, woven)
    assert_close(ratio[:7], torch.ones(7), within=1e-5)
    assert ratio[8] > 10
