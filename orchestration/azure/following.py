"""Follow a job until it ends: its changes of state, and each line of its log once.

No line is lost and none is repeated: lines are cut from the bytes of one log, whose position is kept through refused
requests, cut connections and expired addresses. The SDK's own `jobs.stream` reads the whole log again at each poll, up
to a minute apart, and prints nothing of a job that has ended.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, repeat

from azure.core.exceptions import AzureError, HttpResponseError
from azure.storage.blob import BlobClient

from msggan.commands.program import Terminated, raise_pending_signal, stopped
from msggan.errors import MsgganError, UsageError
from orchestration.azure.blobs import retry_policy
from orchestration.azure.client import Client
from orchestration.azure.errors import translate_error
from orchestration.azure.history import Details, RunJobs, read_details, state_of
from orchestration.errors import AzureServiceError, UnreachableError

# Of the first process. A node that is lost may end a log: the next attempt then writes below retry_001, retry_002, …
JOB_LOG = re.compile(r"user_logs/(?:retry_(?P<retry>\d+)/)?std_log(?:_process)?(?:_0+)?\.txt")
BUILD_LOG = re.compile(r"azureml-logs/\d*_?image_build_log\.txt")
RANGE_NOT_SATISFIABLE = 416
MAX_BYTES = 4 << 20  # per request

# Between two polls; the last one repeats. A run that has just started, or fails at once, is polled more often.
PAUSES_S = (0.5, 0.5, 1.0, 1.0, 2.0)
MAX_LAST_READS = 5
MAX_POLLS_OF_CANCELLED = 60
LAST_LINES_S = 0.5  # after a job has ended, the service may still be writing its last lines to the log
PROGRESS = {
    "queued": "waiting for a machine",
    "preparing": "preparing the environment and the images",
    "running": "running",
}


# --- A log ------------------------------------------------------------------------------------------------------------


def log_names(details: Details) -> list[str]:
    """The names of the job's logs, one for each attempt that has begun, in order."""
    attempts: dict[int, str] = {}
    for name in sorted(details.logs):
        if found := JOB_LOG.fullmatch(name):
            attempts.setdefault(int(found["retry"] or 0), name)
    return [attempts[number] for number in sorted(attempts)]


def build_log_url(details: Details) -> str | None:
    """The URL of the log of the image's build, None if there is none."""
    return next((url for name, url in sorted(details.logs.items()) if BUILD_LOG.fullmatch(name)), None)


@dataclass
class LogReader:
    """Reads a log as it grows. error: why the last read was refused or cut, so that there may be more."""

    wait_factor_s: float
    position: int = 0
    error: AzureError | None = None
    _rest: bytes = field(default=b"", repr=False)

    def lines(self, url: str, *, final: bool) -> Iterator[str]:
        """The lines added since the last read; final: also a last one without a newline.

        A log that cannot be read now has no new lines; the next read finds them.
        """
        while content := self._read(url):
            self.position += len(content)
            *lines, self._rest = (self._rest + content).split(b"\n")
            yield from map(_decode_line, lines)
        if final and self._rest and self.error is None:
            rest, self._rest = self._rest, b""
            yield _decode_line(rest)

    def _read(self, url: str) -> bytes:
        self.error = None
        try:
            with BlobClient.from_blob_url(url, retry_policy=retry_policy(self.wait_factor_s)) as blob:
                return blob.download_blob(offset=self.position, length=MAX_BYTES).readall()
        except AzureError as error:
            if not isinstance(error, HttpResponseError) or error.status_code != RANGE_NOT_SATISFIABLE:
                self.error = error
                return b""
            # The end of the log; or the log of a restarted job has replaced that of its first node, and is shorter.
            headers: Mapping[str, str] = getattr(error.response, "headers", {})
            size = headers.get("Content-Range", "").rpartition("/")[2]
            if size.isdigit() and int(size) < self.position:
                self.position, self._rest = 0, b""
            return b""


