"""The run folder keeps its configuration and refuses others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import Field, asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.builders import small_config
from torch import nn

from msggan.config import TrainConfig
from msggan.errors import CheckpointError, RunFolderError
from msggan.networks import Discriminator, Generator
from msggan.runs.folder import RunFolder, printout, weights_file


def prepared(path: Path, config: TrainConfig | None = None) -> RunFolder:
    folder = RunFolder(path)
    folder.prepare(config or small_config(), {"generator": Generator(2, 8)})
    return folder


NAMES = ["generator.safetensors", "snapshots/000010016.safetensors", "snapshots/000020000.safetensors", "x/1"]


@pytest.mark.parametrize(("at_kimg", "name"), [(10, NAMES[1]), (10.9, NAMES[1]), (20, NAMES[2]), (18.2, NAMES[2])])
def test_a_snapshot_is_found_by_its_thousands_of_images(at_kimg: float, name: str) -> None:
    assert weights_file(NAMES, at_kimg=at_kimg) == name


def test_weights_that_are_not_there_are_an_error_that_lists_what_is() -> None:
    with pytest.raises(CheckpointError, match=r"--at 15: .* Snapshots of this run: at 10\.016, 20 kimg\."):
        weights_file(NAMES, at_kimg=15)
    with pytest.raises(CheckpointError, match=r"none\.\nTrain with --snapshot-kimg"):
        weights_file(NAMES[:1], at_kimg=15)
    with pytest.raises(CheckpointError, match="no best weights yet"):
        weights_file(NAMES, best=True)


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "one"))
    assert str(folder) == str(tmp_path / "one")
    assert [path.relative_to(tmp_path).as_posix() for path in vars(folder).values()] == [
        "one",
        "one/config.json",
        "one/metrics.jsonl",
        "one/log.txt",
        "one/run.json",
        "one/run.lock",
        "one/samples",
        "one/checkpoints",
        "one/snapshots",
        "one/generator.safetensors",
        "one/generator_best.safetensors",
    ]


def test_reading_a_folder_writes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "one")
    assert folder.load_config() is None
    assert folder.continued(small_config()) is None
    assert not folder.path.exists()


def test_the_configuration_loads_equal(tmp_path: Path) -> None:
    config = small_config(g_lr=0.1 + 0.2, seed=2**31 - 1, mirror=False, background="#12ab9f", kimg=1e-3)
    assert prepared(tmp_path / "deep" / "one", config).load_config() == config


def test_the_configuration_is_plain_json_with_every_field(tmp_path: Path) -> None:
    config = small_config()
    values = json.loads(prepared(tmp_path, config).config.read_text())
    assert values == {"format_version": 1, **asdict(config)}


def test_preparing_writes_the_printouts_and_no_partial_file(tmp_path: Path) -> None:
    networks = {"generator": Generator(2, 8), "discriminator": Discriminator(2, 8)}
    RunFolder(tmp_path).prepare(small_config(), networks)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "discriminator_config.txt",
        "generator_config.txt",
    ]
    assert "to_rgb" in (tmp_path / "generator_config.txt").read_text()
    assert "from_rgb" in (tmp_path / "discriminator_config.txt").read_text()


def test_a_printout_has_the_number_of_parameters() -> None:
    """30 · 40 + 40 weights and biases."""
    assert printout(nn.Linear(30, 40)).endswith("\n\n1,240 parameters\n")


# Going on


def test_a_resumed_run_keeps_its_configuration(tmp_path: Path) -> None:
    config = small_config(seed=7)
    assert prepared(tmp_path, config).continued(TrainConfig()) == config


MAY_CHANGE = {
    "kimg": 2.0,
    "micro_batch": 2,
    "sample_kimg": 0.5,
    "metric_kimg": 0.25,
    "checkpoint_kimg": 0.125,
    "snapshot_kimg": 0.5,
    "best_by": "swd",
    "num_samples": 4,
}


@pytest.mark.parametrize("name", MAY_CHANGE)
def test_fields_that_may_change_are_taken_from_the_new_command(tmp_path: Path, name: str) -> None:
    config, changed = small_config(), {name: MAY_CHANGE[name]}
    assert prepared(tmp_path, config).continued(TrainConfig(**changed)) == replace(config, **changed)


OTHERS = {
    "recipe": "auto",
    "resolution": 16,
    "latent_size": 16,
    "batch_size": 8,
    "loss": "hinge",
    "g_lr": 0.5,
    "d_lr": 0.5,
    "beta1": 0.5,
    "beta2": 0.5,
    "r1_gamma": 0.5,
    "r2_gamma": 0.5,
    "penalty_interval": 9,
    "ema_half_life_kimg": 9.0,
    "ema_ramp": 0.5,
    "schedule_kimg": 9.0,
    "warm_up_kimg": 0.5,
    "lr_final": 0.5,
    "gamma_final": 0.5,
    "beta2_final": 0.5,
    "ema_half_life_final_kimg": 9.0,
    "stddev_group": 2,
    "equalized": False,
    "resampling": "filtered",
    "join": "simple",
    "augment": "none",
    "augment_strength": 0.0,
    "mirror": False,
    "background": "black",
    "fit": "pad",
    "init": "faces",
    "labels": "folders",
    "precision": "float32",
    "seed": 9,
}


def test_every_field_either_may_change_or_may_not() -> None:
    assert {spec.name for spec in fields(TrainConfig)} == {*MAY_CHANGE, *OTHERS}


@pytest.mark.parametrize("name", OTHERS)
def test_another_configuration_is_refused_naming_the_option_and_both_values(tmp_path: Path, name: str) -> None:
    config = small_config(augment="fixed")
    folder = prepared(tmp_path, config)
    before = folder.config.read_bytes()
    with pytest.raises(RunFolderError) as refused:
        folder.continued(TrainConfig(**{name: OTHERS[name]}))
    flag = "--" + name.replace("_", "-")
    assert f"{flag} is {getattr(config, name)}, not {OTHERS[name]}" in refused.value.message
    assert refused.value.exit_code == 2
    assert folder.config.read_bytes() == before


def test_all_differences_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"--latent-size is 8, not 16, .*--seed is 0, not 3\."):
        prepared(tmp_path).continued(TrainConfig(seed=3, latent_size=16, kimg=5.0))


# Folders that cannot be used


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b"\xff\xfe",
        b'{"format_version": 1, "resolution": [32]}',
        b'{"no_such_field": 1}',
    ],
)
def test_a_configuration_that_msggan_did_not_write_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_bytes(content)
    with pytest.raises(
        RunFolderError, match=r"config\.json: (is not a configuration written by msggan|cannot be read)"
    ):
        folder.load_config()
    assert folder.config.read_bytes() == content


@pytest.mark.parametrize("value", [33, "32", [32]])
def test_an_invalid_stored_value_is_reported(tmp_path: Path, value: object) -> None:
    folder = stored(tmp_path, {**asdict(small_config()), "resolution": value})
    with pytest.raises(RunFolderError, match=r"config\.json: cannot be read: --resolution .+: must be "):
        folder.load_config()


def stored(path: Path, values: Mapping[str, object]) -> RunFolder:
    folder = RunFolder(path)
    folder.config.write_text(json.dumps({"format_version": 1, **values}))
    return folder


@pytest.mark.parametrize("name", [spec.name for spec in fields(TrainConfig) if spec.metadata["absent"] is None])
@pytest.mark.parametrize("as_null", [False, True])
def test_a_missing_field_that_all_versions_have_is_reported_by_name(tmp_path: Path, name: str, as_null: bool) -> None:
    values = asdict(small_config())
    values[name] = None
    folder = stored(tmp_path, values if as_null else {key: value for key, value in values.items() if key != name})
    with pytest.raises(RunFolderError) as refused:
        folder.load_config()
    assert refused.value.message == f"{folder.config}: cannot be read: missing field '{name}'."


@pytest.mark.parametrize("spec", fields(TrainConfig), ids=lambda spec: str(spec.name))
def test_a_field_that_an_older_version_did_not_have_gets_the_value_that_version_behaved_as(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: Field[Any]
) -> None:
    config = small_config()
    before = getattr(config, spec.name)
    monkeypatch.setattr(spec, "metadata", {**spec.metadata, "absent": before})
    older = {key: value for key, value in asdict(config).items() if key != spec.name}
    assert stored(tmp_path, older).load_config() == config


@given(
    st.dictionaries(st.text().filter(lambda name: name not in OTHERS.keys() | MAY_CHANGE), st.integers(), min_size=1)
)
def test_fields_of_a_newer_version_are_named(tmp_path_factory: pytest.TempPathFactory, more: dict[str, int]) -> None:
    assume("format_version" not in more)
    folder = stored(tmp_path_factory.getbasetemp(), {**asdict(small_config()), **more})
    with pytest.raises(RunFolderError) as refused:
        folder.load_config()
    names = ", ".join(map(repr, more))
    assert (
        refused.value.message == f"{folder.config}: cannot be read: unknown field {names}, written by a newer msggan."
    )


def test_a_configuration_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    folder.config.write_text(json.dumps({**json.loads(folder.config.read_text()), "format_version": 2}))
    with pytest.raises(RunFolderError, match="format 2, this one has 1"):
        folder.load_config()


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_mutated_configurations_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = RunFolder(tmp_path_factory.getbasetemp() / "mutated")
    content = bytearray(json.dumps({"format_version": 1, **asdict(small_config())}, indent=2).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    folder.path.mkdir(exist_ok=True)
    folder.config.write_bytes(content)
    try:
        assert isinstance(folder.load_config(), TrainConfig)
    except RunFolderError:
        assert folder.config.read_bytes() == content


@pytest.mark.parametrize("below", ["file", "file/one", "file/one/two"])
def test_a_path_below_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("somebody's")
    with pytest.raises(RunFolderError, match="cannot be written"):
        prepared(tmp_path / below)
    assert (tmp_path / "file").read_text() == "somebody's"
