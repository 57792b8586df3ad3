"""The sources of images that --data accepts: a folder or zip of image files, or a pack of decoded images."""

from __future__ import annotations

import hashlib
import os
import stat
import statistics
import threading
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from msggan.data.classes import Classes, find_classes
from msggan.data.dataset import Dataset, Progress, Skipped, cores, in_threads
from msggan.data.decoding import Decoder, choose_white, decoding_errors, describe_white, open_image, readable_formats
from msggan.data.index import pack_brightness, read_index, unpack_brightness, write_index
from msggan.data.pack_file import Pack, is_pack
from msggan.errors import DataError, listed, plural
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
MEMORY_BUDGET_BYTES = 4 * 2**30  # decoded images kept in memory; those beyond it are decoded whenever they are shown
MAX_FILE_BYTES = 2**30  # a larger one is no photograph; in a zip it is a bomb
HEADERS_READ = 256  # enough for the median of any dataset
DATA_HINT = "Specify a folder of images, a .zip of images, or a pack made by msggan-aml pack."


def open_source(path: str | Path) -> ImageFiles | Pack:
    """The images at a path, not yet decoded or read. Raises `DataError` if there are none."""
    return Pack(path) if is_pack(path) else find_images(path)


class ImageFile(NamedTuple):
    """A file that may hold an image. Safe to read from several threads.

    name: its path in the folder or zip. size: in bytes. mtime_ns: when it was modified; in a zip, when that was.
    """

    name: str
    size: int
    mtime_ns: int
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

    @property
    def images(self) -> int:
        """The number of files; some may prove unreadable."""
        return len(self.files)

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

    def memory_bytes(self, resolution: int) -> int:
        """What the decoded images take in memory."""
        return min(MEMORY_BUDGET_BYTES, self.images * 3 * resolution**2)

    def dataset(self, *, resolution: int, labels: str = "none", **options: Any) -> ImageDataset:
        """Decodes every file; options: of `ImageDataset`. Raises `DataError` if no image is readable.

        labels: whether `folders` are classes; with `auto`, where they can be.
        """
        classes = None
        if labels != "none":
            try:
                classes = find_classes(self.files[0].archive.path, [file.name for file in self.files])
            except DataError:
                if labels != "auto":
                    raise
        return ImageDataset(self, resolution=resolution, classes=classes, **options)


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
    found = sorted(file for file in archive.files() if not _is_system_file(file.name))
    # The outermost folders that hold a run, "." for the top.
    marked = {
        PurePosixPath(folder) for file in found for folder, name in (_split(file.name),) if marks_run(name, file.read)
    }
    runs = {str(folder) for folder in marked if not marked.intersection(folder.parents)}
    if "." in runs:
        raise DataError(
            f"--data {path}: is a run folder. Its pictures are not used as training images.",
            "Specify the folder of the images to train on.",
        )
    skipped = [Skipped(run, RUN_FOLDER) for run in sorted(runs)]
    files = []
    for file in found:
        folder, name = _split(file.name)
        if runs and not runs.isdisjoint(_with_parents(folder)):
            continue
        suffix = os.path.splitext(name)[1].lower()
        if FORMAT_OF_SUFFIX.get(suffix) in readable_formats():
            files.append(file)
        else:
            skipped.append(Skipped(file.name, HOW_TO_READ.get(FORMAT_OF_SUFFIX.get(suffix, ""), ""), suffix))
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
        *([f"Skipped {plural(len(runs), 'run folder')}: {listed(runs)}."] if runs else []),
        *([f"Skipped {plural(kinds.total(), 'file')}: {counted}."] if kinds else []),
        *([f"Skipped {plural(len(broken), 'unreadable image')}: {listed(broken, '; ')}."] if broken else []),
    ]


def _no_readable_image(files: Sequence[ImageFile], skipped: Sequence[Skipped]) -> DataError:
    where = f" in {files[0].archive.path}" if files else ""
    first = "".join(f"\n  {each.name}: {each.reason}" for each in skipped[:3])
    return DataError(
        f"no readable image{where}, of {len(files)} tried.{first}",
        "Specify a folder or zip of images that an image viewer opens.",
    )


