"""Tests of the local Azure: it serves the unmodified SDK, runs jobs as processes, and rejects what Azure rejects."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import azure_local
import pytest
from azure_local import AzureLocal
from azure_local.authority import create_authority
from azure_local.blobs import Blobs
from azure_local.cloud import account_key
from azure_local.draws import draws
from azure_local.early_termination import is_behind, is_judged_at
from azure_local.entra import read_token
from azure_local.faults import Fault, Faults
from azure_local.jobs_state import ENDED
from azure_local.messages import Reply
from azure_local.server import Recording, Server
from azure_local.sweep_rules import wrong_sweep

# The SDK's own: of the libraries it stands on, and of connections that it leaves to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

CURATED = "azureml://registries/azureml/environments/acpt-pytorch-2.8-cuda12.6/versions/10"
DATA = "azureml://datastores/workspaceblobstore/paths/some/images"
SCRIPT = """
import os, pathlib, sys, time
data, run = map(pathlib.Path, sys.argv[1:3])
attempt = __import__("json").loads(os.environ["AZUREML_CR_COMPUTE_CONTEXT"])["run_attempt_count"]
print("attempt", attempt, sorted(os.listdir(data)), sorted(os.listdir(run)), sorted(os.listdir("outputs")), flush=True)
(run / f"kept-{attempt}.txt").write_text("kept")
pathlib.Path("outputs/grid.txt").write_text("a grid")
for word in sys.argv[3:]:
    if word == "wait":
        time.sleep(600)
    elif word == "fail":
        sys.exit(3)
    else:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        import mlflow
        from mlflow.entities import Metric
        metrics = [Metric("d_loss", step / 8, 1000 + step, step) for step in range(8)]
        mlflow.MlflowClient().log_batch(os.environ["MLFLOW_RUN_ID"], metrics=metrics)
        mlflow.log_param("resolution", 8)
        mlflow.log_artifact(__file__)
"""

Submit = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def _left_behind() -> Iterator[None]:
    """The connections that the SDK left open are collected here, where their warnings are expected."""
    yield
    gc.collect()


@pytest.fixture
def client(azure: AzureLocal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """The SDK's own client, led by the environment alone."""
    for name, value in azure.variables.items():
        monkeypatch.setenv(name, value)
    from azure.ai.ml import MLClient
    from azure.identity import ClientSecretCredential

    caplog.set_level(logging.ERROR, logger="azure")
    cloud = azure.cloud
    with ClientSecretCredential(cloud.tenant, cloud.client_id, cloud.client_secret) as credential:
        yield MLClient(credential, cloud.subscription, cloud.group, cloud.workspace, enable_telemetry=False)


@pytest.fixture
def submit(azure: AzureLocal, client: Any, tmp_path: Path) -> Submit:
    """submit(NAME, *words): a job on a cluster that runs SCRIPT with an input, an output at runs/NAME, the words."""
    from azure.ai.ml import Input, Output, command

    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "main.py").write_text(SCRIPT)
    azure.put_blob("some/images/one.png", b"1")
    azure.add_cluster("gpu")

    def submit(name: str, *words: str, limits: Any = None, **changes: Any) -> Any:
        given = {
            "name": name,
            "code": str(tmp_path / "code"),
            "command": "python main.py ${{inputs.data}} ${{outputs.run}} " + " ".join(words),
            "environment": CURATED,
            "compute": "gpu",
            "inputs": {"data": Input(type="uri_folder", path=DATA)},
            "outputs": {
                "run": Output(
                    type="uri_folder",
                    mode="rw_mount",
                    path=f"azureml://datastores/workspaceblobstore/paths/runs/{name}",
                )
            },
            "experiment_name": "tests",
            **changes,
        }
        job = command(**given)
        job.limits = limits
        return client.jobs.create_or_update(job)

    return submit


def log_of(azure: AzureLocal, name: str) -> str:
    return azure.artifact(name, "user_logs/std_log.txt").decode()


