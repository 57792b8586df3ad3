"""Azure's errors as ours: what was refused, why, the exit code, and what to type next."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    DeserializationError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.identity import CredentialUnavailableError
from azure.storage.blob._shared.authentication import AzureSigningError

from msggan.errors import MsgganError
from orchestration.azure.clouds import read_cloud
from orchestration.errors import AuthError, AzureServiceError, QuotaError, UnreachableError, WorkspaceError
from orchestration.settings import Workspace

if TYPE_CHECKING:
    from orchestration.azure.client import Identity

HOW_TO_SIGN_IN = (
    "Run: az login\n"
    "In automation, set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET instead; AZURE_TOKEN_CREDENTIALS "
    "selects one kind of credential."
)
HOW_TO_CORRECT = (
    "Correct AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or unset them, which come before the Azure CLI, "
    "and run: az login"
)
POLICY_HINT = (
    "If the policy requires tags, add them: --tag NAME=VALUE, or under [azure.tags] in msggan.toml. Otherwise ask who "
    "assigned the policy; roles do not help."
)
TRY_AGAIN = "Try again: completed steps are kept."

REQUEST_IDS = ("x-ms-request-id", "x-ms-correlation-request-id")  # headers of a response
CORRELATION = re.compile(
    r'"correlation"\s*:\s*\{\s*"operation"\s*:\s*"(?P<operation>[^"]*)"\s*,\s*"request"\s*:\s*"(?P<request>[^"]*)"'
)

FORBIDDEN = "ForbiddenError"  # the inner code of a job or datastore that was refused
KEYS_REFUSED = "KeyBasedAuthenticationNotPermitted"  # the code of a storage account's error

# Codes and texts of missing quota and capacity, and what to type; None: `quota_hint`.
QUOTA: dict[str, str | None] = {
    r"UnsupportedVMSizeForLowPriority|not allowed for LowPriority": (
        "Use dedicated machines, --no-low-priority, or another --vm-size."
    ),
    r"quota limits of Microsoft\.Batch": (
        "The region has its maximum number of clusters. Delete one that is not used: msggan-aml provision --delete "
        "--compute NAME"
    ),
    r"OutOfCapacity|AllocationFailed|SkuNotAvailable|ZonalAllocation|InsufficientCapacity|NotEnoughCapacity": (
        "Azure has no such machines free now. Try again later, or use another --vm-size or --location."
    ),
    r"QuotaReached|QuotaExceeded|CoreQuota|OutOfQuota|vCPU quota of \d|exceed(?:s|ed|ing)? .{0,60}quota": None,
    r"is not a supported VM size": None,  # also if the size exists and the subscription has no quota of its family
}

# Why a storage account refuses a request whatever the roles, by its code; and what to type.
FIREWALL_HINT = (
    "Roles do not change this. Allow the public address of this machine:\n"
    "az storage account network-rule add --account-name {account} --ip-address ADDRESS\n"
    "Or run the command in the private network of the account."
)
PRIVATE_HINT = (
    "The workspace is closed to public networks. Connect to the network that has its private endpoint, such as by "
    "VPN, and use that network's DNS."
)
KEY_HINT = "List the keys: az storage account keys list --account-name {account}"
SAS_HINT = "Set MSGGAN_STORAGE_SAS to a SAS with the permissions racwl, and run: msggan-aml provision"
SECRET_REFUSED = ("AuthenticationFailed", "InvalidAuthenticationInfo")
KEY_PROBLEM = (
    "{account} refused the key or SAS: it is wrong, malformed or expired, or the clock of this machine is wrong"
)
STORAGE = {
    "AuthorizationFailure": ("the firewall of {account} does not allow this network", FIREWALL_HINT),
    "PublicAccessNotPermitted": ("{account} allows no requests from public networks", FIREWALL_HINT),
    "AuthorizationSourceIPMismatch": (
        "{account} does not allow the address of this machine, by its firewall or by the SAS",
        FIREWALL_HINT,
    ),
    "AuthenticationFailed": (KEY_PROBLEM, KEY_HINT),
    "InvalidAuthenticationInfo": (KEY_PROBLEM, KEY_HINT),
    "NoAuthenticationInformation": ("{account} requires a key, a SAS or an identity", KEY_HINT),
    "AccountIsDisabled": ("{account} is disabled", "Use another storage account: --datastore NAME"),
}

# The roles that a linked resource needs, by the action at it.
LINKED_ROLES = {"/subnets/join/": "Network Contributor", "/userAssignedIdentities/": "Managed Identity Operator"}
LINKED = re.compile(
    r"object id '(?P<identity>[^']+)'.*not have permission to perform action\S* '(?P<action>[^']+)' on the linked "
    r"scope\S* '(?P<scope>[^']+)'",
    re.DOTALL,
)
IDENTITY = re.compile(r"object id '([^']+)'")
SCOPE = re.compile(r"scope '([^']+)'")
ACTION = re.compile(r"Microsoft\.\w+/[\w/]+/(?:read|write|delete|action)", re.IGNORECASE)
# How messages name a policy, the newest form first.
POLICIES = (
    r'"policy(?:Assignment|Definition)"\s*:\s*\{\s*"name"\s*:\s*"([^"]+)"',
    r"policyAssignments/([^/'\"\]\s]+)",
    r"identifiers?: '([^']+)'",
)
ASSIGNMENT = re.compile(
    r"(/[^\s'\"]*)/providers/Microsoft\.Authorization/policyAssignments/([^/'\"\]\s]+)", re.IGNORECASE
)
WORKSPACE_PART = re.compile(
    r"(?P<workspace>.*?/providers/Microsoft\.MachineLearningServices/workspaces/[^/]+)", re.IGNORECASE
)
ANSI = re.compile(r"\x1b\[\d*m")
# Behind a proxy, a lost response looks like a request that was never sent.
CUT = (
    r"Connection aborted|RemoteDisconnected|Remote end closed|Connection reset|closed connection|\bEOF\b|IncompleteRead"
)
CAUSES = {
    CUT: "the connection was closed",
    r"ProxyError|proxy": "the proxy refused the connection",
    r"CERTIFICATE_VERIFY_FAILED|SSL": "its certificate is not trusted",
    r"Name or service not known|getaddrinfo|NameResolution": "its name cannot be resolved",
    r"timed? ?out": "the request timed out",
}


@contextmanager
def azure_errors(
    operation: str, workspace: Workspace | None = None, identity: Identity | None = None
) -> Iterator[None]:
    """Raises Azure's errors as MsgganError, with the operation, a hint and an exit code. Other errors pass."""
    import requests

    try:
        yield
    except MsgganError:
        raise
    except (AzureError, DeserializationError, requests.exceptions.RequestException) as error:
        raise translate_error(error, operation, workspace, identity) from error


