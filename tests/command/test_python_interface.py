"""The Python interface: the same code trains here and on Azure."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.azure_commands import posix, sdk_warnings
from support.images import draw_tiny_images
from support.programs import environment, fast_python, wait_for

from msggan import Generator, TrainConfig
from msggan.errors import UsageError
from orchestration import LocalTarget, Run
from orchestration.targets import Target

SMALL = TrainConfig(resolution=8, latent_size=8, batch_size=4, kimg=0.04)
BuildTarget = Callable[..., Target]

pytestmark = [posix, sdk_warnings]


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(params=["local", pytest.param("azure", marks=pytest.mark.slow)])
def build_target(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> BuildTarget:
    """build_target(**settings): the target by `from_config`, in a folder with the images `tiny`."""
    draw_tiny_images(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("MSGGAN_", "AZUREML_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MSGGAN_TRACKING_URI", "none")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    if request.param == "local":
        return lambda **settings: replace(LocalTarget.from_config(**settings), python=fast_python())
    azure = request.getfixturevalue("azure")
    for name, value in azure.variables.items():
        monkeypatch.setenv(name, value)
    from orchestration import AzureTarget  # which loads the SDK

    return AzureTarget.from_config


def test_the_same_lines_train_here_and_on_azure(
    build_target: BuildTarget, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = build_target(environment="python:3.11-slim", max_nodes=2)
    plan = target.plan_provision()
    assert plan.refusal is None
    assert [item.action for item in target.provision().items] == [item.action for item in plan.items]
    assert target.plan_provision().to_do == ()

    run = target.submit(SMALL, data="tiny", name="one", device="cpu")
    assert (run.name, run.status().target) == ("one", target.name)
    capfd.readouterr()
    ended = run.wait()
    assert (ended.state, ended.images_seen) == ("completed", 40)
    printed = capfd.readouterr().err.splitlines()
    assert run.logs()
    assert [line for line in printed if line in run.logs()] == run.logs()
    assert run.logs(tail=1) == run.logs()[-1:]
    assert [found.name for found in target.runs()] == ["one"]
    with pytest.raises(UsageError, match="is not running; its state is completed"):
        run.cancel()
    assert run.download().path == "one-run"
    assert run.download("weights", weights=True).files == 2  # the newest and the best
    assert (tmp_path / "one-run" / "config.json").is_file()
    assert isinstance(run.generator(), Generator)
    assert Run(target, "one").status() == run.status()


def test_a_sweep_in_python_finds_a_best_trial(build_target: BuildTarget) -> None:
    target = build_target(environment="python:3.11-slim")
    target.provision()
    over: dict[str, Any] = {"g_lr": None, "d_lr": (0.0005, 0.005), "batch_size": [4, 8]}
    config = TrainConfig(resolution=8, latent_size=8, kimg=0.04)
    found = target.sweep(config, data="tiny", over=over, trials=2, device="cpu")
    assert (found.name, found.state, len(found.trials)) == ("tiny-sweep", "completed", 2)
    assert found.best is not None
    assert found.best.settings.keys() == over.keys()
    assert target.status("tiny-sweep/0").state == "completed"
    assert target.download("tiny-sweep/0").path == "tiny-sweep-trial-0"


def test_a_wrong_keyword_or_value_is_named(build_target: BuildTarget) -> None:
    with pytest.raises(UsageError) as raised:
        build_target(vm_sise="x", max_nodes="2", min_nodes=True, runs_dir="", subscription_id="a/b")
    assert list(raised.value.problems) == [
        "vm_sise: is not a setting. Did you mean vm_size?",
        "runs_dir : must be non-empty text.",
        "min_nodes true: is not a whole number.",
        "max_nodes 2: is not a whole number.",
        "resource_group: is not set; a workspace requires all three parts.",
        "workspace_name: is not set; a workspace requires all three parts.",
        "subscription_id a/b: must be a name without spaces and slashes.",
    ]


def test_keywords_precede_variables_and_the_file(
    build_target: BuildTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msggan.toml").write_text("[azure]\nruns_dir = 'in-file'\n")
    assert build_target().plan(SMALL, data="tiny")["target"] in ("local", "azure")
    monkeypatch.setenv("MSGGAN_RUNS_DIR", "in-variable")
    target = LocalTarget.from_config()
    assert str(target.runs_dir) == "in-variable"
    assert str(LocalTarget.from_config(runs_dir=tmp_path / "x").runs_dir) == str(tmp_path / "x")


def test_wrong_data_is_refused_before_anything_is_started(build_target: BuildTarget, tmp_path: Path) -> None:
    target = build_target()
    with pytest.raises(UsageError) as raised:
        target.submit(SMALL, data="nothing-here", name="a/b")
    assert [problem.partition(":")[0] for problem in raised.value.problems] == ["--data nothing-here", "--name a/b"]
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_while_waiting_leaves_the_run(tmp_path: Path) -> None:
    draw_tiny_images(tmp_path / "tiny")
    code = (
        "from msggan import TrainConfig; from orchestration import LocalTarget\n"
        "config = TrainConfig(resolution=8, latent_size=8, batch_size=4, kimg=100000)\n"
        f"target = LocalTarget(python={fast_python()!r}, tracking_uri='none')\n"
        "run = target.submit(config, data='tiny', name='one', device='cpu')\n"
        "print('submitted', flush=True)\n"
        "try:\n    run.wait()\n"
        "except KeyboardInterrupt:\n    print(run.status().state, run.cancel().state)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        log = tmp_path / "runs" / "one" / "log.txt"
        wait_for(lambda: log.is_file() and "images/s" in log.read_text(), process)
        assert process.stdout is not None
        assert process.stdout.readline() == "submitted\n"
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate()
    assert stdout == "running cancelled\n"
    assert "Stopped following. one continues; cancel() stops it." in stderr
