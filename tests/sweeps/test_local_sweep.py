"""A sweep on this machine runs, stops, resumes and ends with an answer; with real trainings of under a second."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.disks import Disk
from support.images import draw_tiny_images
from support.programs import Ended, fast_python, run_in, started, stopped, wait_for

from msggan.config import TrainConfig
from msggan.errors import RunFolderError
from msggan.runs.folder import RunFolder, is_owned, owned, record_start
from msggan.tracking.metrics_log import read_metrics
from orchestration.local.sweep import AdoptedTrial, Outcome
from orchestration.local.target import LocalTarget
from orchestration.sweeps.record import DIED, SweepFolder, SweepRecord, TrialRecord
from orchestration.sweeps.space import SearchSpace, read_space
from orchestration.sweeps.spec import SweepSpec
from orchestration.sweeps.trials import CANCELLED, Objective, measured

SMALL = ["--resolution", "8", "--latent-size", "8", "--seed", "1"]
SHORT = [*SMALL, "--kimg", "0.02"]
TWO_RATES = ["--over", "g_lr=0.001,0.01", "--sampling", "grid", *SHORT]
MEASURED = [*SMALL, "--precision", "float32", "--kimg", "0.3", "--metric-kimg", "0.05"]
LONGER = [*SMALL, "--kimg", "3", "--metric-kimg", "1"]
Run = Callable[..., Ended]


def sweep(*args: str) -> list[str]:
    return ["msggan-aml", "sweep", "--data", "tiny", "--name", "s", "-o", "json", *args]


def by_number(response: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(response["trials"], key=lambda trial: trial["number"])


def values(response: dict[str, Any]) -> list[tuple[Any, ...]]:
    names = ("settings", "objective", "images_seen", "curve", "state")
    return [tuple(trial[name] for name in names) for trial in by_number(response)]


def states(response: dict[str, Any]) -> list[str]:
    return [trial["state"] for trial in by_number(response)]


def record(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / "runs" / "s" / "sweep.json").read_text())
    except FileNotFoundError:
        return {"trials": []}
    return content


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A folder with the images, and a sweep `s` of two trials in it that has ended; and its output."""
    folder = tmp_path_factory.mktemp("finished")
    draw_tiny_images(folder / "tiny")
    ended = run_in(folder, *sweep(*TWO_RATES))
    assert ended.exit_code == 0, ended.stderr
    return folder, ended


