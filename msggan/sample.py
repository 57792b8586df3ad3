"""What can a trained generator show? `python -m msggan.sample --run-dir DIR [options]`: options → pictures, films."""

from __future__ import annotations

import sys
from typing import Any

import click

from msggan.commands.options import run_dir_option, run_dir_problems
from msggan.commands.program import output_option, output_problems, run_program
from msggan.commands.sample_options import parse_sample, sample_options, show_files


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@run_dir_option
@sample_options
@output_option
def sample(*, run_dir: str | None, output: str, **texts: Any) -> int:
    """Make pictures and films with a trained generator.

    Each picture has a seed, and the same seed makes the same picture, however many are made beside it.
    """
    options = parse_sample(run_dir_problems(run_dir) + output_problems(output), texts)

    from msggan.pictures.sampler import Sampler

    files = Sampler(str(run_dir), options).run()
    show_files([str(path) for path in files], output)
    return 0


def main() -> None:
    sys.exit(run_program(sample, name="python -m msggan.sample"))


if __name__ == "__main__":
    main()
