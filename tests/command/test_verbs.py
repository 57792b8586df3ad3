"""Runs are followed, listed, stopped and downloaded, however they were started and however they ended."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.images import draw_tiny_images
from support.programs import Ended, command_line, environment, fast_python, run_in, started, stopped, wait_for

from msggan.runs.folder import RunFolder, is_owned, read_state
from msggan.tracking.metrics_log import Tracker
from orchestration.copies import CopyFolder

WHAT = ["--resolution", "8", "--latent-size", "8", "--batch-size", "4", "--device", "cpu"]
SMALL = [*WHAT, "--kimg", "0.04"]
ENDLESS = [*WHAT, "--kimg", "1000000"]
RUN_KEYS = {"name", "target", "state", "run_dir", "job_id", "portal_url", "images_seen", "metrics", "next"}
WEIGHTS = {"generator.safetensors", "generator_best.safetensors"}
STATUS_KEYS = RUN_KEYS | {"images_total", "created", "ended", "reason", "signs"}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals between processes are POSIX's")


def msggan_aml(folder: Path, *args: object) -> Ended:
    return run_in(folder, "msggan-aml", *args)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and the run `tiny`, which was detached and followed to its end."""
    workdir = tmp_path_factory.mktemp("workdir")
    draw_tiny_images(workdir / "tiny")
    submitted = msggan_aml(workdir, "submit", "--data", "tiny", *SMALL, "--detach")
    assert submitted.exit_code == 0, submitted.stderr
    followed = msggan_aml(workdir, "logs", "tiny", "--follow")
    assert followed.exit_code == 0, followed.stderr
    assert followed.stdout.splitlines()[-1].startswith("Done: 0.04 kimg.")
    return workdir


@contextmanager
def endless(workdir: Path, name: str) -> Iterator[dict[str, object]]:
    """A run that trains in the background indefinitely, as `submit --detach` printed it; killed at the end."""
    submitted = msggan_aml(workdir, "submit", "--data", "tiny", "--name", name, *ENDLESS, "--detach", "-o", "json")
    assert submitted.exit_code == 0, submitted.stderr
    try:
        yield submitted.json
    finally:
        folder = RunFolder(workdir / "runs" / name)
        note = read_state(folder)
        if note is not None and is_owned(folder):
            os.kill(note.process, signal.SIGKILL)
        shutil.rmtree(folder.path)


# Following


def test_a_completed_run_is_reported_with_the_next_command(workdir: Path) -> None:
    status = msggan_aml(workdir, "status", "tiny", "-o", "json").json
    assert status.keys() == STATUS_KEYS
    assert (status["name"], status["target"], status["state"]) == ("tiny", "local", "completed")
    assert (status["images_seen"], status["images_total"], status["reason"]) == (40, 40, "")
    assert status["created"] <= status["ended"]
    assert status["metrics"].keys() >= {"images", "kimg", "d_loss", "g_loss", "swd", "images_per_second", "seconds"}
    images = workdir / "tiny"
    assert status["next"] == [
        "msggan-aml sample tiny",
        f"msggan-aml submit --data {images} --name tiny --target local --kimg 0.08",
    ]


def test_a_run_can_be_given_by_its_folder(workdir: Path) -> None:
    by_folder = msggan_aml(workdir.parent, "status", workdir / "runs" / "tiny", "-o", "json")
    assert by_folder.json["state"] == "completed"


def test_the_log_of_a_run_in_front_is_kept_too(workdir: Path) -> None:
    front = msggan_aml(workdir, "submit", "--data", "tiny", "--name", "front", *SMALL)
    logged = msggan_aml(workdir, "logs", "front").stdout.splitlines()
    assert logged == [line for line in front.stderr.splitlines() if not line.startswith("Target:")]
    assert msggan_aml(workdir, "logs", "front", "--tail", "2").stdout.splitlines() == logged[-2:]
    assert msggan_aml(workdir, "logs", "front", "-o", "json").json == {"name": "front", "lines": logged}
    shutil.rmtree(workdir / "runs" / "front")


