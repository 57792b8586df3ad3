"""Whether a `submit` would go through: one check of each thing that it needs, none of which changes anything.

Reading the storage is tried, by listing one blob. Writing is not tried: it follows from the account key that the
datastore holds, from the permissions of its SAS, or from the roles of the signed-in identity at the storage account.
Where none of them tells, the check ends with a warning.
"""

from __future__ import annotations

import ipaddress
import json
import os
import platform
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from azure.ai.ml.entities import AmlCompute
from azure.core.rest import HttpRequest
from requests.utils import get_environ_proxies, select_proxy

from msggan.errors import MsgganError, UsageError
from orchestration.azure import compute
from orchestration.azure.blobs import Store
from orchestration.azure.client import WAIT_FACTOR_S, Client
from orchestration.azure.datastore import check_access
from orchestration.azure.environment import read_environment, resolve_recipe
from orchestration.azure.errors import (
    PRIVATE_HINT,
    SAS_HINT,
    azure_errors,
    quota_error,
    quota_hint,
    role_command,
    storage_role_hint,
    workspace_command,
)
from orchestration.azure.sizes import (
    Quota,
    Size,
    locations_of,
    quotas_of,
    read_quotas,
    read_usable,
    serverless_size,
    size_named,
    size_setting,
)
from orchestration.errors import AuthError, AzureServiceError, QuotaError, UnreachableError
from orchestration.settings import Settings, without_secrets
from orchestration.status import Reporter

OK, WARNING, FAILED = "ok", "warning", "failed"
PACKAGES = ("msggan", "torch", "azure-ai-ml", "azure-identity", "azure-storage-blob", "azureml-mlflow")
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
# Tokens that begin 5 minutes in the future are refused, and signatures of storage requests that are 15 minutes off.
MAX_SKEW_S, NOTABLE_SKEW_S = 300, 60
LOW_DISK_BYTES = 2**30
TIMEOUT_S = 10
RECENT_JOBS = 100

# By command and built-in role, the actions that the command needs at the workspace.
WORKSPACES = "Microsoft.MachineLearningServices/workspaces"
READS = ("read", "computes/read", "datastores/read", "environments/read", "jobs/read")
NEEDS = (
    ("submit", "AzureML Data Scientist", (*READS, "environments/write", "jobs/write")),
    ("provision", "AzureML Data Scientist", ("datastores/write",)),
    ("provision", "AzureML Compute Operator", ("computes/write", "computes/delete")),
)
BLOBS = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs"


# --- Checks and their results -----------------------------------------------------------------------------------------


class Finding(NamedTuple):
    """The result of a check that has not failed. hint: what to type."""

    detail: str
    hint: str = ""
    status: str = OK


class Check(NamedTuple):
    """A check. find: raises MsgganError if a submit would fail. needs: the checks without which it cannot be made."""

    name: str
    find: Callable[[Client], Finding]
    needs: Sequence[str] = ()


@dataclass(frozen=True)
class Result:
    """The result of a check. exit_code: of a failed one."""

    name: str
    status: str
    detail: str
    hint: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Diagnosis:
    """The results of all checks, in their order."""

    checks: tuple[Result, ...]

    @property
    def exit_code(self) -> int:
        """That of the first failed check, else 0."""
        return next((check.exit_code for check in self.checks if check.status == FAILED), 0)

    def as_json(self) -> dict[str, Any]:
        checks = [asdict(check) for check in self.checks]
        for check in checks:
            del check["exit_code"]
        return {"checks": checks, "ready": self.exit_code == 0}

    def as_lines(self) -> list[str]:
        """A line for each check, followed by what to type."""
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            lines.append(f"{check.status:<8} {check.name:<{width}}  {check.detail}")
            lines += [f"{'':<{width + 10}} {line}" for line in check.hint.splitlines()]
        return lines


