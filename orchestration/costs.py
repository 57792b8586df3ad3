"""Costs on Azure: what a job may cost at most, and what runs have cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msggan.errors import RefusedError
from orchestration.money import Amount, Price, format_rate

# A machine is paid for from its allocation: it starts and pulls the image of the environment before the job runs.
# A guess: see "Guesses" in tests/azure_local/README.md.
START_HOURS = 0.25
SHORTEST_HOURS = 5 / 60  # of training: a shorter job is not worth its start
HOURS_PER_MONTH = 730


# --- Before a job -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job costs at most, or a sweep.

    job_hours: the time limit of each job. jobs: 1, or the trials of a sweep. concurrent: how many run at once.
    total_hours: the time limit of the sweep, None for none. idle_hours: until a machine without a job is released.
    price: None where it is unknown, for the reason in `no_price`. likely_hours: of training, at the speed that the run
    had in an earlier job, None where there was none. stored_bytes: what msggan has stored so far, None if unknown.
    """

    size: str
    low_priority: bool
    job_hours: float
    idle_hours: float = 0.0
    jobs: int = 1
    concurrent: int = 1
    total_hours: float | None = None
    price: Price | None = None
    no_price: str = ""
    max_cost: Amount | None = None
    likely_hours: float | None = None
    stored_bytes: int | None = None

    @property
    def machine_hours(self) -> float:
        """The hours at most, of all machines together."""
        hours = self.jobs * (self.job_hours + START_HOURS)
        if self.total_hours is not None:
            hours = min(hours, self.concurrent * (self.total_hours + START_HOURS))
        return hours + self.concurrent * self.idle_hours

    @property
    def per_hour(self) -> Amount | None:
        return None if self.price is None else self.price.per_hour(low_priority=self.low_priority)

    @property
    def at_most(self) -> Amount | None:
        """What the machines cost at most, None if their price is unknown."""
        return None if self.per_hour is None else (self.per_hour * self.machine_hours).rounded_up()

    @property
    def likely(self) -> Amount | None:
        """What the machine costs at the run's speed so far, None where the speed or the price is unknown."""
        if self.per_hour is None or self.likely_hours is None:
            return None
        hours = min(self.likely_hours, self.job_hours) + START_HOURS + self.idle_hours
        return (self.per_hour * hours).rounded_up()

    def within(self, max_cost: Amount | None) -> Estimate:
        """The same with time limits with which it costs `max_cost` at most.

        Raises RefusedError if the price is unknown, or if even the shortest useful job would cost more.
        """
        if max_cost is None:
            return self
        limited = replace(self, max_cost=max_cost)
        per_hour = self.per_hour
        if per_hour is None or per_hour.currency != max_cost.currency:
            raise RefusedError(
                f"--max-cost {max_cost}: the price of {self.size} is unknown. {self.no_price}".rstrip(),
                "Limit the time instead of the cost: --timeout-hours.",
            )
        if per_hour.value * self.machine_hours <= max_cost.value:
            return limited
        hours = max_cost.value / per_hour.value / self.concurrent - START_HOURS - self.idle_hours
        shortest = math.ceil(self.jobs / self.concurrent) * min(SHORTEST_HOURS, self.job_hours)
        if hours < shortest:
            least = per_hour * (self.concurrent * (shortest + START_HOURS + self.idle_hours))
            raise self._too_expensive(max_cost, least.rounded_up())
        total_hours = None if self.jobs == 1 else min(hours, self.total_hours or hours)
        return replace(limited, job_hours=min(self.job_hours, hours), total_hours=total_hours)

    def _too_expensive(self, max_cost: Amount, least: Amount) -> RefusedError:
        what = "job" if self.jobs == 1 else f"sweep of {self.jobs} trials"
        cheaper = "a smaller machine" if self.low_priority else "--low-priority or a smaller machine"
        return RefusedError(
            f"--max-cost {max_cost}: even the shortest useful {what} costs {least}, with {SHORTEST_HOURS * 60:.0f} "
            f"minutes of training{'' if self.jobs == 1 else ' each'} on {self.size}, its start and its release.",
            f"Use --max-cost {least.value:.2f}{least.currency} or more, {cheaper}.",
        )

    def as_json(self) -> dict[str, Any]:
        at_most, likely = self.at_most, self.likely
        return {
            "machine": self.size,
            "low_priority": self.low_priority,
            "machines": self.concurrent,
            "machine_hours": round(self.machine_hours, 3),
            "time_limit_hours": round(self.job_hours, 3),
            "price": self.price.as_json() if self.price else None,
            "currency": at_most.currency if at_most else None,
            "at_most": at_most.value if at_most else None,
            "likely": likely.value if likely else None,
            "likely_hours": None if self.likely_hours is None else round(self.likely_hours, 3),
            "stored_bytes": self.stored_bytes,
            "max_cost": str(self.max_cost) if self.max_cost else None,
        }

    def as_lines(self) -> list[str]:
        lines = [self._at_most_line(), self._hours_line(), self._likely_line()]
        if self.max_cost is not None:
            lines.append(f"--max-cost {self.max_cost} limits each job to {format_hours(self.job_hours)}.")
        if self.stored_bytes is not None:
            lines.append(storage_line(self.stored_bytes))
        return [line for line in lines if line]

    def _at_most_line(self) -> str:
        hours = f"{self.machine_hours:.1f} machine hours of {self.size}"
        if self.price is None or self.per_hour is None:
            return f"Cost: unknown, {hours} at most. {self.no_price}".rstrip()
        other = self.price.per_hour(low_priority=not self.low_priority)
        compared = f"; {'dedicated' if self.low_priority else 'at low priority'} {format_rate(other)}" if other else ""
        tier = " at low priority" if self.low_priority else ""
        read = f"{self.price.source}, {self.price.date}"
        return f"Cost: {self.at_most} at most: {hours}{tier}, {format_rate(self.per_hour)}{compared} ({read})."

    def _hours_line(self) -> str:
        limit = f"{format_hours(self.job_hours)} (--timeout-hours)"
        what = f"the time limit of {limit}" if self.jobs == 1 else f"{self.jobs} trials of {limit} each"
        if self.total_hours is not None:
            what += f", {format_hours(self.total_hours)} in all, {self.concurrent} at once"
        return f"These hours are {what}, with about {format_hours(START_HOURS)} to start" + (
            f" and {format_hours(self.idle_hours)} until a machine is released." if self.idle_hours else "."
        )

    def _likely_line(self) -> str:
        if self.likely_hours is None:
            return ""
        longer = " It will not be complete; the same command resumes it." if self.likely_hours > self.job_hours else ""
        cost = f"{self.likely}, " if self.likely else ""
        return f"Likely: {cost}{format_hours(self.likely_hours)} of training at the speed of its earlier job.{longer}"


