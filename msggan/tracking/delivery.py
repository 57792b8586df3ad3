"""How do a run's numbers and files reach MLflow? `python -m msggan.tracking.delivery RUN_DIR`, beside the training.

`metrics.jsonl` is the queue: this process reads what training writes, and training never waits for it. The address
comes in MLFLOW_TRACKING_URI. One line on stdin is the run's final state; stdin's end without one means that the trainer
has died. stdout gets news as JSON lines: `say` is a line for the person, `problem` why something is not delivered yet.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import Timeout

from msggan.commands.tracking_uri import PARENT_VARIABLE, sqlite_file, without_password
from msggan.runs.folder import RunFolder
from msggan.runs.state import read_note
from msggan.tracking.delivered import DeliveryCursor, exclusive_lock, is_point, load_delivered
from msggan.tracking.mlflow_run import (
    METRICS,
    ROWS_AT_MOST,
    DeliveryError,
    MlflowRun,
    begin_run,
    connect,
    find_run,
    milliseconds,
    params_of,
    rows_of,
    tags_of,
)
from msggan.tracking.parent_run import parent_run

INTERVAL_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
DESCRIPTION = ("config.json", "generator_config.txt", "discriminator_config.txt")
REPORTS_AT_MOST = ROWS_AT_MOST // len(METRICS)

# Once the run has ended, or died.
LAST_TRIES = 2
LAST_PAUSE_SECONDS = 2.0
LAST_SECONDS = 60.0
# A process that outlived its trainer may hold the lock that long.
LOCK_SECONDS = LAST_SECONDS + 5

# Final states of a run that nobody waits for: the sweep that it is of may have ended meanwhile.
LEFT_ALONE = ("cancelled", "interrupted", "died")

Tell = Callable[[dict[str, str]], None]


class Reports:
    """The lines of a `metrics.jsonl`, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self.newest_ms = 0  # when the last report was made

    def new(self) -> list[tuple[dict[str, Any], int]]:
        """The reports since the last time, each with the time it was made, in milliseconds since 1970.

        The file says when its last line was written; the lines before it are as much older as they have fewer
        `seconds`.
        """
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
            written = os.fstat(file.fileno()).st_mtime
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        reports = list(_points(whole))
        newest = _seconds(reports[-1]) if reports else 0.0
        self.newest_ms = round(1000 * written) if reports else self.newest_ms
        return [(report, round(1000 * (written - max(0.0, newest - _seconds(report))))) for report in reports]


def _seconds(report: dict[str, Any]) -> float:
    seconds = report.get("seconds")
    return seconds if isinstance(seconds, int | float) and math.isfinite(seconds) else 0.0


