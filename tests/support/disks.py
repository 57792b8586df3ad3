"""A small file system in memory, which fills up like a real disk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MOUNT, UMOUNT = shutil.which("mount") or "/bin/mount", shutil.which("umount") or "/bin/umount"


@dataclass(frozen=True)
class Disk:
    """A small file system in memory."""

    path: Path

    def resize(self, *, kib: int) -> None:
        """Sets the total size in bytes, including what is in use."""
        subprocess.run([MOUNT, "-o", f"remount,size={kib}k", str(self.path)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of 2 MiB; the test is skipped where it cannot be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = [MOUNT, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted on this machine")
    yield Disk(path)
    subprocess.run([UMOUNT, "--lazy", str(path)], check=True)
