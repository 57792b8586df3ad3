"""What was measured, on what, and is it good enough? Each benchmark's rows, in results.json and as text."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from msggan.device import has_fast_bfloat16

RESULTS = Path(__file__).parent / "results.json"


def report_rows(rows: Sequence[dict[str, Any]], device: torch.device, path: Path = RESULTS) -> None:
    """Writes rows in place of those of the same names, keeps all others, and prints the machine and the rows.

    Each row says on which processor it was measured: others may be older than the machine that stands above them.
    """
    names = {row["name"] for row in rows}
    before = json.loads(path.read_text()) if path.exists() else {"machine": {}, "rows": []}
    older = before["machine"].get("processor")
    kept = [{"processor": older, **row} for row in before["rows"] if row["name"] not in names]
    about = machine(device)
    measured = [{"processor": about["processor"], **row} for row in rows]
    path.write_text(json.dumps({"machine": about, "rows": [*kept, *measured]}, indent=1) + "\n")
    click.echo(f"{about}\n")
    for each in rows:
        click.echo(line_of(each))
    judged = [each["met"] for each in rows if each["bar"] is not None]
    click.echo(f"\n{sum(judged)} of {len(judged)} bars met.\n")


def line_of(row: dict[str, Any]) -> str:
    """As `operations, auto, 256 px, step: 497 operations, baseline 1043, ratio 2.1: at least 2: met`."""
    text = f"{row['name']}, {row['setting']}: {row['value']:.4g} {row['unit']}"
    if row["baseline"] is not None:
        text += f", baseline {row['baseline']:.4g}"
    if row["ratio"] is not None:
        text += f", ratio {row['ratio']:.3g}"
    if row["bar"] is None:
        return text
    judged = row["value"] if row["ratio"] is None else row["ratio"]
    is_most = (judged < row["bar"]) == row["met"]  # what is good is less than the bar
    return f"{text}: {'less than' if is_most else 'at least'} {row['bar']:.3g}: {'met' if row['met'] else 'NOT MET'}"


def row(
    name: str,
    setting: str,
    value: float,
    unit: str,
    *,
    baseline: float | None = None,
    ratio: float | None = None,
    bar: float | None = None,
    most: bool = False,
) -> dict[str, Any]:
    """A row of results.json. bar: of the ratio or, where there is none, of the value.

    It is the least that is good; with `most`, what is good is less than it.
    """
    judged = value if ratio is None else ratio
    met = None if bar is None else judged < bar if most else judged >= bar
    about = {"name": name, "setting": setting, "value": value, "unit": unit}
    return {**about, "baseline": baseline, "ratio": ratio, "bar": bar, "met": met}


def machine(device: torch.device) -> dict[str, Any]:
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "bfloat16 units": has_fast_bfloat16(device),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    about = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", about.read_text(), flags=re.MULTILINE) if about.exists() else None
    return named[1] if named else platform.processor()
