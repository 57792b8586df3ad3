"""Early stopping means what Azure ML means by it."""

from __future__ import annotations

from typing import Any

import pytest
from azure_local.early_termination import is_behind, is_judged_at
from hypothesis import given
from hypothesis import strategies as st

from orchestration.sweeps.trials import EarlyStopping, Objective, bandit_limit, decisions, reason_to_stop

SMALLER = Objective("swd", "minimize")
LARGER = Objective("images_per_second", "maximize")
MEDIAN = EarlyStopping("median")
POLICIES = [MEDIAN, EarlyStopping("bandit", slack_factor=0.2), EarlyStopping("truncation", percentage=30)]
curves = st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=5), min_size=1, max_size=5)


def test_the_policy_applies_at_multiples_of_the_interval_after_the_delay() -> None:
    assert list(decisions(EarlyStopping("median", interval=2, delay=5), 0, 9)) == [6, 8]
    assert list(decisions(EarlyStopping("median"), 3, 5)) == [4, 5]
    assert list(decisions(EarlyStopping("median", delay=3), 0, 5)) == [3, 4, 5], (
        "the first decision is at the delay itself"
    )
    assert list(decisions(EarlyStopping("median", interval=2, delay=4), 0, 6)) == [4, 6]


def test_the_median_policy_compares_the_best_value_with_the_median_of_the_running_averages() -> None:
    others = [[10.0, 6.0], [9.0, 9.0], [4.0, 4.0, 1.0]]  # averages of the first two: 8, 9, 4
    assert (
        reason_to_stop(MEDIAN, SMALLER, [9.0, 8.5], others, after=1) == "median: 8.5 is worse than 8 at measurement 2"
    )
    assert reason_to_stop(MEDIAN, SMALLER, [8.0, 20.0], others, after=1) == ""
    assert reason_to_stop(MEDIAN, SMALLER, [99.0], []) == ""


def test_only_trials_that_reached_the_same_measurement_are_compared() -> None:
    assert reason_to_stop(MEDIAN, SMALLER, [9.0, 9.0], [[1.0]], after=1) == ""


def test_the_bandit_policy_agrees_with_the_example_in_azures_documentation() -> None:
    """The best reports 0.8, larger is better, slack 0.2: 0.8 / (1 + 0.2) = 0.66…, as Microsoft's page has it."""
    bandit = EarlyStopping("bandit", slack_factor=0.2)
    assert bandit_limit(bandit, LARGER, 0.8) == pytest.approx(2 / 3)
    assert reason_to_stop(bandit, LARGER, [0.66], [[0.8]]) != ""
    assert reason_to_stop(bandit, LARGER, [0.67], [[0.8]]) == ""


def test_the_bandit_policy_of_a_minimized_objective_allows_larger_values() -> None:
    bandit = EarlyStopping("bandit", slack_factor=0.2)
    assert reason_to_stop(bandit, SMALLER, [12.0], [[10.0]]) == ""
    assert reason_to_stop(bandit, SMALLER, [12.5], [[10.0]]) == "bandit: 12.5 is worse than 12 at measurement 1"
    assert bandit_limit(EarlyStopping("bandit", slack_amount=3.0), SMALLER, 10.0) == 13.0
    assert bandit_limit(EarlyStopping("bandit", slack_amount=3.0), LARGER, 10.0) == 7.0


def test_the_truncation_policy_stops_the_given_percentage_of_trials() -> None:
    policy = EarlyStopping("truncation", percentage=20)
    others = [[float(value)] for value in (1, 2, 3, 4)]
    assert reason_to_stop(policy, SMALLER, [5.0], others) == "truncation: 5 is among the worst 1 of 5 at measurement 1"
    assert reason_to_stop(policy, SMALLER, [3.5], others) == ""
    assert reason_to_stop(policy, SMALLER, [5.0], others[:3]) == "", "a fifth of four trials is none"


@given(curves, st.sampled_from(POLICIES), st.sampled_from([SMALLER, LARGER]))
def test_the_best_trial_is_never_stopped(found: list[list[float]], policy: EarlyStopping, objective: Objective) -> None:
    best = (min if objective is SMALLER else max)(value for curve in found for value in curve)
    leader = [best] * max(map(len, found))
    assert reason_to_stop(policy, objective, leader, found) == ""


READINGS = [
    (EarlyStopping("median", interval=2, delay=4), {"policyType": "MedianStopping"}),
    (EarlyStopping("bandit", interval=2, delay=2, slack_factor=0.2), {"policyType": "Bandit", "slackFactor": 0.2}),
    (EarlyStopping("bandit", interval=2, delay=3, slack_amount=4.0), {"policyType": "Bandit", "slackAmount": 4.0}),
    (
        EarlyStopping("truncation", interval=2, delay=3, percentage=40),
        {"policyType": "TruncationSelection", "truncationPercentage": 40},
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), READINGS, ids=lambda policy: str(getattr(policy, "policy", "")))
@pytest.mark.parametrize("objective", [SMALLER, LARGER], ids=["minimize", "maximize"])
@given(curve=st.lists(st.integers(1, 9), min_size=1, max_size=6), others=st.lists(st.lists(st.integers(1, 9))))
def test_the_policies_agree_with_those_of_the_local_azure(
    ours: EarlyStopping, theirs: dict[str, Any], objective: Objective, curve: list[int], others: list[list[int]]
) -> None:
    """Both were written from Microsoft's page, which does not define a ratio of metrics below 0."""
    policy = {**theirs, "evaluationInterval": ours.interval, "delayEvaluation": ours.delay}
    own, rest = list(map(float, curve)), [list(map(float, other)) for other in others]
    ended = [
        interval
        for interval in range(1, len(own) + 1)
        if is_judged_at(policy, interval) and is_behind(policy, objective is SMALLER, own[:interval], rest)
    ]
    reason = reason_to_stop(ours, objective, own, rest)
    assert reason.endswith(f"at measurement {ended[0]}") if ended else reason == ""
