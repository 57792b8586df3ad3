"""What a training step gives its device to do: it never waits for it, so that a GPU always has work ahead."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support.builders import latents_at, reals_at, training_state
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.operations import operations_of, step_operations
from msggan.augmentation import transforms
from msggan.config import TrainConfig, resolve
from msggan.randomness import Purpose, interpolation
from msggan.steps import TrainingState

NUMBERS = torch.arange(4.0)


@pytest.mark.parametrize(
    "options",
    [
        {"warm_up_kimg": 1.0, "augment": "fixed"},
        {"recipe": "bmsg"},
        {"loss": "wgan-gp", "stddev_group": 2, "resampling": "filtered"},
    ],
)
def test_no_operation_of_a_step_makes_the_program_wait_for_the_device(options: dict[str, object]) -> None:
    for operations in step_operations(16, latent_size=8, **options).values():
        assert operations.launched.total() > 100
        assert operations.synchronizing == {}


class Devices(TorchDispatchMode):
    """Within, collects the devices of all tensors that operations read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.read |= {each.device.type for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", ["relativistic-logistic", "wgan-gp"])
def test_an_update_needs_nothing_but_what_is_on_its_device(loss: str) -> None:
    """A meta device has no values: what asks for one raises."""
    asked = TrainConfig(resolution=16, latent_size=8, precision="bfloat16", loss=loss, augment="fixed")
    config = resolve(asked, shorter_side_px=16, device="cuda", has_fast_bfloat16=True)
    state = TrainingState(config, torch.device("meta"))
    for step in range(2):
        losses = state.step(reals_at(config, step), latents_at(config, step))
        assert losses["d_loss"].device.type == "meta"
    inputs = [draw(config, 0).to("meta") for draw in (reals_at, latents_at, transforms_at, epsilon_at)]
    with Devices() as devices:
        state.update(True, *inputs)
    assert devices.read == {"meta"}


def transforms_at(config: TrainConfig, step: int) -> Tensor:
    positions = range(2 * config.batch_size)  # as many as there are real and generated images
    return transforms(config.seed, Purpose.AUGMENT_REAL, positions, strength=0.5, resolution=16).float()


def epsilon_at(config: TrainConfig, step: int) -> Tensor:
    return interpolation(config.seed, range(step * config.batch_size, (step + 1) * config.batch_size))


@pytest.mark.slow
def test_updates_that_are_recorded_and_replayed_equal_those_computed_anew() -> None:
    """Recorded as in a CUDA graph, once for each kind: nothing in them depends on what the host counts or draws.

    The last batch is not finite.
    """
    penalties = {"r1_gamma": 1.0, "r2_gamma": 1.0, "penalty_interval": 2, "lr_final": 0.1, "gamma_final": 0.1}
    penalties |= {"augment": "fixed"}
    ours, replayed = (
        training_state(loss="wgan-gp", precision="bfloat16", schedule_kimg=0.02, **penalties) for _ in range(2)
    )
    recorded: dict[bool, Callable[..., Any]] = {}

    def replay(update: Callable[..., Any], kind: bool, *inputs: Tensor) -> Any:
        if kind in recorded:
            with torch.no_grad():
                return recorded[kind](*inputs)
        recorded[kind] = make_fx(partial(update, kind))(*inputs)  # this is a step, too
        return torch.zeros(2)

    replayed.graphs = replay  # type: ignore[assignment]
    for step in range(5):
        reals = reals_at(ours.config, step) / (step != 4)
        losses, again = (state.step(reals, latents_at(ours.config, step)) for state in (ours, replayed))
        assert step < 2 or step == 4 or losses == again
    assert recorded.keys() == {True, False}
    assert ours.dropped == replayed.dropped == 1
    theirs = replayed.tensors()
    assert [name for name, tensor in ours.tensors().items() if not torch.equal(tensor, theirs[name])] == []


@pytest.mark.parametrize(
    "wait",
    [
        NUMBERS[0].item,
        lambda: float(NUMBERS[0]),
        lambda: bool(NUMBERS[0] > 0),
        lambda: NUMBERS[: NUMBERS[2].long()],
        NUMBERS.nonzero,
        lambda: torch.where(NUMBERS > 1),
        lambda: NUMBERS[NUMBERS > 1],
        lambda: NUMBERS.masked_select(NUMBERS > 1),
        lambda: NUMBERS.repeat_interleave(NUMBERS.long()),
        NUMBERS.unique,
        lambda: torch.equal(NUMBERS, NUMBERS),
        lambda: torch.allclose(NUMBERS, NUMBERS),
    ],
)
def test_what_waits_for_the_device_is_recognized(wait: Callable[[], object]) -> None:
    assert operations_of(wait).synchronizing.total() >= 1


def test_views_and_memory_without_contents_are_not_counted_as_operations() -> None:
    def look() -> None:
        image = torch.empty(2, 3, 4, 4)
        image.detach()[:, 1:].permute(0, 2, 3, 1).expand(2, 4, 4, 2).unsqueeze(0)
        image.view(2, -1).t()
        torch.empty_like(image).chunk(2)

    assert operations_of(look).launched == {}
    assert operations_of(lambda: torch.sum(NUMBERS * 2 + 1)).launched == {"mul": 1, "add": 1, "sum": 1}
