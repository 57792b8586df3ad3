"""VM sizes: what a region offers, what the quota allows, and which of those in the settings is taken."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from msggan.commands.options import nearest
from msggan.config import flag
from msggan.errors import MsgganError, UsageError
from orchestration.azure.errors import quota_hint
from orchestration.errors import AuthError, QuotaError
from orchestration.settings import Settings

if TYPE_CHECKING:
    from orchestration.azure.client import Client

LOCATIONS = "/subscriptions/{}/providers/Microsoft.MachineLearningServices/locations/{}"
NOT_CHECKED = "{} not checked, because your roles do not permit reading {} in the subscription"

# VM sizes that Azure has retired, and when.
RETIRED = {
    r"Standard_NC(6|12|24|24r)(_Promo)?": "August 2023",
    r"Standard_NC\d+r?s_v2": "August 2023",
    r"Standard_ND(6|12|24|24r)s": "August 2023",
    r"Standard_NV(6|12|24)(_Promo)?": "August 2023",
    r"Standard_NC(6|12|24)s_v3": "September 2025",
}


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
    """A quota in cores, and how many are used. limit: -1 without one. family: its ID. title: its name for people."""

    family: str
    used: int
    limit: int
    title: str = ""

    @property
    def name(self) -> str:
        return self.family or self.title

    @property
    def description(self) -> str:
        if self.limit < 0:
            return f"{self.name}, {self.used} cores used, without a limit"
        return f"{self.name}, {self.used} of {self.limit} cores used, {max(0, self.limit - self.used)} left"

    def is_of(self, size: Size, *, low_priority: bool) -> bool:
        """Whether machines of the size count toward it: its family's, or the total of all families."""
        title = self.title.lower()
        is_low = "lowpriority" in plain(self.family + self.title)
        if low_priority:
            return is_low
        is_total = "total" in title and "dedicated" in title
        return not is_low and (is_total or plain(self.family) == plain(size.family))


class Region(NamedTuple):
    """A region with the VM sizes that it offers and the quota there, each None if it cannot be read."""

    name: str
    sizes: Sequence[Size] | None
    quotas: Sequence[Quota] | None


class Choice(NamedTuple):
    """A VM size in a region.

    problem: why it cannot be taken. unchecked: what could not be checked. refusals: why others cannot be taken, a
    sentence each.
    """

    size: Size
    location: str
    problem: MsgganError | None = None
    unchecked: str = ""
    refusals: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Why this one is taken and what was not checked, as the reason of a plan."""
        first = [f"{self.size.name} in {self.location} is the first that can be used"] if self.refusals else []
        return "; ".join(filter(None, [*first, *(text.removesuffix(".") for text in self.refusals), self.unchecked]))

    def applied_to(self, settings: Settings) -> Settings:
        """The settings with this size, and with this region if they name any."""
        return replace(settings, vm_size=self.size.name, location=settings.location and self.location)


def plain(text: str) -> str:
    """A name for comparison: the service varies case, spaces and underscores."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


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
        if similar:
            problem += f" Similar sizes: {', '.join(size.description for size in similar)}."
        with_gpu = sorted((size for size in by_name.values() if size.gpus), key=lambda size: (size.gpus, size.cores))
        others = "" if similar else ", ".join(size.description for size in with_gpu[:3])
        hint = f"Sizes with a GPU: {others}. " if others else ""
        raise UsageError([f"VM size {name} ({source}): {problem}"], f"{hint}Set it with {flag(setting)}.")
    if low_priority and not found.has_low_priority:
        problem = f"VM size {found.name}: is not available at low priority in {location}."
        raise UsageError([problem], "Add --no-low-priority.")
    return found


def check_quota(
    size: Size, nodes: int, quotas: Iterable[Quota], *, location: str, low_priority: bool, existing: int = 0
) -> None:
    """Raises QuotaError where this many more machines of a size would exceed a quota of the subscription.

    existing: how many machines the cluster may have already.
    """
    needed = size.cores * nodes
    for quota in quotas_of(size, quotas, low_priority=low_priority):
        if quota.limit < 0 or quota.used + needed <= quota.limit:
            continue
        fitting = max(0, quota.limit - quota.used) // size.cores if size.cores else 0
        fewer = f"\n--max-nodes {existing + fitting} would fit with {size.name} in {location}." if fitting else ""
        raise QuotaError(
            f"{nodes} machine{'s' if nodes > 1 else ''} {size.name} would need {needed} cores of the quota "
            f"{quota.name} in {location}, of which {quota.used} of {quota.limit} are used.",
            quota_hint(low_priority=low_priority) + fewer,
        )


def quotas_of(size: Size, quotas: Iterable[Quota], *, low_priority: bool) -> list[Quota]:
    """The quotas that machines of a size count toward."""
    return [quota for quota in quotas if quota.is_of(size, low_priority=low_priority)]


def size_setting(settings: Settings) -> str:
    return "vm_size" if settings.instance_type is None else "instance_type"


