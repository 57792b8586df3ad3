"""Packs: training equals training on the images, packing is reproducible, and damage is always detected."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file
from support.builders import save_images
from support.images import draw_tiny_images
from support.programs import Ended, command_line, environment

from msggan import TrainConfig, Trainer
from msggan.commands.options import argv_of
from msggan.commands.verbs import PackOptions, existing_problems, pack_file, parse_pack
from msggan.data.dataset import Dataset
from msggan.data.pack_file import CHUNK_BYTES, HEADER_START, Contents, Pack, PackedDataset, is_pack, write_pack
from msggan.data.sources import ImageDataset, find_images, open_source
from msggan.data.survey import SAMPLED
from msggan.errors import DataError, TrainingError, UsageError
from msggan.pack import make_pack, pack
from msggan.runs.checkpoint import newest_checkpoint
from msggan.tracking.metrics_log import TIMINGS, read_metrics
from orchestration.spec import default_name

RunProgram = Callable[..., Ended]
SMALL: dict[str, Any] = {"latent_size": 8, "batch_size": 4, "penalty_interval": 2, "num_samples": 4, "kimg": 0.08}
SKIPPED = {"broken.png": b"", "letter.jpg": b"Dear Sir"}


def packed(images: Path, out: Path, *, force: bool = False, **config: Any) -> Path:
    make_pack(str(images), str(out), PackOptions(**config, force=force))
    return out


def opened(path: Path, resolution: int = 8, background: str = "white", **options: Any) -> PackedDataset:
    return Pack(path).dataset(resolution=resolution, background=background, **options)


def trainer(data: Path, run_dir: Path, **options: Any) -> Trainer:
    return Trainer(TrainConfig(**{**SMALL, **options}), data=data, run_dir=run_dir, messages=io.StringIO())


def everything(run_dir: Path) -> tuple[Any, ...]:
    """What two equal runs have in common, byte for byte."""
    checkpoint, _ = newest_checkpoint(run_dir / "checkpoints")
    assert checkpoint is not None
    reports = read_metrics(run_dir / "metrics.jsonl")
    return (
        (run_dir / "config.json").read_bytes(),
        {name: tensor.tobytes() for name, tensor in load_file(run_dir / "generator.safetensors").items()},
        {name: tensor.numpy().tobytes() for name, tensor in checkpoint.tensors.items()},
        [{key: line[key] for key in line if key not in TIMINGS} for line in reports],
        {path.name: path.read_bytes() for path in (run_dir / "samples").iterdir()},
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_tiny_images(tmp_path_factory.mktemp("drawn") / "tiny")


@pytest.fixture(scope="module")
def tiny_pack(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 24 images at 8 px."""
    return packed(tiny, tmp_path_factory.mktemp("packed") / "tiny.safetensors")


# Training on it


def test_training_on_a_pack_equals_training_on_its_images(tiny: Path, tiny_pack: Path, tmp_path: Path) -> None:
    for name, data in (("folder", tiny), ("pack", tiny_pack)):
        trainer(data, tmp_path / name).run()
    assert everything(tmp_path / "pack") == everything(tmp_path / "folder")


def test_a_run_resumes_from_the_images_to_the_pack_and_back(tiny: Path, tiny_pack: Path, tmp_path: Path) -> None:
    trainer(tiny, tmp_path / "whole", checkpoint_kimg=1).run()
    for data, kimg in ((tiny, 0.024), (tiny_pack, 0.048), (tiny, 0.08)):
        trainer(data, tmp_path / "parts", checkpoint_kimg=1, kimg=kimg, sample_kimg=1, metric_kimg=1).run()
    ours, whole = (newest_checkpoint(tmp_path / name / "checkpoints")[0] for name in ("parts", "whole"))
    assert ours is not None
    assert whole is not None
    assert ours.images_seen == whole.images_seen == 80
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in ours.tensors.items())


