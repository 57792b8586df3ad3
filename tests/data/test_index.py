"""The index of images: a second start reads only what has changed, and shows what a first one would."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.builders import save_images

from msggan.data.decoding import Brightness
from msggan.data.index import HEADER, RECORD, index_path, pack_brightness, read_index, unpack_brightness
from msggan.data.sources import ImageDataset, find_images
from msggan.errors import DataError


def started(folder: Path, index: Path | None, **options: object) -> tuple[ImageDataset, int]:
    """The dataset as a run has it, and how many files were read."""
    steps: list[int] = []
    options = {"resolution": 4, "index": index, **options}
    return ImageDataset(find_images(folder), progress=lambda done, total: steps.append(total), **options), len(steps)


def assert_as_without_index(ours: ImageDataset, folder: Path, **options: object) -> None:
    plain, _ = started(folder, None, **options)
    assert [ours.fingerprint, ours.training, ours.notes, ours.skipped, ours.enlarged] == [
        plain.fingerprint,
        plain.training,
        plain.notes,
        plain.skipped,
        plain.enlarged,
    ]
    for _ in range(2):  # as decoded, and as kept
        assert torch.equal(ours.images(range(len(ours))), plain.images(range(len(plain))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of 8 bits, two of 12 bits, and a file that is none."""
    path = save_images(tmp_path / "images", 6, 8)
    for number in range(2):
        Image.fromarray(np.full((8, 8), 4095 - number, np.uint16)).save(path / f"deep {number}.png")
    (path / "broken.png").write_bytes(b"")
    return path


def test_a_second_start_reads_only_what_is_no_image_and_shows_the_same_at_any_resolution(
    folder: Path, tmp_path: Path
) -> None:
    index = index_path(tmp_path / "runs", folder)
    assert started(folder, index)[1] == 9
    for options in ({}, {"resolution": 16, "background": "black"}, {"memory_budget_bytes": 3 * 48}, {"workers": 3}):
        ours, read = started(folder, index, **options)
        assert read == 1
        assert not ours._is_decoded.any()
        assert_as_without_index(ours, folder, **options)
    assert [path.name for path in index.parent.iterdir()] == [index.name]


def of_another_time(folder: Path) -> None:
    os.utime(folder / "000.png", ns=(1, 1))


def of_another_size(folder: Path) -> None:
    about = (folder / "000.png").stat()
    Image.new("RGB", (8, 8), "red").save(folder / "000.png")
    assert (folder / "000.png").stat().st_size != about.st_size
    os.utime(folder / "000.png", ns=(about.st_atime_ns, about.st_mtime_ns))


def added(folder: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(folder / "new.png")


def removed(folder: Path) -> None:
    (folder / "000.png").unlink()


@pytest.mark.parametrize(("change", "read"), [(of_another_time, 1), (of_another_size, 1), (added, 1), (removed, 0)])
def test_only_files_that_have_changed_are_read_again(
    folder: Path, tmp_path: Path, change: Callable[[Path], None], read: int
) -> None:
    index = tmp_path / "runs" / "index"
    started(folder, index)
    change(folder)
    ours, actually_read = started(folder, index)
    assert actually_read == read + 1  # the file that is not an image is read again
    assert_as_without_index(ours, folder)
    assert started(folder, index)[1] == 1


def test_a_damaged_or_foreign_index_is_made_anew(folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    started(folder, index)
    whole = index.read_bytes()
    flipped = bytearray(whole)
    flipped[len(HEADER) + 8 + RECORD.fields["digest"][1]] ^= 1  # type: ignore[index] # it has named fields
    for content in (b"", b"letter", whole[:-1], whole[:40], bytes(flipped), whole.replace(b"images 2", b"images 1")):
        index.write_bytes(content)
        ours, read = started(folder, index)
        assert read == 9
        assert_as_without_index(ours, folder)
        assert index.read_bytes() == whole


def test_where_no_index_can_be_written_there_is_none(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    ours, _ = started(folder, tmp_path / "file" / "index")
    assert_as_without_index(ours, folder)


def test_whoever_stops_reading_does_not_lose_what_was_read(folder: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageDataset(find_images(folder), resolution=4, index=tmp_path / "index", workers=1, progress=stop)
    known = read_index(tmp_path / "index", find_images(folder).files)["is_read"].sum()
    assert 4 <= known < 8
    assert started(folder, tmp_path / "index")[1] == 9 - known


def test_other_content_of_the_same_size_and_time_is_found_when_it_is_shown_and_read_at_the_next_start(
    tmp_path: Path,
) -> None:
    folder, index = save_images(tmp_path / "images", 3, 8), tmp_path / "index"
    Image.new("RGB", (8, 8), "red").save(folder / "x.bmp")
    started(folder, index)
    about = (folder / "x.bmp").stat()
    Image.new("RGB", (8, 8), "blue").save(folder / "x.bmp")
    os.utime(folder / "x.bmp", ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(DataError, match=r"x\.bmp in .* has changed since"):
        started(folder, index)[0].images(range(4))
    ours, read = started(folder, index)
    assert read == 4
    assert_as_without_index(ours, folder)


def test_brightness_is_kept_exactly() -> None:
    measured = [Brightness(False, 2**40, (7, 6, 5, 4, 3, 2, 1)), Brightness(True, 9, (3, 2, 1))]
    records = np.zeros(3, RECORD)
    records["brightness"] = [pack_brightness(each) for each in (measured[0], None, measured[1])]
    assert unpack_brightness(records) == measured
