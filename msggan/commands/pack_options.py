"""How is packing asked for on a command line, and how is what it made told?"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from msggan.commands.options import Command, config_option, hardware_problems, parse_with, to_argv, workers_option
from msggan.commands.program import print_json
from msggan.config import TrainConfig

PACK_SUFFIX = ".safetensors"
RESOLUTION_HELP = (
    "Side of the packed images, in pixels, which is what trains on them. Default: the images' own, at most 256."
)


@dataclass(frozen=True)
class PackOptions:
    """How to pack. config: its resolution and background, as far as they are said."""

    config: TrainConfig
    workers: int = 0
    force: bool = False

    def to_argv(self) -> list[str]:
        """The options that say this; nothing for what is as by default."""
        words = [*to_argv(self.config), *(["--workers", str(self.workers)] if self.workers else [])]
        return words + (["--force"] if self.force else [])


def pack_options(command: Command) -> Command:
    """Adds the options of PackOptions; the command gets their texts."""
    command = click.option("--force", is_flag=True, help="Overwrite a file that is there already.")(command)
    command = config_option("background")(workers_option(command))
    return config_option("resolution", said=RESOLUTION_HELP)(command)


def parse_pack(problems: Sequence[str], out: str | None, texts: Mapping[str, Any]) -> PackOptions:
    """The options in `texts`. Raises UsageError with their complaints and those found elsewhere together."""
    complaints = [*problems, *out_problems(out, force=texts["force"]), *hardware_problems("auto", texts["workers"])]
    config = parse_with(complaints, {name: texts[name] for name in ("resolution", "background")})
    return PackOptions(config, int(texts["workers"]), texts["force"])


def out_problems(out: str | None, *, force: bool) -> list[str]:
    """Every complaint about the file that is to be."""
    if not out:
        return [f"--out: is missing. Name the file to make, which ends in {PACK_SUFFIX}."]
    if os.path.isdir(out):
        return [f"{out}: is a folder. Name the file to make in it: {os.path.join(out, 'images' + PACK_SUFFIX)}"]
    if not out.lower().endswith(PACK_SUFFIX):
        return [f"{out}: must end in {PACK_SUFFIX}, which is what a pack is: {out.rstrip('.')}{PACK_SUFFIX}"]
    if os.path.exists(out) and not force:
        return [f"{out}: is there already. Give --force to overwrite it, or another name."]
    return []


def show_pack(told: Mapping[str, Any], output: str) -> None:
    """Tells on stdout of a pack that has been made."""
    if output == "json":
        print_json(told)
        return
    size = f"{told['bytes'] / 2**20:.1f} MiB"
    click.echo(
        f"{told['path']}: {told['images']} images at {told['resolution']} px, {size}. --data takes it in their place."
    )
