"""A run's metrics: `metrics.jsonl`, one JSON object per line, and the MLflow and TensorBoard that they are logged to.

`metrics.jsonl` is the queue and `mlflow.json` the cursor in it. A process of its own, `msggan.tracking.mlflow_worker`,
logs to MLflow; it prints JSON lines with a `message` for the user and the current `problem`, both possibly empty.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from msggan.commands.program import absolute_uri, view_command, without_password
from msggan.runs.files import naming, write_whole

WRITES_PER_SIZE = 100  # of metrics.jsonl: as many bytes are uploaded, in terms of its size, where a write uploads all
EVENTS_VARIABLE = "MSGGAN_TENSORBOARD"  # the folder to write event files of TensorBoard to; none without it
COUNTERS = ("images", "kimg", "seconds")  # of a report, which are no metrics
TIMINGS = ("seconds", "images_per_second", "seconds_per_kimg", "peak_memory_mib")  # in which equal runs may differ

FINISH_SECONDS = 60.0  # after its last line of input, the process exits by then, whatever the server does
# How long the end of a run waits for MLflow: a run that was stopped, one whose MLflow is unavailable, any other.
STOPPED_WAIT_SECONDS = 5.0
UNAVAILABLE_WAIT_SECONDS = 15.0
MAX_WAIT_SECONDS = FINISH_SECONDS + 5

# The client gives up early: what failed is logged later. These yield to what the user has set.
DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class Tracker:
    """Adds reports to `metrics.jsonl`, and logs them to MLflow and to event files of TensorBoard.

    A mount of blob storage may upload the whole file after each write, or refuse to append to it. So the longer the
    file is, the more rarely it is written: all uploads together are about a hundred times its size, not half its
    square. Where appending is refused it is written anew. This is right everywhere; no mount has to be detected. It is
    opened for each write: such a mount may show what was written only once the file is closed.
    `write` comes before each checkpoint: what a killed process had not written comes after, and is repeated.

    tracking_uri: the MLflow to log to, from `start` to `close`. It can neither stop nor slow the run.
    """

    def __init__(self, path: Path, *, tracking_uri: str | None = None) -> None:
        self.path = path
        self.tracking_uri = absolute_uri(tracking_uri) if tracking_uri else ""
        self._mlflow: MlflowProcess | None = None
        self._events: Any = None
        self._written, self._unwritten = 0, list[Mapping[str, float]]()

    def report(self, metrics: Mapping[str, float]) -> None:
        """Adds a report; with those before it, it is written once they are a hundredth of the file."""
        self._unwritten.append(metrics)
        self._write_events([metrics])
        if WRITES_PER_SIZE * len(self._unwritten) >= self._written:
            self.write()

    def write(self) -> None:
        """Writes the reports that are not in the file yet."""
        reports, self._unwritten = self._unwritten, []
        if not reports:
            return
        try:
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(as_lines(reports))
        except OSError:  # it may have written a part of them
            first = reports[0]["images"]
            before = [report for report in read_metrics(self.path) if report["images"] < first]
            write_whole(self.path, as_lines([*before, *reports]).encode())
        self._written += len(reports)

    def newest(self) -> dict[str, float]:
        """The last report, empty if there is none yet."""
        return next(reversed(read_metrics(self.path)), {})

    def evaluations(self) -> list[dict[str, float]]:
        """The reports that have a swd, with what are numbers in them."""
        reports = [
            {name: value for name, value in report.items() if type(value) in (int, float)}
            for report in read_metrics(self.path)
        ]
        return [report for report in reports if {"kimg", "swd"} <= report.keys()]

    def forget_after(self, images_seen: int) -> None:
        """Drops the reports of steps that will be repeated, and a last line that is incomplete."""
        kept = [report for report in read_metrics(self.path) if report["images"] <= images_seen]
        self._written, self._unwritten = len(kept), []
        content = as_lines(kept).encode()
        # An unchanged file keeps its modification time, which dates the reports in MLflow.
        if not self.path.exists() or self.path.read_bytes() != content:
            write_whole(self.path, content)

    def start(self) -> list[str]:
        """Starts logging the run folder to MLflow and TensorBoard, after `forget_after`. → messages for the user."""
        events = self._start_events()
        if not self.tracking_uri:
            return events
        self._mlflow = MlflowProcess([str(self.path.parent)], self.tracking_uri)
        view = view_command(self.tracking_uri)
        logging = f"Logging to MLflow at {without_password(self.tracking_uri)}."
        return [*events, f"{logging} View it: {view}" if view else logging]

    def _start_events(self) -> list[str]:
        """Writes all reports so far to a new event file, which replaces earlier ones of its folder."""
        folder = os.environ.get(EVENTS_VARIABLE)
        if not folder:
            return []
        try:
            from torch.utils.tensorboard import SummaryWriter

            # TensorBoard drops what earlier files have from this step on.
            self._events = SummaryWriter(folder, purge_step=0, flush_secs=10)
        except (ImportError, OSError) as error:
            return [f"Cannot write event files for TensorBoard to {folder}: {error}. Training continues."]
        self._write_events(read_metrics(self.path))
        return [f"Writing event files for TensorBoard to {folder}."]

    def _write_events(self, reports: Iterable[Mapping[str, float]]) -> None:
        try:
            for report in reports if self._events else ():
                for name in report.keys() - COUNTERS:
                    self._events.add_scalar(name, report[name], int(report["images"]))
        except Exception:  # such as a full disk, which the writer's thread has found: metrics.jsonl has every report
            self._events = None

    def messages(self) -> list[str]:
        """Messages about MLflow since the last call; mostly none."""
        return self._mlflow.messages() if self._mlflow else []

    def close(self, state: str, *, wait: bool = True) -> list[str]:
        """Sets the run's final state in MLflow and waits, a minute at most and mostly a second. → messages.

        state: completed, failed, cancelled or interrupted.
        """
        if self._events:
            with suppress(Exception):
                self._events.close()
            self._events = None
        process, self._mlflow = self._mlflow, None
        if process is None:
            return []
        if not wait:
            return process.close(state, wait_seconds=0)
        # The user, or a machine that is being preempted, wants a run that was stopped to end now.
        is_stopped = state in ("cancelled", "interrupted")
        messages = process.close(state, wait_seconds=STOPPED_WAIT_SECONDS if is_stopped else MAX_WAIT_SECONDS)
        total, unsent = len(read_metrics(self.path)), self._unsent()
        if unsent or process.problem:
            missing = f"{unsent} of {total} reports" if unsent else "the final state and files"
            messages.append(
                f"MLflow at {without_password(self.tracking_uri)} does not have {missing} yet "
                f"({process.problem or 'too slow'}). The same command again logs what is missing."
            )
        return messages

    def is_delivered(self, state: str) -> bool:
        """Whether MLflow has all of a run that ended in `state`, or there is no MLflow to log to."""
        cursor = MlflowCursor.load(self.path.parent, self.tracking_uri)
        return not self.tracking_uri or (cursor is not None and cursor.ended == state and not self._unsent())

    def _unsent(self) -> int:
        """The number of reports that MLflow does not have."""
        cursor = MlflowCursor.load(self.path.parent, self.tracking_uri)
        sent = cursor.delivered_images if cursor else -1
        return sum(report["images"] > sent for report in read_metrics(self.path))


def as_lines(reports: Iterable[Mapping[str, float]]) -> str:
    return "".join(json.dumps(report) + "\n" for report in reports)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Every complete report of a `metrics.jsonl`, in order; none if there is no file."""
    return reports_in(path.read_bytes()) if path.exists() else []