class ImageDataset(Dataset):
    """The images of files, each decoded when it is first shown and kept up to the memory budget."""

    def __init__(
        self,
        found: ImageFiles,
        *,
        resolution: int,
        background: str = "white",
        fit: str = "crop",
        workers: int = 0,
        memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
        index: Path | None = None,
        progress: Progress | None = None,
        classes: Classes | None = None,
    ) -> None:
        """Reads and decodes, in `workers` threads (0: one per core), every file that `index` does not know.

        The index is then brought up to date; without one, every file is read. Files of more than 8 bits per channel
        are decoded again if their white, which is known when all have been read, is not the largest value of their
        type. progress(done, total) is called after each file, from the calling thread. classes: of the files. Raises
        `DataError` if no image is readable.
        """
        self._files, self._index = found.files, index
        self._decoder = Decoder(resolution, background, fit)
        kept = min(len(found.files), memory_budget_bytes // (3 * resolution**2))
        self._pixels = np.empty((kept, 3, resolution, resolution), np.uint8)  # of the first files, in their order
        self._is_decoded = np.zeros(len(found.files), bool)  # whether they are there
        self._records = read_index(index, found.files)
        skipped = self._read_files(workers or cores(), progress)
        records = self._records[self._records["is_read"]]
        if not len(records):
            raise _no_readable_image(found.files, skipped)

        measured = unpack_brightness(records)
        white = choose_white(measured)
        notes = describe_white(measured, white)
        if converted := int(records["is_converted"].sum()):
            notes.append(f"{plural(converted, 'image')} converted to sRGB from another ICC profile.")
        if white != self._decoder.white:
            self._decoder = replace(self._decoder, white=white)
            self._is_decoded &= self._records["brightness"][:, 0] == 0
        order = np.argsort(np.ascontiguousarray(records["digest"]).view("S32")[:, 0], kind="stable")
        self._file_of = np.flatnonzero(self._records["is_read"])[order]
        super().__init__(
            records["digest"][order],
            resolution=resolution,
            enlarged=int((records["longer_side" if fit == "pad" else "shorter_side"] < resolution).sum()),
            workers=workers,
            skipped=[*found.skipped, *skipped],
            notes=notes,
            classes=classes and classes.of(self._file_of),
        )

    def _read_files(self, workers: int, progress: Progress | None) -> list[Skipped]:
        """Reads the files that are not known; returns those that are no images. Writes the index if more are known."""
        unknown = np.flatnonzero(~self._records["is_read"]).tolist()
        skipped: list[Skipped] = []
        try:
            with closing(in_threads(self._read_file, unknown, workers=workers)) as results:
                for done, outcome in enumerate(results, start=1):
                    skipped += [outcome] if outcome else []
                    if progress is not None:
                        progress(done, len(unknown))
        finally:  # whoever stops reading a hundred thousand images does not lose what has been read
            if self._index is not None and self._records["is_read"][unknown].any():
                write_index(self._index, self._files, self._records)
        return sorted(skipped)

    def _read_file(self, number: int) -> Skipped | None:
        file = self._files[number]
        try:
            content = file.read()
            decoded = self._decoder.decode(content)
        except DataError as error:
            return Skipped(file.name, error.message)
        self._keep(number, decoded.pixels)
        record = self._records[number]
        record["is_converted"] = decoded.is_converted
        record["shorter_side"], record["longer_side"] = sorted(decoded.size)
        record["digest"] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
        record["brightness"] = pack_brightness(decoded.brightness)
        record["is_read"] = True
        return None

    def _keep(self, number: int, pixels: np.ndarray) -> None:
        """Keeps the pixels of a file, by its number, within the budget."""
        if number < len(self._pixels):
            self._pixels[number] = pixels
            self._is_decoded[number] = True

    def name(self, number: int) -> str:
        return str(self._files[self._file_of[number]].name)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        images = np.empty((len(numbers), *self._pixels.shape[1:]), np.uint8)
        for image, number in zip(images, self._file_of[numbers], strict=True):
            image[:] = self._pixels[number] if self._is_decoded[number] else self._decoded(number)
        return images

    def _decoded(self, number: int) -> np.ndarray:
        """(3, R, R) uint8: the pixels of a file, by its number, decoded and kept."""
        file = self._files[number]
        hint = "The images must not change until the run ends. Put the file back and run the same command again."
        try:
            content = file.read()
            is_same = hashlib.sha256(content).digest() == self._records[number]["digest"].tobytes()
            pixels = self._decoder.decode(content).pixels if is_same else None
        except DataError as error:
            raise DataError(f"{file} can no longer be read: {error.message}.", hint) from error
        if pixels is None:
            if self._index is not None:  # the size and the time may still be those of the index
                with suppress(OSError):
                    self._index.unlink()
            raise DataError(f"{file} has changed since it was first read.", hint)
        self._keep(number, pixels)
        return pixels


def _split(name: str) -> tuple[str, str]:
    """The folder and the name in it; zips made on Windows may have backslashes."""
    folder, _, base = name.replace("\\", "/").rpartition("/")
    return folder, base


@lru_cache(maxsize=4096)  # names are sorted: those of a folder follow one another
def _with_parents(folder: str) -> frozenset[str]:
    path = PurePosixPath(folder)
    return frozenset(map(str, (path, *path.parents)))


@lru_cache(maxsize=4096)
def _is_hidden(folder: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(folder).parts)


def _is_system_file(path: str) -> bool:
    folder, name = _split(path)
    return name.startswith(".") or _is_hidden(folder) or name.lower() in SYSTEM_FILES


class _Folder:
    """A folder tree, with the folders that links lead to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def files(self) -> Iterator[ImageFile]:
        for folder, names in walk_visible(self.path, on_error=self._refuse_unreadable):
            inside = "" if folder == str(self.path) else f"{Path(folder).relative_to(self.path).as_posix()}/"
            for name in names:
                with suppress(OSError):  # a broken link
                    about = os.stat(f"{folder}/{name}")
                    if stat.S_ISREG(about.st_mode):
                        yield ImageFile(inside + name, about.st_size, about.st_mtime_ns, self)

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

    def files(self) -> list[ImageFile]:
        modified = self.path.stat().st_mtime_ns
        # A zip may hold a name twice; the last one counts, as it does when unpacking.
        members = {member.filename: member for member in self._archive.infolist() if not member.is_dir()}
        return [ImageFile(name, member.file_size, modified, self) for name, member in members.items()]

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
            with self._lock:
                stream = self._archive.open(name)
            try:
                yield stream
            finally:
                with self._lock:
                    stream.close()
        except DataError:
            raise
        except NotImplementedError as error:
            raise DataError("compressed with a method that Python's zipfile does not support") from error
        except Exception as error:  # BadZipFile, zlib.error, EOFError, struct.error … whatever is damaged first
            raise DataError("damaged in the zip") from error


def _refuse_larger(size_bytes: int) -> None:
    if size_bytes > MAX_FILE_BYTES:
        raise DataError(f"larger than {MAX_FILE_BYTES // 2**30} GiB")
