"""The networks, losses and training step compute what the original BMSG-GAN computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.builders import CPU, assert_close, save_images, small_config
from torch import Tensor, nn

from msggan import TrainConfig, Trainer
from msggan.legacy import convert_state_dict
from msggan.losses import discriminator_loss, generator_loss
from msggan.networks import Discriminator, Generator
from msggan.steps import TrainingState

NAMES = ("bmsg_gan_32px", "bmsg_gan_32px_plain")
RESOLUTION = 32
# A relativistic loss does not change when all scores shift: these gradients are rounding noise, which Adam enlarges.
NOISE_IN_FLOAT32 = ("last.conv_2.bias", "last.conv_3.bias")


class Tolerance(NamedTuple):
    """How near the steps must come in a precision: weights absolutely, losses relatively."""

    precision: str
    weights: float
    losses: float


class Golden:
    """One file of recorded figures."""

    def __init__(self, name: str) -> None:
        path = Path(__file__).parent / "golden" / f"{name}.safetensors"
        self.tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        self.depth, self.latent_size = int(metadata["depth"]), int(metadata["latent_size"])
        self.batch_size, self.steps = int(metadata["batch_size"]), int(metadata["steps"])
        self.equalized = metadata["use_eql"] == "True"

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """Those under `prefix`, converted from the original's names to ours."""
        original = {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
        assert original
        return convert_state_dict(original)

    def generator(self) -> Generator:
        network = Generator(self.depth, self.latent_size, equalized=self.equalized)
        network.load_state_dict(self.weights("before.generator."))
        return network

    def discriminator(self) -> Discriminator:
        network = Discriminator(self.depth, self.latent_size, equalized=self.equalized)
        network.load_state_dict(self.weights("before.discriminator."))
        return network

    def config(self, precision: str) -> TrainConfig:
        return small_config(
            recipe="bmsg",
            resolution=RESOLUTION,
            latent_size=self.latent_size,
            batch_size=self.batch_size,
            equalized=self.equalized,
            precision=precision,
        )


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def with_adversaries(golden: Golden, precision: str, folder: Path) -> TrainingState:
    return TrainingState(golden.config(precision), CPU)


def with_trainer(golden: Golden, precision: str, folder: Path) -> Trainer:
    data = save_images(folder / "images", count=8, side=RESOLUTION)
    return Trainer(golden.config(precision), data=data, run_dir=folder / "run", device="cpu", workers=1)


@pytest.mark.parametrize("scale", [4, 8, 16, 32])
def test_images_are_the_originals_at_every_scale(golden: Golden, scale: int) -> None:
    images = {image.shape[-1]: image for image in golden.generator()(golden.tensors["forward.latents"])}
    assert list(images) == [4, 8, 16, 32]
    assert_close(images[scale], golden.tensors[f"forward.fakes.{scale}"], within=1e-5)


def test_scores_of_the_recorded_fakes_are_the_originals(golden: Golden) -> None:
    fakes = [golden.tensors[f"forward.fakes.{scale}"] for scale in (4, 8, 16, 32)]
    assert_close(golden.discriminator()(fakes), golden.tensors["forward.scores_fake"], within=1e-5)


def test_scores_of_reals_and_their_average_pools_are_the_originals(golden: Golden) -> None:
    reals = golden.tensors["forward.reals"]
    pools = [nn.functional.avg_pool2d(reals, factor) for factor in (8, 4, 2)]
    assert_close(golden.discriminator()([*pools, reals]), golden.tensors["forward.scores_real"], within=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), [("relativistic-hinge", "relativistic-hinge"), ("wgan-gp", "wgan")])
def test_losses_are_the_originals(golden: Golden, ours: str, theirs: str) -> None:
    real, fake = golden.tensors["forward.scores_real"], golden.tensors["forward.scores_fake"]
    d_loss, g_loss = discriminator_loss(ours, real, fake).item(), generator_loss(ours, real, fake).item()
    assert d_loss == pytest.approx(golden.tensors[f"losses.{theirs}.discriminator"].item(), rel=1e-6)
    assert g_loss == pytest.approx(golden.tensors[f"losses.{theirs}.generator"].item(), rel=1e-6)


@pytest.mark.parametrize("begin", [with_adversaries, with_trainer])
@pytest.mark.parametrize(
    "tolerance", [Tolerance("float64", weights=1e-8, losses=1e-8), Tolerance("float32", weights=5e-4, losses=1e-4)]
)
def test_training_steps_are_the_originals(
    golden: Golden,
    begin: Callable[[Golden, str, Path], TrainingState | Trainer],
    tolerance: Tolerance,
    tmp_path: Path,
) -> None:
    ours = begin(golden, tolerance.precision, tmp_path)
    networks = {"generator": ours.generator, "discriminator": ours.discriminator, "ema": ours.ema}
    for name, network in networks.items():
        network.load_state_dict(golden.weights(f"before.{name.replace('ema', 'generator')}."))

    losses = [
        ours.step(golden.tensors["train.reals"][i], golden.tensors["train.latents"][i]) for i in range(golden.steps)
    ]

    for which, name in (("d_loss", "discriminator"), ("g_loss", "generator")):
        recorded = golden.tensors[f"train.{name}_losses"].tolist()
        assert [loss[which].item() for loss in losses] == pytest.approx(recorded, rel=tolerance.losses)
    for name, network in networks.items():
        for weight, expected in golden.weights(f"after.{name}.").items():
            if tolerance.precision == "float32" and name == "discriminator" and weight in NOISE_IN_FLOAT32:
                continue
            assert_close(network.state_dict()[weight], expected, within=tolerance.weights, what=f"{name}.{weight}")
    assert ours.images_seen == golden.steps * golden.batch_size


def test_every_weight_of_both_networks_is_recorded(golden: Golden) -> None:
    assert golden.weights("after.generator.").keys() == golden.generator().state_dict().keys()
    assert golden.weights("after.ema.").keys() == golden.generator().state_dict().keys()
    assert golden.weights("after.discriminator.").keys() == golden.discriminator().state_dict().keys()


def test_the_original_moved_the_weights(golden: Golden) -> None:
    """So that agreeing with it afterwards says something."""
    for name in ("generator", "discriminator"):
        before, after = golden.weights(f"before.{name}."), golden.weights(f"after.{name}.")
        unmoved = {weight for weight in before if torch.equal(before[weight].double(), after[weight])}
        assert unmoved <= set(NOISE_IN_FLOAT32)
