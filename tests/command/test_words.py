"""The text that describes a run's status."""

from __future__ import annotations

from orchestration.status import RunStatus, status_lines, table

RUNNING = RunStatus(
    name="flowers",
    target="local",
    state="running",
    run_dir="runs/flowers",
    images_seen=3250,
    images_total=12000,
    metrics={"d_loss": 0.3312, "g_loss": 1.905, "swd": 131.4, "seconds": 9.0},
    created="2026-11-23T19:54:24Z",
)
FAILED = RunStatus(
    name="f2",
    target="local",
    state="failed",
    run_dir="runs/f2",
    created="2026-11-23T20:00:00Z",
    ended="2026-11-23T20:01:00Z",
    reason="No space.\nFree some.",
)


def test_a_run_in_full() -> None:
    assert status_lines(RUNNING) == [
        "flowers: running, 3.25/12 kimg",
        "  d_loss 0.331  g_loss 1.905  swd 131",
        "  started 2026-11-23 19:54:24 UTC",
        "  runs/flowers",
    ]


def test_an_ended_run_has_its_time_and_reason() -> None:
    assert status_lines(FAILED) == [
        "f2: failed, 0 kimg",
        "  started 2026-11-23 20:00:00 UTC, ended 2026-11-23 20:01:00 UTC",
        "  runs/f2",
        "  No space.",
        "  Free some.",
    ]


def test_many_runs_in_columns() -> None:
    assert table([RUNNING, FAILED]) == [
        "NAME     STATE    KIMG     SWD  STARTED                  RUN FOLDER",
        "flowers  running  3.25/12  131  2026-11-23 19:54:24 UTC  runs/flowers",
        "f2       failed   0        -    2026-11-23 20:00:00 UTC  runs/f2",
    ]
