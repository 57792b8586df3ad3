"""A sweep is one run in MLflow, with its result, and its trials are nested runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from support.mlflow import a_run, delivered, free_port, runs_at, utc_ms
from support.programs import Ended

from msggan.commands.program import PARENT_VARIABLE
from msggan.runs.folder import RunFolder
from msggan.tracking.mlflow_worker import connect, log_result, parent_run

pytestmark = pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::sqlalchemy")

SHORT = ["--resolution", "8", "--latent-size", "8", "--kimg", "0.02", "-o", "json"]
PARENT = "mlflow.parentRunId"
RunProgram = Callable[..., Ended]


def sweep(*args: str) -> list[str]:
    return ["msggan-aml", "sweep", "--data", "tiny", "--name", "find", *args, *SHORT]


def by_name(uri: str) -> dict[str, Run]:
    """Every run there, each name once."""
    found = runs_at(uri)
    named = {str(run.info.run_name): run for run in found}
    assert len(named) == len(found)
    return named


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a sweep, set for its trials."""
    path = tmp_path / "find"
    path.mkdir()
    monkeypatch.setenv(PARENT_VARIABLE, str(path))
    return path


def a_trial(folder: Path, number: int) -> RunFolder:
    return a_run(folder / "trials" / f"{number:03d}", 8)


def a_result(state: str = "completed", **more: Any) -> dict[str, Any]:
    return {
        "state": state,
        "ended": "2023-11-14T22:13:20Z",
        "params": {},
        "metrics": {},
        "tags": {},
        "files": [],
        **more,
    }


# By the command line


@pytest.mark.usefixtures("tiny_images")
def test_a_sweep_is_one_run_with_its_result_and_its_trials_nested(
    database: str,
    tmp_path: Path,
    run_program: RunProgram,
) -> None:
    args = ["--over", "g_lr=0.001..0.01", "--sampling", "sobol"]
    first = run_program(*sweep(*args, "--trials", "1"), MSGGAN_TRACKING_URI=database)
    assert first.exit_code == 0, first.stderr
    assert set(by_name(database)) == {"find", "find/0"}

    ended = run_program(*sweep(*args, "--trials", "2"), MSGGAN_TRACKING_URI=database)
    assert ended.exit_code == 0, ended.stderr
    assert "does not have the sweep's result" not in first.stderr + ended.stderr
    found_runs = by_name(database)
    assert set(found_runs) == {"find", "find/0", "find/1"}
    parent, best = found_runs.pop("find"), ended.json["best"]
    assert {run.data.tags[PARENT] for run in found_runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in found_runs.values()} == {"FINISHED"}
    started, ended_ms = utc_ms(ended.json["created"]), utc_ms(ended.json["ended"])
    assert (parent.info.start_time, parent.info.end_time) == (started, ended_ms)
    assert all(started <= run.info.start_time < run.info.end_time < ended_ms + 1000 for run in found_runs.values())
    assert parent.info.status == "FINISHED"
    assert PARENT not in parent.data.tags
    assert parent.data.params["over.g_lr"] == "0.001..0.01"
    assert (parent.data.params["sampling"], parent.data.params["objective"]) == ("sobol", "swd (minimize)")
    assert parent.data.metrics == {"best_swd": best["objective"], "best_trial": best["number"]}
    assert parent.data.tags["trials"] == "2"
    assert float(parent.data.tags["best.g_lr"]) == pytest.approx(best["settings"]["g_lr"])
    page = MlflowClient(database).download_artifacts(parent.info.run_id, "report.html", str(tmp_path))
    assert Path(page).read_bytes() == (tmp_path / "runs" / "find" / "report.html").read_bytes()


@pytest.mark.usefixtures("tiny_images")
def test_a_sweep_completes_without_mlflow_and_reports_it_once(run_program: RunProgram) -> None:
    uri = f"http://me:s3same@127.0.0.1:{free_port()}"
    ended = run_program(*sweep("--over", "g_lr", "--trials", "1"), MSGGAN_TRACKING_URI=uri)
    assert ended.exit_code == 0, ended.stderr
    assert ended.json["state"] == "completed"
    assert ended.stderr.count("does not have the sweep's result yet (connection refused)") == 1
    assert "s3same" not in ended.stderr + ended.stdout


# The parent


def test_trials_that_start_at_once_are_nested_in_one_run(database: str, folder: Path) -> None:
    at_once = threading.Barrier(8)
    found: list[str] = []

    def ask() -> None:
        client = connect(database)
        at_once.wait()
        found.append(parent_run(client, database, folder, is_active=True).run_id)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == 8 * [by_name(database)["find"].info.run_id]


@pytest.mark.parametrize(
    ("state", "status"), [("failed", "FAILED"), ("cancelled", "KILLED"), ("interrupted", "KILLED")]
)
def test_the_parent_ends_as_the_sweep_does_and_runs_again_when_a_trial_does(
    database: str,
    folder: Path,
    state: str,
    status: str,
) -> None:
    log_result(database, folder, a_result(state))
    assert by_name(database)["find"].info.status == status
    trial = a_trial(folder, 0)
    delivered(trial, database, "interrupted")
    assert by_name(database)["find"].info.status == status, "a trial logged late, after the sweep's end"
    delivered(trial, database)
    assert by_name(database)["find"].info.status == "RUNNING"
    log_result(database, folder, a_result())
    assert by_name(database)["find"].info.status == "FINISHED"


def test_a_result_logged_again_replaces_the_first(database: str, folder: Path) -> None:
    for value in (30.0, 20.5):
        result = a_result(params={"trials": str(value)}, metrics={"best_swd": value}, tags={"best.g_lr": str(value)})
        log_result(database, folder, result)
    parent = by_name(database)["find"]
    assert parent.data.params == {"trials": "30.0"}, "MLflow keeps the first"
    assert parent.data.metrics == {"best_swd": 20.5}
    assert parent.data.tags["best.g_lr"] == "20.5"


def test_the_final_state_is_set_though_a_file_cannot_be_logged(database: str, folder: Path) -> None:
    with pytest.raises(OSError, match="no such file"):
        log_result(database, folder, a_result(files=[str(folder / "no such file")]))
    assert by_name(database)["find"].info.status == "FINISHED"


def test_a_parent_that_was_deleted_is_created_again(database: str, folder: Path) -> None:
    trial = a_trial(folder, 0)
    delivered(trial, database)
    MlflowClient(database).delete_run(by_name(database)["find"].info.run_id)
    delivered(trial, database)
    found_runs = by_name(database)
    assert set(found_runs) == {"find", "find/0"}
    assert found_runs["find/0"].data.tags[PARENT] == found_runs["find"].info.run_id


def test_a_trial_that_was_logged_separately_is_nested_when_it_resumes(
    database: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = a_trial(folder, 0)
    with monkeypatch.context() as patch:
        patch.delenv(PARENT_VARIABLE)
        delivered(trial, database)
    assert set(by_name(database)) == {"000"}
    delivered(trial, database)
    found_runs = by_name(database)
    assert found_runs["000"].data.tags[PARENT] == found_runs["find"].info.run_id


def test_a_run_that_was_given_gets_no_parent(
    database: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = MlflowClient(database)
    given = client.create_run(client.create_experiment("msggan", str(folder / "files")), run_name="given")
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    delivered(a_trial(folder, 0), database)
    found_runs = by_name(database)
    assert set(found_runs) == {"given"}
    assert PARENT not in found_runs["given"].data.tags
