"""`python -m msggan.train --data PATH --run-dir DIR [options]`: trains a run, or resumes it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msggan.commands.program import (
    EXIT_CODES,
    chosen_tracking_uri,
    exit_without_click,
    print_json,
    require,
    run_program,
    tracking_uri_problems,
    training_packages,
)

if __name__ == "__main__":
    exit_without_click(chosen_tracking_uri(None, os.environ))

import click

from msggan.commands.options import (
    COMMON,
    WHERE,
    Hardware,
    command,
    data_option,
    option,
    options_of,
    output_option,
    parse_with,
    required,
    tracking_option,
    train_options,
)

if TYPE_CHECKING:
    from msggan.trainer import RunResult


@command()
@data_option
@option(
    "--run-dir",
    metavar="DIR",
    help="The run folder. An existing run is resumed.",
    section=COMMON,
    callback=required("--run-dir", "Name the folder for the run."),
)
@train_options
@option(
    "--init-file",
    metavar="FILE",
    help="The file with the weights of --init, if they are not found by that name.",
    section=WHERE,
)
@options_of(Hardware)
@tracking_option
@output_option
def train(
    *,
    data: str,
    run_dir: str,
    init_file: str | None,
    device: str,
    workers: int,
    tracking_uri: str | None,
    output: str,
    problems: Sequence[str],
    **texts: str | bool | None,
) -> int:
    """Train a multi-scale GAN on your own images.

    Run the same command again to resume; --kimg, the intervals and --num-samples may then differ.
    """
    require(training_packages(chosen_tracking_uri(tracking_uri, os.environ)))
    problems = [*problems, *tracking_uri_problems(tracking_uri, os.environ)]
    problems += ["--init-file: needs --init."] if init_file and not texts["init"] else []
    config = parse_with(problems, texts)

    from msggan.trainer import Trainer

    trainer = Trainer(
        config,
        data=data,
        run_dir=run_dir,
        device=device,
        workers=workers,
        init_file=init_file,
        tracking_uri=chosen_tracking_uri(tracking_uri, os.environ),
    )
    result = trainer.run()
    show(result, output)
    return 0 if result.notice else EXIT_CODES[result.state]


def show(result: RunResult, output: str) -> None:
    if output == "json":
        content = {
            "state": result.state,
            "run_dir": str(result.run_dir),
            "images_seen": result.images_seen,
            "metrics": result.metrics,
            "next": result.next,
        }
        print_json({**content, "notice": result.notice} if result.notice else content)
        return
    click.echo(f"{result.state.capitalize()} after {result.images_seen} images. Samples: {result.run_dir / 'samples'}")
    for line in result.next:
        click.echo(f"Next: {line}")


def main() -> None:
    sys.exit(run_program(train, name="python -m msggan.train"))


if __name__ == "__main__":
    main()
