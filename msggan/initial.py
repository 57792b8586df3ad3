"""`python -m msggan.initial --init NAME --out FILE [options]`: the weights that a run would start from, in one file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from msggan.commands.options import command, option, parse_with, required, train_options
from msggan.commands.program import print_json, run_program
from msggan.config import resolve


@command()
@option("--out", metavar="FILE", help="The file to write.", callback=required("--out", "Name the file to write."))
@option("--runs-dir", metavar="DIR", default="runs", help="The folder of the runs.  [default: runs]")
@train_options
def initial(*, out: str, runs_dir: str, problems: Sequence[str], **texts: str | bool | None) -> int:
    """Check that a run with these options can start from the weights of --init, and copy these to one file.

    `--init NAME --init-file FILE` then starts the run on a machine that does not have the run NAME.
    """
    config = parse_with(problems, texts)

    import torch

    from msggan.runs.initial import load_source, save_source, take_over, with_options_of
    from msggan.steps import TrainingState

    source = load_source(config.init or "", Path(runs_dir))
    config = with_options_of(source, config)  # which has a resolution: nothing here depends on the images
    resolved = resolve(config, shorter_side_px=config.resolution, device="cpu", has_fast_bfloat16=False)
    click.echo(take_over(source, TrainingState(resolved, torch.device("cpu")).networks), err=True)
    save_source(source, Path(out))
    print_json({"path": out, "init": source.init, "options": source.options})
    return 0


def main() -> None:
    sys.exit(run_program(initial, name="python -m msggan.initial"))


if __name__ == "__main__":
    main()
