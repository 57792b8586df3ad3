"""Which cluster should there be, which one is there, and how does the one become the other?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from azure.ai.ml.entities import AmlCompute, Compute, IdentityConfiguration, ManagedIdentityConfiguration

from msggan.commands.options import nearest
from msggan.config import flag
from msggan.errors import UsageError
from orchestration.azure.client import PROVISIONED_TAG, Client, how_to_get_quota, is_provisioned
from orchestration.errors import QuotaError
from orchestration.settings import Settings
from orchestration.spec import Change, Item, changes_between

KIND = "compute"
LONGEST_NAME = 24
TELL_EVERY_S = 10

# What the service has no longer, and since when.
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
    """A size of machine that the workspace's region offers. prices: an hour's in US dollars, by tier, where known."""

    name: str
    family: str
    cores: int
    gpus: int
    memory_gb: float
    has_low_priority: bool
    prices: Mapping[str, float]

    @property
    def in_words(self) -> str:
        gpus = f"{self.gpus} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else "no GPU"
        return f"{self.name} ({gpus}, {self.cores} cores, {self.memory_gb:g} GB)"


@dataclass(frozen=True)
class Quota:
    """How many cores a family of sizes may have in all, and how many it has."""

    family: str
    used: int
    limit: int


def read_sizes(client: Client, location: str) -> list[Size]:
    """Every size of machine that a cluster may have there."""
    with client.errors(f"Asking for the VM sizes of {location}"):
        return [
            _size(vars(told)) for told in client.ml.compute.list_sizes(location=location, compute_type="AmlCompute")
        ]


def read_size(client: Client, settings: Settings) -> Size:
    """The size of machine that the settings ask for. Raises UsageError where it is not on offer."""
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
    with client.errors(f"Asking for the quota in {location}"):
        return [_quota(vars(told)) for told in client.ml.compute.list_usage(location=location)]


def _size(told: Mapping[str, Any]) -> Size:
    """The SDK tells some values by the service's names, and some by its own."""
    prices = told.get("estimatedVMPrices") or told.get("estimated_vm_prices") or {}
    return Size(
        told["name"],
        told.get("family") or "",
        told.get("vCPUs") or told.get("v_cp_us") or 0,
        told.get("gpus") or 0,
        told.get("memoryGB") or told.get("memory_gb") or 0,
        bool(told.get("lowPriorityCapable") or told.get("low_priority_capable")),
        {price["vmTier"]: price["retailPrice"] for price in prices.get("values", ()) if price.get("osType") == "Linux"},
    )


def _quota(told: Mapping[str, Any]) -> Quota:
    name = told.get("name") or {}
    family = f"{name.get('value') or ''}|{name.get('localizedValue') or name.get('localized_value') or ''}"
    return Quota(family, told.get("currentValue") or told.get("current_value") or 0, told.get("limit") or 0)


def find_size(
    asked: str, sizes: Iterable[Size], *, location: str, setting: str, said_by: str, low_priority: bool = False
) -> Size:
    """The size of that name. Raises UsageError, with names near to it, where it is not on offer.

    setting: what asks for it, and where that was said.
    """
    by_name = {size.name.lower(): size for size in sizes}
    found = by_name.get(asked.lower())
    if found is None:
        raise UsageError(
            [f"VM size {asked} ({said_by}): {_why_not(asked, location)}"], _others(asked, by_name, setting)
        )
    if low_priority and not found.has_low_priority:
        raise UsageError(
            [f"VM size {found.name}: is not to be had at low priority in {location}."], "Add --no-low-priority."
        )
    return found


def _why_not(asked: str, location: str) -> str:
    for pattern, when in RETIRED.items():
        if re.fullmatch(pattern, asked, re.IGNORECASE):
            return f"was retired by Azure in {when}."
    return f"is not offered in {location}."


def _others(asked: str, by_name: Mapping[str, Size], setting: str) -> str:
    is_retired = any(re.fullmatch(pattern, asked, re.IGNORECASE) for pattern in RETIRED)
    near = [] if is_retired else nearest(asked, by_name, cutoff=0.75)
    sizes = [by_name[name] for name in near]
    if not sizes:
        sizes = sorted((size for size in by_name.values() if size.gpus), key=lambda size: (size.gpus, size.cores))[:3]
    words = "Nearest" if near else "With a GPU there are"
    return f"{words}: {', '.join(size.in_words for size in sizes)}. Say it with {flag(setting)}." if sizes else ""