def newest_values(reports: Iterable[Mapping[str, float]]) -> dict[str, float | None]:
    """The last value of each metric, including those that are not in every report."""
    values: dict[str, float | None] = {}
    for report in reports:
        values.update(report)
    return values


def reports_in(content: bytes) -> list[dict[str, float]]:
    """Every complete report in the content of a `metrics.jsonl`, or in the end of one, in order."""
    reports = []
    for line in content.decode("utf-8", errors="replace").splitlines():
        with suppress(ValueError):  # the process died while it wrote this line
            report = json.loads(line)
            images = report.get("images") if isinstance(report, dict) else None
            if type(images) is int and 0 <= images < 2**63:
                reports.append(report)
    return reports


# --- MLflow -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MlflowCursor:
    """How much of a run one MLflow has. `mlflow.json` in the run folder.

    tracking_uri: without a password. name: of the run folder; a copy of the folder under another name is another run.
    delivered_…images: the images seen at the last report and at the last sample grid that MLflow has; -1: none.
    ended: the final state, once MLflow has it and the last files.
    """

    tracking_uri: str
    name: str
    run_id: str
    delivered_images: int = -1
    delivered_sample_images: int = -1
    ended: str = ""

    @classmethod
    def load(cls, folder: Path, tracking_uri: str) -> MlflowCursor | None:
        """The cursor of this folder and this MLflow, None if there is none or it cannot be read."""
        try:
            values = json.loads((folder / "mlflow.json").read_bytes())
            cursor = cls(**{spec.name: values[spec.name] for spec in fields(cls) if spec.name in values})
        except (OSError, ValueError, TypeError):
            return None
        is_same = (cursor.tracking_uri, cursor.name) == (without_password(tracking_uri), folder.resolve().name)
        is_valid = all(isinstance(images, int) for images in (cursor.delivered_images, cursor.delivered_sample_images))
        return cursor if is_same and is_valid else None

    def save(self, folder: Path) -> None:
        write_whole(folder / "mlflow.json", json.dumps(asdict(self), indent=2).encode())