def translate_error(
    error: Exception, operation: str, workspace: Workspace | None = None, identity: Identity | None = None
) -> MsgganError:
    """The MsgganError for an error of the SDK."""
    if isinstance(error, HttpResponseError) and error.status_code is not None:
        refused = _refused(error, operation, workspace, identity)
        refused.hint = "\n".join(filter(None, [refused.hint, _request_ids(error)]))
        return refused
    if isinstance(error, AzureSigningError):
        return AuthError(
            f"{operation}: the account key is malformed: it is not Base64 text.", KEY_HINT.format(account="ACCOUNT")
        )
    if isinstance(error, CredentialUnavailableError | ClientAuthenticationError):
        return AuthError(f"{operation}: not signed in to Azure. {first_sentence(error.message)}", HOW_TO_SIGN_IN)
    if isinstance(error, ServiceRequestError | ServiceResponseError | IncompleteReadError | OSError):
        text = str(error)
        is_cut = re.search(CUT, text, re.IGNORECASE) is not None
        return unreachable(
            operation,
            cause_of(text) or first_sentence(text).removesuffix("."),
            may_have_happened=not isinstance(error, ServiceRequestError) or is_cut,
        )
    text = ANSI.sub("", str(error))
    text = found[1] if (found := re.search(r"\(x\) (.+)", text)) else text  # the SDK adds a page of advice
    is_missing = re.search(r"does not exist in (?:workspace|registry)", text) is not None
    return AzureServiceError(
        f"{operation}: {first_sentence(text)}", "" if is_missing else TRY_AGAIN, is_missing=is_missing
    )


def cause_of(text: str) -> str | None:
    """Why a request had no response, as far as the text of an error tells."""
    return next((cause for pattern, cause in CAUSES.items() if re.search(pattern, text, re.IGNORECASE)), None)


def unreachable(operation: str, cause: str, *, may_have_happened: bool = False) -> UnreachableError:
    hint = f"Check the network, and HTTPS_PROXY if there is a proxy. {TRY_AGAIN}"
    return UnreachableError(
        f"{operation}: no response from Azure ({cause}).", hint, may_have_happened=may_have_happened
    )


