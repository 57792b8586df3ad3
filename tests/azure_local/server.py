"""The HTTPS server: TLS, recording, fault injection, and dispatch to the modules of the service."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .faults import Fault, Faults
from .hosts import CLOUDS
from .messages import Recorded, Reply, Request, ServiceError, record


class Recording:
    """All requests so far, and unexpected ones; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self.requests: list[Recorded] = []
            self.unknown: list[str] = []  # the response was 501
            self.forbidden: list[str] = []  # hosts that are not Azure's
            self.broken: list[str] = []  # errors of the local Azure, with their traceback

    def add(self, request: Recorded) -> Recorded:
        with self._lock:
            self.requests.append(request)
        return request


class Server(ThreadingHTTPServer):
    """One HTTPS server for all hosts; requests are processed by `answer`."""

    daemon_threads = False  # joined on close, so that none outlives its socket
    request_queue_size = 128

    def __init__(
        self, context: ssl.SSLContext, answer: Callable[[Request], Reply], faults: Faults, recording: Recording
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.context, self.answer, self.faults, self.recording = context, answer, faults, recording
        self.connections: set[ssl.SSLSocket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="azure-server", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server_address[1]

    def close(self) -> None:
        self.shutdown()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that is waiting for a request
        self.server_close()
        self._thread.join()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores clients that have disconnected."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        # Here rather than on accept, so that a slow handshake does not block other connections.
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        self.server.connections.add(self.request)
        super().setup()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        self.server.connections.discard(self.request)
        self.request.close()

    def log_message(self, *words: object) -> None:
        """Requests are recorded, not printed."""

    def _handle(self) -> None:
        request = self._read()
        recorded = self.server.recording.add(record(request))
        fault = self.server.faults.of(request)
        if fault is not None:
            time.sleep(fault.delay)
            fault.meanwhile()
        if fault is not None and fault.drop == "before":
            self._cut(recorded)
            return
        reply = fault_reply(fault) if fault is not None and fault.status is not None else self._answer(request)
        if fault is not None and fault.drop == "after":
            self._cut(recorded)
            return
        recorded.status = reply.status
        add_request_ids(reply, request.host)
        self._send(reply)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = _handle  # noqa: N815 - the base class's names

    def _read(self) -> Request:
        split = urlsplit(self.path)
        return Request(
            method=self.command,
            host=self.headers.get("Host", "").removesuffix(":443"),
            path=split.path,
            query=dict(parse_qsl(split.query, keep_blank_values=True)),
            raw_query=split.query,
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self._read_body(),
        )

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, request: Request) -> Reply:
        try:
            return self.server.answer(request)
        except ServiceError as refused:
            if refused.status == 501:
                self.server.recording.unknown.append(refused.message)
            return refused.reply()
        except Exception:
            self.server.recording.broken.append(f"{request.method} {request.path}\n{traceback.format_exc()}")
            return ServiceError(500, "LocalAzureBroken", traceback.format_exc()).reply()

    def _cut(self, recorded: Recorded) -> None:
        recorded.status = 0
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, reply: Reply) -> None:
        self.send_response_only(reply.status)
        headers: dict[str, Any] = {name.lower(): value for name, value in reply.headers.items()}
        for name, value in headers.items():
            self.send_header(name, value)
        if "content-length" not in headers and reply.status not in (204, 304):
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)


def add_request_ids(reply: Reply, host: str) -> None:
    """Adds the ID of the request, and Resource Manager's own: as headers, in the data plane's errors in the body."""
    if reply.status >= 400 and host.endswith(tuple(f".{hosts.api}" for hosts in CLOUDS.values())):
        with suppress(ValueError):
            correlation = {"operation": uuid.uuid4().hex, "request": uuid.uuid4().hex[:16]}
            reply.body = json.dumps({**json.loads(reply.body), "correlation": correlation}).encode()
            return
    names = {name.lower() for name in reply.headers}
    if "x-ms-request-id" not in names:
        reply.headers["x-ms-request-id"] = str(uuid.uuid4())
    if host in {hosts.management for hosts in CLOUDS.values()}:
        reply.headers["x-ms-correlation-request-id"] = str(uuid.uuid4())


def fault_reply(fault: Fault) -> Reply:
    assert fault.status is not None
    headers = {"x-ms-error-code": fault.code}
    if fault.retry_after is not None:
        headers["Retry-After"] = f"{fault.retry_after:g}"
    return ServiceError(fault.status, fault.code, "This answer was asked for by a test.", headers).reply()
