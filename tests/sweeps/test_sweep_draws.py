"""Are drawn settings inside the space, and the beginning of every longer list?"""

from __future__ import annotations

import math
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import RDBStorage
from sqlalchemy.pool import NullPool

from msggan.config import TrainConfig
from msggan.errors import RunFolderError
from orchestration.sweeps.sampling import Study, at, draw
from orchestration.sweeps.space import Choice, Interval, read_space
from orchestration.sweeps.spec import Objective, Trial

SPACE = read_space(["g_lr=0.001..0.1", "beta1", "mirror"], TrainConfig())
CHOICES = read_space(["loss=hinge,lsgan,wgan-gp", "mirror", "g_lr=0.001,0.01"], TrainConfig())
SAMPLINGS = st.sampled_from(["random", "sobol", "grid"])


@pytest.mark.parametrize("sampling", ["random", "sobol"])
def test_every_draw_is_inside_and_begins_every_longer_list(sampling: str) -> None:
    drawn = draw(SPACE, sampling, 7, 20)
    assert draw(SPACE, sampling, 7, 5) == drawn[:5]
    assert draw(SPACE, sampling, 8, 5) != drawn[:5]
    for one in drawn:
        assert list(one) == ["g_lr", "beta1", "mirror"]
        assert 0.001 <= one["g_lr"] <= 0.1
        assert 0.0 <= one["beta1"] <= 0.9
        assert one["mirror"] in (True, False)


@settings(max_examples=30, deadline=None)
@given(SAMPLINGS, st.integers(-5, 2**40), st.integers(0, 12), st.integers(0, 12))
def test_no_combination_of_choices_is_drawn_twice(sampling: str, seed: int, fewer: int, more: int) -> None:
    drawn = draw(CHOICES, sampling, seed, max(fewer, more))
    assert draw(CHOICES, sampling, seed, min(fewer, more)) == drawn[: min(fewer, more)]
    assert len({tuple(one.values()) for one in drawn}) == len(drawn) == max(fewer, more)
    assert all(one in list(CHOICES.combinations()) for one in drawn)


def test_combinations_that_are_long_in_coming_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(CHOICES, "random", 0, 12)
    monkeypatch.setattr("orchestration.sweeps.sampling.MOST_DRAWS", 4)
    drawn = draw(CHOICES, "random", 0, 12)
    there = [one for one in whole if one in drawn[:4]]
    assert drawn[: len(there)] == there
    assert sorted(map(str, drawn)) == sorted(map(str, CHOICES.combinations()))


def test_all_of_a_thousand_combinations_are_drawn() -> None:
    space = read_space(["seed=0..99", "penalty_interval=1,2,3,4,5,6,7,8,9,10"], TrainConfig())
    for sampling in ("random", "sobol"):
        assert len({tuple(one.values()) for one in draw(space, sampling, 0, 1000)}) == 1000


def test_sobol_spreads_choices_and_logarithms_evenly() -> None:
    drawn = draw(SPACE, "sobol", 0, 8)
    assert sum(settings["mirror"] for settings in drawn) == 4
    assert sum(settings["g_lr"] < 0.01 for settings in drawn) == 4, "half lie below the middle of the logarithm"


def test_the_middle_of_a_logarithmic_range_is_its_geometric_mean() -> None:
    assert at(Interval("g_lr", 0.001, 0.1, log=True), 0.5) == pytest.approx(0.01)
    assert at(Choice("mirror", (True, False)), 0.5) is False


def test_a_bayesian_trial_follows_from_those_before_it_alone(tmp_path: Path) -> None:
    """A study that is made anew for each trial proposes what one that stays does, whatever its file has become."""
    stays = Study(tmp_path / "stays.db", "s", SPACE, Objective(), seed=3)
    trials: list[Trial] = []
    for number, state in enumerate(["completed", "failed", "stopped", "completed", "interrupted", *["completed"] * 4]):
        (tmp_path / "again.db").write_text("no database")
        again = Study(tmp_path / "again.db", "s", SPACE, Objective(), seed=3, trials=trials)
        settings = stays.propose(number)
        assert again.propose(number) == settings
        trials.append(Trial(number, f"s/{number}", state, settings, objective=settings["g_lr"]))
        if state != "interrupted":
            stays.end(number, state, settings["g_lr"])


def test_bayesian_sampling_looks_where_the_objective_was_better(tmp_path: Path) -> None:
    drawn = draw(SPACE, "random", 0, 16)
    trials = [Trial(n, f"s/{n}", "completed", one, objective=math.log(one["g_lr"])) for n, one in enumerate(drawn)]
    rates = {
        direction: Study(
            tmp_path / f"{direction}.db", "s", SPACE, Objective("swd", direction), seed=0, trials=trials
        ).propose(16)["g_lr"]
        for direction in ("minimize", "maximize")
    }
    assert rates["minimize"] < 0.01 < rates["maximize"], "the middle of the range is 0.01"


def test_bayesian_trials_that_begin_at_once_are_not_the_same(tmp_path: Path) -> None:
    study = Study(tmp_path / "s.db", "s", SPACE, Objective(), seed=0)
    rates = [study.propose(number)["g_lr"] for number in range(6)]
    assert len(set(rates)) == 6


def test_bayesian_sampling_tries_no_combination_twice_while_there_are_others(tmp_path: Path) -> None:
    study = Study(tmp_path / "s.db", "s", CHOICES, Objective(), seed=0)
    tried = []
    for number in range(12):
        tried.append(study.propose(number))
        study.end(number, "completed" if number % 3 else "failed", float(number))
    assert len({tuple(one.values()) for one in tried}) == 12
    assert study.propose(12) in tried, "what cannot be new is proposed nevertheless"


def test_a_trial_that_is_noted_twice_is_one_trial_with_its_settings(tmp_path: Path) -> None:
    study = Study(tmp_path / "s.db", "s", SPACE, Objective(), seed=0)
    (drawn,) = draw(SPACE, "random", 0, 1)
    for _ in range(2):
        study.begin(0, drawn)
        study.end(0, "completed", 1.0)
    storage = RDBStorage(f"sqlite:///{tmp_path / 's.db'}", engine_kwargs={"poolclass": NullPool})
    (trial,) = optuna.load_study(study_name="s", storage=storage).trials
    assert (trial.params, trial.value) == (drawn, 1.0)
    assert study.propose(1) != drawn


def test_a_database_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.db").mkdir()
    with pytest.raises(RunFolderError, match=r"s\.db: cannot be written \(Is a directory\)"):
        Study(tmp_path / "s.db", "s", SPACE, Objective(), seed=0)