def diagnose(settings: Settings, *, on_azure: bool, wait_factor_s: float = WAIT_FACTOR_S) -> Diagnosis:
    """Makes all checks, or only those of this machine. A failed check leaves out only those that need it."""
    client = Client(settings, Reporter(info=lambda line: None), wait_factor_s)
    results: list[Result] = []
    without_result: set[str] = set()
    for check in AZURE_CHECKS if on_azure else LOCAL_CHECKS:
        missing = next((name for name in check.needs if name in without_result), None)
        result = _make(check, client, results) if missing is None else _not_checked(check, missing)
        if result.status == FAILED or missing:
            without_result.add(check.name)
        results.append(result)
    return Diagnosis(tuple(results))


def _make(check: Check, client: Client, earlier: Sequence[Result]) -> Result:
    try:
        found = check.find(client)
    except MsgganError as error:
        detail = " ".join(error.message.splitlines())
        if same := next((result.name for result in earlier if result.detail == detail), None):
            return _not_checked(check, same)
        return Result(check.name, FAILED, detail, error.hint, error.exit_code)
    return Result(check.name, found.status, found.detail, found.hint)


def _not_checked(check: Check, missing: str) -> Result:
    return Result(check.name, WARNING, f"Not checked, because of {missing}.")


# --- This machine -----------------------------------------------------------------------------------------------------


def check_configuration(client: Client) -> Finding:
    where = client.workspace
    return Finding(f"Workspace {where.workspace_name}, set by {where.source}.")


def check_local_configuration(client: Client) -> Finding:
    named = client.settings.workspace is not None
    reason = "as --target says" if named else "because no Azure ML workspace is configured"
    return Finding(f"Runs train on this machine, {reason}.")


def check_versions(client: Client) -> Finding:
    packages = [f"{name} {version(name)}" for name in PACKAGES]
    return Finding(", ".join([*packages, f"Python {platform.python_version()}", _az_version()]) + ".")


def _az_version() -> str:
    program = shutil.which("az")
    if program is None:
        return "az not installed"
    try:
        ended = subprocess.run([program, "version", "-o", "json"], capture_output=True, timeout=60, check=True)  # noqa: S603
        found = json.loads(ended.stdout)
        return f"az {found['azure-cli']} (ml {found.get('extensions', {}).get('ml', 'not installed')})"
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return "az of an unknown version"


def check_runs_folder(client: Client) -> Finding:
    folder = Path(client.settings.runs_dir).absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UsageError([f"--runs-dir {folder}: {there} cannot be written."], "Choose another one: --runs-dir DIR")
    free = shutil.disk_usage(there).free
    found = Finding(f"{folder}, {free / 2**30:.1f} GiB free.")
    return found._replace(hint="Free some disk space.", status=WARNING) if free < LOW_DISK_BYTES else found


