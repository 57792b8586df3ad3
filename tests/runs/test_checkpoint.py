"""Checkpoints are loaded whole or not at all, whatever happened to their files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.builders import latents_at, reals_at, small_config, training_state
from torch import Tensor

from msggan import load_generator
from msggan.errors import CheckpointError
from msggan.networks import Generator
from msggan.runs.checkpoint import (
    CHECKPOINTS_KEPT,
    CheckpointWriter,
    check_shapes,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    save_generator,
)
from msggan.runs.files import write_whole
from msggan.runs.folder import RunFolder
from msggan.steps import TrainingState

STATE = {"seconds": 1.25, "interval": {"steps": 3, "d_loss": 0.1}, "data_fingerprint": "ab" * 32, "note": "größer"}
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(-1.5, dtype=torch.float64), "c": torch.zeros(0)}


def save(folder: Path, images_seen: int) -> Path:
    return save_checkpoint(folder, images_seen, {**TENSORS, "images": torch.tensor(images_seen)}, STATE)


def save_run(folder: Path, *positions: int) -> list[Path]:
    """Checkpoints in this order; returns their JSON files."""
    return [save(folder, position) for position in positions]


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pair(*positions: int) -> list[str]:
    return sorted(f"{position:09d}.{suffix}" for position in positions for suffix in ("json", "safetensors"))


def trained() -> TrainingState:
    ours = training_state(precision="float32")
    for step in range(2):
        ours.step(reals_at(ours.config, step), latents_at(ours.config, step))
    return ours


# Round trips


def test_a_checkpoint_loads_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, 8)
    checkpoint, damaged = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert damaged == []
    assert checkpoint.images_seen == 8
    assert checkpoint.state == STATE
    for name, tensor in TENSORS.items():
        assert checkpoint.tensors[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.tensors[name], tensor)


def test_networks_and_adam_moments_load_bit_for_bit(tmp_path: Path) -> None:
    ours, again = trained(), training_state(precision="float32")
    save_checkpoint(tmp_path, ours.images_seen, ours.tensors(), {})
    checkpoint, _ = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    again.load(checkpoint.tensors, images_seen=checkpoint.images_seen)
    expected = ours.tensors()
    assert again.tensors().keys() == expected.keys()
    assert {name.split(".")[-1] for name in expected} >= {"exp_avg", "exp_avg_sq", "step"}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.tensors().items())
    assert again.images_seen == ours.images_seen


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0, 1e-45])
def test_unusual_numbers_load_too(tmp_path: Path, value: float) -> None:
    odd = torch.full((3,), value)
    save_checkpoint(tmp_path, 1, {"odd": odd}, {})
    checkpoint, _ = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert torch.equal(checkpoint.tensors["odd"].view(torch.int32), odd.view(torch.int32))


def test_no_partial_file_is_left_beside_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 8)
    assert kept(tmp_path) == pair(8)


def test_saving_again_at_the_same_position_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 8, {"a": torch.zeros(3)}, {})
    save_checkpoint(tmp_path, 8, {"a": torch.ones(3)}, {})
    checkpoint, _ = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.tensors["a"].eq(1).all()


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_checkpoints_has_none(tmp_path: Path, exists: bool) -> None:
    assert newest_checkpoint(tmp_path if exists else tmp_path / "none") == (None, [])


# Damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-10] ^= 4
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def make_foreign(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def swap_in_the_one_before(path: Path) -> None:
    shutil.copy(path.with_stem(f"{8:09d}"), path)


DAMAGES = (truncate, empty, flip_a_bit, make_foreign, make_a_folder, lengthen)


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        *[(".json", damage) for damage in DAMAGES if damage is not lengthen],
        *[(".safetensors", damage) for damage in (*DAMAGES, remove, swap_in_the_one_before)],
    ],
)
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(
    tmp_path: Path, suffix: str, damage: Callable[[Path], None]
) -> None:
    _, newest = save_run(tmp_path, 8, 16)
    damage(newest.with_suffix(suffix))
    checkpoint, damaged = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.images_seen == 8
    assert checkpoint.tensors["images"].item() == 8
    assert [path for path, _ in damaged] == [newest]
    (reason,) = [reason for _, reason in damaged]
    assert reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    "content",
    [
        b"null",
        b"0",
        b'"text"',
        b"[]",
        b"{}",
        b"true",
        b'{"sha256": null}',
        b"\xff\xfe",
        b'{"format_version": 1}',
        b"[" * 100_000,
        b"9" * 10_000,
    ],
)
def test_json_that_is_not_a_checkpoint_is_skipped(tmp_path: Path, content: bytes) -> None:
    save(tmp_path, 8)
    foreign = tmp_path / "000000016.json"
    foreign.write_bytes(content)
    checkpoint, damaged = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.images_seen == 8
    assert [path for path, _ in damaged] == [foreign]


def test_an_edited_json_file_is_skipped(tmp_path: Path) -> None:
    path = save(tmp_path, 8)
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "images_seen": 16}))
    checkpoint, damaged = newest_checkpoint(tmp_path)
    assert checkpoint is None
    assert damaged == [(path, "its checksum does not match")]


def test_a_checkpoint_of_another_format_is_skipped(tmp_path: Path) -> None:
    """Whole, with a checksum that matches: what it holds may mean something else."""
    path = save(tmp_path, 8)
    body = {**json.loads(path.read_text()), "format_version": 2}
    del body["sha256"]
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**body, "sha256": checksum}))
    assert newest_checkpoint(tmp_path) == (None, [(path, "it has format version 2")])


def test_a_checkpoint_that_does_not_fit_into_memory_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run would go on from an older one, and replace the good one with its own."""
    save_run(tmp_path, 8, 16)

    def refuse(path: Path) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path))

    monkeypatch.setattr("msggan.runs.checkpoint.load_file", refuse)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        newest_checkpoint(tmp_path)


