"""The options of sampling: a round trip, and all problems reported at once."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msggan.commands.options import CollectingCommand, argv_of
from msggan.commands.verbs import (
    MAX_PICTURES,
    MAX_SEED,
    SampleOptions,
    format_seeds,
    parse_sample,
    parse_seeds,
    sample_options,
)
from msggan.errors import UsageError


def read(*args: str) -> SampleOptions:
    @click.command(cls=CollectingCommand, add_help_option=False)
    @sample_options
    def command(*, problems: list[str], **values: object) -> None:
        """Only parsed."""

    with command.make_context("sample", list(args)) as context:
        return parse_sample(**context.params)


def problems(*args: str) -> tuple[str, ...]:
    with pytest.raises(UsageError) as raised:
        read(*args)
    return raised.value.problems


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0-15", range(16)),
        ("3,7,9", [3, 7, 9]),
        ("7", [7]),
        ("9, 1 - 3", [9, 1, 2, 3]),
        (str(MAX_SEED), [MAX_SEED]),
    ],
)
def test_seeds_are_numbers_and_ranges_in_the_order_given(text: str, seeds: list[int]) -> None:
    assert list(parse_seeds(text)) == list(seeds)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "nothing is not a seed"),
        ("a", "a is not a seed. Write 0-15 or 3,7,9."),
        ("1,,2", "nothing is not a seed"),
        ("-3", "-3 is not a seed"),
        ("1.5", "1.5 is not a seed"),
        ("5-2", "5-2 goes backwards"),
        ("1-3,2", "a seed is repeated"),
        (str(MAX_SEED + 1), f"the largest seed is {MAX_SEED}"),
        ("0-2000000000", f"at most {MAX_PICTURES}"),
        ("9" * 5000, "is not a seed"),
    ],
)
def test_what_is_not_a_seed_is_reported(text: str, complaint: str) -> None:
    (problem,) = problems("--seeds", text)
    assert complaint in problem


@given(st.lists(st.integers(0, 60), min_size=1, unique=True))
def test_seeds_written_are_the_seeds_read(seeds: list[int]) -> None:
    assert list(parse_seeds(format_seeds(seeds))) == seeds


def test_many_seeds_are_written_as_a_range() -> None:
    assert format_seeds(range(MAX_PICTURES)) == f"0-{MAX_PICTURES - 1}"


def test_a_seed_and_a_number_are_the_seeds_that_follow() -> None:
    assert read().seeds == range(16)
    assert read("--seed", "7", "--num", "3").seeds == read("--seeds", "7-9").seeds == range(7, 10)


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--seeds", "3,7,9", "--files"],
        ["--all-scales", "--grid", "--force", "--out", "my pictures", "--device", "cpu"],
        ["--film", "loop.mp4", "--progress-film", "B.WEBP", "--seconds", "2.5", "--fps", "30"],
        ["--seed", "5", "--scale", "16", "--truncation", "0.7"],
        ["--best"],
        ["--at", "12.5"],
        ["--label", "long sleeve", "--label", "hat", "--seeds", "7", "--film", "a.mp4"],
    ],
)
def test_options_written_are_the_options_read(args: list[str]) -> None:
    options = read(*args)
    assert read(*argv_of(options)) == options


def test_all_wrong_options_are_reported_at_once() -> None:
    wrong = {"--seeds": "x", "--scale": "q", "--truncation": "nan", "--fps": "0", "--seconds": "-1", "--device": "gpu"}
    wrong |= {"--film": "loop.gif", "--progress-film": "film"}
    result = problems(*(word for pair in wrong.items() for word in pair))
    assert {problem.split(":")[0] for problem in result} == {f"{flag} {text}" for flag, text in wrong.items()}


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--seeds", "1-3", "--num", "5"], "--seeds: sets all seeds. Leave out --num and --seed."),
        (["--num", "0"], "--num 0: must be 1 or more"),
        (["--best", "--at", "20"], "--best: cannot be combined with --at."),
        (["--num", "9" * 5000], "is not a whole number"),
        (["--seed", str(MAX_SEED), "--num", "2"], "exceeds the largest seed"),
        (["--film", "a.gif"], "--film a.gif: must end in .mp4 or .webp."),
        (["--film", "mp4"], "must end in .mp4 or .webp."),
        (["--film", "a.mp4", "--seeds", "7"], "--film: needs two seeds or more, such as --seeds 0-7, or two --label."),
        (["--film", "a.mp4", "--seeds", "7-8", "--seconds", "0.04"], "one frame would be too few"),
        (["--film", "a.mp4", "--num", "50", "--seconds", "1"], "24 frames would be too few, there are more images"),
        (["--film", "a.mp4", "--seconds", "3600"], "86400 frames are too many"),
        (["--film", "a.mp4", "--progress-film", "a.mp4"], "cannot have the same name"),
        (["--all-scales", "--scale", "8"], "--all-scales shows them all"),
    ],
)
def test_options_that_do_not_fit_together_are_reported(args: list[str], complaint: str) -> None:
    (problem,) = problems(*args)
    assert complaint in problem


def test_a_grid_is_the_default() -> None:
    assert read().makes_grid
    assert read("--files", "--grid").makes_grid
    assert not read("--files").makes_grid
    assert not read("--progress-film", "a.mp4").needs_weights
