"""Images become the same batches whatever their names, their folders, and the way they are read."""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features

from msggan.data.dataset import MIN_HOLDOUT, Dataset
from msggan.data.decoding import INTEGER_WHITES, Decoder, MemoryBudget, choose_white, readable_formats
from msggan.data.sources import ImageDataset, ImageFiles, describe_skipped, find_images
from msggan.data.stream import SampleStream, pyramid, to_float
from msggan.errors import DataError
from msggan.randomness import epoch_permutation, latents, mirrored

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
UNREADABLE = "not an image in a supported format"


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(content: bytes, resolution: int, background: str = "white") -> np.ndarray:
    """(3, R, R) uint8."""
    return Decoder(resolution, background).decode(content).pixels


def as_rgb(image: Image.Image, background: str) -> Image.Image:
    return Decoder(4, background).as_rgb(image)[0]


def plain(colour: tuple[int, ...] | int = RED, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def noise(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """A smooth picture without any symmetry."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def only_colour(pixels: np.ndarray) -> tuple[int, ...]:
    colours = {tuple(int(value) for value in pixel) for pixel in pixels.reshape(3, -1).T}
    assert len(colours) == 1, colours
    return colours.pop()


def fill(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def zipped(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def numbered(count: int) -> dict[str, bytes]:
    """PNGs of noise, each its own."""
    return {f"{number:04d}.png": saved(noise(number, (6, 4))) for number in range(count)}


def loaded(path: Path, resolution: int = 4, **options: object) -> ImageDataset:
    return ImageDataset(find_images(path), resolution=resolution, **options)


def names_of(path: Path) -> list[str]:
    return [file.name for file in find_images(path).files]


def every_image(dataset: ImageDataset) -> torch.Tensor:
    return torch.cat([dataset.images(range(len(dataset))), dataset.held_out_images()])


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (*chunks, (b"IEND", b""))
    )


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises what its pixels do not hold."""
    return png((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")))


def deep_png(values: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits a channel, from (H, W, C) whole numbers: grey, RGB or RGBA."""
    height, width, channels = values.shape
    kind = {1: 0, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return png((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)))


def deep_tiff(values: np.ndarray, order: str, *, compressed: bool) -> bytes:
    """A TIFF of 16 bits a channel, from (H, W, 3) whole numbers; order: < or >, of its bytes."""
    height, width, _ = values.shape
    strip = values.astype(order + "u2").tobytes()
    strip = zlib.compress(strip) if compressed else strip
    bits_at = 8 + 2 + 10 * 12 + 4
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, bits_at),
        (259, 4, 1, 8 if compressed else 1),
        (262, 4, 1, 2),
        (273, 4, 1, bits_at + 6),
        (277, 4, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, len(strip)),
        (284, 4, 1, 1),
    ]
    directory = struct.pack(order + "H", len(tags)) + b"".join(struct.pack(order + "HHII", *tag) for tag in tags)
    begin = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return begin + directory + bytes(4) + struct.pack(order + "HHH", 16, 16, 16) + strip


def with_lost_note(content: bytes) -> bytes:
    """The TIFF or EXIF whose description (tag 270, 100 characters) claims to be longer than the file."""
    for endian in "<>":
        content = content.replace(struct.pack(endian + "HHI", 270, 2, 101), struct.pack(endian + "HHI", 270, 2, 10**6))
    return content


def note_and_orientation() -> Image.Exif:
    exif = Image.Exif()
    exif[270] = "n" * 100
    exif[274] = 6
    return exif


# What a file looks like decoded


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_decodes_to_its_colour(kind: str) -> None:
    pixels = decode(saved(plain((250, 128, 10)), kind), 4)
    assert pixels.shape == (3, 4, 4)
    assert pixels.dtype == np.uint8
    tolerance = 0 if kind in ("PNG", "BMP", "GIF", "TIFF") else 3
    assert np.abs(pixels.reshape(3, -1).T.astype(int) - (250, 128, 10)).max() <= tolerance


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_frame_or_page_counts(kind: str) -> None:
    content = saved(plain(RED), kind, save_all=True, append_images=[plain(BLUE)])
    lossy = np.abs(decode(content, 4).reshape(3, -1).T.astype(int) - RED).max()
    assert lossy <= 3


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 255), (77, 77, 77)),
        ("LA", (77, 0), BLUE),
        ("La", (77, 255), (77, 77, 77)),
        ("La", (0, 0), BLUE),
        ("PA", (0, 0), BLUE),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), BLUE),
        ("RGBA", (255, 0, 0, 51), (51, 0, 204)),
        ("RGBa", (51, 0, 0, 51), (51, 0, 204)),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
        ("CMYK", (0, 255, 255, 0), RED),
        ("CMYK", (255, 255, 0, 0), BLUE),
        ("YCbCr", (128, 128, 128), (128, 128, 128)),
        ("HSV", (0, 255, 255), RED),
        ("I;16", 65535, WHITE),
        ("I;16", 257 * 40, (40, 40, 40)),
        ("I;16B", 257 * 40, (40, 40, 40)),
        ("I;16L", 257 * 40, (40, 40, 40)),
        ("I", 200, (1, 1, 1)),
        ("I", 257 * 40, (40, 40, 40)),
        ("I", 70000, WHITE),
        ("I", -5, (0, 0, 0)),
        ("F", 1.0, WHITE),
        ("F", 0.2, (51, 51, 51)),
        ("F", 200.0, WHITE),
        ("F", 1000.0, WHITE),
        ("F", float("nan"), (0, 0, 0)),
    ],
)
def test_each_mode_has_its_exact_colour_over_blue(
    mode: str, colour: int | tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    assert as_rgb(plain(colour, (2, 3), mode), "#0000ff").getcolors() == [(6, expected)]


def test_a_lab_tiff_decodes_to_its_colour() -> None:
    lightness_136_of_255_and_no_colour = saved(plain((136, 128, 128), mode="LAB"), "TIFF")  # L* 53.3 is sRGB 127.6
    assert np.abs(decode(lightness_136_of_255_and_no_colour, 4).astype(int) - 128).max() <= 2


@pytest.mark.parametrize(
    ("background", "expected"),
    [("white", WHITE), ("black", (0, 0, 0)), ("grey", (128, 128, 128)), ("#0a0B0c", (10, 11, 12))],
)
def test_transparent_pixels_take_the_background(background: str, expected: tuple[int, ...]) -> None:
    assert only_colour(decode(saved(plain((9, 9, 9, 0), mode="RGBA")), 4, background)) == expected


def test_the_background_is_composited_before_resizing() -> None:
    half = plain((255, 0, 0, 0), (8, 8), "RGBA")
    half.paste((255, 255, 255, 255), (0, 0, 8, 4))
    assert only_colour(decode(saved(half), 4, "white")) == WHITE  # the red that nobody sees does not bleed in


def test_padding_keeps_the_whole_image_between_bars_of_the_background() -> None:
    wide, high = (
        Decoder(8, "#0000ff", fit="pad").decode(saved(plain(RED, size))).pixels for size in ((16, 8), (8, 16))
    )
    assert only_colour(wide[:, 2:6]) == only_colour(high[:, :, 2:6]) == RED
    for bar in (wide[:, :2], wide[:, 6:], high[..., :2], high[..., 6:]):
        assert only_colour(bar) == BLUE


def test_an_image_is_enlarged_where_the_side_that_is_fitted_is_smaller(tmp_path: Path) -> None:
    noise(0, (40, 20)).save(tmp_path / "wide.png")
    index = tmp_path / "index"
    enlarged = [
        ImageDataset(find_images(tmp_path), resolution=32, fit=fit, index=index).enlarged
        for fit in ("crop", "pad", "pad", "crop")
    ]
    assert enlarged == [1, 0, 0, 1]


@pytest.mark.parametrize("transparency", [0, b"\x00\xff", b"\x00"])
@pytest.mark.parametrize("size", [(8, 8), (3, 5)])
def test_a_palette_can_name_what_is_transparent(transparency: int | bytes, size: tuple[int, int]) -> None:
    image = plain(0, size, "P")
    image.putpalette([*RED, *GREEN])
    assert only_colour(decode(saved(image, transparency=transparency), 4, "#0000ff")) == BLUE
    assert only_colour(decode(saved(image), 4, "#0000ff")) == RED


@pytest.mark.parametrize(
    ("mode", "colour", "named"), [("L", 7, 7), ("RGB", (1, 2, 3), (1, 2, 3)), ("1", 0, 0), ("I;16", 1799, 1799)]
)
def test_a_png_can_name_one_colour_transparent(mode: str, colour: int, named: int) -> None:
    assert only_colour(decode(saved(plain(colour, mode=mode), transparency=named), 4, "#0000ff")) == BLUE
    assert only_colour(decode(saved(plain(colour, mode=mode)), 4, "#0000ff")) != BLUE


@pytest.mark.parametrize(
    ("transparent", "expected"),
    [
        (None, (0x12, 0xAB, 0xFE)),
        ((0x1234, 0xABCD, 0xFF00), WHITE),
        ((0x1234, 0xABCC, 0xFF00), (0x12, 0xAB, 0xFE)),  # the same in its high bytes only
    ],
)
def test_a_png_of_16_bit_a_channel_keeps_its_colour_unless_exactly_that_is_transparent(
    transparent: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    pixels = np.full((4, 4, 3), (0x1234, 0xABCD, 0xFF00))
    chunks = [(b"tRNS", struct.pack(">HHH", *transparent))] if transparent else []
    assert only_colour(decode(deep_png(pixels, *chunks), 4)) == expected


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_files_keep_their_grey(kind: str) -> None:
    assert only_colour(decode(saved(plain(257 * 200, mode="I;16"), kind), 4)) == (200, 200, 200)


@pytest.mark.parametrize("size", [(8, 8), (400, 300)])
def test_cmyk_jpegs_keep_their_colours(size: tuple[int, int]) -> None:
    pixels = decode(saved(plain((0, 255, 255, 0), size, "CMYK"), "JPEG", quality=95), 8)
    assert np.abs(pixels.reshape(3, -1).T.astype(int) - RED).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_the_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    as_stored = saved(noise(1), kind, exif=exif, **options)
    stored = Image.open(BytesIO(saved(noise(1), kind, **options))).convert("RGB")
    upright = stored.transpose(turn) if turn is not None else stored
    np.testing.assert_array_equal(decode(as_stored, 8), decode(saved(upright), 8))


@pytest.mark.parametrize("size", [(16, 8), (8, 16)])
def test_the_middle_square_is_what_remains(size: tuple[int, int]) -> None:
    image = plain(RED, size)
    long_way = size.index(16)
    image.paste(BLUE, (8, 0, 16, 8) if long_way == 0 else (0, 8, 8, 16))
    pixels = decode(saved(image), 8)
    first, second = np.split(pixels, 2, axis=2 - long_way)
    assert only_colour(first) == RED
    assert only_colour(second) == BLUE


def test_an_image_of_the_right_size_is_kept_to_the_pixel() -> None:
    image = noise(3, (8, 8))
    np.testing.assert_array_equal(decode(saved(image), 8), np.asarray(image).transpose(2, 0, 1))


def test_a_large_jpeg_decoded_at_reduced_size_looks_the_same() -> None:
    image = noise(4, (640, 480))
    difference = decode(saved(image, "JPEG", quality=95), 32).astype(int) - decode(saved(image), 32)
    assert np.abs(difference).max() <= 8


def test_a_photograph_is_resized_as_exactly_as_lanczos_does() -> None:
    """Within two levels of 255, of noise: it is made smaller in two steps, which is faster."""
    image = noise(1, (300, 300))
    exact = np.asarray(image.resize((8, 8), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    assert np.abs(decode(saved(image), 8).astype(int) - exact).max() <= 2


@pytest.mark.parametrize("size", [(9, 8), (8, 9), (11, 8)])
def test_an_odd_remainder_is_cropped_equally_on_both_sides(size: tuple[int, int]) -> None:
    image = noise(3, size)
    turned = decode(saved(image.rotate(180)), 8)
    np.testing.assert_array_equal(turned, decode(saved(image), 8)[:, ::-1, ::-1])


# More than 8 bits a channel


def grey_tiff(value: float, kind: str, largest: float | None = None) -> bytes:
    """40 x 40 pixels of one value, and one pixel of another."""
    values = np.full((40, 40), value, kind)
    values[7, 9] = value if largest is None else largest
    return saved(Image.fromarray(values), "TIFF")


@pytest.mark.parametrize(
    ("white", "half", "kind"),
    [
        *((2**bits - 1, 2 ** (bits - 1) - 1, "u2") for bits in (8, 10, 12, 14, 16)),
        *((2**bits - 1, 2 ** (bits - 1) - 2 ** (bits - 9), "i4") for bits in (10, 16, 24, 31)),
        *((white, 0.498 * white, "f4") for white in (1, 255, 65535)),
    ],
)
@pytest.mark.parametrize("stray", [False, True])
def test_one_white_is_chosen_for_all_images_and_one_pixel_does_not_change_it(
    tmp_path: Path, white: int, half: float, kind: str, stray: bool
) -> None:
    """Half of white alone would be white in a file by itself, at one bit less."""
    largest = np.finfo(kind).max if kind == "f4" else np.iinfo(kind).max
    images = {"white.tif": grey_tiff(white, kind), "half.tif": grey_tiff(half, kind, largest if stray else None)}
    dataset = loaded(fill(tmp_path, images | {"8 bit.png": saved(plain(3, mode="L"))}), resolution=40)
    assert sorted(int(image[0].float().median()) for image in dataset.images(range(3))) == [3, 127, 255]
    numbers = "floating-point numbers" if kind == "f4" else "16-bit or 32-bit integers"
    assert dataset.notes == [f"2 images of {numbers}: the value {white} is white, and larger ones too."]


def test_8_bit_images_need_no_choice_and_no_note(tmp_path: Path) -> None:
    assert loaded(fill(tmp_path, numbered(3))).notes == []


@given(bits=st.sampled_from([8, 10, 12, 14, 16]), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_white_is_the_largest_value_of_the_bits_that_the_images_use(bits: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, (30, 30, 1))
    _, brightness, _ = Decoder(4).as_rgb(Image.open(BytesIO(deep_png(values))))
    assert brightness is not None
    assert choose_white([brightness]).integer == 2**bits - 1
    assert 2**bits - 1 in INTEGER_WHITES


@pytest.mark.parametrize(
    "content",
    [
        deep_png,
        lambda values: deep_png(np.concatenate([values, np.full((8, 8, 1), 65535)], axis=2)),
        *(
            lambda values, order=order, compressed=compressed: deep_tiff(values, order, compressed=compressed)
            for order in "<>"
            for compressed in (False, True)
        ),
    ],
)
def test_16_bit_colour_is_decoded_from_all_its_bits(tmp_path: Path, content: Callable[[np.ndarray], bytes]) -> None:
    values = np.random.default_rng(1).integers(0, 4096, (8, 8, 3))
    dataset = loaded(fill(tmp_path, {"x." + ("png" if b"PNG" in content(values)[:8] else "tif"): content(values)}), 8)
    expected = np.rint(values * (255 / 4095)).astype(np.uint8).transpose(2, 0, 1)
    np.testing.assert_array_equal(dataset.images([0])[0].numpy(), expected)


def test_16_bit_colour_is_turned_by_exif_too() -> None:
    values = np.random.default_rng(2).integers(0, 65536, (8, 8, 3))
    exif = note_and_orientation().tobytes().removeprefix(b"Exif\0\0")  # orientation 6: shown turned clockwise
    turned, upright = deep_png(values, (b"eXIf", exif)), deep_png(np.rot90(values, -1))
    np.testing.assert_array_equal(decode(turned, 8), decode(upright, 8))


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_the_chosen_white_holds_past_the_memory_budget_too_and_progress_ends_at_the_number_of_files(
    tmp_path: Path, kept: int
) -> None:
    images = {f"{number}.png": deep_png(np.full((8, 8, 1), 4095 - number)) for number in range(3)}
    path, steps = fill(tmp_path, images | numbered(1)), list[tuple[int, int]]()
    dataset = loaded(path, memory_budget_bytes=kept * 48, progress=lambda *step: steps.append(step))
    assert torch.equal(every_image(dataset), every_image(loaded(path)))
    assert int(dataset.images(range(4)).amax(dim=(1, 2, 3)).min()) > 200
    assert dataset._is_decoded.sum() == kept
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


# ICC profiles


def icc_profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    """A profile of version 4 with these tags, and the white point and connection space that all have."""
    tags = {b"wtpt": xyz(0.9642, 1, 0.8249), **tags}
    offset, directory, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        directory += name + struct.pack(">II", offset + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = offset + len(body)
    connection = b"Lab " if b"A2B0" in tags else b"XYZ "
    header = struct.pack(">I4sI4s4s4s12x4s", size, bytes(4), 0x04000000, kind, space, connection, b"acsp").ljust(
        68, b"\0"
    )
    header += struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)  # D50
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + directory + body


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">iii", *(round(65536 * value) for value in values))


def curve(*parameters: float) -> bytes:
    """y = (a x + b) ** g, and c x below d, of (g, a, b, c, d)."""
    return b"para" + bytes(4) + struct.pack(">HH5i", 3, 0, *(round(65536 * value) for value in parameters))


SRGB_CURVE = curve(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
LINEAR_CURVE = curve(1, 1, 0, 1, 0)


def rgb_profile(*primaries: tuple[float, float, float]) -> bytes:
    """Primaries in XYZ, adapted to D50, and the curve of sRGB."""
    colorants = {name: xyz(*primary) for name, primary in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return icc_profile(b"RGB ", colorants | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), SRGB_CURVE))


DISPLAY_P3 = rgb_profile((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
SRGB_WRITTEN_ANEW = rgb_profile((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
# From linear Display P3 to linear sRGB, both with white D65: as CSS Color 4 has it.
P3_TO_SRGB = np.array([[1.2249402, -0.2249402, 0], [-0.0420570, 1.0420570, 0], [-0.0196376, -0.0786361, 1.0982736]])


def as_in_srgb(colour: tuple[int, int, int]) -> np.ndarray:
    """Of a colour in Display P3, computed by hand."""
    stored = np.array(colour) / 255
    linear = P3_TO_SRGB @ np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("colour", [(200, 100, 50), (60, 180, 90), (30, 60, 220), (128, 128, 128), (255, 0, 0)])
def test_a_colour_of_display_p3_becomes_the_same_colour_of_srgb(kind: str, colour: tuple[int, int, int]) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    content = saved(plain(colour), kind, icc_profile=DISPLAY_P3, **options)
    assert np.abs(decode(content, 4).reshape(3, -1).T - as_in_srgb(colour)).max() <= (3 if kind == "JPEG" else 1.5)


def test_a_profile_holds_for_transparent_images_and_palettes_and_not_for_the_background() -> None:
    expected = as_in_srgb((200, 100, 50))
    palette = plain(0, mode="P")
    palette.putpalette([200, 100, 50])
    for image in (plain((200, 100, 50, 255), mode="RGBA"), palette):
        assert np.abs(only_colour(decode(saved(image, icc_profile=DISPLAY_P3), 4)) - expected).max() <= 1.5
    clear = saved(plain((200, 100, 50, 0), mode="RGBA"), icc_profile=DISPLAY_P3)
    assert only_colour(decode(clear, 4, "#336699")) == (0x33, 0x66, 0x99)


def test_16_bit_colour_has_its_profile_too() -> None:
    values = np.full((8, 8, 3), (200, 100, 50)) * 257
    profile = b"P3\0\0" + zlib.compress(DISPLAY_P3)
    content = deep_png(values, (b"iCCP", profile))
    assert np.abs(only_colour(decode(content, 4)) - as_in_srgb((200, 100, 50))).max() <= 1.5


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile_is_used(mode: str) -> None:
    linear = icc_profile(b"GRAY", {b"kTRC": LINEAR_CURVE})
    half = plain((128, 255) if mode == "LA" else 128, mode=mode)
    assert np.abs(np.array(only_colour(decode(saved(half, icc_profile=linear), 4))) - 188).max() <= 1  # 0.502 linear


def test_a_cmyk_profile_is_used() -> None:
    """Of a press on which cyan alone is grey of L* 50, any other ink black, and paper white."""
    lightness = [255 if inks == 0 else 127 if inks == 8 else 0 for inks in range(16)]  # the first ink varies slowest
    lookup = bytes(value for light in lightness for value in (light, 128, 128))
    identity = struct.pack(">9i", *(0x10000 if index % 4 == 0 else 0 for index in range(9)))
    ramps = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + 4 * ramps + lookup + 3 * ramps
    profile = icc_profile(b"CMYK", {b"A2B0": table}, kind=b"prtr")
    for inks, grey in (((0, 0, 0, 0), 255), ((255, 0, 0, 0), 119), ((0, 255, 0, 0), 0)):
        content = saved(plain(inks, mode="CMYK"), "TIFF", icc_profile=profile)
        assert np.abs(decode(content, 4).astype(int) - grey).max() <= 2


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        SRGB_WRITTEN_ANEW,
        b"damaged",
        DISPLAY_P3[:200],
        icc_profile(b"GRAY", {b"kTRC": LINEAR_CURVE}),  # of another kind of image
        icc_profile(b"XYZ ", {}),
    ],
    ids=["sRGB", "sRGB by another program", "damaged", "cut", "grey", "foreign"],
)
def test_with_the_profile_of_srgb_or_none_that_can_be_used_pixels_stay_as_they_are(profile: bytes) -> None:
    image = noise(3, (8, 8))
    np.testing.assert_array_equal(decode(saved(image, icc_profile=profile), 8), np.asarray(image).transpose(2, 0, 1))


def test_converted_images_are_counted(tmp_path: Path) -> None:
    images = {f"{number}.png": saved(noise(number), icc_profile=DISPLAY_P3) for number in range(2)}
    dataset = loaded(fill(tmp_path, images | numbered(3)))
    assert dataset.notes == ["2 images converted to sRGB from another ICC profile."]


# Large images


def test_a_photograph_of_200_million_pixels_is_accepted(tmp_path: Path) -> None:
    fill(tmp_path, {"phone.png": png_of_size(16320, 12240), "bomb.png": png_of_size(30000, 30000)})
    assert find_images(tmp_path).median_shorter_side() == 12240


def test_images_that_do_not_fit_into_memory_together_are_decoded_one_after_another() -> None:
    memory, entered = MemoryBudget(100), threading.Event()

    def enter(size_bytes: int) -> threading.Thread:
        def take() -> None:
            with memory.reserved(size_bytes):
                entered.set()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        return thread

    with memory.reserved(60):
        enter(40).join()
        entered.clear()
        too_large = enter(10**9)  # more than all: waits until everything is free
        assert not entered.wait(0.1)
    too_large.join(timeout=60)
    assert entered.is_set()
    with memory.reserved(100):
        pass


def test_decoding_reserves_four_bytes_per_pixel() -> None:
    reserved = []

    class Watched(MemoryBudget):
        def reserved(self, size_bytes: int) -> AbstractContextManager[None]:
            reserved.append(size_bytes)
            return super().reserved(size_bytes)

    Decoder(8, memory=Watched(100)).decode(saved(noise(1, (24, 16))))
    assert reserved == [4 * 24 * 16]


# What cannot be decoded


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am a letter", UNREADABLE),
        (b"%!PS-Adobe-3.0 EPSF-3.0", UNREADABLE),
        (saved(noise(1))[:-200], "truncated"),
        (saved(noise(1), "JPEG")[:300], "truncated"),
        (saved(noise(1, (300, 300)), "JPEG")[:-800], "truncated"),
        (png_of_size(20000, 20000), "more than 268 million pixels"),
        (png_of_size(60000, 60000), "more than 268 million pixels"),
        (b"BM" + bytes(60), "damaged"),
        (b"II*\0" + b"\xff" * 60, UNREADABLE),
    ],
)
def test_what_cannot_be_decoded_is_refused_with_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(DataError) as refused:
        decode(content, 8)
    assert refused.value.message == reason


@pytest.mark.parametrize("kind", FORMATS)
def test_mutated_files_are_decoded_or_refused(kind: str) -> None:
    options = {"exif": note_and_orientation()} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    sound = saved(noise(5), kind, **options)
    chance = np.random.default_rng(FORMATS.index(kind))
    reasons = set()
    for _ in range(200):
        mutated = bytearray(sound)
        # Headers and directories are where it hurts, so that half of the blows fall on the first 200 bytes.
        for reach in (200, len(sound)):
            for at in chance.integers(0, min(reach, len(sound)), chance.integers(0, 4)):
                mutated[at] = chance.integers(256)
        cut = len(sound) if chance.random() < 0.7 else int(chance.integers(len(sound)))
        try:
            assert decode(bytes(mutated[:cut]), 8).shape == (3, 8, 8)
        except DataError as refused:
            reasons.add(refused.message)
    assert reasons & {"damaged", UNREADABLE}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_does_not_cost_the_image(kind: str) -> None:
    exif = note_and_orientation()
    damaged = with_lost_note(exif.tobytes())
    assert damaged != exif.tobytes()
    pixels = decode(saved(noise(1), kind, exif=damaged), 8)
    # Releases of Pillow differ in how much they save of such EXIF: the orientation, or nothing.
    upright, as_stored = decode(saved(noise(1), kind, exif=exif), 8), decode(saved(noise(1), kind), 8)
    assert np.array_equal(pixels, upright) or np.array_equal(pixels, as_stored)


def test_a_png_animated_wrongly_shows_its_first_frame() -> None:
    animated = saved(noise(1), save_all=True, append_images=[noise(2)])
    no_frames = b"acTL" + struct.pack(">II", 0, 0)
    at = animated.index(b"acTL")
    damaged = animated[:at] + no_frames + struct.pack(">I", zlib.crc32(no_frames)) + animated[at + 16 :]
    for content in (animated, damaged):
        np.testing.assert_array_equal(decode(content, 8), decode(saved(noise(1)), 8))


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        (mode, options)
        for mode in ("RGB", "CMYK", "L", "P", "I;16", "F")
        for options in ({}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"big_tiff": True})
        if mode in ("RGB", "CMYK", "L") or "jpeg" not in options.values()
    ],
)
def test_a_tiff_decodes_as_pillow_decodes_it(mode: str, options: dict[str, object]) -> None:
    image = plain(257 * 9, mode=mode) if mode == "I;16" else noise(6).convert(mode)
    sound = saved(image, "TIFF", tiffinfo={270: "n" * 100}, **options)
    expected = decode(saved(as_rgb(Image.open(BytesIO(sound)), "white")), 8)
    np.testing.assert_array_equal(decode(sound, 8), expected)


# Which files are found


LEFT_BEHIND = (
    "Thumbs.db",
    "deep/desktop.ini",
    "._a.jpg",
    "__MACOSX/a.jpg",
    "__MACOSX/._a.jpg",
    ".DS_Store",
    ".hidden.png",
    ".git/a.png",
    "notes.txt",
)


@pytest.mark.parametrize("container", ["folder", "zip"])
def test_images_are_found_by_suffix_and_system_files_are_ignored(tmp_path: Path, container: str) -> None:
    expected_names = [
        "B.JPG",
        "a.png",
        "deep/er/c.Tiff",
        "d.jfif",
        "e.jpe",
        "f.webp",
        "g.bmp",
        "h.gif",
        "i.tif",
        "j.jpeg",
    ]
    contents = dict.fromkeys([*expected_names, *LEFT_BEHIND, "jpg", "a.svg"], b"content")
    path = fill(tmp_path / "x", contents) if container == "folder" else zipped(tmp_path / "x.zip", contents)
    assert names_of(path) == sorted(expected_names)
    assert all(file.read() == b"content" for file in find_images(path).files)


@pytest.mark.parametrize("container", ["folder", "zip"])
def test_files_of_other_kinds_are_counted_by_kind(tmp_path: Path, container: str) -> None:
    contents = dict.fromkeys(["a.MP4", "sub/b.mp4", "c.txt", "README", *LEFT_BEHIND], b"")
    contents |= {"broken.png": b"", "sub/cut.png": saved(noise(1))[:-200]} | numbered(2)
    path = fill(tmp_path / "x", contents) if container == "folder" else zipped(tmp_path / "x.zip", contents)
    assert describe_skipped(loaded(path).skipped) == [
        "Skipped 5 files: 2 .mp4, 2 .txt, 1 without a suffix.",
        "Skipped 2 unreadable images: broken.png (empty); sub/cut.png (truncated).",
    ]


def test_of_many_unreadable_images_the_first_are_named(tmp_path: Path) -> None:
    dataset = loaded(fill(tmp_path, {f"x{number:02d}.png": b"" for number in range(12)} | numbered(1)))
    (sentence,) = describe_skipped(dataset.skipped)
    assert sentence.startswith("Skipped 12 unreadable images: x00.png (empty); x01.png (empty); ")
    assert sentence.endswith("x09.png (empty); and 2 more.")


@pytest.mark.skipif("avif" not in features.modules or not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read(tmp_path: Path) -> None:
    path = fill(tmp_path, {"a.AVIF": saved(plain((250, 128, 10)), "AVIF", quality=95)})
    assert (loaded(path).images([0]).reshape(3, -1).T - torch.tensor([250, 128, 10])).abs().max() <= 5


def test_heic_is_read_where_its_plug_in_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    assert "HEIF" in readable_formats()
    heif.from_pillow(plain((250, 128, 10), (64, 64))).save(tmp_path / "a.heic", quality=100)
    assert (loaded(tmp_path).images([0]).reshape(3, -1).T - torch.tensor([250, 128, 10])).abs().max() <= 5


def test_heic_without_the_plug_in_is_counted_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it fails
    readable_formats.cache_clear()
    try:
        fill(tmp_path, {"a.heic": b"", "b.HEIF": b"", "c.heic": b"", "d.txt": b""})
        with pytest.raises(DataError) as refused:
            find_images(tmp_path)
        assert refused.value.message == (
            f"--data {tmp_path}: has no images. Skipped 4 files: 2 .heic (install pillow-heif to read them), "
            "1 .heif (install pillow-heif to read them), 1 .txt."
        )
        assert loaded(fill(tmp_path, numbered(2))).training == 2
    finally:
        readable_formats.cache_clear()


# Run folders among images

CONFIG = json.dumps({"format_version": 1, "latent_size": 64, "resolution": 32}).encode()
STATE = json.dumps({"state": "running", "images_seen": 0}).encode()


def run_at(folder: str, **marks: bytes) -> dict[str, bytes]:
    marks = marks or {"config.json": CONFIG}
    pictures = ("samples/000000250_8px.png", "generated/grid.png")
    return {f"{folder}/{name}": content for name, content in ({**dict.fromkeys(pictures, b"")} | marks).items()}


@pytest.mark.parametrize("container", ["folder", "zip"])
def test_a_run_folder_is_skipped_completely(tmp_path: Path, container: str) -> None:
    contents = {
        **numbered(2),
        "plants/config.json": b'{"model_type": "vit"}',  # of another program
        "plants/run.json": b"[]",
        "plants/broken/config.json": b"{" * 100000,
        "plants/generated/a.png": b"",
        **run_at("runs/one"),
        **run_at("runs/one/copy"),
        **run_at("runs/sweep/trials/3", **{"run.json": STATE}),
        **run_at("deep/er/weights", **{"generator.safetensors": b""}),
    }
    path = fill(tmp_path / "x", contents) if container == "folder" else zipped(tmp_path / "x.zip", contents)
    found = find_images(path)
    assert [file.name for file in found.files] == ["0000.png", "0001.png", "plants/generated/a.png"]
    assert describe_skipped(found.skipped) == [
        "Skipped 3 run folders: deep/er/weights, runs/one, runs/sweep/trials/3.",
        "Skipped 3 files: 3 .json.",
    ]


@pytest.mark.parametrize("container", ["folder", "zip"])
@pytest.mark.parametrize("mark", [{"config.json": CONFIG}, {"run.json": STATE}, {"generator.safetensors": b""}])
def test_a_run_folder_is_refused_as_data(tmp_path: Path, container: str, mark: dict[str, bytes]) -> None:
    contents = {"samples/000000250_8px.png": b"", "photo.png": saved(plain()), **mark}
    path = fill(tmp_path / "x", contents) if container == "folder" else zipped(tmp_path / "x.zip", contents)
    with pytest.raises(DataError, match="is a run folder"):
        find_images(path)


def test_links_are_followed_and_their_loops_end(tmp_path: Path) -> None:
    fill(tmp_path, {"data/a.png": b"", "data/sub/b.png": b"", "elsewhere/c.png": b""})
    data = tmp_path / "data"
    (data / "sub" / "parent").symlink_to(data, target_is_directory=True)
    (data / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (data / "d.png").symlink_to(tmp_path / "elsewhere" / "c.png")
    (data / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (data / "itself.png").symlink_to(data / "itself.png")
    assert names_of(data) == ["a.png", "d.png", "linked/c.png", "sub/b.png"]


def test_a_file_name_need_not_be_text(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(saved(plain()))
    except OSError:
        pytest.skip("this file system wants text")
    assert len(loaded(tmp_path)) == 1


def not_there(path: Path) -> Path:
    return path / "flowers"


def empty(path: Path) -> Path:
    return path


def without_images(path: Path) -> Path:
    return fill(path, dict.fromkeys(LEFT_BEHIND, b""))


def text_file(path: Path) -> Path:
    return fill(path, {"list.csv": b"a,b"}) / "list.csv"


def empty_zip(path: Path) -> Path:
    return zipped(path / "x.zip", {})


def cut_zip(path: Path) -> Path:
    whole = zipped(path / "x.zip", numbered(3))
    whole.write_bytes(whole.read_bytes()[:-30])
    return whole


def cut_zip_of_another_name(path: Path) -> Path:
    return cut_zip(path).rename(path / "data")


def encrypted_zip(path: Path) -> Path:
    whole = zipped(path / "x.zip", {"secret.png": b"content"})
    # Bit 0 of the flags says encrypted; they stand 6 bytes into the local and 8 into the central header.
    content = bytearray(whole.read_bytes())
    content[content.index(b"PK\x03\x04") + 6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    whole.write_bytes(content)
    return whole


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (not_there, "no such folder, zip or pack."),
        (empty, "has no images."),
        (without_images, "has no images. Skipped 1 file: 1 .txt."),
        (empty_zip, "has no images."),
        (text_file, "is not a folder, zip or pack."),
        (cut_zip, "is a damaged zip."),
        (cut_zip_of_another_name, "is a damaged zip."),
        (encrypted_zip, "secret.png in it is encrypted."),
    ],
)
def test_a_path_without_images_is_reported_with_a_hint(
    tmp_path: Path, made: Callable[[Path], Path], complaint: str
) -> None:
    path = made(tmp_path)
    with pytest.raises(DataError) as refused:
        find_images(path)
    assert refused.value.message == f"--data {path}: {complaint}"
    assert refused.value.hint


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_named(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": b"", "closed/b.png": b""})
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(DataError, match="closed cannot be read"):
            find_images(tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)


# How large they are


def test_the_median_shorter_side_needs_headers_only(tmp_path: Path) -> None:
    sizes = [(10000, 9999), (64, 48), (30, 90)]
    fill(tmp_path, {f"{number}.png": png_of_size(*size) for number, size in enumerate(sizes)} | {"x.png": b"broken"})
    assert find_images(tmp_path).median_shorter_side() == 48


def test_the_median_of_an_even_count_is_the_lower_of_the_middle_two(tmp_path: Path) -> None:
    fill(tmp_path, {f"{side}.png": png_of_size(side, 100) for side in (10, 20, 31, 40)})
    assert find_images(tmp_path).median_shorter_side() == 20


@pytest.mark.parametrize("container", ["folder", "zip"])
def test_of_a_large_file_only_the_header_is_read(tmp_path: Path, container: str) -> None:
    content = png_of_size(64, 48) + bytes(2**26)
    path = (
        fill(tmp_path / "x", {"a.png": content})
        if container == "folder"
        else zipped(tmp_path / "x.zip", {"a.png": content})
    )
    images = find_images(path)
    tracemalloc.start()
    try:
        assert images.median_shorter_side() == 48
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**22


def test_the_median_shorter_side_of_broken_files_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, {"x.png": b"broken", "y.png": b""})
    with pytest.raises(DataError, match=f"(?s)no readable image in {tmp_path}.*y.png: empty"):
        find_images(tmp_path).median_shorter_side()


# The dataset


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_last_of_two_files_of_a_name_in_a_zip_counts(tmp_path: Path) -> None:
    first, last = numbered(2).values()
    path = zipped(tmp_path / "a.zip", {"a.png": first})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a.png", last)
    assert loaded(path).fingerprint == loaded(fill(tmp_path / "b", {"a.png": last})).fingerprint


def test_a_zip_equals_its_folder_and_names_and_folders_do_not_matter(tmp_path: Path) -> None:
    contents = numbered(12)
    renamed = {f"{11 - number % 7}/{number * 5 % 13}.JPG": content for number, content in enumerate(contents.values())}
    datasets = [
        loaded(fill(tmp_path / "a", contents)),
        loaded(fill(tmp_path / "b", renamed)),
        loaded(zipped(tmp_path / "a.zip", contents), workers=3),
    ]
    assert len({dataset.fingerprint for dataset in datasets}) == 1
    assert all(torch.equal(every_image(dataset), every_image(datasets[0])) for dataset in datasets)


def test_the_fingerprint_changes_with_the_content_and_with_nothing_else(tmp_path: Path) -> None:
    contents = numbered(5)
    first = loaded(fill(tmp_path / "a", contents))
    larger = loaded(tmp_path / "a", resolution=16, background="black")
    other = loaded(fill(tmp_path / "b", contents | {"0000.png": saved(noise(99, (6, 4)))}))
    assert first.fingerprint == larger.fingerprint != other.fingerprint
    assert (first.enlarged, larger.enlarged) == (0, 5)


def test_broken_files_are_skipped_and_named_by_name(tmp_path: Path) -> None:
    sound = saved(noise(1))
    bad = {"3.png": b"", "2.png": sound[:-200], "4.jpg": png_of_size(30000, 30000), "1.gif": b"GIF89a" + bytes(9)}
    steps: list[tuple[int, int]] = []
    dataset = loaded(fill(tmp_path, bad | numbered(3)), progress=lambda done, total: steps.append((done, total)))
    assert [(name, reason) for name, reason, _ in dataset.skipped] == [
        ("1.gif", UNREADABLE),
        ("2.png", "truncated"),
        ("3.png", "empty"),
        ("4.jpg", "more than 268 million pixels"),
    ]
    assert len(dataset) == dataset.training == 3
    assert steps == [(done, 7) for done in range(1, 8)]


def test_a_member_damaged_in_its_zip_is_skipped(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", numbered(3))
    content = bytearray(path.read_bytes())
    content[60] ^= 255  # within the first member's data
    path.write_bytes(content)
    assert loaded(path).skipped == [("0000.png", "damaged in the zip", None)]


def test_nothing_decodable_is_an_error_that_names_the_first_files(tmp_path: Path) -> None:
    files = find_images(fill(tmp_path, {"a.png": b"letter", "b.jpg": b""}))
    with pytest.raises(DataError, match=f"(?s)no readable image in {tmp_path}.*a.png: not an .*b.jpg: empty"):
        ImageDataset(files, resolution=4)
    with pytest.raises(DataError, match="no readable image"):
        ImageDataset(ImageFiles([]), resolution=4)


def test_an_exception_in_progress_ends_the_threads(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loaded(fill(tmp_path, numbered(40)), progress=stop)
    assert not image_threads()


def image_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("images")]


def test_about_a_tenth_is_held_out_and_copies_stay_together(tmp_path: Path) -> None:
    contents = numbered(450)
    once = loaded(zipped(tmp_path / "once.zip", contents))
    twice = loaded(zipped(tmp_path / "twice.zip", contents | {f"copy/{name}": one for name, one in contents.items()}))
    assert MIN_HOLDOUT <= once.held_out < 70
    assert (twice.training, twice.held_out) == (2 * once.training, 2 * once.held_out)
    training, held_out = (
        {image.numpy().tobytes() for image in images}
        for images in (twice.images(range(len(twice))), twice.held_out_images())
    )
    assert not training & held_out
    assert once.training + once.held_out == len(training | held_out) == 450


def test_no_image_is_held_out_of_few(tmp_path: Path) -> None:
    dataset = loaded(zipped(tmp_path / "x.zip", numbered(150)))
    assert (dataset.training, dataset.held_out) == (150, 0)
    assert dataset.held_out_images().shape == (0, 3, 4, 4)


@pytest.mark.parametrize(("tenths", "held_out"), [(31, 0), (32, 32), (33, 33)])
def test_at_least_thirty_two_images_are_held_out(tenths: int, held_out: int) -> None:
    starts = [10 * number for number in range(tenths)] + [10 * number + 1 for number in range(300)]
    digests = b"".join(start.to_bytes(8, "big") + bytes(24) for start in starts)
    dataset = Dataset(np.frombuffer(digests, np.uint8).reshape(-1, 32), resolution=4, enlarged=0)
    assert (dataset.training, dataset.held_out) == (300 + tenths - held_out, held_out)


def test_only_the_requested_hold_out_images_are_decoded(tmp_path: Path) -> None:
    dataset = loaded(fill(tmp_path, numbered(450)), memory_budget_bytes=0)
    whole = dataset.held_out_images()
    assert len(whole) == dataset.held_out >= MIN_HOLDOUT
    for file in dataset._file_of[dataset._held_out[5:]]:
        (tmp_path / dataset._files[file].name).unlink()
    assert torch.equal(dataset.held_out_images(5), whole[:5])
    assert torch.equal(dataset.held_out_images(0), whole[:0])
    with pytest.raises(DataError, match="can no longer be read"):
        dataset.held_out_images(6)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("kept", [0, 4])
def test_past_the_memory_budget_batches_are_the_same(tmp_path: Path, workers: int, kept: int) -> None:
    path = zipped(tmp_path / "x.zip", numbered(10))
    inside, past = loaded(path), loaded(path, workers=workers, memory_budget_bytes=kept * 3 * 4 * 4)
    streams = [SampleStream(dataset, seed=1, batch_size=3, mirror=True) for dataset in (inside, past)]
    with (
        closing(streams[0].batches(5, latent_size=2)) as expected,
        closing(streams[1].batches(5, latent_size=2)) as ours,
    ):
        for index in range(8):
            (images, drawn), (expected_images, _) = next(ours), next(expected)
            assert torch.equal(images, expected_images)
            assert torch.equal(drawn, latents(1, range(5 + 3 * index, 8 + 3 * index), 2))
        assert image_threads()
    assert not image_threads()


@pytest.mark.parametrize(
    ("change", "complaint"), [("changed", "has changed since"), ("vanished", "can no longer be read")]
)
def test_a_changed_file_past_the_budget_is_named(tmp_path: Path, change: str, complaint: str) -> None:
    dataset = loaded(fill(tmp_path, numbered(3)), memory_budget_bytes=0)
    batches = SampleStream(dataset, seed=0, batch_size=3, mirror=False).batches(0, latent_size=2)
    if change == "changed":
        (tmp_path / "0001.png").write_bytes(saved(plain()))
    else:
        (tmp_path / "0001.png").unlink()
    with pytest.raises(DataError, match=f"0001.png in {tmp_path} {complaint}"):
        next(batches)
    assert not image_threads()


# The stream


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return loaded(zipped(tmp_path_factory.mktemp("seven") / "x.zip", numbered(7)))


@given(seed=st.integers(0, 2**31 - 1), position=st.integers(0, 10**9), batch_size=st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_an_image_depends_on_its_position_and_not_on_the_batch(
    seven: ImageDataset, seed: int, position: int, batch_size: int
) -> None:
    batch = SampleStream(seven, seed=seed, batch_size=batch_size, mirror=True).batch(position)
    single = SampleStream(seven, seed=seed, batch_size=1, mirror=True)
    assert torch.equal(batch, torch.cat([single.batch(position + offset) for offset in range(batch_size)]))


@given(seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_each_epoch_shows_each_image_once(seven: ImageDataset, seed: int, epoch: int) -> None:
    shown = SampleStream(seven, seed=seed, batch_size=7, mirror=False).batch(7 * epoch)
    in_order = seven.images(epoch_permutation(seed, epoch, 7))
    assert torch.equal(shown, in_order)
    assert len({image.numpy().tobytes() for image in shown}) == 7


@given(seed=st.integers(0, 2**31 - 1), position=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_mirroring_flips_left_and_right_where_the_position_says(seven: ImageDataset, seed: int, position: int) -> None:
    as_they_are, turned = (
        SampleStream(seven, seed=seed, batch_size=9, mirror=mirror).batch(position) for mirror in (False, True)
    )
    for before, after, flips in zip(as_they_are, turned, mirrored(seed, range(position, position + 9)), strict=True):
        assert torch.equal(after, before.flip(-1) if flips else before)


@given(position=st.integers(0, 10**6), cuts=st.lists(st.integers(1, 6), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_batches_continue_at_any_position(seven: ImageDataset, position: int, cuts: list[int]) -> None:
    whole = SampleStream(seven, seed=3, batch_size=sum(cuts), mirror=True).batch(position)
    parts = []
    for size in cuts:
        stream = SampleStream(seven, seed=3, batch_size=size, mirror=True)
        parts.append(next(stream.batches(position, latent_size=2))[0])
        position += size
    assert torch.equal(whole, torch.cat(parts))


def test_showing_images_does_not_change_them(seven: ImageDataset) -> None:
    before = every_image(seven)
    stream = SampleStream(seven, seed=0, batch_size=5, mirror=True)
    for images, _ in islice(stream.batches(0, latent_size=2), 5):
        images.zero_()
    assert torch.equal(every_image(seven), before)


# Numbers and scales


def test_bytes_become_minus_one_to_one() -> None:
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([-1, -0.6, 1], abs=1e-7)
    every_byte = torch.arange(256, dtype=torch.uint8)
    exact = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    assert torch.equal(to_float(every_byte, torch.float64), exact)
    assert to_float(every_byte).dtype == torch.float32


def test_the_pyramid_averages_squares_down_to_four_pixels() -> None:
    images = torch.arange(2 * 3 * 16 * 16, dtype=torch.float64).reshape(2, 3, 16, 16)
    four, eight, sixteen = pyramid(images)
    assert torch.equal(sixteen, images)
    assert eight[0, 0, 0].tolist() == [8.5 + 2 * column for column in range(8)]  # (0 + 1 + 16 + 17) / 4 = 8.5
    assert torch.equal(four, images.reshape(2, 3, 4, 4, 4, 4).mean(dim=(3, 5)))


def test_four_pixels_are_a_pyramid_of_one_scale() -> None:
    images = torch.zeros(1, 3, 4, 4)
    assert [scale.shape for scale in pyramid(images)] == [(1, 3, 4, 4)]
