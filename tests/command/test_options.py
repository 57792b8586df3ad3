"""Options: a round trip for configurations and hardware, all problems reported at once, sections in the help."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from support.configurations import configs

from msggan.commands.options import (
    CollectingCommand,
    Hardware,
    Number,
    OneOf,
    argv_of,
    data_problems,
    from_argv,
    option,
    options_of,
    parse_with,
    to_argv,
    train_options,
)
from msggan.commands.program import wants_json
from msggan.config import Range, TrainConfig, field_types, flag
from msggan.errors import UsageError
from msggan.losses import LOSSES


@click.command()
@train_options
def command(**texts: Any) -> None:
    click.echo(repr(sorted((name, text) for name, text in texts.items() if text is not None)))


@click.command(cls=CollectingCommand)
@options_of(Hardware)
def hardware_command(**values: Any) -> None:
    """Only parsed."""


def read_hardware(*args: str) -> Hardware:
    with hardware_command.make_context("hardware", list(args)) as context:
        return Hardware(**context.params)


@settings(max_examples=30, deadline=None)
@given(configs())
def test_a_configuration_survives_its_argument_vector(config: TrainConfig) -> None:
    assert from_argv(to_argv(config)) == config


@settings(max_examples=30, deadline=None)
@given(configs())
def test_only_explicit_values_are_written_in_the_order_of_the_fields(config: TrainConfig) -> None:
    names = [spec.name for spec in fields(TrainConfig) if getattr(config, spec.name) is not None]
    flags = [word.replace("--no-", "--") for word in to_argv(config) if word.startswith("--")]
    assert flags == [flag(name) for name in names]


def test_an_argument_vector_is_written_as_a_user_would_type_it() -> None:
    config = TrainConfig(resolution=32, kimg=20, g_lr=1e-05, mirror=False, equalized=True, background="#00ff00")
    args = "--resolution 32 --kimg 20.0 --g-lr 1e-05 --equalized --no-mirror --background #00ff00"
    assert to_argv(config) == args.split()


def test_a_configuration_of_defaults_is_an_empty_argument_vector() -> None:
    assert to_argv(TrainConfig()) == []
    assert from_argv([]) == TrainConfig()


def test_click_passes_raw_texts_of_the_options_that_are_given() -> None:
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


def test_help_shows_the_defaults_of_recipes() -> None:
    text = " ".join(CliRunner().invoke(command, ["--help"], terminal_width=1000).output.split())
    assert "; bmsg: relativistic-hinge]" in text
    assert "[default: simple; r3: lin-cat; bmsg: lin-cat]" in text


@pytest.mark.parametrize("argv", [["--resolutio", "8"], ["extra"], ["--kimg"], ["--kimg", "long"], ["--help"]], ids=str)
def test_an_argument_vector_that_cannot_be_read_is_a_usage_error(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        from_argv(argv)


def test_other_problems_are_reported_with_those_of_the_configuration() -> None:
    with pytest.raises(UsageError) as raised:
        parse_with(["--data is required."], {"kimg": "0", "loss": "x"})
    assert raised.value.problems == (
        "--data is required.",
        "--kimg 0: must be more than 0.",
        f"--loss x: must be one of {', '.join(LOSSES)}.",
    )


def test_other_problems_are_sufficient_for_an_error() -> None:
    with pytest.raises(UsageError):
        parse_with(["--data is required."], {})


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps"])
@pytest.mark.parametrize("workers", [0, 8, 256])
def test_every_device_and_number_of_workers_can_be_set(device: str, workers: int) -> None:
    assert read_hardware("--device", device, "--workers", str(workers)) == Hardware(device, workers)


@pytest.mark.parametrize(
    ("device", "workers", "complaint"),
    [
        ("gpu", "0", "--device gpu: must be one of auto, cpu, cuda, cuda:N, mps."),
        ("cuda:N", "0", "--device cuda:N: must be one of"),
        ("cuda:-1", "0", "--device cuda:-1: must be one of"),
        ("", "0", "--device : must be one of"),
        ("cpu", "two", "--workers two: is not a whole number."),
        ("cpu", "-1", "--workers -1: must be 0 or more, at most 256."),
        ("cpu", "9" * 4000, "must be 0 or more, at most 256."),
    ],
)
def test_wrong_hardware_is_named(device: str, workers: str, complaint: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_hardware("--device", device, "--workers", workers)
    (problem,) = raised.value.problems
    assert complaint in problem


@pytest.mark.parametrize(
    ("hardware", "argv"),
    [
        (Hardware(), []),
        (Hardware("cuda:1"), ["--device", "cuda:1"]),
        (Hardware("cpu", 3), ["--device", "cpu", "--workers", "3"]),
    ],
)
def test_hardware_is_written_without_its_defaults(hardware: Hardware, argv: list[str]) -> None:
    assert argv_of(hardware) == argv


def test_wrong_hardware_cannot_be_made() -> None:
    with pytest.raises(UsageError, match=r"(?s)--device gpu.*--workers -1"):
        Hardware("gpu", -1)


def test_a_missing_folder_is_named_with_those_beside_it(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    (tmp_path / "other").mkdir()
    (problem,) = data_problems(f"{tmp_path}/flowrs/")
    assert problem == f"--data {tmp_path}/flowrs/: not found. Did you mean {tmp_path}/flowers?"
    assert data_problems(str(tmp_path / "flowers")) == []


@pytest.mark.parametrize("data", [None, ""])
def test_data_is_required(data: str | None) -> None:
    assert data_problems(data) == ["--data is required. Name a folder, a zip or a pack of images."]


@pytest.mark.parametrize("data", ["/nowhere/at/all", "x" * 5000, "a\0b"], ids=["deep", "long", "zero"])
def test_an_impossible_path_is_reported_as_missing(data: str) -> None:
    (problem,) = data_problems(data)
    assert "not found." in problem


@pytest.mark.parametrize(
    ("args", "variable", "json"),
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
def test_json_output_is_detected_before_options_are_parsed(args: list[str], variable: str, json: bool) -> None:
    assert wants_json(args, {"MSGGAN_OUTPUT": variable}) is json


# Commands with typed options


@click.command(cls=CollectingCommand)
@option("--many", type=Number(int, Range(1, 9)), default=3, section="Quality", help="How many.")
@option("--share", type=Number(float, Range(0, 1)), help="How much.")
@option("--kind", type=OneOf("red", "green"), default="red", section="Common options", help="Which one.")
@click.option("--plain", help="Of click itself.")
def strict(**values: Any) -> None:
    """Only parsed."""


@click.command(cls=CollectingCommand)
@option("--many", type=Number(int, Range(1, 9)), default=3)
def lenient(*, many: int, problems: list[str]) -> None:
    click.echo(f"{many} {problems}")


def test_all_wrong_values_are_reported_at_once_each_with_its_option() -> None:
    with pytest.raises(UsageError) as raised:
        strict.make_context("strict", ["--many", "0", "--share", "nan", "--kind", "gren"])
    assert raised.value.problems == (
        "--many 0: must be 1 or more, at most 9.",
        "--share nan: must be 0 or more, at most 1.",
        "--kind gren: must be one of red, green. Did you mean green?",
    )


def test_values_are_converted_and_defaults_filled_in() -> None:
    with strict.make_context("strict", ["--many", "7", "--share", "0.5"]) as context:
        assert context.params == {"many": 7, "share": 0.5, "kind": "red", "plain": None}


def test_a_command_can_add_its_own_problems() -> None:
    result = CliRunner().invoke(lenient, ["--many", "x"])
    assert result.output == "3 ['--many x: is not a whole number.']\n"
    assert CliRunner().invoke(lenient, []).output == "3 []\n"


def test_a_help_has_sections_in_their_order_and_the_rest_last() -> None:
    lines = CliRunner().invoke(strict, ["--help"]).output.splitlines()
    starts = [line.split()[0] for line in lines if line and line.split()[0].startswith("--")]
    assert [line for line in lines if line.endswith(":") and line[0] != " "] == [
        "Common options:",
        "Quality:",
        "Other options:",
    ]
    assert starts == ["--kind", "--many", "--share", "--plain", "--help"]
    assert "Options:" in CliRunner().invoke(lenient, ["--help"]).output


def test_the_repr_of_a_configuration_evaluates_to_it() -> None:
    config = TrainConfig(resolution=32, kimg=2.5, loss="hinge")
    assert repr(config) == "TrainConfig(resolution=32, kimg=2.5, loss='hinge')"
    assert eval(repr(config)) == config  # noqa: S307 - our own text
