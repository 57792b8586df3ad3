"""What a job may cost at most, how a ceiling limits it, and how costs are printed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msggan.errors import RefusedError
from orchestration.costs import START_HOURS, Estimate, cluster_costs, cluster_refusal
from orchestration.money import Amount, Price

PRICE = Price(0.5, 0.1, "USD", "Azure ML", "2026-11-26")
JOB = Estimate(size="Standard_NC4as_T4_v3", low_priority=False, job_hours=24, idle_hours=0.25, price=PRICE)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("5", Amount(5)),
        (5.0, Amount(5)),
        (" 4.50 eur", Amount(4.5, "EUR")),
        ("EUR4.50", Amount(4.5, "EUR")),
        ("12USD", Amount(12)),
    ],
)
def test_an_amount_is_a_number_of_us_dollars_or_names_its_currency(text: object, amount: Amount) -> None:
    assert Amount.parse(text) == amount


@pytest.mark.parametrize("text", ["", "0", "-1", "1,50", "5 GBP", "USD 5 EUR", "nan", float("inf"), True, "1e3"])
def test_other_texts_are_no_amount(text: object) -> None:
    with pytest.raises(ValueError, match="is not an amount of money"):
        Amount.parse(text)


def test_a_job_costs_at_most_its_time_limit_its_start_and_its_release() -> None:
    assert JOB.machine_hours == 24 + START_HOURS + 0.25
    assert JOB.at_most == Amount(12.25)  # 24.5 × 0.5
    assert JOB.likely is None


def test_a_sweep_costs_at_most_all_its_trials_or_its_own_time_limit() -> None:
    sweep = Estimate(size="S", low_priority=True, job_hours=2, jobs=8, concurrent=4, idle_hours=0.5, price=PRICE)
    assert sweep.machine_hours == 8 * 2.25 + 4 * 0.5
    assert sweep.at_most == Amount(2.0)  # 20 × 0.1
    limited = Estimate(size="S", low_priority=True, job_hours=2, jobs=8, concurrent=4, total_hours=1)
    assert limited.machine_hours == 4 * 1.25


@given(
    jobs=st.integers(1, 40),
    concurrent=st.integers(1, 8),
    job_hours=st.floats(0.01, 504),
    total_hours=st.none() | st.floats(0.1, 504),
    max_cost=st.floats(0.01, 2000),
)
def test_a_plan_within_a_ceiling_never_costs_more(
    jobs: int, concurrent: int, job_hours: float, total_hours: float | None, max_cost: float
) -> None:
    concurrent = min(jobs, concurrent)
    plan = Estimate(
        size="S",
        low_priority=False,
        job_hours=job_hours,
        idle_hours=0.1,
        jobs=jobs,
        concurrent=concurrent,
        total_hours=total_hours if jobs > 1 else None,
        price=PRICE,
    )
    try:
        limited = plan.within(Amount(max_cost))
    except RefusedError:
        return
    assert 0.5 * limited.machine_hours <= max_cost * (1 + 1e-9)
    assert limited.job_hours <= job_hours
    assert limited.machine_hours <= plan.machine_hours


def test_a_ceiling_sets_the_time_limit_and_refuses_what_would_be_useless() -> None:
    assert JOB.within(Amount(100)).job_hours == 24
    assert JOB.within(Amount(5)).job_hours == 10 - START_HOURS - 0.25
    with pytest.raises(RefusedError) as refused:
        JOB.within(Amount(0.25))
    assert refused.value.message == (
        "--max-cost 0.25 USD: even the shortest useful job costs 0.30 USD, with 5 minutes of training on "
        "Standard_NC4as_T4_v3, its start and its release."
    )
    assert refused.value.hint == "Use --max-cost 0.30USD or more, --low-priority or a smaller machine."
    assert refused.value.exit_code == 3


def test_a_ceiling_in_an_unknown_price_is_refused() -> None:
    for unknown in (
        Estimate(size="S", low_priority=False, job_hours=1, no_price="There is no list."),
        Estimate(size="S", low_priority=True, job_hours=1, price=Price(1, None, "USD", "", "")),
    ):
        with pytest.raises(RefusedError, match="the price of S is unknown"):
            unknown.within(Amount(5))
    with pytest.raises(RefusedError, match=r"5\.00 EUR: the price of Standard_NC4as_T4_v3 is unknown"):
        JOB.within(Amount(5, "EUR"))


def test_costs_of_a_cluster_are_reported_with_when_they_stop() -> None:
    assert cluster_costs(JOB, "Standard_NC4as_T4_v3 (1 GPU)", 0) == (
        "Each machine, Standard_NC4as_T4_v3 (1 GPU), costs 0.5 USD per hour from when a job needs it until 15 minutes "
        "after the last job; then it is released.",
        "At low priority it costs 0.1 USD per hour. Source: Azure ML, 2026-11-26.",
        "A job of 24 hours (--timeout-hours) costs 12.25 USD at most.",
        "Without jobs the cluster costs nothing.",
    )
    kept = cluster_costs(replace(JOB, jobs=4, concurrent=4), "M", 2)
    assert kept[2] == "4 jobs of 24 hours at once (--max-nodes) cost 49.00 USD at most."
    assert kept[3] == (
        "2 of them cost money around the clock: 730.00 USD a month, until --min-nodes 0 or provision --delete."
    )
    unknown = cluster_costs(replace(JOB, price=None, no_price="There is no list."), "M", 1)
    assert unknown[1:3] == (
        "The price is unknown. There is no list.",
        "A job of 24 hours (--timeout-hours) takes 24.5 machine hours at most.",
    )


def test_a_ceiling_refuses_machines_around_the_clock() -> None:
    limited = replace(JOB, max_cost=Amount(5))
    assert cluster_refusal(limited, 0) == cluster_refusal(JOB, 3) == ""
    assert cluster_refusal(limited, 2) == (
        "2 machines around the clock cost 730.00 USD a month, more than --max-cost 5.00 USD"
    )
    assert "unknown" in cluster_refusal(replace(limited, price=None), 1)


def test_an_estimate_is_printed_with_its_price_and_its_hours() -> None:
    assert JOB.as_lines() == [
        "Cost: 12.25 USD at most: 24.5 machine hours of Standard_NC4as_T4_v3, 0.5 USD per hour; at low priority "
        "0.1 USD per hour (Azure ML, 2026-11-26).",
        "These hours are the time limit of 24 hours (--timeout-hours), with about 15 minutes to start and 15 minutes "
        "until a machine is released.",
    ]
