"""Images that are in Azure already: every form of --data is read by the job, by the identity that may read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from azure_local import AzureLocal
from azure_local.locations import find_location
from azure_local.runner import identity_of
from support.azure_commands import Command, sdk_warnings

pytestmark = sdk_warnings

SMALL = ["--resolution", "8", "--latent-size", "8", "--batch-size", "4", "--device", "cpu", "--kimg", "0.02"]
CONTAINER = "pictures"
BLOBS = "core.windows.net"


@pytest.fixture
def images(azure: AzureLocal, workdir: Path) -> str:
    """The account of another owner, whose container has a folder of images: garden/."""
    account = azure.settings.other_account
    for file in sorted((workdir / "tiny").iterdir())[:8]:
        azure.put_blob_in(account, CONTAINER, f"garden/{file.name}", file.read_bytes())
    return account


def submit(azure: AzureLocal, msggan_aml: Command, data: str, *args: str) -> tuple[dict[str, Any], str]:
    """Submits a job that stays queued. Returns its properties as they were sent, and what was printed for people."""
    azure.hold_jobs()
    ended = msggan_aml("submit", "--data", data, *SMALL, *args, "--name", "there", "--detach", "--yes", "-o", "json")
    assert ended.exit_code == 0, ended.stderr
    return azure.made("PUT", "/jobs/there")[-1].body["properties"], ended.stderr


def is_readable(azure: AzureLocal, properties: dict[str, Any]) -> bool:
    """Whether the job, when it starts, finds files at its input, with the identity that it has."""
    location = find_location(
        azure.cloud, properties["inputs"]["data"]["uri"], identity_of(azure.cloud, azure.job("there"))
    )
    return any(True for _ in location.files(azure.cloud.blobs))


def test_a_run_on_adls_gen2_reads_and_writes_as_the_submitter(
    azure: AzureLocal, workdir: Path, msggan_aml: Command, images: str
) -> None:
    azure.add_datastore("lake", images, CONTAINER, kind="AzureDataLakeGen2")
    args = ["--data", "azureml://datastores/lake/paths/garden/", "--datastore", "lake", "--name", "garden"]
    args += ["--data-mode", "mount"]
    ended = msggan_aml("submit", *args, *SMALL, "--yes", "-o", "json")
    assert (ended.exit_code, ended.json["state"]) == (0, "completed"), ended.stderr
    assert ended.json["run_dir"] == "azureml://datastores/lake/paths/msggan/runs/garden/"
    (sent,) = azure.made("PUT", "/jobs/garden")
    assert sent.body["properties"]["identity"] == {"identityType": "UserIdentity"}
    assert "x-azureml-token" in sent.headers
    assert sent.body["properties"]["inputs"]["data"]["mode"] == "ReadOnlyMount"
    assert sent.body["properties"]["environmentVariables"]["DATASET_MOUNT_BLOCK_BASED_CACHE_ENABLED"] == "true"
    assert "The job mounts the images (flag --data-mode)." in ended.stderr
    assert msggan_aml("download", "garden", "--weights", "--out", "got").exit_code == 0


@pytest.mark.parametrize(
    "form",
    [
        "https://{account}.blob.core.windows.net/pictures/garden/",
        pytest.param("https://{account}.dfs.core.windows.net/pictures/garden", marks=pytest.mark.slow),
        pytest.param("wasbs://pictures@{account}.blob.core.windows.net/garden/", marks=pytest.mark.slow),
        pytest.param("abfss://pictures@{account}.dfs.core.windows.net/garden", marks=pytest.mark.slow),
        "azureml://datastores/theirs/paths/garden/",
    ],
)
def test_images_that_no_credential_opens_are_read_with_one_identity(
    azure: AzureLocal, msggan_aml: Command, images: str, form: str
) -> None:
    azure.add_datastore("theirs", images, CONTAINER)
    data = form.format(account=images)
    # The run folder's datastore has a key, and the cluster has no identity.
    properties, printed = submit(azure, msggan_aml, data)
    assert properties["identity"] == {"identityType": "UserIdentity"}
    assert (properties["inputs"]["data"]["uri"], "not checked" in printed) == (data, False)
    assert is_readable(azure, properties)


def test_a_cluster_s_identity_reads_where_it_has_one(azure: AzureLocal, msggan_aml: Command, images: str) -> None:
    azure.cloud.computes["msggan-gpu"]["identity"] = {"type": "SystemAssigned"}
    properties, _ = submit(azure, msggan_aml, f"abfss://pictures@{images}.dfs.core.windows.net/garden/")
    assert properties.get("identity") is None
    assert is_readable(azure, properties)
    azure.cloud.compute_blob_role = None
    with pytest.raises(Exception, match="AuthorizationPermissionMismatch"):
        is_readable(azure, properties)


@pytest.mark.parametrize(
    "assigned",
    [
        pytest.param(None, marks=pytest.mark.slow),
        "/subscriptions/s/resourceGroups/g/providers/M.I/userAssignedIdentities/i",
    ],
)
def test_a_dry_run_shows_the_identity_of_a_serverless_job(
    azure: AzureLocal, msggan_aml: Command, images: str, monkeypatch: pytest.MonkeyPatch, assigned: str | None
) -> None:
    data = f"wasbs://pictures@{images}.blob.core.windows.net/garden/"
    serverless = ["--instance-type", "Standard_NC4as_T4_v3"]
    if assigned:
        monkeypatch.setenv("MSGGAN_IDENTITY", assigned)
    dry = msggan_aml("submit", "--data", data, *SMALL, *serverless, "--dry-run", "-o", "json")
    assert "The job downloads the images, or mounts them if they are many or large (--data-mode auto)." in dry.stderr
    properties, _ = submit(azure, msggan_aml, data, *serverless)
    managed = {"identityType": "Managed", "resourceId": assigned}
    assert properties["identity"] == (managed if assigned else {"identityType": "UserIdentity"})
    assert dry.json["requests"][0]["body"]["properties"]["identity"] == properties["identity"]
    assert is_readable(azure, properties)
    mounted = msggan_aml("submit", "--data", data, *SMALL, "--data-mode", "mount", "--dry-run", "-o", "json")
    assert "The job mounts the images (flag --data-mode)." in mounted.stderr
    modes = [plan.json["requests"][0]["body"]["properties"]["inputs"]["data"]["mode"] for plan in (dry, mounted)]
    later = "<resolved-at-submit: Download, or ReadOnlyMount if there are many images or large ones>"
    assert modes == [later, "ReadOnlyMount"]


def test_the_latest_version_of_an_asset_is_pinned(azure: AzureLocal, msggan_aml: Command, images: str) -> None:
    from azure_local.cloud import Version, now

    azure.add_datastore("keyed", images, CONTAINER, with_key=True)
    uri = "azureml://datastores/keyed/paths/garden/"
    for version in ("1", "2"):
        asset = {"dataType": "uri_folder", "dataUri": uri}
        azure.cloud.data["garden", version] = Version("garden", version, asset, now())
    properties, _ = submit(azure, msggan_aml, "azureml:garden@latest")
    assert properties["inputs"]["data"]["uri"] == f"{azure.cloud.scope}/data/garden/versions/2"
    assert properties.get("identity") is None
    assert is_readable(azure, properties)
    # The command that resumes it names the version.
    assert msggan_aml("cancel", "there").exit_code == 0
    shown = msggan_aml("status", "there", "-o", "json").json["next"]
    assert any("--data azureml:garden:2 " in line for line in shown), shown
    pinned = f"azureml:{azure.cloud.scope}/data/garden/versions/2"
    for data in (pinned, "azureml:garden:2"):
        dry = msggan_aml("submit", "--data", data, *SMALL, "--dry-run", "-o", "json").json["requests"][0]["body"]
        assert dry["properties"]["inputs"]["data"]["uri"] == properties["inputs"]["data"]["uri"]


def test_an_asset_of_a_registry_is_passed_unchanged(azure: AzureLocal, msggan_aml: Command, images: str) -> None:
    data = "azureml://registries/shared/data/garden/versions/1"
    azure.cloud.registry_data["shared", "garden", "1"] = f"https://{images}.blob.{BLOBS}/{CONTAINER}/garden/"
    properties, _ = submit(azure, msggan_aml, data)
    assert (properties["inputs"]["data"]["uri"], properties.get("identity")) == (data, None)
    assert is_readable(azure, properties)
    missing = msggan_aml("submit", "--data", data.replace("/1", "/9"), *SMALL, "--name", "no", "--yes")
    assert (missing.exit_code, "no" in azure.cloud.jobs) == (2, False), missing.stderr


def test_an_address_in_another_workspace_is_read_there(azure: AzureLocal, msggan_aml: Command, images: str) -> None:
    other = azure.add_workspace("their-ws")
    azure.add_datastore("theirs", images, CONTAINER)
    other.datastores["theirs"] = azure.cloud.datastores.pop("theirs")
    data = f"azureml:/{other.scope}/datastores/theirs/paths/garden/"
    properties, printed = submit(azure, msggan_aml, data)
    assert (properties["inputs"]["data"]["uri"], "not checked" in printed) == (data, False)
    assert properties["identity"] == {"identityType": "UserIdentity"}
    assert is_readable(azure, properties)
    assert azure.made("GET", f"{azure.cloud.scope}/datastores/theirs") == []

    empty = msggan_aml("submit", "--data", data.replace("garden", "x"), *SMALL, "--name", "x", "--yes")
    assert (empty.exit_code, "there is nothing at this path" in empty.stderr) == (2, True), empty.stderr
    other.role = None  # of this person, not of the job
    unread = msggan_aml("submit", "--data", data, *SMALL, "--name", "y", "--detach", "--yes")
    assert (unread.exit_code, "was not checked" in unread.stderr) == (0, True), unread.stderr


def test_a_sweep_on_a_data_asset_of_another_workspace_resumes(
    azure: AzureLocal, msggan_aml: Command, images: str
) -> None:
    from azure_local.cloud import Version, now

    other = azure.add_workspace("their-ws")
    asset = {"dataType": "uri_folder", "dataUri": f"https://{images}.blob.{BLOBS}/{CONTAINER}/garden/"}
    other.data["garden", "1"] = Version("garden", "1", asset, now())
    azure.hold_jobs()
    words = ["sweep", "--data", f"azureml:{other.scope}/data/garden/versions/1", "--over", "g_lr=0.001,0.002", *SMALL]
    for job in ("there", "there-2"):
        ended = msggan_aml(*words, "--name", "there", "--detach", "--yes")
        assert (ended.exit_code, job in azure.cloud.jobs) == (0, True), ended.stderr
        assert msggan_aml("cancel", "there").exit_code == 0


def test_a_store_behind_a_firewall_is_left_to_the_job(azure: AzureLocal, msggan_aml: Command, images: str) -> None:
    azure.cloud.firewalled[images] = (403, "AuthorizationFailure")
    data = f"abfss://pictures@{images}.dfs.core.windows.net/garden/"
    properties, printed = submit(azure, msggan_aml, data)
    assert f"{data} was not checked." in printed
    assert is_readable(azure, properties)


@pytest.mark.parametrize(
    ("gib", "disk_gib", "mode", "reason"),
    [
        (1, 0, "download", "1.00 GiB; up to 4 GiB are downloaded to this machine"),
        (4, 0, "download", "4.00 GiB; up to 4 GiB are downloaded to this machine"),
        (4.5, 0, "mount", "4.50 GiB; up to 4 GiB are downloaded to this machine"),
        (4.5, 8, "mount", "4.50 GiB; up to 4 GiB are downloaded to this machine"),
        (90, 180, "download", "90.00 GiB; up to 90 GiB are downloaded to this machine"),
        (91, 180, "mount", "91.00 GiB; up to 90 GiB are downloaded to this machine"),
        (None, 180, "mount", "their size is not known"),
    ],
)
def test_images_are_downloaded_where_they_fit(
    tmp_path: Path, gib: float | None, disk_gib: int, mode: str, reason: str
) -> None:
    from orchestration.azure.client import Client
    from orchestration.azure.data import with_mode
    from orchestration.azure.jobs import JobData
    from orchestration.settings import read_settings
    from orchestration.status import Reporter

    printed: list[str] = []
    images = JobData("azureml:flowers:1", "uri_folder", size=None if gib is None else int(gib * 2**30))
    for setting, expected in (("auto", mode), ("mount", "mount"), ("download", "download")):
        client = Client(
            read_settings({"data_mode": setting}, folder=tmp_path, environ={}), Reporter(info=printed.append), 0
        )
        assert with_mode(images, client, lambda: disk_gib << 30).mode == expected
    assert printed[0] == f"The job {mode}s the images ({reason})."


def test_images_are_looked_for_beyond_the_first_files(
    azure: AzureLocal, msggan_aml: Command, images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestration.azure.data.MAX_LISTED", 6)
    for folder, count, ending in (("few", 5, ".txt"), ("many", 7, ".txt"), ("last", 5, ".txt"), ("last", 1, ".png")):
        for number in range(count):
            azure.put_blob_in(images, CONTAINER, f"{folder}/{ending}{number}{ending}", b"x")
    place = f"abfss://pictures@{images}.dfs.core.windows.net"
    refused = msggan_aml("submit", "--data", f"{place}/few/", *SMALL, "--yes")
    assert (refused.exit_code, "none of the files there is an image" in refused.stderr) == (2, True), refused.stderr
    properties, printed = submit(azure, msggan_aml, f"{place}/many/")
    assert properties["inputs"]["data"]["mode"] == "ReadOnlyMount"
    assert "The job mounts the images (they are 6 files or more)." in printed
    assert f"None of the first 6 files at {place}/many/ is an image." in printed
    assert msggan_aml("cancel", "there").exit_code == 0
    _, printed = submit(azure, msggan_aml, f"{place}/last/")
    assert "is an image" not in printed


# --- Other clouds and private links -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("cloud", "private_link"), [("AzureUSGovernment", False), ("AzureCloud", True)])
def test_a_run_trains_in_another_cloud_and_behind_a_private_link(
    azure: AzureLocal, workdir: Path, msggan_aml: Command, cloud: str, private_link: bool
) -> None:
    azure.use_cloud(cloud)
    azure.cloud.private_link = private_link
    ended = msggan_aml("submit", "--data", "tiny", *SMALL, "--yes", "-o", "json", **azure.variables)
    assert (ended.exit_code, ended.json["state"]) == (0, "completed"), ended.stderr
    assert ended.json["portal_url"].startswith(f"https://{azure.cloud.hosts.studio}/runs/tiny")
    hosts = {request.host for request in azure.requests}
    assert hosts >= {azure.cloud.hosts.management, azure.cloud.api_host}
    elsewhere = msggan_aml("submit", "--data", "https://acc1.blob.core.example.net/pictures/x/", *SMALL, "--dry-run")
    assert (elsewhere.exit_code, "is not in the cloud of the workspace" in elsewhere.stderr) == (2, True)
