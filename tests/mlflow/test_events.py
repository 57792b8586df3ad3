"""Event files of TensorBoard have the reports of `metrics.jsonl`, also of a run that was resumed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from msggan.tracking.metrics_log import EVENTS_VARIABLE, Tracker


def report(images: int, loss: float) -> dict[str, float]:
    return {"images": images, "kimg": images / 1000, "seconds": 1.0, "d_loss": loss}


def test_a_resumed_run_s_event_files_have_every_report_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events"))
    for reports in ([report(10, 1), report(20, 2), report(30, 3)], [report(30, 4), report(40, 5)]):
        tracker = Tracker(tmp_path / "metrics.jsonl")
        tracker.forget_after(20)
        assert tracker.start() == [f"Writing event files for TensorBoard to {tmp_path / 'events'}."]
        for one in reports:
            tracker.report(one)
        tracker.write()
        tracker.close("completed")
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert events.Tags()["scalars"] == ["d_loss"]
    assert [(one.step, one.value) for one in events.Scalars("d_loss")] == [(10, 1), (20, 2), (30, 4), (40, 5)]


def test_without_the_package_or_the_folder_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(tmp_path / "metrics.jsonl")
    tracker.forget_after(0)
    (tmp_path / "file").touch()
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "file"))
    assert "Training continues." in tracker.start()[0]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    assert "Training continues." in tracker.start()[0]
    tracker.report(report(10, 1))
    tracker.close("completed")
