"""How good are several runs, beside each other? One Markdown table of what `evaluate` measures, a row for each recipe.

    python -m benchmarks.quality --runs runs/a-0 runs/a-1 runs/b-0 --at 5,20 --against PATH --out quality.md

Runs whose names differ only by a number at the end (`auto-0`, `auto-1`) are one row: the mean, ± the deviation between
them. Beside their own measures, swd is that of samples and real images that training has not measured; `weave` is the
power of the finest quarter of frequencies in terms of that of real images. --against: images that are compared with
instead of the run's held-out ones; those that it was trained on are left out. Writes nothing into the run folders.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

from msggan.data.dataset import Dataset, cores
from msggan.data.sources import open_source
from msggan.evaluate import images_seen, open_images, scale_gradients
from msggan.evaluation.report import MAX_COMPARED, Evaluator
from msggan.metrics import Patches, distances, spectrum_ratio
from msggan.pictures.grids import generate, inputs_of
from msggan.runs.checkpoint import chosen_weights, generator_config, load_generator
from msggan.runs.folder import RunFolder, read_state
from msggan.tracking.metrics_log import read_metrics

COLUMNS = ("precision", "recall", "density", "coverage", "kernel_distance", "classifier_accuracy")
OF_COPIES = ("copying", "c_t", "copies_by_features", "copies_by_pixels")
NAMES = {"kernel_distance": "kernel", "classifier_accuracy": "classifier", "copying": "farther", "c_t": "C_T"}


class Task(NamedTuple):
    """What one process evaluates. at: the kimg of a snapshot; None for the newest weights or, with `best`, the best."""

    run: str
    at: float | None
    best: bool
    data: str | None
    against: str | None
    num: int
    device: str


class AgainstOthers:
    """The images that a run was trained on, and others in the place of the held-out ones."""

    def __init__(self, trained: Dataset, others: Dataset) -> None:
        self.trained, self.others = trained, others
        self.resolution, self.training = trained.resolution, trained.training
        known = {digest.tobytes() for digest in trained.digests[trained._training]}
        is_new = [digest.tobytes() not in known for digest in others.digests]
        self.numbers = np.flatnonzero(is_new)
        self.held_out = len(self.numbers)

    def images(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        return self.trained.images(indices)

    def held_out_images(self, at_most: int | None = None) -> Tensor:
        return torch.from_numpy(self.others.rows(self.numbers[:at_most]))


def evaluated(task: Task) -> dict[str, Any]:
    """The measures of one run as plain values: `values`, and `real`, those of real images in the place of samples."""
    folder = RunFolder(task.run)
    weights = chosen_weights(task.run, best=task.best, at_kimg=task.at)
    generator = load_generator(weights, task.device)
    data = task.data or read_state(folder).data  # type: ignore[union-attr]
    dataset: Any = open_images(weights, folder, data)
    if task.against is not None:
        config = {"background": "white", "fit": "crop", **generator_config(weights)}
        others = open_source(task.against).dataset(
            resolution=dataset.resolution, background=config["background"], fit=config["fit"]
        )
        dataset = AgainstOthers(dataset, others)
    report = Evaluator(generator, dataset, seeds=range(task.num)).run()
    values, real = ({name: m[side].value for name, m in report.measures.items()} for side in (0, 1))
    reference, other_reals = real_images(dataset)
    samples = generate(generator, inputs_of(generator, range(len(reference))))[-1]
    for found, images in ((values, samples), (real, other_reals)):
        found.update(distances(patches_of(reference), patches_of(images)))
        found["weave"] = float(spectrum_ratio(reference, images)[-dataset.resolution // 8 :].mean())
    values |= {f"scales_{side}": estimate.value for side, estimate in report.scales.items()}
    shown = images_seen(weights, folder)
    values |= {f"gradient_{side}": norm for side, norm in scale_gradients(folder, shown).items()}
    return {
        "run": str(folder),
        "weights": weights.name,
        "data": data,
        "resolution": dataset.resolution,
        "compared": len(reference),
        "values": {"kimg": shown / 1000, "minutes": seconds_at(folder, shown) / 60, **values},
        "real": real,
    }


def real_images(dataset: Any) -> tuple[Tensor, Tensor]:
    """As many held-out as training images; if none are held out, two halves of the training images."""
    half = min(dataset.training // 2, MAX_COMPARED)
    if not dataset.held_out:
        return dataset.images(range(half)), dataset.images(range(half, 2 * half))
    reference = dataset.held_out_images(min(MAX_COMPARED, dataset.training))
    return reference, dataset.images(range(len(reference)))


def patches_of(images: Tensor) -> Patches:
    patches = Patches(len(images), images.shape[-1], seed=1)
    patches.add(images)
    return patches


def seconds_at(folder: RunFolder, images: int) -> float:
    """The seconds of training up to an image, as in metrics.jsonl; 0 where it has none."""
    return max((each["seconds"] for each in read_metrics(folder.metrics) if each["images"] <= images), default=0.0)


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each group of runs, and for real images one for each data set."""
    groups: dict[tuple[str, ...], list[Mapping[str, float]]] = defaultdict(list)
    for result in results:
        name, at = re.sub(r"-\d+$", "", Path(result["run"]).name), f"{result['values']['kimg']:.0f}"
        groups[name, at, str(result["compared"])].append(result["values"])
    reals = {(result["data"], result["resolution"]): result for result in results}
    for (data, resolution), result in reals.items():
        name = f"real images: {Path(data).name}, {resolution} px"
        groups[name, "", str(result["compared"])].append(result["real"])
    columns = list(columns_of(results))
    heading = ["runs", "seeds", "compared", *(NAMES.get(name, name.replace("_", " ")) for name in columns)]
    rows = [
        [name, str(len(values)), compared, *(cell(name, values) for name in columns)]
        for (name, _, compared), values in groups.items()
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heading, ["---"] * len(heading), *rows]) + "\n"