def test_several_damaged_ones_are_all_named_newest_first(tmp_path: Path) -> None:
    paths = save_run(tmp_path, 8, 16, 24)
    truncate(paths[1])
    empty(paths[2].with_suffix(".safetensors"))
    checkpoint, damaged = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.images_seen == 8
    assert [path for path, _ in damaged] == [paths[2], paths[1]]


def test_tensors_without_their_json_file_do_not_count(tmp_path: Path) -> None:
    """The JSON file is written last: a process that died before left no checkpoint, and no damaged one either."""
    _, newest = save_run(tmp_path, 8, 16)
    newest.unlink()
    checkpoint, damaged = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.images_seen == 8
    assert damaged == []


@pytest.mark.parametrize("name", ["000000016.json.part", "000000016.safetensors.part", "notes.txt"])
def test_partial_files_are_not_checkpoints(tmp_path: Path, name: str) -> None:
    save(tmp_path, 8)
    (tmp_path / name).write_bytes(b'{"images_seen": 16')
    checkpoint, damaged = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.images_seen == 8
    assert damaged == []


def mutated(content: bytes, chance: random.Random) -> bytes:
    """One of: bits flipped, a slice cut out, doubled or overwritten, the end cut off."""
    changed = bytearray(content)
    start = chance.randrange(len(changed))
    end = min(len(changed), start + chance.randrange(1, 40))
    match chance.randrange(5):
        case 0:
            changed[start] ^= 1 << chance.randrange(8)
        case 1:
            del changed[start:end]
        case 2:
            changed[start:start] = changed[start:end]
        case 3:
            changed[start:end] = chance.randbytes(end - start)
        case _:
            del changed[start:]
    return bytes(changed)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_mutated_bytes_load_identically_or_are_refused(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path, 8)
    whole, _ = newest_checkpoint(tmp_path)
    assert whole is not None
    target = path.with_suffix(suffix)
    content, chance = target.read_bytes(), random.Random(0)  # noqa: S311 - the same damage each time
    refused = 0
    for _ in range(400):
        target.write_bytes(mutated(content, chance))
        checkpoint, damaged = newest_checkpoint(tmp_path)
        if checkpoint is None:
            assert [one.path for one in damaged] == [path]
            refused += 1
        else:
            assert checkpoint.state == whole.state
            assert checkpoint.images_seen == whole.images_seen
            assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in checkpoint.tensors.items())
    assert refused > 300


