"""The local Azure: start it, configure it for a test, inspect it and stop it."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from email.utils import formatdate
from pathlib import Path
from types import TracebackType

from . import (
    arm,
    assets,
    azure_cli,
    azurite,
    blob_gateway,
    compute,
    datastores,
    endpoints,
    entra,
    history,
    jobs,
    mlflow_rest,
    prices,
    roles,
    runner,
    vaults,
    workspace,
)
from .authority import create_authority
from .blobs import Blobs
from .cloud import ARTIFACT_CONTAINER, BLOB_CONTAINER, Cloud, Settings, account_key, now
from .faults import Fault, Faults
from .hosts import API, BLOB, CLOUDS, LOGIN, MANAGEMENT, PUBLIC
from .jobs_state import ENDED, Job
from .messages import Recorded, Reply, Request, ServiceError
from .proxy import IDENTITY_PATH, ON_BEHALF_PATH, Proxy
from .routing import merged
from .server import Recording, Server

ROUTES = merged(
    part.routes
    for part in (
        *(arm, assets, compute, datastores, endpoints, entra),
        *(history, jobs, mlflow_rest, prices, roles, vaults, workspace),
    )
)
NEEDS_NO_TOKEN = re.compile(
    rf"/metadata/endpoints|/discovery|/registrymanagement/v1\.0/registries/[^/]+/discovery|{prices.PATH}"
)


class AzureLocal:
    """A context manager: within it, `variables` direct the SDK of any process to the local Azure.

    `cloud` holds the workspace's resources and the switches (role, shared_keys, quotas, page_size …).
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.accounts = (self.settings.account, self.settings.other_account)
        self.faults = Faults()
        self.recording = Recording()
        self._stack = ExitStack()
        self.hosts = PUBLIC
        self._identity_secret = secrets.token_hex(16)

    def __enter__(self) -> AzureLocal:
        with ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix="azure-local-"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.authority = create_authority(self.folder)
            self._client_context = self.authority.client_context()
            keys = {account: account_key(account) for account in self.accounts}
            process = azurite.Azurite(keys, self.authority, self.folder)
            stack.callback(process.close)
            self.server = Server(self.authority.server_context(), self._answer, self.faults, self.recording)
            self.proxy = Proxy(
                self.server.address, self._is_azure, self._forbid, self._unreachable, self._identity_token
            )
            stack.callback(self.proxy.close)
            stack.callback(self.server.close)  # first, as that closes the tunnels
            self._blobs = Blobs(process.port, keys, str(self.authority.certificate))
            stack.callback(self._blobs.close)
            process.wait_until_ready()
            self._start_afresh()
            stack.callback(self.end_jobs)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # Inspection

    @property
    def requests(self) -> list[Recorded]:
        """All requests so far, including those to the blob service."""
        return list(self.recording.requests)

    def made(self, method: str, path: str) -> list[Recorded]:
        """The requests with this method whose path contains this text."""
        return [request for request in self.requests if request.method == method and path in request.path]

    def complaints(self) -> list[str]:
        """Requests to hosts outside Azure, requests that are not implemented (501), errors of the local Azure."""
        forbidden = [f"a host that is not Azure's: {host}" for host in self.recording.forbidden]
        return [*forbidden, *self.recording.unknown, *self.recording.broken]

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a process that uses the local Azure: proxy, certificates, credential and workspace."""
        return {
            **self._way(),
            "AZURE_TENANT_ID": self.cloud.tenant,
            "AZURE_CLIENT_ID": self.cloud.client_id,
            "AZURE_CLIENT_SECRET": self.cloud.client_secret,
            "AZUREML_ARM_SUBSCRIPTION": self.cloud.subscription,
            "AZUREML_ARM_RESOURCEGROUP": self.cloud.group,
            "AZUREML_ARM_WORKSPACE_NAME": self.cloud.workspace,
            "AZUREML_RUN_POLLING_INTERVAL_MIN": "0",
            "AZUREML_RUN_POLLING_INTERVAL_MAX": "1",
        }

    @property
    def identity_variables(self) -> dict[str, str]:
        """The environment of a node with a managed identity, as jobs have it, for azure-identity."""
        return {"MSI_ENDPOINT": self.proxy.url + IDENTITY_PATH, "MSI_SECRET": self._identity_secret}

    def _identity_token(self, resource: str, secret: str | None) -> tuple[str, str]:
        """A token of a node's identity, or without a secret on behalf of the user who submitted the job."""
        if secret not in (None, self._identity_secret):
            return "401 Unauthorized", "{}"
        claims = {"idtyp": "user"} if secret is None else {"idtyp": "app", "xms_mirid": "the identity of a cluster"}
        token = entra.make_token(self.cloud.tenant, resource.rstrip("/"), oid=self.cloud.object_id, **claims)
        ends = str(entra.read_token({"authorization": f"Bearer {token}"})["exp"])
        answer = {"access_token": token, "expires_on": ends, "resource": resource, "token_type": "Bearer"}
        return "200 OK", json.dumps(answer)

    def _way(self) -> dict[str, str]:
        certificate = str(self.authority.certificate)
        return {
            "HTTPS_PROXY": self.proxy.url,
            "HTTP_PROXY": self.proxy.url,  # Azure uses no plain HTTP: such requests are recorded as unexpected
            "NO_PROXY": "127.0.0.1,localhost",
            "REQUESTS_CA_BUNDLE": certificate,
            "CURL_CA_BUNDLE": certificate,
            "SSL_CERT_FILE": certificate,
            "AZUREML_CURRENT_CLOUD": self.hosts.cloud,
        }

    # Configuration

    def reset(self) -> None:
        """Returns to the initial state: jobs are stopped, and blobs and resources deleted. The addresses are kept."""
        self.end_jobs()
        self._blobs.clear()
        self._start_afresh()

    def fault(
        self,
        method: str,
        pattern: str,
        *,
        nth: int = 1,
        times: int = 1,
        status: int | None = None,
        retry_after: float | None = None,
        code: str = "InjectedFault",
        drop: str | None = None,
        delay: float = 0,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Fault:
        """Makes matching requests fail, from the nth on, `times` times; see faults.Fault."""
        return self.faults.add(Fault(method, pattern, nth, times, status, retry_after, code, drop, delay, meanwhile))

    def hold_jobs(self, reason: str = "Not enough nodes are free in the cluster.") -> None:
        """Keeps jobs queued until `release_jobs`."""
        self.cloud.queue_reason = reason

    def release_jobs(self) -> None:
        self.cloud.queue_reason = None

    def job(self, name: str) -> Job:
        return self.cloud.jobs[name]

    def trials(self, name: str) -> list[Job]:
        """The trials of a sweep so far, in the order in which they were started."""
        return self.cloud.trials(name)

    def preempt(self, name: str) -> None:
        """Preempts the node of a running job without warning. Returns when the job runs again or has ended."""
        job = self.job(name)
        before = job.attempt
        job.wait_for("Running", *ENDED)
        job.preempted.set()
        with job.changed:
            again = lambda: job.status in ENDED or (job.attempt > before and job.status == "Running")  # noqa: E731
            if not job.changed.wait_for(again, 60):
                raise TimeoutError(f"job {name} did not come back: it is {job.status}")

    def expire(self, name: str) -> None:
        """Makes a running job exceed its time limit."""
        job = self.job(name)
        job.wait_for("Running")
        runner.expire(job)

    @property
    def container(self) -> str:
        """The blob container of the default datastore."""
        return BLOB_CONTAINER

    @property
    def account_key(self) -> str:
        """The access key of the workspace's storage account."""
        return account_key(self.cloud.account)

    def put_blob(self, path: str, data: bytes) -> None:
        """Writes a blob to the default datastore, bypassing the network."""
        self._blobs.write(self.cloud.account, BLOB_CONTAINER, path, data)

    def put_blob_in(self, account: str, container: str, path: str, data: bytes) -> None:
        """Writes a blob to any container, which is created if it does not exist."""
        self._blobs.write(account, container, path, data)

    def delete_blob(self, path: str) -> None:
        """Deletes a blob of the default datastore, bypassing the network."""
        self._blobs.container(self.cloud.account, BLOB_CONTAINER).delete_blob(path)

    def blob(self, path: str) -> bytes | None:
        """The content of a blob of the default datastore, or None if it does not exist."""
        return self._read(BLOB_CONTAINER, path)

    def blobs_below(self, path: str) -> list[str]:
        """The paths of all blobs of the default datastore with this prefix."""
        return self._blobs.names(self.cloud.account, BLOB_CONTAINER, path)

    def artifact(self, job: str, name: str) -> bytes:
        """The content of a job's log or artifact, empty if it does not exist yet."""
        return self._read(ARTIFACT_CONTAINER, f"ExperimentRun/dcid.{job}/{name}") or b""

    def put_artifact(self, job: str, name: str, data: bytes) -> None:
        """Writes a job's log or artifact, bypassing the network."""
        self._blobs.write(self.cloud.account, ARTIFACT_CONTAINER, f"ExperimentRun/dcid.{job}/{name}", data)

    def _read(self, container: str, path: str) -> bytes | None:
        if path not in self._blobs.names(self.cloud.account, container, path):
            return None
        return self._blobs.read(self.cloud.account, container, path)

    def add_cluster(self, name: str, size: str = "Standard_NC4as_T4_v3", max_nodes: int = 4) -> None:
        """Adds an existing cluster, without a request."""
        scale = {"minNodeCount": 0, "maxNodeCount": max_nodes}
        sent = {"properties": {"computeType": "AmlCompute", "properties": {"vmSize": size, "scaleSettings": scale}}}
        self.cloud.computes[name] = compute.amlcompute(self.cloud, name, sent)

    def add_datastore(
        self, name: str, account: str, container: str, *, kind: str = "AzureBlob", with_key: bool = False
    ) -> None:
        """Adds a datastore without a request, and its container. kind: AzureBlob or AzureDataLakeGen2."""
        self._blobs.container(account, container)
        key = {"credentialsType": "AccountKey", "secrets": {"key": account_key(account)}}
        self.cloud.datastores[name] = {
            "datastoreType": kind,
            "accountName": account,
            "filesystem" if kind == "AzureDataLakeGen2" else "containerName": container,
            "endpoint": self.hosts.storage,
            "protocol": "https",
            "isDefault": False,
            "credentials": key if with_key else {"credentialsType": "None"},
        }

    def use_cloud(self, name: str) -> None:
        """Serves the hosts of another cloud, such as AzureUSGovernment, and none of the public one, until the reset."""
        self.hosts = self.cloud.hosts = CLOUDS[name]
        self._blobs.suffix = self.hosts.storage
        self.cloud.job_environment["AZUREML_CURRENT_CLOUD"] = name
        for store in self.cloud.datastores.values():
            store["endpoint"] = self.hosts.storage

    def add_workspace(self, name: str) -> Cloud:
        """Adds an empty workspace to the same resource group: its own default datastore, resources and switches."""
        added = replace(
            self.cloud, workspace=name, computes={}, datastores={}, environments={}, data={}, codes={}, jobs={}
        )
        self.cloud.workspaces[name] = added
        return added

    def add_endpoint(self, name: str, size: str = "Standard_DS3_v2", instances: int = 1) -> None:
        """Adds an online endpoint with one deployment."""
        self.cloud.endpoints[name] = {"blue": (size, instances)}

    def write_az(self, folder: Path, signed_in: bool = True) -> Path:
        """Writes an Azure CLI for this Azure: the script `az`, in a folder that the test puts first in PATH."""
        return azure_cli.write_az(folder, self.cloud, signed_in)

    def add_compute_instance(self, name: str) -> None:
        """Adds a compute instance, which occupies its name."""
        self.cloud.computes[name] = compute.compute_instance(self.cloud, name)

    def add_ended_job(self, name: str, status: str = "Completed", **properties: object) -> Job:
        """Adds a job that ended in the past and never ran here, for long lists."""
        given = {"jobType": "Command", "command": "true", "environmentId": "none", **properties}
        job = Job(name, given, "Default", now(), status)
        self.cloud.jobs[name] = job
        return job

    def end_jobs(self) -> None:
        """Cancels all jobs and waits for their processes. Sweeps first, so that they start no further trials."""
        for job in runner.unfinished(self.cloud):
            if job.parent is None:
                runner.cancel(job)
        for job in sorted(self.cloud.jobs.values(), key=lambda job: job.parent is not None):
            if job.thread is not None:
                job.thread.join(timeout=30)

    # Responses

    def _answer(self, request: Request) -> Reply:
        kind = self.cloud.hosts.kind(request.host)
        if kind == BLOB:
            return blob_gateway.forward(self.cloud, self._client_context, request)
        is_registry = "registries" in request.path
        if self.cloud.private_link and kind == API and request.host != self.cloud.api_host and not is_registry:
            raise ServiceError(403, "PublicNetworkAccessDenied", f"The workspace is not served at {request.host}.")
        answer, parts = ROUTES.find(request, kind)
        cloud = self.cloud.workspaces.get(parts.get("workspace", ""), self.cloud)
        if "registries" not in request.path:
            workspace.check_workspace(cloud, parts)
        if kind != LOGIN and not NEEDS_NO_TOKEN.fullmatch(request.path):
            entra.authorize(cloud, request)
        if kind == MANAGEMENT and "api-version" not in request.query:
            raise ServiceError(400, "MissingApiVersionParameter", "The api-version query parameter is required.")
        reply = answer(cloud, request, **parts)
        reply.headers["Date"] = formatdate(time.time() + self.cloud.clock_offset_s, usegmt=True)
        return reply

    def _is_azure(self, host: str) -> bool:
        return self.cloud.hosts.kind(host) is not None

    def _forbid(self, address: str) -> None:
        self.recording.forbidden.append(address)

    def _unreachable(self, host: str) -> bool:
        account, _, domain = host.partition(".")
        if domain == self.cloud.hosts.vault:
            return account not in {vault for vault, _ in self.cloud.secrets}
        return domain == f"blob.{self.cloud.hosts.storage}" and account not in self.accounts

    def _start_afresh(self) -> None:
        self.faults.clear()
        self.recording.clear()
        self.hosts, self._blobs.suffix = PUBLIC, PUBLIC.storage
        runs = Path(tempfile.mkdtemp(prefix="jobs-", dir=self.folder))
        environment = {**self._way(), **self.identity_variables, "OBO_ENDPOINT": self.proxy.url + ON_BEHALF_PATH}
        self.cloud = Cloud(runs, self._blobs, environment, **asdict(self.settings))
        for container in (BLOB_CONTAINER, ARTIFACT_CONTAINER):
            self._blobs.container(self.cloud.account, container)