def test_a_sweep_reports_its_best_trial_and_submit_trains_it_further(finished: tuple[Path, Ended]) -> None:
    folder, ended = finished
    run_program = partial(run_in, folder)
    response = ended.json
    assert [trial["settings"] for trial in by_number(response)] == [{"g_lr": 0.001}, {"g_lr": 0.01}]
    objectives = [trial["objective"] for trial in response["trials"]]
    assert objectives == sorted(objectives)
    assert response["best"] == response["trials"][0]
    assert response["next"] == ["msggan-aml submit --from-trial s"]
    assert ended.stderr.count(", best ") == 2
    assert response["report"] == "runs/s/report.html"
    page = (folder / "runs" / "s" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert response["warnings"][0].startswith(f"Trial {response['best']['number']} has trained only 0.02 kimg. ")
    assert "No trial is clearly the best." in page
    assert "is the best:" not in page

    longer = run_program("msggan-aml", "submit", "--from-trial", "s", "--kimg", "0.04", "-o", "json")
    assert longer.exit_code == 0, longer.stderr
    assert (longer.json["name"], longer.json["images_seen"]) == ("s-best", 40)
    assert "0.02 of 0.04 kimg done" in longer.stderr, "it resumed from the trial's checkpoint"
    config = RunFolder(folder / "runs" / "s-best").load_config()
    assert config is not None
    assert config.g_lr == response["best"]["settings"]["g_lr"]

    too_short = run_program("msggan-aml", "submit", "--from-trial", "s/1", "--kimg", "0.02")
    assert too_short.exit_code == 2
    assert "has trained 0.02 kimg already" in too_short.stderr


@pytest.mark.parametrize(
    ("args", "difference"),
    [
        (["--over", "d_lr=0.001,0.01"], "--over was g_lr=0.001,0.01 and is now d_lr=0.001,0.01."),
        (["--over", "g_lr=0.001,0.01", "--trials", "1"], "--trials was 2 and is now 1."),
        (["--over", "g_lr=0.001,0.01", "--data", "other"], "--data was {folder}/tiny and is now {folder}/other."),
        (
            ["--over", "g_lr=0.001,0.01", "--objective", "swd_8", "--direction", "maximize"],
            "--objective was swd (minimize) and is now swd_8 (maximize).",
        ),
    ],
)
def test_reusing_a_name_for_another_sweep_is_refused_naming_the_differences(
    finished: tuple[Path, Ended], args: list[str], difference: str
) -> None:
    folder, _ = finished
    (folder / "other").mkdir(exist_ok=True)
    before = record(folder)
    refused = run_in(folder, *sweep(*args, "--sampling", "grid", *SHORT))
    assert refused.exit_code == 2
    message = f"--name s: is another sweep: {difference.format(folder=folder)}"
    assert refused.json["error"]["message"] == message
    assert refused.json["error"]["hint"].endswith("(--trials may grow), or another --name.")
    assert record(folder) == before


def test_the_best_trial_is_downloaded_and_changed_files_need_force(finished: tuple[Path, Ended]) -> None:
    folder, ended = finished
    args = ["msggan-aml", "sweep", "best", "s", "--download", "out", "-o", "json"]
    copied = run_in(folder, *args)
    assert copied.exit_code == 0, copied.stderr
    assert copied.json["best"] == ended.json["best"]
    trial = folder / ended.json["best"]["run_dir"]
    for name in ("config.json", "metrics.jsonl", "generator.safetensors", "samples/000000020_8px.png"):
        assert (folder / "out" / name).read_bytes() == (trial / name).read_bytes()

    (folder / "out" / "config.json").write_text("mine")
    refused = run_in(folder, *args)
    assert refused.exit_code == 2
    assert refused.json["error"]["hint"] == "Use --force to overwrite, or give another folder."
    assert (folder / "out" / "config.json").read_text() == "mine"
    assert run_in(folder, *args, "--force").exit_code == 0
    assert (folder / "out" / "config.json").read_bytes() == (trial / "config.json").read_bytes()


def test_commands_for_runs_take_the_name_of_a_trial(finished: tuple[Path, Ended]) -> None:
    folder, _ = finished
    run_program = partial(run_in, folder, "msggan-aml")
    response = run_program("status", "s/1", "-o", "json").json
    assert (response["name"], response["state"], response["run_dir"]) == ("s/1", "completed", "runs/s/trials/001")
    assert response["next"] == ["msggan-aml sample s/1", "msggan-aml submit --from-trial s/1"]
    assert run_program("status", "runs/s/trials/001", "-o", "json").json == response
    logged = run_program("logs", "s/1", "-o", "json").json
    assert logged == {"name": "s/1", "lines": (folder / "runs/s/trials/001/log.txt").read_text().splitlines()}
    copied = run_program("download", "s/1", "-o", "json").json
    assert copied["path"] == "s-trial-1"
    assert (folder / "s-trial-1" / "metrics.jsonl").read_bytes() == (
        folder / "runs/s/trials/001/metrics.jsonl"
    ).read_bytes()
    made = run_program("sample", "s/1", "--num", "1", "-o", "json").json
    assert (folder / made["files"][0]).is_file()
    assert run_program("cancel", "s/1").stderr.startswith("Error: s/1: is not running; its state is completed.")


@pytest.mark.parametrize(
    "path",
    ["runs/s/1", "runs/s/001", "runs/s/trials/1", "./runs/s/trials/001/", "s/trials/1", "s/001", "{folder}/runs/s/1"],
)
def test_a_trial_is_found_by_its_path_with_or_without_leading_zeros(finished: tuple[Path, Ended], path: str) -> None:
    folder, _ = finished
    named = path.format(folder=folder)
    found = run_in(folder, "msggan-aml", "status", named, "-o", "json").json
    assert (found["name"], found["run_dir"], found["next"][0]) == ("s/1", "runs/s/trials/001", "msggan-aml sample s/1")


def test_logs_sample_and_download_take_a_trials_path(finished: tuple[Path, Ended]) -> None:
    folder, _ = finished
    log = (folder / "runs/s/trials/001/log.txt").read_text()
    assert run_in(folder, "msggan-aml", "logs", "runs/s/1").stdout == log
    assert run_in(folder, "msggan-aml", "logs", "runs/s/1", "-o", "json").json["name"] == "s/1"
    assert run_in(folder, "msggan-aml", "download", "runs/s/trials/001", "-o", "json").json["path"] == "s-trial-1"
    made = run_in(folder, "msggan-aml", "sample", "runs/s/1", "--num", "1", "--out", "by-path", "-o", "json").json
    assert (folder / made["files"][0]).is_file()


def test_a_trial_has_its_full_name_inside_the_folder_of_its_sweep(finished: tuple[Path, Ended]) -> None:
    folder, _ = finished
    response = run_in(folder / "runs" / "s", "msggan-aml", "status", "trials/001", "-o", "json").json
    assert response["name"] == "s/1"
    assert response["next"][0] == "msggan-aml sample s/1 --runs-dir .."


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_images")
def test_a_cancelled_trial_is_not_restarted_and_the_sweep_continues(tmp_path: Path, run_program: Run) -> None:
    args = sweep("--over", "g_lr=0.001,0.002", "--sampling", "grid", *SMALL, "--kimg", "1000000")
    first, second = (RunFolder(tmp_path / f"runs/s/trials/00{number}") for number in range(2))
    with started(tmp_path, *args) as process:
        wait_for(lambda: read_metrics(first.metrics), process)
        assert run_program("msggan-aml", "status", "s/0", "-o", "json").json["next"] == [
            *("msggan-aml logs s/0 --follow", "msggan-aml cancel s/0"),
        ]
        cancelled = run_program("msggan-aml", "cancel", "s/0", "-o", "json")
        assert (cancelled.exit_code, cancelled.json["name"], cancelled.json["state"]) == (0, "s/0", "cancelled")
        wait_for(lambda: read_metrics(second.metrics), process)
        ended = stopped(process, "Ctrl-C")
    assert [(trial["state"], trial["reason"]) for trial in by_number(ended.json)] == [
        *(("stopped", CANCELLED), ("interrupted", "")),
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["logs", "s/9"], "s: trial 9 has not started. Show its trials: msggan-aml status s"),
        (["logs", "runs/s/trials/009"], "s: trial 9 has not started. Show its trials: msggan-aml status s"),
        (["status", "ss"], "No run 'ss' in runs, and no such folder. Did you mean s?"),
        (
            ["submit", "--data", "tiny", "--name", "s"],
            "Use another name, or train its best trial further: --from-trial s.",
        ),
        (["submit", "--from-trial", "nosuch"], "No sweep 'nosuch' in runs.\nList runs and sweeps: msggan-aml list"),
        (["submit", "--from-trial", "s/99"], "s: has no trial 99; its trials are 0 to 1."),
        (["submit", "--from-trial", "s/"], "--from-trial s/: must be SWEEP or SWEEP/NUMBER."),
        (["submit", "--from-trial", "s/0", "--g-lr", "1"], "its g_lr is 0.001, not 1.0. Remove --g-lr."),
        (["sweep", "best", "nosuch"], "No sweep 'nosuch' in runs.\nList runs and sweeps: msggan-aml list"),
        (["sweep", "best", "s", "--download", "tiny/00.png"], "tiny/00.png: is a file, not a folder."),
        (["cancel", "s"], "s: is not running; its state is completed."),
        (["logs", "s"], "Show its trials: msggan-aml status s."),
        (["sweep", "--data", "tiny", "--over", "g_lr", "--name", "run"], "runs/run holds a run, not a sweep."),
        (["status", "cut"], "runs/cut/sweep.json: is not a valid sweep record.\nRemove it, or use another"),
        (["sweep", "--data", "tiny", "--over", "g_lr", "--name", "cut"], "cut/sweep.json: is not a valid sweep record"),
    ],
)
def test_the_name_of_something_else_is_an_error_that_says_what_it_is(
    finished: tuple[Path, Ended], args: list[str], message: str
) -> None:
    folder, _ = finished
    cut, run = folder / "runs" / "cut", folder / "runs" / "run"
    for place in (cut, run):
        place.mkdir(exist_ok=True)
    (cut / "sweep.json").write_bytes((folder / "runs" / "s" / "sweep.json").read_bytes()[:300])
    (run / "config.json").write_text("{}")
    ended = run_in(folder, "msggan-aml", *args)
    assert ended.exit_code == 2
    assert message in ended.stderr


