"""Checks what only a machine with a GPU can show, in less than ten minutes, and writes the results into one file.

    make check-gpu      or      python tests/gpu_check.py [--device cuda] [--out gpu-check.json] [--largest 1024]

Each check is a function of the device and the sizes; it returns its figures, raises AssertionError where a promise
does not hold, and Skipped where it does not apply. Without a GPU the exit code is 2.
"""

from __future__ import annotations

import copy
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from msggan import TrainConfig, Trainer
from msggan.config import resolve
from msggan.data.sources import open_source
from msggan.data.stream import SampleStream, pyramid
from msggan.device import choose_device, convolution_settings, has_fast_bfloat16, is_out_of_memory
from msggan.errors import OutOfMemoryError
from msggan.graphs import WARM_UP
from msggan.losses import zero_centred_penalty
from msggan.networks import NO_CLASSES, ComputingCopy, Discriminator, with_labels
from msggan.randomness import latents
from msggan.resources import MIB, PROGRAM_BYTES, plan
from msggan.steps import DTYPES, TrainingState, judge

Figures = dict[str, Any]
CPU = torch.device("cpu")
STEPS_UNTIL_RECORDED = 4 * WARM_UP  # with penalties at every fourth
CLASSES = {"a": 1, "b": 1, "c": 1}


