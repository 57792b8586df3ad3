"""`python -m msggan.evaluate --run-dir DIR`: how good a generator's images are, and whether they are copies."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from msggan.commands.options import command, output_option, run_dir_option
from msggan.commands.program import require, run_program
from msggan.commands.verbs import DOWNLOAD, EvaluateOptions, evaluate_options, parse_evaluate, show_evaluation
from msggan.display.progress import progress_bar
from msggan.errors import DataError, OutOfMemoryError
from msggan.runs.files import write_whole
from msggan.runs.folder import RunFolder, read_state
from msggan.tracking.metrics_log import read_metrics

if TYPE_CHECKING:
    from msggan.data.dataset import Dataset
    from msggan.evaluation.inception import Inception

MIN_IMAGES = 4
INCEPTION_PACKAGES = {"torch_fidelity": "torch-fidelity>=0.4,<0.5"}
NAME_DATA = "Specify the images that the run was trained on: --data PATH"


@command()
@run_dir_option
@evaluate_options
@output_option
def evaluate(*, run_dir: str, output: str, problems: Sequence[str], **values: Any) -> int:
    """Measure how good the images of a trained generator are, how varied, and whether they are copies.

    Samples are compared with images that training has held out, and beside them training images with the same. Writes
    evaluation.json and pictures of the closest pairs into `evaluation` in the run folder.
    """
    options = parse_evaluate(problems, **values)
    show_evaluation(evaluate_run(run_dir, options), output)
    return 0


def evaluate_run(source: str | Path, options: EvaluateOptions) -> dict[str, Any]:
    """Evaluates a run folder or the weights in it, and writes the files; returns the JSON result.

    Raises `CheckpointError`, `DataError`, `UsageError` or `OutOfMemoryError`; then nothing is written.
    """
    from msggan.device import memory_errors
    from msggan.evaluation.report import Evaluator, draw_pairs
    from msggan.pictures.grids import as_png
    from msggan.runs.checkpoint import chosen_weights, load_generator

    weights = chosen_weights(source, best=options.best, at_kimg=options.at)
    folder = RunFolder(source if Path(source).is_dir() else Path(source).parent)
    error = OutOfMemoryError(f"Out of memory while evaluating {source}.", "Try --device cpu, or a smaller --num.")
    with memory_errors(lambda: error):
        generator = load_generator(weights, options.device)
        inception = open_inception(options.inception, options.device) if options.inception else None
        data = options.data or _recorded_data(folder)
        dataset = open_images(weights, folder, data)
        seeds = range(options.seed, options.seed + options.num)
        evaluator = Evaluator(generator, dataset, seeds=seeds, inception=inception)
        with progress_bar(f"Comparing {evaluator.total} images", evaluator.total) as bar:
            report = evaluator.run(bar.update)
        pictures = {"closest_samples.png": draw_pairs(report, generator, dataset, held_out=False)}
        if report.held_out_pairs:
            pictures["closest_held_out.png"] = draw_pairs(report, generator, dataset, held_out=True)
    out = folder.path / "evaluation"
    out.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        write_whole(out / name, as_png(picture))
    files = [str(out / name) for name in ("evaluation.json", *pictures)]
    about = {
        "run_dir": str(folder),
        "weights": weights.name,
        "images_seen": (shown := images_seen(weights, folder)),
        "data": data,
        "seed": options.seed,
        "features": evaluator.features_name,
    }
    if inception is not None:
        about["inception"] = {"sha256": inception.sha256, "published": inception.is_published}
    result = {**about, **report.as_json(), "scale_gradients": scale_gradients(folder, shown), "files": files}
    write_whole(out / "evaluation.json", json.dumps(result, indent=1).encode())
    return result


def images_seen(weights: Path, folder: RunFolder) -> int:
    """How many images these weights of a run were trained on; 0 where nothing records it."""
    from safetensors import safe_open

    if weights.parent == folder.snapshots:
        return int(weights.stem)
    with safe_open(weights, framework="pt") as file:
        if best := (file.metadata() or {}).get("best"):
            return int(json.loads(best)["images_seen"])
    return max((int(path.stem) for path in folder.checkpoints.glob("*.json") if path.stem.isdigit()), default=0)


def scale_gradients(folder: RunFolder, images: int) -> dict[str, float]:
    """What each scale, by its side, received in the last evaluation up to an image; none from earlier versions."""
    prefix, found = "scale_gradient_", dict[str, float]()
    for report in read_metrics(folder.metrics):
        if report["images"] <= images:
            found |= {name.removeprefix(prefix): norm for name, norm in report.items() if name.startswith(prefix)}
    return found


def open_inception(weights: str, device: str) -> Inception:
    """The network for FID and KID. weights: a path, or `download`. Raises `CheckpointError` or `DataError`."""
    require(INCEPTION_PACKAGES)
    from msggan.device import choose_device
    from msggan.evaluation.inception import Inception, download_inception

    path = download_inception() if weights == DOWNLOAD else Path(weights)
    inception = Inception(path, device=choose_device(device))
    if not inception.is_published:
        click.echo(
            f"{path}: SHA-256 {inception.sha256[:8]}… is not that of the published weights, 6726825d…: KID and FID can "
            "only be compared with those by the same file.",
            err=True,
        )
    return inception


def _recorded_data(folder: RunFolder) -> str:
    state = read_state(folder)
    if state is None:
        raise DataError(f"{folder}: does not record which images it was trained on.", NAME_DATA)
    if not Path(state.data).exists():
        raise DataError(f"{state.data}: not found. {folder} was trained on the images there.", NAME_DATA)
    return state.data


def open_images(weights: Path, folder: RunFolder, data: str) -> Dataset:
    """The images as the run was trained on them. Raises `DataError` if they are others than those of its checkpoint."""
    from msggan.data.dataset import HOLDOUT_ONE_IN, MIN_HOLDOUT
    from msggan.data.index import index_path
    from msggan.data.sources import open_source
    from msggan.runs.checkpoint import generator_config, newest_checkpoint

    config = generator_config(weights)
    dataset = open_source(data).dataset(
        resolution=config["resolution"],
        background=config.get("background", "white"),
        fit=config.get("fit", "crop"),
        labels=config.get("labels", "none"),
        index=index_path(folder.path.parent, data),
    )
    checkpoint, _ = newest_checkpoint(folder.checkpoints)
    images = dataset.training + dataset.held_out
    if checkpoint is None:
        click.echo(f"{folder}: has no checkpoint, so these may not be the images that it was trained on.", err=True)
    elif checkpoint.state["data_fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"{data}: these are not the images that {folder} was trained on ({checkpoint.state['data_images']} then, "
            f"{images} now).",
            f"Restore them. {NAME_DATA}",
        )
    if dataset.training < MIN_IMAGES:
        raise DataError(
            f"{data}: {images} images are too few to compare with; at least {MIN_IMAGES} are needed.", NAME_DATA
        )
    if not dataset.held_out:
        click.echo(
            f"{data}: none of these {images} images is held out, so samples are compared with half of the training "
            "images, and copies cannot be found. For that, train a run on "
            f"{MIN_HOLDOUT * HOLDOUT_ONE_IN} images or more.",
            err=True,
        )
    return dataset


def main() -> None:
    sys.exit(run_program(evaluate, name="python -m msggan.evaluate"))


if __name__ == "__main__":
    main()
