"""Log a run to MLflow beside its training: `python -m msggan.tracking.mlflow_worker RUN_DIR`, see `metrics_log`.

A process, not a thread of the trainer: a thread that imports mlflow holds Python's lock. Measured on two busy cores
with networks whose steps are bound by Python, as on a GPU: 82 steps per second alone, 51 beside this process, and 10
for the 14 s in which a thread imported mlflow and opened a database. Nor can a run that was killed set its own state.

The address comes in MLFLOW_TRACKING_URI. One line on stdin is the final state; stdin's end without one means that the
trainer has died. With `--sweep FOLDER`, it logs a sweep's result, JSON on stdin, to the parent run of the trials.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from msggan.commands.program import PARENT_VARIABLE, is_database, sqlite_file, without_password
from msggan.runs.folder import RunFolder, read_state
from msggan.tracking.metrics_log import COUNTERS, FINISH_SECONDS, MlflowCursor, reports_in

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

EXPERIMENT = "msggan"
MAX_ROWS = 250  # in one request to Azure; MLflow itself takes 1000
RUN_FILES = ("config.json", "generator_config.txt", "discriminator_config.txt")
STATUSES = {"completed": "FINISHED", "cancelled": "KILLED", "interrupted": "KILLED"}  # any other is FAILED

INTERVAL_SECONDS = 5.0
MAX_INTERVAL_SECONDS = 60.0  # while MLflow is unavailable
FINAL_PAUSE_SECONDS = 2.0  # before the second attempt to log the final state
MAX_REASON_CHARACTERS = 160


class RunLogger:
    """Logs one run to one MLflow: what is new at each `attempt`, and at the last one everything.

    send: takes a message for the user and the current problem, both possibly empty.
    """

    def __init__(self, folder: RunFolder, uri: str, send: Callable[[str, str], None]) -> None:
        config = folder.load_config()
        assert config is not None  # noqa: S101 - the trainer writes it before it starts this process
        self.config = config
        self.folder = folder
        self.uri = uri
        self.send = send
        self.sweep = Path(os.environ[PARENT_VARIABLE]) if os.environ.get(PARENT_VARIABLE) else None
        self.run: MlflowRun | None = None
        self.failing = False

    def attempt(self, state: str = "") -> bool:
        """Logs what is new, and the final state where there is one. → whether everything succeeded."""
        where = without_password(self.uri)
        try:
            self._log(state)
        except Exception as error:
            problem, advice = explain(error)
            line = f"Cannot log to MLflow at {where}: {problem}. Training continues; metrics.jsonl has every report."
            self.send("" if self.failing else f"{line} {advice}".strip(), problem)
            self.failing = True
            return False
        if self.failing:
            self.send(f"MLflow at {where} is available again and has every report.", "")
            self.failing = False
        return True

    def _log(self, state: str) -> None:
        try:
            run = self.run = self.run or self._connect(state)
            self._log_reports(run)
        except Exception:
            self.run = None  # what was being sent may have arrived: connecting again finds out
            raise
        try:
            while self.files:
                run.log_file(self.folder.path / self.files[0])
                self.files.pop(0)
            self._log_samples(run)
            if state:
                run.log_file(self.folder.metrics)
        finally:
            if state:  # also where the store takes no files
                # A run that dies has not recorded its end in run.json: it ends now.
                record = read_state(self.folder)
                ended_ms = milliseconds(record.ended) if record is not None and record.state == state else None
                run.end(state, ended_ms and max(ended_ms, self.newest_ms))
        if state:
            self._save(ended=state)

    def _connect(self, state: str) -> MlflowRun:
        client = connect(self.uri)
        known = MlflowCursor.load(self.folder.path, self.uri)
        given_id = os.environ.get("MLFLOW_RUN_ID", "")
        run = find_run(client, given_id, given=True) if given_id else None
        if run is None and known:
            run = find_run(client, known.run_id)
        name = self.folder.path.resolve().name
        if run is None:
            record = read_state(self.folder)
            run_name = name if self.sweep is None else f"{self.sweep.resolve().name}/{name.lstrip('0') or '0'}"
            if missing := given_id or (known.run_id if known else ""):
                self.send(f"MLflow has no run {missing}. Logging everything to a new run.", "")
            run = create_run(client, self.uri, run_name, started_ms=milliseconds(record.created) if record else None)
            logged = -1
        else:
            history = client.get_metric_history(run.run_id, "d_loss")
            logged = max((point.step for point in history), default=-1)
        self.cursor = MlflowCursor(without_password(self.uri), name, run.run_id)
        if known and known.run_id == run.run_id:
            self.cursor, logged = known, max(logged, known.delivered_images)
        self._save(delivered_images=logged, ended="")
        self.offset, self.newest_ms = 0, 0  # in metrics.jsonl
        self.files = [file for file in RUN_FILES if (self.folder.path / file).exists()]
        self._describe(client, run, state)
        return run

    def _describe(self, client: MlflowClient, run: MlflowRun, state: str) -> None:
        """Fields of the configuration that may change on resuming are tags, the others are parameters."""
        tags = {"msggan.version": version("msggan"), "msggan.run_dir": str(self.folder.path.resolve())}
        params: dict[str, str] = {}
        for spec in fields(self.config):
            values = tags if spec.metadata["may_change"] else params
            values["loss_function" if spec.name == "loss" else spec.name] = str(getattr(self.config, spec.name))
        if self.sweep is not None and not run.given:
            # A sweep whose trial was stopped may have ended meanwhile: its run keeps its state.
            is_active = state not in ("cancelled", "interrupted", "died")
            tags["mlflow.parentRunId"] = parent_run(client, self.uri, self.sweep, is_active=is_active).run_id
        run.log_tags(tags)
        if refused := run.log_params(params):
            self.send(f"The MLflow run has other parameters, which it keeps ({refused}).", "")

    def _save(self, **changes: Any) -> None:
        self.cursor = replace(self.cursor, **changes)
        self.cursor.save(self.folder.path)

    def _log_reports(self, run: MlflowRun) -> None:
        """The complete reports that were added to metrics.jsonl, and that MLflow does not have.

        The last was made when the file was modified, and the others as much earlier as their `seconds` are fewer.
        """
        from mlflow.entities import Metric

        with self.folder.metrics.open("rb") as file:
            file.seek(self.offset)
            content = file.read()
            modified = os.fstat(file.fileno()).st_mtime
        complete = content[: content.rfind(b"\n") + 1]
        self.offset += len(complete)
        reports = reports_in(complete)
        if reports:
            self.newest_ms = round(1000 * modified)
            last_seconds = reports[-1].get("seconds", 0.0)
        new = [report for report in reports if report["images"] > self.cursor.delivered_images]
        at_once = MAX_ROWS // max(map(len, new), default=1)
        for start in range(0, len(new), at_once):
            rows = []
            for report in new[start : start + at_once]:
                age = max(0.0, last_seconds - report.get("seconds", 0.0))
                ms = round(1000 * (modified - age))
                numbers = {name: value for name, value in report.items() if type(value) in (int, float)}
                rows += [Metric(name, numbers[name], ms, report["images"]) for name in numbers.keys() - COUNTERS]
            run.log(rows)
            self._save(delivered_images=report["images"])

    def _log_samples(self, run: MlflowRun) -> None:
        """The finest grid and the sheet of all scales, which shows what the other grids do."""
        pattern = re.compile(rf"([0-9]{{9,}})_({self.config.resolution}px|scales)\.png")
        found: dict[int, list[Path]] = {}
        for path in sorted(self.folder.samples.glob("*.png")):
            if (match := pattern.fullmatch(path.name)) and int(match[1]) > self.cursor.delivered_sample_images:
                found.setdefault(int(match[1]), []).append(path)
        for images, paths in sorted(found.items()):
            # Every complete PNG ends so. The newest is being written; an older one was cut off when a process died.
            if all(path.read_bytes().endswith(b"IEND\xae\x42\x60\x82") for path in paths):
                for path in paths:
                    run.log_file(path, "samples")
                self._save(delivered_sample_images=images)


class MlflowRun:
    """A run in MLflow. given: whether somebody else created it, as Azure does for its jobs, and will end it."""

    def __init__(self, client: MlflowClient, run: Run, *, given: bool = False) -> None:
        self.client = client
        self.given = given
        self.run_id: str = run.info.run_id
        self.status: str = run.info.status

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Tags may change. The run becomes a running one."""
        from mlflow.entities import RunTag

        rows = [RunTag(name, value) for name, value in tags.items()]
        self.client.log_batch(self.run_id, tags=rows, synchronous=True)
        if not self.given and self.status != "RUNNING":
            self.client.update_run(self.run_id, status="RUNNING")

    def log_params(self, params: Mapping[str, str]) -> str:
        """Parameters may not change. → why MLflow refused them, or an empty string."""
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        rows = [Param(name, value) for name, value in params.items()]
        try:
            self.client.log_batch(self.run_id, params=rows, synchronous=True)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            return shorten(str(error))
        return ""

    def log(self, rows: list[Metric]) -> None:
        self.client.log_batch(self.run_id, metrics=rows, synchronous=True)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.run_id, str(path), folder)

    def end(self, state: str, ended_ms: int | None) -> None:
        """state: completed, failed, cancelled, interrupted or died. ended_ms: milliseconds since 1970. None: now."""
        if not self.given:
            self.client.set_terminated(self.run_id, STATUSES.get(state, "FAILED"), end_time=ended_ms)


