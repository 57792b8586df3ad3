"""The Azure client: credentials, retries, and the messages of its errors."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any

import pytest
from azure.ai.ml._azure_environments import _environments
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.identity import CredentialUnavailableError

from msggan.errors import MsgganError, UsageError
from orchestration.azure.client import (
    Candidate,
    Identity,
    build_candidates,
    identity_of,
    sign_in,
)
from orchestration.azure.clouds import read_cloud
from orchestration.azure.errors import azure_errors, translate_error
from orchestration.errors import AuthError, AzureServiceError, QuotaError, UnreachableError, WorkspaceError
from orchestration.settings import Workspace

WORKSPACE = Workspace("s1", "g1", "w1", {"workspace_name": "variable AZUREML_ARM_WORKSPACE_NAME"})
SOMEBODY = Identity("ann@example.org", "oid-1", "Azure CLI")
SCOPE = "/subscriptions/s1/resourceGroups/g1/providers/Microsoft.MachineLearningServices/workspaces/w1"
PUBLIC = read_cloud({"AZUREML_CURRENT_CLOUD": "AzureCloud"})
BY_VARIABLES = {"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t", "AZURE_CLIENT_SECRET": "s"}


def service_error(status: int, code: str, message: str, kind: type[HttpResponseError] = HttpResponseError) -> Any:
    """The error that the SDK raises for an answer with this status."""
    error = kind(message)
    error.status_code = status
    error.error = SimpleNamespace(code=code, message=message)  # type: ignore[assignment]
    return error


def translated(error: Exception) -> MsgganError:
    return translate_error(error, "Making the cluster gpu", WORKSPACE, SOMEBODY)


@pytest.mark.parametrize(
    ("environ", "kinds"),
    [
        ({}, ["Azure CLI", "managed identity"]),
        (BY_VARIABLES, ["environment variables"]),
        ({"AZURE_CLIENT_ID": "c"}, ["Azure CLI", "managed identity"]),
        ({"IDENTITY_ENDPOINT": "http://here"}, ["managed identity", "Azure CLI"]),
        ({"MSI_ENDPOINT": "http://here"}, ["managed identity", "Azure CLI"]),
        ({**BY_VARIABLES, "MSI_ENDPOINT": "http://here"}, ["environment variables"]),
        (
            {"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t", "AZURE_FEDERATED_TOKEN_FILE": "f"},
            ["workload identity"],
        ),
        ({**BY_VARIABLES, "AZURE_TOKEN_CREDENTIALS": "dev"}, ["AZURE_TOKEN_CREDENTIALS"]),
    ],
)
def test_the_azure_cli_is_tried_first_outside_azure_and_the_managed_identity_inside(
    environ: dict[str, str], kinds: list[str]
) -> None:
    assert [candidate.how for candidate in build_candidates(environ, PUBLIC.authority)] == kinds


@pytest.mark.parametrize("name", ["AzureCloud", "AzureUSGovernment", "AzureChinaCloud"])
def test_the_hosts_of_a_cloud_are_the_sdk_s(name: str) -> None:
    cloud, hosts = read_cloud({"AZUREML_CURRENT_CLOUD": name}), _environments[name]
    assert (cloud.name, f"{cloud.management}/", f"{cloud.authority}/", cloud.studio, cloud.storage) == (
        name,
        hosts["resource_manager"],
        hosts["active_directory"],
        hosts["aml_resource_id"].rstrip("/"),
        hosts["storage_endpoint"],
    )
    (candidate,) = build_candidates(BY_VARIABLES, cloud.authority)
    assert candidate.build.keywords == {"authority": cloud.authority}
    (candidate,) = build_candidates({**BY_VARIABLES, "AZURE_AUTHORITY_HOST": "https://login.x"}, cloud.authority)
    assert candidate.build.keywords == {"authority": "https://login.x"}


def test_an_unknown_cloud_is_named_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARM_CLOUD_METADATA_URL", "https://127.0.0.1:9/metadata")
    with pytest.raises(UsageError, match="AZUREML_CURRENT_CLOUD=AzureMoon: is not an Azure cloud") as error:
        read_cloud({"AZUREML_CURRENT_CLOUD": "AzureMoon"})
    assert "AzureCloud, AzureUSGovernment, AzureChinaCloud" in error.value.hint


def test_azure_token_credentials_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "nonsense")
    with pytest.raises(UsageError, match="nonsense"):
        sign_in(build_candidates({"AZURE_TOKEN_CREDENTIALS": "nonsense"}, PUBLIC.authority), PUBLIC.management_scope)


class Refusing:
    """A credential that gives no token."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def get_token(self, *scopes: str) -> Any:
        raise self.error


