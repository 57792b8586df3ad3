"""How fast is training, in one run on this machine, against an earlier version, plain order and the processor's rate?

    python -m benchmarks.bench [--seconds S] [--device D] [--table 64,128]

Whatever is compared takes turns, so that a machine whose speed drifts treats all alike. An earlier version is a
commit of this repository, unpacked for the time of the measurement. Plain order is BMSG-GAN's: float32, a generator
pass for each of the two steps, a discriminator pass for each set of images, gradients for everything. The rate is that
of large square products in bfloat16. Adds its rows to benchmarks/results.json and prints them. On a GPU,
or with --table, the rows are those of the default recipe at each resolution instead.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import report_rows, row
from msggan.commands.program import run_program
from msggan.config import TrainConfig, resolve
from msggan.data.stream import pyramid
from msggan.device import choose_device, has_fast_bfloat16, is_out_of_memory, reusing_memory
from msggan.graphs import WARM_UP
from msggan.losses import discriminator_loss, generator_loss
from msggan.networks import Discriminator, Generator
from msggan.randomness import latents
from msggan.steps import TrainingState, update_ema

ROOT = Path(__file__).parent.parent
EARLIER = "ae1137a"  # the last version before training was made faster
SIZES = ((32, 64, 32), (64, 128, 16), (128, 256, 8))  # resolution, latent size, batch of recipe `bmsg`
IMAGES_PER_TURN = {32: 128, 64: 32, 128: 16}  # one to five seconds each
PRODUCT_SIDE = 4096  # of matrices: large enough for the full rate
GPU_TABLE = "64,128,256,512,1024"

EARLIER_BAR = 1.5
STEP_BAR = 1.2  # the same arithmetic less what nobody reads: 16 parts in 12, of which overheads take some
RATE_BARS = {32: 0.70, 64: 0.85, 128: 0.85}
OPERATIONS_BARS = {32: None, 256: 2.0}

Row = dict[str, Any]


@click.command()
@click.option("--seconds", default=8.0, show_default=True, help="Time for each comparison; longer where one is slow.")
@click.option("--device", default="auto", show_default=True)
@click.option("--table", help=f"Resolutions of the default recipe's table. Default on a GPU: {GPU_TABLE}.")
def main(seconds: float, device: str, table: str | None) -> None:
    """Measure the speed of training."""
    place = choose_device(device)
    if table or place.type == "cuda":
        resolutions = [int(resolution) for resolution in (table or GPU_TABLE).split(",")]
        with reusing_memory(place):
            rows = [row for resolution in resolutions for row in table_rows(resolution, device=place, seconds=seconds)]
    else:
        with reusing_memory(place):
            rows = [row for size in SIZES for row in step_rows(*size, device=place, seconds=seconds)]
        with earlier_version() as checkout:
            if checkout is None:
                click.echo(f"Left out: the comparison with {EARLIER}, which is not in this checkout of the repository.")
            else:
                rows += operation_rows(checkout)
                rows += [earlier_row(checkout, *size[:2], device=place, seconds=2 * seconds) for size in SIZES]
    report_rows(rows, place)


# Recipe `auto` as it runs, against an earlier version


@contextmanager
def earlier_version() -> Iterator[Path | None]:
    """A folder with the package of EARLIER; None without git or the commit, as in a shallow clone."""
    with tempfile.TemporaryDirectory() as place:
        archive = Path(place) / "earlier.zip"
        command = [shutil.which("git") or "", "-C", str(ROOT), "archive", f"--output={archive}", EARLIER, "msggan"]
        if not command[0] or subprocess.run(command, capture_output=True, check=False).returncode:  # noqa: S603 - ours
            yield None
            return
        shutil.unpack_archive(archive, place)
        yield Path(place)


def earlier_row(checkout: Path, resolution: int, latent_size: int, *, device: torch.device, seconds: float) -> Row:
    """Images per second of whole runs: data, latents, steps, penalties, averages, reports, samples and checkpoints.

    Both train the networks of the earlier version.
    """
    with tempfile.TemporaryDirectory() as place:
        sides = []
        for version in (ROOT, checkout):
            folder = Path(place) / version.name
            draw_images(folder / "images", resolution)
            size = (resolution, latent_size, IMAGES_PER_TURN[resolution])
            sides.append(start_side(version, "train", *size, device, folder))
        try:
            timings = in_turns([lambda side=side: seconds_per_image(side) for side in sides], seconds=seconds)
        finally:
            for side in sides:
                side.kill()
                side.communicate()
    ours, theirs = (statistics.median(each) for each in timings)
    setting = f"{resolution} px, latent {latent_size}"
    ratio = statistics.median(b / a for a, b in zip(*timings, strict=True))
    return row(
        "auto as it runs, against " + EARLIER,
        setting,
        1 / ours,
        "images/s",
        baseline=1 / theirs,
        ratio=ratio,
        bar=EARLIER_BAR,
    )


def operation_rows(checkout: Path) -> list[Row]:
    """What a step and one with penalties launch, and how often they wait for the device."""
    ours, theirs = (
        [json.loads(line) for line in start_side(version, "count", *OPERATIONS_BARS).communicate()[0].splitlines()]
        for version in (ROOT, checkout)
    )
    rows = []
    for now, before in zip(ours, theirs, strict=True):
        setting = f"auto, {now['resolution']} px, {now['kind']}"
        launched, earlier = now["launched"], before["launched"]
        bar = OPERATIONS_BARS[now["resolution"]]
        rows.append(
            row("operations", setting, launched, "operations", baseline=earlier, ratio=earlier / launched, bar=bar)
        )
        waits = now["synchronizing"]
        rows.append(
            row(
                "waits for the device",
                setting,
                waits,
                "operations",
                baseline=before["synchronizing"],
                bar=1,
                most=True,
            )
        )
    return rows


def start_side(version: Path, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "side.py"), str(version), *map(str, args)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"} if args[0] == "count" else None  # its tensors are small
    return subprocess.Popen(  # noqa: S603 - our own command
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
    )


def seconds_per_image(side: subprocess.Popen[str]) -> float:
    assert side.stdin is not None  # noqa: S101 - `start_side` makes pipes
    assert side.stdout is not None  # noqa: S101
    side.stdin.write("\n")
    side.stdin.flush()
    return float(json.loads(side.stdout.readline())["seconds"])


def draw_images(folder: Path, side: int, count: int = 256) -> None:
    """Writes PNGs of noise."""
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")


# A step, against plain order and the rate of the processor


def step_rows(
    resolution: int, latent_size: int, batch_size: int, *, device: torch.device, seconds: float
) -> Iterator[Row]:
    """Recipe `bmsg`: images per second in both precisions, and the arithmetic in bfloat16."""
    for precision in ("float32", "bfloat16"):
        asked = TrainConfig(
            recipe="bmsg", resolution=resolution, latent_size=latent_size, batch_size=batch_size, precision=precision
        )
        config = resolve(asked, shorter_side_px=resolution, device=device.type, has_fast_bfloat16=True)
        ours, plain, product = in_turns(
            [steps(TrainingState(config, device)), plain_steps(config, device), matrix_product(device)],
            seconds=seconds,
            device=device,
        )
        setting = f"{resolution} px, latent {latent_size}, batch {batch_size}, {precision}"
        ratio = statistics.median(b / a for a, b in zip(ours, plain, strict=True))
        speed, plain_speed = (batch_size / statistics.median(each) for each in (ours, plain))
        yield row("training step", setting, speed, "images/s", baseline=plain_speed, ratio=ratio, bar=STEP_BAR)
        if precision == "bfloat16":
            yield rate_row(
                "training step: arithmetic",
                setting,
                config,
                step_seconds=ours,
                product_seconds=product,
                bar=RATE_BARS[resolution],
            )


def table_rows(resolution: int, *, device: torch.device, seconds: float) -> Iterator[Row]:
    """The default recipe at a resolution, over whole intervals of penalties. Plain order may need too much memory."""
    has_units = has_fast_bfloat16(device)
    asked = TrainConfig(resolution=resolution)
    config = resolve(asked, shorter_side_px=resolution, device=device.type, has_fast_bfloat16=has_units)
    setting = f"{resolution} px, latent {config.latent_size}, batch {config.batch_size}, {config.precision}"
    images = config.batch_size * config.penalty_interval
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    ours = steps(TrainingState(config, device))
    for _ in range(WARM_UP + 1):  # on a GPU, then come the recorded steps
        ours()
    if on_gpu:
        yield row("auto: peak memory", setting, torch.cuda.max_memory_reserved(device) / 2**20, "MiB")
    product = matrix_product(device)
    try:
        timings = in_turns([ours, product, plain_steps(config, device)], seconds=seconds, device=device)
        ratio = statistics.median(b / a for a, b in zip(timings[0], timings[2], strict=True))
        plain_speed = images / statistics.median(timings[2])
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        timings, ratio, plain_speed = in_turns([ours, product], seconds=seconds, device=device), None, None
    speed = images / statistics.median(timings[0])
    yield row("auto: speed", setting, speed, "images/s", baseline=plain_speed, ratio=ratio)
    yield row("auto: time", setting, 1000 / speed, "s/kimg")
    yield rate_row("auto: arithmetic", setting, config, step_seconds=timings[0], product_seconds=timings[1])


def rate_row(
    name: str,
    setting: str,
    config: TrainConfig,
    *,
    step_seconds: Sequence[float],
    product_seconds: Sequence[float],
    bar: float | None = None,
) -> Row:
    """The least arithmetic of the steps in their time, as a share of the rate of the matrix products beside them."""
    arithmetic = config.batch_size * config.penalty_interval * flops_per_image(config) / 1e9
    product = 2 * PRODUCT_SIDE**3 / 1e9
    share = statistics.median(
        arithmetic / step * taken / product for step, taken in zip(step_seconds, product_seconds, strict=True)
    )
    rates = arithmetic / statistics.median(step_seconds), product / statistics.median(product_seconds)
    return row(name, setting, rates[0], "GFLOP/s", baseline=rates[1], ratio=share, bar=bar)


def flops_per_image(config: TrainConfig) -> float:
    """The least floating-point operations for one image of a step, its share of the lazy penalties included.

    Three passes of the generator (forward, and backward for features and weights) and nine of the discriminator: three
    for each of the real and the generated images in its own step, one forward for the real ones and two for the
    generated ones in the generator's. A penalty is four: forward, its gradient, and backward through that twice.
    """
    with torch.device("meta"), torch.no_grad():
        generator = Generator(config.depth, config.latent_size)
        discriminator = Discriminator(config.depth, config.latent_size, join=config.join)
        with FlopCounterMode(display=False) as of_generator:
            images = generator(torch.empty(1, config.latent_size))
        with FlopCounterMode(display=False) as of_discriminator:
            discriminator(images)
    penalties = 4 * ((config.r1_gamma > 0) + (config.r2_gamma > 0)) / config.penalty_interval
    return 3 * of_generator.get_total_flops() + (9 + penalties) * of_discriminator.get_total_flops()


def steps(state: TrainingState) -> Callable[[], None]:
    """Takes the steps of one interval of penalties, always on the same batch."""
    reals, drawn = batch_of(state.config, state.device)

    def take() -> None:
        for _ in range(state.config.penalty_interval):
            state.step(reals, drawn)

    return take


def plain_steps(config: TrainConfig, device: torch.device) -> Callable[[], None]:
    """The same as BMSG-GAN writes it, on contiguous float32 tensors, and penalties by automatic differentiation."""
    networks = TrainingState(replace(config, precision="float32"), device)
    generator, discriminator = networks.generator, networks.discriminator
    for parameter in [*generator.parameters(), *discriminator.parameters()]:
        parameter.data = parameter.data.contiguous()
    rates = {"betas": (config.beta1, config.beta2), "eps": 1e-8}
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=config.d_lr, **rates)
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=config.g_lr, **rates)
    loss, gammas = config.loss, (config.r1_gamma, config.r2_gamma)
    reals, drawn = batch_of(config, device)

    def step(*, penalized: bool) -> None:
        real_pyramid = pyramid(reals)
        fakes = [fake.detach() for fake in generator(drawn)]
        d_optimizer.zero_grad()
        d_loss = discriminator_loss(loss, discriminator(real_pyramid), discriminator(fakes))
        for images, gamma in zip((real_pyramid, fakes), gammas, strict=True):
            if penalized and gamma > 0:
                d_loss = d_loss + config.penalty_interval * plain_penalty(discriminator, images, gamma)
        d_loss.backward()
        d_optimizer.step()
        g_optimizer.zero_grad()
        generator_loss(loss, discriminator(real_pyramid), discriminator(generator(drawn))).backward()
        g_optimizer.step()
        update_ema(networks.ema, generator, 0.999)

    def take() -> None:
        for index in range(config.penalty_interval):
            step(penalized=index == 0)

    return take


def plain_penalty(discriminator: Discriminator, images: Sequence[Tensor], strength: float) -> Tensor:
    """γ/2 · mean over samples and scales of the squared gradient norm, differentiable once more."""
    leaves = [image.detach().requires_grad_() for image in images]
    gradients = torch.autograd.grad(discriminator(leaves).sum(), leaves, create_graph=True)
    return strength / 2 * torch.stack([each.square().sum() for each in gradients]).mean() / len(images[0])


def batch_of(config: TrainConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    reals = torch.rand(config.batch_size, 3, config.resolution, config.resolution) * 2 - 1
    return reals.to(device), latents(0, range(config.batch_size), config.latent_size).to(device)


def matrix_product(device: torch.device) -> Callable[[], Tensor]:
    left, right = (torch.randn(PRODUCT_SIDE, PRODUCT_SIDE).to(device, torch.bfloat16) for _ in range(2))
    return lambda: left @ right


def in_turns(
    calls: Sequence[Callable[[], object]], *, seconds: float, device: torch.device | None = None
) -> list[list[float]]:
    """For each call the seconds that it took in each turn, or that it returned; at least three turns of all of them."""
    for call in calls:
        timed(call, device)  # warm
    turns = []
    until = time.perf_counter() + seconds
    while len(turns) < 3 or time.perf_counter() < until:
        turns.append([timed(call, device) for call in calls])
    return [list(each) for each in zip(*turns, strict=True)]


def timed(call: Callable[[], object], device: torch.device | None) -> float:
    began = time.perf_counter()
    measured = call()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return measured if isinstance(measured, float) else time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(run_program(main, name="bench"))  # SIGTERM is an exception there: what is temporary is removed
