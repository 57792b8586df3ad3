"""Azure Key Vault: reading the secrets that tests put into `cloud.secrets`."""

from __future__ import annotations

from .cloud import Cloud
from .hosts import VAULT
from .messages import Reply, Request, ServiceError, json_reply
from .routing import Routes

routes = Routes()


class VaultError(ServiceError):
    """An error of a vault, which has an inner code."""

    def __init__(self, status: int, code: str, message: str, inner: str) -> None:
        super().__init__(status, code, message)
        self.inner = inner

    def reply(self) -> Reply:
        return json_reply(
            {"error": {"code": self.code, "message": self.message, "innererror": {"code": self.inner}}}, self.status
        )


@routes.add("GET", "/secrets/{name}", VAULT)
@routes.add("GET", "/secrets/{name}/{version}", VAULT)
def read_secret(cloud: Cloud, request: Request, name: str, version: str = "") -> Reply:
    """The only version of a secret, for an identity with the role Key Vault Secrets User at the vault."""
    if "api-version" not in request.query:
        raise ServiceError(400, "BadParameter", "api-version must be specified")
    vault = request.host.partition(".")[0]
    if request.token["aud"] != f"https://{cloud.hosts.vault}":
        raise ServiceError(401, "Unauthorized", f"AKV10022: Invalid audience. Expected https://{cloud.hosts.vault}.")
    of_machine = "xms_mirid" in request.token
    if not (cloud.compute_vault_role if of_machine else cloud.vault_role):
        raise VaultError(
            403,
            "Forbidden",
            "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role "
            "definitions were changed recently, please observe propagation time.\r\n"
            f"Caller: oid={request.token['oid']}\r\nAction: 'Microsoft.KeyVault/vaults/secrets/getSecret/action'\r\n"
            f"Vault: {vault};location={request.host}\r\n",
            "ForbiddenByRbac",
        )
    if (vault, name) not in cloud.secrets:
        message = f"A secret with (name/id) {name} was not found in this key vault. If you recently deleted this secret"
        raise VaultError(404, "SecretNotFound", message, "SecretNotFound")
    identifier = f"https://{request.host}/secrets/{name}/{version or 32 * '0'}"
    return json_reply({"value": cloud.secrets[vault, name], "id": identifier, "attributes": {"enabled": True}})
