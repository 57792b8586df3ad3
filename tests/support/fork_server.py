"""A Python interpreter that starts quickly: a server imports the large packages, and each program is a fork of it.

Importing PyTorch, MLflow and the Azure SDK takes seconds, training a test's network a fraction of one. The server
imports our own packages too, for programs that would find this checkout's; others import theirs as usual.

The program runs in a different process from the one that was started: `ForkServer.python` waits for it, forwards
signals and exits with its status; if it is killed, the server kills the program. Only SIGSTOP does not reach it, nor
what the starting process inherits, such as limits: tests of these start `sys.executable` instead.

`fork_server.py SOCKET` is the server, which exits when its stdin is closed; fork_client.py starts a program.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

TORCH = ("torch", "torchvision", "scipy.linalg", "safetensors.torch", "PIL.Image", "numpy", "click", "filelock")
SERVICES = (
    *("mlflow", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store", "sqlalchemy"),
    *("azure.ai.ml", "azure.identity", "azure.storage.blob"),
)
PYTEST = ("pytest", "hypothesis", "xdist.remote", "nbclient", "onnx", "pillow_heif")
SWEEPS = ("optuna", "matplotlib.figure", "scipy.stats", "jinja2")
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)
OURS = (
    "orchestration.commands.main",
    "orchestration.commands.submit",
    "orchestration.commands.runs",
    "orchestration.local.target",
    "msggan.trainer",
)
REPOSITORY = Path(__file__).resolve().parents[2]


class ForkServer:
    """The server, started as a process. `python`: an executable that takes the arguments of a Python interpreter.

    The program `msggan-aml` is beside it, as it is beside the interpreter of an environment.
    """

    def __init__(self, folder: Path) -> None:
        """folder: for its socket and the executable; its path must be short."""
        address = folder / "socket"
        self.python = str(folder / "python")
        client = Path(__file__).with_name("fork_client.py")
        program = '-c "from orchestration.commands.main import main; main()" '
        for name, first in (("python", ""), ("msggan-aml", program)):
            path = folder / name
            path.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {client} {address} {first}"$@"\n')
            path.chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(address)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it is listening

    def close(self) -> None:
        self._process.communicate()


# The server


def serve(address: str) -> dict[str, Any]:
    """Forks for each request. Returns only in the child, with the request."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("listening", flush=True)  # noqa: T201
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the tests
    clients: dict[int, socket.socket] = {}  # by the process id of each program
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ, ("end", 0))
    selector.register(listener, selectors.EVENT_READ, ("request", 0))
    while True:
        for key, _ in selector.select():
            event, child = key.data
            if event == "end":
                for living in clients:
                    os.kill(living, signal.SIGKILL)
                os._exit(0)
            if event == "request":
                client, _ = listener.accept()
                request = fork_for(client, selector, clients)
                if request is not None:
                    selector.close()
                    listener.close()
                    return request
            elif event == "gone":  # the client was killed
                selector.unregister(key.fileobj)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            else:
                selector.unregister(key.fd)
                os.close(key.fd)
                _reply_end(child, clients.pop(child), selector)


def fork_for(
    client: socket.socket, selector: selectors.BaseSelector, clients: dict[int, socket.socket]
) -> dict[str, Any] | None:
    """Returns the request in the child, None in the server."""
    request, streams = receive(client)
    if request is None:
        client.close()
        return None
    preload(request)
    gc.freeze()  # garbage collection in the child would copy the server's memory
    child = os.fork()
    if child == 0:
        for other in (*clients.values(), client):
            other.close()
        become(request, streams)
        return request
    for stream in streams:
        os.close(stream)
    clients[child] = client
    selector.register(os.pidfd_open(child), selectors.EVENT_READ, ("ended", child))
    selector.register(client, selectors.EVENT_READ, ("gone", child))
    with contextlib.suppress(OSError):
        client.sendall(f"{child}\n".encode())
    return None


def _reply_end(child: int, client: socket.socket, selector: selectors.BaseSelector) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(KeyError):
        selector.unregister(client)
    with contextlib.suppress(OSError):
        client.sendall(f"{status}\n".encode())
    client.close()


def receive(client: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    header, streams, _, _ = socket.recv_fds(client, 8, 3)
    size, body = int.from_bytes(header, "big"), b""
    while len(body) < size:
        part = client.recv(size - len(body))
        if not part:
            return None, []
        body += part
    return (json.loads(body) if body else None), streams


def finds_ours(request: dict[str, Any]) -> bool:
    """Whether a program would import this checkout's packages. A worker's have its own `sys.executable`."""
    path = request["environ"].get("PYTHONPATH", "").split(os.pathsep)[0]
    return path == str(REPOSITORY) and not Path(request["cwd"], "msggan").exists() and not request["is_worker"]


def preload(request: dict[str, Any]) -> None:
    """Imports the packages that the program probably needs, once."""
    environ = request["environ"]
    worker = request["is_worker"]
    services = worker or environ.get("MSGGAN_TRACKING_URI", "") != "none" or "AZUREML_ARM_WORKSPACE_NAME" in environ
    for name in (*TORCH, *(SERVICES if services else ()), *(PYTEST + SWEEPS if worker else ())):
        if name not in sys.modules:
            importlib.import_module(name)
    import torch

    torch.optim.SGD([torch.zeros(1)]).zero_grad()  # which imports more
    if finds_ours(request) and OURS[0] not in sys.modules:
        real, sys.executable = sys.executable, FORKING  # it is the default of the targets' `python`
        sys.path.insert(0, str(REPOSITORY))
        for name in OURS:
            importlib.import_module(name)
        sys.executable = real
        del sys.path[0]
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False  # at its end each program would remove PyTorch's operators one by one


def become(request: dict[str, Any], streams: list[int]) -> None:
    """Gives this fork the client's streams, folder, environment variables, signals and path."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 - as long as the process
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1 if os.isatty(1) else -1)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, errors="backslashreplace")  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else signal.SIG_DFL)
    if signal.SIGINT not in request["ignored"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not finds_ours(request):
        for name in [name for name in sys.modules if name.partition(".")[0] in ("msggan", "orchestration")]:
            del sys.modules[name]
    else:
        importlib.reload(sys.modules["msggan"])  # which sets environment variables
    first = "" if request["args"][0] == "-c" else request["cwd"]
    sys.path[:0] = [first, *filter(None, request["environ"].get("PYTHONPATH", "").split(os.pathsep))]


def execute(args: list[str]) -> None:
    """Executes the arguments as an interpreter does, and exits without tearing down the imported modules."""
    status = 0
    try:
        _run_main(args)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if ended.code is not None and not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)  # noqa: T201
    except BaseException:
        status = 1
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status & 0xFF)


def _run_main(args: list[str]) -> None:
    if args[0] == "-c":
        sys.argv = ["-c", *args[2:]]
        exec(compile(args[1], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - as `python -c`
    else:
        sys.argv = [args[1], *args[2:]]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    FORKING = str(Path(sys.argv[1]).with_name("python"))
    asked = serve(sys.argv[1])
    if asked["is_worker"]:
        del asked["args"][0]
    else:
        sys.executable = FORKING  # its child processes are forked too
    execute(asked["args"])
