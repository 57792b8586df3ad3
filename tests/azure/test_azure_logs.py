"""Growing logs are read line by line without loss or repetition, and a job is followed to its end."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError
from azure_local import AzureLocal
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.azure_commands import Command

from msggan.errors import MsgganError
from orchestration.azure import following
from orchestration.azure.errors import azure_errors
from orchestration.azure.following import LogReader, Watch, build_log_url, log_names
from orchestration.azure.history import Details, build_details

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@dataclass
class Log:
    """A served blob: its content, and the faults of the next requests.

    faults: an HTTP status, or "cut" for a response of which half arrives. ranges: the requested ones.
    """

    content: bytes = b""
    faults: list[int | str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log: Log

    def do_GET(self) -> None:
        requested = self.headers["x-ms-range"]
        self.log.ranges.append(requested)
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", requested).groups())  # type: ignore[union-attr]
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

    def log_message(self, *args: Any) -> None:
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
def test_every_line_is_read_once_and_in_order(
    log: Log, *, lines: list[str], cuts: list[int], most: int, faults: list[int | str], with_an_end: bool
) -> None:
    content = "\n".join(lines).encode() + (b"\n" if with_an_end and lines else b"")
    turn_to(log, faults=faults)
    reader, read = LogReader(wait_factor_s=0), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "MAX_BYTES", most)
        for cut in sorted(cuts):
            log.content = content[:cut]
            read += list(reader.lines(log.url, final=False))
            assert read == content[:cut].decode(errors="ignore").split("\n")[: len(read)]
        log.content, log.faults = content, []
        read += list(reader.lines(log.url, final=True))
    assert read == (content.decode().removesuffix("\n").split("\n") if content else [])
    assert reader.position == len(content)


def test_only_new_bytes_are_requested(log: Log) -> None:
    turn_to(log, b"one\ntw")
    reader = LogReader(wait_factor_s=0)
    assert list(reader.lines(log.url, final=False)) == ["one"]
    log.content += b"o\n"
    assert list(reader.lines(log.url, final=False)) == ["two"]
    assert [requested.partition("-")[0] for requested in log.ranges] == ["bytes=0", "bytes=6", "bytes=6", "bytes=8"]


def test_a_log_that_cannot_be_read_now_is_read_at_the_next_poll(log: Log) -> None:
    turn_to(log, b"one\n", faults=[403])
    reader = LogReader(wait_factor_s=0)
    assert list(reader.lines(log.url, final=False)) == []
    assert list(reader.lines("http://127.0.0.1:9/container/log.txt", final=False)) == []
    assert list(reader.lines(log.url, final=False)) == ["one"]


def test_a_log_that_a_new_node_has_restarted_is_read_from_its_start(log: Log) -> None:
    turn_to(log, b"one\ntwo\nthr")
    reader = LogReader(wait_factor_s=0)
    assert list(reader.lines(log.url, final=False)) == ["one", "two"]
    log.content = b"again\n"
    first = list(reader.lines(log.url, final=False))
    assert [*first, *reader.lines(log.url, final=True)] == ["again"]


def test_a_redrawn_progress_bar_is_one_line(log: Log) -> None:
    turn_to(log, b"10 %\r50 %\r100 %\r\nnext\xff\r")
    assert list(LogReader(wait_factor_s=0).lines(log.url, final=True)) == ["100 %", "next\ufffd"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["std_log.txt", "std_log.txt.bak"], ["std_log.txt"]),
        (["std_log_process_1.txt", "std_log_process_0.txt"], ["std_log_process_0.txt"]),
        (["std_log_process_00.txt", "std_log_process_01.txt", "mpi_log.txt"], ["std_log_process_00.txt"]),
        (["std_log_0.txt", "std_log_1.txt"], ["std_log_0.txt"]),
        (["std_log_process_01.txt"], []),
        (
            ["retry_010/std_log_process_0.txt", "std_log_process_0.txt", "retry_002/std_log.txt", "retry_002/x.txt"],
            ["std_log_process_0.txt", "retry_002/std_log.txt", "retry_010/std_log_process_0.txt"],
        ),
    ],
)
def test_the_logs_of_a_job_are_those_of_the_first_process_in_the_order_of_the_attempts(
    names: list[str], found: list[str]
) -> None:
    others = ["system_logs/x.txt", "azureml-logs/20_image_build_log.txt"]
    logs = {name: f"https://{name}" for name in [*(f"user_logs/{name}" for name in names), *others]}
    details = build_details({"status": "Running", "logFiles": logs})
    assert log_names(details) == [f"user_logs/{name}" for name in found]
    assert build_log_url(details) == "https://azureml-logs/20_image_build_log.txt"


# --- Following a job --------------------------------------------------------------------------------------------------


class Job:
    """A job whose polls give the next of `answers` each, the last one again and again.

    An answer is the service's state, alone, with a warning or with the content of the log; or the HTTP status of an
    error. polls: how many there were.
    """

    def __init__(self, log: Log, *answers: str | int | tuple[str, bytes] | tuple[str, str]) -> None:
        turn_to(log)
        self.log, self.answers, self.polls = log, answers, 0

    def poll(self) -> Details:
        answer = self.answers[min(self.polls, len(self.answers) - 1)]
        self.polls += 1
        if isinstance(answer, int):
            refusal = HttpResponseError("Not now")
            refusal.status_code = answer
            with azure_errors("Polling"):
                raise refusal
        status, more = answer if isinstance(answer, tuple) else (answer, "")
        if isinstance(more, bytes):
            self.log.content = more
            return Details(status, logs={"user_logs/std_log.txt": self.log.url})
        return Details(status, warnings=(more,) if more else ())

    def watch(self, lines: list[str], *, tail: int | None = None) -> Watch:
        return Watch("job", self.poll, lines.append, wait_factor_s=0, tail=tail)


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PAUSES_S", (0,))
    monkeypatch.setattr(following, "LAST_LINES_S", 0)


@pytest.mark.usefixtures("_no_pauses")
def test_each_change_of_state_is_reported_once(log: Log) -> None:
    waiting = [("Queued", "no node is free")] * 3 + [("Queued", "no quota is left")] * 2
    at_work = ["Starting", "Preparing", "Running", "Running", "Queued", "Queued", "Running", "Running", "Finalizing"]
    reported: list[str] = []
    assert list(Job(log, *waiting, *at_work, "Completed").watch(reported).lines()) == []
    assert reported == [
        "Job job: waiting for a machine; no node is free",
        "Job job: waiting for a machine; no quota is left",
        "Job job: preparing the environment and the images",
        "Job job: running",
        "Job job: preempted (1 time in total). Azure restarts it, and training resumes from the last checkpoint.",
        "Job job: waiting for a machine",
        "Job job: running",
    ]


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_job_is_followed_through_a_busy_service_which_is_reported_once_each_time(log: Log, status: int) -> None:
    reported: list[str] = []
    answers = ["Running", status, status, status, "Running", status, ("Completed", b"done\n")]
    assert list(Job(log, *answers).watch(reported).lines()) == ["done"]
    running, *busy = reported
    assert running == "Job job: running"
    assert len(busy) == 2
    for line in busy:
        assert re.fullmatch(
            rf"Polling: Not now\. .*\b{status}\b.* Job job continues; retrying until Azure answers\.", line
        )


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409])
def test_a_job_that_may_not_be_read_is_not_followed(log: Log, status: int) -> None:
    with pytest.raises(MsgganError, match="Polling: Not now"):
        list(Job(log, "Running", status, "Completed").watch([]).lines())


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize("seen", [("Running", b"1\n"), "Running"])
def test_lines_that_reach_the_log_after_the_job_has_ended_are_shown(log: Log, seen: str | tuple[str, bytes]) -> None:
    job = Job(log, seen, ("Completed", b"1\n") if isinstance(seen, tuple) else "Completed", ("Completed", b"1\n2\n3"))
    assert list(job.watch([]).lines()) == ["1", "2", "3"]
    assert job.polls == 3


@pytest.mark.usefixtures("_no_pauses")
def test_a_log_that_cannot_be_read_at_the_end_is_read_again(log: Log) -> None:
    job = Job(log, ("Completed", b"1\n2"))
    log.faults = [403, 403, "cut"]
    watch = job.watch([])
    assert (list(watch.lines()), watch.unread) == (["1", "2"], {})
    log.faults = [403] * 10**3
    assert list(watch.lines()) == []
    assert list(watch.unread) == ["user_logs/std_log.txt"]  # it is given up


@pytest.mark.usefixtures("_no_pauses")
def test_a_log_that_cannot_be_read_while_the_job_runs_is_reported_once(log: Log) -> None:
    job = Job(log, *[("Running", b"1\n")] * 3, ("Completed", b"1\n2\n"))
    log.faults = [403, 403]
    reported: list[str] = []
    assert list(job.watch(reported).lines()) == ["1", "2"]
    assert reported == ["Job job: running", "Job job: user_logs/std_log.txt cannot be read now; retrying."]


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize("before", [[], ["Queued", "Running"]])
def test_the_tail_applies_to_the_first_lines_only(log: Log, before: list[str]) -> None:
    written = [b"1\n2\n3\n", b"1\n2\n3\n4\n5\n6\n7\n", b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10"]
    job = Job(log, *before, *(("Running", content) for content in written[:-1]), ("Completed", written[-1]))
    assert list(job.watch([], tail=2).lines()) == ["2", "3", "4", "5", "6", "7", "8", "9", "10"]


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK repeats requests without pauses."""
    monkeypatch.setattr("azure.core.pipeline.transport.HttpTransport.sleep", lambda self, duration: None)


