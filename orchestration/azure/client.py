"""The client of Azure ML: signing in, the SDK's client, and the translation of Azure's errors.

    client = connect(settings, tell)
    with client.errors("Creating the cluster gpu"):
        client.ml.compute.begin_create_or_update(…)

azure.ai.ml takes seconds to import, so it is imported when `ml` is first used, after the identity has been reported.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from azure.core import PipelineClient
from azure.core.credentials import TokenCredential
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    DeserializationError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline.policies import (
    BearerTokenCredentialPolicy,
    HttpLoggingPolicy,
    RequestIdPolicy,
    RetryPolicy,
)
from azure.core.rest import HttpRequest
from azure.identity import (
    AzureCliCredential,
    CredentialUnavailableError,
    DefaultAzureCredential,
    EnvironmentCredential,
    ManagedIdentityCredential,
)

from msggan.errors import MsgganError, UsageError
from orchestration.errors import AuthError, AzureServiceError, QuotaError, UnreachableError, WorkspaceError
from orchestration.settings import WORKSPACE_VARIABLES, Settings, Workspace

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

Found = TypeVar("Found")

MANAGEMENT_URL = "https://management.azure.com"
MANAGEMENT = f"{MANAGEMENT_URL}/.default"
PATIENCE_S = 1.0  # after this time a line reports that signing in takes longer

# `provision` tags the clusters, datastores and environments that it creates. Nothing without this tag is deleted.
PROVISIONED_TAG = {"msggan": "provisioned"}

# The SDK retries requests if the service is busy or the connection breaks: five times in about 12 s.
RETRIES: dict[str, Any] = {"retry_total": 5, "retry_connect": 4, "retry_read": 4, "retry_status": 4}
WAIT_FACTOR_S = 0.8

HOW_TO_SIGN_IN = (
    "Run: az login\n"
    "In automation, set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET instead; AZURE_TOKEN_CREDENTIALS "
    "selects one kind of credential."
)
TRY_AGAIN = "Try again: completed steps are kept."

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


# --- Identity ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """The signed-in identity. name: for display. object_id: for role assignments. how: the kind of credential.

    is_user: a user, to whom roles can also be assigned by name.
    """

    name: str
    object_id: str
    how: str
    is_user: bool


class Candidate(NamedTuple):
    how: str
    build: Callable[[], Any]


def build_candidates(environ: Mapping[str, str]) -> list[Candidate]:
    """The kinds of credential to try in this environment, in order."""
    if environ.get("AZURE_TOKEN_CREDENTIALS"):
        return [Candidate("AZURE_TOKEN_CREDENTIALS", DefaultAzureCredential)]
    by_variables = Candidate("environment variables", EnvironmentCredential)
    if environ.get("AZURE_CLIENT_ID") and environ.get("AZURE_TENANT_ID"):
        if environ.get("AZURE_FEDERATED_TOKEN_FILE"):
            return [Candidate("workload identity", DefaultAzureCredential)]
        if environ.get("AZURE_CLIENT_SECRET") or environ.get("AZURE_CLIENT_CERTIFICATE_PATH"):
            return [by_variables]
    by_cli = Candidate("Azure CLI", lambda: AzureCliCredential(process_timeout=30))
    if environ.get("IDENTITY_ENDPOINT") or environ.get("MSI_ENDPOINT"):
        client_id = environ.get("AZURE_CLIENT_ID") or environ.get("DEFAULT_IDENTITY_CLIENT_ID")
        return [Candidate("managed identity", lambda: ManagedIdentityCredential(client_id=client_id)), by_cli]
    return [by_cli, Candidate("managed identity", _managed_identity_of_a_vm)]


def _managed_identity_of_a_vm() -> DefaultAzureCredential:
    """Asks the VM's metadata service, with a short timeout: outside Azure there is no such service."""
    others = ("environment", "workload_identity", "shared_token_cache", "visual_studio_code", "cli", "powershell")
    excluded = {f"exclude_{name}_credential": True for name in (*others, "developer_cli", "broker")}
    return DefaultAzureCredential(**excluded)


