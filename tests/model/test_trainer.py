"""A run: its folder, its numbers, resuming, and what it refuses."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.builders import messages_of, save_images
from support.kills import OPTIONS, everything, kill_and_start_again, stop_at
from support.programs import command_line, environment, fast_python, run_in

from msggan import Run, TrainConfig, Trainer, augmentation, load_generator, steps
from msggan.data.sources import ImageDataset
from msggan.errors import DataError, OutOfMemoryError, RunFolderError, TrainingError
from msggan.runs.checkpoint import newest_checkpoint
from msggan.signs import SENTENCES, sentences
from msggan.steps import MEASURED
from msggan.tracking.metrics_log import TIMINGS, read_metrics
from msggan.trainer import Interval
from orchestration.runs import read_status
from orchestration.status import status_lines

SMALL: dict[str, Any] = {"resolution": 8, "latent_size": 8, "batch_size": 4, "penalty_interval": 2, "num_samples": 4}


def trainer(data: Path, run_dir: Path, *, workers: int = 0, **options: Any) -> Trainer:
    config = TrainConfig(**{**SMALL, "kimg": 0.08, **options})
    return Trainer(config, data=data, run_dir=run_dir, workers=workers, messages=io.StringIO())


def digest_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


# What a run leaves behind


def test_a_run_writes_the_documented_files(tiny_images: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    result = trainer(tiny_images, run_dir, sample_kimg=0.04, checkpoint_kimg=0.02).run()

    assert (result.state, result.images_seen, result.run_dir) == ("completed", 80, run_dir)
    config = json.loads((run_dir / "config.json").read_text())
    assert config["format_version"] == 1
    assert None not in config.values()
    assert {path.name for path in (run_dir / "samples").iterdir()} == {
        f"{images:09d}_{kind}.png" for images in (40, 80) for kind in ("4px", "8px", "scales")
    }
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {
        f"{images:09d}.{kind}" for images in (40, 60, 80) for kind in ("json", "safetensors")
    }
    assert "parameters" in (run_dir / "generator_config.txt").read_text()
    assert "parameters" in (run_dir / "discriminator_config.txt").read_text()
    assert not list(run_dir.rglob("*.part"))


def test_the_time_decides_which_intervals_are_reported_and_not_what_their_reports_have(
    tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: dict[float, list[dict[str, float]]] = {}
    monkeypatch.setattr("msggan.trainer.REPORT_IMAGES", 50)
    for seconds in (0.0, math.inf):
        monkeypatch.setattr("msggan.trainer.REPORT_SECONDS", seconds)
        monkeypatch.setattr("msggan.trainer.STEPS_TIMED", 8)
        run_dir = tmp_path / str(seconds)
        ours = trainer(tiny_images, run_dir, batch_size=20, kimg=0.24, metric_kimg=0.1, precision="float32")
        ours.run()
        reports[seconds] = read_metrics(run_dir / "metrics.jsonl")
    every, few = reports.values()
    assert [report["images"] for report in every] == [60, 100, 160, 200, 240]
    assert [report["images"] for report in few] == [60, 100, 200, 240]  # the first, the evaluations and the end
    losses = {report["images"]: (report["d_loss"], report["g_loss"]) for report in every}
    assert [(report["d_loss"], report["g_loss"]) for report in few] == [losses[report["images"]] for report in few]
    keys = {"images", "kimg", *MEASURED, "dropped_updates", *TIMINGS}
    of_scales = {"scale_difference", "scale_gradient_4", "scale_gradient_8"}
    measured = {"swd", "swd_8", "variance_ratio", *of_scales, *(f"sign_{name}" for name in SENTENCES)}
    assert [set(report) for report in few] == [keys, *3 * [keys | measured]]
    assert measured_best(run_dir)["measure"] == "swd"  # 24 images are too few for the others
    shares = r", of which [\d.]+ % steps, [\d.]+ % data, .* % evaluation, .* % samples, .* % checkpoints, .* % reports"
    assert re.search(rf"\nTime: \d+ s{shares}\.\nDone", messages_of(ours))
    assert len(re.findall(r"\nAt this speed, the rest of the run takes about \d+ s\.\n", messages_of(ours))) == 1


def test_generator_safetensors_has_the_average(tiny_images: Path, tmp_path: Path) -> None:
    ours = trainer(tiny_images, tmp_path / "run")
    ours.run()
    loaded = load_generator(tmp_path / "run")
    assert not loaded.training
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, ours.ema.state_dict()[name].contiguous())
    moved = shutil.copy(tmp_path / "run" / "generator.safetensors", tmp_path / "elsewhere.safetensors")
    assert load_generator(moved).depth == 2


def test_the_reported_losses_are_the_means_of_the_steps_since_the_last_report(
    tiny_images: Path, tmp_path: Path
) -> None:
    ours = trainer(tiny_images, tmp_path / "run", kimg=0.012, precision="float64")
    steps: list[dict[str, torch.Tensor]] = []
    plain_step = ours.training_state.step
    ours.training_state.step = lambda reals, latents: steps.append(plain_step(reals, latents)) or steps[-1]  # type: ignore
    ours.run()
    (report,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [len(step) for step in steps] == [7, 6, 7]  # every other step is penalized
    for name in steps[0]:
        values = [step[name].item() for step in steps if name in step]
        assert report[name] == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert report["seconds_per_kimg"] == pytest.approx(1000 / report["images_per_second"])
    assert 50 < report["peak_memory_mib"] < 10_000


def test_a_discriminator_that_wins_is_reported_once_also_by_a_run_that_resumes(
    tiny_images: Path, tmp_path: Path
) -> None:
    absurd = {"r1_gamma": 0.0, "r2_gamma": 0.0, "g_lr": 1e-6, "d_lr": 0.05, "precision": "float32"}
    reported = ""
    for kimg in (0.4, 0.6):
        ours = trainer(tiny_images, tmp_path / "run", kimg=kimg, metric_kimg=0.1, sample_kimg=1.0, **absurd)
        ours.run()
        reported += messages_of(ours)
    assert [report["sign_saturated"] for report in read_metrics(tmp_path / "run" / "metrics.jsonl") if "swd" in report][
        -2:
    ] == [1.0, 1.0]
    assert reported.count("The discriminator recognizes nearly all generated images") == 1
    run = read_status("run", str(tmp_path))
    assert run.as_json()["signs"] == run.signs == list(sentences(run.metrics).values())
    assert any("with larger --r1-gamma and --r2-gamma" in line for line in status_lines(run))


# Resuming


def test_the_interval_of_a_checkpoint_from_before_scores_were_measured_goes_on() -> None:
    earlier = {"steps": 4, "seconds": 1.5, "d_loss": 6.0, "g_loss": 2.0, "d_missing": 1, "g_missing": 0}
    interval = Interval.from_plain(earlier)
    interval.add(dict(zip(MEASURED, torch.tensor([2.0, float("nan"), 3.0, 4.0, 5.0, 6.0]), strict=False)))
    means = {"d_loss": 2.0, "g_loss": 0.5, "d_real": 3.0, "d_fake": 4.0, "d_gradient_norm": 5.0, "g_gradient_norm": 6.0}
    assert interval.means() == Interval.from_plain(interval.plain()).means() == means


@pytest.mark.parametrize("precision", ["float32", "bfloat16", pytest.param("float64", marks=pytest.mark.slow)])
def test_resuming_equals_never_stopping(tiny_images: Path, tmp_path: Path, precision: str) -> None:
    options = {"precision": precision, "kimg": 0.12, "checkpoint_kimg": 0.02, "sample_kimg": 0.04, "metric_kimg": 0.06}
    options["snapshot_kimg"] = 0.04
    options |= {"beta1": 0.5, "lr_final": 0.1}  # so that both averages of Adam matter, and the number of images
    trainer(tiny_images, tmp_path / "whole", **options).run()

    for stop_after in (44, 72):
        stop_at(trainer(tiny_images, tmp_path / "parts", **options), stop_after)
    trainer(tiny_images, tmp_path / "parts", workers=3, **options).run()

    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_adaptive_augmentation_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its strength is another one after every 16 held-out images, of which every second step scores 4."""
    monkeypatch.setattr(augmentation, "IMAGES_PER_ADJUSTMENT", 16)
    images = save_images(tmp_path / "images", 600, 8)
    options = {"augment": "adaptive", "augment_strength": 0.4, "checkpoint_kimg": 0.02}
    trainer(images, tmp_path / "whole", **options).run()
    stop_at(trainer(images, tmp_path / "parts", **options), 52)
    trainer(images, tmp_path / "parts", **options).run()
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")

    (report,) = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert round(abs(report["augment_strength"] - 0.4) / 0.8 * 50_000) in (0, 64)  # up or down after 32 and 64 images
    assert math.isfinite(report["overfitting"])
    assert 0 <= report["copies"] <= 0.1


