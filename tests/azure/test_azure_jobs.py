"""The body, names and tags of a run's job, and its code snapshot. No network."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from azure.ai.ml import load_job
from azure.ai.ml._restclient.arm_ml_service.models import JobBase
from azure.ai.ml.entities import Job
from hypothesis import given, settings
from hypothesis import strategies as st
from support.azure_jobs import BODY, SCOPE, SERVERLESS, SETTINGS, SIZE, SPEC, job_plan

import msggan
from msggan.config import TrainConfig
from msggan.data.sources import FORMAT_OF_SUFFIX
from msggan.errors import UsageError
from orchestration.azure import key_vault
from orchestration.azure.blobs import hash_files
from orchestration.azure.data import IMAGES
from orchestration.azure.history import Details, has_ended, state_of
from orchestration.azure.jobs import (
    IDENTITY_TO_RESOLVE,
    MAX_TAGS,
    JobData,
    as_yaml,
    build_body,
    build_job,
    command_line,
    configuration_hash,
    connect_command,
    job_identity,
    job_name,
    run_folder,
)
from orchestration.azure.submission import build_snapshot
from orchestration.azure.sweep_jobs import build_sweep_body
from orchestration.spec import RunSpec
from orchestration.sweeps.space import read_space
from orchestration.sweeps.spec import SweepSpec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# --- The body ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "body"),
    [
        ({}, BODY),
        ({"low_priority": True}, BODY),  # a cluster's machines are what the cluster says
        ({"instance_type": SIZE}, SERVERLESS),
        (
            {"instance_type": SIZE, "low_priority": True},
            {**SERVERLESS, "queueSettings": {"jobTier": "Spot"}},
        ),
        ({"description": "For the spring catalogue."}, {**BODY, "description": "For the spring catalogue."}),
        ({"identity": "UserIdentity"}, {**BODY, "identity": {"identityType": "UserIdentity"}}),
        (
            {"timeout_hours": 504.0},
            {**BODY, "limits": {"timeout": "P21D", "jobLimitsType": "Command"}},
        ),
        (
            {"timeout_hours": 1e-9},
            {**BODY, "limits": {"timeout": "PT1S", "jobLimitsType": "Command"}},
        ),
        (
            {"data": JobData("azureml:flowers:3", "uri_file")},
            {
                **BODY,
                "inputs": {"data": {"uri": "azureml:flowers:3", "mode": "Download", "jobInputType": "uri_file"}},
            },
        ),
        (
            {"tags": {"msggan.git_commit": "abc", "msggan.git_dirty": "true"}},
            {
                **BODY,
                "tags": {"msggan.git_commit": "abc", "msggan.git_dirty": "true"},
                "properties": {"mlflow.source.git.commit": "abc", "azureml.git.dirty": "true"},
            },
        ),
    ],
    ids=[
        "cluster",
        "low-priority-cluster",
        "serverless",
        "spot",
        "description",
        "as-user",
        "longest",
        "shortest",
        "asset",
        "tags",
    ],
)
def test_the_body_matches_the_plan(changes: dict[str, Any], body: dict[str, Any]) -> None:
    plan = job_plan(**changes)
    before = copy.deepcopy(plan)
    assert build_body(plan, SCOPE) == {"properties": body}
    assert plan == before


def test_what_the_shell_would_split_or_expand_is_quoted() -> None:
    line = command_line(replace(job_plan(), spec=RunSpec(TrainConfig(background="#ffffff"), "x", "x")))
    assert line == (
        'python -m msggan.train --data "${{inputs.data}}" --run-dir "${{outputs.run}}" --background \'#ffffff\''
    )


def test_the_weights_to_start_from_are_an_input_that_the_run_reads_under_their_recorded_name() -> None:
    config, weights = (
        TrainConfig(init="photos@sha256:12ab"),
        "azureml://datastores/store/paths/msggan/init/1.safetensors",
    )
    plan = replace(job_plan(), spec=RunSpec(config, "x", "x"), init=JobData(weights, "uri_file"))
    assert command_line(plan) == (
        'python -m msggan.train --data "${{inputs.data}}" --init-file "${{inputs.init}}" --run-dir "${{outputs.run}}" '
        "--init photos@sha256:12ab"
    )
    inputs = build_body(plan, SCOPE)["properties"]["inputs"]
    assert inputs["init"] == {"uri": weights, "mode": "Download", "jobInputType": "uri_file"}


def test_more_tags_than_a_job_may_have_are_refused() -> None:
    wrong = job_plan(settings_tags={str(number): "x" for number in range(MAX_TAGS - 1)})
    with pytest.raises(UsageError) as error:
        build_job(wrong)
    assert error.value.problems == ("--tag: there are 49 tags; a job may have 50, of which 2 are msggan's own.",)
    build_job(job_plan(settings_tags={str(number): "x" for number in range(MAX_TAGS - 2)}))


def test_tags_and_variables_of_ones_own_are_in_the_body_beside_those_of_msggan() -> None:
    address = "https://my-vault.vault.azure.net/secrets/hf-token"
    env = {"NCCL_DEBUG": "INFO", "HF_TOKEN": f"@keyvault:{address}"}
    own = job_plan(settings_tags={"team": "vision", "msggan.run": "theirs"}, env=env)
    properties = build_body(own, SCOPE)["properties"]
    assert properties["tags"] == {"team": "vision", "msggan.run": "flowers"}
    assert properties["environmentVariables"] == {
        "PYTHONUNBUFFERED": "1",
        "NCCL_DEBUG": "INFO",
        "HF_TOKEN": f"@keyvault:{address}",
    }
    assert properties["command"].startswith('python key_vault.py python -m msggan.train --data "${{inputs.data}}"')


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n", "is a private key"),
        ("ssh-ed25519", "is not one public key"),
        ("ssh-ed25519 AAAA me\nssh-ed25519 BBBB you", "is not one public key"),
    ],
)
def test_only_a_public_key_may_enter_a_job(tmp_path: Path, content: str | None, problem: str) -> None:
    if content:
        (tmp_path / "id").write_text(content)
    with pytest.raises(UsageError, match=problem) as error:
        build_job(job_plan(services="ssh", ssh_key=str(tmp_path / "id")))
    assert "c2VjcmV0" not in str(error.value)


def test_a_running_job_with_ssh_is_entered_by_this_command() -> None:
    assert connect_command("photos-2", replace(SETTINGS, ssh_key="/home/ann/.ssh/id_ed25519.pub")) == (
        "az ml job connect-ssh --name photos-2 --node-index 0 --private-key-file-path /home/ann/.ssh/id_ed25519"
    )


def from_service(body: dict[str, Any]) -> Any:
    """The job as the SDK reads it from the service, which adds some properties."""
    added = {
        "status": "Completed",
        "services": {"Studio": {"jobServiceType": "Studio", "endpoint": "https://ml.azure.com/runs/x"}},
        "tags": {**body["properties"]["tags"], "_aml_system_x": "1"},
        "properties": {**body["properties"]["properties"], "_azureml.ComputeTargetType": "amlctrain"},
    }
    made = {"createdAt": "2026-01-01T00:00:00Z"}
    return Job._from_rest_object(
        JobBase({"id": f"{SCOPE}/jobs/a", "name": "a", "properties": body["properties"] | added, "systemData": made})
    )


@pytest.mark.parametrize(
    "body",
    [
        build_body(
            job_plan(identity="UserIdentity", description="All of it", tags={"msggan.git_commit": "abc"}), SCOPE
        ),
        build_body(job_plan(instance_type=SIZE, low_priority=True), SCOPE),
        build_sweep_body(
            job_plan(),
            SweepSpec(TrainConfig(), "one", "one", read_space(["g_lr", "mirror"], TrainConfig()), trials=4),
            SCOPE,
        ),
    ],
    ids=["as-user", "serverless", "sweep"],
)
def test_the_exported_yaml_sends_the_same_body(body: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "job.yml").write_text(as_yaml(from_service(body)))
    loaded = load_job(tmp_path / "job.yml")
    job = loaded._to_job() if hasattr(loaded, "_to_job") else loaded
    sent_again = {"properties": job._to_rest_object().as_dict()["properties"]}
    if sent_again["properties"]["jobType"] == "Sweep":
        del sent_again["properties"]["resources"]  # which the SDK copies from the trial
    assert comparable(sent_again) == comparable(body)


def comparable(body: dict[str, Any]) -> str:
    """Without what the SDK resolves when it sends a job, and the case of the sampling's rule, which it changes."""
    return json.dumps(body, sort_keys=True).replace('"azureml:/', '"/').replace('"random"', '"Random"')


