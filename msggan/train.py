"""What is a run? `python -m msggan.train --data PATH --run-dir DIR [options]`: options → Trainer → exit code."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING

from msggan.commands.packages import end_without_click, require, training_packages
from msggan.commands.tracking_uri import chosen_tracking_uri, tracking_uri_problems

if __name__ == "__main__":
    end_without_click(chosen_tracking_uri(None, os.environ))

import click

from msggan.commands.options import (
    Hardware,
    data_option,
    data_problems,
    hardware_options,
    hardware_problems,
    parse_with,
    tracking_option,
    train_options,
)
from msggan.commands.program import EXIT_CODES, output_option, output_problems, print_json, run_program

if TYPE_CHECKING:
    from msggan.trainer import RunResult


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@data_option
@click.option("--run-dir", metavar="DIR", help="The run folder. One that holds a run already is resumed.")
@train_options
@hardware_options
@tracking_option
@output_option
def train(
    *,
    data: str | None,
    run_dir: str | None,
    device: str,
    workers: str,
    tracking_uri: str | None,
    output: str,
    **texts: str | bool | None,
) -> int:
    """Train a multi-scale GAN on your own images.

    The same command again resumes the run; --kimg, the intervals and --num-samples may then differ.
    """
    require(training_packages(chosen_tracking_uri(tracking_uri, os.environ)))
    problems = data_problems(data) + run_dir_problems(run_dir)
    problems += hardware_problems(device, workers) + tracking_uri_problems(tracking_uri, os.environ)
    problems += output_problems(output)
    config = parse_with(problems, texts)
    hardware = Hardware(device, int(workers))

    from msggan.trainer import Trainer

    trainer = Trainer(
        config,
        data=str(data),
        run_dir=str(run_dir),
        device=hardware.device,
        workers=hardware.workers,
        tracking_uri=chosen_tracking_uri(tracking_uri, os.environ),
    )
    result = trainer.run()
    show(result, output)
    return 0 if result.notice else EXIT_CODES[result.state]


def run_dir_problems(run_dir: str | None) -> list[str]:
    return [] if run_dir else ["--run-dir: is missing. Name the folder that the run is to live in."]


def show(result: RunResult, output: str) -> None:
    if output == "json":
        told = {
            "state": result.state,
            "run_dir": str(result.run_dir),
            "images_seen": result.images_seen,
            "metrics": result.metrics,
            "next": result.next,
        }
        print_json({**told, "notice": result.notice} if result.notice else told)
        return
    click.echo(f"{result.state.capitalize()} after {result.images_seen} images. Samples: {result.run_dir / 'samples'}")
    for line in result.next:
        click.echo(f"Next: {line}")


def main() -> None:
    # Pillow warns of damaged notes inside files; what of that matters is told at the end, with the files' names.
    warnings.filterwarnings("ignore", module="PIL")
    sys.exit(run_program(train, name="python -m msggan.train"))


if __name__ == "__main__":
    main()
