"""Settings of several NAME=VALUE: the tags of jobs and clusters, and the environment variables of jobs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

SECRET_NAME = re.compile(
    r"(?:^|[_-])(?:keys?|sas|passwords?|pwd|secrets?|tokens?|credentials?|connection[_-]?string)(?:$|[_-])"
    r"|(?:key|password|passwd|secret|token)$",
    re.IGNORECASE,
)
# A key or a password in a connection string, a signature in an address, a password before a host, a bare account key, a
# private key, and the tokens of Microsoft Entra, GitHub, Hugging Face, AWS, Slack and others that have a known text.
SECRET_VALUE = re.compile(
    r"AccountKey=|(?:^|;) *(?:Password|Pwd)=|SharedAccess\w*=|(?:^|[?&])sig=|//[^/@]*:[^/@]*@|[A-Za-z0-9+/]{86}=="
    r"|\bgh[a-z]_\w{20}|\bgithub_pat_\w{20}|\bhf_\w{20}|\bsk-[\w-]{20}|\beyJ[\w-]{10,}\.eyJ"
    r"|PRIVATE KEY-----|\w{3}8Q~[\w.~-]{30}|\bAKIA\w{16}|\bxox[a-z]-\w{10}",
    re.IGNORECASE,
)

# The service's limits for the tags of a job (Microsoft's page on resource limits). msggan's own tags count too.
MAX_TAGS, MAX_TAG_NAME, MAX_TAG_VALUE = 50, 100, 1000
SERVICE_TAGS = ("_aml", "azureml.", "mlflow.")  # how the names of Azure ML's own begin
OWN_TAGS = re.compile("|".join([r"msggan(?:$|\.)", *map(re.escape, SERVICE_TAGS)]), re.IGNORECASE)

KEY_VAULT = "@keyvault:"
VAULT_SECRET = re.compile(
    r"https://[a-z0-9-]{3,24}\.vault\.(?:azure\.net|azure\.cn|usgovcloudapi\.net)/secrets/[A-Za-z0-9-]+(?:/[0-9a-f]{32})?",
    re.IGNORECASE,
)


def read_pairs(value: Any) -> Iterator[tuple[str, str | None]]:
    """The names and values of a table, of a list of NAME=VALUE or of NAME=VALUE,NAME=VALUE; None without `=`."""
    if isinstance(value, Mapping):
        yield from ((str(name), text if isinstance(text, str) else None) for name, text in value.items())
        return
    for entry in value.split(",") if isinstance(value, str) else value:
        name, equals, text = str(entry).partition("=")
        yield name.strip(), text if equals else None


def pair_problems(setting: str, name: str, value: str) -> list[str]:
    """What is wrong with a tag or a variable, each as the end of a sentence. setting: tags or env."""
    return tag_problems(name, value) if setting == "tags" else variable_problems(name, value)


def tag_problems(name: str, value: str) -> list[str]:
    problems = []
    if not name.strip() or len(name) > MAX_TAG_NAME:
        problems.append(f"the name of a tag has 1 to {MAX_TAG_NAME} characters.")
    if len(value) > MAX_TAG_VALUE:
        problems.append(f"the value has {len(value)} characters; at most {MAX_TAG_VALUE} are allowed.")
    if OWN_TAGS.match(name):
        problems.append("msggan and Azure ML use tags of this name themselves. Use another name.")
    if SECRET_VALUE.search(value):
        problems.append("contains a secret. Everyone who may read the workspace sees tags.")
    return problems


def variable_problems(name: str, value: str) -> list[str]:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        return ["the name of a variable has letters, digits and _, and starts with no digit."]
    if name.upper().startswith("AZUREML_"):
        return ["Azure ML sets variables of this name itself. Use another name."]
    if value.startswith(KEY_VAULT):
        is_secret = VAULT_SECRET.fullmatch(value.removeprefix(KEY_VAULT))
        return [] if is_secret else [f"after {KEY_VAULT} write https://VAULT.vault.azure.net/secrets/SECRET."]
    if SECRET_NAME.search(name) or SECRET_VALUE.search(value):
        return [
            "looks like a secret, which everyone who may read the job would see. Store it in a key vault, and pass its "
            f"address, from which the job reads it: {name}={KEY_VAULT}https://VAULT.vault.azure.net/secrets/SECRET."
        ]
    return []
