"""`provision` creates what a workspace lacks, reports its actions, and does not change what is up to date."""

from __future__ import annotations

import base64
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from azure_local import AzureLocal
from support.azure_commands import sdk_warnings
from support.programs import Ended, command_line, environment, fast_python, run_in, wait_for

from msggan.commands.program import run_program
from msggan.errors import MsgganError
from orchestration.commands.main import msggan_aml
from orchestration.settings import read_settings
from orchestration.status import Reporter

pytestmark = sdk_warnings

CLUSTER = "Standard_NC4as_T4_v3"
STORE = ("--storage-account", "otherstore", "--storage-container", "images")
IMAGE = ("--environment", "python:3.11-slim")  # made by one request
KEY = base64.b64encode(bytes(range(64))).decode()  # as long as an account's

Provision = Callable[..., Ended]


@pytest.fixture
def provision(
    azure: AzureLocal, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Provision:
    """provision(*words): the command line in this process, which loads the SDK once for all tests."""
    use(azure, monkeypatch)
    monkeypatch.chdir(tmp_path)

    def provision(*args: str) -> Ended:
        capfd.readouterr()
        exit_code = run_program(msggan_aml, name="msggan-aml", argv=["provision", *args])
        return Ended(exit_code, *capfd.readouterr())

    return provision


def use(azure: AzureLocal, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("MSGGAN_", "AZURE_", "AZUREML_", "MSI_", "IDENTITY_")):
            monkeypatch.delenv(name)
    for name, value in azure.variables.items():
        monkeypatch.setenv(name, value)


def actions(ended: Ended) -> dict[str, str]:
    """What the plan does, by kind."""
    return {item["kind"]: item["action"] for item in ended.json["plan"]}


def changing(azure: AzureLocal) -> list[str]:
    """The requests so far that can change something."""
    return [
        f"{request.method} {request.path}"
        for request in azure.requests
        if request.method in ("PUT", "PATCH", "DELETE") or (request.method == "POST" and "/computes/" in request.path)
    ]


# --- What it does -----------------------------------------------------------------------------------------------------


def test_resources_are_created_kept_updated_refused_and_deleted(azure: AzureLocal, provision: Provision) -> None:
    azure.put_blob("images/precious.png", b"1")
    created = provision("--yes", "-o", "json", *STORE)
    assert created.exit_code == 0, created.stderr
    assert actions(created) == {
        "compute": "create",
        "container": "create",
        "datastore": "create",
        "environment": "create",
    }
    assert created.json["applied"] is True
    assert created.json["plan"][0] == {
        "kind": "compute",
        "name": "msggan-gpu",
        "action": "create",
        "changes": {
            "vm_size": {"from": None, "to": CLUSTER},
            "low_priority": {"from": None, "to": False},
            "min_nodes": {"from": None, "to": 0},
            "max_nodes": {"from": None, "to": 1},
            "idle_minutes": {"from": None, "to": 2},
        },
        "reason": "",
    }
    (sent,) = azure.made("PUT", "/computes/msggan-gpu")
    assert sent.body == {
        "location": "eastus",
        "tags": {"msggan": "provisioned"},
        "properties": {
            "computeType": "AmlCompute",
            "disableLocalAuth": True,
            "properties": {
                "osType": "Linux",
                "vmSize": CLUSTER,
                "vmPriority": "Dedicated",
                "scaleSettings": {"minNodeCount": 0, "maxNodeCount": 1, "nodeIdleTimeBeforeScaleDown": "PT2M"},
                "remoteLoginPortPublicAccess": "NotSpecified",
                "enableNodePublicIp": True,
            },
        },
    }
    assert azure.cloud.datastores["msggan"]["credentials"] == {"credentialsType": "None"}
    assert azure.cloud.datastores["msggan"]["containerName"] == "images"

    azure.recording.clear()
    again = provision("--yes", "-o", "json", *STORE)
    assert set(actions(again).values()) == {"keep"}
    assert changing(azure) == []

    changed = provision("--yes", "-o", "json", *STORE, "--max-nodes", "3", "--idle-minutes", "5")
    assert changed.exit_code == 0, changed.stderr
    assert changed.json["plan"][0]["action"] == "change"
    assert changed.json["plan"][0]["changes"] == {
        "max_nodes": {"from": 1, "to": 3},
        "idle_minutes": {"from": 2, "to": 5},
    }
    scale = azure.cloud.computes["msggan-gpu"]["properties"]["properties"]["scaleSettings"]
    assert scale == {"minNodeCount": 0, "maxNodeCount": 3, "nodeIdleTimeBeforeScaleDown": "PT5M"}
    assert azure.cloud.computes["msggan-gpu"]["tags"] == {"msggan": "provisioned"}

    azure.recording.clear()
    refused = provision("--yes", "-o", "json", *STORE, "--vm-size", "Standard_NC24ads_A100_v4")
    assert refused.exit_code == 3
    assert refused.json["plan"][0]["action"] == "refuse"
    assert refused.json["applied"] is False
    assert "Use another name: --compute msggan-gpu-2" in refused.stderr
    assert changing(azure) == []

    shown = provision("--delete", "--dry-run", "-o", "json", *STORE)
    assert actions(shown) == {"compute": "delete", "datastore": "delete", "environment": "delete"}
    assert changing(azure) == []
    gone = provision("--delete", "--yes", "-o", "json", *STORE)
    assert gone.exit_code == 0, gone.stderr
    assert azure.cloud.computes == {}
    assert "msggan" not in azure.cloud.datastores
    assert azure.blob("images/precious.png") == b"1"
    assert azure.cloud.blobs.exists("otherstore", "images")
    azure.recording.clear()
    nothing = provision("--delete", "--yes", "-o", "json", *STORE)
    assert (nothing.exit_code, nothing.json) == (0, {"plan": [], "applied": True})
    assert nothing.stderr.splitlines()[1:] == ["Nothing to delete."]
    assert changing(azure) == []

    back = provision("--yes", "-o", "json", *STORE)
    assert back.exit_code == 0, back.stderr
    assert actions(back) == {"compute": "create", "datastore": "create", "environment": "change"}


def test_a_dry_run_shows_the_plan_and_changes_nothing(azure: AzureLocal, provision: Provision) -> None:
    ended = provision("--dry-run")
    assert ended.exit_code == 0
    assert ended.stderr.splitlines() == [
        f"Workspace msggan-ws (group msggan-rg) as {azure.cloud.client_id} (environment variables)."
    ]
    lines = ended.stdout.splitlines()
    assert lines[0] == "+ create compute msggan-gpu"
    assert "  keep datastore workspaceblobstore: is the workspace's own" in lines
    assert any(
        "costs 0.526 USD per hour from when a job needs it until 2 minutes after the last" in line for line in lines
    )
    assert "      A job of 24 hours (--timeout-hours) costs 12.78 USD at most." in lines
    assert "      Without jobs the cluster costs nothing." in lines
    # 19.71 a month; and 0.025 and 0.005 an hour.
    (beside,) = (line for line in lines if "In addition each machine has a disk" in line)
    assert "has a disk: 0.027 USD per hour; a cluster with machines" in beside
    assert "a load balancer and a public IP address: 0.03 USD per hour (Azure's list of retail prices, 20" in beside
    assert changing(azure) == []


def test_machines_around_the_clock_are_refused_above_a_ceiling(azure: AzureLocal, provision: Provision) -> None:
    ended = provision("--yes", "-o", "json", "--min-nodes", "1", "--max-cost", "50EUR", *IMAGE)
    assert (ended.exit_code, ended.json["plan"][0]["action"]) == (3, "refuse")
    assert "1 machine around the clock costs 345.58 EUR a month, more than --max-cost 50.00 EUR" in ended.stderr
    allowed = provision("--dry-run", "-o", "json", "--min-nodes", "1", "--max-cost", "350EUR", *IMAGE).json
    assert (allowed["cost"]["around_the_clock"], allowed["cost"]["price"]["per_hour"]) == (1, 0.4734)
    assert changing(azure) == []


def test_without_a_terminal_or_yes_nothing_is_changed(azure: AzureLocal, tmp_path: Path) -> None:
    ended = run_in(tmp_path, "msggan-aml", "provision", "-o", "json", **azure.variables)
    assert ended.exit_code == 2
    assert ended.json == {
        "error": {
            "code": "usage",
            "message": "Nothing was done: confirmation requires a terminal.",
            "hint": "Use --yes to confirm without a prompt.",
        }
    }
    assert changing(azure) == []


@pytest.mark.parametrize(("answer", "exit_code", "clusters"), [(b"n\n", 2, []), (b"y\n", 0, ["msggan-gpu"])])
def test_on_a_terminal_provision_asks_for_confirmation(
    azure: AzureLocal, tmp_path: Path, answer: bytes, exit_code: int, clusters: list[str]
) -> None:
    here, there = pty.openpty()
    try:
        with subprocess.Popen(
            command_line("msggan-aml", "provision", *IMAGE, python=fast_python()),
            cwd=tmp_path,
            env=environment(**azure.variables),
            stdin=there,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            os.write(here, answer)
            _, stderr = process.communicate()
    finally:
        os.close(here)
        os.close(there)
    assert process.returncode == exit_code, stderr
    assert b"Apply this plan? [y/N]" in stderr
    assert list(azure.cloud.computes) == clusters


def test_clusters_and_datastores_created_elsewhere_are_not_changed(azure: AzureLocal, provision: Provision) -> None:
    azure.add_cluster("msggan-gpu")
    ended = provision("--delete", "--yes", "-o", "json", "--datastore", "workspaceblobstore")
    assert actions(ended) == {"compute": "keep", "datastore": "keep"}
    assert ended.stderr.splitlines()[1:] == [
        "  keep compute msggan-gpu: was not created by msggan-aml provision",
        "  keep datastore workspaceblobstore: was not created by msggan-aml provision",
        "Nothing to delete.",
    ]
    assert list(azure.cloud.computes) == ["msggan-gpu"]
    assert "workspaceblobstore" in azure.cloud.datastores


@pytest.mark.parametrize("args", [(), STORE])
def test_if_nothing_was_created_nothing_is_deleted(
    azure: AzureLocal, provision: Provision, args: tuple[str, ...]
) -> None:
    ended = provision("--delete", *args)
    assert (ended.exit_code, ended.stdout) == (0, "Nothing to delete.\n")
    assert provision("--delete", "--dry-run", "-o", "json", *args).json == {"plan": [], "applied": False}
    assert changing(azure) == []


def test_only_what_is_set_is_changed_of_an_existing_cluster(azure: AzureLocal, provision: Provision) -> None:
    azure.add_cluster("msggan-gpu", size="Standard_NC24ads_A100_v4", max_nodes=16)
    scale = azure.cloud.computes["msggan-gpu"]["properties"]["properties"]["scaleSettings"]
    scale |= {"minNodeCount": 1, "nodeIdleTimeBeforeScaleDown": "PT30M"}
    kept = provision("--yes", "-o", "json", *IMAGE)
    assert (kept.exit_code, actions(kept)["compute"]) == (0, "keep")
    assert azure.made("PUT", "/computes/") == []
    assert "Each machine, Standard_NC24ads_A100_v4 (1 GPU, 24 cores, 220 GB)" in provision("--dry-run", *IMAGE).stdout
    changed = provision("--yes", "-o", "json", *IMAGE, "--max-nodes", "8")
    assert changed.exit_code == 0, changed.stderr
    assert changed.json["plan"][0]["reason"] == "was not created by msggan-aml provision"
    scale = azure.cloud.computes["msggan-gpu"]["properties"]["properties"]["scaleSettings"]
    assert scale == {"minNodeCount": 1, "maxNodeCount": 8, "nodeIdleTimeBeforeScaleDown": "PT30M"}


def test_an_error_that_only_the_created_cluster_has_is_exit_5(azure: AzureLocal, provision: Provision) -> None:
    azure.cloud.subscription_role, azure.cloud.checks_low_priority = None, False
    azure.cloud.sizes = [replace(size, low_priority=False) for size in azure.cloud.sizes]
    ended = provision("--yes", "-o", "json", *IMAGE, "--low-priority")
    assert ended.exit_code == 5, ended.stderr
    assert "UnsupportedVMSizeForLowPriority" in ended.json["error"]["message"]
    assert ended.json["error"]["hint"].startswith("Use dedicated machines, --no-low-priority")


def test_without_a_role_in_the_subscription_size_and_quota_are_not_checked(
    azure: AzureLocal, provision: Provision
) -> None:
    azure.cloud.subscription_role = None
    created = provision("--yes", "-o", "json", *IMAGE)
    assert created.exit_code == 0, created.stderr
    assert created.json["plan"][0]["reason"] == (
        "VM size and quota were not checked, because your roles do not permit reading them in the subscription"
    )
    serverless = provision("--dry-run", "-o", "json", *IMAGE, "--instance-type", CLUSTER).json["plan"][0]["reason"]
    assert serverless.startswith("is serverless: no cluster is needed; VM size and quota were not checked")
    azure.cloud.role = "AzureML Data Scientist"
    kept = provision("--yes", "-o", "json", *IMAGE)
    assert (kept.exit_code, set(actions(kept).values())) == (0, {"keep"})


def test_low_priority_identity_and_region_are_sent(azure: AzureLocal, provision: Provision) -> None:
    args = ("--low-priority", "--identity", "system", "--location", "eastus", "--min-nodes", "1", *IMAGE)
    ended = provision("--yes", *args)
    assert ended.exit_code == 0, ended.stderr
    assert "1 of them costs money around the clock: 76.80 USD a month, until --min-nodes 0 or provision" in ended.stdout
    (sent,) = azure.made("PUT", "/computes/msggan-gpu")
    assert sent.body["identity"] == {"type": "SystemAssigned"}
    assert sent.body["properties"]["properties"]["vmPriority"] == "LowPriority"
    assert provision("--yes", "-o", "json", *args).json["plan"][0]["action"] == "keep"
    dedicated = provision("--yes", "-o", "json", "--no-low-priority", "--min-nodes", "1", *IMAGE)
    assert dedicated.exit_code == 3
    assert dedicated.json["plan"][0]["changes"] == {"low_priority": {"from": True, "to": False}}


def test_serverless_needs_no_cluster(azure: AzureLocal, provision: Provision) -> None:
    ended = provision("--yes", "-o", "json", "--instance-type", CLUSTER, *IMAGE)
    assert ended.json["plan"][0] == {
        "kind": "compute",
        "name": CLUSTER,
        "action": "keep",
        "changes": {},
        "reason": "is serverless: no cluster is needed",
    }
    assert azure.cloud.computes == {}


# --- The four environments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "base"),
    [
        ("mcr.microsoft.com/aifx/acpt:biweekly.{version}", "mcr.microsoft.com/aifx/acpt:biweekly.10"),
        (None, "mcr.microsoft.com/azureml/curated/acpt-pytorch-2.8-cuda12.6:10"),
    ],
)
def test_the_curated_environment_is_pinned_and_has_what_the_job_needs(
    azure: AzureLocal, provision: Provision, image: str | None, base: str
) -> None:
    azure.cloud.curated_image = image
    assert provision("--yes").exit_code == 0
    ((name, version),) = azure.cloud.environments
    created = azure.cloud.environments[name, version].properties
    context = created["build"]["contextUri"].partition(f"{azure.container}/")[2]
    assert name == "msggan"
    assert created["build"]["dockerfilePath"] == "Dockerfile"
    assert (
        created["description"] == f"For msggan: curated image {base.removeprefix('mcr.microsoft.com/azureml/curated/')}"
    )
    dockerfile = azure.blob(f"{context}Dockerfile")
    assert dockerfile is not None
    assert f"\nFROM {base}\n".encode() in dockerfile
    assert b"safetensors" in (azure.blob(f"{context}requirements.txt") or b"")


def test_if_the_curated_environment_is_withdrawn_others_are_named(azure: AzureLocal, provision: Provision) -> None:
    azure.cloud.curated_versions = ()
    ended = provision("--yes")
    assert ended.exit_code == 2
    assert "The registry azureml has no environment acpt-pytorch-2.8-cuda12.6 any more." in ended.stderr
    assert "--environment IMAGE:TAG" in ended.stderr


def test_every_edit_is_applied_and_nothing_unchanged_is_created_again(
    azure: AzureLocal, provision: Provision, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM python:3.11-slim\n")
    (folder / ".env").write_text("PASSWORD=1\n")
    (tmp_path / "conda.yml").write_text("dependencies: [python=3.11]\n")
    ways = ("python:3.11-slim", "conda.yml", "python:3.11-slim+conda.yml", "mine")
    for way in ways:
        assert provision("--yes", "--environment", way).exit_code == 0
    assert len(azure.cloud.environments) == 4
    azure.recording.clear()
    for way in ways:
        assert actions(provision("--yes", "-o", "json", "--environment", way))["environment"] == "keep"
    assert changing(azure) == []

    (folder / "Dockerfile").write_text("FROM python:3.12-slim\n")
    (tmp_path / "conda.yml").write_text("dependencies: [python=3.12]\n")
    for way in ways:
        assert provision("--yes", "--environment", way).exit_code == 0
    assert len(azure.cloud.environments) == 7  # the image alone is what it was
    uploaded = azure.blobs_below("msggan/environments/")
    assert {path.rpartition("/")[2] for path in uploaded} == {"Dockerfile"}
    conda = [created.properties.get("condaFile") for created in azure.cloud.environments.values()]
    assert conda.count("dependencies:\n- python=3.11\n") == 2


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("curatd", "must be curated, an existing file or folder, or an image with its tag"),
        ("pytorch/pytorch", "or an image with its tag"),
        ("python:latest", "`latest` is another image after each update"),
        ("nowhere.yml", "cannot be read as a conda file: No such file or directory"),
        ("empty.yml", "is not a conda file: it has no list of dependencies"),
        ("broken.yml", "cannot be read as a conda file"),
        ("nothing", "has no Dockerfile"),
        ("many", "has 101 files; Azure ML allows 100"),
        ("large", "has 1.0 MiB; Azure ML allows 1 MiB"),
        ("linked", "is a link, which cannot be uploaded"),
        ("Upper:1+also.yml", "or an image with its tag"),
    ],
)
def test_an_invalid_environment_is_refused(
    azure: AzureLocal, provision: Provision, tmp_path: Path, said: str, complaint: str
) -> None:
    (tmp_path / "empty.yml").write_text("name: x\n")
    (tmp_path / "broken.yml").write_text("a: [\n")
    for name in ("nothing", "many", "large", "linked"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("Dockerfile" if name != "nothing" else "other")).write_text("FROM x:1\n")
    for number in range(100):
        (tmp_path / "many" / str(number)).touch()
    (tmp_path / "large" / "much").write_bytes(bytes(2**20))
    (tmp_path / "linked" / "to").symlink_to(tmp_path / "empty.yml")
    ended = provision("--yes", "--environment", said)
    assert ended.exit_code == 2
    assert complaint in ended.stderr
    assert changing(azure) == []