def wait_until(true: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def test_clusters_datastores_and_environments_are_stored(azure: AzureLocal, client: Any) -> None:
    from azure.ai.ml.entities import AccountKeyConfiguration, AmlCompute, AzureBlobDatastore, Environment
    from azure.core.exceptions import ResourceNotFoundError

    cluster = AmlCompute(name="gpu", size="Standard_NC4as_T4_v3", max_instances=2, tier="low_priority")
    client.compute.begin_create_or_update(cluster).result()
    made = client.compute.get("gpu")
    assert (made.size, made.min_instances, made.max_instances, made.tier) == (
        "Standard_NC4as_T4_v3",
        0,
        2,
        "low_priority",
    )
    assert "Standard_NC4as_T4_v3" in [size.name for size in client.compute.list_sizes()]
    assert {usage.limit for usage in client.compute.list_usage()} == {10_000}

    store = AzureBlobDatastore(
        name="mine",
        account_name="otherstore",
        container_name="images",
        credentials=AccountKeyConfiguration(account_key="a-key"),
    )
    client.datastores.create_or_update(store)
    assert client.datastores.get("mine").account_name == "otherstore"
    assert client.datastores.get_default().name == "workspaceblobstore"

    first = client.environments.create_or_update(Environment(name="ours", image="python:3.12"))
    again = client.environments.create_or_update(Environment(name="ours", image="python:3.13"))
    assert (first.version, again.version) == ("1", "2")  # the first is not changed

    client.compute.begin_delete("gpu").result()
    client.datastores.delete("mine")
    with pytest.raises(ResourceNotFoundError):
        client.compute.get("gpu")
    assert [store.name for store in client.datastores.list()] == ["workspaceartifactstore", "workspaceblobstore"]


def test_the_curated_environment_s_newest_version_is_found(azure: AzureLocal, client: Any) -> None:
    from azure.ai.ml import MLClient

    registry = MLClient(client._credential, registry_name="azureml", enable_telemetry=False)
    assert registry.environments.get("acpt-pytorch-2.8-cuda12.6", label="latest").version == "10"


def test_a_job_runs_and_what_it_wrote_comes_back(
    azure: AzureLocal, client: Any, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit("one", "log")
    job = azure.job("one")
    assert job.wait_for(*ENDED) == "Completed", log_of(azure, "one")
    assert job.statuses == ["NotStarted", "Queued", "Preparing", "Running", "Finalizing", "Completed"]
    assert client.jobs.get("one").status == "Completed"
    assert log_of(azure, "one").startswith("attempt 1 ['one.png'] [] []\n")

    client.jobs.download("one", download_path=tmp_path / "all", all=True)
    files = {path.relative_to(tmp_path / "all").as_posix() for path in (tmp_path / "all").rglob("*") if path.is_file()}
    assert files == {
        "named-outputs/run/kept-1.txt",
        "artifacts/outputs/grid.txt",
        "artifacts/main.py",
        "artifacts/user_logs/std_log.txt",
    }

    import mlflow

    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    mlflow_client = mlflow.MlflowClient(client.workspaces.get(azure.cloud.workspace).mlflow_tracking_uri)
    assert [(metric.step, metric.value) for metric in mlflow_client.get_metric_history("one", "d_loss")] == [
        (step, step / 8) for step in range(8)
    ]
    assert mlflow_client.get_run("one").data.params == {"resolution": "8"}


def test_an_unchanged_snapshot_is_not_uploaded_again(azure: AzureLocal, submit: Submit) -> None:
    azure.hold_jobs()
    submit("one")
    uploads = len(azure.made("PUT", "main.py"))
    submit("two")
    assert uploads > 0
    assert len(azure.made("PUT", "main.py")) == uploads


def test_a_cancelled_job_is_ended_with_all_it_started(azure: AzureLocal, client: Any, submit: Submit) -> None:
    submit("one", "wait")
    wait_until(lambda: "attempt 1" in log_of(azure, "one") if azure.job("one").status == "Running" else False)
    process = azure.job("one").process
    client.jobs.begin_cancel("one").result()
    assert azure.job("one").wait_for(*ENDED) == "Canceled"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_failed_job_has_its_exit_code(azure: AzureLocal, client: Any, submit: Submit) -> None:
    submit("one", "fail")
    assert azure.job("one").wait_for(*ENDED) == "Failed"
    assert azure.job("one").exit_code == 3


def test_a_preempted_job_restarts_with_only_its_mounted_output(azure: AzureLocal, submit: Submit) -> None:
    submit("one", "wait")
    wait_until(lambda: bool(azure.job("one").process) and "attempt 1" in log_of(azure, "one"))
    wait_until(lambda: azure.blob("runs/one/kept-1.txt") is not None)
    azure.preempt("one")
    wait_until(lambda: "attempt 2" in log_of(azure, "one"))
    assert "attempt 2 ['one.png'] ['kept-1.txt'] []\n" in log_of(azure, "one")
    assert azure.job("one").attempt == 2


def test_jobs_are_queued_while_they_are_held(azure: AzureLocal, client: Any, submit: Submit) -> None:
    azure.hold_jobs("no node is free")
    submit("one")
    azure.job("one").wait_for("Queued")
    details = client.jobs._runs_operations.get_run_details("one")
    assert [warning.message for warning in details.warnings] == ["no node is free"]
    azure.release_jobs()
    assert azure.job("one").wait_for(*ENDED) == "Completed"


def test_lists_come_in_pages(azure: AzureLocal, client: Any) -> None:
    azure.cloud.page_size = 3
    for number in range(7):
        azure.add_ended_job(f"job-{number}")
    assert [job.name for job in client.jobs.list()] == [f"job-{number}" for number in range(6, -1, -1)]
    assert len(azure.made("GET", "/jobs")) == 3


def test_prices_are_in_the_list_of_sizes_and_in_the_public_list(azure: AzureLocal, client: Any) -> None:
    import requests

    sizes = {size.name: vars(size) for size in client.compute.list_sizes()}
    prices = sizes["Standard_NC4as_T4_v3"]["estimatedVMPrices"]
    assert prices["billingCurrency"] == "USD"
    assert {"retailPrice": 0.526, "osType": "Linux", "vmTier": "Standard"} in prices["values"]
    azure.cloud.lists_prices = False
    sizes = {size.name: vars(size) for size in client.compute.list_sizes()}
    assert "estimatedVMPrices" not in sizes["Standard_NC4as_T4_v3"]

    azure.cloud.page_size = 3
    where = "serviceName eq 'Virtual Machines' and armSkuName eq 'Standard_NC4as_T4_v3' and priceType eq 'Consumption'"
    query = {"api-version": "2023-01-01-preview", "currencyCode": "'EUR'", "$filter": where}
    found = requests.get("https://prices.azure.com/api/retail/prices", params=query, timeout=60).json()
    rest = requests.get(found["NextPageLink"], timeout=60).json()
    assert (len(found["Items"]), len(rest["Items"]), rest["NextPageLink"]) == (3, 1, None)
    names = [(item["skuName"], item["productName"].endswith(" Windows")) for item in found["Items"] + rest["Items"]]
    plain = "NC4as T4 v3"
    assert names == [(plain, True), (f"{plain} Spot", False), (plain, False), (f"{plain} Low Priority", False)]
    assert found["Items"][2]["retailPrice"] == pytest.approx(0.526 * 0.9)
    none = requests.get(
        "https://prices.azure.com/api/retail/prices", params={**query, "$filter": where.lower()}, timeout=60
    )
    assert none.json()["Items"] == []


def test_clusters_have_nodes_and_endpoints_are_listed(azure: AzureLocal, client: Any) -> None:
    azure.add_cluster("gpu")
    azure.cloud.idle_nodes["gpu"] = 2
    azure.add_endpoint("flowers", "Standard_DS3_v2", 3)
    (deployment,) = client.online_deployments.list("flowers")
    assert [endpoint.name for endpoint in client.online_endpoints.list()] == ["flowers"]
    assert (deployment.name, deployment.instance_type, deployment.instance_count) == ("blue", "Standard_DS3_v2", 3)
    assert [made.status for made in azure.made("GET", "/onlineEndpoints")] == [200, 200]


def test_a_fault_affects_the_matching_request(azure: AzureLocal, client: Any) -> None:
    fault = azure.fault("GET", r"/datastores/workspaceblobstore", nth=2, status=503)
    for _ in range(2):
        client.datastores.get("workspaceblobstore")  # the SDK itself tries again
    statuses = [request.status for request in azure.made("GET", "/datastores/workspaceblobstore")]
    assert statuses == [200, 503, 200]
    assert fault.count == 1


@pytest.mark.parametrize(("drop", "there"), [("before", False), ("after", True)])
def test_a_cut_connection_leaves_the_request_undone_or_done(
    azure: AzureLocal, client: Any, drop: str, there: bool
) -> None:
    from azure.ai.ml.entities import AzureBlobDatastore
    from azure.core.exceptions import ServiceRequestError, ServiceResponseError

    azure.fault("PUT", "/datastores/mine", drop=drop, times=100)
    store = AzureBlobDatastore(name="mine", account_name="otherstore", container_name="images")
    with pytest.raises((ServiceRequestError, ServiceResponseError)):
        client.datastores._operation.create_or_update(
            azure.cloud.group, azure.cloud.workspace, "mine", store._to_rest_object(), retry_total=0
        )
    assert ("mine" in azure.cloud.datastores) == there
    assert [request.status for request in azure.made("PUT", "/datastores/mine")] == [0]


def test_an_unimplemented_request_gets_501(azure: AzureLocal, client: Any) -> None:
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError, match=r"does not know GET .*/batchEndpoints"):
        list(client.batch_endpoints.list())
    assert len(azure.complaints()) == 1
    azure.recording.clear()


def test_other_hosts_are_refused_and_reported(azure: AzureLocal, client: Any) -> None:
    import requests

    with pytest.raises(requests.exceptions.ProxyError):
        requests.get("https://example.com/", timeout=5)
    assert azure.complaints() == ["a host that is not Azure's: example.com:443"]
    azure.recording.clear()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"command": "echo ${{outputs.other}}"}, "names no input or output"),
        ({"environment": CURATED.replace("/10", "/77")}, "environment .* was not found"),
        ({"compute": "other"}, "compute other was not found"),
        ({"name": "a.b"}, "not a legal job name"),
        ({"shm_size": "much"}, "shmSize has an illegal value"),
    ],
)
def test_an_ill_formed_job_is_refused(
    azure: AzureLocal, submit: Submit, changes: dict[str, str], complaint: str
) -> None:
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError, match=complaint) as refused:
        submit(changes.get("name", "one"), **{name: value for name, value in changes.items() if name != "name"})
    assert refused.value.status_code == 400
    assert azure.cloud.jobs == {}


