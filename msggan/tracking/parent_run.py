"""Which run in MLflow are the trials of a sweep nested in? `python -m msggan.tracking.parent_run FOLDER`

The sweep's folder keeps which run it is in `mlflow.json`, as a run's folder does. The result comes as JSON on stdin:
`state`, one of STATUSES; `ended`, in UTC, ISO 8601; `params`, `metrics` and `tags` by their names; `files`. The address
comes in MLFLOW_TRACKING_URI. The exit code is 0, or 1 with `{"problem": …}` as stdout's last line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from msggan.commands.tracking_uri import without_password
from msggan.tracking.delivered import DeliveryCursor, exclusive_lock, load_delivered
from msggan.tracking.mlflow_run import DeliveryError, MlflowRun, begin_run, connect, find_run, milliseconds

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCK_SECONDS = 30.0


def parent_run(client: MlflowClient, uri: str, folder: Path, *, goes_on: bool) -> MlflowRun:
    """The run of the sweep in `folder`, made where there is none; many may ask at once. Raises `DeliveryError`.

    goes_on: whether the sweep is at work, so that a run which had ended is shown as running.
    """
    cursor, name = folder / "mlflow.json", folder.resolve().name
    with _alone(folder):
        known = load_delivered(cursor, tracking_uri=without_password(uri), name=name)
        run = find_run(client, uri, known.run_id, given=False) if known else None
        if run is None:
            run = begin_run(client, uri, name, started_ms=_started_ms(folder))
            DeliveryCursor(without_password(uri), name, run.experiment_id, run.run_id).save(cursor)
            goes_on = True
        if goes_on:
            run.describe({"msggan.version": version("msggan"), "msggan.run_dir": str(folder.resolve())})
    return run


def tell_result(uri: str, folder: Path, result: Mapping[str, Any]) -> None:
    """Raises `DeliveryError`; how the sweep ended is told even to a store that takes nothing else."""
    run = parent_run(connect(uri), uri, folder, goes_on=False)
    try:
        run.describe(result["tags"])
        run.keep_params(result["params"])
        run.log_values(result["metrics"])
        for path in result["files"]:
            run.keep_file(Path(path))
    finally:
        run.end(result["state"], milliseconds(result["ended"]))


def _started_ms(folder: Path) -> int | None:
    """When the sweep began, in milliseconds since 1970; None if its folder does not say."""
    try:
        return milliseconds(json.loads((folder / "sweep.json").read_bytes())["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time finds or makes the run. Raises `DeliveryError` where another takes too long."""
    try:
        with exclusive_lock(folder, LOCK_SECONDS):
            yield
    except Timeout:
        reason = "another process is making the sweep's run"
        raise DeliveryError(f"MLflow's run of the sweep cannot be had ({reason}).", reason) from None


def main() -> None:
    try:
        tell_result(os.environ["MLFLOW_TRACKING_URI"], Path(sys.argv[1]), json.load(sys.stdin))
    except DeliveryError as problem:
        sys.stdout.write(json.dumps({"problem": problem.reason}) + "\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
