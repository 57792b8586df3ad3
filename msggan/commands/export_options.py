"""How can a trained generator be written for other programs, and how is that said on a command line?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from msggan.commands.options import Command
from msggan.commands.sample_options import NUMBERS, Texts, read_numbers
from msggan.config import flag
from msggan.errors import UsageError

KINDS = ("onnx", "pth")  # an option each, and what its file's name ends in


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Which files to write; None is not asked for. scale: of the ONNX file, None for all."""

    onnx: str | None = None
    pth: str | None = None
    scale: int | None = None
    force: bool = False

    def to_argv(self) -> list[str]:
        """The options that say this; nothing for what is as by default."""
        words: list[str] = []
        for name in (*KINDS, "scale"):
            value = getattr(self, name)
            words += [flag(name), str(value)] if value is not None else []
        return words + (["--force"] if self.force else [])


def export_options(command: Command) -> Command:
    """Adds the options of ExportOptions; the command gets their texts."""
    command = click.option("--force", is_flag=True, help="Overwrite files that are there already.")(command)
    command = click.option(
        "--scale", metavar="PIXELS", help="Only this scale in the ONNX file, as 16.  [default: all]"
    )(command)
    command = click.option("--pth", metavar="OUT.pth", help="A file of weights as BMSG-GAN saves and loads them.")(
        command
    )
    return click.option("--onnx", metavar="OUT.onnx", help="A file that onnxruntime runs, without msggan or torch.")(
        command
    )


def parse_export(problems: Sequence[str], texts: Texts) -> ExportOptions:
    """The options in `texts`. Raises UsageError with their complaints and those found elsewhere together."""
    values, complaints = read_numbers(texts, {"scale": NUMBERS["scale"]})
    complaints = [*problems, *complaints]
    asked = [kind for kind in KINDS if texts[kind] is not None]
    for kind in asked:
        complaints += _file_problems(kind, texts[kind], force=texts["force"])
    if not asked:
        complaints.append("Nothing to write: add --onnx OUT.onnx for onnxruntime, or --pth OUT.pth for BMSG-GAN.")
    if asked == ["pth"] and texts["scale"] is not None:
        complaints.append(f"--scale {texts['scale']}: is for --onnx; a .pth file holds the whole generator.")
    if complaints:
        raise UsageError(complaints)
    return ExportOptions(**{kind: texts[kind] for kind in KINDS}, scale=values["scale"], force=texts["force"])


def _file_problems(kind: str, name: str, *, force: bool) -> list[str]:
    """Every complaint about a file that is to be."""
    said, suffix = f"{flag(kind)} {name}", f".{kind}"
    if os.path.isdir(name):
        return [f"{said}: is a folder. Name the file to make in it: {os.path.join(name, 'generator' + suffix)}"]
    if not name.lower().endswith(suffix) or not Path(name).stem:
        return [f"{said}: must end in {suffix}, as {name.rstrip('.') or 'generator'}{suffix}"]
    if os.path.exists(name) and not force:
        return [f"{said}: is there already. Give --force to overwrite it, or another name."]
    above = next((folder for folder in Path(name).parents if os.path.exists(folder)), Path())
    return [] if os.path.isdir(above) else [f"{said}: {above} is a file, not a folder."]
