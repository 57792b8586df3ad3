"""A preempted job gives the same result as one that was not preempted, and a run that ended early can be resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from azure_local import AzureLocal
from safetensors.torch import load
from support.azure_commands import Command, posix, sdk_warnings
from support.kills import without_timings
from support.programs import command_line, environment, run_in, wait_for

from msggan import load_generator
from msggan.tracking.metrics_log import read_metrics, reports_in

pytestmark = [posix, sdk_warnings]

TRAINING = [
    *("--resolution", "8", "--latent-size", "8", "--batch-size", "4", "--device", "cpu"),
    *("--kimg", "1.5", "--checkpoint-kimg", "0.2", "--sample-kimg", "0.5", "--metric-kimg", "0.5"),
]
SHORT = [*TRAINING[:8], "--kimg", "0.04"]


def checkpoints(azure: AzureLocal) -> list[int]:
    """The images seen at each checkpoint that has reached the run folder in the datastore."""
    paths = azure.blobs_below("msggan/runs/tiny/checkpoints/")
    return [int(Path(path).stem) for path in paths if path.endswith(".json")]


@pytest.mark.slow
def test_a_job_preempted_twice_ends_like_an_uninterrupted_one(azure: AzureLocal, workdir: Path) -> None:
    azure.cloud.logs_by_attempt = True
    azure.cloud.mounts_refuse = ("append", "rename")
    azure.cloud.python = sys.executable  # its process is stopped and killed here, which must be the trainer itself
    args = ["submit", "--data", "tiny", *TRAINING]
    printed = workdir / "stderr.txt"
    with (
        printed.open("w") as stderr,
        subprocess.Popen(
            command_line("msggan-aml", *args, "--yes", "-o", "json"),
            cwd=workdir,
            env=environment(**azure.variables),
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
        ) as following,
    ):
        seen = 0
        for count in (1, 2):
            wait_for(lambda: max(checkpoints(azure), default=0) > seen, following)  # noqa: B023 - called here
            job = azure.job("tiny")
            os.killpg(job.process.pid, signal.SIGSTOP)  # it must not end before the follower has seen it running
            wait_for(lambda: printed.read_text().count("tiny: running") == count, following)  # noqa: B023
            assert job.status == "Running"
            azure.hold_jobs("no node is free")
            job.preempted.set()
            wait_for(lambda: printed.read_text().count("preempted (") == count, following)  # noqa: B023
            seen = max(checkpoints(azure))
            azure.release_jobs()
        stdout, _ = following.communicate(timeout=120)
    result = json.loads(stdout)
    assert (following.returncode, result["state"], result["images_seen"]) == (0, "completed", 1500)
    assert (azure.job("tiny").attempt, list(azure.cloud.jobs)) == (3, ["tiny"])

    logs = ["std_log.txt", *(f"retry_{number:03d}/std_log_process_0.txt" for number in (1, 2))]
    written = [line for log in logs for line in azure.artifact("tiny", f"user_logs/{log}").decode().splitlines()]
    assert [line for line in printed.read_text().splitlines() if line in written] == written
    assert sum("Resuming" in line for line in written) == 2

    uninterrupted = run_in(workdir, "msggan-aml", *args, "--target", "local")
    assert uninterrupted.exit_code == 0, uninterrupted.stderr
    local = workdir / "runs" / "tiny"
    weights, expected = load(azure.blob("msggan/runs/tiny/generator.safetensors") or b""), load_generator(local)
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.state_dict().items())
    reports = reports_in(azure.blob("msggan/runs/tiny/metrics.jsonl") or b"")
    measured = without_timings(reports)
    assert measured == without_timings(read_metrics(local / "metrics.jsonl"))
    assert [report["images"] for report in measured] == [500, 1000, 1500]
    points = Counter((metric.key, metric.step) for metric in azure.job("tiny").metrics)
    assert {step for name, step in points if name == "d_loss"} == {report["images"] for report in reports}
    assert set(points.values()) == {1}


@pytest.mark.parametrize(
    ("status", "state"),
    [
        pytest.param("Failed", "failed", marks=pytest.mark.slow),
        pytest.param("Canceled", "cancelled", marks=pytest.mark.slow),
        ("NotResponding", "interrupted"),
    ],
)
def test_a_run_that_ended_early_is_continued_by_the_same_command_as_its_next_job(
    azure: AzureLocal, workdir: Path, msggan_aml: Command, status: str, state: str
) -> None:
    azure.cloud.job_environment["MSGGAN_TRACKING_URI"] = "none"
    args = ["submit", "--data", "tiny", *SHORT, "--yes", "-o", "json"]
    ended = msggan_aml(*args)
    assert ended.exit_code == 0, ended.stderr
    azure.job("tiny").status = status
    assert msggan_aml("status", "tiny", "-o", "json").json["state"] == state

    again = msggan_aml(*args, "--kimg", "0.08")
    assert again.exit_code == 0, again.stderr
    assert (again.json["state"], again.json["job_id"], again.json["images_seen"]) == ("completed", "tiny-2", 80)
    written = azure.artifact("tiny-2", "user_logs/std_log.txt").decode()
    assert "Resuming" in written
    assert "0.04 of 0.08 kimg done" in written
    listed = msggan_aml("list", "-o", "json").json["runs"]
    assert [(run["name"], run["job_id"], run["images_seen"]) for run in listed] == [("tiny", "tiny-2", 80)]
    assert msggan_aml("download", "tiny", "--out", "result", "-o", "json").exit_code == 0
    reports = reports_in((workdir / "result" / "metrics.jsonl").read_bytes())
    assert [report["images"] for report in reports] == [40, 80]
