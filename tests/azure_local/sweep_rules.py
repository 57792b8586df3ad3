"""Validation of sweep jobs: search spaces, sampling and limits that the service rejects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

CONTINUOUS = ("uniform", "loguniform", "normal", "lognormal", "quniform", "qloguniform", "qnormal", "qlognormal")
NUMBERS = {name: 3 if name.startswith("q") else 2 for name in CONTINUOUS}
NOT_BAYESIAN = ("lognormal", "normal", "qnormal", "qlognormal", "qloguniform", "loguniform", "randint")


def wrong_sweep(wanted: dict[str, Any]) -> Iterator[str]:
    space = wanted["searchSpace"]
    if not space:
        yield "searchSpace is empty"
    for name, given in space.items():
        yield from wrong_parameter(name, given, wanted["samplingAlgorithm"]["samplingAlgorithmType"])
    limits = wanted.get("limits") or {}
    if (limits.get("maxConcurrentTrials") or 1) > (limits.get("maxTotalTrials") or 1000):
        yield "maxConcurrentTrials is above maxTotalTrials"
    policy = wanted.get("earlyTermination") or {}
    if policy.get("policyType") == "Bandit" and not (policy.get("slackFactor") or policy.get("slackAmount")):
        yield "a Bandit policy needs slackFactor or slackAmount"
    if "${{search_space." not in wanted["trial"]["command"]:
        yield "the trial's command uses no ${{search_space.…}}"


def wrong_parameter(name: str, given: Any, sampling: str) -> Iterator[str]:
    """`given` is [kind, [arguments]], such as ["uniform", [0.1, 0.9]]."""
    where = f"searchSpace.{name}"
    if not (isinstance(given, list) and len(given) == 2 and isinstance(given[1], list)):
        yield f"{where} must be [kind, [arguments]], not {given!r}"
        return
    kind, arguments = given
    if kind == "choice":
        if not arguments or not arguments[0]:
            yield f"{where} has nothing to choose from"
    elif kind == "randint":
        if len(arguments) != 1 or not isinstance(arguments[0], int) or arguments[0] < 1:
            yield f"{where}: randint needs one whole number above 0"
    elif kind in CONTINUOUS:
        yield from wrong_range(where, kind, arguments)
    else:
        yield f"{where} has the unknown kind {kind!r}"
    if sampling == "Grid" and kind != "choice":
        yield f"{where}: grid sampling takes choices only"
    if sampling == "Bayesian" and kind in NOT_BAYESIAN:
        yield f"{where}: Bayesian sampling does not take {kind}"


def wrong_range(where: str, kind: str, arguments: list[Any]) -> Iterator[str]:
    if len(arguments) != NUMBERS[kind] or not all(isinstance(number, (int, float)) for number in arguments):
        yield f"{where}: {kind} needs {NUMBERS[kind]} numbers, not {arguments!r}"
    elif "uniform" in kind and arguments[0] >= arguments[1]:
        yield f"{where}: the minimum {arguments[0]} is not below the maximum {arguments[1]}"
    elif "normal" in kind and arguments[1] <= 0:
        yield f"{where}: the deviation must be above 0"
