"""The client of Azure ML: signing in, the SDK's client and datastores.

    client = Client(settings, reporter)
    with client.errors("Creating the cluster gpu"):
        client.ml.compute.begin_create_or_update(…)

azure.ai.ml takes seconds to import, so it is imported when `ml` is first used, after the identity has been reported.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from azure.core import PipelineClient
from azure.core.credentials import AccessToken, TokenCredential
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError
from azure.core.pipeline.policies import BearerTokenCredentialPolicy, HttpLoggingPolicy, RequestIdPolicy, RetryPolicy
from azure.core.rest import HttpRequest
from azure.identity import (
    AzureCliCredential,
    CredentialUnavailableError,
    DefaultAzureCredential,
    EnvironmentCredential,
    ManagedIdentityCredential,
)
from azure.storage.blob import ContainerClient

from msggan.errors import MsgganError, UsageError
from orchestration.azure.blobs import Store, build_container
from orchestration.azure.clouds import CLOUD_VARIABLE, CLOUDS, PUBLIC_CLOUD, AzureCloud, read_cloud
from orchestration.azure.errors import (
    HOW_TO_CORRECT,
    HOW_TO_SIGN_IN,
    KEYS_REFUSED,
    azure_errors,
    cause_of,
    error_code,
    first_sentence,
    unreachable,
)
from orchestration.data_source import WorkspaceName
from orchestration.errors import AuthError, AzureServiceError, WorkspaceError
from orchestration.settings import WORKSPACE_VARIABLES, Settings, Workspace
from orchestration.status import Reporter

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

Found = TypeVar("Found")

API_VERSION = "2023-04-01"  # of the requests that are sent without the SDK
PATIENCE_S = 1.0  # after this time a line reports that signing in takes longer
EXPIRES_SOON_S = 300  # as the SDK sees it

# `provision` tags the clusters, datastores and environments that it creates. Nothing without this tag is deleted.
PROVISIONED_TAG = {"msggan": "provisioned"}

# The SDK retries requests if the service is busy or the connection breaks: five times in about 12 s.
RETRIES: dict[str, Any] = {"retry_total": 5, "retry_connect": 4, "retry_read": 4, "retry_status": 4}
WAIT_FACTOR_S = 0.8
PUBLIC_TIMEOUT_S = 10  # of a page that is not essential

HOW_TO_NAME_A_WORKSPACE = (
    "Put the config.json from Azure ML Studio (top right, under the workspace's name) into this "
    f"folder, or set {', '.join(WORKSPACE_VARIABLES.values())}."
)


# --- Identity ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """The signed-in identity. name: for display. object_id: for role assignments. how: the kind of credential."""

    name: str
    object_id: str
    how: str


class KeptTokens:
    """A credential that keeps its tokens until they expire.

    The SDK has a client for each kind of resource, each of which asks for a token, and `az` takes a second for each.
    """

    def __init__(self, credential: TokenCredential) -> None:
        self._credential, self._lock = credential, threading.Lock()
        self._tokens: dict[Hashable, AccessToken] = {}

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        key = (scopes, tuple(sorted(options.items())))
        with self._lock:
            token = self._tokens.get(key)
            if token is None or token.expires_on - time.time() < EXPIRES_SOON_S:
                token = self._tokens[key] = self._credential.get_token(*scopes, **options)
            return token


AZURE_CLI, BY_VARIABLES = "Azure CLI", "environment variables"


class Candidate(NamedTuple):
    how: str
    build: Callable[[], Any]


def build_candidates(environ: Mapping[str, str], authority: str) -> list[Candidate]:
    """The kinds of credential to try in this environment, in order. authority: used unless a variable sets one."""
    by_default = partial(DefaultAzureCredential, authority=environ.get("AZURE_AUTHORITY_HOST") or authority)
    if environ.get("AZURE_TOKEN_CREDENTIALS"):
        return [Candidate("AZURE_TOKEN_CREDENTIALS", by_default)]
    by_variables = Candidate(BY_VARIABLES, partial(EnvironmentCredential, **by_default.keywords))
    if environ.get("AZURE_CLIENT_ID") and environ.get("AZURE_TENANT_ID"):
        if environ.get("AZURE_FEDERATED_TOKEN_FILE"):
            return [Candidate("workload identity", by_default)]
        if environ.get("AZURE_CLIENT_SECRET") or environ.get("AZURE_CLIENT_CERTIFICATE_PATH"):
            return [by_variables]
    by_cli = Candidate(AZURE_CLI, lambda: KeptTokens(AzureCliCredential(process_timeout=30)))
    if environ.get("IDENTITY_ENDPOINT") or environ.get("MSI_ENDPOINT"):
        client_id = environ.get("AZURE_CLIENT_ID") or environ.get("DEFAULT_IDENTITY_CLIENT_ID")
        return [Candidate("managed identity", lambda: ManagedIdentityCredential(client_id=client_id)), by_cli]
    # Asks the VM's metadata service with a short timeout: outside Azure there is no such service.
    others = ("environment", "workload_identity", "shared_token_cache", "visual_studio_code", "cli", "powershell")
    excluded = {f"exclude_{name}_credential": True for name in (*others, "developer_cli", "broker")}
    return [by_cli, Candidate("managed identity", partial(by_default, **excluded))]


def sign_in(candidates: list[Candidate], scope: str) -> tuple[TokenCredential, Identity]:
    """The first credential that gives a token for the scope, and its identity. Raises AuthError if none does."""
    refusals = []
    for candidate in candidates:
        try:
            credential = candidate.build()
            token = credential.get_token(scope).token
        except ValueError as error:  # an invalid value of AZURE_TOKEN_CREDENTIALS
            raise UsageError([first_sentence(str(error))]) from error
        except (CredentialUnavailableError, ClientAuthenticationError) as error:
            refusals.append(f"{candidate.how}: {first_sentence(error.message)}")
            if not isinstance(error, CredentialUnavailableError):
                if cause := cause_of(error.message):
                    raise unreachable("Signing in", cause) from error
                break  # it is configured but was rejected: do not try others
            continue
        return credential, identity_of(token, candidate.how)
    hint = HOW_TO_CORRECT if candidates[0].how == BY_VARIABLES else HOW_TO_SIGN_IN
    raise AuthError("\n".join(["Not signed in to Azure.", *refusals]), hint)


def identity_of(token: str, how: str) -> Identity:
    """The identity of an access token, from its claims."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError):
        claims = {}
    keys = ("upn", "preferred_username", "unique_name", "app_displayname", "appid")
    name = next((claims[key] for key in keys if claims.get(key)), "an unnamed identity")
    return Identity(str(name), str(claims.get("oid", "")), how)


