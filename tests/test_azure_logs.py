"""Does a log that grows come line by line, none lost and none twice, however it is cut and whatever breaks?"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestration.azure import logs
from orchestration.azure.history import build_details
from orchestration.azure.logs import BUILD_LOG, JOB_LOG, LogReader, log_in

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@dataclass
class Log:
    """A blob as it is served: what of it is there, and what becomes of the next requests.

    faults: an HTTP status, or "cut" for an answer of which half comes. ranges: what was asked for.
    """

    content: bytes = b""
    faults: list[int | str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log: Log

    def do_GET(self) -> None:
        asked = self.headers["x-ms-range"]
        self.log.ranges.append(asked)
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", asked).groups())  # type: ignore[union-attr]
        content, size = self.log.content[first : last + 1], len(self.log.content)
        fault = self.log.faults.pop(0) if self.log.faults else None
        if isinstance(fault, int):
            self.answer(fault, b"")
        elif not content:
            self.answer(416, b"", f"bytes */{size}")
        elif fault == "cut":
            self.answer(206, content, f"bytes {first}-{first + len(content) - 1}/{size}", sent=len(content) // 2)
            self.close_connection = True
        else:
            self.answer(206, content, f"bytes {first}-{first + len(content) - 1}/{size}")

    def answer(self, status: int, content: bytes, part: str = "", *, sent: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"1"')
        self.send_header("x-ms-blob-type", "AppendBlob")
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        self.wfile.write(content[:sent])

    def log_message(self, *words: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture(scope="module")
def log() -> Iterator[Log]:
    served = Log()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("LogHandler", (Handler,), {"log": served})) as server:
        served.url = f"http://127.0.0.1:{server.server_port}/container/log.txt?sig=x"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield served
        server.shutdown()
        thread.join()


def turn_to(log: Log, content: bytes = b"", faults: list[int | str] | None = None) -> None:
    log.content, log.faults, log.ranges = content, faults or [], []


LINES = st.lists(st.text(st.sampled_from("aä→🌷 "), max_size=5), max_size=8)


@settings(deadline=None, max_examples=15)
@given(
    lines=LINES,
    cuts=st.lists(st.integers(0, 80), max_size=4),
    most=st.integers(5, 40),
    faults=st.lists(st.sampled_from([503, 403, 404, "cut"]), max_size=4),
    with_an_end=st.booleans(),
)
@example(lines=["🌷"], cuts=[1, 2, 3], most=1, faults=["cut"], with_an_end=False)
def test_every_line_comes_once_and_in_order(
    log: Log, *, lines: list[str], cuts: list[int], most: int, faults: list[int | str], with_an_end: bool
) -> None:
    content = "\n".join(lines).encode() + (b"\n" if with_an_end and lines else b"")
    turn_to(log, faults=faults)
    reader, read = LogReader(wait_factor_s=0), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "MOST_BYTES", most)
        for cut in sorted(cuts):
            log.content = content[:cut]
            read += list(reader.lines(log.url, to_the_end=False))
            assert read == content[:cut].decode(errors="ignore").split("\n")[: len(read)]
        log.content, log.faults = content, []
        read += list(reader.lines(log.url, to_the_end=True))
    assert read == (content.decode().removesuffix("\n").split("\n") if content else [])
    assert reader.position == len(content)


def test_only_what_is_new_is_asked_for(log: Log) -> None:
    turn_to(log, b"one\ntw")
    reader = LogReader(wait_factor_s=0)
    assert list(reader.lines(log.url, to_the_end=False)) == ["one"]
    log.content += b"o\n"
    assert list(reader.lines(log.url, to_the_end=False)) == ["two"]
    assert [asked.partition("-")[0] for asked in log.ranges] == ["bytes=0", "bytes=6", "bytes=6", "bytes=8"]


def test_a_log_that_cannot_be_read_now_is_read_at_the_next_look(log: Log) -> None:
    turn_to(log, b"one\n", faults=[403])
    reader = LogReader(wait_factor_s=0)
    assert list(reader.lines(log.url, to_the_end=False)) == []
    assert list(reader.lines("http://127.0.0.1:9/container/log.txt", to_the_end=False)) == []
    assert list(reader.lines(log.url, to_the_end=False)) == ["one"]


def test_a_log_that_a_new_node_has_begun_again_is_read_from_its_beginning(log: Log) -> None:
    turn_to(log, b"one\ntwo\nthr")
    reader = LogReader(wait_factor_s=0)
    assert list(reader.lines(log.url, to_the_end=False)) == ["one", "two"]
    log.content = b"again\n"
    first = list(reader.lines(log.url, to_the_end=False))
    assert [*first, *reader.lines(log.url, to_the_end=True)] == ["again"]


def test_of_a_bar_that_was_drawn_over_comes_what_stood_there_last(log: Log) -> None:
    turn_to(log, b"10 %\r50 %\r100 %\r\nnext\xff\r")
    assert list(LogReader(wait_factor_s=0).lines(log.url, to_the_end=True)) == ["100 %", "next\ufffd"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["user_logs/std_log.txt", "system_logs/x.txt"], "user_logs/std_log.txt"),
        (["user_logs/std_log_process_1.txt", "user_logs/std_log_process_0.txt"], "user_logs/std_log_process_0.txt"),
        (["user_logs/std_log_process_01.txt", "azureml-logs/20_image_build_log.txt"], None),
        ([], None),
    ],
)
def test_the_log_of_a_job_is_its_first_process_s(names: list[str], found: str | None) -> None:
    details = build_details({"status": "Running", "logFiles": {name: f"https://{name}" for name in names}})
    assert log_in(details, JOB_LOG) == (f"https://{found}" if found else None)
    built = [name for name in names if "build" in name]
    assert log_in(details, BUILD_LOG) == (f"https://{built[0]}" if built else None)
