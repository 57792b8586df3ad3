"""How does MLflow hear how a sweep on this machine ended? By a process, which a person waits for a minute at most."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from msggan.commands.program import EXIT_CODES
from msggan.commands.tracking_uri import chosen_tracking_uri, from_anywhere, without_password
from msggan.tracking.delivery_process import delivery_environment
from orchestration.sweeps.space import written
from orchestration.sweeps.spec import SweepSpec, SweepStatus

MOST_PATIENCE_SECONDS = 60.0


def tell_mlflow(spec: SweepSpec, status: SweepStatus, *, tracking_uri: str, python: str) -> str:
    """Tells MLflow of a sweep that has ended. → what to say if that did not succeed; mostly nothing."""
    uri = chosen_tracking_uri(tracking_uri, {})
    if uri is None or status.state not in EXIT_CODES:
        return ""
    problem = _problem(Path(status.run_dir), from_anywhere(uri), sweep_result(spec, status), python)
    again = "The same command again tells it."
    return problem and f"MLflow at {without_password(uri)} does not have the sweep's result ({problem}). {again}"


def sweep_result(spec: SweepSpec, status: SweepStatus) -> dict[str, Any]:
    """What `msggan.tracking.parent_run` takes."""
    objective, best = spec.objective, status.best
    return {
        "state": status.state,
        "ended": status.ended,
        "params": {
            **{f"over.{dimension.name}": str(dimension).partition("=")[2] for dimension in spec.space.dimensions},
            "sampling": spec.sampling,
            "objective": f"{objective.metric} ({objective.direction})",
        },
        "metrics": {f"best_{objective.metric}": best.objective, "best_trial": best.number} if best else {},
        # Tags are what may change when the sweep goes on.
        "tags": {
            "trials": written(status.planned),
            **{f"best.{name}": written(value) for name, value in (best.settings if best else {}).items()},
        },
        "files": [status.report] if status.report else [],
    }


def _problem(folder: Path, uri: str, result: dict[str, Any], python: str) -> str:
    """Runs the process to its end. → why MLflow does not have the result, nothing where it has."""
    try:
        # The address goes by the environment: it may hold a password, and a command line is seen by everyone.
        ended = subprocess.run(  # noqa: S603 - our own command, as a list: no shell reads it
            [python, "-m", "msggan.tracking.parent_run", str(folder)],
            env=delivery_environment(uri),
            input=json.dumps(result),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            timeout=MOST_PATIENCE_SECONDS,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return "no answer in time"
    except KeyboardInterrupt:  # Ctrl-C here ends the waiting: the sweep has its end already
        return "interrupted"
    except OSError as error:
        return f"the process that tells it cannot start: {error.strerror}"
    return "" if ended.returncode == 0 else _told(ended)


def _told(ended: subprocess.CompletedProcess[str]) -> str:
    try:
        return str(json.loads(ended.stdout.splitlines()[-1])["problem"])
    except (IndexError, KeyError, TypeError, ValueError):  # it died
        return f"the process that tells it ended with exit code {ended.returncode}"
