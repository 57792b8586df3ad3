"""A rehearsal kills a real run, checks that the result is unchanged, and reports the cost of the kills."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import save_run
from support.images import draw_tiny_images
from support.programs import Ended, run_in, started, stopped, wait_for

from msggan.config import TrainConfig, resolve
from msggan.runs.folder import RunFolder
from orchestration.local.rehearsal import (
    LOSSES,
    Loss,
    Rehearsal,
    checkpoint_images,
    differences,
    measured_speed,
    short_run,
)
from orchestration.spec import RunSpec

SMALL = ["--data", "tiny", "--resolution", "8", "--latent-size", "8", "--batch-size", "4", "--device", "cpu"]
REHEARSE = ["submit", *SMALL, "--rehearse-preemption"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images in `tiny`, and an empty one for temporary files."""
    folder = tmp_path_factory.mktemp("rehearsal")
    draw_tiny_images(folder / "tiny")
    (folder / "temp").mkdir()
    return folder


def temp_folder(folder: Path) -> str:
    return str(folder / "temp")


def records_below(folder: str) -> list[Path]:
    return list(Path(folder).glob("*/uninterrupted/run.json"))


# A rehearsal, with real kills


def test_a_run_killed_three_times_equals_the_uninterrupted_one_and_each_loss_is_reported(folder: Path) -> None:
    args = [*REHEARSE, "--batch-size", "20", "--target", "azure", "-o", "json"]
    ended = run_in(folder, "msggan-aml", *args, TMPDIR=temp_folder(folder))
    assert ended.exit_code == 0, ended.stderr
    response = ended.json
    assert (response["equal"], response["differs"]) == (True, [])
    assert [loss["images_seen"] // 250 for loss in response["losses"]] == [1, 2, 3]
    for loss in response["losses"]:
        assert set(loss) == {"images_seen", "resumed_from", "images_again", "seconds"}
        assert loss["resumed_from"] >= 200
        assert loss["resumed_from"] % 200 == 0
        assert loss["images_again"] == loss["images_seen"] - loss["resumed_from"] >= 0
        assert loss["seconds"] > 0
    assert response["images_per_second"] > 0
    assert response["checkpoint_images"] == 5000  # a twentieth of what is trained by default
    assert sorted(path.name for path in folder.iterdir()) == ["temp", "tiny"]
    assert list(Path(temp_folder(folder)).iterdir()) == []


def test_a_stopped_rehearsal_leaves_no_process_and_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", temp_folder(folder))
    with started(folder, "msggan-aml", *REHEARSE, forks=False) as rehearsing:
        wait_for(lambda: records_below(temp_folder(folder)), rehearsing)
        (record,) = records_below(temp_folder(folder))
        trainer = json.loads(record.read_bytes())["process"]
        ended = stopped(rehearsing, "SIGTERM")
    assert ended.exit_code == 6, ended.stderr
    assert list(Path(temp_folder(folder)).iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(trainer, signal.SIG_DFL)


def test_an_error_of_the_run_ends_the_rehearsal_with_that_error(folder: Path) -> None:
    ended = run_in(folder, "msggan-aml", *REHEARSE, "--batch-size", "64", "-o", "json")
    assert ended.exit_code == 2
    assert ended.json["error"]["code"] == "data"
    assert "--batch-size 64" in ended.stderr


# What does not go together


def test_all_options_that_conflict_with_a_rehearsal_are_reported_at_once(run_program: Callable[..., Ended]) -> None:
    args = ["--data", "azureml:photos:1", "--rehearse-preemption", "--dry-run", "--detach", "--loss", "none"]
    ended = run_program("msggan-aml", "submit", *args)
    assert ended.exit_code == 2
    for message in ("--dry-run: cannot", "--detach: cannot", "--data FOLDER --rehearse-preemption", "--loss none"):
        assert message in ended.stderr


# The short run


@given(batch_size=st.integers(1, 65536))
def test_the_short_run_outlasts_the_last_loss_and_saves_a_checkpoint_before_each(batch_size: int) -> None:
    spec, step = short_run(RunSpec(TrainConfig(batch_size=batch_size, kimg=25000.0), "photos", "photos"), batch_size)
    short = spec.config
    assert short.kimg is not None
    assert short.checkpoint_kimg is not None
    assert step >= 5 * batch_size
    assert short.metric_kimg == 0.25
    assert round(short.kimg * 1000) == (LOSSES + 1) * step
    assert 4 * batch_size <= short.checkpoint_kimg * 1000 < step
    assert short.batch_size == batch_size


# Comparing


def run_of(folder: Path, *, seed_of_weights: int = 0, **metrics: float) -> RunFolder:
    """A run folder with weights and a report of these metrics."""
    save_run(folder, depth=2 + seed_of_weights)
    report = {"images": 250, "seconds": 1.0, "images_per_second": 250.0, "d_loss": 0.5, **metrics}
    (folder / "metrics.jsonl").write_text(json.dumps(report) + "\n")
    return RunFolder(folder)


def test_runs_are_equal_if_only_timings_differ(tmp_path: Path) -> None:
    whole = run_of(tmp_path / "whole", swd=float("nan"))
    killed = run_of(tmp_path / "killed", swd=float("nan"), seconds=9.0, images_per_second=28.0)
    assert differences(whole, killed) == []


def test_other_weights_and_other_metrics_are_named(tmp_path: Path) -> None:
    whole = run_of(tmp_path / "whole")
    assert differences(whole, run_of(tmp_path / "weights", seed_of_weights=1)) == ["generator.safetensors"]
    assert differences(whole, run_of(tmp_path / "metrics", d_loss=0.51)) == ["metrics.jsonl"]


def test_a_header_in_another_order_makes_no_difference(tmp_path: Path) -> None:
    whole, killed = run_of(tmp_path / "whole"), run_of(tmp_path / "killed")
    content = killed.generator.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    turned = json.dumps(dict(reversed(json.loads(content[8:end]).items()))).encode()
    killed.generator.write_bytes(len(turned).to_bytes(8, "little") + turned + content[end:])
    assert differences(whole, killed) == []


def test_a_difference_in_the_last_bit_is_detected(tmp_path: Path) -> None:
    whole, killed = run_of(tmp_path / "whole"), run_of(tmp_path / "killed")
    content = bytearray(killed.generator.read_bytes())
    content[-1] ^= 1
    killed.generator.write_bytes(content)
    assert differences(whole, killed) == ["generator.safetensors"]


def test_a_run_that_differs_is_an_error_with_exit_code_1() -> None:
    found = Rehearsal((Loss(252, 200, 3.0),), ("metrics.jsonl",), 1000, 50.0)
    assert found.refusal is not None
    assert (found.refusal.code, found.refusal.exit_code) == ("rehearsal", 1)
    assert "metrics.jsonl" in found.refusal.message
    assert found.as_json()["equal"] is False
    assert not any("Equal" in line for line in found.as_lines())


# What a loss costs


def test_a_loss_costs_half_the_interval_on_average_at_the_speed_after_the_first_report(tmp_path: Path) -> None:
    reports = [{"images": 250, "seconds": 30.0}, {"images": 500, "seconds": 32.0}, {"images": 1000, "seconds": 40.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
    config = resolve(TrainConfig(kimg=1000.0), shorter_side_px=32, device="cpu", has_fast_bfloat16=False)
    assert (checkpoint_images(config), measured_speed(RunFolder(tmp_path))) == (20000, 75.0)
    response = Rehearsal((), (), 20000, 75.0).as_json()
    assert response["at_most"] == {"images": 20000, "minutes": pytest.approx(20000 / 75 / 60)}
    assert response["on_average"] == {"images": 10000, "minutes": pytest.approx(20000 / 75 / 120)}


@pytest.mark.parametrize(
    ("interval", "images_per_second", "hinted"),
    [(20000, 100.0, None), (20000, 10.0, 3.0), (6000, 10.0, None), (6001, 10.0, 3.0), (1000, 1.0, 0.3)],
)
def test_a_smaller_interval_is_suggested_if_a_loss_costs_more_than_ten_minutes(
    interval: int, images_per_second: float, hinted: float | None
) -> None:
    found = Rehearsal((), (), interval, images_per_second)
    assert found.checkpoint_kimg == hinted
    assert any("--checkpoint-kimg" in line for line in found.as_lines()) == (hinted is not None)


@pytest.mark.parametrize(
    ("interval", "costs"),
    [
        (30, "less than 1 s) on average and 30 (less than 1 s)"),
        (2000, "10 s) on average and 2000 (20 s)"),
        (20000, "2 min) on average and 20000 (3 min)"),
        (720000, "60 min) on average and 720000 (2 h 00 min)"),
    ],
)
def test_the_cost_of_a_loss_has_a_suitable_unit(interval: int, costs: str) -> None:
    lines = Rehearsal((), (), interval, images_per_second=100.0).as_lines()
    assert any(costs in line for line in lines)
    assert not any("0.0 min" in line for line in lines)
