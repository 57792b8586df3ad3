"""Is what the service receives for a sweep what was asked, and nothing sent for what it would refuse?"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from msggan.config import TrainConfig
from msggan.errors import MsgganError, UsageError
from orchestration.search_space import read_space
from orchestration.settings import read_settings
from orchestration.sweep import EarlyStopping, SweepSpec
from orchestration.voice import Voice

if TYPE_CHECKING:
    from azure_local import AzureLocal

    from orchestration.azure.submission import Submission

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

CONFIG = TrainConfig(resolution=8, kimg=0.04)


@pytest.fixture
def submission(azure: AzureLocal, place: Path, monkeypatch: pytest.MonkeyPatch) -> Submission:
    monkeypatch.chdir(place)
    for name, value in azure.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AZUREML_CURRENT_CLOUD", "AzureCloud")
    from orchestration.azure.blobs import open_store
    from orchestration.azure.client import connect
    from orchestration.azure.environment import resolve_environment
    from orchestration.azure.submission import Submission

    settings = read_settings({"timeout_hours": "1.5", "experiment": "garden"}, folder=place, environ=os.environ)
    voice = Voice(lambda line: None)
    client = connect(settings, voice.tell, wait_factor_s=0.01)
    return Submission(
        client, settings, voice, partial(open_store, client), partial(resolve_environment, settings, client)
    )


def send(submission: Submission, *over: str, **changes: Any) -> None:
    from orchestration.azure.run_jobs import RunJobs
    from orchestration.azure.sweep_submission import send_sweep

    sweep = SweepSpec(CONFIG, "tiny", "flowers", read_space(over, CONFIG), **changes)
    send_sweep(submission, sweep, RunJobs("flowers", (), "flowers"))


def test_what_the_sdk_would_drop_arrives(azure: AzureLocal, submission: Submission) -> None:
    with pytest.raises(MsgganError, match="No job was made"):  # the local Azure runs no sweeps
        send(
            submission,
            *("g_lr=0.001..0.01", "mirror"),
            trials=4,
            concurrent=2,
            timeout_hours=3.0,
            early_stopping=EarlyStopping("bandit", 2, 1, slack_factor=0.2),
        )
    put = azure.made("PUT", "/jobs/flowers")[-1].body["properties"]
    assert put["description"] == "Which settings have the least swd? g_lr=0.001..0.01; mirror=true,false."
    assert put["experimentName"] == "garden"
    assert put["tags"]["msggan.sweep"] == put["tags"]["msggan.run"] == put["displayName"] == "flowers"
    assert put["limits"] == {
        "jobLimitsType": "Sweep",
        "maxConcurrentTrials": 2,
        "maxTotalTrials": 4,
        "timeout": "PT3H",
        "trialTimeout": "PT1H30M",
    }
    assert put["earlyTermination"]["slackFactor"] == 0.2
    assert put["samplingAlgorithm"] == {"rule": "Random", "samplingAlgorithmType": "Random", "seed": 0}
    assert put["computeId"].endswith("/computes/msggan-gpu")
    assert put["trial"]["resources"]["shmSize"] == "8g"
    assert put["trial"]["command"].endswith('--g-lr "${{search_space.g_lr}}" ${{search_space.mirror}}')
    azure.recording.clear()


def test_what_the_service_would_refuse_is_refused_before_anything_is_asked(
    azure: AzureLocal, submission: Submission
) -> None:
    before = len(azure.requests)
    with pytest.raises(UsageError, match="--sampling bayesian"):
        send(submission, "g_lr", sampling="bayesian")
    assert len(azure.requests) == before
