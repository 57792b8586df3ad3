"""Are drawn settings inside the space, and the beginning of every longer list?"""

from __future__ import annotations

from pathlib import Path

import pytest

from msggan.config import TrainConfig
from orchestration.search_space import Choice, Interval, read_space
from orchestration.sweep import Objective
from orchestration.sweep_draws import Study, at, draw

SPACE = read_space(["g_lr=0.001..0.1", "beta1", "mirror"], TrainConfig())


@pytest.mark.parametrize("sampling", ["random", "sobol"])
def test_every_draw_is_inside_and_begins_every_longer_list(sampling: str) -> None:
    drawn = draw(SPACE, sampling, 7, 20)
    assert draw(SPACE, sampling, 7, 5) == drawn[:5]
    assert draw(SPACE, sampling, 8, 5) != drawn[:5]
    for settings in drawn:
        assert list(settings) == ["g_lr", "beta1", "mirror"]
        assert 0.001 <= settings["g_lr"] <= 0.1
        assert 0.0 <= settings["beta1"] <= 0.9
        assert settings["mirror"] in (True, False)


def test_sobol_spreads_choices_and_logarithms_evenly() -> None:
    drawn = draw(SPACE, "sobol", 0, 8)
    assert sum(settings["mirror"] for settings in drawn) == 4
    assert sum(settings["g_lr"] < 0.01 for settings in drawn) == 4, "half lie below the middle of the logarithm"


def test_the_middle_of_a_logarithmic_range_is_its_geometric_mean() -> None:
    assert at(Interval("g_lr", 0.001, 0.1, log=True), 0.5) == pytest.approx(0.01)
    assert at(Choice("mirror", (True, False)), 0.5) is False


def test_a_bayesian_trial_follows_from_those_before_it_alone(tmp_path: Path) -> None:
    """A study that is opened again for each trial proposes what one that stays open does."""

    def opened(name: str) -> Study:
        return Study(tmp_path / f"{name}.db", "s", SPACE, Objective(), 3)

    stays = opened("stays")
    for number in range(8):
        again = opened("again")
        settings = stays.propose(number)
        assert again.propose(number) == settings
        for study in (stays, again):
            study.end(number, "completed", settings["g_lr"])
