"""`msggan-aml evaluate` and `python -m msggan.evaluate`: what they measure of a run, write and refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support.builders import save_images
from support.programs import run_in
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import quality
from msggan.commands.verbs import MEASURES, EvaluateOptions, show_evaluation
from msggan.config import TrainConfig
from msggan.data.sources import open_source
from msggan.errors import CheckpointError, DataError, MsgganError
from msggan.evaluate import evaluate_run, open_images
from msggan.evaluation.report import OF_COPIES, OF_INCEPTION, OF_SETS, Evaluator
from msggan.networks import NO_CLASSES
from msggan.trainer import Trainer

TINY = TrainConfig(resolution=8, latent_size=8, batch_size=4, kimg=0.008)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 400 images of noise and the run `noise`, which has been trained on them."""
    workdir = tmp_path_factory.mktemp("workdir")
    save_images(workdir / "images", 400, 8)
    Trainer(TINY, data=workdir / "images", run_dir=workdir / "runs" / "noise", device="cpu").run()
    return workdir


@pytest.mark.slow
def test_a_run_is_evaluated_by_name(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = run_in(workdir, "msggan-aml", "evaluate", "noise", "--num", "64", "--best", "-o", "json")
    assert named.exit_code == 0, named.stderr
    result, out = named.json, workdir / "runs" / "noise" / "evaluation"
    assert json.loads((out / "evaluation.json").read_text()) == result
    assert result["weights"] == "generator_best.safetensors"
    images = result["images"]
    assert images["training"] + images["held_out"] == 400
    assert images["samples"] == 64
    assert images["compared"] == min(64, images["held_out"])
    assert list(result["measures"]) == [*OF_SETS, *OF_COPIES]
    assert list(MEASURES) == [*OF_SETS, *OF_INCEPTION, *OF_COPIES]
    for name, measure in result["measures"].items():
        for each in (measure, measure["real"]) if name != "c_t" else (measure["real"],):
            low, high = each["interval"]
            assert low <= each["value"] <= high
    assert result["cells"] == 1
    assert result["measures"]["classifier_accuracy"]["value"] > 0.9  # after two steps
    assert result["measures"]["recall"]["value"] < 0.1 < result["measures"]["recall"]["real"]["value"]
    assert (result["memorised"], result["not_measured"]) == (False, {})
    assert list(result["scale_disagreement"]) == ["4"]
    assert result["images_seen"] == 8
    assert result["scale_gradients"]["4"] > result["scale_gradients"]["8"] > 0  # at first, coarse scales learn
    for name in ("closest_samples.png", "closest_held_out.png"):
        with Image.open(out / name) as picture:
            assert picture.width == picture.height >= 512  # 32 pairs, eight images in a row

    show_evaluation(result, "text")
    heading, precision, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["MEASURE", "GENERATED", "REAL", "BEST"]
    assert precision.split()[:2] == ["precision", f"{result['measures']['precision']['value']:.3f}"]
    assert lines[-5].startswith("Gradient that each scale received")
    assert lines[-4].startswith("No sign of memorisation: ")
    assert lines[-3:] == result["files"]


@pytest.mark.slow
def test_several_runs_are_one_table(workdir: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        shutil.copytree(workdir / "runs" / "noise", tmp_path / f"noise-{seed}")
    save_images(tmp_path / "others", 450, 8)  # the first 400 are those that were trained on
    args = [*(str(tmp_path / f"noise-{seed}") for seed in (0, 1)), "--num", "64", "--device", "cpu"]
    for more, compared in ([], "55"), (["--best", "--against", str(tmp_path / "others")], "105"):
        ended = CliRunner().invoke(quality.main, ["--runs", *args, *more, "--out", str(tmp_path / "table.md")])
        assert ended.exit_code == 0, ended.output
        heading, _, runs, reals = (tmp_path / "table.md").read_text().splitlines()
        columns = [cell.strip() for cell in heading.split("|")[1:-1]]
        row = dict(zip(columns, (cell.strip() for cell in runs.split("|")[1:-1]), strict=True))
        assert (row["runs"], row["seeds"], row["compared"], row["kimg"]) == ("noise", "2", compared, "0")
        assert row["recall"] == "0.00 ± 0.00"
        assert {"swd 8", "precision", "kernel", "classifier", "C_T", "copies by pixels", "scales 4"} <= row.keys()
        assert reals.startswith("| real images: images, 8 px | 1 |")
    assert len(json.loads((tmp_path / "table.json").read_text())) == 2


def test_few_images_leave_out_what_cannot_be_measured_and_are_read_as_the_run_read_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_images(tmp_path / "images", 19, 8)
    Image.new("RGB", (16, 8)).save(tmp_path / "images" / "wide.png")
    trainer = Trainer(replace(TINY, fit="pad"), data=tmp_path / "images", run_dir=tmp_path / "run", device="cpu")
    trainer.run()
    folder = trainer.folder
    images = open_images(folder.generator, folder, str(tmp_path / "images")).images(range(20))
    assert torch.equal(images, trainer.dataset.images(range(20)))
    result = evaluate_run(tmp_path / "run", EvaluateOptions(num=8, device="cpu"))
    notice = "none of these 20 images is held out, so samples are compared with half of the training images"
    assert notice in capsys.readouterr().err
    assert result["measures"] == {}
    assert "fewer than about 320" in result["not_measured"]["copying"]
    assert "8 images to compare are too few: 32" in result["not_measured"]["recall"]
    assert result["scale_disagreement"].keys() == {"4"}
    assert result["scale_gradients"].keys() == {"4", "8"}
    assert [Path(path).name for path in result["files"]] == ["evaluation.json", "closest_samples.png"]


class Replay(nn.Module):
    """A generator that has memorised: it returns these images, (N, 3, R, R) uint8, one after another."""

    depth, latent_size, classes = 2, 8, NO_CLASSES

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images, self.shown = nn.Parameter(images.float() / 127.5 - 1, requires_grad=False), 0

    def forward(self, latents: Tensor) -> list[Tensor]:
        images = self.images[self.shown : self.shown + len(latents)]
        self.shown += len(latents)
        return [functional.avg_pool2d(images, 2), images]


def test_training_images_are_reported_as_memorised_also_mirrored(workdir: Path) -> None:
    dataset = open_source(workdir / "images").dataset(resolution=8)
    training = dataset.images(range(48))
    report = Evaluator(Replay(training.flip(-1)), dataset, seeds=range(100, 148)).run()  # type: ignore[arg-type]
    assert report.memorised
    assert sorted(report.copied_seeds) == list(range(100, 148))
    assert sorted(report.pairs) == [(100 + number, number) for number in range(48)]
    assert report.measures["copying"].generated.value < 0.001
    assert report.measures["copies_by_pixels"].generated.value == 1
    assert report.scales[4].value < 0.02
    held_out = Evaluator(Replay(dataset.held_out_images()), dataset, seeds=range(dataset.held_out)).run()  # type: ignore[arg-type]
    assert not held_out.memorised
    assert held_out.measures["copying"].generated.value == 0.5


def no_weights(folder: Path) -> None:
    (folder / "runs" / "noise" / "generator.safetensors").unlink()


def data_elsewhere(folder: Path) -> None:
    state = folder / "runs" / "noise" / "run.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "data": str(folder / "gone")}))


def data_changed(folder: Path) -> None:
    (folder / "images" / "000.png").unlink()
    data_elsewhere(folder)


def data_unrecorded(folder: Path) -> None:
    (folder / "runs" / "noise" / "run.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "data", "kind", "message"),
    [
        (no_weights, None, CheckpointError, "has no weights yet"),
        (
            data_elsewhere,
            None,
            DataError,
            "gone: not found. .*noise was trained on the images there.\nSpecify .* --data",
        ),
        (data_unrecorded, None, DataError, "does not record which images it was trained on.\nSpecify .* --data PATH"),
        (
            data_changed,
            "images",
            DataError,
            r"not the images that .*noise was trained on \(400 then, 399 now\).\nRestore",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    workdir: Path,
    tmp_path: Path,
    *,
    spoil: Callable[[Path], None],
    data: str | None,
    kind: type[MsgganError],
    message: str,
) -> None:
    for name in ("images", "runs"):
        shutil.copytree(workdir / name, tmp_path / name)
    spoil(tmp_path)
    options = EvaluateOptions(data=str(tmp_path / data) if data else None, num=8, device="cpu")
    with pytest.raises(kind, match=message) as refused:
        evaluate_run(tmp_path / "runs" / "noise", options)
    assert refused.value.exit_code == 2


def test_weights_without_a_run_are_evaluated_against_the_images_that_are_given(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(workdir / "runs" / "noise" / "generator.safetensors", tmp_path)
    options = EvaluateOptions(data=str(workdir / "images"), num=2, device="cpu")
    result = evaluate_run(tmp_path / "generator.safetensors", options)
    assert result["measures"].keys() == set(OF_COPIES)
    assert "has no checkpoint, so these may not be the images" in capsys.readouterr().err


def test_wrong_options_are_reported_at_once(tmp_path: Path) -> None:
    args = [
        "--run-dir",
        "none",
        "--data",
        "nowhere",
        "--num",
        "1",
        "--seed",
        "-1",
        "--best",
        "--at",
        "1",
        "--inception",
        "no.pth",
        "-o",
        "json",
    ]
    ended = run_in(tmp_path, "msggan.evaluate", *args)
    assert ended.exit_code == 2
    lines = ended.json["error"]["message"].splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *("--run-dir none", "--num 1", "--seed -1", "--data nowhere", "--inception no.pth", "--best"),
    ]
