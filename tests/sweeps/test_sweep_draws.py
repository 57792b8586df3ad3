"""Drawn settings are inside the search space, without repeats, and the same for the same seed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from msggan.config import TrainConfig
from orchestration.sweeps.space import Choice, Interval, SearchSpace, draw, propose, read_space, value_at
from orchestration.sweeps.trials import Objective, Trial

SPACE = read_space(["g_lr=0.001..0.1", "beta1", "mirror"], TrainConfig())
CHOICES = read_space(["loss=hinge,lsgan,wgan-gp", "mirror", "g_lr=0.001,0.01"], TrainConfig())
SAMPLINGS = st.sampled_from(["random", "sobol", "grid"])


@pytest.mark.parametrize("sampling", ["random", "sobol"])
def test_draws_lie_in_the_space_and_a_longer_list_starts_the_same(sampling: str) -> None:
    drawn = draw(SPACE, sampling, 7, 20)
    assert draw(SPACE, sampling, 7, 5) == drawn[:5]
    assert draw(SPACE, sampling, 8, 5) != drawn[:5]
    for settings in drawn:
        assert list(settings) == ["g_lr", "beta1", "mirror"]
        assert 0.001 <= settings["g_lr"] <= 0.1
        assert 0.0 <= settings["beta1"] <= 0.9
        assert settings["mirror"] in (True, False)


@hypothesis_settings(max_examples=30, deadline=None)
@given(SAMPLINGS, st.integers(-5, 2**40), st.integers(0, 12), st.integers(0, 12))
def test_no_combination_of_choices_is_drawn_twice(sampling: str, seed: int, fewer: int, more: int) -> None:
    drawn = draw(CHOICES, sampling, seed, max(fewer, more))
    assert draw(CHOICES, sampling, seed, min(fewer, more)) == drawn[: min(fewer, more)]
    assert len({tuple(settings.values()) for settings in drawn}) == len(drawn) == max(fewer, more)
    assert all(settings in list(CHOICES.combinations()) for settings in drawn)


def test_combinations_that_were_not_drawn_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(CHOICES, "random", 0, 12)
    monkeypatch.setattr("orchestration.sweeps.space.MAX_DRAWS", 4)
    drawn = draw(CHOICES, "random", 0, 12)
    first = [combination for combination in whole if combination in drawn[:4]]
    assert drawn[: len(first)] == first
    assert sorted(map(str, drawn)) == sorted(map(str, CHOICES.combinations()))


@pytest.mark.slow
def test_all_of_a_thousand_combinations_are_drawn() -> None:
    space = read_space(["seed=0..99", "penalty_interval=1,2,3,4,5,6,7,8,9,10"], TrainConfig())
    for sampling in ("random", "sobol"):
        assert len({tuple(settings.values()) for settings in draw(space, sampling, 0, 1000)}) == 1000


def test_sobol_spreads_choices_and_logarithms_evenly() -> None:
    drawn = draw(SPACE, "sobol", 0, 8)
    assert sum(settings["mirror"] for settings in drawn) == 4
    assert sum(settings["g_lr"] < 0.01 for settings in drawn) == 4, "half lie below the middle of the logarithm"


def test_the_middle_of_a_logarithmic_range_is_its_geometric_mean() -> None:
    assert value_at(Interval("g_lr", 0.001, 0.1, log=True), 0.5) == pytest.approx(0.01)
    assert value_at(Choice("mirror", (True, False)), 0.5) is False


def test_the_settings_of_a_seed_never_change() -> None:
    """A sweep that is resumed by a later version must draw what it drew before."""
    drawn = [*draw(SPACE, "random", 7, 1), *draw(SPACE, "sobol", 7, 1), next_settings([])]
    assert [list(settings.values()) for settings in drawn] == [
        pytest.approx([0.0014210736239935746, 0.7019269130161032, False]),
        pytest.approx([0.014405222856258748, 0.6662562123499811, False]),
        pytest.approx([0.012635598137381661, 0.6373330403562943, False]),
    ]


def next_settings(trials: list[Trial], direction: str = "minimize", space: SearchSpace = SPACE) -> dict[str, Any]:
    return propose(space, Objective("swd", direction), 3, trials)


def test_bayesian_sampling_prefers_regions_with_a_better_objective() -> None:
    drawn = draw(SPACE, "random", 0, 16)
    trials = [
        Trial(n, f"s/{n}", "completed", tried, objective=math.log(tried["g_lr"])) for n, tried in enumerate(drawn)
    ]
    rates = {direction: next_settings(trials, direction)["g_lr"] for direction in ("minimize", "maximize")}
    assert rates["minimize"] < 0.01 < rates["maximize"], "the middle of the range is 0.01"


def test_bayesian_proposals_depend_on_earlier_trials_and_their_states() -> None:
    drawn = draw(SPACE, "random", 0, 16)
    trials = [
        Trial(n, f"s/{n}", "completed", tried, objective=math.log(tried["g_lr"])) for n, tried in enumerate(drawn)
    ]
    assert next_settings(trials) == next_settings(trials)
    failed = [replace(trial, state="failed") for trial in trials[:8]] + trials[8:]
    unmeasured = [replace(trial, objective=None) for trial in trials[:8]] + trials[8:]
    assert next_settings(failed) == next_settings(unmeasured) != next_settings(trials)
    running = [replace(trial, state="running") for trial in trials[:8]] + trials[8:]
    assert next_settings(running) != next_settings(trials)


def test_concurrent_bayesian_trials_differ() -> None:
    trials: list[Trial] = []
    for number in range(6):
        trials.append(Trial(number, f"s/{number}", "running", next_settings(trials)))
    assert len({trial.settings["g_lr"] for trial in trials}) == 6


def test_bayesian_sampling_repeats_no_combination_while_others_remain() -> None:
    tried: list[Trial] = []
    for number in range(12):
        state = "completed" if number % 3 else "failed"
        tried.append(Trial(number, f"s/{number}", state, next_settings(tried, space=CHOICES), objective=float(number)))
    settings_tried = [trial.settings for trial in tried]
    assert len({tuple(settings.values()) for settings in settings_tried}) == 12
    assert next_settings(tried, space=CHOICES) in settings_tried, "once all were tried, a combination is repeated"