# --- What can be wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "result"),
    [
        (
            "Standard_NC4as_T4_v2",
            ["is not offered in eastus", "Similar sizes: Standard_NC4as_T4_v3 (1 GPU, 4 cores, 28 GB)"],
        ),
        ("Standard_NC6", ["was retired by Azure in August 2023", "Sizes with a GPU: Standard_NC4as_T4_v3"]),
        ("Standard_NC6s_v3", ["was retired by Azure in September 2025"]),
    ],
)
def test_a_size_that_is_not_offered_is_refused(
    azure: AzureLocal, provision: Provision, size: str, result: list[str]
) -> None:
    ended = provision("--yes", "--vm-size", size)
    assert ended.exit_code == 2
    assert all(args in ended.stderr for args in result), ended.stderr
    assert changing(azure) == []


def test_an_insufficient_quota_is_reported_before_anything_is_created(azure: AzureLocal, provision: Provision) -> None:
    azure.cloud.quotas["Standard NCASv3_T4 Family"] = 0
    none = provision("--yes", "-o", "json")
    assert none.exit_code == 5
    assert none.json["error"]["code"] == "quota"
    assert none.json["error"]["message"] == (
        "1 machine Standard_NC4as_T4_v3 would need 4 cores of the quota Standard NCASv3_T4 Family in eastus, of which "
        "0 of 0 are used."
    )
    assert "Request more cores in Azure ML Studio" in none.json["error"]["hint"]
    azure.cloud.quotas["Standard NCASv3_T4 Family"] = 9
    few = provision("--yes", "--max-nodes", "3")
    assert few.exit_code == 5
    assert "--max-nodes 2 would fit with Standard_NC4as_T4_v3 in eastus." in few.stderr
    assert changing(azure) == []