def test_an_ill_formed_cluster_is_refused(azure: AzureLocal, client: Any) -> None:
    from azure.ai.ml.entities import AmlCompute
    from azure.core.exceptions import HttpResponseError

    azure.cloud.quotas["Standard NCASv3_T4 Family"] = 0
    for cluster, complaint in (
        (AmlCompute(name="gpu", size="Standard_NC6", max_instances=1), "NC6 is not supported"),
        (AmlCompute(name="gpu", size="Standard_DS3_v2", min_instances=3, max_instances=2), "above maxNodeCount"),
        (AmlCompute(name="gpu", size="Standard_NC4as_T4_v3", max_instances=1), "Maximum allowed: 0"),
    ):
        with pytest.raises(HttpResponseError, match=complaint):
            client.compute.begin_create_or_update(cluster)
    assert azure.cloud.computes == {}


def test_a_caller_without_a_role_is_forbidden(azure: AzureLocal, client: Any) -> None:
    from azure.core.exceptions import HttpResponseError

    azure.cloud.role = None
    with pytest.raises(HttpResponseError, match=r"AuthorizationFailed.*does not have authorization"):
        client.workspaces.get(azure.cloud.workspace)


def test_a_role_permits_what_it_defines_at_its_scope_and_below(azure: AzureLocal, client: Any) -> None:
    from azure.ai.ml.entities import AmlCompute
    from azure.core.exceptions import HttpResponseError

    azure.cloud.role = "AzureML Data Scientist"
    cluster = AmlCompute(name="gpu", size="Standard_DS3_v2", max_instances=1)
    with pytest.raises(HttpResponseError, match="workspaces/computes/write"):
        client.compute.begin_create_or_update(cluster)
    assert client.datastores.get_default(include_secrets=True).credentials.sas_token
    assert list(client.compute.list_usage())
    azure.cloud.subscription_role = None
    with pytest.raises(HttpResponseError, match="locations/usages/read"):
        list(client.compute.list_usage())
    azure.cloud.role, azure.cloud.subscription_role = None, "Contributor"
    client.compute.begin_create_or_update(cluster).result()
    azure.cloud.subscription_role = "Reader"
    with pytest.raises(HttpResponseError, match="datastores/listSecrets/action"):
        client.datastores.get_default(include_secrets=True)


