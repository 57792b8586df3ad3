"""The plans of provisioning: resources from the settings, and the actions for those that exist. No network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from azure.ai.ml.entities import AmlCompute, ComputeInstance, NetworkSettings
from hypothesis import given
from hypothesis import strategies as st
from support.programs import REPOSITORY

from msggan.errors import UsageError
from orchestration.azure.compute import (
    build_cluster,
    free_name,
    other_sizes,
    plan_cluster,
    plan_cluster_deletion,
    planned_values,
    refuse_other_machines,
    tag_problems,
    with_changes,
)
from orchestration.azure.datastore import Secret, build_datastore, plan_datastore, plan_datastore_deletion, read_secret
from orchestration.azure.environment import (
    DEFAULT_CONTEXT,
    Recipe,
    build_environment,
    plan_environment,
    read_recipe,
)
from orchestration.azure.jobs import time_limit_problems
from orchestration.azure.sizes import Quota, Region, Size, check_quota, find_size, judge, usable
from orchestration.errors import QuotaError
from orchestration.settings import Settings, read_settings, tomllib
from orchestration.status import Item, ProvisionPlan, Step

T4 = Size("Standard_NC4as_T4_v3", "Standard NCASv3_T4 Family", 4, 1, 28, True, {"Standard": 0.526, "LowPriority": 0.1})
A100 = Size("Standard_NC24ads_A100_v4", "StandardNCADSA100v4Family", 24, 1, 220, False, {})
CPU = Size("Standard_DS3_v2", "standardDSv2Family", 4, 0, 14, True, {})
SUBNET = (
    "/subscriptions/6b1f4b0c-7a57-4d0b-8f0e-2f6f0d6f1c01/resourceGroups/g/providers/Microsoft.Network"
    "/virtualNetworks/v/subnets/default"
)
MANAGED = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/me"


def settings(**values: Any) -> Settings:
    return read_settings(
        {name: str(value) if type(value) is int else value for name, value in values.items()},
        folder=Path("/"),
        environ={},
    )


def cluster(**values: Any) -> AmlCompute:
    """An existing cluster."""
    defaults = {
        "size": T4.name,
        "min_instances": 0,
        "max_instances": 1,
        "tier": "dedicated",
        "location": "eastus",
        **values,
    }
    return AmlCompute(name="msggan-gpu", provisioning_state="Succeeded", **defaults)


# --- Clusters ---------------------------------------------------------------------------------------------------------


def test_the_body_of_a_cluster_matches_the_settings() -> None:
    values = settings(
        compute="gpu", vm_size=A100.name, min_nodes=1, max_nodes=3, idle_minutes=90, low_priority=True, identity=MANAGED
    )
    assert build_cluster(values, "eastus")._to_rest_object().as_dict() == {
        "location": "eastus",
        "tags": {"msggan": "provisioned"},
        "identity": {"type": "UserAssigned", "userAssignedIdentities": {MANAGED: {}}},
        "properties": {
            "computeType": "AmlCompute",
            "disableLocalAuth": True,
            "properties": {
                "osType": "Linux",
                "vmSize": A100.name,
                "vmPriority": "LowPriority",
                "scaleSettings": {"minNodeCount": 1, "maxNodeCount": 3, "nodeIdleTimeBeforeScaleDown": "PT1H30M"},
                "remoteLoginPortPublicAccess": "NotSpecified",
                "enableNodePublicIp": True,
            },
        },
    }


def test_a_cluster_without_public_addresses_in_a_subnet() -> None:
    body = build_cluster(settings(subnet=SUBNET, public_ip=False), "eastus")
    body._set_full_subnet_name("s", "g")  # as the SDK does when it sends it
    properties = body._to_rest_object().as_dict()["properties"]["properties"]
    assert (properties["subnet"], properties["enableNodePublicIp"]) == ({"id": SUBNET}, False)


def test_a_clusters_tags_have_the_limits_of_resource_manager() -> None:
    assert tag_problems(settings(tags=("a=" + "x" * 256,))) == []
    wrong = tag_problems(settings(tags=("a=" + "x" * 257, "b/c=d")))
    assert [problem.split(":")[0] for problem in wrong] == ["--tag a", "--tag b/c"]


def test_an_explicit_location_precedes_that_of_the_workspace() -> None:
    assert build_cluster(settings(location="westeurope"), "eastus").location == "westeurope"


@pytest.mark.parametrize(
    ("values", "existing", "action", "changes"),
    [
        ({}, {}, "keep", {}),
        ({}, {"size": "STANDARD_NC4AS_T4_V3", "tier": "Dedicated"}, "keep", {}),
        ({"location": "eastus"}, {"location": "East US"}, "keep", {}),
        ({"max_nodes": 2}, {}, "change", {"max_nodes": {"from": 1, "to": 2}}),
        ({"idle_minutes": 3}, {"idle_time_before_scale_down": 90}, "change", {"idle_minutes": {"from": 1.5, "to": 3}}),
        ({"identity": "system"}, {}, "change", {"identity": {"from": "none", "to": "system"}}),
        ({"vm_size": A100.name}, {}, "refuse", {"vm_size": {"from": T4.name, "to": A100.name}}),
        ({"low_priority": True}, {}, "refuse", {"low_priority": {"from": False, "to": True}}),
        ({"low_priority": False}, {"tier": "low_priority"}, "refuse", {"low_priority": {"from": True, "to": False}}),
        ({"max_nodes": 2}, {"min_instances": 3, "max_instances": 4}, "refuse", {"max_nodes": {"from": 4, "to": 2}}),
        (
            {"max_nodes": 2, "min_nodes": 1},
            {},
            "change",
            {"max_nodes": {"from": 1, "to": 2}, "min_nodes": {"from": 0, "to": 1}},
        ),
        ({"location": "westeurope"}, {}, "refuse", {"location": {"from": "eastus", "to": "westeurope"}}),
        ({"vm_size": f"{A100.name},{T4.name.lower()}", "location": "westus2,eastus"}, {}, "keep", {}),
        (
            {"vm_size": f"{A100.name},{CPU.name}"},
            {},
            "refuse",
            {"vm_size": {"from": T4.name, "to": f"{A100.name},{CPU.name}"}},
        ),
        ({}, {"network_settings": NetworkSettings(subnet=SUBNET), "enable_node_public_ip": False}, "keep", {}),
        (
            {"subnet": SUBNET.lower().replace("resourceg", "resourceG").replace("virtualn", "virtualN")},
            {"network_settings": NetworkSettings(subnet=SUBNET)},
            "keep",
            {},
        ),
        ({"subnet": SUBNET}, {}, "refuse", {"subnet": {"from": None, "to": SUBNET}}),
        ({"public_ip": False}, {}, "refuse", {"public_ip": {"from": True, "to": False}}),
        ({"tags": ("team=a",)}, {"tags": {"team": "a", "other": "b"}}, "keep", {}),
        ({"tags": ("team=a",)}, {"tags": {"other": "b"}}, "change", {"tag team": {"from": None, "to": "a"}}),
        ({}, {"provisioning_state": "Failed"}, "refuse", {}),
        ({}, {"provisioning_state": "Deleting"}, "refuse", {}),
        ({}, {"provisioning_state": "Updating"}, "keep", {}),
    ],
)
def test_what_can_be_updated_is_updated_and_the_rest_refused(
    values: dict[str, Any], existing: dict[str, Any], action: str, changes: dict[str, Any]
) -> None:
    state = existing.pop("provisioning_state", "Succeeded")
    found = cluster(**existing)
    found._provisioning_state = state
    item = plan_cluster(settings(**values), found)
    assert (item.action, dict(item.changes)) == (action, changes)


SHARED = {
    "size": A100.name,
    "tier": "low_priority",
    "min_instances": 1,
    "max_instances": 16,
    "idle_time_before_scale_down": 1800,
}


@pytest.mark.parametrize("tags", [{}, {"msggan": "provisioned"}])
def test_what_is_not_set_of_an_existing_cluster_is_kept(tags: dict[str, str]) -> None:
    item = plan_cluster(settings(), cluster(**SHARED, tags=tags))
    assert (item.action, dict(item.changes), item.reason) == ("keep", {}, "is up to date")
    values = planned_values(settings(), cluster(**SHARED, tags=tags))
    assert (values["min_nodes"], values["max_nodes"], values["idle_minutes"]) == (1, 16, 30)
    item = plan_cluster(settings(idle_minutes=2), cluster(**SHARED, tags=tags))
    assert dict(item.changes) == {"idle_minutes": {"from": 30, "to": 2}}
    assert item.reason == ("" if tags else "was not created by msggan-aml provision")
    changed = with_changes(cluster(**SHARED), build_cluster(settings(idle_minutes=2), "eastus"), ["idle_minutes"])
    assert (changed.min_instances, changed.max_instances, changed.idle_time_before_scale_down) == (1, 16, 120)


def test_a_job_is_refused_on_machines_other_than_those_that_are_set() -> None:
    refuse_other_machines(settings(max_nodes=3), cluster(**SHARED))
    with pytest.raises(UsageError) as raised:
        refuse_other_machines(settings(low_priority=False, vm_size=T4.name), cluster(**SHARED))
    assert list(raised.value.problems) == [
        f"vm_size {T4.name} (flag --vm-size): the cluster msggan-gpu has vm_size {A100.name}, which cannot be changed.",
        "low_priority false (flag --no-low-priority): the cluster msggan-gpu has low_priority true, which cannot be "
        "changed.",
    ]
    assert raised.value.hint.splitlines() == [
        "Unset it to train on msggan-gpu. Or create another cluster, and train with --compute msggan-gpu-2:",
        f"msggan-aml provision --compute msggan-gpu-2 --vm-size {T4.name} --no-low-priority",
    ]


def test_a_number_of_nodes_that_the_cluster_does_not_have_is_reported() -> None:
    assert other_sizes(settings(max_nodes=16, low_priority=True), cluster(**SHARED)) == []
    assert other_sizes(settings(max_nodes=3), cluster(**SHARED)) == [
        "max_nodes 3 (flag --max-nodes) is not used: the cluster msggan-gpu has 16. Change it: msggan-aml provision"
    ]


@pytest.mark.parametrize(
    ("hours", "low_priority", "is_refused"), [(168, True, False), (300, True, True), (504, False, False)]
)
def test_a_job_at_low_priority_runs_for_seven_days_at_most(hours: int, low_priority: bool, is_refused: bool) -> None:
    problems = time_limit_problems(settings(timeout_hours=hours), low_priority=low_priority)
    assert problems == is_refused * [
        "timeout_hours 300 (flag --timeout-hours): a job at low priority runs for 168 hours (7 days) at most; the same "
        "command again resumes it."
    ]


def test_another_kind_of_compute_keeps_its_name() -> None:
    item = plan_cluster(settings(), ComputeInstance(name="msggan-gpu"))
    assert (item.action, item.reason) == ("refuse", "the name is taken by another kind of compute (computeinstance)")


@pytest.mark.parametrize("subnet", [None, SUBNET])
def test_a_change_keeps_network_identity_and_tags(subnet: str | None) -> None:
    existing = cluster(tags={"owner": "ann"}, network_settings=NetworkSettings(subnet=subnet))
    changed = with_changes(existing, build_cluster(settings(max_nodes=7), "eastus"), ["max_nodes", "vm_size"])
    changed._set_full_subnet_name("s", "g")
    body = changed._to_rest_object().as_dict()
    assert body["tags"] == {"owner": "ann"}
    assert body["properties"]["properties"]["scaleSettings"]["maxNodeCount"] == 7
    assert body["properties"]["properties"].get("subnet", {}).get("id") == subnet


def test_only_a_provisioned_cluster_is_deleted() -> None:
    assert plan_cluster_deletion("gpu", cluster(tags={"msggan": "provisioned"})).action == "delete"
    assert plan_cluster_deletion("gpu", cluster(tags={"msggan": "mine"})).action == "keep"
    assert plan_cluster_deletion("gpu", cluster()).action == "keep"
    instance = ComputeInstance(name="gpu", tags={"msggan": "provisioned"})
    assert plan_cluster_deletion("gpu", instance).action == "keep"


@pytest.mark.parametrize(
    ("name", "used", "free"),
    [("gpu", ["gpu"], "gpu-2"), ("gpu", ["GPU", "Gpu-2"], "gpu-3"), ("a" * 21 + "-bc", [], "a" * 21 + "-2")],
)
def test_a_free_name_is_offered(name: str, used: list[str], free: str) -> None:
    assert free_name(name, used) == free


def test_vm_sizes_are_case_insensitive() -> None:
    assert find_size("standard_nc4as_t4_v3", [T4, A100], location="eastus", setting="vm_size", source="default") is T4
    with pytest.raises(UsageError, match="is not available at low priority in eastus"):
        find_size(A100.name, [T4, A100], location="eastus", setting="vm_size", source="default", low_priority=True)


@pytest.mark.parametrize(
    "size", ["Standard_NC24r", "standard_nc6", "Standard_ND6s", "Standard_NV12", "Standard_NC6s_v2"]
)
def test_retired_vm_sizes_are_known(size: str) -> None:
    with pytest.raises(UsageError, match="was retired by Azure in August 2023") as error:
        find_size(size, [CPU, T4, A100], location="eastus", setting="vm_size", source="default")
    assert error.value.hint.startswith("Sizes with a GPU: Standard_NC4as_T4_v3 (1 GPU, 4 cores, 28 GB)")


FAMILY = Quota("Standard NCASv3_T4 Family", 4, 8, "Standard NCASv3_T4 Family Cluster Dedicated vCPUs")
TOTAL = Quota("TotalCores", 0, 100, "Total Cluster Dedicated Regional vCPUs")
LOW = Quota("LowPriorityCores", 0, 4, "Total Cluster LowPriority Regional vCPUs")


@pytest.mark.parametrize(
    ("nodes", "low_priority", "quotas", "result"),
    [
        (1, False, [FAMILY, TOTAL, LOW], None),
        (2, False, [FAMILY, TOTAL, LOW], "Standard NCASv3_T4 Family in eastus, of which 4 of 8 are used"),
        (26, False, [TOTAL], "TotalCores in eastus, of which 0 of 100 are used"),
        (1, True, [FAMILY, TOTAL, LOW], None),
        (2, True, [FAMILY, TOTAL, LOW], "LowPriorityCores in eastus, of which 0 of 4 are used"),
        (1000, False, [Quota(FAMILY.family, 0, -1)], None),  # no limit
        (1000, False, [], None),  # nothing is known
    ],
)
def test_quota_is_counted_in_cores(nodes: int, low_priority: bool, quotas: list[Quota], result: str | None) -> None:
    if result is None:
        check_quota(T4, nodes, quotas, location="eastus", low_priority=low_priority)
        return
    with pytest.raises(QuotaError) as error:
        check_quota(T4, nodes, quotas, location="eastus", low_priority=low_priority)
    assert result in error.value.message
    assert ("--no-low-priority" in error.value.hint) is low_priority


NO_QUOTA = Region("westus2", [A100, T4], [Quota(A100.family, 0, 0), Quota(T4.family, 8, 8)])
QUOTA = Region("eastus", [T4, CPU], [FAMILY])
UNKNOWN = Region("eastus", None, None)
OTHER = f"VM size {A100.name} (flag --vm-size): is not offered in eastus."


@pytest.mark.parametrize(
    ("values", "regions", "sizes", "reasons"),
    [
        ({"vm_size": f"{T4.name},{CPU.name}"}, [QUOTA], [T4, CPU], []),
        ({"vm_size": f"{T4.name},{A100.name}"}, [QUOTA], [T4], [f"{T4.name} in eastus is the first", OTHER[:-1]]),
        ({"vm_size": f"{A100.name},{T4.name}"}, [QUOTA], [T4], [f"{T4.name} in eastus is", OTHER[:-1]]),
        (
            {"vm_size": f"{A100.name},{T4.name}"},
            [UNKNOWN],
            [Size(A100.name), Size(T4.name)],
            ["VM size and quota were not checked"],
        ),
        (
            {"vm_size": f"{A100.name},{CPU.name}", "low_priority": True},
            [Region("x", [A100, CPU], None)],
            [CPU],
            [
                f"{CPU.name} in x is the first that can be used",
                f"VM size {A100.name}: is not available at low priority in x",
                "the quota was not checked",
            ],
        ),
        (
            {"vm_size": f"{A100.name},{T4.name}", "location": "westus2,eastus"},
            [NO_QUOTA, QUOTA],
            [T4],
            [
                f"{T4.name} in eastus is the first",
                f"1 machine {A100.name} would need 24 cores of the quota {A100.family} in westus2, of which 0 of 0",
                f"1 machine {T4.name} would need 4 cores of the quota {T4.family} in westus2, of which 8 of 8 are used",
                OTHER[:-1],
            ],
        ),
    ],
)
def test_the_first_size_that_is_offered_and_has_quota_is_taken(
    values: dict[str, Any], regions: list[Region], sizes: list[Size], reasons: list[str]
) -> None:
    set_values = settings(**values)
    found = usable([judge(name, region, 1, set_values) for region in regions for name in set_values.vm_size.split(",")])
    assert [choice.size for choice in found] == sizes
    parts = found[0].reason.split("; ") if found[0].reason else []
    assert all(part.startswith(reason) for part, reason in zip(parts, reasons, strict=True)), parts


def test_if_no_size_can_be_taken_the_error_names_each() -> None:
    several = settings(vm_size=f"{A100.name},{T4.name}")
    with pytest.raises(QuotaError) as no_quota:
        usable([judge(name, NO_QUOTA, 1, several) for name in (A100.name, T4.name, "Standard_NC6")])
    assert [line.partition(" would need")[0] for line in no_quota.value.message.splitlines()] == [
        f"1 machine {A100.name}",
        f"1 machine {T4.name}",
        "VM size Standard_NC6 (flag --vm-size): was retired by Azure in August 2023.",
    ]
    assert no_quota.value.hint.count("Request more cores") == 1
    with pytest.raises(UsageError) as not_offered:
        usable([judge(name, QUOTA, 1, several) for name in ("Standard_NC4as_T4_v2", A100.name)])
    similar = f"Similar sizes: {T4.description}."
    first = f"VM size Standard_NC4as_T4_v2 (flag --vm-size): is not offered in eastus. {similar}"
    assert not_offered.value.problems[0] == first
    assert not_offered.value.problems[1].startswith(OTHER)


# --- Datastores -------------------------------------------------------------------------------------------------------

STORE = {"storage_account": "acc", "storage_container": "con"}


@pytest.mark.parametrize(
    ("secret", "credentials"),
    [
        (None, {"credentialsType": "None"}),
        (
            Secret("account key", "k"),
            {"credentialsType": "AccountKey", "secrets": {"secretsType": "AccountKey", "key": "k"}},
        ),
        (Secret("SAS", "sig=s"), {"credentialsType": "Sas", "secrets": {"secretsType": "Sas", "sasToken": "sig=s"}}),
    ],
)
def test_a_datastore_uses_identity_unless_there_is_a_secret(secret: Secret | None, credentials: dict[str, Any]) -> None:
    assert build_datastore(settings(**STORE), secret)._to_rest_object().as_dict() == {
        "properties": {
            "datastoreType": "AzureBlob",
            "accountName": "acc",
            "containerName": "con",
            "endpoint": "core.windows.net",
            "protocol": "https",
            "tags": {"msggan": "provisioned"},
            "credentials": credentials,
        }
    }


def test_credentials_are_kept_without_a_secret_and_replaced_with_one() -> None:
    by_identity = build_datastore(settings(**STORE), None)
    by_key = build_datastore(settings(**STORE), Secret("account key", "k"))
    assert plan_datastore(settings(**STORE), by_key, None).action == "keep"
    assert plan_datastore(settings(**STORE), by_key, Secret("account key", "other")).action == "keep"
    item = plan_datastore(settings(**STORE), by_identity, Secret("SAS", "s"))
    assert (item.action, item.changes) == ("change", {"credentials": {"from": "identity", "to": "SAS"}})


def test_a_datastore_is_never_changed_to_another_container() -> None:
    existing = build_datastore(settings(**STORE), None)
    item = plan_datastore(settings(storage_account="acc", storage_container="other"), existing, None)
    assert (item.action, item.changes) == ("refuse", {"storage_container": {"from": "con", "to": "other"}})


def test_only_a_provisioned_datastore_is_deleted() -> None:
    ours = build_datastore(settings(**STORE), None)
    assert plan_datastore_deletion("msggan", ours).action == "delete"
    ours.tags = {}
    assert plan_datastore_deletion("msggan", ours).action == "keep"


def test_at_most_one_secret_is_accepted_and_none_is_printed() -> None:
    assert read_secret({"MSGGAN_STORAGE_SAS": "?sig=s"}) == Secret("SAS", "sig=s")
    assert read_secret({"MSGGAN_STORAGE_KEY": ""}) is None
    assert "sig=s" not in repr(Secret("SAS", "sig=s"))
    with pytest.raises(UsageError, match="both are set"):
        read_secret({"MSGGAN_STORAGE_KEY": "k", "MSGGAN_STORAGE_SAS": "s"})


# --- Environments -----------------------------------------------------------------------------------------------------


def body(recipe: Recipe, folder: Path) -> dict[str, Any]:
    conda_file = folder / "written.yml"
    conda_file.write_text(recipe.conda)
    environment = build_environment(recipe, conda_file=conda_file, context="https://here/context/")
    rest: dict[str, Any] = environment._to_rest_object().as_dict()["properties"]
    return rest


def test_each_of_the_four_kinds_of_environment_has_the_right_body(tmp_path: Path) -> None:
    (tmp_path / "own.yml").write_text("# a comment\ndependencies:\n  - python=3.11\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "Dockerfile").write_text("FROM python:3.11\n")
    shared = {"tags": {"msggan": "provisioned"}, "isAnonymous": False, "isArchived": False}

    image = body(read_recipe("python:3.11"), tmp_path)
    assert image == {**shared, "image": "python:3.11", "description": "For msggan: image python:3.11"}
    conda = body(read_recipe(f"python:3.11+{tmp_path / 'own.yml'}"), tmp_path)
    assert conda == {
        **shared,
        "image": "python:3.11",
        "condaFile": "dependencies:\n- python=3.11\n",
        "description": "For msggan: conda file own.yml",
    }
    plain = body(read_recipe(str(tmp_path / "own.yml")), tmp_path)
    assert plain["image"].startswith("mcr.microsoft.com/azureml/")
    assert not plain["image"].endswith(":latest")
    context = body(read_recipe(str(tmp_path / "own")), tmp_path)
    assert context == {
        **shared,
        "build": {"contextUri": "https://here/context/", "dockerfilePath": "Dockerfile"},
        "description": "For msggan: folder own",
    }


def test_a_curated_environment_uses_the_version_that_was_found() -> None:
    nine, ten = (read_recipe("curated", curated=f"x/torch:{version}") for version in ("9", "10"))
    assert nine.version != ten.version
    assert ten.files["Dockerfile"].count(b"FROM ") == 1
    assert b"\nFROM x/torch:10\n" in ten.files["Dockerfile"]
    assert build_environment(ten).tags == {"msggan": "provisioned", "msggan.curated": "x/torch:10"}
    assert set(ten.files) == {"Dockerfile", "requirements.txt"}
    assert ten == read_recipe("curated", curated="x/torch:10")
    assert ten.reference == f"azureml:msggan:{ten.version}"


def test_a_requirements_file_adds_packages_to_the_curated_environment(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("pillow-heif>=1\nscikit-image", encoding="utf-8")
    curated, recipe = (read_recipe(setting, curated="x/torch:10") for setting in ("curated", str(own)))
    assert recipe.files == {
        "Dockerfile": curated.files["Dockerfile"],
        "requirements.txt": curated.files["requirements.txt"] + b"pillow-heif>=1\nscikit-image\n",
    }
    assert recipe.made_from == "curated image x/torch:10, and own.txt"
    assert recipe.version != curated.version


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read as a requirements file: No such file or directory."),
        (b"\xff\xfe", "cannot be read as a requirements file: it is not UTF-8 text."),
        (b"numpy\n-r other.txt\n", "-r other.txt names another file; list the packages themselves."),
        (b"./wheel\n", "./wheel names another file; list the packages themselves."),
    ],
)
def test_an_invalid_requirements_file_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    own = tmp_path / "own.txt"
    if content is not None:
        own.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        read_recipe(str(own), curated="x/torch:10")
    assert raised.value.problems == (f"environment {own}: {reason}",)


@given(
    one=st.dictionaries(st.text(max_size=3), st.binary(max_size=3), max_size=3),
    other=st.dictionaries(st.text(max_size=3), st.binary(max_size=3), max_size=3),
)
def test_versions_are_equal_if_their_contents_are(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    reversed_files = dict(reversed(one.items()))
    assert Recipe("", files=one).version == Recipe("otherwise asked for", files=reversed_files).version
    assert (Recipe("", files=one).version == Recipe("", files=other).version) == (one == other)
    assert re.fullmatch(r"[0-9a-f]{16}", Recipe("", files=one).version)


def test_an_image_is_not_a_conda_file_of_the_same_text() -> None:
    recipes = [
        Recipe("", image="a"),
        Recipe("", conda="a"),
        Recipe("", files={"a": b""}),
        Recipe("", image="a", conda="a"),
    ]
    assert len({recipe.version for recipe in recipes}) == 4


def test_an_environment_is_created_once_and_restored_from_the_archive() -> None:
    recipe = Recipe("image x:1", image="x:1")
    existing = build_environment(recipe)
    assert plan_environment(recipe, None).action == "create"
    assert plan_environment(recipe, existing).action == "keep"
    archived = plan_environment(recipe, existing, is_archived=True)
    assert (archived.action, archived.changes) == ("change", {"archived": {"from": True, "to": False}})


def test_the_environments_require_what_the_package_requires() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {requirement.split(";")[0].strip() for requirement in project["dependencies"]}
    required = (DEFAULT_CONTEXT / "requirements.txt").read_text(encoding="utf-8").splitlines()[1:]
    conda = re.findall(
        r"^      - (.+)$", (DEFAULT_CONTEXT.parent / "conda.yml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(required) <= declared
    assert conda == required
    assert read_recipe(str(DEFAULT_CONTEXT.parent / "conda.yml")).conda


# --- Plans ------------------------------------------------------------------------------------------------------------


def test_a_plan_is_printed_line_by_line() -> None:
    changes = {"max_nodes": {"from": 1, "to": 2}, "low_priority": {"from": None, "to": False}}
    item = Item("compute", "gpu", "change", changes, "so be it", "", ("It costs.",))
    assert ProvisionPlan((Step(item),)).as_lines() == [
        "~ change compute gpu: so be it",
        "      max_nodes: 1 → 2",
        "      low_priority: no",
        "      It costs.",
    ]