@pytest.mark.parametrize(
    ("there", "wanted", "cores", "exit_code"), [(1, 3, 8, 0), (1, 4, 11, 5), (1, 4, 12, 0), (4, 4, 0, 0), (4, 1, 0, 0)]
)
def test_a_cluster_that_grows_needs_quota_for_the_machines_that_are_added(
    azure: AzureLocal, provision: Provision, *, there: int, wanted: int, cores: int, exit_code: int
) -> None:
    azure.add_cluster("msggan-gpu", max_nodes=there)
    azure.cloud.quotas["Standard NCASv3_T4 Family"] = cores
    ended = provision("--dry-run", "-o", "json", "--max-nodes", str(wanted))
    assert ended.exit_code == exit_code, ended.stderr
    if exit_code:
        assert ended.json["error"]["message"].startswith("3 machines Standard_NC4as_T4_v3 would need 12 cores of the ")
        assert "--max-nodes 3 would fit with Standard_NC4as_T4_v3 in eastus." in ended.json["error"]["hint"]


A100, H100 = "Standard_NC24ads_A100_v4", "Standard_NC40ads_H100_v5"


def test_of_several_sizes_the_first_with_quota_is_taken(azure: AzureLocal, provision: Provision) -> None:
    azure.cloud.quotas |= {"StandardNCADSA100v4Family": 0, "eastus/Standard NCASv3_T4 Family": 3}
    args = ("--vm-size", f"{A100},{CLUSTER}", "--location", "eastus,westus2", *IMAGE, "-o", "json")
    none = provision("--yes", *args[:2], *args[4:])
    assert (none.exit_code, changing(azure)) == (5, [])
    assert none.json["error"]["message"].splitlines() == [
        f"1 machine {A100} would need 24 cores of the quota StandardNCADSA100v4Family in eastus, of which 0 of 0 are "
        "used.",
        f"1 machine {CLUSTER} would need 4 cores of the quota Standard NCASv3_T4 Family in eastus, of which 0 of 3 are "
        "used.",
    ]
    created = provision("--yes", *args)
    assert created.exit_code == 0, created.stderr
    (item, *_) = created.json["plan"]
    assert (item["changes"]["vm_size"]["to"], item["changes"]["location"]["to"]) == (CLUSTER, "westus2")
    assert item["reason"].startswith(f"{CLUSTER} in westus2 is the first that can be used; 1 machine {A100} would need")
    assert created.json["cost"]["price"]["per_hour"] == 0.526
    (sent,) = azure.made("PUT", "/computes/msggan-gpu")
    assert (sent.body["location"], sent.body["properties"]["properties"]["vmSize"]) == ("westus2", CLUSTER)
    azure.cloud.quotas.clear()
    assert actions(provision("--yes", *args))["compute"] == "keep"
    other = provision("--yes", "--vm-size", f"{A100},{H100}", *IMAGE, "-o", "json")
    assert (other.exit_code, actions(other)["compute"]) == (3, "refuse")


