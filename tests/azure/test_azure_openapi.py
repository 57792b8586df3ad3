"""The bodies that we send to Azure conform to Microsoft's OpenAPI description of the service.

The description is read from the folder that MSGGAN_TEST_OPENAPI names. It is of one release, 2023-04-01-preview; the
SDK uses several newer ones.
"""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from azure_local import AzureLocal
from azure_local.cloud import account_key
from azure_local.messages import Recorded
from support.azure_commands import sdk_warnings
from support.images import draw_tiny_images
from support.openapi import Description

from msggan.commands.program import run_program
from msggan.config import TrainConfig
from orchestration.commands.main import msggan_aml
from orchestration.settings import read_settings
from orchestration.spec import RunSpec
from orchestration.sweeps.space import read_space
from orchestration.sweeps.spec import SweepSpec
from orchestration.sweeps.trials import EarlyStopping

FOLDER = os.environ.get("MSGGAN_TEST_OPENAPI", "")
RELEASE = "2023-04-01-preview"
PROVIDER = "specification/machinelearningservices/resource-manager/Microsoft.MachineLearningServices"

pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="MSGGAN_TEST_OPENAPI names no folder with Azure's OpenAPI description"),
    sdk_warnings,
]

WHAT = ["--resolution", "8", "--latent-size", "8", "--batch-size", "4", "--kimg", "0.04"]
STORE = ["--storage-account", "otherstore", "--storage-container", "images"]
SERVERLESS = ["--instance-type", "Standard_NC4as_T4_v3", "--low-priority", "--timeout-hours", "2.5"]
FOLDER_IN_STORE = "azureml://datastores/workspaceblobstore/paths/photos/"


