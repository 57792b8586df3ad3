"""Decoding: one image file → a square of 8-bit sRGB pixels.

EXIF orientation, 16-bit and floating-point channels, ICC profiles, transparency, cropping or padding, resizing.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError, features

from msggan.errors import DataError, plural

ALWAYS_READABLE = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 2**28  # 1 GiB decoded; phones take photographs of 200 million pixels
DECODING_BYTES = 2**30  # memory for the images that all threads decode at the same time
# What 16-bit and 32-bit files store as white: the largest value of 8, 10, 12, 14, 16, 24 and 31 bits. Most cameras and
# microscopes have fewer bits than the files they write.
INTEGER_WHITES = (255, 1023, 4095, 16383, 65535, 2**24 - 1, 2**31 - 1)
FLOAT_WHITES = (1, 255, 65535)
STRIP_ROWS = 256  # converted at a time, because a float takes four times the memory of what it becomes
SIXTEEN_BIT_COLOUR = re.compile(r"(RGBA?;16)([BLN])")  # Pillow's raw modes
OTHER_BYTE_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
GREY_MODES = ("1", "L", "LA", "La")
# A profile that changes no colour by more than this, of 255, is equivalent to sRGB. Its images are left unchanged.
SAME_COLOUR = 2


class Decoded(NamedTuple):
    """pixels: (3, R, R) uint8. size: of the stored image, in pixels.

    brightness: of an image of more than 8 bits per channel. is_converted: whether its ICC profile was not sRGB.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    brightness: Brightness | None
    is_converted: bool


class White(NamedTuple):
    """The stored values that become 255, for integers of more than 8 bits and for floats."""

    integer: int = 65535
    float: int = 1


class MemoryBudget:
    """Lets threads reserve memory up to a limit; one that needs more than the limit reserves all of it."""

    def __init__(self, size_bytes: int) -> None:
        self._size = self._free = size_bytes
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, size_bytes: int) -> Iterator[None]:
        needed = min(size_bytes, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= needed)
            self._free -= needed
        try:
            yield
        finally:
            with self._changed:
                self._free += needed
                self._changed.notify_all()


@dataclass(frozen=True)
class Decoder:
    """The decoding of a dataset's files. Several threads may use it at once; together they stay within `memory`.

    fit: `crop` to the centre square, or `pad` the whole image to a square.
    """

    resolution: int
    background: str = "white"
    fit: str = "crop"
    white: White = field(default_factory=White)
    memory: MemoryBudget = field(default_factory=lambda: MemoryBudget(DECODING_BYTES), compare=False)

    def decode(self, content: bytes) -> Decoded:
        """A file's first frame or page: oriented, in sRGB, on the background, cropped or padded, resized.

        Raises `DataError` whose message is the reason alone.
        """
        with decoding_errors():
            image = open_image(BytesIO(content))
            size = image.size
            # JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the time; twice the resolution leaves Lanczos its work.
            image.draft(None, (2 * self.resolution, 2 * self.resolution))  # None: keep the mode
            low_bytes = None
            if tiles := _other_byte_order(image):
                low_bytes = open_image(BytesIO(content))
                low_bytes.tile = tiles
            with self.memory.reserved(image.width * image.height * (4 if low_bytes is None else 16)):
                image.load()
                rgb, brightness, is_converted = self.as_rgb(
                    _apply_exif_orientation(image), low_bytes and _apply_exif_orientation(low_bytes)
                )
                square = self._padded(rgb) if self.fit == "pad" else _centre_square(rgb, self.resolution)
                pixels = np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
                return Decoded(pixels, size, brightness, is_converted)

    def as_rgb(
        self, image: Image.Image, low_bytes: Image.Image | None = None
    ) -> tuple[Image.Image, Brightness | None, bool]:
        """An image of any mode as RGB; its brightness if it has more than 8 bits per channel; whether it was converted.

        low_bytes: the low bytes of an image of 16 bits per channel, where `image` has only the high ones.
        """
        profile, brightness = image.info.get("icc_profile"), None
        values: np.ndarray | None = None  # (H, W) or (H, W, C), uint16, int32 or float32 without NaN
        if low_bytes is not None:
            values = np.asarray(image).astype(np.uint16) << 8
            values += np.asarray(low_bytes)
        elif image.mode.startswith("I"):
            values = np.asarray(image)
        elif image.mode == "F":
            values = np.nan_to_num(np.asarray(image))
        if values is not None:
            brightness = measure_brightness(values)
            image = _as_eight_bit(values, self.white, image.info.get("transparency"))
        conversion = _to_srgb(profile) if profile else None
        if conversion is not None and not conversion.fits(image):
            conversion = None
        return _on_background(image, self.background, conversion), brightness, conversion is not None

    def _padded(self, image: Image.Image) -> Image.Image:
        """An RGB image, resized by its longer side, between bars of the background."""
        side = self.resolution
        width, height = (max(1, round(each * side / max(image.size))) for each in image.size)
        canvas = Image.new("RGB", (side, side), self.background)
        resized = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
        canvas.paste(resized, ((side - width) // 2, (side - height) // 2))
        return canvas


@contextmanager
def decoding_errors() -> Iterator[None]:
    """Turns whatever a decoder raises into a `DataError` whose message is the reason."""
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"more than {MAX_PIXELS // 10**6} million pixels") from error
    except UnidentifiedImageError as error:
        raise DataError("not an image in a supported format") from error
    except MemoryError as error:
        raise DataError("not enough memory") from error
    except Exception as error:  # a decoder may raise anything on damaged bytes
        cut_off = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise DataError("truncated" if cut_off else "damaged") from error


def open_image(stream: IO[bytes]) -> ImageFile.ImageFile:
    """The image with its header read and its pixels not yet decoded. Call it within `decoding_errors`."""
    if not stream.read(1):
        raise DataError("empty")
    stream.seek(0)
    image = Image.open(stream, formats=readable_formats())
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    return image


@lru_cache(maxsize=1)
def readable_formats() -> tuple[str, ...]:
    """The image formats that this process can read, by Pillow's names.

    The first call configures Pillow for the whole process: it registers the HEIF plug-in if it is installed, and raises
    Pillow's limit on an image's pixels to MAX_PIXELS.
    """
    formats = list(ALWAYS_READABLE)
    if "avif" in features.modules and features.check("avif"):
        formats.append("AVIF")
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
        formats.append("HEIF")
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)
    return tuple(formats)


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Rotated and flipped according to EXIF; unchanged if EXIF is damaged, since the pixels may still be good."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # exif_transpose would copy it
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF raises whatever its first wrong field leads to
        return image


