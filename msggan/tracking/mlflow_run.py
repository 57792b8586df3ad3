"""What is a run in MLflow: its experiment, parameters, tags, metrics, files, end? The only module that imports it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from msggan.commands.tracking_uri import is_database, sqlite_file, without_password
from msggan.config import TrainConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

EXPERIMENT = "msggan"
METRICS = ("d_loss", "g_loss", "swd", "images_per_second")
ROWS_AT_MOST = 250  # in one request: what Azure takes, MLflow itself takes 1000
LONGEST_REASON = 160

# How a run's end is called here and there. `died`: the process ended without a word.
STATUSES = {
    "completed": "FINISHED",
    "failed": "FAILED",
    "cancelled": "KILLED",
    "interrupted": "KILLED",
    "died": "FAILED",
}


class DeliveryError(Exception):
    """MLflow did not take what it was given.

    reason: a few words, to stand in brackets. line: the sentence for the person who trains, without what comes of it.
    advice: what that person can do, a sentence, or nothing.
    """

    def __init__(self, line: str, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason
        self.advice = advice


class MlflowRun:
    """One run in one MLflow. Every method may raise `DeliveryError`, and then may be called again.

    given: whether somebody else began this run, as Azure does for its jobs, and will end it.
    """

    def __init__(self, uri: str, client: MlflowClient, run: Run, *, given: bool) -> None:
        self.uri = uri
        self.given = given
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self._client = client
        self._status: str = run.info.status

    def describe(self, tags: Mapping[str, str]) -> None:
        """What may change. The run is shown as running."""
        from mlflow.entities import RunTag

        with explained(self.uri):
            self._client.log_batch(
                self.run_id, tags=[RunTag(name, value) for name, value in tags.items()], synchronous=True
            )
            if not self.given and self._status != "RUNNING":
                self._client.update_run(self.run_id, status="RUNNING")

    def keep_params(self, params: Mapping[str, str]) -> str:
        """What may not change: MLflow lets it be said again, but not otherwise. → why it refused, or nothing."""
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        rows = [Param(name, value) for name, value in params.items()]
        with explained(self.uri):
            try:
                self._client.log_batch(self.run_id, params=rows, synchronous=True)
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                return _shortened(str(error))
        return ""

    def last_step(self) -> int:
        """The images seen at the last report that has arrived here, -1 before the first."""
        with explained(self.uri):
            return max((point.step for point in self._client.get_metric_history(self.run_id, METRICS[0])), default=-1)

    def log(self, rows: Sequence[Metric]) -> None:
        """All of them or none: at most ROWS_AT_MOST."""
        with explained(self.uri):
            self._client.log_batch(self.run_id, metrics=rows, synchronous=True)

    def log_values(self, values: Mapping[str, float]) -> None:
        """Numbers of the run as a whole, which stand at no step; told again, the last are shown."""
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        self.log([Metric(name, value, now, 0) for name, value in values.items()])

    def keep_file(self, path: Path, folder: str | None = None) -> None:
        with explained(self.uri):
            self._client.log_artifact(self.run_id, str(path), folder)

    def end(self, state: str, ended_ms: int | None) -> None:
        """state: one of STATUSES. ended_ms: when the training ended, in milliseconds since 1970. None: now."""
        if self.given:
            return
        with explained(self.uri):
            self._client.set_terminated(self.run_id, STATUSES[state], end_time=ended_ms)


def connect(uri: str) -> MlflowClient:
    """A client of the MLflow at `uri`; makes the database of an sqlite address that is not there yet."""
    with explained(uri), _first_come(uri):
        if is_database(uri):
            # MLflow tries to open a database for an hour. We ask again ourselves, and tell the person meanwhile.
            import mlflow.store.db.utils

            mlflow.store.db.utils.MAX_RETRY_COUNT = 1
        from mlflow import MlflowClient

        return MlflowClient(uri)


def begin_run(client: MlflowClient, uri: str, name: str, *, started_ms: int | None) -> MlflowRun:
    """A new run of this name in the experiment that MLFLOW_EXPERIMENT_NAME names, by default `msggan`.

    started_ms: when the training began, in milliseconds since 1970. None: now.
    """
    with explained(uri):
        experiment_id = _experiment(client, uri, os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT)
        run = client.create_run(experiment_id, start_time=started_ms, run_name=name)
        return MlflowRun(uri, client, run, given=False)


def find_run(client: MlflowClient, uri: str, run_id: str, *, given: bool) -> MlflowRun | None:
    """The run of this id, None if there is none or it was deleted."""
    from mlflow.exceptions import MlflowException

    with explained(uri):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
    return MlflowRun(uri, client, run, given=given) if run.info.lifecycle_stage == "active" else None


def milliseconds(moment: object) -> int | None:
    """A moment of `run.json` or `sweep.json` in milliseconds since 1970, None if it cannot be read.

    moment: in UTC, ISO 8601, to the second.
    """
    try:
        read = datetime.strptime(str(moment), "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return None
    return round(1000 * read.replace(tzinfo=timezone.utc).timestamp())


def rows_of(report: Mapping[str, Any], *, timestamp_ms: int) -> list[Metric]:
    """A report of `metrics.jsonl` as MLflow's rows: step is the images seen."""
    from mlflow.entities import Metric

    numbers = {name: report[name] for name in METRICS if type(report.get(name)) in (int, float)}
    return [Metric(name, value, timestamp_ms, report["images"]) for name, value in numbers.items()]


