"""The body of a sweep job, what the service would refuse, and the status of a sweep; without a network."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from typing import Any

import pytest
from support.azure_jobs import BODY, SCOPE, SERVERLESS, SIZE, job_plan

from msggan.commands.options import from_argv
from msggan.config import TrainConfig
from msggan.errors import UsageError
from orchestration.azure.history import Details
from orchestration.azure.jobs import MODE_TO_RESOLVE, JobData
from orchestration.azure.sweep_jobs import (
    RemainingTrials,
    all_trials,
    azure_problems,
    build_sweep,
    build_sweep_body,
    remaining_trials,
    switch,
    trial_command,
)
from orchestration.azure.sweeps import (
    TrialJob,
    ended_with_its_sweep,
    settings_in,
    state_and_reason,
    too_many_failures,
)
from orchestration.sweeps.record import SweepRequest
from orchestration.sweeps.space import Choice, Interval, SearchSpace, read_space
from orchestration.sweeps.spec import SweepSpec
from orchestration.sweeps.trials import EarlyStopping, Objective, Trial

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CONFIG = TrainConfig(resolution=8, kimg=2)
OVER = ("g_lr=0.001..0.01", "beta2=0.9..0.99", "loss=hinge,wgan-gp", "mirror")

SWEEP: dict[str, Any] = {
    "displayName": "flowers-2",
    "description": (
        "Which settings have the least swd? g_lr=0.001..0.01; beta2=0.9..0.99; loss=hinge,wgan-gp; mirror=true,false."
    ),
    "experimentName": "garden",
    "isArchived": False,
    "searchSpace": {
        "g_lr": ["loguniform", [math.log(0.001), math.log(0.01)]],
        "beta2": ["uniform", [0.9, 0.99]],
        "loss": ["choice", [["hinge", "wgan-gp"]]],
        "mirror": ["choice", [["--mirror", "--no-mirror"]]],
    },
    "samplingAlgorithm": {"rule": "Random", "seed": 7, "samplingAlgorithmType": "Random"},
    "limits": {
        "maxConcurrentTrials": 2,
        "maxTotalTrials": 4,
        "timeout": "PT3H",
        "trialTimeout": "PT1H30M",
        "jobLimitsType": "Sweep",
    },
    "properties": {},
    "computeId": BODY["computeId"],
    "objective": {"goal": "minimize", "primaryMetric": "swd"},
    "trial": {
        "codeId": BODY["codeId"],
        "environmentId": BODY["environmentId"],
        "command": (
            'python -m msggan.train --data "${{inputs.data}}" --run-dir "${{outputs.run}}/trials/$AZUREML_RUN_ID" '
            '--resolution 8 --kimg 2.0 --device cpu --workers 3 --g-lr "${{search_space.g_lr}}" '
            '--beta2 "${{search_space.beta2}}" --loss "${{search_space.loss}}" ${{search_space.mirror}}'
        ),
        "environmentVariables": {"PYTHONUNBUFFERED": "1"},
        "resources": BODY["resources"],
    },
    "tags": {"msggan.run": "flowers", "msggan.sweep": "flowers"},
    "inputs": BODY["inputs"],
    "outputs": BODY["outputs"],
    "jobType": "Sweep",
}


def sweep_spec(*over: str, **changes: Any) -> SweepSpec:
    given: dict[str, Any] = {"trials": 4, "concurrent": 2, "timeout_hours": 3.0, "sampling_seed": 7, **changes}
    return SweepSpec(CONFIG, "flowers", "flowers", read_space(over or OVER, CONFIG), **given)


# --- The body ---------------------------------------------------------------------------------------------------------


def test_the_body_matches_the_sweep() -> None:
    assert build_sweep_body(job_plan(), sweep_spec(), SCOPE) == {"properties": SWEEP}


def test_a_serverless_sweep_has_its_size_its_tier_and_its_identity() -> None:
    plan = job_plan(instance_type=SIZE, low_priority=True, identity="UserIdentity")
    sent = build_sweep_body(plan, sweep_spec(), SCOPE)["properties"]
    assert "computeId" not in sent
    assert sent["queueSettings"] == {"jobTier": "Spot"}
    assert sent["identity"] == {"identityType": "UserIdentity"}
    assert sent["resources"] == sent["trial"]["resources"] == SERVERLESS["resources"]


def test_the_trials_of_a_sweep_get_the_images_as_a_run_does() -> None:
    images = JobData("azureml://datastores/store/paths/a b/", "uri_folder", mode="mount")
    sent = build_sweep_body(job_plan(data=images), sweep_spec(), SCOPE)["properties"]
    assert sent["inputs"]["data"]["mode"] == "ReadOnlyMount"
    assert sent["trial"]["environmentVariables"]["DATASET_MOUNT_BLOCK_BASED_CACHE_ENABLED"] == "true"
    later = build_sweep_body(job_plan(data=replace(images, mode=MODE_TO_RESOLVE)), sweep_spec(), SCOPE)["properties"]
    assert later["inputs"]["data"]["mode"] == MODE_TO_RESOLVE


def test_a_sweep_without_a_time_limit_has_only_that_of_its_trials() -> None:
    limits = build_sweep_body(job_plan(), sweep_spec(timeout_hours=None), SCOPE)["properties"]["limits"]
    assert limits == {key: value for key, value in SWEEP["limits"].items() if key != "timeout"}


@pytest.mark.parametrize(
    ("sampling", "sent"),
    [
        ("sobol", {"rule": "Sobol", "seed": 7, "samplingAlgorithmType": "Random"}),
        ("grid", {"samplingAlgorithmType": "Grid"}),
        ("bayesian", {"samplingAlgorithmType": "Bayesian"}),
    ],
)
def test_the_sampling_is_sent(sampling: str, sent: dict[str, Any]) -> None:
    spec = sweep_spec("loss", "mirror", sampling=sampling)
    assert build_sweep_body(job_plan(), spec, SCOPE)["properties"]["samplingAlgorithm"] == sent


WHEN = {"evaluationInterval": 3, "delayEvaluation": 2}


@pytest.mark.parametrize(
    ("stopping", "sent"),
    [
        (EarlyStopping("median", 3, 2), {"policyType": "MedianStopping", **WHEN}),
        (
            EarlyStopping("bandit", 3, 2, slack_factor=0.2),
            {"policyType": "Bandit", "slackFactor": 0.2, "slackAmount": 0, **WHEN},
        ),
        (
            EarlyStopping("bandit", 3, 2, slack_amount=0.5),
            {"policyType": "Bandit", "slackFactor": 0, "slackAmount": 0.5, **WHEN},
        ),
        (
            EarlyStopping("truncation", 3, 2, percentage=20),
            {"policyType": "TruncationSelection", "truncationPercentage": 20, **WHEN},
        ),
    ],
    ids=["median", "ratio", "amount", "truncation"],
)
def test_early_stopping_is_sent_with_every_field(stopping: EarlyStopping, sent: dict[str, Any]) -> None:
    spec = sweep_spec(early_stopping=stopping)
    assert build_sweep_body(job_plan(), spec, SCOPE)["properties"]["earlyTermination"] == sent


def test_the_objective_is_sent_with_its_direction() -> None:
    spec = sweep_spec(objective=Objective("images_per_second", "maximize"))
    sent = build_sweep_body(job_plan(), spec, SCOPE)["properties"]
    assert sent["objective"] == {"goal": "maximize", "primaryMetric": "images_per_second"}
    assert sent["description"].startswith("Which settings have the greatest images_per_second? ")


# --- What a trial's shell reads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", [True, False])
def test_a_trial_trains_with_the_values_that_were_drawn(mirror: bool) -> None:
    drawn = {"g_lr": 0.0025, "beta2": 0.95, "loss": "wgan-gp", "mirror": switch("mirror", mirror)}
    line = trial_command(job_plan(), sweep_spec(), all_trials(sweep_spec()))
    for name, value in drawn.items():
        line = line.replace(f"${{{{search_space.{name}}}}}", str(value))
    args = shlex.split(line)
    assert args[:7] == [
        *("python", "-m", "msggan.train", "--data", "${{inputs.data}}"),
        *("--run-dir", "${{outputs.run}}/trials/$AZUREML_RUN_ID"),
    ]
    training_args = [word for word in args[7:] if word not in ("--device", "cpu", "--workers", "3")]
    assert from_argv(training_args) == TrainConfig(
        resolution=8, kimg=2, g_lr=0.0025, beta2=0.95, loss="wgan-gp", mirror=mirror
    )


# --- What the service would refuse ------------------------------------------------------------------------------------


def test_bayesian_sampling_with_a_log_scale_and_early_stopping_reports_both_problems_at_once() -> None:
    spec = sweep_spec("g_lr=0.001..0.01", "beta2", sampling="bayesian", early_stopping=EarlyStopping("median"))
    problems = [
        "--sampling bayesian: on Azure it takes no range on a log scale, as --over g_lr=0.001..0.01 is. "
        "List values, as in g_lr=0.001,0.00316,0.01, or use --sampling random.",
        "--stop-early median: is not available on Azure with --sampling bayesian. Remove it, or use --sampling random.",
    ]
    assert azure_problems(spec) == problems
    with pytest.raises(UsageError) as refused:
        build_sweep(job_plan(), spec)
    assert list(refused.value.problems) == problems


@pytest.mark.parametrize(("seed", "is_refused"), [(-1, True), (0, False), (2**31 - 1, False), (2**31, True)])
def test_a_seed_has_32_bits(seed: int, is_refused: bool) -> None:
    problems = azure_problems(sweep_spec(sampling_seed=seed))
    assert bool(problems) is is_refused
    assert problems == [f"--sampling-seed {seed}: must be from 0 to 2147483647 on Azure."] * is_refused


def test_bayesian_sampling_accepts_linear_ranges_and_choices() -> None:
    space = SearchSpace((Interval("beta2", 0.9, 0.99, False), Choice("mirror", (True, False))))
    assert azure_problems(SweepSpec(CONFIG, "x", "x", space, sampling="bayesian")) == []


# --- What the next job of a sweep tries -------------------------------------------------------------------------------


def ended_trial(number: int, state: str, **settings: Any) -> Trial:
    return Trial(number, f"flowers/{number}", state, settings)


def test_a_resumed_random_sweep_draws_the_remaining_number_of_trials_with_another_seed() -> None:
    spec = sweep_spec("g_lr=0.001..0.01", trials=5)
    assert remaining_trials(spec, [], 0) == RemainingTrials(5, 7)
    trials = [ended_trial(0, "completed"), ended_trial(1, "cancelled"), ended_trial(2, "failed")]
    assert remaining_trials(spec, trials, 2) == RemainingTrials(3, 9)
    assert remaining_trials(spec, [ended_trial(number, "stopped") for number in range(5)], 1) is None


def test_a_resumed_grid_runs_the_combinations_that_have_not_ended() -> None:
    spec = sweep_spec("loss=hinge,wgan-gp", "mirror", sampling="grid")
    ended = [
        ended_trial(0, "completed", loss="hinge", mirror=True),
        ended_trial(1, "interrupted", loss="hinge", mirror=False),
        ended_trial(2, "failed", loss="wgan-gp", mirror=True),
    ]
    untried = ({"loss": "hinge", "mirror": False}, {"loss": "wgan-gp", "mirror": False})
    remaining = remaining_trials(spec, ended, 1)
    assert remaining == RemainingTrials(2, 7, untried)
    sent = build_sweep_body(job_plan(), spec, SCOPE, remaining)["properties"]
    assert sent["searchSpace"] == {"settings": ["choice", [["--loss hinge --no-mirror", "--loss wgan-gp --no-mirror"]]]}
    assert sent["limits"]["maxTotalTrials"] == sent["limits"]["maxConcurrentTrials"] == 2
    assert sent["trial"]["command"].endswith(" ${{search_space.settings}}")


@pytest.mark.parametrize(
    ("tag", "settings"),
    [
        ('{"g_lr": 0.0025, "mirror": "--no-mirror"}', {"g_lr": 0.0025, "mirror": False}),
        ('{"g_lr": "0.0025", "mirror": "--mirror", "other": 1}', {"g_lr": 0.0025, "mirror": True}),
        ('{"settings": "--g-lr 0.0025 --mirror"}', {"g_lr": 0.0025, "mirror": True}),
        ("", {}),
        ("[1]", {}),
    ],
)
def test_the_settings_of_a_trial_are_read_from_its_tag(tag: str, settings: dict[str, Any]) -> None:
    assert settings_in(tag, ["g_lr=0.001..0.01", "mirror=true,false"]) == settings


@pytest.mark.parametrize(
    ("sweep", "next_began", "is_so"),
    [
        ("Running", None, False),
        ("Completed", None, False),
        ("CancelRequested", None, True),
        ("Canceled", None, True),
        ("Failed", None, True),
        ("NotResponding", None, True),
        ("Canceled", "2026-11-25T10:00:05Z", True),  # it ran beside this one
        ("Canceled", "2026-11-25T10:00:10Z", True),
        ("Canceled", "2026-11-25T10:00:15Z", False),
    ],
)
def test_a_trial_was_cancelled_with_its_sweep_if_no_other_started_later(
    sweep: str, next_began: str | None, is_so: bool
) -> None:
    parent, other = Details(sweep), Details("Canceled")
    cancelled = TrialJob(0, Details("Canceled", ended="2026-11-25T10:00:10Z"), parent, {})
    next_one = TrialJob(1, Details("Canceled", started=next_began, ended="2026-11-25T10:00:20Z"), parent, {})
    of_another_job = TrialJob(2, Details("Running", started="2026-11-25T11:00:00Z"), other, {})
    assert ended_with_its_sweep(cancelled, [cancelled, next_one, of_another_job]) is is_so


# --- How a sweep stands -----------------------------------------------------------------------------------------------


def request_of(trials: int, max_failed_fraction: float) -> SweepRequest:
    return SweepRequest.of(
        replace(sweep_spec("g_lr=0.001..0.01", trials=trials), max_failed_fraction=max_failed_fraction)
    )


@pytest.mark.parametrize(
    ("max_failed_fraction", "states", "given_up"),
    [
        (0.5, ["failed", "failed", "completed", "running"], False),
        (0.5, ["failed", "failed", "failed", "running"], True),
        (0.0, ["completed", "completed", "failed"], True),
        (0.0, ["completed", "completed", "stopped"], False),
        (1.0, ["failed", "failed", "failed", "running"], False),
        (1.0, ["failed", "failed", "failed", "failed"], True),
    ],
)
def test_a_sweep_fails_if_all_trials_or_more_than_allowed_failed(
    max_failed_fraction: float, states: list[str], given_up: bool
) -> None:
    trials = [replace(ended_trial(number, state), reason="no memory") for number, state in enumerate(states)]
    failed = ["no memory"] * states.count("failed")
    assert too_many_failures(trials, request_of(4, max_failed_fraction)) == (failed if given_up else [])


@pytest.mark.parametrize(
    ("status", "error", "states", "state", "reason"),
    [
        ("Running", "", ["failed", "failed"], "running", ""),
        ("Canceled", "", ["failed", "failed"], "failed", "2 of 2 trials failed"),
        ("Canceled", "", ["completed", "cancelled"], "cancelled", ""),
        ("Completed", "", ["completed", "failed"], "completed", ""),
        (
            "Canceled",
            "The job exceeded its time limit.",
            ["failed", "failed"],
            "completed",
            "Time limit reached after 2 of",
        ),
        ("CancelRequested", "The job exceeded its time limit.", ["completed", "running"], "running", ""),
        ("Failed", "Broken.", ["completed", "completed"], "failed", "Broken."),
    ],
)
def test_a_sweep_has_the_state_of_its_job_unless_it_timed_out_or_too_many_trials_failed(
    *, status: str, error: str, states: list[str], state: str, reason: str
) -> None:
    trials = [replace(ended_trial(number, one), reason="no memory") for number, one in enumerate(states)]
    found_state, why = state_and_reason(Details(status, error=error), trials, request_of(2, 0.5))
    assert found_state == state
    assert why.startswith(reason)
    assert bool(why) is bool(reason)
