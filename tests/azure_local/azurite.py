"""Azurite, Microsoft's emulator of the blob service, as a process that stores blobs in memory."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .authority import Authority


HERE = Path(__file__).parent
PROGRAM = HERE / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"


def missing() -> str | None:
    """The reason why Azurite cannot run on this machine, or None."""
    if shutil.which("node") is None:
        return "Azurite needs Node.js (20 or newer), and there is no `node` here"
    if not PROGRAM.exists():
        return f"Azurite is not installed; run: npm ci --prefix {HERE}"
    return None


class Azurite:
    """The Azurite process; `accounts` maps each storage account to its base64 key."""

    def __init__(self, accounts: Mapping[str, str], authority: Authority, folder: Path) -> None:
        self.port = free_port()
        self._log = (folder / "azurite.log").open("wb")
        self._process = subprocess.Popen(
            [
                *("node", "--require", str(HERE / "ends_with_parent.cjs"), str(PROGRAM)),
                *("--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck", "--silent"),
                *("--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--oauth", "basic"),
                *("--cert", str(authority.server_certificate), "--key", str(authority.server_key)),
            ],
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "AZURITE_ACCOUNTS": ";".join(f"{name}:{key}" for name, key in accounts.items()),
            },
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def wait_until_ready(self, timeout_s: float = 30) -> None:
        """Waits until Azurite responds. Raises RuntimeError with its output if it exits or times out."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        self.close()
        raise RuntimeError(f"Azurite did not start: {Path(self._log.name).read_text(errors='replace')}")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
