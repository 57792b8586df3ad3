"""Starting from another run: which weights are taken over, what is recorded, and what is refused before training."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.builders import save_images, save_run
from support.kills import everything, stop_at

from msggan import TrainConfig, Trainer
from msggan.errors import MsgganError, RunFolderError
from msggan.legacy import save_legacy
from msggan.networks import Discriminator, Generator
from msggan.randomness import latents
from msggan.runs.files import sha256_of
from msggan.runs.folder import RunFolder
from msggan.runs.initial import load_source, save_source, take_over


def trainer(data: Path, run_dir: Path, **options: Any) -> Trainer:
    small = {"latent_size": 8, "batch_size": 4, "num_samples": 4, "kimg": 0.012, "checkpoint_kimg": 0.008}
    config = TrainConfig(**{name: value for name, value in {**small, **options}.items() if value is not None})
    return Trainer(config, data=data, run_dir=run_dir, messages=io.StringIO())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of images and a folder of runs, in which `small` was trained at 16 px."""
    folder = tmp_path_factory.mktemp("source")
    images, runs = save_images(folder / "images", 12, 32), folder / "runs"
    trainer(images, runs / "small", resolution=16, resampling="filtered").run()
    return images, runs


def checkpoint_of(run_dir: Path, images_seen: int) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / f"{images_seen:09d}.safetensors")


def test_a_run_that_grows_keeps_every_layer_of_the_coarse_scales_and_does_not_need_the_source_again(
    source: tuple[Path, Path], tmp_path: Path
) -> None:
    images, runs = source
    shutil.copytree(runs / "small", tmp_path / "small")
    options = {"resolution": 32, "latent_size": None, "init": "small"}
    whole = trainer(images, tmp_path / "whole", **options)
    whole.run()

    digest = sha256_of(tmp_path / "small" / "checkpoints" / "000000012.safetensors")
    config = RunFolder(tmp_path / "whole").load_config()
    assert config is not None
    assert (config.init, config.latent_size, config.resampling) == (f"small@sha256:{digest}", 8, "filtered")
    log = (tmp_path / "whole" / "log.txt").read_text()
    assert "% of the generator's weights (new: 32 px) and " in log
    assert "% of the discriminator's weights (new: 16, 32 px). Optimizers and counters begin anew." in log

    before, started = checkpoint_of(tmp_path / "small", 12), checkpoint_of(tmp_path / "whole", 0)
    new = {name for name, tensor in started.items() if name not in before or before[name].shape != tensor.shape}
    parts = ("generator", "ema", "discriminator")
    new_layers = {name.rpartition(".")[0] for name in new}
    assert {layer for layer in new_layers if layer.startswith(tuple(f"{part}." for part in parts))} == {
        *(f"{part}.{layer}" for part in parts[:2] for layer in ("blocks.2.conv_1", "blocks.2.conv_2", "to_rgb.3")),
        *(
            f"discriminator.{layer}"
            for layer in ("blocks.1.conv_1", "blocks.2.conv_1", "blocks.2.conv_2", "from_rgb.3")
        ),
    }
    for name, tensor in started.items():
        expected = torch.zeros_like(tensor) if "_optimizer." in name else before.get(name)
        assert name.rpartition(".")[0] in new_layers or torch.equal(tensor, expected)

    stop_at(trainer(images, tmp_path / "parts", **options), 4)
    shutil.rmtree(tmp_path / "parts" / "checkpoints")  # as if it had died before it had one
    stop_at(trainer(images, tmp_path / "parts", **options), 4)
    shutil.rmtree(tmp_path / "small")
    with pytest.raises(RunFolderError, match=r"--init is small@sha256:[0-9a-f]+, not other"):
        trainer(images, tmp_path / "parts", **{**options, "init": "other"})
    trainer(images, tmp_path / "parts", **options).run()
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


@pytest.mark.parametrize("join", ["lin-cat", "simple"])
def test_the_coarse_images_of_a_generator_that_has_grown_are_those_of_the_old_one(join: str, tmp_path: Path) -> None:
    old, new = Generator(5, 32), Generator(6, 32)
    save_run(tmp_path / "run", depth=5, latent_size=32)
    networks = {"generator": new, "ema": Generator(6, 32), "discriminator": Discriminator(6, 32, join=join)}
    sentence = take_over(load_source("run", tmp_path / "sweep" / "trials"), networks)
    assert sentence.endswith(
        "(new: 128 px) and none of the discriminator's weights. Optimizers and counters begin anew."
    )
    old.load_state_dict(load_file(tmp_path / "run" / "generator.safetensors"))
    drawn = latents(0, range(3), 32)
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(old(drawn), new(drawn)[:-1], strict=True))


