"""The search space of a sweep: `--over NAME`, `NAME=LOW..HIGH` and `NAME=a,b,c`, parsed and checked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from msggan.commands.options import nearest
from msggan.config import KINDS, Sweep, TrainConfig, explicit_values, field_types, flag, problems_of
from msggan.errors import UsageError

SWEEPABLE: Mapping[str, Sweep] = {
    spec.name: spec.metadata["sweep"] for spec in fields(TrainConfig) if spec.metadata["sweep"] is not None
}
BOOLEANS = {"true": True, "false": False}
MAX_VALUES = 1000  # of one choice


@dataclass(frozen=True)
class Choice:
    """A field that takes one of these values."""

    name: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name}={','.join(map(written, self.values))}"


@dataclass(frozen=True)
class Interval:
    """A field that takes any number in [low, high]; log: uniform in the logarithm."""

    name: str
    low: float
    high: float
    log: bool

    def __str__(self) -> str:
        return f"{self.name}={written(self.low)}..{written(self.high)}"


Dimension = Choice | Interval


@dataclass(frozen=True)
class SearchSpace:
    """The fields that are searched, in the order of --over. `str` of a dimension is what --over takes."""

    dimensions: tuple[Dimension, ...]

    @property
    def names(self) -> list[str]:
        return [dimension.name for dimension in self.dimensions]

    @property
    def is_grid(self) -> bool:
        """Whether the number of combinations is finite."""
        return all(isinstance(dimension, Choice) for dimension in self.dimensions)

    @property
    def size(self) -> int | None:
        """The number of combinations, None if it is infinite."""
        return math.prod(len(dimension.values) for dimension in self._choices) if self.is_grid else None

    @property
    def _choices(self) -> list[Choice]:
        return [dimension for dimension in self.dimensions if isinstance(dimension, Choice)]

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination of a grid; the last field changes fastest."""
        values = [dimension.values for dimension in self._choices]
        return (dict(zip(self.names, combination, strict=True)) for combination in itertools.product(*values))

    def as_texts(self) -> list[str]:
        """What --over takes."""
        return [str(dimension) for dimension in self.dimensions]


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
    problems += _repeated(dimensions) + _also_fixed(dimensions, config)
    if not problems:
        problems = list(dict.fromkeys(_cross_field_errors(dimensions, config)))
    if problems:
        raise UsageError(problems)
    return SearchSpace(tuple(dimensions))


def _as_text(name: str, values: Any) -> str:
    """What --over takes for one item of a mapping."""
    if values is None:
        return name
    if isinstance(values, tuple) and len(values) == 2:
        return f"{name}={written(values[0])}..{written(values[1])}"
    if isinstance(values, list):
        return f"{name}={','.join(map(written, values))}"
    raise UsageError([f"--over {name}: {values!r} is not None, a tuple (low, high) or a list of values."])


def _read_dimension(text: str) -> Dimension:
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    if name not in SWEEPABLE:
        raise UsageError([f"--over {text}: {_not_sweepable(name)}"])
    try:
        return _default_range(name) if not equals else _given_range(name, values)
    except ValueError as error:
        raise UsageError([f"--over {text}: {error}"]) from None


def _not_sweepable(name: str) -> str:
    if name in field_types():
        return f"{flag(name)} cannot be searched: its trials could not be compared. {_what_can()}"
    near = nearest(name, SWEEPABLE)
    return f"there is no option {flag(name)}. {f'Did you mean {near[0]}?' if near else _what_can()}"


def _what_can() -> str:
    return f"Searchable: {', '.join(SWEEPABLE)}."


def _default_range(name: str) -> Dimension:
    sweep = SWEEPABLE[name]
    if sweep.choices:
        return Choice(name, sweep.choices)
    if sweep.low is None or sweep.high is None:
        raise ValueError(f"has no default range; list values, as in {name}=1,2,3.")
    return _range(name, sweep.low, sweep.high)


