"""Checks what only a machine with a GPU can show, in less than ten minutes, and writes the results into one file.

    make check-gpu      or      python tests/gpu_check.py [--device cuda] [--out gpu-check.json] [--largest 1024]

Each check is a function of the device and the sizes; it returns its figures, raises AssertionError where a promise
does not hold, and Skipped where it does not apply. Without a GPU the exit code is 2.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
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
from msggan.device import choose_device, has_fast_bfloat16, is_out_of_memory
from msggan.errors import OutOfMemoryError
from msggan.randomness import latents
from msggan.steps import TrainingState

Figures = dict[str, Any]
CPU = torch.device("cpu")


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
    only_cuda(device)
    state = state_on(device, resolution=32)
    batches = [batch(state.config, index, device) for index in range(8)]
    for reals, drawn in batches[:4]:
        state.step(reals, drawn)
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for reals, drawn in batches[4:]:
            state.step(reals, drawn)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"steps": 4}


def float32_is_float32(device: torch.device, largest: int) -> Figures:
    """TF32 has 10 bits, and its error here is about 1e-4."""
    state_on(device, resolution=8, precision="float32")  # sets what a run in float32 sets
    torch.manual_seed(0)
    image, weight = torch.randn(4, 64, 16, 16, device=device), torch.randn(64, 64, 3, 3, device=device) / 24
    errors = {}
    for name, call in (
        ("convolution", lambda x, w: torch.nn.functional.conv2d(x, w, padding=1)),
        ("matrix product", lambda x, w: x.flatten(1)[:, :4096] @ w.view(-1, 9)),
    ):
        errors[name] = relative(call(image, weight), call(image.double(), weight.double()))
    assert max(errors.values()) < 1e-6, errors
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
        {name: float(loss) for name, loss in state.step(*batch(state.config, 0, device)).items()}
        for state in (state_on(device, resolution=32, precision=precision) for precision in ("float32", "bfloat16"))
    ]
    apart = {name: abs(losses[0][name] - losses[1][name]) for name in losses[0]}
    assert max(apart.values()) < 0.05, apart
    return apart


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
    """Two runs of 64 images, one of them in two parts. Recorded, not required: docs/performance.md says what is."""
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
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.01, device)
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
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()


def the_default_recipe_at_each_resolution(device: torch.device, largest: int) -> Figures:
    """Images per second and peak memory in MiB, of steps on one batch; too large a size is recorded as such."""
    figures: Figures = {}
    for resolution in (64, 128, 256, 512, 1024):
        if resolution <= largest:
            figures[f"{resolution} px"] = speed(device, resolution)
    return figures


def a_run_trains_from_its_images(device: torch.device, largest: int) -> Figures:
    """The whole of it, data included: the images per second that a run reports, against those of steps alone."""
    with tempfile.TemporaryDirectory() as place:
        side = min(64, largest)
        images = save_images(Path(place) / "images", 300, side)
        result = train(
            images, Path(place) / "run", device, kimg=1.0 if device.type == "cuda" else 0.032, resolution=side
        )
    assert np.isfinite(result.metrics["d_loss"]), result.metrics
    return {name: result.metrics[name] for name in ("images_per_second", "d_loss", "g_loss")}


CHECKS = (
    a_step_does_not_wait_for_the_device,
    float32_is_float32,
    a_step_equals_that_on_the_cpu,
    bfloat16_is_near_float32,
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


def state_on(device: torch.device, **options: Any) -> TrainingState:
    """With the same batch size on each device, so that they can be compared."""
    return TrainingState(config_on(device, **{"batch_size": 4, **options}), device)


def batch(config: TrainConfig, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
    size = (config.batch_size, 3, config.resolution, config.resolution)
    reals = torch.from_numpy(np.random.default_rng(index).uniform(-1, 1, size)).float()
    positions = range(index * config.batch_size, (index + 1) * config.batch_size)
    return reals.to(device), latents(0, positions, config.latent_size).to(device)


def relative(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


def repeats(device: torch.device) -> bool:
    states = []
    for _ in range(2):
        state = state_on(device, resolution=32)
        for index in range(5):
            state.step(*batch(state.config, index, device))
        states.append(state.tensors())
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def speed(device: torch.device, resolution: int) -> Figures:
    config = config_on(device, resolution=resolution)
    on_gpu = device.type == "cuda"
    try:
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        state = TrainingState(config, device)
        reals, drawn = batch(config, 0, device)
        turns = [timed(state, reals, drawn, config.penalty_interval) for _ in range(3)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return {"batch": config.batch_size, "out of memory": True}
    figures = {
        "batch": config.batch_size,
        "images per second": config.penalty_interval * config.batch_size / min(turns),
    }
    return {**figures, **({"peak MiB": torch.cuda.max_memory_allocated(device) / 2**20} if on_gpu else {})}


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
