"""The Azure cloud and its hosts: public, Azure Government, China, or one that ARM_CLOUD_METADATA_URL describes.

The first three are written down here, equal to the SDK's, which takes seconds to import: signing in needs them first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msggan.errors import UsageError

CLOUD_VARIABLE = "AZUREML_CURRENT_CLOUD"
METADATA_VARIABLE = "ARM_CLOUD_METADATA_URL"
PUBLIC_CLOUD = "AzureCloud"


@dataclass(frozen=True)
class AzureCloud:
    """A cloud. authority: where identities sign in. storage: the domain of its storage accounts."""

    name: str
    management: str
    authority: str
    studio: str
    storage: str

    @property
    def management_scope(self) -> str:
        """What an access token for Azure Resource Manager is for."""
        return f"{self.management}/.default"


CLOUDS = {
    cloud.name: cloud
    for cloud in (
        AzureCloud(
            PUBLIC_CLOUD,
            "https://management.azure.com",
            "https://login.microsoftonline.com",
            "https://ml.azure.com",
            "core.windows.net",
        ),
        AzureCloud(
            "AzureUSGovernment",
            "https://management.usgovcloudapi.net",
            "https://login.microsoftonline.us",
            "https://ml.azure.us",
            "core.usgovcloudapi.net",
        ),
        AzureCloud(
            "AzureChinaCloud",
            "https://management.chinacloudapi.cn",
            "https://login.chinacloudapi.cn",
            "https://ml.azure.cn",
            "core.chinacloudapi.cn",
        ),
    )
}


def read_cloud(environ: Mapping[str, str]) -> AzureCloud:
    """The cloud that the environment selects. Makes a request only for one that ARM_CLOUD_METADATA_URL describes.

    Raises UsageError if there is none of that name.
    """
    name = environ.get(CLOUD_VARIABLE) or PUBLIC_CLOUD
    if name in CLOUDS:
        return CLOUDS[name]
    from azure.ai.ml import _azure_environments as sdk
    from azure.ai.ml.exceptions import MlException

    try:
        hosts = sdk._get_cloud_details(name)
    except MlException as error:
        raise UsageError(
            [f"{CLOUD_VARIABLE}={name}: is not an Azure cloud."],
            f"Use one of {', '.join(CLOUDS)}, or set {METADATA_VARIABLE} to the address that describes the cloud.",
        ) from error
    return AzureCloud(
        name,
        management=hosts[sdk.EndpointURLS.RESOURCE_MANAGER_ENDPOINT].rstrip("/"),
        authority=hosts[sdk.EndpointURLS.ACTIVE_DIRECTORY_ENDPOINT].rstrip("/"),
        studio=hosts[sdk.EndpointURLS.AML_RESOURCE_ID].rstrip("/"),
        storage=hosts[sdk.EndpointURLS.STORAGE_ENDPOINT],
    )
