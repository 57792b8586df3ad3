"""The HTTPS proxy that directs Azure's host names to the local server and rejects all other hosts."""

from __future__ import annotations

import selectors
import socket
import socketserver
import threading
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

IDENTITY_PATH = "/msi/token"  # of a node's managed identity endpoint
ON_BEHALF_PATH = "/obo/token"  # of a job with the identity of the user who submitted it
METADATA_SERVICE = "http://169.254.169.254/"  # the Azure Instance Metadata Service


class Proxy(socketserver.ThreadingTCPServer):
    """Tunnels connections to Azure's hosts to `target`; other hosts get a 403 response and are passed to `forbid`.

    `identity_token(resource, secret)` answers the managed identity endpoint at `url`: (status, JSON). secret: None for
    the identity of the user.
    `unreachable(host)` returns whether a host would not resolve in Azure: it gets a 502 response.
    """

    daemon_threads = False  # they end with the tunnels, which the server closes
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self,
        target: tuple[str, int],
        is_azure: Callable[[str], bool],
        forbid: Callable[[str], None],
        unreachable: Callable[[str], bool],
        identity_token: Callable[[str, str | None], tuple[str, str]],
    ) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.target, self.is_azure, self.forbid, self.unreachable = target, is_azure, forbid, unreachable
        self.identity_token = identity_token
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="azure-proxy", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores clients that have disconnected."""


class Tunnel(socketserver.StreamRequestHandler):
    server: Proxy
    headers: dict[str, str]

    def handle(self) -> None:
        method, address = self._read_head()
        if method == "CONNECT" and self._is_azure(address):
            if self.server.unreachable(address.removesuffix(":443")):
                self._answer("502 Bad Gateway", f"no such host: {address}")
            else:
                self._tunnel()
        elif address.startswith((f"{IDENTITY_PATH}?", f"{ON_BEHALF_PATH}?")):
            resource = parse_qs(urlsplit(address).query)["resource"][0]
            secret = self.headers.get("secret", "") if address.startswith(IDENTITY_PATH) else None
            self._answer(*self.server.identity_token(resource, secret))
        elif address.startswith(METADATA_SERVICE):
            self._answer("403 Forbidden", "connecting to 169.254.169.254: network is unreachable")
        elif address:
            self.server.forbid(address)
            self._answer("403 Forbidden", f"the local Azure has no {address}")

    def _is_azure(self, address: str) -> bool:
        return address.endswith(":443") and self.server.is_azure(address.removesuffix(":443"))

    def _read_head(self) -> tuple[str, str]:
        words = self.rfile.readline(65537).decode("latin-1").split()
        self.headers = {}
        while line := self.rfile.readline(65537).strip().decode("latin-1"):
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        return (words[0], words[1].lower()) if len(words) == 3 else ("", "")

    def _answer(self, status: str, text: str) -> None:
        body = text.encode()
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.wfile.write(head.encode() + body)

    def _tunnel(self) -> None:
        with socket.create_connection(self.server.target) as far:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self.wfile.flush()
            # Not select.select, which is limited to 1024 open files, fewer than a long test process may have.
            with selectors.DefaultSelector() as ends:
                ends.register(self.connection, selectors.EVENT_READ, far)
                ends.register(far, selectors.EVENT_READ, self.connection)
                while _carry(ends):
                    """Until one end has closed."""


def _carry(ends: selectors.BaseSelector) -> bool:
    """Forwards the data that has arrived at either end to the other; False once one end has closed."""
    for ready, _ in ends.select():
        near, far = ready.fileobj, ready.data
        assert isinstance(near, socket.socket)
        try:
            data = near.recv(65536)
        except OSError:
            return False
        if not data:
            return False
        far.sendall(data)
    return True
