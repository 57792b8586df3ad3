"""A hypothesis strategy for valid configurations, derived from the fields of TrainConfig."""

from __future__ import annotations

import math
from dataclasses import Field, fields
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from msggan.config import TrainConfig, field_types, problems_of


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    """Configurations in which any of the fields are set, each to any valid value."""
    values: dict[str, Any] = {spec.name: draw(st.none() | _values(spec)) for spec in fields(TrainConfig)}
    assume(not problems_of(values))  # each is valid, and so is their combination
    return TrainConfig(**values)


def _values(spec: Field[Any]) -> st.SearchStrategy[Any]:
    about, kind = spec.metadata, field_types()[spec.name]
    if kind is bool:
        return st.booleans()
    if about["choices"]:
        return st.sampled_from(about["choices"])
    if about["pattern"]:
        return st.from_regex(about["pattern"], fullmatch=True)
    low, high = about["range"].low, about["range"].high
    if about["power_of_two"]:
        return st.sampled_from([1 << power for power in range(int(high).bit_length()) if low <= 1 << power <= high])
    if kind is int:
        return st.integers(int(low), int(high))
    return st.floats(
        low, None if math.isinf(high) else high, exclude_min=not about["range"].low_included, allow_infinity=False
    )