def add_job(azure: AzureLocal, name: str, status: str = "Completed", **logs: bytes) -> None:
    azure.add_ended_job(name, status, tags={"msggan.run": "tiny"})
    for log, content in logs.items():
        azure.put_artifact(name, f"user_logs/{log}", content)


def test_the_logs_of_all_attempts_of_all_jobs_are_shown_in_order(azure: AzureLocal, msggan_aml: Command) -> None:
    first, other = "std_log_process_00.txt", "std_log_process_01.txt"
    retries = {f"retry_{number:03d}/std_log_process_0.txt": f"{number}\n".encode() for number in (10, 2, 1)}
    add_job(azure, "tiny", "Failed", **{first: b"a\nb", other: b"no\n"}, **retries)
    add_job(azure, "tiny-2", **{"std_log.txt": b"next\n"})
    assert msggan_aml("logs", "tiny").stdout.splitlines() == ["a", "b", "1", "2", "10", "next"]
    assert msggan_aml("logs", "tiny", "--tail", "2").stdout.splitlines() == ["10", "next"]


def test_a_preempted_job_is_followed_from_the_log_of_one_attempt_to_the_next(
    azure: AzureLocal, msggan_aml: Command
) -> None:
    add_job(azure, "tiny", "Running", **{"std_log.txt": b"1\n2"})
    retry = "user_logs/retry_001/std_log_process_0.txt"
    azure.fault("GET", "/details", nth=3, meanwhile=lambda: azure.put_artifact("tiny", retry, b"3\n"))
    azure.fault("GET", r"/std_log\.txt", nth=3, times=5, status=403)  # before its last line is read
    azure.fault("GET", "/details", nth=5, meanwhile=lambda: azure.put_artifact("tiny", retry, b"3\n4\n5"))
    azure.fault("GET", "/details", nth=7, meanwhile=lambda: azure.job("tiny").move_to("Completed"))
    ended = msggan_aml("logs", "tiny", "--follow")
    assert (ended.exit_code, ended.stdout.splitlines()) == (0, ["1", "2", "3", "4", "5"])


