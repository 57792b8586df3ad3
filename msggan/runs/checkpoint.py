"""Checkpoints and generator.safetensors: tensors saved and loaded whole or not at all, without pickle.

A checkpoint is two files: `{images:09d}.safetensors` holds the tensors, `{images:09d}.json` everything else, with the
checksums of both. The JSON file is written last: without a good one the checkpoint does not exist.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from msggan.device import choose_device, is_out_of_memory
from msggan.errors import CheckpointError, UsageError
from msggan.networks import Generator
from msggan.runs.files import CANNOT_REPLACE, replacing, sha256_of, write_whole
from msggan.runs.folder import RunFolder, stored_fields, weights_file

FORMAT_VERSION = 1
CHECKPOINTS_KEPT = 3
# Raised by reading a file that is damaged or was written by another program.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,  # JSON of a hundred thousand brackets
    safetensors.SafetensorError,
)


class Damaged(NamedTuple):
    """A checkpoint that was skipped, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Best:
    """The weights (EMA) that measured best so far, what they measured, and at which image.

    measure: the name in `measured` by which they are the best, the lowest.
    """

    images_seen: int
    measure: str
    measured: Mapping[str, float]
    tensors: Mapping[str, Tensor]

    @property
    def about(self) -> dict[str, Any]:
        """All but the tensors, as plain values."""
        return {"images_seen": self.images_seen, "measure": self.measure, "measured": dict(self.measured)}

    def to_checkpoint(self) -> dict[str, Tensor]:
        return {f"best.{name}": tensor for name, tensor in self.tensors.items()}

    @classmethod
    def from_checkpoint(cls, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Best | None:
        """None where the checkpoint has none: it is of before the first evaluation, or of an earlier version."""
        about = state.get("best")
        return about and cls(**about, tensors=part_of(tensors, "best"))


class Checkpoint(NamedTuple):
    """A saved run: named tensors, plain JSON values, and the best weights so far."""

    images_seen: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    best: Best | None = None


def ensure_best(folder: RunFolder, best: Best | None, config: Mapping[str, Any]) -> None:
    """Makes generator_best.safetensors that of a checkpoint, or removes it where the checkpoint has none.

    Steps after the checkpoint are repeated, and what they measured may never be measured again.
    """
    if best is None:
        folder.best.unlink(missing_ok=True)
        return
    about = json.dumps(best.about)
    try:
        with safetensors.safe_open(folder.best, framework="pt") as file:
            is_there = (file.metadata() or {}).get("best") == about
    except UNREADABLE:
        is_there = False
    if not is_there:
        save_tensors(folder.best, best.tensors, {"config": json.dumps(config), "best": about})


def load_generator(
    path: str | Path, device: str = "cpu", *, best: bool = False, at_kimg: float | None = None
) -> Generator:
    """The EMA generator of a run folder, or of a `generator.safetensors`, in eval mode.

    best: with the weights that measured best instead of the newest; at_kimg: with those of the nearest snapshot.
    device: auto, cpu, cuda, cuda:N or mps. Raises `CheckpointError` if there is none yet, or the file is damaged or of
    another kind; `UsageError` if the device is not available.
    """
    path = chosen_weights(path, best=best, at_kimg=at_kimg)
    if not path.exists():
        raise CheckpointError(f"No such file: {path}", "Specify a run folder, or the generator.safetensors in it.")
    try:
        stored = generator_config(path)
        classes = stored.pop("classes", {})
        config = stored_fields(stored, needed=("resolution", "latent_size", "equalized"))
        tensors = load_file(path)
        generator = Generator(
            depth=int(config["resolution"]).bit_length() - 2,
            latent_size=config["latent_size"],
            equalized=config["equalized"],
            resampling=config["resampling"],
            classes=classes,
        )
    except UsageError as error:
        raise CheckpointError(
            f"{path}: its configuration cannot be read: {error.message}.", "Use the msggan that trained it."
        ) from error
    except UNREADABLE as error:
        raise CheckpointError(
            f"{path}: is not a complete generator.safetensors ({reason_of(error)}).",
            "Copy it again from where it was trained, or resume the run: each checkpoint rewrites it.",
        ) from error
    check_shapes(path, generator.state_dict(), tensors)
    generator.load_state_dict(tensors)
    return generator.eval().to(choose_device(device))


def chosen_weights(path: str | Path, *, best: bool = False, at_kimg: float | None = None) -> Path:
    """The file that `load_generator` reads. Raises as it does."""
    path = Path(path)
    if best or at_kimg is not None:
        if not path.is_dir():
            raise CheckpointError(f"{path}: has one generator.", "Specify its run folder to choose among its weights.")
        files = (file.relative_to(path).as_posix() for file in path.glob("**/*.safetensors"))
        return path / weights_file([*files], best=best, at_kimg=at_kimg)
    return _weights_of_run(path) if path.is_dir() else path


def _weights_of_run(folder: Path) -> Path:
    """The file of a run's weights. Raises `CheckpointError` with the time of the first ones, or if it is not a run."""
    path = folder / "generator.safetensors"
    if path.exists():
        return path
    try:
        kimg = json.loads((folder / "config.json").read_bytes())["checkpoint_kimg"]
        first = f"The first checkpoint is written at {float(kimg):g} kimg, or when training ends."
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: is not a run folder: it has no generator.safetensors and no config.json.",
            "Specify a run folder, or a generator.safetensors.",
        ) from None
    except UNREADABLE:
        first = "The first checkpoint writes them."
    raise CheckpointError(
        f"{folder}: has no weights yet.", f"{first} Show its progress: msggan-aml status {shlex.quote(str(folder))}"
    )