def token(**claims: str) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"e30.{body}.c2ln"


class Opening:
    """A credential that is somebody's."""

    def get_token(self, *scopes: str) -> Any:
        return SimpleNamespace(token=token(upn="ann@example.org", oid="oid-1"))


def test_the_first_available_credential_is_used() -> None:
    absent = Candidate("managed identity", lambda: Refusing(CredentialUnavailableError("nobody answers")))
    _, identity = sign_in([absent, Candidate("Azure CLI", Opening)], PUBLIC.management_scope)
    assert identity == SOMEBODY


def test_a_rejected_credential_is_not_replaced_by_another() -> None:
    refused = Candidate("environment variables", lambda: Refusing(ClientAuthenticationError("wrong secret\nmore")))
    with pytest.raises(AuthError) as error:
        sign_in([refused, Candidate("Azure CLI", Opening)], PUBLIC.management_scope)
    assert error.value.message == "Not signed in to Azure.\nenvironment variables: wrong secret."
    assert error.value.exit_code == 4
    behind = Candidate(
        "environment variables", lambda: Refusing(ClientAuthenticationError("[SSL: CERTIFICATE_VERIFY_F"))
    )
    with pytest.raises(UnreachableError, match="Signing in: no response from Azure "):
        sign_in([behind], PUBLIC.management_scope)
    assert error.value.hint.startswith("Correct AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or unset ")


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"upn": "ann@example.org", "appid": "a"}, "ann@example.org"),
        ({"unique_name": "live.com#bob@example.org"}, "live.com#bob@example.org"),
        ({"app_displayname": "ci", "appid": "a"}, "ci"),
        ({"appid": "a"}, "a"),
        ({}, "an unnamed identity"),
    ],
)
def test_an_identity_is_named_by_its_user_or_application(claims: dict[str, str], name: str) -> None:
    assert identity_of(token(oid="o", **claims), "here") == Identity(name, "o", "here")


def test_an_unreadable_token_has_no_identity() -> None:
    assert identity_of("opaque", "here").name == "an unnamed identity"


def test_the_role_that_is_missing_is_named_with_its_command() -> None:
    for action, role in (
        ("computes/write", "AzureML Compute Operator"),
        ("jobs/write", "AzureML Data Scientist"),
        ("computes/read", "AzureML Data Scientist"),
    ):
        text = (
            f"The client 'ann' with object id 'oid-2' does not have authorization to perform action "
            f"'Microsoft.MachineLearningServices/workspaces/{action}' over scope '{SCOPE}/computes/gpu' or the "
            "scope is invalid."
        )
        error = translated(service_error(403, "AuthorizationFailed", text))
        assert error.exit_code == 4
        assert error.hint.splitlines()[1] == (
            f'az role assignment create --role "{role}" --assignee oid-2 --scope {SCOPE}'
        )
    unnamed = translated(service_error(403, "Forbidden", "No."))
    assert unnamed.hint.endswith(f'--role "AzureML Data Scientist" --assignee oid-1 --scope {SCOPE}')