def check_quota(size: Size, nodes: int, quotas: Iterable[Quota], *, low_priority: bool, there: int = 0) -> None:
    """Raises QuotaError where so many machines of this size would be more than the subscription may have.

    there: how many machines the cluster may have already, beside which `nodes` are to come.
    """
    needed = size.cores * nodes
    for quota in quotas:
        if not _counts(quota, size, low_priority=low_priority) or quota.limit < 0 or quota.used + needed <= quota.limit:
            continue
        fitting = max(0, quota.limit - quota.used) // size.cores if size.cores else 0
        fewer = f"\n--max-nodes {there + fitting} would fit." if fitting else ""
        raise QuotaError(
            f"{nodes} machine{'s' if nodes > 1 else ''} {size.name} would need {needed} cores of {quota_words(quota)}.",
            how_to_get_quota() + fewer,
        )


def quota_words(quota: Quota) -> str:
    family = quota.family.partition("|")[0] or quota.family.partition("|")[2]
    return f"the quota {family}, of which {quota.used} of {quota.limit} are used"


def _counts(quota: Quota, size: Size, *, low_priority: bool) -> bool:
    """Whether machines of the size are counted by a quota: its family's, or the one of all families."""
    value, _, words = quota.family.lower().partition("|")
    is_low = "low" in words and "priority" in words.replace(" ", "")
    if low_priority:
        return is_low
    return not is_low and (_plain(value) == _plain(size.family) or ("total" in words and "dedicated" in words))


def _plain(family: str) -> str:
    return re.sub(r"[^a-z0-9]", "", family.lower())


# --- The cluster ------------------------------------------------------------------------------------------------------


def build_cluster(settings: Settings, location: str) -> AmlCompute:
    """The cluster that the settings describe."""
    return AmlCompute(
        name=settings.compute,
        size=settings.vm_size,
        tier=_tier(settings),
        min_instances=settings.min_nodes,
        max_instances=settings.max_nodes,
        idle_time_before_scale_down=settings.idle_minutes * 60,
        identity=build_identity(settings.identity),
        location=settings.location or location,
        tags=dict(PROVISIONED_TAG),
    )


def build_identity(said: str) -> IdentityConfiguration | None:
    """none, the cluster's own (system), or the one with this resource ID."""
    if said == "none":
        return None
    if said == "system":
        return IdentityConfiguration(type="system_assigned")
    return IdentityConfiguration(
        type="user_assigned", user_assigned_identities=[ManagedIdentityConfiguration(resource_id=said)]
    )


def _tier(settings: Settings) -> str:
    return "low_priority" if settings.low_priority else "dedicated"


def wanted_values(settings: Settings) -> dict[str, Any]:
    """What the settings say of a cluster. Where nothing is said of identity and location, any will do."""
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
    """The same of a cluster that is there."""
    idle_minutes = (cluster.idle_time_before_scale_down or 0) / 60
    return {
        "vm_size": cluster.size,
        "low_priority": str(cluster.tier).lower().replace("_", "") == "lowpriority",
        "min_nodes": cluster.min_instances,
        "max_nodes": cluster.max_instances,
        "idle_minutes": int(idle_minutes) if idle_minutes == int(idle_minutes) else idle_minutes,
        "identity": _identity_words(cluster.identity),
        "location": cluster.location,
    }


def _identity_words(identity: Any) -> str:
    if identity is None or str(identity.type).lower() == "none":
        return "none"
    if "user" in str(identity.type).lower():
        return ",".join(sorted(one.resource_id for one in identity.user_assigned_identities or ()))
    return "system"


def plan_cluster(settings: Settings, there: Compute | None, size: Size) -> Item:
    """What is to be done about the cluster. Pure."""
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
        reason = f"it is there and its state is {state}{cause}"
        return Item(KIND, name, "refuse", reason=reason)
    if changes:
        by_default = [key for key in changes if settings.source(key) == "default"]
        reason = f"nothing else is said of {', '.join(by_default)}, so the default holds" if by_default else ""
        return Item(KIND, name, "change", changes, reason, costs=costs)
    return Item(KIND, name, "keep", reason="is as it should be", costs=costs)


