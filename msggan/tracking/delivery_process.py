"""How does a run keep the process that tells MLflow, so that MLflow can neither stop nor slow the run?

The process is `python -m msggan.tracking.delivery`. It gets the final state as a line on its stdin; stdin's end without
such a line tells it that the run has died. It tells its own news as JSON lines on stdout.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

# At the run's end: how long to wait after the process's last sign of getting on, and in all.
PATIENCE_SECONDS = 15.0
MOST_PATIENCE_SECONDS = 60.0
# A run that was stopped is to end within seconds: its process has that long before it is left to itself.
STOPPED_PATIENCE_SECONDS = 5.0

# What MLflow's client reads. It gives up early, since what failed is delivered later, once it is known what arrived.
ENVIRONMENT = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "OMP_NUM_THREADS": "1",
}
ALWAYS = ("OMP_NUM_THREADS",)  # the others yield to what the person has set


class DeliveryProcess:
    """Tells MLflow of the run in `run_dir` while it trains. Nothing here raises or waits, except `leave`.

    problem: why MLflow does not have everything yet, as far as is known; empty when all is well.
    """

    def __init__(self, run_dir: Path, tracking_uri: str) -> None:
        self.problem = ""
        self.died = False
        self._heard = False
        self._farewell_said = False
        self._news: queue.Queue[dict[str, Any] | None] = queue.Queue()  # None: the process has ended
        self._child: subprocess.Popen[str] | None = None
        self._listener: threading.Thread | None = None
        try:
            # The address goes by the environment: it may hold a password, and a command line is seen by everyone.
            self._child = subprocess.Popen(  # noqa: S603 - our own command, as a list: no shell reads it
                [sys.executable, "-m", "msggan.tracking.delivery", str(run_dir)],
                env=delivery_environment(tracking_uri),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
            )
        except OSError as error:
            self._has_died(f"the process that tells it cannot start: {error.strerror}")
            return
        self._listener = threading.Thread(target=self._listen, args=(self._child,), daemon=True)
        self._listener.start()

    def news(self) -> list[str]:
        """What there is to say since the last time."""
        said = []
        while not self._news.empty():
            said += self._take(self._news.get())
        return said

    def leave(self, state: str, *, wait: bool = True) -> list[str]:
        """Tells how the run ended, and waits while the process gets on; one that does not is killed. → what to say.

        A stopped run waits a few seconds, and one without `wait` not at all; then the process is left to itself and
        ends soon, with its work done or not.
        """
        if self._child is None or self._listener is None:
            return []
        self._say_farewell(state)
        if not wait:
            return []
        is_stopped = state in ("cancelled", "interrupted")
        said = self._wait(STOPPED_PATIENCE_SECONDS if is_stopped else MOST_PATIENCE_SECONDS)
        if is_stopped and self._child.poll() is None:
            return said
        self._child.kill()  # does nothing to one that has ended
        self._child.wait()
        self._listener.join()
        return said

    def _wait(self, most_seconds: float) -> list[str]:
        said: list[str] = []
        now = time.monotonic()
        end = now + most_seconds
        # One that has not spoken yet is still starting, which takes as long as this machine takes.
        patience = now + PATIENCE_SECONDS if self._heard else end
        while not self.died and (left := min(end, patience) - time.monotonic()) > 0:
            try:
                news = self._news.get(timeout=left)
            except (queue.Empty, KeyboardInterrupt):  # Ctrl-C here ends the waiting: the run has its end already
                break
            if news is None:
                self._note_end()
                break
            said += self._take(news)
            if not news.get("problem"):
                patience = time.monotonic() + PATIENCE_SECONDS
        return said

    def _say_farewell(self, state: str) -> None:
        assert self._child is not None  # noqa: S101 - `leave` has looked
        assert self._child.stdin is not None  # noqa: S101 - it was started with a pipe
        self._farewell_said = True
        try:
            self._child.stdin.write(state + "\n")
            self._child.stdin.close()
        except OSError:  # it has died; whoever listens to it says so
            pass

    def _listen(self, child: subprocess.Popen[str]) -> None:
        """Runs beside the training, and only waits."""
        assert child.stdout is not None  # noqa: S101 - it was started with a pipe
        with child.stdout as lines:
            for line in lines:
                with suppress(ValueError):  # Python may print something of its own as it starts
                    self._news.put(dict(json.loads(line)))
        self._news.put(None)

    def _take(self, news: dict[str, Any] | None) -> list[str]:
        if news is None:
            self._note_end()
            return [f"MLflow is told no more: {self.problem}. Training goes on and metrics.jsonl has everything."]
        self._heard = True
        self.problem = news.get("problem", self.problem)
        return [news["say"]] if "say" in news else []

    def _note_end(self) -> None:
        """Before it was told to, a process ends only by a fault or by another's hand."""
        status = self._child.wait() if self._child else 1
        if status < 0:
            self._has_died(f"the process that tells it was killed by signal {-status}")
        elif status > 0 or not self._farewell_said:
            self._has_died(f"the process that tells it ended with exit code {status}")

    def _has_died(self, reason: str) -> None:
        self.died = True
        self.problem = reason


def delivery_environment(tracking_uri: str) -> dict[str, str]:
    """The variables of a process that tells MLflow."""
    ours = {name: value for name, value in ENVIRONMENT.items() if name in ALWAYS or name not in os.environ}
    return {**os.environ, **ours, "MLFLOW_TRACKING_URI": tracking_uri}