def columns_of(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    found = {name: None for result in results for name in result["values"]}
    yield from ("kimg", "minutes")
    yield from (name for name in found if name.startswith("swd_"))
    yield from (name for name in (*COLUMNS, *OF_COPIES, "weave") if name in found)
    yield from (name for name in found if name.startswith(("scales_", "gradient_")))


def cell(name: str, values: Sequence[Mapping[str, float]]) -> str:
    numbers = [each[name] for each in values if name in each]
    if not numbers:
        return ""
    digits = 0 if name in ("kimg", "minutes") or name.startswith("swd") else 2
    spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 and name != "kimg" else ""
    return f"{statistics.mean(numbers):.{digits}f}{spread}"


@click.command()
@click.option("--runs", multiple=True, help="The first run folder; the others follow.")
@click.argument("more", nargs=-1)
@click.option("--at", default="", help="Also the snapshots nearest to these, as 5,20 kimg.")
@click.option("--best", is_flag=True, help="The best weights of each run instead of the newest.")
@click.option("--data", help="The images, where all runs were trained on the same and they have moved.")
@click.option("--against", help="Images to compare with instead of those held out.")
@click.option("--num", default=1000, show_default=True, help="Samples of each run.")
@click.option("--device", default="auto", show_default=True)
@click.option("--processes", default=1, show_default=True)
@click.option(
    "--out", help="Also write the table to FILE, and all values to FILE with .json in the place of its suffix."
)
def main(*, runs: Sequence[str], more: Sequence[str], at: str, processes: int, out: str | None, **options: Any) -> None:
    """Evaluate RUNS and print a table."""
    best = options.pop("best")
    tasks = [
        Task(run=run, at=kimg, best=best and kimg is None, **options)
        for run in (*runs, *more)
        for kimg in (*map(float, filter(None, at.split(","))), None)
    ]
    results = []
    threads = max(1, cores() // processes)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        for task, result in zip(tasks, pool.map(evaluated, tasks), strict=True):
            click.echo(f"{task.run}: {result['weights']}, {result['values']['kimg']:g} kimg", err=True)
            results.append(result)
    if out is not None:
        Path(out).write_text(table(results))
        Path(out).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    click.echo(table(results))


if __name__ == "__main__":
    main()
