"""The training step: it equals the plain procedure, and its state can be saved and restored exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from support.builders import assert_close, latents_at, reals_at, training_state
from torch import Tensor, nn

from msggan.augmentation import augmented, transforms
from msggan.config import TrainConfig
from msggan.data.stream import pyramid
from msggan.errors import CheckpointError
from msggan.losses import LOSSES, discriminator_loss, generator_loss, zero_centred_penalty
from msggan.networks import ComputingCopy, Discriminator, Generator
from msggan.randomness import Purpose, interpolation
from msggan.schedules import settings_at
from msggan.steps import DTYPES, MEASURED, TrainingState, judge

Pyramid = Sequence[Tensor]
SCHEDULE = {
    "schedule_kimg": 0.012,
    "warm_up_kimg": 0.01,
    "lr_final": 0.25,
    "gamma_final": 0.1,
    "beta2": 0.9,
    "beta2_final": 0.99,
    "ema_half_life_final_kimg": 0.5,
}
STILL = 1e-300  # a learning rate that no weight can feel


def take_steps(ours: TrainingState, steps: range) -> list[dict[str, Tensor]]:
    return [ours.step(reals_at(ours.config, step), latents_at(ours.config, step)) for step in steps]


def saved(ours: TrainingState) -> dict[str, Tensor]:
    """What a checkpoint would hold: copies in plain memory order."""
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in ours.tensors().items()
    }


def assert_identical(ours: TrainingState, theirs: TrainingState) -> None:
    here, there = ours.tensors(), theirs.tensors()
    assert here.keys() == there.keys()
    assert [name for name in here if not torch.equal(here[name], there[name])] == []
    assert ours.images_seen == theirs.images_seen


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_step_that_is_not_finite_changes_no_network_and_no_optimizer(bad: float, precision: str) -> None:
    ours = training_state(precision=precision, ema_ramp=0.0, r1_gamma=1.0, penalty_interval=2)
    take_steps(ours, range(2))
    before = saved(ours)
    reals = reals_at(ours.config, 2)
    reals[1, 2, 3, 4] = bad

    ours.step(reals, latents_at(ours.config, 2))
    after = saved(ours)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"ema"}  # which goes on towards the generator as it is
    assert (ours.images_seen, int(ours.dropped), int(ours.dropped_in_a_row)) == (12, 1, 1)
    assert ours.dropped_networks() == ["generator", "discriminator"]

    take_steps(ours, range(3, 4))
    assert (int(ours.dropped), int(ours.dropped_in_a_row), ours.dropped_networks()) == (1, 0, [])


def test_a_gradient_that_is_not_finite_drops_the_update_of_its_network_only() -> None:
    ours = training_state(loss="relativistic-logistic")
    take_steps(ours, range(1))
    weight = ours.discriminator_copy.weights[0]
    hook = weight.register_hook(lambda gradient: gradient * float("nan"))
    before = saved(ours)
    take_steps(ours, range(1, 2))
    hook.remove()
    after = saved(ours)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"generator", "generator_optimizer", "ema"}
    assert ours.dropped_networks() == ["discriminator"]


class PlainOrder:
    """The same training as the textbook writes it: a generator pass for each step, a discriminator pass for each set.

    Its minibatch deviation is over whole batches, its penalties are written out, its Adam is the textbook's.
    """

    def __init__(self, ours: TrainingState) -> None:
        self.config: TrainConfig = ours.config
        self.generator, self.discriminator, self.ema = (
            copy.deepcopy(network) for network in (ours.generator, ours.discriminator, ours.ema)
        )
        self.moments: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
        self.steps = 0
        self.labels: Tensor | None = None

    def step(self, reals: Tensor, latents: Tensor) -> dict[str, Tensor]:
        reals, latents = reals.double(), latents.double()
        self.labels = latents[:, self.config.latent_size :] if self.generator.classes else None
        pyramid = [reals]
        while pyramid[0].shape[-1] > 4:
            finer = pyramid[0]
            pyramid.insert(
                0, (finer[..., ::2, ::2] + finer[..., 1::2, ::2] + finer[..., ::2, 1::2] + finer[..., 1::2, 1::2]) / 4
            )
        fakes = [image.detach() for image in self.generator(latents)]

        now = settings_at(self.config, (self.steps + 1) * self.config.batch_size)
        of_reals, of_fakes = self.transforms(Purpose.AUGMENT_REAL), self.transforms(Purpose.AUGMENT_FAKE)
        real_scores = self.discriminator(augmented(pyramid, of_reals), self.labels)
        fake_scores = self.discriminator(augmented(fakes, of_fakes), self.labels)
        d_loss = discriminator_loss(self.config.loss, real_scores, fake_scores)
        measured = {"d_loss": d_loss, "d_real": real_scores.mean(), "d_fake": fake_scores.mean()}
        if self.steps % self.config.penalty_interval == 0 and (self.config.r1_gamma or self.config.loss == "wgan-gp"):
            measured["penalty"] = (
                now.gamma * self.penalty(pyramid, fakes, of_reals, of_fakes) * self.config.penalty_interval
            )
        total = d_loss + measured.get("penalty", 0.0)
        measured["d_gradient_norm"] = self.descend(self.discriminator, total, now.d_lr, now.beta2)

        real_scores = self.discriminator(augmented(pyramid, of_reals), self.labels)
        fake_scores = self.discriminator(augmented(self.generator(latents), of_fakes), self.labels)
        g_loss = generator_loss(self.config.loss, real_scores, fake_scores)
        norm = self.descend(self.generator, g_loss, now.g_lr, now.beta2)
        measured |= {"g_loss": g_loss, "g_gradient_norm": norm}

        self.steps += 1
        decay = 0.5 ** (self.config.batch_size / (now.ema_half_life_kimg * 1000))
        for average, weight in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
            average.data = decay * average.data + (1 - decay) * weight.data
        return measured

    def transforms(self, purpose: Purpose) -> Tensor | None:
        config, first = self.config, self.steps * self.config.batch_size
        if config.augment == "none":
            return None
        strength, positions = config.augment_strength, range(first, first + config.batch_size)
        return transforms(config.seed, purpose, positions, strength=strength, resolution=config.resolution)

    def penalty(
        self, reals: Pyramid, fakes: Pyramid, of_reals: Tensor | None = None, of_fakes: Tensor | None = None
    ) -> Tensor:
        config = self.config
        total = torch.zeros((), dtype=torch.float64)
        if config.loss == "wgan-gp":
            first = self.steps * config.batch_size
            share = interpolation(config.seed, range(first, first + config.batch_size)).double().view(-1, 1, 1, 1)
            both = zip(augmented(reals, of_reals), augmented(fakes, of_fakes), strict=True)
            between = [share * real + (1 - share) * fake for real, fake in both]
            total = total + 10 * self.over_scales(between, lambda norm: (norm - 1) ** 2)
        total = total + config.r1_gamma / 2 * self.over_scales(reals, lambda norm: norm**2, of_reals)
        return total + config.r2_gamma / 2 * self.over_scales(fakes, lambda norm: norm**2, of_fakes)

    def over_scales(self, pyramid: Pyramid, of: Callable[[Tensor], Tensor], transforms: Tensor | None = None) -> Tensor:
        """Mean over scales and samples of something of the gradient's norm, by the images before their transforms."""
        images = [image.clone().requires_grad_() for image in pyramid]
        gradients = torch.autograd.grad(
            self.discriminator(augmented(images, transforms), self.labels).sum(), images, create_graph=True
        )
        return sum(of(gradient.flatten(1).norm(dim=1)).mean() for gradient in gradients) / len(images)

    @torch.no_grad()
    def descend(self, network: Generator | Discriminator, loss: Tensor, rate: float, beta2: float) -> Tensor:
        """Adam (Kingma and Ba, algorithm 1). Returns the norm of the gradients."""
        parameters = list(network.parameters())
        beta1 = self.config.beta1
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:  # the last bias of a penalty alone
                continue
            first, second = self.moments.get(parameter, (torch.zeros_like(parameter), torch.zeros_like(parameter)))
            first, second = beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2
            self.moments[parameter] = first, second
            count = self.steps + 1
            unbiased = second / (1 - beta2**count)
            parameter.sub_(rate * (first / (1 - beta1**count)) / (unbiased.sqrt() + 1e-8))
        return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]).norm()