def test_a_wrong_secret_does_not_sign_in(azure: AzureLocal, client: Any) -> None:
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import ClientSecretCredential

    with (
        ClientSecretCredential(azure.cloud.tenant, azure.cloud.client_id, "wrong") as credential,
        pytest.raises(ClientAuthenticationError, match="AADSTS7000215"),
    ):
        credential.get_token("https://management.azure.com/.default")


@pytest.mark.parametrize("signed_in", [True, False])
def test_the_azure_cli_signs_in(
    azure: AzureLocal, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signed_in: bool
) -> None:
    from azure.ai.ml import MLClient
    from azure.identity import AzureCliCredential, CredentialUnavailableError

    monkeypatch.setenv("PATH", str(azure.write_az(tmp_path / "bin", signed_in).parent), prepend=os.pathsep)
    cloud = azure.cloud
    client = MLClient(AzureCliCredential(), cloud.subscription, cloud.group, cloud.workspace, enable_telemetry=False)
    if signed_in:
        assert client.workspaces.get(cloud.workspace).location == "eastus"
    else:
        with pytest.raises(CredentialUnavailableError, match="az login"):
            client.workspaces.get(cloud.workspace)


def test_a_managed_identity_signs_in(azure: AzureLocal, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from azure.identity import ManagedIdentityCredential

    for name, value in azure.identity_variables.items():
        monkeypatch.setenv(name, value)
    with ManagedIdentityCredential() as credential:
        token = credential.get_token("https://management.azure.com/.default").token
    assert read_token({"authorization": f"Bearer {token}"})["aud"] == "https://management.azure.com"


def test_an_account_without_shared_keys_takes_tokens_only(azure: AzureLocal, client: Any) -> None:
    from azure.core.exceptions import HttpResponseError
    from azure.storage.blob import BlobClient

    azure.put_blob("one.txt", b"1")
    azure.cloud.shared_keys = False
    url = f"https://{azure.cloud.account}.blob.core.windows.net"
    for credential, opens in ((azure.account_key, False), (client._credential, True)):
        with BlobClient(url, azure.container, "one.txt", credential=credential) as blob:
            if opens:
                assert blob.download_blob().readall() == b"1"
            else:
                with pytest.raises(HttpResponseError, match="KeyBasedAuthenticationNotPermitted"):
                    blob.download_blob()


def test_names_and_the_interpreter_are_settings(azure: AzureLocal, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    settings = azure_local.Settings(group="a-group", workspace="a-workspace", account="anaccount", python=str(python))
    with AzureLocal(settings) as other:
        assert other.variables["AZUREML_ARM_WORKSPACE_NAME"] == "a-workspace"
        assert "/resourceGroups/a-group/" in other.cloud.scope
        assert other.cloud.datastores["workspaceblobstore"]["accountName"] == "anaccount"
        other.reset()
        other.put_blob("one.txt", b"1")
        assert other.blob("one.txt") == b"1"
        assert (other.cloud.workspace, other.cloud.python) == ("a-workspace", str(python))


def test_the_tool_runs_a_command_and_removes_everything(azure: AzureLocal, tmp_path: Path) -> None:
    url = "https://management.azure.com/metadata/endpoints?api-version=2019-05-01"
    asks = f"import requests; print(requests.get('{url}').json()[0]['name'])"
    ended = subprocess.run(
        [sys.executable, "-m", azure_local.__name__, "bash", "-c", f'python -c "{asks}"; exit 7'],
        cwd=Path(azure_local.__file__).parents[1],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "AzureCloud\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_connection_closed_by_the_blob_service_is_reopened(tmp_path: Path) -> None:
    """Azurite does so with one that was idle for five seconds, wherever it comes to look at it late."""
    authority, faults, recording = create_authority(tmp_path), Faults(), Recording()
    faults.add(Fault("GET", "/images", drop="before"))
    server = Server(authority.server_context(), lambda request: Reply(), faults, recording)
    blobs = Blobs(server.address[1], {"account": account_key("account")}, str(authority.certificate))
    try:
        assert blobs.exists("account", "images")
        assert [request.status for request in recording.requests] == [0, 200]
    finally:
        blobs.close()
        server.close()


def test_a_lost_response_creates_no_second_job(azure: AzureLocal, submit: Submit) -> None:
    azure.hold_jobs()
    azure.fault("PUT", "/jobs/one", drop="after")
    submit("one")  # the SDK itself asks again
    assert [request.status for request in azure.made("PUT", "/jobs/")] == [0, 200]
    assert list(azure.cloud.jobs) == ["one"]


def test_another_job_with_an_existing_name_is_refused(azure: AzureLocal, submit: Submit) -> None:
    from azure.core.exceptions import ResourceExistsError

    azure.hold_jobs()
    submit("one")
    with pytest.raises(ResourceExistsError, match="its command differ"):
        submit("one", "fail")


def test_a_job_past_its_time_limit_is_cancelled(azure: AzureLocal, submit: Submit) -> None:
    from azure.ai.ml.entities import CommandJobLimits

    submit("one", "wait", limits=CommandJobLimits(timeout=1))
    assert azure.job("one").wait_for(*ENDED) == "Canceled"
    assert "time limit of 1 seconds" in azure.job("one").error["message"]


def test_data_that_is_not_there_fails_the_job(azure: AzureLocal, submit: Submit) -> None:
    from azure.ai.ml import Input

    submit("one", inputs={"data": Input(type="uri_folder", path=DATA + "-not")})
    assert azure.job("one").wait_for(*ENDED) == "Failed"
    assert "StreamAccess.NotFound" in azure.job("one").error["message"]


def test_an_image_that_cannot_be_built_fails_the_job_with_its_log(
    azure: AzureLocal, client: Any, submit: Submit
) -> None:
    from azure.ai.ml.entities import Environment

    client.environments.create_or_update(Environment(name="ours", version="1", image="python:3.12"))
    azure.cloud.builds_fail = True
    submit("one", environment="azureml:ours:1")
    assert azure.job("one").wait_for(*ENDED) == "Failed"
    assert b"No matching distribution" in azure.artifact("one", "azureml-logs/20_image_build_log.txt")


@pytest.mark.parametrize(
    ("metrics", "status"),
    [
        ([("d_loss", step) for step in range(250)], 200),
        ([("d_loss", step) for step in range(251)], 400),
        ([(f"m{number}", 0) for number in range(50)], 200),
        ([(f"m{number}", 0) for number in range(51)], 400),
    ],
)
def test_mlflow_has_azure_s_limits(azure: AzureLocal, client: Any, metrics: list[tuple[str, int]], status: int) -> None:
    import requests

    job = azure.add_ended_job("one")
    token = client._credential.get_token("https://management.azure.com/.default").token
    sent = [{"key": key, "value": 1.5, "timestamp": 1, "step": step} for key, step in metrics]
    url = azure.cloud.tracking_uri.replace("azureml://", "https://") + "/api/2.0/mlflow/runs/log-batch"
    answer = requests.post(
        url, json={"run_id": "one", "metrics": sent}, headers={"Authorization": f"Bearer {token}"}, timeout=10
    )
    assert answer.status_code == status
    assert len(job.metrics) == (len(metrics) if status == 200 else 0)  # all of a batch, or none


SWEEP = {
    "searchSpace": {"g_lr": ["loguniform", [-7, -3]]},
    "samplingAlgorithm": {"samplingAlgorithmType": "Random"},
    "trial": {"command": "train ${{search_space.g_lr}}"},
    "limits": {"maxTotalTrials": 4, "maxConcurrentTrials": 2},
}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, ""),
        ({"searchSpace": {}}, "searchSpace is empty"),
        ({"searchSpace": {"g_lr": ["uniform", [2, 1]]}}, "minimum 2 is not below the maximum 1"),
        ({"searchSpace": {"g_lr": ["sometimes", [1]]}}, "unknown kind 'sometimes'"),
        ({"samplingAlgorithm": {"samplingAlgorithmType": "Grid"}}, "grid sampling takes choices only"),
        ({"samplingAlgorithm": {"samplingAlgorithmType": "Bayesian"}}, "Bayesian sampling does not take loguniform"),
        ({"limits": {"maxTotalTrials": 1, "maxConcurrentTrials": 2}}, "maxConcurrentTrials is above maxTotalTrials"),
        ({"earlyTermination": {"policyType": "Bandit"}}, "needs slackFactor or slackAmount"),
        ({"trial": {"command": "train"}}, "uses no ${{search_space.…}}"),
    ],
)
def test_an_invalid_sweep_is_refused(changes: dict[str, Any], complaint: str) -> None:
    complaints = list(wrong_sweep({**SWEEP, **changes}))
    assert complaints == [] if not complaint else any(complaint in said for said in complaints)


