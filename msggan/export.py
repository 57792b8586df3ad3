"""How does a trained generator leave for other programs? `python -m msggan.export --run-dir DIR --onnx OUT.onnx`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from msggan.commands.export_options import ExportOptions, export_options, parse_export
from msggan.commands.options import run_dir_option, run_dir_problems
from msggan.commands.program import output_option, output_problems, run_program
from msggan.commands.sample_options import scale_problems, show_files
from msggan.errors import OutOfMemoryError, UsageError
from msggan.runs.files import write_whole

if TYPE_CHECKING:
    from msggan.networks import Generator


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@run_dir_option
@export_options
@output_option
def export(*, run_dir: str | None, output: str, **texts: Any) -> int:
    """Write a trained generator for other programs.

    The ONNX file takes `latents` (N, L), each of norm √L, and gives `images_4px`, `images_8px`, … in about [-1, 1].
    """
    options = parse_export(run_dir_problems(run_dir) + output_problems(output), texts)
    show_files([str(path) for path in write_exports(str(run_dir), options)], output)
    return 0


def write_exports(source: str | Path, options: ExportOptions) -> list[Path]:
    """Writes what is asked for of a run folder or a `generator.safetensors`, each file whole or not at all.

    Raises `CheckpointError`, `UsageError`, `ExportError` or `OutOfMemoryError`; then nothing is written.
    """
    from msggan.device import memory_errors

    def explain() -> OutOfMemoryError:
        return OutOfMemoryError(f"Out of memory while exporting {source}.", "Close other programs and try again.")

    with memory_errors(explain):
        return _write_exports(source, options)


def _write_exports(source: str | Path, options: ExportOptions) -> list[Path]:
    from msggan.runs.checkpoint import load_generator

    generator = load_generator(source)
    if problems := scale_problems(options.scale, [4 << level for level in range(generator.depth)]):
        raise UsageError(problems)
    paths = []
    for name, write in ((options.onnx, _write_onnx), (options.pth, _write_pth)):
        if name is not None:
            paths.append(Path(name))
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            write(paths[-1], generator, options)
    return paths


def _write_onnx(path: Path, generator: Generator, options: ExportOptions) -> None:
    from msggan.pictures.onnx_model import build_onnx

    tell(f"Making {path}; this takes some seconds.")
    write_whole(path, build_onnx(generator, scale=options.scale).SerializeToString())


def _write_pth(path: Path, generator: Generator, options: ExportOptions) -> None:
    from msggan.legacy import save_legacy

    save_legacy(path, generator.state_dict())
    if not generator.equalized:
        tell(f"{path}: this run is not equalized. BMSG-GAN needs use_eql=False for it.")


def tell(line: str) -> None:
    """A line for people, which no script reads."""
    click.echo(line, err=True)


def main() -> None:
    sys.exit(run_program(export, name="python -m msggan.export"))


if __name__ == "__main__":
    main()