def check_proxy(client: Client) -> Finding:
    """Whether the proxy for requests to Azure, if there is one, accepts connections."""
    proxy = _proxy_for(client.cloud.management)
    if proxy is None:
        return Finding("None.")
    shown, parts = without_secrets(proxy), urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((str(parts.hostname), port), TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = "Correct HTTPS_PROXY, or unset it if there is no proxy."
        raise AzureServiceError(f"The proxy {shown} cannot be connected to: {reason}.", hint) from error
    return Finding(f"{shown}.")


def _proxy_for(url: str) -> str | None:
    """The proxy that requests to a URL go through, by HTTPS_PROXY and NO_PROXY."""
    return select_proxy(url, get_environ_proxies(url))


def check_certificates(client: Client) -> Finding:
    """Whether the file of trusted certificates, if one is set, can be read."""
    variable = next((name for name in CA_VARIABLES if os.environ.get(name)), None)
    if variable is None:
        return Finding("Trusted are the certificate authorities of the package certifi.")
    path = os.environ[variable]
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(*((None, path) if os.path.isdir(path) else (path, None)))
    except OSError as error:  # ssl.SSLError is one
        hint = f"Name a file of certificates in PEM format, or unset {variable}."
        reason = error.strerror or error
        raise AzureServiceError(f"{variable} {path}: cannot be read as certificates: {reason}.", hint) from error
    return Finding(f"Trusted are the certificate authorities in {path} ({variable}).")


# --- Azure and the workspace ------------------------------------------------------------------------------------------


def check_azure(client: Client) -> Finding:
    """Whether Azure is reached with a certificate that is trusted."""
    _ask_azure(client)
    return Finding(f"{urlsplit(client.cloud.management).hostname} is reached, and its certificate is trusted.")


def check_clock(client: Client) -> Finding:
    """This machine's clock against the time in Azure's response."""
    date = _ask_azure(client).get("Date")
    if date is None:
        return Finding("Azure's time is not known: its response has no date.", status=WARNING)
    return describe_skew(time.time() - parsedate_to_datetime(date).timestamp())


def describe_skew(seconds: float) -> Finding:
    """seconds: by which this machine's clock is ahead of Azure's."""
    if abs(seconds) < NOTABLE_SKEW_S:
        return Finding("The clock agrees with Azure's.")
    direction = "ahead of" if seconds > 0 else "behind"
    detail = f"The clock is {abs(seconds) / 60:.0f} minutes {direction} Azure's."
    hint = "Synchronize it: sudo timedatectl set-ntp true"
    if abs(seconds) > MAX_SKEW_S:
        raise AzureServiceError(f"{detail} Tokens and signatures are refused.", hint)
    return Finding(detail, hint, WARNING)


def _ask_azure(client: Client) -> Mapping[str, str]:
    """The headers of a response for which no sign-in is needed. A certificate that is not trusted is named."""
    url = f"{client.cloud.management}/metadata/endpoints?api-version=2022-09-01"
    host = urlsplit(url).hostname
    try:
        with azure_errors(f"Reaching {host}"):
            headers: Mapping[str, str] = client.send_public(HttpRequest("GET", url)).headers
            return headers
    except UnreachableError as error:
        if untrusted := re.search(r"certificate verify failed: ([^(\"']+)", str(error.__cause__)):
            hint = "If a proxy here inspects TLS, set REQUESTS_CA_BUNDLE to a file with its certificate authority."
            message = f"The certificate of {host} is not trusted: {untrusted[1].strip()}."
            raise UnreachableError(message, hint, may_have_happened=False) from error
        raise


def check_sign_in(client: Client) -> Finding:
    identity = client.identity
    return Finding(f"{identity.name} by {identity.how}, object ID {identity.object_id}.")


def check_workspace(client: Client) -> Finding:
    where, location = client.workspace, client.about["location"]
    return Finding(f"{where.workspace_name} in {location}, resource group {where.resource_group}.")


def check_network(client: Client) -> Finding:
    """The way to the workspace's own host, which serves run history and logs, and whether it responds."""
    url = str(client.about["discoveryUrl"])
    host, proxy = str(urlsplit(url).hostname), _proxy_for(url)
    found = describe_network(host, [] if proxy else _addresses_of(host), proxy, is_closed=client.is_closed)
    try:
        _ = client.api_url
    except MsgganError as error:
        if client.is_closed:
            raise AzureServiceError(error.message, PRIVATE_HINT) from error
        raise
    return found


def describe_network(host: str, addresses: Sequence[str], proxy: str | None, *, is_closed: bool) -> Finding:
    """The way to a host. is_closed: the workspace refuses public networks."""
    if proxy:
        return Finding(f"{host} through the proxy {without_secrets(proxy)}.")
    public = [address for address in addresses if ipaddress.ip_address(address).is_global]
    kind = ("public" if public else "private") + (" addresses" if len(addresses) > 1 else " address")
    detail = f"{host} by the {kind} {', '.join(addresses)}."
    return Finding(detail, PRIVATE_HINT, WARNING) if public and is_closed else Finding(detail)


def _addresses_of(host: str) -> list[str]:
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)})
    except OSError as error:
        hint = "Check the DNS of this network. For a private endpoint, use the DNS of the network that has it."
        raise UnreachableError(f"{host} cannot be resolved.", hint, may_have_happened=False) from error


