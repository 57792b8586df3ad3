"""Tests of the interpreter that tests start programs with: it behaves like Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.programs import environment, fast_python

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="processes are started as everywhere")

PRINT_ALL = "import os, sys; print(sys.argv, sys.path[0], os.getcwd(), os.environ['GIVEN'], sys.stdin.read())"


def test_code_has_its_arguments_folder_variables_and_streams(tmp_path: Path) -> None:
    by_each = [
        subprocess.run(
            [python, "-c", f"{PRINT_ALL}; print('output', file=sys.stderr); sys.exit(3)", "one", "--two"],
            cwd=tmp_path,
            env=environment(GIVEN="value"),
            input="typed",
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        for python in (sys.executable, fast_python())
    ]
    assert fast_python() != sys.executable
    plain, fast = [(ended.returncode, ended.stdout, ended.stderr) for ended in by_each]
    assert fast == plain


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit('Why it ended.')", 1),
        ("raise ValueError('wrong')", 1),
        ("import atexit; atexit.register(print, 'last')", 0),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()", 0),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
)
def test_it_exits_as_python_does(code: str, status: int) -> None:
    def end_with(python: str) -> tuple[int, str, str]:
        ended = subprocess.run(
            [python, "-c", code], env=environment(), capture_output=True, encoding="utf-8", check=False
        )
        return ended.returncode, ended.stdout, ended.stderr.strip().rpartition("\n")[2]

    assert end_with(fast_python()) == end_with(sys.executable)
    assert end_with(fast_python())[0] == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_program(number: int) -> None:
    code = "import signal, time\nsignal.signal({n}, lambda *_: exit(7))\nprint('ready', flush=True)\ntime.sleep(60)"
    with subprocess.Popen(
        [fast_python(), "-c", code.format(n=int(number))], env=environment(), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait() == 7


def test_a_program_ends_with_its_killed_client() -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([fast_python(), "-c", code], env=environment(), stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        program = int(client.stdout.readline())
        client.kill()
    while Path(f"/proc/{program}").exists():
        time.sleep(0.01)


def test_its_child_processes_are_forked_too() -> None:
    code = "import sys; print(sys.executable)"
    result = subprocess.check_output([fast_python(), "-c", code], env=environment(), encoding="utf-8")
    assert result.strip() == fast_python()
