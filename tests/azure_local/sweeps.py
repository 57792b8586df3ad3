"""How does a sweep job run? It draws settings, begins trials as jobs of their own, ends bad ones, and names the best.

Trials are named PARENT_0, PARENT_1 …; the parent's tags of these names hold their settings, as Microsoft's own
HyperDriveRun.get_hyperparameters reads them, and its property best_child_run_id names the best.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import runner, sweep_policies
from .cloud import Cloud, now
from .jobs_state import ENDED, Job

LOOK_S = 0.05
# The real service ends sweeps whose first trials fail with these words; when just is not documented.
ALL_FAILED = "Marking the experiment as failed because initial child jobs have failed due to user error"


def start(cloud: Cloud, job: Job) -> None:
    """Runs the sweep in a thread of its own, to its end."""
    job.thread = threading.Thread(target=Sweep(cloud, job).live, name=f"azure-sweep-{job.name}", daemon=True)
    job.thread.start()


class Sweep:
    """One sweep job at work."""

    def __init__(self, cloud: Cloud, job: Job) -> None:
        self.cloud, self.job = cloud, job
        self.wanted = job.properties
        limits = self.wanted.get("limits") or {}
        self.most = limits.get("maxTotalTrials") or 1000
        self.at_once = limits.get("maxConcurrentTrials") or 1
        self.time_left_s = runner.timeout_s(self.wanted)
        self.trials: list[Job] = []
        self.judged: dict[str, int] = {}

    def live(self) -> None:
        self.job.move_to("Queued")
        self.job.started = now()
        self.job.properties["properties"] = {
            **(self.wanted.get("properties") or {}),
            "runTemplate": "HyperDrive",
            "primary_metric_config": json.dumps({"name": self.metric, "goal": self.wanted["objective"]["goal"]}),
        }
        self.job.move_to("Running")
        try:
            self.run()
        except Exception as error:
            self.job.error = runner.job_error("LocalAzureBroken", repr(error))
            runner.end(self.job, "Failed")
            raise
        self.end()

    @property
    def metric(self) -> str:
        return str(self.wanted["objective"]["primaryMetric"])

    @property
    def is_minimized(self) -> bool:
        return str(self.wanted["objective"]["goal"]).lower() == "minimize"

    def run(self) -> None:
        drawn = itertools.islice(draw(self), self.most)
        is_exhausted = False
        while not self.job.cancelled.wait(LOOK_S):
            self.note_best()
            self.end_bad_ones()
            living = [trial for trial in self.trials if trial.status not in ENDED]
            while not is_exhausted and len(living) < self.at_once:
                settings = next(drawn, None)
                if settings is None:
                    is_exhausted = True
                else:
                    living.append(self.begin(settings))
            if is_exhausted and not living:
                return
            self.watch_the_time()

    def watch_the_time(self) -> None:
        if self.time_left_s is None:
            return
        self.time_left_s -= LOOK_S
        if self.time_left_s < 0:
            limit = runner.timeout_s(self.wanted)
            self.job.error = runner.job_error("UserError", f"The job exceeded its time limit of {limit:g} seconds.")
            self.job.cancelled.set()

    def begin(self, settings: dict[str, Any]) -> Job:
        name = f"{self.job.name}_{len(self.trials)}"
        trial = Job(name, trial_properties(self.wanted, settings), self.job.experiment, now(), parent=self.job.name)
        trial.sweep_variables = {f"AZUREML_SWEEP_{key}": str(value) for key, value in settings.items()}
        with self.cloud.lock:
            self.job.tags[name] = json.dumps(settings)
            self.cloud.jobs[name] = trial
        self.trials.append(trial)
        runner.start(self.cloud, trial)
        return trial

    def logged(self, trial: Job) -> list[float]:
        with trial.changed:
            return [metric.value for metric in trial.metrics if metric.key == self.metric]

    def note_best(self) -> None:
        best = min if self.is_minimized else max
        reached = [(best(values), trial.name) for trial in self.trials if (values := self.logged(trial))]
        if reached:
            value, name = best(reached)
            self.job.properties["properties"].update({"best_child_run_id": name, "score": repr(value)})

    def end_bad_ones(self) -> None:
        policy = self.wanted.get("earlyTermination")
        curves = {trial.name: self.logged(trial) for trial in self.trials}
        for trial in self.trials if policy else ():
            measured = self.judged.get(trial.name, 0)
            for interval in range(measured + 1, len(curves[trial.name]) + 1):
                if trial.status in ENDED or trial.cancelled.is_set():
                    break
                others = [curve for name, curve in curves.items() if name != trial.name]
                if sweep_policies.ends(policy, curves[trial.name], others, interval, is_minimized=self.is_minimized):
                    self.job.tags[f"{trial.name}_cancelled"] = "true"
                    runner.cancel(trial)
            self.judged[trial.name] = len(curves[trial.name])

    def end(self) -> None:
        for trial in self.trials:
            if self.job.cancelled.is_set():
                runner.cancel(trial)
        for trial in self.trials:
            assert trial.thread is not None
            trial.thread.join()
        self.note_best()
        if self.job.cancelled.is_set():
            runner.end(self.job, "Canceled")
        elif all(trial.status == "Failed" for trial in self.trials):
            self.job.error = runner.job_error("UserError", ALL_FAILED)
            runner.end(self.job, "Failed")
        else:
            runner.end(self.job, "Completed")


def trial_properties(wanted: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The command job that a trial is."""
    kept = ("inputs", "outputs", "computeId", "identity", "queueSettings", "resources")
    properties = {"jobType": "Command", **{key: wanted[key] for key in kept if key in wanted}, **wanted["trial"]}
    put_in = lambda found: str(settings[found[1].strip()])  # noqa: E731
    properties["command"] = re.sub(r"\$\{\{\s*search_space\.(.*?)\}\}", put_in, properties["command"])
    if limit := (wanted.get("limits") or {}).get("trialTimeout"):
        properties["limits"] = {"jobLimitsType": "Command", "timeout": limit}
    return properties