class Skipped(Exception):  # noqa: N818 - not an error
    """The check does not apply to this device."""


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--out", default="gpu-check.json", show_default=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--largest", default=1024, show_default=True, help="Largest resolution of the speed and memory checks.")
def main(device: str, out: Path, largest: int) -> None:
    """Check on a GPU what only a GPU can show."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        click.echo("make check-gpu needs a machine with an NVIDIA GPU, and this one has none that PyTorch can use.")
        sys.exit(2)
    place = choose_device(device)
    results = [run(check, place, largest) for check in CHECKS]
    about = {"device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu", "torch": torch.__version__}
    out.write_text(json.dumps({"machine": about, "checks": results}, indent=1) + "\n")
    failed = [each["check"] for each in results if each["result"] == "failed"]
    click.echo(f"Written: {out}. " + (f"Failed: {', '.join(failed)}." if failed else "Nothing failed."))
    sys.exit(1 if failed else 0)


def run(check: Callable[[torch.device, int], Figures], device: torch.device, largest: int) -> dict[str, Any]:
    name = check.__name__.replace("_", " ")
    began = time.perf_counter()
    try:
        result, about = "ok", check(device, largest)
    except Skipped as reason:
        result, about = "skipped", {"reason": str(reason)}
    except Exception as error:  # a check that breaks must not hide the others
        result, about = "failed", {"reason": f"{type(error).__name__}: {error}"}
    click.echo(f"{result:8} {name}  {json.dumps(about)}")
    return {"check": name, "result": result, "seconds": round(time.perf_counter() - began, 1), "figures": about}


# The checks


def a_step_does_not_wait_for_the_device(device: torch.device, largest: int) -> Figures:
    """Replayed as CUDA graphs, and launched operation by operation."""
    only_cuda(device)
    for graphs in (True, False):
        state = state_on(device, graphs=graphs, resolution=32)
        take_steps(state, STEPS_UNTIL_RECORDED)
        batches = [batch(state.config, index, device) for index in range(4)]
        torch.cuda.synchronize(device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for reals, drawn in batches:
                state.step(reals, drawn)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {"steps": 4}


def graphs_compute_what_steps_without_them_compute(device: torch.device, largest: int) -> Figures:
    """In float64, so that only mistakes differ; how much faster they are in the precision of a run; the memory."""
    only_cuda(device)
    variants: dict[str, dict[str, Any]] = {
        "auto": {},
        "bmsg": {"recipe": "bmsg", "penalty_interval": 1},
        "augmentation": {"augment": "fixed"},
        "classes": {"labels": "folders"},
        "resampling": {"resampling": "filtered"},
        "schedules": {"lr_final": 0.1, "gamma_final": 0.1},
    }
    figures: Figures = {name: apart_by_graphs(device, **options) for name, options in variants.items()}
    assert max(figures.values()) < 1e-8, figures
    for resolution in (64, 128):
        if resolution <= largest:
            seconds, mib = zip(*(speed(device, resolution, graphs=graphs) for graphs in (False, True)), strict=True)
            figures[f"{resolution} px: times faster"] = seconds[0] / seconds[1]
            figures[f"{resolution} px: times the memory"] = mib[1] / mib[0]
    return figures


def float32_is_float32(device: torch.device, largest: int) -> Figures:
    """TF32 has 10 bits, and its error here is about 3e-4."""
    torch.manual_seed(0)
    image, weight = torch.randn(4, 64, 16, 16, device=device), torch.randn(64, 64, 3, 3, device=device) / 24
    errors = {}
    for name, call in (
        ("convolution", lambda x, w: torch.nn.functional.conv2d(x, w, padding=1)),
        ("matrix product", lambda x, w: x.flatten(1)[:, :4096] @ w.view(-1, 9)),
    ):
        with convolution_settings(device):  # as in a step
            errors[name] = relative(call(image, weight), call(image.double(), weight.double()))
    assert max(errors.values()) < 1e-5, errors
    return errors


def a_step_equals_that_on_the_cpu(device: torch.device, largest: int) -> Figures:
    """float64, so that only mistakes differ: the losses of two steps, and the gradients and weights after them."""
    here, there = (state_on(place, resolution=16, precision="float64") for place in (CPU, device))
    figures: Figures = {}
    for index in range(2):
        losses = [state.step(*batch(state.config, index, state.device)) for state in (here, there)]
        figures[f"losses of step {index}"] = max(relative(losses[1][name].cpu(), losses[0][name]) for name in losses[0])
    for part in ("generator", "discriminator"):
        pairs = zip(getattr(there, part).parameters(), getattr(here, part).parameters(), strict=True)
        compared = [(ours, theirs) for ours, theirs in pairs if theirs.grad is not None and theirs.numel() > 1]
        figures[f"{part}: gradients"] = max(relative(a.grad.cpu(), b.grad) for a, b in compared)
        figures[f"{part}: weights"] = max(relative(a.detach().cpu(), b.detach()) for a, b in compared)
    assert max(figures.values()) < 1e-8, figures
    return figures


def bfloat16_is_near_float32(device: torch.device, largest: int) -> Figures:
    if not has_fast_bfloat16(device):
        raise Skipped("no units for bfloat16")
    losses = [
        {name: float(loss) for name, loss in state.step(*batch(state.config, 0, device)).items() if "loss" in name}
        for state in (state_on(device, resolution=32, precision=precision) for precision in ("float32", "bfloat16"))
    ]
    apart = {name: abs(losses[0][name] - losses[1][name]) for name in losses[0]}
    assert max(apart.values()) < 0.05, apart
    return apart


def penalties_equal_those_by_double_backward(device: torch.device, largest: int) -> Figures:
    """On a trained discriminator, their gradients by all weights: relative errors against float64, and the times."""
    trained = state_on(device, resolution=32, precision="float32", loss="relativistic-logistic", r1_gamma=1.0)
    take_steps(trained, 20)
    reals = pyramid(batch(trained.config, 20, device)[0])
    exact = copy.deepcopy(trained.discriminator).double()
    expected = double_backward(exact, [image.double() for image in reals])
    figures: Figures = {}
    for precision, within in (("float32", 1e-4), ("bfloat16", 0.1)):
        images = [image.to(DTYPES[precision]) for image in reals]
        ours = ComputingCopy(trained.discriminator, DTYPES[precision])
        with convolution_settings(device):
            for name, penalize in (
                ("", lambda network, images, ours=ours: linear_network(ours, network, images)),
                ("by double backward, ", double_backward),
            ):
                seconds = []
                for _ in range(3):
                    began = time.perf_counter()
                    error = relative(penalize(trained.discriminator, images), expected)
                    seconds.append(time.perf_counter() - began)
                figures[f"{precision}: {name}error"] = error
                figures[f"{precision}: {name}seconds"] = min(seconds)
        assert figures[f"{precision}: error"] < within, figures
    return figures


def batches_are_pinned_and_copied_while_the_device_computes(device: torch.device, largest: int) -> Figures:
    only_cuda(device)
    with tempfile.TemporaryDirectory() as place:
        data = open_source(save_images(Path(place) / "images", 8, 64)).dataset(resolution=64, background="white")
        samples = SampleStream(data, seed=0, batch_size=4, mirror=True)
        with closing(samples.batches(0, latent_size=32, pinned=True)) as batches:
            for host in next(batches):
                assert host.is_pinned()
                copied = torch.cuda.Event()
                torch.cuda.synchronize(device)
                torch.cuda._sleep(10**9)  # clock cycles: half a second or more
                ours = host.to(device, non_blocking=True)
                copied.record()
                assert not copied.query()  # the host goes on
                assert torch.equal(ours.cpu(), host)
    return {}


def steps_repeat_bit_for_bit(device: torch.device, largest: int) -> Figures:
    """Whether the same steps twice in one process give the same weights, as PyTorch is set and deterministically."""
    figures = {"as set": repeats(device)}
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        figures["deterministic algorithms"] = repeats(device)
    finally:
        torch.use_deterministic_algorithms(False)
    return figures


def resuming_equals_never_stopping(device: torch.device, largest: int) -> Figures:
    """Two runs of 64 images, one of them in two parts. Recorded, not required: docs/never-lost.md says what is.

    On CUDA the parts are too short for graphs, so that this compares steps with and without them.
    """
    with tempfile.TemporaryDirectory() as place:
        images = save_images(Path(place) / "images", 48, 16)
        for name, lengths in (("whole", (0.064,)), ("parts", (0.032, 0.064))):
            for kimg in lengths:
                train(images, Path(place) / name, device, kimg=kimg, resolution=16)
        whole, parts = (load_file(Path(place) / name / "generator.safetensors") for name in ("whole", "parts"))
    apart = max(relative(parts[name], whole[name]) for name in whole)
    assert apart < 0.05, apart
    assert device.type != "cpu" or apart == 0, apart
    return {"bit for bit": apart == 0, "largest relative difference": apart}


def too_little_memory_is_explained(device: torch.device, largest: int) -> Figures:
    """A process that may use a hundredth of the memory trains, in smaller parts, or says what to change."""
    only_cuda(device)
    number = torch.cuda.current_device()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.01, number)
    try:
        with tempfile.TemporaryDirectory() as place:
            images = save_images(Path(place) / "images", 80, 128)
            messages = StringIO()
            try:
                result = train(
                    images, Path(place) / "run", device, kimg=0.128, resolution=128, batch_size=64, messages=messages
                )
            except OutOfMemoryError as error:
                return {"ended with": error.message, "hint": error.hint}
            return {"images": result.images_seen, "messages": messages.getvalue().splitlines()[:5]}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, number)
        torch.cuda.empty_cache()


def the_default_recipe_at_each_resolution(device: torch.device, largest: int) -> Figures:
    """Images per second of steps on one batch, and their peak memory in MiB beside the planned one."""
    figures: Figures = {}
    ratios: list[float] = []
    for resolution in (32, 64, 128, 256, 512, 1024):
        if resolution > largest:
            continue
        config = config_on(device, resolution=resolution)
        try:
            seconds, mib = speed(device, resolution)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            figures[f"{resolution} px"] = {"batch": config.batch_size, "out of memory": True}
            continue
        planned = (plan(config, device=device.type).memory_bytes - PROGRAM_BYTES[device.type]) / MIB
        images_per_second = config.penalty_interval * config.batch_size / seconds
        figures[f"{resolution} px"] = {
            "batch": config.batch_size,
            "images per second": images_per_second,
            "peak MiB": mib,
            "planned MiB": planned,
        }
        if mib and resolution >= 128:  # below, the libraries' own memory is much of it
            ratios.append(planned / mib)
    assert all(0.5 < ratio < 2 for ratio in ratios), figures
    return figures


def a_run_trains_from_its_images(device: torch.device, largest: int) -> Figures:
    """The whole of it, data included: the images per second that a run reports, against those of steps alone."""
    with tempfile.TemporaryDirectory() as place:
        side = min(64, largest)
        images = save_images(Path(place) / "images", 300, side)
        kimg, messages = 1.0 if device.type == "cuda" else 0.032, StringIO()
        result = train(images, Path(place) / "run", device, kimg=kimg, resolution=side, messages=messages)
    assert np.isfinite(result.metrics["d_loss"]), result.metrics
    assert "CUDA graphs are not used" not in messages.getvalue(), messages.getvalue()
    return {name: result.metrics[name] for name in ("images_per_second", "d_loss", "g_loss")}


CHECKS = (
    a_step_does_not_wait_for_the_device,
    graphs_compute_what_steps_without_them_compute,
    batches_are_pinned_and_copied_while_the_device_computes,
    float32_is_float32,
    a_step_equals_that_on_the_cpu,
    bfloat16_is_near_float32,
    penalties_equal_those_by_double_backward,
    steps_repeat_bit_for_bit,
    resuming_equals_never_stopping,
    too_little_memory_is_explained,
    the_default_recipe_at_each_resolution,
    a_run_trains_from_its_images,
)


# What they share


def only_cuda(device: torch.device) -> None:
    if device.type != "cuda":
        raise Skipped("needs CUDA")


def config_on(device: torch.device, **options: Any) -> TrainConfig:
    small = {"latent_size": 32} if options["resolution"] <= 32 else {}
    asked = TrainConfig(**{**small, **options})
    units = has_fast_bfloat16(device)
    return resolve(asked, shorter_side_px=asked.resolution, device=device.type, has_fast_bfloat16=units)


def state_on(
    device: torch.device,
    *,
    graphs: bool | None = None,
    inform: Callable[[str], None] = click.echo,
    **options: Any,
) -> TrainingState:
    """With the same batch size on each device, so that they can be compared."""
    config = config_on(device, **{"batch_size": 4, "penalty_interval": 4, **options})
    classes = CLASSES if config.labels == "folders" else NO_CLASSES
    return TrainingState(config, device, classes=classes, graphs=graphs, inform=inform)


def apart_by_graphs(device: torch.device, **options: Any) -> float:
    """The largest relative difference of a state's tensors after the same steps with and without graphs."""
    problems: list[str] = []
    with_graphs, without = (
        state_on(device, graphs=graphs, inform=problems.append, resolution=16, precision="float64", **options)
        for graphs in (True, False)
    )
    for state in (with_graphs, without):
        take_steps(state, 2 * STEPS_UNTIL_RECORDED)
    assert not problems, problems
    assert with_graphs.graphs is not None
    assert with_graphs.graphs.recorded
    ours, theirs = with_graphs.tensors(), without.tensors()
    # The last bias has no gradient but rounding, which Adam enlarges.
    return max(relative(ours[name], theirs[name]) for name in ours if ours[name].numel() > 1)


