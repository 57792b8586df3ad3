"""Starts a program as a fork of the server in fork_server.py: `fork_client.py SOCKET …` with a Python's arguments.

It is started once per program, and imports little.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys

WORKER = ["-u", "-c"]  # the arguments of xdist's workers, which run tests like a real interpreter: with real children
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)
FORKED_MODULES = ("msggan.", "orchestration.", "ipykernel_launcher")


def run(address: str, args: list[str]) -> None:
    """Runs a program in a fork of the server, or in this interpreter, and exits with the program's status."""
    if not can_be_forked(args):
        os.execv(sys.executable, [sys.executable, *args])  # noqa: S606 - the arguments of a Python interpreter
    ignored = [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN]
    request = {"args": args, "cwd": os.getcwd(), "environ": dict(os.environ), "ignored": ignored}
    request["is_worker"] = args[:2] == WORKER
    received: list[int] = []
    for number in set(PASSED_ON) - set(ignored):
        signal.signal(number, lambda number, frame: received.append(number))
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        body = json.dumps(request).encode()
        socket.send_fds(server, [len(body).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(body)
        replies = server.makefile()
        child = int(replies.readline())
        for number in set(PASSED_ON) - set(ignored):
            signal.signal(number, lambda number, frame: _send(child, number))
        for number in received:
            _send(child, number)
        status = int(replies.readline())
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


def _send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def can_be_forked(args: list[str]) -> bool:
    """Whether a fork of the server behaves the same: our own programs, and code; with one thread, as the server has."""
    ours = args[:1] == ["-c"] or args[:2] == WORKER or (args[:1] == ["-m"] and args[1].startswith(FORKED_MODULES))
    return ours and os.environ.get("OMP_NUM_THREADS") == "1"


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
