"""Signs of trouble: each is found in the numbers of a run that has it, and none in those of good runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from msggan.data.sources import open_source
from msggan.evaluation.scales import ScaleDifferences
from msggan.health import Copies, Thumbnails, compare
from msggan.signs import judge, sentences

NAMES = ("kimg", "d_loss", "d_real", "d_fake", "g_gradient_norm", "swd", "variance_ratio", "scale_difference", "copies")
Rows = list[tuple[float, ...]]


def signs_at_each(rows: Rows, total_kimg: float) -> list[set[str]]:
    """The signs at each evaluation of a run, by name."""
    evaluations = [dict(zip(NAMES, row, strict=False)) for row in rows]
    return [
        set(sentences({**evaluations[-1], **judge(evaluations[: count + 1], total_images=1000 * total_kimg)}))
        for count in range(len(evaluations))
    ]


# Recorded: 400 drawn flowers, recipe `auto` with batches of 16, at 16 px with latent size 16, and the start at 32 px.
GOOD: Rows = [
    (2.0, 0.468, 0.194, -0.329, 0.337, 208.0, 0.299, 1.42),
    (4.0, 0.489, 0.0754, -0.401, 0.368, 139.0, 0.27, 1.02),
    (6.0, 0.492, 0.00922, -0.473, 0.554, 105.0, 0.684, 1.15),
    (8.0, 0.543, -0.128, -0.485, 0.418, 85.9, 0.71, 1.13),
    (10.0, 0.581, -0.345, -0.592, 0.24, 79.4, 0.701, 1.0),
    (12.0, 0.605, -0.38, -0.574, 0.229, 70.1, 0.708, 0.853),
    (14.0, 0.627, -0.173, -0.32, 0.188, 72.6, 0.715, 0.749),
]
STARTING: Rows = [
    (0.4, 0.0781, 0.343, -2.37, 2.02, 146.0, 0.176, 1.73),
    (0.8, 0.0713, 0.887, -1.84, 3.4, 186.0, 0.0548, 1.66),
    (1.2, 0.0964, 2.05, -0.398, 3.27, 227.0, 0.0349, 1.5),
    (1.6, 0.191, 3.08, 1.14, 1.62, 186.0, 0.0384, 1.42),
]

# Recorded: 24 images of 8 px, with --g-lr 0.3, --beta1 0.9 and no penalties.
COLLAPSING = [
    (8.02, 0.711, -0.509, -0.485, 0.143, 761.0, 0.000271, 1.42),
    (9.0, 0.787, -0.316, -0.14, 0.0815, 653.0, 9.97e-05, 0.656),
    (10.0, 0.707, -0.0226, 0.00449, 0.0318, 650.0, 2.69e-05, 0.901),
    (11.0, 0.875, 0.117, 0.444, 0.129, 657.0, 3.83e-05, 0.836),
]


def test_a_good_run_has_no_sign() -> None:
    for rows in (GOOD, STARTING):
        assert set().union(*signs_at_each(rows, rows[-1][0])) == set()


def test_samples_that_are_all_alike_are_a_collapse_once_a_run_is_past_its_beginning() -> None:
    assert signs_at_each(COLLAPSING, 20) == [set(), set(), set(), {"collapse"}]
    (sentence,) = sentences({"sign_collapse": 1.0, "variance_ratio": 0.0123}).values()
    assert "their variance is 0.01 of the real images'. Use another name with a smaller --g-lr" in sentence


def test_copies_of_training_images_are_a_sign() -> None:
    """Recorded: 300 training images that are nearly copies of 8 photographs, with 60 other photographs held out."""
    recorded = {8.0: 0.0, 10.0: 0.0667, 12.0: 0.15, 14.0: 0.2167, 16.0: 0.3167}
    rows = [(kimg, *GOOD[-1][1:], copies) for kimg, copies in recorded.items()]
    assert signs_at_each(rows, 100) == [set(), set(), set(), {"memorising"}, {"memorising"}]
    (sentence,) = sentences({"sign_memorising": 1.0, "copies": 0.3167}).values()
    assert "0.32 of its images are nearer to one than 99 % of the held-out images. Add images" in sentence


def test_copies_are_told_from_other_images(tmp_path: Path) -> None:
    """Drawn flowers: others than the training images are no copies, and these are, also when mirrored or blurred."""
    subprocess.run([sys.executable, "examples/draw_flowers.py", tmp_path], check=True, capture_output=True)
    dataset = open_source(tmp_path).dataset(resolution=16)
    training, reals = dataset.images(range(dataset.training)), dataset.held_out_images()
    copies = Copies(Thumbnails(training[50:]), Thumbnails(reals))
    blurred = functional.avg_pool2d(training[50:].float(), 3, stride=1, padding=1, count_include_pad=False)
    assert all(copies.share(Thumbnails(images)) <= 0.05 for images in (reals, training[:50]))
    assert all(copies.share(Thumbnails(images)) >= 0.8 for images in (training[50:].flip(-1), blurred))


def test_scales_that_part_again_are_a_sign() -> None:
    """From the run that collapsed, before it did; its evaluations at 2, 3 and 4 kimg, as if they were later."""
    parting = [(10.0 + count, *GOOD[-1][1:-1], difference) for count, difference in enumerate((0.233, 2.33, 1.88))]
    assert signs_at_each(parting, 100) == [set(), set(), {"scales"}]


def test_a_swd_that_no_longer_falls_is_a_sign_after_a_long_part_of_the_run() -> None:
    """Recorded: the 24 images with --g-lr 0.1, --d-lr 0.03, --beta1 0.5 and no penalties. The lowest is at 4 kimg."""
    recorded = [342, 331, 314, 271, 296, 286, 269, 272, 275, 299, 284, 279, 288, 301, 309, 309]
    rows = [(1.0 + count, *GOOD[-1][1:5], swd, *GOOD[-1][6:]) for count, swd in enumerate(recorded)]
    assert signs_at_each(rows, 16) == [*[set()] * 10, *[{"stalled"}] * 6]  # from 11 kimg on
    assert signs_at_each(rows, 40) == [set()] * 16


def test_numbers_that_a_run_does_not_have_are_no_sign() -> None:
    assert sentences({}) == {}
    reports = [{"kimg": 10.0 + count, "swd": 50.0 - count} for count in range(12)]  # as earlier versions wrote them
    assert not any(judge(reports, total_images=40_000).values())


def test_variety_and_scales_are_measured_as_defined() -> None:
    """Two images that differ by 60 at each scale, against reals that differ by 120; those of 4 px are off by 15."""
    scales = ScaleDifferences()
    reals = Thumbnails(torch.stack([torch.full((3, 16, 16), value) for value in (40, 160)]).to(torch.uint8))
    pyramid = [
        torch.stack([torch.full((3, side, side), value + (15 if side == 4 else 0)) for value in (60, 120)])
        for side in (4, 8, 16)
    ]
    pyramid = [images.to(torch.uint8) for images in pyramid]
    generated = Thumbnails(pyramid[-1])
    scales.add(pyramid)
    found = compare(generated, scales, reals)
    assert found["variance_ratio"] == pytest.approx(0.25)
    assert found["scale_difference"] == pytest.approx(15 / 60, rel=0.01)  # 60 is the deviation of reals from 100
    same = Thumbnails(pyramid[-1][:1].repeat(3, 1, 1, 1))
    assert compare(same, ScaleDifferences(), reals) == {"variance_ratio": 0.0}
    assert "variance_ratio" not in compare(generated, scales, same)
