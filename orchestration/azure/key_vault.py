"""Starts a program with secrets of key vaults in its environment: `python key_vault.py PROGRAM ARG …`.

This file runs on the machine of a job, beside the msggan package; azureml-mlflow requires the packages that it imports.
A variable with the value `@keyvault:ADDRESS` gets the secret at that address, in the memory of the program only.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from typing import Any
from urllib.parse import urlsplit

from azure.core import PipelineClient
from azure.core.exceptions import AzureError, HttpResponseError
from azure.core.pipeline.policies import RetryPolicy
from azure.core.rest import HttpRequest
from azure.identity import ManagedIdentityCredential

REFERENCE = "@keyvault:"
API_VERSION = "7.4"
TOKENS_OF_THE_USER = "OBO_ENDPOINT"  # set in jobs with the identity of the user who submitted them
ROLE = "Key Vault Secrets User"


def main(program: list[str]) -> None:
    problems = []
    for name, value in os.environ.items():
        if value.startswith(REFERENCE):
            try:
                os.environ[name] = read_secret(value.removeprefix(REFERENCE))
            except AzureError as error:
                problems.append(f"Error: {name}: {explain(error, value.removeprefix(REFERENCE))}")
    if problems:
        sys.exit("\n".join(problems))
    os.execvp(program[0], program)  # noqa: S606 - the job's own command, which needs no shell


def read_secret(address: str) -> str:
    """The secret at an address, `https://VAULT.vault.azure.net/secrets/NAME`. Raises AzureError."""
    token = read_token(_resource(address))
    return str(_get(address, {"api-version": API_VERSION}, {"Authorization": f"Bearer {token}"})["value"])


def _resource(address: str) -> str:
    """What an access token for a vault is for, `https://vault.azure.net`."""
    return f"https://{urlsplit(address).netloc.partition('.')[2]}"


def read_token(resource: str) -> str:
    """An access token of the job's identity."""
    if endpoint := os.environ.get(TOKENS_OF_THE_USER):  # as azure.ai.ml.identity.AzureMLOnBehalfOfCredential does it
        found = _get(endpoint, {"resource": resource}, {})
        return str(found.get("access_token") or found["token"])
    client_id = os.environ.get("DEFAULT_IDENTITY_CLIENT_ID")
    return ManagedIdentityCredential(client_id=client_id).get_token(f"{resource}/.default").token  # type: ignore[no-any-return]


def _get(url: str, query: dict[str, str], headers: dict[str, str]) -> Any:
    with PipelineClient[HttpRequest, Any](url, policies=[RetryPolicy()]) as client:
        response = client.send_request(HttpRequest("GET", url, params=query, headers=headers))
        if response.status_code >= 400:
            raise HttpResponseError(response=response)
        return response.json()


def explain(error: AzureError, address: str) -> str:
    """Why a secret could not be read, and what to do about it."""
    vault, name = urlsplit(address).netloc.partition(".")[0], urlsplit(address).path.split("/")[2]
    status = error.status_code if isinstance(error, HttpResponseError) else None
    cause = re.split(r"[\r\n]", error.message.strip())[0]
    problem = f"the secret {name} of the key vault {vault} cannot be read: {cause}"
    if status == 404:
        return f"{problem}\nStore it: az keyvault secret set --vault-name {vault} --name {name} --file FILE"
    if status == 403:
        claims = read_token(_resource(address)).split(".")[1]
        identity = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))).get("oid", "OBJECT-ID")
        scope = f'"$(az keyvault show --name {vault} --query id --output tsv)"'
        return (
            f"{problem}\nThe identity of the job needs the role {ROLE}, which an owner of the vault assigns:\n"
            f'az role assignment create --role "{ROLE}" --assignee {identity} --scope {scope}'
        )
    return problem


if __name__ == "__main__":
    main(sys.argv[1:])
