"""The process that logs a run, or the result of a sweep, to MLflow, as its parent sees it. Does not import mlflow.

`metrics.jsonl` is the queue and `mlflow.json` the cursor in it. The process, `python -m msggan.tracking.mlflow_worker`,
prints JSON lines with a `message` for the user and the current `problem`, both possibly empty.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from msggan.commands.program import without_password
from msggan.runs.files import write_whole

UNAVAILABLE_SECONDS = 15.0  # how long to wait for an MLflow that was unavailable when the run ended
FINISH_SECONDS = 60.0  # after its last line of input, the process exits by then, whatever the server does

# The client gives up early: what failed is logged later. These yield to what the user has set.
DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


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
    """A process that logs to MLflow. Nothing here raises, and only `close` waits.

    args: of the worker. problem: why MLflow does not have everything yet; empty when all is well.
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

    def close(self, line: str, *, wait_seconds: float = FINISH_SECONDS + 5) -> list[str]:
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
            self._reader.join(min(wait_seconds, UNAVAILABLE_SECONDS) if self.problem else wait_seconds)
        if self._reader.is_alive():
            self.problem = self.problem or "not finished in time"
        return self.messages()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None  # noqa: S101 - started with a pipe
        with process.stdout as lines:
            for line in lines:
                with suppress(ValueError, TypeError, KeyError):  # a library's own output
                    news = json.loads(line)
                    self.problem = news["problem"]
                    if news["message"]:
                        self._messages.put(news["message"])
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
