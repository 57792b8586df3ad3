"""The cluster: its plan, and how it is created, changed and deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

from azure.ai.ml.entities import (
    AmlCompute,
    Compute,
    IdentityConfiguration,
    ManagedIdentityConfiguration,
    NetworkSettings,
)

from msggan.config import flag
from msggan.errors import MsgganError, UsageError
from orchestration.azure.client import PROVISIONED_TAG, Client, is_provisioned
from orchestration.azure.errors import quota_error
from orchestration.azure.sizes import NOT_CHECKED, Choice, Size, check_quota, plain, read_quotas
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
        "low_priority": plain(str(cluster.tier)) == "lowpriority",
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
        if key in desired and plain(str(values[key])) in map(plain, desired[key].split(",")):
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


def check_growth(client: Client, cluster: AmlCompute, item: Item, size: Size) -> str:
    """Raises QuotaError where the machines that a plan's item adds to a cluster would exceed a quota.

    Returns what could not be checked, else an empty text.
    """
    nodes = item.changes.get("max_nodes")
    before = (nodes["from"] or 0) if nodes else 0
    if not nodes or nodes["to"] <= before:
        return ""
    if not size.is_known:
        return NOT_CHECKED.format("VM size and quota were", "them")
    location, low_priority = str(cluster.location), values_of(cluster)["low_priority"]
    try:
        quotas = read_quotas(client, location)
    except AuthError:
        return NOT_CHECKED.format("the quota was", "it")
    added = nodes["to"] - before
    check_quota(size, added, quotas, location=location, low_priority=low_priority, existing=before)
    return ""


def ensure_cluster(client: Client, choices: Sequence[Choice], report: Callable[[str], None]) -> Choice | None:
    """Creates the cluster, or changes what can be changed. Returns when that is done, with the size of a new one.

    choices: the sizes of a new one; the first for which Azure has quota and capacity. Raises QuotaError without any.
    """
    settings, name = client.settings, client.settings.compute
    existing = read_cluster(client)
    if isinstance(existing, AmlCompute):
        changed = with_changes(existing, build_cluster(settings, str(existing.location)), set_values(settings))
        _put(client, f"Changing the cluster {name}", changed, client.cluster_errors(name), report)
        return None
    operation = f"Creating the cluster {name}"
    refusals: list[str] = []
    for choice, following in zip(choices, [*choices[1:], None], strict=False):
        try:
            _put(client, operation, build_cluster(choice.applied_to(settings), choice.location), [], report)
            return choice._replace(refusals=(*choice.refusals, *refusals))
        except QuotaError as error:
            refusals.append(f"{choice.size.name} in {choice.location}: {error.message}")
            if following is None:
                error.message = "\n".join(refusals) if len(refusals) > 1 else error.message
                raise
            report(f"{refusals[-1]} Trying {following.size.name} in {following.location} …")
        made = read_cluster(client)
        if made is not None and plan_cluster_deletion(name, made).is_to_do:  # it is new, and its size cannot be changed
            delete_cluster(client, report)
    return None


def _put(
    client: Client,
    operation: str,
    cluster: AmlCompute,
    before: Sequence[tuple[str, str]],
    report: Callable[[str], None],
) -> None:
    """Sends the cluster. Raises QuotaError also for an error that it did not have before, although it exists then."""
    _run(client, operation, lambda: client.ml.compute.begin_create_or_update(cluster), report)
    for code, message in client.cluster_errors(str(cluster.name)):
        if (code, message) not in before and (error := quota_error(operation, code, message, client.workspace)):
            error.may_have_happened = True
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
