"""Role-based access: what the caller's roles permit at each scope, and the response that lists it.

The caller has up to three roles: `cloud.role` at the workspace, `cloud.subscription_role` at the subscription, and
`cloud.blob_role` at the storage accounts. A role at a scope also holds below it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .hosts import MANAGEMENT, VAULT
from .messages import Reply, Request, ServiceError, json_reply
from .routing import WORKSPACE, Routes

if TYPE_CHECKING:
    from .cloud import Cloud

routes = Routes()
AML = "Microsoft.MachineLearningServices"
GROUP = "/subscriptions/{subscription}/resource[Gg]roups/{group}"
BLOBS = "Microsoft.Storage/storageAccounts/blobServices/containers"
EVERYTHING_IN_A_WORKSPACE = tuple(f"{AML}/workspaces/*/{verb}" for verb in ("read", "action", "delete", "write"))
NOT_THE_WORKSPACE = (
    *(f"{AML}/workspaces/{what}" for what in ("delete", "write", "listKeys/action")),
    *(f"{AML}/workspaces/{kind}/{verb}" for kind in ("hubs", "featurestores") for verb in ("write", "delete")),
)


@dataclass(frozen=True)
class Role:
    """A role definition; an action may contain `*`."""

    actions: tuple[str, ...] = ()
    not_actions: tuple[str, ...] = ()
    data_actions: tuple[str, ...] = ()

    def permits(self, action: str) -> bool:
        return _matches(self.actions, action) and not _matches(self.not_actions, action)

    def as_json(self) -> dict[str, Any]:
        return {
            "actions": list(self.actions),
            "notActions": list(self.not_actions),
            "dataActions": list(self.data_actions),
            "notDataActions": [],
        }


ROLES = {
    "Owner": Role(("*",)),
    "Contributor": Role(("*",), ("Microsoft.Authorization/*/Delete", "Microsoft.Authorization/*/Write")),
    "Reader": Role(("*/read",)),
    "AzureML Data Scientist": Role(
        EVERYTHING_IN_A_WORKSPACE,
        (
            *NOT_THE_WORKSPACE,
            *(f"{AML}/workspaces/computes/{verb}" for verb in ("*/write", "*/delete", "listKeys/action")),
        ),
    ),
    "AzureML Compute Operator": Role((f"{AML}/workspaces/computes/*", f"{AML}/workspaces/notebooks/vm/*")),
    "Azure AI Developer": Role(
        (*EVERYTHING_IN_A_WORKSPACE, f"{AML}/locations/*/read", "Microsoft.Authorization/*/read"), NOT_THE_WORKSPACE
    ),
    "Storage Blob Data Reader": Role((f"{BLOBS}/read",), data_actions=(f"{BLOBS}/blobs/read",)),
    "Storage Blob Data Contributor": Role(
        tuple(f"{BLOBS}/{verb}" for verb in ("read", "write", "delete")),
        data_actions=tuple(
            f"{BLOBS}/blobs/{verb}" for verb in ("read", "write", "delete", "move/action", "add/action")
        ),
    ),
    # A custom role: what listing VM sizes and quota needs, which no role at a workspace gives.
    "Quota Reader": Role((f"{AML}/locations/*/read",)),
}


def _matches(patterns: Iterable[str], action: str) -> bool:
    """Whether a pattern matches. `computes/*/write` also matches `computes/write`, as the roles' descriptions say."""
    return any(
        re.fullmatch(re.escape(pattern).replace(r"/\*/", "/(.*/)?").replace(r"\*", ".*"), action, re.IGNORECASE)
        for pattern in patterns
    )


def roles_at(cloud: Cloud, scope: str) -> list[Role]:
    """The caller's roles at a scope, those inherited from above included."""
    assigned = [(cloud.role, cloud.scope), (cloud.subscription_role, f"/subscriptions/{cloud.subscription}")]
    assigned += [(cloud.blob_role, storage_account(cloud, name)) for name in (cloud.account, cloud.other_account)]
    return [ROLES[role] for role, at in assigned if role and f"{scope}/".lower().startswith(f"{at}/".lower())]


def storage_account(cloud: Cloud, name: str) -> str:
    return f"{group_of(cloud)}/providers/Microsoft.Storage/storageAccounts/{name}"


def group_of(cloud: Cloud) -> str:
    return f"/subscriptions/{cloud.subscription}/resourceGroups/{cloud.group}"


def forbidden_action(cloud: Cloud, request: Request) -> str | None:
    """The action that the caller's roles do not permit, or None."""
    if cloud.hosts.kind(request.host) == VAULT:  # which has roles of its own
        return None
    is_managed = cloud.hosts.kind(request.host) == MANAGEMENT
    action = action_of(request) if is_managed else f"{AML}/workspaces/experiments/runs/{verb_of(request)}"
    scope = request.path if is_managed else cloud.scope
    if action is None or any(role.permits(action) for role in roles_at(cloud, scope)):
        return None
    return action


def verb_of(request: Request) -> str:
    return {"GET": "read", "HEAD": "read", "DELETE": "delete"}.get(request.method, "write")


def action_of(request: Request) -> str | None:
    """The action that a request to Resource Manager needs; None if any caller may send it, as to poll an operation."""
    verb = verb_of(request)
    there = re.fullmatch(r"/subscriptions/.*?/providers/([^/]+)/(.+)", request.path, re.IGNORECASE)
    if there is None or "Operation" in there[2] or "/Microsoft.Authorization/permissions" in request.path:
        return None
    provider, parts = there[1], there[2].split("/")
    if request.method == "POST" and len(parts) % 2:  # an operation, such as listSecrets
        verb = "action"
    return "/".join([provider, *parts[::2], verb])


@routes.add("GET", "(?P<scope>/subscriptions/.+)/providers/Microsoft.Authorization/permissions")
def permissions(cloud: Cloud, request: Request, scope: str) -> Reply:
    from .workspace import check_workspace

    if not cloud.permissions_readable:
        raise ServiceError(403, "AuthorizationFailed", "The client may not read its permissions at this scope.")
    if there := re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", WORKSPACE), scope):
        check_workspace(cloud, there.groupdict())
    return json_reply({"value": [role.as_json() for role in roles_at(cloud, scope)]})


@routes.add("GET", "/subscriptions/{subscription}/resources")
def resources(cloud: Cloud, request: Request, subscription: str) -> Reply:
    """The storage accounts at which the caller has a role; the only filter is the name."""
    named = re.search(r"name eq '([^']+)'", request.query.get("$filter", ""))
    accounts = [name for name in (cloud.account, cloud.other_account) if named is None or name == named[1]]
    found = [storage_account(cloud, name) for name in accounts if roles_at(cloud, storage_account(cloud, name))]
    return json_reply({"value": [{"id": id_, "type": "Microsoft.Storage/storageAccounts"} for id_ in found]})


@routes.add("GET", GROUP + "/providers/Microsoft.ContainerRegistry/registries/{name}")
def registry(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
    """The workspace's container registry; one called `gone` was deleted."""
    if request.path.lower() != (cloud.container_registry or "").lower() or name == "gone":
        raise ServiceError(404, "ResourceNotFound", f"The Resource 'Microsoft.ContainerRegistry/registries/{name}'.")
    return json_reply(
        {"id": cloud.container_registry, "name": name, "properties": {"loginServer": f"{name}.azurecr.io"}}
    )
