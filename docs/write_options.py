"""What can be said to each command? Writes docs/options.md from the commands themselves: `make docs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from msggan.export import export
from msggan.pack import pack
from msggan.sample import sample
from msggan.train import train
from orchestration.commands.main import msggan_aml

PAGE = Path(__file__).with_name("options.md")
BEGINNING = """# Every option

Made by `make docs` from the commands themselves: what `--help` says, all on one page."""


def page() -> str:
    programs = {
        "python -m msggan.train": train,
        "python -m msggan.sample": sample,
        "python -m msggan.pack": pack,
        "python -m msggan.export": export,
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
        yield _table(command)
    if not isinstance(command, click.Group):
        return
    for word, inner in command.commands.items():
        yield from _sections(f"{name} {word}", inner)


def _has_options(group: click.Group) -> bool:
    """Whether a group can be told what to do itself, beyond --version."""
    return any(isinstance(option, click.Option) and not option.is_eager for option in group.params)


def _usage(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    return " ".join([name, *command.collect_usage_pieces(context)])


def _paragraphs(command: click.Command) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))


def _table(command: click.Command) -> str:
    rows = [_row(option) for option in command.params if isinstance(option, click.Option)]
    return "\n".join(["| option | |", "|---|---|", *rows])


def _row(option: click.Option) -> str:
    words = "/".join([*option.opts, *option.secondary_opts])
    value = "" if option.is_flag else f" {option.metavar or 'TEXT'}"
    cells = (f"`{words}{value}`".replace("|", r"\|"), (option.help or "").replace("|", r"\|"))
    return f"| {cells[0]} | {cells[1]} |"


def _code(line: str) -> str:
    return f"    {line}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