def test_runs_are_listed_the_newest_first(workdir: Path) -> None:
    older = workdir / "runs" / "older"
    shutil.copytree(workdir / "runs" / "tiny", older)
    note = json.loads((older / "run.json").read_text())
    (older / "run.json").write_text(json.dumps({**note, "created": "2020-01-01T00:00:00Z"}))
    (workdir / "runs" / "broken").mkdir()
    (workdir / "runs" / "broken" / "config.json").write_text("{")
    listed = msggan_aml(workdir, "list", "-o", "json").json["runs"]
    assert [run["name"] for run in listed] == ["tiny", "older"]
    assert all(run.keys() == STATUS_KEYS for run in listed)
    headings, *rows = msggan_aml(workdir, "list").stdout.splitlines()
    assert [row.split()[:3] for row in rows] == [
        ["tiny", "completed", "0.04/0.04"],
        ["older", "completed", "0.04/0.04"],
    ]
    assert headings.split()[:3] == ["NAME", "STATE", "KIMG"]
    newest = msggan_aml(workdir, "list", "--limit", "1", "-o", "json")
    assert [run["name"] for run in newest.json["runs"]] == ["tiny"]
    assert "There are more; only the newest 1 are listed. List more: msggan-aml list --limit 2" in newest.stderr
    assert "There are more" not in msggan_aml(workdir, "list", "--limit", "2").stderr
    assert msggan_aml(workdir, "list", "--limit", "0").exit_code == 2
    shutil.rmtree(older)
    shutil.rmtree(workdir / "runs" / "broken")


def test_status_without_a_name_is_that_of_the_newest_run(workdir: Path) -> None:
    listed = msggan_aml(workdir, "list", "-o", "json").json["runs"]
    newest = max(listed, key=lambda run: run["created"])["name"]
    assert msggan_aml(workdir, "status") == msggan_aml(workdir, "status", newest)
    assert msggan_aml(workdir, "status", "-o", "json").json["name"] == newest


def test_an_empty_list_of_runs_says_how_to_start(tmp_path: Path) -> None:
    listed = msggan_aml(tmp_path, "list")
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert "msggan-aml submit --data FOLDER" in listed.stderr
    assert msggan_aml(tmp_path, "list", "-o", "json").json == {"runs": [], "sweeps": []}
    status = msggan_aml(tmp_path, "status", "-o", "json")
    assert (status.exit_code, status.json["error"]["message"]) == (2, listed.stderr.strip())


def test_a_run_is_logged_to_the_mlflow_beside_the_runs_and_resumed_there(tmp_path: Path) -> None:
    draw_tiny_images(tmp_path / "tiny")
    args = ["msggan-aml", "submit", "--data", "tiny", *WHAT, "--loss", "hinge", "--metric-kimg", "0.02"]
    for kimg in ("0.04", "0.08"):
        ended = run_in(tmp_path, *args, "--kimg", kimg, MSGGAN_TRACKING_URI="")
        assert ended.exit_code == 0, ended.stderr
    (run,) = tracked_runs(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    assert (run["name"], run["loss_function"], run["kimg"]) == ("tiny", "hinge", "0.08")
    reported = [json.loads(line) for line in (tmp_path / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()]
    assert [report["images"] for report in reported] == [20, 40, 60, 80]
    assert run["d_loss"] == [[report["images"], report["d_loss"]] for report in reported]


LOOK = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
(experiment,) = [one for one in client.search_experiments() if one.name == "msggan"]
for run in client.search_runs([experiment.experiment_id]):
    points = sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, "d_loss"))
    result = {"name": run.info.run_name, "kimg": run.data.tags["kimg"], "d_loss": points}
    print(json.dumps({**result, "loss_function": run.data.params["loss_function"]}))
