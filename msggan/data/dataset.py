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
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from msggan.data.colour import (
    Brightness,
    ToSrgb,
    White,
    as_eight_bit,
    choose_white,
    deep_values,
    describe_white,
    high_bytes_only,
    measure_brightness,
    swap_bytes,
    to_srgb,
)
from msggan.errors import DataError
from msggan.randomness import epoch_permutation, mirrored
from msggan.runs.folder import marks_run

FORMAT_OF_SUFFIX = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF"),
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".avif": "AVIF",
}
ALWAYS_READABLE = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
TO_READ_THEM = {"AVIF": "upgrade Pillow to read them", "HEIF": "install pillow-heif to read them"}
LEFT_BY_SYSTEMS = ("thumbs.db", "desktop.ini")  # besides hidden files
RUN_FOLDER = "a run folder"
NAMES_LISTED = 10
MEMORY_BUDGET_BYTES = 4 * 2**30  # decoded images kept in memory; the ones past it are decoded whenever they are shown
LARGEST_FILE_BYTES = 2**30  # a larger one is no photograph; in a zip it is a bomb
LARGEST_PIXELS = 2**28  # 1 GiB decoded; phones take photographs of 200 million pixels
DECODING_BYTES = 2**30  # of images that are being decoded at the same time, however many threads there are
HELD_BACK_ONE_IN = 10
HELD_BACK_AT_LEAST = 32  # fewer say nothing about a distribution, and a small dataset needs every image
HEADERS_READ = 256  # enough for the median of any dataset
BATCHES_AHEAD = 3
WHAT_TO_GIVE = "Give --data a folder of images, a .zip of them, or what msggan-aml pack made of them."