# --- What is drawn ----------------------------------------------------------------------------------------------------


def draw(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Settings without end, but for a grid. The same seed draws the same."""
    space, algorithm = sweep.wanted["searchSpace"], sweep.wanted["samplingAlgorithm"]
    kind = algorithm["samplingAlgorithmType"]
    if kind == "Grid":
        yield from (
            dict(zip(space, values, strict=True))
            for values in itertools.product(*(given[1][0] for given in space.values()))
        )
    elif kind == "Bayesian":
        yield from around_the_best(sweep, np.random.default_rng(0))
    else:
        yield from at_random(space, algorithm)


def at_random(space: dict[str, Any], algorithm: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from scipy.stats import qmc

    seed = algorithm.get("seed") or 0
    sobol = qmc.Sobol(len(space), seed=seed) if algorithm.get("rule") == "Sobol" else None
    chance = np.random.default_rng(seed)
    while True:
        shares = sobol.random(1)[0] if sobol is not None else chance.random(len(space))
        yield {name: at(given, float(share)) for (name, given), share in zip(space.items(), shares, strict=True)}


def around_the_best(sweep: Sweep, chance: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Every other time near the best so far: enough to see that the next trial follows from the last."""
    space = sweep.wanted["searchSpace"]
    shares: dict[str, np.ndarray] = {}
    for number in itertools.count():
        best = (sweep.job.properties.get("properties") or {}).get("best_child_run_id")
        share = chance.random(len(space))
        if number % 2 and best in shares:
            share = np.clip(shares[best] + 0.1 * chance.standard_normal(len(space)), 0, 1 - 1e-9)
        shares[f"{sweep.job.name}_{number}"] = share
        yield {name: at(given, float(part)) for (name, given), part in zip(space.items(), share, strict=True)}


def at(given: list[Any], share: float) -> Any:
    """The value at `share`, from 0 to below 1, of a distribution; its own inverse where it is no choice."""
    from scipy.stats import norm

    kind, arguments = given
    if kind == "choice":
        return arguments[0][int(share * len(arguments[0]))]
    if kind == "randint":
        return int(share * arguments[0])
    low, high = arguments[:2]
    value = low + share * (high - low) if "uniform" in kind else float(norm.ppf(max(share, 1e-9), low, high))
    value = math.exp(value) if "log" in kind else value
    return round(value / arguments[2]) * arguments[2] if kind.startswith("q") else value
