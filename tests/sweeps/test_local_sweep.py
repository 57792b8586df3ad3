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
from support.programs import Ended, run_in, started, stopped, wait_for

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
MEASURED = [*SMALL, "--kimg", "2", "--metric-kimg", "0.5"]
LONGER = [*SMALL, "--kimg", "3", "--metric-kimg", "1"]
Run = Callable[..., Ended]


def sweep(*words: str) -> list[str]:
    return ["msggan-aml", "sweep", "--data", "tiny", "--name", "s", "-o", "json", *words]


def by_number(told: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(told["trials"], key=lambda trial: trial["number"])


def values(told: dict[str, Any]) -> list[tuple[Any, ...]]:
    names = ("settings", "objective", "images_seen", "curve", "state")
    return [tuple(trial[name] for name in names) for trial in by_number(told)]


def states(told: dict[str, Any]) -> list[str]:
    return [trial["state"] for trial in by_number(told)]


def note(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / "runs" / "s" / "sweep.json").read_text())
    except FileNotFoundError:
        return {"trials": []}
    return content


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A folder with the images, and a sweep `s` of two trials in it that has ended; and what it told."""
    folder = tmp_path_factory.mktemp("finished")
    draw_tiny_images(folder / "tiny")
    ended = run_in(folder, *sweep(*TWO_RATES))
    assert ended.exit_code == 0, ended.stderr
    return folder, ended


def test_a_sweep_ends_with_its_best_trial_which_submit_trains_on(finished: tuple[Path, Ended]) -> None:
    folder, ended = finished
    run_program = partial(run_in, folder)
    told = ended.json
    assert [trial["settings"] for trial in by_number(told)] == [{"g_lr": 0.001}, {"g_lr": 0.01}]
    objectives = [trial["objective"] for trial in told["trials"]]
    assert objectives == sorted(objectives)
    assert told["best"] == told["trials"][0]
    assert told["next"] == ["msggan-aml submit --from-trial s"]
    assert ended.stderr.count(", best ") == 2
    assert told["report"] == "runs/s/report.html"
    page = (folder / "runs" / "s" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert told["warnings"][0].startswith(f"Trial {told['best']['number']} has trained only 0.02 kimg. ")
    assert "No trial is clearly the best." in page
    assert "is the best:" not in page

    longer = run_program("msggan-aml", "submit", "--from-trial", "s", "--kimg", "0.04", "-o", "json")
    assert longer.exit_code == 0, longer.stderr
    assert (longer.json["name"], longer.json["images_seen"]) == ("s-best", 40)
    assert "0.02 of 0.04 kimg done" in longer.stderr, "it went on from the trial's checkpoint"
    config = RunFolder(folder / "runs" / "s-best").load_config()
    assert config is not None
    assert config.g_lr == told["best"]["settings"]["g_lr"]

    too_short = run_program("msggan-aml", "submit", "--from-trial", "s/1", "--kimg", "0.02")
    assert too_short.exit_code == 2
    assert "has trained 0.02 kimg already" in too_short.stderr


@pytest.mark.parametrize(
    ("words", "difference"),
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
def test_a_name_that_is_used_again_for_another_sweep_is_refused_with_what_differs(
    finished: tuple[Path, Ended], words: list[str], difference: str
) -> None:
    folder, _ = finished
    (folder / "other").mkdir(exist_ok=True)
    before = note(folder)
    refused = run_in(folder, *sweep(*words, "--sampling", "grid", *SHORT))
    assert refused.exit_code == 2
    said = f"--name s: is another sweep: {difference.format(folder=folder)}"
    assert refused.json["error"]["message"] == said
    assert refused.json["error"]["hint"].endswith("(--trials may grow), or another --name.")
    assert note(folder) == before


def test_the_best_trial_is_copied_out_and_copied_over_only_by_force(finished: tuple[Path, Ended]) -> None:
    folder, ended = finished
    words = ["msggan-aml", "sweep", "best", "s", "--download", "out", "-o", "json"]
    copied = run_in(folder, *words)
    assert copied.exit_code == 0, copied.stderr
    assert copied.json["best"] == ended.json["best"]
    trial = folder / ended.json["best"]["run_dir"]
    for name in ("config.json", "metrics.jsonl", "generator.safetensors", "samples/000000020_8px.png"):
        assert (folder / "out" / name).read_bytes() == (trial / name).read_bytes()

    (folder / "out" / "config.json").write_text("mine")
    refused = run_in(folder, *words)
    assert refused.exit_code == 2
    assert refused.json["error"]["hint"] == "Use --force to overwrite, or give another folder."
    assert (folder / "out" / "config.json").read_text() == "mine"
    assert run_in(folder, *words, "--force").exit_code == 0
    assert (folder / "out" / "config.json").read_bytes() == (trial / "config.json").read_bytes()


def test_a_trial_is_named_as_a_run_is(finished: tuple[Path, Ended]) -> None:
    folder, _ = finished
    run_program = partial(run_in, folder, "msggan-aml")
    told = run_program("status", "s/1", "-o", "json").json
    assert (told["name"], told["state"], told["run_dir"]) == ("s/1", "completed", "runs/s/trials/001")
    assert told["next"] == ["msggan-aml sample s/1", "msggan-aml submit --from-trial s/1"]
    assert run_program("status", "runs/s/trials/001", "-o", "json").json == told
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
def test_a_trial_is_found_by_its_path_with_or_without_zeros(finished: tuple[Path, Ended], path: str) -> None:
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


def test_a_trial_is_named_in_full_from_within_its_sweep(finished: tuple[Path, Ended]) -> None:
    folder, _ = finished
    told = run_in(folder / "runs" / "s", "msggan-aml", "status", "trials/001", "-o", "json").json
    assert told["name"] == "s/1"
    assert told["next"][0] == "msggan-aml sample s/1 --runs-dir .."


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_images")
def test_a_trial_that_is_cancelled_is_not_begun_again_and_the_sweep_goes_on(tmp_path: Path, run_program: Run) -> None:
    words = sweep("--over", "g_lr=0.001,0.002", "--sampling", "grid", *SMALL, "--kimg", "1000000")
    first, second = (RunFolder(tmp_path / f"runs/s/trials/00{number}") for number in range(2))
    with started(tmp_path, *words) as process:
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
    ("words", "complaint"),
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
def test_a_name_that_is_not_what_it_was_taken_for_is_told(
    finished: tuple[Path, Ended], words: list[str], complaint: str
) -> None:
    folder, _ = finished
    cut, run = folder / "runs" / "cut", folder / "runs" / "run"
    for place in (cut, run):
        place.mkdir(exist_ok=True)
    (cut / "sweep.json").write_bytes((folder / "runs" / "s" / "sweep.json").read_bytes()[:300])
    (run / "config.json").write_text("{}")
    ended = run_in(folder, "msggan-aml", *words)
    assert ended.exit_code == 2
    assert complaint in ended.stderr


def test_a_sweep_that_cannot_be_read_hides_no_other(finished: tuple[Path, Ended]) -> None:
    folder, _ = finished
    broken = folder / "runs" / "cut"
    broken.mkdir(exist_ok=True)
    (broken / "sweep.json").write_text("{")
    listed = run_in(folder, "msggan-aml", "list", "-o", "json")
    assert listed.exit_code == 0
    assert [found["name"] for found in listed.json["sweeps"]] == ["s"]
    assert "runs/cut/sweep.json: is not a valid sweep record." in listed.stderr


def test_a_sweep_and_a_trial_whose_processes_are_gone_are_interrupted(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "s")
    request = SweepRecord.of(two_rates(), created="2026-11-26T10:00:00Z", threads=1)
    request.trials = [TrialRecord({"g_lr": 0.001}, "running"), TrialRecord({"g_lr": 0.01}, "running")]
    folder.path.mkdir()
    folder.save(request)
    trial = folder.trial(1)
    trial.path.mkdir(parents=True)
    with owned(trial):  # one of the trials goes on without its sweep
        record_start(trial, data="tiny", images_seen=0)
        status = LocalTarget(tmp_path).sweeps.sweep_status("s")
        assert (status.state, status.reason) == ("interrupted", DIED)
        assert [(one.number, one.state) for one in status.trials] == [(0, "interrupted"), (1, "running")]
    assert states(LocalTarget(tmp_path).sweeps.sweep_status("s").as_json()) == ["interrupted", "interrupted"]


def test_the_record_of_the_previous_version_is_read(tmp_path: Path) -> None:
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


def test_a_trial_has_reached_the_best_of_its_finite_measurements() -> None:
    reports = [{"images": images, "swd": swd} for images, swd in ((8, 50.0), (16, math.nan), (24, 20.0), (32, 30.0))]
    reports += [{"images": 40, "d_loss": 1.0}]
    curve = ((8, 50.0), (24, 20.0), (32, 30.0))
    assert measured(reports, Objective()) == {"curve": curve, "objective": 20.0, "images_seen": 40}
    assert measured(reports, Objective("swd", "maximize"))["objective"] == 50.0
    assert measured([], Objective()) == {"curve": (), "objective": None, "images_seen": None}


@pytest.mark.usefixtures("tiny_images")
@pytest.mark.slow
def test_a_sweep_in_the_background_of_a_script_is_deaf_to_ctrl_c(tmp_path: Path) -> None:
    words = sweep("--over", "g_lr=0.001,0.01", "--sampling", "grid", *SMALL, "--kimg", "1")
    with started(tmp_path, *words, background=True) as process:
        wait_for(lambda: read_metrics(tmp_path / "runs/s/trials/000/metrics.jsonl"), process)
        ended = stopped(process, "Ctrl-C")
    assert (ended.exit_code, states(ended.json)) == (0, ["completed", "completed"])


@pytest.mark.usefixtures("tiny_images")
@pytest.mark.parametrize(
    ("by", "sampling"), [("Ctrl-C", "random"), pytest.param("cancel", "sobol", marks=pytest.mark.slow)]
)
def test_a_sweep_stopped_and_continued_equals_one_that_ran_through(
    tmp_path: Path, run_program: Run, by: str, sampling: str
) -> None:
    words = sweep("--over", "g_lr", "--sampling", sampling, "--trials", "2", *MEASURED)
    first = tmp_path / "runs" / "s" / "trials" / "000"
    with started(tmp_path, *words) as process:
        wait_for(lambda: read_metrics(first / "metrics.jsonl"), process)
        ended = stopped(process, by) if by == "Ctrl-C" else looked_at_and_cancelled(process, run_program)
    assert (ended.exit_code, ended.json["state"]) == {"Ctrl-C": (130, "interrupted"), "cancel": (6, "cancelled")}[by]
    assert states(ended.json) == ["interrupted", "queued"]
    assert ended.json["next"][0].startswith("msggan-aml sweep --data tiny --over g_lr=0.0005..0.01 --trials 2")

    continued = run_program(*words)
    whole = run_program(*[word if word != "s" else "whole" for word in words])
    assert continued.exit_code == whole.exit_code == 0, continued.stderr
    assert values(continued.json) == values(whole.json)
    assert [(trial["state"], trial["images_seen"]) for trial in whole.json["trials"]] == [("completed", 2000)] * 2
    assert "\nResuming runs/s/trials/000 " in (first / "log.txt").read_text(), "it went on from a checkpoint"


def looked_at_and_cancelled(process: subprocess.Popen[str], run_program: Run) -> Ended:
    """How a sweep at work ends that another terminal looks at and cancels."""
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


def test_what_a_killed_sweep_and_its_trials_left_as_running_is_interrupted(tmp_path: Path) -> None:
    """One trial whose process had begun and was killed, one whose had not begun yet, and one that never started."""
    config = TrainConfig(resolution=8, latent_size=8, seed=1, kimg=0.02)
    spec = two_rates(read_space(["g_lr=0.001,0.003,0.01"], config), trials=3)
    folder = SweepFolder(tmp_path / "runs" / "s")
    note = SweepRecord.of(spec, created="2026-01-01T00:00:00Z", threads=1)
    note.trials = [
        TrialRecord({"g_lr": 0.001}, "running"),
        TrialRecord({"g_lr": 0.003}, "running"),
        TrialRecord({"g_lr": 1}),
    ]
    with owned(folder.trial(0)):
        record_start(folder.trial(0), data="tiny", images_seen=8)
    folder.save(note)
    status = LocalTarget(tmp_path / "runs").sweeps.sweep_status("s")
    assert (status.state, states(status.as_json())) == ("interrupted", ["interrupted", "interrupted", "queued"])
    outcome = AdoptedTrial(folder.trial(0)).outcome()
    assert outcome is not None
    assert outcome.state == "interrupted"
    assert AdoptedTrial(folder.trial(1)).outcome() == Outcome("interrupted")


@pytest.mark.skipif(os.name == "nt", reason="signals between processes are POSIX's")
def test_cancel_leaves_processes_alone_that_are_not_the_sweeps(tmp_path: Path) -> None:
    """As where a machine of the same name runs it, or the recorded number belongs to another program by now."""
    folder = SweepFolder(tmp_path / "runs" / "s")
    note = SweepRecord.of(two_rates(), created="2026-01-01T00:00:00Z", threads=1)
    trial = folder.trial(0)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as unrelated:
        try:
            with folder.owned(), owned(trial):
                note.process, note.machine = unrelated.pid, platform.node()
                folder.save(note)
                with pytest.raises(RunFolderError, match=f"in use, but not by process {unrelated.pid} of this machine"):
                    LocalTarget(tmp_path / "runs").sweeps.cancel_sweep("s")
                record_start(trial, data="tiny", images_seen=8)
                trial.state.write_text(json.dumps({**json.loads(trial.state.read_text()), "process": unrelated.pid}))
                AdoptedTrial(trial).stop()
            assert unrelated.poll() is None
        finally:
            unrelated.kill()


@pytest.mark.usefixtures("tiny_images")
def test_a_failed_trial_says_why_and_the_sweep_goes_on(run_program: Run) -> None:
    objective = ["--objective", "swd_8", "--direction", "minimize"]
    ended = run_program(*sweep("--over", "stddev_group=0,3", "--sampling", "grid", *objective, *SHORT))
    assert ended.exit_code == 0, ended.stderr
    assert ended.json["objective"] == {"metric": "swd_8", "direction": "minimize"}
    good, bad = by_number(ended.json)
    assert (good["state"], bad["state"]) == ("completed", "failed")
    assert "--stddev-group" in bad["reason"]
    assert "--stddev-group 3: must divide" in run_program("msggan-aml", "logs", "s/1").stdout
    no_run = run_program("msggan-aml", "status", "s/1")  # it could not begin: all there is of it is its log
    assert no_run.stderr.startswith("Error: s/1: has not started to train.\nShow its log: msggan-aml logs s/1.")
    status = run_program("msggan-aml", "status", "s")
    assert status.stdout.splitlines()[1].split() == ["TRIAL", "STDDEV_GROUP", "SWD_8", "KIMG", "STATE", "REASON"]


@pytest.mark.usefixtures("tiny_images")
def test_a_sweep_whose_every_trial_fails_has_failed_and_says_why(run_program: Run) -> None:
    ended = run_program(*sweep("--over", "stddev_group=3,5", "--sampling", "grid", *SHORT))
    assert ended.exit_code == 1
    assert "Most common reason: " in ended.json["reason"]
    assert ended.json["best"] is None


@pytest.mark.usefixtures("tiny_images")
def test_a_sweep_of_which_too_many_trials_fail_is_given_up(run_program: Run) -> None:
    words = sweep("--over", "stddev_group=3,0,5", "--sampling", "grid", "--max-failed-fraction", "0.3", *SHORT)
    for _ in range(2):  # the same command tries just that one again
        ended = run_program(*words)
        assert (ended.exit_code, ended.json["state"]) == (1, "failed")
        assert ended.json["reason"].startswith(
            "1 of 3 trials failed. Most common reason: --stddev-group 3: must divide"
        )
        assert states(ended.json) == ["failed", "queued", "queued"]
        assert ended.json["next"][0].startswith("msggan-aml sweep --data tiny --over stddev_group=3,0,5")
    assert "Retrying the failed trials." in ended.stderr


@pytest.mark.slow
def test_a_sweep_that_fails_on_a_full_disk_goes_on_when_there_is_space(
    tiny_images: Path, tmp_path: Path, small_disk: Disk, run_program: Run
) -> None:
    """Whatever cannot be written, the sweep's own files or a trial's, is named, and nothing has to be begun anew."""
    words = [*sweep(*TWO_RATES), "--runs-dir", str(small_disk.path / "runs")]
    small_disk.resize(kib=4)  # one page: sweep.json, but not its successor
    full = run_program(*words)
    assert full.exit_code == 2
    assert re.search(r"runs/s/\S+: cannot be written \(.*(full|No space left).*\)", full.json["error"]["message"])
    small_disk.resize(kib=60)
    fuller = run_program(*words)
    assert (fuller.exit_code, fuller.json["state"]) == (1, "failed")
    assert "the disk has 0 MiB free" in fuller.json["reason"]
    small_disk.resize(kib=4096)
    ended = run_program(*words)
    assert ended.exit_code == 0, ended.stderr
    assert values(ended.json) == values(run_program(*sweep(*TWO_RATES)).json)
    for stderr in (full.stderr, fuller.stderr, ended.stderr):
        assert "Traceback" not in stderr


@pytest.mark.usefixtures("tiny_images")
@pytest.mark.slow
def test_what_is_larger_the_better_is_maximized(run_program: Run) -> None:
    ended = run_program(*sweep("--objective", "images_per_second", *TWO_RATES))
    assert ended.exit_code == 0, ended.stderr
    assert ended.json["objective"] == {"metric": "images_per_second", "direction": "maximize"}
    speeds = [trial["objective"] for trial in ended.json["trials"]]
    assert speeds == sorted(speeds, reverse=True)
    assert ended.json["best"]["objective"] == max(speeds) > 0


@pytest.mark.usefixtures("tiny_images")
def test_an_objective_that_is_never_logged_fails_the_trial(run_program: Run) -> None:
    """The images are of 8 pixels, which nobody knows before they are read."""
    words = ["--over", "mirror=true", "--objective", "swd_64", "--latent-size", "8", "--kimg", "0.02"]
    ended = run_program(*sweep(*words))
    assert ended.exit_code == 1
    assert ended.json["reason"] == "1 of 1 trials failed. Most common reason: It never logged swd_64."
    assert states(ended.json) == ["failed"]


@pytest.mark.usefixtures("tiny_images")
@pytest.mark.slow
def test_a_sweep_whose_time_is_up_keeps_its_trials_and_goes_on(
    tmp_path: Path, run_program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = sweep(*TWO_RATES)
    ended = run_program(*words, "--timeout", "1e-9")
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
    told = status.as_json()
    assert states(told) == ["completed", "interrupted"]
    assert status.next[0].startswith("msggan-aml sweep --data tiny --over g_lr=0.001,0.01 --trials 2")
    assert "--timeout 0.5" in status.next[0]

    continued = run_program(*words)
    assert continued.exit_code == 0, continued.stderr
    assert (continued.json["reason"], states(continued.json)) == ("", ["completed", "completed"])
    assert values(continued.json)[0] == tuple(
        json.loads(json.dumps(by_number(told)[0][name]))
        for name in ("settings", "objective", "images_seen", "curve", "state")
    )


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_images")
def test_two_trials_at_once_have_half_the_cores_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in Python's place writes down when each trial begins and ends, and with how many threads."""
    python, diary = tmp_path / "python", tmp_path / "diary"
    python.write_text(
        f"#!/bin/sh\n"
        f'echo "begins $OMP_NUM_THREADS $MKL_NUM_THREADS" >> {diary}\n'
        f'{sys.executable} "$@"; code=$?; echo ends >> {diary}; exit $code\n'
    )
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4), raising=False)
    spec = two_rates(read_space(["g_lr=0.001,0.003,0.01"], TrainConfig()), trials=3, concurrent=2)
    status = LocalTarget(python=str(python), tracking_uri="none").sweeps.submit_sweep(spec)
    assert states(status.as_json()) == ["completed"] * 3
    lines = diary.read_text().splitlines()
    at_once = list(accumulate(1 if line == "begins 2 2" else -1 for line in lines))
    assert (len(lines), max(at_once), at_once[-1]) == (6, 2, 0)


def two_rates(space: SearchSpace | None = None, **more: Any) -> SweepSpec:
    """What TWO_RATES says, in words of Python."""
    config = TrainConfig(resolution=8, latent_size=8, seed=1, kimg=0.02)
    space = space or read_space(["g_lr=0.001,0.01"], config)
    return SweepSpec(config, "tiny", "s", space, **{"sampling": "grid", "trials": 2, **more})


@pytest.mark.usefixtures("tiny_images")
@pytest.mark.slow
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
def test_bad_input_is_told_all_at_once_before_anything_starts(
    tmp_path: Path, run_program: Run, words: list[str], complaints: list[str]
) -> None:
    ended = run_program("msggan-aml", "sweep", "--data", "tiny", *words)
    assert ended.exit_code == 2
    for complaint in complaints:
        assert complaint in ended.stderr
    assert ended.stderr.count("Error: ") == len(complaints)
    assert not (tmp_path / "runs").exists()