Progress = Callable[[int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


class SampleStream:
    """The endless stream of training images: position in, image out."""

    def __init__(self, dataset: Dataset, *, seed: int, batch_size: int, mirror: bool) -> None:
        self.dataset = dataset
        self.seed = seed
        self.batch_size = batch_size
        self.mirror = mirror
        self._order = lru_cache(maxsize=2)(lambda epoch: epoch_permutation(seed, epoch, len(dataset)))

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
    """A file or run folder that was left out, and why in a few words.

    kind: the suffix of a file that was not tried, because files of its kind are not images or cannot be read here.
    """

    name: str
    reason: str
    kind: str | None = None


def describe_skipped(skipped: Sequence[Skipped]) -> list[str]:
    """Sentences for people: how many run folders and files were left out, and why."""
    runs = [each.name for each in skipped if each.reason == RUN_FOLDER]
    kinds = Counter((each.kind, each.reason) for each in skipped if each.kind is not None)
    broken = [f"{each.name} ({each.reason})" for each in skipped if each.kind is None and each.reason != RUN_FOLDER]
    by_count = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    counted = ", ".join(
        f"{count} {kind or 'without a suffix'}{f' ({reason})' if reason else ''}" for (kind, reason), count in by_count
    )
    return [
        *([f"Skipped {_count(len(runs), 'run folder')}: {_listed(runs, ', ')}."] if runs else []),
        *([f"Skipped {_count(kinds.total(), 'file')}: {counted}."] if kinds else []),
        *([f"Skipped {_count(len(broken), 'unreadable image')}: {_listed(broken, '; ')}."] if broken else []),
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(names: Sequence[str], separator: str) -> str:
    more = [f"and {len(names) - NAMES_LISTED} more"] if len(names) > NAMES_LISTED else []
    return separator.join([*names[:NAMES_LISTED], *more])


class _Decoded(NamedTuple):
    """pixels: (3, R, R) uint8. shorter_side: of the image as it was stored.

    brightness: of an image of more than 8 bits a channel. is_converted: whether its ICC profile was not sRGB.
    """

    pixels: np.ndarray
    shorter_side: int
    brightness: Brightness | None
    is_converted: bool


@dataclass(frozen=True)
class _Entry:
    """An image of the dataset; `pixels` ((3, R, R) uint8) is None past the memory budget."""

    file: ImageFile
    digest: bytes
    shorter_side: int
    brightness: Brightness | None
    is_converted: bool
    pixels: np.ndarray | None


class Dataset:
    """Square uint8 images of one resolution, divided into training images and held back ones by their content.

    training, held_back: how many there are of each. fingerprint: a hex digest of the contents and of nothing else.
    skipped: the files and run folders left out, by name. notes: sentences on how the images were decoded, where that is
    not plain. enlarged: how many images are smaller than the resolution. in_memory: whether showing an image costs
    nothing but a copy.
    """

    def __init__(
        self,
        digests: Sequence[bytes],
        *,
        resolution: int,
        enlarged: int,
        in_memory: bool,
        skipped: Sequence[Skipped] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """digests: SHA-256 of each image's file, in ascending order."""
        self.digests = digests
        self.resolution = resolution
        self.enlarged = enlarged
        self.in_memory = in_memory
        self.skipped = skipped
        self.notes = notes
        self._training, self._held_back = _split_holdout(digests)
        self.training = len(self._training)
        self.held_back = len(self._held_back)
        self.fingerprint = hashlib.sha256(b"".join(digests)).hexdigest()

    def __len__(self) -> int:
        return self.training

    def images(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """(N, 3, R, R) uint8: the training images of these indices. Raises DataError if a file changed or vanished."""
        return self.rows([self._training[index] for index in indices])

    def held_back_images(self, at_most: int | None = None) -> torch.Tensor:
        """(M, 3, R, R) uint8: the images held back, or the first `at_most` of them. No other image is decoded.

        Raises DataError if a file changed or vanished.
        """
        return self.rows(self._held_back[:at_most])

    def rows(self, numbers: Sequence[int]) -> torch.Tensor:
        """(N, 3, R, R) uint8: the images of these digests, by their numbers."""
        raise NotImplementedError


class ImageDataset(Dataset):
    """The images of files, each read and decoded once and kept as far as the memory budget goes."""

    def __init__(
        self,
        found: Found,
        *,
        resolution: int,
        background: str = "white",
        workers: int = 0,
        memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
        progress: Progress | None = None,
    ) -> None:
        """Reads and decodes every file once, in `workers` threads (0: one a core, at most 8).

        Files of more than 8 bits a channel are decoded once more where their white, which is known when all have been
        read, is not the largest value of their type. progress(done, total) is called after each file, from the calling
        thread. Raises DataError if no image is left.
        """
        self.resolution = resolution
        self._decoder = Decoder(resolution, background)
        self._workers = workers or min(8, os.cpu_count() or 1)
        self._kept = memory_budget_bytes // (3 * resolution**2)

        entries: list[_Entry] = []
        skipped: list[Skipped] = []
        for outcome in self._each(self._scan_file, list(enumerate(found.files)), progress):
            if isinstance(outcome, Skipped):
                skipped.append(outcome)
            else:
                entries.append(outcome)
        skipped.sort()
        if not entries:
            raise _no_readable_image(found.files, skipped)

        white, notes = self._choose_white(entries)
        if white != self._decoder.white:
            self._decoder = replace(self._decoder, white=white)
            entries = self._decoded_anew(entries, progress, total=len(found.files))
        self._entries = sorted(entries, key=lambda entry: (entry.digest, entry.file.name))
        super().__init__(
            [entry.digest for entry in self._entries],
            resolution=resolution,
            enlarged=sum(entry.shorter_side < resolution for entry in entries),
            in_memory=all(entry.pixels is not None for entry in entries),
            skipped=[*found.skipped, *skipped],
            notes=notes,
        )

    def _each(
        self, work: Callable[[Item], Result], items: Sequence[Item], progress: Progress | None, *, total: int = 0
    ) -> Iterator[Result]:
        """work(item) of each, in threads. progress counts these items as the last of `total`."""
        total = total or len(items)
        with closing(_in_threads(work, items, workers=self._workers)) as results:
            for done, result in enumerate(results, start=1 + total - len(items)):
                yield result
                if progress is not None:
                    progress(done, total)

    def _choose_white(self, entries: Sequence[_Entry]) -> tuple[White, list[str]]:
        """The white of all images of more than 8 bits a channel, and sentences on how images were decoded."""
        measured = [entry.brightness for entry in entries if entry.brightness is not None]
        white = choose_white(measured)
        converted = sum(entry.is_converted for entry in entries)
        notes = describe_white(measured, white)
        if converted:
            notes.append(f"{_count(converted, 'image')} converted to sRGB from another ICC profile.")
        return white, notes

    def _decoded_anew(self, entries: Sequence[_Entry], progress: Progress | None, *, total: int) -> list[_Entry]:
        """The same entries, those of more than 8 bits a channel with the pixels that they have by the chosen white."""
        outdated = [
            number for number, entry in enumerate(entries) if entry.brightness is not None and entry.pixels is not None
        ]
        without_pixels = [replace(entries[number], pixels=None) for number in outdated]
        entries = list(entries)
        pixels = self._each(self._pixels, without_pixels, progress, total=total)
        for number, entry, decoded in zip(outdated, without_pixels, pixels, strict=True):
            entries[number] = replace(entry, pixels=decoded)
        return entries

    def rows(self, numbers: Sequence[int]) -> torch.Tensor:
        entries = [self._entries[number] for number in numbers]
        images = torch.empty((len(entries), 3, self.resolution, self.resolution), dtype=torch.uint8)
        pixels: Iterable[np.ndarray] = map(self._pixels, entries)
        if any(entry.pixels is None for entry in entries):
            pixels = _in_threads(self._pixels, entries, workers=self._workers)
        for image, values in zip(images.numpy(), pixels, strict=True):
            image[:] = values
        return images

    def _scan_file(self, numbered: tuple[int, ImageFile]) -> _Entry | Skipped:
        number, file = numbered
        try:
            content = file.read()
            decoded = self._decoder.decode(content)
        except DataError as refused:
            return Skipped(file.name, refused.message)
        pixels = decoded.pixels if number < self._kept else None
        return _Entry(
            file,
            hashlib.sha256(content).digest(),
            decoded.shorter_side,
            decoded.brightness,
            decoded.is_converted,
            pixels,
        )

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
        return self._decoder.decode(content).pixels


def _split_holdout(digests: Sequence[bytes]) -> tuple[Sequence[int], Sequence[int]]:
    """The numbers to train on and those to hold back, by content, so that copies never stand on both sides."""
    sides: tuple[list[int], list[int]] = ([], [])
    for number, digest in enumerate(digests):
        sides[int.from_bytes(digest[:8], "big") % HELD_BACK_ONE_IN == 0].append(number)
    if len(sides[1]) < HELD_BACK_AT_LEAST or not sides[0]:
        return range(len(digests)), ()
    return sides


def _no_readable_image(files: Sequence[ImageFile], skipped: Sequence[Skipped]) -> DataError:
    place = f" in {files[0].source}" if files else ""
    first = "".join(f"\n  {each.name}: {each.reason}" for each in skipped[:3])
    return DataError(
        f"no readable image{place}, of {len(files)} tried.{first}",
        "Give --data a folder or zip of images that an image viewer opens.",
    )


class _Source(Protocol):
    """Where image files lie; its text is the path people know it by."""

    def read(self, name: str) -> bytes: ...

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]: ...


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

    def open(self) -> AbstractContextManager[IO[bytes]]:
        """The file as a stream that can seek, so that its header can be read alone. Raises DataError as `read` does."""
        return self.source.open(self.name)


class Found(NamedTuple):
    """What lies in a folder or zip: the files that are images by their names, and what was left out; both by name."""

    files: Sequence[ImageFile]
    skipped: Sequence[Skipped] = ()


def find_images(path: str | Path) -> Found:
    """The files of a folder tree or a zip that are images by their names, sorted by name.

    Run folders are left out whole: pictures of a run are no training images. Files of other kinds are left out too;
    what systems leave behind (hidden files, `._x.jpg`, `__MACOSX`, `Thumbs.db`) is not mentioned. Raises DataError if
    there is no such place, it cannot be read, it is a run folder itself, or it holds no image.
    """
    source = _opened(Path(path))
    names = sorted(name for name in source.names() if not _is_left_by_system(name))
    runs = _run_folders(names, source)
    if "." in runs:
        raise DataError(
            f"--data {path}: is a run folder. Its pictures are not used as training images.",
            "Give the folder of the images that you want to train on.",
        )
    skipped = [Skipped(run, RUN_FOLDER) for run in sorted(runs)]
    files = []
    for name in names:
        if runs and any(str(parent) in runs for parent in _path_in(name).parents):
            continue
        suffix = _path_in(name).suffix.lower()
        if FORMAT_OF_SUFFIX.get(suffix) in readable_formats():
            files.append(ImageFile(name, source))
        else:
            skipped.append(Skipped(name, TO_READ_THEM.get(FORMAT_OF_SUFFIX.get(suffix, ""), ""), suffix))
    if not files:
        raise DataError(
            " ".join([f"--data {path}: no image in it.", *describe_skipped(skipped)]),
            f"Images are files that end in {', '.join(sorted(FORMAT_OF_SUFFIX))}.",
        )
    if isinstance(source, _Zip):
        source.refuse_encrypted(file.name for file in files)
    return Found(files, skipped)


def median_shorter_side(files: Sequence[ImageFile]) -> int:
    """The median of the images' shorter sides in pixels, from the headers of at most 256 files, evenly spaced."""
    asked = files[:: max(1, -(-len(files) // HEADERS_READ))]
    sides, skipped = [], []
    for file in asked:
        try:
            with file.open() as stream, _refusals():
                sides.append(min(_opened_image(stream).size))
        except DataError as refused:
            skipped.append(Skipped(file.name, refused.message))
    if not sides:
        raise _no_readable_image(asked, skipped)
    return statistics.median_low(sides)


def _path_in(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))  # zips made on Windows may have backslashes


def _is_left_by_system(name: str) -> bool:
    path = _path_in(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return hidden or path.name.lower() in LEFT_BY_SYSTEMS


def _run_folders(names: Iterable[str], source: _Source) -> set[str]:
    """The outermost folders that hold a run, "." for the top."""
    marked = {_path_in(name).parent for name in names if marks_run(_path_in(name).name, partial(source.read, name))}
    return {str(folder) for folder in marked if not marked.intersection(folder.parents)}


@lru_cache(maxsize=1)
def readable_formats() -> tuple[str, ...]:
    """The formats that this process can read, by Pillow's names.

    The first call prepares Pillow, for the whole process: it registers the HEIF plug-in where that is installed, and
    raises the limit of an image's pixels to ours.
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
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, LARGEST_PIXELS)
    return tuple(formats)


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

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            stream = (self.path / name).open("rb")
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})") from error
        with stream:
            yield stream

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
        with self.open(name) as stream:
            return stream.read()

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            _refuse_larger(self._archive.getinfo(name).file_size)
            with self._turn, self._archive.open(name) as stream:
                yield stream
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


class _Room:
    """Lets threads decode images at the same time as long as these fit into so many bytes; one alone may be larger."""

    def __init__(self, size_bytes: int) -> None:
        self._size = self._free = size_bytes
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size_bytes: int) -> Iterator[None]:
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
    """How files become the images of a dataset. Several threads may use it at once, also in memory that is bounded."""

    resolution: int
    background: str = "white"
    white: White = field(default_factory=White)
    room: _Room = field(default_factory=lambda: _Room(DECODING_BYTES), compare=False)

    def decode(self, content: bytes) -> _Decoded:
        """A file's image: turned as EXIF says, in sRGB, laid on the background, cropped to the middle, resized.

        Of several frames or pages it is the first. Raises DataError, whose message is the reason in a few words.
        """
        with _refusals():
            image = _opened_image(BytesIO(content))
            shorter_side = min(image.size)
            # JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the time; twice the resolution leaves Lanczos its work.
            image.draft(None, (2 * self.resolution, 2 * self.resolution))  # None: keep the mode
            low_bytes = None
            if high_bytes_only(image):
                low_bytes = swap_bytes(_opened_image(BytesIO(content)))
            with self.room.taken(image.width * image.height * (4 if low_bytes is None else 16)):
                image.load()
                rgb, brightness, is_converted = self.as_rgb(
                    _apply_exif_orientation(image), low_bytes and _apply_exif_orientation(low_bytes)
                )
                return _Decoded(_square(rgb, self.resolution), shorter_side, brightness, is_converted)

    def as_rgb(
        self, image: Image.Image, low_bytes: Image.Image | None = None
    ) -> tuple[Image.Image, Brightness | None, bool]:
        """An image of any mode as RGB; its brightness if it has more than 8 bits a channel; whether it was converted.

        low_bytes: the low bytes of an image of 16 bits a channel, where `image` has only the high ones.
        """
        profile, brightness = image.info.get("icc_profile"), None
        values = deep_values(image, low_bytes)
        if values is not None:
            brightness = measure_brightness(values)
            image = as_eight_bit(values, self.white, image.info.get("transparency"))
        conversion = to_srgb(profile) if profile else None
        if conversion is not None and not conversion.fits(image):
            conversion = None
        return _on_background(image, self.background, conversion), brightness, conversion is not None


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns whatever a decoder raises into a DataError that says why in a few words."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        if isinstance(error, Image.DecompressionBombError):
            raise _too_large() from error
        if isinstance(error, MemoryError):
            raise DataError("needs more memory than there is") from error
        cut_off = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise DataError("truncated" if cut_off else "damaged") from error


def _too_large() -> DataError:
    return DataError(f"more than {LARGEST_PIXELS // 10**6} million pixels")


def _opened_image(stream: IO[bytes]) -> Image.Image:
    """The image with its header read and its pixels not yet decoded; no other formats are tried."""
    if not stream.read(1):
        raise DataError("empty")
    stream.seek(0)
    try:
        image = Image.open(stream, formats=readable_formats())
    except UnidentifiedImageError as error:
        raise DataError("not an image in a format that can be read") from error
    if image.width * image.height > LARGEST_PIXELS:
        raise _too_large()
    return image


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; as it is stored where EXIF is damaged, for the pixels may still be good."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # exif_transpose would copy it
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF raises whatever its first wrong field leads to
        return image


def _on_background(image: Image.Image, background: str, conversion: ToSrgb | None) -> Image.Image:
    """An image of 8 bits a channel as RGB in sRGB, laid on the background where it is transparent."""
    if not image.has_transparency_data:
        if conversion is not None:
            return conversion(image)
        return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy it
    if image.mode == "La":  # has no way to RGBA but this
        image = image.convert("LA")
    layer = image.convert("RGBA")
    if conversion is not None:
        alpha = layer.getchannel("A")
        layer = conversion(layer.convert("RGB"))
        layer.putalpha(alpha)
    canvas = Image.new("RGBA", layer.size, background)
    canvas.alpha_composite(layer)
    return canvas.convert("RGB")


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
