"""The networks have the shapes, widths and layers of MSG-GAN, at every depth and in every precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import assert_close, random_pyramid
from torch import Tensor, nn

from msggan.networks import (
    Convolution,
    Discriminator,
    Generator,
    LatentConvolution,
    activate,
    append_minibatch_stddev,
    enlarge,
    pixel_norm,
    reduce,
)

# Worked by hand from the description of BMSG-GAN for latent size 64, coarse to fine.
GENERATOR_WIDTHS = [64, 64, 64, 64, 32, 16, 8, 4, 2]
# in → out of the block that turns level i + 1 into level i.
DISCRIMINATOR_BLOCKS = [(64, 32), (64, 32), (64, 32), (32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
# Each level's features beside those of the finer one; the finest level has what its block wants.
FROM_RGB_WIDTHS = {
    1: [64],
    2: [32, 64],
    3: [32, 32, 64],
    4: [32, 32, 32, 64],
    5: [32, 32, 32, 32, 32],
    6: [32, 32, 32, 32, 16, 16],
    7: [32, 32, 32, 32, 16, 8, 8],
    8: [32, 32, 32, 32, 16, 8, 4, 4],
    9: [32, 32, 32, 32, 16, 8, 4, 2, 2],
}
SMALLEST_LATENT = {1: 2, 2: 2, 3: 2, 4: 2, 5: 2, 6: 4, 7: 8, 8: 16, 9: 32}
DEPTHS = range(1, 10)


def weights_as(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("depth", DEPTHS)
def test_there_is_an_image_at_every_scale_and_a_score_for_every_sample(depth: int) -> None:
    latent_size = SMALLEST_LATENT[depth]
    count = 2 if depth < 8 else 1
    with torch.no_grad():
        images = Generator(depth, latent_size)(torch.randn(count, latent_size))
        scores = Discriminator(depth, latent_size)(images)
    assert [tuple(image.shape) for image in images] == [(count, 3, 4 << i, 4 << i) for i in range(depth)]
    assert scores.shape == (count,)
    assert all(image.isfinite().all() for image in images)
    assert scores.isfinite().all()


@pytest.mark.parametrize("depth", DEPTHS)
def test_generator_has_the_widths_of_the_original(depth: int) -> None:
    network = Generator(depth, 64)
    widths = GENERATOR_WIDTHS[:depth]
    assert network.first.conv_1.weight.shape == (64, 64, 4, 4)
    assert network.first.conv_2.weight.shape == (64, 64, 3, 3)
    assert [block.conv_1.weight.shape for block in network.blocks] == [
        (after, before, 3, 3) for before, after in itertools.pairwise(widths)
    ]
    assert [block.conv_2.weight.shape for block in network.blocks] == [(width, width, 3, 3) for width in widths[1:]]
    assert [layer.weight.shape for layer in network.to_rgb] == [(3, width, 1, 1) for width in widths]


@pytest.mark.parametrize("depth", DEPTHS)
def test_discriminator_has_the_widths_of_the_original(depth: int) -> None:
    network = Discriminator(depth, 64)
    blocks = DISCRIMINATOR_BLOCKS[: depth - 1]
    assert [layer.weight.shape for layer in network.from_rgb] == [(w, 3, 1, 1) for w in FROM_RGB_WIDTHS[depth]]
    assert [block.conv_1.weight.shape for block in network.blocks] == [(a, a, 3, 3) for a, _ in blocks]
    assert [block.conv_2.weight.shape for block in network.blocks] == [(b, a, 3, 3) for a, b in blocks]
    assert network.last.conv_1.weight.shape == (64, 65, 3, 3)
    assert network.last.conv_2.weight.shape == (64, 64, 4, 4)
    assert network.last.conv_3.weight.shape == (1, 64, 1, 1)


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_images_joined_as_they_are_add_three_channels_to_features_of_the_full_width(depth: int) -> None:
    """Coarse to fine for latent size 64: the last block and four others read 64 channels, the finest 32."""
    network = Discriminator(depth, 64, join="simple")
    widths = [64, 64, 64, 64, 32, 16][:depth]
    inputs = [*(width + 3 for width in widths[:-1]), widths[-1]]
    assert [network.last.conv_1.weight.shape[1] - 1, *(b.conv_1.weight.shape[1] for b in network.blocks)] == inputs
    assert [network.last.conv_1.weight.shape[0], *(b.conv_1.weight.shape[0] for b in network.blocks)] == [
        64,
        *widths[1:],
    ]
    assert [block.conv_2.weight.shape[0] for block in network.blocks] == widths[:-1]
    assert [name for name in network.state_dict() if "from_rgb" in name] == [
        f"from_rgb.{depth - 1}.{kind}" for kind in ("weight", "bias")
    ]
    assert network(random_pyramid(depth, 2, dtype=torch.float32)).shape == (2,)


@pytest.mark.parametrize("equalized", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_images_come_in_the_latents_dtype_and_scores_in_the_weights(dtype: torch.dtype, equalized: bool) -> None:
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    generator = Generator(3, 8, equalized=equalized).to(weights)
    discriminator = Discriminator(3, 8, equalized=equalized).to(weights)
    images = generator(torch.randn(4, 8).to(dtype))
    assert {image.dtype for image in images} == {dtype}
    assert discriminator(images).dtype == weights


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-4), (torch.bfloat16, 0.25)])
def test_lower_precision_gives_nearly_the_images_of_float64(dtype: torch.dtype, within: float) -> None:
    torch.manual_seed(0)
    generator = Generator(3, 16)
    latents = torch.randn(4, 16)
    exact = Generator(3, 16).double()
    exact.load_state_dict(weights_as(generator, torch.float64))
    for image, precise in zip(generator(latents.to(dtype)), exact(latents.double()), strict=True):
        assert_close(image, precise, within=within)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("group", [0, 2, 4])
def test_two_batches_in_one_pass_score_as_in_two_passes(depth: int, group: int) -> None:
    network = Discriminator(depth, 8, stddev_group=group).double()
    one, other = random_pyramid(depth, 4, seed=1), random_pyramid(depth, 4, seed=2)
    together = network([torch.cat(pair) for pair in zip(one, other, strict=True)], batches=2)
    assert_close(together, torch.cat((network(one), network(other))), within=1e-12)


def test_the_whole_batch_is_one_group_by_default() -> None:
    """A sample's score depends on its batch through the deviation alone: on its group's, where there are groups."""
    whole, groups = Discriminator(1, 8), Discriminator(1, 8, stddev_group=2)
    groups.load_state_dict(whole.state_dict())
    (images,) = random_pyramid(1, 4, dtype=torch.float32)
    changed = images.clone()
    changed[3] *= 3
    assert (whole([images])[0] - whole([changed])[0]).abs() > 1e-6
    assert torch.equal(groups([images])[:2], groups([changed])[:2])
    assert (groups([images])[2] - groups([changed])[2]).abs() > 1e-6


@pytest.mark.parametrize("level", range(4))
def test_the_score_depends_on_every_scale(level: int) -> None:
    network = Discriminator(4, 8).double()
    pyramid = random_pyramid(4, 2)
    changed = [image.clone() for image in pyramid]
    changed[level][0, 0, 0, 0] += 0.5
    assert (network(pyramid) - network(changed)).abs()[0] > 1e-9


def test_every_scale_of_the_generator_reaches_the_latents() -> None:
    """Gradients come from each image alone, down to the first layer."""
    generator = Generator(4, 8).double()
    for image in generator(torch.randn(2, 8, dtype=torch.float64)):
        (gradient,) = torch.autograd.grad(image.square().sum(), generator.first.conv_1.weight, retain_graph=True)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("network", [Generator, Discriminator])
@pytest.mark.parametrize(
    ("depth", "latent_size"),
    [(0, 8), (-1, 8), (3, 0), (3, 1), (3, 3), (3, 12), (3, -8), (6, 2), (9, 16), (1, 1)],
)
def test_impossible_sizes_are_refused(network: type[nn.Module], depth: int, latent_size: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        network(depth, latent_size)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_smallest_latent_size_is_allowed_and_half_of_it_is_not(depth: int) -> None:
    smallest = SMALLEST_LATENT[depth]
    assert Generator(depth, smallest).to_rgb[-1].weight.shape[1] >= 1
    with pytest.raises(ValueError, match=f"at least {smallest} at depth {depth}"):
        Generator(depth, smallest // 2)


# Layers


def test_pixel_norm_equals_numbers_worked_out_manually() -> None:
    """(3, 4) has a mean square of 12.5: 3/√12.5 and 4/√12.5. (2, 2) becomes (1, 1), and nothing stays nothing."""
    x = torch.tensor([[3.0, 2.0, 0.0], [4.0, 2.0, 0.0]], dtype=torch.float64).view(1, 2, 1, 3)
    expected = torch.tensor([[0.8485281374, 1.0, 0.0], [1.1313708499, 1.0, 0.0]], dtype=torch.float64).view(1, 2, 1, 3)
    assert_close(pixel_norm(x), expected, within=1e-8)


@given(scale=st.floats(0.1, 1e4), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_pixel_norm_leaves_a_mean_square_of_one_whatever_the_scale(scale: float, seed: int) -> None:
    x = scale * torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mean_square = pixel_norm(x).square().mean(dim=1)
    before = x.square().mean(dim=1)
    assert_close(mean_square, before / (before + 1e-8), within=1e-12)


def test_leaky_relu_has_slope_a_fifth() -> None:
    assert activate(torch.tensor([-5.0, 0.0, 5.0])).tolist() == [-1.0, 0.0, 5.0]


def test_filtered_enlargement_is_nearest_neighbour_and_then_a_binomial_filter() -> None:
    """[1, 2, 1] / 4 of repeated pixels; at the borders, the outermost is repeated once more."""
    row = torch.tensor([0.0, 4.0, 8.0], dtype=torch.float64).expand(1, 1, 3, 3)
    assert enlarge(row)[0, 0, 0].tolist() == [0, 1, 3, 5, 7, 8]
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    kernel = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])).double().expand(3, 1, 3, 3) / 16
    blurred = nn.functional.conv2d(nn.functional.interpolate(x, scale_factor=2), kernel, groups=3)
    assert_close(enlarge(x)[..., 1:-1, 1:-1], blurred, within=1e-12)


def test_filtered_reduction_is_a_binomial_filter_of_pairs_and_the_transpose_of_enlargement() -> None:
    """[1, 3, 3, 1] / 8 of every second four pixels: 0·1 + 0·3 + 8·3 + 16·1 = 40, an eighth is 5."""
    row = torch.tensor([0.0, 0.0, 0.0, 8.0, 16.0, 16.0], dtype=torch.float64).expand(1, 1, 6, 6)
    assert reduce(row)[0, 0, 0].tolist() == [0, 5, 15]
    small, large = (torch.randn(2, 3, side, side, dtype=torch.float64, requires_grad=True) for side in (4, 8))
    kernel = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])).double() / 64
    inside = nn.functional.conv2d(large, kernel.expand(3, 1, 4, 4), stride=2, padding=1, groups=3)[..., 1:-1, 1:-1]
    assert_close(reduce(large)[..., 1:-1, 1:-1], inside, within=1e-12)
    assert_close((enlarge(small) * large).sum(), 4 * (reduce(large) * small).sum(), within=1e-12)
    for function, x in ((enlarge, small), (reduce, large)):
        assert torch.autograd.gradgradcheck(function, x[:1, :1].detach().requires_grad_())


def test_the_resampling_changes_what_is_computed_and_not_the_weights() -> None:
    plain, filtered = Generator(3, 8).double(), Generator(3, 8, resampling="filtered").double()
    filtered.load_state_dict(plain.state_dict())
    latents = torch.randn(2, 8, dtype=torch.float64)
    differ = [not torch.equal(*pair) for pair in zip(plain(latents), filtered(latents), strict=True)]
    assert differ == [False, True, True]
    assert ["resampling=filtered" in str(network) for network in (plain, filtered)] == [False, True]


def test_minibatch_deviation_equals_numbers_worked_out_manually() -> None:
    """Two channels: 1 and 3 deviate by 1, 10 and 16 by 3; their mean is 2, and the input comes back before it."""
    x = torch.tensor([[1.0, 10.0], [3.0, 16.0]], dtype=torch.float64).view(2, 2, 1, 1)
    appended = append_minibatch_stddev(x, group=2)
    assert torch.equal(appended[:, :2], x)
    assert_close(appended[:, 2].flatten(), torch.tensor([2.0, 2.0]), within=1e-8)


def test_minibatch_deviation_averages_over_channels_and_pixels() -> None:
    """One channel of 1×2 pixels: 0 and 4 deviate by 2, 5 and 5 by √1e-8 = 0.0001; their mean is 1.00005."""
    x = torch.tensor([[0.0, 5.0], [4.0, 5.0]], dtype=torch.float64).view(2, 1, 1, 2)
    deviation = append_minibatch_stddev(x, group=2)[:, 1]
    assert_close(deviation, torch.full((2, 1, 2), 1.00005, dtype=torch.float64), within=1e-8)


def test_groups_are_neighbours_and_have_deviations_of_their_own() -> None:
    x = torch.tensor([0.0, 2.0, 0.0, 20.0], dtype=torch.float64).view(4, 1, 1, 1)
    in_pairs = append_minibatch_stddev(x, group=2)[:, 1].flatten()
    assert_close(in_pairs, torch.tensor([1.0, 1.0, 10.0, 10.0]), within=1e-8)
    # All four: mean 5.5, squares 30.25 + 12.25 + 30.25 + 210.25 = 283, a quarter of it 70.75.
    together = append_minibatch_stddev(x, group=4)[:, 1].flatten()
    assert_close(together, torch.full((4,), math.sqrt(70.75), dtype=torch.float64), within=1e-8)


def test_a_batch_of_one_has_no_deviation() -> None:
    """√1e-8, and a gradient that is a number."""
    x = torch.ones(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    appended = append_minibatch_stddev(x, group=1)
    assert_close(appended[:, 3], torch.full((1, 4, 4), 1e-4, dtype=torch.float64), within=1e-12)
    appended.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_equalized_convolution_multiplies_its_weights_by_root_two_over_root_fan_in(kernel: int) -> None:
    """fan_in = kernel · kernel · inputs. The bias is not scaled."""
    layer = Convolution(8, 5, kernel).double()
    assert layer.bias.eq(0).all()
    nn.init.constant_(layer.bias, 0.25)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    factor = {1: 0.5, 3: 1 / 6, 4: 0.125}[kernel]  # √(2/8), √(2/72), √(2/128)
    plain = nn.functional.conv2d(x, layer.weight * factor, layer.bias)
    assert_close(layer(x), plain, within=1e-12)


def test_the_equalized_first_layer_scales_by_its_inputs_only() -> None:
    """fan_in = 8, though its kernel has 16 pixels: a factor of √(2/8) = 1/2."""
    layer = LatentConvolution(8, 8).double()
    nn.init.normal_(layer.bias)
    latents = torch.randn(3, 8, dtype=torch.float64)
    as_image = nn.functional.conv_transpose2d(latents[:, :, None, None], layer.weight / 2, layer.bias)
    assert_close(layer(latents), as_image, within=1e-12)


def test_plain_first_layer_is_the_transposed_convolution() -> None:
    layer = LatentConvolution(4, 4, equalized=False).double()
    latents = torch.randn(3, 4, dtype=torch.float64)
    as_image = nn.functional.conv_transpose2d(latents[:, :, None, None], layer.weight, layer.bias)
    assert_close(layer(latents), as_image, within=1e-12)


@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_equalized_weights_start_as_standard_normal_and_biases_as_zero(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    for name, parameter in network(4, 64).named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all(), name
        elif parameter.numel() >= 30_000:
            assert abs(parameter.mean().item()) < 0.02, name
            assert abs(parameter.std().item() - 1) < 0.02, name


@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_plain_weights_start_within_one_over_root_fan_in(network: type[nn.Module]) -> None:
    """PyTorch's own initialisation; of a transposed convolution it takes the outputs for the inputs."""
    for layer in network(3, 16, equalized=False).modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            fan_in = layer.kernel_size[0] ** 2 * layer.weight.shape[1]
            assert layer.weight.abs().max() <= 1 / math.sqrt(fan_in)
            assert layer.weight.abs().max() > 0.5 / math.sqrt(fan_in)


def test_equalized_layers_keep_the_variance() -> None:
    """What the √2 is for: before an activation, outputs have twice the inputs' mean square."""
    torch.manual_seed(0)
    out = Convolution(64, 512, 3)(torch.randn(8, 64, 8, 8))
    assert out.square().mean().item() == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_weights_are_master_weights_whatever_was_computed_in(network: type[nn.Module]) -> None:
    net = network(2, 8)
    if isinstance(net, Generator):
        total = sum(image.float().sum() for image in net(torch.randn(4, 8).bfloat16()))
    else:
        total = net(random_pyramid(2, 4, dtype=torch.bfloat16)).sum()
    total.backward()
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in net.parameters()} == {torch.float32}