def test_a_pack_has_the_order_the_holdout_split_and_the_fingerprint_of_its_images(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", 450, 6)
    shutil.copytree(folder, folder / "again")  # every image twice
    files = ImageDataset(find_images(folder), resolution=8)
    ours = opened(packed(folder, tmp_path / "x.safetensors", resolution=8))
    assert ours.held_out >= 64
    for name in ("fingerprint", "training", "held_out", "enlarged", "resolution"):
        assert getattr(ours, name) == getattr(files, name)
    assert ours.enlarged == 900
    assert torch.equal(ours.images(range(len(ours))), files.images(range(len(files))))
    assert torch.equal(ours.held_out_images(), files.held_out_images())


@pytest.fixture
def deep_images(tiny: Path, tmp_path: Path) -> Path:
    """24 images of 8 bits, and 8 of 12 bits in 16."""
    folder = Path(shutil.copytree(tiny, tmp_path / "deep"))
    for number in range(8):
        values = np.random.default_rng(number).integers(0, 4096, (8, 8), dtype=np.uint16)
        Image.fromarray(values).save(folder / f"deep {number}.png")
    return folder


WHITE_NOTE = "8 images of 16-bit or 32-bit integers: the value 4095 is white, and larger ones too."


def test_a_pack_holds_the_pixels_and_the_notes_of_images_of_more_than_8_bits(
    deep_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ImageDataset(find_images(deep_images), resolution=8)
    ours = opened(packed(deep_images, tmp_path / "x.safetensors"))
    assert torch.equal(ours.images(range(32)), files.images(range(32)))
    assert list(ours.notes) == files.notes == [WHITE_NOTE]
    assert WHITE_NOTE in capsys.readouterr().err


def test_resuming_reports_that_images_were_decoded_differently(deep_images: Path, tmp_path: Path) -> None:
    files = ImageDataset(find_images(deep_images), resolution=8)
    files.notes = []  # as a version that chose no white has left them
    write_pack(tmp_path / "old.safetensors", files, background="white")
    reported = []
    for kimg, data in ((0.02, tmp_path / "old.safetensors"), (0.04, deep_images), (0.06, deep_images)):
        ours = trainer(data, tmp_path / "run", kimg=kimg)
        ours.run()
        reported.append("decoded differently" in ours.progress.stream.getvalue())  # type: ignore[attr-defined]
    assert reported == [False, True, False]


def as_version_1(path: Path, out: Path) -> Path:
    """The same pack as the version before wrote it: no checksum per image, and one of the whole file."""
    tensors = load_file(path)
    contents = replace(Pack(path).contents, format_version=1)
    data = tensors["digests"].tobytes() + tensors["images"].tobytes()
    header = contents.header(sha256(contents.header("0" * 64) + data).hexdigest())
    out.write_bytes(header + data)
    return out


@pytest.mark.parametrize("version", [1, 2])
def test_a_pack_of_plain_images_has_the_header_of_its_version(tiny_pack: Path, tmp_path: Path, version: int) -> None:
    path = as_version_1(tiny_pack, tmp_path / "old.safetensors") if version == 1 else tiny_pack
    text = path.read_bytes()[8:].decode(errors="replace")
    assert text.startswith(
        f'{{"__metadata__":{{"format":"msggan-pack","format_version":"{version}","resolution":"8",'
        '"background":"white","images":"24","enlarged":"0","sha256":"'
    )
    checksums = '"checksums":{"dtype":"U8","shape":[24,32],"data_offsets":[768,1536]},'
    start = 1536 if version == 2 else 768
    assert text.split('"digests":')[1].startswith(
        '{"dtype":"U8","shape":[24,32],"data_offsets":[0,768]},'
        + (checksums if version == 2 else "")
        + f'"images":{{"dtype":"U8","shape":[24,3,8,8],"data_offsets":[{start},{start + 24 * 192}]}}}}'
    )


def test_a_pack_of_version_1_gives_the_same_images(tiny_pack: Path, tmp_path: Path) -> None:
    old, new = opened(as_version_1(tiny_pack, tmp_path / "old.safetensors")), opened(tiny_pack)
    assert torch.equal(old.images(range(24)), new.images(range(24)))
    assert old.fingerprint == new.fingerprint


def test_no_image_is_held_out_of_few(tiny_pack: Path) -> None:
    assert opened(tiny_pack).held_out_images().shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"resolution": 16}, "is a pack of --resolution 8, not 16."),
        ({"background": "black"}, "is a pack of --background white, not black."),
        (
            {"resolution": 4, "background": "#000000"},
            "is a pack of --resolution 8, not 4 and --background white, not #000000.",
        ),
        ({"fit": "pad"}, "is a pack of --fit crop, not pad."),
    ],
)
def test_other_options_than_the_packs_are_refused(
    tiny_pack: Path, tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(DataError) as refused:
        trainer(tiny_pack, tmp_path / "run", **options)
    assert refused.value.message == f"--data {tiny_pack}: {complaint}"
    assert "msggan-aml pack FOLDER OUT --resolution" in refused.value.hint
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_resolution_does_not_resume_with_the_pack(tiny: Path, tiny_pack: Path, tmp_path: Path) -> None:
    trainer(tiny, tmp_path / "run", resolution=4).run()
    with pytest.raises(DataError, match="--resolution 8, not 4"):
        trainer(tiny_pack, tmp_path / "run")


def test_another_notation_of_the_packs_background_is_accepted(tiny_pack: Path, tmp_path: Path) -> None:
    assert trainer(tiny_pack, tmp_path / "run", background="#FFffff").config.background == "#FFffff"


def test_a_pack_of_padded_images_trains_like_them_and_is_refused_for_cropped_ones(tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (16, 8 + number), (30 * number, 0, 200)).save(folder / f"{number}.png")
    path = packed(folder, tmp_path / "wide.safetensors", fit="pad")
    files = ImageDataset(find_images(folder), resolution=8, fit="pad")
    ours = trainer(path, tmp_path / "run")
    assert (ours.config.fit, Pack(path).contents.format_version, ours.dataset.enlarged) == ("pad", 3, 0)
    assert torch.equal(ours.dataset.images(range(8)), files.images(range(8)))
    with pytest.raises(DataError, match="is a pack of --fit pad, not crop"):
        trainer(path, tmp_path / "other", fit="crop")


def test_transparent_images_lie_on_the_packs_background(tmp_path: Path) -> None:
    folder = tmp_path / "clear"
    folder.mkdir()
    for grey in range(4):
        image = Image.new("RGBA", (8, 8), (grey, grey, grey, 0))
        image.paste((80 * grey, 0, 0, 255), (4, 0, 8, 8))
        image.save(folder / f"{grey}.png")
    path = packed(folder, tmp_path / "clear.safetensors", background="#102030")
    ours = trainer(path, tmp_path / "run")
    assert (ours.config.resolution, ours.config.background) == (8, "#102030")
    assert (ours.dataset.images([0, 3])[..., :3] == torch.tensor([0x10, 0x20, 0x30]).reshape(3, 1, 1)).all()


def test_the_resolution_of_the_pack_is_used_even_where_a_cpu_would_choose_less(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", 4, 70)
    path = packed(folder, tmp_path / "x.safetensors")
    assert trainer(path, tmp_path / "a").config.resolution == 64
    assert trainer(folder, tmp_path / "b").config.resolution == 32


def test_the_default_name_of_a_run_is_that_of_the_pack_without_its_suffix() -> None:
    assert default_name("data/flowers.safetensors") == default_name("data/flowers") == "flowers"


# Memory


class Blank(Dataset):
    """This many black images, made on demand."""

    def __init__(self, count: int, resolution: int) -> None:
        digests = b"".join(sorted(sha256(str(number).encode()).digest() for number in range(count)))
        super().__init__(np.frombuffer(digests, np.uint8).reshape(-1, 32), resolution=resolution, enlarged=0)

    def rows(self, numbers: Sequence[int]) -> np.ndarray:
        return np.zeros((len(numbers), 3, self.resolution, self.resolution), np.uint8)


def test_only_the_images_shown_of_a_large_pack_are_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    size = write_pack(path, Blank(400, 256), background="white").data_bytes
    assert size > 18 * CHUNK_BYTES
    tracemalloc.start()  # counts what Python and numpy allocate, and not what is mapped
    try:
        ours = opened(path, 256)
        for begin in range(0, 300, 4):
            ours.images(range(begin, begin + 4))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * CHUNK_BYTES
    assert isinstance(ours.mapped, np.memmap)
    assert not ours.mapped.flags.writeable


def test_changing_a_batch_does_not_change_the_pack(tiny_pack: Path) -> None:
    ours = opened(tiny_pack)
    before = ours.images(range(24))
    ours.images(range(24)).zero_()
    assert torch.equal(ours.images(range(24)), before)


# The file


def test_a_pack_is_a_plain_safetensors_file(tiny: Path, tiny_pack: Path) -> None:
    tensors = load_file(tiny_pack)
    assert {name: (tensor.shape, str(tensor.dtype)) for name, tensor in tensors.items()} == {
        "digests": ((24, 32), "uint8"),
        "checksums": ((24, 32), "uint8"),
        "images": ((24, 3, 8, 8), "uint8"),
    }
    content = {sha256(file.read_bytes()).digest(): np.asarray(Image.open(file)) for file in tiny.iterdir()}
    for digest, image in zip(tensors["digests"], tensors["images"], strict=True):
        np.testing.assert_array_equal(image.transpose(1, 2, 0), content[digest.tobytes()])
    about = Contents(resolution=8, background="white", images=24, enlarged=0)
    header = int.from_bytes(tiny_pack.read_bytes()[:8], "little")
    assert Pack(tiny_pack).contents == about
    assert header % 8 == 0
    assert tiny_pack.stat().st_size == 8 + header + about.data_bytes


def test_the_same_images_make_the_same_bytes_whatever_their_names_and_folder(
    tiny: Path, tiny_pack: Path, tmp_path: Path
) -> None:
    (tmp_path / "renamed" / "deep").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w") as archive:
        for number, file in enumerate(sorted(tiny.iterdir())):
            archive.write(file, file.name)
            shutil.copy(file, tmp_path / "renamed" / "deep" / f"{number * 7 % 24}.png")
    for images in (tiny, tmp_path / "renamed", tmp_path / "tiny.zip"):
        again = packed(images, tmp_path / f"{images.name}.safetensors")
        assert again.read_bytes() == tiny_pack.read_bytes()
    other = packed(tiny, tmp_path / "other.safetensors", background="black")
    assert other.read_bytes() != tiny_pack.read_bytes()


def test_images_past_the_memory_budget_are_packed_alike(tiny: Path, tiny_pack: Path, tmp_path: Path) -> None:
    for budget in (0, 5 * 3 * 8 * 8):
        dataset = ImageDataset(find_images(tiny), resolution=8, memory_budget_bytes=budget)
        write_pack(tmp_path / "again.safetensors", dataset, background="white")
        assert (tmp_path / "again.safetensors").read_bytes() == tiny_pack.read_bytes()


def test_packing_needs_neither_pytorch_nor_memory_for_all_images(tiny: Path, tmp_path: Path) -> None:
    large = Image.effect_noise((512, 512), 64)
    for number in range(60):
        large.rotate(number).save(tmp_path / f"{number}.png", compress_level=0)
    code = (
        "import sys, tracemalloc; from msggan import pack; from msggan.commands.verbs import PackOptions\n"
        "pack.MEMORY_BYTES = 2**20; from msggan.data import pack_file, sources; tracemalloc.start()\n"
        f"options, out = PackOptions(resolution=512, workers=1), {str(tmp_path / 'large.safetensors')!r}\n"
        f"print(pack.make_pack({str(tmp_path)!r}, out, options))\n"
        "print('torch' in sys.modules, tracemalloc.get_traced_memory()[1])"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], env=environment(), encoding="utf-8")
    result, measured = printed.splitlines()
    assert "'images': 60, 'bytes': 471" in result
    loaded, peak = measured.split()
    assert loaded == "False"
    assert int(peak) < 5 * CHUNK_BYTES < 60 * 3 * 512 * 512 // 2


def test_progress_counts_every_image_once_written_and_once_read(tmp_path: Path) -> None:
    path, reported = tmp_path / "x.safetensors", ([], [])  # type: ignore[var-annotated]
    write_pack(path, Blank(50, 256), background="white", progress=lambda *step: reported[0].append(step))
    Pack(path).verify(progress=lambda *step: reported[1].append(step))
    for steps in reported:
        assert len(steps) > 1
        assert steps == sorted(steps)
        assert steps[-1] == (50, 50)


def test_a_pack_is_known_by_its_beginning_or_its_name(tiny: Path, tiny_pack: Path, tmp_path: Path) -> None:
    renamed = shutil.copy(tiny_pack, tmp_path / "data")
    assert isinstance(open_source(renamed), Pack)
    assert is_pack(tiny_pack)
    assert not is_pack(tiny)
    assert not is_pack(tmp_path / "nothing.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    assert not is_pack(tmp_path / "folder.safetensors")


# Damage


def cut(content: bytes) -> bytes:
    return content[:-100]


def cut_in_the_header(content: bytes) -> bytes:
    return content[:200]


def lengthened(content: bytes) -> bytes:
    return content + b"\0"


def from_the_future(content: bytes) -> bytes:
    return content.replace(b'"format_version":"2"', b'"format_version":"9"')


def of_no_image(content: bytes) -> bytes:
    return Contents(8, "white", 0, 0).header("0" * 64)


def of_no_colour(content: bytes) -> bytes:
    return content.replace(b'"background":"white"', b'"background":"whitf"')


def empty(content: bytes) -> bytes:
    return b""


def foreign(content: bytes) -> bytes:
    return b"\x18" + bytes(7) + b'{"__metadata__":{"a":"b"}}'


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (cut, "is a damaged pack (it has "),
        (lengthened, "is a damaged pack (it has "),
        (cut_in_the_header, "is a damaged pack (its header cannot be read)."),
        (of_no_image, "is a damaged pack (its header contradicts itself)."),
        (of_no_colour, "is a damaged pack (its header cannot be read)."),
        (from_the_future, "is a pack of format version 9; this msggan reads 1 to 3."),
        (foreign, "is not a pack of images."),
        (empty, "is not a pack of images."),
    ],
)
def test_an_incomplete_or_foreign_file_is_reported_with_a_hint(
    tiny_pack: Path, tmp_path: Path, spoil: Callable[[bytes], bytes], complaint: str
) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(spoil(tiny_pack.read_bytes()))
    with pytest.raises(DataError) as refused:
        trainer(path, tmp_path / "run")
    assert refused.value.message.startswith(f"--data {path}: {complaint}")
    assert refused.value.hint
    assert not (tmp_path / "run").exists()


