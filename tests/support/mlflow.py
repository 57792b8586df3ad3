"""Run folders written without training, and MLflow databases to log them to."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import pytest

from msggan.config import TrainConfig, resolve
from msggan.runs.folder import RunFolder
from msggan.tracking.metrics_log import MlflowProcess, Tracker
from msggan.tracking.mlflow_worker import RunLogger
from support.programs import REPOSITORY, fast_python

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow's warnings about its dependencies on import
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore


CONFIG = resolve(TrainConfig(resolution=8, kimg=1.0), shorter_side_px=8, device="cpu", has_fast_bfloat16=False)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of delivery processes: this checkout's packages, without the variables set around the tests.

    They are started by the interpreter that starts at once."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "MSGGAN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setitem(MlflowProcess.__init__.__kwdefaults__, "python", fast_python())
    yield
    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose()


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> str:
    """The URI of an SQLite database for this test."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def report_at(images: int, **more: float) -> dict[str, float]:
    return {
        "images": images,
        "kimg": images / 1000,
        "d_loss": 1 / images,
        "g_loss": -math.pi * images,
        "images_per_second": 12.5 + images,
        "seconds": images / 100,
        **more,
    }


def a_run(folder: Path, *images: int) -> RunFolder:
    """A run folder with reports, like that of a trainer. Every second report has a measurement."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"format_version": 1, **asdict(CONFIG)}))
    for network in ("generator", "discriminator"):
        (folder / f"{network}_config.txt").write_text(f"{network}, printed\n")
    (folder / "samples").mkdir()
    run = RunFolder(folder)
    run.metrics.touch()
    reported(run, *images)
    return run


def reported(run: RunFolder, *images: int) -> None:
    tracker = Tracker(run.metrics)
    for count in images:
        tracker.report(report_at(count, **({"swd": 300.0 + count, "swd_8": 1.0} if count % 16 == 0 else {})))


def utc_ms(moment: str) -> int:
    return round(1000 * datetime.strptime(moment, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp())


def attempt(run: RunFolder, uri: str, state: str = "", **more: int) -> tuple[bool, str]:
    """Logs a run from this process. Returns whether that succeeded, and the messages."""
    messages: list[str] = []
    succeeded = RunLogger(run, uri, lambda message, problem: messages.append(message)).attempt(state, **more)
    return succeeded, "\n".join(messages)


def delivered(run: RunFolder, uri: str, state: str = "completed") -> str:
    """Logs a run from this process completely. Returns the messages."""
    succeeded, messages = attempt(run, uri, state)
    assert succeeded, messages
    return messages


def runs_at(uri: str, experiment: str = "msggan") -> list[Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