class Session:
    """Signing in, once for all clients that share the session, and in a thread: the SDK is imported meanwhile."""

    def __init__(self) -> None:
        self.is_reported = False
        self._lock = threading.Lock()
        self._signed_in: Future[tuple[TokenCredential, Identity]] | None = None

    def begin(self, cloud: AzureCloud) -> Future[tuple[TokenCredential, Identity]]:
        """Starts signing in, unless it was started and has not failed."""
        with self._lock:
            signed_in = self._signed_in
            if signed_in is None or (signed_in.done() and signed_in.exception()):
                signed_in = self._signed_in = Future()
                threading.Thread(target=_sign_in, args=(cloud, signed_in), daemon=True).start()
            return signed_in


def open_session(settings: Settings) -> Session:
    """A session that is already signing in where that runs `az`, which takes a second and changes nothing."""
    session, cloud = Session(), CLOUDS.get(os.environ.get(CLOUD_VARIABLE) or PUBLIC_CLOUD)
    if settings.workspace and cloud and build_candidates(os.environ, cloud.authority)[0].how == AZURE_CLI:
        session.begin(cloud)
    return session


def _sign_in(cloud: AzureCloud, signed_in: Future[tuple[TokenCredential, Identity]]) -> None:
    try:
        signed_in.set_result(sign_in(build_candidates(os.environ, cloud.authority), cloud.management_scope))
    except BaseException as error:
        signed_in.set_exception(error)


