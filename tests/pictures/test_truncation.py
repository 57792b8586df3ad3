"""Truncation moves images towards the average one by the given amount, and not at all at 1."""

from __future__ import annotations

import pytest
import torch
from support.builders import assert_close
from torch import Tensor

from msggan.networks import Generator
from msggan.pictures.grids import MEAN_OF, TruncatedGenerator, mean_features
from msggan.randomness import Purpose, latents


@pytest.fixture
def generator() -> Generator:
    """With biases as training leaves them: not zero."""
    torch.manual_seed(0)
    network = Generator(3, 16).double()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return network


DRAWN = latents(7, range(24), 16).double()


@torch.no_grad()
def finest(network: torch.nn.Module, drawn: Tensor = DRAWN) -> Tensor:
    images: Tensor = network(drawn)[-1]
    return images


def test_at_one_images_are_as_trained(generator: Generator) -> None:
    assert_close(finest(TruncatedGenerator(generator, 1.0)), finest(generator), within=1e-6)


def test_at_zero_all_images_are_the_same(generator: Generator) -> None:
    images = finest(TruncatedGenerator(generator, 0.0))
    assert_close(images, images[:1].expand_as(images), within=1e-9)


def test_images_differ_the_less_the_more_they_are_truncated(generator: Generator) -> None:
    spreads = [finest(TruncatedGenerator(generator, psi)).var(dim=0).mean().item() for psi in (0, 0.25, 0.5, 0.75, 1)]
    assert spreads == sorted(spreads)
    assert spreads[2] < 0.8 * spreads[-1]


@torch.no_grad()
def test_features_are_moved_to_their_mean_and_normalized_as_the_network_expects(generator: Generator) -> None:
    """Worked with NumPy: w̄ + ψ (w − w̄), each pixel's channels divided by the root of their mean square."""
    rendered: list[Tensor] = []
    truncated = TruncatedGenerator(generator, 0.25)
    generator.render = lambda features: rendered.append(features) or [features]  # type: ignore[method-assign,assignment]
    truncated(DRAWN)
    mean, features = mean_features(generator).numpy(), generator.first(DRAWN).numpy()
    mixed = mean + 0.25 * (features - mean)
    mixed /= (mixed**2).mean(axis=1, keepdims=True) ** 0.5
    assert_close(rendered[0], torch.from_numpy(mixed), within=1e-6)


@torch.no_grad()
def test_the_mean_is_exactly_that_of_the_latents_it_is_taken_over(generator: Generator) -> None:
    drawn = latents(0, range(MEAN_OF), 16, Purpose.SAMPLE).double()
    assert_close(mean_features(generator), generator.first(drawn).mean(dim=0, keepdim=True), within=1e-12)


@torch.no_grad()
def test_the_mean_is_that_of_the_first_block_over_many_latents(generator: Generator) -> None:
    others = generator.first(latents(1, range(4 * MEAN_OF), 16).double())
    error = (mean_features(generator) - others.mean(dim=0, keepdim=True)).square().mean().sqrt()
    assert error < 0.1 * others.std(dim=0).mean()
    assert torch.equal(mean_features(generator), mean_features(generator))


def test_shorter_latents_would_not_do() -> None:
    """Why features and not latents are truncated: where biases are small, pixel norm takes a latent's length back."""
    torch.manual_seed(0)
    fresh = Generator(3, 16).double()
    assert_close(finest(fresh, 0.25 * DRAWN), finest(fresh), within=1e-4)
