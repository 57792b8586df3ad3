"""How is a job watched until its end? What it waits for, and each line of its logs as it comes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from azure.core.exceptions import HttpResponseError

from msggan.commands.program import raise_pending_signal
from orchestration.azure.history import Details
from orchestration.azure.jobs import has_ended, state_of
from orchestration.azure.logs import BUILD_LOG, JOB_LOG, LogReader, log_in
from orchestration.errors import AzureServiceError, UnreachableError

# Between two looks. A run that has just begun, or ends at once, is looked at more often.
PAUSES_S = (0.5, 0.5, 1.0, 1.0, 2.0)
LAST_TRIES = 20
LAST_LINES_S = 0.5  # after a job's end the service may still be carrying its last lines to the log
STATES_IN_WORDS = {
    "queued": "waits for a machine",
    "preparing": "gets its machine ready: the environment, the images",
    "running": "runs",
}


@dataclass
class Watch:
    """Watches a job. look(): how it stands. tell: what becomes of it, for people. `details`: how it stood last.

    tail: of the lines that are there at the first look only so many; None: all.
    """

    job: str
    look: Callable[[], Details]
    tell: Callable[[str], None]
    wait_factor_s: float
    with_build_log: bool = False
    tail: int | None = None
    details: Details = field(default_factory=lambda: Details(""))
    _is_deaf: bool = False
    _losses: int = 0  # of the machine, since we watch

    def lines(self) -> Iterator[str]:
        """Each line of the job's log, until its end. Goes on through what passes: a cut connection, a busy service."""
        log, build_log = LogReader(self.wait_factor_s), LogReader(self.wait_factor_s)
        tail, was_seen_alive = self.tail, False
        for details in self.looks():
            ended = has_ended(details.status)
            if self.with_build_log and (url := log_in(details, BUILD_LOG)):
                for line in build_log.lines(url, to_the_end=ended):
                    self.tell(line)
            if ended and was_seen_alive:
                time.sleep(LAST_LINES_S)
                details = self._look() or details  # noqa: PLW2901 - its log may have come to be only now
            if url := log_in(details, JOB_LOG):
                new = self._last_lines(log, url) if ended else log.lines(url, to_the_end=False)
                yield from new if tail is None else deque(new, maxlen=tail)
                tail = None
            was_seen_alive = True

    def _last_lines(self, log: LogReader, url: str) -> Iterator[str]:
        """The rest of a log that no look comes after: where the service does not give it, it is asked again."""
        for _ in range(LAST_TRIES):
            yield from log.lines(url, to_the_end=False)
            if not log.is_cut:
                break
            time.sleep(LAST_LINES_S)
        yield from log.lines(url, to_the_end=True)

    def looks(self) -> Iterator[Details]:
        """How the job stands, again and again until it has ended. Tells what is new."""
        told: tuple[str, ...] = ()
        for pause in _pauses():
            raise_pending_signal()
            details = self._look()
            if details is not None:
                self.details = details
                told = self._tell_news(details, told)
                yield details
                if has_ended(details.status):
                    return
            time.sleep(pause)

    def _look(self) -> Details | None:
        """How the job stands, None where that cannot be had just now."""
        try:
            details = self.look()
        except AzureServiceError as error:
            if not will_pass(error):
                raise
            if not self._is_deaf:
                self.tell(f"{error.message} {self.job} goes on, and is looked for until it answers.")
            self._is_deaf = True
            return None
        self._is_deaf = False
        return details

    def _tell_news(self, details: Details, told: tuple[str, ...]) -> tuple[str, ...]:
        """Tells a state, and why, once."""
        state = state_of(details.status)
        reasons = details.warnings if state == "queued" else ()
        news = (state, *reasons)
        if told[:1] == ("running",) and state in ("queued", "preparing"):
            self._losses += 1
            self.tell(
                f"{self.job}: its machine was taken away (time {self._losses} that is seen here). "
                "It starts again by itself, from its last checkpoint."
            )
        if news != told and state in STATES_IN_WORDS:
            self.tell(f"{self.job}: {STATES_IN_WORDS[state]}" + "".join(f"; {reason}" for reason in reasons))
        return news


def will_pass(error: AzureServiceError) -> bool:
    """Whether asking again later may be answered: the network, or a service that is busy."""
    cause = error.__cause__
    status = cause.status_code if isinstance(cause, HttpResponseError) else None
    return isinstance(error, UnreachableError) or (status is not None and (status == 429 or status >= 500))


def _pauses() -> Iterator[float]:
    yield from PAUSES_S
    while True:
        yield PAUSES_S[-1]