def cluster_changes(settings: Settings, there: AmlCompute) -> dict[str, Change]:
    wanted, values = wanted_values(settings), values_of(there)
    for key in ("vm_size", "location", "identity"):  # the service writes them in letters of its own choice
        if key in wanted and _plain_words(wanted[key]) == _plain_words(values[key]):
            wanted[key] = values[key]
    return changes_between(values, wanted)


def _plain_words(value: Any) -> str:
    return str(value).lower().replace(" ", "")


def cost_sentences(settings: Settings, size: Size) -> tuple[str, ...]:
    """What the cluster costs, and when that stops."""
    price = size.prices.get("LowPriority" if settings.low_priority else "Standard")
    at = f", about {price:.2f} US dollars an hour each" if price else ""
    up = f"A machine {size.in_words} costs money from when a job needs it{at}"
    end = f"until {settings.idle_minutes} minutes after the last job; then it is given back."
    if not settings.min_nodes:
        return (f"{up} {end}", "Without jobs the cluster costs nothing.")
    kept = f"{settings.min_nodes} of them cost{'s' if settings.min_nodes == 1 else ''} money day and night"
    return (f"{up} {end}", f"{kept}: --min-nodes 0 or provision --delete ends that.")


def free_name(name: str, taken: Iterable[str]) -> str:
    """A name near to this one that no compute has."""
    others = {one.lower() for one in taken}
    numbers = iter(range(2, 10_000))
    while True:
        suffix = f"-{next(numbers)}"
        candidate = name[: LONGEST_NAME - len(suffix)].rstrip("-") + suffix
        if candidate.lower() not in others:
            return candidate


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
    return _identity_words(cluster.identity) != "none"


def hint_of_refusal(client: Client, name: str) -> str:
    """What to type where the name cannot be used."""
    with client.errors("Listing the computes"):
        taken = [compute.name for compute in client.ml.compute.list()]
    return f"Take another name: --compute {free_name(name, taken)}"


def ensure_cluster(client: Client, settings: Settings, location: str, tell: Callable[[str], None]) -> None:
    """Makes the cluster, or changes what can be changed of it. Returns when it is there."""
    doing = f"Making the cluster {settings.compute}"
    there = read_cluster(client, settings.compute)
    cluster = build_cluster(settings, location)
    if isinstance(there, AmlCompute):
        doing = f"Changing the cluster {settings.compute}"
        cluster = _changed(there, cluster, keep_identity=settings.source("identity") == "default")
    with client.errors(doing):
        _await(client.ml.compute.begin_create_or_update(cluster), doing, tell)


def _changed(there: AmlCompute, wanted: AmlCompute, *, keep_identity: bool) -> AmlCompute:
    """What is there with what is wanted of that which can be changed; network, keys and tags stay."""
    there.min_instances, there.max_instances = wanted.min_instances, wanted.max_instances
    there.idle_time_before_scale_down = wanted.idle_time_before_scale_down
    if not keep_identity:
        there.identity = wanted.identity
    if there.network_settings is not None and not there.network_settings.subnet:
        there.network_settings = None  # the SDK makes one of nothing, and cannot send it back
    return there


def delete_cluster(client: Client, name: str, tell: Callable[[str], None]) -> None:
    doing = f"Deleting the cluster {name}"
    with client.errors(doing):
        _await(client.ml.compute.begin_delete(name), doing, tell)


def plan_cluster_deletion(name: str, there: Compute) -> Item:
    """Whether the cluster goes: only one that was made here does. Pure."""
    if not isinstance(there, AmlCompute) or not is_provisioned(there.tags):
        return Item(KIND, name, "keep", reason="was not made by msggan-aml provision")
    return Item(KIND, name, "delete", reason="jobs that wait for it or run on it end")


def _await(poller: Any, doing: str, tell: Callable[[str], None]) -> None:
    """Waits for a long operation, and tells that it goes on."""
    waited_s = 0
    while not poller.done():
        poller.wait(timeout=1)
        waited_s += 1
        if waited_s % TELL_EVERY_S == 0:
            tell(f"{doing}: {waited_s} s so far.")
    poller.result()
