"""What a person sees while a run trains: a live line on a terminal, plain lines elsewhere; stderr, never stdout.

The same lines are kept in the run's `log.txt`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

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
        """Keeps all lines in a file too, those said so far included."""
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
        text = self._line(metrics, seconds_left)
        self.record(text)
        if not self.live:
            self._write(text + "\n")
            return
        self._clear()
        self._write(text[: shutil.get_terminal_size().columns - 1])
        self.line_is_open = True

    def decoding(self, done: int, total: int) -> None:
        """How many images have been read so far. Only a terminal is told."""
        if self.live:
            self._clear()
            self._write(f"reading images: {done}/{total}")
            self.line_is_open = True

    def close(self) -> None:
        """Leaves the last live line standing."""
        if self.line_is_open:
            self._write("\n")
            self.line_is_open = False

    def _line(self, metrics: Mapping[str, float], seconds_left: float) -> str:
        parts = [
            f"{metrics['kimg']:.2f}/{self.total_images / 1000:g} kimg",
            f"{metrics['images_per_second']:.0f} images/s",
            f"{duration(seconds_left)} left",
            *(f"{name} {metrics[name]:.3f}" for name in ("d_loss", "g_loss") if name in metrics),
        ]
        if "dropped_updates" in metrics:
            parts.append(f"{metrics['dropped_updates']} updates dropped")
        if self.distance is not None:
            parts.append(f"swd {self.distance:.0f}")
        if self.sample is not None:
            parts.append(str(self.sample))
        return "  ".join(parts)

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


def duration(seconds: float) -> str:
    """5 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"
