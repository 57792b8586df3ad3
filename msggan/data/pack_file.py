"""What is a pack? One file of decoded images, which is mapped into memory and not read to train on it.

It is a safetensors file: `digests`, (N, 32) uint8, the SHA-256 of each image's own file, ascending; and `images`,
(N, 3, R, R) uint8. Its metadata say how it was made and hold the checksum of all of it. Training on it equals training
on the files, for a dataset's order, its division and its fingerprint come from the digests alone; and the same images
at the same options make the same pack, byte for byte, whatever their names.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ImageColor

from msggan.commands.pack_options import PACK_SUFFIX
from msggan.data.dataset import Dataset
from msggan.errors import DataError

FORMAT = "msggan-pack"
FORMAT_VERSION = 1
BEGINNING = b'{"__metadata__":{"format":"msggan-pack"'  # of every header, also of versions to come
LONGEST_HEADER_BYTES = 4096
CHUNK_BYTES = 1 << 22
NO_CHECKSUM = "0" * 64  # stands in the header while the checksum is taken

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Contents:
    """What a pack says of itself. enlarged: how many of the images were smaller than the resolution.

    notes: lines on how the images were decoded. Packs of plain images, and older ones, have none in their header.
    """

    resolution: int
    background: str
    images: int
    enlarged: int
    notes: str = ""

    @property
    def image_bytes(self) -> int:
        return 3 * self.resolution**2

    @property
    def data_bytes(self) -> int:
        """What follows the header: the digests, then the images."""
        return self.images * (32 + self.image_bytes)

    def header(self, checksum: str) -> bytes:
        """The file up to its data: the header's length in 8 bytes, and the header."""
        metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self), "sha256": checksum}
        if not self.notes:
            del metadata["notes"]
        digests_end = 32 * self.images
        content = {
            "__metadata__": {name: str(value) for name, value in metadata.items()},  # safetensors knows only texts
            "digests": {"dtype": "U8", "shape": [self.images, 32], "data_offsets": [0, digests_end]},
            "images": {
                "dtype": "U8",
                "shape": [self.images, 3, self.resolution, self.resolution],
                "data_offsets": [digests_end, self.data_bytes],
            },
        }
        text = json.dumps(content, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format wants its data aligned
        return len(text).to_bytes(8, "little") + text


# --- Writing ----------------------------------------------------------------------------------------------------------


def write_pack(path: Path, dataset: Dataset, *, background: str, progress: Progress | None = None) -> Contents:
    """Writes the images of a dataset, which were laid on `background`, to one file: whole or not at all.

    progress(done, total) is called as the images are written. Raises DataError where the file cannot be written.
    """
    notes = "\n".join(dataset.notes)
    contents = Contents(dataset.resolution, background, len(dataset.digests), dataset.enlarged, notes)
    hint = f"It takes {contents.data_bytes / 2**20:.0f} MiB. Free some space, or write it elsewhere."
    with _written_aside(path, hint) as aside:
        with aside.open("wb") as file:
            _write(file, contents, dataset, progress)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    return contents


def ensure_writable(path: Path) -> None:
    """Makes the folder of a file that is to be. Raises DataError where it cannot be written."""
    with _written_aside(path, "Name a file in a folder that you may write to.") as aside:
        aside.touch()


@contextmanager
def _written_aside(path: Path, hint: str) -> Iterator[Path]:
    """The name of a file beside the one that is to be; at the end it is gone, unless it has taken that one's place."""
    aside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}).", hint) from error


def _write(file: BinaryIO, contents: Contents, dataset: Dataset, progress: Progress | None) -> None:
    blank = contents.header(NO_CHECKSUM)
    checksum = hashlib.sha256()

    def append(content: bytes | memoryview) -> None:
        file.write(content)
        checksum.update(content)

    append(blank)
    append(b"".join(dataset.digests))
    for chunk in _chunks(contents):
        append(dataset.rows(chunk).numpy().data)
        if progress is not None:
            progress(chunk.stop, contents.images)
    file.seek(0)
    file.write(contents.header(checksum.hexdigest()))