# --- Roles ------------------------------------------------------------------------------------------------------------


def check_roles(client: Client) -> Finding:
    """Whether the identity may do at the workspace what `submit` needs, and for a warning what `provision` needs."""
    try:
        granted = read_permissions(client, client.scope)
    except AuthError:
        return Finding("The identity may not list its permissions.", status=WARNING)
    return describe_roles(granted, client.identity.object_id, client.scope)


def describe_roles(granted: Sequence[Mapping[str, Any]], who: str, scope: str) -> Finding:
    """granted: as `read_permissions` returns it. Raises AuthError if an action that submit needs is missing."""
    missing = [
        (command, role, lacking)
        for command, role, actions in NEEDS
        if (lacking := [action for action in actions if not permits(granted, f"{WORKSPACES}/{action}")])
    ]
    if not missing:
        return Finding("May submit and provision.")
    details = [f"{command} lacks {role} ({', '.join(lacking)})" for command, role, lacking in missing]
    commands = [role_command(role, who, shlex.quote(scope)) for role in dict.fromkeys(role for _, role, _ in missing)]
    hint = "\n".join(dict.fromkeys("\n".join(commands).splitlines()))
    if any(command == "submit" for command, _, _ in missing):
        raise AuthError(f"At the workspace, {'; '.join(details)}.", hint)
    return Finding(f"May submit, but {'; '.join(details)}.", hint, WARNING)


def read_permissions(client: Client, scope: str) -> list[Mapping[str, Any]]:
    """What each role of the identity at a scope permits: actions, notActions, dataActions and notDataActions."""
    permissions = f"{scope}/providers/Microsoft.Authorization/permissions"
    with client.errors(f"Reading the permissions at {scope}"):
        return list(client.list_all(permissions, api_version="2022-04-01"))


def permits(granted: Iterable[Mapping[str, Any]], action: str, *, kind: str = "actions") -> bool:
    """Whether one of the roles permits an action. kind: actions or dataActions."""
    denied = f"not{kind[0].upper()}{kind[1:]}"
    return any(_matches(role.get(kind), action) and not _matches(role.get(denied), action) for role in granted)


def _matches(patterns: Iterable[str] | None, action: str) -> bool:
    """`a/*/write` also matches `a/write`: without it, AzureML Data Scientist could not read its workspace."""
    return any(
        re.fullmatch(re.escape(pattern).replace(r"/\*/", "/(.*/)?").replace(r"\*", ".*"), action, re.IGNORECASE)
        for pattern in patterns or ()
    )


# --- What a job needs -------------------------------------------------------------------------------------------------


def check_compute(client: Client) -> Finding:
    """Whether the cluster exists and reports no errors; serverless, whether the region offers the VM size."""
    if client.settings.instance_type is not None:
        size = serverless_size(client)
        return Finding(f"Serverless, {size.description}.") if size.is_known else _sizes_unknown(client)
    cluster = compute.require_cluster(client)
    values = compute.values_of(cluster)
    priority = "low priority" if values["low_priority"] else "dedicated"
    detail = f"Cluster {cluster.name}: {values['vm_size']}, {priority}, {values['min_nodes']} to {values['max_nodes']}"
    state = str(getattr(cluster.provisioning_state, "value", cluster.provisioning_state))
    if state.lower() in ("failed", "canceled", "deleting"):
        hint = "Use another one: --compute NAME. Or create one: msggan-aml provision --compute NAME"
        raise AzureServiceError(f"{detail} machines, in state {state}.", hint)
    for code, text in client.cluster_errors(str(cluster.name)):
        known = quota_error("", code, text, client.workspace)
        detail, hint = f"{detail} machines; it reports {code}: {text}", known.hint if known else ""
        if code == "UnsupportedVMSizeForLowPriority":  # it never gets a machine; others may be of some time ago
            raise QuotaError(detail, hint)
        return Finding(detail, hint, WARNING)
    return Finding(f"{detail} machines.")


