"""Which settings does each trial get? Optuna's samplers over our search space, and its database of the sweep."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from orchestration.search_space import Choice, Dimension, SearchSpace
from orchestration.sweep import Objective

STATES = {"completed": TrialState.COMPLETE, "stopped": TrialState.COMPLETE, "failed": TrialState.FAIL}


def draw(space: SearchSpace, sampling: str, seed: int, count: int) -> list[dict[str, Any]]:
    """The settings of the first `count` trials: of a longer list they are the beginning. Not for bayesian."""
    if sampling == "grid":
        return list(itertools.islice(space.combinations(), count))
    if sampling == "sobol":
        return _sobol(space, seed, count)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [study.ask(distributions(space)).params for _ in range(count)]


def _sobol(space: SearchSpace, seed: int, count: int) -> list[dict[str, Any]]:
    """Scrambled Sobol points. Optuna's own sampler leaves choices to chance; here they are spread evenly too."""
    from scipy.stats import qmc

    power = max(0, (count - 1).bit_length())  # the points are even among themselves in powers of two
    points = qmc.Sobol(len(space.dimensions), scramble=True, seed=seed).random_base2(power)[:count]
    return [
        {dimension.name: at(dimension, float(share)) for dimension, share in zip(space.dimensions, point, strict=True)}
        for point in points
    ]


def at(dimension: Dimension, share: float) -> Any:
    """The value that lies at `share`, from 0 to below 1, of a dimension."""
    if isinstance(dimension, Choice):
        return dimension.values[min(int(share * len(dimension.values)), len(dimension.values) - 1)]
    if dimension.log:
        value = dimension.low * (dimension.high / dimension.low) ** share
    else:
        value = dimension.low + share * (dimension.high - dimension.low)
    return min(max(value, dimension.low), dimension.high)  # rounding may leave the range by its last digit


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The space in Optuna's words."""
    return {
        dimension.name: CategoricalDistribution(dimension.values)
        if isinstance(dimension, Choice)
        else FloatDistribution(dimension.low, dimension.high, log=dimension.log)
        for dimension in space.dimensions
    }


class Study:
    """The sweep in Optuna's database. Its trials have the sweep's numbers, and Bayesian sampling learns from them."""

    def __init__(self, database: Path, name: str, space: SearchSpace, objective: Objective, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = distributions(space)
        self._seed = seed
        self._study = optuna.create_study(
            study_name=name,
            storage=f"sqlite:///{database.as_posix()}",
            direction=objective.direction,
            load_if_exists=True,
        )

    def begin(self, number: int, settings: dict[str, Any]) -> None:
        """Notes that a trial runs, unless it is noted already."""
        if number < len(self._study.get_trials(deepcopy=False)):
            return
        self._study.enqueue_trial(settings)
        self._study.ask(self._space)

    def propose(self, number: int) -> dict[str, Any]:
        """The settings that look best after the trials that have ended; `number` makes the chance its own."""
        number_of_trials = len(self._study.get_trials(deepcopy=False))
        if number < number_of_trials:
            return dict(self._study.get_trials(deepcopy=False)[number].params)
        self._study.sampler = optuna.samplers.TPESampler(
            seed=self._seed + number, n_startup_trials=max(4, 2 * len(self._space))
        )
        return dict(self._study.ask(self._space).params)

    def end(self, number: int, state: str, objective: float | None) -> None:
        """Notes how a trial ended. state: completed, stopped or failed."""
        if self._study.get_trials(deepcopy=False)[number].state.is_finished():
            return
        if objective is None:
            self._study.tell(number, state=TrialState.FAIL)
        else:
            self._study.tell(number, objective if state != "failed" else None, state=STATES[state])