def take_steps(state: TrainingState, count: int) -> None:
    for index in range(count):
        state.step(*batch(state.config, index, state.device))


def batch(config: TrainConfig, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
    size = (config.batch_size, 3, config.resolution, config.resolution)
    reals = torch.from_numpy(np.random.default_rng(index).uniform(-1, 1, size)).float()
    positions = range(index * config.batch_size, (index + 1) * config.batch_size)
    drawn = latents(0, positions, config.latent_size)
    if config.labels == "folders":
        drawn = with_labels(drawn, torch.tensor(positions) % len(CLASSES), len(CLASSES))
    return reals.to(device), drawn.to(device)


def linear_network(ours: ComputingCopy[Discriminator], network: Discriminator, images: Sequence[Tensor]) -> Tensor:
    """The gradients of R1's penalty by all weights but the last bias, which has none, in one vector."""
    ours.update()
    _, norms = judge(ours.network, images, penalized=slice(None))
    assert norms is not None
    gradients = torch.autograd.grad(zero_centred_penalty(norms, 10.0), ours.weights[:-1])
    ours.pass_back([*gradients, torch.zeros_like(ours.weights[-1])])
    return torch.cat([weight.grad.flatten() for weight in [*network.parameters()][:-1]])


def double_backward(network: Discriminator, images: Sequence[Tensor]) -> Tensor:
    """The same through automatic differentiation."""
    leaves = [image.detach().requires_grad_() for image in images]
    gradients = torch.autograd.grad(network(leaves).sum(), leaves, create_graph=True)
    norms = torch.stack([each.double().square().sum(dim=(1, 2, 3)) for each in gradients], dim=1)
    by_weights = torch.autograd.grad(zero_centred_penalty(norms, 10.0), [*network.parameters()][:-1])
    return torch.cat([gradient.flatten() for gradient in by_weights])


def relative(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


def repeats(device: torch.device) -> bool:
    states = []
    for _ in range(2):
        state = state_on(device, resolution=32)
        take_steps(state, STEPS_UNTIL_RECORDED)
        states.append(state.tensors())
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def speed(device: torch.device, resolution: int, *, graphs: bool | None = None) -> tuple[float, float]:
    """The seconds of an interval of penalties, and the peak memory in MiB (0 on the CPU)."""
    config = config_on(device, resolution=resolution)
    on_gpu = device.type == "cuda"
    if on_gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    state = TrainingState(config, device, graphs=graphs)
    reals, drawn = batch(config, 0, device)
    for _ in range(WARM_UP + 1 if on_gpu else 0):
        timed(state, reals, drawn, config.penalty_interval)
    turns: list[float] = []
    while len(turns) < 3 and sum(turns) < 10:
        turns.append(timed(state, reals, drawn, config.penalty_interval))
    return min(turns), torch.cuda.max_memory_reserved(device) / MIB if on_gpu else 0.0


def timed(state: TrainingState, reals: Tensor, drawn: Tensor, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        losses = state.step(reals, drawn)
    float(losses["g_loss"])
    return time.perf_counter() - began


def train(images: Path, run_dir: Path, device: torch.device, **options: Any) -> Any:
    messages = options.pop("messages", None) or StringIO()
    config = TrainConfig(**{"latent_size": 32, "batch_size": 4, **options})
    return Trainer(config, data=images, run_dir=run_dir, device=str(device), messages=messages).run()


def save_images(folder: Path, count: int, side: int) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


if __name__ == "__main__":
    main()
