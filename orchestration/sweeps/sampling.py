"""The settings of each trial, from Optuna's samplers. They depend on the seed and the trials before only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestration.sweeps.space import Choice, Dimension, SearchSpace
from orchestration.sweeps.spec import MAX_TRIALS
from orchestration.sweeps.status import ENDED, Objective, Trial

MAX_DRAWS = 2**14  # the last of 1000 combinations is drawn after about 7500 draws, rarely later
MAX_PROPOSALS = 8
SEEDS = 2**31  # numpy takes no more; larger seeds wrap around


def draw(space: SearchSpace, sampling: str, seed: int, count: int) -> list[dict[str, Any]]:
    """The settings of the first `count` trials, without repeats; a longer list starts the same. Not for bayesian."""
    if sampling == "grid":
        return list(itertools.islice(space.combinations(), count))
    stream = (_sobol if sampling == "sobol" else _random)(space, seed % SEEDS)
    return list(itertools.islice(_without_repeats(stream, space) if space.is_grid else stream, count))


def _random(space: SearchSpace, seed: int) -> Iterator[dict[str, Any]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    while True:
        yield study.ask(distributions(space)).params


def _sobol(space: SearchSpace, seed: int) -> Iterator[dict[str, Any]]:
    """Scrambled Sobol points. Optuna's own sampler draws choices at random; here they are spread evenly too."""
    from scipy.stats import qmc

    points = qmc.Sobol(len(space.dimensions), scramble=True, seed=seed)
    for power in itertools.count():  # the first 1, 2, 4, … points are evenly spread
        for point in points.random_base2(max(0, power - 1)):
            yield {
                dimension.name: at(dimension, float(share))
                for dimension, share in zip(space.dimensions, point, strict=True)
            }


def _without_repeats(stream: Iterator[dict[str, Any]], space: SearchSpace) -> Iterator[dict[str, Any]]:
    """The combinations in the order of their first draw; at last those that were not drawn."""
    seen = set()
    for settings in itertools.chain(itertools.islice(stream, MAX_DRAWS), space.combinations()):
        key = tuple(settings.values())
        if key not in seen:
            seen.add(key)
            yield settings


def at(dimension: Dimension, share: float) -> Any:
    """The value at `share`, from 0 to below 1, of a dimension."""
    if isinstance(dimension, Choice):
        return dimension.values[min(int(share * len(dimension.values)), len(dimension.values) - 1)]
    if dimension.log:
        value = dimension.low * (dimension.high / dimension.low) ** share
    else:
        value = dimension.low + share * (dimension.high - dimension.low)
    return min(max(value, dimension.low), dimension.high)  # rounding may leave the range by its last digit


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions."""
    return {
        dimension.name: CategoricalDistribution(dimension.values)
        if isinstance(dimension, Choice)
        else FloatDistribution(dimension.low, dimension.high, log=dimension.log)
        for dimension in space.dimensions
    }


# --- Bayesian sampling ------------------------------------------------------------------------------------------------


def propose(space: SearchSpace, objective: Objective, seed: int, trials: Sequence[Trial]) -> dict[str, Any]:
    """The settings of the next trial, which look best after the `trials` so far, all of them from number 0 on.

    If all dimensions are choices, a combination that was not tried before as long as there is one.
    """
    proposals = (_proposal(space, objective, seed, trials, attempt) for attempt in range(MAX_PROPOSALS))
    first = next(proposals)
    if not space.is_grid:
        return first
    tried = [trial.settings for trial in trials]
    others = itertools.chain([first], proposals, space.combinations())
    return next((settings for settings in others if settings not in tried), first)


def _proposal(
    space: SearchSpace, objective: Objective, seed: int, trials: Sequence[Trial], attempt: int
) -> dict[str, Any]:
    """What the TPE sampler proposes. Each trial and each attempt has a seed of its own."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ranges = distributions(space)
    sampler = optuna.samplers.TPESampler(
        seed=seed % SEEDS + len(trials) + attempt * MAX_TRIALS, n_startup_trials=max(4, 2 * len(ranges))
    )
    study = optuna.create_study(direction=objective.direction, sampler=sampler)
    study.add_trials([_frozen(trial, ranges) for trial in trials])
    return dict(study.ask(ranges).params)


def _frozen(trial: Trial, ranges: dict[str, BaseDistribution]) -> FrozenTrial:
    """A trial as Optuna has it."""
    if trial.state not in ENDED:
        state = TrialState.RUNNING
    elif trial.state == "failed" or trial.objective is None:
        state = TrialState.FAIL
    else:
        state = TrialState.COMPLETE
    value = trial.objective if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, params=trial.settings, distributions=ranges)
