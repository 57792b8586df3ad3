"""Goes through everything that costs money on Azure once, in a real workspace, and writes a report.

    make azure-check WORKSPACE=config.json      # as Azure ML Studio offers it, or the workspace's resource ID

A cluster of one small machine is created; a run of five minutes is cancelled and resumed, and its log and files are
read; a sweep has two trials; the cluster is deleted. The report says which step failed, what it cost, and which of the
guesses about the service held that tests/azure_local/README.md lists. What was uploaded stays in the datastore, below
`msggan/`.

It costs one euro at most: each command that costs has its share of `--max-cost`, which refuses machines that are too
expensive or of unknown price before anything is created. At its end, however it comes, jobs are cancelled and the
cluster is deleted.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestration.money import Amount

if TYPE_CHECKING:
    from orchestration.azure.client import Client

ROOT = Path(__file__).resolve().parent.parent
SCOPE = re.compile(r"/subscriptions/([^/]+)/resource[Gg]roups/([^/]+)/providers/[^/]+/workspaces/([^/]+)")
VARIABLES = ("AZUREML_ARM_SUBSCRIPTION", "AZUREML_ARM_RESOURCEGROUP", "AZUREML_ARM_WORKSPACE_NAME")
KEYS = ("subscription_id", "resource_group", "workspace_name")
SHARES = {"run": 0.3, "resume": 0.3, "sweep": 0.4}  # of the ceiling
LIMIT_HOURS = 1.5  # of everything, most of it for building the image
CLEANING_UP_S = 600
CLUSTER = "msggan-check"
OPTIONS = ("--resolution", 16, "--latent-size", 32, "--batch-size", 8, "--num-samples", 4, "--device", "cpu")
OFTEN = ("--checkpoint-kimg", 0.1, "--metric-kimg", 0.1, "--sample-kimg", 10)
TRAIN = ("submit", "--data", "flowers", *OPTIONS, *OFTEN)


class CheckError(click.ClickException):
    """A step that did not do what it should."""


@dataclass
class Report:
    """The steps and the guesses so far. A guess held (True), did not (False) or could not be tested (None)."""

    ceiling: Amount
    ends_at: float  # by time.monotonic()
    steps: list[tuple[str, float, str]] = field(default_factory=list)
    guesses: list[tuple[str, bool | None, str]] = field(default_factory=list)
    cost: str = "unknown"

    def max_cost(self, what: str) -> tuple[str, str]:
        return "--max-cost", (self.ceiling * SHARES[what]).as_setting().replace(" ", "")

    # --- Steps --------------------------------------------------------------------------------------------------------

    def aml(self, *words: object, may_fail: bool = False) -> dict[str, Any]:
        """What a command of msggan-aml prints with `-o json`. Its messages are shown."""
        program = Path(sys.executable).with_name("msggan-aml")
        printed: dict[str, Any] = json.loads(self.call([program, *words, "-o", "json"], may_fail=may_fail) or "{}")
        return printed

    def call(self, words: Sequence[object], *, may_fail: bool = False) -> str:
        """What a command prints. Raises CheckError if it fails, or if the time for everything is over."""
        command = [str(word) for word in words]
        text = " ".join([Path(command[0]).name, *command[1:3]])
        errors = subprocess.DEVNULL if may_fail else None
        try:
            ended = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                check=False,
                timeout=max(1.0, self.ends_at - time.monotonic()),
            )
        except subprocess.TimeoutExpired as error:
            raise CheckError(f"`{text} …` was stopped after {LIMIT_HOURS:g} hours for everything") from error
        if ended.returncode and not may_fail:
            raise CheckError(f"`{text} …` ended with exit code {ended.returncode}: {ended.stdout}")
        return ended.stdout

    def wait(self, run: str, is_done: Callable[[dict[str, Any]], Any]) -> None:
        """Returns when `is_done` is true of the status of a run that has not ended."""
        while not is_done(status := self.aml("status", run)):
            active = status["state"] in ("queued", "preparing", "running")
            expect(active, f"the run is {status['state']}: {status['reason']}")
            time.sleep(2)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        click.echo(f"== {name}", err=True)
        start, problem = time.monotonic(), "interrupted"
        try:
            yield
            problem = ""
        except CheckError as error:
            problem = " ".join(error.message.replace("|", "/").split())
            raise
        finally:
            self.steps.append((name, time.monotonic() - start, problem))

    def guess(self, text: str, held: bool | None, observed: object) -> None:
        self.guesses.append((text, held, " ".join(str(observed).replace("|", "/").split())))

    @property
    def passed(self) -> bool:
        """Whether all steps did what they should, whichever guesses held."""
        return not any(problem for *_, problem in self.steps)

    def as_markdown(self, workspace: str) -> str:
        minutes = sum(seconds for _, seconds, _ in self.steps) / 60
        lines = [
            f"# msggan in workspace {workspace}, {time.strftime('%Y-%m-%d %H:%M')}",
            f"{minutes:.0f} minutes. Cost of the jobs: {self.cost}, of {self.ceiling} at most.",
            "| step | seconds | problem |\n|---|---|---|",
            *(f"| {name} | {seconds:.0f} | {problem or 'none'} |" for name, seconds, problem in self.steps),
            "| guess | held | observed |\n|---|---|---|",
            *(f"| {text} | {HELD[held]} | {observed} |" for text, held, observed in self.guesses),
        ]
        return re.sub(r"\n(?=(# |\d+ minutes|\| (step|guess) ))", "\n\n", "\n".join(lines)) + "\n"


HELD = {True: "yes", False: "NO", None: "not tested"}


@click.command()
@click.option("--workspace", required=True, help="A config.json, its folder, or the workspace's resource ID.")
@click.option("--vm-size", default="Standard_DS3_v2", show_default=True, help="The size of the machine.")
@click.option("--max-cost", default="1EUR", show_default=True, help="What everything may cost.")
@click.option("--environment", default="curated", show_default=True, help="The environment of the jobs.")
@click.option("--minutes", default=5.0, show_default=True, help="How long the run trains before it is cancelled.")
@click.option("--report", "path", default="azure-check.md", show_default=True, help="The report to write.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def main(
    *,
    workspace: str,
    vm_size: str,
    max_cost: str,
    environment: str,
    minutes: float,
    path: str,
    yes: bool,
) -> None:
    """Go through provisioning, a run, its preemption, logs, download and a sweep in a real workspace."""
    name = use(workspace, MSGGAN_COMPUTE=CLUSTER, MSGGAN_VM_SIZE=vm_size, MSGGAN_ENVIRONMENT=environment)
    try:
        ceiling = Amount.parse(max_cost)
    except ValueError as error:
        raise click.ClickException(f"--max-cost {error}") from error
    click.echo(f"Costs {ceiling} at most, and creates and deletes cluster {CLUSTER} in {name}.", err=True)
    if not yes:
        click.confirm("Continue?", abort=True, err=True)
    report, to = Report(ceiling, time.monotonic() + LIMIT_HOURS * 3600), Path(path).absolute()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which still cleans up
    with tempfile.TemporaryDirectory(prefix="azure-check-") as folder:
        os.chdir(folder)
        try:
            go_through(report, minutes)
        except CheckError as error:
            click.echo(f"Error: {error.message}", err=True)
        finally:
            os.chdir(to.parent)
            to.write_text(report.as_markdown(name), encoding="utf-8")
            click.echo(f"See {to}.", err=True)
    sys.exit(0 if report.passed else 1)


def use(workspace: str, **settings: str) -> str:
    """Sets the workspace and the settings for every command. Returns the workspace's name."""
    if scope := SCOPE.fullmatch(workspace.rstrip("/")):
        parts: Sequence[str] = scope.groups()
    else:
        file = Path(workspace) / "config.json" if Path(workspace).is_dir() else Path(workspace)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            parts = [content[key] for key in KEYS]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise click.ClickException(f"--workspace {file}: is not a workspace's config.json ({error!r}).") from error
    for variable in [name for name in os.environ if name.startswith("MSGGAN_")]:
        del os.environ[variable]
    one = {"MSGGAN_MAX_NODES": "1", "MSGGAN_MIN_NODES": "0", "MSGGAN_IDLE_MINUTES": "2", "MSGGAN_TIMEOUT_HOURS": "0.5"}
    os.environ.update(zip(VARIABLES, parts, strict=True))
    os.environ.update(settings | one)
    return parts[-1]