MEASURES_OF_IMAGES = (
    *("swd", "swd_8", "precision", "recall", "kernel_distance", "classifier_accuracy", "classifier_margin"),
    *("variance_ratio", "scale_difference"),
)


def measured_best(run_dir: Path) -> dict[str, Any]:
    with safe_open(run_dir / "generator_best.safetensors", framework="pt") as file:
        best: dict[str, Any] = json.loads(file.metadata()["best"])
    return best


def test_the_best_weights_are_those_that_measured_best_and_never_of_steps_that_will_be_repeated(tmp_path: Path) -> None:
    images = save_images(tmp_path / "images", 40, 8)
    options = {
        "kimg": 0.12,
        "metric_kimg": 0.02,
        "checkpoint_kimg": 0.04,
        "snapshot_kimg": 0.03,
        "seed": 4,
        "precision": "float32",
    }
    run_dir, averages = tmp_path / "run", dict[int, dict[str, torch.Tensor]]()
    ours = trainer(images, run_dir, **options)
    plain_report = ours._report

    def report(measured: dict[str, float]) -> None:
        averages[ours.images_seen] = {name: tensor.clone() for name, tensor in ours.ema.state_dict().items()}
        plain_report(measured)

    ours._report = report  # type: ignore[method-assign]
    ours.run()
    reports = read_metrics(run_dir / "metrics.jsonl")
    best = min(reports, key=lambda each: each["classifier_margin"])
    assert measured_best(run_dir) == {
        "images_seen": best["images"],
        "measure": "classifier_margin",
        "measured": {name: best[name] for name in MEASURES_OF_IMAGES},
    }
    loaded = load_generator(run_dir, best=True).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in averages[best["images"]].items())
    best_image, early = Run(run_dir).images([1], best=True), Run(run_dir).images([1], at_kimg=0.03)
    assert (best_image != early).any()
    assert sorted(path.name for path in (run_dir / "snapshots").iterdir()) == [
        f"{images:09d}.safetensors" for images in (32, 60, 92, 120)
    ]
    whole = everything(run_dir)

    for damaged in (80, 120):
        (run_dir / "checkpoints" / f"{damaged:09d}.json").write_text("{")
    stop_at(trainer(images, run_dir, **options), 48)
    before = min((each for each in reports if each["images"] <= 40), key=lambda each: each["classifier_margin"])
    assert measured_best(run_dir)["images_seen"] == before["images"] < best["images"]
    assert [path.name for path in (run_dir / "snapshots").iterdir()] == ["000000032.safetensors"]
    trainer(images, run_dir, **options).run()
    assert everything(run_dir) == whole

    trainer(images, run_dir, **{**options, "kimg": 0.16, "best_by": "swd"}).run()
    later = [each["swd"] for each in read_metrics(run_dir / "metrics.jsonl") if each["images"] > 120]
    assert measured_best(run_dir)["measured"]["swd"] <= min(later)  # from then on, that decides


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_keeps_the_precision_that_auto_chose_first(
    tiny_images: Path, tmp_path: Path, precision: str
) -> None:
    trainer(tiny_images, tmp_path / "run", precision=precision, kimg=0.04).run()
    again = trainer(tiny_images, tmp_path / "run", precision="auto", kimg=0.08)
    assert again.config.precision == precision
    assert again.run().state == "completed"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["precision"] == precision