def test_a_token_of_another_tenant_names_the_tenant_to_sign_in_to() -> None:
    tenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
    text = f"The access token is from the wrong issuer. It must match the tenant 'https://sts.windows.net/{tenant}/'."
    error = translated(service_error(401, "InvalidAuthenticationTokenTenant", text, ClientAuthenticationError))
    assert (error.exit_code, error.hint) == (4, f"Run: az login --tenant {tenant}")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("ClusterCoreQuotaReached", "Operation results in exceeding quota limits of Core."),
        ("QuotaExceeded", "Too many."),
        ("BadRequest", "The specified subscription has exceeded its quota for cores."),
        ("AllocationFailed", "Not now."),
        (
            "BadRequest",
            "The specified subscription has a Standard NCADSA100v4 family vCPU quota of 0 and cannot accomodate for at "
            "least 1 requested managed compute nodes which maps to 24 vCPUs.",
        ),
        ("ClusterMinNodesExceedCoreQuota", "The specified subscription has a total vCPU quota of 0."),
        ("InvalidPropertyValue", "STANDARD_ND96ISR_H200_V5 is not a supported VM size."),
        (
            "UnsupportedVMSizeForLowPriority",
            "The VM size X is not allowed for LowPriority. Please convert to Dedicated.",
        ),
        ("OutOfCapacity", "No machines."),
        ("BadRequest", "Operation results in exceeding quota limits of Microsoft.Batchlusters."),
        ("OutOfQuota", "Not enough cluster CPU quota. The amount of additional CPU quota requested is 8."),
        (
            "OperationNotAllowed",
            "Operation could not be completed as it results in exceeding approved LowPriorityCores quota. Additional "
            "details - Current Limit: 100, Current Usage: 100, Additional Required: 8.",
        ),
    ],
)
def test_quota_and_capacity_are_exit_5(code: str, message: str) -> None:
    error = translated(service_error(400, code, message))
    assert isinstance(error, QuotaError)
    assert error.exit_code == 5
    assert message in error.message
    assert error.hint
    assert ("--no-low-priority" in error.hint) is ("LowPriority" in code + message)


@pytest.mark.parametrize(
    ("code", "message"),
    [("BadRequest", "The property quotaName is unknown."), ("Conflict", "A size limit was exceeded.")],
)
def test_other_refusals_are_not_about_quota(code: str, message: str) -> None:
    assert translated(service_error(400, code, message)).exit_code == 1


POLICY = {
    "policyAssignment": {
        "name": "Require a tag",
        "id": "/subscriptions/s1/providers/Microsoft.Authorization/policyAssignments/require-tag",
    },
    "policyDefinition": {"name": "Require a tag and its value on resources", "id": "/providers/x"},
}


@pytest.mark.parametrize(
    ("code", "message", "result"),
    [
        (
            "RequestDisallowedByPolicy",
            f"Resource 'gpu' was disallowed by policy. Policy identifiers: '{json.dumps([POLICY])}'.",
            "the policy Require a tag / Require a tag and its value on resources does not allow it",
        ),
        (
            "RequestDisallowedByPolicy",
            "The resource action 'computes/write' is disallowed by one or more policies. Policy identifier(s): "
            f"'{POLICY['policyAssignment']['id']}'.",
            "the policy require-tag does not allow it",
        ),
        ("RequestDisallowedByPolicy", "Resource 'gpu' was disallowed.", "Resource 'gpu' was disallowed"),
    ],
)
def test_a_policy_is_named_and_is_no_missing_role(code: str, message: str, result: str) -> None:
    error = translated(service_error(403, code, message))
    assert (error.exit_code, error.message) == (4, f"Making the cluster gpu: {result} ({code}).")
    assert "az role assignment" not in error.hint
    assert ("az policy assignment show --name require-tag --scope /subscriptions/s1" in error.hint) == (
        "olicy" in message
    )


@pytest.mark.parametrize(
    ("action", "role"),
    [
        ("Microsoft.Network/virtualNetworks/subnets/join/action", "Network Contributor"),
        ("Microsoft.ManagedIdentity/userAssignedIdentities/assign/action", "Managed Identity Operator"),
    ],
)
def test_the_role_at_a_linked_resource_is_named_with_that_resource(action: str, role: str) -> None:
    linked = "/subscriptions/s2/resourceGroups/n/providers/Microsoft.Network/virtualNetworks/v/subnets/default"
    text = (
        "The client 'ann' with object id 'oid-2' has permission to perform action 'Microsoft.MachineLearningServices"
        f"/workspaces/computes/write' on scope '{SCOPE}/computes/gpu'; however, it does not have permission to perform "
        f"action(s) '{action}' on the linked scope(s) '{linked}' or the linked scope(s) are invalid."
    )
    error = translated(service_error(403, "LinkedAuthorizationFailed", text))
    assert error.hint.splitlines()[1] == f'az role assignment create --role "{role}" --assignee oid-2 --scope {linked}'


@pytest.mark.parametrize("status", [400, 403])
def test_a_job_that_is_forbidden_names_the_role(status: int) -> None:
    """The service gives the code of the user's error, and the reason inside."""
    error = service_error(
        status, "UserError", "No permission for Microsoft.MachineLearningServices/workspaces/jobs/write."
    )
    body = {"error": {"code": "UserError", "innerError": {"code": "ForbiddenError"}}}
    error.response = SimpleNamespace(text=lambda: json.dumps(body), headers={})
    result = translated(error)
    assert result.exit_code == 4
    assert result.hint.endswith(f'--role "AzureML Data Scientist" --assignee oid-1 --scope {SCOPE}')


