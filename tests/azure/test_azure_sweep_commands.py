"""Sweeps on Azure using the commands: from images to the best settings, and resuming."""

from __future__ import annotations

import gc
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure_local import AzureLocal, runner
from support.azure_commands import Command, posix, sdk_warnings
from support.programs import Ended, run_in, started, stopped, wait_for

from msggan import load_generator
from msggan.config import TrainConfig
from orchestration.settings import read_settings
from orchestration.status import Reporter
from orchestration.sweeps.record import SweepRequest
from orchestration.sweeps.space import read_space
from orchestration.sweeps.spec import SweepSpec
from orchestration.sweeps.trials import CANCELLED, EarlyStopping

pytestmark = [posix, sdk_warnings]

PLAIN = ["--resolution", "8", "--latent-size", "8", "--device", "cpu"]  # batches of 4, which is not known before
SMALL = [*PLAIN, "--batch-size", "4"]
SHORT = [*SMALL, "--kimg", "0.04"]
ENDLESS = [*SMALL, "--kimg", "1000000", "--checkpoint-kimg", "0.02"]
RUNS = "azureml://datastores/workspaceblobstore/paths/msggan/runs/"


@pytest.fixture(autouse=True)
def _left_behind() -> Iterator[None]:
    """The connections that the SDK left open are collected here, where their warnings are expected."""
    yield
    gc.collect()


@pytest.fixture
def _no_mlflow(azure: AzureLocal) -> None:
    """Trials tell no MLflow, which takes longer to load than they train."""
    azure.cloud.job_environment["MSGGAN_TRACKING_URI"] = "none"


def sweep(*args: object) -> list[object]:
    return ["sweep", "--data", "tiny", "--name", "find", *args, "--yes", "-o", "json"]