def params_of(config: TrainConfig) -> dict[str, str]:
    """What may not change, as text; the loss as `loss_function`."""
    renamed = {"loss": "loss_function"}
    return {renamed.get(name, name): text for name, text in _texts(config, may_change=False)}


def tags_of(config: TrainConfig) -> dict[str, str]:
    """What may change when a run goes on, as text."""
    return dict(_texts(config, may_change=True))


def _texts(config: TrainConfig, *, may_change: bool) -> Iterator[tuple[str, str]]:
    for spec in fields(config):
        if spec.metadata["may_change"] == may_change:
            yield spec.name, str(getattr(config, spec.name))


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment, which is made if need be."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=_files_beside(uri))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run was quicker
                raise
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise DeliveryError(
            f"The experiment {name} was deleted from MLflow at {without_password(uri)}.",
            f"experiment {name} was deleted",
            "Restore it, or set MLFLOW_EXPERIMENT_NAME to another name.",
        )
    return str(found.experiment_id)


def _files_beside(uri: str) -> str | None:
    """Where a database's files go: without this they would go wherever this process happens to be. None: its choice."""
    database = sqlite_file(uri)
    return (database.parent / "mlflow-artifacts").as_uri() if database else None


@contextmanager
def _first_come(uri: str) -> Iterator[None]:
    """Lets one process at a time open an sqlite database: two that make its tables at once spoil it."""
    database = sqlite_file(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
        if database.exists() and database.stat().st_size and not _is_sqlite(database):
            raise DeliveryError(
                f"{database} is no SQLite database.", f"{database} is no SQLite database", "Check --tracking-uri."
            )
    with FileLock(database.with_name(f".{database.name}.lock")) if database else nullcontext():
        yield


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


# --- What went wrong, in words ----------------------------------------------------------------------------------------


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns whatever MLflow, its client or its database raise into a `DeliveryError`."""
    try:
        yield
    except DeliveryError:
        raise
    except Exception as error:
        raise problem_of(error, without_password(uri)) from error


def problem_of(error: Exception, uri: str) -> DeliveryError:
    """uri: as it may be shown."""
    text = str(error)
    unreachable = _why_unreachable(text)
    if unreachable:
        return DeliveryError(f"MLflow at {uri} does not answer ({unreachable}).", unreachable)
    answered = _not_mlflows_answer(text)
    if answered:
        return DeliveryError(
            f"{uri} answers, but not as an MLflow server ({answered}).",
            f"not an MLflow server: {answered}",
            "Check --tracking-uri.",
        )
    reason = _shortened(text) or type(error).__name__
    if getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"):
        return DeliveryError(
            f"MLflow at {uri} refuses ({reason}).", reason, "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )
    return DeliveryError(f"MLflow at {uri} did not take it ({reason}).", reason)


# What the layers below say when nobody answers, and what a person calls it.
UNREACHABLE = (
    (r"NameResolutionError|getaddrinfo|Name or service not known", "unknown host"),
    (r"Connection refused|actively refused", "connection refused"),
    (r"timed out|Timeout", "no answer in time"),
    (r"SSLError|CERTIFICATE", "no secure connection"),
    (r"Connection aborted|RemoteDisconnected|Connection reset", "connection cut off"),
    (r"Max retries exceeded|NewConnectionError", "no connection"),
    (r"too many 50[0-9]|error code 50[0-9]", "it is out of order"),
    (r"database is locked", "its database is locked"),
)


def _why_unreachable(text: str) -> str:
    return next((words for pattern, words in UNREACHABLE if re.search(pattern, text, re.IGNORECASE)), "")


def _not_mlflows_answer(text: str) -> str:
    """What a server that is no MLflow answered, in a few words; empty if it was MLflow."""
    if "not in a valid JSON format" in text:
        return "its answer is no JSON"
    # MLflow itself answers errors in JSON, from which its client takes the message; this is what it says of others.
    status = re.search(r"failed with error code ([0-9]{3}) != 200", text)
    return f"error {status[1]}" if status and status[1] not in ("401", "403") else ""


def _shortened(text: str) -> str:
    """The first line that says something, of a length to stand in brackets."""
    lines: Iterable[str] = (line.strip() for line in text.splitlines())
    first = next(filter(None, lines), "").rstrip(".")
    return first if len(first) <= LONGEST_REASON else first[: LONGEST_REASON - 1] + "…"