def connect(uri: str) -> MlflowClient:
    """A client of the MLflow at `uri`. Creates the database of an sqlite address, one process at a time."""
    database = sqlite_file(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_name(f".{database.name}.lock")) if database else nullcontext():
        if is_database(uri):
            # MLflow tries to open a database for an hour, in silence. Here, each attempt is reported.
            import mlflow.store.db.utils

            mlflow.store.db.utils.MAX_RETRY_COUNT = 1
        from mlflow import MlflowClient

        return MlflowClient(uri)


def create_run(client: MlflowClient, uri: str, name: str, *, started_ms: int | None) -> MlflowRun:
    """A new run in the experiment MLFLOW_EXPERIMENT_NAME, by default `msggan`. started_ms: None is now."""
    from mlflow.exceptions import MlflowException

    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    database = sqlite_file(uri)  # its files belong beside it; by default they go to the current folder
    location = (database.parent / "mlflow-artifacts").as_uri() if database else None
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            client.create_experiment(experiment, artifact_location=location)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
            raise
    found = found or client.get_experiment_by_name(experiment)
    if found is None or found.lifecycle_stage != "active":
        raise LookupError(
            f"the experiment {experiment} was deleted; restore it, or set MLFLOW_EXPERIMENT_NAME to another name"
        )
    return MlflowRun(client, client.create_run(found.experiment_id, start_time=started_ms, run_name=name))


