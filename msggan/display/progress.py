"""The progress of a run: a live line on a terminal, plain lines elsewhere, one display in a notebook.

It goes to stderr, never stdout, and the same lines are kept in the run's `log.txt`. The live line is written here and
not by tqdm: what fits the terminal is chosen by importance, and a job's environment needs one package less.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from msggan.display.html import bar, escaped
from msggan.runs.files import write_whole

if TYPE_CHECKING:
    from tqdm import tqdm

    from msggan.runs.folder import RunFolder

# The parts of a line, the least important first: they are left out in this order if the terminal is too narrow.
BY_IMPORTANCE = ("sample", "g_loss", "d_loss", "images_per_second", "dropped_updates", "swd", "left", "reading")
MAX_LINES_BEFORE_LOG = 100  # lines from before the run folder exists
MAX_SENTENCES_SHOWN = 6
SECONDS_BETWEEN_UPDATES = 0.5  # of a notebook: each has a picture, and browsers fall behind


class Progress:
    """Reports to a stream. A terminal's last line is rewritten in place; a file or pipe gets one line per report."""

    def __init__(self, *, total_images: int, stream: TextIO | None = None) -> None:
        self.total_images = total_images
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.sample: Path | None = None
        self.swd: float | None = None
        self.line_is_open = False
        self.log: TextIO | None = None
        self.log_path = Path()
        self.unlogged: deque[str] = deque(maxlen=MAX_LINES_BEFORE_LOG)

    def info(self, text: str) -> None:
        """Prints a sentence."""
        self._clear()
        self._write(text + "\n")
        self.record(text)

    def record(self, text: str) -> None:
        """Writes a line to the log alone."""
        self.unlogged.append(text)
        if self.log is not None:
            self._write_log(self.log)

    def open_log(self, path: Path) -> None:
        """Writes all lines to a file too, including the earlier ones; all at the end on a mount that cannot append."""
        self.log_path = path
        try:
            self.log = path.open("a", encoding="utf-8", buffering=1)
        except OSError:
            self.log = StringIO()
        self._write_log(self.log)

    def close_log(self) -> None:
        log, self.log = self.log, None
        if log is not None:
            with suppress(OSError):
                if isinstance(log, StringIO):
                    before = self.log_path.read_bytes() if self.log_path.exists() else b""
                    write_whole(self.log_path, before + log.getvalue().encode())
                log.close()

    def report(self, metrics: Mapping[str, float], *, seconds_left: float) -> None:
        """Shows and logs the metrics of the last report."""
        parts = self._parts(metrics, seconds_left)
        text = "  ".join(parts.values())
        self.record(text)
        if self.live:
            self._rewrite(parts)
        else:
            self._write(text + "\n")

    def decoding(self, done: int, total: int) -> None:
        """Shows how many images have been read, on a terminal only."""
        if self.live:
            self._rewrite({"reading": "reading images:", "images": f"{done}/{total}"}, separator=" ")

    def close(self) -> None:
        """Keeps the last live line."""
        if self.line_is_open:
            self._write("\n")
            self.line_is_open = False

    def _parts(self, metrics: Mapping[str, float], seconds_left: float) -> dict[str, str]:
        """The parts of the line in order, by the names in `BY_IMPORTANCE`."""
        self.swd = metrics.get("swd", self.swd)
        parts = {
            "kimg": f"{metrics['kimg']:.2f}/{self.total_images / 1000:g} kimg",
            "images_per_second": f"{metrics['images_per_second']:.0f} images/s",
            "left": f"{duration(seconds_left)} left",
            **{name: f"{name} {metrics[name]:.3f}" for name in ("d_loss", "g_loss") if name in metrics},
        }
        if metrics.get("dropped_updates"):
            parts["dropped_updates"] = f"{metrics['dropped_updates']} updates dropped"
        if self.swd is not None:
            parts["swd"] = f"swd {self.swd:.0f}"
        if self.sample is not None:
            parts["sample"] = str(self.sample)
        return parts

    def _rewrite(self, parts: Mapping[str, str], *, separator: str = "  ") -> None:
        """Replaces the last line by what fits the terminal. A line that wrapped could not be cleared."""
        self._clear()
        self._write(fitting(parts, columns_of(self.stream) - 1, separator=separator))
        self.line_is_open = True

    def _clear(self) -> None:
        if self.line_is_open:
            self._write("\r\033[K")
            self.line_is_open = False

    def _write_log(self, log: TextIO) -> None:
        with suppress(OSError):  # on a full disk the log is what matters least
            log.writelines(f"{line}\n" for line in self.unlogged)
            self.unlogged.clear()

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def columns_of(stream: TextIO) -> int:
    """The current width of a stream's terminal; COLUMNS, or 80, if it has none."""
    with suppress(OSError, ValueError):  # a stream in memory has no file
        if columns := os.get_terminal_size(stream.fileno()).columns:
            return columns
    return shutil.get_terminal_size().columns


