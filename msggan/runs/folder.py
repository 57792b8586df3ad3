"""The run folder: its layout and its configuration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msggan.config import TrainConfig, changed_for_resume, flag, resolve
from msggan.errors import DataError, RunFolderError, UsageError
from msggan.runs.files import recover, write_whole

if TYPE_CHECKING:
    from torch import nn

    from msggan.networks import Generator

FORMAT_VERSION = 1
UNREADABLE_HINT = (
    "Use the msggan that started this run, restore the file from a copy, or use another name or run folder."
)


class RunFolder:
    """The paths of one run's files. Nothing is written before `prepare`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "log.txt"
        self.state = self.path / "run.json"
        self.lock = self.path / "run.lock"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.generator = self.path / "generator.safetensors"

    def __str__(self) -> str:
        return str(self.path)

    def recover(self) -> None:
        """Restores the files that a process was replacing when it died, on a mount that cannot replace a file."""
        for path in (self.config, self.metrics, self.state, self.generator):
            recover(path)

    def load_config(self) -> TrainConfig | None:
        """The resolved configuration of the run, or None if there is none. Raises `RunFolderError` if unreadable."""
        if not self.config.exists():
            return None
        try:
            values = json.loads(self.config.read_bytes())
            version = values.pop("format_version")
            if version == FORMAT_VERSION:
                return TrainConfig(**stored_fields(values))
        except UsageError as error:
            raise RunFolderError(
                f"{self.config}: cannot be read: {error.message.rstrip('.')}.", UNREADABLE_HINT
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"{self.config}: is not a configuration written by msggan.", UNREADABLE_HINT
            ) from error
        raise RunFolderError(
            f"{self.config}: was written by another version of msggan (format {version}, this one has "
            f"{FORMAT_VERSION}).",
            "Use the msggan that started this run, or use another name or run folder.",
        )

    def continued(self, asked: TrainConfig) -> TrainConfig | None:
        """The configuration to resume with: the stored one with what may change taken from `asked`; None if new.

        Raises `RunFolderError` that names the changed fields that may not change.
        """
        stored = self.load_config()
        if stored is None:
            return None
        config, refused = changed_for_resume(stored, asked)
        if refused:
            differences = ", ".join(
                f"{flag(name)} is {getattr(stored, name)} there and {getattr(asked, name)} here" for name in refused
            )
            raise RunFolderError(
                f"{self}: is a run with another configuration: {differences}.",
                "Omit these options to resume that run, or use another name or run folder.",
            )
        return config

    def prepare(self, config: TrainConfig, networks: dict[str, nn.Module], *, checkpoint_bytes: int) -> None:
        """Creates the folder with its configuration and the networks' printouts, and checks that checkpoints will fit.

        Raises `RunFolderError` if it cannot be written, or has no space for two checkpoints.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_space(2 * checkpoint_bytes)
            content = {"format_version": FORMAT_VERSION, **asdict(config)}
            _ensure_content(self.config, json.dumps(content, indent=2).encode())
            for name, network in networks.items():
                _ensure_content(self.path / f"{name}_config.txt", printout(network).encode())
        except OSError as error:
            raise self.unwritable(error) from error

    def prepare_imported(self, generator: Generator) -> dict[str, Any]:
        """Creates the folder for a generator that BMSG-GAN trained; returns the configuration stored in it."""
        config = TrainConfig(
            recipe="bmsg",
            resolution=2 << generator.depth,
            latent_size=generator.latent_size,
            equalized=generator.equalized,
        )
        config = resolve(config, shorter_side_px=config.resolution, device="cpu", has_fast_bfloat16=False)
        self.prepare(config, {"generator": generator}, checkpoint_bytes=0)
        return asdict(config)

    def unwritable(self, error: OSError) -> RunFolderError:
        return RunFolderError(
            f"{self}: cannot be written ({error.strerror}).", "Use a folder that you may write to, or free some space."
        )

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise RunFolderError(
                f"{self}: the disk has {free / 2**20:.0f} MiB free, and two checkpoints take {needed / 2**20:.0f} MiB.",
                "Free some space or use a folder on another disk.",
            )


def marks_run(name: str, read: Callable[[], bytes]) -> bool:
    """Whether a file of this name, whose content `read` returns, makes its folder a run folder.

    Other programs have a config.json too. A folder with weights alone counts: `generated` in it has their pictures.
    """
    keys = {"config.json": {"format_version", "latent_size"}, "run.json": {"state", "images_seen"}}
    if name not in keys:
        return name == "generator.safetensors"
    try:
        content = json.loads(read())
    except (DataError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and keys[name] <= content.keys()


def stored_fields(values: Mapping[str, Any], *, needed: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a stored configuration; those that its version did not have get the value that describes it.

    needed: the fields that must be there, by default all. Raises `UsageError` that names the fields that are missing or
    unknown to this version.
    """
    older = {spec.name: spec.metadata["absent"] for spec in fields(TrainConfig)}
    found = {**{name: value for name, value in older.items() if value is not None}, **values}
    unknown = [repr(name) for name in values if name not in older]
    missing = [repr(name) for name in needed or older if found.get(name) is None]
    problems = [f"unknown field {', '.join(unknown)}, written by a newer msggan"] if unknown else []
    problems += [f"missing field {', '.join(missing)}"] if missing else []
    if problems:
        raise UsageError(["; ".join(problems)])
    return found


def _ensure_content(path: Path, content: bytes) -> None:
    """Writes a file unless it has this content, so that nothing can happen to a good one."""
    if not path.exists() or path.read_bytes() != content:
        write_whole(path, content)


def printout(network: nn.Module) -> str:
    """The layers of a network and its number of parameters."""
    return f"{network}\n\n{sum(parameter.numel() for parameter in network.parameters()):,} parameters\n"
