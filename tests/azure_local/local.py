"""The local Azure itself: it is started, set to what a test needs, inspected and ended here."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
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
    entra,
    history,
    jobs,
    mlflow_rest,
    runner,
    workspace,
)
from .authority import create_authority
from .blobs import Blobs
from .cloud import ARTIFACT_CONTAINER, BLOB_CONTAINER, Cloud, Settings, account_key, now
from .faults import Fault, Faults
from .jobs_state import ENDED, Job
from .messages import Recorded, Reply, Request, ServiceError
from .proxy import IDENTITY_PATH, Proxy
from .routing import merged
from .server import Recording, Server

ROUTES = merged(
    part.routes for part in (arm, assets, compute, datastores, entra, history, jobs, mlflow_rest, workspace)
)
NEEDS_NO_TOKEN = ("/metadata/endpoints", "/discovery", "/registrymanagement/v1.0/registries/azureml/discovery")


class AzureLocal:
    """A context manager: within it, `variables` lead the SDK of any process here instead of to Azure.

    `cloud` holds what the workspace holds and the switches (role, shared_keys, quotas, page_size …).
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.accounts = (self.settings.account, self.settings.other_account)
        self.faults = Faults()
        self.recording = Recording()
        self._stack = ExitStack()
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
            self.proxy = Proxy(self.server.address, self._forbid, self._unreachable, self._identity_token)
            stack.callback(self.proxy.close)
            stack.callback(self.server.close)  # first, which ends the tunnels
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

    # What a test looks at

    @property
    def requests(self) -> list[Recorded]:
        """Every request so far, those to the blob service too."""
        return list(self.recording.requests)

    def made(self, method: str, path: str) -> list[Recorded]:
        """The requests with this method whose path contains these words."""
        return [request for request in self.requests if request.method == method and path in request.path]

    def complaints(self) -> list[str]:
        """What no test should see unasked: hosts outside Azure, unknown requests (501), faults of the local Azure."""
        forbidden = [f"a host that is not Azure's: {host}" for host in self.recording.forbidden]
        return [*forbidden, *self.recording.unknown, *self.recording.broken]

    @property
    def variables(self) -> dict[str, str]:
        """For a process that is to use the local Azure: the way, the trust, the credential and the workspace."""
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
        """What a node with a managed identity has, as its jobs have here: azure-identity asks there for tokens."""
        return {"MSI_ENDPOINT": self.proxy.url + IDENTITY_PATH, "MSI_SECRET": self._identity_secret}

    def _identity_token(self, resource: str, secret: str) -> tuple[str, str]:
        if secret != self._identity_secret:
            return "401 Unauthorized", "{}"
        token = entra.make_token(self.cloud.tenant, resource.rstrip("/"), oid=self.cloud.object_id, idtyp="app")
        ends = str(entra.read_token({"authorization": f"Bearer {token}"})["exp"])
        answer = {"access_token": token, "expires_on": ends, "resource": resource, "token_type": "Bearer"}
        return "200 OK", json.dumps(answer)

    def _way(self) -> dict[str, str]:
        certificate = str(self.authority.certificate)
        return {
            "HTTPS_PROXY": self.proxy.url,
            "HTTP_PROXY": self.proxy.url,  # nothing of Azure is plain HTTP: what is, is caught
            "NO_PROXY": "127.0.0.1,localhost",
            "REQUESTS_CA_BUNDLE": certificate,
            "CURL_CA_BUNDLE": certificate,
            "SSL_CERT_FILE": certificate,
            "AZUREML_CURRENT_CLOUD": "AzureCloud",
        }

    # What a test turns

    def reset(self) -> None:
        """As just started: jobs are ended, blobs and everything else are gone. The addresses stay."""
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
        """Makes requests that match fail, from the nth on, `times` times; see faults.Fault."""
        return self.faults.add(Fault(method, pattern, nth, times, status, retry_after, code, drop, delay, meanwhile))

    def hold_jobs(self, reason: str = "Not enough nodes are free in the cluster.") -> None:
        """From now on jobs stay queued, until `release_jobs`."""
        self.cloud.queue_reason = reason

    def release_jobs(self) -> None:
        self.cloud.queue_reason = None

    def job(self, name: str) -> Job:
        return self.cloud.jobs[name]

    def trials(self, name: str) -> list[Job]:
        """A sweep's trials so far, in the order in which they were begun."""
        return self.cloud.trials(name)

    def preempt(self, name: str) -> None:
        """Takes a running job's node away without warning, and returns when it runs again, or has ended."""
        job = self.job(name)
        before = job.attempt
        job.wait_for("Running", *ENDED)
        job.preempted.set()
        with job.changed:
            again = lambda: job.status in ENDED or (job.attempt > before and job.status == "Running")  # noqa: E731
            if not job.changed.wait_for(again, 60):
                raise TimeoutError(f"job {name} did not come back: it is {job.status}")

    def expire(self, name: str) -> None:
        """From now on a running job is over its time limit."""
        job = self.job(name)
        job.wait_for("Running")
        runner.expire(job)

    @property
    def container(self) -> str:
        """Where the default datastore keeps its blobs."""
        return BLOB_CONTAINER

    @property
    def account_key(self) -> str:
        """The key that opens the workspace's storage account."""
        return account_key(self.cloud.account)

    def put_blob(self, path: str, data: bytes) -> None:
        """Writes into the default datastore, past the network."""
        self._blobs.write(self.cloud.account, BLOB_CONTAINER, path, data)

    def delete_blob(self, path: str) -> None:
        """Takes away what the default datastore has at a path, past the network."""
        self._blobs.container(self.cloud.account, BLOB_CONTAINER).delete_blob(path)

    def blob(self, path: str) -> bytes | None:
        """What the default datastore has at a path, None if nothing."""
        return self._read(BLOB_CONTAINER, path)

    def blobs_below(self, path: str) -> list[str]:
        """The paths of all blobs of the default datastore that begin so."""
        return self._blobs.names(self.cloud.account, BLOB_CONTAINER, path)

    def artifact(self, job: str, name: str) -> bytes:
        """A job's log or artifact, empty if there is none yet."""
        return self._read(ARTIFACT_CONTAINER, f"ExperimentRun/dcid.{job}/{name}") or b""

    def put_artifact(self, job: str, name: str, data: bytes) -> None:
        """Writes a job's log or artifact, past the network."""
        self._blobs.write(self.cloud.account, ARTIFACT_CONTAINER, f"ExperimentRun/dcid.{job}/{name}", data)

    def _read(self, container: str, path: str) -> bytes | None:
        if path not in self._blobs.names(self.cloud.account, container, path):
            return None
        return self._blobs.read(self.cloud.account, container, path)

    def add_cluster(self, name: str, size: str = "Standard_NC4as_T4_v3", max_nodes: int = 4) -> None:
        """A cluster that is there already, made by nobody's request."""
        scale = {"minNodeCount": 0, "maxNodeCount": max_nodes}
        sent = {"properties": {"computeType": "AmlCompute", "properties": {"vmSize": size, "scaleSettings": scale}}}
        self.cloud.computes[name] = compute.amlcompute(self.cloud, name, sent)

    def write_az(self, folder: Path, signed_in: bool = True) -> Path:
        """An Azure CLI for this Azure: `az` in a folder that a test puts first in PATH."""
        return azure_cli.write_az(folder, self.cloud, signed_in)

    def add_compute_instance(self, name: str) -> None:
        """A compute of another kind than a cluster, which takes the name."""
        self.cloud.computes[name] = compute.compute_instance(self.cloud, name)

    def add_ended_job(self, name: str, status: str = "Completed", **properties: object) -> Job:
        """A job of the past, which never ran here; for long lists."""
        given = {"jobType": "Command", "command": "true", "environmentId": "none", **properties}
        job = Job(name, given, "Default", now(), status)
        self.cloud.jobs[name] = job
        return job

    def end_jobs(self) -> None:
        """Cancels every job, and returns when their processes are gone. Sweeps first: they begin no more trials."""
        for job in runner.living(self.cloud):
            if job.parent is None:
                runner.cancel(job)
        for job in sorted(self.cloud.jobs.values(), key=lambda job: job.parent is not None):
            if job.thread is not None:
                job.thread.join(timeout=30)

    # How it answers

    def _answer(self, request: Request) -> Reply:
        if request.host.endswith(".blob.core.windows.net"):
            return blob_gateway.forward(self.cloud, self._client_context, request)
        answer, parts = ROUTES.find(request)
        if request.host != "login.microsoftonline.com" and request.path not in NEEDS_NO_TOKEN:
            entra.authorize(self.cloud, request)
        if "registries" not in request.path:
            workspace.check_workspace(self.cloud, parts)
        if request.host == "management.azure.com" and "api-version" not in request.query:
            raise ServiceError(400, "MissingApiVersionParameter", "The api-version query parameter is required.")
        return answer(self.cloud, request, **parts)

    def _forbid(self, address: str) -> None:
        self.recording.forbidden.append(address)

    def _unreachable(self, host: str) -> bool:
        account, _, domain = host.partition(".")
        return domain == "blob.core.windows.net" and account not in self.accounts

    def _start_afresh(self) -> None:
        self.faults.clear()
        self.recording.clear()
        runs = Path(tempfile.mkdtemp(prefix="jobs-", dir=self.folder))
        environment = {**self._way(), **self.identity_variables}
        self.cloud = Cloud(runs, self._blobs, environment, **asdict(self.settings))
        for container in (BLOB_CONTAINER, ARTIFACT_CONTAINER):
            self._blobs.container(self.cloud.account, container)
