"""Forwards requests for the storage accounts' host names to Azurite."""

from __future__ import annotations

import http.client
import ssl

from .cloud import Cloud
from .entra import read_token
from .messages import Reply, Request

NOT_PASSED_ON = {"connection", "transfer-encoding", "keep-alive", "proxy-connection"}


def forward(cloud: Cloud, context: ssl.SSLContext, request: Request) -> Reply:
    """Azurite's response, or an error response worded like the service's if the switches require one."""
    refused = refusal(cloud, request)
    if refused:
        status, code, message = refused
        error = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
        return Reply(status, error.encode(), {"Content-Type": "application/xml", "x-ms-error-code": code})
    connection = http.client.HTTPSConnection("127.0.0.1", cloud.blobs.port, context=context, timeout=60)
    try:
        target = request.path + (f"?{request.raw_query}" if request.raw_query else "")
        headers = {name: value for name, value in request.headers.items() if name not in NOT_PASSED_ON}
        headers["content-length"] = str(len(request.body))
        connection.request(request.method, target, request.body, headers)
        answer = connection.getresponse()
        body = answer.read()
        passed = {name: value for name, value in answer.getheaders() if name.lower() not in NOT_PASSED_ON}
        if answer.status == 403:  # where the service answers AuthenticationFailed, Azurite has the code of a firewall
            body = body.replace(b"AuthorizationFailure", b"AuthenticationFailed")
            passed = {
                name: value.replace("AuthorizationFailure", "AuthenticationFailed") for name, value in passed.items()
            }
        if request.method != "HEAD":
            passed = {name: value for name, value in passed.items() if name.lower() != "content-length"}
        return Reply(answer.status, body, passed)
    finally:
        connection.close()


def refusal(cloud: Cloud, request: Request) -> tuple[int, str, str] | None:
    """The status, code and message of an error, or None if the request is to be forwarded to Azurite."""
    firewall = cloud.firewalled.get(request.host.partition(".")[0])
    if firewall is not None:
        return *firewall, "This request is not authorized to perform this operation."
    authorization = request.headers.get("authorization", "").lower()
    by_key = authorization.startswith("sharedkey")
    by_signature = "sig" in request.query and request.query["sig"] not in cloud.blobs.issued
    if not cloud.shared_keys and (by_key or by_signature):
        return (
            403,
            "KeyBasedAuthenticationNotPermitted",
            "Key based authentication is not permitted on this storage account.",
        )
    if authorization.startswith("bearer"):
        claims = read_token(request.headers)
        reads_only = cloud.blob_role == "Storage Blob Data Reader" and request.method not in ("GET", "HEAD")
        if "run" not in claims and (cloud.blob_role is None or reads_only):
            return (
                403,
                "AuthorizationPermissionMismatch",
                "This request is not authorized to perform this operation using this permission.",
            )
    return None
