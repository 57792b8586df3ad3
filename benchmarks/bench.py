"""How fast is a training step, against the same step in plain order, in one run on this machine?

    python -m benchmarks.bench [--seconds S]

Plain order is BMSG-GAN's: float32, a generator pass for each of the two steps, a discriminator pass for each set of
images, gradients for everything. Both take turns, so that a machine whose speed drifts treats them alike. Writes
its rows into benchmarks/results.json and prints the same table.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import torch

from benchmarks.results import write_rows
from msggan.config import TrainConfig, resolve
from msggan.data.stream import pyramid
from msggan.device import choose_device
from msggan.losses import discriminator_loss, generator_loss
from msggan.randomness import latents
from msggan.steps import TrainingState, update_ema

SIZES = ((32, 64, 16), (64, 128, 8), (128, 256, 4))  # resolution, latent size, batch
BAR = 1.2  # the same arithmetic less what nobody reads: 16 parts in 12, of which overheads take some


@click.command()
@click.option("--seconds", default=8.0, show_default=True, help="Time for each pair.")
@click.option("--device", default="auto", show_default=True)
def main(seconds: float, device: str) -> None:
    """Time training steps against plain order."""
    place = choose_device(device)
    rows = [
        step_row(*size, precision, device=place, seconds=seconds)
        for size in SIZES
        for precision in ("float32", "bfloat16")
    ]
    click.echo(f"{write_rows(rows, place)}\n")
    for row in rows:
        click.echo(
            f"{row['name']}  {row['setting']}: {row['value']:.1f} {row['unit']}, plain {row['baseline']:.1f}: "
            f"{row['ratio']:.2f} times as fast (bar {row['bar']}, {'met' if row['met'] else 'not met'})"
        )


def step_row(
    resolution: int, latent_size: int, batch_size: int, precision: str, *, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Images per second of our step and of the plain one, and the median of their ratios."""
    asked = TrainConfig(
        recipe="bmsg", resolution=resolution, latent_size=latent_size, batch_size=batch_size, precision=precision
    )
    config = resolve(asked, shorter_side_px=resolution, device=device.type, has_fast_bfloat16=True)
    reals = (torch.rand(batch_size, 3, resolution, resolution) * 2 - 1).to(device)
    drawn = latents(0, range(batch_size), latent_size).to(device)
    ours = TrainingState(config, device)
    plain = plain_step(TrainingState(replace(config, precision="float32"), device))
    value, baseline, ratio = in_turns(
        lambda: ours.step(reals, drawn), lambda: plain(reals, drawn), seconds=seconds, device=device
    )
    return {
        "name": "training step",
        "setting": f"{resolution} px, latent {latent_size}, batch {batch_size}, {precision}",
        "value": batch_size / value,
        "unit": "images/s",
        "baseline": batch_size / baseline,
        "ratio": ratio,
        "bar": BAR,
        "met": ratio >= BAR,
    }


def plain_step(networks: TrainingState) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """The procedure as BMSG-GAN writes it, on contiguous float32 tensors."""
    generator, discriminator = networks.generator, networks.discriminator
    for parameter in [*generator.parameters(), *discriminator.parameters()]:
        parameter.data = parameter.data.contiguous()
    rates = {"betas": (0.0, 0.99), "eps": 1e-8, "lr": 0.003}
    d_optimizer = torch.optim.Adam(discriminator.parameters(), **rates)
    g_optimizer = torch.optim.Adam(generator.parameters(), **rates)
    loss = networks.config.loss

    def step(reals: torch.Tensor, drawn: torch.Tensor) -> None:
        real_pyramid = pyramid(reals)
        fakes = [fake.detach() for fake in generator(drawn)]
        d_optimizer.zero_grad()
        discriminator_loss(loss, discriminator(real_pyramid), discriminator(fakes)).backward()
        d_optimizer.step()
        g_optimizer.zero_grad()
        generator_loss(loss, discriminator(real_pyramid), discriminator(generator(drawn))).backward()
        g_optimizer.step()
        update_ema(networks.ema, generator, 0.999)

    return step


def in_turns(
    ours: Callable[[], object], plain: Callable[[], object], *, seconds: float, device: torch.device
) -> tuple[float, float, float]:
    """Median seconds of each, and the median of the ratios pair by pair."""
    pairs = []
    for call in (ours, plain):
        timed(call, device)  # warm
    until = time.perf_counter() + seconds
    while len(pairs) < 3 or time.perf_counter() < until:
        pairs.append((timed(ours, device), timed(plain, device)))
    return (
        statistics.median(pair[0] for pair in pairs),
        statistics.median(pair[1] for pair in pairs),
        statistics.median(pair[1] / pair[0] for pair in pairs),
    )


def timed(call: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