# What a step computes


def test_the_average_counts_the_images_of_its_own_step() -> None:
    """By the second step of 4 images the half-life is 5 % of 8 images, and half-lives pass in it 4 / 0.4 times."""
    ours = training_state(ema_half_life_kimg=5.0, ema_ramp=0.05)
    take_steps(ours, range(1))
    before = [weight.clone() for weight in ours.ema.parameters()]
    take_steps(ours, range(1, 2))
    decay = 0.5 ** (4 / 0.4)
    for average, old, new in zip(ours.ema.parameters(), before, ours.generator.parameters(), strict=True):
        assert_close(average, decay * old + (1 - decay) * new, within=1e-12)


@pytest.mark.parametrize(
    "penalties", [{}, {"r1_gamma": 2.0}, {"r1_gamma": 1.0, "r2_gamma": 0.5, "penalty_interval": 3}]
)
@pytest.mark.parametrize("loss", LOSSES)
def test_steps_compute_what_the_plain_order_computes(loss: str, penalties: dict[str, float]) -> None:
    ours = training_state(loss=loss, g_lr=0.002, d_lr=0.003, ema_half_life_kimg=0.02, **penalties)
    plain = PlainOrder(ours)
    for step in range(4):
        reals, latents = reals_at(ours.config, step), latents_at(ours.config, step)
        measured, expected = ours.step(reals, latents), plain.step(reals, latents)
        assert measured.keys() == expected.keys() <= set(MEASURED)
        for name, value in measured.items():
            assert_close(value, expected[name].detach(), within=1e-9, what=f"{name} of step {step}")
    for part in ("generator", "discriminator", "ema"):
        for name, expected_weight in getattr(plain, part).state_dict().items():
            # A relativistic loss has no gradient on the last bias but rounding, which Adam scales by 1 / 1e-8.
            assert_close(getattr(ours, part).state_dict()[name], expected_weight, within=1e-9, what=f"{part}.{name}")


