"""The sources of images that --data accepts: a folder or zip of image files, or a pack of decoded images."""

from __future__ import annotations

import hashlib
import os
import statistics
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from msggan.data.dataset import Dataset, Item, Progress, Result, Skipped, in_threads
from msggan.data.decoding import (
    Brightness,
    Decoder,
    choose_white,
    decoding_errors,
    describe_white,
    open_image,
    plural,
    readable_formats,
)
from msggan.data.pack_file import Pack, is_pack
from msggan.errors import DataError
from msggan.runs.files import walk_visible
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
HOW_TO_READ = {"AVIF": "upgrade Pillow to read them", "HEIF": "install pillow-heif to read them"}
SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # besides hidden files
RUN_FOLDER = "a run folder"
MAX_NAMES_LISTED = 10
MEMORY_BUDGET_BYTES = 4 * 2**30  # decoded images kept in memory; those beyond it are decoded whenever they are shown
MAX_FILE_BYTES = 2**30  # a larger one is no photograph; in a zip it is a bomb
HEADERS_READ = 256  # enough for the median of any dataset
DATA_HINT = "Specify a folder of images, a .zip of images, or a pack made by msggan-aml pack."


def open_source(path: str | Path) -> ImageFiles | Pack:
    """The images at a path, not yet decoded or read. Raises `DataError` if there are none."""
    return Pack(path) if is_pack(path) else find_images(path)


@dataclass(frozen=True)
class ImageFile:
    """A file that may hold an image: `name` is its path in the folder or zip. Safe to read from several threads."""

    name: str
    archive: _Folder | _Zip

    def __str__(self) -> str:
        return f"{self.name} in {self.archive.path}"

    def open(self) -> AbstractContextManager[IO[bytes]]:
        """The file as a seekable stream, to read its header alone. Raises `DataError` whose message is the reason."""
        return self.archive.open(self.name)

    def read(self) -> bytes:
        """The file's bytes. Raises `DataError` as `open` does."""
        with self.open() as stream:
            return stream.read()


