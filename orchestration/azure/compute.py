"""The cluster: VM sizes and quota, its plan, and how it is created, changed and deleted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from azure.ai.ml.entities import AmlCompute, Compute, IdentityConfiguration, ManagedIdentityConfiguration

from msggan.commands.options import nearest
from msggan.config import flag
from msggan.errors import UsageError
from orchestration.azure.client import PROVISIONED_TAG, Client, how_to_get_quota, is_provisioned
from orchestration.errors import QuotaError
from orchestration.settings import Settings
from orchestration.status import Change, Item, changes_between

KIND = "compute"
MAX_NAME_LENGTH = 24
REPORT_EVERY_S = 10

# VM sizes that Azure has retired, and when.
RETIRED = {
    r"Standard_NC(6|12|24|24r)(_Promo)?": "August 2023",
    r"Standard_NC\d+r?s_v2": "August 2023",
    r"Standard_ND(6|12|24|24r)s": "August 2023",
    r"Standard_NV(6|12|24)(_Promo)?": "August 2023",
    r"Standard_NC(6|12|24)s_v3": "September 2025",
}


# --- Sizes and quota --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """A VM size that the workspace's region offers. prices: US dollars per hour by tier, where known."""

    name: str
    family: str
    cores: int
    gpus: int
    memory_gb: float
    has_low_priority: bool
    prices: Mapping[str, float]

    @property
    def description(self) -> str:
        gpus = f"{self.gpus} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else "no GPU"
        return f"{self.name} ({gpus}, {self.cores} cores, {self.memory_gb:g} GB)"


@dataclass(frozen=True)
class Quota:
    """The quota of a family of VM sizes in cores, and how many are used. family: its ID|its name."""

    family: str
    used: int
    limit: int


def read_sizes(client: Client, location: str) -> list[Size]:
    """The VM sizes that a cluster may have there."""
    with client.errors(f"Listing the VM sizes in {location}"):
        sizes = client.ml.compute.list_sizes(location=location, compute_type="AmlCompute")
        return [_size(vars(size)) for size in sizes]


def read_size(client: Client, settings: Settings) -> Size:
    """The VM size that the settings name. Raises UsageError where the region does not offer it."""
    location = settings.location or str(client.about.location)
    setting = "vm_size" if settings.instance_type is None else "instance_type"
    return find_size(
        getattr(settings, setting),
        read_sizes(client, location),
        location=location,
        setting=setting,
        said_by=settings.source(setting),
        low_priority=settings.low_priority,
    )


def read_quotas(client: Client, location: str) -> list[Quota]:
    with client.errors(f"Reading the quota in {location}"):
        return [_quota(vars(usage)) for usage in client.ml.compute.list_usage(location=location)]


def _size(values: Mapping[str, Any]) -> Size:
    """The SDK keeps some values under the service's names, others under its own."""
    prices = values.get("estimatedVMPrices") or values.get("estimated_vm_prices") or {}
    return Size(
        values["name"],
        values.get("family") or "",
        values.get("vCPUs") or values.get("v_cp_us") or 0,
        values.get("gpus") or 0,
        values.get("memoryGB") or values.get("memory_gb") or 0,
        bool(values.get("lowPriorityCapable") or values.get("low_priority_capable")),
        {price["vmTier"]: price["retailPrice"] for price in prices.get("values", ()) if price.get("osType") == "Linux"},
    )


def _quota(values: Mapping[str, Any]) -> Quota:
    name = values.get("name") or {}
    family = f"{name.get('value') or ''}|{name.get('localizedValue') or name.get('localized_value') or ''}"
    return Quota(family, values.get("currentValue") or values.get("current_value") or 0, values.get("limit") or 0)


