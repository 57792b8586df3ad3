"""Two trainers on one run folder never both write to it, whatever locks its mount has."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.kills import OPTIONS, everything
from support.programs import PROGRAMS, environment, fast_python, run_in, wait_for

from msggan.runs.checkpoint import newest_checkpoint
from msggan.runs.folder import RunFolder, read_state

LONG = [*OPTIONS, "--kimg", 1000, "--checkpoint-kimg", 0.06]

# What a mount without locks answers, and one whose locks no other machine sees. No such mount can be had in a test, so
# that Python answers in its place, at the system call.
ANSWERS = {
    "ENOSYS": "raise OSError(errno.ENOSYS, 'Function not implemented')",
    "ENOTSUP": "raise OSError(errno.ENOTSUP, 'Operation not supported')",
    "success": "return None",
}


def program_with(answer: str) -> list[str]:
    """The interpreter's arguments for a training whose every flock gets this answer."""
    flock = (
        f"import errno, fcntl, runpy\ndef flock(descriptor, operation):\n    {ANSWERS[answer]}\nfcntl.flock = flock\n"
    )
    return ["-c", f"{flock}runpy.run_module('msggan.train', run_name='__main__', alter_sys=True)"]


def start(tiny_images: Path, run_dir: Path, program: list[str], *more: object) -> subprocess.Popen[str]:
    args = [*program, "--data", tiny_images, *LONG, *more, "--run-dir", run_dir]
    return subprocess.Popen(
        [fast_python(), *map(str, args)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").glob("*.json"))


def owner(run_dir: Path) -> int:
    """The process that trains the run, which is not the one that was started."""
    state = read_state(RunFolder(run_dir))
    assert state is not None
    return state.process


def test_with_locks_the_second_trainer_is_refused(tiny_images: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with start(tiny_images, run_dir, PROGRAMS["msggan.train"]) as first:
        wait_for(lambda: checkpoints(run_dir), first)
        second = run_in(tmp_path, "msggan.train", "--data", tiny_images, *LONG, "--run-dir", run_dir)
        assert second.exit_code == 2
        assert f"process {owner(run_dir)} on" in second.stderr
        assert first.poll() is None
        first.kill()


@pytest.mark.parametrize(
    "answer",
    [pytest.param("ENOSYS", marks=pytest.mark.slow), pytest.param("ENOTSUP", marks=pytest.mark.slow), "success"],
)
def test_without_locks_the_newest_trainer_continues_and_the_older_one_stops(
    tiny_images: Path, tmp_path: Path, answer: str
) -> None:
    run_dir, program = tmp_path / "run", program_with(answer)
    with start(tiny_images, run_dir, program) as first:
        wait_for(lambda: checkpoints(run_dir), first)
        hanging = owner(run_dir)
        os.kill(hanging, signal.SIGSTOP)  # like a machine that hangs, and wakes up when another has its run
        with start(tiny_images, run_dir, program) as second:
            wait_for(lambda: owner(run_dir) != hanging, second)
            newest = owner(run_dir)
            os.kill(hanging, signal.SIGCONT)
            _, stderr = first.communicate()
            assert first.returncode == 1, stderr
            assert f"process {newest} on" in stderr
            assert "has taken over this run" in stderr
            assert "Traceback" not in stderr
            before = checkpoints(run_dir)
            wait_for(lambda: checkpoints(run_dir) > before, second)
            state = read_state(RunFolder(run_dir))
            assert state is not None
            assert (state.process, state.state) == (newest, "running")
            second.kill()
    # A dead owner, killed without a word, is in nobody's way.
    checkpoint, damaged = newest_checkpoint(run_dir / "checkpoints")
    assert checkpoint is not None
    assert damaged == []
    kimg = checkpoint.images_seen / 1000 + 0.1
    for each in (run_dir, tmp_path / "alone"):
        with start(tiny_images, each, program, "--kimg", f"{kimg:.3f}") as last:
            _, stderr = last.communicate()
            assert last.returncode == 0, stderr
    assert everything(run_dir)[0] == everything(tmp_path / "alone")[0]
