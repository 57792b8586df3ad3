"""The only door to Azure ML: signing in, the SDK's client, and Azure's errors as ours.

    client = connect(settings, tell)
    with client.errors("Making the cluster gpu"):
        client.ml.compute.begin_create_or_update(…)

azure.ai.ml takes seconds to import, so it is loaded when `ml` is first used: who is signed in is told before that.
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
PATIENCE_S = 1.0  # until a person is told that signing in takes its time

# Clusters, datastores and environments that `provision` made have this tag. Nothing without it is ever deleted.
PROVISIONED_TAG = {"msggan": "provisioned"}

# Requests are repeated by the SDK where the service is busy or the connection breaks: five times in about 12 s.
RETRIES: dict[str, Any] = {"retry_total": 5, "retry_connect": 4, "retry_read": 4, "retry_status": 4}
WAIT_FACTOR_S = 0.8

HOW_TO_SIGN_IN = (
    "Run: az login\n"
    "In automation, set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET instead; AZURE_TOKEN_CREDENTIALS "
    "picks one kind of credential."
)
TRY_AGAIN = "Try again: what is done already is found and kept."

# What the service says of quota and capacity, in the code or the words of an error.
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


# --- Who asks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """Who is signed in. name: as a person knows it. object_id: as roles are given to it. how: the kind of credential.

    is_user: a person, to whom a role is given by name as well.
    """

    name: str
    object_id: str
    how: str
    is_user: bool


class Candidate(NamedTuple):
    how: str
    build: Callable[[], Any]


def build_candidates(environ: Mapping[str, str]) -> list[Candidate]:
    """The kinds of credential that come into question in this environment, the first choice first."""
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
    """Asks the machine's own metadata service, but not for long: outside Azure nobody answers there."""
    others = ("environment", "workload_identity", "shared_token_cache", "visual_studio_code", "cli", "powershell")
    excluded = {f"exclude_{name}_credential": True for name in (*others, "developer_cli", "broker")}
    return DefaultAzureCredential(**excluded)


def sign_in(candidates: list[Candidate]) -> tuple[TokenCredential, Identity]:
    """The first credential that gives a token, and whose it is. Raises AuthError where none does."""
    refusals = []
    for candidate in candidates:
        try:
            credential = candidate.build()
            token = credential.get_token(MANAGEMENT).token
        except ValueError as error:  # a value of AZURE_TOKEN_CREDENTIALS that is none
            raise UsageError([_first_sentence(str(error))]) from error
        except (CredentialUnavailableError, ClientAuthenticationError) as error:
            refusals.append(f"{candidate.how}: {_first_sentence(error.message)}")
            if not isinstance(error, CredentialUnavailableError):
                break  # it is what was meant, and it does not open
            continue
        return credential, identity_of(token, candidate.how)
    raise AuthError("\n".join(["Not signed in to Azure.", *refusals]), HOW_TO_SIGN_IN)


def identity_of(token: str, how: str) -> Identity:
    """Whose an access token is, as far as it says."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError):
        claims = {}
    person = next((claims[key] for key in ("upn", "preferred_username", "unique_name") if claims.get(key)), None)
    name = person or claims.get("app_displayname") or claims.get("appid") or "an identity that its token does not name"
    return Identity(str(name), str(claims.get("oid", "")), how, is_user=person is not None)


# --- The door ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Client:
    """A workspace, and who asks it."""

    workspace: Workspace
    identity: Identity
    credential: TokenCredential
    wait_factor_s: float = WAIT_FACTOR_S

    @cached_property
    def ml(self) -> MLClient:
        """The SDK's own client of the workspace."""
        where = self.workspace
        return self._open(
            subscription_id=where.subscription_id,
            resource_group_name=where.resource_group,
            workspace_name=where.workspace_name,
        )

    def registry(self, name: str) -> MLClient:
        """The SDK's own client of a registry."""
        return self._open(registry_name=name)

    @property
    def scope(self) -> str:
        """The workspace's path in Azure's resource manager."""
        return workspace_scope(self.workspace)

    @cached_property
    def about(self) -> Any:
        """The workspace as the service has it: `.location`, `.storage_account`. Raises WorkspaceError if it is not."""
        with self.errors(f"Looking for the workspace {self.workspace.workspace_name}"):
            return self.ml.workspaces.get(self.workspace.workspace_name)

    def find(self, doing: str, read: Callable[[], Found]) -> Found | None:
        """What `read` gives, None where the service has no such thing."""
        try:
            with self.errors(doing):
                return read()
        except AzureServiceError as error:
            if error.is_missing:
                return None
            raise

    def send(self, request: HttpRequest) -> Any:
        """The answer to what the SDK has no door for. Raises HttpResponseError for one with an error's status."""
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
        """Azure's errors become ours. doing: what is tried, as the beginning of a sentence."""
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
        if cloud is None:  # the SDK writes it down in this process's environment, where others would find it
            os.environ.pop("AZUREML_CURRENT_CLOUD", None)
        return client