def test_a_process_with_a_thousand_open_files_can_connect(azure: AzureLocal, client: Any) -> None:
    """As pytest's is after an hour of tests: what waits for connections must not mind their numbers."""
    resource = pytest.importorskip("resource")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1500:
        pytest.skip("this machine lets a process open fewer than 1,500 files")
    with ExitStack() as files:
        for _ in range(1100):
            files.enter_context(open(os.devnull, "rb"))
        assert list(client.jobs.list()) == []


# --- Sweeps -----------------------------------------------------------------------------------------------------------

TRIAL = """
import json, math, os, sys, time, urllib.request
def log(value):
    url = os.environ["MLFLOW_TRACKING_URI"].replace("azureml://", "https://") + "/api/2.0/mlflow/runs/log-metric"
    sent = {"run_id": os.environ["MLFLOW_RUN_ID"], "key": "swd", "value": value, "timestamp": 1, "step": 0}
    headers = {"Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"], "Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(sent).encode(), headers)).read()
def wait():
    time.sleep(600)
exec(sys.argv[1])
"""


@pytest.fixture
def sweep(azure: AzureLocal, client: Any, tmp_path: Path) -> Submit:
    """sweep(NAME, SPACE, CODE): a sweep whose trials run a line of Python, in which log(value) measures swd."""
    from azure.ai.ml import command
    from azure.ai.ml.sweep import Objective, SweepJob, SweepJobLimits

    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "main.py").write_text(TRIAL)
    azure.add_cluster("gpu")

    def sweep(
        name: str, space: dict[str, Any], code: str, *, goal: str = "minimize", sampling: Any = "random", **changes: Any
    ) -> Any:
        trial = command(code=str(tmp_path / "trial"), command=f'python main.py "{code}"', environment=CURATED)._to_job()
        limits = {key: changes.pop(key) for key in list(changes) if key.endswith(("_trials", "timeout"))}
        job = SweepJob(
            name=name,
            compute="gpu",
            trial=trial,
            experiment_name="tests",
            search_space=space,
            sampling_algorithm=sampling,
            objective=Objective(goal=goal, primary_metric="swd"),
            limits=SweepJobLimits(**{"max_concurrent_trials": 1, "max_total_trials": 2, **limits}),
            **changes,
        )
        return client.jobs.create_or_update(job)

    return sweep


def of(name: str) -> str:
    """How a trial's command has the value of a parameter."""
    return "${{search_space." + name + "}}"


def drawn(azure: AzureLocal, name: str) -> list[dict[str, Any]]:
    """What the trials try, as the tags of their sweep say."""
    tags = azure.job(name).tags
    return [json.loads(tags[f"{name}_{number}"]) for number in range(len(azure.trials(name)))]