@pytest.mark.usefixtures("_no_waits")
@pytest.mark.parametrize(
    ("status", "exit_code", "follow"), [(401, 4, []), (403, 4, []), (429, 1, []), (503, 1, []), (403, 4, ["--follow"])]
)
def test_a_log_that_cannot_be_read_is_an_error_after_what_can_be_read(
    azure: AzureLocal, msggan_aml: Command, status: int, exit_code: int, follow: list[str]
) -> None:
    add_job(azure, "tiny", **{"std_log.txt": b"lost\n", "retry_001/std_log.txt": b"1\n"})
    add_job(azure, "tiny-2", "Running" if follow else "Completed", **{"std_log.txt": b"2\n"})
    azure.fault("GET", "dcid.tiny/user_logs/std_log.txt", times=10**6, status=status)
    azure.fault("GET", "tiny-2/details", nth=2, meanwhile=lambda: azure.job("tiny-2").move_to("Completed"))
    ended = msggan_aml("logs", "tiny", *follow)
    assert (ended.exit_code, ended.stdout.splitlines()) == (exit_code, ["1", "2"])
    assert "Reading the log of job tiny (user_logs/std_log.txt): " in ended.stderr
    assert "Request ID: " in ended.stderr
    assert msggan_aml("logs", "tiny", "-o", "json").json["error"]["message"].startswith("Reading the log of job tiny")


@pytest.mark.usefixtures("_no_waits")
def test_a_log_that_cannot_be_read_when_a_followed_job_ends_is_an_error(azure: AzureLocal, msggan_aml: Command) -> None:
    add_job(azure, "tiny", "Running", **{"std_log.txt": b"1\n"})
    azure.fault("GET", r"/std_log\.txt", nth=3, times=10**6, status=403)
    azure.fault("GET", "/details", nth=4, meanwhile=lambda: azure.job("tiny").move_to("Completed"))
    ended = msggan_aml("logs", "tiny", "--follow")
    assert (ended.exit_code, ended.stdout.splitlines()) == (4, ["1"])
    assert "Reading the log of job tiny (user_logs/std_log.txt): " in ended.stderr


@pytest.mark.usefixtures("_no_waits")
def test_a_log_of_many_mebibytes_is_read_to_its_end(azure: AzureLocal, msggan_aml: Command) -> None:
    lines = [f"{number:099d}" for number in range(100_000)]
    add_job(azure, "tiny", **{"std_log.txt": "\n".join(lines).encode()})
    azure.fault("GET", r"/std_log\.txt", nth=2, times=2, status=429)
    assert msggan_aml("logs", "tiny").stdout.splitlines() == lines
