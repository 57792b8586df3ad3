"""Requests and responses as plain values, the same for every host of the local Azure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """A request as received; header names are lower case."""

    method: str
    host: str
    path: str  # still percent-encoded, without the query
    query: dict[str, str]
    raw_query: str
    headers: dict[str, str]
    body: bytes
    token: Mapping[str, Any] = field(default_factory=dict)  # the claims of its bearer token

    @property
    def json(self) -> Any:
        """The body parsed as JSON. Raises ServiceError if it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ServiceError(400, "InvalidRequestContent", f"The request content was invalid JSON: {error}") from None


@dataclass
class Reply:
    """A response; `body` is sent unchanged."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class ServiceError(Exception):
    """Becomes an error response in Azure's format."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})

    def reply(self) -> Reply:
        error = {"error": {"code": self.code, "message": self.message}}
        # MLflow's client reads `error_code` and `message` at the top.
        flat = {"error_code": self.code, "message": self.message}
        return json_reply(error | flat, self.status, self.headers)


def json_reply(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})


@dataclass
class Recorded:
    """A recorded request, for tests to inspect.

    `body` is the parsed JSON, the bytes if it is not JSON (a blob, a form), or None without a body. `status` is that of
    the response: 0 if the connection was cut, None while the request is in progress.
    """

    method: str
    host: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    status: int | None = None

    def __str__(self) -> str:
        return f"{self.method} https://{self.host}{self.path} → {self.status}"


def record(request: Request) -> Recorded:
    try:
        body = json.loads(request.body) if request.body else None
    except ValueError:
        body = request.body
    return Recorded(request.method, request.host, request.path, dict(request.query), dict(request.headers), body)
