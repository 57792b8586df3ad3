"""What a set of images is like, as training sees it: blank, blurred, repeated, cut off, the same when mirrored.

A copy is an image whose version of 32 by 32 pixels differs from another's, or from that one's mirrored, by at most
`COPY_RMS` of 255 (root mean square over all values), and by less if its own contrast is low. A perceptual hash would
only propose candidates to this comparison, so they are proposed without it: a projection brings images closer together
and never apart, which is why neighbours within that distance in a few dimensions include every copy.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
from PIL import ExifTags

from msggan.data.dataset import Dataset, Progress, cores, in_threads
from msggan.data.decoding import Decoder, decoding_errors, open_image
from msggan.data.sources import ImageFile
from msggan.errors import DataError
from msggan.resources import PIXELS_AT_ONCE

THUMBNAIL_PX = 32
COPY_RMS = 8.0  # the nearest two of a thousand photographs of clothes are 20 apart, of 240 emoji 18
COPY_CONTRAST = 0.25  # and of the image's own contrast: fine textures are all the same grey at 32 px
PROJECTED = 12  # dimensions
NEIGHBOURS = 9  # of each image, itself included: copies of copies are found through one another
BLANK_RANGE = 8  # of 255, in any channel
# Of the median's share of fine detail: no photograph of clothes has less than a tenth; blurred by 1.5 of 64 pixels,
# nine in ten have less than a fifteenth.
BLURRED_SHARE = 1 / 16
MIN_BLURRED_PX = 16
LINE = (224, 60, 40)  # the colour
USELESS_HINT = "Use different images of one kind of object."
SAMPLED = 64  # images that `refuse_useless` looks at
NEARLY_ALL = 0.9
CANDIDATES = 4  # images whose copies are counted: if nearly all are copies of one image, one of these is, too
MIRROR_IMAGES = (200, 1000)  # fewer decide nothing, and more decide nothing else
MIRROR_FILTERS, MIRROR_FOLDS, MIRROR_PERMUTATIONS, MIRROR_RIDGE = 48, 5, 199, 0.03
MIRROR_ACCURACY = 0.6  # less is too little to act on, however certain it is


class Header(NamedTuple):
    """A file's format and mode, by Pillow's names, and its size in pixels as it is displayed."""

    file: ImageFile
    format: str
    mode: str
    width: int
    height: int

    @property
    def cut_off(self) -> float:
        """The share of the image that is outside of its centre square."""
        return 1 - min(self.width, self.height) / max(self.width, self.height)


class Measures(NamedTuple):
    """Of N images: thumbnails (N, 3, S, S) uint8, is_blank (N,) bool, detail (N,) float32, the share of fine detail."""

    thumbnails: np.ndarray
    is_blank: np.ndarray
    detail: np.ndarray

    @property
    def is_blurred(self) -> np.ndarray:
        """(N,) bool: the images with far less fine detail than the median of the set."""
        judged = ~self.is_blank & (self.thumbnails.shape[-1] >= MIN_BLURRED_PX)
        usual = np.median(self.detail[judged]) if judged.any() else 0
        return np.asarray(judged & (self.detail < BLURRED_SHARE * usual))


class Mirroring(NamedTuple):
    """How often a classifier tells images from their mirrored copies, and how often at most by chance."""

    accuracy: float
    by_chance: float
    images: int

    @property
    def differs(self) -> bool:
        return self.accuracy > max(self.by_chance, MIRROR_ACCURACY)


def read_headers(files: Sequence[ImageFile], *, workers: int = 0) -> list[Header]:
    """The headers of the files that have one."""
    with closing(in_threads(_read_header, files, workers=workers or cores())) as headers:
        return [header for header in headers if header is not None]


def _read_header(file: ImageFile) -> Header | None:
    try:
        with file.open() as stream, decoding_errors():
            image = open_image(stream)
            width, height = image.size
            if image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
                width, height = height, width
            return Header(file, str(image.format), image.mode, width, height)
    except DataError:
        return None


def whole_image(header: Header, decoder: Decoder, *, is_padded: bool) -> np.ndarray:
    """(H, W, 3) uint8: the whole image, darker where training cuts it off, and a line around what it keeps.

    is_padded: training cuts nothing off; the image with its padding, (R, R, 3). decoder: of padded images.
    """
    side, longest = decoder.resolution, max(header.width, header.height)
    height, width = (max(1, round(side * each / longest)) for each in (header.height, header.width))
    top, left = (side - height) // 2, (side - width) // 2
    pixels = decoder.decode(header.file.read()).pixels.transpose(1, 2, 0)
    if is_padded:
        return pixels
    pixels = pixels[top : top + height, left : left + width]
    kept = min(height, width)
    top, left = (height - kept) // 2, (width - kept) // 2
    drawn = (0.3 * pixels).astype(np.uint8)
    square = drawn[top : top + kept, left : left + kept]
    square[:] = pixels[top : top + kept, left : left + kept]
    for edge in (np.s_[:2], np.s_[-2:], np.s_[:, :2], np.s_[:, -2:]):
        square[edge] = LINE
    return drawn


# --- Each image by itself ---------------------------------------------------------------------------------------------


def measure(dataset: Dataset, numbers: np.ndarray | None = None, progress: Progress | None = None) -> Measures:
    """Measures all images, or those of these numbers, as they are decoded for training."""
    chosen = np.arange(len(dataset.digests)) if numbers is None else numbers
    at_once = max(1, PIXELS_AT_ONCE // dataset.resolution**2)
    parts = [chosen[start : start + at_once] for start in range(0, len(chosen), at_once)]
    found = []
    with closing(in_threads(lambda part: _measure(dataset.rows(part)), parts, workers=dataset.workers)) as results:
        for number, measures in enumerate(results, start=1):
            found.append(measures)
            if progress is not None:
                progress(min(number * at_once, len(chosen)), len(chosen))
    return Measures(*(np.concatenate(each) for each in zip(*found, strict=True)))


def _measure(images: np.ndarray) -> Measures:
    """images: (N, 3, R, R) uint8.

    Detail is the variance of the Laplacian divided by that of the image, both of its brightness: a share, so that an
    image of little contrast is not called blurred.
    """
    count, side = len(images), images.shape[-1]
    grey = images.mean(1, dtype=np.float32)
    inner = grey[:, 1:-1, 1:-1]
    laplacian = 4 * inner - grey[:, :-2, 1:-1] - grey[:, 2:, 1:-1] - grey[:, 1:-1, :-2] - grey[:, 1:-1, 2:]
    detail = laplacian.reshape(count, -1).var(1) / (grey.reshape(count, -1).var(1) + 1)
    flat = images.reshape(count, 3, -1)
    is_blank = (flat.max(2) - flat.min(2)).max(1) <= BLANK_RANGE
    small = _averaged(images, min(side, THUMBNAIL_PX))
    return Measures(np.rint(small).astype(np.uint8), is_blank, detail)


def _averaged(images: np.ndarray, side: int) -> np.ndarray:
    """(N, 3, R, R) → (N, 3, side, side) float32."""
    by = images.shape[-1] // side
    return np.asarray(images.reshape(len(images), 3, side, by, side, by).mean((3, 5), dtype=np.float32))


# --- Copies -----------------------------------------------------------------------------------------------------------


def find_copies(thumbnails: np.ndarray, *, workers: int = 1) -> np.ndarray:
    """(N,) intp: of each image, the number of the first image that it is a copy of, directly or through others.

    The time is about proportional to N: each image is compared with its few nearest neighbours.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first_of: dict[bytes, int] = {}
    first = np.empty(len(thumbnails), np.intp)
    for number, image in enumerate(thumbnails):  # equal ones are no neighbours: there may be any number of them
        first[number] = first_of.setdefault(min(image.tobytes(), image[..., ::-1].tobytes()), number)
    different = np.unique(first)
    if len(different) < 2:
        return first
    pairs = np.concatenate([*_near(thumbnails[different], workers), np.empty((0, 2), np.intp)])
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(different),) * 2)
    _, groups = connected_components(graph, directed=False)
    _, oldest = np.unique(groups, return_index=True)
    return np.asarray(different[oldest[groups]][np.searchsorted(different, first)])


