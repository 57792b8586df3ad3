"""One training step: the discriminator, the generator, their optimisers and the moving average.

The procedure is BMSG-GAN's (a discriminator step, then a generator step on the same latents with the updated
discriminator, then the average) without redundant arithmetic: both steps share one generator pass, real and generated
images go through the discriminator together, and no unused gradient is computed.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from msggan.augmentation import AdaptiveStrength, augmented, image_gradients, transforms
from msggan.config import LARGEST_STRENGTH, TrainConfig
from msggan.data.stream import pyramid
from msggan.device import convolution_settings, is_out_of_memory, release_memory
from msggan.graphs import Graphs
from msggan.losses import (
    between,
    compares,
    discriminator_loss,
    generator_loss,
    wgan_gradient_penalty,
    zero_centred_penalty,
)
from msggan.networks import NO_CLASSES, ComputingCopy, Discriminator, Generator, Network
from msggan.randomness import Purpose, interpolation
from msggan.runs.checkpoint import check_shapes
from msggan.schedules import is_scheduled, settings_at

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
ADAM_EPSILON = 1e-8
MEASURED = ("d_loss", "g_loss", "d_real", "d_fake", "d_gradient_norm", "g_gradient_norm", "penalty")
"""What a step measures: the losses without penalties, the mean scores of real and of generated images in the
discriminator's step, the norms of the gradients of both networks, and, last, what the penalties add to the loss."""

Pyramid = Sequence[Tensor]
Result = TypeVar("Result")


