"""One training step: the discriminator, the generator, their optimisers and the moving average.

The procedure is BMSG-GAN's (a discriminator step, then a generator step on the same latents with the updated
discriminator, then the average) without redundant arithmetic: both steps share one generator pass, real and generated
images go through the discriminator together, and no unused gradient is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from msggan.config import TrainConfig
from msggan.data.stream import pyramid
from msggan.losses import (
    compares,
    discriminator_loss,
    generator_loss,
    wgan_gradient_penalty,
    zero_centred_penalty,
)
from msggan.networks import Discriminator, Generator
from msggan.randomness import interpolation
from msggan.runs.checkpoint import check_shapes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
ADAM_EPSILON = 1e-8

Pyramid = Sequence[Tensor]
Network = TypeVar("Network", bound=nn.Module)


class TrainingState:
    """The two networks, the average and the optimisers: everything that a step changes. Needs a resolved config."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.compute_dtype = DTYPES[config.precision]
        # Weights stay float32 under bfloat16; penalties, whose double backward is delicate, are computed in theirs.
        self.weight_dtype = torch.float64 if config.precision == "float64" else torch.float32
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            generator = Generator(config.depth, config.latent_size, equalized=config.equalized)
            discriminator = Discriminator(
                config.depth, config.latent_size, equalized=config.equalized, stddev_group=config.stddev_group
            )
        self.generator = self._to_device(generator)
        self.discriminator = self._to_device(discriminator)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.generator_optimizer = self._adam(self.generator, config.g_lr)
        self.discriminator_optimizer = self._adam(self.discriminator, config.d_lr)
        self.images_seen = 0
        self.dropped = torch.zeros((), dtype=torch.int64, device=device)
        self.dropped_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.most_dropped_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._is_initial = True

    def step(self, reals: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """One step on one batch; returns the two losses as scalars on the device, without their penalties.

        reals: (N, 3, R, R) float in [-1, 1]. latents: (N, L) float, each of norm √L.
        A network whose loss or gradient is not finite is not updated, nor is its optimizer. `dropped` counts these,
        `dropped_in_a_row` those since the last complete one, `most_dropped_in_a_row` the longest such sequence; all
        stay on the device. The average is updated all the same.
        An exception in between leaves the step incomplete: `load` or `reset` makes these networks usable again.
        """
        self._is_initial = False
        reals = reals.to(self.device, self.weight_dtype, memory_format=torch.channels_last)
        real_pyramid = pyramid(reals)
        fake_pyramid = self.generator(latents.to(self.device, self.compute_dtype))
        d_loss = self._discriminator_step(real_pyramid, [fake.detach() for fake in fake_pyramid])
        g_loss = self._generator_step(real_pyramid, fake_pyramid)
        self._count_dropped()
        self.images_seen += len(reals)
        decay = ema_decay(
            batch_size=self.config.batch_size,
            images_seen=self.images_seen,
            half_life_kimg=self.config.ema_half_life_kimg,
            ramp=self.config.ema_ramp,
        )
        update_ema(self.ema, self.generator, decay)
        return {"d_loss": d_loss, "g_loss": g_loss}

    def tensors(self) -> dict[str, Tensor]:
        """Everything a step changes, under unique names: the three networks and Adam's averages. Not copies."""
        networks = {"generator": self.generator, "discriminator": self.discriminator, "ema": self.ema}
        named = {f"{part}.{name}": t for part, network in networks.items() for name, t in network.state_dict().items()}
        for part, network, optimizer in self._optimized():
            for name, parameter in network.named_parameters():
                for moment, tensor in optimizer.state[parameter].items():
                    named[f"{part}_optimizer.{name}.{moment}"] = tensor
        return named

    def load(self, tensors: Mapping[str, Tensor], *, images_seen: int) -> None:
        """Restores what `tensors` returned. Raises `CheckpointError` for other names or shapes, changing nothing.

        Also clears what an interrupted step may have left, and the counts of dropped updates.
        """
        ours = self.tensors()
        check_shapes("checkpoint", ours, tensors)
        for name, tensor in ours.items():
            tensor.copy_(tensors[name])
        self._is_initial = False
        self.images_seen = images_seen
        self.discriminator.requires_grad_(True)
        for count in (self.dropped, self.dropped_in_a_row, self.most_dropped_in_a_row):
            count.zero_()

    def reset(self) -> None:
        """Restores the state before the first step, in the same modules."""
        initial = self if self._is_initial else TrainingState(self.config, self.device)
        self.load(initial.tensors(), images_seen=0)
        self._is_initial = True

    def _optimized(self) -> Iterator[tuple[str, nn.Module, SkipNonFiniteAdam]]:
        yield "generator", self.generator, self.generator_optimizer
        yield "discriminator", self.discriminator, self.discriminator_optimizer

    def _discriminator_step(self, reals: Pyramid, fakes: Pyramid) -> Tensor:
        self.discriminator_optimizer.zero_grad()
        both = [torch.cat((real.to(fake.dtype), fake)) for real, fake in zip(reals, fakes, strict=True)]
        real_scores, fake_scores = self.discriminator(both, batches=2).chunk(2)
        loss = discriminator_loss(self.config.loss, real_scores, fake_scores)
        loss.backward()
        penalized = self.config.loss == "wgan-gp" or self.config.r1_gamma > 0 or self.config.r2_gamma > 0
        interval = self.config.penalty_interval
        if penalized and self.images_seen // self.config.batch_size % interval == 0:
            (interval * self._penalty(reals, fakes)).backward()
        self.discriminator_optimizer.step_if_finite(loss)
        return loss.detach()

    def _generator_step(self, reals: Pyramid, fakes: Pyramid) -> Tensor:
        self.generator_optimizer.zero_grad()
        with _frozen(self.discriminator):
            real_scores = None
            if compares(self.config.loss):
                with torch.no_grad():
                    real_scores = self.discriminator([real.to(self.compute_dtype) for real in reals])
            loss = generator_loss(self.config.loss, real_scores, self.discriminator(fakes))
            loss.backward()
        self.generator_optimizer.step_if_finite(loss)
        return loss.detach()

    def dropped_networks(self) -> list[str]:
        """The networks whose update was dropped in the last step."""
        return [name for name, _, optimizer in self._optimized() if optimizer.found_inf]

    def _count_dropped(self) -> None:
        dropped = sum(optimizer.found_inf for _, _, optimizer in self._optimized()) > 0
        self.dropped += dropped
        self.dropped_in_a_row = (self.dropped_in_a_row + 1) * dropped
        self.most_dropped_in_a_row = torch.maximum(self.most_dropped_in_a_row, self.dropped_in_a_row)

    def _penalty(self, reals: Pyramid, fakes: Pyramid) -> Tensor:
        """The gradient penalties of this configuration, a scalar in the weights' dtype."""
        fakes = [fake.to(self.weight_dtype) for fake in fakes]
        penalty = torch.zeros((), dtype=self.weight_dtype, device=self.device)
        if self.config.loss == "wgan-gp":
            positions = range(self.images_seen, self.images_seen + len(reals[0]))
            epsilon = interpolation(self.config.seed, positions).to(self.device, self.weight_dtype)
            penalty = penalty + wgan_gradient_penalty(self.discriminator, reals, fakes, epsilon)
        if self.config.r1_gamma > 0:
            penalty = penalty + zero_centred_penalty(self.discriminator, reals, self.config.r1_gamma)
        if self.config.r2_gamma > 0:
            penalty = penalty + zero_centred_penalty(self.discriminator, fakes, self.config.r2_gamma)
        return penalty

    def _to_device(self, network: Network) -> Network:
        network.to(device=self.device, dtype=self.weight_dtype)
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return network

    def _adam(self, network: nn.Module, learning_rate: float) -> SkipNonFiniteAdam:
        betas = (self.config.beta1, self.config.beta2)
        optimizer = SkipNonFiniteAdam(network.parameters(), lr=learning_rate, betas=betas, eps=ADAM_EPSILON, fused=True)
        for parameter in network.parameters():  # what Adam does in its first step, so that `tensors` is always complete
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=self.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
        return optimizer


class SkipNonFiniteAdam(torch.optim.Adam):
    """Adam that skips a step if the loss or a gradient is not finite.

    found_inf: 1 if the last step was dropped, else 0. The fused step reads it, as with torch.amp.GradScaler, and then
    changes nothing; no synchronization with the device is needed.
    """

    found_inf: Tensor

    def step_if_finite(self, loss: Tensor) -> None:
        """loss: the scalar whose gradients are applied."""
        gradients = [
            weight.grad for group in self.param_groups for weight in group["params"] if weight.grad is not None
        ]
        # The norm is not finite if one of them is not, or if its square is too large for Adam's second average.
        norm = torch.nn.utils.get_total_norm(gradients)
        self.found_inf = (~torch.isfinite(norm + loss.detach())).float()
        self.step()


def ema_decay(*, batch_size: int, images_seen: int, half_life_kimg: float, ramp: float) -> float:
    """The decay of the step that brought the count to `images_seen`: 0.5^(batch size / half-life).

    ramp: the half-life is capped at this fraction of the images seen (0: no cap), so that early averages forget the
    initial weights (Karras et al., StyleGAN2-ADA's training loop).
    """
    half_life = half_life_kimg * 1000
    if ramp > 0:
        half_life = min(half_life, images_seen * ramp)
    return 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average ← decay · average + (1 − decay) · network, in place, for every parameter."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Within, gradients flow through the network and none are computed for its weights."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