@pytest.mark.parametrize(
    "changes",
    [
        {"resolution": 4},
        {"resolution": 32},
        {"equalized": False},
        {"resolution": 16, "resampling": "filtered", "join": "simple", "beta1": 0.5},
        {"resolution": 16, "augment": "fixed", "augment_strength": 0.6, "penalty_interval": 2},
        {"augment": "fixed", "loss": "wgan-gp"},
        SCHEDULE,
        {"labels": "folders", "resolution": 16, "augment": "fixed", "penalty_interval": 2, "stddev_group": 2},
        {"labels": "folders", "loss": "wgan-gp"},
    ],
)
def test_steps_agree_with_the_plain_order_in_other_networks(changes: dict[str, object]) -> None:
    ours = training_state(**{"loss": "relativistic-logistic", "r1_gamma": 1.0, "r2_gamma": 1.0, **changes})
    plain = PlainOrder(ours)
    for step in range(2):
        reals, latents = reals_at(ours.config, step), latents_at(ours.config, step)
        ours.step(reals, latents)
        plain.step(reals, latents)
    for name, expected in plain.discriminator.state_dict().items():
        assert_close(ours.discriminator.state_dict()[name], expected, within=1e-10, what=name)
    for name, expected in plain.generator.state_dict().items():
        assert_close(ours.generator.state_dict()[name], expected, within=1e-10, what=name)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_generators_step_leaves_no_gradient_on_the_discriminator(loss: str) -> None:
    """What lies there afterwards is the discriminator's own, and its weights may learn again."""
    ours = training_state(loss=loss, g_lr=STILL, d_lr=STILL)
    reals, latents = reals_at(ours.config, 0), latents_at(ours.config, 0)
    plain = PlainOrder(ours)
    ours.step(reals, latents)
    pyramid = [nn.functional.avg_pool2d(reals.double(), 2), reals.double()]
    fakes = [image.detach() for image in plain.generator(latents.double())]
    own = discriminator_loss(loss, plain.discriminator(pyramid), plain.discriminator(fakes))
    if loss == "wgan-gp":
        own = own + plain.penalty(pyramid, fakes)
    own.backward()
    for parameter, expected in zip(ours.discriminator.parameters(), plain.discriminator.parameters(), strict=True):
        assert_close(parameter.grad, expected.grad, within=1e-10)
        assert parameter.requires_grad


def test_the_losses_reported_are_without_their_penalties_and_without_history() -> None:
    with_penalty, without = training_state(r1_gamma=100.0), training_state()
    reals, latents = reals_at(without.config, 0), latents_at(without.config, 0)
    ours, expected = with_penalty.step(reals, latents), without.step(reals, latents)
    assert torch.equal(ours["d_loss"], expected["d_loss"])
    assert not ours["d_loss"].requires_grad
    assert not ours["g_loss"].requires_grad
    assert ours["d_loss"].shape == ours["g_loss"].shape == ()