# Pruning


def test_pruning_keeps_the_three_latest(tmp_path: Path) -> None:
    save_run(tmp_path, 8, 16, 24, 32, 40)
    prune_checkpoints(tmp_path, newest=40)
    assert CHECKPOINTS_KEPT == 3
    assert kept(tmp_path) == pair(24, 32, 40)


def test_pruning_never_touches_one_that_is_newer(tmp_path: Path) -> None:
    """A damaged newer one may still be of use to a person; and it does not push out good ones."""
    save_run(tmp_path, 8, 16, 24, 32, 400, 800)
    prune_checkpoints(tmp_path, newest=32)
    assert kept(tmp_path) == pair(16, 24, 32, 400, 800)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_pruning_keeps_up_to_three(tmp_path: Path, count: int) -> None:
    positions = range(8, 8 * (count + 1), 8)
    save_run(tmp_path, *positions)
    prune_checkpoints(tmp_path, newest=1000)
    assert kept(tmp_path) == pair(*positions)


def test_pruning_removes_tensors_whose_json_file_is_missing(tmp_path: Path) -> None:
    paths = save_run(tmp_path, 8, 16, 24, 32)
    paths[0].unlink()
    prune_checkpoints(tmp_path, newest=32)
    assert kept(tmp_path) == pair(16, 24, 32)


@pytest.mark.parametrize("name", ["notes.txt", "2024-05-01 notes.txt", "1st.json", "000000030.safetensors.part", "7"])
def test_pruning_counts_and_touches_checkpoints_only(tmp_path: Path, name: str) -> None:
    save_run(tmp_path, 8, 16, 24, 32)
    (tmp_path / name).write_text("somebody's")
    prune_checkpoints(tmp_path, newest=32)
    assert set(pair(16, 24, 32)) <= set(kept(tmp_path))
    assert not set(pair(8)) & set(kept(tmp_path))
    if name.endswith(".part"):  # half a file of a process that died
        assert not (tmp_path / name).exists()
    else:
        assert (tmp_path / name).read_text() == "somebody's"


def test_pruning_that_dies_in_between_leaves_no_checkpoint_without_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(tmp_path, 8, 16, 24, 32)
    unlink = Path.unlink

    def unlink_one(path: Path, *, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", unlink_one)
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoints(tmp_path, newest=32)
    assert kept(tmp_path) == sorted([*pair(16, 24, 32), "000000008.safetensors"])


# Files at once


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: save(folder, 8),
        lambda folder: save_generator(folder / "generator.safetensors", TENSORS, {}),
        lambda folder: write_whole(folder / "config.json", b"content"),
    ],
    ids=["checkpoint", "generator", "file"],
)
def test_all_of_a_file_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    """What the operating system is asked for, in order: a power cut leaves a name with content, or no name."""
    synced: dict[int, int] = {}  # by inode: the size that has reached the disk
    named = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_size

    def recorded_replace(source: Path, target: Path) -> None:
        assert synced.get(source.stat().st_ino) == source.stat().st_size, target.name
        replace(source, target)
        named.append(target.name)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write(tmp_path)
    assert sorted(named) == kept(tmp_path) != []


