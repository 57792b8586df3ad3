"""`make azure-check` goes through all its steps and reports which guesses held."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from azure_local import AzureLocal
from support.programs import REPOSITORY

SCRIPT = REPOSITORY / "tests" / "azure_check.py"
QUICK = ("--minutes", "0.01", "--environment", "python:3.11-slim", "--yes")


def check(azure: AzureLocal, folder: Path, *words: str) -> tuple[int, str, str]:
    """The exit code, what is on stderr, and the report."""
    variables = {**os.environ, **azure.variables}
    command = [sys.executable, str(SCRIPT), "--workspace", azure.cloud.scope, *QUICK, *words]
    ended = subprocess.run(command, cwd=folder, env=variables, stderr=subprocess.PIPE, encoding="utf-8", check=False)
    report = folder / "azure-check.md"
    return ended.returncode, ended.stderr, report.read_text(encoding="utf-8") if report.is_file() else ""


@pytest.mark.slow
def test_every_step_passes_every_guess_holds_and_the_cluster_is_deleted(azure: AzureLocal, tmp_path: Path) -> None:
    exit_code, stderr, report = check(azure, tmp_path, "--hourly-price", "0.25")
    assert exit_code == 0, stderr + report
    assert azure.cloud.computes == {}
    steps = [line for line in report.splitlines() if line.endswith("| none |")]
    assert len(steps) == 11, report
    assert report.count("| yes |") == 10, report
    run, resumed, sweep = (job for job in azure.cloud.jobs.values() if job.parent is None)
    assert (run.status, resumed.status, sweep.status) == ("Canceled", "Completed", "Completed")


@pytest.mark.slow
def test_a_step_that_fails_is_reported_and_the_cluster_is_deleted(azure: AzureLocal, tmp_path: Path) -> None:
    azure.fault("PUT", "/jobs/check-", times=99, status=403, code="RequestDisallowedByPolicy")
    exit_code, stderr, report = check(azure, tmp_path, "--hourly-price", "0.25")
    assert exit_code == 1
    assert "| submit, and train until the first report |" in report
    assert "RequestDisallowedByPolicy" in stderr
    assert azure.cloud.computes == {}


@pytest.mark.slow
def test_what_may_cost_more_than_the_ceiling_is_refused(azure: AzureLocal, tmp_path: Path) -> None:
    exit_code, stderr, report = check(azure, tmp_path, "--hourly-price", "0.7")
    assert (exit_code, report) == (1, "")
    assert "costs 0.7 an hour, 1.5 hours more than 1." in stderr
    assert azure.made("PUT", "/computes/") == []