class MlflowProcess:
    """A process that logs to MLflow, with these arguments. Nothing here raises, and only `close` waits.

    problem: why MLflow does not have everything yet; empty when all is well.
    """

    def __init__(self, args: list[str], tracking_uri: str, *, python: str = sys.executable) -> None:
        self.problem = ""
        self._closing = False
        self._messages: queue.Queue[str] = queue.Queue()
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own command, as a list: no shell reads it
                [python, "-m", "msggan.tracking.mlflow_worker", *args],
                # The address may hold a password, and a command line is visible to everyone.
                env={**DEFAULTS, **os.environ, "MLFLOW_TRACKING_URI": tracking_uri, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            self._stop_logging(f"the process that logs to it cannot start: {error.strerror}")
            return
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def messages(self) -> list[str]:
        """The messages for the user since the last call."""
        return [self._messages.get() for _ in range(self._messages.qsize())]

    def close(self, line: str, *, wait_seconds: float = MAX_WAIT_SECONDS) -> list[str]:
        """Sends the last line, and waits until everything is logged, for a bounded time. → messages for the user.

        A process that takes longer is not killed: it exits by itself within FINISH_SECONDS.
        """
        if self._process is None:
            return self.messages()
        self._closing = True
        assert self._process.stdin is not None  # noqa: S101 - started with a pipe
        with suppress(OSError), self._process.stdin as stdin:  # it may have died, which `_read` reports
            stdin.write(line + "\n")
        with suppress(KeyboardInterrupt):  # ends the waiting: what is logged has ended already
            self._reader.join(min(wait_seconds, UNAVAILABLE_WAIT_SECONDS) if self.problem else wait_seconds)
        if self._reader.is_alive():
            self.problem = self.problem or "not finished in time"
        return self.messages()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None  # noqa: S101 - started with a pipe
        with process.stdout as lines:
            for line in lines:
                with suppress(ValueError, TypeError, KeyError):  # a library's own output
                    response = json.loads(line)
                    self.problem = response["problem"]
                    if response["message"]:
                        self._messages.put(response["message"])
        code = process.wait()
        if code < 0:
            self._stop_logging(f"the process that logs to it was killed by signal {-code}")
        elif not self._closing or (code and not self.problem):
            self._stop_logging(f"the process that logs to it exited with code {code}")

    def _stop_logging(self, problem: str) -> None:
        self.problem = problem
        if not self._closing:
            self._messages.put(
                f"No longer logging to MLflow: {problem}. Training continues; metrics.jsonl has every report."
            )


def log_sweep_result(folder: Path, tracking_uri: str, result: Mapping[str, Any], *, python: str) -> str:
    """Logs the result of a sweep that has ended, to the run that its trials are nested in. → the problem, or empty.

    result: `state`, `ended` (UTC, ISO 8601), `params`, `metrics` and `tags` by name, and paths of `files`.
    """
    process = MlflowProcess(["--sweep", str(folder)], tracking_uri, python=python)
    process.close(json.dumps(result))
    return process.problem
