"""The datastore for images and runs: its plan, its storage account, and how it is created, checked and deleted.

Unless a key or a SAS is set, the datastore holds none: its blobs are read with an identity. A secret comes only from an
environment variable, and is written only to the datastore's credentials.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from azure.ai.ml.entities import AccountKeyConfiguration, AzureBlobDatastore, Datastore, SasTokenConfiguration
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import ContainerClient
from azure.storage.blob._shared.authentication import AzureSigningError

from msggan.errors import MsgganError, UsageError
from orchestration.azure.client import PROVISIONED_TAG, Client, is_provisioned
from orchestration.azure.errors import KEY_HINT, KEYS_REFUSED, SECRET_REFUSED, error_code, storage_role_hint
from orchestration.errors import AuthError, UnreachableError
from orchestration.settings import Settings
from orchestration.status import Item, changes_between

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
        tags={**settings.tags, **PROVISIONED_TAG},
    )


def values_of(store: AzureBlobDatastore) -> dict[str, Any]:
    """The values of an existing datastore that a plan compares."""
    kinds: dict[type, str] = {AccountKeyConfiguration: KEY, SasTokenConfiguration: SAS}
    return {
        "storage_account": store.account_name,
        "storage_container": store.container_name,
        "credentials": kinds.get(type(store.credentials), IDENTITY),
    }


def plan_datastore(settings: Settings, existing: Datastore | None, secret: Secret | None) -> Item:
    """What to do about the datastore that the settings name with its account. Makes no requests."""
    name = str(settings.datastore)
    if existing is None and not re.fullmatch(NAME_PATTERN, name):
        reason = "the name of a new datastore must be lowercase letters, digits and _"
        valid = re.sub(r"[^a-z0-9_]", "_", name.lower())
        return Item(KIND, name, "refuse", reason=reason, hint=f"Use another name: --datastore {valid}")
    costs = ("What is stored there costs money until you delete it; no command here does.",)
    desired = {
        "storage_account": settings.storage_account,
        "storage_container": settings.storage_container,
        "credentials": secret.kind if secret else IDENTITY,
    }
    if existing is None:
        return Item(KIND, name, "create", changes_between({}, desired), costs=costs)
    if not isinstance(existing, AzureBlobDatastore):
        return Item(KIND, name, "refuse", reason=f"the name is taken by a datastore of another kind ({existing.type})")
    values = values_of(existing)
    if secret is None:  # its credentials stay
        desired["credentials"] = values["credentials"]
    changes = changes_between(values, desired)
    if "storage_account" in changes or "storage_container" in changes:
        reason = "it is another container, with the data of earlier jobs"
        return Item(KIND, name, "refuse", changes, reason, f"Use another name: --datastore {name}_2")
    if changes:
        return Item(KIND, name, "change", changes, costs=costs)
    return Item(KIND, name, "keep", reason="is up to date", costs=costs)


def plan_datastore_deletion(name: str, existing: Datastore) -> Item:
    """Whether to delete the datastore: only one that `provision` created, and never its data. Makes no requests."""
    if not isinstance(existing, AzureBlobDatastore) or not is_provisioned(existing.tags):
        return Item(KIND, name, "keep", reason="was not created by msggan-aml provision")
    reason = f"the data in {existing.account_name}/{existing.container_name} stays"
    return Item(KIND, name, "delete", reason=reason)


# --- With the service -------------------------------------------------------------------------------------------------


def read_datastore(client: Client, name: str) -> Datastore | None:
    """The datastore of that name, without its secrets; None if it does not exist."""
    return client.find(f"Looking for the datastore {name}", lambda: client.ml.datastores.get(name))


def check_access(client: Client, container: ContainerClient, secret: Secret | None) -> bool:
    """Lists one blob. Returns False if the storage account can be read but has no such container.

    Raises AuthError with the command that assigns the role, or UnreachableError.
    """
    account = str(container.account_name)
    operation = f"Reading the storage account {account}"
    try:
        with client.errors(operation), container:
            next(iter(container.list_blob_names(results_per_page=1)), None)
    except MsgganError as error:
        refusal = error.__cause__
        if not isinstance(refusal, HttpResponseError):
            raise
        if error_code(refusal) == "ContainerNotFound":
            return False
        code = error_code(refusal)
        if secret is not None and isinstance(refusal, AzureSigningError):
            problem = f"{secret.variable}: is not an account key as the Azure portal shows it."
            raise UsageError([problem], KEY_HINT.format(account=account)) from None
        if code == KEYS_REFUSED:
            unset = f" Unset {secret.variable} to use identities." if secret else ""
            reason = f"{account} accepts no keys and no SAS ({code}).{unset}"
        elif code == "AuthorizationPermissionMismatch":
            reason = f"the {secret.kind if secret else 'signed-in identity'} may not read its blobs ({code})."
        else:
            if secret is not None and code in SECRET_REFUSED:
                error.hint = f"Correct {secret.variable}. {error.hint}"
            raise
        raise AuthError(f"{operation}: {reason}", storage_role_hint(client.identity, account)) from None
    return True


def plan_container(client: Client, secret: Secret | None) -> Item | None:
    """An item if the account is unreachable (refuse) or has no such container (create), else None."""
    name = f"{client.settings.storage_account}/{client.settings.storage_container}"
    try:
        if check_access(client, _container_of(client, secret), secret):
            return None
    except UnreachableError as error:
        hint = f"List the accounts: az storage account list --output table\n{error.hint}"
        return Item(CONTAINER_KIND, name, "refuse", reason=error.message, hint=hint)
    return Item(CONTAINER_KIND, name, "create")


def ensure_container(client: Client, secret: Secret | None) -> None:
    """Creates the container if it does not exist."""
    name = f"{client.settings.storage_account}/{client.settings.storage_container}"
    with client.errors(f"Creating the container {name}"), _container_of(client, secret) as container:
        if not container.exists():
            container.create_container()


def _container_of(client: Client, secret: Secret | None) -> ContainerClient:
    account, name = str(client.settings.storage_account), str(client.settings.storage_container)
    return client.container(account, name, secret.value if secret else None)


def ensure_datastore(client: Client, secret: Secret | None) -> None:
    """Creates the datastore, or changes its credentials."""
    store = build_datastore(client.settings, secret)
    existing = read_datastore(client, str(store.name))
    if existing is not None and not is_provisioned(existing.tags):
        store.tags = existing.tags or {}
    with client.errors(f"Creating the datastore {store.name}"):
        client.ml.datastores.create_or_update(store)


def delete_datastore(client: Client, name: str) -> None:
    with client.errors(f"Deleting the datastore {name}"):
        client.ml.datastores.delete(name)
