"""What was asked of a sweep? Kept with it in sweep.json: the same command goes on with it, and no other one does."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from msggan.commands.options import to_argv
from msggan.config import explicit_values
from msggan.errors import RunFolderError, UsageError
from orchestration.data_source import is_remote
from orchestration.sweeps.spec import EarlyStopping, Objective, SweepSpec, differences

FORMAT_VERSION = 2
Request = TypeVar("Request", bound="SweepRequest")


@dataclass(kw_only=True)
class SweepRequest:
    """A sweep as it was asked for.

    asked: what may not change when the sweep is continued, in words. again: the options that continue it. said: the
    configuration that all trials share. space: what --over took. planned: how many trials there are to be.
    """

    asked: dict[str, str]
    again: list[str]
    said: dict[str, Any]
    data: str
    space: list[str]
    objective: Objective
    early_stopping: EarlyStopping
    most_failed: float
    planned: int

    @classmethod
    def of(cls: type[Request], spec: SweepSpec, **more: Any) -> Request:
        """What `spec` asks. more: what else the kind of request holds."""
        return cls(
            asked=asked_of(spec),
            again=spec.to_argv(),
            said=explicit_values(spec.config),
            data=str(spec.data),
            space=spec.space.as_texts(),
            objective=spec.objective,
            early_stopping=spec.early_stopping,
            most_failed=spec.most_failed,
            planned=spec.trials,
            **more,
        )

    def renew(self, spec: SweepSpec) -> None:
        """Takes over what may change when a sweep is continued."""
        self.again, self.planned, self.most_failed = spec.to_argv(), spec.trials, spec.most_failed

    def to_bytes(self) -> bytes:
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1).encode()


def read_request(content: bytes, kind: type[Request], where: str) -> Request:
    """The request that `to_bytes` wrote. where: to name in an error. Raises `RunFolderError` if it cannot be read."""
    try:
        values = json.loads(content)
        version = values.pop("format_version")
        if version == FORMAT_VERSION:
            objective, stopping = Objective(**values["objective"]), EarlyStopping(**values["early_stopping"])
            return kind(**{**values, "objective": objective, "early_stopping": stopping})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{where}: is no sweep that msggan wrote.", "Take it away, or give another --name."
        ) from error
    raise RunFolderError(
        f"{where}: was written by another version of msggan (format {version}, not {FORMAT_VERSION}).",
        "Use the msggan that began this sweep, or give another --name.",
    )


def asked_of(spec: SweepSpec) -> dict[str, str]:
    """What may not change when a sweep is continued, by the words that say it."""
    stopping, data = spec.early_stopping, str(spec.data)
    return {
        "--data": data if is_remote(data) else os.path.abspath(data),
        "--over": " ".join(spec.space.as_texts()),
        "--sampling": spec.sampling,
        "--sampling-seed": str(spec.sampling_seed),
        "--objective": f"{spec.objective.metric} ({spec.objective.direction})",
        "--stop-early": stopping.policy if stopping.policy == "none" else repr(stopping),
        "options": " ".join(to_argv(spec.config)),
    }


def refuse_another_space(spec: SweepSpec, planned: int, asked: Mapping[str, str]) -> None:
    """Raises `UsageError` where the name is that of another sweep, saying what differs.

    planned, asked: of the sweep that is there; what it does not say is not compared.
    """
    here = [(name, value) for name, value in asked_of(spec).items() if name in asked]
    different = differences(here, list(asked.items()))
    if spec.trials < planned:
        different.append(f"--trials is {planned} there and {spec.trials} here")
    if different:
        raise UsageError(
            [f"--name {spec.name}: is another sweep: {'; '.join(different)}."],
            "Ask for the same to go on with it (--trials may grow), or give another --name.",
        )