def cluster_costs(estimate: Estimate, machine: str, min_nodes: int) -> tuple[str, ...]:
    """What a cluster costs and when that stops, a sentence each. machine: the description of its VM size."""
    idle, per_hour, nodes = format_hours(estimate.idle_hours), estimate.per_hour, estimate.concurrent
    price = f"costs {format_rate(per_hour)}" if per_hour else "costs money"
    while_used = f"Each machine, {machine}, {price} from when a job needs it until {idle} after the last job"
    limit = format_hours(estimate.job_hours)
    jobs = f"A job of {limit} (--timeout-hours)" if nodes == 1 else f"{nodes} jobs of {limit} at once (--max-nodes)"
    if estimate.price is None or per_hour is None:
        prices = f"The price is unknown. {estimate.no_price}".rstrip()
        at_most = f"{jobs} {'takes' if nodes == 1 else 'take'} {estimate.machine_hours:.1f} machine hours at most."
    else:
        other = estimate.price.per_hour(low_priority=not estimate.low_priority)
        tier = "Dedicated it costs" if estimate.low_priority else "At low priority it costs"
        source = f"Source: {estimate.price.source}, {estimate.price.date}."
        prices = (f"{tier} {format_rate(other)}. " if other else "") + source
        at_most = f"{jobs} {'costs' if nodes == 1 else 'cost'} {estimate.at_most} at most."
    lines = (f"{while_used}; then it is released.", prices, at_most)
    if not min_nodes:
        return (*lines, "Without jobs the cluster costs nothing.")
    month = f": {monthly(per_hour, min_nodes)} a month" if per_hour else ""
    verb = "costs" if min_nodes == 1 else "cost"
    return (
        *lines,
        f"{min_nodes} of them {verb} money around the clock{month}, until --min-nodes 0 or provision --delete.",
    )


@dataclass(frozen=True)
class Monthly:
    """What is paid for beside machines, a month of one of each: `disk`, `load_balancer`, `public_ip`, `gigabyte` and
    `registry`. source: the list of prices, and when it was read.
    """

    amounts: Mapping[str, Amount]
    source: str = ""

    def of(self, *names: str) -> Amount | None:
        """The sum of these, None if one of them is unknown."""
        found = [self.amounts[name] for name in names if name in self.amounts]
        return Amount(sum(one.value for one in found), found[0].currency) if len(found) == len(names) else None

    def per_hour(self, *names: str) -> Amount | None:
        month = self.of(*names)
        return month and month * (1 / HOURS_PER_MONTH)

    def as_line(self) -> str:
        """What machines of a cluster cost beside their own price."""
        disk, network = self.per_hour("disk"), self.per_hour("load_balancer", "public_ip")
        source = f" ({self.source})" if self.source else ""
        return (
            f"In addition each machine has a disk: {_rate(disk)}; a cluster with machines, and until about two hours "
            f"later, a load balancer and a public IP address: {_rate(network)}{source}."
        )

    def as_json(self) -> dict[str, Any]:
        """Prices per hour, in the currency of the machines' price; None: unknown."""
        disk, network = self.per_hour("disk"), self.per_hour("load_balancer", "public_ip")
        return {
            "disk_per_hour": disk and round(disk.value, 6),
            "network_per_hour": network and round(network.value, 6),
        }


