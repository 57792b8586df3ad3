"""The state of the local Azure: the workspace's resources, and the switches that tests set."""

from __future__ import annotations

import base64
import hashlib
import itertools
import sys
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .blobs import Blobs
from .hosts import PUBLIC, Hosts
from .jobs_state import Job

REGION = "eastus"
WORKSPACE_ID = "4b3f0b1e-6b0f-4c87-8f0f-27a7b6f9e101"
BLOB_CONTAINER = "azureml-blobstore-5d3c2f1e"
ARTIFACT_CONTAINER = "azureml"


@dataclass(frozen=True)
class Size:
    """A VM size as the service lists it."""

    name: str
    family: str
    cores: int
    gpus: int
    memory_gb: float
    low_priority: bool = True
    price: float | None = None  # US dollars per hour


SIZES = (
    Size("Standard_DS3_v2", "standardDSv2Family", 4, 0, 14, price=0.229),
    Size("Standard_D4s_v3", "standardDSv3Family", 4, 0, 16, price=0.192),
    Size("Standard_NC4as_T4_v3", "Standard NCASv3_T4 Family", 4, 1, 28, price=0.526),
    Size("Standard_NC16as_T4_v3", "Standard NCASv3_T4 Family", 16, 1, 110, price=1.204),
    Size("Standard_NC64as_T4_v3", "Standard NCASv3_T4 Family", 64, 4, 440, price=4.352),
    Size("Standard_NC24ads_A100_v4", "StandardNCADSA100v4Family", 24, 1, 220, price=3.673),
    Size("Standard_NC48ads_A100_v4", "StandardNCADSA100v4Family", 48, 2, 440, price=7.346),
    Size("Standard_NC40ads_H100_v5", "StandardNCadsH100v5Family", 40, 1, 320, price=6.98),
)


@dataclass
class Version:
    """One version of an environment, a data asset or a code snapshot."""

    name: str
    version: str
    properties: dict[str, Any]
    created: str


def account_key(account: str) -> str:
    return base64.b64encode(hashlib.sha512(account.encode()).digest()).decode()


def now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True)
class Settings:
    """The names in a local Azure and the Python interpreter of its jobs, which are fixed when it starts."""

    subscription: str = "6b1f4b0c-7a57-4d0b-8f0e-2f6f0d6f1c01"
    group: str = "local-rg"
    workspace: str = "local-ws"
    account: str = "localstore"  # of the workspace's default datastore
    other_account: str = "otherstore"
    python: str = sys.executable  # its folder is first in the PATH of jobs