def go_through(report: Report, minutes: float) -> None:
    """Every step, in an order in which each needs those before it. What was started is ended in any case."""
    run = time.strftime("check-%m%d-%H%M%S")
    is_new = False
    try:
        with report.step("draw images"):
            report.call([sys.executable, ROOT / "examples" / "draw_flowers.py", "flowers", "200"])
        with report.step("price"):
            alone = ("--instance-type", os.environ["MSGGAN_VM_SIZE"])  # there is no cluster yet
            dry = report.aml(*TRAIN, "--name", run, "--dry-run", *alone, *report.max_cost("run"))
            price = dry["cost"]["price"]
            listed = report.aml("provision", "--dry-run")["cost"]["price"]
        with report.step("doctor, before"):
            before = report.aml("doctor", may_fail=True)
        with report.step("provision"):
            plan = report.aml("provision", "--dry-run")["plan"]
            is_new = any(item["kind"] == "compute" and item["action"] == "create" for item in plan)
            report.aml("provision", "--yes")
        with report.step("doctor"):
            after = report.aml("doctor")
        guesses_of_doctor(report, before, could_provision=is_new)
        guesses_of_lists(report, price, listed)
        train(report, run, minutes)
        storage = next(check["detail"] for check in after["checks"] if check["name"] == "storage")
        report.guess("A job mounts its output by what the datastore holds, else as who submitted it.", True, storage)
        has_secret = True if "account key" in storage or "the SAS" in storage else None
        report.guess("`listSecrets` takes a request without a body.", has_secret, storage)
        sweep_of_two(report, f"{run}-sweep")
        with report.step("cost"):
            costs = report.aml("cost")
        report.cost = f"{costs['total']} {costs['currency']}"
        known = [row for row in costs["runs"] if row["name"] == run and row["machine"] and row["machine_hours"]]
        report.guess("The run history has the machine and the duration of a job.", bool(known), known or costs["runs"])
    finally:
        report.ends_at = max(report.ends_at, time.monotonic() + CLEANING_UP_S)
        with report.step("cancel and delete"):
            for name in (run, f"{run}-sweep"):
                report.aml("cancel", name, may_fail=True)
            if is_new:
                delete_cluster()


