"""How does a notebook show a run while it trains? In one place that is updated, instead of a line a report."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from msggan.display.html import bar, escaped
from msggan.display.progress import Progress, without_log
from msggan.runs.folder import RunFolder
from msggan.runs.run import overview

SENTENCES_SHOWN = 6
SECONDS_BETWEEN = 0.5  # each update holds a picture, and browsers get behind


def choose_progress(folder: RunFolder, *, total_images: int, stream: TextIO | None) -> Progress:
    """A display in a notebook, unless a stream was named; lines elsewhere."""
    if stream is None and in_notebook():
        return NotebookProgress(folder, total_images=total_images)
    return Progress(total_images=total_images, stream=without_log(stream or sys.stderr, folder.log))


def in_notebook() -> bool:
    """Whether this is the process of a notebook. IPython is not imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookProgress(Progress):
    """Shows how far a run is, its newest samples and its curves. Each run of the trainer has a display of its own."""

    def __init__(self, folder: RunFolder, *, total_images: int) -> None:
        super().__init__(total_images=total_images)
        self.folder = folder
        self.sentences: deque[str] = deque(maxlen=SENTENCES_SHOWN)
        self.line = ""
        self.share = 0.0
        self.display: Any = None
        self.shown_at = 0.0

    def say(self, text: str) -> None:
        self.sentences.append(text)
        self.record(text)
        self._show()

    def open_log(self, path: Path) -> None:
        """A run begins here: it is shown where `run` was called, and not where the trainer was made."""
        self._end_display()
        super().open_log(path)

    def close_log(self) -> None:
        self._end_display()
        super().close_log()

    def report(self, metrics: Mapping[str, float], *, seconds_left: float) -> None:
        self.distance = metrics.get("swd", self.distance)
        self.line = self._line(metrics, seconds_left)
        self.record(self.line)
        self.share = metrics["images"] / self.total_images
        self._show_now_and_then()

    def decoding(self, done: int, total: int) -> None:
        self.line = f"reading images: {done}/{total}" if done < total else ""
        self.share = done / total
        self._show_now_and_then()

    def close(self) -> None:
        if self.display is not None:
            self._show()

    def _show_now_and_then(self) -> None:
        if time.perf_counter() - self.shown_at >= SECONDS_BETWEEN:
            self._show()

    def _show(self) -> None:
        """Makes the display, or puts what there is to see now in the place of what it showed."""
        from IPython.display import HTML, display

        self.shown_at = time.perf_counter()
        content = HTML(self._content())
        if self.display is None:
            self.display = display(content, display_id=True)
        else:
            self.display.update(content)

    def _content(self) -> str:
        sentences = "".join(f"<div>{escaped(sentence)}</div>" for sentence in self.sentences)
        if not self.line:
            return f"<div>{sentences}</div>"
        line = f'<div style="white-space:pre-wrap">{escaped(self.line)}</div>'
        seen = overview(self.folder) if self.log is not None else ""
        return f"<div>{sentences}{bar(self.share)}{line}{seen}</div>"

    def _end_display(self) -> None:
        """What is said from here on is shown in a place of its own."""
        if self.display is not None:
            self._show()
        self.display = None
        self.sentences.clear()
        self.line = ""