def test_a_sweep_runs_its_trials_and_reports_the_best(azure: AzureLocal, client: Any, sweep: Submit) -> None:
    from azure.ai.ml.sweep import Choice, LogUniform

    space = {"g_lr": LogUniform(math.log(0.001), math.log(0.01)), "mirror": Choice(["--mirror"])}
    said = "'AZUREML_RUN_ID', 'AZUREML_ROOT_RUN_ID', 'AZUREML_SWEEP_g_lr', 'AZUREML_SWEEP_mirror'"
    code = f"print('{of('mirror')}', *map(os.environ.get, [{said}])); log(9); log({of('g_lr')}); log(7)"
    sweep("one", space, code, max_total_trials=3, max_concurrent_trials=2)
    parent = azure.job("one")
    assert parent.wait_for(*ENDED) == "Completed", parent.error
    assert parent.statuses == ["NotStarted", "Queued", "Running", "Completed"]
    trials = azure.trials("one")
    assert [(trial.name, trial.status) for trial in trials] == [(f"one_{number}", "Completed") for number in range(3)]

    rates = [values["g_lr"] for values in drawn(azure, "one")]
    assert all(0.001 <= rate <= 0.01 for rate in rates)
    assert len(set(rates)) == 3
    for trial, rate in zip(trials, rates, strict=True):
        assert [metric.value for metric in trial.metrics] == [9, rate, 7]
        assert log_of(azure, trial.name) == f"--mirror {trial.name} one {rate!r} --mirror\n"

    children = client.jobs.get("one")
    assert children.status == "Completed"
    assert json.loads(children.properties["primary_metric_config"]) == {"name": "swd", "goal": "minimize"}
    assert children.properties["best_child_run_id"] == f"one_{rates.index(min(rates))}"
    assert float(children.properties["score"]) == min(rates)
    assert json.loads(children.tags["one_2"])["g_lr"] == rates[2]
    assert client.jobs.get("one_1").status == "Completed"
    assert [job.name for job in client.jobs.list()] == ["one"]
    assert [job.name for job in client.jobs.list(parent_job_name="one")] == ["one_2", "one_1", "one_0"]


@pytest.mark.parametrize("rule", ["random", "sobol"])
def test_a_seed_draws_the_same_again(rule: str) -> None:
    space = {
        "rate": ["loguniform", [math.log(0.001), math.log(0.01)]],
        "beta": ["uniform", [0.9, 0.99]],
        "size": ["quniform", [8, 64, 8]],
        "wide": ["qloguniform", [0, 5, 2]],
        "spread": ["normal", [3, 0.5]],
        "high": ["lognormal", [0, 1]],
        "steps": ["qnormal", [100, 10, 5]],
        "many": ["qlognormal", [3, 1, 4]],
        "loss": ["choice", [["hinge", "wgan-gp"]]],
        "number": ["randint", [5]],
    }

    def draw(seed: int) -> list[dict[str, Any]]:
        sampling = {"samplingAlgorithmType": "Random", "rule": rule.title(), "seed": seed}
        return list(itertools.islice(draws({"searchSpace": space, "samplingAlgorithm": sampling}, dict), 64))

    first = draw(7)
    assert first == draw(7) != draw(8)
    for name, values in {name: [trial[name] for trial in first] for name in space}.items():
        kind, arguments = space[name]
        if "uniform" in kind and not kind.startswith("q"):
            low, high = (math.exp(end) if kind == "loguniform" else end for end in arguments)
            assert all(low <= value <= high for value in values)
            assert min(values) < low + (high - low) / 4
            assert max(values) > high - (high - low) / 4
        if kind.startswith("q"):
            assert all(value % arguments[2] == 0 for value in values)
    assert {trial["loss"] for trial in first} == {"hinge", "wgan-gp"}
    assert {trial["number"] for trial in first} == {0, 1, 2, 3, 4}
    if rule == "sobol":  # of each eighth of a parameter's range as many
        assert sorted(int((trial["beta"] - 0.9) / 0.09 * 2) for trial in first) == [0] * 32 + [1] * 32


def test_bayesian_draws_approach_the_best_values() -> None:
    scores: dict[int, float] = {}
    given = {
        "searchSpace": {"beta": ["uniform", [0, 10]], "loss": ["choice", [["hinge", "wgan-gp"]]]},
        "samplingAlgorithm": {"samplingAlgorithmType": "Bayesian"},
        "objective": {"goal": "Minimize", "primaryMetric": "swd"},
    }
    found = []
    for number, values in enumerate(itertools.islice(draws(given, lambda: scores), 60)):
        scores[number] = abs(values["beta"] - 3)
        found.append(scores[number])
    assert sorted(found[20:])[20] < 1.5  # half of what is drawn anyhow is farther away than 2.5


def test_a_grid_runs_each_combination_once(azure: AzureLocal, sweep: Submit) -> None:
    from azure.ai.ml.sweep import Choice

    space = {"loss": Choice(["hinge", "wgan-gp"]), "size": Choice([1, 2])}
    sweep("one", space, f"log({of('size')})", sampling="grid", max_total_trials=9, max_concurrent_trials=2)
    sweep("two", space, f"log({of('size')})", sampling="grid", max_total_trials=3)
    for name, count in (("one", 4), ("two", 3)):
        assert azure.job(name).wait_for(*ENDED) == "Completed"
        tried = [(values["loss"], values["size"]) for values in drawn(azure, name)]
        assert tried == list(itertools.product(["hinge", "wgan-gp"], [1, 2]))[:count]


def test_concurrent_trials_are_limited(azure: AzureLocal, sweep: Submit) -> None:
    from azure.ai.ml.sweep import Uniform

    sweep("one", {"beta": Uniform(0, 1)}, f"log({of('beta')})", max_total_trials=5, max_concurrent_trials=2)
    at_once = []
    while azure.job("one").status not in ENDED:
        at_once.append(sum(trial.status not in ENDED for trial in azure.trials("one")))
        time.sleep(0.005)
    assert max(at_once) == 2
    assert [trial.status for trial in azure.trials("one")] == ["Completed"] * 5