class TrainingState:
    """The two networks, the average and the optimisers: everything that a step changes. Needs a resolved config.

    classes: by name, with --labels; latents are then those of `with_labels`. graphs: whether steps of whole batches are
    replayed as CUDA graphs; by default on CUDA. inform: is called with a sentence if that fails; they are then launched
    operation by operation, with the same results.
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        *,
        classes: Mapping[str, int] = NO_CLASSES,
        graphs: bool | None = None,
        inform: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.device = device
        self.compute_dtype = DTYPES[config.precision]
        # Weights, optimizers and scores stay float32 under bfloat16.
        self.weight_dtype = torch.float64 if config.precision == "float64" else torch.float32
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            sizes, resampling = (config.depth, config.latent_size), config.resampling
            generator = Generator(*sizes, equalized=config.equalized, resampling=resampling, classes=classes)
            discriminator = Discriminator(
                *sizes,
                equalized=config.equalized,
                stddev_group=config.stddev_group,
                resampling=resampling,
                join=config.join,
                classes=len(classes),
            )
        self.generator = self._to_device(generator)
        self.discriminator = self._to_device(discriminator)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.generator_optimizer = SkipNonFiniteAdam(self.generator, config.beta1)
        self.discriminator_optimizer = SkipNonFiniteAdam(self.discriminator, config.beta1)
        self.gamma: float | Tensor = 1.0
        if is_scheduled(config):  # on the device, where a recorded step reads them
            rate_dtype = torch.float64 if device.type == "cpu" else torch.float32  # those that the operation takes
            rates = torch.zeros(2, dtype=rate_dtype, device=device).unbind()
            self.generator_optimizer.learning_rate, self.discriminator_optimizer.learning_rate = rates
            self.gamma = torch.zeros((), dtype=self.weight_dtype, device=device)
        self.generator_copy = ComputingCopy(self.generator, self.compute_dtype)
        self.discriminator_copy = ComputingCopy(self.discriminator, self.compute_dtype)
        self.part = config.part
        self.images_seen = 0
        self.augmentation = self._initial_augmentation()
        self.dropped, self.dropped_in_a_row, self.most_dropped_in_a_row = torch.zeros(3, device=device).unbind()
        self._is_initial = True
        self.graphs: Graphs | None = None
        has_constant_beta2 = config.beta2_final in (0, config.beta2)  # the operation takes it as a number
        if (device.type == "cuda" if graphs is None else graphs) and has_constant_beta2:
            kinds = {self._is_penalized(step) for step in range(config.penalty_interval)}
            self.graphs = Graphs(kinds, device, inform)

    def step(self, reals: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """One step on one batch; returns what it measured as scalars on the device, by the names in MEASURED.

        `penalty` is there only in steps that have one.

        reals: (N, 3, R, R) float in [-1, 1]. latents: (N, L) float, each of norm √L; with classes (N, L + C), with
        those of the reals: the two images of a pair are of one class.
        Where memory does not suffice for the whole batch, it is computed in parts, with the same numbers; `part` is
        their size from then on.
        A network whose loss or gradient is not finite is not updated, nor is its optimizer. `dropped` counts these,
        `dropped_in_a_row` those since the last complete one, `most_dropped_in_a_row` the longest such sequence; all
        stay on the device. The average is updated all the same.
        An exception in between leaves the step incomplete: `load` or `reset` makes these networks usable again.
        """
        self._is_initial = False
        inputs = [
            reals.to(self.device, self.compute_dtype, memory_format=torch.channels_last),
            latents.to(self.device, self.compute_dtype),
        ]
        positions, is_cuda = range(self.images_seen, self.images_seen + len(reals)), self.device.type == "cuda"
        if self.config.augment != "none":
            inputs.append(self._both_transforms(positions).to(self.device, non_blocking=is_cuda))
        if self.config.loss == "wgan-gp":
            drawn = interpolation(self.config.seed, positions)
            inputs.append(drawn.to(self.device, self.compute_dtype, non_blocking=is_cuda))
        is_penalized = self._is_penalized(self.images_seen // self.config.batch_size)
        half_life_kimg = self._take_settings(self.images_seen + len(reals))
        is_whole = self.part >= len(reals) == self.config.batch_size
        with convolution_settings(self.device):
            if self.graphs and is_whole:
                measured = self.graphs(self.update, is_penalized, *inputs)
            else:
                measured = self.update(is_penalized, *inputs)
        self.images_seen += len(reals)
        decay = ema_decay(
            batch_size=self.config.batch_size,
            images_seen=self.images_seen,
            half_life_kimg=half_life_kimg,
            ramp=self.config.ema_ramp,
        )
        update_ema(self.ema, self.generator, decay)
        named = dict(zip(MEASURED, measured.unbind(), strict=False))
        if self.config.augment == "adaptive":
            self.augmentation.add(named["d_real"], named["d_fake"], len(reals))
        return named

    def update(self, is_penalized: bool, reals: Tensor, latents: Tensor, *drawn: Tensor) -> Tensor:
        """The part of a step that its inputs on the device determine: all but the average.

        Returns what it measured, (6,) or with penalties (7,), in the order of MEASURED and in the scores' dtype.
        reals, latents: as in `step`, in the dtype to compute in. drawn: with augmentation, the transforms of the real
        and then of the generated images, (2N, 22); then WGAN-GP's epsilon, (N,).
        It can be recorded and replayed: nothing in it depends on a value of the device, nor on what the host counts.
        """
        self.generator_copy.update()
        self.discriminator_copy.update()
        labels = self._labels(latents)
        both, *epsilon = [None, *drawn] if self.config.augment == "none" else drawn
        of_reals, of_fakes = (None, None) if both is None else both.chunk(2)
        real_pyramid = augmented(pyramid(reals), of_reals)
        generated: dict[int, Pyramid] = {}  # by the size of the parts

        def fakes() -> Pyramid:
            if self.part not in generated:
                generated.clear()
                generated[self.part] = augmented(self._generate(latents), of_fakes)
            return generated[self.part]

        def discriminator_gradients() -> list[Tensor]:
            detached = [image.detach() for image in fakes()]
            return self._discriminator_gradients(real_pyramid, detached, labels, both, is_penalized, *epsilon)

        d_loss, d_real, d_fake, *penalty = self._halving(discriminator_gradients)
        d_norm = self.discriminator_optimizer.step_if_finite(d_loss)
        self.discriminator_copy.update()
        g_loss = self._halving(lambda: self._generator_gradients(real_pyramid, fakes(), labels))
        g_norm = self.generator_optimizer.step_if_finite(g_loss)
        self._count_dropped()
        return torch.stack([d_loss, g_loss, d_real, d_fake, d_norm, g_norm, *penalty])

    def adapt_augmentation(self, held_out: Tensor, positions: Sequence[int], labels: Tensor) -> None:
        """Takes into account the scores of images that are never trained on, after a step. It changes no network.

        held_out: (N, 3, R, R) float in [-1, 1]. positions: (N,), theirs in the stream of such images. labels: (N,),
        the numbers of their classes.
        """
        images = held_out.to(self.device, self.compute_dtype, memory_format=torch.channels_last)
        drawn = self._transforms(Purpose.AUGMENT_HELD_OUT, positions)
        classes = len(self.generator.classes)
        one_hot = functional.one_hot(labels, classes).to(self.device) if classes else None
        transformed = augmented(pyramid(images), drawn.to(self.device, non_blocking=self.device.type == "cuda"))
        with torch.no_grad(), convolution_settings(self.device):
            scores, _ = self._halving(lambda: self._judge(transformed, one_hot))
        self.augmentation.add_held_out(scores.mean(), len(scores))

    def scale_gradients(self, reals: Tensor, latents: Tensor) -> dict[int, float]:
        """What each scale of a generated image, by its side, receives to learn from. It changes no network.

        The norm of the gradient of its own generator's loss by its pixels, mean over the batch. reals, latents: those
        of the last step.
        """
        for copied in (self.generator_copy, self.discriminator_copy):
            copied.update()
        positions = range(self.images_seen - len(reals), self.images_seen)
        drawn = None if self.config.augment == "none" else self._both_transforms(positions).to(self.device)
        of_reals, of_fakes = (None, None) if drawn is None else drawn.chunk(2)
        images = reals.to(self.device, self.compute_dtype, memory_format=torch.channels_last)
        real_pyramid = augmented(pyramid(images), of_reals)

        inputs = latents.to(self.device, self.compute_dtype)
        labels = self._labels(inputs)

        def gradients() -> tuple[Tensor, ...]:
            with torch.no_grad():
                generated = self._generate(inputs)
            fakes = [image.requires_grad_() for image in generated]
            return torch.autograd.grad(self._generator_loss(real_pyramid, augmented(fakes, of_fakes), labels), fakes)

        part = self.part
        try:
            if self.graphs:  # what recorded steps need stays theirs: this comes on top of it
                self.part = math.ceil(part / 4)
            with convolution_settings(self.device):
                found = self._halving(gradients)
        finally:
            self.part = part  # the steps go on as they were
        norms = [len(reals) * image.flatten(1).float().norm(dim=1).mean() for image in found]
        return {image.shape[-1]: norm for image, norm in zip(found, torch.stack(norms).tolist(), strict=True)}

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator, "ema": self.ema}

    def tensors(self) -> dict[str, Tensor]:
        """Everything a step changes, under unique names: the three networks and Adam's averages. Not copies."""
        named = {
            f"{part}.{name}": t for part, network in self.networks.items() for name, t in network.state_dict().items()
        }
        for part, network, optimizer in self._optimized():
            for name, parameter in network.named_parameters():
                for moment, tensor in optimizer.moments[parameter].items():
                    named[f"{part}_optimizer.{name}.{moment}"] = tensor
        return named

    def load(self, tensors: Mapping[str, Tensor], *, images_seen: int) -> None:
        """Restores what `tensors` returned. Raises `CheckpointError` for other names or shapes, changing nothing.

        Also clears what an interrupted step may have left, the counts of dropped updates, and what has been adapted.
        """
        ours = self.tensors()
        check_shapes("checkpoint", ours, tensors)
        for name, tensor in ours.items():
            tensor.copy_(tensors[name])
        self._is_initial = False
        self.images_seen = images_seen
        self.augmentation = self._initial_augmentation()
        for count in (self.dropped, self.dropped_in_a_row, self.most_dropped_in_a_row):
            count.zero_()

    def reset(self) -> None:
        """Restores the state before the first step, in the same modules."""
        initial = self
        if not self._is_initial:
            initial = TrainingState(self.config, self.device, classes=self.generator.classes, graphs=False)
        self.load(initial.tensors(), images_seen=0)
        self._is_initial = True

    def _optimized(self) -> Iterator[tuple[str, nn.Module, SkipNonFiniteAdam]]:
        yield "generator", self.generator, self.generator_optimizer
        yield "discriminator", self.discriminator, self.discriminator_optimizer

    def _take_settings(self, images: int) -> float:
        """Those of the step that brings the count to `images`, without waiting for the device; its EMA's half-life."""
        settings = settings_at(self.config, images)
        rates = settings.g_lr, settings.d_lr
        for (_, _, optimizer), rate in zip(self._optimized(), rates, strict=True):
            optimizer.learning_rate = _replaced(optimizer.learning_rate, rate)
            optimizer.beta2 = settings.beta2
        self.gamma = _replaced(self.gamma, settings.gamma)
        return settings.ema_half_life_kimg

    def _labels(self, latents: Tensor) -> Tensor | None:
        """(N, C): what follows the latents, with classes."""
        return latents[:, self.config.latent_size :] if self.generator.classes else None

    def _initial_augmentation(self) -> AdaptiveStrength:
        sums = torch.zeros(3, dtype=self.weight_dtype, device=self.device)
        return AdaptiveStrength(self.config.augment_strength, LARGEST_STRENGTH, sums)

    def _both_transforms(self, positions: Sequence[int]) -> Tensor:
        """(2N, 22): of real and then of generated images."""
        return torch.cat([self._transforms(each, positions) for each in (Purpose.AUGMENT_REAL, Purpose.AUGMENT_FAKE)])

    def _transforms(self, purpose: Purpose, positions: Sequence[int]) -> Tensor:
        drawn = transforms(
            self.config.seed, purpose, positions, strength=self.augmentation.strength, resolution=self.config.resolution
        )
        return drawn.to(self.weight_dtype)

    def _generate(self, latents: Tensor) -> Pyramid:
        generator, part = self.generator_copy.network, self.part
        if len(latents) <= part:
            images: Pyramid = generator(latents)
            return images
        parts = [_recomputed(generator, each) for each in latents.split(part)]
        return [torch.cat(scale) for scale in zip(*parts, strict=True)]

    def _is_penalized(self, step: int) -> bool:
        config = self.config
        has_penalties = config.r1_gamma > 0 or config.r2_gamma > 0 or config.loss == "wgan-gp"
        return has_penalties and step % config.penalty_interval == 0

    def _discriminator_gradients(
        self,
        reals: Pyramid,
        fakes: Pyramid,
        labels: Tensor | None,
        transforms: Tensor | None,
        is_penalized: bool,
        *epsilon: Tensor,
    ) -> list[Tensor]:
        """Returns the loss, the mean scores of both kinds, and, if there is one, the penalty.

        R1 and R2 are of the images before their transforms, WGAN-GP's penalty of images between transformed ones.
        """
        config, count = self.config, len(reals[0])
        strengths = [gamma for gamma in (config.r1_gamma, config.r2_gamma) if gamma > 0 and is_penalized]
        penalized = slice(0 if config.r1_gamma > 0 else count, 2 * count if config.r2_gamma > 0 else count)

        scores, squared_norms = self._judge(
            joined(reals, fakes),
            None if labels is None else labels.repeat(2, 1),
            batches=2,
            penalized=penalized if strengths else None,
            transforms=transforms,
        )
        loss = total = discriminator_loss(config.loss, *scores.chunk(2))
        if squared_norms is not None:
            for norms, gamma in zip(squared_norms.split(count), strengths, strict=True):
                total = total + config.penalty_interval * self.gamma * zero_centred_penalty(norms, gamma)
        if config.loss == "wgan-gp" and is_penalized:
            total = total + config.penalty_interval * self._wgan_penalty(reals, fakes, labels, *epsilon)
        self.discriminator_copy.pass_back(torch.autograd.grad(total, self.discriminator_copy.weights))
        penalty = [total.detach() - loss.detach()] if is_penalized else []
        return [loss.detach(), *scores.detach().view(2, count).mean(dim=1).unbind(), *penalty]

    def _generator_gradients(self, reals: Pyramid, fakes: Pyramid, labels: Tensor | None) -> Tensor:
        loss = self._generator_loss(reals, fakes, labels)
        self.generator_copy.pass_back(torch.autograd.grad(loss, self.generator_copy.weights))
        return loss.detach()

    def _generator_loss(self, reals: Pyramid, fakes: Pyramid, labels: Tensor | None) -> Tensor:
        real_scores = None
        if compares(self.config.loss):
            with torch.no_grad():
                real_scores, _ = self._judge(reals, labels)
        fake_scores, _ = self._judge(fakes, labels)
        return generator_loss(self.config.loss, real_scores, fake_scores)

    def _judge(
        self,
        pyramid: Pyramid,
        labels: Tensor | None,
        *,
        batches: int = 1,
        penalized: slice | None = None,
        transforms: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        return judge(
            self.discriminator_copy.network,
            pyramid,
            labels,
            batches=batches,
            part=batches * self.part,
            penalized=penalized,
            transforms=transforms,
        )

    def _wgan_penalty(self, reals: Pyramid, fakes: Pyramid, labels: Tensor | None, epsilon: Tensor) -> Tensor:
        _, squared_norms = self._judge(between(reals, fakes, epsilon), labels, penalized=slice(None))
        assert squared_norms is not None  # noqa: S101 - they are asked for
        return wgan_gradient_penalty(squared_norms)

    def _halving(self, compute: Callable[[], Result]) -> Result:
        """compute(), which changes no weight, again with parts of half the size whenever memory does not suffice."""
        while True:
            try:
                return compute()
            except Exception as error:
                is_recording = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
                if not is_out_of_memory(error) or self.part == 1 or is_recording:
                    raise
            self.part = (self.part + 1) // 2  # out of the handler, so that the error's frames hold no tensors
            release_memory(self.device)

    def dropped_networks(self) -> list[str]:
        """The networks whose update was dropped in the last step."""
        return [name for name, _, optimizer in self._optimized() if optimizer.found_inf]

    def _count_dropped(self) -> None:
        dropped = torch.maximum(self.generator_optimizer.found_inf, self.discriminator_optimizer.found_inf)
        self.dropped += dropped
        in_a_row, most = self.dropped_in_a_row, self.most_dropped_in_a_row
        torch.addcmul(dropped, in_a_row, dropped, out=in_a_row)  # (in_a_row + 1) · dropped
        torch.maximum(most, in_a_row, out=most)

    def _to_device(self, network: Network) -> Network:
        network.to(device=self.device, dtype=self.weight_dtype)
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return network


def _replaced(setting: float | Tensor, value: float) -> float | Tensor:
    """The value, in the same tensor if it is in one."""
    return setting.fill_(value) if isinstance(setting, Tensor) else value


class SkipNonFiniteAdam:
    """Adam (Kingma and Ba, algorithm 1) that skips a step if the loss or a gradient is not finite.

    found_inf: 1 if the last step was dropped, else 0. The fused operation reads it, as with torch.amp.GradScaler, and
    then changes nothing; no synchronization with the device is needed. learning_rate, beta2: of the next step, the rate
    a number or a scalar on the device. moments: the tensors of each parameter that a checkpoint holds, under PyTorch's
    names. It is PyTorch's operation without its optimizer, whose constructor imports the compiler.
    """

    def __init__(self, network: nn.Module, beta1: float) -> None:
        self.learning_rate: float | Tensor = 0.0
        self.beta1, self.beta2 = beta1, 0.0
        self.parameters: list[Tensor] = list(network.parameters())
        device = self.parameters[0].device
        self.found_inf = torch.zeros((), dtype=torch.float32, device=device)
        self._steps = torch.zeros(len(self.parameters), dtype=torch.float32, device=device)
        self.moments = {
            parameter: {
                "step": step,
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
            for parameter, step in zip(self.parameters, self._steps.unbind(), strict=True)
        }

    @torch.no_grad()
    def step_if_finite(self, loss: Tensor) -> Tensor:
        """Returns the norm of the gradients. loss: the scalar whose gradients the parameters have."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        # The norm is not finite if one of them is not, or if its square is too large for Adam's second average.
        norm = torch.nn.utils.get_total_norm(gradients)
        is_finite = norm.addcmul(loss, loss) < math.inf
        self.found_inf.copy_(~is_finite)
        self._steps += is_finite
        steps, averages, squares = (
            [moments[name] for moments in self.moments.values()] for name in ("step", "exp_avg", "exp_avg_sq")
        )
        torch._fused_adam_(
            self.parameters,
            gradients,
            averages,
            squares,
            [],
            steps,
            lr=self.learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=ADAM_EPSILON,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
            found_inf=self.found_inf,
        )
        return norm


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


@torch.no_grad()
def joined(first: Pyramid, second: Pyramid) -> Pyramid:
    """The samples of two pyramids of as many, in one and without a gradient: one operation instead of one per scale."""
    both = [
        torch.empty(
            (2 * len(image), *image.shape[1:]),
            dtype=image.dtype,
            device=image.device,
            memory_format=torch.channels_last,
        )
        for image in first
    ]
    first_halves, second_halves = zip(*(image.chunk(2) for image in both), strict=True)
    torch._foreach_copy_([*first_halves, *second_halves], [*first, *second])
    return both


def judge(
    discriminator: Discriminator,
    pyramid: Pyramid,
    labels: Tensor | None = None,
    *,
    batches: int = 1,
    part: int = 0,
    penalized: slice | None = None,
    transforms: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The scores (N,) of `batches` concatenated batches, and the squared gradient norms of the samples `penalized`.

    labels: (N, C), as for `Discriminator`.

    Those norms are (M, scales), of the gradient of the scores' sum by each sample's image at each scale, in the scores'
    dtype, and can be differentiated once more. part: the samples computed at once (0: all); what the gradient needs of
    the others is then computed again. Minibatch statistics are of whole batches all the same. transforms: (N, 22),
    those of the pyramid; the norms are then of the gradient by the images before them.
    """
    activations: list[Tensor] | None = None
    if part == 0 or part >= len(pyramid[0]):
        activations = [] if penalized else None
        features = discriminator.features(pyramid, activations)
    else:
        features = torch.cat([_recomputed(discriminator.features, each) for each in _parts(pyramid, part)])
    scores = discriminator.score(features, labels, batches=batches)
    if penalized is None:
        return scores, None
    (gradient,) = torch.autograd.grad(scores.sum(), features, create_graph=True)
    theirs = None if transforms is None else transforms[penalized]
    if activations is not None:
        return scores, _squared_norms(discriminator, gradient[penalized], [a[penalized] for a in activations], theirs)
    gradients = gradient[penalized].split(part)
    parts = _parts([image[penalized] for image in pyramid], part)
    of_parts = [None] * len(parts) if theirs is None else theirs.split(part)
    norms = [
        _recomputed(_squared_norms_of_part, discriminator, *each)
        for each in zip(parts, gradients, of_parts, strict=True)
    ]
    return scores, torch.cat(norms)


def _parts(pyramid: Pyramid, size: int) -> list[Pyramid]:
    """The pyramids of at most `size` samples each."""
    return list(zip(*(image.split(size) for image in pyramid), strict=True))


def _recomputed(function: Callable[..., Result], *inputs: Any) -> Result:
    """function(*inputs), which the gradient computes again instead of keeping what it computed.

    As `torch.utils.checkpoint`, which imports the compiler, of a hundred MiB, at the moment when memory is short.
    """
    numbers, again = itertools.count(), dict[int, Tensor]()

    def unpack(number: int) -> Tensor:
        if number not in again:
            counted = itertools.count()
            with (
                torch.enable_grad(),
                saved_tensors_hooks(lambda tensor: again.update({next(counted): tensor.detach()}), again.pop),
            ):
                function(*inputs)
        return again.pop(number)

    with saved_tensors_hooks(lambda _: next(numbers), unpack):
        return function(*inputs)


def _squared_norms(
    discriminator: Discriminator, gradient: Tensor, activations: Sequence[Tensor], transforms: Tensor | None
) -> Tensor:
    """(N, scales), in the scores' dtype, from the scores' gradient by the features."""
    gradients = image_gradients(discriminator.image_gradients(gradient, activations), transforms)
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    return torch.stack([image.square().sum(dim=(1, 2, 3), dtype=dtype) for image in gradients], dim=1)


def _squared_norms_of_part(
    discriminator: Discriminator, pyramid: Pyramid, gradient: Tensor, transforms: Tensor | None
) -> Tensor:
    activations: list[Tensor] = []
    with torch.no_grad():
        discriminator.features(pyramid, activations)
    return _squared_norms(discriminator, gradient, activations, transforms)
