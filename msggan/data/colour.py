"""Which 8-bit sRGB colour is a stored pixel? It depends on an image's bit depth and on its ICC profile."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageFile

# --- More than 8 bits a channel ---------------------------------------------------------------------------------------

# What 16-bit and 32-bit files hold as white: the largest value of 8, 10, 12, 14, 16, 24 and 31 bits. Most cameras and
# microscopes have fewer bits than the files they write.
INTEGER_WHITES = (255, 1023, 4095, 16383, 65535, 2**24 - 1, 2**31 - 1)
FLOAT_WHITES = (1, 255, 65535)
STRIP_ROWS = 256  # converted at a time, because a float takes four times the memory of what it becomes
SIXTEEN_BIT_COLOUR = re.compile(r"(RGBA?;16)([BLN])")  # as Pillow names it
OTHER_BYTE_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


class White(NamedTuple):
    """The stored values that become 255, for images of integers of more than 8 bits and for images of floats."""

    integer: int = 65535
    float: int = 1


class Brightness(NamedTuple):
    """Counts of the values of one or more images, from which their white is chosen.

    positive: how many are larger than 0. larger: for each candidate, how many are larger than its threshold.
    """

    is_float: bool
    positive: int
    larger: tuple[int, ...]


def measure_brightness(values: np.ndarray) -> Brightness:
    """values: (H, W) or (H, W, C), integers or floats; a fourth channel is alpha and is not counted."""
    colours = values[..., :3] if values.ndim == 3 else values
    is_float = values.dtype.kind == "f"
    # Candidates for floats are a factor of 255 apart, so the nearest by ratio is chosen: values may well exceed 1 a
    # little, as those of HDR and resized images do.
    thresholds = [16 * white for white in FLOAT_WHITES] if is_float else INTEGER_WHITES
    larger = tuple(int(np.count_nonzero(colours > threshold)) for threshold in thresholds)
    return Brightness(is_float, int(np.count_nonzero(colours > 0)), larger)


def choose_white(measured: Iterable[Brightness]) -> White:
    """One white for all images: the smallest candidate that hardly any values exceed.

    Counts add up, so that the choice depends on the images and not on their order. A few larger values do not decide:
    a hot pixel, a highlight.
    """
    measured = list(measured)
    integers = [counts for counts in measured if not counts.is_float]
    floats = [counts for counts in measured if counts.is_float]
    default = White()
    return White(
        _smallest_fitting(INTEGER_WHITES, integers, 1000, default.integer),
        _smallest_fitting(FLOAT_WHITES, floats, 10, default.float),
    )


def _smallest_fitting(whites: Sequence[int], measured: Sequence[Brightness], one_in: int, default: int) -> int:
    """The first of `whites` that at most one in `one_in` values exceed, or one pixel of a small image."""
    positive = sum(counts.positive for counts in measured)
    if not positive:
        return default
    allowed = max(positive // one_in, min(3, positive // 10))
    larger = [sum(each) for each in zip(*(counts.larger for counts in measured), strict=True)]
    return next((white for white, count in zip(whites, larger, strict=True) if count <= allowed), whites[-1])


def describe_white(measured: Sequence[Brightness], white: White) -> list[str]:
    """A sentence on the images of integers of more than 8 bits, and one on those of floats, where there are any."""
    integers = sum(not counts.is_float for counts in measured)
    floats = len(measured) - integers
    return [
        f"{_images(count)} of {kind}: the value {value} is white, and larger ones too."
        for count, kind, value in (
            (integers, "16-bit or 32-bit integers", white.integer),
            (floats, "floating-point numbers", white.float),
        )
        if count
    ]


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def high_bytes_only(image: Image.Image) -> bool:
    """Whether Pillow will load only the high bytes of the values of an image that is not loaded yet: 16-bit colour."""
    tiles = getattr(image, "tile", ())
    return bool(tiles) and all(SIXTEEN_BIT_COLOUR.fullmatch(_rawmode(tile[3])) for tile in tiles)


def swap_bytes(image: Image.Image) -> Image.Image:
    """The same image, declared to have the other byte order, so that Pillow loads the low bytes."""
    assert isinstance(image, ImageFile.ImageFile)  # noqa: S101 - as high_bytes_only has seen
    image.tile = [_swapped(tile) for tile in image.tile]
    return image


def _swapped(tile: Any) -> Any:
    codec, extents, offset, arguments = tile
    found = SIXTEEN_BIT_COLOUR.fullmatch(_rawmode(arguments))
    assert found  # noqa: S101 - as high_bytes_only has seen
    rawmode = found[1] + OTHER_BYTE_ORDER[found[2]]
    swapped = (rawmode, *arguments[1:]) if isinstance(arguments, tuple) else rawmode
    make = getattr(type(tile), "_make", tuple)  # older versions of Pillow have plain tuples
    return make((codec, extents, offset, swapped))


def _rawmode(arguments: Any) -> str:
    """How pixels are stored, from what Pillow gives a decoder."""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def deep_values(image: Image.Image, low_bytes: Image.Image | None) -> np.ndarray | None:
    """(H, W) or (H, W, C), uint16, int32 or float32 without NaN; None for an image of 8 bits a channel."""
    values: np.ndarray | None = None
    if low_bytes is not None:
        values = np.asarray(image).astype(np.uint16) << 8
        values += np.asarray(low_bytes)
    elif image.mode.startswith("I"):
        values = np.asarray(image)
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
    return values


def as_eight_bit(values: np.ndarray, white: White, transparent: int | tuple[int, ...] | None) -> Image.Image:
    """An image of mode L or RGB, with alpha where the values have it or where they equal the transparent colour."""
    largest = white.float if values.dtype.kind == "f" else white.integer
    pixels = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), STRIP_ROWS):
        strip = values[top : top + STRIP_ROWS].astype(np.float32)
        pixels[top : top + STRIP_ROWS] = np.rint(np.clip(strip, 0, largest) * (255 / largest))
    if values.shape[2:] == (4,):
        pixels[..., 3] = values[..., 3] >> 8  # alpha has its full range, whatever white is
    image = Image.fromarray(pixels)
    if transparent is not None and values.shape[2:] != (4,):
        is_transparent = values == transparent
        opaque = ~(is_transparent.all(axis=2) if values.ndim == 3 else is_transparent)
        image.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    return image


# --- ICC profiles -----------------------------------------------------------------------------------------------------

PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
GREY_MODES = ("1", "L", "LA", "La")
# A profile that changes no colour by more than this, of 255, is sRGB by another name. Its images stay as they are.
SAME_COLOUR = 2


class ToSrgb(NamedTuple):
    """A conversion of images of one mode (RGB, L or CMYK) to RGB in sRGB. Several threads may use it at once."""

    mode: str
    transform: ImageCms.ImageCmsTransform

    def fits(self, image: Image.Image) -> bool:
        """Whether the profile can be that of the image: a grey image may have a profile for colour."""
        if "CMYK" in (self.mode, image.mode):
            return self.mode == image.mode
        return image.mode != "LAB" and (self.mode == "RGB" or image.mode in GREY_MODES)

    def __call__(self, image: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(_in_mode(image, self.mode), self.transform)
        assert converted is not None  # noqa: S101 - None stands for a conversion in place, which was not asked for
        return converted


@lru_cache(maxsize=16)  # cameras and programs have few profiles, and large ones take long to prepare
def to_srgb(profile: bytes) -> ToSrgb | None:
    """The conversion from an ICC profile; None where it is damaged, of another kind of colour, or sRGB itself."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        mode = PROFILE_MODES[source.profile.xcolor_space]
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError, TypeError):
        return None
    conversion = ToSrgb(mode, transform)
    return None if mode != "CMYK" and _changes_nothing(conversion) else conversion


def _changes_nothing(conversion: ToSrgb) -> bool:
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(16, 256, 3)
    image = Image.fromarray(colours if conversion.mode == "RGB" else colours[..., 0])
    before = np.asarray(image.convert("RGB")).astype(int)
    return bool(np.abs(np.asarray(conversion(image)) - before).max() <= SAME_COLOUR)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # convert would copy it
