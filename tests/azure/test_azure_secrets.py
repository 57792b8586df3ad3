"""A secret in an environment variable or a key vault is never written elsewhere, whatever the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from azure_local import AzureLocal
from azure_local.messages import Recorded
from support.azure_commands import Command, posix, sdk_warnings

from orchestration.azure import key_vault

pytestmark = [posix, sdk_warnings]

SMALL = ["--resolution", "8", "--latent-size", "8", "--batch-size", "4", "--device", "cpu", "--kimg", "0.04"]
ADDRESS = "https://my-vault.vault.azure.net/secrets/hf-token"
VAULT = ["--env", f"HF_TOKEN=@keyvault:{ADDRESS}"]
STORE = {"MSGGAN_STORAGE_ACCOUNT": "msgganstore", "MSGGAN_STORAGE_CONTAINER": "images"}
COMMANDS: list[tuple[int, list[str]]] = [
    (0, ["config", "show"]),
    (0, ["provision", "--environment", "python:3.11-slim", "--dry-run"]),
    (0, ["provision", "--environment", "python:3.11-slim", "--yes"]),
    (0, ["submit", "--data", "tiny", *SMALL, *VAULT, "--dry-run"]),
    (0, ["submit", "--data", "tiny", *SMALL, *VAULT, "--yes"]),
    (0, ["status", "tiny"]),
    (0, ["list"]),
    (0, ["logs", "tiny"]),
    (0, ["sample", "tiny", "--num", "1"]),
    (0, ["download", "tiny", "--out", "result"]),
    (0, ["export", "tiny", "--pth", "tiny.pth"]),
    (2, ["cancel", "tiny"]),
]


def has(text: object, secret: str) -> bool:
    """Whether a secret is in it, as it is or URL-encoded."""
    content = text if isinstance(text, bytes) else repr(text).encode()
    return any(form.encode() in content for form in (secret, quote_plus(secret)))


def kind_of(request: Recorded) -> str:
    return f"{request.method} {request.host} {request.path.rpartition('/')[2]}"


def test_a_key_the_credential_s_secret_and_that_of_a_vault_are_only_where_they_belong(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    azure.cloud.blobs.container("msgganstore", "images")
    key, secret, of_vault = azure.account_key, azure.cloud.client_secret, "planted-in-the-vault"
    azure.cloud.secrets["my-vault", "hf-token"] = of_vault
    printed = []
    for exit_code, args in COMMANDS:
        ended = msggan_aml(*args, "-o", "json", MSGGAN_STORAGE_KEY=key, **STORE)
        assert ended.exit_code == exit_code, (args, ended.stderr)
        printed.append(ended.stdout + ended.stderr)

    # The key is sent in the datastore's credentials, the secret to the token endpoint, and neither anywhere else.
    assert {kind_of(one) for one in azure.requests if has(one, key)} == {"PUT management.azure.com msggan"}
    for put in azure.made("PUT", "/datastores/msggan"):
        credentials = put.body["properties"].pop("credentials")
        assert credentials["secrets"]["key"] == key
        assert not has(put, key)
    assert {kind_of(one) for one in azure.requests if has(one, secret)} == {"POST login.microsoftonline.com token"}

    assert [one.status for one in azure.made("GET", "/secrets/hf-token")] == [200]  # by the job
    assert not any(has(one, of_vault) for one in azure.requests)

    container = azure.cloud.blobs.container("msgganstore", "images")
    stored = {name: container.download_blob(name).readall() for name in container.list_blob_names()}
    written = {str(path): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    job = azure.job("tiny")
    assert job.status == "Completed"
    assert any(name.startswith("msggan/runs/tiny/") for name in stored)
    assert str(workdir / "result" / "generator.safetensors") in written
    everything = {
        "output": printed,
        "job": [job.properties, job.parameters, job.tags],
        "log": azure.artifact("tiny", "user_logs/std_log.txt"),
        "code": [azure.blob(path) for path in azure.blobs_below("")],
        "environments": [version.properties for version in azure.cloud.environments.values()],
        **stored,
        **written,
    }
    for hidden in (key, secret, of_vault):
        assert [name for name, content in everything.items() if has(content, hidden)] == []


def start_with_secrets(azure: AzureLocal, **variables: str) -> subprocess.CompletedProcess[str]:
    """Prints $HF_TOKEN, as a job does: with the identity of its machine, or of the user."""
    program = [sys.executable, "-c", "import os; print(os.environ['HF_TOKEN'], os.environ['PLAIN'])"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AZURE")}
    return subprocess.run(
        [sys.executable, str(key_vault.__file__), *program],
        env={**inherited, **azure.cloud.job_environment, "PLAIN": "plain", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("changes", "address", "expected"),
    [
        ({"compute_vault_role": None}, ADDRESS, "the-secret plain\n"),
        (
            {"vault_role": None},
            ADDRESS,
            ["cannot be read: (Forbidden) Caller is not authorized", "Key Vault Secrets User"],
        ),
        (
            {},
            ADDRESS + "s",
            ["hf-tokens of the key vault my-vault cannot be read: (SecretNotFound)", "az keyvault secret"],
        ),
        pytest.param(
            {}, ADDRESS.replace("my-vault", "none"), ["the key vault none cannot be read: "], marks=pytest.mark.slow
        ),
    ],
)
def test_a_job_reads_a_secret_into_its_memory_or_ends_with_the_reason(
    azure: AzureLocal, changes: dict[str, None], address: str, expected: str | list[str]
) -> None:
    azure.cloud.secrets["my-vault", "hf-token"] = "the-secret"
    for name, value in changes.items():
        setattr(azure.cloud, name, value)
    ended = start_with_secrets(azure, HF_TOKEN=f"@keyvault:{address}")
    if isinstance(expected, str):
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, expected, "")
    else:
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith("Error: HF_TOKEN: the secret ")
        assert all(text in ended.stderr for text in expected), ended.stderr
    azure.cloud.job_environment.pop("OBO_ENDPOINT")
    azure.cloud.compute_vault_role = "Key Vault Secrets User"
    azure.cloud.vault_role = None
    assert start_with_secrets(azure, HF_TOKEN=f"@keyvault:{ADDRESS}").stdout == "the-secret plain\n"


def test_the_status_of_a_job_that_may_not_read_its_secret_has_the_reason(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    azure.cloud.secrets["my-vault", "hf-token"] = "the-secret"
    azure.cloud.vault_role = None
    ended = msggan_aml("submit", "--data", "tiny", *SMALL, *VAULT, "--yes", "-o", "json")
    assert (ended.exit_code, ended.json["state"]) == (1, "failed")
    (sent,) = azure.made("PUT", "/jobs/tiny")
    assert sent.body["properties"]["identity"] == {"identityType": "UserIdentity"}
    command = 'az role assignment create --role "Key Vault Secrets User" --assignee '
    assert f"{command}{azure.cloud.object_id} " in ended.stderr
    assert command in msggan_aml("status", "tiny", "-o", "json").json["reason"]