def judge(name: str, region: Region, nodes: int, settings: Settings) -> Choice:
    """Whether a size can be taken in a region. nodes: how many machines need quota."""
    location, low_priority = region.name, settings.low_priority
    if region.sizes is None:
        return Choice(Size(name), location, unchecked=NOT_CHECKED.format("VM size and quota were", "them"))
    setting = size_setting(settings)
    source = settings.source(setting)
    try:
        size = find_size(
            name, region.sizes, location=location, setting=setting, source=source, low_priority=low_priority
        )
        check_quota(size, nodes, region.quotas or (), location=location, low_priority=low_priority)
    except (UsageError, QuotaError) as error:
        return Choice(Size(name), location, error)
    unchecked = NOT_CHECKED.format("the quota was", "it") if nodes and region.quotas is None else ""
    return Choice(size, location, unchecked=unchecked)


def usable(choices: Sequence[Choice]) -> list[Choice]:
    """Those that can be taken. Raises QuotaError if none can and one lacks only quota, else UsageError."""
    problems = [choice.problem for choice in choices if choice.problem is not None]
    refusals = tuple(problem.message for problem in problems)
    if found := [choice._replace(refusals=refusals) for choice in choices if choice.problem is None]:
        return found
    if len(problems) == 1:
        raise problems[0]
    hint = "\n".join(dict.fromkeys(line for problem in problems for line in problem.hint.splitlines()))
    if any(isinstance(problem, QuotaError) for problem in problems):
        raise QuotaError("\n".join(refusals), hint)
    raise UsageError(refusals, hint)


# --- With the service -------------------------------------------------------------------------------------------------


def read_usable(client: Client, nodes: int) -> list[Choice]:
    """The sizes in the settings that can be taken, in order of preference: those of the first region first.

    nodes: how many machines need quota; 0: none is checked. Raises QuotaError or UsageError if there is none.
    """
    settings = client.settings
    names = getattr(settings, size_setting(settings)).split(",")
    regions = [read_region(client, location, quota=nodes > 0) for location in locations_of(client)]
    return usable([judge(name, region, nodes, settings) for region in regions for name in names])


def as_region(location: str) -> str:
    """A region as lists of sizes and prices write it, such as westeurope for West Europe."""
    return location.lower().replace(" ", "")


def locations_of(client: Client) -> list[str]:
    """The regions of the cluster in order of preference. Serverless jobs run in the workspace's."""
    settings = client.settings
    return ((settings.instance_type is None and settings.location) or str(client.about["location"])).split(",")


def read_region(client: Client, location: str, *, quota: bool) -> Region:
    try:
        sizes = read_sizes(client, location)
    except AuthError:
        return Region(location, None, None)
    try:
        return Region(location, sizes, read_quotas(client, location) if quota else None)
    except AuthError:
        return Region(location, sizes, None)


def read_sizes(client: Client, location: str) -> list[Size]:
    """The VM sizes that a region offers, read once by this client.

    Raises AuthError: a role at the workspace does not permit it.
    """
    return client.once(("sizes", as_region(location)), lambda: _read_sizes(client, location))


def _read_sizes(client: Client, location: str) -> list[Size]:
    path = LOCATIONS.format(client.workspace.subscription_id, as_region(location))
    with client.errors(f"Listing the VM sizes in {location}"):
        listed = list(client.list_all(f"{path}/vmSizes"))
    return [
        Size(
            size["name"],
            size.get("family") or "",
            size.get("vCPUs") or 0,
            size.get("gpus") or 0,
            size.get("memoryGB") or 0,
            bool(size.get("lowPriorityCapable")),
            {
                price["vmTier"]: price["retailPrice"]
                for price in (size.get("estimatedVMPrices") or {}).get("values", ())
                if price.get("osType") == "Linux"
            },
            (size.get("maxResourceVolumeMB") or 0) << 20,
        )
        for size in listed
        if "amlcompute" in map(str.lower, size.get("supportedComputeTypes") or ["AmlCompute"])
    ]


def read_quotas(client: Client, location: str) -> list[Quota]:
    """The quotas there. Raises AuthError: a role at the workspace does not permit it."""
    path = LOCATIONS.format(client.workspace.subscription_id, as_region(location))
    with client.errors(f"Reading the quota in {location}"):
        usages = list(client.list_all(f"{path}/usages"))
    quotas = []
    for usage in usages:
        name = usage.get("name") or {}
        used, limit = usage.get("currentValue") or 0, usage.get("limit") or 0
        quotas.append(Quota(name.get("value") or "", used, limit, name.get("localizedValue") or ""))
    return quotas


def size_named(client: Client, name: str, location: str) -> Size:
    """The size of that name; only its name is known if it cannot be listed."""
    return sizes_by_name(client, location).get(name.lower(), Size(name))


def sizes_by_name(client: Client, location: str) -> Mapping[str, Size]:
    """The VM sizes of a region by their name in lower case, none if the signed-in identity may not list them."""
    try:
        return {size.name.lower(): size for size in read_sizes(client, location)}
    except AuthError:
        return {}


def serverless_size(client: Client) -> Size:
    """The size of a serverless job, chosen once by this client. Raises UsageError or QuotaError if none can be taken.

    The quota matters only to choose among several: a job waits for cores in use.
    """
    return client.once("serverless size", lambda: _serverless_size(client))


def _serverless_size(client: Client) -> Size:
    choice = read_usable(client, nodes=1 if "," in str(client.settings.instance_type) else 0)[0]
    if choice.reason:
        client.reporter.info(f"{choice.reason}.")
    return choice.size