def _on_background(image: Image.Image, background: str, conversion: ToSrgb | None) -> Image.Image:
    """An image of 8 bits per channel as RGB in sRGB; transparent pixels show the background."""
    if not image.has_transparency_data:
        if conversion is not None:
            return conversion(image)
        return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy it
    if image.mode == "La":  # Pillow converts it to RGBA in no other way
        image = image.convert("LA")
    layer = image.convert("RGBA")
    if conversion is not None:
        alpha = layer.getchannel("A")
        layer = conversion(layer.convert("RGB"))
        layer.putalpha(alpha)
    canvas = Image.new("RGBA", layer.size, background)
    canvas.alpha_composite(layer)
    return canvas.convert("RGB")


def _centre_square(image: Image.Image, resolution: int) -> Image.Image:
    """The centre square of an RGB image, resized."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


# --- More than 8 bits per channel -------------------------------------------------------------------------------------


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
        f"{plural(count, 'image')} of {kind}: the value {value} is white, and larger ones too."
        for count, kind, value in (
            (integers, "16-bit or 32-bit integers", white.integer),
            (floats, "floating-point numbers", white.float),
        )
        if count
    ]


def _other_byte_order(image: ImageFile.ImageFile) -> list[Any]:
    """How to load the low bytes of an image of 16-bit colour: as if its byte order were the other one.

    Pillow loads the high bytes only. Empty for any other image, and for one that is loaded.
    """
    tiles = []
    for tile in image.tile:
        codec, extents, offset, arguments = tile
        rawmode, *more = arguments if isinstance(arguments, tuple) else (arguments,)
        found = SIXTEEN_BIT_COLOUR.fullmatch(str(rawmode))
        if not found:
            return []
        swapped = found[1] + OTHER_BYTE_ORDER[found[2]]
        make = getattr(type(tile), "_make", tuple)  # older versions of Pillow have plain tuples
        tiles.append(make((codec, extents, offset, (swapped, *more) if more else swapped)))
    return tiles


def _as_eight_bit(values: np.ndarray, white: White, transparent: int | tuple[int, ...] | None) -> Image.Image:
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
        source = image if image.mode == self.mode else image.convert(self.mode)  # convert would copy it
        converted = ImageCms.applyTransform(source, self.transform)
        assert converted is not None  # noqa: S101 - None stands for a conversion in place, which this is not
        return converted


@lru_cache(maxsize=16)  # cameras and programs have few profiles, and large ones take long to prepare
def _to_srgb(profile: bytes) -> ToSrgb | None:
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
    if mode == "CMYK":
        return conversion
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(16, 256, 3)
    image = Image.fromarray(colours if mode == "RGB" else colours[..., 0])
    difference = np.asarray(conversion(image)).astype(int) - np.asarray(image.convert("RGB"))
    return None if np.abs(difference).max() <= SAME_COLOUR else conversion
