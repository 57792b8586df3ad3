"""Microsoft Entra ID: tokens for credentials, and whether the caller of a request is permitted it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .hosts import LOGIN
from .messages import Reply, Request, ServiceError, json_reply
from .roles import forbidden_action
from .routing import Routes

if TYPE_CHECKING:
    from .cloud import Cloud

routes = Routes()


def make_token(tenant: str, audience: str, lives_s: int = 3600, **claims: Any) -> str:
    """A JSON web token; the signature is not verified here."""
    now = int(time.time())
    body = {
        "aud": audience,
        "tid": tenant,
        "iss": f"https://sts.windows.net/{tenant}/",
        "iat": now,
        "nbf": now - 60,
        "exp": now + lives_s,
        **claims,
    }
    parts = [json.dumps({"alg": "RS256", "typ": "JWT", "kid": "local"}).encode(), json.dumps(body).encode(), b"signed"]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def read_token(headers: Mapping[str, str]) -> dict[str, Any]:
    """The claims of a bearer token, empty without one. Raises ServiceError (401) if it is malformed or expired."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer":
        return {}
    try:
        part = token.split(".")[1]
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError):
        raise ServiceError(401, "InvalidAuthenticationToken", "The access token is invalid.") from None
    if claims["exp"] < time.time():
        raise ServiceError(401, "ExpiredAuthenticationToken", "The access token expiry UTC time is earlier than now.")
    return claims


@routes.add("GET", "/common/discovery/instance", LOGIN)
def instance_discovery(cloud: Cloud, request: Request) -> Reply:
    return json_reply(
        {
            "tenant_discovery_endpoint": f"https://login.microsoftonline.com/{cloud.tenant}/v2.0/.well-known/openid-configuration",
            "api-version": "1.1",
            "metadata": [
                {
                    "preferred_network": "login.microsoftonline.com",
                    "preferred_cache": "login.windows.net",
                    "aliases": ["login.microsoftonline.com"],
                }
            ],
        }
    )


@routes.add("GET", "/{tenant}/v2.0/.well-known/openid-configuration", LOGIN)
def openid_configuration(cloud: Cloud, request: Request, tenant: str) -> Reply:
    base = f"https://{request.host}/{tenant}"
    return json_reply(
        {
            "issuer": f"{base}/v2.0",
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
            "jwks_uri": f"{base}/discovery/v2.0/keys",
            "tenant_region_scope": None,
        }
    )


@routes.add("POST", "/{tenant}/oauth2/v2.0/token", LOGIN)
def token(cloud: Cloud, request: Request, tenant: str) -> Reply:
    form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
    if form.get("grant_type") != "client_credentials":
        raise ServiceError(
            501, "NotImplementedHere", f"The local Azure does not know the grant {form.get('grant_type')}"
        )
    if tenant != cloud.tenant:
        return oauth_error(400, "invalid_request", f"AADSTS90002: Tenant '{tenant}' not found.")
    if form.get("client_id") != cloud.client_id:
        return oauth_error(
            400, "unauthorized_client", f"AADSTS700016: Application '{form.get('client_id')}' not found."
        )
    if form.get("client_secret") != cloud.client_secret:
        return oauth_error(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
    audience = form["scope"].split(" ")[0].removesuffix("/.default").rstrip("/")
    made = make_token(tenant, audience, appid=cloud.client_id, oid=cloud.object_id, idtyp="app")
    return json_reply({"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": made})


def oauth_error(status: int, error: str, description: str) -> Reply:
    return json_reply({"error": error, "error_description": description}, status)


def authorize(cloud: Cloud, request: Request) -> None:
    """Sets the request's claims. Raises ServiceError if the caller is not signed in or lacks a role for the request."""
    request.token = read_token(request.headers)
    if not request.token:
        raise ServiceError(401, "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.")
    if request.token["aud"] not in cloud.hosts.audiences or request.token["tid"] != cloud.tenant:
        raise ServiceError(401, "InvalidAuthenticationTokenAudience", f"Not a token for this: {request.token['aud']}.")
    in_job = "run" in request.token  # a job's token is valid only for its run's history and metrics
    if in_job and request.host == cloud.hosts.management:
        raise ServiceError(403, "AuthorizationFailed", "A run's token is not for the resource manager.")
    action = forbidden_action(cloud, request) if not in_job else None
    if action:
        raise ServiceError(
            403,
            "AuthorizationFailed",
            f"The client '{cloud.client_id}' with object id '{cloud.object_id}' does not have authorization to perform "
            f"action '{action}' over scope '{request.path}' or the scope is invalid. "
            "If access was recently granted, please refresh your credentials.",
        )
