"""Every metric and file of a run is logged to MLflow exactly once, despite failures of server, process or network."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.mlflow import (
    CONFIG,
    a_run,
    attempt,
    delivered,
    free_port,
    report_at,
    reported,
    runs_at,
    utc_ms,
)
from support.programs import command_line, environment, fast_python, run_in

from msggan import TrainConfig, Trainer
from msggan.errors import TrainingError
from msggan.runs.folder import RunFolder, RunState, read_state
from msggan.steps import MEASURED
from msggan.tracking.metrics_log import MlflowCursor, MlflowProcess, Tracker, read_metrics
from msggan.tracking.mlflow_worker import RunLogger, explain

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow's own, about its libraries, as it is imported
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run
    from mlflow.exceptions import MlflowException

pytestmark = pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::sqlalchemy")

METRICS = (*MEASURED, "swd", "swd_8", "images_per_second", "peak_memory_mib", "dropped_updates")
OPTIONS = ["--resolution", 8, "--latent-size", 8, "--batch-size", 4, "--num-samples", 4, "--precision", "float32"]
PATIENCE_SECONDS = 240


def wait_for(event: Callable[[], Any]) -> Any:
    """What `event` returns, once that is something. For what another process does."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if found := event():
            return found
        time.sleep(0.05)
    raise AssertionError("It did not happen.")


# A run, without the training


def record_state(run: RunFolder, state: str, *, created: str, ended: str | None = None) -> None:
    """Writes `run.json`, as a trainer does when it starts and when it ends."""
    record = RunState(state=state, data="/flowers", process=1, machine="m", created=created, ended=ended)
    run.state.write_text(json.dumps(asdict(record)))


def sampled(run: RunFolder, images: int) -> None:
    for kind in ("4px", "8px", "scales"):
        Image.new("RGB", (8, 8), (images % 256, 0, 0)).save(run.samples / f"{images:09d}_{kind}.png")


def logged(run: RunFolder, uri: str, state: str = "completed") -> list[str]:
    """Logs a run as the trainer does, by a process. → the messages after the first."""
    tracker = Tracker(run.metrics, tracking_uri=uri)
    assert len(tracker.start()) == 1
    return tracker.close(state)


# What MLflow then has


def the_run(uri: str, experiment: str = "msggan") -> Run:
    (run,) = runs_at(uri, experiment)
    return run


def curves_at(uri: str, run: Run) -> dict[str, list[tuple[int, float]]]:
    """Every point, in the order of the steps; NaN as None. MLflow orders them by time."""
    client = MlflowClient(uri)
    return {
        name: [(point.step, number(point.value)) for point in sorted(points(client, run, name), key=step_of)]
        for name in METRICS
    }


def points(client: MlflowClient, run: Run, name: str) -> list[Metric]:
    return list(client.get_metric_history(run.info.run_id, name))


def step_of(point: Metric) -> int:
    return int(point.step)


