"""What runs have cost by their machine hours, and what in the workspace could be costing money now. Only reads."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from msggan.errors import MsgganError
from orchestration.azure.blobs import PROJECT_FOLDER
from orchestration.azure.client import Client, is_provisioned
from orchestration.azure.estimates import read_stored
from orchestration.azure.history import (
    MAX_RUNS,
    Details,
    Machine,
    RunJobs,
    list_runs,
    read_children,
    read_details,
    require_jobs,
    state_of,
)
from orchestration.azure.prices import METERS, price_currency, read_monthly, read_price
from orchestration.azure.sizes import as_region, size_named
from orchestration.costs import CostReport, Monthly, OngoingCost, RunCost, format_bytes
from orchestration.money import Amount, Price

CONCURRENT_READS = 8


def report_costs(client: Client, name: str | None = None) -> CostReport:
    """The costs of a run or a sweep, or of all, and of what else is in the workspace. Raises MsgganError."""
    account = Account(client)
    runs = _runs(client, name)
    with ThreadPoolExecutor(CONCURRENT_READS) as threads:
        details = list(threads.map(lambda run: _details(client, run), runs))
    costs = [account.run_cost(run, found) for run, found in zip(runs, details, strict=True)]
    ongoing = [account.running(run, found) for run, found in zip(runs, details, strict=True) if is_running(found)]
    if name is None:
        ongoing += [*account.computes(details), *account.endpoints()]
        ongoing += account.storage()
        account.notes += [*account.registry(), account.beside.as_line()]
    return CostReport(costs, ongoing, account.currency, tuple(account.notes))


def _runs(client: Client, name: str | None) -> list[RunJobs]:
    if name is None:
        return [*list_runs(client, MAX_RUNS)[0], *list_runs(client, MAX_RUNS, sweeps=True)[0]]
    return [require_jobs(client, name)]


def _details(client: Client, run: RunJobs) -> list[Details]:
    """The jobs of a run that have machines, those of a sweep being its trials."""
    if run.is_sweep:
        return [child for job in run.jobs for child in read_children(client, job.name)]
    return [read_details(client, job.name) for job in run.jobs]


def is_running(jobs: Iterable[Details]) -> bool:
    return any(job.state in ("preparing", "running") for job in jobs)


def az(client: Client, command: str, name: str) -> str:
    """A command of the Azure CLI on a resource of the workspace."""
    where = client.workspace
    args = ["--name", name, "--resource-group", where.resource_group, "--workspace-name", where.workspace_name]
    return f"az ml {command} {shlex.join(args)}"


@dataclass
class Account:
    """Adds up costs in a workspace. notes: what could not be read, and where prices come from."""

    client: Client
    notes: list[str] = field(default_factory=list)
    _prices: dict[tuple[str, str], Price | None] = field(default_factory=dict)

    @property
    def currency(self) -> str:
        return price_currency(self.client)

    # --- Prices -------------------------------------------------------------------------------------------------------

    def per_hour(self, size: str, *, low_priority: bool, location: str = "") -> Amount | None:
        """What a machine costs per hour today; each price is read once."""
        location = as_region(location or str(self.client.about["location"]))
        key = (size.lower(), location)
        if size and key not in self._prices:
            price, reason = read_price(self.client, size_named(self.client, size, location), location)
            self._prices[key] = price
            note = f"Prices: {price.source}, {price.date}." if price else f"The price of {size} is unknown. {reason}"
            self._note(note)
        found = self._prices.get(key)
        return found.per_hour(low_priority=low_priority) if found else None

    def _note(self, line: str) -> None:
        self.notes += [] if line in self.notes else [line]

    # --- Runs ---------------------------------------------------------------------------------------------------------

    def machines(self, jobs: Iterable[Details]) -> list[Machine]:
        """The machines of jobs that have started; of a job whose history does not tell, those of its cluster."""
        return [self._known(job.machine) for job in jobs if job.machine is not None]

    def _known(self, machine: Machine) -> Machine:
        if machine.size:
            return machine
        cluster = self.clusters.get(machine.cluster, {})
        return replace(machine, size=str(cluster.get("vmSize") or ""), low_priority=is_low_priority(cluster))

    def _rates(self, machines: Iterable[Machine]) -> list[Amount | None]:
        return [self.per_hour(machine.size, low_priority=machine.low_priority) for machine in machines]

    def run_cost(self, run: RunJobs, jobs: Sequence[Details]) -> RunCost:
        machines = self.machines(jobs)
        newest = machines[-1] if machines else Machine("", "", low_priority=False, hours=0.0)
        paid = zip(self._rates(machines), machines, strict=True)
        costs = [None if rate is None else rate.value * machine.hours for rate, machine in paid]
        total = None if None in costs else Amount(sum(filter(None, costs)), self.currency)
        state = jobs[-1].state if jobs and not run.is_sweep else state_of(run.jobs[-1].status)
        hours = sum(machine.hours for machine in machines)
        return RunCost(run.run, state, newest.size, newest.low_priority, hours, total)

    def running(self, run: RunJobs, jobs: Sequence[Details]) -> OngoingCost:
        """A run that is training."""
        rates = self._rates(self.machines(job for job in jobs if is_running([job])))
        known = [rate.value for rate in rates if rate is not None]
        total = Amount(sum(known), self.currency) if known else None
        kind = "sweep" if run.is_sweep else "run"
        return OngoingCost(kind, run.run, "is training", total, f"msggan-aml cancel {run.run}")

    # --- What else there is -------------------------------------------------------------------------------------------

    @cached_property
    def all_computes(self) -> list[Mapping[str, Any]]:
        return list(self._list("computes"))

    @property
    def clusters(self) -> dict[str, Mapping[str, Any]]:
        """The properties of each cluster."""
        return {
            compute["name"]: compute["properties"].get("properties") or {}
            for compute in self.all_computes
            if compute["properties"].get("computeType") == "AmlCompute"
        }

    def computes(self, jobs: Iterable[Sequence[Details]]) -> Iterator[OngoingCost]:
        """Clusters with machines that no run of this project uses, and compute instances."""
        training = [job.machine.cluster for found in jobs for job in found if is_running([job]) and job.machine]
        for compute in self.all_computes:
            kind = compute["properties"].get("computeType")
            if kind == "AmlCompute":
                yield from self._cluster(compute, training.count(compute["name"]))
            elif kind == "ComputeInstance":
                yield self._instance(compute)

    def _cluster(self, compute: Mapping[str, Any], training: int) -> Iterator[OngoingCost]:
        name, values = compute["name"], compute["properties"].get("properties") or {}
        always = (values.get("scaleSettings") or {}).get("minNodeCount") or 0
        machines = max(values.get("currentNodeCount") or 0, always) - training
        if machines <= 0:
            return
        idle = (values.get("nodeStateCounts") or {}).get("idleNodeCount") or 0
        reason = f"{machines} machine{'s' if machines > 1 else ''} without a run of yours, {idle} idle"
        end = az(self.client, "compute delete", name)
        if always:
            reason += f"; it keeps {always} around the clock"
            ours = is_provisioned(compute.get("tags"))
            end = (
                f"msggan-aml provision --compute {name} --min-nodes 0"
                if ours
                else (f"{az(self.client, 'compute update', name)} --min-instances 0")
            )
        rate = self._rate_of(compute, values)
        yield OngoingCost("cluster", name, reason, rate * machines if rate else None, end)

    def _instance(self, compute: Mapping[str, Any]) -> OngoingCost:
        name, values = compute["name"], compute["properties"].get("properties") or {}
        state = str(values.get("state") or "")
        if state in ("Stopped", "Stopping"):
            reason, delete = "is stopped; its disk and load balancer remain", az(self.client, "compute delete", name)
            return OngoingCost("compute instance", name, reason, self.beside.per_hour("disk", "load_balancer"), delete)
        rate, stop = self._rate_of(compute, values), az(self.client, "compute stop", name)
        return OngoingCost("compute instance", name, f"is {state.lower() or 'there'}", rate, stop)

    def _rate_of(self, compute: Mapping[str, Any], values: Mapping[str, Any]) -> Amount | None:
        location = str(compute["properties"].get("computeLocation") or compute.get("location") or "")
        return self.per_hour(str(values.get("vmSize") or ""), low_priority=is_low_priority(values), location=location)

    def storage(self) -> Iterator[OngoingCost]:
        """The images and runs in the datastore."""
        stored = read_stored(self.client)
        if not stored:
            self.notes += ["Not read: what is in storage."] if stored is None else []
            return
        store = self.client.store(self.client.settings.datastore)
        container = store.container.container_name
        args = ["--account-name", store.account, "--source", container, "--pattern", f"{PROJECT_FOLDER}/*"]
        gigabyte = self.beside.per_hour("gigabyte")
        yield OngoingCost(
            "storage",
            f"{store.account}/{container}/{PROJECT_FOLDER}",
            f"{format_bytes(stored)} of images and runs, all of which the command deletes",
            gigabyte and gigabyte * (stored / 2**30),
            f"az storage blob delete-batch --auth-mode login {shlex.join(args)}",
        )

    def registry(self) -> Iterator[str]:
        """A note on the container registry, whose price does not depend on the images in it."""
        if registry := self.client.about.get("containerRegistry"):
            price = self.beside.of("registry")
            cost = f"{price} per month in the tier Basic, Azure ML's own choice" if price else "price unknown"
            name = str(registry).rpartition("/")[2]
            yield f"Container registry {name}: {cost}, until it or the resource group is deleted."

    @cached_property
    def beside(self) -> Monthly:
        return read_monthly(self.client, str(self.client.about["location"]), tuple(METERS))

    def endpoints(self) -> Iterator[OngoingCost]:
        """Deployments, which are paid for at rest too."""
        for endpoint in self._list("onlineEndpoints"):
            name = endpoint["name"]
            for deployment in self._list(f"onlineEndpoints/{name}/deployments"):
                size = str(deployment["properties"].get("instanceType") or "")
                count = (deployment.get("sku") or {}).get("capacity") or 1
                rate = self.per_hour(size, low_priority=False)
                reason = f"deployment {deployment['name']} has {count} of {size or 'unknown size'}"
                end = f"{az(self.client, 'online-endpoint delete', name)} --yes"
                yield OngoingCost("endpoint", name, reason, rate * count if rate else None, end)

    def _list(self, kind: str) -> Iterator[Mapping[str, Any]]:
        """The workspace's resources of a kind. What cannot be read is noted."""
        try:
            with self.client.errors(f"Listing {kind}"):
                yield from self.client.list_all(f"{self.client.scope}/{kind}")
        except MsgganError as error:
            self._note(f"Not read: {error.message}")


def is_low_priority(cluster: Mapping[str, Any]) -> bool:
    return "low" in str(cluster.get("vmPriority")).lower()
