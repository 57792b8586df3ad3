"""`python -m msggan.export --run-dir DIR --onnx OUT.onnx`: a trained generator for other programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from msggan.commands.options import command, output_option, refuse, run_dir_option
from msggan.commands.program import run_program
from msggan.commands.verbs import ExportOptions, export_options, parse_export, scale_problems, show_files
from msggan.errors import ExportError, OutOfMemoryError
from msggan.runs.files import write_whole


@command()
@run_dir_option
@export_options
@output_option
def export(*, run_dir: str, output: str, problems: Sequence[str], **values: Any) -> int:
    """Export a trained generator for other programs.

    The ONNX model takes `latents` (N, L), each of norm √L, and returns `images_4px`, `images_8px`, … with values in
    about [-1, 1]. Of a run with --labels, it also takes `labels` (N,), the numbers of classes.
    """
    options = parse_export(problems, **values)
    show_files([str(path) for path in write_exports(run_dir, options)], output)
    return 0


def write_exports(source: str | Path, options: ExportOptions) -> list[Path]:
    """Exports a run folder or a `generator.safetensors`, each file whole or not at all; returns their paths.

    Raises `CheckpointError`, `UsageError`, `ExportError` or `OutOfMemoryError`; then nothing is written.
    """
    from msggan.device import memory_errors
    from msggan.runs.checkpoint import load_generator

    error = OutOfMemoryError(f"Out of memory while exporting {source}.", "Close other programs and try again.")
    with memory_errors(lambda: error):
        generator = load_generator(source, best=options.best, at_kimg=options.at)
        refuse(scale_problems(options.scale, [4 << level for level in range(generator.depth)]))
        if options.pth is not None and generator.resampling != "nearest":
            raise ExportError(
                f"{source}: --resampling {generator.resampling} is not in BMSG-GAN, which would make other images.",
                "Use --onnx, or train with --resampling nearest.",
            )
        if options.pth is not None and generator.classes:
            raise ExportError(f"{source}: has classes, which BMSG-GAN does not know.", "Use --onnx.")
        paths = [Path(name) for name in (options.onnx, options.pth) if name is not None]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        if options.onnx is not None:
            from msggan.pictures.onnx_model import build_onnx

            click.echo(f"Writing {options.onnx}; this takes some seconds.", err=True)
            write_whole(Path(options.onnx), build_onnx(generator, scale=options.scale).SerializeToString())
        if options.pth is not None:
            from msggan.legacy import save_legacy

            save_legacy(Path(options.pth), generator.state_dict())
            if not generator.equalized:
                click.echo(f"{options.pth}: this run is not equalized. BMSG-GAN needs use_eql=False for it.", err=True)
    return paths


def main() -> None:
    sys.exit(run_program(export, name="python -m msggan.export"))


if __name__ == "__main__":
    main()
