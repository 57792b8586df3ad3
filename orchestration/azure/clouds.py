"""The Azure cloud and its hosts: public, Azure Government, China, or one that ARM_CLOUD_METADATA_URL describes.

They are the SDK's own, by the variables that it reads: AZUREML_CURRENT_CLOUD and ARM_CLOUD_METADATA_URL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from azure.ai.ml import _azure_environments as sdk
from azure.ai.ml.constants._common import AZUREML_CLOUD_ENV_NAME
from azure.ai.ml.exceptions import MlException

from msggan.errors import UsageError


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


def read_cloud(environ: Mapping[str, str]) -> AzureCloud:
    """The cloud that the environment selects. Makes a request only for one that is not built into the SDK.

    Raises UsageError if there is none of that name.
    """
    name = environ.get(AZUREML_CLOUD_ENV_NAME) or sdk._get_default_cloud_name()
    try:
        hosts = sdk._get_cloud_details(name)
    except MlException as error:
        known = ", ".join(vars(sdk.AzureEnvironments)[key] for key in ("ENV_DEFAULT", "ENV_US_GOVERNMENT", "ENV_CHINA"))
        raise UsageError(
            [f"{AZUREML_CLOUD_ENV_NAME}={name}: is not an Azure cloud."],
            f"Use one of {known}, or set ARM_CLOUD_METADATA_URL to the address that describes the cloud.",
        ) from error
    return AzureCloud(
        name,
        management=hosts[sdk.EndpointURLS.RESOURCE_MANAGER_ENDPOINT].rstrip("/"),
        authority=hosts[sdk.EndpointURLS.ACTIVE_DIRECTORY_ENDPOINT].rstrip("/"),
        studio=hosts[sdk.EndpointURLS.AML_RESOURCE_ID].rstrip("/"),
        storage=hosts[sdk.EndpointURLS.STORAGE_ENDPOINT],
    )