def _refused(
    error: HttpResponseError, operation: str, workspace: Workspace | None, identity: Identity | None
) -> MsgganError:
    """The MsgganError for a response with an error status."""
    code, status = error_code(error), error.status_code or 0
    text = str(getattr(error.error, "message", None) or error.message or error)
    text = re.sub(r"\s*(RequestId|Time|ErrorCode|Content):.*", "", text, flags=re.DOTALL).strip()
    message = f"{operation}: {first_sentence(text)}" + (f" ({code})" if code and code not in text else "")
    if quota := quota_error(operation, code, text, workspace):
        return quota
    if refused := _refused_by_storage(error, operation, message, workspace, identity):
        return refused
    if code == "RequestDisallowedByPolicy" or "disallowed by" in text:
        return _refused_by_policy(operation, code, text)
    if linked := LINKED.search(text):
        role = next((role for part, role in LINKED_ROLES.items() if part in linked["action"]), "Contributor")
        return AuthError(message, role_command(role, linked["identity"], shlex.quote(linked["scope"])))
    if status == 401:
        tenant = re.search(r"tenants? '?(?:https://sts\.windows\.net/)?([0-9a-f-]{36})", text)
        return AuthError(message, "Run: az login" + (f" --tenant {tenant[1]}" if tenant else ""))
    if re.search(r"public ?network|private ?(?:endpoint|link)", f"{code} {text}", re.IGNORECASE):
        return AuthError(message, PRIVATE_HINT)
    if status == 403 or FORBIDDEN in inner_codes(error):
        return AuthError(message, _role_hint(text, workspace, identity))
    if status == 404 and workspace is not None:
        named = f"/workspaces/{workspace.workspace_name}'" in text
        if named or code in ("SubscriptionNotFound", "ResourceGroupNotFound", "WorkspaceNotFound"):
            return WorkspaceError(
                f"No workspace {workspace.workspace_name} in resource group {workspace.resource_group} of subscription "
                f"{workspace.subscription_id} (set in {workspace.source}).",
                "List the workspaces: az ml workspace list --output table. List the subscriptions: az account list",
            )
    if status == 429 or status >= 500:
        unavailable = f"Azure is overloaded or unavailable (status {status})."
        return AzureServiceError(f"{message} {unavailable}", TRY_AGAIN)
    return AzureServiceError(message, is_missing=status == 404)


def _refused_by_storage(
    error: HttpResponseError, operation: str, message: str, workspace: Workspace | None, identity: Identity | None
) -> MsgganError | None:
    """The MsgganError for a response of a storage account with a code of its own, or status 403; None for others."""
    code, (account, container, has_sas) = error_code(error), _storage_of(error)
    if code == KEYS_REFUSED:
        return AuthError(message, _keys_refused_hint(workspace, identity))
    if code in STORAGE:
        problem, hint = (part.format(account=account or "the storage account") for part in STORAGE[code])
        if code in SECRET_REFUSED and workspace:
            hint += f"\nIf it is the workspace's own account: {workspace_command(workspace, 'sync-keys')}"
        return AuthError(f"{operation}: {problem} ({code}).", hint)
    if code == "AuthorizationPermissionMismatch" or (account and error.status_code == 403):
        return AuthError(message, SAS_HINT if has_sas else storage_role_hint(identity, account or "ACCOUNT"))
    if code == "ContainerNotFound":
        create = f"az storage container create --account-name {account} --name {container} --auth-mode login"
        message = f"{operation}: the storage account {account} has no container {container} ({code})."
        return AzureServiceError(message, f"Create it: {create}", is_missing=True)
    return None


def quota_error(operation: str, code: str, text: str, workspace: Workspace | None = None) -> QuotaError | None:
    """The error for a code or text of missing quota or capacity, None for others."""
    for pattern, hint in QUOTA.items():
        if re.search(pattern, f"{code} {text}", re.IGNORECASE):
            named = f"{code}: " if code and code not in text else ""
            low_priority = re.search("low.?priority", text, re.IGNORECASE) is not None
            return QuotaError(f"{operation}: {named}{text}", hint or quota_hint(workspace, low_priority=low_priority))
    return None


def _refused_by_policy(operation: str, code: str, text: str) -> AuthError:
    """The error with the names of the policies, and how to read them."""
    names = dict.fromkeys(next(filter(None, (re.findall(pattern, text) for pattern in POLICIES)), []))
    shown = [f"az policy assignment show --name {name} --scope {scope}" for scope, name in ASSIGNMENT.findall(text)]
    problem = f"the policy {' / '.join(names)} does not allow it" if names else text.removesuffix(".")
    named = f" ({code})" if code else ""
    return AuthError(f"{operation}: {problem}{named}.", "\n".join([POLICY_HINT, *dict.fromkeys(shown)]))


def _storage_of(error: HttpResponseError) -> tuple[str, str, bool]:
    """The storage account that answered, the container, and whether a SAS was sent. Empty if it was another service."""
    url = urlsplit(str(getattr(getattr(error.response, "request", None), "url", "")))
    host = url.hostname or ""
    if ".blob." not in host and ".dfs." not in host:
        return "", "", False
    return host.partition(".")[0], url.path.strip("/").partition("/")[0], "sig=" in url.query


