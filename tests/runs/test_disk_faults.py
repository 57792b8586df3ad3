"""Nothing is lost if the disk is full, becomes read-only or disappears during training."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from azure_local import refusals
from support.disks import MOUNT, UMOUNT, Disk
from support.images import draw_tiny_images
from support.kills import OPTIONS, everything
from support.programs import command_line, environment, fast_python, run_in, wait_for

from msggan.runs.checkpoint import newest_checkpoint
from msggan.tracking.metrics_log import read_metrics

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other ways to limit a disk")

FEW_STEPS = [*OPTIONS, "--batch-size", 20]
WORDS = [*FEW_STEPS, "--kimg", 0.4, "--checkpoint-kimg", 0.1, "--sample-kimg", 0.2, "--metric-kimg", 0.2]
LONG = [*FEW_STEPS, "--kimg", 1000, "--checkpoint-kimg", 0.1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed, which all tests here share."""
    folder = tmp_path_factory.mktemp("whole")
    images = draw_tiny_images(folder / "tiny")
    assert run_in(folder, "msggan.train", "--data", images, *WORDS, "--run-dir", folder / "run").exit_code == 0
    return folder / "run"


def train(tiny_images: Path, run_dir: Path, *args: object, limit_kib: int | None = None) -> subprocess.Popen[str]:
    """limit_kib: no file may become larger than this."""
    python = sys.executable if limit_kib else fast_python()
    command = command_line("msggan.train", "--data", tiny_images, *args, "--run-dir", run_dir, python=python)
    limit = ["bash", "-c", f'ulimit -f {limit_kib}; exec "$@"', "bash"] if limit_kib else []
    return subprocess.Popen(
        [*limit, *command],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def resume(tiny_images: Path, run_dir: Path, *args: object) -> None:
    """Runs the same command again, to its end."""
    ended = run_in(run_dir.parent, "msggan.train", "--data", tiny_images, *args, "--run-dir", run_dir)
    assert ended.exit_code == 0, ended.stderr


def error_of(process: subprocess.Popen[str]) -> str:
    """The error that it printed when it ended with exit code 1."""
    _, stderr = process.communicate()
    assert process.returncode == 1, stderr
    assert "Traceback" not in stderr
    return stderr[stderr.index("Error: ") :]


def has_checkpoints(run_dir: Path, count: int) -> bool:
    return len(list((run_dir / "checkpoints").glob("*.json"))) >= count


def fill(disk: Path) -> Path:
    stuffing = disk / "stuffing"
    with stuffing.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return stuffing


def test_a_full_disk_ends_training_with_the_name_of_the_file_and_the_run_can_be_resumed(
    tiny_images: Path, small_disk: Disk
) -> None:
    run_dir = small_disk.path / "run"
    process = train(tiny_images, run_dir, *LONG)
    wait_for(lambda: has_checkpoints(run_dir, 2), process)
    stuffing = fill(small_disk.path)
    error = error_of(process)
    assert f"Error: {run_dir}" in error
    assert "No space left on device" in error
    assert "run the same command again" in error
    checkpoint, damaged = newest_checkpoint(run_dir / "checkpoints")
    assert checkpoint is not None
    assert damaged == []
    assert not list(run_dir.rglob("*.part"))

    stuffing.unlink()
    further = round(checkpoint.images_seen / 1000 + 0.2, 3)
    for folder in (run_dir, small_disk.path / "undisturbed"):
        resume(tiny_images, folder, *LONG, "--kimg", further)
    assert everything(run_dir)[:2] == everything(small_disk.path / "undisturbed")[:2]


@pytest.mark.slow
def test_a_limit_on_file_size_ends_training_with_the_name_of_the_file_and_the_run_can_be_resumed(
    tiny_images: Path, whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    largest = max(path.stat().st_size for path in (whole / "checkpoints").iterdir())
    # So that weights, samples and metrics fit and no checkpoint does, not even one from before the best weights.
    error = error_of(train(tiny_images, run_dir, *WORDS, limit_kib=3 * largest // 4 // 1024))
    assert f"Error: {run_dir / 'checkpoints'}" in error
    assert "File too large" in error
    assert newest_checkpoint(run_dir / "checkpoints") == (None, [])
    resume(tiny_images, run_dir, *WORDS)
    assert everything(run_dir) == everything(whole)


@pytest.mark.slow
def test_a_removed_run_folder_ends_training_and_is_not_created_again(tiny_images: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = train(tiny_images, run_dir, *LONG)
    wait_for(lambda: has_checkpoints(run_dir, 1), process)
    run_dir.rename(tmp_path / "elsewhere")
    assert f"Error: {run_dir}" in error_of(process)
    assert newest_checkpoint(tmp_path / "elsewhere" / "checkpoints")[0] is not None


@pytest.mark.slow
def test_a_disk_that_may_only_be_read_ends_training_and_what_exists_stays_good(
    tiny_images: Path, small_disk: Disk
) -> None:
    run_dir = small_disk.path / "run"
    process = train(tiny_images, run_dir, *LONG)
    wait_for(lambda: has_checkpoints(run_dir, 1), process)
    # Whoever holds a file open for writing, as the trainer its log, keeps the disk from this; a second mount does not.
    remount = [MOUNT, "--bind", str(small_disk.path), str(small_disk.path)]
    if subprocess.run(remount, capture_output=True, check=False).returncode:
        process.kill()
        pytest.skip("this machine lets nobody mount a folder again")
    try:
        subprocess.run([MOUNT, "-o", "remount,bind,ro", str(small_disk.path)], check=True)
        error = error_of(process)
        assert "Read-only file system" in error
        assert newest_checkpoint(run_dir / "checkpoints")[0] is not None
    finally:
        process.kill()
        subprocess.run([UMOUNT, "--lazy", str(small_disk.path)], check=True)


@pytest.mark.slow
def test_samples_that_cannot_be_written_are_reported_once_and_training_continues(
    tiny_images: Path, whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "samples").write_text("A file where the folder is to be.")
    ended = run_in(tmp_path, "msggan.train", "--data", tiny_images, *WORDS, "--run-dir", run_dir)
    assert ended.exit_code == 0
    assert ended.stderr.count("samples cannot be written") == 1
    (run_dir / "samples").unlink()
    (run_dir / "samples").mkdir()
    assert everything(run_dir)[:2] == everything(whole)[:2]


def test_a_permission_that_is_lost_ends_training_with_the_folders_name(tiny_images: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("permissions do not bind root")
    run_dir = tmp_path / "run"
    process = train(tiny_images, run_dir, *LONG)
    wait_for(lambda: has_checkpoints(run_dir, 1), process)
    run_dir.chmod(0o500)
    try:
        assert "Permission denied" in error_of(process)
    finally:
        run_dir.chmod(0o700)
    assert newest_checkpoint(run_dir / "checkpoints")[0] is not None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can refuse this to a process")
def test_a_run_on_a_mount_that_neither_appends_nor_renames_equals_one_on_a_disk(
    tiny_images: Path, whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    for kimg in ("0.2", "0.4"):
        train = command_line("msggan.train", "--data", tiny_images, *WORDS, "--kimg", kimg, "--run-dir", run_dir)
        refusing = [sys.executable, refusals.__file__, "append,rename"]
        ended = subprocess.run(
            [*refusing, *train], env=environment(), capture_output=True, encoding="utf-8", check=False
        )
        assert ended.returncode == 0, ended.stderr
    assert everything(run_dir)[:2] == everything(whole)[:2]
    assert (run_dir / "log.txt").read_text().count("\nDone: ") == 2
    assert {path.suffix for path in run_dir.rglob("*.*")} == {path.suffix for path in whole.rglob("*.*")}


def test_every_line_of_the_metrics_is_whole_again_after_a_fault(tiny_images: Path, whole: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(whole, tmp_path / "run"))
    metrics = run_dir / "metrics.jsonl"
    before = read_metrics(metrics)
    metrics.write_bytes(metrics.read_bytes() + b'{"images": 700, "d_lo')  # what a full disk leaves
    resume(tiny_images, run_dir, *WORDS)
    assert read_metrics(metrics) == before
    assert metrics.read_bytes().count(b"\n") == len(before)