def test_an_unreadable_sweep_does_not_hide_the_others(finished: tuple[Path, Ended]) -> None:
    folder, _ = finished
    broken = folder / "runs" / "cut"
    broken.mkdir(exist_ok=True)
    (broken / "sweep.json").write_text("{")
    listed = run_in(folder, "msggan-aml", "list", "-o", "json")
    assert listed.exit_code == 0
    assert [found["name"] for found in listed.json["sweeps"]] == ["s"]
    assert "runs/cut/sweep.json: is not a valid sweep record." in listed.stderr


def test_a_sweep_and_a_trial_whose_processes_died_are_interrupted(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "s")
    request = SweepRecord.of(two_rates(), created="2026-11-26T10:00:00Z", threads=1)
    request.trials = [TrialRecord({"g_lr": 0.001}, "running"), TrialRecord({"g_lr": 0.01}, "running")]
    folder.path.mkdir()
    folder.save(request)
    trial = folder.trial(1)
    trial.path.mkdir(parents=True)
    with owned(trial):  # one of the trials continues without its sweep
        record_start(trial, data="tiny", images_seen=0)
        status = LocalTarget(tmp_path).sweeps.sweep_status("s")
        assert (status.state, status.reason) == ("interrupted", DIED)
        assert [(trial.number, trial.state) for trial in status.trials] == [(0, "interrupted"), (1, "running")]
    assert states(LocalTarget(tmp_path).sweeps.sweep_status("s").as_json()) == ["interrupted", "interrupted"]


