"""The weights that a job's run starts from (`--init`): checked on this machine, and uploaded once."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from msggan.commands.options import to_argv
from msggan.config import TrainConfig, explicit_values, split_init
from orchestration.azure.blobs import PROJECT_FOLDER, Store
from orchestration.azure.client import Client
from orchestration.azure.jobs import TO_RESOLVE, JobData
from orchestration.data_source import DatastorePath
from orchestration.local.process import result_of
from orchestration.spec import RunSpec


def plan_init(spec: RunSpec, datastore: str) -> JobData | None:
    """The weights that the job will read, as far as they are known without reading them; None for random ones."""
    if not spec.config.has_init:
        return None
    return JobData(init_path(TO_RESOLVE.format("SHA-256 of the weights"), datastore).uri, "uri_file")


def init_path(digest: str, datastore: str) -> DatastorePath:
    return DatastorePath(datastore, f"{PROJECT_FOLDER}/init/{digest}.safetensors")


def without_init(spec: RunSpec) -> RunSpec:
    """The run as it is resumed: it keeps what it started from."""
    return replace(spec, config=replace(spec.config, init=None))  # type: ignore[arg-type]


def ensure_init(spec: RunSpec, store: Store, client: Client) -> tuple[RunSpec, JobData | None]:
    """The weights of --init, which the datastore has afterwards, and the run with the options that they determine.

    Raises MsgganError, before anything is uploaded, if the run cannot start from them.
    """
    if not spec.config.has_init:
        return spec, None
    with tempfile.TemporaryDirectory(prefix="msggan-init-") as folder:
        file = Path(folder) / "init.safetensors"
        args = ["--runs-dir", client.settings.runs_dir, "--out", str(file), *to_argv(spec.config)]
        hint = "Run the same command again; it reads the weights again."
        result = result_of("msggan.initial", args, expects="init", process="reading the weights", hint=hint)
        path, size = init_path(split_init(result["init"])[1], store.datastore), file.stat().st_size
        with client.errors(f"Uploading the weights to the datastore {store.datastore}"):
            if store.size_of(path.path) != size:
                client.reporter.info(f"Uploading {size / 2**20:.1f} MiB of weights to the datastore {store.datastore}.")
                store.upload(file, path.path, lambda done, total: client.reporter.progress("Uploading", done, total))
    config = TrainConfig(**{**result["options"], **explicit_values(spec.config), "init": result["init"]})
    return replace(spec, config=config), JobData(path.uri, "uri_file", has_credential=not store.identity_based)
