"""The cluster: VM sizes and quota, its plan, and how it is created, changed and deleted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from azure.ai.ml.entities import (
    AmlCompute,
    Compute,
    IdentityConfiguration,
    ManagedIdentityConfiguration,
    NetworkSettings,
)

from msggan.commands.options import nearest
from msggan.config import flag
from msggan.errors import MsgganError, UsageError
from orchestration.azure.client import PROVISIONED_TAG, Client, is_provisioned
from orchestration.azure.errors import quota_error, quota_hint
from orchestration.errors import AuthError, QuotaError
from orchestration.settings import Settings, format_value
from orchestration.status import Change, Item, changes_between

KIND = "compute"
MAX_NAME_LENGTH = 24
MAX_TAG_VALUE, TAG_NAME_EXCLUDES = 256, r"<>%&\?/"  # Azure Resource Manager's
REPORT_EVERY_S = 10
OK = 200

# The settings that a cluster has, those of them that cannot be changed, and the SDK's names of the others.
NEW_VALUES = ("vm_size", "low_priority", "min_nodes", "max_nodes", "idle_minutes")
VALUES = (*NEW_VALUES, "identity", "location", "subnet", "public_ip")
FIXED = ("vm_size", "low_priority", "location", "subnet", "public_ip")
ATTRIBUTES = {
    "min_nodes": "min_instances",
    "max_nodes": "max_instances",
    "idle_minutes": "idle_time_before_scale_down",
    "identity": "identity",
}
NOT_CHECKED = "{} not checked, because your roles do not permit reading {} in the subscription"

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
    """A VM size. cores: 0 if only its name is known. prices: US dollars per hour by tier, where known.

    disk_bytes: of the machine's temporary disk; 0: not known, or there is none.
    """

    name: str
    family: str = ""
    cores: int = 0
    gpus: int = 0
    memory_gb: float = 0
    has_low_priority: bool = True
    prices: Mapping[str, float] = field(default_factory=dict)
    disk_bytes: int = 0

    @property
    def is_known(self) -> bool:
        return self.cores > 0

    @property
    def description(self) -> str:
        if not self.is_known:
            return self.name
        gpus = f"{self.gpus} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else "no GPU"
        return f"{self.name} ({gpus}, {self.cores} cores, {self.memory_gb:g} GB)"


@dataclass(frozen=True)
class Quota:
    """The quota of a family of VM sizes in cores, and how many are used. family: its ID|its name."""

    family: str
    used: int
    limit: int

    @property
    def description(self) -> str:
        family, _, text = self.family.partition("|")
        if self.limit < 0:
            return f"{family or text}, {self.used} cores used, without a limit"
        return f"{family or text}, {self.used} of {self.limit} cores used, {max(0, self.limit - self.used)} left"


def location_of(client: Client) -> str:
    """The region of the cluster."""
    return client.settings.location or str(client.about["location"])


def read_size(client: Client, cluster: Compute | None = None) -> Size:
    """The VM size that the settings name; if they do not, that of the existing cluster.

    Raises UsageError where the region does not offer it. Only its name is known if the sizes cannot be listed.
    """
    settings = client.settings
    setting = "vm_size" if settings.instance_type is None else "instance_type"
    name, low_priority = getattr(settings, setting), settings.low_priority
    try:
        sizes = read_sizes(client)
    except AuthError:
        sizes = None
    if isinstance(cluster, AmlCompute) and settings.source(setting) == "default":
        same = (size for size in sizes or () if size.name.lower() == str(cluster.size).lower())
        return next(same, Size(str(cluster.size)))
    if sizes is None:
        return Size(name)
    location, source = location_of(client), settings.source(setting)
    return find_size(name, sizes, location=location, setting=setting, source=source, low_priority=low_priority)


def read_sizes(client: Client, location: str | None = None) -> list[Size]:
    """The VM sizes that a region offers, by default that of the cluster.

    Raises AuthError: a role at the workspace does not permit it.
    """
    location = location or location_of(client)
    with client.errors(f"Listing the VM sizes in {location}"):
        listed = client.ml.compute.list_sizes(location=location, compute_type="AmlCompute")
        return [_size(vars(size)) for size in listed]


def sizes_by_name(client: Client, location: str) -> Mapping[str, Size]:
    """The VM sizes of a region by their name in lower case, none if the signed-in identity may not list them."""
    try:
        return {size.name.lower(): size for size in read_sizes(client, location)}
    except AuthError:
        return {}


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
        (values.get("maxResourceVolumeMB") or values.get("max_resource_volume_mb") or 0) << 20,
    )


def disk_of(client: Client, cluster: AmlCompute) -> int:
    """The bytes of the temporary disk of a cluster's machines, 0 if not known."""
    sizes = sizes_by_name(client, str(cluster.location).lower().replace(" ", ""))
    return sizes.get(str(cluster.size).lower(), Size("")).disk_bytes