# --- Names and states -------------------------------------------------------------------------------------------------


def test_the_jobs_of_a_run_are_numbered_after_its_name() -> None:
    assert [job_name("flowers", number) for number in (1, 2, 10)] == ["flowers", "flowers-2", "flowers-10"]
    assert run_folder("store", "flowers").uri == "azureml://datastores/store/paths/msggan/runs/flowers/"


def test_a_configuration_hash_depends_on_the_arguments_and_not_on_the_local_path_of_the_images() -> None:
    data = JobData("azureml://datastores/store/paths/msggan/data/1.safetensors", "uri_file")
    known = configuration_hash(SPEC, data)
    assert known == configuration_hash(RunSpec(SPEC.config, "elsewhere/flowers", "flowers", SPEC.hardware), data)
    others = [
        configuration_hash(RunSpec(TrainConfig(resolution=8, kimg=3), "flowers", "flowers", SPEC.hardware), data),
        configuration_hash(RunSpec(SPEC.config, "flowers", "roses", SPEC.hardware), data),
        configuration_hash(SPEC, JobData("azureml:flowers:3", "uri_file")),
        configuration_hash(SPEC, data, ["a sweep over g_lr"]),
    ]
    assert len({known, *others}) == 5


def test_each_status_of_the_service_maps_to_a_state_and_unknown_ones_to_running() -> None:
    statuses = {
        "queued": ["NotStarted", "Queued", "Provisioning", "Scheduled", "Paused"],
        "preparing": ["Starting", "Preparing"],
        "running": ["Running", "Finalizing", "CancelRequested", "Pondering"],
        "completed": ["Completed"],
        "failed": ["Failed"],
        "cancelled": ["Canceled"],
        "interrupted": ["NotResponding"],
    }
    assert {state: set(map(state_of, theirs)) for state, theirs in statuses.items()} == {
        state: {state} for state in statuses
    }
    every = [status for theirs in statuses.values() for status in theirs]
    assert [status for status in every if has_ended(status)] == ["Completed", "Failed", "Canceled", "NotResponding"]