def by_number(status: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(status["trials"], key=lambda trial: trial["number"])


@pytest.mark.usefixtures("_no_mlflow")
@pytest.mark.slow
def test_from_images_to_the_best_settings(azure: AzureLocal, workdir: Path, msggan_aml: Command) -> None:
    args = sweep("--over", "g_lr=0.001..0.01", "--over", "mirror", "--trials", "3", "--concurrent", "2", *SHORT)
    found = run_in(workdir, "msggan-aml", *args, "--timeout", "3", "--timeout-hours", "1.5", **azure.variables)
    assert found.exit_code == 0, found.stderr
    status = found.json
    assert (status["name"], status["target"], status["state"], status["job_id"]) == (
        *("find", "azure", "completed", "find"),
    )
    assert status["run_dir"] == f"{RUNS}find/"
    trials = by_number(status)
    assert [(trial["number"], trial["job_id"], trial["state"]) for trial in trials] == [
        (number, f"find_{number}", "completed") for number in range(3)
    ]
    for trial in trials:
        assert trial["run_dir"] == f"{RUNS}find/trials/find_{trial['number']}/"
        assert 0.001 <= trial["settings"]["g_lr"] <= 0.01
        assert type(trial["settings"]["mirror"]) is bool
        config = json.loads(azure.blob(f"msggan/runs/find/trials/find_{trial['number']}/config.json") or b"")
        assert {name: config[name] for name in trial["settings"]} == trial["settings"]
        assert (trial["images_seen"], trial["objective"]) == (40, min(value for _, value in trial["curve"]))
    assert status["best"]["objective"] == min(trial["objective"] for trial in trials)
    assert [trial["objective"] for trial in status["trials"]] == sorted(trial["objective"] for trial in trials)
    for number in range(3):
        assert re.search(rf"Trial {number} \([1-3] of 3 finished\): g_lr=", found.stderr)
    assert sum(line.startswith("Trial ") for line in found.stderr.splitlines()) == 3  # each once, at whichever look
    page = (workdir / "runs" / "find" / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 3

    sent = azure.made("PUT", "/jobs/find")[-1].body["properties"]
    assert sent["description"] == "Which settings have the least swd? g_lr=0.001..0.01; mirror=true,false."
    assert sent["experimentName"] == "msggan"
    assert sent["tags"]["msggan.sweep"] == sent["tags"]["msggan.run"] == sent["displayName"] == "find"
    assert sent["limits"] == {
        "jobLimitsType": "Sweep",
        "maxConcurrentTrials": 2,
        "maxTotalTrials": 3,
        "timeout": "PT3H",
        "trialTimeout": "PT1H30M",
    }

    listed = msggan_aml("list", "-o", "json").json
    assert [one["name"] for one in listed["sweeps"]] == ["find"]
    assert listed["runs"] == []
    assert msggan_aml("status", "find", "-o", "json").json == status
    assert "No clear best. First: trial " in msggan_aml("status", "find").stdout, "it is short"

    worst = f"trials/find_{status['trials'][-1]['number']}/metrics.jsonl"
    reads = len(azure.made("GET", worst))
    best = msggan_aml("sweep", "best", "find", "--download", "copy", "-o", "json")
    assert best.exit_code == 0, best.stderr
    assert best.json["best"] == status["best"]
    assert len(azure.made("GET", worst)) == reads + 1  # what is known is not asked again
    load_generator(workdir / "copy")

    for args in (["logs", "find"], ["sample", "find"], ["download", "find"], ["submit", *["--data", "tiny"], *NAMED]):
        refused = msggan_aml(*args, *([] if args[0] != "submit" else [*SHORT, "--yes"]))
        assert refused.exit_code == 2
        assert "find: is a sweep, not a run." in refused.stderr

    _a_trial_is_named_as_a_run_is(workdir, msggan_aml, status)
    _goes_on_in_full(azure, workdir, msggan_aml, status)
    _check_that_a_repeated_sweep_is_complete_and_more_trials_continue_it(
        azure, msggan_aml, args=sweep(*OVER_AGAIN), before=trials
    )


NAMED = ["--name", "find"]
OVER_AGAIN = [
    *("--over", "g_lr=0.001..0.01", "--over", "mirror", "--concurrent", "2", *SHORT),
    *("--timeout", "3", "--timeout-hours", "1.5"),
]


def _a_trial_is_named_as_a_run_is(workdir: Path, msggan_aml: Command, status: dict[str, Any]) -> None:
    status = msggan_aml("status", "find/1", "-o", "json").json
    assert (status["name"], status["job_id"], status["state"], status["images_seen"]) == (
        "find/1",
        "find_1",
        "completed",
        40,
    )
    assert status["run_dir"] == f"{RUNS}find/trials/find_1/"
    assert status["next"] == ["msggan-aml sample find/1", "msggan-aml submit --from-trial find/1"]
    lines = msggan_aml("logs", "find/1", "--tail", "3").stdout.splitlines()
    assert len(lines) == 3
    copied = msggan_aml("download", "find/1", "-o", "json")
    assert copied.exit_code == 0, copied.stderr
    assert copied.json["path"] == "find-trial-1"
    assert (workdir / "find-trial-1" / "metrics.jsonl").exists()
    sampled = msggan_aml("sample", "find/1", "--num", "1", "-o", "json")
    assert sampled.exit_code == 0, sampled.stderr
    assert Path(sampled.json["files"][0]).is_relative_to("runs/find-trial-1")
    missing = msggan_aml("logs", "find/9")
    assert missing.exit_code == 2
    assert missing.stderr.endswith("Error: find: no trial 9 has started.\nSee its trials: msggan-aml status find\n")


def _goes_on_in_full(azure: AzureLocal, workdir: Path, msggan_aml: Command, status: dict[str, Any]) -> None:
    """The winner is trained on from its trial: there, here, and anew."""
    on_azure = msggan_aml("submit", "--from-trial", "find", "--kimg", "0.08", "--yes", "-o", "json")
    assert on_azure.exit_code == 0, on_azure.stderr
    assert (on_azure.json["name"], on_azure.json["target"], on_azure.json["images_seen"]) == ("find-best", "azure", 80)
    number = status["best"]["number"]
    first = azure.blob(f"msggan/runs/find/trials/find_{number}/metrics.jsonl") or b""
    assert (azure.blob("msggan/runs/find-best/metrics.jsonl") or b"").startswith(first)

    local = msggan_aml(
        *("submit", "--from-trial", "find/1", "--data", "tiny", "--target", "local"),
        *("--kimg", "0.08", "--tracking-uri", "none", "-o", "json"),
    )
    assert local.exit_code == 0, local.stderr
    assert (local.json["name"], local.json["target"], local.json["images_seen"]) == ("find-trial-1", "local", 80)
    assert (
        (workdir / "runs/find-trial-1/metrics.jsonl")
        .read_bytes()
        .startswith(azure.blob("msggan/runs/find/trials/find_1/metrics.jsonl") or b"")
    )

    anew = msggan_aml("submit", "--from-trial", "find/2", "--from-scratch", "--kimg", "0.02", "--yes", "-o", "json")
    assert anew.exit_code == 0, anew.stderr
    assert (anew.json["name"], anew.json["images_seen"]) == ("find-trial-2", 20)


def _check_that_a_repeated_sweep_is_complete_and_more_trials_continue_it(
    azure: AzureLocal, msggan_aml: Command, args: list[object], before: list[dict[str, Any]]
) -> None:
    jobs = list(azure.cloud.jobs)
    again = msggan_aml(*args, "--trials", "3")
    assert again.exit_code == 0, again.stderr
    assert "find is complete" in again.stderr
    assert list(azure.cloud.jobs) == jobs

    other = msggan_aml(*sweep("--over", "g_lr=0.002..0.01", "--over", "mirror", *SHORT, "--trials", "3"))
    assert other.exit_code == 2
    assert "--over was g_lr=0.001..0.01 mirror=true,false and is now g_lr=0.002..0.01" in other.stderr

    more = msggan_aml(*args, "--trials", "4")
    assert more.exit_code == 0, more.stderr
    trials = by_number(more.json)
    assert trials[:3] == before
    assert (trials[3]["number"], trials[3]["state"], trials[3]["job_id"]) == (3, "completed", "find-2_0")
    sent = azure.job(more.json["job_id"]).properties
    assert (sent["limits"]["maxTotalTrials"], sent["samplingAlgorithm"]["seed"]) == (1, 1)


@pytest.mark.usefixtures("_no_mlflow")
@pytest.mark.slow
def test_a_resumed_grid_runs_the_remaining_combinations_also_with_the_images_at_another_path(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    grid = ["--over", "loss=hinge,relativistic-hinge", "--over", "mirror", "--sampling", "grid", *SHORT]
    started_sweep = msggan_aml(*sweep(*grid, "--trials", "3", "--concurrent", "3"))
    assert started_sweep.exit_code == 0, started_sweep.stderr
    (workdir / "tiny" / "00.png").rename(workdir / "00.png")
    other = msggan_aml(*sweep(*grid, "--trials", "4", "--concurrent", "3"))
    assert other.exit_code == 2
    assert "--data tiny: the sweep find uses other images" in other.stderr
    (workdir / "00.png").rename(workdir / "tiny" / "00.png")
    (workdir / "tiny").rename(workdir / "elsewhere")
    ended = msggan_aml(*sweep(*grid, "--trials", "4", "--concurrent", "3", "--data", "elsewhere"))
    assert ended.exit_code == 0, ended.stderr
    tried = [trial["settings"] for trial in by_number(ended.json)]
    assert tried == [
        {"loss": loss, "mirror": mirror} for loss in ("hinge", "relativistic-hinge") for mirror in (True, False)
    ]
    assert azure.job("find-2").properties["searchSpace"] == {
        "settings": ["choice", [["--loss relativistic-hinge --no-mirror"]]]
    }
    assert azure.trials("find-2")[0].exit_code == 0


@pytest.mark.usefixtures("_no_mlflow")
@pytest.mark.slow
def test_a_running_sweep_is_detached_from_listed_cancelled_and_resumed(
    azure: AzureLocal, workdir: Path, msggan_aml: Command
) -> None:
    args = ["--over", "g_lr=0.001..0.01", "--trials", "2", *ENDLESS]
    with started(workdir, "msggan-aml", *sweep(*args), **azure.variables) as follower:
        wait_for(lambda: azure.blob("msggan/runs/find/trials/find_0/metrics.jsonl"), follower)
        left = stopped(follower, "Ctrl-C")
    assert left.exit_code == 130
    assert "find continues as job find." in left.stderr
    assert "msggan-aml status find" in left.stderr
    assert azure.job("find").status == "Running"

    running = msggan_aml("status", "find", "-o", "json").json
    assert (running["state"], [trial["state"] for trial in running["trials"]]) == ("running", ["running"])
    assert running["trials"][0]["images_seen"] > 0
    assert running["next"] == ["msggan-aml status find", "msggan-aml cancel find"]

    refused = msggan_aml(*sweep(*args))
    assert refused.exit_code == 2
    assert "find: already running as job find." in refused.stderr

    azure.preempt("find_0")  # a trial finds its folder again
    wait_for(lambda: b"Resuming" in azure.artifact("find_0", "user_logs/std_log.txt"))

    given_up = msggan_aml("cancel", "find/0", "-o", "json")  # one trial: the sweep goes on with the next
    assert given_up.exit_code == 0, given_up.stderr
    assert (given_up.json["name"], given_up.json["job_id"], given_up.json["state"]) == ("find/0", "find_0", "cancelled")
    wait_for(lambda: azure.blob("msggan/runs/find/trials/find_1/metrics.jsonl"))

    cancelled = msggan_aml("cancel", "find", "-o", "json")
    assert cancelled.exit_code == 0, cancelled.stderr
    assert cancelled.json["state"] == "cancelled"
    assert [(trial["state"], trial["reason"]) for trial in by_number(cancelled.json)] == [
        *(("stopped", CANCELLED), ("cancelled", "")),
    ]
    assert msggan_aml("cancel", "find").exit_code == 2

    again = msggan_aml(*sweep(*args, "--detach"))
    assert again.exit_code == 0, again.stderr
    assert azure.job("find-2").properties["limits"]["maxTotalTrials"] == 1


@pytest.mark.usefixtures("_no_mlflow")
def test_a_failed_trial_has_a_reason_and_the_sweep_continues(azure: AzureLocal, msggan_aml: Command) -> None:
    azure.cloud.sweep_resources = "refuse"
    ended = msggan_aml(*sweep("--over", "stddev_group=3,0", "--sampling", "grid", *PLAIN, "--kimg", "0.04"))
    assert ended.exit_code == 0, ended.stderr
    bad, good = by_number(ended.json)
    assert (bad["state"], bad["settings"], good["state"]) == ("failed", {"stddev_group": 3}, "completed")
    assert "--stddev-group" in bad["reason"]
    assert "--stddev-group 3: must divide" in msggan_aml("logs", "find/0").stdout

    azure.fault("GET", "samples", times=10**6, status=403)
    best = msggan_aml("sweep", "best", "find", "-o", "json")
    assert best.exit_code == 0, best.stderr
    assert best.json["best"] == good
    assert "runs/find/report.html: cannot be written (Downloading the samples of find/1" in best.stderr


@pytest.mark.usefixtures("_no_mlflow")
@pytest.mark.slow
def test_a_sweep_is_cancelled_if_too_many_trials_fail(azure: AzureLocal, msggan_aml: Command) -> None:
    args = sweep("--over", "stddev_group=3,0,1,2", "--sampling", "grid", "--max-failed-fraction", "0.2", *PLAIN)
    ended = msggan_aml(*args)
    assert ended.exit_code == 1, ended.stderr
    assert "Cancelling find. 1 of 4 trials failed. Most common reason: " in ended.stderr
    assert ended.json["state"] == "failed"
    assert azure.job("find").status == "Canceled"

    jobs = list(azure.cloud.jobs)
    refused = msggan_aml(*args)
    assert refused.exit_code == 2
    assert "find: has failed. 1 of 4 trials failed" in refused.stderr
    assert list(azure.cloud.jobs) == jobs
    resumed = msggan_aml(*args, "--max-failed-fraction", "0.5", "--detach")
    assert resumed.exit_code == 0, resumed.stderr
    assert azure.job("find-2").properties["limits"]["maxTotalTrials"] == 3


@pytest.mark.slow
def test_a_poor_trial_is_stopped_early_by_the_service(azure: AzureLocal, msggan_aml: Command) -> None:
    """Who looks for the farthest from the images gets nowhere by learning nothing: that trial is behind for ever."""
    farthest = ["--direction", "maximize", "--stop-early", "bandit", "--slack", "0.1", "--metric-kimg", "0.3"]
    rates = ["--over", "g_lr=1e-9,0.1", "--sampling", "grid", "--concurrent", "2"]
    started_sweep = msggan_aml(*sweep(*rates, *farthest, *SMALL, "--kimg", "1000000", "--detach"))
    assert started_sweep.exit_code == 0, started_sweep.stderr
    wait_for(lambda: "find_0" in azure.cloud.jobs and azure.job("find_0").status == "Canceled")
    bad, good = by_number(msggan_aml("status", "find", "-o", "json").json)
    assert (bad["state"], good["state"]) == ("stopped", "running")
    assert bad["reason"].startswith("bandit: ")
    ended = msggan_aml("cancel", "find", "-o", "json").json
    assert [trial["state"] for trial in by_number(ended)] == ["stopped", "cancelled"]
    assert ended["best"]["number"] == 1
    assert azure.job("find").service_properties["best_child_run_id"] == "find_1"


@pytest.mark.usefixtures("_no_mlflow")
@pytest.mark.slow
def test_a_trial_of_a_local_sweep_is_continued_on_azure(azure: AzureLocal, workdir: Path, msggan_aml: Command) -> None:
    args = [*sweep("--over", "g_lr=0.001,0.01", *SHORT), "--trials", "1", "--tracking-uri", "none"]
    local = msggan_aml(*args, "--target", "local")
    assert local.exit_code == 0, local.stderr
    on_azure = msggan_aml("submit", "--from-trial", "find", "--kimg", "0.08", "--yes", "-o", "json")
    assert on_azure.exit_code == 0, on_azure.stderr
    assert (on_azure.json["name"], on_azure.json["target"], on_azure.json["images_seen"]) == ("find-best", "azure", 80)
    first = (workdir / "runs/find/trials/000/metrics.jsonl").read_bytes()
    assert (azure.blob("msggan/runs/find-best/metrics.jsonl") or b"").startswith(first)
    assert b"Resuming" in azure.artifact("find-best", "user_logs/std_log.txt")


@pytest.mark.usefixtures("_no_mlflow")
@pytest.mark.slow
def test_a_trial_that_reached_its_time_limit_keeps_its_measurements(azure: AzureLocal, msggan_aml: Command) -> None:
    args = ["--over", "g_lr", "--trials", "1", *SMALL, "--kimg", "1000000", "--metric-kimg", "0.1"]
    started_sweep = msggan_aml(*sweep(*args, "--detach"))
    assert started_sweep.exit_code == 0, started_sweep.stderr
    wait_for(lambda: b'"swd"' in (azure.blob("msggan/runs/find/trials/find_0/metrics.jsonl") or b""))
    azure.expire("find_0")
    azure.job("find").wait_for("Completed")
    ended = msggan_aml("status", "find", "-o", "json").json
    (trial,) = ended["trials"]
    assert (trial["state"], trial["reason"]) == ("stopped", "Time limit reached (--timeout-hours).")
    assert ended["best"] == trial


def test_every_trial_is_found_however_many_there_are(
    azure: AzureLocal, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service answers fifty at a time, and a token that the SDK's own list passes over."""
    for name, value in azure.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AZUREML_CURRENT_CLOUD", "AzureCloud")
    from orchestration.azure.client import Client
    from orchestration.azure.history import read_children

    azure.add_ended_job("many")
    for number in range(120):
        azure.add_ended_job(f"many_{number}", status="Failed" if number % 2 else "Completed").parent = "many"
    client = Client(read_settings({}, folder=workdir, environ=os.environ), Reporter(lambda line: None))
    found = read_children(client, "many")
    assert [child.name for child in found] == [f"many_{number}" for number in range(120)]
    assert [child.status for child in found] == ["Completed", "Failed"] * 60
    assert len(azure.made("GET", "/runs/many/children")) == 3


@pytest.mark.parametrize(("policy", "reason"), [("none", CANCELLED), ("median", "Azure ML stopped it early.")])
def test_how_a_trial_ended_is_read_from_the_service_its_log_and_its_reports(
    azure: AzureLocal, msggan_aml: Command, policy: str, reason: str
) -> None:
    config = TrainConfig(resolution=8)
    stopping = EarlyStopping(policy)
    spec = SweepSpec(
        config, "tiny", "find", read_space(("g_lr=0.001..0.01",), config), trials=7, early_stopping=stopping
    )
    azure.put_blob("msggan/runs/find/sweep.json", SweepRequest.of(spec).to_bytes())
    output = {"run": {"jobOutputType": "uri_folder", "uri": f"{RUNS}find/"}}
    for name, status in (("find", "Completed"), ("find-2", "Running")):
        azure.add_ended_job(name, status, tags={"msggan.run": "find", "msggan.sweep": "find"}, outputs=output)
    states = ["Completed", "Completed", "Canceled", "Canceled", "Failed", "NotResponding"]
    names = [*((f"find_{number}", status) for number, status in enumerate(states)), ("find-2_0", "Running")]
    for name, status in names:
        azure.add_ended_job(name, status).parent = name.rpartition("_")[0]
        azure.job(name.rpartition("_")[0]).add_tags({name: '{"g_lr": 0.002}'})
    azure.put_blob("msggan/runs/find/trials/find_0/metrics.jsonl", b'{"images": 40, "swd": 3.5}\n')
    azure.job("find_2").error = {"code": "UserError", "message": "The job exceeded its time limit of 60 seconds."}
    azure.put_artifact("find_4", "user_logs/std_log.txt", b"Training\nError: Out of memory.\nMore.")
    trials = by_number(msggan_aml("status", "find", "-o", "json").json)
    assert [(trial["number"], trial["job_id"], trial["state"], trial["reason"]) for trial in trials] == [
        (0, "find_0", "completed", ""),
        (1, "find_1", "failed", "It never logged swd."),
        (2, "find_2", "stopped", "Time limit reached (--timeout-hours)."),
        (3, "find_3", "stopped", reason),
        (4, "find_4", "failed", "Out of memory."),
        (5, "find_5", "interrupted", ""),
        (6, "find-2_0", "running", ""),
    ]
    assert [trial["objective"] for trial in trials] == [3.5, *[None] * 6]
    assert {trial["settings"]["g_lr"] for trial in trials} == {0.002}
    assert trials[6]["run_dir"] == f"{RUNS}find/trials/find-2_0/"


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--over", "g_lr", "--sampling", "bayesian"], "on Azure it takes no range on a log scale"),
        (["--over", "g_lr", "--sampling-seed", "-1"], "--sampling-seed -1: must be from 0"),
    ],
)
def test_what_azure_would_refuse_is_refused_before_any_request(
    azure: AzureLocal, msggan_aml: Command, args: list[str], complaint: str
) -> None:
    for more in ([], ["--dry-run"]):
        refused: Ended = msggan_aml(*sweep(*args, *SHORT, "--trials", "2", *more))
        assert refused.exit_code == 2
        assert complaint in refused.stderr
    assert azure.requests == []


def test_a_dry_run_shows_what_would_be_sent_and_only_reads(azure: AzureLocal, msggan_aml: Command) -> None:
    plan = msggan_aml(*sweep("--over", "g_lr=0.001..0.01", "--trials", "4", *SHORT, "--dry-run")).json
    (request,) = plan["requests"]
    assert (request["method"], request["path"].rpartition("/")[2]) == ("PUT", "find")
    assert request["body"]["properties"]["limits"]["maxTotalTrials"] == 4
    assert azure.made("PUT", "/") == []


@pytest.mark.usefixtures("_no_mlflow")
def test_the_name_of_a_run_is_refused(azure: AzureLocal, msggan_aml: Command) -> None:
    azure.hold_jobs()
    assert msggan_aml("submit", "--data", "tiny", "--name", "find", *SHORT, "--detach", "--yes").exit_code == 0
    refused = msggan_aml(*sweep("--over", "g_lr", "--trials", "2", *SHORT))
    assert refused.exit_code == 2
    assert "--name find: is a run, not a sweep." in refused.stderr


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_the_metrics_of_a_trial_that_has_ended_are_read_once_however_many_end_after_it(
    azure: AzureLocal, msggan_aml: Command, count: int
) -> None:
    azure.hold_jobs("no node is free")
    report = json.dumps({"images": 40, "swd": 1.5}).encode()
    ended = [f"find_{number}" for number in range(1, count)]

    def end_trials(names: list[str]) -> None:
        for name in names:
            azure.put_blob(f"msggan/runs/find/trials/{name}/metrics.jsonl", report)
            azure.add_ended_job(name).parent = "find"

    for poll in range(8):
        names = ended[poll::8]
        azure.fault("GET", "/runs/find/details", nth=poll + 1, meanwhile=lambda names=names: end_trials(names))
    azure.fault("GET", "/runs/find/details", nth=10, meanwhile=lambda: runner.cancel(azure.job("find")))
    found = msggan_aml(*sweep("--over", "g_lr=0.001..0.01", "--trials", count, "--concurrent", "1", *SHORT))
    assert [trial["state"] for trial in found.json["trials"]].count("completed") == count - 1
    reads = Counter(request.path for request in azure.made("GET", "/metrics.jsonl"))
    assert {reads[f"/{azure.container}/msggan/runs/find/trials/{name}/metrics.jsonl"] for name in ended} == {1}