def test_a_file_is_replaced_atomically_and_no_other_is_left(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content in (b"old", b"new and longer", b""):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert kept(tmp_path) == ["config.json"]


# The generator alone


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    config = small_config(precision="float32", latent_size=16)
    network = training_state(precision="float32", latent_size=16).ema
    save_generator(tmp_path / "generator.safetensors", network.state_dict(), asdict(config))
    return tmp_path


@pytest.mark.parametrize("inside", ["", "generator.safetensors"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_generator_loads_from_its_run_folder_or_file(
    run_folder: Path, inside: str, kind: Callable[[Path], str | Path]
) -> None:
    expected = training_state(precision="float32", latent_size=16).ema
    ours = load_generator(kind(run_folder / inside))
    assert not ours.training
    assert (ours.depth, ours.latent_size, ours.equalized) == (2, 16, True)
    assert all(torch.equal(weight, expected.state_dict()[name]) for name, weight in ours.state_dict().items())


@pytest.mark.parametrize(("resolution", "depth"), [(4, 1), (8, 2), (32, 4), (64, 5)])
@pytest.mark.parametrize(("equalized", "resampling"), [(True, "filtered"), (False, "nearest")])
def test_a_generator_of_any_shape_loads(
    tmp_path: Path, resolution: int, depth: int, equalized: bool, resampling: str
) -> None:
    path = tmp_path / "generator.safetensors"
    config = small_config(resolution=resolution, equalized=equalized, resampling=resampling, precision="float32")
    save_generator(path, Generator(depth, 8, equalized=equalized).state_dict(), asdict(config))
    ours = load_generator(path)
    assert (ours.depth, ours.equalized, ours.resampling) == (depth, equalized, resampling)


def test_the_error_for_a_run_without_weights_has_the_time_of_the_first_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(asdict(small_config(checkpoint_kimg=2.5))))
    with pytest.raises(CheckpointError) as raised:
        load_generator(tmp_path)
    assert raised.value.message == f"{tmp_path}: has no weights yet."
    assert raised.value.hint.startswith("The first checkpoint is written at 2.5 kimg, or when training ends.")
    assert raised.value.hint.endswith(f"msggan-aml status {tmp_path}")


@pytest.mark.parametrize("config", ["", "{}", "[]", '{"checkpoint_kimg": "soon"}', "[" * 100_000])
def test_a_run_whose_configuration_is_damaged_has_no_weights_yet_either(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"has no weights yet\.\nThe first checkpoint writes them\."):
        load_generator(tmp_path)


def test_other_folders_and_missing_files_are_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a run folder[\s\S]*Specify a run folder"):
        load_generator(tmp_path)
    with pytest.raises(CheckpointError, match=r"No such file[\s\S]*Specify a run folder"):
        load_generator(tmp_path / "missing")


def test_other_tensors_and_newer_formats_have_their_own_errors(run_folder: Path) -> None:
    path, tensors = run_folder / "generator.safetensors", Generator(2, 16).state_dict()
    save_file(tensors, path, {"format_version": "1"})  # as a checkpoint is
    with pytest.raises(CheckpointError, match="is not a generator saved by msggan"):
        load_generator(path)
    save_file(tensors, path, {"format_version": "2", "config": "of another kind"})
    with pytest.raises(CheckpointError, match=r"another version of msggan \(format 2, this one has 1\)"):
        load_generator(path)


@pytest.mark.parametrize("damage", [truncate, empty, make_foreign, make_a_folder])
def test_damaged_weights_are_refused(run_folder: Path, damage: Callable[[Path], None]) -> None:
    damage(run_folder / "generator.safetensors")
    with pytest.raises(CheckpointError, match=r"generator\.safetensors"):
        load_generator(run_folder / "generator.safetensors")


def rewritten(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> None:
    save_file(tensors, path, metadata)


CONFIG = {"resolution": 8, "latent_size": 16, "equalized": True}


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"format_version": "1", "config": "not json"},
        {"format_version": "1", "config": "null"},
        {"format_version": "1", "config": "[]"},
        {"format_version": "1", "config": "{}"},
        {"format_version": "1", "config": json.dumps({**CONFIG, "resolution": "large"})},
        {"format_version": "1", "config": json.dumps({**CONFIG, "resolution": 2})},
        {"format_version": "1", "config": json.dumps({**CONFIG, "latent_size": 15})},
        {"format_version": "1", "config": json.dumps({**CONFIG, "latent_size": None})},
        {"format_version": "1", "config": json.dumps({"latent_size": 16, "equalized": True})},
        {"format_version": "1", "config": json.dumps({**CONFIG, "resolution": 16})},
        {"format_version": "1", "config": json.dumps({**CONFIG, "latent_size": 32})},
        {"format_version": "99", "config": json.dumps(CONFIG)},
    ],
)
def test_weights_with_a_foreign_configuration_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "generator.safetensors"
    rewritten(path, Generator(2, 16).state_dict(), metadata)
    with pytest.raises(CheckpointError, match=r"generator\.safetensors"):
        load_generator(path)


