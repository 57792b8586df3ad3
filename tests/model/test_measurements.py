"""The programs that measure on a GPU work: here on the CPU, at the smallest sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.programs import REPOSITORY, environment, fast_python

from benchmarks import bench

CHECK = REPOSITORY / "tests" / "gpu_check.py"


def test_the_table_of_a_gpu_has_speed_time_and_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PRODUCT_SIDE", 1024)  # which is soon done
    rows = {row["name"]: row for row in bench.table_rows(8, device=torch.device("cpu"), seconds=0)}
    assert rows.keys() == {"auto: speed", "auto: time", "auto: arithmetic"}
    assert rows["auto: time"]["value"] * rows["auto: speed"]["value"] == pytest.approx(1000)
    assert 0 < rows["auto: arithmetic"]["ratio"] < 1
    assert rows["auto: speed"]["ratio"] > 0


@pytest.mark.slow
def test_the_checks_of_a_gpu_pass_on_a_cpu_where_they_apply(tmp_path: Path) -> None:
    command = [sys.executable, str(CHECK), "--device", "cpu", "--largest", "32", "--out", str(tmp_path / "out.json")]
    subprocess.run(command, env=environment(), check=True)
    results = {each["check"]: each["result"] for each in json.loads((tmp_path / "out.json").read_text())["checks"]}
    assert "failed" not in results.values()
    assert list(results.values()).count("ok") >= 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_check_says_so(tmp_path: Path) -> None:
    run = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [fast_python(), "-c", run, str(CHECK), "--out", str(tmp_path / "out.json")]
    ended = subprocess.run(command, env=environment(), capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 2
    assert "needs a machine with an NVIDIA GPU" in ended.stdout
    assert not (tmp_path / "out.json").exists()
