"""`metrics.jsonl` has every report of a run exactly once, despite interruptions."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msggan.tracking.metrics_log import Tracker, read_metrics


def line_at(images: int) -> dict[str, float]:
    return {"images": images, "kimg": images / 1000, "d_loss": 0.1 + images, "g_loss": -1.5}


def tracked(folder: Path, *images: int) -> Tracker:
    tracker = Tracker(folder / "metrics.jsonl")
    for count in images:
        tracker.report(line_at(count))
    return tracker


def test_reports_are_json_lines_in_order(tmp_path: Path) -> None:
    tracker = tracked(tmp_path, 8, 16, 24)
    lines = tracker.path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [line_at(8), line_at(16), line_at(24)]
    assert read_metrics(tracker.path) == [line_at(8), line_at(16), line_at(24)]


def test_the_file_is_written_more_rarely_the_longer_it_is(tmp_path: Path) -> None:
    tracker, sizes = tracked(tmp_path), [0]
    for count in range(1, 3001):
        tracker.report(line_at(count))
        if count in (1, 50, 100, 500, 2999):
            assert 100 * (count - len(read_metrics(tracker.path))) < count
        if tracker.path.stat().st_size != sizes[-1]:
            sizes.append(tracker.path.stat().st_size)
    tracker.write()
    assert read_metrics(tracker.path) == [line_at(count) for count in range(1, 3001)]
    # The bytes that a mount uploads if each write uploads the whole file. A write for each report: 1500 times its size.
    assert sum(sizes) < 101 * tracker.path.stat().st_size


def test_a_file_that_cannot_be_appended_to_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, opened = tracked(tmp_path, 8, 16), Path.open
    torn = json.dumps(line_at(24)) + "\n" + '{"images": 32, "d_lo'

    def refuse(path: Path, mode: str = "r", **options: Any) -> Any:  # as a disk that is full after a part
        if mode != "a":
            return opened(path, mode, **options)
        with opened(path, mode, **options) as file:
            file.write(torn)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(Path, "open", refuse)
    tracker.report(line_at(24))
    assert tracker.path.read_text() == "".join(json.dumps(line_at(count)) + "\n" for count in (8, 16, 24))
    assert list(tmp_path.iterdir()) == [tracker.path]


def test_another_process_appends_to_it(tmp_path: Path) -> None:
    tracked(tmp_path, 8)
    assert read_metrics(tracked(tmp_path, 16).path) == [line_at(8), line_at(16)]


def test_before_the_first_report_there_are_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(
    ("images_seen", "left"), [(0, []), (7, []), (8, [8]), (20, [8, 16]), (24, [8, 16, 24]), (99, [8, 16, 24])]
)
def test_reports_of_steps_that_will_be_repeated_are_dropped(tmp_path: Path, images_seen: int, left: list[int]) -> None:
    tracker = tracked(tmp_path, 8, 16, 24)
    tracker.forget_after(images_seen)
    assert read_metrics(tracker.path) == [line_at(images) for images in left]
    tracker.report(line_at(images_seen + 8))
    assert read_metrics(tracker.path)[-1] == line_at(images_seen + 8)


def test_dropping_without_reports_leaves_none(tmp_path: Path) -> None:
    tracker = tracked(tmp_path)
    tracker.forget_after(0)
    assert read_metrics(tracker.path) == []


def test_dropping_leaves_no_temporary_file(tmp_path: Path) -> None:
    tracked(tmp_path, 8, 16).forget_after(8)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_file_cut_off_anywhere_gives_its_complete_lines_and_can_be_appended_to(tmp_path: Path) -> None:
    tracker = tracked(tmp_path, 8, 16)
    content = tracker.path.read_bytes()
    first = content.index(b"\n")
    for end in range(len(content) + 1):
        tracker.path.write_bytes(content[:end])
        whole = [line_at(8)] * (end >= first) + [line_at(16)] * (end >= len(content) - 1)
        assert read_metrics(tracker.path) == whole
        tracker.forget_after(16)
        tracker.report(line_at(24))
        assert read_metrics(tracker.path) == [*whole, line_at(24)]


def test_bytes_that_are_not_text_are_skipped(tmp_path: Path) -> None:
    tracker = tracked(tmp_path, 8)
    with tracker.path.open("ab") as file:
        file.write(b"\xff\xfe\x00\x00\n")
    tracker.report(line_at(16))
    assert read_metrics(tracker.path) == [line_at(8), line_at(16)]


@given(values=st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False), max_size=4))
@settings(deadline=None, max_examples=50)
def test_numbers_are_read_back_exactly(tmp_path_factory: pytest.TempPathFactory, values: dict[str, float]) -> None:
    tracker = Tracker(tmp_path_factory.mktemp("run") / "metrics.jsonl")
    tracker.report({**values, "images": 8})
    assert read_metrics(tracker.path) == [{**values, "images": 8}]


@pytest.mark.parametrize("line", ["7", "null", "[1]", '"images"', "{}"])
def test_json_that_is_not_a_report_is_skipped(tmp_path: Path, line: str) -> None:
    tracker = tracked(tmp_path, 8)
    with tracker.path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    assert read_metrics(tracker.path) == [line_at(8)]
    tracker.forget_after(8)
    assert tracker.newest() == line_at(8)