def connect(
    settings: Settings,
    tell: Callable[[str], None],
    *,
    environ: Mapping[str, str] = os.environ,
    wait_factor_s: float = WAIT_FACTOR_S,
) -> Client:
    """Signs in, and tells as whom and for which workspace. wait_factor_s: doubled before each repeated request.

    Raises WorkspaceError where none is configured, AuthError where nobody is signed in.
    """
    where = configured_workspace(settings)
    candidates = build_candidates(environ)
    named = f"Workspace {where.workspace_name} (group {where.resource_group})"
    with (
        _told_if_slow(tell, f"{named}: signing in by {candidates[0].how} …"),
        azure_errors("Signing in", where),
    ):
        credential, identity = sign_in(candidates)
    tell(f"{named} as {identity.name} ({identity.how}).")
    return Client(where, identity, credential, wait_factor_s)


def configured_workspace(settings: Settings) -> Workspace:
    """The workspace that the settings name. Raises WorkspaceError where they name none."""
    if settings.workspace is None:
        raise WorkspaceError("No Azure ML workspace is configured.", how_to_name_a_workspace())
    return settings.workspace


def is_provisioned(tags: Mapping[str, str] | None) -> bool:
    """Whether `provision` made what has these tags."""
    return PROVISIONED_TAG.items() <= (tags or {}).items()


@contextmanager
def _told_if_slow(tell: Callable[[str], None], line: str) -> Iterator[None]:
    timer = threading.Timer(PATIENCE_S, tell, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def how_to_name_a_workspace() -> str:
    return (
        "Put the config.json that Azure ML Studio offers for download (top right, at the workspace's name) into this "
        f"folder, or set {', '.join(WORKSPACE_VARIABLES.values())}."
    )


# --- Its errors -------------------------------------------------------------------------------------------------------


@contextmanager
def azure_errors(doing: str, workspace: Workspace | None = None, identity: Identity | None = None) -> Iterator[None]:
    """Azure's errors become ours, with what was tried, a hint and an exit code; any other error passes."""
    import requests

    try:
        yield
    except MsgganError:
        raise
    except (AzureError, DeserializationError, requests.exceptions.RequestException) as error:
        raise as_ours(error, doing, workspace, identity) from error


def as_ours(
    error: Exception, doing: str, workspace: Workspace | None = None, identity: Identity | None = None
) -> MsgganError:
    """What an error of the SDK means for a person."""
    if isinstance(error, HttpResponseError) and error.status_code is not None:
        return _refused(error, doing, workspace, identity)
    if isinstance(error, CredentialUnavailableError | ClientAuthenticationError):
        return AuthError(f"{doing}: not signed in to Azure. {_first_sentence(error.message)}", HOW_TO_SIGN_IN)
    if isinstance(error, ServiceRequestError | ServiceResponseError | IncompleteReadError | OSError):
        return UnreachableError(
            f"{doing}: no answer from Azure ({_cause(error)}).",
            f"Check the network, and HTTPS_PROXY if there is a proxy. {TRY_AGAIN}",
            may_have_happened=not isinstance(error, ServiceRequestError) or _is_cut(error),
        )
    return AzureServiceError(f"{doing}: {_first_sentence(str(error))}", TRY_AGAIN)


def _refused(
    error: HttpResponseError, doing: str, workspace: Workspace | None, identity: Identity | None
) -> MsgganError:
    """What an answer with an error's status means."""
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
        return AzureServiceError(f"{told} Azure is busy or broken: status {status}, again and again.", TRY_AGAIN)
    return AzureServiceError(told)


def error_code(error: HttpResponseError) -> str:
    """Azure's own word for an error, empty where it gave none."""
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
        f"{workspace.subscription_id}, as {workspace.source} says.",
        "See what there is: az ml workspace list --output table, or az account list for the subscriptions.",
    )


