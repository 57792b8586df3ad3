"""The state of a run: whether it is running, and how it ended."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import environment, wait_for

from msggan.errors import RunFolderError
from msggan.runs.folder import (
    DIED,
    RunFolder,
    is_owned,
    owned,
    read_state,
    record_end,
    record_start,
    state_of,
    terminate_holder,
)

# A process that owns the run in its first argument until it is killed.
OWNER = """
import sys, time
from pathlib import Path
from msggan.runs.folder import RunFolder, owned, record_start
folder = RunFolder(Path(sys.argv[1]))
with owned(folder):
    record_start(folder, data="images", images_seen=8)
    while True:
        time.sleep(1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "one")


def test_before_a_run_has_started_there_is_no_state_and_no_folder(folder: RunFolder) -> None:
    assert state_of(folder) is None
    assert not is_owned(folder)
    assert not folder.path.exists()


def test_a_run_is_running_while_its_process_owns_it(folder: RunFolder) -> None:
    with owned(folder):
        started = record_start(folder, data="images", images_seen=0)
        assert state_of(folder) == started
        assert (started.state, started.process, started.machine) == ("running", os.getpid(), platform.node())
        assert started.data == os.path.abspath("images")


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled", "interrupted"])
def test_an_end_is_kept_with_its_reason_and_the_images_seen(folder: RunFolder, state: str) -> None:
    with owned(folder):
        started = record_start(folder, data="images", images_seen=0)
        ended = record_end(folder, started, state, images_seen=64, reason="because")
    assert state_of(folder) == ended
    assert (ended.state, ended.images_seen, ended.reason, ended.created) == (state, 64, "because", started.created)


def test_resuming_keeps_the_time_of_creation(folder: RunFolder) -> None:
    with owned(folder):
        first = record_start(folder, data="images", images_seen=0)
        folder.state.write_text(folder.state.read_text().replace(first.created, "2020-01-01T00:00:00Z"))
        assert record_start(folder, data="images", images_seen=8).created == "2020-01-01T00:00:00Z"


def test_a_run_has_one_owner(folder: RunFolder) -> None:
    with owned(folder):
        record_start(folder, data="images", images_seen=0)
        with pytest.raises(RunFolderError) as refused, owned(folder):
            pass
    assert f"process {os.getpid()} on {platform.node()}" in refused.value.message
    assert f"msggan-aml cancel {folder}" in refused.value.hint
    with owned(folder):
        pass


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_a_run_whose_process_was_killed_is_interrupted_and_has_no_owner(folder: RunFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], env=environment()) as process:
        try:
            wait_for(lambda: read_state(folder), process)
            assert is_owned(folder)
            assert state_of(folder) == read_state(folder)
        finally:
            process.send_signal(signal.SIGKILL)
    state = state_of(folder)
    assert state is not None
    assert (state.state, state.reason, state.images_seen) == ("interrupted", DIED, 8)
    assert state.ended is not None
    with owned(folder):
        assert read_state(folder) == state, "the next owner is not taken for the dead one"


@pytest.mark.skipif(os.name == "nt", reason="signals between processes are POSIX's")
@pytest.mark.parametrize("by", ["/proc", "fuser"])
def test_only_the_process_that_has_the_lock_is_terminated(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """fuser tells where there is no /proc, as on macOS."""
    if by == "fuser":
        if shutil.which("fuser") is None:
            pytest.skip("this machine has no fuser")
        monkeypatch.setattr(os.path, "isdir", lambda path: False)
    elif not Path("/proc/self/fd").is_dir():
        pytest.skip("this machine has no /proc")
    unrelated = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], env=environment()) as owner, unrelated:
        try:
            wait_for(lambda: read_state(folder), owner)
            assert not terminate_holder(folder.lock, unrelated.pid)
            assert terminate_holder(folder.lock, owner.pid)
            assert owner.wait() == -signal.SIGTERM
            assert not terminate_holder(folder.lock, owner.pid)
            assert unrelated.poll() is None
        finally:
            owner.kill()
            unrelated.kill()


def test_fields_of_a_newer_version_in_run_json_are_ignored(folder: RunFolder) -> None:
    with owned(folder):
        started = record_start(folder, data="images", images_seen=0)
        folder.state.write_text(json.dumps({**json.loads(folder.state.read_text()), "speed": 12}))
        assert read_state(folder) == started


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"state": "running"}', b"\xff"])
def test_an_unreadable_run_json_is_no_state(folder: RunFolder, content: bytes) -> None:
    folder.path.mkdir(parents=True)
    folder.state.write_bytes(content)
    assert state_of(folder) is None


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot be written"), owned(RunFolder(tmp_path / "file" / "one")):
        pass
