"""A secret in an environment variable is never written elsewhere, whatever the command."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote_plus

from azure_local import AzureLocal
from azure_local.messages import Recorded
from support.azure_commands import Command, posix, sdk_warnings

pytestmark = [posix, sdk_warnings]

SMALL = ["--resolution", "8", "--latent-size", "8", "--batch-size", "4", "--device", "cpu", "--kimg", "0.04"]
STORE = {"MSGGAN_STORAGE_ACCOUNT": "msgganstore", "MSGGAN_STORAGE_CONTAINER": "images"}
COMMANDS: list[tuple[int, list[str]]] = [
    (0, ["config", "show"]),
    (0, ["provision", "--environment", "python:3.11-slim", "--dry-run"]),
    (0, ["provision", "--environment", "python:3.11-slim", "--yes"]),
    (0, ["submit", "--data", "tiny", *SMALL, "--dry-run"]),
    (0, ["submit", "--data", "tiny", *SMALL, "--yes"]),
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


def test_a_key_and_the_credential_s_secret_are_only_where_they_belong(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    azure.cloud.blobs.container("msgganstore", "images")
    key, secret = azure.account_key, azure.cloud.client_secret
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
    for hidden in (key, secret):
        assert [name for name, content in everything.items() if has(content, hidden)] == []
