"""The search space of a sweep: what --over takes, parsed and checked, and the settings drawn from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from msggan.commands.options import nearest
from msggan.config import KINDS, Sweep, TrainConfig, explicit_values, field_problems, field_types, flag, problems_of
from msggan.errors import UsageError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from orchestration.sweeps.trials import Objective, Trial

MAX_TRIALS = 1000
MAX_VALUES = 1000  # of one choice
SWEEPABLE: Mapping[str, Sweep] = {
    spec.name: spec.metadata["sweep"] for spec in fields(TrainConfig) if spec.metadata["sweep"] is not None
}
BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class Choice:
    """A field that takes one of these values."""

    name: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name}={','.join(map(format_value, self.values))}"


@dataclass(frozen=True)
class Interval:
    """A field that takes any number in [low, high]; log: uniform in the logarithm."""

    name: str
    low: float
    high: float
    log: bool

    def __str__(self) -> str:
        return f"{self.name}={format_value(self.low)}..{format_value(self.high)}"


Dimension = Choice | Interval


@dataclass(frozen=True)
class SearchSpace:
    """The fields that are searched, in the order of --over. `str` of a dimension is what --over takes."""

    dimensions: tuple[Dimension, ...]

    @property
    def names(self) -> list[str]:
        return [dimension.name for dimension in self.dimensions]

    @property
    def size(self) -> int | None:
        """The number of combinations, None if it is infinite."""
        counts = [len(dimension.values) for dimension in self.dimensions if isinstance(dimension, Choice)]
        return math.prod(counts) if len(counts) == len(self.dimensions) else None

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination of a finite space; the last field changes fastest."""
        values = [dimension.values for dimension in self.dimensions if isinstance(dimension, Choice)]
        return (dict(zip(self.names, combination, strict=True)) for combination in itertools.product(*values))

    def as_texts(self) -> list[str]:
        """What --over takes."""
        return [str(dimension) for dimension in self.dimensions]


