"""The index: what is known of image files read before, so that those unchanged need not be read again at the start.

It does not depend on how images are decoded, so that one index serves all runs on the same path. A file is unchanged if
its size and its time of modification are; when it is decoded, its digest is compared too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL

from msggan.data.decoding import FLOAT_WHITES, INTEGER_WHITES, Brightness
from msggan.runs.files import write_whole

# Of another version of Pillow, which may read other files, an index is not used.
HEADER = f"msggan index of images 2, Pillow {PIL.__version__}\n".encode()
CHECKSUM_BYTES = 32
# brightness: 0, or 1 for integers and 2 for floats; then its counts, from the smallest threshold.
RECORD = np.dtype(
    [
        ("is_read", "?"),
        ("is_converted", "?"),
        ("shorter_side", "<i4"),
        ("longer_side", "<i4"),
        ("size", "<i8"),
        ("mtime_ns", "<i8"),
        ("digest", "u1", (32,)),
        ("brightness", "<i8", (9,)),
    ]
)


class File(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...


def index_path(folder: Path, data: str | Path) -> Path:
    """Where in `folder` the index of the images at `data` is."""
    return folder / f".images-{sha256(os.path.abspath(data).encode(errors='surrogatepass')).hexdigest()[:16]}.index"


def read_index(path: Path | None, files: Sequence[File]) -> np.ndarray:
    """(N,) RECORD: of each file its size and time, and if it is unchanged what is known of it. `is_read` tells which.

    None is known if there is no index, or it is damaged or of another version.
    """
    records = np.zeros(len(files), RECORD)
    records["size"] = [file.size for file in files]
    records["mtime_ns"] = [file.mtime_ns for file in files]
    with suppress(OSError):
        content = path.read_bytes() if path else b""
        body, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
        if body.startswith(HEADER) and sha256(body).digest() == checksum:
            names, stored = _unpack(body)
            row_of = {name: row for row, name in enumerate(names)}
            rows = np.array([row_of.get(file.name, -1) for file in files])
            unchanged = rows >= 0
            for field in ("size", "mtime_ns"):
                unchanged &= stored[field][rows] == records[field]
            records[unchanged] = stored[rows[unchanged]]
    return records


def write_index(path: Path, files: Sequence[File], records: np.ndarray) -> None:
    """Replaces the index by one of the files that have been read. Where it cannot be written, there is none."""
    known = records[records["is_read"]]
    names = "\0".join(file.name for file, is_read in zip(files, records["is_read"], strict=True) if is_read)
    body = HEADER + len(known).to_bytes(8, "little") + known.tobytes() + names.encode(errors="surrogatepass")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, body + sha256(body).digest())


def _unpack(body: bytes) -> tuple[list[str], np.ndarray]:
    """The names and the records of an index whose checksum is right."""
    start = len(HEADER) + 8
    count = int.from_bytes(body[len(HEADER) : start], "little")
    end = start + count * RECORD.itemsize
    return body[end:].decode(errors="surrogatepass").split("\0"), np.frombuffer(body[start:end], RECORD)


def pack_brightness(brightness: Brightness | None) -> list[int]:
    """The brightness as in a record."""
    if brightness is None:
        return [0] * 9
    counts = [1 + brightness.is_float, brightness.positive, *brightness.larger]
    return counts + [0] * (9 - len(counts))


def unpack_brightness(records: np.ndarray) -> list[Brightness]:
    """Of those images that have more than 8 bits per channel."""
    deep = records["brightness"][records["brightness"][:, 0] > 0].tolist()
    sizes = {1: len(INTEGER_WHITES), 2: len(FLOAT_WHITES)}
    return [Brightness(kind == 2, positive, tuple(larger[: sizes[kind]])) for kind, positive, *larger in deep]