def _near(images: np.ndarray, workers: int) -> Iterator[np.ndarray]:
    """(M, 2) intp: pairs of images (N, 3, S, S) uint8 that are copies of each other, as they are and mirrored."""
    from scipy.spatial import cKDTree

    side = min(8, images.shape[-1])
    axes = _principal_axes(_averaged(images, side).reshape(len(images), -1))
    tree = cKDTree(_projected(images, axes, side))
    for asked in (images, images[..., ::-1]):
        points = _projected(asked, axes, side)
        _, found = tree.query(
            points, k=NEIGHBOURS, distance_upper_bound=COPY_RMS * side * np.sqrt(3), workers=max(1, workers)
        )
        for column in found.T:
            one = np.flatnonzero(column < len(images))
            one = one[column[one] != one]
            for part in np.array_split(one, max(1, len(one) // 4096)):
                is_copy = _are_copies(asked[part], images[column[part]])
                yield np.stack([part[is_copy], column[part][is_copy]], axis=1)


def _are_copies(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) bool: whether each image (N, 3, S, S) uint8 is a copy of the other at its place, or of the only other."""
    ours = images.astype(np.float32)
    rms = np.sqrt(np.square(ours - others).mean((1, 2, 3)))
    return np.asarray(rms <= np.clip(COPY_CONTRAST * ours.std((2, 3)).mean(1), 1, COPY_RMS))


def _principal_axes(points: np.ndarray) -> np.ndarray:
    """(D, P) float32: the orthonormal axes along which points (N, D) differ most."""
    _, axes = np.linalg.eigh(np.cov(points[:: max(1, len(points) // 10_000)].T))
    return axes[:, -PROJECTED:].astype(np.float32)


def _projected(images: np.ndarray, axes: np.ndarray, side: int) -> np.ndarray:
    parts = np.array_split(images, max(1, len(images) // 4096))
    return np.concatenate([_averaged(part, side).reshape(len(part), -1) @ axes for part in parts])


# --- Left and right ---------------------------------------------------------------------------------------------------


def compare_mirrored(thumbnails: np.ndarray, *, seed: int = 0) -> Mirroring | None:
    """How well a classifier distinguishes images from their mirrored copies; None if there are too few images.

    thumbnails: (N, 3, S, S) uint8, all different. The classifier is linear in the responses of random filters, and is
    tested on images that it was not trained on. Chance is what it reaches after images have been exchanged with their
    mirrored copies at random: the largest of 199 times (p = 0.005).
    """
    fewest, most = MIRROR_IMAGES
    if len(thumbnails) < fewest or thumbnails.shape[-1] < MIN_BLURRED_PX:
        return None
    random = np.random.default_rng(seed)
    images = thumbnails[random.permutation(len(thumbnails))[:most]]
    difference = _responses(images, seed) - _responses(images[..., ::-1], seed)  # changes its sign when mirrored
    products = difference @ difference.T
    count, weights = len(images), np.zeros_like(products)
    for fold in range(MIRROR_FOLDS):
        rest = np.arange(count) % MIRROR_FOLDS != fold
        kernel = products[np.ix_(rest, rest)]
        kernel[np.diag_indices(len(kernel))] += MIRROR_RIDGE * np.trace(kernel) / difference.shape[1]
        weights[np.ix_(~rest, rest)] = products[np.ix_(~rest, rest)] @ np.linalg.inv(kernel)
    signs = random.choice((-1.0, 1.0), (count, 1 + MIRROR_PERMUTATIONS))
    signs[:, 0] = 1
    accuracy = (signs * (weights @ signs) > 0).mean(0)
    return Mirroring(float(accuracy[0]), float(accuracy[1:].max()), count)


def _responses(images: np.ndarray, seed: int) -> np.ndarray:
    """(N, F) float32: rectified random filters of 5 by 5 pixels at two scales, averaged over each quarter."""
    filters = np.random.default_rng(seed).standard_normal((25, MIRROR_FILTERS)).astype(np.float32)
    filters -= filters.mean(0)
    found = []
    for side in (images.shape[-1], images.shape[-1] // 2):
        grey = _averaged(images, side).mean(1) / 255
        for rows in np.array_split(grey, max(1, len(grey) // 100)):
            windows = np.lib.stride_tricks.sliding_window_view(rows, (5, 5), (1, 2))
            maps = np.maximum(windows.reshape(*windows.shape[:3], 25) @ filters, 0)
            half = maps.shape[1] // 2
            quarters = [maps[:, up, left].mean((1, 2)) for up in _halves(half) for left in _halves(half)]
            found.append(np.concatenate([maps.mean((1, 2)), *quarters], axis=1))
    parts = len(found) // 2
    return np.concatenate([np.concatenate(found[:parts]), np.concatenate(found[parts:])], axis=1)


def _halves(half: int) -> tuple[slice, slice]:
    return slice(None, half), slice(-half, None)


# --- The quick part ---------------------------------------------------------------------------------------------------


def refuse_useless(dataset: Dataset, path: str, *, option: str = "") -> None:
    """Raises `DataError` if nearly all of a sample of the images at `path` are blank or copies of one image.

    option: what precedes the path in the message.
    """
    numbers = np.unique(np.linspace(0, len(dataset.digests) - 1, SAMPLED).astype(int))
    if found := useless(measure(dataset, numbers)):
        count, what = found
        which = "all images" if count == len(numbers) else f"of {len(numbers)} images looked at, {count}"
        hint = f"{USELESS_HINT} To see these: msggan-aml check {shlex.quote(path)} --html check.html"
        raise DataError(f"{option}{path}: {which} {what}.", hint)


def useless(measures: Measures) -> tuple[int, str] | None:
    """How many of the images a network can learn nothing from, and why, if these are nearly all of them."""
    images, blank = measures.thumbnails, int(measures.is_blank.sum())
    if blank >= NEARLY_ALL * len(images):
        return blank, "have one colour only"
    sample = images[:: max(1, len(images) // SAMPLED)]
    copies = _count_copies(images, max(images[:CANDIDATES], key=lambda image: _count_copies(sample, image)))
    return (copies, "are copies of one image") if len(images) > 1 and copies >= NEARLY_ALL * len(images) else None


def _count_copies(images: np.ndarray, image: np.ndarray) -> int:
    """How many of the images (N, 3, S, S) uint8 are copies of one, (3, S, S), as they are or mirrored."""
    parts = np.array_split(images, max(1, len(images) // 4096))
    return sum(int((_are_copies(part, image) | _are_copies(part[..., ::-1], image)).sum()) for part in parts)