@pytest.mark.parametrize("preempts", [False, True])
def test_trials_are_queued_while_held_and_restart(
    azure: AzureLocal, client: Any, sweep: Submit, preempts: bool
) -> None:
    from azure.ai.ml.sweep import Uniform

    azure.hold_jobs("no node is free")
    sweep("one", {"beta": Uniform(0, 1)}, f"log({of('beta')}); time.sleep({int(preempts)})", max_total_trials=1)
    wait_until(lambda: [trial.status for trial in azure.trials("one")] == ["Queued"])
    assert azure.job("one").status == "Running"
    azure.release_jobs()
    if preempts:
        azure.preempt("one_0")
    assert azure.job("one").wait_for(*ENDED) == "Completed"
    assert azure.job("one_0").attempt == 1 + preempts


def test_early_termination_ends_the_bad_trial_and_not_the_good(azure: AzureLocal, client: Any, sweep: Submit) -> None:
    from azure.ai.ml.sweep import BanditPolicy, Choice

    policy = BanditPolicy(evaluation_interval=2, delay_evaluation=3, slack_factor=0.5)
    code = f"bad = {of('bad')}; [log(1 + bad) for _ in range(4)]; bad and wait()"
    space = {"bad": Choice([0, 1])}
    sweep("one", space, code, sampling="grid", early_termination=policy)
    parent = azure.job("one")
    assert parent.wait_for(*ENDED) == "Completed"
    assert [trial.status for trial in azure.trials("one")] == ["Completed", "Canceled"]
    assert parent.tags.get("one_1_cancelled") == "true"
    assert "one_0_cancelled" not in parent.tags
    assert (parent.service_properties["best_child_run_id"], parent.service_properties["score"]) == ("one_0", "1.0")


BANDIT = {"policyType": "Bandit"}
MEDIAN = {"policyType": "MedianStopping"}
WORST = {"policyType": "TruncationSelection", "truncationPercentage": 20}


@pytest.mark.parametrize(
    ("policy", "minimize", "own", "others", "ends"),
    [
        # Microsoft's own examples: the best has 0.8 at interval 10
        ({**BANDIT, "slackFactor": 0.2}, False, [0.66], [[0.8], [0.7]], True),
        ({**BANDIT, "slackFactor": 0.2}, False, [0.67], [[0.8], [0.7]], False),
        ({**BANDIT, "slackAmount": 0.2}, False, [0.59], [[0.8]], True),
        ({**BANDIT, "slackAmount": 0.2}, False, [0.61], [[0.8]], False),
        ({**BANDIT, "slackFactor": 0.2}, True, [0.97, 1.1], [[0.8, 0.9]], True),
        ({**BANDIT, "slackFactor": 0.2}, True, [0.95, 1.1], [[0.8, 0.9]], False),
        ({**BANDIT, "slackAmount": 0.2}, True, [1.1, 1.01], [[2, 0.8]], True),
        ({**BANDIT, "slackAmount": 0.2}, True, [1.1, 1.01], [[2, 1, 0.8]], False),  # which comes later
        ({**BANDIT, "slackAmount": 0.2}, True, [1.1, 1.01], [[0.1]], False),  # which did not come so far
        ({**BANDIT, "slackFactor": 0.2}, True, [math.nan], [[1]], True),
        (MEDIAN, True, [6, 4], [[1, 3], [4, 6], [9, 9]], False),
        (MEDIAN, True, [6, 5.1], [[1, 3], [4, 6], [9, 9]], True),
        (MEDIAN, False, [4.9, 1], [[1, 3], [4, 6], [9, 9]], True),
        (MEDIAN, False, [1], [], False),
        (WORST, True, [5, 5], [[0, number] for number in range(4)], True),
        (WORST, True, [5, 1.5], [[0, number] for number in range(4)], False),
        (WORST, True, [5, 3], [[0, number] for number in range(4)], False),  # no worse than another
        (WORST, True, [5], [[1], [2], [3]], False),  # a fifth of four trials is none
        (WORST, False, [1], [[1.5], [2], [3], [4]], True),
    ],
)
def test_a_trial_is_ended_where_it_is_behind(
    policy: dict[str, Any], minimize: bool, own: list[float], others: list[list[float]], ends: bool
) -> None:
    assert is_behind(policy, minimize, own, others) == ends


def test_a_policy_decides_at_its_intervals_and_not_before_its_delay() -> None:
    given = {**MEDIAN, "evaluationInterval": 2, "delayEvaluation": 5}
    assert [interval for interval in range(1, 11) if is_judged_at(given, interval)] == [6, 8, 10]
    assert [interval for interval in range(1, 4) if is_judged_at(MEDIAN, interval)] == [1, 2, 3]


def test_a_cancelled_sweep_ends_its_trials_and_starts_no_more(azure: AzureLocal, client: Any, sweep: Submit) -> None:
    from azure.ai.ml.sweep import Uniform

    sweep("one", {"beta": Uniform(0, 1)}, f"log({of('beta')}); wait()", max_total_trials=9, max_concurrent_trials=2)
    wait_until(lambda: len([trial for trial in azure.trials("one") if trial.metrics]) == 2)
    client.jobs.begin_cancel("one_1").result()
    wait_until(lambda: len(azure.trials("one")) == 3)
    assert azure.job("one_1").wait_for(*ENDED) == "Canceled"
    client.jobs.begin_cancel("one").result()
    assert azure.job("one").wait_for(*ENDED) == "Canceled"
    assert [trial.status for trial in azure.trials("one")] == ["Canceled"] * 3
    assert not any("cancelled" in tag for tag in azure.job("one").tags)  # none was ended by a policy