def _points(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        with suppress(ValueError):  # bytes that are no text, or text that is no JSON: from a process that died
            report = json.loads(line)
            if is_point(report):
                yield report


class Delivery:
    """Brings one run to one MLflow, as far as it will take it, as often as it is asked to."""

    def __init__(self, folder: RunFolder, uri: str, tell: Tell) -> None:
        config = folder.load_config()
        assert config is not None  # noqa: S101 - the trainer writes it before it starts this process
        self.folder = folder
        self.uri = uri
        self.tell = tell
        self.config = config
        self.cursor = folder.path / "mlflow.json"
        self.name = folder.path.resolve().name
        self.sweep = Path(os.environ[PARENT_VARIABLE]) if os.environ.get(PARENT_VARIABLE) else None
        self.run: MlflowRun | None = None
        self.reports = Reports(folder.metrics)
        self.problem = ""  # how the line began that was said of it

    def attempt(self, final_state: str = "", *, heard_ms: int | None = None) -> bool:
        """Delivers what is new, at the end all, and tells of it. → whether everything went well.

        heard_ms: when this process heard of the run's end, in milliseconds since 1970. None: now.
        """
        try:
            self._deliver(final_state, heard_ms)
        except DeliveryError as problem:
            self._tell_problem(problem)
            return False
        news = {"problem": ""}
        if self.problem:
            news["say"] = f"MLflow at {without_password(self.uri)} has everything again."
            self.problem = ""
        self.tell(news)
        return True

    def _deliver(self, final_state: str, heard_ms: int | None) -> None:
        try:
            run = self.run = self.run or self._connect(final_state)
            self._deliver_reports(run)
        except DeliveryError:
            # What was on its way may have arrived or not: connecting again asks what is there.
            self.run = None
            raise
        try:
            self._deliver_description(run)
            self._deliver_samples(run)
            if final_state:
                run.keep_file(self.folder.metrics)
        finally:
            if final_state:  # a store that takes no files takes this
                run.end(final_state, self._ended_ms(final_state, heard_ms))
        if final_state:
            self._note(replace(self.reached, ended=final_state))

    def _ended_ms(self, final_state: str, heard_ms: int | None) -> int | None:
        """When the training ended, as `run.json` has it. A run that fails or dies has not noted its end yet."""
        note = read_note(self.folder)
        noted = milliseconds(note.ended) if note is not None and note.state == final_state else None
        return heard_ms if noted is None else max(noted, self.reports.newest_ms)

    def _tell_problem(self, problem: DeliveryError) -> None:
        news = {"problem": problem.reason}
        kind = problem.line.partition("(")[0]  # an outage is told of once, though its reasons may vary
        if kind != self.problem:
            self.problem = kind
            goes_on = "Training goes on and metrics.jsonl has everything."
            news["say"] = " ".join(filter(None, [problem.line, goes_on, problem.advice]))
        self.tell(news)

    # The run there

    def _connect(self, final_state: str) -> MlflowRun:
        client = connect(self.uri)
        self.tell({})
        known = load_delivered(self.cursor, tracking_uri=without_password(self.uri), name=self.name)
        given_id = os.environ.get("MLFLOW_RUN_ID", "")
        run = None
        if given_id:
            run = find_run(client, self.uri, given_id, given=True)
            self._say_if(
                run is None, f"MLflow has no run {given_id}, which MLFLOW_RUN_ID names; this one is new there."
            )
        if run is None and known:
            run = find_run(client, self.uri, known.run_id, given=False)
            self._say_if(run is None, "MLflow's run of this one was deleted: a new one gets everything from the start.")
        elif run is None:
            self._say_if(
                self.cursor.exists(), "This run was told elsewhere before: MLflow gets everything from the start."
            )
        reached = DeliveryCursor(without_password(self.uri), self.name, "", "")
        if run is not None:
            images = run.last_step()
            if known and known.run_id == run.run_id:
                reached = replace(known, delivered_images=max(images, known.delivered_images))
            else:
                reached = replace(reached, delivered_images=images)
        else:
            note = read_note(self.folder)
            started_ms = None if note is None else milliseconds(note.created)
            run = begin_run(client, self.uri, self._name_there(), started_ms=started_ms)
        self.reached = replace(reached, experiment_id=run.experiment_id, run_id=run.run_id, ended="")
        self.reached.save(self.cursor)
        self.reports = Reports(self.folder.metrics)
        self.description = [self.folder.path / name for name in DESCRIPTION]
        parent = {}
        if self.sweep is not None and not run.given:
            sweep_run = parent_run(client, self.uri, self.sweep, goes_on=final_state not in LEFT_ALONE)
            parent = {"mlflow.parentRunId": sweep_run.run_id}
        self._describe(run, parent)
        return run

    def _name_there(self) -> str:
        """A trial is called as in commands, `find/3`, and not by its folder, `trials/003`."""
        if self.sweep is None:
            return self.name
        return f"{self.sweep.resolve().name}/{int(self.name) if self.name.isdecimal() else self.name}"

    def _describe(self, run: MlflowRun, parent: dict[str, str]) -> None:
        tags = {"msggan.version": version("msggan"), "msggan.run_dir": str(self.folder.path.resolve())}
        run.describe({**tags_of(self.config), **tags, **parent})
        refused = run.keep_params(params_of(self.config))
        self._say_if(bool(refused), f"MLflow's run had other parameters before and keeps them ({refused}).")
        self.tell({})

    def _say_if(self, condition: bool, line: str) -> None:
        if condition:
            self.tell({"say": line})

    # What there is to deliver

    def _deliver_reports(self, run: MlflowRun) -> None:
        new = [(report, time_ms) for report, time_ms in self.reports.new() if self._is_new(report)]
        for start in range(0, len(new), REPORTS_AT_MOST):
            batch = new[start : start + REPORTS_AT_MOST]
            run.log([row for report, time_ms in batch for row in rows_of(report, timestamp_ms=time_ms)])
            self._note(replace(self.reached, delivered_images=batch[-1][0]["images"]))

    def _is_new(self, report: dict[str, Any]) -> bool:
        return bool(report["images"] > self.reached.delivered_images)

    def _deliver_description(self, run: MlflowRun) -> None:
        for path in [path for path in self.description if path.exists()]:
            run.keep_file(path)
            self.description.remove(path)

    def _deliver_samples(self, run: MlflowRun) -> None:
        """The finest grid and the sheet of all scales: what the other grids show is on the sheet."""
        found = _samples(self.folder.samples, self.config.resolution)
        for images in sorted(images for images in found if images > self.reached.delivered_sample_images):
            if not all(map(_is_whole_png, found[images])):
                continue  # the newest is being written; an older one was cut off when a process died
            for path in found[images]:
                run.keep_file(path, "samples")
            self._note(replace(self.reached, delivered_sample_images=images))

    def _note(self, reached: DeliveryCursor) -> None:
        self.reached = reached
        self.reached.save(self.cursor)
        self.tell({})  # a sign of getting on


def _samples(folder: Path, resolution: int) -> dict[int, list[Path]]:
    """The grids to keep, by the images seen."""
    wanted = re.compile(rf"([0-9]{{9,}})_({resolution}px|scales)\.png")
    found = sorted((int(match[1]), path) for path in folder.glob("*.png") if (match := wanted.fullmatch(path.name)))
    return {images: [path for _, path in group] for images, group in groupby(found, key=lambda pair: pair[0])}


def _is_whole_png(path: Path) -> bool:
    """Whether a picture has been written to its end: every PNG ends with the same mark."""
    return path.read_bytes().endswith(b"IEND\xae\x42\x60\x82")


# --- The process ------------------------------------------------------------------------------------------------------


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's Ctrl-C reaches us too; the trainer says when to leave
        signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(10)
    tell = _channel()
    ended = threading.Event()
    end: list[tuple[str, int]] = []

    def listen() -> None:
        end.append((sys.stdin.readline().strip() or "died", _now_ms()))
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    folder = RunFolder(sys.argv[1])
    try:
        with exclusive_lock(folder.path, LOCK_SECONDS):  # the last process may outlive its trainer, and finishes first
            import mlflow  # noqa: F401 - it takes seconds

            uri = os.environ["MLFLOW_TRACKING_URI"]
            if sqlite_file(uri) is None:
                tell({})  # from the first sign on, slowness is the server's; making a database here is part of starting
            delivery = Delivery(folder, uri, tell)
            keep_delivering(delivery, ended)
            finish(delivery, *end[0])
    except Timeout:
        raise SystemExit(1) from None


def keep_delivering(delivery: Delivery, ended: threading.Event) -> None:
    """Delivers every few seconds; where that fails, ever more rarely."""
    pause = 0.0
    while not ended.wait(pause):
        went_well = delivery.attempt()
        pause = INTERVAL_SECONDS if went_well else min(max(2 * pause, INTERVAL_SECONDS), LONGEST_PAUSE_SECONDS)


def finish(delivery: Delivery, state: str, heard_ms: int) -> None:
    """Delivers the rest and how the run ended, if that can be done soon."""
    too_late = threading.Timer(LAST_SECONDS, os._exit, [1])
    too_late.daemon = True
    too_late.start()
    for tries_left in reversed(range(LAST_TRIES)):
        if delivery.attempt(state, heard_ms=heard_ms):
            return
        if tries_left:
            time.sleep(LAST_PAUSE_SECONDS)


def _now_ms() -> int:
    return round(1000 * time.time())


def _channel() -> Tell:
    """stdout, for us alone: what a library prints goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(news: dict[str, str]) -> None:
        with suppress(BrokenPipeError):  # the trainer has died; what can be delivered still is
            channel.write(json.dumps(news) + "\n")
            channel.flush()

    return tell


if __name__ == "__main__":
    main()