def test_the_previous_format_of_the_record_is_read(tmp_path: Path) -> None:
    """Format 2 had other keys, and an option that has another name now."""
    record = SweepRecord.of(two_rates(max_failed_fraction=0.3), created="2026-11-26T10:00:00Z", threads=1)
    record.trials = [TrialRecord({"g_lr": 0.001}, "completed"), TrialRecord({"g_lr": 0.01})]
    values = json.loads(record.to_bytes())
    for new, old in [("fixed", "asked"), ("args", "again"), ("config", "said"), ("max_failed_fraction", "most_failed")]:
        values[old] = values.pop(new)
    values["again"][values["again"].index("--max-failed-fraction")] = "--most-failed"
    folder = SweepFolder(tmp_path / "s")
    folder.path.mkdir()
    folder.record.write_text(json.dumps({**values, "format_version": 2}))
    assert folder.load() == record


def test_the_objective_of_a_trial_is_the_best_of_its_finite_measurements() -> None:
    reports = [{"images": images, "swd": swd} for images, swd in ((8, 50.0), (16, math.nan), (24, 20.0), (32, 30.0))]
    reports += [{"images": 40, "d_loss": 1.0}]
    curve = ((8, 50.0), (24, 20.0), (32, 30.0))
    assert measured(reports, Objective()) == {"curve": curve, "objective": 20.0, "images_seen": 40}
    assert measured(reports, Objective("swd", "maximize"))["objective"] == 50.0
    assert [Objective(name).direction for name in ("recall", "kernel_distance")] == ["maximize", "minimize"]
    assert measured([], Objective()) == {"curve": (), "objective": None, "images_seen": None}


@pytest.mark.usefixtures("tiny_images")
@pytest.mark.slow
def test_a_sweep_in_the_background_of_a_script_ignores_ctrl_c(tmp_path: Path) -> None:
    args = sweep("--over", "g_lr=0.001,0.01", "--sampling", "grid", *SMALL, "--kimg", "1")
    with started(tmp_path, *args, background=True) as process:
        wait_for(lambda: read_metrics(tmp_path / "runs/s/trials/000/metrics.jsonl"), process)
        ended = stopped(process, "Ctrl-C")
    assert (ended.exit_code, states(ended.json)) == (0, ["completed", "completed"])


