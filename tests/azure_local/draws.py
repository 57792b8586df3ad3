"""Sampling of a sweep's trials from the search space: grid, random, Sobol and Bayesian."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any

Values = dict[str, Any]
Space = dict[str, list[Any]]  # name → [kind, [arguments]]
Scores = Callable[[], dict[int, float]]  # of the trials that have ended, by number

ALMOST = 1e-12  # the quantiles of a normal distribution at 0 and 1 are infinite


def draws(sweep: dict[str, Any], scores: Scores) -> Iterator[Values]:
    """Yields the values of each trial in turn; only grid sampling is finite."""
    space, sampling = sweep["searchSpace"], sweep["samplingAlgorithm"]
    kind = sampling["samplingAlgorithmType"]
    if kind == "Grid":
        return grid(space)
    if kind == "Bayesian":
        return bayesian(space, sweep["objective"]["goal"].lower(), scores)
    base = sampling.get("logbase") or "e"
    points = sobol if sampling.get("rule") == "Sobol" else random
    return (
        values_at(space, point, math.e if base == "e" else float(base))
        for point in points(len(space), sampling.get("seed"))
    )


def grid(space: Space) -> Iterator[Values]:
    for values in itertools.product(*(arguments[0] for _, arguments in space.values())):
        yield dict(zip(space, values, strict=True))


def random(dimensions: int, seed: int | None) -> Iterator[list[float]]:
    import numpy as np

    generator = np.random.default_rng(seed)
    while True:
        yield generator.random(dimensions).tolist()


def sobol(dimensions: int, seed: int | None) -> Iterator[list[float]]:
    import numpy as np
    from scipy.stats import qmc

    shift = np.random.default_rng(seed).random(dimensions)  # of all points, as the sequence starts at 0
    sequence = qmc.Sobol(dimensions, scramble=False)
    while True:
        yield ((sequence.random(1)[0] + shift) % 1).tolist()


def bayesian(space: Space, goal: str, scores: Scores) -> Iterator[Values]:
    """A tree-structured Parzen estimator over the scores of the trials; Microsoft does not document its own."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction=goal, sampler=optuna.samplers.TPESampler(n_startup_trials=5))
    added: set[int] = set()
    while True:
        known = scores()
        for number in sorted(known.keys() - added):
            study.tell(number, known[number])
            added.add(number)
        trial = study.ask()
        yield {
            name: arguments[0][trial.suggest_categorical(name, range(len(arguments[0])))]
            if kind == "choice"
            else value_at(kind, arguments, trial.suggest_float(name, 0, 1))
            for name, (kind, arguments) in space.items()
        }


def values_at(space: Space, point: list[float], base: float) -> Values:
    """point: a point in the unit cube, with one number from 0 to 1 per parameter."""
    return {
        name: value_at(kind, arguments, part, base)
        for (name, (kind, arguments)), part in zip(space.items(), point, strict=True)
    }


def value_at(kind: str, arguments: list[Any], part: float, base: float = math.e) -> Any:
    """The quantile of the parameter's distribution."""
    if kind == "choice":
        return pick(arguments[0], part)
    if kind == "randint":
        return pick(range(arguments[0]), part)
    shape = kind.removeprefix("q").removeprefix("log")
    if shape == "uniform":
        value = arguments[0] + part * (arguments[1] - arguments[0])
    else:
        value = NormalDist(*arguments[:2]).inv_cdf(min(max(part, ALMOST), 1 - ALMOST))
    if "log" in kind:
        value = math.exp(value * math.log(base))
    return round(value / arguments[2]) * arguments[2] if kind.startswith("q") else value


def pick(values: Any, part: float) -> Any:
    return values[min(int(part * len(values)), len(values) - 1)]