def generator_config(path: Path) -> dict[str, Any]:
    """The configuration in a generator.safetensors. Raises `CheckpointError` for another kind of file."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if not {"format_version", "config"} <= metadata.keys():
        raise CheckpointError(
            f"{path}: is not a generator saved by msggan.", "Specify a run folder, or the generator.safetensors in it."
        )
    if metadata["format_version"] != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: was written by another version of msggan (format {metadata['format_version']}, this one has "
            f"{FORMAT_VERSION}).",
            "Use the msggan that trained it.",
        )
    config: dict[str, Any] = json.loads(metadata["config"])
    return config


def save_generator(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Writes weights with the configuration they need; whole or not at all."""
    save_tensors(path, tensors, {"config": json.dumps(config)})


def save_checkpoint(folder: Path, images_seen: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Writes a whole checkpoint; returns its JSON file. Raises `OSError` from the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    tensor_path = folder / f"{images_seen:09d}.safetensors"
    save_tensors(tensor_path, tensors, {})
    body = {
        "format_version": FORMAT_VERSION,
        "images_seen": images_seen,
        "tensors_sha256": sha256_of(tensor_path),
        "state": state,
    }
    path = tensor_path.with_suffix(".json")
    write_whole(path, json.dumps({**body, "sha256": _checksum(body)}, indent=1).encode())
    return path


class CheckpointWriter:
    """Writes the checkpoints of one run in a background thread, one at a time.

    Each is a copy of the tensors, which takes as much CPU memory as they do on their device until it is written.
    may_write: called by the thread before a checkpoint becomes visible; raises if the run belongs to another process.
    """

    def __init__(self, folder: RunFolder, *, may_write: Callable[[], None]) -> None:
        self.folder = folder
        self.may_write = may_write
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(
        self, images_seen: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, config: Mapping[str, Any]
    ) -> None:
        """Copies everything and starts writing it, after `finish` of the previous checkpoint.

        tensors: named as by `TrainingState.tensors`, and the best weights; those of the EMA are also written to
        generator.safetensors, and the best to generator_best.safetensors.
        """
        self.finish()
        # Contiguous: safetensors refuses channels_last tensors, and files have one layout on all devices.
        copies = {name: torch.empty(t.shape, dtype=t.dtype).copy_(t.detach()) for name, t in tensors.items()}
        arguments = (images_seen, copies, dict(state), dict(config))
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def finish(self) -> None:
        """Waits as `wait` does, and raises the error of the checkpoint, once: `OSError` from the disk."""
        self.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Waits for the checkpoint that is being written, whether it succeeds or not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(
        self, images_seen: int, tensors: dict[str, Tensor], state: dict[str, Any], config: dict[str, Any]
    ) -> None:
        """The weights come first: a process killed in between repeats this step and writes the same weights again."""
        try:
            self.may_write()
            save_generator(self.folder.generator, part_of(tensors, "ema"), config)
            ensure_best(self.folder, Best.from_checkpoint(tensors, state), config)
            self.may_write()
            save_checkpoint(self.folder.checkpoints, images_seen, tensors, state)
            prune_checkpoints(self.folder.checkpoints, newest=images_seen)
        except Exception as error:
            self._error = error


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[Damaged]]:
    """The newest good checkpoint, if there is one, and the newer ones that are damaged."""
    damaged: list[Damaged] = []
    for path in sorted(_files(folder, "json"), key=lambda path: int(path.stem), reverse=True):
        try:
            return _load(path), damaged
        except UNREADABLE as error:
            if is_out_of_memory(error):  # the checkpoint is good: the run must not resume from an older one
                raise
            damaged.append(Damaged(path, reason_of(error)))
    return None, damaged


