"""Runs a sweep: starts its trials as child jobs, monitors them, and ends them.

The service's behaviour is documented in "Tune hyperparameters for your model with Azure Machine Learning"; its names
are those of the SDK and of HyperDriveRun in azureml-train-core. The rest are guesses: see README.md.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from typing import Any

from . import runner
from .cloud import Cloud, now
from .draws import Values, draws
from .early_termination import Measured, is_behind, is_judged_at
from .jobs_state import ENDED, Job
from .messages import ServiceError

WATCH_S = 0.02
MAX_TRIALS = 1000  # if the sweep sets no limit
SHARED = ("computeId", "experimentName", "identity", "inputs", "outputs", "queueSettings", "resources")
ALL_FAILED = "Marking the experiment as failed because initial child jobs have failed due to user error"


def start(cloud: Cloud, job: Job) -> None:
    """Runs the sweep in a thread of its own."""
    job.service_properties = {"runTemplate": "HyperDrive", "primary_metric_config": json.dumps(metric_config(job))}
    job.thread = threading.Thread(target=Sweep(cloud, job).run, name=f"azure-sweep-{job.name}", daemon=True)
    job.thread.start()


def metric_config(job: Job) -> dict[str, str]:
    objective = job.properties["objective"]
    return {"name": objective["primaryMetric"], "goal": objective["goal"].lower()}


def refuse_unknown(wanted: dict[str, Any]) -> None:
    for name, (kind, arguments) in wanted["searchSpace"].items():
        if kind == "choice" and any(isinstance(value, (dict, list)) for value in arguments[0]):
            raise ServiceError(501, "NotImplementedHere", f"The local Azure does not know what {name} chooses from")


class Sweep:
    """The trials of one sweep."""

    def __init__(self, cloud: Cloud, job: Job) -> None:
        self.cloud, self.job = cloud, job
        self.metric, self.goal = metric_config(job).values()
        limits = job.properties.get("limits") or {}
        self.left = limits.get("maxTotalTrials") or MAX_TRIALS  # trials to be started
        self.max_concurrent = limits.get("maxConcurrentTrials") or 1
        self.draws = draws(job.properties, self.scores)
        self.trials: list[Job] = []
        self.judged: dict[str, int] = {}  # the last judged interval of each trial

    def run(self) -> None:
        """The life cycle of a sweep after it was accepted."""
        try:
            self.job.move_to("Queued")
            self.job.started = now()
            if not self.job.cancelled.is_set():
                self.job.move_to("Running")
            self.follow()
        except Exception as error:
            self.job.error = runner.job_error("LocalAzureBroken", repr(error))
            raise
        finally:
            self.end_trials()
            self.record_best()
            with self.job.changed:
                runner.end(self.job, self.outcome())

    def follow(self) -> None:
        """Runs until all trials have ended, or the sweep is cancelled or over its time limit."""
        limit_s = runner.timeout_s(self.job.properties)
        began = time.monotonic()
        self.start_trials()
        while self.unfinished():
            if self.job.cancelled.wait(WATCH_S):
                return
            if limit_s is not None and time.monotonic() > began + limit_s:
                runner.expire(self.job)
                return
            self.record_best()
            self.judge()
            self.start_trials()

    def unfinished(self) -> list[Job]:
        return [trial for trial in self.trials if trial.status not in ENDED]

    def start_trials(self) -> None:
        while self.left and len(self.unfinished()) < self.max_concurrent and not self.job.cancelled.is_set():
            values = next(self.draws, None)
            self.left = 0 if values is None else self.left - 1
            if values is not None:
                self.start_trial(values)

    def start_trial(self, values: Values) -> None:
        trial = make_trial(self.job, len(self.trials), values)
        self.job.add_tags({trial.name: json.dumps(values)})
        with self.cloud.lock:
            self.cloud.jobs[trial.name] = trial
        self.trials.append(trial)
        runner.start(self.cloud, trial)

    def measured(self, trial: Job) -> Measured:
        return [metric.value for metric in trial.metrics if metric.key == self.metric]

    def best(self, trial: Job) -> float | None:
        numbers = [value for value in self.measured(trial) if not math.isnan(value)]
        choose = min if self.goal == "minimize" else max
        return choose(numbers, default=None)

    def scores(self) -> dict[int, float]:
        """The scores of the trials that have ended."""
        scores = {number: self.best(trial) for number, trial in enumerate(self.trials) if trial.status in ENDED}
        return {number: score for number, score in scores.items() if score is not None}

    def record_best(self) -> None:
        """A trial's score is the best value it logged, as in HyperDriveRun.get_best_run_by_primary_metric."""
        found = [(score, trial.name) for trial in self.trials if (score := self.best(trial)) is not None]
        if found:
            choose = min if self.goal == "minimize" else max
            score, name = choose(found, key=lambda pair: pair[0])
            self.job.service_properties = {
                **self.job.service_properties,
                "best_child_run_id": name,
                "score": repr(score),
            }

    def judge(self) -> None:
        """Ends the trials that the early termination policy selects."""
        policy = self.job.properties.get("earlyTermination")
        if not policy:
            return
        for trial in self.unfinished():
            if trial.cancelled.is_set():
                continue
            known = self.measured(trial)
            others = [self.measured(other) for other in self.trials if other is not trial]
            for interval in range(self.judged.get(trial.name, 0) + 1, len(known) + 1):
                self.judged[trial.name] = interval
                if is_judged_at(policy, interval) and is_behind(
                    policy, self.goal == "minimize", known[:interval], others
                ):
                    self.terminate(trial)
                    break

    def terminate(self, trial: Job) -> None:
        with trial.changed:  # so that it does not end before it has its tag
            if runner.cancel(trial):
                self.job.add_tags({f"{trial.name}_cancelled": "true"})

    def end_trials(self) -> None:
        for trial in self.unfinished():
            runner.cancel(trial)
        for trial in self.trials:
            assert trial.thread is not None
            trial.thread.join()

    def outcome(self) -> str:
        if self.job.cancelled.is_set():
            return "Canceled"
        if self.job.error is not None:
            return "Failed"
        # The service fails a sweep with this message; after how many failed trials is not documented.
        if self.trials and all(trial.status == "Failed" for trial in self.trials):
            self.job.error = runner.job_error("UserError", ALL_FAILED)
            return "Failed"
        return "Completed"


def make_trial(sweep: Job, number: int, values: Values) -> Job:
    wanted = sweep.properties
    properties = {
        "jobType": "Command",
        **{key: wanted[key] for key in SHARED if key in wanted},
        **{key: value for key, value in wanted["trial"].items() if value is not None},
        "command": fill(wanted["trial"]["command"], values),
    }
    limit = (wanted.get("limits") or {}).get("trialTimeout")
    if limit:
        properties["limits"] = {"jobLimitsType": "Command", "timeout": limit}
    trial = Job(f"{sweep.name}_{number}", properties, sweep.experiment, now(), parent=sweep.name)
    trial.variables = {f"AZUREML_SWEEP_{name}": str(value) for name, value in values.items()}
    return trial


def fill(command: str, values: Values) -> str:
    """str of a float is its repr: the shortest text that reads back as the same number."""
    return re.sub(r"\$\{\{search_space\.(\w+)\}\}", lambda found: str(values[found[1]]), command)