def find_run(client: MlflowClient, run_id: str, *, given: bool = False) -> MlflowRun | None:
    """The run with this id, None if there is none or it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return MlflowRun(client, run, given=given) if run.info.lifecycle_stage == "active" else None


def milliseconds(time_utc: object) -> int | None:
    """A time of `run.json` or `sweep.json` (UTC, ISO 8601) in milliseconds since 1970, None if it cannot be read."""
    try:
        parsed = datetime.strptime(str(time_utc), "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return None
    return round(1000 * parsed.replace(tzinfo=timezone.utc).timestamp())


# --- Sweeps -----------------------------------------------------------------------------------------------------------


def parent_run(client: MlflowClient, uri: str, folder: Path, *, is_active: bool) -> MlflowRun:
    """The run of the sweep in `folder`, which is created where there is none; several trials may call this at once.

    is_active: whether to show a run that had ended as running again.
    """
    with exclusive_lock(folder, seconds=30.0):
        cursor = MlflowCursor.load(folder, uri)
        run = find_run(client, cursor.run_id) if cursor else None
        if run is None:
            name, started_ms = folder.resolve().name, None
            with suppress(OSError, ValueError, KeyError, TypeError):
                started_ms = milliseconds(json.loads((folder / "sweep.json").read_bytes())["created"])
            run = create_run(client, uri, name, started_ms=started_ms)
            MlflowCursor(without_password(uri), name, run.run_id).save(folder)
            is_active = True
        if is_active:
            run.log_tags({"msggan.version": version("msggan"), "msggan.run_dir": str(folder.resolve())})
    return run


def log_result(uri: str, folder: Path, result: Mapping[str, Any]) -> None:
    """Logs what `metrics_log.log_sweep_result` takes; the final state also where the store takes nothing else."""
    from mlflow.entities import Metric

    run = parent_run(connect(uri), uri, folder, is_active=False)
    try:
        run.log_tags(result["tags"])
        run.log_params(result["params"])
        now = round(1000 * time.time())
        run.log([Metric(name, value, now, 0) for name, value in result["metrics"].items()])
        for path in result["files"]:
            run.log_file(Path(path))
    finally:
        run.end(result["state"], milliseconds(result["ended"]))


# --- What went wrong --------------------------------------------------------------------------------------------------

# What the layers below MLflow's client say, and the reason that it means.
UNREACHABLE = (
    (r"NameResolutionError|getaddrinfo|Name or service not known", "unknown host"),
    (r"Connection refused|actively refused", "connection refused"),
    (r"timed out|Timeout", "no answer in time"),
    (r"SSLError|CERTIFICATE", "no secure connection"),
    (r"Connection (aborted|broken|reset)|RemoteDisconnected", "connection lost"),
    (r"Max retries exceeded|NewConnectionError", "no connection"),
    (r"too many 50[0-9]|error code 50[0-9]", "server error"),
    (r"database is locked", "its database is locked"),
    (r"file is not a database", "not an SQLite database"),
)


def explain(error: Exception) -> tuple[str, str]:
    """→ the reason in a few words, and what the user can do: a sentence, or an empty string."""
    text = str(error)
    if reason := next((reason for pattern, reason in UNREACHABLE if re.search(pattern, text, re.IGNORECASE)), ""):
        return reason, ""
    # MLflow answers errors in JSON, from which its client takes the message; these are of other servers.
    status = re.search(r"failed with error code ([0-9]{3}) != 200", text)
    if "not in a valid JSON format" in text:
        return "not an MLflow server: its answer is not JSON", "Check --tracking-uri."
    if status and status[1] not in ("401", "403"):
        return f"not an MLflow server: error {status[1]}", "Check --tracking-uri."
    reason = shorten(text) or type(error).__name__
    if getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"):
        return f"access denied: {reason}", "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
    return reason, ""


def shorten(text: str) -> str:
    """The first line that is not empty, cut to a length that fits in a message."""
    first = next(filter(None, map(str.strip, text.splitlines())), "").rstrip(".")
    return first if len(first) <= MAX_REASON_CHARACTERS else first[: MAX_REASON_CHARACTERS - 1] + "…"


# --- The process ------------------------------------------------------------------------------------------------------


@contextmanager
def exclusive_lock(folder: Path, seconds: float) -> Iterator[None]:
    """One process at a time logs what is in `folder`. Raises filelock's `Timeout` after `seconds`."""
    lock = FileLock(folder / ".mlflow.lock")
    try:
        lock.acquire(timeout=seconds)
    except (OSError, NotImplementedError) as error:  # some network drives have no locks
        if isinstance(error, Timeout):
            raise
    try:
        yield
    finally:
        lock.release()


