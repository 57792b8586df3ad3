"""Every line of a log is shown once, complete and in order, however it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestration.local.process import follow_lines, last_lines


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


class Writer:
    """Writes its next text at each call of `continues`, which returns True until none is left."""

    def __init__(self, log: Path, *texts: str) -> None:
        self.log = log
        self.texts = list(texts)

    def continues(self) -> bool:
        if not self.texts:
            return False
        with self.log.open("a", encoding="utf-8") as file:
            file.write(self.texts.pop(0))
        return True


@pytest.mark.parametrize(("tail", "lines"), [(None, ["a", "", "ç"]), (2, ["", "ç"]), (9, ["a", "", "ç"])])
def test_tail_gives_the_last_lines(log: Path, tail: int | None, lines: list[str]) -> None:
    log.write_text("a\n\nç\n", encoding="utf-8")
    assert last_lines(log, tail) == lines


def test_an_empty_log_has_no_lines(log: Path) -> None:
    assert last_lines(log, None) == []
    assert list(follow_lines(log, None, continues=lambda: False)) == []


def test_lines_written_in_parts_are_read_whole_and_once(log: Path) -> None:
    log.write_text("old\n")
    writer = Writer(log, "a", "b\nc", "", "\nd\ne\n", "the end")
    assert list(follow_lines(log, None, continues=writer.continues)) == ["old", "ab", "c", "d", "e", "the end"]


def test_following_shows_the_tail_and_then_new_lines(log: Path) -> None:
    log.write_text("1\n2\n3\n")
    assert list(follow_lines(log, 1, continues=Writer(log, "4\n").continues)) == ["3", "4"]


def test_following_waits_for_a_missing_log(log: Path) -> None:
    assert list(follow_lines(log, None, continues=Writer(log, "1\n", "2\n").continues)) == ["1", "2"]
