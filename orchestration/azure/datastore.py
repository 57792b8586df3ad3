"""The datastore for images and runs: its plan, its storage account, and how it is created, checked and deleted.

A datastore of our own holds no key: its blobs are read with an identity. A key or a SAS comes only from an environment
variable, and is written only to the datastore's credentials.
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
from orchestration.azure.blobs import KEYS_REFUSED, build_container
from orchestration.azure.client import (
    PROVISIONED_TAG,
    Client,
    error_code,
    is_provisioned,
    storage_role_hint,
    translate_error,
)
from orchestration.errors import AuthError, AzureServiceError, UnreachableError
from orchestration.settings import Settings
from orchestration.status import Change, Item, changes_between

KIND = "datastore"
CONTAINER_KIND = "container"
KEY_VARIABLE = "MSGGAN_STORAGE_KEY"
SAS_VARIABLE = "MSGGAN_STORAGE_SAS"

NAME_PATTERN = r"[a-z0-9_]+"
IDENTITY, KEY, SAS = "identity", "account key", "SAS"


@dataclass(frozen=True, repr=False)  # without a repr, which might be printed by accident
class Secret:
    """A key or a SAS from an environment variable. kind: `account key` or `SAS`."""

    kind: str
    value: str

    @property
    def variable(self) -> str:
        return KEY_VARIABLE if self.kind == KEY else SAS_VARIABLE


def read_secret(environ: Mapping[str, str]) -> Secret | None:
    """The secret that is set, None if none is. Raises UsageError if both are."""
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
    """The values that the settings and the environment ask of the datastore."""
    return {
        "storage_account": settings.storage_account,
        "storage_container": settings.storage_container,
        "credentials": secret.kind if secret else IDENTITY,
    }


def values_of(store: AzureBlobDatastore) -> dict[str, Any]:
    """The same values of an existing datastore."""
    return {
        "storage_account": store.account_name,
        "storage_container": store.container_name,
        "credentials": _credentials_kind(store),
    }


def _credentials_kind(store: Datastore) -> str:
    if isinstance(store.credentials, AccountKeyConfiguration):
        return KEY
    return SAS if isinstance(store.credentials, SasTokenConfiguration) else IDENTITY


def plan_datastore(settings: Settings, there: Datastore | None, secret: Secret | None) -> Item:
    """What to do about the datastore that the settings name with its account. Makes no requests."""
    name = str(settings.datastore)
    if there is None and not re.fullmatch(NAME_PATTERN, name):
        reason = "the name of a new datastore must be lowercase letters, digits and _"
        valid = re.sub(r"[^a-z0-9_]", "_", name.lower())
        return Item(KIND, name, "refuse", reason=reason, hint=f"Use another name: --datastore {valid}")
    costs = ("What is stored there costs money until you delete it; no command here does.",)
    if there is None:
        return Item(KIND, name, "create", changes_between({}, wanted_values(settings, secret)), costs=costs)
    if not isinstance(there, AzureBlobDatastore):
        return Item(KIND, name, "refuse", reason=f"the name is taken by a datastore of another kind ({there.type})")
    changes = _changes(settings, there, secret)
    if "storage_account" in changes or "storage_container" in changes:
        reason = "it is another container, with the data of earlier jobs"
        return Item(KIND, name, "refuse", changes, reason, f"Use another name: --datastore {name}_2")
    if changes:
        return Item(KIND, name, "change", changes, costs=costs)
    return Item(KIND, name, "keep", reason="is up to date", costs=costs)


def _changes(settings: Settings, there: AzureBlobDatastore, secret: Secret | None) -> dict[str, Change]:
    """Without a secret the credentials stay as they are."""
    wanted, values = wanted_values(settings, secret), values_of(there)
    if secret is None:
        wanted["credentials"] = values["credentials"]
    return changes_between(values, wanted)


def with_credentials(item: Item, secret: Secret) -> Item:
    """The change of a datastore whose credentials have expired."""
    changes = {"credentials": {"from": "expired", "to": secret.kind}}
    return Item(item.kind, item.name, "change", changes, costs=item.costs)


def plan_datastore_deletion(name: str, there: Datastore) -> Item:
    """Whether to delete the datastore: only one that was created here, and never its data. Makes no requests."""
    if not isinstance(there, AzureBlobDatastore) or not is_provisioned(there.tags):
        return Item(KIND, name, "keep", reason="was not created by msggan-aml provision")
    reason = f"the data in {there.account_name}/{there.container_name} stays"
    return Item(KIND, name, "delete", reason=reason)


# --- With the service -------------------------------------------------------------------------------------------------


def read_datastore(client: Client, name: str) -> Datastore | None:
    """The datastore of that name, without its secrets; None where there is none."""
    return client.find(f"Looking for the datastore {name}", lambda: client.ml.datastores.get(name))


class ContainerMissing(Exception):  # noqa: N818 - a finding, not an error
    """The account can be read, and has no such container."""


def check_access(client: Client, container: ContainerClient, secret: Secret | None) -> None:
    """Lists one blob. Raises ContainerMissing; AuthError with the command that assigns the role; UnreachableError."""
    account = str(container.account_name)
    doing = f"Reading the storage account {account}"
    try:
        with container:
            next(iter(container.list_blob_names(results_per_page=1)), None)
    except ResourceNotFoundError as error:
        if error_code(error) != "ContainerNotFound":
            raise translate_error(error, doing, client.workspace, client.identity) from error
        raise ContainerMissing from error
    except HttpResponseError as error:
        if not isinstance(error, ClientAuthenticationError) and error.status_code != 403:
            raise translate_error(error, doing, client.workspace, client.identity) from error
        raise _refusal(client, error, doing, account, secret) from None
    except ValueError as error:  # of a key that is not base64
        variable = secret.variable if secret else "the credentials"
        raise UsageError([f"{variable}: is not an account key as the Azure portal shows it."]) from error
    except Exception as error:
        ours = translate_error(error, doing, client.workspace, client.identity)
        raise (ours if isinstance(ours, AzureServiceError) else error) from error


def _refusal(client: Client, error: HttpResponseError, doing: str, account: str, secret: Secret | None) -> AuthError:
    code = error_code(error)
    if code == KEYS_REFUSED:
        unset = f" Unset {secret.variable} to use identities." if secret else ""
        reason = f"{account} accepts no keys and no SAS ({code}).{unset}"
    elif secret is not None:
        reason = f"the {secret.kind} was refused ({code})."
    else:
        reason = f"the signed-in identity may not read its blobs ({code})."
    if code == "AuthenticationFailed":
        return AuthError(f"{doing}: {reason}", f"See the keys: az storage account keys list --account-name {account}")
    return AuthError(f"{doing}: {reason}", storage_role_hint(client.identity, account))


def plan_container(client: Client, settings: Settings, secret: Secret | None) -> Item | None:
    """An item if the account is unreachable (refuse) or has no such container (create), else None."""
    name = f"{settings.storage_account}/{settings.storage_container}"
    try:
        check_access(client, _container_of(client, settings, secret), secret)
    except ContainerMissing:
        return Item(CONTAINER_KIND, name, "create")
    except UnreachableError as error:
        hint = f"List the accounts: az storage account list --output table\n{error.hint}"
        return Item(CONTAINER_KIND, name, "refuse", reason=error.message, hint=hint)
    return None


def ensure_container(client: Client, settings: Settings, secret: Secret | None) -> None:
    """Creates the container if there is none."""
    doing = f"Creating the container {settings.storage_account}/{settings.storage_container}"
    with client.errors(doing), _container_of(client, settings, secret) as container:
        if not container.exists():
            container.create_container()


def _container_of(client: Client, settings: Settings, secret: Secret | None) -> ContainerClient:
    account, name = str(settings.storage_account), str(settings.storage_container)
    return build_container(client, account, name, secret.value if secret else None)


def ensure_datastore(client: Client, settings: Settings, secret: Secret | None) -> None:
    """Creates the datastore, or changes its credentials."""
    store = build_datastore(settings, secret)
    there = read_datastore(client, str(store.name))
    if there is not None and not is_provisioned(there.tags):
        store.tags = there.tags or {}
    with client.errors(f"Creating the datastore {store.name}"):
        client.ml.datastores.create_or_update(store)


def delete_datastore(client: Client, name: str) -> None:
    with client.errors(f"Deleting the datastore {name}"):
        client.ml.datastores.delete(name)
