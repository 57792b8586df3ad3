"""Runs a shell or a command against a local Azure: `python -m azure_local [COMMAND …]`.

In it the Azure SDK and MLflow connect to this machine only. Everything is removed when the shell or command exits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click

from . import azurite
from .local import AzureLocal

WELCOME = """\
This shell has its own Azure ML on this machine. Jobs run here, as processes. Everything is removed at `exit`.
Workspace {workspace} in resource group {group}: see `env | grep AZURE`.
"""


def main(command: list[str]) -> int:
    """Returns the exit code of the command or shell; 1 if Azurite cannot run."""
    reason = azurite.missing()
    if reason:
        click.echo(reason, err=True)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with AzureLocal() as azure:
        if not command:
            click.echo(WELCOME.format(workspace=azure.cloud.workspace, group=azure.cloud.group), err=True)
        code = run(command or [os.environ.get("SHELL", "/bin/sh")], azure)
        for complaint in azure.complaints():
            click.echo(f"The local Azure was asked for {complaint}", err=True)
        return code


def run(command: list[str], azure: AzureLocal) -> int:
    """Runs the command; Ctrl-C is handled by the command only."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    process = subprocess.Popen(command, env={**os.environ, **azure.variables, "PATH": path})
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
        if process.poll() is None:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