def check_quota(client: Client) -> Finding:
    """Whether the quota allows one machine: of the cluster's size, or else of the first in the settings that can be."""
    settings, low_priority = client.settings, client.settings.low_priority
    cluster = None if settings.instance_type else compute.read_cluster(client)
    if isinstance(cluster, AmlCompute):
        location, low_priority = str(cluster.location), compute.values_of(cluster)["low_priority"]
        size, reason = size_named(client, str(cluster.size), location), ""
    else:
        several = len(locations_of(client)) > 1 or "," in getattr(settings, size_setting(settings))
        choice = read_usable(client, nodes=1 if several else 0)[0]
        size, location, reason = choice.size, choice.location, choice.reason
    try:
        quotas = read_quotas(client, location)
    except AuthError:
        return _sizes_unknown(client)
    if not size.is_known:
        raise UsageError([f"VM size {size.name}: is no longer offered in {location}."], "Use another --compute.")
    hint = quota_hint(client.workspace, low_priority=low_priority)
    found = describe_quota(size, quotas_of(size, quotas, low_priority=low_priority), hint)
    return found._replace(detail=" ".join(filter(None, [found.detail, reason and f"{reason}."])))


def describe_quota(size: Size, quotas: Sequence[Quota], hint: str) -> Finding:
    """quotas: those that a machine of the size counts toward. Raises QuotaError if one allows no machine at all."""
    texts = [quota.description for quota in quotas]
    detail = f"{size.name} has {size.cores} cores; {'; '.join(texts) or 'no quota is listed for it'}."
    limited = [quota for quota in quotas if quota.limit >= 0]
    if any(quota.limit < size.cores for quota in limited):
        raise QuotaError(detail, hint)
    if any(quota.limit - quota.used < size.cores for quota in limited):
        return Finding(f"{detail} A job may have to wait for machines in use.", hint, WARNING)
    return Finding(detail)


def _sizes_unknown(client: Client) -> Finding:
    scope = f"/subscriptions/{client.workspace.subscription_id}"
    detail = "The identity may not read VM sizes and quota, which takes a role at the subscription."
    return Finding(detail, role_command("Reader", client.identity.object_id, scope), WARNING)


def check_storage(client: Client) -> Finding:
    """Whether the datastore of runs, and the default one, which the code goes to, can be read and written."""
    found = [_check_store(client, client.open_store(name)) for name in dict.fromkeys([client.settings.datastore, None])]
    unknown = next((finding.hint for finding in found if finding.status == WARNING), "")
    details = dict.fromkeys(finding.detail for finding in found)
    return Finding(" ".join(details), unknown, WARNING if unknown else OK)


def _check_store(client: Client, store: Store) -> Finding:
    container, named = store.container, f"Datastore {store.datastore} ({store.account})"
    key, sas = getattr(container.credential, "account_key", None), parse_qs(urlsplit(container.url).query)
    if not check_access(client, container, None):
        hint = (
            f"Create it: az storage container create --account-name {store.account} --name {container.container_name}"
        )
        raise UsageError([f"{named}: has no container {container.container_name}."], f"{hint} --auth-mode login")
    if key:
        return Finding(f"{named}: read and written with the account key.")
    if "sig" not in sas and not store.identity_based:  # jobs read it with the permissions of who submits them
        hint = role_command("AzureML Data Scientist", client.identity.object_id, shlex.quote(client.scope))
        raise AuthError(f"{named}: the signed-in identity may not read its key (datastores/listSecrets/action).", hint)
    hint = storage_role_hint(client.identity, store.account)
    may_write = "w" in sas["sp"][0] if "sp" in sas else _may_write(client, store) if "sig" not in sas else None
    if may_write is None:
        return Finding(f"{named}: read; whether it may be written is not known.", hint, WARNING)
    if sas:
        hint = SAS_HINT
    credential = "the SAS" if sas else "the signed-in identity"
    if not may_write:
        raise AuthError(f"{named}: read, but {credential} may not write.", hint)
    return Finding(f"{named}: read and written with {credential}.")