def read_quotas(client: Client) -> list[Quota]:
    """The quotas there. Raises AuthError: a role at the workspace does not permit it."""
    location = location_of(client)
    with client.errors(f"Reading the quota in {location}"):
        usages = [vars(usage) for usage in client.ml.compute.list_usage(location=location)]
    quotas = []
    for values in usages:
        name = values.get("name") or {}
        family = f"{name.get('value') or ''}|{name.get('localizedValue') or name.get('localized_value') or ''}"
        used = values.get("currentValue") or values.get("current_value") or 0
        quotas.append(Quota(family, used, values.get("limit") or 0))
    return quotas


def find_size(
    name: str, sizes: Iterable[Size], *, location: str, setting: str, source: str, low_priority: bool = False
) -> Size:
    """The size of that name. Raises UsageError, with similar names, where the location does not offer it.

    setting, source: which setting names it, and where that was set.
    """
    by_name = {size.name.lower(): size for size in sizes}
    found = by_name.get(name.lower())
    if found is None:
        retired = next((when for pattern, when in RETIRED.items() if re.fullmatch(pattern, name, re.IGNORECASE)), None)
        problem = f"was retired by Azure in {retired}." if retired else f"is not offered in {location}."
        similar = [] if retired else [by_name[near] for near in nearest(name, by_name, cutoff=0.75)]
        with_gpu = sorted((size for size in by_name.values() if size.gpus), key=lambda size: (size.gpus, size.cores))
        others = ", ".join(size.description for size in similar or with_gpu[:3])
        which = "Similar sizes" if similar else "Sizes with a GPU"
        hint = f"{which}: {others}. Set it with {flag(setting)}." if others else ""
        raise UsageError([f"VM size {name} ({source}): {problem}"], hint)
    if low_priority and not found.has_low_priority:
        problem = f"VM size {found.name}: is not available at low priority in {location}."
        raise UsageError([problem], "Add --no-low-priority.")
    return found


def check_quota(size: Size, nodes: int, quotas: Iterable[Quota], *, low_priority: bool, existing: int = 0) -> None:
    """Raises QuotaError where this many more machines of a size would exceed a quota of the subscription.

    existing: how many machines the cluster may have already.
    """
    needed = size.cores * nodes
    for quota in quotas_of(size, quotas, low_priority=low_priority):
        if quota.limit < 0 or quota.used + needed <= quota.limit:
            continue
        fitting = max(0, quota.limit - quota.used) // size.cores if size.cores else 0
        fewer = f"\n--max-nodes {existing + fitting} would fit." if fitting else ""
        machines = f"{nodes} machine{'s' if nodes > 1 else ''} {size.name}"
        family, _, description = quota.family.partition("|")
        raise QuotaError(
            f"{machines} would need {needed} cores of the quota {family or description}, "
            f"of which {quota.used} of {quota.limit} are used.",
            quota_hint(low_priority=low_priority) + fewer,
        )


def check_growth(client: Client, existing: Compute | None, item: Item, size: Size) -> str:
    """Raises QuotaError where the machines that a plan's item adds would exceed a quota.

    Returns what could not be checked, else an empty text.
    """
    nodes = item.changes.get("max_nodes") or {"from": 0, "to": 0}
    before, low_priority = nodes["from"] or 0, client.settings.low_priority
    if nodes["to"] <= before:
        return ""
    if not size.is_known:
        return NOT_CHECKED.format("VM size and quota were", "them")
    if isinstance(existing, AmlCompute):
        low_priority = values_of(existing)["low_priority"]
    try:
        quotas = read_quotas(client)
    except AuthError:
        return NOT_CHECKED.format("the quota was", "it")
    check_quota(size, nodes["to"] - before, quotas, low_priority=low_priority, existing=before)
    return ""


