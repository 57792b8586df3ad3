"""Groups of commands: suggestions for commands that do not exist, and commands that are loaded when they are used."""

from __future__ import annotations

import os
import shlex
from collections import UserDict
from collections.abc import Iterator, Mapping
from importlib import import_module

import click

from msggan.commands.options import CollectingCommand, did_you_mean, nearest

# By group, the names of its commands in other programs.
COMMAND_SYNONYMS = {
    "msggan-aml": {
        **dict.fromkeys(("train", "run", "start", "resume", "continue", "restart", "fit", "launch", "new"), "submit"),
        **dict.fromkeys(("ls", "runs", "ps", "jobs"), "list"),
        **dict.fromkeys(("show", "info", "describe", "state"), "status"),
        **dict.fromkeys(("tail", "follow", "watch", "attach"), "logs"),
        **dict.fromkeys(("stop", "kill", "abort", "terminate", "interrupt"), "cancel"),
        **dict.fromkeys(("generate", "gen", "draw", "film", "video", "predict"), "sample"),
        **dict.fromkeys(("get", "fetch", "pull", "copy", "cp"), "download"),
        **dict.fromkeys(("onnx", "convert"), "export"),
        **dict.fromkeys(("eval", "measure", "metrics", "score", "fid", "kid"), "evaluate"),
        **dict.fromkeys(("tune", "search", "hpo"), "sweep"),
        **dict.fromkeys(("best",), "sweep best"),
        **dict.fromkeys(("setup", "init"), "provision"),
        **dict.fromkeys(("diagnose", "health", "troubleshoot", "verify"), "doctor"),
        **dict.fromkeys(("settings", "env"), "config show"),
        **dict.fromkeys(("costs", "bill", "billing", "price", "spend"), "cost"),
        **dict.fromkeys(("help", "version"), "--{}"),
    },
    "sweep": dict.fromkeys(("list", "status", "logs", "cancel", "download"), "msggan-aml {}"),
    "config": dict.fromkeys(("list", "ls", "get", "set", "print", "view"), "show"),
}
DELETE = ("delete", "del", "rm", "remove")


class Commands(CollectingCommand, click.Group):
    """A group of commands that suggests a command for an unknown one."""

    command_class = CollectingCommand

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            ctx.fail(self.no_such_command(args[0]))
        return super().resolve_command(ctx, args)

    def no_such_command(self, name: str) -> str:
        """The error message for an unknown command of this group."""
        if name in DELETE:
            return f"No such command {name!r}. A run is a folder: delete the folder. To stop a run, use 'cancel'."
        return f"No such command {name!r}.{did_you_mean([repr(command) for command in self.commands_meant(name)])}"

    def commands_meant(self, name: str) -> list[str]:
        """The suggestions for `name`, an unknown command of this group, the most likely first."""
        synonym = COMMAND_SYNONYMS.get(self.name or "", {}).get(name.lower())
        if synonym:
            return [synonym.format(name.lower())]
        data = [f"submit {shlex.quote(name)}"] if "submit" in self.commands and os.path.exists(name) else []
        return data + nearest(name, self.commands)


class CommandsOrData(Commands):
    """A group that also takes the images as an argument, unless a command comes first."""

    allow_interspersed_args = True  # options may follow arguments, as in a command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_interspersed_args = not (args and args[0] in self.commands)
        rest = CollectingCommand.parse_args(self, ctx, args)
        for name in ctx.params.get("paths", ())[:1]:
            if not os.path.exists(name):
                self._refuse_command(ctx, name)
        return rest

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """All parameters, without the arguments if a command comes first: what follows belongs to that command."""
        params = super().get_params(ctx)
        takes_data = ctx.command is self and ctx.allow_interspersed_args
        return [param for param in params if takes_data or not isinstance(param, click.Argument)]

    def _refuse_command(self, ctx: click.Context, name: str) -> None:
        """Raises `UsageError` if an argument looks like a command."""
        if name in self.commands:
            ctx.fail(f"Write {name!r} before all options.")
        if self.commands_meant(name):
            ctx.fail(self.no_such_command(name))


class LazyCommands(UserDict[str, click.Command]):
    """Commands by name, each of a module that is imported when the command is looked up."""

    def __init__(self, places: Mapping[str, str]) -> None:
        """places: by name, `MODULE:FUNCTION`."""
        super().__init__()
        self.places = places

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, name: str) -> click.Command:
        module, _, function = self.places[name].partition(":")
        found: click.Command = getattr(import_module(module), function)
        return found
