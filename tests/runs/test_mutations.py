"""Damaged files are never accepted and never crash a program: thousands of mutations drawn with a fixed seed."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.builders import save_images, save_run

from msggan.data.decoding import readable_formats
from msggan.data.pack_file import Pack, write_pack
from msggan.data.sources import ImageDataset, find_images
from msggan.errors import CheckpointError, DataError
from msggan.runs.checkpoint import load_generator, newest_checkpoint, save_checkpoint

STATE = {"seconds": 1.5, "data_fingerprint": "ab" * 32}
# What Pillow warns of in files of notes that make no sense; a run turns it off.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """As many damaged versions of a file, none of them equal to it: what disks, networks and other programs leave."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    while count:
        damaged = mutation(content, chance)
        if damaged != content:
            yield damaged
            count -= 1


def mutation(content: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.sample(range(len(content) + 1), 2))
    kind = chance.randrange(7)
    if kind == 0:  # one bit, the hardest to see
        at = chance.randrange(len(content))
        return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
    if kind == 1:
        return content[:start]
    if kind == 2:  # a block that never reached the disk
        return content[:start] + bytes(end - start) + content[end:]
    if kind == 3:
        return content[:start] + chance.randbytes(end - start) + content[end:]
    if kind == 4:
        return content[:start] + content[end:]
    if kind == 5:
        return content[:end] + content[start:]
    return content + chance.randbytes(chance.randrange(1, 64))


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_damaged_checkpoint_is_never_loaded_and_the_previous_one_always(tmp_path: Path, suffix: str) -> None:
    for images_seen in (8, 16):
        save_checkpoint(tmp_path, images_seen, {"weights": torch.full((7, 3), float(images_seen))}, STATE)
    newest = tmp_path / "000000016.json"
    path = newest.with_suffix(suffix)
    for content in mutations(path.read_bytes(), 1000, seed=1):
        path.write_bytes(content)
        checkpoint, damaged = newest_checkpoint(tmp_path)
        assert checkpoint is not None
        if checkpoint.images_seen == 16:  # JSON with a space more or less is the same JSON
            assert suffix == ".json"
            assert torch.equal(checkpoint.tensors["weights"], torch.full((7, 3), 16.0))
            assert checkpoint.state == STATE
            continue
        assert torch.equal(checkpoint.tensors["weights"], torch.full((7, 3), 8.0))
        assert [path for path, _ in damaged] == [newest]
        assert damaged[0].reason


def test_a_damaged_generator_is_refused_or_has_the_shape_of_its_configuration(tmp_path: Path) -> None:
    path = save_run(tmp_path / "run", depth=2) / "generator.safetensors"
    for content in mutations(path.read_bytes(), 500, seed=2):
        path.write_bytes(content)
        with suppress(CheckpointError):
            generator = load_generator(path)
            assert len(generator(torch.randn(1, generator.latent_size))) == generator.depth


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
def test_a_damaged_image_is_used_or_reported(tmp_path: Path, kind: str) -> None:
    if kind not in readable_formats():
        pytest.skip(f"this machine reads no {kind}")
    good = save_images(tmp_path / "good", 1, 16) / "000.png"
    with Image.open(good) as image:
        file = io.BytesIO()
        image.save(file, kind)
    for number, content in enumerate(mutations(file.getvalue(), 200, seed=3)):
        (tmp_path / f"{number:03d}.{kind.lower()}").write_bytes(content)
    good.rename(tmp_path / "good.png")

    dataset = ImageDataset(find_images(tmp_path), resolution=8, background="white", workers=1)
    assert dataset.training + dataset.held_out + len(dataset.skipped) == 201
    assert dataset.skipped
    assert all(reason and "\n" not in reason for _, reason, _ in dataset.skipped)
    assert "good.png" not in [name for name, _, _ in dataset.skipped]


def test_a_damaged_pack_is_refused_when_it_is_opened_or_its_images_are_read(tmp_path: Path) -> None:
    images = ImageDataset(find_images(save_images(tmp_path / "images", 3, 8)), resolution=8, background="white")
    path = tmp_path / "images.safetensors"
    write_pack(path, images, background="white")
    for content in mutations(path.read_bytes(), 500, seed=4):
        path.write_bytes(content)
        with pytest.raises(DataError) as refused:
            Pack(path).dataset(resolution=8, background="white").rows(range(3))
        assert str(path) in refused.value.message
