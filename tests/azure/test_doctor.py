"""`doctor` finds what would stop a submit, names what to type, and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import certifi
import pytest
from azure_local import AzureLocal
from azure_local.roles import ROLES
from support.azure_commands import Command, sdk_warnings
from support.programs import Ended

from msggan.errors import MsgganError
from orchestration.azure.doctor import (
    PRIVATE_HINT,
    Finding,
    describe_network,
    describe_quota,
    describe_roles,
    describe_skew,
    permits,
)
from orchestration.azure.sizes import Quota, Size

pytestmark = sdk_warnings

SCOPE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
SIZE = Size("Standard_NC4as_T4_v3", "Standard NCASv3_T4 Family", 4, 1, 28, True, {})


def checks(ended: Ended) -> dict[str, dict[str, str]]:
    """The checks by name."""
    return {check["name"]: check for check in ended.json["checks"]}


def statuses(ended: Ended) -> dict[str, str]:
    return {name: check["status"] for name, check in checks(ended).items()}


def not_ok(ended: Ended) -> dict[str, str]:
    return {name: status for name, status in statuses(ended).items() if status != "ok"}


# --- Against a workspace ----------------------------------------------------------------------------------------------


def test_in_a_workspace_that_is_ready_all_checks_pass_and_nothing_changes(
    azure: AzureLocal, msggan_aml: Command, tmp_path: Path
) -> None:
    azure.write_az(tmp_path / "bin")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    azure.cloud.cores_used["Standard NCASv3_T4 Family"] = 8
    azure.cloud.quotas["Standard NCASv3_T4 Family"] = 24
    ended = msggan_aml("doctor", "-o", "json", PATH=path)
    assert ended.exit_code == 0, ended.stdout
    assert ended.json["ready"] is True
    assert set(statuses(ended).values()) == {"ok"}
    details = {name: check["detail"] for name, check in checks(ended).items()}
    assert details["sign-in"] == f"{azure.cloud.client_id} by environment variables, object ID {azure.cloud.object_id}."
    assert details["compute"] == "Cluster msggan-gpu: Standard_NC4as_T4_v3, dedicated, 0 to 4 machines."
    assert details["quota"].endswith("has 4 cores; Standard NCASv3_T4 Family, 8 of 24 cores used, 16 left.")
    assert details["network"] == f"eastus.api.azureml.ms through the proxy {azure.variables['HTTPS_PROXY']}."
    assert "az 2.80.0 (ml 2.40.0)" in details["versions"]
    assert "submit registers it" in details["environment"]
    changing = [request for request in azure.requests if request.method != "GET" and "/token" not in request.path]
    assert [request.path.rpartition("/")[2] for request in changing] == ["listSecrets"]
    assert msggan_aml("provision", "--yes").exit_code == 0
    (version,) = [version for name, version in azure.cloud.environments if name == "msggan"]
    azure.add_ended_job("photos", environmentId=f"{azure.cloud.scope}/environments/msggan/versions/{version}")
    found = checks(msggan_aml("doctor", "-o", "json"))["environment"]["detail"]
    assert found.endswith(f": registered as msggan:{version}, and its image was built for photos.")
    lines = msggan_aml("doctor").stdout.splitlines()
    assert len(lines) == len(details)
    assert all(line.startswith("ok       ") for line in lines)


def test_a_failed_check_hides_no_other_and_the_first_one_sets_the_exit_code(
    azure: AzureLocal, msggan_aml: Command
) -> None:
    azure.cloud.role, azure.cloud.subscription_role = "Reader", "Reader"
    azure.cloud.quotas["Standard NCASv3_T4 Family"] = 0
    azure.cloud.clock_offset_s = -1200
    group = f"/subscriptions/{azure.cloud.subscription}/resourceGroups/{azure.cloud.group}"
    azure.cloud.container_registry = f"{group}/providers/Microsoft.ContainerRegistry/registries/gone"
    ended = msggan_aml("doctor", "-o", "json")
    assert ended.exit_code == 1
    assert ended.json["ready"] is False
    assert not_ok(ended) == dict.fromkeys(("clock", "roles", "quota", "storage", "registry"), "failed")
    found = checks(ended)
    assert found["clock"]["detail"].startswith("The clock is 20 minutes ahead of Azure's.")
    assert "submit lacks AzureML Data Scientist (environments/write, jobs/write)" in found["roles"]["detail"]
    assert "may not read its key (datastores/listSecrets/action)." in found["storage"]["detail"]
    command = f"--assignee {azure.cloud.object_id} --scope {azure.cloud.scope}"
    assert f'az role assignment create --role "AzureML Data Scientist" {command}' in found["roles"]["hint"]
    assert f'az role assignment create --role "AzureML Compute Operator" {command}' in found["roles"]["hint"]
    assert "0 of 0 cores used, 0 left" in found["quota"]["detail"]
    azure.cloud.clock_offset_s = 0
    assert msggan_aml("doctor").exit_code == 4  # that of the roles
    azure.cloud.role = "Contributor"
    assert msggan_aml("doctor").exit_code == 5  # that of the quota


def test_what_a_submit_does_not_need_is_a_warning(azure: AzureLocal, msggan_aml: Command) -> None:
    azure.cloud.role, azure.cloud.subscription_role = "AzureML Data Scientist", None
    ended = msggan_aml("doctor", "-o", "json")
    assert (ended.exit_code, ended.json["ready"]) == (0, True)
    assert not_ok(ended) == {"roles": "warning", "quota": "warning"}
    found = checks(ended)
    assert "provision lacks AzureML Compute Operator (computes/write, computes/delete)." in found["roles"]["detail"]
    assert found["quota"]["hint"].endswith(f"--scope /subscriptions/{azure.cloud.subscription}")
    azure.cloud.permissions_readable, azure.cloud.public_network_access = False, "Disabled"
    azure.cloud.cluster_errors["msggan-gpu"] = ("OutOfCapacity", "No machines are free.")
    closed = checks(msggan_aml("doctor", "-o", "json"))
    assert closed["compute"]["detail"].endswith("; it reports OutOfCapacity: No machines are free.")
    assert "Try again later, or use another --vm-size" in closed["compute"]["hint"]
    assert closed["roles"]["detail"] == "The identity may not list its permissions."
    assert (closed["registry"]["status"], closed["network"]["status"]) == ("warning", "ok")
    assert closed["registry"]["hint"].startswith("az ml workspace update --name msggan-ws --resource-group msggan-rg ")
    azure.cloud.cluster_errors["msggan-gpu"] = ("UnsupportedVMSizeForLowPriority", "It is not allowed for LowPriority.")
    assert msggan_aml("doctor").exit_code == 5


@pytest.mark.parametrize(
    ("blob_role", "status", "detail"),
    [
        ("Storage Blob Data Contributor", "ok", "read and written with the signed-in identity."),
        ("Storage Blob Data Reader", "failed", "read, but the signed-in identity may not write."),
        (None, "failed", "the signed-in identity may not read its blobs (AuthorizationPermissionMismatch)."),
    ],
)
def test_without_a_key_the_storage_is_written_by_roles(
    azure: AzureLocal, msggan_aml: Command, blob_role: str | None, status: str, detail: str
) -> None:
    azure.cloud.datastores["workspaceblobstore"]["credentials"] = {"credentialsType": "None"}
    azure.cloud.blob_role = blob_role
    ended = msggan_aml("doctor", "-o", "json")
    storage = checks(ended)["storage"]
    assert (storage["status"], ended.exit_code) == (status, 0 if status == "ok" else 4)
    assert storage["detail"].endswith(detail)
    assert not_ok(ended) == ({} if status == "ok" else {"storage": "failed"})
    if status == "failed":
        assert '--role "Storage Blob Data Contributor"' in storage["hint"]


@pytest.mark.parametrize(("permission", "status"), [("rl", "failed"), ("rwl", "ok")])
def test_a_sas_shows_whether_it_may_write(azure: AzureLocal, msggan_aml: Command, permission: str, status: str) -> None:
    url = azure.cloud.blobs.signed_container_url(azure.cloud.account, azure.container, permission)
    secrets = {"sasToken": url.partition("?")[2]}
    azure.cloud.datastores["workspaceblobstore"]["credentials"] = {"credentialsType": "Sas", "secrets": secrets}
    ended = msggan_aml("doctor", "-o", "json")
    assert (checks(ended)["storage"]["status"], ended.exit_code) == (status, 0 if status == "ok" else 4)
    assert ("MSGGAN_STORAGE_SAS" in checks(ended)["storage"]["hint"]) == (status == "failed")
    assert "sig=" not in ended.stdout


def test_the_storage_account_of_a_datastore_is_found_by_its_name(azure: AzureLocal, msggan_aml: Command) -> None:
    azure.cloud.datastores["elsewhere"] = {
        **azure.cloud.datastores["workspaceblobstore"],
        "accountName": azure.cloud.other_account,
        "isDefault": False,
        "credentials": {"credentialsType": "None"},
    }
    azure.cloud.blobs.container(azure.cloud.other_account, azure.container)
    storage = checks(msggan_aml("doctor", "--datastore", "elsewhere", "-o", "json"))["storage"]
    assert storage["detail"].startswith(
        "Datastore elsewhere (otherstore): read and written with the signed-in identity. "
        "Datastore workspaceblobstore (msgganstore): read and written with the "
    )


def test_what_needs_a_failed_check_is_not_checked(
    azure: AzureLocal, msggan_aml: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"):
        monkeypatch.delenv(name)
    azure.write_az(tmp_path / "bin", signed_in=False)
    ended = msggan_aml("doctor", "-o", "json", PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert ended.exit_code == 4
    found = checks(ended)
    assert "az login" in found["sign-in"]["hint"]
    assert [name for name, check in found.items() if check["status"] == "ok"][-1] == "clock"
    assert {found[name]["detail"] for name in ("workspace", "roles")} == {"Not checked, because of sign-in."}
    assert found["storage"]["detail"] == "Not checked, because of workspace."


def test_a_workspace_that_does_not_exist_is_reported_once(azure: AzureLocal, msggan_aml: Command) -> None:
    ended = msggan_aml("doctor", "-o", "json", AZUREML_ARM_WORKSPACE_NAME="elsewhere")
    assert ended.exit_code == 2
    assert [name for name, status in statuses(ended).items() if status == "failed"] == ["workspace"]


def test_a_certificate_that_is_not_trusted_is_named(azure: AzureLocal, msggan_aml: Command, tmp_path: Path) -> None:
    bundle = {"REQUESTS_CA_BUNDLE": certifi.where(), "CURL_CA_BUNDLE": certifi.where()}
    ended = msggan_aml("doctor", "-o", "json", **bundle)
    assert ended.exit_code == 1
    found = checks(ended)["azure"]
    assert found["detail"].startswith("The certificate of management.azure.com is not trusted: ")
    assert "REQUESTS_CA_BUNDLE" in found["hint"]
    broken = tmp_path / "broken.pem"
    broken.write_text("nonsense")
    unreadable = checks(msggan_aml("doctor", "-o", "json", REQUESTS_CA_BUNDLE=str(broken)))
    assert unreadable["certificates"]["status"] == "failed"
    assert unreadable["certificates"]["detail"].startswith(f"REQUESTS_CA_BUNDLE {broken}: cannot be read")
    assert unreadable["azure"]["detail"] == "Not checked, because of certificates."


def test_a_proxy_that_refuses_connections_is_named_without_its_password(msggan_aml: Command) -> None:
    ended = msggan_aml("doctor", "-o", "json", HTTPS_PROXY="http://ann:secret@127.0.0.1:1")
    assert ended.exit_code == 1
    assert checks(ended)["proxy"]["detail"].startswith("The proxy http://***@127.0.0.1:1 cannot be connected to: ")
    assert "secret" not in ended.stdout


def test_without_a_workspace_this_machine_is_checked(
    azure: AzureLocal, msggan_aml: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZUREML_ARM_SUBSCRIPTION", "AZUREML_ARM_RESOURCEGROUP", "AZUREML_ARM_WORKSPACE_NAME"):
        monkeypatch.delenv(name)
    ended = msggan_aml("doctor", "-o", "json")
    assert ended.exit_code == 0
    assert list(checks(ended)) == ["configuration", "versions", "runs"]
    assert "no Azure ML workspace is configured" in checks(ended)["configuration"]["detail"]
    assert azure.requests == []
    asked = msggan_aml("doctor", "--target", "azure")
    assert asked.exit_code == 2
    assert asked.stdout.splitlines()[0] == "failed   configuration  No Azure ML workspace is configured."


# --- What a check concludes -------------------------------------------------------------------------------------------


def conclusion(describe: Callable[[], Finding]) -> Finding:
    """The finding, or the error as one."""
    try:
        return describe()
    except MsgganError as error:
        return Finding(error.message, error.hint, "failed")


def granted(*roles: str) -> list[dict[str, Any]]:
    return [ROLES[role].as_json() for role in roles]


@pytest.mark.parametrize(
    ("roles", "result"),
    [
        (["Contributor"], "May submit and provision."),
        (["AzureML Data Scientist", "AzureML Compute Operator"], "May submit and provision."),
        (["Azure AI Developer"], "May submit and provision."),
        (
            ["AzureML Data Scientist"],
            "May submit, but provision lacks AzureML Compute Operator (computes/write, computes/delete).",
        ),
        (["AzureML Compute Operator"], "submit lacks AzureML Data Scientist (read, "),
        ([], "provision lacks AzureML Data Scientist (datastores/write); provision lacks AzureML Compute Operator"),
    ],
)
def test_the_built_in_roles_permit_what_azure_documents(roles: list[str], result: str) -> None:
    assert result in conclusion(lambda: describe_roles(granted(*roles), "oid", SCOPE)).detail


def test_actions_match_in_any_case_and_not_actions_only_take_from_their_own_role() -> None:
    role = {"actions": ["Microsoft.X/*/read"], "notActions": ["microsoft.x/secret/READ"]}
    assert permits([role], "Microsoft.X/things/read")
    assert permits([role], "Microsoft.X/read")
    assert not permits([role], "Microsoft.X/secret/read")
    assert not permits([role], "Microsoft.XY/things/read")
    assert permits([role, {"actions": ["*"]}], "Microsoft.X/secret/read")
    assert not permits([{"actions": None}], "Microsoft.X/read")


@pytest.mark.parametrize(
    ("seconds", "status"), [(3, "ok"), (-59, "ok"), (120, "warning"), (-299, "warning"), (301, "failed")]
)
def test_a_clock_may_be_off_by_a_minute(seconds: float, status: str) -> None:
    assert conclusion(lambda: describe_skew(seconds)).status == status


@pytest.mark.parametrize(
    ("addresses", "is_closed", "detail", "hint"),
    [
        (["20.42.0.1"], False, "h by the public address 20.42.0.1.", ""),
        (["10.0.0.4"], True, "h by the private address 10.0.0.4.", ""),
        (["10.0.0.4", "fd00::1"], True, "h by the private addresses 10.0.0.4, fd00::1.", ""),
        (["20.42.0.1"], True, "h by the public address 20.42.0.1.", PRIVATE_HINT),
    ],
)
def test_a_workspace_is_reached_by_public_or_private_addresses(
    addresses: list[str], is_closed: bool, detail: str, hint: str
) -> None:
    assert describe_network("h", addresses, None, is_closed=is_closed)[:2] == (detail, hint)


@pytest.mark.parametrize(
    ("used", "limit", "status"),
    [(0, 4, "ok"), (0, -1, "ok"), (5, 8, "warning"), (0, 3, "failed"), (0, 0, "failed")],
)
def test_a_job_waits_for_cores_in_use_and_fails_without_quota(used: int, limit: int, status: str) -> None:
    quotas = [Quota("family", used, limit, "Family Cluster Dedicated vCPUs")]
    found = conclusion(lambda: describe_quota(SIZE, quotas, "Request more."))
    assert found.status == status
    assert found.hint == ("" if status == "ok" else "Request more.")
