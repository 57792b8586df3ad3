"""Two trainers on one run folder never both write to it, whatever locks its mount has."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.kills import OPTIONS, everything
from support.programs import REPOSITORY, command_line, environment, run_in, wait_for

from msggan.runs.checkpoint import newest_checkpoint
from msggan.runs.folder import RunFolder, read_state

LONG = [*OPTIONS, "--kimg", 1000, "--checkpoint-kimg", 0.1]

# What a mount without locks answers, and one whose locks no other machine sees. No such mount can be had in a test, so
# that Python answers in its place, at the system call, in the processes that find this on their path.
ANSWERS = {
    "ENOSYS": "raise OSError(errno.ENOSYS, 'Function not implemented')",
    "ENOTSUP": "raise OSError(errno.ENOTSUP, 'Operation not supported')",
    "success": "return None",
}


def path_with(answer: str, folder: Path) -> str:
    """PYTHONPATH for a process whose every flock gets this answer."""
    folder.mkdir()
    code = f"import errno, fcntl\ndef flock(descriptor, operation):\n    {ANSWERS[answer]}\nfcntl.flock = flock\n"
    (folder / "sitecustomize.py").write_text(code)
    return os.pathsep.join([str(folder), str(REPOSITORY)])


def start(tiny_images: Path, run_dir: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command_line("msggan.train", "--data", tiny_images, *LONG, "--run-dir", run_dir),
        env={**environment(), **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").glob("*.json"))


def owner(run_dir: Path) -> int | None:
    """The process that trains the run."""
    state = read_state(RunFolder(run_dir))
    return state and state.process


def test_with_locks_the_second_trainer_is_refused(tiny_images: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with start(tiny_images, run_dir) as first:
        wait_for(lambda: checkpoints(run_dir), first)
        second = run_in(tmp_path, "msggan.train", "--data", tiny_images, *LONG, "--run-dir", run_dir)
        assert second.exit_code == 2
        assert f"process {first.pid} on" in second.stderr
        assert first.poll() is None
        first.kill()


@pytest.mark.parametrize(
    "answer",
    [pytest.param("ENOSYS", marks=pytest.mark.slow), pytest.param("ENOTSUP", marks=pytest.mark.slow), "success"],
)
def test_without_locks_the_newest_trainer_continues_and_the_older_one_stops(
    tiny_images: Path, tmp_path: Path, answer: str
) -> None:
    run_dir, path = tmp_path / "run", path_with(answer, tmp_path / "answers")
    with start(tiny_images, run_dir, PYTHONPATH=path) as first:
        wait_for(lambda: checkpoints(run_dir), first)
        first.send_signal(signal.SIGSTOP)  # like a machine that hangs, and wakes up when another has its run
        with start(tiny_images, run_dir, PYTHONPATH=path) as second:
            wait_for(lambda: owner(run_dir) == second.pid, second)
            first.send_signal(signal.SIGCONT)
            _, stderr = first.communicate()
            assert first.returncode == 1, stderr
            assert f"process {second.pid} on" in stderr
            assert "has taken over this run" in stderr
            assert "Traceback" not in stderr
            before = checkpoints(run_dir)
            wait_for(lambda: checkpoints(run_dir) > before, second)
            state = read_state(RunFolder(run_dir))
            assert state is not None
            assert (state.process, state.state) == (second.pid, "running")
            second.kill()
    # A dead owner, killed without a word, is in nobody's way.
    checkpoint, damaged = newest_checkpoint(run_dir / "checkpoints")
    assert checkpoint is not None
    assert damaged == []
    kimg = checkpoint.images_seen / 1000 + 0.1
    args = ["--data", tiny_images, *LONG, "--kimg", f"{kimg:.3f}"]
    last = run_in(tmp_path, "msggan.train", *args, "--run-dir", run_dir, PYTHONPATH=path)
    assert last.exit_code == 0, last.stderr
    assert run_in(tmp_path, "msggan.train", *args, "--run-dir", tmp_path / "alone").exit_code == 0
    assert everything(run_dir)[0] == everything(tmp_path / "alone")[0]