@pytest.fixture(scope="module")
def described() -> Description:
    folder = Path(FOLDER) / PROVIDER / "preview" / RELEASE
    return Description(folder / "mfe.json", folder / "machineLearningServices.json")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and two custom environments."""
    folder = tmp_path_factory.mktemp("openapi")
    draw_tiny_images(folder / "tiny")
    (folder / "conda.yml").write_text("dependencies: [python=3.11, pip]\n")
    (folder / "image").mkdir()
    (folder / "image" / "Dockerfile").write_text("FROM python:3.11-slim\n")
    return folder


@pytest.fixture(scope="module")
def sent(_azure_process: AzureLocal, workdir: Path) -> Iterator[list[Recorded]]:
    """Every request that can change something, of all the commands that send one."""
    azure = _azure_process
    azure.reset()
    azure.hold_jobs()
    azure.put_blob("photos/one.png", b"1")
    azure.cloud.blobs.container("otherstore", "images")
    sas = azure.cloud.blobs.signed_container_url("otherstore", "images", "rlwc").partition("?")[2]
    on = ["--datastore", "by_identity"]
    commands: list[tuple[list[str], dict[str, str]]] = [
        (["provision", "--yes", "--identity", "system", "--idle-minutes", "5"], {}),
        (["provision", "--yes", "--max-nodes", "3", *STORE, *on, "--environment", "image"], {}),
        (["provision", "--yes", *STORE, "--datastore", "by_sas", "--environment", "conda.yml"], {"SAS": sas}),
        (
            ["provision", "--yes", *STORE, "--compute", "cheap", "--low-priority", "--environment", "python:3.11-slim"],
            {"KEY": account_key("otherstore")},
        ),
        (["submit", "--yes", "--detach", "--data", "tiny", "--name", "one", *WHAT], {}),
        (
            ["submit", "--yes", "--detach", "--data", FOLDER_IN_STORE, "--name", "two", *on, *WHAT, *SERVERLESS],
            {},
        ),
        (["cancel", "one"], {}),
        (["provision", "--yes", "--delete"], {}),
    ]
    with pytest.MonkeyPatch.context() as patch:
        use(azure, patch, workdir)
        for args, secrets in commands:
            with patch.context() as secretly:
                for name, value in secrets.items():
                    secretly.setenv(f"MSGGAN_STORAGE_{name}", value)
                assert run_program(msggan_aml, name="msggan-aml", argv=args) == 0, args
        yield [one for one in azure.requests if one.method != "GET" and one.host == "management.azure.com"]
    azure.end_jobs()
    assert azure.complaints() == []
    gc.collect()


def use(azure: AzureLocal, patch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("MSGGAN_", "AZURE_", "AZUREML_", "MSI_", "IDENTITY_")):
            patch.delenv(name)
    for name, value in azure.variables.items():
        patch.setenv(name, value)
    patch.chdir(folder)


def kind_of(request: Recorded) -> str:
    """What a request is about: PUT jobs, POST startPendingUpload …"""
    parts = request.path.split("/workspaces/")[1].split("/")[1:]
    return f"{request.method} {parts[0] if request.method != 'POST' else parts[-1]}"


def test_every_request_that_changes_something_is_described(sent: list[Recorded], described: Description) -> None:
    assert {kind_of(request) for request in sent} == {
        *("PUT computes", "PUT datastores", "PUT environments", "PUT codes", "PUT jobs"),
        *("POST listSecrets", "POST cancel"),
        *("DELETE computes",),
    }
    found = {
        f"{request}: {complaint}"
        for request in sent
        for complaint in described.complaints(request.method, request.path, request.body)
    }
    assert found == set()


def test_the_api_versions_are_these(sent: list[Recorded]) -> None:
    assert {kind_of(request): request.query["api-version"] for request in sent if request.method == "PUT"} == {
        "PUT computes": "2023-08-01-preview",
        "PUT datastores": "2024-10-01-preview",
        "PUT environments": RELEASE,
        "PUT codes": "2023-04-01",
        "PUT jobs": "2025-01-01-preview",
    }


PLANS = {
    "a folder here, on a cluster": ("tiny", {}),
    "a folder of a datastore, serverless and spot": (
        FOLDER_IN_STORE,
        {"instance_type": "Standard_NC4as_T4_v3", "low_priority": True},
    ),
    "a data asset": ("azureml:flowers:3", {"datastore": "other", "experiment": "flowers"}),
    "with tags, variables and services": (
        FOLDER_IN_STORE,
        {
            "tags": ("team=vision",),
            "env": ("NCCL_DEBUG=INFO",),
            "services": "ssh,vscode,jupyter,tensorboard",
            "ssh_key": "id.pub",
        },
    ),
    "a blob": ("https://account.blob.core.windows.net/photos/all.zip", {"timeout_hours": "0.5"}),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_body_of_a_dry_run_is_described(
    name: str, described: Description, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workdir)
    (workdir / "id.pub").write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 ann@example.org\n")
    data, flags = PLANS[name]
    workspace = {
        "AZUREML_ARM_SUBSCRIPTION": "6b1f4b0c-7a57-4d0b-8f0e-2f6f0d6f1c01",
        "AZUREML_ARM_RESOURCEGROUP": "group",
        "AZUREML_ARM_WORKSPACE_NAME": "workspace",
    }
    from orchestration.azure.jobs import IDENTITY_TO_RESOLVE
    from orchestration.azure.target import AzureTarget  # which loads the SDK

    target = AzureTarget(read_settings(flags, folder=workdir, environ=workspace))
    (request,) = target.plan_run(RunSpec(TrainConfig(resolution=8), data, "one"))["requests"]
    assert request["body"]["properties"].pop("identity") == {"identityType": IDENTITY_TO_RESOLVE}  # no type of its own
    request["body"]["properties"]["inputs"]["data"].pop("mode")  # nor has this
    assert described.complaints(request["method"], request["path"], request["body"]) == []


SAMPLINGS = {"random": EarlyStopping("bandit", 2, 1, slack_factor=0.2), "sobol": EarlyStopping("median", 3)} | {
    "grid": EarlyStopping("truncation", percentage=20),
    "bayesian": EarlyStopping(),
}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_body_of_a_sweep_is_described(sampling: str, described: Description) -> None:
    from support.azure_jobs import SCOPE, job_plan

    from orchestration.azure.sweep_jobs import build_sweep_body  # which loads the SDK

    config = TrainConfig(resolution=8)
    over = ["loss", "mirror"] if sampling in ("grid", "bayesian") else ["g_lr", "beta2", "loss", "mirror"]
    space = read_space(over, config)
    spec = SweepSpec(config, "one", "one", space, sampling=sampling, trials=4, early_stopping=SAMPLINGS[sampling])
    body = build_sweep_body(job_plan(), spec, SCOPE)
    assert described.complaints("PUT", f"{SCOPE}/jobs/one", body) == []


# --- The validator finds what is wrong --------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], object]
WRONG: dict[str, tuple[str, Change, str]] = {
    "an unknown property": ("jobs", lambda job: job.update(colour="red"), "colour: is unknown"),
    "one deeper": ("jobs", lambda job: job["resources"].update(gpus=1), "resources.gpus: is unknown"),
    "one that a sibling has": ("jobs", lambda job: job["outputs"]["run"].update(value="1"), "run.value: is unknown"),
    "a missing one": ("jobs", lambda job: job.pop("command"), "command: is missing"),
    "one that an ancestor needs": ("datastores", lambda store: store.pop("credentials"), "credentials: is missing"),
    "a text that is empty": ("jobs", lambda job: job.update(command=""), "command: is too short"),
    "a pattern": ("jobs", lambda job: job["resources"].update(shmSize="8"), "shmSize: '8' does not match"),
    "a type": ("jobs", lambda job: job["tags"].update(n=1), "tags.n: must be of type string, not 1"),
    "true for a number": (
        "computes",
        lambda compute: compute["properties"]["scaleSettings"].update(maxNodeCount=True),
        "maxNodeCount: must be of type integer, not True",
    ),
    "a duration": ("jobs", lambda job: job["limits"].update(timeout="24h"), "timeout: '24h' is no duration"),
    "an enum": (
        "jobs",
        lambda job: job["inputs"]["data"].update(mode="Sometimes"),
        "mode: must be one of ReadOnlyMount, ReadWriteMount, Download",
    ),
    "an enum in another file": (
        "computes",
        lambda compute: compute["properties"].update(vmPriority="Cheap"),
        "vmPriority: must be one of Dedicated, LowPriority",
    ),
    "a discriminator": ("jobs", lambda job: job.update(jobType="Order"), "jobType: 'Order' names nothing"),
    "none at all": ("jobs", lambda job: job["inputs"]["data"].pop("jobInputType"), "jobInputType: None names nothing"),
    "what is read-only": ("jobs", lambda job: job.update(status="Completed"), "status: is read-only"),
    "null": ("environments", lambda one: one.update(isArchived=None), "isArchived: may not be null"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_validator_finds(name: str, sent: list[Recorded], described: Description) -> None:
    kind, change, complaint = WRONG[name]
    request = next(one for one in sent if kind_of(one) == f"PUT {kind}")
    body = copy.deepcopy(request.body)
    change(body["properties"])
    assert complaint in "\n".join(described.complaints(request.method, request.path, body))


def test_the_validator_finds_a_path_that_is_not_described(described: Description) -> None:
    (found,) = described.complaints("PUT", "/subscriptions/s/resourceGroups/g/vms/one", {})
    assert "is not in the description" in found