@pytest.mark.parametrize(
    ("error", "code", "timeout"),
    [
        ("Execution failed. User process '/bin/bash' exited with status code 2. Please check log file", 2, False),
        ("Process exited with exit code -9", -9, False),
        ("The job exceeded its time limit of 60 seconds.", None, True),
        ("Job was terminated: max run duration reached", None, True),
        ("Run timed out.", None, True),
        ("AssetNotFound: sometime later", None, False),
        ("", None, False),
    ],
)
def test_an_error_contains_an_exit_code_or_a_time_limit(error: str, code: int | None, timeout: bool) -> None:
    details = Details("Failed", error=error)
    assert (details.exit_code, details.timed_out) == (code, timeout)


# --- The snapshot -----------------------------------------------------------------------------------------------------


def test_the_snapshot_is_the_package_and_what_reads_secrets_and_reproducible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("not to travel")
    package = Path(msggan.__path__[0])
    expected = {path.relative_to(package.parent).as_posix(): path.read_bytes() for path in package.rglob("*.py")}
    expected["key_vault.py"] = Path(key_vault.__file__).read_bytes()
    metadata = f"msggan-{msggan.__version__}.dist-info/METADATA"
    expected[metadata] = f"Metadata-Version: 2.1\nName: msggan\nVersion: {msggan.__version__}\n".encode()
    assert build_snapshot() == build_snapshot() == expected
    assert sum(map(len, expected.values())) < 1 << 20


