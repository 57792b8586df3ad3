"""Does a terminal show one live line, and a file or pipe plain ones?"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from msggan.progress import Progress, duration

METRICS = {"kimg": 1.5, "images_per_second": 123.4, "d_loss": 0.25, "g_loss": 1.75}
LINE = "1.50/20 kimg  123 images/s  2 min left  d_loss 0.250  g_loss 1.750"
CLEARED = "\r\033[K"


class Terminal(io.StringIO):
    """Remembers what was written, and says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def report(progress: Progress, **more: float) -> None:
    progress.report({**METRICS, **more}, seconds_left=125)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_a_file_gets_a_plain_line_a_report() -> None:
    stream = io.StringIO()
    progress = Progress(total_images=20_000, stream=stream)
    progress.say("Training.")
    report(progress)
    report(progress)
    progress.close()
    assert stream.getvalue() == f"Training.\n{LINE}\n{LINE}\n"


def test_a_terminals_line_is_rewritten_in_place_and_left_standing() -> None:
    stream = Terminal()
    progress = Progress(total_images=20_000, stream=stream)
    report(progress)
    report(progress)
    progress.close()
    assert stream.getvalue() == f"{LINE}{CLEARED}{LINE}\n"


def test_a_sentence_takes_the_live_lines_place() -> None:
    stream = Terminal()
    progress = Progress(total_images=20_000, stream=stream)
    report(progress)
    progress.say("Stopped.")
    report(progress)
    progress.close()
    assert stream.getvalue() == f"{LINE}{CLEARED}Stopped.\n{LINE}\n"


def test_closing_twice_ends_the_line_once() -> None:
    stream = Terminal()
    progress = Progress(total_images=20_000, stream=stream)
    report(progress)
    progress.close()
    progress.close()
    assert stream.getvalue() == f"{LINE}\n"


@pytest.mark.parametrize("columns", [10, 20, 40])
def test_a_live_line_never_wraps(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """A wrapped line could not be cleared: only its last row would be."""
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    report(Progress(total_images=20_000, stream=stream))
    assert stream.getvalue() == LINE[: columns - 1]


def test_a_file_gets_whole_lines_however_narrow_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    stream = io.StringIO()
    report(Progress(total_images=20_000, stream=stream))
    assert stream.getvalue() == LINE + "\n"


def test_the_last_distance_and_the_last_sample_stay_on_the_line() -> None:
    stream = io.StringIO()
    progress = Progress(total_images=20_000, stream=stream)
    report(progress, swd=321.4)
    progress.sample = Path("runs/one/samples/000001500_32px.png")
    report(progress)
    first, second = stream.getvalue().splitlines()
    assert first == f"{LINE}  swd 321"
    assert second == f"{LINE}  swd 321  {progress.sample}"


def test_only_a_terminal_is_told_how_many_images_have_been_read() -> None:
    file, terminal = io.StringIO(), Terminal()
    for stream in (file, terminal):
        progress = Progress(total_images=1, stream=stream)
        progress.decoding(1, 2)
        progress.decoding(2, 2)
        progress.say("Read.")
    assert file.getvalue() == "Read.\n"
    assert terminal.getvalue() == f"reading images: 1/2{CLEARED}reading images: 2/2{CLEARED}Read.\n"


def test_progress_goes_to_stderr_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(total_images=1).say("Here.")
    captured = capsys.readouterr()
    assert captured.err == "Here.\n"
    assert captured.out == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_real_terminal_is_known_as_one() -> None:
    reader, writer = os.openpty()
    with os.fdopen(writer, "w") as terminal:
        progress = Progress(total_images=20_000, stream=terminal)
        report(progress)
        report(progress)
        progress.close()
        shown = b""
        while not shown.endswith(b"\n"):
            shown += os.read(reader, 1000)
    os.close(reader)
    assert shown.decode() == f"{LINE}{CLEARED}{LINE}\r\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (5.4, "5 s"),
        (89, "89 s"),
        (90, "2 min"),
        (12 * 60, "12 min"),
        (89 * 60, "89 min"),
        (90 * 60, "1 h 30 min"),
        (3 * 3600 + 20 * 60, "3 h 20 min"),
        (2 * 3600 - 1, "2 h 00 min"),
        (50 * 3600 + 5 * 60, "50 h 05 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