def find_size(
    name: str, sizes: Iterable[Size], *, location: str, setting: str, said_by: str, low_priority: bool = False
) -> Size:
    """The size of that name. Raises UsageError, with similar names, where the location does not offer it.

    setting, said_by: which setting names it, and where that was set.
    """
    by_name = {size.name.lower(): size for size in sizes}
    found = by_name.get(name.lower())
    if found is None:
        retired = next((when for pattern, when in RETIRED.items() if re.fullmatch(pattern, name, re.IGNORECASE)), None)
        problem = f"was retired by Azure in {retired}." if retired else f"is not offered in {location}."
        similar = [] if retired else nearest(name, by_name, cutoff=0.75)
        raise UsageError([f"VM size {name} ({said_by}): {problem}"], _size_hint(similar, by_name, setting))
    if low_priority and not found.has_low_priority:
        problem = f"VM size {found.name}: is not available at low priority in {location}."
        raise UsageError([problem], "Add --no-low-priority.")
    return found


def _size_hint(similar: Sequence[str], by_name: Mapping[str, Size], setting: str) -> str:
    """The sizes with a similar name, or else the smallest with a GPU."""
    sizes = [by_name[name] for name in similar]
    if not sizes:
        sizes = sorted((size for size in by_name.values() if size.gpus), key=lambda size: (size.gpus, size.cores))[:3]
    which = "Similar sizes" if similar else "Sizes with a GPU"
    return f"{which}: {', '.join(size.description for size in sizes)}. Set it with {flag(setting)}." if sizes else ""


def check_quota(size: Size, nodes: int, quotas: Iterable[Quota], *, low_priority: bool, there: int = 0) -> None:
    """Raises QuotaError where this many more machines of a size would exceed a quota of the subscription.

    there: how many machines the cluster may have already.
    """
    needed = size.cores * nodes
    for quota in quotas:
        if not _counts(quota, size, low_priority=low_priority) or quota.limit < 0 or quota.used + needed <= quota.limit:
            continue
        fitting = max(0, quota.limit - quota.used) // size.cores if size.cores else 0
        fewer = f"\n--max-nodes {there + fitting} would fit." if fitting else ""
        machines = f"{nodes} machine{'s' if nodes > 1 else ''} {size.name}"
        family, _, description = quota.family.partition("|")
        raise QuotaError(
            f"{machines} would need {needed} cores of the quota {family or description}, "
            f"of which {quota.used} of {quota.limit} are used.",
            how_to_get_quota() + fewer,
        )


def _counts(quota: Quota, size: Size, *, low_priority: bool) -> bool:
    """Whether machines of the size count toward a quota: its family's, or the total of all families."""
    family, _, description = quota.family.lower().partition("|")
    is_low = "low" in description and "priority" in description.replace(" ", "")
    if low_priority:
        return is_low
    return not is_low and (
        _plain(family) == _plain(size.family) or ("total" in description and "dedicated" in description)
    )