def quotas_of(size: Size, quotas: Iterable[Quota], *, low_priority: bool) -> list[Quota]:
    """The quotas that machines of a size count toward."""
    return [quota for quota in quotas if _counts(quota, size, low_priority=low_priority)]


def _counts(quota: Quota, size: Size, *, low_priority: bool) -> bool:
    """Whether machines of the size count toward a quota: its family's, or the total of all families."""
    family, _, description = quota.family.lower().partition("|")
    is_low = "lowpriority" in _plain(quota.family)
    if low_priority:
        return is_low
    is_total = "total" in description and "dedicated" in description
    return not is_low and (is_total or _plain(family) == _plain(size.family))


def _plain(text: str) -> str:
    """A name for comparison: the service varies case, spaces and underscores."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


# --- The cluster ------------------------------------------------------------------------------------------------------


def build_cluster(settings: Settings, location: str) -> AmlCompute:
    """The cluster that the settings describe."""
    identity = None
    if settings.identity == "system":
        identity = IdentityConfiguration(type="system_assigned")
    elif settings.identity != "none":
        assigned = [ManagedIdentityConfiguration(resource_id=settings.identity)]
        identity = IdentityConfiguration(type="user_assigned", user_assigned_identities=assigned)
    return AmlCompute(
        name=settings.compute,
        size=settings.vm_size,
        tier="low_priority" if settings.low_priority else "dedicated",
        min_instances=settings.min_nodes,
        max_instances=settings.max_nodes,
        idle_time_before_scale_down=settings.idle_minutes * 60,
        identity=identity,
        location=settings.location or location,
        network_settings=NetworkSettings(subnet=settings.subnet) if settings.subnet else None,
        enable_node_public_ip=settings.public_ip,
        tags={**settings.tags, **PROVISIONED_TAG},
    )


def set_values(settings: Settings) -> dict[str, Any]:
    """The values and tags of a cluster that are set: those that an existing one must have."""
    values = {key: getattr(settings, key) for key in VALUES if settings.source(key) != "default"}
    return values | {f"tag {name}": value for name, value in settings.tags.items()}


def new_values(settings: Settings) -> dict[str, Any]:
    """The values of a new cluster; its identity, place and network only if they are set."""
    return {key: getattr(settings, key) for key in NEW_VALUES} | set_values(settings)


def values_of(cluster: AmlCompute) -> dict[str, Any]:
    """The same values of an existing cluster, and all its tags."""
    idle_minutes = (cluster.idle_time_before_scale_down or 0) / 60
    return {
        "vm_size": cluster.size,
        "low_priority": _plain(str(cluster.tier)) == "lowpriority",
        "min_nodes": cluster.min_instances,
        "max_nodes": cluster.max_instances,
        "idle_minutes": int(idle_minutes) if idle_minutes == int(idle_minutes) else idle_minutes,
        "identity": identity_of(cluster),
        "location": cluster.location,
        "subnet": cluster.network_settings.subnet if cluster.network_settings else None,
        "public_ip": cluster.enable_node_public_ip,
        **{f"tag {name}": value for name, value in (cluster.tags or {}).items()},
    }


def tag_problems(settings: Settings) -> list[str]:
    """The tags that a job may have and a cluster may not: it is a resource of Azure Resource Manager."""
    return [
        f"--tag {name}: a cluster's tag has at most {MAX_TAG_VALUE} characters, and none of {TAG_NAME_EXCLUDES} "
        "in its name."
        for name, value in settings.tags.items()
        if len(value) > MAX_TAG_VALUE or set(name) & set(TAG_NAME_EXCLUDES)
    ]


def identity_of(cluster: AmlCompute) -> str:
    """The identity of the cluster's machines, as the setting `identity` has it."""
    identity: Any = cluster.identity
    if identity is None or str(identity.type).lower() == "none":
        return "none"
    if "user" in str(identity.type).lower():
        return ",".join(sorted(assigned.resource_id for assigned in identity.user_assigned_identities or ()))
    return "system"


