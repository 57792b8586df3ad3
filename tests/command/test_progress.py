"""Progress is one live line in a terminal, and plain lines in a file or pipe."""

from __future__ import annotations

import fcntl
import io
import os
import re
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import save_run
from support.programs import command_line, environment

from msggan.display.progress import NotebookProgress, Progress, duration, fitting, width_of
from msggan.runs.folder import RunFolder

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


def test_a_file_gets_one_plain_line_per_report() -> None:
    stream = io.StringIO()
    progress = Progress(total_images=20_000, stream=stream)
    progress.info("Training.")
    report(progress)
    report(progress)
    progress.close()
    assert stream.getvalue() == f"Training.\n{LINE}\n{LINE}\n"


def test_a_terminals_line_is_rewritten_in_place_and_kept_at_the_end() -> None:
    stream = Terminal()
    progress = Progress(total_images=20_000, stream=stream)
    report(progress)
    report(progress)
    progress.close()
    assert stream.getvalue() == f"{LINE}{CLEARED}{LINE}\n"


def test_a_message_replaces_the_live_line() -> None:
    stream = Terminal()
    progress = Progress(total_images=20_000, stream=stream)
    report(progress)
    progress.info("Stopped.")
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


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (9, "1.50/20"),
        (20, "1.50/20 kimg"),
        (40, "1.50/20 kimg  2 min left  swd 321"),
        (60, "1.50/20 kimg  123 images/s  2 min left  swd 321"),
        (64, "1.50/20 kimg  123 images/s  2 min left  d_loss 0.250  swd 321"),
        (80, f"{LINE}  swd 321"),
        (90, f"{LINE}  swd 321"),
        (91, f"{LINE}  swd 321  samples/a.png"),
    ],
)
def test_a_live_line_shows_what_fits_and_never_wraps(monkeypatch: pytest.MonkeyPatch, columns: int, shown: str) -> None:
    """A wrapped line could not be cleared: only its last row would be."""
    monkeypatch.setenv("COLUMNS", str(columns))
    progress = Progress(total_images=20_000, stream=Terminal())
    progress.sample = Path("samples/a.png")
    report(progress, swd=321.4)
    assert isinstance(progress.stream, Terminal)
    assert progress.stream.getvalue() == shown


@given(path=st.text(st.characters(exclude_categories=["C", "Z"])), columns=st.integers(0, 60))
def test_no_line_is_wider_than_its_columns_also_in_wide_characters(path: str, columns: int) -> None:
    parts = {"kimg": "1.50/20 kimg", "left": "2 min left", "sample": path}
    shown = fitting(parts, columns)
    assert width_of(shown) <= columns
    assert columns < 12 or shown in ("1.50/20 kimg", "1.50/20 kimg  2 min left", "  ".join(parts.values()))


def test_wide_characters_take_two_columns_and_combining_ones_none() -> None:
    assert [width_of(text) for text in ("", "abc", "花flower", "ｆ", "e\u0301")] == [0, 3, 8, 2, 1]


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


def test_only_a_terminal_shows_how_many_images_have_been_read() -> None:
    file, terminal = io.StringIO(), Terminal()
    for stream in (file, terminal):
        progress = Progress(total_images=1, stream=stream)
        progress.decoding(1, 2)
        progress.decoding(2, 2)
        progress.info("Read.")
    assert file.getvalue() == "Read.\n"
    assert terminal.getvalue() == f"reading images: 1/2{CLEARED}reading images: 2/2{CLEARED}Read.\n"


def test_progress_goes_to_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(total_images=1).info("Here.")
    captured = capsys.readouterr()
    assert captured.err == "Here.\n"
    assert captured.out == ""


# Real terminals