def _plain(text: str) -> str:
    """A name as it compares: the service varies case, spaces and underscores."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


# --- The cluster ------------------------------------------------------------------------------------------------------


def build_cluster(settings: Settings, location: str) -> AmlCompute:
    """The cluster that the settings describe."""
    return AmlCompute(
        name=settings.compute,
        size=settings.vm_size,
        tier="low_priority" if settings.low_priority else "dedicated",
        min_instances=settings.min_nodes,
        max_instances=settings.max_nodes,
        idle_time_before_scale_down=settings.idle_minutes * 60,
        identity=build_identity(settings.identity),
        location=settings.location or location,
        tags=dict(PROVISIONED_TAG),
    )


def build_identity(setting: str) -> IdentityConfiguration | None:
    """setting: none, system, or the resource ID of a user-assigned identity."""
    if setting == "none":
        return None
    if setting == "system":
        return IdentityConfiguration(type="system_assigned")
    return IdentityConfiguration(
        type="user_assigned", user_assigned_identities=[ManagedIdentityConfiguration(resource_id=setting)]
    )


def wanted_values(settings: Settings) -> dict[str, Any]:
    """The values that the settings ask of a cluster. Without a setting, any identity and location will do."""
    values = {
        "vm_size": settings.vm_size,
        "low_priority": settings.low_priority,
        "min_nodes": settings.min_nodes,
        "max_nodes": settings.max_nodes,
        "idle_minutes": settings.idle_minutes,
    }
    if settings.source("identity") != "default":
        values["identity"] = settings.identity
    if settings.location is not None:
        values["location"] = settings.location
    return values


def values_of(cluster: AmlCompute) -> dict[str, Any]:
    """The same values of an existing cluster."""
    idle_minutes = (cluster.idle_time_before_scale_down or 0) / 60
    return {
        "vm_size": cluster.size,
        "low_priority": _plain(str(cluster.tier)) == "lowpriority",
        "min_nodes": cluster.min_instances,
        "max_nodes": cluster.max_instances,
        "idle_minutes": int(idle_minutes) if idle_minutes == int(idle_minutes) else idle_minutes,
        "identity": _identity_of(cluster.identity),
        "location": cluster.location,
    }


def _identity_of(identity: Any) -> str:
    if identity is None or str(identity.type).lower() == "none":
        return "none"
    if "user" in str(identity.type).lower():
        return ",".join(sorted(one.resource_id for one in identity.user_assigned_identities or ()))
    return "system"


def plan_cluster(settings: Settings, there: Compute | None, size: Size) -> Item:
    """What to do about the cluster. Makes no requests."""
    name = settings.compute
    costs = cost_sentences(settings, size)
    if there is None:
        return Item(KIND, name, "create", changes_between({}, wanted_values(settings)), costs=costs)
    if not isinstance(there, AmlCompute):
        reason = f"the name is taken by another kind of compute ({there.type})"
        return Item(KIND, name, "refuse", reason=reason)
    changes = cluster_changes(settings, there)
    fixed = [key for key in ("vm_size", "low_priority", "location") if key in changes]
    if fixed:
        reason = f"{' and '.join(fixed)} of a cluster cannot be changed"
        return Item(KIND, name, "refuse", changes, reason)
    state = str(getattr(there.provisioning_state, "value", there.provisioning_state)).lower()
    if state in ("failed", "canceled", "deleting"):
        cause = f" ({there.provisioning_errors})" if there.provisioning_errors else ""
        reason = f"it exists in state {state}{cause}"
        return Item(KIND, name, "refuse", reason=reason)
    if changes:
        by_default = [key for key in changes if settings.source(key) == "default"]
        reason = f"{', '.join(by_default)} not set: back to the default" if by_default else ""
        return Item(KIND, name, "change", changes, reason, costs=costs)
    return Item(KIND, name, "keep", reason="is up to date", costs=costs)


def cluster_changes(settings: Settings, there: AmlCompute) -> dict[str, Change]:
    wanted, values = wanted_values(settings), values_of(there)
    for key in ("vm_size", "location", "identity"):  # of which the service varies case and spaces
        if key in wanted and _plain(wanted[key]) == _plain(values[key]):
            wanted[key] = values[key]
    return changes_between(values, wanted)


def cost_sentences(settings: Settings, size: Size) -> tuple[str, ...]:
    """What the cluster costs, and when that stops."""
    price = size.prices.get("LowPriority" if settings.low_priority else "Standard")
    at = f"about {price:.2f} US dollars per hour" if price else "money"
    while_used = (
        f"Each machine, {size.description}, costs {at} from when a job needs it until {settings.idle_minutes} minutes "
        "after the last job; then it is released."
    )
    if not settings.min_nodes:
        return (while_used, "Without jobs the cluster costs nothing.")
    always = f"{settings.min_nodes} of them cost{'s' if settings.min_nodes == 1 else ''} money day and night"
    return (while_used, f"{always}, until --min-nodes 0 or provision --delete.")


def free_name(name: str, taken: Iterable[str]) -> str:
    """A similar name that no compute has: NAME-2, NAME-3, …"""
    others = {other.lower() for other in taken}
    names = (name[: MAX_NAME_LENGTH - len(suffix)].rstrip("-") + suffix for suffix in map("-{}".format, count(2)))
    return next(candidate for candidate in names if candidate.lower() not in others)


# --- With the service -------------------------------------------------------------------------------------------------


def read_cluster(client: Client, name: str) -> Compute | None:
    """The compute of that name, None where there is none."""
    return client.find(f"Looking for the compute {name}", lambda: client.ml.compute.get(name))


def require_cluster(client: Client, name: str) -> AmlCompute:
    """The cluster of that name. Raises UsageError where there is none."""
    compute = read_cluster(client, name)
    if compute is None:
        raise UsageError(
            [f"No cluster {name!r} in workspace {client.workspace.workspace_name!r}."],
            "Create it: msggan-aml provision. Or train serverless: --instance-type SIZE",
        )
    if not isinstance(compute, AmlCompute):
        raise UsageError(
            [f"--compute {name}: is not a cluster but a {str(compute.type).lower()}."],
            "Name a cluster, or create one: msggan-aml provision --compute NAME",
        )
    return compute


def has_identity(cluster: AmlCompute) -> bool:
    """Whether jobs on a cluster have an identity of the cluster's."""
    return _identity_of(cluster.identity) != "none"