"""


def tracked_runs(uri: str) -> list[dict[str, object]]:
    """What an MLflow has of each run."""
    result = subprocess.check_output([fast_python(), "-c", LOOK, uri], env=environment(), encoding="utf-8")
    return [json.loads(line) for line in result.splitlines()]


# Stopping


def test_a_detached_run_is_running_until_it_is_cancelled(workdir: Path) -> None:
    with endless(workdir, "long") as submitted:
        assert submitted.keys() == RUN_KEYS
        assert submitted["state"] == "running"
        assert submitted["next"] == ["msggan-aml logs long --follow", "msggan-aml cancel long"]
        assert msggan_aml(workdir, "status", "long", "-o", "json").json["state"] == "running"
        again = msggan_aml(workdir, "submit", "--data", "tiny", "--name", "long", *ENDLESS, "-o", "json")
        assert (again.exit_code, again.json["error"]["code"]) == (2, "run_folder")
        assert "msggan-aml cancel" in again.json["error"]["hint"]

        cancelled = msggan_aml(workdir, "cancel", "long", "-o", "json")
        assert (cancelled.exit_code, cancelled.json["state"]) == (0, "cancelled")
        assert cancelled.json["images_seen"] > 0
        assert list((workdir / "runs" / "long" / "checkpoints").glob("*.json"))
        twice = msggan_aml(workdir, "cancel", "long", "-o", "json")
        assert (twice.exit_code, twice.json["error"]["message"]) == (2, "long: is not running; its state is cancelled.")


def test_cancel_does_not_stop_a_process_that_does_not_train_the_run(workdir: Path) -> None:
    """As where a machine of the same name trains it, or the recorded number belongs to another program by now."""
    unrelated = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with endless(workdir, "elsewhere"), unrelated:
        note = workdir / "runs" / "elsewhere" / "run.json"
        recorded = note.read_text()
        try:
            note.write_text(json.dumps({**json.loads(recorded), "process": unrelated.pid}))
            refused = msggan_aml(workdir, "cancel", "elsewhere", "-o", "json")
            assert (refused.exit_code, refused.json["error"]["code"]) == (2, "run_folder")
            assert f"but not by process {unrelated.pid} of this machine" in refused.stderr
            assert unrelated.poll() is None
            assert msggan_aml(workdir, "status", "elsewhere", "-o", "json").json["state"] == "running"
        finally:
            unrelated.kill()
            note.write_text(recorded)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only there it can be seen that a program follows a log")
def test_ctrl_c_stops_following_and_is_no_error(workdir: Path) -> None:
    with endless(workdir, "followed"):
        log = workdir / "runs" / "followed" / "log.txt"
        for args in ([], ["-o", "json"]):
            with started(workdir, "msggan-aml", "logs", "followed", "--follow", *args) as follower:
                wait_for(lambda follower=follower: has_open(follower, log), follower)
                left = stopped(follower, "Ctrl-C")
            assert (left.exit_code, left.stderr) == (130, "Stopped following. The run continues.\n")
            lines = left.json["lines"] if args else left.stdout.splitlines()
            assert lines == log.read_text().splitlines()[: len(lines)]
        assert msggan_aml(workdir, "status", "followed", "-o", "json").json["state"] == "running"


def has_open(process: subprocess.Popen[str], path: Path) -> bool:
    """Whether a process reads or writes a file."""
    descriptors = Path(f"/proc/{process.pid}/fd")
    return any(os.path.realpath(descriptor) == os.path.realpath(path) for descriptor in descriptors.iterdir())


def test_a_run_whose_process_was_killed_is_interrupted_and_resumes(workdir: Path) -> None:
    with endless(workdir, "killed") as submitted:
        note = read_state(RunFolder(workdir / "runs" / "killed"))
        assert note is not None
        os.kill(note.process, signal.SIGKILL)
        followed = msggan_aml(workdir, "logs", "killed", "--follow")  # ends, as nothing will be written any more
        assert followed.exit_code == 0
        status = msggan_aml(workdir, "status", "killed", "-o", "json").json
        assert (status["state"], status["next"]) == (
            "interrupted",
            [f"msggan-aml submit --data {workdir / 'tiny'} --name killed --target local"],
        )
        assert "killed" in status["reason"]
        ended = msggan_aml(workdir, "submit", "--data", "tiny", "--name", "killed", "--kimg", "0.04", "-o", "json")
        assert (ended.exit_code, ended.json["state"]) == (0, "completed"), submitted


def test_a_detached_run_that_cannot_start_is_reported_and_leaves_nothing(workdir: Path) -> None:
    (workdir / "empty").mkdir()
    refused = msggan_aml(workdir, "submit", "--data", "empty", *SMALL, "--detach", "-o", "json")
    assert (refused.exit_code, refused.json["error"]["code"]) == (2, "data")
    assert refused.stderr.count("Error: ") == 1
    assert not (workdir / "runs" / "empty").exists()


def test_a_detached_run_that_cannot_start_keeps_an_existing_log(workdir: Path) -> None:
    (workdir / "none").mkdir()
    log = workdir / "runs" / "none" / "log.txt"
    log.parent.mkdir()
    log.write_text("from before\n")
    assert msggan_aml(workdir, "submit", "--data", "none", *SMALL, "--detach").exit_code == 2
    assert log.read_text().startswith("from before\n")
    shutil.rmtree(log.parent)


# Nothing to do


def changes_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The content of each file and when it was last written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_submitting_a_finished_run_changes_no_file_and_reports_it(tmp_path: Path, empty_database: Path) -> None:
    draw_tiny_images(tmp_path / "tiny")
    other = tmp_path / "other.db"
    (tmp_path / "runs").mkdir()
    for database in (other, tmp_path / "runs" / "mlflow.db"):
        shutil.copy(empty_database, database)

    def submit(*more: str) -> Ended:
        ended = run_in(
            tmp_path, "msggan-aml", "submit", "--data", "tiny", *SMALL, *more, "-o", "json", MSGGAN_TRACKING_URI=""
        )
        assert ended.exit_code == 0, ended.stderr
        return ended

    def is_delivered(database: Path) -> bool:
        metrics = tmp_path / "runs" / "tiny" / "metrics.jsonl"
        return Tracker(metrics, tracking_uri=f"sqlite:///{database}").is_delivered("completed")

    # A busy machine may be too slow for MLflow the first time; the same command again delivers what is missing.
    wait_for(lambda: submit() and is_delivered(tmp_path / "runs" / "mlflow.db"))
    before = changes_of(tmp_path / "runs")
    for more in ([], ["--kimg", "0.02", "--detach"]):
        again = submit(*more)
        assert again.stderr.count("Nothing to do: runs/tiny has 0.04 kimg.") == 1
        assert (again.json["state"], again.json["images_seen"]) == ("completed", 40)
        assert again.json.keys() == RUN_KEYS
        assert "--kimg 0.08" in again.json["next"][1]
        assert changes_of(tmp_path / "runs") == before

    wait_for(lambda: submit("--tracking-uri", f"sqlite:///{other}") and is_delivered(other))
    after = changes_of(tmp_path / "runs")
    assert {name for name in after if before.get(name) != after[name]} == {"tiny/mlflow.json"}
    assert [run["name"] for run in tracked_runs(f"sqlite:///{other}")] == ["tiny"]


def test_a_cancelled_run_is_not_called_complete_by_a_smaller_kimg(workdir: Path) -> None:
    with endless(workdir, "stopped"):
        cancelled = msggan_aml(workdir, "cancel", "stopped", "-o", "json").json
        before = changes_of(workdir / "runs" / "stopped")
        again = msggan_aml(workdir, "submit", "--data", "tiny", "--name", "stopped", "--kimg", "0.004", "-o", "json")
        assert (again.exit_code, again.json["state"]) == (0, "cancelled")
        assert again.json["images_seen"] == cancelled["images_seen"]
        assert again.json["next"] == ["msggan-aml submit --data tiny --name stopped --target local"], (
            "up to its own --kimg"
        )
        assert changes_of(workdir / "runs" / "stopped") == before


# What cannot be read


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attention": True}, "unknown field 'attention', written by a newer msggan."),
        ({"mirror": None}, "missing field 'mirror'."),
    ],
)
def test_a_run_of_another_version_is_listed_with_its_problem(
    tmp_path: Path, workdir: Path, change: dict[str, object], reason: str
) -> None:
    shutil.copytree(workdir / "runs" / "tiny", tmp_path / "runs" / "other")
    config = tmp_path / "runs" / "other" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    message = f"runs/other/config.json: cannot be read: {reason}"
    listed = msggan_aml(tmp_path, "list", "-o", "json")
    (run,) = listed.json["runs"]
    assert (run["name"], run["state"], run["images_seen"], run["images_total"]) == ("other", "completed", 40, None)
    assert run["reason"].startswith(message)
    assert message in listed.stderr
    status = msggan_aml(tmp_path, "status", "other")
    assert message in status.stdout
    assert "Next:" not in status.stdout
    refused = msggan_aml(tmp_path, "submit", "--data", workdir / "tiny", "--name", "other", "--kimg", "9", "-o", "json")
    assert (refused.exit_code, refused.json["error"]["message"]) == (2, message)


def test_an_unreadable_record_is_named(tmp_path: Path, workdir: Path) -> None:
    shutil.copytree(workdir / "runs" / "tiny", tmp_path / "runs" / "other")
    (tmp_path / "runs" / "other" / "run.json").write_text("{")
    message = "runs/other/run.json: is not a record that msggan wrote."
    assert message in msggan_aml(tmp_path, "status", "other").stderr
    assert message in msggan_aml(tmp_path, "list").stderr


# Copying out

NOTE = ".msggan-download.json"


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def downloaded(folder: Path) -> dict[str, bytes]:
    """The files of a download, without the note that marks it as one."""
    files = contents(folder)
    del files[NOTE]
    return files


def files_of_run(workdir: Path, name: str) -> dict[str, bytes]:
    files = contents(workdir / "runs" / name)
    del files["run.lock"]
    return files


def test_a_download_is_the_whole_run(workdir: Path) -> None:
    result = msggan_aml(workdir, "download", "tiny", "--out", "copies/all", "-o", "json").json
    copied = downloaded(workdir / "copies" / "all")
    assert copied == files_of_run(workdir, "tiny")
    assert result == {
        "files": len(copied),
        "bytes": sum(map(len, copied.values())),
        "path": str(Path("copies/all")),
    }


def test_downloaded_weights_load_without_other_files(workdir: Path) -> None:
    from msggan import load_generator

    result = msggan_aml(workdir, "download", "tiny", "--out", "weights", "--weights", "-o", "json").json
    assert result["files"] == 2
    assert downloaded(workdir / "weights").keys() == WEIGHTS
    assert load_generator(workdir / "weights").depth == load_generator(workdir / "weights", best=True).depth == 2


def test_a_download_may_be_beside_the_run_under_a_similar_name(workdir: Path) -> None:
    copied = msggan_aml(workdir, "download", "tiny", "--out", "runs/tiny2", "--weights")
    assert copied.exit_code == 0, copied.stderr
    assert downloaded(workdir / "runs" / "tiny2").keys() == WEIGHTS


def test_a_run_named_like_its_images_is_not_downloaded_among_them(tmp_path: Path) -> None:
    images = contents(draw_tiny_images(tmp_path / "tiny"))
    submit = ["submit", "--data", "tiny", *SMALL, "-o", "json"]
    assert msggan_aml(tmp_path, *submit).exit_code == 0
    assert msggan_aml(tmp_path, "download", "tiny", "-o", "json").json["path"] == "tiny-run"
    assert contents(tmp_path / "tiny") == images
    assert downloaded(tmp_path / "tiny-run") == files_of_run(tmp_path, "tiny")
    assert msggan_aml(tmp_path, *submit).json["state"] == "completed"


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("weights", [[], ["--weights"]])
def test_a_folder_not_created_by_a_download_is_never_written_to(
    workdir: Path, weights: list[str], force: list[str]
) -> None:
    images = contents(workdir / "tiny")
    refused = msggan_aml(workdir, "download", "tiny", "--out", "tiny", *weights, *force, "-o", "json")
    assert refused.exit_code == 2
    assert refused.json["error"] == {
        "code": "usage",
        "message": "tiny: is not empty and was not created by download.",
        "hint": "Give a new or an empty folder.",
    }
    assert contents(workdir / "tiny") == images


def test_a_repeated_download_copies_what_has_changed(tmp_path: Path) -> None:
    draw_tiny_images(tmp_path / "tiny")
    (tmp_path / "copy").mkdir()
    for kimg in ("0.04", "0.08"):
        assert msggan_aml(tmp_path, "submit", "--data", "tiny", *WHAT, "--kimg", kimg).exit_code == 0
        for _ in range(2):
            copied = msggan_aml(tmp_path, "download", "tiny", "--out", "copy")
            assert copied.exit_code == 0, copied.stderr
            assert downloaded(tmp_path / "copy").items() >= files_of_run(tmp_path, "tiny").items()


def test_a_file_that_was_changed_in_a_download_is_overwritten_only_with_force(workdir: Path) -> None:
    args = ["download", "tiny", "--out", "changed", "--weights"]
    assert msggan_aml(workdir, *args).exit_code == 0
    weights = workdir / "changed" / "generator.safetensors"
    original = weights.read_bytes()
    weights.write_text("mine")
    refused = msggan_aml(workdir, *args)
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"Error: {Path('changed/generator.safetensors')}: has changed since it was downloaded.\n"
        "Use --force to overwrite, or give another folder.\n"
    )
    assert weights.read_text() == "mine"
    assert msggan_aml(workdir, *args, "--force").exit_code == 0
    assert weights.read_bytes() == original


def test_a_download_of_another_run_is_not_written_to(workdir: Path) -> None:
    assert msggan_aml(workdir, "download", "tiny", "--out", "first", "--weights").exit_code == 0
    shutil.copytree(workdir / "runs" / "tiny", workdir / "runs" / "second")
    refused = msggan_aml(workdir, "download", "second", "--out", "first", "--weights", "--force")
    shutil.rmtree(workdir / "runs" / "second")
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"Error: first: contains a download of another run: {workdir / 'runs' / 'tiny'}, ")


def test_a_download_that_is_trained_on_is_not_overwritten(workdir: Path) -> None:
    assert msggan_aml(workdir, "download", "tiny", "--out", "runs/on").exit_code == 0
    trained = msggan_aml(workdir, "submit", "--data", "tiny", "--name", "on", *WHAT, "--kimg", "0.08", "-o", "json")
    assert (trained.exit_code, trained.json["images_seen"]) == (0, 80), trained.stderr
    before = contents(workdir / "runs" / "on")
    refused = msggan_aml(workdir, "download", "tiny", "--out", "runs/on", "--force")
    assert (refused.exit_code, contents(workdir / "runs" / "on")) == (2, before)
    assert refused.stderr.startswith(
        f"Error: {Path('runs/on')}: is the folder of a run that was trained on this machine.\n"
    )
    shutil.rmtree(workdir / "runs" / "on")


def test_a_download_that_was_interrupted_is_completed_by_the_next(workdir: Path) -> None:
    args = shlex.join(command_line("msggan-aml", "download", "tiny", "--out", "cut"))
    largest = 16  # blocks of 512 bytes in a file: too few for a checkpoint's weights, enough for all before them
    cut = subprocess.run(
        ["/bin/sh", "-c", f"ulimit -f {largest}; exec {args}"],
        cwd=workdir,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (cut.returncode, cut.stderr.count("Error: ")) == (1, 1), cut.stderr
    assert downloaded(workdir / "cut").keys() == {"checkpoints/000000040.json"}
    assert msggan_aml(workdir, "download", "tiny", "--out", "cut").exit_code == 0
    assert downloaded(workdir / "cut") == files_of_run(workdir, "tiny")


def test_a_file_copied_when_the_download_was_killed_is_copied_again(tmp_path: Path) -> None:
    file = tmp_path / "copy" / "config.json"
    for version in ("first", "second"):  # of a file that is new, and of one that is downloaded again
        CopyFolder(file.parent, "run").prepare({file.name: version}, force=False)
        file.write_text(version)
        again = CopyFolder(file.parent, "run")
        assert not again.has(file.name, version)
        again.prepare({file.name: version}, force=False)
        with again.recording():
            again.add(file.name, version)
        assert CopyFolder(file.parent, "run").has(file.name, version)


def test_a_download_through_a_link_into_the_runs_own_folder_is_refused(workdir: Path) -> None:
    (workdir / "link").symlink_to(workdir / "runs" / "tiny")
    refused = msggan_aml(workdir, "download", "tiny", "--out", "link/copy")
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"Error: {Path('link/copy')}: is inside the run's own folder.\n")
    (workdir / "link").unlink()


def test_a_download_into_a_link_to_an_empty_folder_fills_that(workdir: Path) -> None:
    (workdir / "empty-home").mkdir()
    (workdir / "home").symlink_to("empty-home")
    (workdir / "nowhere").symlink_to("missing")
    assert msggan_aml(workdir, "download", "tiny", "--out", "home", "--weights").exit_code == 0
    assert downloaded(workdir / "empty-home").keys() == WEIGHTS
    refused = msggan_aml(workdir, "download", "tiny", "--out", "nowhere")
    assert (refused.exit_code, refused.stderr.splitlines()[0]) == (2, "Error: nowhere: is a broken symbolic link.")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["download", "tiny", "--out", "runs/tiny/copy"], "is inside the run's own folder"),
        (["download", "tiny", "--out", "tiny/00.png"], "is a file, not a folder"),
        (["download", "tiny", "--out", "tiny/00.png/copy"], "tiny/00.png/copy: cannot be written: Not a directory."),
        (["status", "tinny"], "Did you mean tiny?"),
        (["logs", "tiny", "--tail", "0"], "--tail 0: must be 1 or more."),
        (["logs", "tiny", "--tail", "x"], "--tail x: is not"),
        (["cancel", "tiny"], "tiny: is not running; its state is completed."),
        (["status", "runs"], "runs: contains no run."),
        (["list", "-o", "yaml"], "--output yaml"),
    ],
)
def test_impossible_requests_are_errors(workdir: Path, args: list[str], message: str) -> None:
    refused = msggan_aml(workdir, *args)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
