"""The hosts of each Azure cloud, by what they serve."""

from __future__ import annotations

from dataclasses import dataclass

MANAGEMENT, LOGIN, API, BLOB, PRICES, VAULT = "management", "login", "api", "blob", "prices", "vault"
PRICES_HOST = "prices.azure.com"  # of the public cloud only


@dataclass(frozen=True)
class Hosts:
    """The hosts of a cloud. api, storage, vault: the domains of the data plane's regions, of accounts and of vaults."""

    cloud: str
    management: str
    login: str
    api: str
    studio: str
    storage: str
    vault: str

    def kind(self, host: str) -> str | None:
        """What a host of this cloud serves, None for others, such as those of another cloud."""
        if host in (self.management, self.login):
            return MANAGEMENT if host == self.management else LOGIN
        if host == PRICES_HOST and self.cloud == "AzureCloud":
            return PRICES
        if host.endswith(f".blob.{self.storage}"):
            return BLOB
        if host.endswith(f".{self.vault}"):
            return VAULT
        return API if host.endswith(f".{self.api}") else None

    @property
    def audiences(self) -> tuple[str, ...]:
        """What a token may be for."""
        own = (
            f"https://{self.management}",
            f"https://{self.studio}",
            "https://storage.azure.com",
            f"https://{self.vault}",
        )
        return (*own, "https://management.core.windows.net") if self.cloud == "AzureCloud" else own


PUBLIC = Hosts(
    "AzureCloud",
    "management.azure.com",
    "login.microsoftonline.com",
    "api.azureml.ms",
    "ml.azure.com",
    "core.windows.net",
    "vault.azure.net",
)
GOVERNMENT = Hosts(
    "AzureUSGovernment",
    "management.usgovcloudapi.net",
    "login.microsoftonline.us",
    "api.ml.azure.us",
    "ml.azure.us",
    "core.usgovcloudapi.net",
    "vault.usgovcloudapi.net",
)
CHINA = Hosts(
    "AzureChinaCloud",
    "management.chinacloudapi.cn",
    "login.chinacloudapi.cn",
    "api.ml.azure.cn",
    "ml.azure.cn",
    "core.chinacloudapi.cn",
    "vault.azure.cn",
)
CLOUDS = {hosts.cloud: hosts for hosts in (PUBLIC, GOVERNMENT, CHINA)}