def name_hint(client: Client, name: str) -> str:
    """What to type if the name cannot be used."""
    with client.errors("Listing the computes"):
        taken = [compute.name for compute in client.ml.compute.list()]
    return f"Use another name: --compute {free_name(name, taken)}"


def ensure_cluster(client: Client, settings: Settings, location: str, report: Callable[[str], None]) -> None:
    """Creates the cluster, or changes what can be changed. Returns when that is done."""
    doing = f"Creating the cluster {settings.compute}"
    there = read_cluster(client, settings.compute)
    cluster = build_cluster(settings, location)
    if isinstance(there, AmlCompute):
        doing = f"Changing the cluster {settings.compute}"
        cluster = _changed(there, cluster, keep_identity=settings.source("identity") == "default")
    with client.errors(doing):
        _await(client.ml.compute.begin_create_or_update(cluster), doing, report)


def _changed(there: AmlCompute, wanted: AmlCompute, *, keep_identity: bool) -> AmlCompute:
    """The existing cluster with the wanted values that can be changed; its network, keys and tags stay."""
    there.min_instances, there.max_instances = wanted.min_instances, wanted.max_instances
    there.idle_time_before_scale_down = wanted.idle_time_before_scale_down
    if not keep_identity:
        there.identity = wanted.identity
    if there.network_settings is not None and not there.network_settings.subnet:
        there.network_settings = None  # the SDK makes one of nothing, and cannot send it back
    return there


def delete_cluster(client: Client, name: str, report: Callable[[str], None]) -> None:
    doing = f"Deleting the cluster {name}"
    with client.errors(doing):
        _await(client.ml.compute.begin_delete(name), doing, report)


def plan_cluster_deletion(name: str, there: Compute) -> Item:
    """Whether to delete the cluster: only one that was created here. Makes no requests."""
    if not isinstance(there, AmlCompute) or not is_provisioned(there.tags):
        return Item(KIND, name, "keep", reason="was not created by msggan-aml provision")
    return Item(KIND, name, "delete", reason="ends the jobs that wait for it or run on it")


def _await(poller: Any, doing: str, report: Callable[[str], None]) -> None:
    """Waits for a long-running operation, and reports now and then that it is not done."""
    for waited_s in count(REPORT_EVERY_S, REPORT_EVERY_S):
        poller.wait(timeout=REPORT_EVERY_S)
        if poller.done():
            break
        report(f"{doing}: {waited_s} s so far.")
    poller.result()
