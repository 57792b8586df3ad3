"""The workspace, the service's endpoints, and the VM sizes and quotas of its region."""

from __future__ import annotations

from typing import Any

from . import hosts
from .cloud import REGION, WORKSPACE_ID, Cloud, Size
from .messages import Reply, Request, ServiceError, json_reply
from .roles import storage_account
from .routing import WORKSPACE, Routes

routes = Routes()
LOCATION = "/subscriptions/{subscription}/providers/Microsoft.MachineLearningServices/locations/{location}"
METADATA = {
    "portal": "https://portal.azure.com",
    "authentication": {
        "loginEndpoint": "https://login.microsoftonline.com/",
        "audiences": ["https://management.core.windows.net/", "https://management.azure.com/"],
        "tenant": "common",
        "identityProvider": "AAD",
    },
    "media": "https://rest.media.azure.net",
    "graphAudience": "https://graph.windows.net/",
    "graph": "https://graph.windows.net/",
    "name": "AzureCloud",
    "suffixes": {
        "acrLoginServer": "azurecr.io",
        "keyVaultDns": "vault.azure.net",
        "sqlServerHostname": "database.windows.net",
        "storage": "core.windows.net",
        "azureDataLakeStoreFileSystem": "azuredatalakestore.net",
        "azureDataLakeAnalyticsCatalogAndJob": "azuredatalakeanalytics.net",
    },
    "batch": "https://batch.core.windows.net/",
    "resourceManager": "https://management.azure.com/",
    "vmImageAliasDoc": "https://raw.githubusercontent.com/Azure/azure-rest-api-specs/aliases.json",
    "sqlManagement": "https://management.core.windows.net:8443/",
    "gallery": "https://gallery.azure.com/",
}


@routes.add("GET", "/metadata/endpoints")
def metadata(cloud: Cloud, request: Request) -> Reply:
    return json_reply([METADATA])


@routes.add("GET", WORKSPACE)
def workspace(cloud: Cloud, request: Request, **where: str) -> Reply:
    return json_reply(
        {
            "id": cloud.scope,
            "name": cloud.workspace,
            "type": "Microsoft.MachineLearningServices/workspaces",
            "location": REGION,
            "tags": {},
            "identity": {"type": "SystemAssigned", "principalId": cloud.object_id, "tenantId": cloud.tenant},
            "properties": {
                "friendlyName": cloud.workspace,
                "description": "",
                "workspaceId": WORKSPACE_ID,
                "storageAccount": storage_account(cloud, cloud.account),
                "discoveryUrl": f"https://{cloud.api_host}/discovery",
                "mlFlowTrackingUri": cloud.tracking_uri,
                "provisioningState": "Succeeded",
                "tenantId": cloud.tenant,
                "publicNetworkAccess": cloud.public_network_access,
                "containerRegistry": cloud.container_registry,
                "imageBuildCompute": cloud.image_build_compute,
            },
        }
    )


@routes.add("GET", "/discovery", hosts.API)
def discovery(cloud: Cloud, request: Request) -> Reply:
    names = ("api", "history", "mlflow", "experimentation", "artifact", "modelmanagement")
    return json_reply(dict.fromkeys(names, f"https://{cloud.api_host}"))


@routes.add("GET", LOCATION + "/vmSizes")
def vm_sizes(cloud: Cloud, request: Request, subscription: str, location: str) -> Reply:
    sizes = [
        {
            "name": size.name,
            "family": size.family,
            "vCPUs": size.cores,
            "gpus": size.gpus,
            "osVhdSizeMB": 1047552,
            "maxResourceVolumeMB": 51200,
            "memoryGB": size.memory_gb,
            "lowPriorityCapable": size.low_priority,
            "premiumIO": True,
            "supportedComputeTypes": ["AmlCompute", "ComputeInstance"],
            **({"estimatedVMPrices": estimated_prices(size)} if cloud.lists_prices and size.price is not None else {}),
        }
        for size in cloud.sizes
    ]
    return json_reply({"value": sizes})


def estimated_prices(size: Size) -> dict[str, Any]:
    assert size.price is not None
    tiers = [("Linux", "Standard", 1.0), ("Linux", "Spot", 0.1), ("Windows", "Standard", 2.0)]
    tiers += [("Linux", "LowPriority", 0.2)] if size.low_priority else []
    values = [
        {"retailPrice": round(size.price * factor, 6), "osType": system, "vmTier": tier}
        for system, tier, factor in tiers
    ]
    return {"billingCurrency": "USD", "unitOfMeasure": "OneHour", "values": values}


@routes.add("GET", LOCATION + "/usages")
def usages(cloud: Cloud, request: Request, subscription: str, location: str) -> Reply:
    base = f"/subscriptions/{subscription}/providers/Microsoft.MachineLearningServices/locations/{location}/usages"
    families = {size.family: f"{size.family} Cluster Dedicated vCPUs" for size in cloud.sizes}
    families["TotalLowPriorityCores"] = "Total Low Priority vCPUs"
    value = [
        {
            "id": f"{base}/{family}",
            "type": "Microsoft.MachineLearningServices/usages",
            "unit": "Count",
            "currentValue": cloud.cores_used.get(family, 0),
            "limit": quota(cloud, family, location),
            "name": {"value": family, "localizedValue": text},
        }
        for family, text in families.items()
    ]
    return json_reply({"value": value})


def quota(cloud: Cloud, family: str, location: str) -> int:
    return cloud.quotas.get(f"{location}/{family}", cloud.quotas.get(family, 10_000))


def check_workspace(cloud: Cloud, parts: dict[str, str]) -> None:
    """Raises ServiceError (404) if the path is of another subscription, resource group or workspace."""
    if parts.get("subscription", cloud.subscription) != cloud.subscription:
        raise ServiceError(404, "SubscriptionNotFound", f"Subscription '{parts['subscription']}' could not be found.")
    if parts.get("group", cloud.group).lower() != cloud.group.lower():
        raise ServiceError(404, "ResourceGroupNotFound", f"Resource group '{parts['group']}' could not be found.")
    if parts.get("workspace", cloud.workspace) != cloud.workspace:
        raise ServiceError(
            404,
            "ResourceNotFound",
            f"The Resource 'Microsoft.MachineLearningServices/workspaces/{parts['workspace']}' under resource group "
            f"'{cloud.group}' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix",
        )