@pytest.mark.parametrize("name", CONFIG)
def test_a_generator_without_a_field_that_it_needs_is_refused_by_the_fields_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "generator.safetensors"
    config = {key: value for key, value in asdict(small_config(latent_size=16)).items() if key != name}
    save_generator(path, Generator(2, 16).state_dict(), config)
    with pytest.raises(CheckpointError) as refused:
        load_generator(path)
    assert refused.value.message == f"{path}: its configuration cannot be read: missing field '{name}'."


def test_a_generator_of_a_newer_version_is_refused_by_the_name_of_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    save_generator(path, Generator(2, 16).state_dict(), {**asdict(small_config(latent_size=16)), "attention": True})
    with pytest.raises(
        CheckpointError, match=r"cannot be read: unknown field 'attention', written by a newer msggan\.\nUse the"
    ):
        load_generator(path)


def test_a_generators_file_never_fails_in_another_way_however_its_bytes_change(run_folder: Path) -> None:
    """There is no checksum here: what still is a file of weights of our shapes may load."""
    path = run_folder / "generator.safetensors"
    content, chance = path.read_bytes(), random.Random(1)  # noqa: S311 - the same damage each time
    header = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for _ in range(300):
        path.write_bytes(mutated(content[:header], chance) + content[header:])
        try:
            assert isinstance(load_generator(path), Generator)
        except CheckpointError:
            refused += 1
    assert refused > 200


def test_shapes_are_compared_by_name() -> None:
    expected = {"a": torch.ones(2, 3), "b": torch.tensor(1)}
    check_shapes("x", expected, {"a": torch.zeros(2, 3), "b": torch.tensor(0)})
    for wrong, reason in (
        ({"a": torch.zeros(2, 3)}, "x: tensor b is missing"),
        ({"a": torch.zeros(2, 3), "b": torch.tensor(0), "c": torch.tensor(0)}, "x: unknown tensor c"),
        ({"a": torch.zeros(3, 2), "b": torch.tensor(0)}, r"x: tensor a has shape \(3, 2\), not \(2, 3\)"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            check_shapes("x", expected, wrong)


# Writing in the background


def test_a_checkpoint_does_not_contain_later_changes(tmp_path: Path) -> None:
    writer = CheckpointWriter(RunFolder(tmp_path), may_write=lambda: None)
    weights = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    writer.save(8, {"ema.weight": weights}, {"note": 1}, config={})
    weights.zero_()
    writer.finish()
    checkpoint, _ = newest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.state == {"note": 1}
    assert torch.equal(checkpoint.tensors["ema.weight"], torch.arange(24.0).view(1, 2, 3, 4))


def test_an_error_of_the_writer_is_raised_once_by_its_next_call(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("A file where the folder is to be.")
    writer = CheckpointWriter(RunFolder(tmp_path), may_write=lambda: None)
    writer.save(8, {"ema.weight": torch.zeros(3)}, {}, config={})
    writer.wait()
    with pytest.raises(OSError, match="checkpoints"):
        writer.save(16, {"ema.weight": torch.zeros(3)}, {}, config={})
    writer.finish()