def prune_checkpoints(folder: Path, *, newest: int, keep: int = CHECKPOINTS_KEPT) -> None:
    """Removes all but the `keep` latest checkpoints up to the one of `newest` images."""
    counts = sorted({int(path.stem) for path in _files(folder) if int(path.stem) <= newest})
    for count in counts[:-keep]:
        for suffix in (".json", ".safetensors"):  # in this order: without its JSON file a checkpoint does not exist
            (folder / f"{count:09d}{suffix}").unlink(missing_ok=True)
    for partial in folder.glob("*.part"):  # of a process that died while writing
        partial.unlink(missing_ok=True)


def _files(folder: Path, kinds: str = "json|safetensors") -> list[Path]:
    """The files of checkpoints, whole or not, and no others."""
    return [path for path in folder.glob("*") if re.fullmatch(rf"\d{{9,}}\.({kinds})", path.name)]


def check_shapes(source: object, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raises `CheckpointError` unless the tensors have exactly the names and shapes of the expected ones."""
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise CheckpointError(f"{source}: tensor {name} is missing.", "It belongs to another kind of network.")
        if name not in expected:
            raise CheckpointError(f"{source}: unknown tensor {name}.", "It belongs to another network.")
        shape, expected_shape = tuple(tensors[name].shape), tuple(expected[name].shape)
        if shape != expected_shape:
            raise CheckpointError(
                f"{source}: tensor {name} has shape {shape}, not {expected_shape}.",
                "It was trained with another --resolution or --latent-size.",
            )


def reason_of(error: Exception) -> str:
    """An error's first line, short enough for a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120].rstrip(".")


def _load(path: Path) -> Checkpoint:
    """Raises one of UNREADABLE unless the file is a whole checkpoint."""
    body = json.loads(path.read_bytes())
    checksum = body.pop("sha256")
    if checksum != _checksum(body):
        raise ValueError("its checksum does not match")
    if body["format_version"] != FORMAT_VERSION:
        raise ValueError(f"it has format version {body['format_version']}")
    tensor_path = path.with_suffix(".safetensors")
    if sha256_of(tensor_path) != body["tensors_sha256"]:
        raise ValueError(f"the checksum of {tensor_path.name} does not match")
    tensors, state = load_file(tensor_path), body["state"]
    best = Best.from_checkpoint(tensors, state)
    trained = {name: tensor for name, tensor in tensors.items() if not best or not name.startswith("best.")}
    return Checkpoint(body["images_seen"], trained, state, best)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all. Raises the `OSError` that safetensors reports as text."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format_version": str(FORMAT_VERSION), **metadata}
    with replacing(path) as temporary:
        try:
            save_file(plain, temporary, metadata)
        except safetensors.SafetensorError as error:
            if not (found := re.search(r"(?:os error |code: )(\d+)", str(error))):
                raise
            if (number := int(found[1])) not in CANNOT_REPLACE:
                raise OSError(number, os.strerror(number)) from error
            temporary.write_bytes(save(plain, metadata))  # save_file renames a file of its own


def part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors named `part.NAME`, by NAME."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
