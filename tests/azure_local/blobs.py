"""The service's own access to the blobs: directly to Azurite, bypassing the proxy, the recording and the faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qs, quote

from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import (
    BlobServiceClient,
    ContainerClient,
    LinearRetry,
    generate_blob_sas,
    generate_container_sas,
)

from .hosts import PUBLIC


@dataclass
class Blobs:
    """The containers of the storage accounts; `issued` has the signature of every SAS that the service issued."""

    port: int
    keys: Mapping[str, str]
    certificate: str
    suffix: str = PUBLIC.storage  # the domain of the storage accounts, as URLs have it
    issued: set[str] = field(default_factory=set)
    _services: dict[str, BlobServiceClient] = field(default_factory=dict)
    _made: set[tuple[str, str]] = field(default_factory=set)

    def service(self, account: str) -> BlobServiceClient:
        if account not in self._services:
            self._services[account] = BlobServiceClient(
                f"https://127.0.0.1:{self.port}/{account}",
                credential=self.keys[account],
                connection_verify=self.certificate,
                use_env_settings=False,
                # Azurite closes connections that were idle for five seconds, possibly during a request.
                retry_policy=LinearRetry(backoff=0, random_jitter_range=0),
                connection_timeout=120,
            )
        return self._services[account]

    def container(self, account: str, name: str) -> ContainerClient:
        """The container, created if it does not exist."""
        container = self.service(account).get_container_client(name)
        if (account, name) not in self._made:
            with suppress(ResourceExistsError):
                container.create_container()
            self._made.add((account, name))
        return container

    def exists(self, account: str, container: str) -> bool:
        return account in self.keys and self.service(account).get_container_client(container).exists()

    def clear(self) -> None:
        for account in self.keys:
            service = self.service(account)
            for container in service.list_containers():
                service.delete_container(container.name)
        self.issued.clear()
        self._made.clear()

    def close(self) -> None:
        for service in self._services.values():
            service.close()

    def names(self, account: str, container: str, prefix: str = "") -> list[str]:
        return list(self.container(account, container).list_blob_names(name_starts_with=prefix))

    def read(self, account: str, container: str, name: str) -> bytes:
        data: bytes = self.container(account, container).download_blob(name).readall()
        return data

    def write(self, account: str, container: str, name: str, data: bytes) -> None:
        self.container(account, container).upload_blob(name, data, overwrite=True)

    def container_url(self, account: str, container: str) -> str:
        return f"https://{account}.blob.{self.suffix}/{container}"

    def signed_container_url(self, account: str, container: str, permission: str = "rwcdl") -> str:
        self.container(account, container)
        sas = generate_container_sas(account, container, self.keys[account], permission=permission, expiry=_tomorrow())
        return f"{self.container_url(account, container)}?{self._issue(sas)}"

    def signed_blob_url(self, account: str, container: str, name: str, permission: str = "r") -> str:
        sas = generate_blob_sas(
            account, container, name, account_key=self.keys[account], permission=permission, expiry=_tomorrow()
        )
        return f"{self.container_url(account, container)}/{quote(name)}?{self._issue(sas)}"

    def _issue(self, sas: str) -> str:
        self.issued.add(parse_qs(sas)["sig"][0])
        return sas


@dataclass(frozen=True)
class BlobLocation:
    """A prefix, or one blob, in a container."""

    account: str
    container: str
    path: str

    def below(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}".lstrip("/")

    def files(self, blobs: Blobs) -> Iterator[tuple[str, str]]:
        """Pairs (blob, relative name) of all blobs below this path; a single blob has the relative name ""."""
        prefix = self.path.rstrip("/")
        for blob in blobs.names(self.account, self.container, prefix):
            if blob == prefix or not prefix or blob.startswith(prefix + "/"):
                yield blob, blob[len(prefix) :].lstrip("/")


def _tomorrow() -> Any:
    return datetime.now(timezone.utc) + timedelta(days=1)