def _may_write(client: Client, store: Store) -> bool | None:
    """Whether the identity's roles permit it to write blobs, None if that cannot be read."""
    query = {"$filter": f"resourceType eq 'Microsoft.Storage/storageAccounts' and name eq '{store.account}'"}
    resources = f"/subscriptions/{client.workspace.subscription_id}/resources"
    own = str(client.about.get("storageAccount") or "")
    try:
        with client.errors(f"Looking for the storage account {store.account}"):
            if own.endswith(f"/{store.account}"):
                accounts = [own]
            else:
                found = client.list_all(resources, api_version="2021-04-01", **query)
                accounts = [str(account["id"]) for account in found]
        granted = [role for account in accounts for role in read_permissions(client, account)]
    except (AuthError, AzureServiceError):
        return None
    return permits(granted, f"{BLOBS}/write", kind="dataActions") if accounts else None


def check_registry(client: Client) -> Finding:
    """Whether the container registry of images is there, and whether images can be built."""
    registry = client.about.get("containerRegistry")
    name = str(registry or "").rpartition("/")[2]
    if registry:
        try:
            found = client.find(
                f"Reading the registry {name}", lambda: client.call("GET", registry, api_version="2023-07-01")
            )
        except AuthError:
            return Finding(f"{name}, which the identity may not read.")
        if found is None:
            hint = "Set another one: az ml workspace update --container-registry ID"
            raise AzureServiceError(f"The workspace's container registry {name} does not exist.", hint)
    if client.lacks_image_builder:
        hint = workspace_command(client.workspace, "update", "--image-build-compute", "CLUSTER")
        return Finding("Behind a private endpoint, images are built only on a cluster.", hint, WARNING)
    return Finding(f"{name}." if name else "None yet: Azure ML creates one when it builds the first image.")


def check_environment(client: Client) -> Finding:
    """Whether the curated image is found, the environment registered, and its image built."""
    recipe = resolve_recipe(client)
    if read_environment(client, recipe) is None:
        state = "submit registers it"
    else:
        state = f"registered as {recipe.reference.removeprefix('azureml:')}"
    if recipe.files or recipe.conda:
        job = _job_with(client, recipe.version)
        state += f", and its image was built for {job}" if job else ", and builds its image in about 20 minutes"
    return Finding(f"{recipe.made_from.capitalize()}: {state}.")


def _job_with(client: Client, environment_version: str) -> str | None:
    """A recent job that has run in this environment."""
    with client.errors("Listing the jobs"):
        for job in islice(client.ml.jobs.list(), RECENT_JOBS):
            if environment_version in str(getattr(job, "environment", "")) and job.status in ("Running", "Completed"):
                return str(job.name)
    return None


MACHINE_CHECKS = (Check("versions", check_versions), Check("runs", check_runs_folder))
LOCAL_CHECKS = (Check("configuration", check_local_configuration), *MACHINE_CHECKS)
AZURE_CHECKS = (
    Check("configuration", check_configuration),
    *MACHINE_CHECKS,
    Check("proxy", check_proxy),
    Check("certificates", check_certificates),
    Check("azure", check_azure, ("proxy", "certificates")),
    Check("clock", check_clock, ("azure",)),
    Check("sign-in", check_sign_in, ("configuration", "azure")),
    Check("workspace", check_workspace, ("sign-in",)),
    Check("network", check_network, ("workspace",)),
    Check("roles", check_roles, ("sign-in",)),
    Check("compute", check_compute, ("workspace",)),
    Check("quota", check_quota, ("workspace",)),
    Check("storage", check_storage, ("workspace",)),
    Check("registry", check_registry, ("workspace",)),
    Check("environment", check_environment, ("workspace",)),
)
