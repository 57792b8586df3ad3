"""A program stops at a signal, even if the exception that it raises is swallowed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from support.programs import environment

PROGRAM = """
import os, sys
import click
from msggan.commands.program import raise_pending_signal, run_program

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        for _ in range(1000):
            pass

@click.command()
def program():
    gone = Finalized()
    raise_pending_signal()
    del gone
    print("It went on.")
    raise_pending_signal()
    print("It went on for ever.")

sys.exit(run_program(program, name="program", argv=[]))
"""


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 6)])
def test_a_signal_that_is_lost_while_an_object_is_finalized_is_raised(number: signal.Signals, exit_code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(number))],
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (exit_code, "It went on.\n"), ended.stderr
    assert "Exception ignored" in ended.stderr
