"""`python -m msggan.sample --run-dir DIR [options]`: pictures and films of a trained generator."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from msggan.commands.options import command, output_option, run_dir_option
from msggan.commands.program import run_program
from msggan.commands.verbs import parse_sample, sample_options, show_files


@command()
@run_dir_option
@sample_options
@output_option
def sample(*, run_dir: str, output: str, problems: Sequence[str], **values: Any) -> int:
    """Generate images and films with a trained generator.

    Each image has a seed: the same seed gives the same image, however many are generated.
    """
    options = parse_sample(problems, **values)

    from msggan.pictures.sampler import Sampler

    files = Sampler(run_dir, options).run()
    show_files([str(path) for path in files], output)
    return 0


def main() -> None:
    sys.exit(run_program(sample, name="python -m msggan.sample"))


if __name__ == "__main__":
    main()