@pytest.mark.usefixtures("tiny_images")
@pytest.mark.parametrize(
    ("by", "sampling"), [("Ctrl-C", "random"), pytest.param("cancel", "sobol", marks=pytest.mark.slow)]
)
def test_a_resumed_sweep_equals_an_uninterrupted_one(tmp_path: Path, run_program: Run, by: str, sampling: str) -> None:
    args = sweep("--over", "g_lr", "--sampling", sampling, "--trials", "2", *MEASURED)
    first = tmp_path / "runs" / "s" / "trials" / "000"
    with started(tmp_path, *args) as process:
        wait_for(lambda: read_metrics(first / "metrics.jsonl"), process)
        ended = stopped(process, by) if by == "Ctrl-C" else polled_and_cancelled(process, run_program)
    assert (ended.exit_code, ended.json["state"]) == {"Ctrl-C": (130, "interrupted"), "cancel": (6, "cancelled")}[by]
    assert states(ended.json) == ["interrupted", "queued"]
    assert ended.json["next"][0].startswith("msggan-aml sweep --data tiny --over g_lr=0.0005..0.01 --trials 2")

    continued = run_program(*args)
    whole = run_program(*[word if word != "s" else "whole" for word in args])
    assert continued.exit_code == whole.exit_code == 0, continued.stderr
    assert values(continued.json) == values(whole.json)
    assert [(trial["state"], trial["images_seen"]) for trial in whole.json["trials"]] == [("completed", 300)] * 2
    assert "\nResuming runs/s/trials/000 " in (first / "log.txt").read_text(), "it resumed from a checkpoint"


def polled_and_cancelled(process: subprocess.Popen[str], run_program: Run) -> Ended:
    """Checks the status of a running sweep from another process, and cancels it."""
    seen = run_program("msggan-aml", "status", "s", "-o", "json").json
    assert (seen["state"], seen["planned"], states(seen)) == ("running", 2, ["running", "queued"])
    assert by_number(seen)[0]["images_seen"] > 0
    assert seen["next"] == ["msggan-aml status s", "msggan-aml cancel s"]
    cancelled = run_program("msggan-aml", "cancel", "s", "-o", "json")
    assert (cancelled.exit_code, cancelled.json["state"]) == (0, "cancelled"), cancelled.stderr
    stdout, stderr = process.communicate()
    return Ended(process.returncode, stdout, stderr)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_images")