class LastLine:
    """The last line from the parent on stdin, empty if it died. FINISH_SECONDS after it, this process exits."""

    def __init__(self) -> None:
        self.text = ""
        self.received = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        self.text = sys.stdin.readline().strip()
        self.received.set()
        time.sleep(FINISH_SECONDS)
        os._exit(1)


def log_run(folder: RunFolder, uri: str, last_line: LastLine) -> None:
    """Logs a run every few seconds, less often while that fails, until its end."""
    with exclusive_lock(folder.path, FINISH_SECONDS + 5):  # the process of a trainer that died exits first
        logger = RunLogger(folder, uri, send)
        pause = 0.0
        while not last_line.received.wait(pause):
            succeeded = logger.attempt()
            pause = INTERVAL_SECONDS if succeeded else min(max(2 * pause, INTERVAL_SECONDS), MAX_INTERVAL_SECONDS)
        state, was_failing = last_line.text or "died", logger.failing
        if not logger.attempt(state) and not was_failing:
            time.sleep(FINAL_PAUSE_SECONDS)
            logger.attempt(state)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches all processes; the parent says when to exit
        signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(10)
    uri, last_line = os.environ["MLFLOW_TRACKING_URI"], LastLine()
    if sys.argv[1] != "--sweep":
        log_run(RunFolder(sys.argv[1]), uri, last_line)
        return
    last_line.received.wait()
    try:
        log_result(uri, Path(sys.argv[2]), json.loads(last_line.text))
    except Exception as error:
        send("", explain(error)[0])
        raise SystemExit(1) from None


def send(message: str, problem: str) -> None:
    """To the trainer, on a line of its own whatever else a library has printed."""
    with suppress(BrokenPipeError):  # it has died; its run is still logged
        sys.stdout.write("\n" + json.dumps({"message": message, "problem": problem}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
