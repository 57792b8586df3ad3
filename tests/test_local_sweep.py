"""Does a sweep on this machine run, stop, go on and end with an answer? With real trainings of under a second."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ended, started, stopped, wait_for

from msggan.run_folder import RunFolder
from msggan.run_state import is_owned

SMALL = ["--resolution", "8", "--latent-size", "8", "--seed", "1"]
SHORT = [*SMALL, "--kimg", "0.02"]
LONGER = [*SMALL, "--kimg", "3", "--metric-kimg", "1"]
Run = Callable[..., Ended]


def sweep(*words: str) -> list[str]:
    return ["msggan-aml", "sweep", "--data", "tiny", "--name", "s", "-o", "json", *words]


def by_number(told: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(told["trials"], key=lambda trial: trial["number"])


def values(told: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(trial["settings"], trial["objective"], trial["state"]) for trial in by_number(told)]


def note(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / "runs" / "s" / "sweep.json").read_text())
    except FileNotFoundError:
        return {"trials": []}
    return content


@pytest.mark.usefixtures("tiny_images")
def test_a_sweep_ends_with_its_best_trial_which_submit_trains_on(tmp_path: Path, run_program: Run) -> None:
    ended = run_program(*sweep("--over", "g_lr=0.001,0.01", "--sampling", "grid", *SHORT))
    assert ended.exit_code == 0, ended.stderr
    told = ended.json
    assert [trial["settings"] for trial in by_number(told)] == [{"g_lr": 0.001}, {"g_lr": 0.01}]
    objectives = [trial["objective"] for trial in told["trials"]]
    assert objectives == sorted(objectives)
    assert told["best"] == told["trials"][0]
    assert told["next"] == ["msggan-aml submit --from-trial s"]
    assert ended.stderr.count("best so far") == 2
    assert told["report"] == "runs/s/report.html"
    page = (tmp_path / "runs" / "s" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2

    longer = run_program("msggan-aml", "submit", "--from-trial", "s", "--kimg", "0.04", "-o", "json")
    assert longer.exit_code == 0, longer.stderr
    assert (longer.json["name"], longer.json["images_seen"]) == ("s-best", 40)
    assert "0.02 of 0.04 kimg done" in longer.stderr, "it went on from the trial's checkpoint"
    config = RunFolder(tmp_path / "runs" / "s-best").load_config()
    assert config is not None
    assert config.g_lr == told["best"]["settings"]["g_lr"]

    too_short = run_program("msggan-aml", "submit", "--from-trial", "s/1", "--kimg", "0.02")
    assert too_short.exit_code == 2
    assert "has trained 0.02 kimg already" in too_short.stderr

    other = run_program(*sweep("--over", "d_lr=0.001,0.01", "--sampling", "grid", *SHORT))
    assert other.exit_code == 2
    assert "--over is g_lr=0.001,0.01 there and d_lr=0.001,0.01 here" in other.stdout


@pytest.mark.usefixtures("tiny_images")
@pytest.mark.parametrize("by", ["Ctrl-C", "SIGTERM"])
def test_a_sweep_stopped_and_continued_equals_one_that_ran_through(tmp_path: Path, run_program: Run, by: str) -> None:
    words = sweep("--over", "g_lr", "--sampling", "sobol", "--trials", "2", *LONGER)
    first = tmp_path / "runs" / "s" / "trials" / "000"
    with started(tmp_path, *words) as process:
        wait_for((first / "metrics.jsonl").exists, process)
        ended = stopped(process, by)
    assert ended.exit_code == {"Ctrl-C": 130, "SIGTERM": 6}[by], ended.stderr
    assert by_number(ended.json)[0]["state"] == "interrupted"
    assert ended.json["next"][0].startswith("msggan-aml sweep --data tiny --over g_lr=0.0005..0.01 --trials 2")

    continued = run_program(*words)
    whole = run_program(*[word if word != "s" else "whole" for word in words])
    assert continued.exit_code == whole.exit_code == 0, continued.stderr
    assert values(continued.json) == values(whole.json)


@pytest.mark.usefixtures("tiny_images")
def test_a_trial_left_behind_by_a_killed_sweep_is_taken_over(tmp_path: Path, run_program: Run) -> None:
    words = sweep("--over", "g_lr=0.001,0.002", "--sampling", "grid", *LONGER)
    first = RunFolder(tmp_path / "runs" / "s" / "trials" / "000")
    with started(tmp_path, *words) as process:
        wait_for(lambda: is_owned(first), process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    continued = run_program(*words)
    assert continued.exit_code == 0, continued.stderr
    assert [trial["state"] for trial in by_number(continued.json)] == ["completed", "completed"]
    assert first.log.read_text().count("Training ") == 1, "it was not begun a second time"


@pytest.mark.usefixtures("tiny_images")
def test_a_failed_trial_says_why_and_the_sweep_goes_on(run_program: Run) -> None:
    ended = run_program(*sweep("--over", "stddev_group=0,3", "--sampling", "grid", *SHORT))
    assert ended.exit_code == 0, ended.stderr
    good, bad = by_number(ended.json)
    assert (good["state"], bad["state"]) == ("completed", "failed")
    assert "--stddev-group" in bad["reason"]
    status = run_program("msggan-aml", "status", "s")
    assert status.stdout.splitlines()[1].split() == ["TRIAL", "STDDEV_GROUP", "SWD", "KIMG", "ENDED", "WHY"]


@pytest.mark.usefixtures("tiny_images")
def test_a_sweep_whose_every_trial_fails_has_failed_and_says_why(run_program: Run) -> None:
    ended = run_program(*sweep("--over", "stddev_group=3,5", "--sampling", "grid", *SHORT))
    assert ended.exit_code == 1
    assert "most often so: " in ended.json["reason"]
    assert ended.json["best"] is None


@pytest.mark.usefixtures("tiny_images")
def test_a_trial_that_does_badly_is_stopped_early(run_program: Run) -> None:
    """At first a generator of 8 px is farther from these images the faster it learns."""
    words = ["--over", "g_lr=1e-9,0.01", "--sampling", "grid", "--stop-early", "bandit", "--slack", "0.1"]
    ended = run_program(*sweep(*words, *SMALL, "--kimg", "2", "--metric-kimg", "0.1"))
    assert ended.exit_code == 0, ended.stderr
    good, bad = by_number(ended.json)
    assert (good["state"], bad["state"]) == ("completed", "stopped")
    assert bad["reason"].startswith("bandit: ")
    assert bad["images_seen"] < good["images_seen"] == 2_000


@pytest.mark.usefixtures("tiny_images")
@pytest.mark.parametrize(
    ("words", "complaints"),
    [
        ([], ["--over: is missing."]),
        (["--over", "g_rl"], ["there is no option --g-rl. Did you mean g_lr?"]),
        (["--over", "kimg"], ["--kimg cannot be swept"]),
        (["--over", "g_lr=0.1..0.01"], ["0.1 is not below 0.01."]),
        (["--over", "g_lr="], ["names no value"]),
        (["--over", "g_lr", "--sampling", "grid"], ["has no end of values"]),
        (["--over", "g_lr", "--trials", "2", "--concurrent", "3"], ["--concurrent 3: is more than --trials 2."]),
        (["--over", "g_lr", "--stop-early", "bandit"], ["needs one of --slack RATIO"]),
        (["--over", "g_lr", "--objective", "sdw"], ["--objective sdw: no run logs this. Did you mean swd?"]),
        (
            ["--over", "x", "--trials", "many", "--sampling", "dice", "--kimg", "-1"],
            ["no option --x", "--trials many: is not a whole number.", "--sampling dice", "--kimg -1"],
        ),
    ],
)
def test_bad_input_is_told_all_at_once_before_anything_starts(
    tmp_path: Path, run_program: Run, words: list[str], complaints: list[str]
) -> None:
    ended = run_program("msggan-aml", "sweep", "--data", "tiny", *words)
    assert ended.exit_code == 2
    for complaint in complaints:
        assert complaint in ended.stderr
    assert not (tmp_path / "runs").exists()
