"""What is a request, and what an answer? Plain values, the same for every host of the local Azure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """One request as it arrived; header names are lower case."""

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
        """The body as JSON; ServiceError if it is none."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ServiceError(400, "InvalidRequestContent", f"The request content was invalid JSON: {error}") from None


@dataclass
class Reply:
    """An answer; `body` goes out as it is."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class ServiceError(Exception):
    """The service says no: becomes an answer with Azure's own form of an error."""

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
    """A request that was made: what a test may look at afterwards.

    `body` is the parsed JSON, or the bytes where it is none (a blob, a form), or None without one. `status` is what was
    answered: 0 where the connection was cut, None while it is still being answered.
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
