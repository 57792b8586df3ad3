"""The pack: one file of decoded images, which is mapped into memory, so that training starts without reading it.

It is a safetensors file: `digests`, (N, 32) uint8, the SHA-256 of each image's own file, ascending; `checksums`,
(N, 32) uint8, the SHA-256 of each image's pixels; and `images`, (N, 3, R, R) uint8. Opening a pack reads and verifies
its header and the first two; an image is verified when it is first shown, and all of them by `Pack.verify`. Packs of
format version 1 have no `checksums` but one checksum of the whole file, which is verified when they are opened.
Those of version 3 also have `labels`, (N,) int32, the class of each image, and `class_names`, the classes in order with
zeros between them.

Training on a pack equals training on its files, because a dataset's order, its hold-out images and its fingerprint
depend on the digests and the classes alone. The same images in the same classes with the same options make the same
pack, byte for byte, whatever their names.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ImageColor

from msggan.data.classes import Classes
from msggan.data.dataset import Dataset, Progress, in_threads
from msggan.errors import DataError

FORMAT = "msggan-pack"
FORMAT_VERSION = 2
READABLE_VERSIONS = ("1", "2", "3")
OMITTED = (("notes", ""), ("fit", "crop"), ("class_names_bytes", 0))  # metadata not written, as in earlier packs
HEADER_START = b'{"__metadata__":{"format":"msggan-pack"'  # of every version, also of those to come
MAX_HEADER_BYTES = 4096
CHUNK_BYTES = 1 << 22
BLANK = "0" * 64  # stands in the header while its checksum is computed
MAX_NUMBERS_LISTED = 10


@dataclass(frozen=True)
class Contents:
    """The metadata of a pack. enlarged: the number of images that were smaller than the resolution.

    notes: lines on how the images were decoded; none for plain images and in older packs. fit: `pad` from version 3 on.
    class_names_bytes: the length of `class_names`, from version 3 on; 0 without classes.
    """

    resolution: int
    background: str
    images: int
    enlarged: int
    notes: str = ""
    fit: str = "crop"
    format_version: int = FORMAT_VERSION
    class_names_bytes: int = 0

    @property
    def image_bytes(self) -> int:
        return 3 * self.resolution**2

    @property
    def has_checksums(self) -> bool:
        """Whether each image has one; otherwise, one checksum covers the whole file."""
        return self.format_version > 1

    @property
    def index_bytes(self) -> int:
        """The digests, and the checksums and the classes where there are any."""
        classes = self.class_names_bytes and 4 * self.images + self.class_names_bytes
        return self.images * (64 if self.has_checksums else 32) + classes

    @property
    def data_bytes(self) -> int:
        """Everything after the header: the index, then the images."""
        return self.index_bytes + self.images * self.image_bytes

    def header(self, checksum: str) -> bytes:
        """The file up to its index: the header's length in 8 bytes, and the header."""
        metadata = {"format": FORMAT, "format_version": self.format_version, **asdict(self), "sha256": checksum}
        metadata = {name: value for name, value in metadata.items() if (name, value) not in OMITTED}
        shapes: dict[str, tuple[int, ...]] = {"digests": (self.images, 32)}
        if self.has_checksums:
            shapes["checksums"] = (self.images, 32)
        if self.class_names_bytes:
            shapes |= {"labels": (self.images,), "class_names": (self.class_names_bytes,)}
        shapes["images"] = (self.images, 3, self.resolution, self.resolution)
        content: dict[str, Any] = {"__metadata__": {name: str(value) for name, value in metadata.items()}}
        end = 0
        for name, shape in shapes.items():
            dtype, size = ("I32", 4) if name == "labels" else ("U8", 1)
            start, end = end, end + size * math.prod(shape)
            content[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(content, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format requires aligned data
        return len(text).to_bytes(8, "little") + text


# --- Writing ----------------------------------------------------------------------------------------------------------


def write_pack(
    path: Path, dataset: Dataset, *, background: str, fit: str = "crop", progress: Progress | None = None
) -> Contents:
    """Writes the images of a dataset, decoded with `background` and `fit`, to one file: whole or not at all.

    progress(done, total) is called as the images are written. Raises `DataError` if the file cannot be written.
    """
    notes, names = "\n".join(dataset.notes), len(_class_names(dataset))
    version = FORMAT_VERSION + bool(fit != "crop" or names)  # version 2 knows neither
    contents = Contents(
        dataset.resolution, background, len(dataset.digests), dataset.enlarged, notes, fit, version, names
    )
    hint = f"It takes {contents.data_bytes / 2**20:.0f} MiB. Free some space, or write it elsewhere."
    with _temporary(path, hint) as temporary:
        with temporary.open("wb") as file:
            _write(file, contents, dataset, progress)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    return contents


def ensure_writable(path: Path) -> None:
    """Creates the folder of a file to be written. Raises `DataError` if the file cannot be written there."""
    with _temporary(path, "Specify a file in a folder that you may write to.") as temporary:
        temporary.touch()


@contextmanager
def _temporary(path: Path, hint: str) -> Iterator[Path]:
    """A path beside the file to be written, where nothing is left at the end."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}).", hint) from error


def _write(file: BinaryIO, contents: Contents, dataset: Dataset, progress: Progress | None) -> None:
    file.seek(len(contents.header(BLANK)) + contents.index_bytes)
    chunks = (np.arange(chunk.start, chunk.stop) for chunk in _chunks(contents))
    index, done = bytearray(dataset.digests.tobytes()), 0
    with closing(in_threads(dataset.rows, chunks, workers=dataset.workers, ahead=dataset.workers)) as results:
        for images in results:
            file.write(images.data)
            index += b"".join(sha256(image.data).digest() for image in images)
            done += len(images)
            if progress is not None:
                progress(done, contents.images)
    if dataset.class_of is not None:
        index += dataset.class_of.labels.tobytes() + _class_names(dataset)
    file.seek(0)
    file.write(contents.header(sha256(contents.header(BLANK) + index).hexdigest()) + index)


def _class_names(dataset: Dataset) -> bytes:
    return "\0".join(dataset.classes).encode()


def _chunks(contents: Contents) -> Iterator[range]:
    """The numbers of the images, in ranges of at most CHUNK_BYTES."""
    step = max(1, CHUNK_BYTES // contents.image_bytes)
    for start in range(0, contents.images, step):
        yield range(start, min(start + step, contents.images))


# --- Reading ----------------------------------------------------------------------------------------------------------


def is_pack(path: str | Path) -> bool:
    """Whether a file is a pack by its first bytes, or by its name as a damaged one may be."""
    if not os.path.isfile(path):
        return False
    if Path(path).suffix.lower() == ".safetensors":
        return True
    try:
        with open(path, "rb") as file:
            return file.read(8 + len(HEADER_START))[8:] == HEADER_START
    except OSError:
        return False


class Pack:
    """A pack whose header has been read. Raises `DataError` unless it is a complete pack of a known version."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._read_errors():
            self._header, self.contents = _read_header(self.path)
            size, expected = self.path.stat().st_size, len(self._header) + self.contents.data_bytes
        if size != expected:
            raise _damaged(self.path, f"it has {size} bytes instead of {expected}")

    @property
    def fixed_options(self) -> dict[str, Any]:
        """The options that are fixed already, by name: how the images were decoded."""
        contents = self.contents
        return {"resolution": contents.resolution, "background": contents.background, "fit": contents.fit}

    @property
    def images(self) -> int:
        return self.contents.images

    def memory_bytes(self, resolution: int) -> int:
        """What its images take in memory: nothing, since they are mapped from the file."""
        return 0

    def median_shorter_side(self) -> int:
        return self.contents.resolution

    def dataset(
        self,
        *,
        resolution: int,
        background: str,
        fit: str = "crop",
        workers: int = 0,
        labels: str = "none",
        index: Path | None = None,
        progress: Progress | None = None,
    ) -> PackedDataset:
        """Its images, each of which is verified when it is first shown. Reads the header and the index only.

        workers: threads that read them. labels: as for `ImageFiles`. index: not needed. progress(done, total) is called
        while a pack of version 1 is verified. Raises `DataError` if the pack has other options or is damaged.
        """
        contents = self.contents
        differences = []
        if resolution != contents.resolution:
            differences.append(f"--resolution {contents.resolution}, not {resolution}")
        if ImageColor.getrgb(background) != ImageColor.getrgb(contents.background):
            differences.append(f"--background {contents.background}, not {background}")
        if fit != contents.fit:
            differences.append(f"--fit {contents.fit}, not {fit}")
        if differences:
            raise DataError(
                f"--data {self.path}: is a pack of {' and '.join(differences)}.",
                f"Pack the images again: msggan-aml pack FOLDER OUT --resolution {resolution} "
                f"--background '{background}' --fit {fit}. Or omit these options to start another run with those of "
                "the pack.",
            )
        if labels == "folders" and not contents.class_names_bytes:
            raise DataError(
                f"--data {self.path}: is a pack without classes.",
                "Pack the images again, from a folder with a folder for each class: msggan-aml pack FOLDER OUT",
            )
        with self._read_errors():
            return self._open(progress, workers, has_classes=labels != "none")

    def verify(self, progress: Progress | None = None) -> None:
        """Reads and verifies the whole file. Raises `DataError` that names the damaged images."""
        damaged: list[int] = []
        with self._read_errors():
            dataset = self._open(progress)
            for chunk in _chunks(self.contents) if self.contents.has_checksums else ():
                damaged += dataset.damaged(np.arange(chunk.start, chunk.stop), dataset.mapped[chunk.start : chunk.stop])
                if progress is not None:
                    progress(chunk.stop, self.contents.images)
        if damaged:
            raise _damaged_images(self.path, damaged, self.contents.images)

    def _open(self, progress: Progress | None, workers: int = 0, *, has_classes: bool = False) -> PackedDataset:
        """Its images, after verifying the checksum in the header. progress: of reading the images too, in version 1."""
        contents = self.contents
        checksum = sha256(contents.header(BLANK))
        with self.path.open("rb") as file:
            file.seek(len(self._header))
            index = file.read(contents.index_bytes)
            checksum.update(index)
            for chunk in () if contents.has_checksums else _chunks(contents):
                checksum.update(file.read(len(chunk) * contents.image_bytes))
                if progress is not None:
                    progress(chunk.stop, contents.images)
        if contents.header(checksum.hexdigest()) != self._header:
            raise _damaged(self.path, "the checksum in its header does not match")
        return PackedDataset(self.path, contents, len(self._header), index, workers, has_classes=has_classes)

    @contextmanager
    def _read_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"--data {self.path}: cannot be read ({error.strerror}).", "Make it readable.") from error


class PackedDataset(Dataset):
    """The images of a pack. The system reads a page of the file into memory when it is shown, and may drop it."""

    def __init__(
        self, path: Path, contents: Contents, header_bytes: int, index: bytes, workers: int, *, has_classes: bool
    ) -> None:
        """index: what is between the header and the images."""
        self.path = path
        side, count = contents.resolution, contents.images
        digests = np.frombuffer(index, np.uint8, 32 * count).reshape(count, 32)
        end = 64 * count if contents.has_checksums else 32 * count  # without, the whole file has been verified
        self.checksums = np.frombuffer(index[32 * count : end], np.uint8).reshape(-1, 32)
        classes = None
        if has_classes and contents.class_names_bytes:
            names = index[end + 4 * count :].decode().split("\0")
            classes = Classes(names, np.frombuffer(index, "<i4", count, end))
        self.mapped = np.memmap(path, np.uint8, "r", header_bytes + contents.index_bytes, (count, 3, side, side))
        self._is_verified = np.full(count, not len(self.checksums))
        super().__init__(
            digests,
            resolution=side,
            enlarged=contents.enlarged,
            workers=workers,
            notes=contents.notes.splitlines(),
            classes=classes,
        )

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """(N, 3, R, R) uint8. Raises `DataError` if one of them is damaged."""
        images = np.asarray(self.mapped[numbers])  # a copy, which is what is verified and shown
        if damaged := self.damaged(numbers, images):
            raise _damaged_images(self.path, damaged, len(self.digests))
        return images

    def damaged(self, numbers: np.ndarray, images: np.ndarray) -> list[int]:
        """The numbers of the images (N, 3, R, R) whose checksum does not match; verified ones are not read again."""
        for at in np.flatnonzero(~self._is_verified[numbers]):
            number = numbers[at]
            self._is_verified[number] = sha256(images[at].data).digest() == self.checksums[number].tobytes()
        return [int(number) for number in numbers if not self._is_verified[number]]


def _read_header(path: Path) -> tuple[bytes, Contents]:
    """The file up to its index, and its metadata. Raises `DataError` unless it is as `write_pack` writes it."""
    with path.open("rb") as file:
        length = file.read(8)
        text = file.read(min(int.from_bytes(length, "little"), MAX_HEADER_BYTES))
    if not text.startswith(HEADER_START):
        raise DataError(
            f"--data {path}: is not a pack of images.", "Create one from a folder or zip: msggan-aml pack FOLDER OUT"
        )
    try:
        metadata = dict(OMITTED) | json.loads(text)["__metadata__"]
        version = metadata["format_version"]
        if version not in READABLE_VERSIONS:
            raise DataError(
                f"--data {path}: is a pack of format version {version}; this msggan reads "
                f"1 to {READABLE_VERSIONS[-1]}.",
                "Use the msggan that created it, or pack the images again with this one.",
            )
        contents = Contents(
            int(metadata["resolution"]),
            metadata["background"],
            int(metadata["images"]),
            int(metadata["enlarged"]),
            metadata["notes"],
            metadata["fit"],
            int(version),
            int(metadata["class_names_bytes"]),
        )
        ImageColor.getrgb(contents.background)  # raises ValueError if it is not a colour
        is_consistent = contents.images > 0 and contents.header(metadata["sha256"]) == length + text
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "its header cannot be read") from error
    if not is_consistent:
        raise _damaged(path, "its header contradicts itself")
    return length + text, contents


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"--data {path}: is a damaged pack ({reason}).",
        f"Copy it again from where it was created, or pack the images again: msggan-aml pack FOLDER {path} --force",
    )


def _damaged_images(path: Path, numbers: Sequence[int], total: int) -> DataError:
    listed = [str(number) for number in numbers[:MAX_NUMBERS_LISTED]] + ["…"] * (len(numbers) > MAX_NUMBERS_LISTED)
    which = f"image {listed[0]}" if len(numbers) == 1 else f"images {', '.join(listed)}"
    return _damaged(path, f"the checksum of {which} of {total} does not match")