@dataclass
class JobLog:
    """Reads the logs of all attempts of a job, in order and each line once."""

    wait_factor_s: float
    _readers: dict[str, LogReader] = field(default_factory=dict)
    _complete: set[str] = field(default_factory=set)

    @property
    def unread(self) -> dict[str, AzureError]:
        """Why logs could not be read, by their names."""
        return {name: reader.error for name, reader in self._readers.items() if reader.error is not None}

    def lines(self, details: Details, *, final: bool, skip: bool = False) -> Iterator[str]:
        """The lines added since the last read. A log that cannot be read delays the later ones, unless `skip`."""
        names = log_names(details)
        for name in names:
            if name in self._complete:
                continue
            reader = self._readers.setdefault(name, LogReader(self.wait_factor_s))
            yield from reader.lines(details.logs[name], final=final or name != names[-1])
            if reader.error is None and name != names[-1]:
                self._complete.add(name)
            elif reader.error is not None and not skip:
                return


def unread_error(client: Client, job: str, unread: Mapping[str, AzureError]) -> MsgganError:
    """The error that names the logs of a job that could not be read. unread: at least one, as in `JobLog`."""
    operation = f"Reading the log of job {job} ({', '.join(unread)})"
    error = translate_error(next(iter(unread.values())), operation, client.workspace, client.identity)
    studio = f"The log is also in Azure ML Studio: job {job}, Outputs + logs."
    error.hint = "\n".join(filter(None, [error.hint, studio]))
    return error


def _decode_line(content: bytes) -> str:
    """A line as text. Of a progress bar that was redrawn, its last state."""
    return content.decode("utf-8", errors="replace").rstrip("\r").rpartition("\r")[2]


# --- A job ------------------------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """Follows one job. poll(): its details now. report(line): prints a change of state. `details`: the newest ones.

    tail: of the lines at the first poll, only the last ones, this many; None: all. unread: at the end, why logs could
    not be read, by their names.
    """

    job: str
    poll: Callable[[], Details]
    report: Callable[[str], None]
    wait_factor_s: float
    with_build_log: bool = False
    tail: int | None = None
    details: Details = field(default_factory=lambda: Details(""))
    unread: Mapping[str, AzureError] = field(default_factory=dict)
    _is_unreachable: bool = False
    _preemptions: int = 0

    def lines(self) -> Iterator[str]:
        """Each line of the job's log, until the job ends. A cut connection or a busy service is waited for."""
        log, build_log = JobLog(self.wait_factor_s), LogReader(self.wait_factor_s)
        tail, is_first = self.tail, True
        for details in self.updates():
            if self.with_build_log and (url := build_log_url(details)):
                for line in build_log.lines(url, final=details.has_ended):
                    self.report(line)
            if details.has_ended and not is_first:
                time.sleep(LAST_LINES_S)
                details = self._poll() or details  # noqa: PLW2901 - the log may have appeared in the meantime
            if log_names(details):
                new = self._last_lines(log, details) if details.has_ended else log.lines(details, final=False)
                yield from new if tail is None else deque(new, maxlen=tail)
                tail = None
                self._report_unread(log.unread)
            is_first = False

    def _last_lines(self, log: JobLog, details: Details) -> Iterator[str]:
        """The rest of the log of a job that has ended. No poll follows, so a read that fails is repeated here."""
        for number in range(1, MAX_LAST_READS + 1):
            yield from log.lines(details, final=True, skip=number == MAX_LAST_READS)
            if not log.unread:
                break
            time.sleep(LAST_LINES_S)
            details = self._poll() or details  # with addresses that are signed anew

    def _report_unread(self, unread: Mapping[str, AzureError]) -> None:
        """Reports once that a log cannot be read, until it can be read again."""
        if unread and not self.unread and not self.details.has_ended:
            self.report(f"Job {self.job}: {', '.join(unread)} cannot be read now; retrying.")
        self.unread = unread

    def updates(self) -> Iterator[Details]:
        """The job's details at each poll, until it has ended. Reports what changes."""
        before: tuple[str, ...] = ()
        for pause in chain(PAUSES_S, repeat(PAUSES_S[-1])):
            raise_pending_signal()
            details = self._poll()
            if details is not None:
                self.details = details
                before = self._report_change(details, before)
                yield details
                if details.has_ended:
                    return
            time.sleep(pause)

    def _poll(self) -> Details | None:
        """The job's details, None if they cannot be read now."""
        try:
            details = self.poll()
        except AzureServiceError as error:
            if not is_transient(error):
                raise
            if not self._is_unreachable:
                self.report(f"{error.message} Job {self.job} continues; retrying until Azure answers.")
            self._is_unreachable = True
            return None
        self._is_unreachable = False
        return details

    def _report_change(self, details: Details, before: tuple[str, ...]) -> tuple[str, ...]:
        """Reports a new state, and why the job waits, once."""
        state = state_of(details.status)
        reasons = details.warnings if state == "queued" else ()
        if before[:1] == ("running",) and state in ("queued", "preparing"):
            self._preemptions += 1
            times = f"{self._preemptions} time{'s' if self._preemptions > 1 else ''}"
            self.report(
                f"Job {self.job}: preempted ({times} in total). "
                "Azure restarts it, and training resumes from the last checkpoint."
            )
        if (state, *reasons) != before and state in PROGRESS:
            self.report(f"Job {self.job}: {PROGRESS[state]}" + "".join(f"; {reason}" for reason in reasons))
        return (state, *reasons)