def _request_ids(error: HttpResponseError) -> str:
    """What Microsoft's support asks for: the IDs of the request that was refused.

    They are headers of the response, or in the body of one of the workspace's own host; else there is the ID that the
    SDK sent.
    """
    headers: Mapping[str, str] = getattr(error.response, "headers", None) or {}
    ids = dict.fromkeys(filter(None, map(headers.get, REQUEST_IDS)))
    if not ids and (correlation := CORRELATION.search(_body(error))):
        ids = dict.fromkeys(filter(None, correlation.group("request", "operation")))
    sent: Mapping[str, str] = getattr(getattr(error.response, "request", None), "headers", None) or {}
    ids = ids or dict.fromkeys(filter(None, [sent.get("x-ms-client-request-id")]))
    return f"Request ID: {', correlation ID: '.join(ids)}" if ids else ""


def error_code(error: HttpResponseError) -> str:
    """Azure's code of an error, empty if there is none."""
    code = getattr(error, "error_code", None) or getattr(error.error, "code", None) or ""
    return str(getattr(code, "value", code))


def inner_codes(error: HttpResponseError) -> list[str]:
    """The codes in the body of an error, the outer one first. azure-core reads the outer one only."""
    return re.findall(r'"code"\s*:\s*"(\w+)"', _body(error))


def _body(error: HttpResponseError) -> str:
    try:
        return str(error.response.text()) if error.response is not None else ""
    except (AttributeError, AzureError):  # it was not read
        return ""


def _role_hint(text: str, workspace: Workspace | None, identity: Identity | None) -> str:
    """The command that assigns the missing role. Placeholders stand for what the error does not name."""
    who, scope = identity.object_id if identity else "", workspace.scope if workspace else ""
    role = "AzureML Data Scientist"
    who = found[1] if (found := IDENTITY.search(text)) else who
    scope = found[1] if (found := SCOPE.search(text)) else scope
    action = found[0] if (found := ACTION.search(text)) else ""
    if re.search(r"/computes/(write|delete)", action):
        role = "AzureML Compute Operator"
    if "/locations/" in action:  # of the subscription: no role at the workspace permits it
        role, scope = "Reader", "/".join(scope.split("/")[:3])
    part = WORKSPACE_PART.match(scope)
    return role_command(role, who or "OBJECT-ID", shlex.quote(part["workspace"] if part else scope or "SCOPE"))


def storage_role_hint(identity: Identity | None, account: str = "ACCOUNT", *, account_id: str = "") -> str:
    """The command that allows an identity to read and write the blobs of a storage account.

    account_id: the command that prints the account's resource ID, by default from its name.
    """
    account_id = account_id or f"az storage account show --name {account} --query id --output tsv"
    who = identity.object_id if identity else "OBJECT-ID"
    return role_command("Storage Blob Data Contributor", who, f'"$({account_id})"')


def _keys_refused_hint(workspace: Workspace | None, identity: Identity | None) -> str:
    """How to switch a workspace to identity-based access if its storage account does not allow keys."""
    if workspace is None:
        return storage_role_hint(identity)
    update = workspace_command(workspace, "update", "--system-datastores-auth-mode", "identity")
    account_id = workspace_command(workspace, "show", "--query", "storage_account", "--output", "tsv")
    return (
        "The storage account does not allow keys. Switch the workspace's own datastores to identities:\n"
        f"{update}\n{storage_role_hint(identity, account_id=account_id)}"
    )


def role_command(role: str, who: str, scope: str) -> str:
    return (
        "An owner of the resource can assign the role, which takes effect after some minutes:\n"
        f'az role assignment create --role "{role}" --assignee {shlex.quote(who)} --scope {scope}'
    )


def workspace_command(workspace: Workspace, verb: str, *args: str) -> str:
    """A command of the Azure CLI on the workspace."""
    named = ["--name", workspace.workspace_name, "--resource-group", workspace.resource_group]
    return shlex.join(["az", "ml", "workspace", verb, *named, *args])


def quota_hint(workspace: Workspace | None = None, *, low_priority: bool = False) -> str:
    """How to get more quota, or to need less."""
    named = f" of workspace {workspace.workspace_name}" if workspace else ""
    studio = read_cloud(os.environ).studio
    other = "--no-low-priority" if low_priority else "--low-priority"
    return (
        f"Request more cores in Azure ML Studio ({studio}) under Quota, in the subscription{named}; "
        f"or use a smaller --vm-size, fewer --max-nodes or {other}, which has its own quota."
    )


def first_sentence(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason was given")
    return line if line.endswith((".", "!", "?")) else f"{line}."