def sign_in(candidates: list[Candidate]) -> tuple[TokenCredential, Identity]:
    """The first credential that gives a token, and its identity. Raises AuthError if none does."""
    refusals = []
    for candidate in candidates:
        try:
            credential = candidate.build()
            token = credential.get_token(MANAGEMENT).token
        except ValueError as error:  # an invalid value of AZURE_TOKEN_CREDENTIALS
            raise UsageError([_first_sentence(str(error))]) from error
        except (CredentialUnavailableError, ClientAuthenticationError) as error:
            refusals.append(f"{candidate.how}: {_first_sentence(error.message)}")
            if not isinstance(error, CredentialUnavailableError):
                break  # it is configured but was rejected: do not try others
            continue
        return credential, identity_of(token, candidate.how)
    raise AuthError("\n".join(["Not signed in to Azure.", *refusals]), HOW_TO_SIGN_IN)


def identity_of(token: str, how: str) -> Identity:
    """The identity of an access token, from its claims."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError):
        claims = {}
    person = next((claims[key] for key in ("upn", "preferred_username", "unique_name") if claims.get(key)), None)
    name = person or claims.get("app_displayname") or claims.get("appid") or "an unnamed identity"
    return Identity(str(name), str(claims.get("oid", "")), how, is_user=person is not None)


# --- The client -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Client:
    """The client of a workspace, with an identity."""

    workspace: Workspace
    identity: Identity
    credential: TokenCredential
    wait_factor_s: float = WAIT_FACTOR_S

    @cached_property
    def ml(self) -> MLClient:
        """The SDK's client of the workspace."""
        where = self.workspace
        return self._open(
            subscription_id=where.subscription_id,
            resource_group_name=where.resource_group,
            workspace_name=where.workspace_name,
        )

    def registry(self, name: str) -> MLClient:
        """The SDK's client of a registry."""
        return self._open(registry_name=name)

    @property
    def scope(self) -> str:
        """The workspace's resource ID."""
        return workspace_scope(self.workspace)

    @cached_property
    def about(self) -> Any:
        """The workspace from the service: `.location`, `.storage_account`. Raises WorkspaceError if there is none."""
        with self.errors(f"Reading the workspace {self.workspace.workspace_name}"):
            return self.ml.workspaces.get(self.workspace.workspace_name)

    def find(self, doing: str, read: Callable[[], Found]) -> Found | None:
        """The result of `read`, None if the resource does not exist."""
        try:
            with self.errors(doing):
                return read()
        except AzureServiceError as error:
            if error.is_missing:
                return None
            raise

    def send(self, request: HttpRequest) -> Any:
        """The response to a request that the SDK has no method for. Raises HttpResponseError for an error status."""
        response = self._pipeline.send_request(request)
        if response.status_code >= 400:
            raise HttpResponseError(response=response)
        return response

    @cached_property
    def _pipeline(self) -> PipelineClient[HttpRequest, Any]:
        policies = [
            RequestIdPolicy(),
            RetryPolicy(retry_backoff_factor=self.wait_factor_s, **RETRIES),
            BearerTokenCredentialPolicy(self.credential, MANAGEMENT),
            HttpLoggingPolicy(),
        ]
        return PipelineClient(MANAGEMENT_URL, policies=policies)

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Raises Azure's errors as MsgganError. doing: the operation, as the start of the message."""
        with azure_errors(doing, self.workspace, self.identity):
            yield

    def _open(self, **names: Any) -> MLClient:
        from azure.ai.ml import MLClient

        cloud = os.environ.get("AZUREML_CURRENT_CLOUD")
        with self.errors("Reaching Azure"):
            client = MLClient(
                self.credential,
                **names,
                **RETRIES,
                enable_telemetry=False,
                show_progress=False,
                retry_backoff_factor=self.wait_factor_s,
            )
        if cloud is None:  # set by the SDK; child processes would inherit it
            os.environ.pop("AZUREML_CURRENT_CLOUD", None)
        return client


def connect(
    settings: Settings,
    tell: Callable[[str], None],
    *,
    environ: Mapping[str, str] = os.environ,
    wait_factor_s: float = WAIT_FACTOR_S,
) -> Client:
    """Signs in, and reports the identity and the workspace. wait_factor_s: the delay before a retry, doubled each time.

    Raises WorkspaceError if none is configured, AuthError if signing in fails.
    """
    where = configured_workspace(settings)
    candidates = build_candidates(environ)
    named = f"Workspace {where.workspace_name} (group {where.resource_group})"
    with (
        _report_if_slow(tell, f"{named}: signing in with {candidates[0].how} …"),
        azure_errors("Signing in", where),
    ):
        credential, identity = sign_in(candidates)
    tell(f"{named} as {identity.name} ({identity.how}).")
    return Client(where, identity, credential, wait_factor_s)