def format_value(value: Any) -> str:
    """A value as on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


# --- Parsing ----------------------------------------------------------------------------------------------------------


def read_space(over: Sequence[str] | Mapping[str, Any], config: TrainConfig) -> SearchSpace:
    """The search space of a sweep around `config`. Raises `UsageError` with every problem at once.

    over: what --over takes, or the same as a mapping from a field's name to None (the field's own range), a tuple
    (low, high) or a list of values.
    """
    dimensions: list[Dimension] = []
    problems: list[str] = [] if over else ["--over: is required. Name an option to search, as in --over g_lr."]
    for item in over.items() if isinstance(over, Mapping) else over:
        try:
            dimensions.append(_read_dimension(item if isinstance(item, str) else _as_text(*item)))
        except UsageError as error:
            problems += error.problems
    names, fixed = [dimension.name for dimension in dimensions], explicit_values(config)
    problems += [f"--over {name}: is given more than once." for name in dict.fromkeys(names) if names.count(name) > 1]
    problems += [
        f"--over {name}: conflicts with {flag(name)} {format_value(fixed[name])}. Remove one."
        for name in names
        if name in fixed
    ]
    if not problems:
        problems = list(dict.fromkeys(_cross_field_errors(dimensions, fixed)))
    if problems:
        raise UsageError(problems)
    return SearchSpace(tuple(dimensions))


def _as_text(name: str, values: Any) -> str:
    """What --over takes for one item of a mapping."""
    if values is None:
        return name
    if isinstance(values, tuple) and len(values) == 2:
        return f"{name}={format_value(values[0])}..{format_value(values[1])}"
    if isinstance(values, list):
        return f"{name}={','.join(map(format_value, values))}"
    raise UsageError([f"--over {name}: {values!r} is not None, a tuple (low, high) or a list of values."])


def _read_dimension(text: str) -> Dimension:
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    try:
        if name not in SWEEPABLE:
            raise ValueError(_not_sweepable(name))
        dimension = _given_range(name, values) if equals else _default_range(name)
        if problems := [problem for value in _ends(dimension) for problem in field_problems({name: value})]:
            raise ValueError(" ".join(problems))
    except ValueError as error:
        raise UsageError([f"--over {text}: {error}"]) from None
    return dimension


def _not_sweepable(name: str) -> str:
    searchable = f"Searchable: {', '.join(SWEEPABLE)}."
    if name in field_types():
        return f"{flag(name)} cannot be searched: its trials could not be compared. {searchable}"
    near = nearest(name, SWEEPABLE)
    return f"there is no option {flag(name)}. {f'Did you mean {near[0]}?' if near else searchable}"


def _default_range(name: str) -> Dimension:
    sweep = SWEEPABLE[name]
    if sweep.choices:
        return Choice(name, sweep.choices)
    if sweep.low is None or sweep.high is None:
        raise ValueError(f"has no default range; list values, as in {name}=1,2,3.")
    return _range(name, sweep.low, sweep.high)


def _given_range(name: str, text: str) -> Dimension:
    low, dots, high = text.partition("..")
    if dots:
        if field_types()[name] not in (int, float):
            raise ValueError(f"is not a number; list values, as in {name}={_example(name)}.")
        return _range(name, _value(name, low), _value(name, high))
    items = [item.strip() for item in text.split(",")]
    if not any(items):
        raise ValueError(f"has no values; as in {name}={_example(name)}.")
    if not all(items):
        raise ValueError("has an empty value.")
    values = tuple(_value(name, item) for item in items)
    if len(set(values)) < len(values):
        raise ValueError("has a value twice.")
    return Choice(name, values)


def _range(name: str, low: float, high: float) -> Dimension:
    log = SWEEPABLE[name].log
    if low >= high:
        swapped = f" Did you mean {name}={format_value(high)}..{format_value(low)}?" if low > high else ""
        raise ValueError(f"{format_value(low)} is not below {format_value(high)}.{swapped}")
    if log and low <= 0:
        raise ValueError(
            f"is searched on a log scale, so LOW must be above 0; or list values, as in {name}={_example(name)}."
        )
    if field_types()[name] is float:
        return Interval(name, float(low), float(high), log)
    if log:  # every power of two
        values = tuple(1 << power for power in range(math.ceil(math.log2(low)), int(high).bit_length()))
    elif high - low < MAX_VALUES:
        values = tuple(range(int(low), int(high) + 1))
    else:
        raise ValueError(f"has more than {MAX_VALUES} values; list some, as in {name}={_example(name)}.")
    if len(values) < 2:
        raise ValueError(f"has fewer than two powers of two; list values, as in {name}=4,6,8.")
    return Choice(name, values)


def _value(name: str, text: str) -> Any:
    kind = field_types()[name]
    if kind is str:
        return text
    try:
        value = BOOLEANS[text] if kind is bool else kind(text)
        if not math.isfinite(value):
            raise ValueError
    except (KeyError, ValueError, OverflowError):
        raise ValueError(
            f"{text.strip() or 'an empty value'} is not {KINDS[kind]}; as in {name}={_example(name)}."
        ) from None
    return value


def _example(name: str) -> str:
    return {int: "1,2,3", float: "0.001,0.003", bool: "true,false"}.get(
        field_types()[name], ",".join(map(str, SWEEPABLE[name].choices[:2]))
    )


def _ends(dimension: Dimension) -> Sequence[Any]:
    """All values of a choice, the ends of an interval."""
    return dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)


def _cross_field_errors(dimensions: Sequence[Dimension], fixed: Mapping[str, Any]) -> Iterator[str]:
    """Problems with pairs of values that are valid separately; all such rules are about two fields."""
    fixed = {**fixed, **{dimension.name: _ends(dimension)[0] for dimension in dimensions}}
    for first, second in itertools.combinations_with_replacement(dimensions, 2):
        for values in itertools.product(_ends(first), _ends(second)):
            for problem in problems_of({**fixed, first.name: values[0], second.name: values[1]}):
                yield f"{problem} The sweep would try this combination."


# --- Sampling ---------------------------------------------------------------------------------------------------------

MAX_DRAWS = 2**14  # the last of 1000 combinations is drawn after about 7500 draws, rarely later
MAX_PROPOSALS = 8
SEEDS = 2**31  # numpy takes no more; larger seeds wrap around


def draw(space: SearchSpace, sampling: str, seed: int, count: int) -> list[dict[str, Any]]:
    """The settings of the first `count` trials, without repeats; a longer list starts the same. Not for bayesian."""
    if sampling == "grid":
        return list(itertools.islice(space.combinations(), count))
    stream = (_sobol if sampling == "sobol" else _random)(space, seed % SEEDS)
    return list(itertools.islice(stream if space.size is None else _without_repeats(stream, space), count))


def _random(space: SearchSpace, seed: int) -> Iterator[dict[str, Any]]:
    import optuna

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
            pairs = zip(space.dimensions, point, strict=True)
            yield {dimension.name: value_at(dimension, float(share)) for dimension, share in pairs}


def _without_repeats(stream: Iterator[dict[str, Any]], space: SearchSpace) -> Iterator[dict[str, Any]]:
    """The combinations in the order of their first draw, then those that were not drawn."""
    seen = set()
    for settings in itertools.chain(itertools.islice(stream, MAX_DRAWS), space.combinations()):
        key = tuple(settings.values())
        if key not in seen:
            seen.add(key)
            yield settings


def value_at(dimension: Dimension, share: float) -> Any:
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
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        dimension.name: CategoricalDistribution(dimension.values)
        if isinstance(dimension, Choice)
        else FloatDistribution(dimension.low, dimension.high, log=dimension.log)
        for dimension in space.dimensions
    }


def propose(space: SearchSpace, objective: Objective, seed: int, trials: Sequence[Trial]) -> dict[str, Any]:
    """The next trial's settings by Bayesian sampling. trials: those that have started, all from number 0 on.

    Each trial and each attempt has its own seed. In a finite space the result is a combination that was not tried
    before, as long as there is one.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ranges = distributions(space)
    past = [_as_optuna_trial(trial, ranges) for trial in trials]

    def proposal(attempt: int) -> dict[str, Any]:
        sampler = optuna.samplers.TPESampler(
            seed=seed % SEEDS + len(trials) + attempt * MAX_TRIALS, n_startup_trials=max(4, 2 * len(ranges))
        )
        study = optuna.create_study(direction=objective.direction, sampler=sampler)
        study.add_trials(past)
        return dict(study.ask(ranges).params)

    first = proposal(0)
    if space.size is None:
        return first
    tried = [trial.settings for trial in trials]
    candidates = itertools.chain([first], map(proposal, range(1, MAX_PROPOSALS)), space.combinations())
    return next((settings for settings in candidates if settings not in tried), first)


def _as_optuna_trial(trial: Trial, ranges: dict[str, BaseDistribution]) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    if not trial.has_ended:
        state = TrialState.RUNNING
    elif trial.state == "failed" or trial.objective is None:
        state = TrialState.FAIL
    else:
        state = TrialState.COMPLETE
    value = trial.objective if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, params=trial.settings, distributions=ranges)
