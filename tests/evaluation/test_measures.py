"""The measures of quality: worked out by hand on few points, properties, and the order in which they put image sets."""

from __future__ import annotations

import math
import os
import random
import sys
from copy import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.programs import REPOSITORY
from torch import Tensor
from torch.nn import functional

from msggan.data.sources import open_source
from msggan.evaluation.copying import Nearest, cells, copies, copy_threshold, copying, copying_by_cell, pixels_of
from msggan.evaluation.estimates import Pairs, share_interval, with_interval
from msggan.evaluation.features import RandomFeatures, Standardised
from msggan.evaluation.likeness import Likeness
from msggan.evaluation.neighbours import coverage, density, distances, precision, recall
from msggan.evaluation.report import Measure, compare
from msggan.evaluation.scales import ScaleDifferences
from msggan.evaluation.two_samples import classifier_accuracy, classifier_scores, kernel_distance, polynomial_kernel


def column(*values: float) -> Tensor:
    """(N, 1): images of one feature."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def near(reals: Tensor, fakes: Tensor) -> Pairs:
    return Pairs.of(distances, reals, fakes)


def normal(count: int, size: int = 4, *, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


# Worked out by hand


def test_precision_and_recall_of_five_points() -> None:
    reals = column(0, 1, 2, 3, 10)  # third neighbours at 3, 2, 2, 3, 9
    assert precision(near(reals, column(-4, 1.5, 6, 20))) == 2 / 4  # 6 is 3 from the 3, 20 is 10 from the 10
    assert recall(near(column(-4, 1.5, 6, 20), reals)) == 2 / 4
    repeated = near(reals, column(1.5, 1.5, 1.5, 1.5, 1.5))
    assert (precision(repeated), recall(repeated)) == (1, 0)


def test_density_and_coverage_of_six_points() -> None:
    reals = column(0, 1, 2, 3, 4, 5)  # fifth neighbours at 5, 4, 3, 3, 4, 5
    pairs = near(reals, column(2.5, 9, 10))  # nearer to 6, 1 and 0 of them
    assert density(pairs) == pytest.approx(7 / 15)
    assert coverage(pairs) == 1
    assert coverage(near(reals, column(9, 10))) == pytest.approx(1 / 6)


def test_the_kernel_distance_of_two_pairs() -> None:
    """k(0, 1) = 1, k(1, 2) = 27; between the sets 1, 1, 8 and 27."""
    assert kernel_distance(Pairs.of(polynomial_kernel, column(0, 1), column(1, 2))) == 1 + 27 - 2 * 37 / 4


def test_a_classifier_tells_apart_what_is_separated_and_nothing_in_equal_sets() -> None:
    first = normal(20)
    assert classifier_accuracy(classifier_scores(first, first + 20)).value == 1
    assert classifier_accuracy(classifier_scores(first, first)).value == 0.5
    margins = [float(classifier_scores(first, first + shift).mean()) for shift in (0, 20, 40)]
    assert margins == sorted(margins)  # although the accuracy of the last two is 1
    assert margins[0] == pytest.approx(0, abs=1e-9)


def test_intervals_of_shares_and_of_random_halves() -> None:
    assert share_interval(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert share_interval(0, 10)[:2] == (0, 0)
    first, second = normal(200), normal(200, seed=1)
    halves = with_interval(
        lambda pairs: float(pairs.between.mean()), Pairs.of(lambda a, b: a[:, :1] - b[:, 0], first, second)
    )
    difference = first[:, 0].mean() - second[:, 0].mean()
    error = 1.96 * math.sqrt(first[:, 0].var() / 200 + second[:, 0].var() / 200)
    assert halves.value == pytest.approx(float(difference), abs=1e-6)
    assert halves.high - halves.value == pytest.approx(float(error), rel=0.3)


def test_the_rank_statistic_of_copying() -> None:
    measured, null = copying(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0]))
    assert measured.value == 1.5 / 6  # 3 > 2 counts 1, 2 = 2 counts ½
    assert null == (0.5, 0, 1)
    assert copying(torch.rand(1000), torch.rand(99))[1] == pytest.approx((0.5, 0.44, 0.56), abs=1e-3)


def test_copying_by_cell_weighs_cells_by_their_held_out_images() -> None:
    """In one cell 30 fakes are nearer than 10 held-out images, in one 24 are farther than 20; one has 20 fakes only."""
    fakes = torch.cat([torch.zeros(30), 2 * torch.ones(24), torch.zeros(20)])
    held_out = torch.ones(30 + 7)
    in_cells = torch.tensor([0] * 30 + [1] * 24 + [2] * 20), torch.tensor([0] * 10 + [1] * 20 + [2] * 7)
    measured, alike, count = copying_by_cell(fakes, held_out, *in_cells)
    scores = -0.5 / math.sqrt(41 / (12 * 300)), 0.5 / math.sqrt(45 / (12 * 480))
    assert measured.value == pytest.approx((scores[0] + 2 * scores[1]) / 3)
    assert alike.high == -alike.low == pytest.approx(1.96 * math.sqrt(1 + 4) / 3)
    assert count == 2
    assert copying_by_cell(fakes[:9], held_out[:9], torch.arange(9), torch.arange(9))[2] == 1  # none has enough


def test_cells_show_copies_of_one_kind_and_no_copies_where_one_kind_is_preferred() -> None:
    """Half of the images are ten times as far from each other as the other half."""
    is_far = torch.arange(1600) % 2 == 0
    images = normal(1600, 6) * torch.where(is_far, 10, 1)[:, None] + 100.0 * is_far[:, None]
    training, held_out, new = images.split([600, 400, 600])
    preferred = new[~is_far[1000:]]  # none of the other kind, and no copies
    copied = torch.cat([new[:250], training[:50] + 0.01])
    nearest = Nearest(torch.cat([held_out, preferred, copied]))
    nearest.add(training, torch.arange(600))
    theirs, *found = nearest.distances.split([400, 300, 300])
    of_held_out, *in_cells = cells(training, (held_out, preferred, copied), held_out=400)
    few, many = (copying_by_cell(fakes, theirs, its, of_held_out) for fakes, its in zip(found, in_cells, strict=True))
    assert copying(found[0], theirs)[0].high < 0.4  # in one cell, it looks like copies
    assert few[1].low < few[0].value < few[1].high
    assert many[0].value < many[1].low
    assert cells(training, (held_out,), held_out=199)[0].unique().tolist() == [0]


def test_what_counts_as_a_copy_is_rare_among_held_out_images() -> None:
    held_out = torch.arange(1.0, 100)
    assert copy_threshold(held_out) == (1, 1)
    assert copy_threshold(torch.arange(1.0, 301)) == (3, 3)
    measured, expected = copies(torch.tensor([0.5, 0.9, 1.0, 7.0]), held_out)
    assert (measured.value, expected.value) == (2 / 4, 1 / 100)
    # One fake is below the smallest of three in one of four cases: none or all of it.
    assert copies(torch.ones(1), torch.ones(3))[1] == (1 / 4, 0, 1)


def test_the_differences_of_scales_are_relative_to_the_deviation_of_real_images() -> None:
    finest = torch.full((2, 3, 8, 8), 80, dtype=torch.uint8)
    finest[:, 2] = 240
    same = functional.avg_pool2d(finest.float(), 2).to(torch.uint8)
    scales = ScaleDifferences()
    for coarse in (same, same + 8):
        scales.add([coarse, finest])
    estimate = scales.relative_to(40)[4]
    assert estimate.value == pytest.approx(math.sqrt(64 / 2) / 40)  # half of them are off by 8
    assert estimate.low == 0
    assert estimate.high == pytest.approx(math.sqrt(32 + 1.96 * 32 * math.sqrt(4 / 3) / 2) / 40)
    assert ScaleDifferences().relative_to(40) == {}  # of a single scale


def test_the_nearest_is_found_part_by_part() -> None:
    nearest = Nearest(torch.tensor([[0.0, 0.0], [10.0, 10.0]]))
    nearest.add(torch.tensor([[3.0, 3.0], [11.0, 9.0]]), torch.tensor([5, 6]))
    nearest.add(torch.tensor([[0.0, 2.0], [50.0, 9.0]]), torch.tensor([7, 8]))
    assert nearest.numbers.tolist() == [7, 6]
    assert nearest.distances.tolist() == pytest.approx([math.sqrt(2), 1])
    nearest.add(torch.tensor([[10.0, 10.0]]), torch.tensor([9]))
    assert (nearest.distances[1].item(), nearest.numbers[1].item()) == (0, 9)


# Properties

sizes = st.integers(6, 24)
seeds = st.integers(0, 100)


@given(sizes, seeds)
def test_equal_sets_have_the_best_values(count: int, seed: int) -> None:
    points = normal(count, seed=seed)
    pairs = near(points, points)
    assert (precision(pairs), recall(pairs), coverage(pairs)) == (1, 1, 1)
    assert density(pairs) >= 1  # each is nearer to itself than to its neighbours


@given(sizes, seeds)
def test_a_subset_has_precision_one(count: int, seed: int) -> None:
    points = normal(count, seed=seed)
    assert precision(near(points, points[: max(4, count // 2)])) == 1


@given(sizes, seeds)
def test_the_order_of_images_does_not_matter(count: int, seed: int) -> None:
    reals, fakes = normal(count, seed=seed), 1.5 * normal(count, seed=seed + 1)
    mixed = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    for measure in (precision, recall, density, coverage):
        assert measure(near(reals, fakes)) == pytest.approx(measure(near(reals[mixed], fakes[mixed.flip(0)])))
    kernel, others = (Pairs.of(polynomial_kernel, reals, each) for each in (fakes, fakes[mixed]))
    assert kernel_distance(kernel) == pytest.approx(kernel_distance(others))


@given(sizes, seeds)
def test_a_copying_set_is_ranked_first_and_an_equal_one_in_the_middle(count: int, seed: int) -> None:
    held_out = normal(count, 1, seed=seed).abs()[:, 0]
    assert copying(torch.zeros(count), held_out)[0].value == 0
    assert copying(held_out, held_out)[0].value == 0.5


# Features


@pytest.mark.parametrize(("side", "size"), [(4, 80), (8, 240), (32, 880)])
def test_features_are_the_same_in_any_batch(side: int, size: int) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, side, side), np.uint8))
    features = RandomFeatures(side)(images)
    assert features.shape == (3, size)
    assert torch.equal(features, RandomFeatures(side)(images))
    assert torch.allclose(features[1:2], RandomFeatures(side)(images[1:2]), atol=1e-5)


def test_features_stay_what_they_were() -> None:
    """Values of earlier evaluations remain comparable."""
    images = torch.arange(3 * 8 * 8, dtype=torch.uint8).reshape(1, 3, 8, 8)
    assert RandomFeatures(8)(images)[0, [0, 100, 239]].tolist() == pytest.approx([0.00236, -0.16487, 0.01225], abs=1e-4)


def test_standardised_features_count_alike_and_constant_ones_do_not_explode() -> None:
    reference = torch.cat([100 * normal(50, 3), torch.ones(50, 1)], dim=1)
    standardised = Standardised(reference)(reference)
    assert torch.allclose(standardised.std(dim=0), torch.tensor([1.0, 1, 1, 0]), atol=1e-4)


# The order of image sets


def flowers(count: int, side: int) -> tuple[Tensor, Tensor]:
    """(N, 3, r, r) uint8 and (N,) bool: whether they are before a sky."""
    sys.path.insert(0, str(REPOSITORY / "examples"))
    try:
        from draw_flowers import draw_flower
    finally:
        sys.path.pop(0)
    chances = [random.Random(number) for number in range(count)]  # noqa: S311 - no secret
    before_sky = [chance.random() < 0.4 for chance in map(copy, chances)]
    drawn = [np.asarray(draw_flower(chance).resize((side, side))) for chance in chances]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2), torch.tensor(before_sky)


def photographs(folder: Path, side: int) -> tuple[Tensor, Tensor]:
    """The same of photographs in ten folders, and whether they are of the first five."""
    images, is_first = [], []
    for number, of_class in enumerate(sorted(folder.iterdir())):
        dataset = open_source(of_class).dataset(resolution=side)
        images.append(dataset.images(range(dataset.training)))
        is_first += [number < 5] * dataset.training
    mixed = torch.randperm(len(is_first), generator=torch.Generator().manual_seed(0))
    return torch.cat(images)[mixed], torch.tensor(is_first)[mixed]


def blurred(images: Tensor) -> Tensor:
    padded = functional.pad(images.float(), (1, 1, 1, 1), mode="replicate")
    return functional.avg_pool2d(padded, 3, 1).round().to(torch.uint8)


def assert_ordered(images: Tensor, is_of_class: Tensor) -> None:
    """Real against real is best in every measure, and each fault is seen by those that are made for it."""
    third = len(images) // 3
    training, reals, reference = images.split(third)[:3]
    chosen = reals[is_of_class[third : 2 * third]]
    of_classes = torch.cat([chosen, chosen.flip(-1), chosen])[:third]
    extract = RandomFeatures(images.shape[-1])
    standardised = Standardised(extract(reference))

    def measured(fakes: Tensor) -> dict[str, Measure]:
        return compare(*(standardised(extract(each)) for each in (reference, fakes, training)))

    real, blurry, few, one = map(measured, (reals, blurred(reals), of_classes, reals[:1].expand_as(reals)))
    for name, measure in real.items():
        assert abs(measure.generated.value - measure.real.value) < 0.15 or name == "density"
        assert measure.generated.low <= measure.real.high
        assert measure.real.low <= measure.generated.high
    assert blurry["classifier_accuracy"].generated.low > real["classifier_accuracy"].generated.high
    assert blurry["kernel_distance"].generated.value > real["kernel_distance"].generated.value
    assert few["recall"].generated.value < real["recall"].generated.value - 0.05
    assert few["coverage"].generated.value < real["coverage"].generated.value - 0.05
    assert few["kernel_distance"].generated.value > real["kernel_distance"].generated.value
    assert one["recall"].generated.value == 0
    assert one["coverage"].generated.value < 0.05
    assert one["classifier_accuracy"].generated.value > 0.95
    assert one["kernel_distance"].generated.low > few["kernel_distance"].generated.high

    in_training = Likeness(reference)
    generated = reals, blurred(reals), of_classes, reals[:1].expand_as(reals)
    found = [in_training.measure(in_training.features(fakes)) for fakes in generated]
    for name in ("classifier_margin", "kernel_distance"):
        best, *others = (each[name] for each in found)
        assert best < min(others)
        assert max(others) == found[3][name]
    assert found[2]["recall"] < found[0]["recall"] - 0.05

    for represent in (lambda images: standardised(extract(images)), pixels_of):
        sets = training, torch.cat([training, blurred(training)]), reals, reference
        nearest = Nearest(represent(torch.cat(sets)))
        nearest.add(represent(training), torch.arange(third))
        copied, altered, new, held_out = nearest.distances.split([len(each) for each in sets])
        assert copies(copied, held_out)[0].value == 1
        assert copies(altered, held_out)[0].low > copies(altered, held_out)[1].high
        assert copies(new, held_out)[0].value <= copies(new, held_out)[1].high
        assert copying(copied, held_out)[0].value < 0.01
        assert copying(new, held_out)[1].low < copying(new, held_out)[0].high
        in_cells = cells(
            represent(training), [represent(each) for each in (training, reals, reference)], held_out=third
        )
        of_copies, of_new = (
            copying_by_cell(nearest_of, held_out, its, in_cells[2])
            for nearest_of, its in zip((copied, new), in_cells[:2], strict=True)
        )
        assert of_copies[0].value < 2 * of_copies[1].low
        assert of_new[1].low < of_new[0].value < of_new[1].high
        assert (of_new[2] > 1) == (third >= 200)


def test_drawn_images_are_ordered_as_they_should_be() -> None:
    assert_ordered(*flowers(390, 16))


@pytest.mark.slow
@pytest.mark.skipif("MSGGAN_TEST_DATA" not in os.environ, reason="MSGGAN_TEST_DATA names no folder of photographs")
def test_photographs_are_ordered_as_they_should_be() -> None:
    assert_ordered(*photographs(Path(os.environ["MSGGAN_TEST_DATA"]) / "clothing", 32))