def test_the_hash_of_files_depends_on_paths_and_contents_and_not_on_their_order() -> None:
    files = [{"a": b"bc"}, {"ab": b"c"}, {"a": b"b", "c": b""}, {"abc": b""}, {}]
    assert len({hash_files(one) for one in files}) == len(files)
    assert hash_files({"a": b"1", "b": b"2"}) == hash_files({"b": b"2", "a": b"1"})


def test_caches_and_hidden_files_are_not_in_the_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "msggan"
    for name in ("one.py", "__pycache__/one.cpython-311.pyc", ".DS_Store", "deep/er/two.py", "deep/__pycache__/x.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(name)
    os.utime(package / "one.py", (0, 0))
    monkeypatch.setattr(msggan, "__path__", [str(package)])
    assert {name for name in build_snapshot() if name.startswith("msggan/")} == {
        "msggan/deep/er/two.py",
        "msggan/one.py",
    }


@settings(deadline=None, max_examples=30)
@given(hours=st.floats(0.001, 504))
def test_a_time_limit_is_sent_in_whole_seconds(hours: float) -> None:
    from azure_local.runner import timeout_s

    assert timeout_s(build_body(job_plan(timeout_hours=hours), SCOPE)["properties"]) == max(1, round(hours * 3600))


def test_every_image_type_that_a_job_reads_counts_in_a_folder_in_azure() -> None:
    assert set(IMAGES) == {suffix for suffix, name in FORMAT_OF_SUFFIX.items() if name != "HEIF"}


# --- Identity ---------------------------------------------------------------------------------------------------------

ASSIGNED = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"
UNKNOWN = IDENTITY_TO_RESOLVE


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("data", "run_folder", "of_clusters", "of_serverless"),
    [  # of clusters: identity "none", "system", an assigned one, unknown; of serverless jobs: the first three
        (True, True, (None, None, None, None), (None, None, ASSIGNED)),
        (True, False, ("UserIdentity", None, None, UNKNOWN), ("UserIdentity", "UserIdentity", ASSIGNED)),
        (False, False, ("UserIdentity", None, None, UNKNOWN), ("UserIdentity", "UserIdentity", ASSIGNED)),
        (False, None, ("UserIdentity", None, None, UNKNOWN), ("UserIdentity", "UserIdentity", ASSIGNED)),
        (True, None, (UNKNOWN, None, None, UNKNOWN), (UNKNOWN, UNKNOWN, ASSIGNED)),
        (None, None, (UNKNOWN, None, None, UNKNOWN), (UNKNOWN, UNKNOWN, ASSIGNED)),
    ],
)
def test_one_identity_reads_and_writes_all_that_no_credential_opens(
    data: bool | None,
    run_folder: bool | None,
    of_clusters: tuple[str | None, ...],
    of_serverless: tuple[str | None, ...],
    swapped: bool,
) -> None:
    both = [run_folder, data] if swapped else [data, run_folder]
    machines = ("none", "system", ASSIGNED, None)
    assert tuple(job_identity(both, identity) for identity in machines) == of_clusters
    assert tuple(job_identity(both, identity, serverless=True) for identity in machines[:3]) == of_serverless


def test_a_managed_identity_is_named_in_the_body_and_an_unknown_one_only_in_the_plan() -> None:
    managed = build_body(job_plan(identity=ASSIGNED, instance_type=SIZE), SCOPE)["properties"]["identity"]
    assert managed == {"identityType": "Managed", "resourceId": ASSIGNED}
    assert build_body(job_plan(identity=UNKNOWN), SCOPE)["properties"]["identity"] == {"identityType": UNKNOWN}