def train(report: Report, run: str, minutes: float) -> None:
    """A run that is cancelled while it trains, and resumed by the same command; then its log and its files."""
    submit = (*TRAIN, "--name", run, "--yes")
    with report.step("submit, and train until the first report"):
        report.aml(*submit, "--kimg", 100_000, "--detach", *report.max_cost("run"))
        report.wait(run, lambda status: status["images_seen"])
        time.sleep(60 * minutes)
    with report.step("cancel, as a preemption"):
        cancelled = report.aml("cancel", run)
        expect(cancelled["state"] == "cancelled", f"the run is {cancelled['state']}")
        status = report.aml("status", run)
        seen, rate = status["images_seen"], status["metrics"].get("images_per_second") or 10
    report.guess("A mounted output is written while the job runs.", seen > 0, f"{seen} images")
    with report.step("resume by the same command"):
        kimg = (seen + max(400, 12 * minutes * rate)) / 1000
        resumed = report.aml(*submit, "--kimg", kimg, *report.max_cost("resume"))
        expect(resumed["state"] == "completed", f"the resumed run ended {resumed['state']}")
    with report.step("logs"):
        lines = report.aml("logs", run)["lines"]
        expect(bool(lines), "the log is empty")
    resumes = [line for line in lines if line.startswith("Resuming ")]
    report.guess(
        "The log of each job is user_logs/std_log.txt.",
        any("Training " in line for line in lines),
        f"{len(lines)} lines",
    )
    report.guess(
        "A cancelled job leaves checkpoints that the next one resumes from.", bool(resumes), resumes or lines[-1]
    )
    with report.step("download"):
        copied = report.aml("download", run)
        rows = Path(copied["path"], "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        expect(copied["files"] > 4, f"only {copied['files']} files")
    images = [json.loads(row)["images"] for row in rows]
    report.guess(
        "No report is lost or doubled over the resume.", images == sorted(set(images)), f"{len(images)} reports"
    )


def sweep_of_two(report: Report, name: str) -> None:
    """A sweep whose two trials run one after the other."""
    options = f"--over g_lr=0.001..0.01 --trials 2 --concurrent 1 --kimg 0.2 --name {name} --yes"
    with report.step("sweep of two trials"):
        sweep = report.aml("sweep", "--data", "flowers", *options.split(), *OPTIONS, *OFTEN, *report.max_cost("sweep"))
        expect(sweep["state"] == "completed", f"the sweep ended {sweep['state']}")
    numbers = [trial["number"] for trial in sweep["trials"] if trial["objective"] is not None]
    report.guess("Trials are named SWEEP_0, SWEEP_1, and their metrics are found.", len(numbers) == 2, numbers)
    limits = client().ml.jobs.get(name).limits
    report.guess("A sweep keeps the time limit of its trials.", bool(limits.trial_timeout), limits.trial_timeout)


def guesses_of_doctor(report: Report, doctor: dict[str, Any], *, could_provision: bool) -> None:
    """What the checks said before, against what was then possible."""
    checks = {check["name"]: check for check in doctor["checks"]}
    roles, quota, network = (checks[name] for name in ("roles", "quota", "network"))
    listed = "may not list" not in roles["detail"]
    report.guess("An identity may list its permissions at the workspace.", listed, roles["detail"])
    may_poll = True if could_provision and "may not read" in quota["detail"] else None
    agrees = roles["status"] == "ok" if could_provision else None
    report.guess("`a/*/write` in a role also matches `a/write`.", agrees if listed else None, roles["detail"])
    report.guess("Polling an operation needs no role at the subscription.", may_poll, quota["detail"])
    known = "no quota is listed" not in quota["detail"] if quota["status"] != "warning" else None
    report.guess("The quota of a VM size is found by its family's name.", known, quota["detail"])
    report.guess("The discovery address responds without sign-in.", network["status"] != "failed", network["detail"])


def guesses_of_lists(report: Report, price: dict[str, Any], listed: dict[str, Any] | None) -> None:
    """What the service's lists have. price: of the machine in the ceiling's currency. listed: in the service's own."""
    from orchestration.azure.environment import CURATED_NAME, REGISTRY
    from orchestration.azure.sizes import locations_of, read_quotas
    from orchestration.errors import AuthError

    report.guess("The list of VM sizes has prices.", bool(listed and "VM sizes" in listed["source"]), listed)
    report.guess("The public list has the price of a VM size, in euros too.", "retail" in price["source"], price)
    curated = client().registry(REGISTRY).environments.get(CURATED_NAME, label="latest")
    report.guess("A version of the curated environment names its image.", bool(curated.image), curated.image)
    try:
        reader = client()
        families = [quota.family for quota in read_quotas(reader, locations_of(reader)[0])]
    except AuthError:
        families = []
    low_priority = [family for family in families if family.startswith("TotalLowPriorityCores")]
    report.guess(
        "The quota of low priority is listed as `TotalLowPriorityCores`.",
        bool(low_priority) if families else None,
        low_priority,
    )


def client() -> Client:
    """The client of the workspace that the variables name."""
    from orchestration import AzureTarget

    return AzureTarget.from_config().client


def delete_cluster() -> None:
    """Deletes only the cluster: `provision --delete` would also archive the environments of other runs."""
    from msggan.errors import MsgganError
    from orchestration.azure import compute

    try:
        compute.delete_cluster(client(), lambda line: click.echo(line, err=True))
    except MsgganError as error:
        raise CheckError(error.message) from error


def expect(condition: bool, problem: str) -> None:
    if not condition:
        raise CheckError(problem)


if __name__ == "__main__":
    main()