def test_a_read_at_the_subscription_names_a_role_there() -> None:
    text = (
        "The client 'ann' with object id 'oid-2' does not have authorization to perform action 'Microsoft."
        "MachineLearningServices/locations/vmSizes/read' over scope '/subscriptions/s1/providers/Microsoft."
        "MachineLearningServices/locations/eastus' or the scope is invalid."
    )
    error = translated(service_error(403, "AuthorizationFailed", text))
    assert error.hint.endswith('--role "Reader" --assignee oid-2 --scope /subscriptions/s1')


@pytest.mark.parametrize(
    ("status", "code", "problem", "hint"),
    [
        (403, "AuthorizationFailure", "the firewall of acc does not allow this network", "network-rule add"),
        (409, "PublicAccessNotPermitted", "acc allows no requests from public networks", "network-rule add"),
        (403, "AuthorizationSourceIPMismatch", "acc does not allow the address of this machine", "network-rule add"),
        (403, "AuthenticationFailed", "acc refused the key or SAS: it is wrong, malformed or expired", "keys list"),
        (
            400,
            "InvalidAuthenticationInfo",
            "acc refused the key or SAS: it is wrong, malformed or expired",
            "keys list",
        ),
        (401, "NoAuthenticationInformation", "acc requires a key, a SAS or an identity", "keys list"),
        (403, "AccountIsDisabled", "acc is disabled", "--datastore NAME"),
    ],
)
def test_what_a_storage_account_refuses_for_another_reason_is_no_missing_role(
    status: int, code: str, problem: str, hint: str
) -> None:
    error = service_error(status, code, "This request is not authorized to perform this operation.")
    request = SimpleNamespace(url="https://acc.blob.core.windows.net/container?restype=container")
    error.response = SimpleNamespace(request=request, headers={}, text=lambda: "")
    result = translated(error)
    assert result.exit_code == 4
    assert result.message.startswith(f"Making the cluster gpu: {problem}")
    assert f"({code})" in result.message
    assert hint in result.hint
    assert "az role assignment" not in result.hint


@pytest.mark.parametrize(
    ("status", "code", "query", "hint"),
    [
        (403, "AuthorizationPermissionMismatch", "", '--role "Storage Blob Data Contributor" --assignee oid-1'),
        (403, "InsufficientAccountPermissions", "", '--role "Storage Blob Data Contributor" --assignee oid-1'),
        (403, "AuthorizationPermissionMismatch", "?sp=r&sig=s3cr3t", "Set MSGGAN_STORAGE_SAS to a SAS with the "),
        (403, "AuthenticationFailed", "", "az ml workspace sync-keys --name w1 --resource-group g1"),
        (404, "ContainerNotFound", "", "az storage container create --account-name acc --name con --auth-mode login"),
    ],
)
def test_a_storage_account_is_helped_by_what_concerns_it(status: int, code: str, query: str, hint: str) -> None:
    error = service_error(status, code, "No.")
    request = SimpleNamespace(url=f"https://acc.blob.core.windows.net/con/a/b{query}")
    error.response = SimpleNamespace(request=request, headers={}, text=lambda: "")
    result = translated(error)
    assert hint in result.hint
    assert "AzureML Data Scientist" not in result.hint
    assert "s3cr3t" not in str(result) + result.hint
    assert getattr(result, "is_missing", False) is (status == 404)


def test_a_workspace_behind_a_private_endpoint_is_no_missing_role() -> None:
    error = translated(service_error(403, "PublicNetworkAccessDenied", "Public access is not allowed."))
    assert error.exit_code == 4
    assert error.hint.startswith("The workspace is closed to public networks.")


def test_what_the_sdk_wraps_in_a_page_of_advice_is_one_sentence() -> None:
    page = (
        "\n\x1b[37m1) Resource was not found.\nDetails: \n\x1b[31m(x) Asset p does not exist in workspace w.\x1b[39m\n"
    )
    error = translated(AzureError(page))
    assert str(error) == "Making the cluster gpu: Asset p does not exist in workspace w."
    assert isinstance(error, AzureServiceError)
    assert error.is_missing