def test_if_azure_refuses_a_size_for_quota_or_capacity_the_next_is_tried(
    azure: AzureLocal, provision: Provision
) -> None:
    azure.cloud.subscription_role, azure.cloud.quota_by_node = None, True
    azure.cloud.quotas["StandardNCADSA100v4Family"], azure.cloud.out_of_capacity = 0, {H100}
    args = ("--min-nodes", "1", *IMAGE, "-o", "json")
    created = provision("--yes", "--vm-size", f"{A100},{H100},{CLUSTER}", *args)
    assert created.exit_code == 0, created.stderr
    assert "If Azure refuses it for lack of quota or capacity: Each machine, Standard_NC40ads_H100_v5" in created.stderr
    (item, *_) = created.json["plan"]
    assert item["changes"]["vm_size"]["to"] == CLUSTER
    refused_a100, refused_h100, unchecked = item["reason"].split("; ")[1:]
    assert refused_a100.startswith(f"{A100} in eastus: Creating the cluster msggan-gpu: ClusterMinNodesExceedCoreQuota")
    assert refused_h100.startswith(f"{H100} in eastus: Creating the cluster msggan-gpu: OutOfCapacity")
    assert unchecked.startswith("VM size and quota were not checked")
    assert f"{refused_a100}. Trying {H100} in eastus …" in created.stderr
    assert azure.cloud.computes["msggan-gpu"]["properties"]["properties"]["vmSize"] == CLUSTER

    none = provision("--yes", "--compute", "other", "--vm-size", f"{A100},{H100}", *args)
    assert (none.exit_code, none.json["error"]["code"]) == (5, "quota")
    assert [line.split(" ")[0] for line in none.json["error"]["message"].splitlines()] == [A100, H100]