def _is_workspace_missing(code: str, text: str, workspace: Workspace) -> bool:
    named = f"/workspaces/{workspace.workspace_name}'" in text
    return code in ("SubscriptionNotFound", "ResourceGroupNotFound", "WorkspaceNotFound") or named


def role_hint(text: str, workspace: Workspace | None, identity: Identity | None) -> str:
    """The command that gives the role which is missing, as far as the refusal says whose and where."""
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
    """The command that lets an identity read and write a storage account's blobs."""
    return _storage_role(identity, f"$(az storage account show --name {account} --query id --output tsv)")


def keys_forbidden_hint(workspace: Workspace | None, identity: Identity | None) -> str:
    """How a workspace whose own storage account takes no keys turns to identities."""
    if workspace is None:
        return storage_role_hint(identity)
    named = f"--name {shlex.quote(workspace.workspace_name)} --resource-group {shlex.quote(workspace.resource_group)}"
    return (
        "The storage account takes no keys. The workspace's own datastores turn to identities by:\n"
        f"az ml workspace update {named} --system-datastores-auth-mode identity\n"
        + _storage_role(identity, f"$(az ml workspace show {named} --query storage_account --output tsv)")
    )


def _storage_role(identity: Identity | None, scope: str) -> str:
    return _role_command("Storage Blob Data Contributor", identity.object_id if identity else "OBJECT-ID", scope)


def _role_command(role: str, who: str, scope: str) -> str:
    quoted = f'"{scope}"' if scope.startswith("$(") else shlex.quote(scope)
    return (
        "An owner of the resource gives the role; it takes some minutes until it holds:\n"
        f'az role assignment create --role "{role}" --assignee {shlex.quote(who)} --scope {quoted}'
    )


def workspace_scope(workspace: Workspace) -> str:
    """The workspace's path in Azure's resource manager, as roles are given for it."""
    return (
        f"/subscriptions/{workspace.subscription_id}/resourceGroups/{workspace.resource_group}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{workspace.workspace_name}"
    )


def how_to_get_quota(workspace: Workspace | None = None) -> str:
    named = f" of workspace {workspace.workspace_name}" if workspace else ""
    return (
        f"Ask for more cores in Azure ML Studio (https://ml.azure.com), Quota, in the subscription{named}; "
        "or take a smaller --vm-size, fewer --max-nodes or --low-priority, which has a quota of its own."
    )


def _tenant(text: str) -> str:
    """The tenant that the service wants a token of, where it says so."""
    found = re.search(r"tenants? '?(?:https://sts\.windows\.net/)?([0-9a-f-]{36})", text)
    return f" --tenant {found[1]}" if found else ""


def _first_sentence(text: str) -> str:
    line = next((line.strip() for line in str(text).splitlines() if line.strip()), "no reason was given")
    return line if line.endswith((".", "!", "?")) else f"{line}."


# Behind a proxy an answer that was lost looks like a request that was never sent.
CUT = (
    r"Connection aborted|RemoteDisconnected|Remote end closed|Connection reset|closed connection|\bEOF\b|IncompleteRead"
)


def _is_cut(error: Exception) -> bool:
    return re.search(CUT, str(error), re.IGNORECASE) is not None


def _cause(error: Exception) -> str:
    text = str(error)
    for pattern, words in (
        (CUT, "the connection was cut"),
        (r"ProxyError|proxy", "the proxy does not let it through"),
        (r"CERTIFICATE_VERIFY_FAILED|SSL", "its certificate is not trusted here"),
        (r"Name or service not known|getaddrinfo|NameResolution", "its name cannot be resolved"),
        (r"timed? ?out", "it took too long"),
    ):
        if re.search(pattern, text, re.IGNORECASE):
            return words
    return _first_sentence(text).removesuffix(".")