def curves_in(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    reports = read_metrics(run.metrics)
    return {
        name: [(int(report["images"]), number(report[name])) for report in reports if name in report]
        for name in METRICS
    }


def number(value: float) -> Any:
    return None if math.isnan(value) else value


def files_at(uri: str, run: Run) -> set[str]:
    client = MlflowClient(uri)
    return {
        file.path
        for folder in ("", "samples")
        for file in client.list_artifacts(run.info.run_id, folder)
        if not file.is_dir
    }


# Servers


class Server:
    """A real `mlflow server`, which can be killed and brought back."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder = folder
        shutil.copy(database, folder / "server.db")
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        args = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--host", "127.0.0.1", "--workers", "1"]
        args += ["--artifacts-destination", str(self.folder / "files"), "--port", str(self.port)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *args],
                cwd=self.folder,
                env=environment(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self._answers)

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    ours = Server(tmp_path_factory.mktemp("server"), empty_database)
    yield ours
    ours.kill()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing."""


class BrokenOffHandler(QuietHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()


@contextmanager
def serving(handler: type[QuietHandler]) -> Iterator[str]:
    """The address of a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def web_page(tmp_path: Path) -> Iterator[str]:
    """The address of a server of plain files."""
    with serving(QuietHandler) as address:
        yield address


@pytest.fixture
def patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds on waiting for the process at the end of a run do not apply: it has a low priority beside others."""
    for name in ("STOPPED_WAIT_SECONDS", "UNAVAILABLE_WAIT_SECONDS", "MAX_WAIT_SECONDS"):
        monkeypatch.setattr(f"msggan.tracking.metrics_log.{name}", PATIENCE_SECONDS)
    python = tmp_path / "patient"
    code = f"from msggan.tracking import mlflow_worker as it; it.FINISH_SECONDS = {PATIENCE_SECONDS}; it.main()"
    python.write_text(f"#!/bin/sh\nshift 2\nexec {fast_python()} -c '{code}' \"$@\"\n")
    python.chmod(0o755)
    monkeypatch.setitem(MlflowProcess.__init__.__kwdefaults__, "python", str(python))


# What is logged


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("where", ["database", pytest.param("server", marks=pytest.mark.slow)])
def test_mlflow_gets_the_whole_run(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    uri = request.getfixturevalue(where) if where == "database" else request.getfixturevalue("server").uri
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "whole")
    run = a_run(tmp_path / "flowers", *range(8, 1608, 8))
    Tracker(run.metrics).report(report_at(1608, d_loss=math.nan))
    sampled(run, 8)
    sampled(run, 1608)
    assert logged(run, uri) == []

    logged_run = the_run(uri, "whole")
    assert (logged_run.info.run_name, logged_run.info.status) == ("flowers", "FINISHED")
    assert curves_at(uri, logged_run) == curves_in(run)
    values = {name: str(value) for name, value in asdict(CONFIG).items()}
    may_change = {spec.name for spec in fields(TrainConfig) if spec.metadata["may_change"]}
    values["loss_function"] = values.pop("loss")
    assert logged_run.data.params == {name: value for name, value in values.items() if name not in may_change}
    assert {name: logged_run.data.tags[name] for name in may_change} == {name: values[name] for name in may_change}
    assert logged_run.data.tags["msggan.version"]
    assert logged_run.data.tags["msggan.run_dir"] == str(run.path)
    assert files_at(uri, logged_run) == {
        "config.json",
        "generator_config.txt",
        "discriminator_config.txt",
        "metrics.jsonl",
        *(f"samples/{images:09d}_{kind}.png" for images in (8, 1608) for kind in ("8px", "scales")),
    }
    copy = MlflowClient(uri).download_artifacts(logged_run.info.run_id, "metrics.jsonl", str(tmp_path))
    assert Path(copy).read_bytes() == run.metrics.read_bytes()


def test_points_have_the_times_of_their_reports(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 100, 200, 500)
    os.utime(run.metrics, (1_700_000_000, 1_700_000_000))
    delivered(run, database)
    points = MlflowClient(database).get_metric_history(the_run(database).info.run_id, "d_loss")
    assert [point.timestamp for point in points] == [1_699_999_996_000, 1_699_999_997_000, 1_700_000_000_000]


def test_a_run_starts_and_ends_when_its_training_did(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 100, 200)
    os.utime(run.metrics, (1_700_000_035.5, 1_700_000_035.5))
    record_state(run, "interrupted", created="2023-11-14T22:13:20Z", ended="2023-11-14T22:13:56Z")
    delivered(run, database, "interrupted")
    info = the_run(database).info
    assert (info.start_time, info.end_time) == (1_700_000_000_000, 1_700_000_036_000)

    record_state(run, "completed", created="2023-11-14T22:13:20Z", ended="2023-11-14T23:00:00Z")
    delivered(run, database)
    info = the_run(database).info
    assert (info.start_time, info.end_time) == (1_700_000_000_000, utc_ms("2023-11-14T23:00:00Z"))

    os.utime(run.metrics, (1_800_000_000.5, 1_800_000_000.5))
    delivered(run, database)
    assert the_run(database).info.end_time == 1_800_000_000_500, "not before its last report"


def test_a_run_without_readable_times_starts_and_ends_now(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 100)
    record_state(run, "completed", created="yesterday", ended="today")
    before = round(1000 * time.time())
    delivered(run, database)
    info = the_run(database).info
    assert before <= info.start_time <= info.end_time


def test_artifacts_are_stored_beside_the_database(database: str, tmp_path: Path) -> None:
    delivered(a_run(tmp_path / "runs" / "run", 8), database)
    assert [path.name for path in (tmp_path / "mlflow-artifacts").rglob("metrics.jsonl")] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("completed", "FINISHED"),
        ("failed", "FAILED"),
        ("cancelled", "KILLED"),
        ("interrupted", "KILLED"),
        ("died", "FAILED"),
    ],
)
def test_the_final_state_has_mlflows_name(database: str, tmp_path: Path, state: str, status: str) -> None:
    delivered(a_run(tmp_path / "run", 8), database, state)
    assert the_run(database).info.status == status


