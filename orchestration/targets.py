"""Where does a run go? What a target can do, and which one serves when nobody says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from msggan.errors import UsageError
from orchestration.runs import find_run, run_problems
from orchestration.spec import Download, Run, RunSpec, RunStatus
from orchestration.workspace import Workspace

TARGETS = ("auto", "local")


class Target(Protocol):
    """A place where runs train."""

    def plan(self, spec: RunSpec) -> dict[str, Any]:
        """What `submit` would do, as plain values. Touches nothing."""
        ...

    def submit(self, spec: RunSpec, *, detach: bool = False) -> Run:
        """Starts the run, or resumes the one of that name, and follows it to its end; with `detach` it lets it go."""
        ...

    def runs(self) -> list[RunStatus]:
        """Every run, the newest first."""
        ...

    def status(self, name: str) -> RunStatus:
        """How a run stands."""
        ...

    def logs(self, name: str, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """The last `tail` lines that a run has written, or all; with `follow` also those it writes until its end."""
        ...

    def cancel(self, name: str) -> RunStatus:
        """Stops a run and waits for its end."""
        ...

    def download(
        self, name: str, to: Path, *, weights: bool, force: bool, tell: Callable[[int, int], None]
    ) -> Download:
        """Copies the result out, or with `weights` just the generator; tells of bytes done and bytes in all."""
        ...

    def weights(self, name: str) -> str:
        """Where the run's generator lies on this machine, brought here first if need be: a run folder or a file."""
        ...


@dataclass(frozen=True)
class Choice:
    """The target that serves, and why, as the end of a sentence."""

    target: str
    reason: str


def target_problems(asked: str) -> list[str]:
    if asked in TARGETS:
        return []
    near = get_close_matches(asked, TARGETS, n=1)
    suggestion = f" Did you mean {near[0]}?" if near else ""
    return [f"--target {asked}: is not one of {', '.join(TARGETS)}.{suggestion}"]


def choose(asked: str, workspace: Workspace | None) -> Choice:
    """The target for what --target says, where `workspace` is configured."""
    if asked != "auto":
        return Choice(asked, "as --target says")
    if workspace is None:
        return Choice("local", "no Azure ML workspace is configured")
    return Choice("local", f"this version does not submit to Azure ML yet, though {workspace.source} names a workspace")


def build_target(name: str, *, runs_dir: str, tracking_uri: str | None = None) -> Target:
    from orchestration.local import LocalTarget  # a target is loaded when it serves

    return {"local": LocalTarget}[name](runs_dir, tracking_uri=tracking_uri)


def target_of(named: str, *, runs_dir: str) -> tuple[Target, str]:
    """The target that has the run NAME|FOLDER, and the run's name there. Raises `UsageError` if nothing is found."""
    path = find_run(named, runs_dir)
    if path is None:
        raise UsageError(run_problems(named, runs_dir))
    folder, name = os.path.split(os.path.abspath(path))
    return build_target("local", runs_dir=os.path.relpath(folder)), name
