"""How fast are images read: files, a pack, and while training? Against torchvision's ImageFolder, in one run.

    python -m benchmarks.data [--images N]

Drawn JPEGs of 1024 pixels are read at 64 pixels: as a run reads them the first time, from a pack, and by ImageFolder
with Resize, CenterCrop and ToTensor in a DataLoader, all with the same number of workers, in turns. --images N also
draws N small JPEGs and measures how soon a run begins: the first time, the second time, and from a pack. Adds its rows
to benchmarks/results.json.
"""

from __future__ import annotations

import itertools
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from benchmarks.results import report_rows, row
from msggan.config import TrainConfig, resolve
from msggan.data.dataset import cores, in_threads
from msggan.data.pack_file import Pack, write_pack
from msggan.data.sources import find_images, open_source
from msggan.data.stream import SampleStream, to_float
from msggan.device import choose_device, has_fast_bfloat16
from msggan.steps import TrainingState

PHOTOGRAPHS, LARGE, RESOLUTION, SMALL = 96, 1024, 64, 128
ROUNDS = 3
STEPS_BEFORE, STEPS_TRAINED = 5, 30  # not counted: the first step, and the batches that are ready then
BARS = {"files": 2.0, "pack": 30.0}
WAITING_BAR = 0.02  # of the time that training takes, from the second epoch on
BEGIN_BAR_SECONDS = 3.0


@click.command()
@click.option("--device", default="auto", show_default=True)
@click.option("--images", default=0, help="Also begin with so many small images; 100,000 take 8 GB and half an hour.")
def main(device: str, images: int) -> None:
    """Measure how fast images are read."""
    place = choose_device(device)
    with tempfile.TemporaryDirectory() as folder:
        rows = [*reading_rows(Path(folder)), waiting_row(Path(folder), place)]
    with tempfile.TemporaryDirectory() as folder:
        rows += beginning_rows(Path(folder), images) if images else []
    report_rows(rows, place)


def reading_rows(folder: Path) -> list[dict[str, Any]]:
    """A first pass over files and over a pack, against ImageFolder; leaves `photographs` and `pack` in `folder`."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    photographs, pack = folder / "photographs", folder / "pack.safetensors"
    draw(photographs / "one class", PHOTOGRAPHS, LARGE, quality=90)
    options: dict[str, Any] = {"resolution": RESOLUTION, "background": "white"}
    write_pack(pack, open_source(photographs).dataset(**options), background="white")
    steps = [transforms.Resize(RESOLUTION), transforms.CenterCrop(RESOLUTION), transforms.ToTensor()]
    files = ImageFolder(photographs, transforms.Compose(steps))
    loader = DataLoader(files, batch_size=16, shuffle=True, num_workers=cores(), persistent_workers=True)
    passes: dict[str, Callable[[], object]] = {
        "ImageFolder": lambda: [batch.shape for batch, _ in loader],
        "files": lambda: open_source(photographs).dataset(**options),
        "pack": lambda: first_pass(Pack(pack).dataset(**options)),
    }
    passes["ImageFolder"]()  # starts its workers
    taken = [{name: seconds(read) for name, read in passes.items()} for _ in range(ROUNDS)]
    setting = f"{PHOTOGRAPHS} JPEGs of {LARGE} px at {RESOLUTION} px, {cores()} workers"
    speed = {name: PHOTOGRAPHS / statistics.median(each[name] for each in taken) for name in passes}
    return [
        row(
            f"data: first pass over {name}",
            setting,
            speed[name],
            "images/s",
            baseline=speed["ImageFolder"],
            ratio=statistics.median(each["ImageFolder"] / each[name] for each in taken),
            bar=bar,
        )
        for name, bar in BARS.items()
    ]


def first_pass(dataset: Any) -> None:
    parts = np.array_split(np.arange(dataset.training), max(1, dataset.training // 16))
    for _ in in_threads(dataset.images, parts, workers=dataset.workers):
        pass


def waiting_row(folder: Path, device: torch.device) -> dict[str, Any]:
    """The share of its time that training waits for images, from the second epoch on."""
    asked = TrainConfig(resolution=RESOLUTION)
    fast = has_fast_bfloat16(device)
    config = resolve(asked, shorter_side_px=RESOLUTION, device=device.type, has_fast_bfloat16=fast)
    dataset = open_source(folder / "photographs").dataset(resolution=RESOLUTION, background="white")
    networks, batch_size = TrainingState(config, device), config.batch_size
    samples = SampleStream(dataset, seed=0, batch_size=batch_size, mirror=True)
    position = len(dataset)  # which begins the second epoch
    taken: list[tuple[float, float]] = []  # until the images were there, and until the step was done
    with closing(samples.batches(position, latent_size=config.latent_size)) as batches:
        for images, drawn in batches:
            came = time.perf_counter()
            networks.step(to_float(images.to(device)), drawn)
            taken.append((came, time.perf_counter()))
            if len(taken) > STEPS_TRAINED + STEPS_BEFORE:
                break
    counted = taken[STEPS_BEFORE:]
    waited = sum(came - before for (_, before), (came, _) in itertools.pairwise(counted))
    spent = counted[-1][1] - counted[0][1]
    setting = f"{RESOLUTION} px, latent {config.latent_size}, batch {batch_size}, {config.precision}"
    ratio = waited / spent
    setting += f", {STEPS_TRAINED} steps"
    return row("data: training waits", setting, waited, "s", baseline=spent, ratio=ratio, bar=WAITING_BAR, most=True)


def beginning_rows(folder: Path, count: int) -> list[dict[str, Any]]:
    """How long it takes from the path to the dataset, and the memory that all of it took at most."""
    pictures, pack, index = folder / "pictures", folder / "pack.safetensors", folder / "index"
    draw(pictures, count, SMALL, quality=75)
    options: dict[str, Any] = {"resolution": SMALL, "background": "white", "index": index}
    first = seconds(lambda: open_source(pictures).dataset(**options))
    again = seconds(lambda: open_source(pictures).dataset(**options))
    dataset = find_images(pictures).dataset(**options, memory_budget_bytes=2**30)
    packing = seconds(lambda: write_pack(pack, dataset, background="white"))
    packed = seconds(lambda: open_source(pack).dataset(**options).images(range(64)))
    setting = f"{count} JPEGs of {SMALL} px, {cores()} workers"
    return [
        row("data: begins the first time", setting, first, "s"),
        row("data: begins again", setting, again, "s", baseline=first, ratio=first / again),
        row("data: pack written", setting, packing, "s"),
        row("data: begins with a pack", setting, packed, "s", bar=BEGIN_BAR_SECONDS, most=True),
        row("data: memory at most", setting, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, "MiB"),
    ]


def draw(folder: Path, count: int, side: int, *, quality: int) -> None:
    """Smooth pictures with detail at every scale, as photographs have it; each differs."""
    folder.mkdir(parents=True)

    def save(number: int) -> None:
        chance = np.random.default_rng(number)
        picture = Image.new("RGB", (side, side))
        scale = 4
        while scale <= side:
            small = Image.fromarray(chance.integers(0, 256, (scale, scale, 3), dtype=np.uint8))
            picture = Image.blend(
                picture, small.resize((side, side), Image.Resampling.BICUBIC), 0.4 if scale < 64 else 0.1
            )
            scale *= 4
        picture.save(folder / f"{number:06d}.jpg", quality=quality)

    for _ in in_threads(save, range(count), workers=cores()):
        pass


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
