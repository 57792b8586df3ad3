"""The command `msggan-aml submit`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace

from msggan.commands.options import (
    AZURE,
    COMMON,
    WHAT,
    WHERE,
    Hardware,
    collecting,
    command,
    data_argument,
    option,
    options_of,
    output_option,
    parse_with,
    refuse,
    train_options,
)
from msggan.commands.program import report
from orchestration.commands.terminal import (
    answer,
    debug_option,
    ignored_here,
    info,
    read_settings_here,
    reporter,
    settings_options,
    show,
    show_plan,
    target_option,
)
from orchestration.settings import JOB_SETTINGS, Flags
from orchestration.spec import RunSpec, default_name, name_problems, source_problems
from orchestration.targets import (
    build_target,
    choose,
)


@command()
@data_argument
@option(
    "--name",
    section=COMMON,
    help="The run's name; a name used before resumes that run.  [default: from the data's name]",
)
@target_option("Where to train.  [default: auto: Azure if a workspace is configured, else local]")
@settings_options(*JOB_SETTINGS, "services", "ssh_key")
@debug_option
@option("--from-trial", section=WHAT, metavar="SWEEP[/NUMBER]", help="Resume a sweep's best trial, or trial NUMBER.")
@option("--from-scratch", section=WHAT, is_flag=True, help="With --from-trial: train with its settings from scratch.")
@option("--dry-run", section=COMMON, is_flag=True, help="Print what would be started, and stop.")
@option("--detach", section=COMMON, is_flag=True, help="Return as soon as the run has started.")
@option("--yes", section=AZURE, is_flag=True, help="Do not ask before money is spent.")
@option(
    "--rehearse-preemption",
    section=WHERE,
    is_flag=True,
    help="Only test resuming: kill a short local run three times and report how much work each loss costs.",
)
@train_options
@options_of(Hardware)
@output_option
def submit(
    *,
    data: str | None,
    target: str,
    name: str | None,
    flags: Flags,
    from_trial: str | None,
    from_scratch: bool,
    dry_run: bool,
    detach: bool,
    yes: bool,
    rehearse_preemption: bool,
    device: str,
    workers: int,
    output: str,
    problems: Sequence[str],
    **texts: str | bool | None,
) -> int:
    """Train on the images in a folder, a zip or a pack, given as PATH or --data PATH, and follow the run to its end.

    If an Azure ML workspace is configured, the run trains there, otherwise on this machine; --target overrides this. On
    Azure, --data may also be azureml://datastores/NAME/paths/PATH, azureml:ASSET:VERSION, azureml:ASSET@latest, an
    asset of a registry, or an https, wasbs or abfss address in a storage account.

    Run the same command again to resume the run. Only --kimg, the intervals, --num-samples, --best-by, --device and
    --workers may then differ.
    """
    found = [*([] if from_trial and not data else source_problems(data)), *problems]
    found += name_problems(name) if name is not None else []
    found += ["--from-scratch: requires --from-trial."] if from_scratch and not from_trial else []
    if rehearse_preemption:
        from orchestration.local.rehearsal import rehearsal_problems

        found += rehearsal_problems(data, dry_run=dry_run, detach=detach)
        found += ["--rehearse-preemption: cannot be combined with --from-trial."] if from_trial else []
    with collecting(found):
        settings = read_settings_here(flags)
    config = parse_with(found, texts)
    from orchestration.commands.sweep import find_source_trial

    source = find_source_trial(from_trial, config, settings) if from_trial else None
    images, run_name = str(data), name
    if source is not None:
        config, images, run_name = source.config, data or source.data, name or source.name
    spec = RunSpec(config, images, default_name(images) if run_name is None else run_name, Hardware(device, workers))
    if rehearse_preemption:
        return rehearse(spec, settings.runs_dir, output)

    chosen, reason = choose(target, settings.workspace)
    serving = build_target(chosen, settings, reporter())
    refuse([*serving.problems(images, run_name), *ignored_here(chosen, flags)])
    serving.plan_run(spec)  # raises UsageError
    info(f"Target: {chosen} ({reason}).")
    if dry_run:
        needs = spec.needs(device="cuda" if chosen == "azure" or shutil.which("nvidia-smi") else "cpu")
        if needs is not None:
            info(f"Besides its images, the run needs about {needs}.")
        show_plan(output, {**serving.priced_plan(spec), "plan": needs and needs._asdict()})
        return 0
    answer(serving.question(spec), yes=yes)
    if source is not None and not from_scratch:
        serving.start_from(spec.name, source.copy_to)
    run = serving.start(spec) if detach else serving.run(spec)
    seen = "" if run.images_seen is None else f" after {run.images_seen} images"
    line = f"{run.name}: {run.state}{seen}. Samples: {os.path.join(run.run_dir, 'samples')}"
    show(output, run.as_submitted(), [line], run.next)
    return run.exit_code


def rehearse(spec: RunSpec, runs_dir: str, output: str) -> int:
    """Rehearses the loss of the machine with a short local run of `spec`, and prints the result."""
    from orchestration.local import rehearsal

    # The rehearsal trains in another folder, from which a run is not found by its name.
    if spec.config.has_init and os.path.exists(init := os.path.join(runs_dir, spec.config.init)):
        spec = replace(spec, config=replace(spec.config, init=init))
    result = rehearsal.rehearse(spec, info)
    refusal = result.refusal
    if refusal:
        report(refusal, as_json=False)
    show(output, result.as_json() | (refusal.as_json() if refusal else {}), result.as_lines())
    return refusal.exit_code if refusal else 0