class Screen:
    """A terminal of some width in which a program runs, and the lines that it writes there."""

    def __init__(self, columns: int) -> None:
        self.reader, self.terminal = os.openpty()
        self.resize(columns)
        self.unread = ""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def lines(self) -> Iterator[str]:
        """Each text that was visible in a row, until the program ends."""
        with suppress(OSError):  # EIO: nobody writes any more
            while True:
                self.unread += os.read(self.reader, 10_000).decode()
                *whole, self.unread = re.split(r"\r\x1b\[K|\r?\n|\r", self.unread)
                yield from whole


@contextmanager
def on_a_screen(folder: Path, columns: int, *args: object) -> Iterator[tuple[Screen, subprocess.Popen[str]]]:
    """msggan-aml with a terminal on stderr alone, as where a script reads its result."""
    screen = Screen(columns)
    command = command_line("msggan-aml", *args)
    variables = {name: value for name, value in environment().items() if name != "COLUMNS"}
    with subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=screen.terminal, encoding="utf-8"
    ) as process:
        os.close(screen.terminal)
        screen.terminal = screen.reader  # either end sets the size
        try:
            yield screen, process
        finally:
            process.terminate()
            process.communicate()
            os.close(screen.reader)


WHOLE_LINE = re.compile(
    r"[\d.]+/1000 kimg(  \d+ images/s)?(  \d+ (s|min|h \d+ min) left)?(  d_loss -?[\d.]+)?(  g_loss -?[\d.]+)?"
    r"(  swd \d+)?(  runs/wide/samples/\d+_8px\.png)?"
)


@pytest.mark.slow
def test_a_run_that_submit_starts_fits_its_terminal_as_it_is_resized(tiny_images: Path, tmp_path: Path) -> None:
    """Each width is wider than all before, or narrower; what comes after the first line that shows it must fit."""
    small = ["--resolution", 8, "--latent-size", 8, "--batch-size", 24, "--num-samples", 4, "--workers", 1]
    often = ["--kimg", 1000, "--sample-kimg", 1, "--metric-kimg", 1, "--checkpoint-kimg", 1000]
    args = ["submit", "--target", "local", "--data", tiny_images, "--name", "wide", "--device", "cpu", *small, *often]
    with on_a_screen(tmp_path, 40, *args) as (screen, _):
        lines = (line for line in screen.lines() if "kimg  " in line)
        for columns, least in [(40, 0), (60, 40), (80, 60), (120, 80), (200, 80), (60, 0)]:
            screen.resize(columns)
            shown = [next(line for line in lines if least <= len(line) < columns), next(lines), next(lines)]
            assert all(len(line) < columns and WHOLE_LINE.fullmatch(line) for line in shown), shown
            if columns >= 120:
                assert all(line.endswith("_8px.png") for line in shown)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 80])
def test_the_bar_of_sample_fits_its_terminal(tmp_path: Path, columns: int) -> None:
    save_run(tmp_path / "runs" / "one", depth=1)
    args = ["sample", "one", "--files", "--num", 120, "--device", "cpu"]
    with on_a_screen(tmp_path, columns, *args) as (screen, process):
        shown = [line for line in screen.lines() if "Making 120 pictures" in line]
        assert process.wait() == 0
    assert any("100%" in line for line in shown), shown
    assert max(len(line.replace("\x1b[?25l", "").replace("\x1b[?25h", "")) for line in shown) < columns


def test_a_notebook_reads_the_reports_of_its_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"images": 1000, "kimg": 1.0, "d_loss": 0.75, "images_per_second": 5.0}\n')
    notebook = NotebookProgress(folder, total_images=4000)
    shown: list[str] = []
    monkeypatch.setattr(notebook, "_show", lambda: shown.append(notebook._content()))
    notebook.open_log(folder.log)
    folder.metrics.unlink()
    notebook.report({"images": 3000, "kimg": 3.0, "d_loss": 0.25, "images_per_second": 5.0}, seconds_left=1.0)
    notebook.close_log()
    assert all(f">{number}</text>" in shown[-1] for number in ("0.75", "0.25", "1", "3 kimg"))


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
def test_durations_are_written_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text
