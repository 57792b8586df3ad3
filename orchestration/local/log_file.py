"""What has a run said so far, and what does it say from now on?"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

PAUSE_SECONDS = 0.2


def last_lines(path: Path, tail: int | None) -> list[str]:
    """The last `tail` lines of a file, all of them for None; none where there is no file."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=tail)]
    except FileNotFoundError:
        return []


def follow_lines(path: Path, tail: int | None, *, continues: Callable[[], bool]) -> Iterator[str]:
    """The last `tail` lines of a file and then each line as it is written, until nothing writes to it any more."""
    while not path.exists():
        if not continues():
            return
        time.sleep(PAUSE_SECONDS)
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from (line.rstrip("\n") for line in deque(file, maxlen=tail))
        alive = True
        while alive:
            alive = continues()  # before reading: what was written up to the end is read in the last round
            yield from _whole_lines(file, or_rest=not alive)
            if alive:
                time.sleep(PAUSE_SECONDS)


def _whole_lines(file: TextIO, *, or_rest: bool) -> Iterator[str]:
    """The lines from here on; a last one that is only half written waits for its end, unless none will come."""
    while True:
        here = file.tell()
        line = file.readline()
        if not line.endswith("\n") and not (line and or_rest):
            file.seek(here)
            return
        yield line.rstrip("\n")