def test_a_trial_left_running_by_a_killed_sweep_is_adopted(tmp_path: Path, run_program: Run) -> None:
    args = sweep("--over", "g_lr=0.001,0.002", "--sampling", "grid", *LONGER)
    first = RunFolder(tmp_path / "runs" / "s" / "trials" / "000")
    with started(tmp_path, *args) as process:
        wait_for(lambda: is_owned(first), process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    continued = run_program(*args)
    assert continued.exit_code == 0, continued.stderr
    assert [trial["state"] for trial in by_number(continued.json)] == ["completed", "completed"]
    assert first.log.read_text().count("Training ") == 1, "it was not started a second time"


def test_trials_recorded_as_running_after_a_kill_are_interrupted(tmp_path: Path) -> None:
    """One trial was training when it was killed, one was starting, and one had not been started."""
    config = TrainConfig(resolution=8, latent_size=8, seed=1, kimg=0.02)
    spec = two_rates(read_space(["g_lr=0.001,0.003,0.01"], config), trials=3)
    folder = SweepFolder(tmp_path / "runs" / "s")
    record = SweepRecord.of(spec, created="2026-01-01T00:00:00Z", threads=1)
    record.trials = [
        TrialRecord({"g_lr": 0.001}, "running"),
        TrialRecord({"g_lr": 0.003}, "running"),
        TrialRecord({"g_lr": 1}),
    ]
    with owned(folder.trial(0)):
        record_start(folder.trial(0), data="tiny", images_seen=8)
    folder.save(record)
    status = LocalTarget(tmp_path / "runs").sweeps.sweep_status("s")
    assert (status.state, states(status.as_json())) == ("interrupted", ["interrupted", "interrupted", "queued"])
    outcome = AdoptedTrial(folder.trial(0)).outcome()
    assert outcome is not None
    assert outcome.state == "interrupted"
    assert AdoptedTrial(folder.trial(1)).outcome() == Outcome("interrupted")


@pytest.mark.skipif(os.name == "nt", reason="signals between processes are POSIX's")
def test_cancel_does_not_signal_unrelated_processes(tmp_path: Path) -> None:
    """As when another machine has the same name, or when the process number now belongs to another program."""
    folder = SweepFolder(tmp_path / "runs" / "s")
    record = SweepRecord.of(two_rates(), created="2026-01-01T00:00:00Z", threads=1)
    trial = folder.trial(0)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as unrelated:
        try:
            with folder.owned(), owned(trial):
                record.process, record.machine = unrelated.pid, platform.node()
                folder.save(record)
                with pytest.raises(RunFolderError, match=f"in use, but not by process {unrelated.pid} of this machine"):
                    LocalTarget(tmp_path / "runs").sweeps.cancel_sweep("s")
                record_start(trial, data="tiny", images_seen=8)
                trial.state.write_text(json.dumps({**json.loads(trial.state.read_text()), "process": unrelated.pid}))
                AdoptedTrial(trial).stop()
            assert unrelated.poll() is None
        finally:
            unrelated.kill()


@pytest.mark.usefixtures("tiny_images")
def test_a_failed_trial_has_a_reason_and_the_sweep_continues(run_program: Run) -> None:
    objective = ["--objective", "swd_8", "--direction", "minimize"]
    ended = run_program(*sweep("--over", "stddev_group=0,3", "--sampling", "grid", *objective, *SHORT))
    assert ended.exit_code == 0, ended.stderr
    assert ended.json["objective"] == {"metric": "swd_8", "direction": "minimize"}
    good, bad = by_number(ended.json)
    assert (good["state"], bad["state"]) == ("completed", "failed")
    assert "--stddev-group" in bad["reason"]
    assert "--stddev-group 3: must divide" in run_program("msggan-aml", "logs", "s/1").stdout
    no_run = run_program("msggan-aml", "status", "s/1")  # it could not start and left only its log
    assert no_run.stderr.startswith("Error: s/1: has not started to train.\nShow its log: msggan-aml logs s/1.")
    status = run_program("msggan-aml", "status", "s")
    assert status.stdout.splitlines()[1].split() == ["TRIAL", "STDDEV_GROUP", "SWD_8", "KIMG", "STATE", "REASON"]


@pytest.mark.usefixtures("tiny_images")
def test_a_sweep_fails_with_the_reason_if_every_trial_fails(run_program: Run) -> None:
    ended = run_program(*sweep("--over", "stddev_group=3,5", "--sampling", "grid", *SHORT))
    assert ended.exit_code == 1
    assert "Most common reason: " in ended.json["reason"]
    assert ended.json["best"] is None


@pytest.mark.usefixtures("tiny_images")
def test_a_sweep_ends_when_too_many_trials_fail(run_program: Run) -> None:
    args = sweep("--over", "stddev_group=3,0,5", "--sampling", "grid", "--max-failed-fraction", "0.3", *SHORT)
    for _ in range(2):  # the same command retries only that trial
        ended = run_program(*args)
        assert (ended.exit_code, ended.json["state"]) == (1, "failed")
        assert ended.json["reason"].startswith(
            "1 of 3 trials failed. Most common reason: --stddev-group 3: must divide"
        )
        assert states(ended.json) == ["failed", "queued", "queued"]
        assert ended.json["next"][0].startswith("msggan-aml sweep --data tiny --over stddev_group=3,0,5")
    assert "Retrying the failed trials." in ended.stderr


@pytest.mark.slow
def test_a_sweep_that_failed_on_a_full_disk_resumes_when_there_is_space(
    tiny_images: Path, tmp_path: Path, small_disk: Disk, run_program: Run
) -> None:
    """The error names the file, of the sweep or of a trial, and the same command resumes."""
    args = [*sweep(*TWO_RATES), "--runs-dir", str(small_disk.path / "runs")]
    small_disk.resize(kib=4)  # one page: sweep.json, but not its successor
    full = run_program(*args)
    assert full.exit_code == 2
    assert re.search(r"runs/s/\S+: cannot be written \(.*(full|No space left).*\)", full.json["error"]["message"])
    small_disk.resize(kib=60)
    fuller = run_program(*args)
    assert (fuller.exit_code, fuller.json["state"]) == (1, "failed")
    assert re.search(r"the run needs about \d+ KiB of disk space, and \d+ KiB are free", fuller.json["reason"])
    small_disk.resize(kib=4096)
    ended = run_program(*args)
    assert ended.exit_code == 0, ended.stderr
    assert values(ended.json) == values(run_program(*sweep(*TWO_RATES)).json)
    for stderr in (full.stderr, fuller.stderr, ended.stderr):
        assert "Traceback" not in stderr


@pytest.mark.usefixtures("tiny_images")
@pytest.mark.slow
def test_an_objective_whose_larger_values_are_better_is_maximized(run_program: Run) -> None:
    ended = run_program(*sweep("--objective", "images_per_second", *TWO_RATES))
    assert ended.exit_code == 0, ended.stderr
    assert ended.json["objective"] == {"metric": "images_per_second", "direction": "maximize"}
    speeds = [trial["objective"] for trial in ended.json["trials"]]
    assert speeds == sorted(speeds, reverse=True)
    assert ended.json["best"]["objective"] == max(speeds) > 0


@pytest.mark.usefixtures("tiny_images")
def test_a_trial_that_never_logs_the_objective_fails(run_program: Run) -> None:
    """The images have 8 pixels, which is known only once they are read."""
    args = ["--over", "mirror=true", "--objective", "swd_64", "--latent-size", "8", "--kimg", "0.02"]
    ended = run_program(*sweep(*args))
    assert ended.exit_code == 1
    assert ended.json["reason"] == "1 of 1 trials failed. Most common reason: It never logged swd_64."
    assert states(ended.json) == ["failed"]


@pytest.mark.usefixtures("tiny_images")
@pytest.mark.slow
def test_a_sweep_resumes_after_its_time_limit(
    tmp_path: Path, run_program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = sweep(*TWO_RATES)
    ended = run_program(*args, "--timeout", "1e-9")
    assert ended.exit_code == 0, ended.stderr
    assert ended.json["reason"] == "Time limit reached after 0 of 2 trials."
    assert states(ended.json) == ["queued", "queued"]

    second = tmp_path / "runs" / "s" / "trials" / "001"
    monkeypatch.chdir(tmp_path)
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600 * second.exists(), sleep=time.sleep)
    monkeypatch.setattr("orchestration.local.sweep.time", clock)
    status = LocalTarget(tracking_uri="none").sweeps.submit_sweep(two_rates(timeout_hours=0.5))
    assert (status.state, status.exit_code) == ("completed", 0)
    assert status.reason == "Time limit reached after 1 of 2 trials."
    response = status.as_json()
    assert states(response) == ["completed", "interrupted"]
    assert status.next[0].startswith("msggan-aml sweep --data tiny --over g_lr=0.001,0.01 --trials 2")
    assert "--timeout 0.5" in status.next[0]

    continued = run_program(*args)
    assert continued.exit_code == 0, continued.stderr
    assert (continued.json["reason"], states(continued.json)) == ("", ["completed", "completed"])
    assert values(continued.json)[0] == tuple(
        json.loads(json.dumps(by_number(response)[0][name]))
        for name in ("settings", "objective", "images_seen", "curve", "state")
    )


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_images")
def test_concurrent_trials_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper around Python records when each trial starts and ends, and its number of threads."""
    python, diary = tmp_path / "python", tmp_path / "diary"
    python.write_text(
        f"#!/bin/sh\n"
        f'echo "starts $OMP_NUM_THREADS $MKL_NUM_THREADS" >> {diary}\n'
        f'OMP_NUM_THREADS=1 {fast_python()} "$@"; code=$?; echo ends >> {diary}; exit $code\n'
    )
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4), raising=False)
    spec = two_rates(read_space(["g_lr=0.001,0.003,0.01"], TrainConfig()), trials=3, concurrent=2)
    status = LocalTarget(python=str(python), tracking_uri="none").sweeps.submit_sweep(spec)
    assert states(status.as_json()) == ["completed"] * 3
    lines = diary.read_text().splitlines()
    at_once = list(accumulate(1 if line == "starts 2 2" else -1 for line in lines))
    assert (len(lines), max(at_once), at_once[-1]) == (6, 2, 0)


def two_rates(space: SearchSpace | None = None, **more: Any) -> SweepSpec:
    """The sweep of TWO_RATES as a specification."""
    config = TrainConfig(resolution=8, latent_size=8, seed=1, kimg=0.02)
    space = space or read_space(["g_lr=0.001,0.01"], config)
    return SweepSpec(config, "tiny", "s", space, **{"sampling": "grid", "trials": 2, **more})


@pytest.mark.usefixtures("tiny_images")
def test_a_bad_trial_is_stopped_early(run_program: Run) -> None:
    """At the start a generator of 8 px moves away from these images, the more so the faster it learns."""
    args = ["--over", "g_lr=1e-9,0.01", "--sampling", "grid", "--stop-early", "bandit", "--slack", "0.1"]
    ended = run_program(*sweep(*args, *SMALL, "--precision", "float32", "--kimg", "0.3", "--metric-kimg", "0.1"))
    assert ended.exit_code == 0, ended.stderr
    good, bad = by_number(ended.json)
    assert (good["state"], bad["state"]) == ("completed", "stopped")
    assert bad["reason"].startswith("bandit: ")
    assert bad["images_seen"] < good["images_seen"] == 300


@pytest.mark.usefixtures("tiny_images")
@pytest.mark.parametrize(
    ("args", "messages"),
    [
        ([], ["--over: is required."]),
        (["--over", "g_rl"], ["there is no option --g-rl. Did you mean g_lr?"]),
        (["--over", "kimg"], ["--kimg cannot be searched"]),
        (["--over"], ["'--over' requires an argument."]),
        (["--over", "g_lr=0.1..0.01"], ["0.1 is not below 0.01. Did you mean g_lr=0.01..0.1?"]),
        (["--over", "loss=hinge,foo"], ["--loss foo: must be one of relativistic-hinge, "]),
        (["--over", "batch_size=3..5"], ["fewer than two powers of two; list values, as in batch_size=4,6,8."]),
        (["--over", "g_lr=0.001-0.1"], ["0.001-0.1 is not a number; as in g_lr=0.001,0.003."]),
        (["--over", "g_lr", "--trials", "0"], ["--trials 0: must be from 1 to 1000."]),
        (["--over", "g_lr", "--trials", "1e3"], ["--trials 1e3: is not a whole number."]),
        (["--over", "mirror", "--trials", "3"], ["--trials 3: there are only 2 combinations. Use --trials 2."]),
        (["--over", "g_lr", "--timeout", "soon"], ["--timeout soon: is not a number."]),
        (["--over", "g_lr", "--sampling", "Random"], ["bayesian, sobol. Did you mean random?"]),
        (["--over", "g_lr", "--stop-early", "bandit", "--slack", "0"], ["must be more than 0, as in --slack 0.2."]),
        (
            ["--over", "g_lr", "--stop-early", "median", "--truncate", "10"],
            ["--truncate: requires --stop-early truncation."],
        ),
        (["--over", "g_lr", "--objective", "swd_4096"], ["--objective swd_4096: no run logs this. Available: swd, "]),
        (
            ["--over", "g_lr", "--objective", "swd_64", "--resolution", "8"],
            ["--objective swd_64: is not logged at --resolution 8. Available: swd, swd_8."],
        ),
        (["--over", "g_lr="], ["has no values"]),
        (["--over", "g_lr", "--sampling", "grid"], ["is a continuous range"]),
        (["--over", "g_lr", "--trials", "2", "--concurrent", "3"], ["--concurrent 3: is more than --trials 2."]),
        (["--over", "g_lr", "--stop-early", "bandit"], ["requires either --slack RATIO"]),
        (["--over", "g_lr", "--objective", "sdw"], ["--objective sdw: no run logs this. Did you mean swd?"]),
        (
            ["--over", "x", "--trials", "many", "--sampling", "dice", "--kimg", "-1"],
            ["no option --x", "--trials many: is not a whole number.", "--sampling dice", "--kimg -1"],
        ),
    ],
)
def test_all_invalid_options_are_reported_at_once_before_anything_starts(
    tmp_path: Path, run_program: Run, args: list[str], messages: list[str]
) -> None:
    ended = run_program("msggan-aml", "sweep", "--data", "tiny", *args)
    assert ended.exit_code == 2
    for message in messages:
        assert message in ended.stderr
    assert ended.stderr.count("Error: ") == len(messages)
    assert not (tmp_path / "runs").exists()
