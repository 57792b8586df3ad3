"""Amounts of money, and the prices of machines."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

AMOUNT = re.compile(r"(?P<before>USD|EUR)? *(?P<value>\d+(?:\.\d+)?) *(?P<after>USD|EUR)?", re.IGNORECASE)


@dataclass(frozen=True)
class Amount:
    """An amount of money. currency: USD or EUR."""

    value: float
    currency: str = "USD"

    @classmethod
    def parse(cls, text: object) -> Amount:
        """The amount of a number of US dollars, or of a text with its currency. Raises ValueError if it is neither."""
        found = AMOUNT.fullmatch(str(text).strip())
        if found is None or (found["before"] and found["after"]) or not float(found["value"]):
            raise ValueError(f"{text}: is not an amount of money.")
        return cls(float(found["value"]), (found["before"] or found["after"] or "USD").upper())

    def __str__(self) -> str:
        return f"{self.value:.2f} {self.currency}"

    def as_setting(self) -> str:
        """The text that `parse` reads as the same amount."""
        return f"{self.value:.12g} {self.currency}"

    def __mul__(self, factor: float) -> Amount:
        return Amount(self.value * factor, self.currency)

    def rounded_up(self) -> Amount:
        """Rounded up to cents."""
        return Amount(math.ceil(round(100 * self.value, 6)) / 100, self.currency)


@dataclass(frozen=True)
class Price:
    """What a machine costs per hour, by tier; None: unknown.

    source: the list of prices. date: when it was read, as YYYY-MM-DD.
    """

    dedicated: float | None
    low_priority: float | None
    currency: str
    source: str
    date: str

    def per_hour(self, *, low_priority: bool) -> Amount | None:
        value = self.low_priority if low_priority else self.dedicated
        return None if value is None else Amount(value, self.currency)

    def as_json(self) -> dict[str, Any]:
        return {
            "per_hour": self.dedicated,
            "low_priority_per_hour": self.low_priority,
            "currency": self.currency,
            "source": self.source,
            "date": self.date,
        }


def format_rate(amount: Amount) -> str:
    return f"{amount.value:.4g} {amount.currency} per hour"
