"""Which images need no packing: fingerprints of folders, and the record of their packs. Makes no requests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from msggan import TrainConfig
from msggan.errors import DataError
from orchestration.azure.packs import Pack, fingerprint, refuse_other_file
from orchestration.azure.records import MAX_RECORDS, Records

PACK = ("0123456789abcdef" * 4, 5)


def test_each_change_of_a_folder_or_an_option_changes_its_fingerprint(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.png").write_bytes(b"one")
    (folder / "deep" / "two.png").write_bytes(b"two")
    (folder / ".hidden").write_bytes(b"1")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "broken.png").symlink_to(folder / "nothing")
    seen = [fingerprint(folder, [])]
    assert seen == [fingerprint(folder, [])]
    (folder / ".hidden").write_bytes(b"12")
    assert seen == [fingerprint(folder, [])]

    seen.append(fingerprint(folder, ["--resolution", "8"]))
    os.utime(folder / "one.png", ns=(1, 1))
    seen.append(fingerprint(folder, []))
    (folder / "one.png").write_bytes(b"eno")  # its size and time are as before, that of its last change is not
    os.utime(folder / "one.png", ns=(1, 1))
    seen.append(fingerprint(folder, []))
    (folder / "deep" / "two.png").rename(folder / "two.png")
    seen.append(fingerprint(folder, []))
    (folder / "three.png").write_bytes(b"")
    seen.append(fingerprint(folder, []))
    assert len(set(seen)) == len(seen) == 6
    assert fingerprint(tmp_path / "nothing", []) is None


def test_a_pack_without_classes_is_not_uploaded_for_labels(tmp_path: Path) -> None:
    pack = tmp_path / "images.safetensors"
    pack.write_bytes(b'{"__metadata__":{"format":"msggan-pack"},"digests":{}}')
    refuse_other_file(str(pack), TrainConfig())
    with pytest.raises(DataError, match="is a pack without classes"):
        refuse_other_file(str(pack), TrainConfig(labels="folders"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'{"key": 1}',
        b'{"key": ["x", 5]}',
        b'{"key": [5, 5]}',
        b'{"key": ["%s", "5"]}' % PACK[0].encode(),
        b'{"key": ["../%s", 5]}' % PACK[0].encode(),
        b"\xff\xfe",
    ],
)
def test_a_damaged_record_of_packs_is_none_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    records = Records(tmp_path / "runs" / "packs.json")
    records.path.parent.mkdir()
    records.path.write_bytes(content)
    assert Pack.read(records.find("key")) is None
    records.add("key", *PACK)
    assert (records.find("key"), records.find("other"), records.find(None)) == (PACK, None, None)
    assert Pack.read(PACK) == Pack(*PACK)


def test_a_record_has_the_newest_packs_and_may_be_impossible_to_write(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs" / "packs.json")
    for number in range(MAX_RECORDS + 1):
        records.add(str(number), *PACK)
    assert (records.find("0"), records.find("1"), records.find(str(MAX_RECORDS))) == (None, PACK, PACK)
    (tmp_path / "file").touch()
    Records(tmp_path / "file" / "packs.json").add("key", *PACK)