def differences(settings: Settings, existing: AmlCompute) -> dict[str, Change]:
    """What is set and differs from the existing cluster."""
    desired, values = set_values(settings), values_of(existing)
    for key in ("vm_size", "location", "identity", "subnet"):  # of which the service varies case and spaces
        if key in desired and _plain(desired[key]) == _plain(str(values[key])):
            desired[key] = values[key]
    return changes_between(values, desired)


def planned_values(settings: Settings, existing: AmlCompute | None) -> dict[str, Any]:
    """The values of the cluster after `provision`."""
    if existing is None:
        return new_values(settings)
    return values_of(existing) | {key: change["to"] for key, change in differences(settings, existing).items()}


def plan_cluster(settings: Settings, existing: Compute | None) -> Item:
    """What to do about the cluster: what is not set stays as it is. Makes no requests."""
    name = settings.compute
    if existing is None:
        return Item(KIND, name, "create", changes_between({}, new_values(settings)))
    if not isinstance(existing, AmlCompute):
        reason = f"the name is taken by another kind of compute ({existing.type})"
        return Item(KIND, name, "refuse", reason=reason)
    changes = differences(settings, existing)
    values = planned_values(settings, existing)
    if fixed := [key for key in FIXED if key in changes]:
        reason = f"{' and '.join(fixed)} of a cluster cannot be changed"
        return Item(KIND, name, "refuse", changes, reason)
    if changes and values["min_nodes"] > values["max_nodes"]:
        reason = f"min_nodes would be {values['min_nodes']} and max_nodes {values['max_nodes']}"
        return Item(KIND, name, "refuse", changes, reason, hint="Set both: --min-nodes N --max-nodes N")
    state = str(getattr(existing.provisioning_state, "value", existing.provisioning_state)).lower()
    if state in ("failed", "canceled", "deleting"):
        cause = f" ({existing.provisioning_errors})" if existing.provisioning_errors else ""
        return Item(KIND, name, "refuse", reason=f"it exists in state {state}{cause}")
    if changes:
        reason = "" if is_provisioned(existing.tags) else "was not created by msggan-aml provision"
        return Item(KIND, name, "change", changes, reason)
    return Item(KIND, name, "keep", reason="is up to date")


def refuse_other_machines(settings: Settings, cluster: AmlCompute) -> None:
    """Raises UsageError if what is set of the machines is not what an existing cluster has."""
    changes = {key: change for key, change in differences(settings, cluster).items() if key in FIXED}
    if not changes:
        return
    name = settings.compute
    problems = [
        f"{key} {format_value(change['to'])} ({settings.source(key)}): the cluster {name} has {key} "
        f"{format_value(change['from'])}, which cannot be changed."
        for key, change in changes.items()
    ]
    other = free_name(name, [name])
    args = " ".join(word for key, change in changes.items() for word in to_args(key, change["to"]))
    raise UsageError(
        problems,
        f"Unset it to train on {name}. Or create another cluster, and train with --compute {other}:\n"
        f"msggan-aml provision --compute {other} {args}",
    )


def to_args(name: str, value: Any) -> list[str]:
    """The flag of a setting with its value."""
    return [flag(name if value else f"no_{name}")] if isinstance(value, bool) else [flag(name), format_value(value)]


def other_sizes(settings: Settings, cluster: AmlCompute) -> list[str]:
    """A sentence for each value that is set and not the cluster's: only `provision` changes it."""
    changes = {key: change for key, change in differences(settings, cluster).items() if key in ATTRIBUTES}
    return [
        f"{key} {format_value(change['to'])} ({settings.source(key)}) is not used: the cluster {settings.compute} has "
        f"{format_value(change['from'])}. Change it: msggan-aml provision"
        for key, change in changes.items()
    ]


def free_name(name: str, used: Iterable[str]) -> str:
    """A similar name that no compute has: NAME-2, NAME-3, …"""
    others = {other.lower() for other in used}
    names = (name[: MAX_NAME_LENGTH - len(suffix)].rstrip("-") + suffix for suffix in map("-{}".format, count(2)))
    return next(candidate for candidate in names if candidate.lower() not in others)