def flipped(path: Path, out: Path, offset: int) -> Path:
    """A copy of a file with one bit changed."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << offset % 8
    out.write_bytes(content)
    return out


def images_start(path: Path) -> int:
    return path.stat().st_size - 24 * 3 * 8 * 8


def test_a_flipped_bit_in_the_header_or_the_index_is_found_when_a_pack_is_opened(
    tiny_pack: Path, tmp_path: Path
) -> None:
    start = images_start(tiny_pack)
    for offset in [*range(8 + len(HEADER_START), 500), *range(500, start, 97), start - 1]:
        with pytest.raises(DataError, match=r"damaged|version"):
            opened(flipped(tiny_pack, tmp_path / "flipped.safetensors", offset))


def test_a_flipped_bit_anywhere_in_a_pack_of_version_1_is_found_when_it_is_opened(
    tiny_pack: Path, tmp_path: Path
) -> None:
    old = as_version_1(tiny_pack, tmp_path / "old.safetensors")
    for offset in [*range(8 + len(HEADER_START), old.stat().st_size, 97), old.stat().st_size - 1]:
        with pytest.raises(DataError, match=r"damaged|version"):
            opened(flipped(old, tmp_path / "flipped.safetensors", offset))


def test_opening_a_pack_reads_no_pixels_and_a_damaged_image_is_found_when_it_is_read(
    tiny_pack: Path, tmp_path: Path
) -> None:
    path = flipped(tiny_pack, tmp_path / "flipped.safetensors", tiny_pack.stat().st_size - 1)
    ours, whole = opened(path), opened(tiny_pack)
    assert np.array_equal(ours.rows(range(23)), whole.rows(range(23)))
    for _ in range(2):  # the second time too
        with pytest.raises(DataError) as refused:
            ours.rows([5, 23])
        assert refused.value.message == (
            f"--data {path}: is a damaged pack (the checksum of image 23 of 24 does not match)."
        )
        assert refused.value.hint == (
            f"Copy it again from where it was created, or pack the images again: msggan-aml pack FOLDER {path} --force"
        )


def test_verifying_a_pack_names_every_damaged_image(tiny_pack: Path, tmp_path: Path) -> None:
    Pack(tiny_pack).verify()
    path = tmp_path / "flipped.safetensors"
    flipped(flipped(tiny_pack, path, images_start(tiny_pack)), path, tiny_pack.stat().st_size - 1)
    with pytest.raises(DataError, match=r"the checksum of images 0, 23 of 24 does not match"):
        Pack(path).verify()
    with pytest.raises(DataError, match=r"images 0, 23 of 24"):  # and so does packing it
        packed(path, tmp_path / "again.safetensors")


def test_each_byte_of_an_image_is_verified(tiny_pack: Path, tmp_path: Path) -> None:
    start = images_start(tiny_pack)
    for offset in range(start, start + 3 * 192):
        with pytest.raises(DataError, match=f"image {(offset - start) // 192} of 24"):
            opened(flipped(tiny_pack, tmp_path / "flipped.safetensors", offset)).rows(range(24))


def test_a_run_ends_at_a_damaged_image_and_names_it(tiny_pack: Path, tmp_path: Path) -> None:
    message = r"flipped\.safetensors: is a damaged pack \(the checksum of image %s"
    path = flipped(tiny_pack, tmp_path / "flipped.safetensors", tiny_pack.stat().st_size - 1)
    with pytest.raises(DataError, match=message % "23 of 24"):  # it is among those that are looked at before a run
        trainer(path, tmp_path / "run")
    sampled = np.unique(np.linspace(0, 99, SAMPLED).astype(int))
    number = next(each for each in range(100) if each not in sampled)
    pack = packed(save_images(tmp_path / "images", 100, 4), tmp_path / "whole.safetensors")
    flipped(pack, path, pack.stat().st_size - 48 * (100 - number))
    with pytest.raises(TrainingError, match=message % f"{number} of 100"):
        trainer(path, tmp_path / "run", kimg=0.1).run()


# The command


def test_both_commands_make_the_same_pack(run_program: RunProgram, tmp_path: Path, tiny: Path) -> None:
    shutil.copytree(tiny, tmp_path / "images")
    for name, content in {**SKIPPED, "film.mp4": b""}.items():
        (tmp_path / "images" / name).write_bytes(content)
    args = ["--resolution", "4", "--background", "grey", "--workers", "2", "-o", "json"]
    ours = run_program("msggan-aml", "pack", "images", "deep/er/a.safetensors", *args)
    theirs = run_program("msggan.pack", "--data", "images", "--out", "b.safetensors", *args)
    content = (tmp_path / "deep" / "er" / "a.safetensors").read_bytes()
    assert content == (tmp_path / "b.safetensors").read_bytes()
    expected = {"images": 24, "bytes": len(content), "resolution": 4, "skipped": 3}
    assert ours.json == {"path": "deep/er/a.safetensors", **expected}
    assert theirs.json == {"path": "b.safetensors", **expected}
    for ended in (ours, theirs):
        assert ended.stderr.splitlines() == [
            "Reading 26 images",
            "Writing 24 images",
            "Skipped 1 file: 1 .mp4.",
            "Skipped 2 unreadable images: broken.png (empty); letter.jpg (not an image in a supported format).",
        ]
    assert Pack(tmp_path / "b.safetensors").contents == Contents(4, "grey", 24, 0)


def test_submit_trains_on_a_pack(run_program: RunProgram, tmp_path: Path, tiny_pack: Path) -> None:
    small = ["--latent-size", 8, "--batch-size", 4, "--kimg", "0.02"]
    ended = run_program("msggan-aml", "submit", "--data", tiny_pack, *small, "-o", "json")
    assert ended.exit_code == 0, ended.stderr
    assert (ended.json["name"], ended.json["state"]) == ("tiny", "completed")
    assert "24 images to train on at 8 px" in ended.stderr


def test_all_problems_are_reported_at_once_before_anything_is_read(run_program: RunProgram, tmp_path: Path) -> None:
    ended = run_program("msggan-aml", "pack", "nowhere", "x.npy", "--resolution", "7", "--workers", "x", "-o", "json")
    assert ended.exit_code == 2
    assert ended.json["error"]["message"].splitlines() == [
        "--workers x: is not a whole number.",
        "nowhere: not found.",
        "x.npy: must end in .safetensors, as x.npy.safetensors",
        "--resolution 7: must be a power of two; the nearest are 4 and 8.",
    ]
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_overwritten_only_with_force(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("mine")
    assert existing_problems(str(path), force=False) == [f"{path}: already exists. Use --force to overwrite it."]
    assert existing_problems(str(path), force=True) == []
    with pytest.raises(click.BadParameter) as raised:
        pack_file(str(tmp_path))
    assert raised.value.message == f"is a directory. Name the file to write: {tmp_path / 'images.safetensors'}"


def test_a_pack_needs_a_name(run_program: RunProgram, tiny_images: Path) -> None:
    ended = run_program("msggan.pack", "--data", tiny_images)
    assert ended.exit_code == 2
    assert "Error: --out is required. Name the file to write, which ends in .safetensors." in ended.stderr


def test_pack_options_are_passed_on_as_they_were_given() -> None:
    values: dict[str, Any] = {"resolution": "16", "background": "grey", "fit": "pad", "workers": 3, "force": True}
    options = parse_pack([], "x.safetensors", **values)
    assert options == PackOptions(resolution=16, background="grey", fit="pad", workers=3, force=True)
    given = "--resolution 16 --background grey --fit pad --workers 3 --force"
    assert argv_of(options) == given.split()
    assert argv_of(PackOptions()) == []
    with pytest.raises(UsageError):
        parse_pack(["Something else."], "x.safetensors", **values)


def test_help_says_what_the_default_resolution_is() -> None:
    help_text = " ".join(CliRunner().invoke(pack, ["--help"]).output.split())
    assert "Default: the images' own, at most 256." in help_text
    assert "Colour behind transparent pixels" in help_text


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (lambda path: path.mkdir(), "images: has no images."),
        (lambda path: save_images(path, 1, 8) and (path / "000.png").write_bytes(b""), "no readable image in images"),
    ],
)
def test_without_images_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[Path], object], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "images")
    with pytest.raises(DataError) as refused:
        packed(Path("images"), Path("x.safetensors"))
    assert refused.value.message.startswith(complaint)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_pack_is_not_packed_again(tiny_pack: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is already a pack, and undamaged") as refused:
        packed(tiny_pack, tmp_path / "x.safetensors")
    assert refused.value.hint == f"Train on it: msggan-aml submit --data {tiny_pack}"


def test_a_folder_that_cannot_be_written_is_reported_before_anything_is_decoded(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"x\.safetensors: cannot be written") as refused:
        packed(tiny, tmp_path / "file" / "x.safetensors")
    assert refused.value.hint == "Specify a file in a folder that you may write to."
    assert "Reading" not in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="limits are POSIX's")
def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", 8, 64)
    path = tmp_path / "x.safetensors"
    path.write_text("mine")
    args = command_line("msggan.pack", "--data", folder, "--out", path, "--force")
    limited = ["sh", "-c", 'ulimit -f 16 && exec "$@"', "sh", *args]  # no file beyond 16 blocks; the pack has 96 KiB
    ended = subprocess.run(
        limited, env=environment(PYTHONDONTWRITEBYTECODE="1"), capture_output=True, encoding="utf-8", check=False
    )
    assert ended.returncode == 2
    assert f"{path}: cannot be written (File too large)." in ended.stderr
    assert "Traceback" not in ended.stderr
    assert path.read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "x.safetensors"]
