"""How does a run train on this machine? As a subprocess: the same command that a person could type."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msggan.options import to_argv
from msggan.program import EXIT_CODES, OUTPUT_VARIABLE
from orchestration.child import Ending, follow, silent_death, told_by
from orchestration.spec import Run, RunSpec

RESUMES = "The same command again goes on from the newest checkpoint."
NEEDS_LESS_MEMORY = "A smaller --batch-size or --resolution needs less memory."


@dataclass(frozen=True)
class LocalTarget:
    """This machine. Runs live in `runs_dir`/NAME; `python` is the interpreter that trains."""

    runs_dir: str | Path = "runs"
    python: str = sys.executable

    name = "local"

    def plan(self, spec: RunSpec) -> dict[str, Any]:
        """What `submit` would start. Touches nothing."""
        run_dir = str(Path(self.runs_dir) / spec.name)
        return {
            "target": self.name,
            "command": spec.command(data=str(spec.data), run_dir=run_dir, python=self.python),
            "env": {OUTPUT_VARIABLE: "json"},
            "run_dir": run_dir,
        }

    def submit(self, spec: RunSpec) -> Run:
        """Trains to the end, or until stopped. Raises MsgganError if the run cannot begin or fails."""
        plan = self.plan(spec)
        ending = follow(plan["command"], {**os.environ, **plan["env"]})
        return build_run(spec, plan["run_dir"], ending, runs_dir=str(self.runs_dir))


def build_run(spec: RunSpec, run_dir: str, ending: Ending, *, runs_dir: str) -> Run:
    """The run that the child told of; raises its error, or one that says how it died without a word."""
    told = told_by(ending)
    if told.get("state") in EXIT_CODES:
        return Run(
            name=spec.name,
            target=LocalTarget.name,
            state=told["state"],
            run_dir=told["run_dir"],
            images_seen=told["images_seen"],
            metrics=told["metrics"],
            next=next_commands(spec, runs_dir, told["state"], told["images_seen"]),
        )
    if ending.terminated_by_us:  # SIGTERM came before the child could have answered it
        again = next_commands(spec, runs_dir, "cancelled", 0)
        return Run(name=spec.name, target=LocalTarget.name, state="cancelled", run_dir=run_dir, next=again)
    raise silent_death(ending.status, process="training", hint=RESUMES, if_out_of_memory=NEEDS_LESS_MEMORY)


def next_commands(spec: RunSpec, runs_dir: str, state: str, images_seen: int) -> list[str]:
    """What to type next: the same run again; for one that is complete, pictures of it, and twice as long."""
    place = ["--runs-dir", runs_dir] if runs_dir != LocalTarget.runs_dir else []
    again = ["msggan-aml", "submit", "--data", str(spec.data), "--name", spec.name, *place]
    if state != "completed":
        return [shlex.join([*again, *to_argv(spec.config), *spec.place.to_argv()])]
    longer = replace(spec.config, kimg=2 * (spec.config.kimg or images_seen / 1000))
    return [
        shlex.join(["msggan-aml", "sample", spec.name, *place]),
        shlex.join([*again, *to_argv(longer), *spec.place.to_argv()]),
    ]
