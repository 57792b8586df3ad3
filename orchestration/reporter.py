"""How does a target speak to the person who waits for it? In lines, and in bars for what has a known size."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _without_bar(label: str, done: int, total: int) -> None:
    """Where nobody draws bars there is none."""


@dataclass(frozen=True)
class Voice:
    """tell(line): for people. show(label, bytes done, bytes in all): moves the bar of that label."""

    tell: Callable[[str], None] = _to_stderr
    show: Callable[[str, int, int], None] = _without_bar
