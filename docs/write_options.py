"""Writes docs/options.md, every option of every command, from the commands themselves: `make docs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from msggan.check import check
from msggan.commands.options import options_by_section
from msggan.evaluate import evaluate
from msggan.export import export
from msggan.pack import pack
from msggan.sample import sample
from msggan.train import train
from orchestration.commands.main import msggan_aml

PAGE = Path(__file__).with_name("options.md")
BEGINNING = """# Every option

Generated from the commands by `make docs`: the text of each `--help` on one page."""


def page() -> str:
    programs = {
        "python -m msggan.train": train,
        "python -m msggan.sample": sample,
        "python -m msggan.pack": pack,
        "python -m msggan.check": check,
        "python -m msggan.export": export,
        "python -m msggan.evaluate": evaluate,
    }
    sections = [BEGINNING, *_sections("msggan-aml", msggan_aml)]
    for name, command in programs.items():
        sections += _sections(name, command)
    return "\n\n".join(sections) + "\n"


def _sections(name: str, command: click.Command) -> Iterator[str]:
    """A command's own section, unless it is a group that does nothing itself; then those of its commands."""
    if not isinstance(command, click.Group) or _has_options(command):
        yield f"## {name}"
        yield _code(_usage(name, command))
        yield _paragraphs(command)
        yield from _tables(command)
    if not isinstance(command, click.Group):
        return
    for inner_name, inner in command.commands.items():
        yield from _sections(f"{name} {inner_name}", inner)


def _has_options(group: click.Group) -> bool:
    """Whether a group is a command itself, with options beyond --version."""
    return any(isinstance(option, click.Option) and not option.is_eager for option in group.params)


def _usage(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    return " ".join([name, *command.collect_usage_pieces(context)])


def _paragraphs(command: click.Command) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))


def _tables(command: click.Command) -> Iterator[str]:
    """A table per section of the help."""
    for section, options in options_by_section(command.params).items():
        yield "\n".join([f"| {section} | |", "|---|---|", *map(_row, options)])


def _row(option: click.Option) -> str:
    names = "/".join([*option.opts, *option.secondary_opts])
    value = "" if option.is_flag else f" {option.metavar or option.type.name.upper()}"
    cells = (f"`{names}{value}`".replace("|", r"\|"), (option.help or "").replace("|", r"\|"))
    return f"| {cells[0]} | {cells[1]} |"


def _code(line: str) -> str:
    return f"    {line}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
