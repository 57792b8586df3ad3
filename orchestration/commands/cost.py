"""The command `msggan-aml cost`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from msggan.commands.options import CollectingCommand, output_option
from orchestration.commands.terminal import debug_option, reporter, settings_options, settings_or_refuse, show
from orchestration.settings import Flags
from orchestration.status import columns
from orchestration.targets import build_target


@click.command(cls=CollectingCommand, name="cost", short_help="Show what runs on Azure have cost, and what costs now.")
@click.argument("run", metavar="[NAME]", required=False)
@settings_options("workspace", "runs_dir", "max_cost")
@debug_option
@output_option
def cost(*, run: str | None, flags: Flags, output: str, problems: Sequence[str]) -> None:
    """Show what each run and sweep on Azure has cost by its machine hours, and what could be costing money now.

    Costs are estimated from the time that jobs ran, at today's prices; the bill is in the Azure portal. With NAME,
    shows one run or sweep.
    """
    settings = settings_or_refuse(flags, problems)
    report = build_target("azure", settings, reporter()).costs(run)
    show(output, report.as_json(), [*(columns(report.as_rows()) if report.runs else []), *report.as_lines()])
