"""A private certificate authority that signs the certificates of Azure's host names."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

from .cloud import REGION
from .hosts import CLOUDS, PRICES_HOST

NAMES = (
    *(name for hosts in CLOUDS.values() for name in (hosts.management, hosts.login)),
    *(f"*.{domain}" for hosts in CLOUDS.values() for domain in (f"blob.{hosts.storage}", hosts.api, hosts.vault)),
    *(f"*.workspace.{REGION}.{hosts.api}" for hosts in CLOUDS.values()),
    PRICES_HOST,
    "localhost",
    "127.0.0.1",
)


@dataclass(frozen=True)
class Authority:
    """The files of a certificate authority: its certificate, and a server's certificate with its key."""

    certificate: Path
    server_certificate: Path
    server_key: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server_certificate, self.server_key)
        return context

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))


def create_authority(folder: Path) -> Authority:
    """Creates a new authority and writes its files to `folder`."""
    authority = trustme.CA()
    server = authority.issue_cert(*NAMES)
    made = Authority(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    authority.cert_pem.write_to_path(made.certificate)
    made.server_certificate.write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    server.private_key_pem.write_to_path(made.server_key)
    made.server_key.chmod(0o600)
    return made
