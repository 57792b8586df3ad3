"""`make azure-check` goes through all its steps and reports which guesses held."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
from azure_local import AzureLocal
from support.programs import REPOSITORY, environment, fast_python

SCRIPT = REPOSITORY / "tests" / "azure_check.py"
GUESSES = [
    str(call.args[0].value)
    for call in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8")))
    if isinstance(call, ast.Call)
    if isinstance(call.func, ast.Attribute) and call.func.attr == "guess" and isinstance(call.args[0], ast.Constant)
]
# The commands that it runs are found beside its interpreter.
RUN = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
QUICK = ("--minutes", "0.01", "--environment", "python:3.11-slim", "--yes")


def check(azure: AzureLocal, folder: Path, *words: str) -> tuple[int, str, str]:
    """The exit code, what is on stderr, and the report."""
    variables = environment(**azure.variables)
    command = [fast_python(), "-c", RUN, str(SCRIPT), "--workspace", azure.cloud.scope, *QUICK, *words]
    ended = subprocess.run(command, cwd=folder, env=variables, stderr=subprocess.PIPE, encoding="utf-8", check=False)
    report = folder / "azure-check.md"
    return ended.returncode, ended.stderr, report.read_text(encoding="utf-8") if report.is_file() else ""


@pytest.mark.slow
def test_every_step_passes_every_guess_holds_and_the_cluster_is_deleted(azure: AzureLocal, tmp_path: Path) -> None:
    exit_code, stderr, report = check(azure, tmp_path)
    assert exit_code == 0, stderr + report
    assert azure.cloud.computes == {}
    steps = [line for line in report.splitlines() if line.endswith("| none |")]
    assert len(steps) == 13, report
    assert (report.count("| yes |"), report.count("| NO |"), report.count("| not tested |")) == (len(GUESSES) - 1, 0, 1)
    assert [guess for guess in GUESSES if f"| {guess} |" not in report] == []
    assert re.search(r"Cost of the jobs: 0\.\d+ USD, of 1\.00 EUR at most\.", report)
    run, resumed, sweep = (job for job in azure.cloud.jobs.values() if job.parent is None)
    assert (run.status, resumed.status, sweep.status) == ("Canceled", "Completed", "Completed")


@pytest.mark.slow
def test_a_step_that_fails_is_reported_and_the_cluster_is_deleted(azure: AzureLocal, tmp_path: Path) -> None:
    azure.fault("PUT", "/jobs/check-", times=99, status=403, code="RequestDisallowedByPolicy")
    exit_code, stderr, report = check(azure, tmp_path)
    assert exit_code == 1
    assert "| submit, and train until the first report |" in report
    assert "RequestDisallowedByPolicy" in stderr
    assert azure.cloud.computes == {}


@pytest.mark.slow
def test_what_may_cost_more_than_the_ceiling_is_refused(azure: AzureLocal, tmp_path: Path) -> None:
    exit_code, _, report = check(azure, tmp_path, "--max-cost", "0.1EUR")
    assert exit_code == 1
    assert "--max-cost 0.03 EUR: even the shortest useful job costs" in report
    assert azure.made("PUT", "/computes/") == []


def test_each_guess_of_the_report_is_in_the_list_of_guesses() -> None:
    readme = (REPOSITORY / "tests" / "azure_local" / "README.md").read_text(encoding="utf-8")
    assert [guess for guess in GUESSES if guess not in " ".join(readme.split())] == []
