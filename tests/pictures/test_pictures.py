"""Sample pictures show exactly the generator's images, in order."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from msggan.data.stream import to_float
from msggan.networks import Generator
from msggan.pictures.grids import (
    CHUNK,
    PADDING_PX,
    SHEET_COLUMNS,
    all_scales_sheet,
    enlarged,
    find_samples,
    generate,
    generate_parts,
    grid,
    grid_of,
    to_pixels,
    write_samples,
)


def pixels_pyramid(count: int, depth: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (count, 3, 4 << level, 4 << level), dtype=torch.uint8, generator=generator)
        for level in range(depth)
    ]


def cell(picture: Image.Image, row: int, column: int, side: int) -> np.ndarray:
    """(3, side, side): what stands in a place of a grid."""
    top, left = (PADDING_PX + index * (side + PADDING_PX) for index in (row, column))
    return np.asarray(picture)[top : top + side, left : left + side].transpose(2, 0, 1)


# Pixels


@pytest.mark.parametrize(
    ("value", "pixel"),
    [(-1.0, 0), (1.0, 255), (0.0, 128), (-5.0, 0), (5.0, 255), (-0.6, 51), (0.2, 153), (-0.9970, 0), (-0.9950, 1)],
)
def test_pixels_worked_by_hand(value: float, pixel: int) -> None:
    """(value + 1) · 127.5, rounded: −0.6 is 51, 0.2 is 153, −0.997 is 0.38, −0.995 is 0.64."""
    assert to_pixels(torch.tensor([value])).tolist() == [pixel]


def test_every_brightness_comes_back_from_what_training_sees() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(to_float(levels)), levels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pixels_are_eight_bit_whatever_was_computed_in(dtype: torch.dtype) -> None:
    assert to_pixels(torch.tensor([-1.0, 1.0], dtype=dtype)).tolist() == [0, 255]
    assert to_pixels(torch.tensor([0.5], dtype=dtype)).dtype == torch.uint8


@given(value=st.floats(-2, 2), others=st.lists(st.floats(-10, 10), max_size=5))
@settings(deadline=None)
def test_a_numbers_brightness_does_not_depend_on_the_rest_of_the_picture(value: float, others: list[float]) -> None:
    """The original stretches each picture's contrast, and so cannot be compared from one time to the next."""
    assert to_pixels(torch.tensor([value, *others]))[0] == to_pixels(torch.tensor([value]))[0]


# Generating


@pytest.mark.parametrize("count", [1, 3, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_images_are_made_in_parts_and_none_is_lost(count: int) -> None:
    generator, latents = Generator(2, 4).double(), torch.randn(count, 4, dtype=torch.float64)
    expected = [to_pixels(images.detach()) for images in generator(latents)]
    made = generate(generator, latents)
    assert [tuple(level.shape) for level in made] == [(count, 3, 4, 4), (count, 3, 8, 8)]
    for level, wanted in zip(made, expected, strict=True):
        assert level.dtype == torch.uint8
        assert (level.int() - wanted.int()).abs().max() <= 1  # of a number between two pixels


@pytest.mark.parametrize(("depth", "count", "chunks"), [(2, 70, [64, 6]), (6, 20, [16, 4]), (8, 3, [1, 1, 1])])
def test_images_of_more_pixels_are_computed_in_smaller_chunks(depth: int, count: int, chunks: list[int]) -> None:
    """8², 128² and 512²; as they are computed, nothing but pixels is left of those before."""
    generator, computed, held = Generator(depth, 16), [], []

    def before(_: object, arguments: tuple[Tensor]) -> None:
        computed.append(len(arguments[0]))
        assert not any(reference() is not None for reference in held)

    def after(_: object, __: object, pyramid: list[Tensor]) -> None:
        held.extend(weakref.ref(images) for images in pyramid)

    generator.register_forward_pre_hook(before)
    generator.register_forward_hook(after)
    assert [len(level) for level in generate(generator, torch.randn(count, 16))] == [count] * depth
    assert computed == chunks


def test_a_pyramid_in_parts_is_the_same_pyramid() -> None:
    generator, latents = Generator(3, 8), torch.randn(7, 8)
    parts = list(generate_parts(generator, latents, chunk=3))
    assert [len(part[0]) for part in parts] == [3, 3, 1]
    for index, level in enumerate(generate(generator, latents, chunk=3)):
        assert torch.equal(torch.cat([part[index] for part in parts]), level)


def test_latents_follow_the_generators_own_dtype() -> None:
    made = generate(Generator(1, 4).double(), torch.randn(2, 4))
    assert made[0].shape == (2, 3, 4, 4)


@pytest.mark.parametrize("count", [2, 5, CHUNK + 1])
def test_an_image_is_bit_identical_in_every_batch(count: int) -> None:
    generator, latents = Generator(3, 8), torch.randn(count, 8)
    beside = generate(generator, latents, chunk=1)
    alone = generate(generator, latents[-1:], chunk=1)
    assert all(torch.equal(level[-1:], by_itself) for level, by_itself in zip(beside, alone, strict=True))


# Grids


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 1, 1), (2, 1, 2), (4, 2, 2), (7, 3, 3), (16, 4, 4), (36, 6, 6)]
)
@pytest.mark.parametrize("side", [4, 32])
def test_a_grid_is_about_square_and_shows_each_image_pixel_for_pixel(
    count: int, columns: int, rows: int, side: int
) -> None:
    images = pixels_pyramid(count, 4)[{4: 0, 32: 3}[side]]
    picture = grid(images)
    assert picture.mode == "RGB"
    if count > 1:  # one image is a picture by itself, without a frame
        assert picture.size == tuple(places * (side + PADDING_PX) + PADDING_PX for places in (columns, rows))
        for index, image in enumerate(images.numpy()):
            assert np.array_equal(cell(picture, index // columns, index % columns, side), image)
    else:
        assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), images[0].numpy())