class ImageFiles(NamedTuple):
    """The files in a folder or zip that are images by their names, and what is skipped; both sorted by name."""

    files: Sequence[ImageFile]
    skipped: Sequence[Skipped] = ()

    @property
    def fixed_options(self) -> Mapping[str, Any]:
        """The options that are fixed already, by name: none, since nothing is decoded yet."""
        return {}

    def median_shorter_side(self) -> int:
        """The median of the images' shorter sides in pixels, from the headers of at most 256 files, evenly spaced."""
        read = self.files[:: max(1, -(-len(self.files) // HEADERS_READ))]
        sides, skipped = [], []
        for file in read:
            try:
                with file.open() as stream, decoding_errors():
                    sides.append(min(open_image(stream).size))
            except DataError as error:
                skipped.append(Skipped(file.name, error.message))
        if not sides:
            raise _no_readable_image(read, skipped)
        return statistics.median_low(sides)

    def dataset(self, *, resolution: int, **options: Any) -> ImageDataset:
        """Decodes every file; options: of `ImageDataset`. Raises `DataError` if no image is readable."""
        return ImageDataset(self, resolution=resolution, **options)


def find_images(path: str | Path) -> ImageFiles:
    """The files of a folder tree or a zip that are images by their names, sorted by name.

    Run folders are skipped whole: the pictures in them are not training images. Files of other kinds are skipped too;
    system files (hidden ones, `._x.jpg`, `__MACOSX`, `Thumbs.db`) are not mentioned. Raises `DataError` if there is no
    such path, it cannot be read, it is a run folder itself, or it has no image.
    """
    if os.path.isdir(path):
        archive: _Folder | _Zip = _Folder(Path(path))
    elif os.path.isfile(path):
        archive = _Zip(Path(path))
    else:
        problem = "is not a folder, zip or pack" if os.path.lexists(path) else "no such folder, zip or pack"
        raise DataError(f"--data {path}: {problem}.", DATA_HINT)
    names = sorted(name for name in archive.names() if not _is_system_file(name))
    # The outermost folders that hold a run, "." for the top.
    marked = {_path_in(name).parent for name in names if marks_run(_path_in(name).name, ImageFile(name, archive).read)}
    runs = {str(folder) for folder in marked if not marked.intersection(folder.parents)}
    if "." in runs:
        raise DataError(
            f"--data {path}: is a run folder. Its pictures are not used as training images.",
            "Specify the folder of the images to train on.",
        )
    skipped = [Skipped(run, RUN_FOLDER) for run in sorted(runs)]
    files = []
    for name in names:
        path_in = _path_in(name)
        if runs and any(str(parent) in runs for parent in path_in.parents):
            continue
        suffix = path_in.suffix.lower()
        if FORMAT_OF_SUFFIX.get(suffix) in readable_formats():
            files.append(ImageFile(name, archive))
        else:
            skipped.append(Skipped(name, HOW_TO_READ.get(FORMAT_OF_SUFFIX.get(suffix, ""), ""), suffix))
    if not files:
        raise DataError(
            " ".join([f"--data {path}: has no images.", *describe_skipped(skipped)]),
            f"Image files end in {', '.join(sorted(FORMAT_OF_SUFFIX))}.",
        )
    if isinstance(archive, _Zip):
        archive.refuse_encrypted(file.name for file in files)
    return ImageFiles(files, skipped)


def describe_skipped(skipped: Sequence[Skipped]) -> list[str]:
    """Sentences for people: how many run folders and files were skipped, and why."""
    runs = [each.name for each in skipped if each.reason == RUN_FOLDER]
    kinds = Counter((each.kind, each.reason) for each in skipped if each.kind is not None)
    broken = [f"{each.name} ({each.reason})" for each in skipped if each.kind is None and each.reason != RUN_FOLDER]
    by_count = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    counted = ", ".join(
        f"{count} {kind or 'without a suffix'}{f' ({reason})' if reason else ''}" for (kind, reason), count in by_count
    )
    return [
        *([f"Skipped {plural(len(runs), 'run folder')}: {_listed(runs, ', ')}."] if runs else []),
        *([f"Skipped {plural(kinds.total(), 'file')}: {counted}."] if kinds else []),
        *([f"Skipped {plural(len(broken), 'unreadable image')}: {_listed(broken, '; ')}."] if broken else []),
    ]


def _listed(names: Sequence[str], separator: str) -> str:
    more = [f"and {len(names) - MAX_NAMES_LISTED} more"] if len(names) > MAX_NAMES_LISTED else []
    return separator.join([*names[:MAX_NAMES_LISTED], *more])


def _no_readable_image(files: Sequence[ImageFile], skipped: Sequence[Skipped]) -> DataError:
    where = f" in {files[0].archive.path}" if files else ""
    first = "".join(f"\n  {each.name}: {each.reason}" for each in skipped[:3])
    return DataError(
        f"no readable image{where}, of {len(files)} tried.{first}",
        "Specify a folder or zip of images that an image viewer opens.",
    )


@dataclass(frozen=True)
class _Entry:
    """An image of the dataset. pixels: (3, R, R) uint8, None past the memory budget."""

    file: ImageFile
    digest: bytes
    shorter_side: int
    brightness: Brightness | None
    is_converted: bool
    pixels: np.ndarray | None


class ImageDataset(Dataset):
    """The images of files, each read and decoded once and kept up to the memory budget."""

    def __init__(
        self,
        found: ImageFiles,
        *,
        resolution: int,
        background: str = "white",
        workers: int = 0,
        memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
        progress: Progress | None = None,
    ) -> None:
        """Reads and decodes every file once, in `workers` threads (0: one per core, at most 8).

        Files of more than 8 bits per channel are decoded again if their white, which is known when all have been read,
        is not the largest value of their type. progress(done, total) is called after each file, from the calling
        thread. Raises `DataError` if no image is readable.
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

        measured = [entry.brightness for entry in entries if entry.brightness is not None]
        white = choose_white(measured)
        notes = describe_white(measured, white)
        if converted := sum(entry.is_converted for entry in entries):
            notes.append(f"{plural(converted, 'image')} converted to sRGB from another ICC profile.")
        if white != self._decoder.white:
            self._decoder = replace(self._decoder, white=white)
            entries = self._decode_again(entries, progress, total=len(found.files))
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
        """work(item) for each item, in threads. progress counts these items as the last of `total`."""
        total = total or len(items)
        with closing(in_threads(work, items, workers=self._workers)) as results:
            for done, result in enumerate(results, start=1 + total - len(items)):
                yield result
                if progress is not None:
                    progress(done, total)

    def _decode_again(self, entries: Sequence[_Entry], progress: Progress | None, *, total: int) -> list[_Entry]:
        """The same entries, with those of more than 8 bits per channel decoded with the chosen white."""
        outdated: list[_Entry] = []
        good: list[_Entry] = []
        for entry in entries:
            is_outdated = entry.brightness is not None and entry.pixels is not None
            (outdated if is_outdated else good).append(entry)
        unread = [replace(entry, pixels=None) for entry in outdated]
        decoded = self._each(self._pixels, unread, progress, total=total)
        return good + [replace(entry, pixels=pixels) for entry, pixels in zip(unread, decoded, strict=True)]

    def rows(self, numbers: Sequence[int]) -> np.ndarray:
        entries = [self._entries[number] for number in numbers]
        images = np.empty((len(entries), 3, self.resolution, self.resolution), np.uint8)
        pixels: Iterable[np.ndarray] = map(self._pixels, entries)
        if any(entry.pixels is None for entry in entries):
            pixels = in_threads(self._pixels, entries, workers=self._workers)
        for image, values in zip(images, pixels, strict=True):
            image[:] = values
        return images

    def _scan_file(self, numbered: tuple[int, ImageFile]) -> _Entry | Skipped:
        number, file = numbered
        try:
            content = file.read()
            decoded = self._decoder.decode(content)
        except DataError as error:
            return Skipped(file.name, error.message)
        pixels = decoded.pixels if number < self._kept else None
        digest = hashlib.sha256(content).digest()
        return _Entry(file, digest, decoded.shorter_side, decoded.brightness, decoded.is_converted, pixels)

    def _pixels(self, entry: _Entry) -> np.ndarray:
        """(3, R, R) uint8."""
        if entry.pixels is not None:
            return entry.pixels
        hint = "The images must not change until the run ends. Put the file back and run the same command again."
        try:
            content = entry.file.read()
        except DataError as error:
            raise DataError(f"{entry.file} can no longer be read: {error.message}.", hint) from error
        if hashlib.sha256(content).digest() != entry.digest:
            raise DataError(f"{entry.file} has changed since it was first read.", hint)
        return self._decoder.decode(content).pixels


def _path_in(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))  # zips made on Windows may have backslashes


def _is_system_file(name: str) -> bool:
    path = _path_in(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return hidden or path.name.lower() in SYSTEM_FILES


class _Folder:
    """A folder tree, with the folders that links lead to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> Iterator[str]:
        for folder, files in walk_visible(self.path, on_error=self._refuse_unreadable):
            inside = Path(folder).relative_to(self.path)
            yield from ((inside / name).as_posix() for name in files if os.path.isfile(os.path.join(folder, name)))

    def _refuse_unreadable(self, error: OSError) -> None:
        raise DataError(
            f"--data {self.path}: the folder {error.filename} cannot be read ({error.strerror}).",
            "Make it readable, or move it elsewhere.",
        ) from error

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with (self.path / name).open("rb") as stream:
                _refuse_larger(os.fstat(stream.fileno()).st_size)
                yield stream
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})") from error


class _Zip:
    """A zip, which is kept open, so that the files found in it are those read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # ZipFile counts its open members without a lock, so threads must take turns.
        self._lock = threading.Lock()
        try:
            self._archive = zipfile.ZipFile(path)
        except OSError as error:
            raise DataError(f"--data {path}: cannot be read ({error.strerror}).", "Make it readable.") from error
        except Exception as error:  # on damaged bytes zipfile raises whatever the first wrong field leads to
            with path.open("rb") as file:
                is_zip = file.read(2) == b"PK" or path.suffix.lower() == ".zip"
            problem, hint = "is not a folder, zip or pack", DATA_HINT
            if is_zip:
                problem, hint = "is a damaged zip", "Copy, download or create it again."
            raise DataError(f"--data {path}: {problem}.", hint) from error

    def names(self) -> list[str]:
        # A zip may hold a name twice; the last one counts, as it does when unpacking.
        return [name for name in dict.fromkeys(self._archive.namelist()) if not name.endswith("/")]

    def refuse_encrypted(self, names: Iterable[str]) -> None:
        for name in names:
            if self._archive.getinfo(name).flag_bits & 1:
                raise DataError(
                    f"--data {self.path}: {name} in it is encrypted.",
                    "Unpack it with its password, and use --data with the folder.",
                )

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            _refuse_larger(self._archive.getinfo(name).file_size)
            with self._lock, self._archive.open(name) as stream:
                yield stream
        except DataError:
            raise
        except NotImplementedError as error:
            raise DataError("compressed with a method that Python's zipfile does not support") from error
        except Exception as error:  # BadZipFile, zlib.error, EOFError, struct.error … whatever is damaged first
            raise DataError("damaged in the zip") from error


def _refuse_larger(size_bytes: int) -> None:
    if size_bytes > MAX_FILE_BYTES:
        raise DataError(f"larger than {MAX_FILE_BYTES // 2**30} GiB")
