"""What a person sees while a run trains: a live line on a terminal, plain lines elsewhere; stderr, never stdout.

The same lines are kept in the run's `log.txt`.
"""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import click

# On a terminal that is too narrow for all parts of a line they are left out in this order.
LEAST_NEEDED_FIRST = ("sample", "g_loss", "d_loss", "images_per_second", "dropped_updates", "swd", "left", "reading")
BAR_COLUMNS = 36  # at most
AROUND_BAR = len("  []  100%")
TIME_LEFT = len("  1d 00:00:00")
LINES_BEFORE_THE_LOG = 100  # what is said before the run folder is there


class Progress:
    """Tells how far a run is. A terminal's last line is rewritten in place; a file or pipe gets a line a report."""

    def __init__(self, *, total_images: int, stream: TextIO | None = None) -> None:
        self.total_images = total_images
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.sample: Path | None = None
        self.distance: float | None = None
        self.line_is_open = False
        self.log: TextIO | None = None
        self.not_yet_logged: deque[str] = deque(maxlen=LINES_BEFORE_THE_LOG)

    def say(self, text: str) -> None:
        """A sentence that stays."""
        self._clear()
        self._write(text + "\n")
        self.record(text)

    def record(self, text: str) -> None:
        """A line for the log alone."""
        self.not_yet_logged.append(text)
        if self.log is not None:
            self._write_log(self.log)

    def open_log(self, path: Path) -> None:
        """Writes all lines to a file too, including the earlier ones."""
        self.log = path.open("a", encoding="utf-8", buffering=1)
        self._write_log(self.log)

    def close_log(self) -> None:
        log, self.log = self.log, None
        if log is not None:
            with suppress(OSError):
                log.close()

    def report(self, metrics: Mapping[str, float], *, seconds_left: float) -> None:
        """Where the run stands, from the metrics of its last report."""
        self.distance = metrics.get("swd", self.distance)
        parts = self._parts(metrics, seconds_left)
        text = "  ".join(parts.values())
        self.record(text)
        if self.live:
            self._rewrite(parts)
        else:
            self._write(text + "\n")

    def decoding(self, done: int, total: int) -> None:
        """How many images have been read so far. Only a terminal is told."""
        if self.live:
            self._rewrite({"reading": "reading images:", "images": f"{done}/{total}"}, between=" ")

    def close(self) -> None:
        """Leaves the last live line standing."""
        if self.line_is_open:
            self._write("\n")
            self.line_is_open = False

    def _line(self, metrics: Mapping[str, float], seconds_left: float) -> str:
        return "  ".join(self._parts(metrics, seconds_left).values())

    def _parts(self, metrics: Mapping[str, float], seconds_left: float) -> dict[str, str]:
        """What the line shows, in order, by the names in `LEAST_NEEDED_FIRST`."""
        parts = {
            "kimg": f"{metrics['kimg']:.2f}/{self.total_images / 1000:g} kimg",
            "images_per_second": f"{metrics['images_per_second']:.0f} images/s",
            "left": f"{duration(seconds_left)} left",
            **{name: f"{name} {metrics[name]:.3f}" for name in ("d_loss", "g_loss") if name in metrics},
        }
        if "dropped_updates" in metrics:
            parts["dropped_updates"] = f"{metrics['dropped_updates']} updates dropped"
        if self.distance is not None:
            parts["swd"] = f"swd {self.distance:.0f}"
        if self.sample is not None:
            parts["sample"] = str(self.sample)
        return parts

    def _rewrite(self, parts: Mapping[str, str], *, between: str = "  ") -> None:
        """Puts what fits the terminal in the place of the last line. A line that wrapped could not be cleared."""
        self._clear()
        self._write(fitting(parts, columns_of(self.stream) - 1, between=between))
        self.line_is_open = True

    def _clear(self) -> None:
        if self.line_is_open:
            self._write("\r\033[K")
            self.line_is_open = False

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()

    def _write_log(self, log: TextIO) -> None:
        with suppress(OSError):  # on a full disk the log is the least that is lost
            log.writelines(f"{line}\n" for line in self.not_yet_logged)
            self.not_yet_logged.clear()


def without_log(stream: TextIO, log: Path) -> TextIO:
    """The stream; nowhere if it is the log file, which then gets each line once, and none before the run begins."""
    with suppress(OSError, ValueError, AttributeError):  # no log yet; a stream in memory has no file
        if os.path.samestat(os.fstat(stream.fileno()), log.stat()):
            return Path(os.devnull).open("w", encoding="utf-8")
    return stream


def columns_of(stream: TextIO) -> int:
    """How wide the terminal is now that a stream writes to; COLUMNS, or 80, where it does not tell."""
    with suppress(OSError, ValueError):  # a stream in memory has no file
        if columns := os.get_terminal_size(stream.fileno()).columns:
            return columns
    return shutil.get_terminal_size().columns


def fitting(parts: Mapping[str, str], columns: int, *, between: str = "  ") -> str:
    """The parts in one line of at most so many columns, without those that are needed least; the last may be cut."""
    shown = dict(parts)
    for name in LEAST_NEEDED_FIRST:
        if width_of(between.join(shown.values())) > columns:
            shown.pop(name, None)
    text = between.join(shown.values())
    while width_of(text) > columns:
        text = text.rpartition(" ")[0] or text[:-1]
    return text


def width_of(text: str) -> int:
    """How many columns of a terminal a text takes: two for each wide character, as Chinese ones are."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


@contextmanager
def progress_bar(label: str, length: int, stream: TextIO) -> Iterator[Callable[[int], None]]:
    """A bar that fits the terminal as it is now, and the label alone elsewhere. → call it with how many more are done.

    click's own bar looks for the terminal on stdout, which is a pipe where a command reads our result.
    """
    bar = click.progressbar(length=length, label=label, file=stream)

    def advance(steps: int) -> None:
        room = columns_of(stream) - 1
        beside = room - width_of(label) - AROUND_BAR
        bar.show_eta = beside > TIME_LEFT
        bar.width = max(1, min(BAR_COLUMNS, beside - TIME_LEFT if bar.show_eta else beside))
        bar.max_width = min(bar.max_width or room, room)  # to which click fills a line up with spaces
        bar.update(steps)

    advance(0)
    with bar:
        yield advance


def duration(seconds: float) -> str:
    """5 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"
