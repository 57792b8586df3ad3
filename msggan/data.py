"""How do images on a disk become batches, and a batch the pyramid of all scales?

A file is read once, hashed, decoded and kept as uint8. Everything afterwards is counted in positions: the image at
position p of the stream depends on the content of the images, the seed and p alone, never on file names, threads or
batch sizes.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import statistics
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from msggan.errors import DataError
from msggan.randomness import mirrored, order

SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MEMORY_BUDGET_BYTES = 4 * 2**30  # decoded images kept in memory; the ones past it are decoded whenever they are shown
LARGEST_FILE_BYTES = 2**30  # a larger one is no photograph; in a zip it is a bomb
HELD_BACK_ONE_IN = 10
HELD_BACK_AT_LEAST = 32  # fewer say nothing about a distribution, and a small dataset needs every image
HEADERS_READ = 256  # enough for the median of any dataset
BATCHES_AHEAD = 3
WHAT_TO_GIVE = "Give --data a folder of images, a .zip of them, or what msggan-aml pack made of them."

Item = TypeVar("Item")
Result = TypeVar("Result")


class SampleStream:
    """The endless stream of training images: position in, image out."""

    def __init__(self, dataset: Dataset, *, seed: int, batch_size: int, mirror: bool) -> None:
        self.dataset = dataset
        self.seed = seed
        self.batch_size = batch_size
        self.mirror = mirror
        self._order = lru_cache(maxsize=2)(lambda epoch: order(seed, epoch, len(dataset)))

    def batch(self, position: int) -> torch.Tensor:
        """(N, 3, R, R) uint8: the images at `position` and the N - 1 positions after it."""
        positions = range(position, position + self.batch_size)
        places = [divmod(each, len(self.dataset)) for each in positions]
        images = self.dataset.images([int(self._order(epoch)[place]) for epoch, place in places])
        if self.mirror:
            turned = torch.from_numpy(mirrored(self.seed, positions))
            images[turned] = images[turned].flip(-1)
        return images

    def batches(self, position: int) -> Generator[torch.Tensor, None, None]:
        """Batches of (N, 3, R, R) uint8 from `position` on, for ever. Closing the iterator ends its threads."""
        positions = itertools.count(position, self.batch_size)
        if self.dataset.in_memory:
            yield from map(self.batch, positions)
        else:
            yield from _in_threads(self.batch, positions, workers=1, ahead=BATCHES_AHEAD)


def to_float(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """images: uint8 in [0, 255], any shape. Returns the same shape, of `dtype`, in [-1, 1]."""
    return images.to(dtype) / 127.5 - 1


def pyramid(images: torch.Tensor) -> list[torch.Tensor]:
    """images: (N, 3, R, R) float, R a power of two ≥ 4. Returns (N, 3, r, r) for r = 4, 8, …, R, same dtype and range.

    Each scale is the one above it averaged over 2 by 2 pixels.
    """
    scales = [images]
    while scales[-1].shape[-1] > 4:
        scales.append(torch.nn.functional.avg_pool2d(scales[-1], 2))
    return scales[::-1]


class Skipped(NamedTuple):
    """A file that was left out, and why in a few words."""

    name: str
    reason: str


class _Decoded(NamedTuple):
    """pixels: (3, R, R) uint8. shorter_side: of the image as it was stored."""

    pixels: np.ndarray
    shorter_side: int


@dataclass(frozen=True)
class _Entry:
    """An image of the dataset; `pixels` ((3, R, R) uint8) is None past the memory budget."""

    file: ImageFile
    digest: bytes
    shorter_side: int
    pixels: np.ndarray | None


class Dataset:
    """Square uint8 images of one resolution, divided into training images and held back ones by their content.

    training, held_back: how many there are of each. fingerprint: a hex digest of the contents and of nothing else.
    skipped: the files left out, by name. enlarged: how many images are smaller than the resolution. in_memory: whether
    showing an image costs nothing but a copy.
    """

    def __init__(
        self,
        digests: Sequence[bytes],
        *,
        resolution: int,
        enlarged: int,
        in_memory: bool,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        """digests: SHA-256 of each image's file, in ascending order."""
        self.digests = digests
        self.resolution = resolution
        self.enlarged = enlarged
        self.in_memory = in_memory
        self.skipped = skipped
        self._training, self._held_back = _divided(digests)
        self.training = len(self._training)
        self.held_back = len(self._held_back)
        self.fingerprint = hashlib.sha256(b"".join(digests)).hexdigest()

    def __len__(self) -> int:
        return self.training

    def images(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """(N, 3, R, R) uint8: the training images of these indices. Raises DataError if a file changed or vanished."""
        return self.rows([self._training[index] for index in indices])

    def held_back_images(self) -> torch.Tensor:
        """(M, 3, R, R) uint8: every image held back. Raises DataError if a file changed or vanished."""
        return self.rows(self._held_back)

    def rows(self, numbers: Sequence[int]) -> torch.Tensor:
        """(N, 3, R, R) uint8: the images of these digests, by their numbers."""
        raise NotImplementedError


class ImageDataset(Dataset):
    """The images of files, each read and decoded once and kept as far as the memory budget goes."""

    def __init__(
        self,
        files: Sequence[ImageFile],
        *,
        resolution: int,
        background: str = "white",
        workers: int = 0,
        memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Reads and decodes every file once, in `workers` threads (0: one a core, at most 8).

        progress(done, total) is called after each file, from the calling thread. Raises DataError if no image is left.
        """
        self.resolution = resolution
        self._background = background
        self._workers = workers or min(8, os.cpu_count() or 1)
        self._kept = memory_budget_bytes // (3 * resolution**2)

        entries: list[_Entry] = []
        skipped: list[Skipped] = []
        with closing(_in_threads(self._look_at, enumerate(files), workers=self._workers)) as looked_at:
            for done, outcome in enumerate(looked_at, start=1):
                if isinstance(outcome, Skipped):
                    skipped.append(outcome)
                else:
                    entries.append(outcome)
                if progress is not None:
                    progress(done, len(files))
        skipped.sort()
        if not entries:
            raise _no_readable_image(files, skipped)

        self._entries = sorted(entries, key=lambda entry: (entry.digest, entry.file.name))
        super().__init__(
            [entry.digest for entry in self._entries],
            resolution=resolution,
            enlarged=sum(entry.shorter_side < resolution for entry in entries),
            in_memory=all(entry.pixels is not None for entry in entries),
            skipped=skipped,
        )

    def rows(self, numbers: Sequence[int]) -> torch.Tensor:
        entries = [self._entries[number] for number in numbers]
        images = torch.empty((len(entries), 3, self.resolution, self.resolution), dtype=torch.uint8)
        pixels: Iterable[np.ndarray] = map(self._pixels, entries)
        if any(entry.pixels is None for entry in entries):
            pixels = _in_threads(self._pixels, entries, workers=self._workers)
        for image, values in zip(images.numpy(), pixels, strict=True):
            image[:] = values
        return images

    def _look_at(self, numbered: tuple[int, ImageFile]) -> _Entry | Skipped:
        number, file = numbered
        try:
            content = file.read()
            decoded = _decoded(content, self.resolution, self._background)
        except DataError as refused:
            return Skipped(file.name, refused.message)
        pixels = decoded.pixels if number < self._kept else None
        return _Entry(file, hashlib.sha256(content).digest(), decoded.shorter_side, pixels)

    def _pixels(self, entry: _Entry) -> np.ndarray:
        """(3, R, R) uint8."""
        if entry.pixels is not None:
            return entry.pixels
        hint = "The images of a run must stay as they are until it ends: put the file back and run the same again."
        try:
            content = entry.file.read()
        except DataError as refused:
            raise DataError(f"{entry.file} cannot be read any more: {refused.message}.", hint) from refused
        if hashlib.sha256(content).digest() != entry.digest:
            raise DataError(f"{entry.file} changed since it was first read.", hint)
        return decode(content, self.resolution, self._background)


def _divided(digests: Sequence[bytes]) -> tuple[Sequence[int], Sequence[int]]:
    """The numbers to train on and those to hold back, by content, so that copies never stand on both sides."""
    sides: tuple[list[int], list[int]] = ([], [])
    for number, digest in enumerate(digests):
        sides[int.from_bytes(digest[:8], "big") % HELD_BACK_ONE_IN == 0].append(number)
    if len(sides[1]) < HELD_BACK_AT_LEAST or not sides[0]:
        return range(len(digests)), ()
    return sides


def _no_readable_image(files: Sequence[ImageFile], skipped: Sequence[Skipped]) -> DataError:
    place = f" in {files[0].source}" if files else ""
    first = "".join(f"\n  {name}: {reason}" for name, reason in skipped[:3])
    return DataError(
        f"no readable image{place}, of {len(files)} tried.{first}",
        "Give --data a folder or zip of JPEG, PNG, WebP, BMP, GIF or TIFF images that an image viewer opens.",
    )


class _Source(Protocol):
    """Where image files lie; its text is the path people know it by."""

    def read(self, name: str) -> bytes: ...


@dataclass(frozen=True)
class ImageFile:
    """A file that may hold an image: `name` is its path in the folder or zip. Safe to read from several threads."""

    name: str
    source: _Source

    def __str__(self) -> str:
        return f"{self.name} in {self.source}"

    def read(self) -> bytes:
        """The file's bytes. Raises DataError, whose message is the reason in a few words."""
        return self.source.read(self.name)


def find_images(path: str | Path) -> list[ImageFile]:
    """The files of a folder tree or a zip that are images by their names, sorted by name.

    What systems leave behind (hidden files, `._x.jpg`, `__MACOSX`) and what is no image is passed over. Raises
    DataError if there is no such place, it cannot be read, or it holds no image.
    """
    source = _opened(Path(path))
    files = sorted((ImageFile(name, source) for name in source.names() if _is_image(name)), key=lambda file: file.name)
    if not files:
        raise DataError(
            f"--data {path}: no image in it.", f"Images are files that end in {', '.join(sorted(SUFFIXES))}."
        )
    if isinstance(source, _Zip):
        source.refuse_encrypted(file.name for file in files)
    return files


def median_shorter_side(files: Sequence[ImageFile]) -> int:
    """The median of the images' shorter sides in pixels, from the headers of at most 256 files, evenly spaced."""
    asked = files[:: max(1, -(-len(files) // HEADERS_READ))]
    sides, skipped = [], []
    for file in asked:
        try:
            sides.append(_shorter_side(file.read()))
        except DataError as refused:
            skipped.append(Skipped(file.name, refused.message))
    if not sides:
        raise _no_readable_image(asked, skipped)
    return statistics.median_low(sides)


def _is_image(name: str) -> bool:
    # Zips made on Windows may have backslashes.
    path = PurePosixPath(name.replace("\\", "/"))
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in SUFFIXES


def _opened(path: Path) -> _Folder | _Zip:
    hint = WHAT_TO_GIVE
    if os.path.isdir(path):
        return _Folder(path)
    if not os.path.lexists(path):
        raise DataError(f"--data {path}: no such folder, zip or pack.", hint)
    if not os.path.isfile(path):
        raise DataError(f"--data {path}: neither a folder, a zip nor a pack.", hint)
    return _Zip(path)


class _Folder:
    """A tree of folders. Links are followed; a folder met twice is walked once, so that loops of links end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes:
        path = self.path / name
        try:
            _refuse_larger(path.stat().st_size)
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})") from error

    def names(self) -> Iterator[str]:
        seen: set[tuple[int, int]] = set()
        waiting = deque([""])
        while waiting:
            folder = waiting.popleft()
            for name in self._listed(folder, seen):
                path = f"{folder}/{name}" if folder else name
                if os.path.isfile(self.path / path):
                    yield path
                elif os.path.isdir(self.path / path) and not name.startswith("."):
                    waiting.append(path)

    def _listed(self, folder: str, seen: set[tuple[int, int]]) -> list[str]:
        """The names in a folder, none if it was seen before."""
        path = self.path / folder
        try:
            about = os.stat(path)
            if (about.st_dev, about.st_ino) in seen:
                return []
            seen.add((about.st_dev, about.st_ino))
            return sorted(os.listdir(path))
        except OSError as error:
            raise DataError(
                f"--data {self.path}: the folder {path} cannot be read ({error.strerror}).",
                "Make it readable, or move it out of there.",
            ) from error


class _Zip:
    """A zip that stays open: what was found in it is what is read from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # ZipFile counts its open members without a lock, so several threads must take turns.
        self._turn = threading.Lock()
        try:
            self._archive = zipfile.ZipFile(path)
        except OSError as error:
            raise DataError(f"--data {path}: cannot be read ({error.strerror}).", "Make it readable.") from error
        except Exception as error:  # on damaged bytes zipfile raises whatever the first wrong field leads to
            raise _not_a_zip(path) from error

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        # A zip may hold a name twice; the last one counts, as it does when unpacking.
        return [name for name in dict.fromkeys(self._archive.namelist()) if not name.endswith("/")]

    def refuse_encrypted(self, names: Iterable[str]) -> None:
        for name in names:
            if self._archive.getinfo(name).flag_bits & 1:
                raise DataError(
                    f"--data {self.path}: {name} in it is encrypted.",
                    "Unpack it with its password, and give --data the folder.",
                )

    def read(self, name: str) -> bytes:
        try:
            _refuse_larger(self._archive.getinfo(name).file_size)
            with self._turn:
                return self._archive.read(name)
        except DataError:
            raise
        except NotImplementedError as error:
            raise DataError("compressed in a way that Python's zipfile does not know") from error
        except Exception as error:  # BadZipFile, zlib.error, EOFError, struct.error … whatever is damaged first
            raise DataError("damaged in the zip") from error


def _not_a_zip(path: Path) -> DataError:
    with path.open("rb") as file:
        begins_as_zip = file.read(2) == b"PK"
    if begins_as_zip or path.suffix.lower() == ".zip":
        return DataError(f"--data {path}: a damaged zip.", "Copy or download it again, or pack it anew.")
    return DataError(f"--data {path}: neither a folder, a zip nor a pack.", WHAT_TO_GIVE)


def _refuse_larger(size_bytes: int) -> None:
    if size_bytes > LARGEST_FILE_BYTES:
        raise DataError(f"larger than {LARGEST_FILE_BYTES // 2**30} GiB")


def decode(content: bytes, resolution: int, background: str = "white") -> np.ndarray:
    """(3, R, R) uint8 RGB from a file's bytes: turned as EXIF says, laid on the background, cropped to the middle.

    Of several frames or pages it is the first. Raises DataError, whose message is the reason in a few words.
    """
    return _decoded(content, resolution, background).pixels


def _decoded(content: bytes, resolution: int, background: str) -> _Decoded:
    with _refusals():
        image = _opened_image(content)
        shorter_side = min(image.size)
        # JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the time; twice the resolution leaves Lanczos its work.
        image.draft(None, (2 * resolution, 2 * resolution))  # None: keep the mode
        image.load()
        return _Decoded(_square(as_rgb(_upright(image), background), resolution), shorter_side)


def _shorter_side(content: bytes) -> int:
    with _refusals():
        return min(_opened_image(content).size)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns whatever a decoder raises into a DataError that says why in a few words."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        if isinstance(error, Image.DecompressionBombError):
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise DataError(f"decompression bomb: more than {limit // 10**6} million pixels") from error
        if isinstance(error, MemoryError):
            raise DataError("needs more memory than there is") from error
        cut_off = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise DataError("truncated" if cut_off else "damaged") from error


def _opened_image(content: bytes) -> Image.Image:
    """The image with its header read and its pixels not yet decoded; no format but these six is tried."""
    if not content:
        raise DataError("empty")
    try:
        return Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise DataError("not a readable JPEG, PNG, WebP, BMP, GIF or TIFF image") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; as it is stored where EXIF is damaged, for the pixels may still be good."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF raises whatever its first wrong field leads to
        return image


def as_rgb(image: Image.Image, background: str) -> Image.Image:
    """An image of any mode as RGB, laid on the background where it is transparent."""
    image = _eight_bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    named = image.info.get("transparency")
    if isinstance(named, tuple) and max(named) > 255:  # of a 16-bit PNG, whose pixels Pillow has cut to 8 bit
        image.info["transparency"] = tuple(value >> 8 for value in named)
    if image.mode == "La":  # has no way to RGBA but this
        image = image.convert("LA")
    layer = image.convert("RGBA")
    canvas = Image.new("RGBA", layer.size, background)
    canvas.alpha_composite(layer)
    return canvas.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bit as L, or as LA where one grey is named transparent; other modes as they are.

    Whole numbers are 16 bit (65535 is white) unless mode I stays within 255; floats are in [0, 1] unless they exceed 1.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    if image.mode == "F":
        scale = 255.0 if values.max() <= 1 else 1.0
    else:
        scale = 1 / 257 if image.mode != "I" or values.max() > 255 else 1.0
    grey = Image.fromarray(np.rint(np.clip(values * scale, 0, 255)).astype(np.uint8))
    named = image.info.get("transparency")
    if named is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == named, 0, 255).astype(np.uint8))))


def _square(image: Image.Image, resolution: int) -> np.ndarray:
    """(3, R, R) uint8: the middle square of an RGB image, resized."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize(
        (resolution, resolution),
        Image.Resampling.LANCZOS,
        box=(left, top, left + side, top + side),
        reducing_gap=3.0,
    )
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int = 0
) -> Generator[Result, None, None]:
    """work(item) for each item, in order, done at most `ahead` (0: a few a thread) items before it is asked for.

    Closing the iterator, or an exception out of it, drops what has not begun and waits for the rest.
    """
    begun: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="images") as pool:
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) > (ahead or 4 * workers):
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
