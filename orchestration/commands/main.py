"""The command-line interface `msggan-aml`: the names of its commands, each of which is loaded when it is used."""

from __future__ import annotations

import logging
import sys
from functools import partial

import click

from msggan.commands.options import HELP_SETTINGS
from msggan.commands.program import run_program
from orchestration.commands.groups import Commands, LazyCommands

# By name: the module here and the function, and what `msggan-aml --help` shows, which loads none of them.
COMMANDS = {
    "submit": ("submit:submit", "Train on a folder, a zip or a pack of images."),
    "sweep": ("sweep:sweep", "Search for good settings with many short trials."),
    "cost": ("runs:cost", "Show what runs on Azure have cost, and what costs now."),
    "list": ("runs:list_runs", "List the runs."),
    "status": ("runs:status", "Show a run's status."),
    "logs": ("runs:logs", "Show a run's log."),
    "cancel": ("runs:cancel", "Stop a run that is training."),
    "download": ("runs:download", "Copy a run's result to a folder."),
    "sample": ("runs:sample", "Generate images and films with a trained run."),
    "evaluate": ("runs:evaluate", "Measure a trained run's images."),
    "export": ("runs:export", "Export a trained run for other programs."),
    "check": ("runs:check", "Examine images before training on them."),
    "pack": ("runs:pack", "Pack images into one file to train on."),
    "provision": ("runs:provision", "Create what training on Azure needs."),
    "doctor": ("runs:doctor", "Check whether a submit would go through."),
    "config": ("runs:config_group", "Show the settings and their sources."),
}
PLACES = {name: f"orchestration.commands.{place}" for name, (place, _) in COMMANDS.items()}


class Program(Commands):
    """The group of all commands."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=Program, commands=LazyCommands(PLACES), context_settings=HELP_SETTINGS)
@click.version_option(package_name="msggan")
@click.pass_context
def msggan_aml(context: click.Context) -> None:
    """Train a multi-scale GAN on your own images, on this machine or on Azure ML."""
    disable_logging(context)


def disable_logging(context: click.Context) -> None:
    """Disables logging by libraries until the command ends: the commands report errors themselves."""
    context.call_on_close(partial(logging.disable, logging.root.manager.disable))
    logging.disable()


def main() -> None:
    sys.exit(run_program(msggan_aml, name="msggan-aml"))