def test_a_sweep_past_its_time_limit_is_cancelled(
    azure: AzureLocal, sweep: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azure.ai.ml.sweep import Uniform

    # The SDK makes a minute of what is shorter.
    monkeypatch.setattr("azure.ai.ml.entities._job.job_limits._get_floored_timeout", lambda value: value)
    sweep("one", {"beta": Uniform(0, 1)}, f"{of('beta')}; wait()", timeout=1)
    sweep("two", {"beta": Uniform(0, 1)}, f"{of('beta')}; wait()", trial_timeout=1, max_total_trials=1)
    assert azure.job("one").wait_for(*ENDED) == "Canceled"
    assert azure.job("one").error == {"code": "UserError", "message": "The job exceeded its time limit of 1 seconds."}
    assert [trial.status for trial in azure.trials("one")] == ["Canceled"]
    assert azure.job("two").wait_for(*ENDED) == "Completed"
    assert azure.job("two_0").status == "Canceled"
    assert "time limit of 1 seconds" in azure.job("two_0").error["message"]


def test_the_resources_of_a_sweep_are_accepted_dropped_or_refused(azure: AzureLocal, sweep: Submit) -> None:
    from azure.ai.ml.entities import JobResourceConfiguration
    from azure.ai.ml.sweep import Choice
    from azure.core.exceptions import HttpResponseError

    azure.hold_jobs()
    given: dict[str, Any] = {"resources": JobResourceConfiguration(shm_size="1g"), "max_total_trials": 1}
    for answer in ("accept", "drop", "refuse"):
        azure.cloud.sweep_resources = answer
        with pytest.raises(HttpResponseError, match="resources: is unknown") if answer == "refuse" else nullcontext():
            sweep(answer, {"code": Choice([0])}, f"sys.exit({of('code')})", **given)
    assert {name: "resources" in azure.job(name).properties for name in ("accept", "drop")} == {
        "accept": True,
        "drop": False,
    }
    assert "refuse" not in azure.cloud.jobs


def test_a_sweep_fails_only_if_all_trials_fail(azure: AzureLocal, sweep: Submit) -> None:
    from azure.ai.ml.sweep import Choice

    sweep("one", {"code": Choice([0, 3])}, f"sys.exit({of('code')})", sampling="grid")
    sweep("two", {"code": Choice([3, 4])}, f"sys.exit({of('code')})", sampling="grid")
    assert azure.job("one").wait_for(*ENDED) == "Completed"
    assert [trial.status for trial in azure.trials("one")] == ["Completed", "Failed"]
    assert azure.job("two").wait_for(*ENDED) == "Failed"
    assert azure.job("two").error["message"].startswith("Marking the experiment as failed because initial child jobs")


def test_a_sweep_submitted_again_is_the_same_and_may_change_tags(azure: AzureLocal, sweep: Submit) -> None:
    from azure.ai.ml.sweep import Choice

    given: tuple[Any, ...] = ("one", {"beta": Choice([1])}, f"log({of('beta')})")
    sweep(*given, sampling="grid", tags={"a": "1"}, properties={"mine": "x"})
    assert azure.job("one").wait_for(*ENDED) == "Completed"
    again = sweep(*given, sampling="grid", tags={"b": "2"}, properties={"mine": "y"})
    assert [request.status for request in azure.made("PUT", "/jobs/one")] == [201, 200]
    assert again.tags == {"a": "1", "b": "2", "one_0": '{"beta": 1}'}
    assert (again.properties["mine"], again.properties["best_child_run_id"]) == ("y", "one_0")
    assert len(azure.trials("one")) == 1


def test_children_are_listed_in_pages_of_fifty_by_token(azure: AzureLocal, client: Any) -> None:
    import requests

    azure.add_ended_job("one")
    for number in range(120):
        azure.add_ended_job(f"one_{number}").parent = "one"
    newest = [f"one_{number}" for number in range(119, -1, -1)]
    # Without the token the SDK stops at the first page: Azure/azure-sdk-for-python#32440.
    assert [job.name for job in client.jobs.list(parent_job_name="one")] == newest[:50]
    token = client._credential.get_token("https://management.azure.com/.default").token
    url = f"https://eastus.api.azureml.ms/history/v1.0{azure.cloud.scope}/runs/one/children"

    def page(**query: str) -> dict[str, Any]:
        answer = requests.get(url, query, headers={"Authorization": f"Bearer {token}"}, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()

    found, ask = [], {}
    for name in ("continuationtoken", "$continuationToken", ""):
        children = page(**ask)
        found += children["value"]
        ask = {name: children["continuationToken"]}
    assert [run["runId"] for run in found] == newest
    assert {(run["parentRunId"], run["rootRunId"]) for run in found} == {("one", "one")}
    assert (children["continuationToken"], children["nextLink"]) == (None, None)
    assert [run["runId"] for run in page(**{"$top": "2"})["value"]] == newest[:2]


def test_a_trial_s_mlflow_run_has_its_sweep_as_parent(
    azure: AzureLocal, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    azure.add_ended_job("one_0").parent = "one"
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    # azureml-mlflow signs in by what an earlier test has read this workspace with, unless it is read again.
    runs = mlflow.MlflowClient(client.workspaces.get(azure.cloud.workspace).mlflow_tracking_uri)
    assert runs.get_run("one_0").data.tags["mlflow.parentRunId"] == "one"


def test_a_choice_between_objects_is_answered_501(azure: AzureLocal, sweep: Submit) -> None:
    from azure.ai.ml.sweep import Choice
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError, match="does not know what beta chooses from"):
        sweep("one", {"beta": Choice([{"a": 1}])}, f"log({of('beta')})")
    assert azure.cloud.jobs == {}
    azure.recording.clear()