# --- The client -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Client:
    """The client of the workspace in the settings. It signs in when it is first used.

    wait_factor_s: the delay before a request is repeated, doubled each time.
    """

    settings: Settings
    reporter: Reporter
    wait_factor_s: float = WAIT_FACTOR_S
    session: Session = field(default_factory=Session, repr=False)
    _kept: dict[Hashable, Future[Any]] = field(default_factory=dict, init=False, repr=False)  # the results of `once`
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)

    @property
    def workspace(self) -> Workspace:
        """The workspace in the settings. Raises WorkspaceError if there is none."""
        if self.settings.workspace is None:
            raise WorkspaceError("No Azure ML workspace is configured.", HOW_TO_NAME_A_WORKSPACE)
        return self.settings.workspace

    @property
    def scope(self) -> str:
        """The workspace's resource ID."""
        return self.workspace.scope

    @property
    def workspace_key(self) -> str:
        """The workspace as files on this machine record it."""
        where = self.workspace
        return f"{where.subscription_id}/{where.resource_group}/{where.workspace_name}"

    @cached_property
    def cloud(self) -> AzureCloud:
        """The cloud of the workspace. Raises UsageError if the environment names an unknown one."""
        return read_cloud(os.environ)

    @property
    def credential(self) -> TokenCredential:
        return self._signed_in[0]

    @property
    def identity(self) -> Identity:
        return self._signed_in[1]

    @cached_property
    def _signed_in(self) -> tuple[TokenCredential, Identity]:
        """Signs in, and reports the identity and the workspace; earlier if that takes long."""
        named = f"Workspace {self.workspace.workspace_name} (group {self.workspace.resource_group})"
        info, begun = self.reporter.info, self.session.begin(self.cloud)
        if not wait([begun], PATIENCE_S).done:
            how = build_candidates(os.environ, self.cloud.authority)[0].how
            info(f"{named}: signing in with {how} …")
        with azure_errors("Signing in", self.workspace):
            credential, identity = begun.result()
        if not self.session.is_reported:
            info(f"{named} as {identity.name} ({identity.how}).")
        self.session.is_reported = True
        return credential, identity

    @cached_property
    def ml(self) -> MLClient:
        """The SDK's client of the workspace."""
        return self._open(
            subscription_id=self.workspace.subscription_id,
            resource_group_name=self.workspace.resource_group,
            workspace_name=self.workspace.workspace_name,
        )

    def registry(self, name: str) -> MLClient:
        """The SDK's client of a registry."""
        return self._open(registry_name=name)

    def _open(self, **names: Any) -> MLClient:
        from azure.ai.ml import MLClient

        with self.errors("Reaching Azure"), self._lock:
            cloud = os.environ.get(CLOUD_VARIABLE)
            client = MLClient(
                self.credential,
                **names,
                **RETRIES,
                enable_telemetry=False,
                show_progress=False,
                retry_backoff_factor=self.wait_factor_s,
            )
            if cloud is None:  # set by the SDK; child processes would inherit it
                os.environ.pop(CLOUD_VARIABLE, None)
        return client

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """The workspace's `location` and properties from the service. Raises WorkspaceError if there is none.

        The SDK's `workspaces.get` imports MLflow, which takes two seconds.
        """
        with self.errors(f"Reading the workspace {self.workspace.workspace_name}"):
            found = self.call("GET", self.scope).json()
            return {"location": found["location"], **found["properties"]}

    @property
    def is_closed(self) -> bool:
        """Whether the workspace is reached through private endpoints only."""
        return str(self.about.get("publicNetworkAccess")).lower() == "disabled"

    @property
    def lacks_image_builder(self) -> bool:
        """Whether images may fail to build: a closed workspace builds them only on a cluster that it names."""
        return self.is_closed and not self.about.get("imageBuildCompute")

    @cached_property
    def api_url(self) -> str:
        """The workspace's own address for its run history, which differs by cloud and behind a private link."""
        with self.errors(f"Reading the addresses of the workspace {self.workspace.workspace_name}"):
            found = self.send(HttpRequest("GET", str(self.about["discoveryUrl"]))).json()
            return str(found["api"]).rstrip("/")

    def once(self, key: Hashable, read: Callable[[], Found]) -> Found:
        """The result of `read`, which is called once for each key, unless it raises an error."""
        with self._lock:
            kept = self._kept.get(key)
            is_first = kept is None
            if kept is None:
                kept = self._kept[key] = Future()
        if is_first:
            try:
                kept.set_result(read())
            except BaseException as error:
                self.forget(key)
                kept.set_exception(error)
        result: Found = kept.result()
        return result

    def read_together(self, *reads: Callable[[], object]) -> None:
        """Makes reads that use `once` side by side. An error is raised again where the result is needed, if it is."""
        _ = self.ml  # signed in, and imported
        with ThreadPoolExecutor() as threads:
            list(threads.map(_quietly, reads))

    def forget(self, key: Hashable) -> None:
        """Makes `once` call its function again."""
        self._kept.pop(key, None)

    def find(self, operation: str, read: Callable[[], Found]) -> Found | None:
        """The result of `read`, None if the resource does not exist."""
        try:
            with self.errors(operation):
                return read()
        except AzureServiceError as error:
            if error.is_missing:
                return None
            raise

    def send(self, request: HttpRequest) -> Any:
        """The response to a request that may be repeated. Raises HttpResponseError for an error status.

        The SDK itself repeats no POST whose connection was cut or that was answered 429.
        """
        response = self._pipeline.send_request(request, retry_on_methods=[request.method])
        if response.status_code >= 400:
            raise HttpResponseError(response=response)
        return response

    def call(
        self, method: str, resource: str, *, api_version: str = API_VERSION, content: Any = None, **query: str
    ) -> Any:
        """The response of Azure Resource Manager to a request on a resource, by its ID; as `send`."""
        url, params = f"{self.cloud.management}{resource}", {"api-version": api_version, **query}
        return self.send(HttpRequest(method, url, params=params, json=content))

    def list_all(self, resources: str, **options: str) -> Iterator[Mapping[str, Any]]:
        """The items of a list of Azure Resource Manager, of all its pages. options: as `call` takes them."""
        page = self.call("GET", resources, **options).json()
        yield from page.get("value") or []
        while (link := page.get("nextLink") or "").startswith(self.cloud.management):  # no other host gets a token
            page = self.send(HttpRequest("GET", link)).json()
            yield from page.get("value") or []

    def send_public(self, request: HttpRequest) -> Any:
        """The response of a public page, requested without the credential. Raises the SDK's errors."""
        retries = RetryPolicy(retry_total=1, retry_backoff_factor=self.wait_factor_s, timeout=PUBLIC_TIMEOUT_S)
        policies = [RequestIdPolicy(), retries, HttpLoggingPolicy()]
        with PipelineClient[HttpRequest, Any](self.cloud.management, policies=policies) as pipeline:
            response = pipeline.send_request(
                request, connection_timeout=PUBLIC_TIMEOUT_S, read_timeout=PUBLIC_TIMEOUT_S
            )
            if response.status_code >= 400:
                raise HttpResponseError(response=response)
            return response

    @cached_property
    def _pipeline(self) -> PipelineClient[HttpRequest, Any]:
        policies = [
            RequestIdPolicy(),
            RetryPolicy(retry_backoff_factor=self.wait_factor_s, **RETRIES),
            BearerTokenCredentialPolicy(self.credential, self.cloud.management_scope),
            HttpLoggingPolicy(),
        ]
        return PipelineClient(self.cloud.management, policies=policies)

    @contextmanager
    def errors(self, operation: str) -> Iterator[None]:
        """Raises Azure's errors as MsgganError. operation: the start of the message."""
        with azure_errors(operation, self.workspace, self.identity):
            yield

    def of(self, workspace: WorkspaceName | None) -> Client:
        """The client of another workspace, with the same credential; this one if it is this one's or None."""
        if workspace is None or workspace.scope.lower() == self.scope.lower():
            return self
        named = Workspace(**vars(workspace), sources={"workspace_name": "--data"})
        return self.once(("client", named.scope), lambda: self.with_settings(replace(self.settings, workspace=named)))

    def with_settings(self, settings: Settings) -> Client:
        """A client with other settings, which is signed in with this one."""
        return replace(self, settings=settings)

    def cluster_errors(self, name: str) -> list[tuple[str, str]]:
        """The codes and messages in a cluster's `errors`: even a new one may have some. The SDK drops them."""
        with self.errors(f"Reading the errors of the cluster {name}"):
            compute = self.call("GET", f"{self.scope}/computes/{name}").json()
        properties = compute["properties"].get("properties") or {}
        errors = [entry.get("error") or {} for entry in properties.get("errors") or []]
        return [(str(error.get("code") or ""), str(error.get("message") or "")) for error in errors]

    # --- Datastores ---------------------------------------------------------------------------------------------------

    def store(self, datastore: str | None) -> Store:
        """`open_store`, once for each datastore."""
        return self.once(("store", datastore), lambda: self.open_store(datastore))

    def open_store(self, datastore: str | None) -> Store:
        """The container of a datastore, None: of the workspace's default one. Raises MsgganError.

        It is opened with the key that the datastore holds, or as the signed-in identity.
        """
        from azure.ai.ml.entities import NoneCredentialConfiguration

        description = f"datastore {datastore}" if datastore else "default datastore"
        stores = self.ml.datastores
        get = stores.get_default if datastore is None else partial(stores.get, datastore)
        found = self.find(f"Looking for the {description}", get)
        if found is None:
            raise UsageError(
                [f"No {description} in workspace {self.workspace.workspace_name!r}."],
                "Name another one, or create it: msggan-aml provision",
            )
        account = getattr(found, "account_name", None)
        # ADLS Gen2 calls its containers file systems; they are read as blobs too.
        name = getattr(found, "container_name", None) or getattr(found, "filesystem", None)
        if account is None or name is None:
            raise AzureServiceError(
                f"The datastore {found.name} does not store blobs, which images and runs need.",
                "Name another one: --datastore NAME.",
            )
        identity_based = isinstance(found.credentials, NoneCredentialConfiguration)
        key = None if identity_based else self._read_key(found.name)
        return Store(found.name, account, self.container(account, name, key), identity_based)

    def _read_key(self, datastore: str) -> str | None:
        """The key or the SAS of a datastore, None if it has none that the signed-in identity may read."""
        try:
            with self.errors(f"Reading the credentials of the datastore {datastore}"):
                secrets = self.call("POST", f"{self.scope}/datastores/{datastore}/listSecrets").json()
        except AuthError as error:
            if isinstance(error.__cause__, HttpResponseError) and error_code(error.__cause__) == KEYS_REFUSED:
                raise
            return None
        key: str | None = secrets.get("key") or secrets.get("sasToken")
        return key

    def container(self, account: str, name: str, key: str | None) -> ContainerClient:
        """The client of a container. key: an account key or a SAS; None: the signed-in identity. Makes no requests."""
        return build_container(account, name, key or self.credential, self.wait_factor_s, self.cloud.storage)


def _quietly(read: Callable[[], object]) -> None:
    with suppress(MsgganError):
        read()


def is_provisioned(tags: Mapping[str, str] | None) -> bool:
    """Whether a resource with these tags was created by `provision`."""
    return PROVISIONED_TAG.items() <= (tags or {}).items()