def watch(client: Client, job: str, *, with_build_log: bool = False, tail: int | None = None) -> Watch:
    """Follows a job of the client's workspace."""
    poll, report = partial(read_details, client, job), client.reporter.info
    return Watch(job, poll, report, client.wait_factor_s, with_build_log=with_build_log, tail=tail)


@contextmanager
def detaching(run: RunJobs, follow_again: str) -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM detach from the run, which continues. follow_again: how to follow it, for the hint."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        message = f"Detached: {run.run} continues as job {run.jobs[-1].name}."
        raise stopped(type(stop), message, f"{follow_again}. Stop it: msggan-aml cancel {run.run}.") from None
    except MsgganError as error:
        error.hint = "\n".join(filter(None, [error.hint, f"{run.run} continues. {follow_again}."]))
        raise


def read_log(client: Client, job: str) -> Iterator[str]:
    """The lines of a job's log up to now. Raises MsgganError, after the last line, for what cannot be read."""
    log = JobLog(client.wait_factor_s)
    for is_last in (False, True):
        details = read_details(client, job)  # with addresses that are signed anew
        yield from log.lines(details, final=True, skip=is_last)
        if not log.unread:
            return
    raise unread_error(client, job, log.unread)


def not_running(name: str, state: str) -> UsageError:
    """The error if a run or a sweep cannot be cancelled."""
    return UsageError([f"{name}: is not running; its state is {state}."])


def cancel(client: Client, job: str) -> None:
    """Cancels a job and waits for its end, for a minute or two: after that its status shows what became of it."""
    try:
        with client.errors(f"Cancelling {job}"):
            client.call("POST", f"{client.scope}/jobs/{job}/cancel")
    except MsgganError:
        if not read_details(client, job).has_ended:  # it may have ended just then
            raise
    for _ in islice(watch(client, job).updates(), MAX_POLLS_OF_CANCELLED):
        """Until it has ended."""


def is_transient(error: AzureServiceError) -> bool:
    """Whether the same request may succeed later: the network failed, or the service is busy."""
    cause = error.__cause__
    status = cause.status_code if isinstance(cause, HttpResponseError) else None
    return isinstance(error, UnreachableError) or (status is not None and (status == 429 or status >= 500))
