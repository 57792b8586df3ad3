"""Classes: where they come from, runs that are trained with them, and what cannot be a class."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from support.builders import messages_of, save_images
from support.kills import everything

from msggan import Run, TrainConfig, Trainer, load_generator
from msggan.check import examine
from msggan.commands.verbs import CheckOptions, EvaluateOptions, PackOptions
from msggan.data.classes import find_classes
from msggan.data.sources import open_source
from msggan.data.stream import SampleStream
from msggan.errors import DataError, RunFolderError, UsageError
from msggan.evaluate import evaluate_run
from msggan.pack import make_pack
from msggan.pictures.grids import inputs_of
from msggan.randomness import labels_of

COUNTS = {"dress": 12, "hat": 8, "shoes": 20}
SMALL: dict[str, Any] = {"resolution": 8, "latent_size": 8, "batch_size": 4, "num_samples": 7, "precision": "float32"}


def save_classes(folder: Path, counts: dict[str, int]) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        save_images(folder / name, count, 8, first=100 * number)
    return folder


def trainer(data: Path, run_dir: Path, **options: Any) -> Trainer:
    config = TrainConfig(**{**SMALL, "labels": "folders", "kimg": 0.08, "checkpoint_kimg": 1, **options})
    return Trainer(config, data=data, run_dir=run_dir, messages=io.StringIO())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classes(tmp_path_factory.mktemp("classes") / "images", COUNTS)


@pytest.fixture(scope="module")
def pack(images: Path) -> Path:
    path = images.with_name("images.safetensors")
    make_pack(str(images), str(path), PackOptions(resolution=8))
    return path


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    trainer(images, run_dir).run()
    return run_dir


# Where classes come from


@pytest.mark.parametrize("around", ["", "photos/", "all/photos/"])
def test_the_first_folder_is_the_class_without_those_around_all_images(around: str) -> None:
    paths = [f"{around}{name}" for name in ("hat/1.png", "dress/old/2.png", "hat/old/3.png", "dress/4.png")]
    names, labels = find_classes(Path("data"), paths)
    assert (names, labels.tolist()) == (["dress", "hat"], [1, 0, 1, 0])


@pytest.mark.parametrize(
    ("paths", "complaint"),
    [
        (["1.png", "2.png"], "--labels folders needs folders, and there are none with images"),
        (["hat/1.png", "hat/2.png"], "all images are in one folder, hat; at least two classes are needed"),
        (
            ["hat/1.png", "2.png", "dress/3.png"],
            "each image must be in a folder, which is its class. Not in any: 2.png",
        ),
    ],
)
def test_folders_that_are_not_classes_are_refused(paths: list[str], complaint: str) -> None:
    with pytest.raises(DataError) as refused:
        find_classes(Path("data"), paths)
    assert complaint in refused.value.message
    assert refused.value.hint


def test_classes_of_too_few_images_are_refused_before_training(tmp_path: Path) -> None:
    data = save_classes(tmp_path / "images", {**COUNTS, "tie": 1})
    with pytest.raises(DataError) as refused:
        trainer(data, tmp_path / "run")
    assert refused.value.message == (
        f"--data {data}: each class needs at least 2 images to train on. These have fewer: tie (1)."
    )
    assert not (tmp_path / "run").exists()
    few = trainer(save_classes(tmp_path / "few", dict.fromkeys("abc", 4)), tmp_path / "run")
    messages = messages_of(few)
    assert "3 classes, with images to train on: a 4, b 4, c 4." in messages
    assert "Few images per class (4.0 on average)" in messages


def test_a_pack_has_the_classes_of_its_folders_and_one_without_is_refused(
    images: Path, pack: Path, tmp_path: Path
) -> None:
    with safe_open(pack, framework="np") as file:
        assert bytes(file.get_tensor("class_names")).decode().split("\0") == [*COUNTS]
    packed, files = (
        open_source(path).dataset(resolution=8, background="white", labels="folders") for path in (pack, images)
    )
    assert packed.classes == files.classes == COUNTS
    assert packed.fingerprint == files.fingerprint
    assert torch.equal(packed.labels(range(40)), files.labels(range(40)))
    assert not open_source(pack).dataset(resolution=8, background="white").classes

    make_pack(str(images / "hat"), str(tmp_path / "hats.safetensors"), PackOptions(resolution=8))
    with pytest.raises(DataError, match="is a pack without classes"):
        trainer(tmp_path / "hats.safetensors", tmp_path / "run")
    with pytest.raises(DataError, match="--labels folders needs folders"):
        make_pack(str(images / "hat"), str(tmp_path / "x.safetensors"), PackOptions(resolution=8, labels="folders"))


def test_the_classes_beside_the_latents_are_those_of_the_images(images: Path, tmp_path: Path) -> None:
    """Also in a zip."""
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in images.rglob("*.png"):
            archive.write(path, path.relative_to(images.parent))
    found = {
        path.parent.name: {np.asarray(Image.open(each)).tobytes() for each in path.parent.iterdir()}
        for path in images.rglob("*.png")
    }
    dataset = open_source(tmp_path / "images.zip").dataset(resolution=8, background="white", labels="folders")
    stream = SampleStream(dataset, seed=0, batch_size=4, mirror=False)
    shown = stream.batches(0, latent_size=8)
    for _ in range(10):
        batch, latents = next(shown)
        assert latents.shape == (4, 11)
        for image, of_class in zip(batch, latents[:, 8:], strict=True):
            assert of_class.sum() == 1
            assert image.permute(1, 2, 0).contiguous().numpy().tobytes() in found[[*COUNTS][int(of_class.argmax())]]
    shown.close()


def test_classes_are_drawn_as_often_as_in_the_data() -> None:
    drawn = np.bincount(labels_of(range(4000), [30, 0, 10]), minlength=3) / 4000
    assert drawn[1] == 0
    assert abs(drawn[0] - 0.75) < 3 * (0.75 * 0.25 / 4000) ** 0.5


# Runs


def test_a_run_with_classes_resumes_bit_for_bit_from_images_and_from_their_pack(
    images: Path, pack: Path, run: Path, tmp_path: Path
) -> None:
    for data, kimg in ((images, 0.024), (pack, 0.048), (images, 0.08)):
        trainer(data, tmp_path / "parts", kimg=kimg, sample_kimg=1, metric_kimg=1).run()
    assert everything(tmp_path / "parts")[0] == everything(run)[0]
    moved = save_classes(tmp_path / "moved", COUNTS)
    (moved / "hat").rename(moved / "cap")
    with pytest.raises(RunFolderError, match="these are not the images and classes"):
        trainer(moved, tmp_path / "parts", kimg=1).run()


def test_a_run_records_its_classes_and_shows_each_in_a_row(run: Path) -> None:
    assert json.loads((run / "run.json").read_text())["classes"] == [*COUNTS]
    assert load_generator(run).classes == load_generator(run, best=True).classes == COUNTS
    with Image.open(run / "samples" / "000000080_8px.png") as shown:
        factor = shown.height // (3 * 10 + 2)
        assert shown.size == (factor * 32, factor * 32)  # three columns for seven samples


def test_the_image_of_a_class_is_the_same_by_name_and_by_number(run: Path) -> None:
    ours = Run(run)
    hats = ours.images(range(5), labels="hat")
    assert np.array_equal(hats, ours.images(range(5), labels=[1] * 5))
    assert all((hat != shoe).any() for hat, shoe in zip(hats, ours.images(range(5), labels="shoes"), strict=True))
    labels = labels_of(range(5), [*COUNTS.values()])
    assert len(set(labels)) > 1
    assert np.array_equal(ours.images(range(5)), ours.images(range(5), labels=labels))
    with pytest.raises(UsageError, match=r"label hut: must be one of dress, hat, shoes. Did you mean hat\?"):
        inputs_of(ours.generator, [0], "hut")


@pytest.mark.slow
def test_a_run_with_classes_is_evaluated_with_those_of_its_seeds(tmp_path: Path) -> None:
    """Held-out images are scored as their classes, by adaptive augmentation too."""
    data, run_dir = save_classes(tmp_path / "images", {"a": 200, "b": 250}), tmp_path / "run"
    trainer(data, run_dir, augment="adaptive", loss="relativistic-hinge").run()
    result = evaluate_run(run_dir, EvaluateOptions(num=40))
    assert len(result.get("copied_labels", [])) == len(result["copied_seeds"])
    assert set(result.get("copied_labels", [])) <= {"a", "b"}
    (data / "b").rename(data / "c")
    with pytest.raises(DataError, match="these are not the images"):
        evaluate_run(run_dir, EvaluateOptions(num=40))


def test_check_counts_the_classes_that_folders_would_be(images: Path) -> None:
    result = examine(str(images), CheckOptions(resolution=8, no_time=True))
    assert result["classes"] == COUNTS
    assert result["facts"]["Classes"].startswith("3 classes, with images to train on: dress 12, hat 8, shoes 20")