def _given_range(name: str, values: str) -> Dimension:
    low, dots, high = values.partition("..")
    if not dots:
        return _choice(name, values)
    if field_types()[name] not in (int, float):
        raise ValueError(f"is not a number; list values, as in {name}={_example(name)}.")
    return _range(name, _number(name, low), _number(name, high))


def _range(name: str, low: float, high: float) -> Dimension:
    log = SWEEPABLE[name].log
    if low >= high:
        swapped = f" Did you mean {name}={written(high)}..{written(low)}?" if low > high else ""
        raise ValueError(f"{written(low)} is not below {written(high)}.{swapped}")
    if log and low <= 0:
        raise ValueError(
            f"is searched on a log scale, so LOW must be above 0; or list values, as in {name}={_example(name)}."
        )
    if field_types()[name] is float:
        _check_values(name, (low, high))
        return Interval(name, float(low), float(high), log)
    if not log and high - low >= MAX_VALUES:
        raise ValueError(f"has more than {MAX_VALUES} values; list some, as in {name}={_example(name)}.")
    numbers = _powers_of_two(low, high) if log else tuple(range(int(low), int(high) + 1))
    if len(numbers) < 2:
        raise ValueError(f"has fewer than two powers of two; list values, as in {name}=4,6,8.")
    _check_values(name, numbers)
    return Choice(name, numbers)


def _powers_of_two(low: float, high: float) -> tuple[int, ...]:
    return tuple(1 << power for power in range(math.ceil(math.log2(low)), int(high).bit_length()))


def _choice(name: str, text: str) -> Choice:
    items = [item.strip() for item in text.split(",")]
    if not any(items):
        raise ValueError(f"has no values; as in {name}={_example(name)}.")
    if not all(items):
        raise ValueError("has an empty value.")
    values = tuple(_value(name, item) for item in items)
    if len(set(values)) < len(values):
        raise ValueError("has a value twice.")
    _check_values(name, values)
    return Choice(name, values)


def _value(name: str, text: str) -> Any:
    kind = field_types()[name]
    if kind is bool:
        if text not in BOOLEANS:
            raise ValueError(f"{text} is not {KINDS[bool]}.")
        return BOOLEANS[text]
    return _number(name, text) if kind in (int, float) else text


def _number(name: str, text: str) -> float:
    kind = field_types()[name]
    try:
        number: float = kind(text)
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text.strip() or 'an empty value'} is not {KINDS[kind]}; as in {name}={_example(name)}."
        ) from None
    return number


def _example(name: str) -> str:
    return {int: "1,2,3", float: "0.001,0.003", bool: "true,false"}.get(
        field_types()[name], ",".join(map(str, SWEEPABLE[name].choices[:2]))
    )


def _check_values(name: str, values: Sequence[Any]) -> None:
    if problems := [problem for value in values for problem in problems_of({name: value})]:
        raise ValueError(" ".join(problems))


def _repeated(dimensions: Sequence[Dimension]) -> list[str]:
    names = [dimension.name for dimension in dimensions]
    return [f"--over {name}: is given more than once." for name in dict.fromkeys(names) if names.count(name) > 1]


def _also_fixed(dimensions: Sequence[Dimension], config: TrainConfig) -> list[str]:
    fixed = explicit_values(config)
    return [
        f"--over {dimension.name}: conflicts with {flag(dimension.name)} {written(fixed[dimension.name])}. Remove one."
        for dimension in dimensions
        if dimension.name in fixed
    ]


def _cross_field_errors(dimensions: Sequence[Dimension], config: TrainConfig) -> Iterator[str]:
    """Problems with pairs of values that are valid alone; all such rules are about two fields."""
    choices = [dimension for dimension in dimensions if isinstance(dimension, Choice)]
    for one, other in itertools.combinations_with_replacement(choices, 2):
        for first, second in itertools.product(one.values, other.values):
            for problem in problems_of({**explicit_values(config), one.name: first, other.name: second}):
                yield f"{problem} The sweep would try this combination."


def written(value: Any) -> str:
    """A value as on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)