def test_the_errors_of_an_existing_cluster_are_in_the_plan(azure: AzureLocal, provision: Provision) -> None:
    azure.add_cluster("msggan-gpu")
    azure.cloud.cluster_errors["msggan-gpu"] = ("OutOfCapacity", "There is no capacity.")
    kept = provision("--yes", "-o", "json", *IMAGE).json["plan"][0]
    assert (kept["action"], kept["reason"]) == (
        "keep",
        "is up to date; it reports OutOfCapacity: There is no capacity.",
    )
    changed = provision("--yes", "-o", "json", "--max-nodes", "2", *IMAGE)
    assert (changed.exit_code, actions(changed)["compute"]) == (0, "change")
    assert changed.json["plan"][0]["reason"].endswith("; it reports OutOfCapacity: There is no capacity.")


def test_a_name_taken_by_another_kind_of_compute_is_refused(azure: AzureLocal, provision: Provision) -> None:
    azure.add_compute_instance("gpu")
    azure.add_compute_instance("gpu-2")
    ended = provision("--yes", "-o", "json", "--compute", "gpu")
    assert ended.exit_code == 3
    assert ended.json["error"]["code"] == "refused"
    assert "another kind of compute (computeinstance)" in ended.json["error"]["message"]
    assert ended.json["error"]["hint"] == "Use another name: --compute gpu-3"
    assert changing(azure) == []


def test_an_unreachable_storage_account_is_refused(azure: AzureLocal, provision: Provision) -> None:
    ended = provision("--yes", "-o", "json", "--storage-account", "nostore", "--storage-container", "images")
    assert ended.exit_code == 3
    assert actions(ended)["container"] == "refuse"
    assert "az storage account list" in ended.stderr
    assert changing(azure) == []


