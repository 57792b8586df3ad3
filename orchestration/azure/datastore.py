"""Where on Azure do images and runs lie? The datastore, the account behind it, and whether it opens.

A datastore of our own names an account and no key: who asks for its blobs does so by an identity. A key or a SAS comes
from the environment alone, and goes nowhere but into the datastore's credentials.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from azure.ai.ml.entities import AccountKeyConfiguration, AzureBlobDatastore, Datastore, SasTokenConfiguration
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.storage.blob import ContainerClient

from msggan.errors import UsageError
from orchestration.azure.blobs import build_container
from orchestration.azure.client import PROVISIONED_TAG, Client, as_ours, error_code, is_provisioned, storage_role_hint
from orchestration.errors import AuthError, AzureServiceError, UnreachableError
from orchestration.settings import Settings
from orchestration.spec import Change, Item, changes_between

KIND = "datastore"
CONTAINER_KIND = "container"
KEY_VARIABLE = "MSGGAN_STORAGE_KEY"
SAS_VARIABLE = "MSGGAN_STORAGE_SAS"

STORE_NAME = r"[a-z0-9_]+"
IDENTITY, KEY, SAS = "identity", "account key", "SAS"


@dataclass(frozen=True, repr=False)  # no repr: it must not be printed by accident
class Secret:
    """A key or a SAS that the environment gives. kind: `account key` or `SAS`."""

    kind: str
    value: str

    @property
    def variable(self) -> str:
        return KEY_VARIABLE if self.kind == KEY else SAS_VARIABLE


def read_secret(environ: Mapping[str, str]) -> Secret | None:
    """The secret that is set, None for none. Raises UsageError for both."""
    key, sas = environ.get(KEY_VARIABLE), environ.get(SAS_VARIABLE)
    if key and sas:
        raise UsageError([f"{KEY_VARIABLE} and {SAS_VARIABLE}: both are set. Unset one of them."])
    if key:
        return Secret(KEY, key)
    return Secret(SAS, sas.removeprefix("?")) if sas else None


# --- The datastore ----------------------------------------------------------------------------------------------------


def build_datastore(settings: Settings, secret: Secret | None) -> AzureBlobDatastore:
    """The datastore that the settings describe."""
    credentials: AccountKeyConfiguration | SasTokenConfiguration | None = None
    if secret is not None:
        credentials = (
            AccountKeyConfiguration(account_key=secret.value)
            if secret.kind == KEY
            else SasTokenConfiguration(sas_token=secret.value)
        )
    return AzureBlobDatastore(
        name=str(settings.datastore),
        account_name=str(settings.storage_account),
        container_name=str(settings.storage_container),
        credentials=credentials,
        tags=dict(PROVISIONED_TAG),
    )


def wanted_values(settings: Settings, secret: Secret | None) -> dict[str, Any]:
    return {
        "storage_account": settings.storage_account,
        "storage_container": settings.storage_container,
        "credentials": secret.kind if secret else IDENTITY,
    }


def values_of(store: AzureBlobDatastore) -> dict[str, Any]:
    """The same of a datastore that is there."""
    return {
        "storage_account": store.account_name,
        "storage_container": store.container_name,
        "credentials": credentials_kind(store),
    }


def credentials_kind(store: Datastore) -> str:
    """How a datastore opens: `identity`, `account key` or `SAS`."""
    told = str(getattr(store.credentials, "type", "") or "").lower().replace("_", "")
    return {"accountkey": KEY, "sas": SAS}.get(told, IDENTITY)


def plan_datastore(settings: Settings, there: Datastore | None, secret: Secret | None) -> Item:
    """What is to be done about the datastore that the settings name with its account. Pure."""
    name = str(settings.datastore)
    if there is None and not re.fullmatch(STORE_NAME, name):
        reason = "a new datastore's name has small letters, digits and _ only"
        better = re.sub(r"[^a-z0-9_]", "_", name.lower())
        return Item(KIND, name, "refuse", reason=reason, hint=f"Take another name: --datastore {better}")
    costs = ("Azure asks money for what is stored there, as long as it lies there; no command here deletes it.",)
    if there is None:
        return Item(KIND, name, "create", changes_between({}, wanted_values(settings, secret)), costs=costs)
    if not isinstance(there, AzureBlobDatastore):
        return Item(KIND, name, "refuse", reason=f"the name is taken by a datastore of another kind ({there.type})")
    changes = _changes(settings, there, secret)
    if "storage_account" in changes or "storage_container" in changes:
        reason = "it leads to another container, where earlier jobs find their data"
        return Item(KIND, name, "refuse", changes, reason, f"Take another name: --datastore {name}_2")
    if changes:
        return Item(KIND, name, "change", changes, costs=costs)
    return Item(KIND, name, "keep", reason="is as it should be", costs=costs)


def _changes(settings: Settings, there: AzureBlobDatastore, secret: Secret | None) -> dict[str, Change]:
    """Without a secret at hand the credentials stay what they are."""
    wanted, values = wanted_values(settings, secret), values_of(there)
    if secret is None:
        wanted["credentials"] = values["credentials"]
    return changes_between(values, wanted)


def with_credentials(item: Item, secret: Secret) -> Item:
    """The change of a datastore whose own credentials open nothing any more."""
    changes = {"credentials": {"from": "some that do not open it", "to": secret.kind}}
    return Item(item.kind, item.name, "change", changes, costs=item.costs)


def plan_datastore_deletion(name: str, there: Datastore) -> Item:
    """Whether the datastore goes, which is a name for a place; what lies there stays in any case. Pure."""
    if not isinstance(there, AzureBlobDatastore) or not is_provisioned(there.tags):
        return Item(KIND, name, "keep", reason="was not made by msggan-aml provision")
    reason = f"only the name goes: what lies in {there.account_name}/{there.container_name} stays"
    return Item(KIND, name, "delete", reason=reason)


# --- With the service -------------------------------------------------------------------------------------------------


def read_datastore(client: Client, name: str) -> Datastore | None:
    """The datastore of that name, without what opens it; None where there is none."""
    return client.find(f"Looking for the datastore {name}", lambda: client.ml.datastores.get(name))


class ContainerMissing(Exception):  # noqa: N818 - what was found, rather than what went wrong
    """The account opens, and has no such container."""


def check_opens(client: Client, container: ContainerClient, secret: Secret | None) -> None:
    """Reads the name of one blob. Raises ContainerMissing; AuthError with the role's command; UnreachableError."""
    account = str(container.account_name)
    doing = f"Looking into the storage account {account}"
    try:
        with container:
            next(iter(container.list_blob_names(results_per_page=1)), None)
    except ResourceNotFoundError as error:
        if error_code(error) != "ContainerNotFound":
            raise as_ours(error, doing, client.workspace, client.identity) from error
        raise ContainerMissing from error
    except ClientAuthenticationError as error:
        raise AuthError(
            f"{doing}: {_why_closed(error, account, secret)}", _how_to_open(client, error, account)
        ) from None
    except HttpResponseError as error:
        if error.status_code != 403:
            raise as_ours(error, doing, client.workspace, client.identity) from error
        raise AuthError(
            f"{doing}: {_why_closed(error, account, secret)}", _how_to_open(client, error, account)
        ) from None
    except ValueError as error:  # a key that is no base64
        variable = secret.variable if secret else "the credentials"
        raise UsageError([f"{variable}: is not an account key, as the Azure portal shows it."]) from error
    except Exception as error:
        ours = as_ours(error, doing, client.workspace, client.identity)
        raise (ours if isinstance(ours, AzureServiceError) else error) from error