def _chunks(contents: Contents) -> Iterator[range]:
    """The numbers of the images, so many at a time as a little memory holds."""
    most = max(1, CHUNK_BYTES // contents.image_bytes)
    for begin in range(0, contents.images, most):
        yield range(begin, min(begin + most, contents.images))


# --- Reading ----------------------------------------------------------------------------------------------------------


def is_pack(path: str | Path) -> bool:
    """Whether a file is a pack by its beginning, or by its name as one that is damaged may be."""
    if not os.path.isfile(path):
        return False
    if Path(path).suffix.lower() == PACK_SUFFIX:
        return True
    try:
        with open(path, "rb") as file:
            return file.read(8 + len(BEGINNING))[8:] == BEGINNING
    except OSError:
        return False


class Pack:
    """A pack whose header has been read. Raises DataError unless it is a whole pack of this version."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._header, self.contents = _read_header(self.path)
            size, whole = self.path.stat().st_size, len(self._header) + self.contents.data_bytes
        except OSError as error:
            raise DataError(f"--data {path}: cannot be read ({error.strerror}).", "Make it readable.") from error
        if size != whole:
            raise _damaged(self.path, f"it has {size} bytes and should have {whole}")

    @property
    def settled(self) -> dict[str, Any]:
        """The options that making the pack has settled."""
        return {"resolution": self.contents.resolution, "background": self.contents.background}

    def median_shorter_side(self) -> int:
        return self.contents.resolution

    def dataset(
        self, *, resolution: int, background: str, workers: int = 0, progress: Progress | None = None
    ) -> PackedDataset:
        """Its images, once all of its bytes have been checked: damage is found before training and not by its results.

        workers: not needed. Raises DataError where the pack is of other options, or damaged.
        """
        self._check_options(resolution, background)
        try:
            self._check_bytes(progress)
            return PackedDataset(self.path, self.contents, offset=len(self._header))
        except OSError as error:
            raise DataError(f"--data {self.path}: cannot be read ({error.strerror}).", "Make it readable.") from error

    def _check_options(self, resolution: int, background: str) -> None:
        ours = self.contents
        differences = []
        if resolution != ours.resolution:
            differences.append(f"--resolution {ours.resolution}, not {resolution}")
        if ImageColor.getrgb(background) != ImageColor.getrgb(ours.background):
            differences.append(f"--background {ours.background}, not {background}")
        if differences:
            raise DataError(
                f"--data {self.path}: is a pack of {' and '.join(differences)}.",
                f"Pack the images again: msggan-aml pack FOLDER OUT --resolution {resolution} "
                f"--background '{background}'. Or leave these options out, to begin another run with the pack's own.",
            )

    def _check_bytes(self, progress: Progress | None) -> None:
        checksum = hashlib.sha256(self.contents.header(NO_CHECKSUM))
        done, total = 0, self.contents.data_bytes
        with self.path.open("rb") as file:
            file.seek(len(self._header))
            while chunk := file.read(CHUNK_BYTES):
                checksum.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(self.contents.images * done // total, self.contents.images)
        if self.contents.header(checksum.hexdigest()) != self._header:
            raise _damaged(self.path, "its checksum does not match")


class PackedDataset(Dataset):
    """The images of a pack. The system brings a page of the file into memory where it is shown, and may drop it."""

    def __init__(self, path: Path, contents: Contents, *, offset: int) -> None:
        data = np.memmap(path, np.uint8, "r", offset, (contents.data_bytes,))
        digests, images = np.split(data, [32 * contents.images])
        self.mapped = images.reshape(contents.images, 3, contents.resolution, contents.resolution)
        super().__init__(
            [digest.tobytes() for digest in digests.reshape(-1, 32)],
            resolution=contents.resolution,
            enlarged=contents.enlarged,
            in_memory=False,
            notes=contents.notes.splitlines(),
        )

    def rows(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.mapped[np.asarray(numbers, np.intp)]))


def _read_header(path: Path) -> tuple[bytes, Contents]:
    """The file up to its data, and what it says. Raises DataError where that is not as `write_pack` writes it."""
    with path.open("rb") as file:
        length = file.read(8)
        text = file.read(min(int.from_bytes(length, "little"), LONGEST_HEADER_BYTES))
    if not text.startswith(BEGINNING):
        raise DataError(
            f"--data {path}: is not a pack of images.", "msggan-aml pack FOLDER OUT makes one from a folder or a zip."
        )
    try:
        metadata = json.loads(text)["__metadata__"]
        version = metadata["format_version"]
        if version != str(FORMAT_VERSION):
            raise DataError(
                f"--data {path}: is a pack of format version {version}, and this msggan reads {FORMAT_VERSION}.",
                "Use the msggan that made it, or pack the images again with this one.",
            )
        contents = Contents(
            int(metadata["resolution"]),
            metadata["background"],
            int(metadata["images"]),
            int(metadata["enlarged"]),
            metadata.get("notes", ""),
        )
        ImageColor.getrgb(contents.background)  # raises ValueError where it is no colour
        good = contents.images > 0 and contents.header(metadata["sha256"]) == length + text
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "its header cannot be read") from error
    if not good:
        raise _damaged(path, "its header contradicts itself")
    return length + text, contents


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"--data {path}: a damaged pack ({reason}).", "Copy it again from where it was made, or pack anew."
    )