def plan_cluster_deletion(name: str, existing: Compute) -> Item:
    """Whether to delete the cluster: only one that `provision` created. Makes no requests."""
    if not isinstance(existing, AmlCompute) or not is_provisioned(existing.tags):
        return Item(KIND, name, "keep", reason="was not created by msggan-aml provision")
    return Item(KIND, name, "delete", reason="ends the jobs that wait for it or run on it")


# --- With the service -------------------------------------------------------------------------------------------------


def read_cluster(client: Client) -> Compute | None:
    """The compute that the settings name, None if it does not exist."""
    name = client.settings.compute
    return client.find(f"Looking for the compute {name}", lambda: client.ml.compute.get(name))


def require_cluster(client: Client) -> AmlCompute:
    """The cluster that the settings name, read once by this client. Raises UsageError if it does not exist."""
    return client.once(("compute", client.settings.compute), lambda: _require_cluster(client))


def _require_cluster(client: Client) -> AmlCompute:
    name, compute = client.settings.compute, read_cluster(client)
    if compute is None:
        named = "" if client.settings.source("compute") == "default" else f" --compute {name}"
        raise UsageError(
            [f"No cluster {name!r} in workspace {client.workspace.workspace_name!r}."],
            f"Create it: msggan-aml provision{named}. Or train serverless: --instance-type SIZE",
        )
    if not isinstance(compute, AmlCompute):
        raise UsageError(
            [f"--compute {name}: is not a cluster but a {str(compute.type).lower()}."],
            "Name a cluster, or create one: msggan-aml provision --compute NAME",
        )
    refuse_other_machines(client.settings, compute)
    return compute


def name_hint(client: Client) -> str:
    """What to type if the name of the cluster cannot be used."""
    with client.errors("Listing the computes"):
        used = [compute.name for compute in client.ml.compute.list()]
    return f"Use another name: --compute {free_name(client.settings.compute, used)}"


def ensure_cluster(client: Client, report: Callable[[str], None]) -> None:
    """Creates the cluster, or changes what can be changed. Returns when that is done."""
    settings = client.settings
    operation = f"Creating the cluster {settings.compute}"
    existing, cluster = read_cluster(client), build_cluster(settings, location_of(client))
    before: list[tuple[str, str]] = []
    if isinstance(existing, AmlCompute):
        before = client.cluster_errors(settings.compute)
        operation = f"Changing the cluster {settings.compute}"
        cluster = with_changes(existing, cluster, set_values(settings))
    _run(client, operation, lambda: client.ml.compute.begin_create_or_update(cluster), report)
    for code, message in client.cluster_errors(settings.compute):
        if (code, message) not in before and (error := quota_error(operation, code, message, client.workspace)):
            raise error


def with_changes(existing: AmlCompute, desired: AmlCompute, keys: Iterable[str]) -> AmlCompute:
    """The existing cluster with those of the desired values that are set; its network, keys and other tags stay."""
    for key in ATTRIBUTES.keys() & keys:
        setattr(existing, ATTRIBUTES[key], getattr(desired, ATTRIBUTES[key]))
    added = {name: value for name, value in (desired.tags or {}).items() if name not in PROVISIONED_TAG}
    existing.tags = {**(existing.tags or {}), **added}
    if existing.network_settings is not None and not existing.network_settings.subnet:
        existing.network_settings = None  # the SDK reads it where there is none, and cannot send it back
    return existing


def delete_cluster(client: Client, report: Callable[[str], None]) -> None:
    name = client.settings.compute
    _run(client, f"Deleting the cluster {name}", lambda: client.ml.compute.begin_delete(name), report)


def _run(client: Client, operation: str, begin: Callable[[], Any], report: Callable[[str], None]) -> None:
    """Runs a long-running operation to its end, and reports every few seconds that it continues."""
    client.forget(("compute", client.settings.compute))
    with client.errors(operation):
        poller = begin()
    try:
        with client.errors(operation):
            for waited_s in count(REPORT_EVERY_S, REPORT_EVERY_S):
                poller.wait(timeout=REPORT_EVERY_S)
                if poller.done():
                    break
                report(f"{operation}: {waited_s} s …")
            poller.result()
    except MsgganError as error:
        # A poll that was refused says nothing about the operation; an error in an answer with status 200 is its result.
        error.may_have_happened = getattr(error.__cause__, "status_code", None) != OK
        raise
