"""Which runs are there on this machine, and where is the one that is meant?"""

from __future__ import annotations

import os
from difflib import get_close_matches

RUNS_NAMED = 8


def find_run(named: str, runs_dir: str) -> str | None:
    """The folder of the run NAME in `runs_dir`, or else what lies at that path; None where there is neither."""
    for path in (os.path.join(runs_dir, named), named):
        if named and os.path.exists(path):
            return path
    return None


def run_problems(named: str, runs_dir: str) -> list[str]:
    """Every complaint about what names a run."""
    if find_run(named, runs_dir) is not None:
        return []
    return [f"No run {named!r} in {runs_dir}, and no such folder. {_what_there_is(named, run_names(runs_dir))}"]


def run_names(runs_dir: str) -> list[str]:
    """The runs in a folder, in order of their names."""
    try:
        names = os.listdir(runs_dir)
    except OSError:
        return []
    return sorted(name for name in names if os.path.isfile(os.path.join(runs_dir, name, "config.json")))


def _what_there_is(named: str, names: list[str]) -> str:
    if near := get_close_matches(named, names, n=3):
        return f"Did you mean {' or '.join(near)}?"
    if not names:
        return "There is none yet: msggan-aml submit --data FOLDER begins one."
    more = f" and {len(names) - RUNS_NAMED} more" if len(names) > RUNS_NAMED else ""
    return f"There are {', '.join(names[:RUNS_NAMED])}{more}."