def test_networks_that_bmsg_gan_saved_are_taken_over_together(tmp_path: Path) -> None:
    saved = {"GEN": Generator(3, 8), "GEN_SHADOW": Generator(3, 8), "DIS": Discriminator(3, 8)}
    for part, network in saved.items():
        save_legacy(tmp_path / f"GAN_{part}_12.pth", network.state_dict())
    source = load_source(str(tmp_path / "GAN_GEN_SHADOW_12.pth"), tmp_path)
    assert source.options == {
        "resolution": 16,
        "latent_size": 8,
        "equalized": True,
        "resampling": "nearest",
        "join": "lin-cat",
    }
    networks = {"generator": Generator(3, 8), "ema": Generator(3, 8), "discriminator": Discriminator(3, 8)}
    sentence = take_over(source, networks)
    assert "100 % of the generator's weights and 100 % of the discriminator's weights." in sentence
    for ours, theirs in zip(networks.values(), saved.values(), strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours.parameters(), theirs.parameters(), strict=True))
    save_source(source, tmp_path / "one.safetensors")
    copied = load_source(source.init, tmp_path, tmp_path / "one.safetensors")
    assert (copied.init, copied.options) == (source.init, source.options)
    assert take_over(copied, networks).endswith(sentence.partition(":")[2])
    shutil.move(tmp_path / "GAN_DIS_12.pth", tmp_path / "alone.pth")
    assert load_source(str(tmp_path / "GAN_GEN_12.pth"), tmp_path).networks.keys() == {"generator", "ema"}
    alone = load_source(str(tmp_path / "alone.pth"), tmp_path)
    assert (alone.networks.keys(), alone.options) == ({"discriminator"}, source.options)


def spoil_nothing(runs: Path) -> None:
    """The run is good."""


def write_a_text(runs: Path) -> None:
    (runs / "notes.safetensors").write_text("no weights")


def write_another_programs_weights(runs: Path) -> None:
    save_file({"layer.weight": torch.zeros(3)}, runs / "notes.safetensors")


def forget_the_weights(runs: Path) -> None:
    shutil.rmtree(runs / "small" / "checkpoints")
    (runs / "small" / "generator.safetensors").unlink()


SOURCE = r"the weights of --init small need"


@pytest.mark.parametrize(
    ("spoil", "options", "complaint"),
    [
        (
            spoil_nothing,
            {"init": "smal"},
            r"--init smal: no such run in \S+runs, and no such file\. Did you mean small\?\nUse the ",
        ),
        (write_a_text, {"init": "notes.safetensors"}, r"notes\.safetensors: is not a file of weights \("),
        (
            write_another_programs_weights,
            {"init": "notes.safetensors"},
            "cannot be read as weights of msggan: missing field",
        ),
        (forget_the_weights, {}, r"small: has no weights yet\.\nThe first checkpoint is written at 0\.008 kimg"),
        (spoil_nothing, {"latent_size": 16}, rf"--latent-size 16: {SOURCE} --latent-size 8\.\nOmit these options"),
        (spoil_nothing, {"equalized": False}, rf"--no-equalized: {SOURCE} --equalized\."),
        (spoil_nothing, {"join": "lin-cat"}, rf"--join lin-cat: {SOURCE} --join simple\."),
        (spoil_nothing, {"resampling": "nearest"}, rf"--resampling nearest: {SOURCE} --resampling filtered\."),
        (spoil_nothing, {"init": f"small@sha256:{64 * '0'}"}, r"is not the file that was recorded \(SHA-256 "),
    ],
)
def test_what_cannot_be_started_from_is_refused_before_anything_is_written(
    spoil: Callable[[Path], None], options: dict[str, Any], complaint: str, source: tuple[Path, Path], tmp_path: Path
) -> None:
    images, runs = source
    shutil.copytree(runs, tmp_path / "runs")
    spoil(tmp_path / "runs")
    with pytest.raises(MsgganError) as error:
        trainer(images, tmp_path / "runs" / "new", **{"init": "small", **options})
    assert re.search(complaint, str(error.value))
    assert not (tmp_path / "runs" / "new").exists()