@dataclass
class Cloud:
    """The state of the local Azure, which `AzureLocal.reset` replaces; Azurite's process and the settings are kept."""

    folder: Path  # where jobs run
    blobs: Blobs
    job_environment: dict[str, str]  # proxy and certificate variables, for the processes of jobs
    subscription: str
    group: str
    workspace: str
    account: str
    other_account: str
    python: str
    tenant: str = "7ec4f9c2-1f0b-4a3e-9a51-6f0d6b9f2a10"
    client_id: str = "0a6c2d53-68a4-4a1c-8a63-3d0c4b0fd701"
    client_secret: str = "not-a-secret-of-anybody"  # noqa: S105 - opens nothing but this
    object_id: str = "c1d7a4ab-8a2b-4b0d-8c6b-0f7d9f4f5b11"

    # The switches of tests.
    # The caller's roles, of those in roles.py; None: no role at that scope.
    role: str | None = "Contributor"  # at the workspace
    subscription_role: str | None = "Quota Reader"  # at the subscription; None: VM sizes and quota cannot be listed
    blob_role: str | None = "Storage Blob Data Contributor"  # at the storage accounts
    # Of the identities of clusters, where they have one.
    compute_blob_role: str | None = "Storage Blob Data Contributor"
    vault_role: str | None = "Key Vault Secrets User"  # the caller's, at all key vaults
    compute_vault_role: str | None = "Key Vault Secrets User"  # of the identities of clusters
    public_containers: set[tuple[str, str]] = field(default_factory=set)  # account and container: no identity is needed
    permissions_readable: bool = True  # False: the caller may not list its permissions
    hosts: Hosts = PUBLIC
    private_link: bool = False  # True: the data plane serves the workspace only at its own host
    shared_keys: bool = True  # False: the storage account rejects account keys and SAS signed with them
    quotas: dict[str, int] = field(default_factory=dict)  # cores by VM family or REGION/family; else 10,000
    cores_used: dict[str, int] = field(default_factory=dict)  # cores in use by VM family
    quota_by_node: bool = False  # True: a missing quota has the code ClusterMinNodesExceedCoreQuota
    checks_low_priority: bool = True  # False: a size without low priority is accepted, and an error of the cluster
    out_of_capacity: set[str] = field(default_factory=set)  # VM sizes of which no machine is free
    cluster_errors: dict[str, tuple[str, str]] = field(default_factory=dict)  # by cluster, its code and message
    # By storage account that only jobs can reach, the status and code of other responses.
    firewalled: dict[str, tuple[int, str]] = field(default_factory=dict)
    clock_offset_s: float = 0  # of the service's clock, which the header Date shows
    public_network_access: str = "Enabled"  # Disabled: only through a private endpoint
    container_registry: str | None = None  # its resource ID; the first image build creates one
    sizes: list[Size] = field(default_factory=lambda: list(SIZES))
    lists_prices: bool = True  # False: the VM sizes come without their prices
    retail_prices: dict[str, float] = field(  # US dollars per hour by VM size, in the public list
        default_factory=lambda: {size.name: size.price for size in SIZES if size.price is not None}
    )
    metered: set[str] = field(  # the meters of the public list that are not of VM sizes
        default_factory=lambda: {
            *("P10 LRS Disk", "Hot LRS Data Stored", "Standard Included LB Rules and Outbound Rules"),
            *("Standard IPv4 Static Public IP", "Basic Registry Unit"),
        }
    )
    idle_nodes: dict[str, int] = field(default_factory=dict)  # by cluster: those that have not been released yet
    tells_compute: bool = True  # False: the run history has no machines and durations of jobs
    queue_reason: str | None = None  # if set, the reason why jobs stay queued
    page_size: int = 100  # of lists
    required_tags: set[str] = field(default_factory=set)  # of a policy for clusters
    image_build_compute: str | None = None  # the cluster that builds images
    builds_fail: bool = False  # image builds of custom environments fail
    logs_by_attempt: bool = False  # a restarted job writes user_logs/retry_001/…; False: it appends to its first log
    # What happens to the `resources` of a sweep, which its description has in the trial only: accept, drop or refuse.
    sweep_resources: str = "accept"
    # What the mounts of outputs refuse: append, rename (refusals.py); each change of a file uploads the whole file.
    mounts_refuse: tuple[str, ...] = ()
    vm_priority: str = "dedicated"
    # Of the curated environment in the public registry; the newest version is not the last in alphabetical order. Its
    # image with {version}, None: it has a build context.
    curated_versions: tuple[str, ...] = ("1", "2", "9", "10")
    curated_image: str | None = "mcr.microsoft.com/azureml/curated/acpt-pytorch-2.8-cuda12.6:{version}"

    # The workspace's resources.
    computes: dict[str, dict[str, Any]] = field(default_factory=dict)
    datastores: dict[str, dict[str, Any]] = field(default_factory=dict)
    environments: dict[tuple[str, str], Version] = field(default_factory=dict)
    data: dict[tuple[str, str], Version] = field(default_factory=dict)
    codes: dict[tuple[str, str], Version] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    workspaces: dict[str, Cloud] = field(default_factory=dict)  # others of the same group, each with its own switches
    registry_data: dict[tuple[str, str, str], str] = field(default_factory=dict)  # registry, name, version → URI
    # By online endpoint and deployment: the VM size, and how many instances.
    endpoints: dict[str, dict[str, tuple[str, int]]] = field(default_factory=dict)
    secrets: dict[tuple[str, str], str] = field(default_factory=dict)  # by key vault and name
    built: set[str] = field(default_factory=set)  # environments whose image was built
    lock: threading.RLock = field(default_factory=threading.RLock)
    counter: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        for name, container in (("workspaceblobstore", BLOB_CONTAINER), ("workspaceartifactstore", ARTIFACT_CONTAINER)):
            self.datastores[name] = {
                "datastoreType": "AzureBlob",
                "accountName": self.account,
                "containerName": container,
                "endpoint": self.hosts.storage,
                "protocol": "https",
                "isDefault": name == "workspaceblobstore",
                "credentials": {"credentialsType": "AccountKey", "secrets": {"key": account_key(self.account)}},
                "serviceDataAccessAuthIdentity": "None",
            }

    @property
    def scope(self) -> str:
        return (
            f"/subscriptions/{self.subscription}/resourceGroups/{self.group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{self.workspace}"
        )

    @property
    def region_host(self) -> str:
        """The data plane's host for all workspaces of the region."""
        return f"{REGION}.{self.hosts.api}"

    @property
    def api_host(self) -> str:
        """The data plane's host for this workspace."""
        return f"{WORKSPACE_ID}.workspace.{self.region_host}" if self.private_link else self.region_host

    @property
    def tracking_uri(self) -> str:
        return f"azureml://{self.api_host}/mlflow/v2.0{self.scope}"

    def trials(self, sweep: str) -> list[Job]:
        """The trials of a sweep in the order in which they were started."""
        return [job for job in list(self.jobs.values()) if job.parent == sweep]

    def size(self, name: str) -> Size | None:
        return next((size for size in self.sizes if size.name.lower() == name.lower()), None)
