"""Files are written whole, also on mounts that support less than a disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from msggan.runs.files import CANNOT_REPLACE, CANNOT_SYNC, recover, write_whole


def refusing(number: int):  # type: ignore[no-untyped-def]
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", CANNOT_REPLACE)
@pytest.mark.parametrize("calls", [("os.replace",), ("os.replace", "os.rename")])
def test_a_file_is_replaced_on_a_mount_without_atomic_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: tuple[str, ...], number: int
) -> None:
    # No such mount can be had in a test: the answer is given at the system call.
    for call in calls:
        monkeypatch.setattr(call, refusing(number))
    path = tmp_path / "file"
    write_whole(path, b"before")
    write_whole(path, b"after")
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_copy_that_a_process_did_not_finish_is_undone(tmp_path: Path) -> None:
    path, old = tmp_path / "file", tmp_path / "file.old"
    path.write_bytes(b"aft")
    old.write_bytes(b"before")
    recover(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_was_being_replaced_when_the_process_died_is_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.replace", refusing(errno.ENOTSUP))
    path = tmp_path / "file"
    path.write_bytes(b"before")
    rename = os.rename

    def die_before_the_new_one_has_its_name(source: Path, target: Path) -> None:
        if target == path:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("os.rename", die_before_the_new_one_has_its_name)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"after")
    assert not path.exists()

    monkeypatch.setattr("os.rename", rename)
    recover(path)
    assert path.read_bytes() == b"before"
    write_whole(path, b"after")
    recover(path)
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", CANNOT_SYNC)
def test_a_file_is_written_on_a_mount_without_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("os.fsync", refusing(number))
    write_whole(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("call", ["os.replace", "os.fsync"])
def test_a_broken_disk_keeps_the_old_file_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(call, refusing(errno.EIO))
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match="Input/output error") as refused:
        write_whole(path, b"after")
    assert refused.value.filename is not None
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