def _rate(per_hour: Amount | None) -> str:
    """A price per hour, or per month where that is a fraction of a cent."""
    if per_hour is None:
        return "price unknown"
    return format_rate(per_hour) if per_hour.value >= 0.01 else f"{per_hour * HOURS_PER_MONTH} per month"


def monthly(per_hour: Amount, machines: int) -> Amount:
    """What machines cost around the clock."""
    return per_hour * (machines * HOURS_PER_MONTH)


def cluster_refusal(estimate: Estimate, min_nodes: int) -> str:
    """Why a cluster with so many machines around the clock is more than --max-cost allows; empty if it is not."""
    if estimate.max_cost is None or not min_nodes:
        return ""
    machines = "1 machine around the clock costs" if min_nodes == 1 else f"{min_nodes} machines around the clock cost"
    if estimate.per_hour is None:
        return f"{machines} an unknown amount, and --max-cost is {estimate.max_cost}"
    cost = monthly(estimate.per_hour, min_nodes)
    is_more = cost.value > estimate.max_cost.value
    return f"{machines} {cost} a month, more than --max-cost {estimate.max_cost}" if is_more else ""


def storage_line(stored_bytes: int) -> str:
    return f"In storage: {format_bytes(stored_bytes)} so far, paid by the gigabyte and month until you delete it."


def format_bytes(size: int) -> str:
    gib = size / 2**30
    return f"{gib:.1f} GiB" if gib >= 1 else f"{1024 * gib:.1f} MiB"


def format_hours(hours: float) -> str:
    return f"{hours:.3g} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"


# --- After and during jobs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunCost:
    """What a run or a sweep has cost, all its jobs together.

    size: the machines of its newest job, empty if unknown. cost: at today's prices, None if one of them is unknown.
    """

    name: str
    state: str
    size: str
    low_priority: bool
    machine_hours: float
    cost: Amount | None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": self.state,
            "machine": self.size,
            "low_priority": self.low_priority,
            "machine_hours": round(self.machine_hours, 4),
            "cost": None if self.cost is None else round(self.cost.value, 4),
        }

    def as_row(self) -> tuple[str, ...]:
        machine = f"{self.size or 'unknown'}{' (low priority)' if self.low_priority else ''}"
        return self.name, self.state, machine, f"{self.machine_hours:.2f}", str(self.cost or "unknown")


@dataclass(frozen=True)
class OngoingCost:
    """Something in the workspace that could be costing money now. end: the command that ends it."""

    kind: str
    name: str
    reason: str
    per_hour: Amount | None
    end: str

    def as_json(self) -> dict[str, Any]:
        per_hour = None if self.per_hour is None else self.per_hour.value
        return {"kind": self.kind, "name": self.name, "reason": self.reason, "per_hour": per_hour, "end": self.end}

    def as_line(self) -> str:
        return f"{self.kind} {self.name}: {self.reason}; {_rate(self.per_hour)}. End it: {self.end}"


@dataclass(frozen=True)
class CostReport:
    """What runs have cost, and what could be costing money now. notes: further remarks, such as what was not read."""

    runs: Sequence[RunCost]
    ongoing: Sequence[OngoingCost]
    currency: str
    notes: Sequence[str] = ()

    @property
    def total(self) -> Amount:
        """Of the runs whose price is known."""
        return Amount(sum(run.cost.value for run in self.runs if run.cost), self.currency)

    def as_json(self) -> dict[str, Any]:
        return {
            "runs": [run.as_json() for run in self.runs],
            "total": round(self.total.value, 4),
            "currency": self.currency,
            "ongoing": [cost.as_json() for cost in self.ongoing],
            "notes": list(self.notes),
        }

    def as_rows(self) -> list[tuple[str, ...]]:
        """The runs as a table with headings."""
        return [("NAME", "STATE", "MACHINE", "HOURS", "COST"), *(run.as_row() for run in self.runs)]

    def as_lines(self) -> list[str]:
        """What follows the table of the runs."""
        lines = [f"Together: {self.total}" if self.runs else "No run has cost anything."]
        lines.append("Could be costing money now:" if self.ongoing else "Nothing else is known to cost money now.")
        return [*lines, *(f"  {cost.as_line()}" for cost in self.ongoing), *self.notes]