def test_a_grid_is_logged_once_it_is_complete(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 8)
    sampled(run, 8)
    half = run.samples / "000000016_8px.png"
    half.write_bytes((run.samples / "000000008_8px.png").read_bytes()[:-1])
    delivered(run, database)
    assert {"samples/000000008_8px.png", "samples/000000016_8px.png"} & files_at(database, the_run(database)) == {
        "samples/000000008_8px.png"
    }
    sampled(run, 16)
    delivered(run, database)
    assert "samples/000000016_8px.png" in files_at(database, the_run(database))


def test_a_report_that_is_half_written_is_logged_once_it_is_complete(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    logger = RunLogger(run, database, lambda message, problem: None)
    for images in range(8, 88, 8):
        line = json.dumps(report_at(images)) + "\n"
        for part in (line[: images + 40], line[images + 40 :]):
            with run.metrics.open("a") as file:
                file.write(part)
            assert logger.attempt()
    assert curves_at(database, the_run(database)) == curves_in(run)


def test_a_grid_is_logged_once(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 8)
    sampled(run, 8)
    delivery = RunLogger(run, database, lambda message, problem: None)
    assert delivery.attempt()
    (artifact,) = (tmp_path / "mlflow-artifacts").rglob("000000008_8px.png")
    artifact.unlink()
    assert delivery.attempt()
    assert not artifact.exists()


def test_lines_that_are_not_reports_are_skipped(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 8)
    with run.metrics.open("ab") as file:
        file.write(b'\xff\n[]\n7\n{"images": "x"}\n{"images": -1}\n{"images": 16, "d_loss": "high", "g_loss": 1.0}\n')
    delivered(run, database)
    assert curves_at(database, the_run(database))["g_loss"] == [(8, report_at(8)["g_loss"]), (16, 1.0)]


# Resuming


def test_a_resumed_run_is_the_same_run_and_has_each_step_once(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 8, 16, 24, 32)
    delivered(run, database, "interrupted")
    Tracker(run.metrics).forget_after(16)
    reported(run, 24, 32, 40, 48)
    config = json.loads(run.config.read_text())
    run.config.write_text(json.dumps({**config, "kimg": 2.0}))
    assert delivered(run, database) == ""
    logged_run = the_run(database)
    assert logged_run.info.status == "FINISHED"
    assert logged_run.data.tags["kimg"] == "2.0"
    assert curves_at(database, logged_run) == curves_in(run)


def test_points_arrive_once_where_the_cursor_is_behind(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 8, 16, 24)
    delivered(run, database, "failed")
    known = MlflowCursor.load(run.path, database)
    assert known is not None
    replace(known, delivered_images=8).save(run.path)
    reported(run, 32)
    delivered(run, database)
    assert curves_at(database, the_run(database)) == curves_in(run)


def test_a_report_without_a_finite_loss_arrives_once(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 8)
    Tracker(run.metrics).report({name: value for name, value in report_at(16).items() if name != "d_loss"})
    delivered(run, database, "interrupted")
    reported(run, 24)
    delivered(run, database)
    assert curves_at(database, the_run(database)) == curves_in(run)


def test_a_deleted_run_is_logged_again_from_the_start(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 8, 16)
    sampled(run, 8)
    delivered(run, database)
    MlflowClient(database).delete_run(the_run(database).info.run_id)
    assert "Logging everything to a new run." in delivered(run, database)
    assert curves_at(database, the_run(database)) == curves_in(run)
    assert "samples/000000008_8px.png" in files_at(database, the_run(database))


def test_a_run_deleted_while_it_trains_is_logged_again(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 8)
    delivery = RunLogger(run, database, lambda message, problem: None)
    assert delivery.attempt()
    MlflowClient(database).delete_run(the_run(database).info.run_id)
    reported(run, 16)
    assert not delivery.attempt()
    assert delivery.attempt()
    assert curves_at(database, the_run(database)) == curves_in(run)


def test_another_mlflow_gets_everything(database: str, tmp_path: Path, empty_database: Path) -> None:
    run = a_run(tmp_path / "run", 8, 16)
    delivered(run, database)
    other = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'other.db')}"
    delivered(run, other)
    assert curves_at(other, the_run(other)) == curves_in(run)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run_id": 1}'])
def test_a_damaged_cursor_loses_no_point(database: str, tmp_path: Path, content: str) -> None:
    run = a_run(tmp_path / "run", 8)
    (run.path / "mlflow.json").write_text(content)
    delivered(run, database)
    assert curves_at(database, the_run(database)) == curves_in(run)


