"""Do options say all that a configuration and a place hold, and are all wrong ones reported together?"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from support.configurations import configs

from msggan.commands.options import (
    Hardware,
    data_problems,
    from_argv,
    hardware_problems,
    parse_with,
    to_argv,
    train_options,
)
from msggan.commands.program import asked_for_json
from msggan.config import TrainConfig, field_types, flag
from msggan.errors import UsageError
from msggan.losses import LOSSES


@click.command()
@train_options
def command(**texts: Any) -> None:
    click.echo(repr(sorted((name, text) for name, text in texts.items() if text is not None)))


@given(configs())
def test_a_configuration_survives_its_argument_vector(config: TrainConfig) -> None:
    assert from_argv(to_argv(config)) == config


@given(configs())
def test_only_what_was_said_is_written_in_the_order_of_the_fields(config: TrainConfig) -> None:
    names = [spec.name for spec in fields(TrainConfig) if getattr(config, spec.name) is not None]
    flags = [word.replace("--no-", "--") for word in to_argv(config) if word.startswith("--")]
    assert flags == [flag(name) for name in names]


def test_an_argument_vector_reads_as_a_person_would_write_it() -> None:
    config = TrainConfig(resolution=32, kimg=20, g_lr=1e-05, mirror=False, equalized=True, background="#00ff00")
    words = "--resolution 32 --kimg 20.0 --g-lr 1e-05 --equalized --no-mirror --background #00ff00"
    assert to_argv(config) == words.split()


def test_nothing_said_is_an_empty_argument_vector() -> None:
    assert to_argv(TrainConfig()) == []
    assert from_argv([]) == TrainConfig()


def test_click_hands_on_raw_texts_and_only_what_was_said() -> None:
    result = CliRunner().invoke(command, ["--kimg", "long", "--seed", "-1", "--no-mirror"])
    assert result.output.strip() == repr([("kimg", "long"), ("mirror", False), ("seed", "-1")])


def test_every_field_has_a_flag_with_its_help_choices_range_and_default() -> None:
    text = " ".join(CliRunner().invoke(command, ["--help"], terminal_width=1000).output.split())
    for spec in fields(TrainConfig):
        assert flag(spec.name) in text
        assert spec.metadata["help"] in text
        if spec.metadata["choices"]:
            assert f"{flag(spec.name)} {'|'.join(spec.metadata['choices'])} " in text
        if spec.metadata["range"]:
            assert str(spec.metadata["range"]) in text
        if field_types()[spec.name] is bool:
            assert f"{flag(spec.name)} / {flag('no_' + spec.name)}" in text
    assert "thousands of images shown to the discriminator. [more than 0; default: 100]" in text


def test_help_tells_what_the_other_recipe_does() -> None:
    text = " ".join(CliRunner().invoke(command, ["--help"], terminal_width=1000).output.split())
    assert "; bmsg: relativistic-hinge]" in text


@pytest.mark.parametrize("argv", [["--resolutio", "8"], ["extra"], ["--kimg"], ["--kimg", "long"], ["--help"]], ids=str)
def test_an_argument_vector_that_cannot_be_read_is_a_usage_error(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        from_argv(argv)


def test_complaints_found_elsewhere_come_with_those_about_the_configuration() -> None:
    with pytest.raises(UsageError) as raised:
        parse_with(["--data: is missing."], {"kimg": "0", "loss": "x"})
    assert raised.value.problems == (
        "--data: is missing.",
        "--kimg 0: must be more than 0.",
        f"--loss x: is not one of {', '.join(LOSSES)}.",
    )


def test_complaints_found_elsewhere_are_enough() -> None:
    with pytest.raises(UsageError):
        parse_with(["--data: is missing."], {})


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps"])
@pytest.mark.parametrize("workers", ["0", "8", "256"])
def test_good_places_have_no_problems(device: str, workers: str) -> None:
    assert hardware_problems(device, workers) == []


@pytest.mark.parametrize(
    ("device", "workers", "complaint"),
    [
        ("gpu", "0", "--device gpu: is not one of auto, cpu, cuda, cuda:N, mps."),
        ("cuda:N", "0", "--device cuda:N: is not one of"),
        ("cuda:-1", "0", "--device cuda:-1: is not one of"),
        ("", "0", "--device : is not one of"),
        ("cpu", "two", "--workers two: is not a whole number."),
        ("cpu", "-1", "--workers -1: must be 0 or more, at most 256."),
        ("cpu", "9" * 5000, "must be 0 or more, at most 256."),
    ],
)
def test_a_bad_place_is_named(device: str, workers: str, complaint: str) -> None:
    (problem,) = hardware_problems(device, workers)
    assert complaint in problem


@pytest.mark.parametrize(
    ("place", "argv"),
    [
        (Hardware(), []),
        (Hardware("cuda:1"), ["--device", "cuda:1"]),
        (Hardware("cpu", 3), ["--device", "cpu", "--workers", "3"]),
    ],
)
def test_a_place_says_only_what_is_not_by_default(place: Hardware, argv: list[str]) -> None:
    assert place.to_argv() == argv


def test_a_bad_place_cannot_be_made() -> None:
    with pytest.raises(UsageError, match=r"(?s)--device gpu.*--workers -1"):
        Hardware("gpu", -1)


def test_a_missing_folder_is_named_with_those_beside_it(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    (tmp_path / "other").mkdir()
    (problem,) = data_problems(f"{tmp_path}/flowrs/")
    assert problem == f"--data {tmp_path}/flowrs/: no such file or folder. Did you mean {tmp_path}/flowers?"
    assert data_problems(str(tmp_path / "flowers")) == []


@pytest.mark.parametrize("data", [None, ""])
def test_missing_data_is_said_to_be_missing(data: str | None) -> None:
    assert data_problems(data) == ["--data: is missing. Name a folder, a zip or a pack of images."]


@pytest.mark.parametrize("data", ["/nowhere/at/all", "x" * 5000, "a\0b"], ids=["deep", "long", "zero"])
def test_a_path_that_cannot_be_is_missing_too(data: str) -> None:
    (problem,) = data_problems(data)
    assert "no such file or folder." in problem


@pytest.mark.parametrize(
    ("words", "variable", "json"),
    [
        ([], "", False),
        ([], "json", True),
        (["-o", "json"], "", True),
        (["-ojson"], "text", True),
        (["--output", "json"], "", True),
        (["--output=json", "--nonsense"], "", True),
        (["-o", "text"], "json", False),
        (["-o", "json", "-o", "text"], "", False),
        (["-o"], "json", False),
    ],
)
def test_json_is_seen_to_be_asked_for_before_options_are_read(words: list[str], variable: str, json: bool) -> None:
    assert asked_for_json(words, {"MSGGAN_OUTPUT": variable}) is json
