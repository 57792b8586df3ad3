"""The commands of `msggan-aml` besides `submit` and `sweep`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import click

from msggan.commands.options import (
    Number,
    argument,
    argv_of,
    checked,
    command,
    data_argument,
    data_problems,
    option,
    output_option,
    path_problems,
)
from msggan.commands.program import EXIT_CODES, print_json, report
from msggan.commands.verbs import (
    check_options,
    evaluate_options,
    export_options,
    pack_file,
    pack_options,
    parse_check,
    parse_evaluate,
    parse_export,
    parse_pack,
    parse_sample,
    sample_options,
    show_check,
    show_evaluation,
    show_files,
    show_pack,
)
from msggan.config import Range
from msggan.errors import UsageError
from orchestration.commands.groups import Commands
from orchestration.commands.terminal import (
    confirm,
    debug_option,
    find_target,
    info,
    location_options,
    reporter,
    run_options,
    settings_options,
    settings_or_refuse,
    show,
    target_option,
)
from orchestration.settings import Flags, Settings
from orchestration.status import RunStatus, columns, status_lines, table
from orchestration.sweeps.status import SweepStatus, sweep_lines, sweep_table
from orchestration.targets import (
    Target,
    build_target,
    build_targets,
    choose,
)

PROVISION_SETTINGS = (
    *("workspace", "compute", "vm_size", "min_nodes", "max_nodes", "idle_minutes", "low_priority", "identity"),
    *("location", "subnet", "public_ip", "instance_type", "storage_account", "storage_container", "datastore"),
    *("environment", "tags", "max_cost"),
)
DOCTOR_SETTINGS = (
    *("runs_dir", "workspace", "compute", "instance_type", "vm_size", "low_priority", "datastore", "environment"),
)
MAX_LISTED = 2000  # jobs that are read on Azure
LIMIT_HELP = "List only the N newest runs and the N newest sweeps.  [default: all, on Azure the newest 50]"
Dated = TypeVar("Dated", RunStatus, SweepStatus)


@command()
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


@command(name="list")
@option("--limit", metavar="N", type=Number(int, Range(1, MAX_LISTED)), help=LIMIT_HELP)
@location_options
@output_option
def list_runs(*, limit: int | None, target: str, flags: Flags, output: str, problems: Sequence[str]) -> None:
    """List the runs and the sweeps, the newest first.

    Lists those on this machine and, if a workspace is configured, those on Azure.
    """
    settings = settings_or_refuse(flags, problems)
    targets = build_targets(target, settings, reporter())
    more = None if limit is None else limit + 1  # the last one shows that there are more
    runs = newest_first(run for serving in targets for run in serving.runs(more))
    sweeps = newest_first(sweep for serving in targets for sweep in serving.sweeps.sweeps(more))
    if limit is not None and max(len(runs), len(sweeps)) > limit:
        info(f"There are more; only the newest {limit} are listed. List more: msggan-aml list --limit {2 * limit}")
    runs, sweeps = runs[:limit], sweeps[:limit]
    if not runs and not sweeps and output != "json":
        info(no_runs_message(settings))
    lines = [*(table(runs) if runs else []), *(sweep_table(sweeps) if sweeps else [])]
    show(output, {"runs": [run.as_json() for run in runs], "sweeps": [sweep.as_json() for sweep in sweeps]}, lines)


@command()
@click.argument("run", metavar="[NAME|FOLDER|SWEEP/NUMBER]", required=False)
@location_options
@output_option
def status(*, run: str | None, target: str, flags: Flags, output: str, problems: Sequence[str]) -> None:
    """Show the status of a run, a sweep or a trial: its state, its progress and the next commands.

    Without a name, shows the newest run.
    """
    serving, name = find_newest(target, flags, problems) if run is None else find_target(run, target, flags, problems)
    show_status(output, serving.sweeps.sweep_status(name) if serving.sweeps.is_sweep(name) else serving.status(name))


@command()
@option("--follow", is_flag=True, help="Follow until the run ends. Ctrl-C leaves it running.")
@option("--tail", metavar="N", type=Number(int, Range(1)), help="Show only the last N lines.  [default: all]")
@run_options
@output_option
def logs(*, serving: Target, name: str, follow: bool, tail: int | None, output: str) -> int:
    """Show the log of a run, or of a trial of a sweep."""
    lines: list[str] = []
    exit_code = 0
    try:
        for line in serving.logs(name, tail=tail, follow=follow):
            if output == "json":
                lines.append(line)
            else:
                click.echo(line)
    except KeyboardInterrupt:
        if not follow:
            raise
        info("Stopped following. The run continues.")
        exit_code = EXIT_CODES["interrupted"]
    if output == "json":
        print_json({"name": name, "lines": lines})
    return exit_code


@command()
@run_options
@output_option
def cancel(*, serving: Target, name: str, output: str) -> None:
    """Stop a run or a sweep after the current step, with a checkpoint. The same `submit` or `sweep` resumes it.

    A single trial can be cancelled too: the sweep continues with the others.
    """
    show_status(output, serving.sweeps.cancel_sweep(name) if serving.sweeps.is_sweep(name) else serving.cancel(name))


@command()
@option(
    "--out",
    metavar="FOLDER",
    help="The destination: a new or empty folder, or an earlier download of the run.  "
    "[default: NAME-run or SWEEP-trial-NUMBER]",
)
@option("--weights", is_flag=True, help="Copy only generator.safetensors and generator_best.safetensors.")
@option("--force", is_flag=True, help="Overwrite files that were changed since an earlier download.")
@run_options
@output_option
def download(*, serving: Target, name: str, out: str | None, weights: bool, force: bool, output: str) -> None:
    """Copy a run folder, or only its weights, to another folder.

    A repeated download copies only what has changed. A folder with other content is never written to.
    """
    copied = serving.download(name, out, weights=weights, force=force)
    show(output, asdict(copied), [f"{copied.path}: {copied.files} files, {copied.bytes / 2**20:.1f} MiB."])


@command()
@run_options
@sample_options
@output_option
def sample(*, serving: Target, name: str, output: str, **values: Any) -> int:
    """Generate images and films with the generator of a run, given by name or folder.

    Each image has a seed: the same seed gives the same image, however many are generated.
    """
    options = parse_sample((), **values)
    args = ["--run-dir", serving.weights(name, best=options.best, at_kimg=options.at), *argv_of(options)]
    result = run_verb("sample", args, expects="files", process="sampling", hint="Run it again with --force.")
    show_files(result["files"], output)
    return 0


@command()
@run_options
@evaluate_options
@output_option
def evaluate(*, serving: Target, name: str, output: str, **values: Any) -> int:
    """Measure how good the images of a run are, how varied, and whether they are copies of training images.

    Samples are compared with images that training has held out, and beside them training images with the same. Writes
    evaluation.json and pictures of the closest pairs into `evaluation` in the run folder.
    """
    options = parse_evaluate((), **values)
    args = ["--run-dir", serving.weights(name, best=options.best, at_kimg=options.at), *argv_of(options)]
    result = run_verb("evaluate", args, expects="measures", process="evaluating", hint="Run it again.")
    show_evaluation(result, output)
    return 0


@command()
@run_options
@export_options
@option("--yaml", is_flag=True, help="Print the run's newest job on Azure as `az ml job create --file` takes it.")
@output_option
def export(*, serving: Target, name: str, yaml: bool, output: str, **values: Any) -> int:
    """Export the generator of a run, given by name or folder, for other programs.

    The ONNX model takes `latents` (N, L), each of norm √L, and returns `images_4px`, `images_8px`, … with values in
    about [-1, 1].
    """
    if yaml and not (values["onnx"] or values["pth"]):
        text = serving.job_yaml(name)
        show(output, {"yaml": text}, text.splitlines())
        return 0
    options = parse_export(["--yaml: cannot be combined with --onnx or --pth."] if yaml else [], **values)
    args = ["--run-dir", serving.weights(name, best=options.best, at_kimg=options.at), *argv_of(options)]
    result = run_verb("export", args, expects="files", process="exporting", hint="Run it again.")
    show_files(result["files"], output)
    return 0


@command()
@argument("folder", metavar="FOLDER|ZIP", callback=checked(path_problems))
@argument("out", metavar="OUT", type=pack_file)
@pack_options
@output_option
def pack(*, folder: str, out: str, output: str, problems: Sequence[str], **values: Any) -> int:
    """Decode the images in a folder or zip into one file, OUT.safetensors, for --data.

    Training on a pack gives the same result as training on the images, and starts without decoding them. The same
    images give the same file. If each image is in one of several folders, these are its classes.
    """
    options = parse_pack(problems, out, **values)
    args = ["--data", folder, "--out", out, *argv_of(options)]
    show_pack(run_verb("pack", args, expects="path", process="packing", hint="Run it again."), output)
    return 0


@command()
@data_argument
@check_options
@output_option
def check(*, data: str | None, output: str, problems: Sequence[str], **values: Any) -> int:
    """Examine images before training: unreadable, repeated, small, blank and blurred ones, and what cropping cuts off.

    PATH is a folder, a zip or a pack. Reads the images as training does, and says what a run would need here. The exit
    code is 2 if no run can train on them.
    """
    options = parse_check([*data_problems(data), *problems], **values)
    args = ["--data", str(data), *argv_of(options)]
    return show_check(run_verb("check", args, expects="usable", process="checking", hint="Run it again."), output)


@command()
@settings_options(*PROVISION_SETTINGS)
@debug_option
@option("--dry-run", is_flag=True, help="Print the plan and exit.")
@option("--yes", is_flag=True, help="Do not ask for confirmation.")
@option("--delete", is_flag=True, help="Delete what provision created, but never the data.")
@output_option
def provision(*, flags: Flags, dry_run: bool, yes: bool, delete: bool, output: str, problems: Sequence[str]) -> int:
    """Create the cluster, datastore and environment that training in an Azure ML workspace needs.

    Prints a plan with its costs, asks for confirmation, applies the plan and verifies it. A repeated run changes only
    what differs from the settings.
    """
    settings = settings_or_refuse(flags, problems)

    serving = build_target("azure", settings, reporter())
    plan = serving.plan_provision(delete=delete)
    nothing = ["Nothing to delete."] if delete and not plan.to_do else []
    for line in [*plan.as_lines(), *nothing]:
        (info if output == "json" else click.echo)(line)
    refusal = plan.refusal
    if refusal:
        report(refusal, as_json=False)
    elif not dry_run and plan.to_do:
        confirm("Apply this plan?", yes=yes)
        plan = serving.provision(plan, delete=delete)
    if output == "json":
        print_json(plan.as_json(applied=not dry_run and not refusal) | (refusal.as_json() if refusal else {}))
    return refusal.exit_code if refusal else 0


@command()
@target_option("Where the run would train, as for submit.  [default: auto]")
@settings_options(*DOCTOR_SETTINGS)
@debug_option
@output_option
def doctor(*, target: str, flags: Flags, output: str, problems: Sequence[str]) -> int:
    """Check whether a submit with the same options would go through, and print for each problem what to type.

    Checks this machine and, if a workspace is configured, sign-in, network, roles, quota, storage, the container
    registry and the environment. Changes nothing. The exit code is 0 if a submit would go through.
    """
    settings = settings_or_refuse(flags, problems)
    from orchestration.azure.doctor import diagnose

    chosen, _ = choose(target, settings.workspace)
    diagnosis = diagnose(settings, on_azure=chosen == "azure")
    show(output, diagnosis.as_json(), diagnosis.as_lines())
    return diagnosis.exit_code


@click.group(name="config", cls=Commands)
def config_group() -> None:
    """Show the settings and their sources."""


@config_group.command(name="show", short_help="Show each setting, its value and its source.")
@output_option
def config_show(*, output: str, problems: Sequence[str]) -> None:
    """Show the workspace and each setting, its value and its source.

    A flag overrides a variable, which overrides a key in the nearest msggan.toml, which overrides the default. For
    secrets, only whether they are set is shown.
    """
    settings = settings_or_refuse({}, problems)
    show(output, settings.as_json(), columns([("NAME", "VALUE", "SOURCE"), *settings.as_rows()]))


def find_newest(target: str, flags: Flags, problems: Sequence[str]) -> tuple[Target, str]:
    """The target that has the newest run, and the run's name. Raises UsageError if no run exists."""
    settings = settings_or_refuse(flags, problems)
    targets = build_targets(target, settings, reporter())
    runs = [(run, serving) for serving in targets for run in serving.runs(1)]
    if not runs:
        raise UsageError([no_runs_message(settings)])
    run, serving = max(runs, key=lambda found: found[0].created or "")
    return serving, run.name


def no_runs_message(settings: Settings) -> str:
    return f"There are no runs in {settings.runs_dir} yet. Start one: msggan-aml submit --data FOLDER"


def newest_first(found: Iterable[Dated]) -> list[Dated]:
    """Runs or sweeps, sorted by their time of creation."""
    return sorted(found, key=lambda item: item.created or "", reverse=True)


def run_verb(verb: str, args: list[str], **expectations: str) -> dict[str, Any]:
    """The result of `python -m msggan.VERB`, which needs torch. expectations: as `result_of` takes them."""
    from orchestration.local.process import result_of

    return result_of(f"msggan.{verb}", args, **expectations)


def show_status(output: str, status: RunStatus | SweepStatus) -> None:
    lines = status_lines(status) if isinstance(status, RunStatus) else sweep_lines(status)
    show(output, status.as_json(), lines, status.next)