@pytest.mark.parametrize("options", [{}, {"augment": "fixed", "augment_strength": 0.6}, {"micro_batch": 2}])
def test_what_each_scale_receives_is_the_gradient_of_the_generators_loss(options: dict[str, object]) -> None:
    ours = training_state(loss="relativistic-logistic", **options)
    reals, latents = reals_at(ours.config, 0), latents_at(ours.config, 0)
    ours.step(reals, latents)
    before, part, passes = saved(ours), ours.part, [torch.OutOfMemoryError()]

    def fail_once(*_: object) -> None:
        if passes:
            raise passes.pop()

    hook = ours.discriminator_copy.network.last.register_forward_hook(fail_once)
    found = ours.scale_gradients(reals, latents)
    hook.remove()
    assert ours.part == part  # parts of half the size are for this alone
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.tensors().items())

    of_reals, of_fakes = (
        transforms(0, purpose, range(len(reals)), strength=0.6, resolution=8) if "augment" in options else None
        for purpose in (Purpose.AUGMENT_REAL, Purpose.AUGMENT_FAKE)
    )
    fakes = [image.detach().requires_grad_() for image in ours.generator(latents.double())]
    real_scores = ours.discriminator(augmented(pyramid(reals.double()), of_reals))
    loss = generator_loss("relativistic-logistic", real_scores, ours.discriminator(augmented(fakes, of_fakes)))
    expected = torch.autograd.grad(loss * len(reals), fakes)
    assert found.keys() == {4, 8}
    for gradient in expected:
        assert found[gradient.shape[-1]] == pytest.approx(gradient.flatten(1).norm(dim=1).mean().item(), rel=1e-5)


def test_the_average_starts_as_the_generator_and_has_no_gradients() -> None:
    ours = training_state()
    for name, weight in ours.generator.state_dict().items():
        assert torch.equal(weight, ours.ema.state_dict()[name])
    take_steps(ours, range(1))
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in ours.ema.parameters())


def test_a_step_counts_its_images() -> None:
    ours = training_state(batch_size=6)
    take_steps(ours, range(3))
    assert ours.images_seen == 18


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_augmentation_of_strength_zero_changes_no_bit(precision: str) -> None:
    options = {"loss": "relativistic-logistic", "r1_gamma": 1.0, "r2_gamma": 1.0, "precision": precision}
    without, with_none = training_state(**options), training_state(augment="fixed", augment_strength=0.0, **options)
    take_steps(without, range(3))
    take_steps(with_none, range(3))
    assert_identical(without, with_none)


# Lazy penalties


def gradients_over(steps: int, **options: object) -> list[Tensor]:
    """The discriminator's gradients, summed over steps on the same batch that move no weight."""
    ours = training_state(g_lr=STILL, d_lr=STILL, **options)
    reals, latents = reals_at(ours.config, 0), latents_at(ours.config, 0)
    total = [torch.zeros_like(parameter) for parameter in ours.discriminator.parameters()]
    for _ in range(steps):
        ours.step(reals, latents)
        total = [so_far + p.grad for so_far, p in zip(total, ours.discriminator.parameters(), strict=True)]
    return total


@pytest.mark.parametrize("interval", [2, 3, 4, 12])
def test_a_lazy_interval_keeps_the_penaltys_strength(interval: int) -> None:
    """Over twelve steps, penalties of every step and of every `interval`-th push the weights as far."""
    every, lazy, never = (
        gradients_over(12, **penalties)
        for penalties in (
            {"r1_gamma": 1.0, "r2_gamma": 2.0},
            {"r1_gamma": 1.0, "r2_gamma": 2.0, "penalty_interval": interval},
            {},
        )
    )
    for pushed, expected, without in zip(lazy, every, never, strict=True):
        torch.testing.assert_close(pushed - without, expected - without, rtol=1e-9, atol=1e-9)
    assert max((expected - without).abs().max() for expected, without in zip(every, never, strict=True)) > 1e-3


def test_a_lazy_penalty_is_due_at_the_first_step_and_then_every_interval() -> None:
    ours = training_state(g_lr=STILL, d_lr=STILL, r1_gamma=1.0, penalty_interval=3)
    reals, latents = reals_at(ours.config, 0), latents_at(ours.config, 0)
    sizes = []
    for _ in range(7):
        ours.step(reals, latents)
        sizes.append(ours.discriminator.from_rgb[0].weight.grad.norm().item())
    penalized, plain = sizes[0], sizes[1]
    assert penalized != pytest.approx(plain)
    assert sizes == pytest.approx([penalized, plain, plain, penalized, plain, plain, penalized])