def test_a_dark_grid_stays_dark() -> None:
    images = torch.full((4, 3, 8, 8), 3, dtype=torch.uint8)
    assert (cell(grid(images), 1, 1, 8) == 3).all()


@pytest.mark.parametrize("count", [2, 5, SHEET_COLUMNS, SHEET_COLUMNS + 4])
@pytest.mark.parametrize("depth", [2, 4, 6])
def test_a_sheet_has_a_column_a_sample_and_a_row_a_scale_coarse_to_fine(count: int, depth: int) -> None:
    """All of one size: a coarse pixel is a square of equal ones."""
    pyramid = pixels_pyramid(count, depth)
    picture = all_scales_sheet(pyramid)
    side, columns = max(64, 2 << depth), min(count, SHEET_COLUMNS)
    assert picture.size == (
        columns * (side + PADDING_PX) + PADDING_PX,
        depth * (side + PADDING_PX) + PADDING_PX,
    )
    for row, level in enumerate(pyramid):
        factor = side // level.shape[-1]
        for column in range(columns):
            wanted = level[column].numpy().repeat(factor, axis=1).repeat(factor, axis=2)
            assert np.array_equal(cell(picture, row, column, side), wanted)


def test_a_sheet_of_one_scale_and_one_sample_is_a_picture() -> None:
    assert all_scales_sheet(pixels_pyramid(1, 1)).size[0] >= 64


def test_a_grid_holds_one_image_at_a_time() -> None:
    images, drawn = pixels_pyramid(12, 3)[-1], []

    def one_by_one() -> Iterator[Tensor]:
        for image in images:
            copy = image.clone()
            assert not any(reference() is not None for reference in drawn[:-1])
            drawn.append(weakref.ref(copy))
            yield copy

    assert np.array_equal(np.asarray(grid_of(one_by_one(), count=12, side=16)), np.asarray(grid(images)))
    assert len(drawn) == 12


@pytest.mark.parametrize(
    ("size", "larger"),
    [((206, 206), (618, 618)), ((138, 138), (552, 552)), ((530, 266), (1060, 532)), ((512, 600), (512, 600))],
)
def test_small_pictures_are_enlarged_to_512_pixels_or_more_pixel_by_pixel(
    size: tuple[int, int], larger: tuple[int, int]
) -> None:
    """Grids of 36 and 16 images of 32², a sheet of 4 scales, and one that is large enough."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    shown = enlarged(Image.fromarray(pixels))
    factor = larger[0] // size[0]
    assert shown.size == larger
    assert np.array_equal(np.asarray(shown), pixels.repeat(factor, axis=0).repeat(factor, axis=1))


# Files


def test_samples_are_named_by_images_seen_and_scale(tmp_path: Path) -> None:
    pyramid = pixels_pyramid(9, 4)
    finest = write_samples(tmp_path / "new" / "samples", 12_345, pyramid)
    assert finest == tmp_path / "new" / "samples" / "000012345_32px.png"
    assert sorted(path.name for path in finest.parent.iterdir()) == [
        "000012345_16px.png",
        "000012345_32px.png",
        "000012345_4px.png",
        "000012345_8px.png",
        "000012345_scales.png",
    ]


def test_samples_on_the_disk_are_the_grids_enlarged(tmp_path: Path) -> None:
    pyramid = pixels_pyramid(9, 3)
    write_samples(tmp_path, 64, pyramid)
    for images in pyramid:
        with Image.open(tmp_path / f"000000064_{images.shape[-1]}px.png") as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(enlarged(grid(images))))
    with Image.open(tmp_path / "000000064_scales.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(enlarged(all_scales_sheet(pyramid))))


def test_samples_are_found_again_by_scale_from_first_to_last(tmp_path: Path) -> None:
    for images_seen in (2_000, 1_000_000_000, 0):  # ten digits come after nine
        write_samples(tmp_path, images_seen, pixels_pyramid(4, 2))
    (tmp_path / "notes_8px.png").touch()
    (tmp_path / "000000001_8px.png.part").touch()
    names = ["000000000", "000002000", "1000000000"]
    assert find_samples(tmp_path) == {side: [tmp_path / f"{name}_{side}px.png" for name in names] for side in (4, 8)}
    assert find_samples(tmp_path / "none") == {}


def test_samples_written_again_replace_the_old_ones(tmp_path: Path) -> None:
    write_samples(tmp_path, 64, pixels_pyramid(9, 2))
    pyramid = [255 - images for images in pixels_pyramid(9, 2)]
    with Image.open(write_samples(tmp_path, 64, pyramid)) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(enlarged(grid(pyramid[-1]))))