def fitting(parts: Mapping[str, str], columns: int, *, separator: str = "  ") -> str:
    """The parts in one line of at most `columns`, without the least important ones; the last may be cut."""
    shown = dict(parts)
    for name in BY_IMPORTANCE:
        if width_of(separator.join(shown.values())) > columns:
            shown.pop(name, None)
    text = separator.join(shown.values())
    while width_of(text) > columns:
        text = text.rpartition(" ")[0] or text[:-1]
    return text


def width_of(text: str) -> int:
    """The columns of a terminal that a text takes: two for each wide character, as Chinese ones are."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def progress_bar(label: str, total: int, stream: TextIO | None = None) -> tqdm[Any]:
    """A bar on a terminal, by default stderr's; the label alone elsewhere."""
    from tqdm import tqdm

    stream = stream or sys.stderr
    if not stream.isatty():
        stream.write(f"{label}\n")
    form = "{desc}  {percentage:3.0f}%|{bar}| {remaining}"
    return tqdm(total=total, desc=label, file=stream, disable=None, dynamic_ncols=True, bar_format=form)


@contextmanager
def progress_callback(label: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, moved by calling progress(done, total)."""
    with progress_bar(label, total) as bar:
        yield lambda done, total: bar.update(done - bar.n)


def duration(seconds: float) -> str:
    """5 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


# --- In a notebook ----------------------------------------------------------------------------------------------------


def choose_progress(folder: RunFolder, *, total_images: int, stream: TextIO | None) -> Progress:
    """A display in a notebook, unless a stream is given; lines elsewhere."""
    if stream is None and in_notebook():
        return NotebookProgress(folder, total_images=total_images)
    stream = stream or sys.stderr
    with suppress(OSError, ValueError, AttributeError):  # no log yet; a stream in memory has no file
        if os.path.samestat(os.fstat(stream.fileno()), folder.log.stat()):  # which gets each line once
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open as long as the process
    return Progress(total_images=total_images, stream=stream)


def in_notebook() -> bool:
    """Whether this is the process of a notebook, found without importing IPython."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookProgress(Progress):
    """Shows a run's progress, newest samples and curves in one display, which is updated, per run of the trainer."""

    def __init__(self, folder: RunFolder, *, total_images: int) -> None:
        super().__init__(total_images=total_images)
        self.folder = folder
        self.sentences: deque[str] = deque(maxlen=MAX_SENTENCES_SHOWN)
        self.line = ""
        self.share = 0.0
        self.display: Any = None
        self.updated_at = 0.0
        self.reports: list[Mapping[str, float]] = []  # all of the run: the file is read once

    def info(self, text: str) -> None:
        self.sentences.append(text)
        self.record(text)
        self._show()

    def open_log(self, path: Path) -> None:
        """A run starts: it gets a display in the cell that called `run`, not in the one that made the trainer."""
        from msggan.tracking.metrics_log import read_metrics

        self._end_display()
        self.reports = [*read_metrics(self.folder.metrics)]
        super().open_log(path)

    def close_log(self) -> None:
        self._end_display()
        super().close_log()

    def report(self, metrics: Mapping[str, float], *, seconds_left: float) -> None:
        self.line = "  ".join(self._parts(metrics, seconds_left).values())
        self.record(self.line)
        self.share = metrics["images"] / self.total_images
        self.reports.append(metrics)
        self._show_if_due()

    def decoding(self, done: int, total: int) -> None:
        self.line = f"reading images: {done}/{total}" if done < total else ""
        self.share = done / total
        self._show_if_due()

    def close(self) -> None:
        if self.display is not None:
            self._show()

    def _show_if_due(self) -> None:
        if time.perf_counter() - self.updated_at >= SECONDS_BETWEEN_UPDATES:
            self._show()

    def _show(self) -> None:
        """Creates the display, or updates it."""
        from IPython.display import HTML, display

        self.updated_at = time.perf_counter()
        content = HTML(self._content())
        if self.display is None:
            self.display = display(content, display_id=True)
        else:
            self.display.update(content)

    def _content(self) -> str:
        from msggan.runs.run import overview

        sentences = "".join(f"<div>{escaped(sentence)}</div>" for sentence in self.sentences)
        if not self.line:
            return f"<div>{sentences}</div>"
        line = f'<div style="white-space:pre-wrap">{escaped(self.line)}</div>'
        seen = overview(self.folder, self.reports) if self.log is not None else ""
        return f"<div>{sentences}{bar(self.share)}{line}{seen}</div>"

    def _end_display(self) -> None:
        """What follows is shown in a new display."""
        if self.display is not None:
            self._show()
        self.display = None
        self.sentences.clear()
        self.line = ""
