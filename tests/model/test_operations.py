"""What a training step gives its device to do: it never waits for it, so that a GPU always has work ahead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.builders import latents_at, reals_at

from benchmarks.operations import operations_of, step_operations
from msggan.config import TrainConfig, resolve
from msggan.steps import TrainingState

NUMBERS = torch.arange(4.0)


@pytest.mark.parametrize("options", [{}, {"recipe": "bmsg"}, {"loss": "wgan-gp", "stddev_group": 2}])
def test_no_operation_of_a_step_makes_the_program_wait_for_the_device(options: dict[str, object]) -> None:
    for operations in step_operations(16, latent_size=8, **options).values():
        assert operations.launched.total() > 100
        assert operations.synchronizing == {}


def test_a_step_needs_no_value_from_its_device() -> None:
    """A meta device has none: what asks for one raises."""
    asked = TrainConfig(resolution=16, latent_size=8, precision="bfloat16")
    config = resolve(asked, shorter_side_px=16, device="cuda", has_fast_bfloat16=True)
    state = TrainingState(config, torch.device("meta"))
    for step in range(2):
        losses = state.step(reals_at(config, step), latents_at(config, step))
        assert losses["d_loss"].device.type == "meta"


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