def test_without_access_to_blobs_the_required_role_is_named(azure: AzureLocal, provision: Provision) -> None:
    azure.cloud.blob_role = None
    ended = provision("--yes", *STORE)
    assert ended.exit_code == 4
    assert (
        f'az role assignment create --role "Storage Blob Data Contributor" --assignee {azure.cloud.object_id} '
        '--scope "$(az storage account show --name otherstore --query id --output tsv)"'
    ) in ended.stderr.splitlines()
    assert changing(azure) == []


def test_an_account_that_disallows_keys_is_reported(
    azure: AzureLocal, provision: Provision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSGGAN_STORAGE_KEY", KEY)
    azure.cloud.shared_keys = False
    ended = provision("--yes", *STORE)
    assert ended.exit_code == 4
    assert "otherstore accepts no keys and no SAS (KeyBasedAuthenticationNotPermitted)" in ended.stderr
    assert "Unset MSGGAN_STORAGE_KEY to use identities." in ended.stderr
    assert 'az role assignment create --role "Storage Blob Data Contributor"' in ended.stderr
    assert changing(azure) == []


def test_if_the_workspace_s_account_disallows_keys_the_alternative_is_named(
    azure: AzureLocal, provision: Provision
) -> None:
    azure.cloud.shared_keys = False
    ended = provision("--yes")
    assert ended.exit_code == 4
    named = "--name msggan-ws --resource-group msggan-rg"
    assert f"az ml workspace update {named} --system-datastores-auth-mode identity" in ended.stderr.splitlines()
    assert f'--scope "$(az ml workspace show {named} --query storage_account --output tsv)"' in ended.stderr
    assert changing(azure) == []


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AuthorizationFailure"), (409, "PublicAccessNotPermitted"), (403, "AuthorizationSourceIPMismatch")],
)
def test_a_firewall_is_named_with_its_account_and_is_no_missing_role(
    azure: AzureLocal, provision: Provision, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    azure.cloud.firewalled["otherstore"] = (status, code)
    for variables in ({}, {"MSGGAN_STORAGE_KEY": KEY}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        ended = provision("--yes", *STORE)
        assert ended.exit_code == 4
        assert "otherstore" in ended.stderr.splitlines()[1]
        assert f"({code})" in ended.stderr
        assert "az storage account network-rule add --account-name otherstore --ip-address ADDRESS" in ended.stderr
        assert "az role assignment" not in ended.stderr
    assert changing(azure) == []


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("not a key", (2, "MSGGAN_STORAGE_KEY: is not an account key as the Azure portal shows it.")),
        (KEY, (4, "otherstore refused the key or SAS: it is wrong, malformed or expired, or the clock of")),
    ],
)
def test_a_malformed_or_wrong_key_is_reported(
    azure: AzureLocal, provision: Provision, monkeypatch: pytest.MonkeyPatch, key: str, expected: tuple[int, str]
) -> None:
    exit_code, message = expected
    monkeypatch.setenv("MSGGAN_STORAGE_KEY", key)
    ended = provision("--yes", *STORE)
    assert ended.exit_code == exit_code, ended.stderr
    assert message in ended.stderr
    assert "MSGGAN_STORAGE_KEY" in ended.stderr
    assert "az storage account keys list --account-name otherstore" in ended.stderr
    assert key not in ended.stderr
    assert "az role assignment" not in ended.stderr
    assert changing(azure) == []