def _why_closed(error: HttpResponseError, account: str, secret: Secret | None) -> str:
    code = error_code(error)
    if code == "KeyBasedAuthenticationNotPermitted":
        unset = f" Unset {secret.variable}: without it identities serve." if secret else ""
        return f"{account} takes no keys and no SAS (KeyBasedAuthenticationNotPermitted).{unset}"
    if secret is not None:
        return f"the {secret.kind} does not open it ({code})."
    return f"who is signed in may not read its blobs ({code})."


def _how_to_open(client: Client, error: HttpResponseError, account: str) -> str:
    if error_code(error) == "AuthenticationFailed":
        return f"See the keys: az storage account keys list --account-name {account}"
    return storage_role_hint(client.identity, account)


def check_place(client: Client, settings: Settings, secret: Secret | None) -> Item | None:
    """An item where the account is out of reach (refuse) or has no such container (create), None where all is well."""
    account, name = str(settings.storage_account), str(settings.storage_container)
    try:
        check_opens(client, build_container(client, account, name, secret.value if secret else None), secret)
    except ContainerMissing:
        return Item(CONTAINER_KIND, f"{account}/{name}", "create")
    except UnreachableError as error:
        hint = f"See which accounts there are: az storage account list --output table\n{error.hint}"
        return Item(CONTAINER_KIND, f"{account}/{name}", "refuse", reason=error.message, hint=hint)
    return None


def ensure_container(client: Client, settings: Settings, secret: Secret | None) -> None:
    """Makes the container. Where it is there already, nothing is done."""
    account, name = str(settings.storage_account), str(settings.storage_container)
    with (
        client.errors(f"Making the container {account}/{name}"),
        build_container(client, account, name, secret.value if secret else None) as container,
    ):
        if not container.exists():
            container.create_container()


def ensure_datastore(client: Client, settings: Settings, secret: Secret | None) -> None:
    """Makes the datastore, or gives it other credentials."""
    store = build_datastore(settings, secret)
    there = read_datastore(client, str(store.name))
    if there is not None and not is_provisioned(there.tags):
        store.tags = there.tags or {}
    with client.errors(f"Making the datastore {store.name}"):
        client.ml.datastores.create_or_update(store)


def delete_datastore(client: Client, name: str) -> None:
    with client.errors(f"Deleting the datastore {name}"):
        client.ml.datastores.delete(name)