def test_a_malformed_key_is_reported_as_one() -> None:
    from azure.storage.blob._shared.authentication import AzureSigningError

    error = translated(AzureSigningError("Incorrect padding"))
    assert error.message == "Making the cluster gpu: the account key is malformed: it is not Base64 text."
    assert "()" not in str(error)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("SubscriptionNotFound", "The subscription 's1' could not be found."),
        ("ResourceGroupNotFound", "Resource group 'g1' could not be found."),
        ("ResourceNotFound", "The Resource 'Microsoft.MachineLearningServices/workspaces/w1' was not found."),
        ("ParentResourceNotFound", f"Failed, because the parent resource '{SCOPE}' could not be found."),
    ],
)
def test_a_missing_workspace_is_distinguished_from_a_missing_resource(code: str, message: str) -> None:
    error = translated(service_error(404, code, message, ResourceNotFoundError))
    assert isinstance(error, WorkspaceError)
    assert error.message == (
        "No workspace w1 in resource group g1 of subscription s1 (set in variable AZUREML_ARM_WORKSPACE_NAME)."
    )
    resource = translated(service_error(404, "ResourceNotFound", "Compute gpu was not found.", ResourceNotFoundError))
    assert isinstance(resource, AzureServiceError)
    assert resource.is_missing


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_service_is_exit_1_with_advice_to_retry(status: int) -> None:
    error = translated(service_error(status, "Busy", "Not now."))
    assert (error.code, error.exit_code) == ("azure", 1)
    assert error.message.endswith(f"Azure is overloaded or unavailable (status {status}).")
    assert error.hint.startswith("Try again")


def test_an_error_of_the_service_ends_with_the_ids_that_support_asks_for() -> None:
    refused = service_error(403, "Forbidden", "No.")
    refused.response = SimpleNamespace(headers={"x-ms-request-id": "r-1", "x-ms-correlation-request-id": "c-1"})
    assert translated(refused).hint.splitlines()[-1] == "Request ID: r-1, correlation ID: c-1"
    refused.response = SimpleNamespace(headers={"x-ms-request-id": "r-1", "x-ms-correlation-request-id": "r-1"})
    assert translated(refused).hint.splitlines()[-1] == "Request ID: r-1"
    body = '{"error": {"code": "UserError"}, "correlation": {"operation": "o-1", "request": "r-1"}}'
    request = SimpleNamespace(headers={"x-ms-client-request-id": "sent-1"}, url="https://here")
    refused.response = SimpleNamespace(headers={}, text=lambda: body, request=request)
    assert translated(refused).hint.splitlines()[-1] == "Request ID: r-1, correlation ID: o-1"
    refused.response.text = lambda: "Bad gateway"
    assert translated(refused).hint.splitlines()[-1] == "Request ID: sent-1"


@pytest.mark.parametrize(
    ("error", "may_have_happened", "cause"),
    [
        (ServiceRequestError("Failed to establish a new connection: Name or service not known"), False, "its name"),
        (ServiceRequestError("certificate verify failed: CERTIFICATE_VERIFY_FAILED"), False, "its certificate"),
        (ServiceRequestError("Unable to connect to proxy: Tunnel failed: 502 Bad Gateway"), False, "the proxy"),
        # What an answer that was lost behind a proxy looks like.
        (
            ServiceRequestError("('Unable to connect to proxy', RemoteDisconnected('Remote end closed'))"),
            True,
            "closed",
        ),
        (ServiceResponseError("('Connection aborted.', RemoteDisconnected('Remote end closed'))"), True, "closed"),
        (ServiceResponseError("Read timed out. (read timeout=300)"), True, "the request timed out"),
    ],
)
def test_a_lost_response_is_distinguished_from_a_request_that_was_not_sent(
    error: Exception, may_have_happened: bool, cause: str
) -> None:
    result = translated(error)
    assert isinstance(result, UnreachableError)
    assert result.may_have_happened is may_have_happened
    assert cause in result.message
    assert result.exit_code == 1


def test_our_own_errors_and_bugs_are_not_translated() -> None:
    with pytest.raises(UsageError), azure_errors("Trying"):
        raise UsageError(["no"])
    with pytest.raises(ZeroDivisionError), azure_errors("Trying"):
        raise ZeroDivisionError