def configured_workspace(settings: Settings) -> Workspace:
    """The workspace in the settings. Raises WorkspaceError if there is none."""
    if settings.workspace is None:
        raise WorkspaceError("No Azure ML workspace is configured.", how_to_name_a_workspace())
    return settings.workspace


def is_provisioned(tags: Mapping[str, str] | None) -> bool:
    """Whether a resource with these tags was created by `provision`."""
    return PROVISIONED_TAG.items() <= (tags or {}).items()


@contextmanager
def _report_if_slow(tell: Callable[[str], None], line: str) -> Iterator[None]:
    timer = threading.Timer(PATIENCE_S, tell, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def how_to_name_a_workspace() -> str:
    return (
        "Put the config.json from Azure ML Studio (top right, under the workspace's name) into this "
        f"folder, or set {', '.join(WORKSPACE_VARIABLES.values())}."
    )


# --- Its errors -------------------------------------------------------------------------------------------------------


@contextmanager
def azure_errors(doing: str, workspace: Workspace | None = None, identity: Identity | None = None) -> Iterator[None]:
    """Raises Azure's errors as MsgganError, with the operation, a hint and an exit code. Other errors pass."""
    import requests

    try:
        yield
    except MsgganError:
        raise
    except (AzureError, DeserializationError, requests.exceptions.RequestException) as error:
        raise translate_error(error, doing, workspace, identity) from error


def translate_error(
    error: Exception, doing: str, workspace: Workspace | None = None, identity: Identity | None = None
) -> MsgganError:
    """The MsgganError for an error of the SDK."""
    if isinstance(error, HttpResponseError) and error.status_code is not None:
        return _refused(error, doing, workspace, identity)
    if isinstance(error, CredentialUnavailableError | ClientAuthenticationError):
        return AuthError(f"{doing}: not signed in to Azure. {_first_sentence(error.message)}", HOW_TO_SIGN_IN)
    if isinstance(error, ServiceRequestError | ServiceResponseError | IncompleteReadError | OSError):
        return UnreachableError(
            f"{doing}: no response from Azure ({_cause(error)}).",
            f"Check the network, and HTTPS_PROXY if there is a proxy. {TRY_AGAIN}",
            may_have_happened=not isinstance(error, ServiceRequestError) or _is_cut(error),
        )
    return AzureServiceError(f"{doing}: {_first_sentence(str(error))}", TRY_AGAIN)


def _refused(
    error: HttpResponseError, doing: str, workspace: Workspace | None, identity: Identity | None
) -> MsgganError:
    """The MsgganError for a response with an error status."""
    code, text = error_code(error), error_text(error)
    told = f"{doing}: {_first_sentence(text)}" + (f" ({code})" if code and code not in text else "")
    status = error.status_code
    if QUOTA.search(f"{code} {text}"):
        return QuotaError(f"{doing}: {text}", how_to_get_quota(workspace))
    if code == "KeyBasedAuthenticationNotPermitted":
        return AuthError(told, keys_forbidden_hint(workspace, identity))
    if code == "AuthorizationPermissionMismatch":
        return AuthError(told, storage_role_hint(identity))
    if status == 401:
        return AuthError(told, f"Run: az login{_tenant(text)}")
    if status == 403:
        return AuthError(told, role_hint(text, workspace, identity))
    if status == 404 and workspace is not None and _is_workspace_missing(code, text, workspace):
        return workspace_missing(workspace)
    if status == 404:
        return AzureServiceError(told, is_missing=True)
    if status is not None and (status == 429 or status >= 500):
        return AzureServiceError(
            f"{told} Azure is overloaded or unavailable: status {status} after several retries.", TRY_AGAIN
        )
    return AzureServiceError(told)


def error_code(error: HttpResponseError) -> str:
    """Azure's code of an error, empty if there is none."""
    for holder, attribute in ((error, "error_code"), (error.error, "code")):
        code = getattr(holder, attribute, None)
        if code:
            return str(getattr(code, "value", code))
    return ""


def error_text(error: HttpResponseError) -> str:
    text = getattr(error.error, "message", None) or error.message or str(error)
    return re.sub(r"\s*(RequestId|Time|ErrorCode|Content):.*", "", str(text), flags=re.DOTALL).strip()


def workspace_missing(workspace: Workspace) -> WorkspaceError:
    return WorkspaceError(
        f"No workspace {workspace.workspace_name} in resource group {workspace.resource_group} of subscription "
        f"{workspace.subscription_id} (set in {workspace.source}).",
        "List the workspaces: az ml workspace list --output table. List the subscriptions: az account list",
    )


def _is_workspace_missing(code: str, text: str, workspace: Workspace) -> bool:
    named = f"/workspaces/{workspace.workspace_name}'" in text
    return code in ("SubscriptionNotFound", "ResourceGroupNotFound", "WorkspaceNotFound") or named


def role_hint(text: str, workspace: Workspace | None, identity: Identity | None) -> str:
    """The command that assigns the missing role. Placeholders stand for what the error does not name."""
    denied = DENIED.search(text)
    if denied is None:
        who = identity.object_id if identity else ""
        scope, action = workspace_scope(workspace) if workspace else "", ""
    else:
        who, scope, action = denied["identity"], denied["scope"], denied["action"]
    part = WORKSPACE_PART.match(scope)
    role = "AzureML Compute Operator" if re.search(r"/computes/(write|delete)", action) else "AzureML Data Scientist"
    return _role_command(role, who or "OBJECT-ID", part["workspace"] if part else scope or "SCOPE")


def storage_role_hint(identity: Identity | None, account: str = "ACCOUNT") -> str:
    """The command that allows an identity to read and write the blobs of a storage account."""
    return _storage_role(identity, f"$(az storage account show --name {account} --query id --output tsv)")


def keys_forbidden_hint(workspace: Workspace | None, identity: Identity | None) -> str:
    """How to switch a workspace to identity-based access if its storage account does not allow keys."""
    if workspace is None:
        return storage_role_hint(identity)
    named = f"--name {shlex.quote(workspace.workspace_name)} --resource-group {shlex.quote(workspace.resource_group)}"
    return (
        "The storage account does not allow keys. Switch the workspace's own datastores to identities:\n"
        f"az ml workspace update {named} --system-datastores-auth-mode identity\n"
        + _storage_role(identity, f"$(az ml workspace show {named} --query storage_account --output tsv)")
    )


def _storage_role(identity: Identity | None, scope: str) -> str:
    return _role_command("Storage Blob Data Contributor", identity.object_id if identity else "OBJECT-ID", scope)


def _role_command(role: str, who: str, scope: str) -> str:
    quoted = f'"{scope}"' if scope.startswith("$(") else shlex.quote(scope)
    return (
        "An owner of the resource can assign the role, which takes effect after some minutes:\n"
        f'az role assignment create --role "{role}" --assignee {shlex.quote(who)} --scope {quoted}'
    )


def workspace_scope(workspace: Workspace) -> str:
    """The workspace's resource ID, which is also the scope of role assignments."""
    return (
        f"/subscriptions/{workspace.subscription_id}/resourceGroups/{workspace.resource_group}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{workspace.workspace_name}"
    )


def how_to_get_quota(workspace: Workspace | None = None) -> str:
    named = f" of workspace {workspace.workspace_name}" if workspace else ""
    return (
        f"Request more cores in Azure ML Studio (https://ml.azure.com) under Quota, in the subscription{named}; "
        "or use a smaller --vm-size, fewer --max-nodes or --low-priority, which has its own quota."
    )


def _tenant(text: str) -> str:
    """The --tenant option for the tenant that an error names, else empty."""
    found = re.search(r"tenants? '?(?:https://sts\.windows\.net/)?([0-9a-f-]{36})", text)
    return f" --tenant {found[1]}" if found else ""


def _first_sentence(text: str) -> str:
    line = next((line.strip() for line in str(text).splitlines() if line.strip()), "no reason was given")
    return line if line.endswith((".", "!", "?")) else f"{line}."


# Behind a proxy, a lost response looks like a request that was never sent.
CUT = (
    r"Connection aborted|RemoteDisconnected|Remote end closed|Connection reset|closed connection|\bEOF\b|IncompleteRead"
)


def _is_cut(error: Exception) -> bool:
    return re.search(CUT, str(error), re.IGNORECASE) is not None


def _cause(error: Exception) -> str:
    text = str(error)
    for pattern, words in (
        (CUT, "the connection was closed"),
        (r"ProxyError|proxy", "the proxy refused the connection"),
        (r"CERTIFICATE_VERIFY_FAILED|SSL", "its certificate is not trusted"),
        (r"Name or service not known|getaddrinfo|NameResolution", "its name cannot be resolved"),
        (r"timed? ?out", "the request timed out"),
    ):
        if re.search(pattern, text, re.IGNORECASE):
            return words
    return _first_sentence(text).removesuffix(".")