def test_a_copy_of_a_run_folder_is_another_run(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 8)
    delivered(run, database)
    shutil.copytree(run.path, tmp_path / "copy")
    copy = RunFolder(tmp_path / "copy")
    reported(copy, 16)
    delivered(copy, database)
    curves = {each.info.run_name: curves_at(database, each) for each in runs_at(database)}
    assert curves == {"run": curves_in(run), "copy": curves_in(copy)}


def test_a_given_run_is_used_and_not_ended(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(database)
    given = client.create_run(
        client.create_experiment("job", artifact_location=str(tmp_path / "files")), run_name="given"
    )
    client.log_param(given.info.run_id, "seed", "7")
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    run = a_run(tmp_path / "run", 8)
    assert "has other parameters, which it keeps" in delivered(run, database)
    logged_run = the_run(database, "job")
    assert (logged_run.info.run_name, logged_run.info.status) == ("given", "RUNNING")
    assert curves_at(database, logged_run) == curves_in(run)
    assert runs_at(database) == []

    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    assert f"MLflow has no run {'0' * 32}" in delivered(a_run(tmp_path / "other", 8), database)
    assert the_run(database).info.run_name == "other"


def test_a_deleted_experiment_is_named(database: str, tmp_path: Path) -> None:
    client = MlflowClient(database)
    client.delete_experiment(client.create_experiment("msggan", artifact_location=str(tmp_path / "files")))
    succeeded, message = attempt(a_run(tmp_path / "run", 8), database)
    assert not succeeded
    assert "the experiment msggan was deleted" in message
    assert "MLFLOW_EXPERIMENT_NAME" in message


# The process


@pytest.mark.slow
@pytest.mark.usefixtures("patience")
def test_two_runs_at_once_create_one_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/not there yet/mlflow.db"
    runs = [a_run(tmp_path / name, 8, 16) for name in ("one", "two")]
    trackers = [Tracker(run.metrics, tracking_uri=uri) for run in runs]
    for tracker in trackers:
        tracker.start()
    assert [tracker.close("completed") for tracker in trackers] == [[], []]
    curves = {each.info.run_name: curves_at(uri, each) for each in runs_at(uri)}
    assert curves == {run.path.name: curves_in(run) for run in runs}


@pytest.mark.usefixtures("patience")
def test_ctrl_c_does_not_stop_the_process(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 8)
    tracker = Tracker(run.metrics, tracking_uri=database)
    tracker.start()
    wait_for((run.path / "mlflow.json").exists)
    for number_ in (signal.SIGINT, signal.SIGTERM):
        os.kill(process_of(tracker).pid, number_)
    reported(run, 16)
    assert tracker.close("interrupted") == []
    assert the_run(database).info.status == "KILLED"
    assert curves_at(database, the_run(database)) == curves_in(run)


def process_of(tracker: Tracker) -> subprocess.Popen[str]:
    assert tracker._mlflow is not None
    assert tracker._mlflow._process is not None
    return tracker._mlflow._process


@pytest.mark.usefixtures("patience")
def test_a_killed_process_is_reported_and_the_next_start_logs_the_rest(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 8)
    tracker = Tracker(run.metrics, tracking_uri=database)
    tracker.start()
    wait_for(lambda: MlflowCursor.load(run.path, database))
    os.kill(process_of(tracker).pid, signal.SIGKILL)
    assert wait_for(tracker.messages) == [
        "No longer logging to MLflow: the process that logs to it was killed by signal 9. "
        "Training continues; metrics.jsonl has every report."
    ]
    reported(run, 16)
    (line,) = tracker.close("completed")
    assert line.endswith("The same command again logs what is missing.")
    assert "of 2 reports yet (the process that logs to it was killed by signal 9)" in line
    assert logged(run, database) == []
    assert curves_at(database, the_run(database)) == curves_in(run)


def test_without_an_address_there_is_no_process(tmp_path: Path) -> None:
    tracker = Tracker(a_run(tmp_path / "run", 8).metrics)
    assert (tracker.start(), tracker.messages(), tracker.close("completed")) == ([], [], [])


def test_a_run_is_delivered_once_mlflow_has_its_final_state(database: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 8)
    tracker = Tracker(run.metrics, tracking_uri=database)
    assert not tracker.is_delivered("completed")
    delivered(run, database)
    assert tracker.is_delivered("completed")
    assert not tracker.is_delivered("failed")
    assert not Tracker(run.metrics, tracking_uri="sqlite:///other.db").is_delivered("completed")
    assert Tracker(run.metrics).is_delivered("completed"), "there is no MLflow to log to"
    known = MlflowCursor.load(run.path, database)
    reported(run, 16)
    assert not tracker.is_delivered("completed")
    assert attempt(run, database) == (True, "")  # it is resumed
    assert not tracker.is_delivered("completed")
    before = json.loads((run.path / "mlflow.json").read_text())  # as the version before wrote it
    del before["ended"]
    (run.path / "mlflow.json").write_text(json.dumps({**before, "experiment_id": "1"}))
    assert reached(run, database) == 16
    assert known is not None
    assert known.run_id == the_run(database).info.run_id


# An MLflow that is unavailable


@pytest.fixture
def nobody() -> str:
    """The address of a closed port."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(
    ("who", "reason", "advice"),
    [
        ("nobody", "connection refused", ""),
        ("silent", "no answer in time", ""),
        pytest.param("web_page", "not an MLflow server: error 404", " Check --tracking-uri.", marks=pytest.mark.slow),
    ],
)
def test_what_is_missing_is_counted_and_logged_the_next_time(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    database: str,
    *,
    who: str,
    reason: str,
    advice: str,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    uri = request.getfixturevalue(who)
    run = a_run(tmp_path / "run", 8, 16, 24)
    assert logged(run, uri) == [
        f"Cannot log to MLflow at {uri}: {reason}. Training continues; metrics.jsonl has every report.{advice}",
        f"MLflow at {uri} does not have 3 of 3 reports yet ({reason}). The same command again logs what is missing.",
    ]
    delivered(run, database)
    assert curves_at(database, the_run(database)) == curves_in(run)


def test_an_answer_that_breaks_off_is_a_lost_connection() -> None:
    with serving(BrokenOffHandler) as uri, pytest.raises(MlflowException, match="IncompleteRead") as raised:
        MlflowClient(uri).get_run("1")
    assert explain(raised.value) == ("connection lost", "")


@pytest.mark.slow
@pytest.mark.usefixtures("patience")
def test_a_server_that_was_killed_and_restarted_gets_everything(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "dies")
    run = a_run(tmp_path / "run", 8)
    tracker = Tracker(run.metrics, tracking_uri=server.uri)
    tracker.start()
    wait_for(lambda: reached(run, server.uri) == 8)
    server.kill()
    reported(run, 16, 24)
    try:
        assert ": connection " in wait_for(tracker.messages)[0]
        assert reached(run, server.uri) == 8
    finally:
        server.start()
    reported(run, 32)
    assert tracker.close("completed") == [f"MLflow at {server.uri} is available again and has every report."]
    assert curves_at(server.uri, the_run(server.uri, "dies")) == curves_in(run)


def reached(run: RunFolder, uri: str) -> int | None:
    known = MlflowCursor.load(run.path, uri)
    return known and known.delivered_images


@pytest.mark.parametrize(
    ("state", "problem", "seconds"),
    [
        ("completed", "", 65),
        ("failed", "", 65),
        ("completed", "connection refused", 15),
        ("cancelled", "", 5),
        ("interrupted", "connection refused", 5),
    ],
)
def test_the_longest_wait_at_the_end_of_a_run(
    silent: str, tmp_path: Path, state: str, problem: str, seconds: int
) -> None:
    tracker = Tracker(a_run(tmp_path / "run", 8).metrics, tracking_uri=silent)
    tracker.start()
    logging, worker = tracker._mlflow, process_of(tracker)
    assert logging is not None
    waits: list[float] = []
    logging._reader.join, join = waits.append, logging._reader.join  # type: ignore[method-assign,assignment]
    try:
        logging.problem = problem
        (line,) = tracker.close(state)
        assert f"does not have 1 of 1 reports yet ({problem or 'not finished in time'})" in line
    finally:
        worker.kill()
        join()
    assert waits == [seconds]


def test_the_process_exits_by_itself_whatever_the_server_does(silent: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 8)
    code = "from msggan.tracking import mlflow_worker; mlflow_worker.FINISH_SECONDS = 0.1; mlflow_worker.main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, run.path],
        env=environment(MLFLOW_TRACKING_URI=silent, MLFLOW_HTTP_REQUEST_TIMEOUT="600"),
        input="completed\n",
        encoding="utf-8",
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert ended.returncode == 1


def test_a_file_that_is_not_a_database_is_named_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("Not a database, but somebody's notes.")
    succeeded, message = attempt(a_run(tmp_path / "run", 8), f"sqlite:///{path}")
    assert not succeeded
    assert f"sqlite:///{path}: not an SQLite database." in message
    assert path.read_text() == "Not a database, but somebody's notes."


def test_a_store_that_refuses_files_gets_the_metrics_and_the_final_state(database: str, tmp_path: Path) -> None:
    (tmp_path / "mlflow-artifacts").write_text("A file stands where the folder should.")
    run = a_run(tmp_path / "run", 8)
    assert not attempt(run, database, "completed")[0]
    logged_run = the_run(database)
    assert logged_run.info.status == "FINISHED"
    assert curves_at(database, logged_run) == curves_in(run)


def test_a_password_is_in_no_message_file_or_command_line(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 8)
    port = free_port()
    tracker = Tracker(run.metrics, tracking_uri=f"http://me:s3same@127.0.0.1:{port}")
    messages = tracker.start()
    args = process_of(tracker).args
    messages += tracker.close("completed")
    assert "s3same" not in f"{messages} {args}"
    assert not [path for path in run.path.rglob("*") if path.is_file() and b"s3same" in path.read_bytes()]


# Real training


def test_a_killed_training_resumes_with_each_step_once(database: str, tiny_images: Path, tmp_path: Path) -> None:
    args = ["--data", tiny_images, "--run-dir", tmp_path / "run", *OPTIONS, "--checkpoint-kimg", 0.1]
    run = RunFolder(tmp_path / "run")
    with subprocess.Popen(
        command_line("msggan.train", *args, "--kimg", 100, python=fast_python()),
        env=environment(MSGGAN_TRACKING_URI=database),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_for(lambda: list(run.checkpoints.glob("*.json")) and (reached(run, database) or 0) > 0)
        finally:
            process.kill()
    wait_for(lambda: the_run(database).info.status == "FAILED")
    saved = max(int(path.stem) for path in run.checkpoints.glob("*.json"))  # it may be ahead of the last report
    images_seen = max(saved, read_metrics(run.metrics)[-1]["images"])

    longer = ["--kimg", images_seen / 1000 + 0.1, "--tracking-uri", database, "-o", "json"]
    ended = run_in(tmp_path, "msggan.train", *args, *longer)
    assert ended.exit_code == 0
    assert ended.json["state"] == "completed"
    assert "does not have" not in ended.stderr
    logged_run = the_run(database)
    assert (logged_run.info.run_name, logged_run.info.status) == ("run", "FINISHED")
    record = read_state(run)
    assert record is not None
    assert record.ended is not None
    assert logged_run.info.start_time == utc_ms(record.created)
    assert utc_ms(record.ended) <= logged_run.info.end_time < utc_ms(record.ended) + 1000
    for name in ("d_loss", "g_loss", "swd"):
        assert curves_at(database, logged_run)[name] == curves_in(run)[name]


def test_a_run_that_failed_is_logged_to_its_last_report(
    database: str, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msggan.tracking.metrics_log.WRITES_PER_SIZE", 0)  # only the first report is written at once
    config = TrainConfig(resolution=8, latent_size=8, batch_size=4, kimg=1, metric_kimg=0.004, checkpoint_kimg=1)
    run_dir = tmp_path / "run"
    ours = Trainer(config, data=tiny_images, run_dir=run_dir, tracking_uri=database, messages=io.StringIO())

    def step(reals: Any, latents: Any) -> Any:
        if ours.images_seen == 40:
            raise OSError("The disk is gone.")
        return ours.training_state.step(reals, latents)

    monkeypatch.setattr(ours, "step", step)
    with pytest.raises(TrainingError, match="The disk is gone"):
        ours.run()
    assert the_run(database).info.status == "FAILED"
    assert [images for images, _ in curves_at(database, the_run(database))["d_loss"]] == [*range(4, 41, 4)]


def test_training_continues_beside_an_mlflow_that_never_answers(silent: str, tiny_images: Path, tmp_path: Path) -> None:
    args = ["--data", tiny_images, "--run-dir", tmp_path / "run", *OPTIONS, "--kimg", 0.02, "-o", "json"]
    variables = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MSGGAN_TRACKING_URI": "", "MLFLOW_TRACKING_URI": silent}
    ended = run_in(tmp_path, "msggan.train", *args, **variables)
    assert ended.exit_code == 0
    assert ended.json["state"] == "completed"
    assert f"MLflow at {silent} does not have 1 of 1 reports yet (no answer in time)" in ended.stderr