def test_a_rotated_key_is_updated_in_the_datastore(
    azure: AzureLocal, provision: Provision, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("--storage-account", "otherstore", "--storage-container", "images", *IMAGE)
    sas = azure.cloud.blobs.signed_container_url("otherstore", "images", "rlwc").partition("?")[2]
    monkeypatch.setenv("MSGGAN_STORAGE_SAS", sas)
    assert provision("--yes", *args).exit_code == 0
    assert actions(provision("--yes", "-o", "json", *args))["datastore"] == "keep"
    azure.cloud.datastores["msggan"]["credentials"]["secrets"]["sasToken"] = sas.replace("sp=", "sp=x")
    ended = provision("--yes", "-o", "json", *args)
    assert ended.exit_code == 0, ended.stderr
    (item,) = [item for item in ended.json["plan"] if item["kind"] == "datastore"]
    assert (item["action"], item["changes"]) == (
        "change",
        {"credentials": {"from": "expired", "to": "SAS"}},
    )
    assert azure.cloud.datastores["msggan"]["credentials"]["secrets"]["sasToken"] == sas


def test_an_invalid_datastore_name_is_refused(azure: AzureLocal, provision: Provision) -> None:
    ended = provision("--yes", "-o", "json", *STORE, "--datastore", "My-Store")
    assert ended.exit_code == 3
    assert ended.json["error"]["hint"] == "Use another name: --datastore my_store"
    assert changing(azure) == []


def test_a_datastore_of_another_container_is_refused(azure: AzureLocal, provision: Provision) -> None:
    ended = provision("--yes", "-o", "json", *STORE, "--datastore", "workspaceblobstore")
    assert ended.exit_code == 3
    assert ended.json["error"]["hint"] == "Use another name: --datastore workspaceblobstore_2"
    missing = provision("--yes", "--datastore", "nowhere")
    assert missing.exit_code == 2
    assert "No datastore nowhere in workspace 'msggan-ws'." in missing.stderr
    assert changing(azure) == []


@pytest.mark.parametrize(
    ("role", "exit_code", "command"),
    [
        (None, 4, "AzureML Data Scientist"),
        ("AzureML Data Scientist", 4, "AzureML Compute Operator"),
        ("Reader", 4, None),
    ],
)
def test_without_a_role_the_command_to_assign_it_is_shown(
    azure: AzureLocal, provision: Provision, role: str | None, exit_code: int, command: str | None
) -> None:
    azure.cloud.role = role
    ended = provision("--yes", *IMAGE)
    assert ended.exit_code == exit_code
    assert azure.cloud.computes == {}
    if command:
        assert (
            f'az role assignment create --role "{command}" --assignee {azure.cloud.object_id} '
            f"--scope {azure.cloud.scope}"
        ) in ended.stderr.splitlines()


def test_without_sign_in_the_error_says_how_to_sign_in(
    azure: AzureLocal, provision: Provision, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"):
        monkeypatch.delenv(name)
    azure.write_az(tmp_path / "bin", signed_in=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    ended = provision("--yes", "-o", "json")
    assert ended.exit_code == 4
    assert ended.json["error"]["code"] == "auth"
    assert ended.json["error"]["message"].startswith("Not signed in to Azure.\nAzure CLI: ")
    assert ended.json["error"]["hint"].startswith("Run: az login\n")


def test_the_account_signed_in_with_the_azure_cli_is_named_and_the_cli_is_asked_once_for_each_audience(
    azure: AzureLocal, provision: Provision, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"):
        monkeypatch.delenv(name)
    az = azure.write_az(tmp_path / "bin")
    az.write_text(az.read_text().replace("\n", f"\necho \"$@\" >> '{tmp_path / 'asked'}'\n", 1))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    ended = provision("--dry-run")
    assert ended.exit_code == 0, ended.stderr
    assert "Workspace msggan-ws (group msggan-rg) as somebody@example.org (Azure CLI)." in ended.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == len(set(asked)), asked


@pytest.mark.parametrize(
    "name", ["AZUREML_ARM_SUBSCRIPTION", "AZUREML_ARM_RESOURCEGROUP", "AZUREML_ARM_WORKSPACE_NAME"]
)
def test_a_missing_workspace_is_named_with_its_group_and_subscription(
    azure: AzureLocal, provision: Provision, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "elsewhere")
    ended = provision("--yes", "-o", "json")
    assert ended.exit_code == 2
    assert ended.json["error"]["code"] == "workspace"
    variables = {**azure.variables, name: "elsewhere"}
    assert ended.json["error"]["message"] == (
        f"No workspace {variables['AZUREML_ARM_WORKSPACE_NAME']} in resource group "
        f"{variables['AZUREML_ARM_RESOURCEGROUP']} of subscription {variables['AZUREML_ARM_SUBSCRIPTION']} "
        f"(set in variable AZUREML_ARM_WORKSPACE_NAME)."
    )


def test_without_a_workspace_the_error_says_how_to_set_one(tmp_path: Path) -> None:
    ended = run_in(tmp_path, "msggan-aml", "provision", "--yes")
    assert ended.exit_code == 2
    assert "No Azure ML workspace is configured." in ended.stderr
    assert "config.json" in ended.stderr


# --- Faults -----------------------------------------------------------------------------------------------------------


def test_requests_to_a_busy_service_are_retried(azure: AzureLocal, provision: Provision) -> None:
    azure.fault("GET", "/vmSizes", status=429, retry_after=0.1)
    azure.fault("PUT", "/computes/", status=503)
    azure.fault("PUT", "/environments/", drop="before")
    assert provision("--yes", *IMAGE).exit_code == 0
    assert list(azure.cloud.computes) == ["msggan-gpu"]


@pytest.mark.parametrize("methods", [("PUT",), pytest.param(("GET", "HEAD", "POST", "PUT"), marks=pytest.mark.slow)])
def test_a_connection_cut_at_any_request_leaves_nothing_unreported(
    azure: AzureLocal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, methods: tuple[str, ...]
) -> None:
    from orchestration.azure.target import AzureTarget

    use(azure, monkeypatch)
    flags = {"storage_account": "otherstore", "storage_container": "images", "environment": IMAGE[1]}
    settings = read_settings(flags, folder=tmp_path, environ=os.environ)

    def run() -> None:
        AzureTarget(settings, Reporter(info=lambda line: None), wait_factor_s=0).provision()

    run()
    essential = [one for one in azure.requests if not one.host.startswith(("login.", "prices."))]
    requested = {(one.method, one.path): None for one in essential}
    assert len(requested) >= 12
    assert {method for method, _ in requested} <= {"GET", "HEAD", "POST", "PUT"}
    for method, path in [one for one in requested if one[0] in methods]:
        for drop in ("before", "after"):
            azure.reset()
            azure.fault(method, f"{path}(\\?|$)", drop=drop, times=1000)
            with pytest.raises(MsgganError) as failed:
                run()
            assert failed.value.exit_code in (1, 3), (method, path)
            result = str(failed.value)
            for name, created in (
                ("compute msggan-gpu", "msggan-gpu" in azure.cloud.computes),
                ("datastore msggan", "msggan" in azure.cloud.datastores),
                ("environment msggan:", bool(azure.cloud.environments)),
            ):
                reported = [line for line in result.splitlines() if name in line and not line.startswith("Not done")]
                assert not created or reported or "PUT" not in {r.method for r in azure.requests[-1:]}, (
                    method,
                    path,
                    result,
                )
    azure.reset()


# --- Secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["MSGGAN_STORAGE_KEY", "MSGGAN_STORAGE_SAS"])
def test_a_secret_goes_into_the_datastore_s_credentials_and_nowhere_else(
    azure: AzureLocal, provision: Provision, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    secret = azure.account_key
    if variable == "MSGGAN_STORAGE_SAS":
        secret = azure.cloud.blobs.signed_container_url("msgganstore", "images", "rlwc").partition("?")[2]
    monkeypatch.setenv(variable, secret)
    args = ("--storage-account", "msgganstore", "--storage-container", "images", *IMAGE)
    azure.cloud.blobs.container("msgganstore", "images")
    result = []
    for more in (("--dry-run",), ("--yes",), ("--yes", "--max-nodes", "2"), ("--yes", "--vm-size", "x"), ("--delete",)):
        result.append(provision(*args, *more))
    assert [ended.exit_code for ended in result] == [0, 0, 0, 2, 2]
    sent = [one for one in azure.requests if secret in json.dumps(one.body, default=repr)]
    assert [(one.method, one.path.rpartition("/")[2]) for one in sent] == [("PUT", "msggan")]
    (put,) = sent
    credentials: dict[str, Any] = put.body["properties"].pop("credentials")
    assert secret in credentials["secrets"].values()
    assert secret not in json.dumps(put.body)
    for ended in result:
        assert secret not in ended.stdout + ended.stderr
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes()


def test_a_secret_on_the_command_line_is_refused_and_not_repeated(azure: AzureLocal, provision: Provision) -> None:
    ended = provision("--storage-account", KEY, "--storage-container", "images")
    assert ended.exit_code == 2
    assert KEY not in ended.stdout + ended.stderr
    assert azure.requests == []


@pytest.mark.parametrize(("status", "exit_code"), [(401, 4), (403, 4), (404, 1)])
def test_a_cluster_whose_progress_cannot_be_read_is_possibly_created(
    azure: AzureLocal, provision: Provision, status: int, exit_code: int
) -> None:
    azure.fault("GET", "/computeOperationsStatus/", status=status, times=100)
    ended = provision("--yes", "-o", "json", *IMAGE)
    assert ended.exit_code == exit_code
    assert "msggan-gpu" in azure.cloud.computes
    lines = ended.json["error"]["hint"].splitlines()
    assert "Possibly done or in progress: create compute msggan-gpu." in lines
    assert any(line.startswith("Not done: create environment msggan:") for line in lines)


# --- Stopping ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_reports_what_is_done(azure: AzureLocal, tmp_path: Path) -> None:
    azure.fault("GET", "/computeOperationsStatus/", delay=3)
    with subprocess.Popen(
        command_line("msggan-aml", "provision", "--yes", "-o", "json", *IMAGE, python=fast_python()),
        cwd=tmp_path,
        env=environment(**azure.variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        wait_for(lambda: azure.made("GET", "/computeOperationsStatus/"), process)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    ended = Ended(process.returncode, stdout, stderr)
    assert ended.json["error"]["code"] == "interrupted"
    assert ended.json["error"]["message"] == "Stopped. Azure completes the operation in progress."
    lines = ended.json["error"]["hint"].splitlines()
    assert lines[0] == "Possibly done or in progress: create compute msggan-gpu."
    assert lines[1].startswith("Not done: create environment msggan:")
    assert lines[2] == "Check the state: msggan-aml provision --dry-run"


def test_the_signed_in_account_is_reported_before_the_sdk_is_imported(azure: AzureLocal, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from orchestration.azure.client import Client; from orchestration.settings import read_settings\n"
        "from orchestration.status import Reporter\n"
        "Client(read_settings({}, folder=Path.cwd(), environ=os.environ), Reporter(print)).identity\n"
        "print('azure.ai.ml' in sys.modules)"
    )
    result = subprocess.check_output(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(**azure.variables), encoding="utf-8"
    )
    assert result.splitlines() == [
        f"Workspace msggan-ws (group msggan-rg) as {azure.cloud.client_id} (environment variables).",
        "False",
    ]


# --- Policies and networks --------------------------------------------------------------------------------------------


def test_a_policy_that_requires_tags_is_met_by_tag(azure: AzureLocal, provision: Provision) -> None:
    azure.cloud.required_tags = {"team", "cost center"}
    refused = provision("--yes", "--tag", "team=vision", *IMAGE)
    assert refused.exit_code == 4
    assert "the policy Require the tag cost center does not allow it (RequestDisallowedByPolicy)." in refused.stderr
    assert "--tag NAME=VALUE" in refused.stderr
    assert provision("--yes", "--tag", "team=vision", "--tag", "cost center=42", *IMAGE, *STORE).exit_code == 0
    own = {"team": "vision", "cost center": "42", "msggan": "provisioned"}
    assert azure.cloud.computes["msggan-gpu"]["tags"] == own
    assert azure.cloud.datastores["msggan"]["tags"] == own
    (version,) = azure.cloud.environments.values()
    assert version.properties["tags"] == own
    changed = provision("--yes", "--tag", "owner=f", *IMAGE, "-o", "json")
    assert changed.json["plan"][0]["changes"] == {"tag owner": {"from": None, "to": "f"}}
    assert azure.cloud.computes["msggan-gpu"]["tags"] == {**own, "owner": "f"}


def test_a_closed_workspace_without_a_builder_is_a_warning(
    azure: AzureLocal, provision: Provision, tmp_path: Path
) -> None:
    azure.cloud.public_network_access = "Disabled"
    (tmp_path / "conda.yml").write_text("dependencies: [python=3.10]\n")
    args = ("--dry-run", "--environment", "python:3.11-slim+conda.yml")
    assert "az ml workspace update --name msggan-ws --resource-group msggan-rg" in provision(*args).stdout
    azure.cloud.image_build_compute = "builder"
    assert "workspace update" not in provision(*args).stdout