def test_a_finished_run_can_be_made_longer(tiny_images: Path, tmp_path: Path) -> None:
    trainer(tiny_images, tmp_path / "whole", kimg=0.12, checkpoint_kimg=1).run()
    trainer(tiny_images, tmp_path / "run", kimg=0.08, checkpoint_kimg=1).run()
    before = read_metrics(tmp_path / "run" / "metrics.jsonl")
    again = trainer(tiny_images, tmp_path / "run", kimg=0.08)
    result = again.run()
    assert (result.images_seen, result.metrics) == (80, before[-1])
    assert f"Samples: {tmp_path / 'run' / 'samples' / '000000080_8px.png'}." in messages_of(again)
    assert trainer(tiny_images, tmp_path / "run", kimg=0.12).run().images_seen == 120
    assert everything(tmp_path / "run")[0] == everything(tmp_path / "whole")[0]


MOMENTS = {
    "before the discriminator's update": "discriminator_optimizer.step_if_finite",
    "between the two networks": "_generator_gradients",
    "before the images are counted": "_count_dropped",
    "before the average": "update_ema",
}


def interrupt_once(
    ours: Trainer, monkeypatch: pytest.MonkeyPatch, moment: str, *, step: int, by: type[BaseException]
) -> None:
    """Raises an exception in that step, at that moment, once."""
    *owners, name = MOMENTS[moment].split(".")
    owner: Any = steps if moment == "before the average" else ours.training_state
    for attribute in owners:
        owner = getattr(owner, attribute)
    plain, calls = getattr(owner, name), itertools.count()

    def interrupted(*args: Any) -> Any:
        if next(calls) == step:
            raise by
        return plain(*args)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("precision", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_run_after_a_step_that_was_interrupted_equals_never_stopping(
    tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    options = {"precision": precision, "kimg": 0.04, "checkpoint_kimg": 0.02}
    trainer(tiny_images, tmp_path / "whole", **options).run()
    for number, (moment, step, by) in enumerate(
        [
            *((moment, 7, KeyboardInterrupt) for moment in MOMENTS),
            ("between the two networks", 0, KeyboardInterrupt),
            ("before the discriminator's update", 7, MemoryError),
        ]
    ):
        ours = trainer(tiny_images, tmp_path / str(number), **options)
        generator = ours.ema
        with monkeypatch.context() as patched:
            interrupt_once(ours, patched, moment, step=step, by=by)
            with pytest.raises(OutOfMemoryError if by is MemoryError else by):
                ours.run()
        assert ours.run().state == "completed"
        assert everything(tmp_path / str(number)) == everything(tmp_path / "whole"), (moment, step, by)
        assert ours.ema is generator, "who holds a network has the trained one"


def test_steps_outside_of_run_are_not_part_of_the_run(tiny_images: Path, tmp_path: Path) -> None:
    trainer(tiny_images, tmp_path / "whole").run()
    ours = trainer(tiny_images, tmp_path / "run")
    for _ in range(2):
        ours.step(torch.zeros(4, 3, 8, 8), torch.ones(4, 8))
    ours.run()
    assert everything(tmp_path / "run") == everything(tmp_path / "whole")


def test_run_after_the_last_checkpoint_could_not_be_written_writes_it(tiny_images: Path, tmp_path: Path) -> None:
    trainer(tiny_images, tmp_path / "whole").run()
    ours = trainer(tiny_images, tmp_path / "run")
    ours.folder.path.mkdir()
    ours.folder.checkpoints.write_text("A file where the folder is to be.")
    with pytest.raises(TrainingError, match="checkpoints"):
        ours.run()
    ours.folder.checkpoints.unlink()
    assert (ours.run().state, ours.run().notice[:13]) == ("completed", "Nothing to do")
    assert everything(tmp_path / "run") == everything(tmp_path / "whole")


def test_how_an_earlier_run_ended_does_not_end_the_next(tiny_images: Path, tmp_path: Path) -> None:
    """A checkpoint that could not be written, in a run that was interrupted before it could say so."""
    ours = trainer(tiny_images, tmp_path / "run", checkpoint_kimg=0.02)
    ours.folder.path.mkdir()
    ours.folder.checkpoints.write_text("A file where the folder is to be.")
    stop_at(ours, 24)
    ours.folder.checkpoints.unlink()
    del ours.training_state.step
    assert ours.run().state == "completed"


# Nothing to do


def fingerprint_of(path: Path) -> dict[str, tuple[bytes, int]]:
    """The content of each file and when it was last written."""
    return {str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files_in(path)}


def files_in(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]


@pytest.mark.parametrize("kimg", [None, 0.04])
def test_a_finished_run_is_not_changed(tiny_images: Path, tmp_path: Path, kimg: float | None) -> None:
    run_dir = tmp_path / "run"
    finished = trainer(tiny_images, run_dir)
    expected = finished.run()
    before = fingerprint_of(run_dir)
    config = TrainConfig(kimg=kimg, num_samples=9) if kimg else TrainConfig()
    again = Trainer(config, data=tiny_images, run_dir=run_dir, messages=io.StringIO())
    result = again.run()
    samples = run_dir / "samples" / "000000080_8px.png"
    notice = f"Nothing to do: {run_dir} has 0.08 kimg. Samples: {samples}. Use a larger --kimg."
    assert result == replace(expected, notice=notice)
    assert messages_of(again).splitlines()[-1] == notice
    assert fingerprint_of(run_dir) == before
    for name, tensor in again.training_state.tensors().items():
        assert torch.equal(tensor, finished.training_state.tensors()[name]), name


@pytest.mark.parametrize("state", ["cancelled", "failed"])
def test_a_run_that_has_more_than_the_requested_kimg_keeps_its_record_and_its_length(
    tiny_images: Path, tmp_path: Path, state: str
) -> None:
    run_dir = tmp_path / "run"
    ours = trainer(tiny_images, run_dir, checkpoint_kimg=0.02)
    stop_at(ours, 48)
    note = run_dir / "run.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "state": state, "reason": "because"}))
    before = fingerprint_of(run_dir)
    result = trainer(tiny_images, run_dir, kimg=0.04).run()
    assert (result.state, result.images_seen) == (state, 40)
    assert result.notice.startswith(f"Nothing to do: {run_dir} has 0.04 kimg.")
    assert fingerprint_of(run_dir) == before
    (again,) = result.next
    assert again.endswith(f"-m msggan.train --data {tiny_images} --run-dir {run_dir}")
    assert Trainer(TrainConfig(), data=tiny_images, run_dir=run_dir).run().images_seen == 80


def test_a_run_that_died_before_it_recorded_its_end_is_completed(tiny_images: Path, tmp_path: Path) -> None:
    trainer(tiny_images, tmp_path / "run").run()
    note = tmp_path / "run" / "run.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "state": "running", "ended": None}))
    result = trainer(tiny_images, tmp_path / "run").run()
    assert (result.state, result.images_seen, result.notice) == ("completed", 80, "")
    assert json.loads(note.read_text())["state"] == "completed"


def test_a_run_that_is_made_longer_is_not_measured_more_often(tiny_images: Path, tmp_path: Path) -> None:
    trainer(tiny_images, tmp_path / "run", kimg=0.02).run()
    assert trainer(tiny_images, tmp_path / "run", kimg=1000).config.metric_kimg == 50


@pytest.mark.parametrize(
    ("kills", "kimg", "is_real"), [(2, 0.4, False), pytest.param(3, 1.0, True, marks=pytest.mark.slow)]
)
def test_killed_at_any_moment_and_started_again_ends_with_the_same_bytes(
    tiny_images: Path, tmp_path: Path, *, kills: int, kimg: float, is_real: bool
) -> None:
    args = ["--data", tiny_images, *OPTIONS, "--kimg", kimg, "--checkpoint-kimg", 0.1, "--metric-kimg", 0.5]
    whole = run_in(tmp_path, "msggan.train", *args, "--run-dir", tmp_path / "whole")
    assert whole.exit_code == 0
    chance = random.Random(1)  # noqa: S311 - no secret; the first of them is at the start
    loss = kill_and_start_again(
        args, tmp_path / "killed", kills=kills, chance=chance, workers=(0, 3, 1), is_real=is_real
    )
    assert loss.kills >= kills // 2  # a fast machine may be done before the last
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")


@pytest.mark.parametrize(
    ("number", "state", "exit_code"), [("SIGINT", "interrupted", 130), ("SIGTERM", "cancelled", 6)]
)
def test_a_signal_saves_a_checkpoint_and_prints_how_to_resume(
    tiny_images: Path, tmp_path: Path, number: str, state: str, exit_code: int
) -> None:
    args = ["--data", tiny_images, *OPTIONS, "--kimg", 1000, "--run-dir", tmp_path / "run", "-o", "json"]
    child = subprocess.Popen(
        command_line("msggan.train", *args, python=fast_python()),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    while not read_metrics(tmp_path / "run" / "metrics.jsonl"):
        time.sleep(0.05)
        assert child.poll() is None
    child.send_signal(getattr(signal, number))
    stdout, stderr = child.communicate()
    assert child.returncode == exit_code
    result = json.loads(stdout)
    assert result["state"] == state
    assert "Run the same command to resume." in stderr
    checkpoint, _ = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.images_seen == result["images_seen"] > 0


@pytest.mark.parametrize("damage", ["truncated tensors", "flipped bit", "half-written state", "empty"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    tiny_images: Path, tmp_path: Path, damage: str
) -> None:
    run_dir = tmp_path / "run"
    trainer(tiny_images, run_dir, checkpoint_kimg=0.02).run()
    expected = everything(run_dir)
    newest = sorted((run_dir / "checkpoints").glob("*.json"))[-1]
    tensors = newest.with_suffix(".safetensors")
    content = bytearray(tensors.read_bytes())
    if damage == "truncated tensors":
        tensors.write_bytes(content[:-100])
    elif damage == "flipped bit":
        content[len(content) // 2] ^= 1
        tensors.write_bytes(content)
    elif damage == "half-written state":
        newest.write_bytes(newest.read_bytes()[:50])
    else:
        newest.write_bytes(b"")
    again = trainer(tiny_images, run_dir)
    again.run()
    assert f"{newest}: damaged" in messages_of(again)
    assert "Resuming" in messages_of(again)
    assert everything(run_dir) == expected


# Refusals: nothing is written, and the message names what to change


def test_a_run_of_another_configuration_is_refused_and_every_difference_named(
    tiny_images: Path, tmp_path: Path
) -> None:
    trainer(tiny_images, tmp_path / "run").run()
    before = digest_of(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"--g-lr is 0\.\d+, not 0\.5, --seed is 0, not 3\."):
        trainer(tiny_images, tmp_path / "run", g_lr=0.5, seed=3, kimg=5)
    assert digest_of(tmp_path / "run") == before


def test_other_images_than_before_are_refused(tiny_images: Path, tmp_path: Path) -> None:
    trainer(tiny_images, tmp_path / "run").run()
    before = digest_of(tmp_path / "run")
    shutil.copy(tiny_images / "00.png", tiny_images / "copy.png")
    with pytest.raises(RunFolderError, match=r"not the images .* was trained on \(24 then, 25 now\)"):
        trainer(tiny_images, tmp_path / "run", kimg=0.2).run()
    assert digest_of(tmp_path / "run") == before


def test_fewer_images_than_the_batch_are_refused_with_a_batch_that_fits(tiny_images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"24 images to train on are fewer than --batch-size 32\.\n.*--batch-size 16"):
        trainer(tiny_images, tmp_path / "run", batch_size=32)
    assert not (tmp_path / "run").exists()


def test_adaptive_augmentation_without_held_out_images_is_refused(tiny_images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"of 24 images none is held out\.\nUse --augment fixed, or add images"):
        trainer(tiny_images, tmp_path / "run", augment="adaptive")
    assert not (tmp_path / "run").exists()


def test_one_image_is_refused_with_how_many_are_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 image is not enough to train on\.\n.*200 or more\.$"):
        trainer(save_images(tmp_path / "one", 1, 8), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("count", "are_few"), [(199, True), (200, False)])
def test_few_images_cause_a_warning(tmp_path: Path, count: int, are_few: bool) -> None:
    ours = trainer(save_images(tmp_path / "images", count, 4), tmp_path / "run", resolution=4)
    assert (f"Few images ({count}):" in messages_of(ours)) == are_few


def test_a_run_folder_among_the_images_does_not_become_data(tiny_images: Path, tmp_path: Path) -> None:
    run_dir = tiny_images / "runs" / "one"
    first = trainer(tiny_images, run_dir, kimg=0.04)
    first.run()
    assert list(run_dir.glob("samples/*.png"))
    shutil.copytree(run_dir, tiny_images / "one-run")
    again = trainer(tiny_images, run_dir, kimg=0.08)
    assert again.run().images_seen == 80
    assert again.dataset.fingerprint == first.dataset.fingerprint
    assert "Skipped 2 run folders: one-run, runs/one." in messages_of(again)
    assert "Skipped" not in messages_of(first)


def test_the_folder_of_the_images_cannot_be_the_run_folder(tiny_images: Path) -> None:
    before = digest_of(tiny_images)
    with pytest.raises(DataError, match="tiny: is the folder of the images"):
        trainer(tiny_images, tiny_images / ".." / "tiny")
    assert digest_of(tiny_images) == before


@pytest.mark.parametrize(("options", "tried"), [({"resolution": None}, 150), ({"resolution": 8}, 300)])
def test_an_explicit_resolution_reads_no_headers(tmp_path: Path, options: dict[str, Any], tried: int) -> None:
    (tmp_path / "images").mkdir()
    for number in range(300):  # of which every other one is asked for its size
        (tmp_path / "images" / f"{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match=f"no readable image in .*, of {tried} tried"):
        trainer(tmp_path / "images", tmp_path / "run", **options)


def test_files_of_other_kinds_are_named_before_training_and_before_a_complaint(
    tiny_images: Path, tmp_path: Path
) -> None:
    for number in range(3):
        (tiny_images / f"{number}.mp4").touch()
    ours = trainer(tiny_images, tmp_path / "run")
    assert messages_of(ours).splitlines()[1] == "Skipped 3 files: 3 .mp4."
    messages = io.StringIO()
    with pytest.raises(DataError, match="fewer than --batch-size 32"):
        Trainer(TrainConfig(batch_size=32), data=tiny_images, run_dir=tmp_path / "other", messages=messages)
    assert messages.getvalue().splitlines()[1] == "Skipped 3 files: 3 .mp4."


def test_a_run_folder_that_cannot_be_made_is_refused(tiny_images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("I was here first.")
    with pytest.raises(RunFolderError, match="file/run: cannot be written"):
        trainer(tiny_images, tmp_path / "file" / "run").run()


def test_weights_of_another_shape_are_refused_by_name(tiny_images: Path, tmp_path: Path) -> None:
    trainer(tiny_images, tmp_path / "run").run()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "latent_size": 16}))
    ended = run_in(tmp_path, "msggan.train", "--data", tiny_images, "--run-dir", tmp_path / "run")
    assert ended.exit_code == 2
    assert "has shape" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_image_that_vanishes_during_the_run_ends_it_with_its_name(tiny_images: Path, tmp_path: Path) -> None:
    ours = trainer(tiny_images, tmp_path / "run", kimg=1)
    assert isinstance(ours.dataset, ImageDataset)
    ours.dataset._is_decoded[:] = False  # as if they had not fitted into memory
    (tiny_images / "07.png").unlink()
    with pytest.raises(TrainingError, match=r"07\.png") as stopped:
        ours.run()
    assert stopped.value.exit_code == 1


def test_skipped_files_are_listed_at_the_end(tiny_images: Path, tmp_path: Path) -> None:
    (tiny_images / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    ours = trainer(tiny_images, tmp_path / "run")
    ours.run()
    last = messages_of(ours).splitlines()
    assert any(line.startswith("Skipped 1 unreadable image: broken.jpg (") for line in last[-3:])


# Real photographs


@pytest.mark.skipif("MSGGAN_TEST_DATA" not in os.environ, reason="MSGGAN_TEST_DATA names no folder of photographs")
@pytest.mark.parametrize("kind", ["clothing", pytest.param("emoji", marks=pytest.mark.slow)])
def test_it_trains_on_real_images(tmp_path: Path, kind: str) -> None:
    config = TrainConfig(resolution=16, latent_size=16, kimg=0.1)
    data = Path(os.environ["MSGGAN_TEST_DATA"]) / kind
    ours = Trainer(config, data=data, run_dir=tmp_path, messages=io.StringIO())
    assert ours.run().metrics["swd"] > 0
    assert not ours.dataset.skipped
    assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "generator.safetensors").values())


def test_updates_that_are_not_finite_end_the_run_with_a_diagnosis_and_touch_no_checkpoint(
    tiny_images: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    args = ["--data", tiny_images, "--run-dir", run_dir, *OPTIONS, "--checkpoint-kimg", 0.004, "--sample-kimg", 0.02]
    ended = run_in(tmp_path, "msggan.train", *args, "--kimg", 0.4, "--d-lr", 100, "--g-lr", 100, "-o", "json")
    assert ended.exit_code == 1
    error = ended.json["error"]
    assert error["code"] == "training"
    assert "10 updates in a row were dropped" in error["message"]
    assert "loss or gradient is not finite" in error["message"]
    assert "--g-lr 100 " in error["hint"]

    checkpoint, damaged = newest_checkpoint(run_dir / "checkpoints")
    assert checkpoint is not None
    assert not damaged
    assert f"at {checkpoint.images_seen / 1000:g} kimg" in error["hint"]
    assert all(tensor.isfinite().all() for tensor in checkpoint.tensors.values())
    reached = float(error["message"].split(" kimg")[0].rpartition(" ")[2]) * 1000
    assert checkpoint.images_seen == reached - 10 * 4  # a checkpoint each step, and none of the last ten


def test_a_step_without_enough_memory_is_computed_in_parts_from_then_on(tiny_images: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    ours = trainer(tiny_images, run_dir, kimg=0.02)
    judged: list[int] = []

    def fail_at_the_fifth(*_: object) -> None:
        judged.append(len(judged))
        if len(judged) == 5:
            raise torch.OutOfMemoryError

    ours.training_state.discriminator_copy.network.last.register_forward_hook(fail_at_the_fifth)
    assert ours.run().state == "completed"
    assert "each batch is computed in parts of 2 images (--micro-batch 2)" in messages_of(ours)
    assert json.loads((run_dir / "config.json").read_text())["micro_batch"] == 2
    again = trainer(tiny_images, run_dir, kimg=0.04)
    assert (again.training_state.part, again.run().images_seen) == (2, 40)


def test_a_dropped_update_is_counted_and_its_loss_is_in_no_mean(tiny_images: Path, tmp_path: Path) -> None:
    ours = trainer(tiny_images, tmp_path / "run", kimg=0.08, metric_kimg=0.02)
    losses: list[float] = []
    plain = ours.step

    def step(reals: torch.Tensor, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        is_bad = ours.images_seen in (8, 40, 44, 48, 52, 56)  # one of the five before 20; all of those before 60
        taken = plain(reals * float("nan") if is_bad else reals, latents)
        losses.append(float(taken["d_loss"]))
        return taken

    ours.step = step  # type: ignore[method-assign]
    assert ours.run().state == "completed"
    first, second, third, fourth = read_metrics(tmp_path / "run" / "metrics.jsonl")
    good = [losses[step] for step in (0, 1, 3, 4)]
    assert first["d_loss"] == pytest.approx(sum(good) / 4)
    assert (first["dropped_updates"], second["dropped_updates"], third["dropped_updates"]) == (1, 1, 6)
    assert set(MEASURED) & third.keys() == {"d_fake"}  # the images were bad, not what was generated
    assert set(MEASURED) <= fourth.keys()
    checkpoint, _ = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.state["dropped_updates"] == 6