def test_a_trained_discriminators_penalties_equal_autograds() -> None:
    """Against a double backward in float64: the value, and its gradient by all weights, relative to its norm."""
    options = {"resolution": 32, "loss": "relativistic-logistic", "r1_gamma": 1.0, "r2_gamma": 1.0, "stddev_group": 2}
    trained = training_state(precision="float32", **options)
    take_steps(trained, range(20))
    exact = copy.deepcopy(trained.discriminator).double()
    reals = [image.double() for image in pyramid(reals_at(trained.config, 20))]
    images = [image.clone().requires_grad_() for image in reals]
    gradients = torch.autograd.grad(exact(images).sum(), images, create_graph=True)
    expected = zero_centred_penalty(torch.stack([g.square().sum(dim=(1, 2, 3)) for g in gradients], dim=1), 10.0)
    expected_gradients = torch.autograd.grad(expected, list(exact.parameters())[:-1])
    exactly = torch.cat([gradient.flatten() for gradient in expected_gradients])
    for precision, within in (("float64", 1e-12), ("float32", 1e-5), ("bfloat16", 0.1)):
        original = exact if precision == "float64" else copy.deepcopy(trained.discriminator)
        ours = ComputingCopy(original, DTYPES[precision])
        ours.update()
        _, norms = judge(ours.network, [image.to(DTYPES[precision]) for image in reals], penalized=slice(None))
        assert norms is not None
        penalty = zero_centred_penalty(norms, 10.0)
        assert penalty.item() == pytest.approx(expected.item(), rel=within)
        gradients = torch.autograd.grad(penalty, ours.weights[:-1])  # the last bias has none
        ours.pass_back([*gradients, torch.zeros_like(ours.weights[-1])])
        passed = torch.cat([parameter.grad.flatten() for parameter in [*original.parameters()][:-1]])
        assert (passed - exactly).norm() <= within * exactly.norm()


def test_bfloat16_steps_stay_near_the_exact_ones() -> None:
    exact, rough = training_state(), training_state(precision="bfloat16")
    for expected, losses in zip(take_steps(exact, range(2)), take_steps(rough, range(2)), strict=True):
        for name in losses:
            assert losses[name].isfinite()
            assert losses[name].item() == pytest.approx(expected[name].item(), abs=0.1)
    assert {parameter.dtype for parameter in rough.generator.parameters()} == {torch.float32}


# From the same seed, and from a checkpoint


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize(
    "penalties",
    [
        {},
        {"loss": "wgan-gp", "penalty_interval": 2},
        {"r1_gamma": 1.0, "r2_gamma": 1.0, "penalty_interval": 3, **SCHEDULE},
    ],
)
def test_resuming_equals_never_stopping(precision: str, penalties: dict[str, object]) -> None:
    options = {"precision": precision, "resolution": 16, "ema_ramp": 0.05, "seed": 5, **penalties}
    through, first, second = (training_state(**options) for _ in range(3))
    take_steps(through, range(5))
    take_steps(first, range(2))
    second.load(saved(first), images_seen=first.images_seen)
    assert_identical(second, first)
    take_steps(second, range(2, 5))
    assert_identical(second, through)


def test_initial_weights_depend_on_the_seed() -> None:
    one, same, other = training_state(seed=1), training_state(seed=1), training_state(seed=2)
    assert_identical(one, same)
    assert not torch.equal(one.generator.first.conv_1.weight, other.generator.first.conv_1.weight)


def test_initialization_does_not_change_the_global_random_state() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    training_state()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_size_of_a_checkpoint_is_known_before_the_first_step(precision: str) -> None:
    ours = training_state(precision=precision)
    before = {name: tensor.nbytes for name, tensor in ours.tensors().items()}
    take_steps(ours, range(1))
    assert {name: tensor.nbytes for name, tensor in saved(ours).items()} == before


def without_one(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "ema.to_rgb.0.bias"}


def with_one_more(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "generator.extra": torch.zeros(1)}


def with_one_reshaped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "discriminator.last.conv_3.weight": torch.zeros(1, 4, 1, 1)}


