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
class Reporter:
    """info(line): prints a line. progress(label, done, total): moves the bar of that label; in bytes."""

    info: Callable[[str], None] = _to_stderr
    progress: Callable[[str, int, int], None] = _without_bar
