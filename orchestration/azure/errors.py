"""Azure's errors as ours: what was refused, why, the exit code, and what to type next."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

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
POLICY_HINT = (
    "If the policy requires tags, add them: --tag NAME=VALUE, or under [azure.tags] in msggan.toml. Otherwise ask who "
    "assigned the policy; roles do not help."
)
TRY_AGAIN = "Try again: completed steps are kept."

REQUEST_IDS = ("x-ms-request-id", "x-ms-correlation-request-id")  # headers of a response

KEYS_REFUSED = "KeyBasedAuthenticationNotPermitted"  # the code of a storage account's error

# Errors about quota and capacity, by their code or message.
QUOTA = re.compile(
    r"QuotaReached|QuotaExceeded|exceeding quota|exceed(?:s|ed)? .{0,40}quota|AllocationFailed|SkuNotAvailable"
    r"|OutOfCapacity|ZonalAllocation|InsufficientCapacity|NotEnoughCapacity",
    re.IGNORECASE,
)
DENIED = re.compile(
    r"object id '(?P<identity>[^']+)'.*?action '(?P<action>[^']+)'.*?scope '(?P<scope>[^']+)'", re.DOTALL
)
WORKSPACE_PART = re.compile(
    r"(?P<workspace>.*?/providers/Microsoft\.MachineLearningServices/workspaces/[^/]+)", re.IGNORECASE
)
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
    if isinstance(error, CredentialUnavailableError | ClientAuthenticationError):
        return AuthError(f"{operation}: not signed in to Azure. {first_sentence(error.message)}", HOW_TO_SIGN_IN)
    if isinstance(error, ServiceRequestError | ServiceResponseError | IncompleteReadError | OSError):
        text = str(error)
        is_cut = re.search(CUT, text, re.IGNORECASE) is not None
        causes = (cause for pattern, cause in CAUSES.items() if re.search(pattern, text, re.IGNORECASE))
        cause = next(causes, first_sentence(text).removesuffix("."))
        return UnreachableError(
            f"{operation}: no response from Azure ({cause}).",
            f"Check the network, and HTTPS_PROXY if there is a proxy. {TRY_AGAIN}",
            may_have_happened=not isinstance(error, ServiceRequestError) or is_cut,
        )
    return AzureServiceError(f"{operation}: {first_sentence(str(error))}", TRY_AGAIN)


def _refused(
    error: HttpResponseError, operation: str, workspace: Workspace | None, identity: Identity | None
) -> MsgganError:
    """The MsgganError for a response with an error status."""
    code, status = error_code(error), error.status_code or 0
    text = str(getattr(error.error, "message", None) or error.message or error)
    text = re.sub(r"\s*(RequestId|Time|ErrorCode|Content):.*", "", text, flags=re.DOTALL).strip()
    message = f"{operation}: {first_sentence(text)}" + (f" ({code})" if code and code not in text else "")
    if QUOTA.search(f"{code} {text}"):
        return QuotaError(f"{operation}: {text}", quota_hint(workspace))
    if code == KEYS_REFUSED:
        return AuthError(message, _keys_refused_hint(workspace, identity))
    if code == "AuthorizationPermissionMismatch":
        return AuthError(message, storage_role_hint(identity))
    if code == "RequestDisallowedByPolicy":
        return AuthError(f"{operation}: {text} ({code})", POLICY_HINT)
    if status == 401:
        tenant = re.search(r"tenants? '?(?:https://sts\.windows\.net/)?([0-9a-f-]{36})", text)
        return AuthError(message, "Run: az login" + (f" --tenant {tenant[1]}" if tenant else ""))
    if status == 403:
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


def _request_ids(error: HttpResponseError) -> str:
    """What Microsoft's support asks for: the IDs of the request that was refused, empty if the response has none."""
    headers: Mapping[str, str] = getattr(error.response, "headers", None) or {}
    ids = dict.fromkeys(filter(None, map(headers.get, REQUEST_IDS)))
    return f"Request ID: {', correlation ID: '.join(ids)}" if ids else ""


def error_code(error: HttpResponseError) -> str:
    """Azure's code of an error, empty if there is none."""
    code = getattr(error, "error_code", None) or getattr(error.error, "code", None) or ""
    return str(getattr(code, "value", code))


def _role_hint(text: str, workspace: Workspace | None, identity: Identity | None) -> str:
    """The command that assigns the missing role. Placeholders stand for what the error does not name."""
    who, scope = identity.object_id if identity else "", workspace_scope(workspace) if workspace else ""
    role = "AzureML Data Scientist"
    if denied := DENIED.search(text):
        who, scope = denied["identity"], denied["scope"]
        if re.search(r"/computes/(write|delete)", denied["action"]):
            role = "AzureML Compute Operator"
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
    named = f"--name {shlex.quote(workspace.workspace_name)} --resource-group {shlex.quote(workspace.resource_group)}"
    return (
        "The storage account does not allow keys. Switch the workspace's own datastores to identities:\n"
        f"az ml workspace update {named} --system-datastores-auth-mode identity\n"
        + storage_role_hint(identity, account_id=f"az ml workspace show {named} --query storage_account --output tsv")
    )


def role_command(role: str, who: str, scope: str) -> str:
    return (
        "An owner of the resource can assign the role, which takes effect after some minutes:\n"
        f'az role assignment create --role "{role}" --assignee {shlex.quote(who)} --scope {scope}'
    )


def workspace_scope(workspace: Workspace) -> str:
    """The workspace's resource ID, which is also the scope of role assignments."""
    return (
        f"/subscriptions/{workspace.subscription_id}/resourceGroups/{workspace.resource_group}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{workspace.workspace_name}"
    )


def quota_hint(workspace: Workspace | None = None) -> str:
    """How to get more quota, or to need less."""
    named = f" of workspace {workspace.workspace_name}" if workspace else ""
    studio = read_cloud(os.environ).studio
    return (
        f"Request more cores in Azure ML Studio ({studio}) under Quota, in the subscription{named}; "
        "or use a smaller --vm-size, fewer --max-nodes or --low-priority, which has its own quota."
    )


def first_sentence(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason was given")
    return line if line.endswith((".", "!", "?")) else f"{line}."