def with_one_transposed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "discriminator_optimizer.blocks.0.conv_2.weight.exp_avg"
    return {**tensors, name: tensors[name].transpose(0, 1)}


def without_moments(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "optimizer" not in name}


@pytest.mark.parametrize(
    ("damaged", "named"),
    [
        (without_one, "ema.to_rgb.0.bias"),
        (with_one_more, "generator.extra"),
        (with_one_reshaped, "discriminator.last.conv_3.weight"),
        (with_one_transposed, "discriminator_optimizer.blocks.0.conv_2.weight.exp_avg"),
        (without_moments, "discriminator_optimizer."),
    ],
)
def test_other_names_or_shapes_are_refused_and_change_nothing(
    damaged: Callable[[dict[str, Tensor]], dict[str, Tensor]], named: str
) -> None:
    source, ours, untouched = training_state(), training_state(), training_state()
    take_steps(source, range(2))
    take_steps(ours, range(1))
    take_steps(untouched, range(1))
    with pytest.raises(CheckpointError, match=named):
        ours.load(damaged(saved(source)), images_seen=8)
    assert_identical(ours, untouched)


def test_weights_of_another_width_or_depth_are_refused_with_the_options_to_check() -> None:
    ours = training_state()
    other = training_state(latent_size=16)
    take_steps(other, range(1))
    with pytest.raises(CheckpointError, match="--latent-size"):
        ours.load(saved(other), images_seen=4)


def test_a_loaded_step_counter_continues() -> None:
    """Adam corrects its averages by the number of steps: taken up again at 1, they would leap."""
    first, second = training_state(), training_state()
    take_steps(first, range(3))
    second.load(saved(first), images_seen=12)
    counters = [tensor.item() for name, tensor in second.tensors().items() if name.endswith(".step")]
    assert set(counters) == {3.0}


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"loss": "relativistic-hinge"},
        {"loss": "relativistic-logistic", "r1_gamma": 2.0, "r2_gamma": 1.0, "penalty_interval": 2},
        {"loss": "hinge", "r2_gamma": 1.0, "stddev_group": 2, "labels": "folders"},
        {"loss": "wgan-gp", "r1_gamma": 1.0},
        {
            "loss": "relativistic-logistic",
            "r1_gamma": 2.0,
            "r2_gamma": 1.0,
            "augment": "fixed",
            "augment_strength": 0.6,
        },
    ],
)
def test_a_batch_in_parts_gives_the_numbers_of_the_whole(options: dict[str, object], micro_batch: int) -> None:
    whole, parts = (training_state(resolution=16, micro_batch=size, **options) for size in (0, micro_batch))
    for expected, losses in zip(take_steps(whole, range(3)), take_steps(parts, range(3)), strict=True):
        for name in losses:
            assert_close(losses[name], expected[name], within=1e-10, what=name)
    for name, expected_tensor in whole.tensors().items():
        assert_close(parts.tensors()[name], expected_tensor, within=1e-8, what=name)


@pytest.mark.parametrize("passes", range(1, 4))
def test_out_of_memory_halves_the_parts_and_updates_nothing_twice(passes: int) -> None:
    """The `passes`-th pass of the step's discriminator fails: of both sets, of real or of generated images."""
    options = {"loss": "relativistic-logistic", "r1_gamma": 1.0, "r2_gamma": 1.0, "batch_size": 6}
    whole, ours = training_state(**options), training_state(**options)
    calls: list[int] = []

    def fail_once(*_: object) -> None:
        calls.append(len(calls))
        if len(calls) == passes:
            raise torch.OutOfMemoryError

    hook = ours.discriminator_copy.network.last.register_forward_hook(fail_once)
    (losses,), (expected,) = take_steps(ours, range(1)), take_steps(whole, range(1))
    hook.remove()
    assert ours.part == 3
    assert len(calls) > passes
    take_steps(ours, range(1, 2))
    take_steps(whole, range(1, 2))
    for name in losses:
        assert_close(losses[name], expected[name], within=1e-10, what=name)
    for name, expected_tensor in whole.tensors().items():
        assert_close(ours.tensors()[name], expected_tensor, within=1e-8, what=name)


def test_configurations_with_a_deviation_group_step_too() -> None:
    """Groups that divide the batch: of real and of generated images, never of both."""
    ours = training_state(stddev_group=2)
    assert all(loss.isfinite() for losses in take_steps(ours, range(2)) for loss in losses.values())
