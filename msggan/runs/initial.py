"""The weights that a run starts from (`--init`): found, checked, and taken over as far as they fit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file
from torch import Tensor, nn

from msggan.commands.options import did_you_mean, nearest, to_argv
from msggan.config import TrainConfig, explicit_values, split_init
from msggan.errors import CheckpointError, UsageError
from msggan.legacy import load_legacy, sizes_of
from msggan.runs.checkpoint import UNREADABLE, chosen_weights, newest_checkpoint, part_of, reason_of, save_tensors
from msggan.runs.files import sha256_of
from msggan.runs.folder import stored_fields

KINDS = "Use the name of a run, one of its .safetensors files, or a .pth file that BMSG-GAN saved."
# With other values of these the same weights are another function. Another resolution only adds or removes scales.
OPTIONS = ("latent_size", "equalized", "resampling", "join")
NO_FIELDS = ("format_version", "classes")  # stored with the configuration, but no fields of it
LEGACY_NAME = re.compile(r"GAN_(GEN_SHADOW|GEN|DIS)_(.+)\.pth")
LEGACY_NETWORKS = {"generator": "GEN", "ema": "GEN_SHADOW", "discriminator": "DIS"}

Networks = dict[str, dict[str, Tensor]]  # by generator, ema and discriminator, and by the names of their tensors


@dataclass(frozen=True)
class Source:
    """Weights to start from. init: what is recorded, with the SHA-256 of the file that they were read from.

    networks: those that it has. options: the fields of TrainConfig that they were built with.
    """

    init: str
    file: Path
    networks: Networks
    options: Mapping[str, Any]


def load_source(init: str, runs_dir: Path, file: str | Path | None = None) -> Source:
    """init: the name of a run in `runs_dir`, or the path of a run folder or of a file; see `split_init`.

    file: where its weights are, if it is known. Raises `UsageError` if there is no such run or file, `CheckpointError`
    if it has no weights, or not those recorded.
    """
    name, recorded = split_init(init)
    path = Path(file) if file else _find(name, runs_dir)
    file = _file_of_run(path) if path.is_dir() else path
    networks, options, digest = _read_legacy(file) if file.suffix in (".pth", ".pt") else _read(file)
    for kind, other in (("ema", "generator"), ("generator", "ema")):
        if other in networks:
            networks.setdefault(kind, networks[other])
    if recorded not in ("", digest):
        raise CheckpointError(
            f"--init {name}: {file} is not the file that was recorded (SHA-256 {digest[:12]}…, not {recorded[:12]}…).",
            f"Restore that file, or start from this one: --init {name}",
        )
    return Source(f"{name}@sha256:{digest}", file, networks, options)


def save_source(source: Source, file: Path) -> None:
    """Writes the weights to one file, from which `load_source` reads the same source."""
    networks = dict(source.networks)
    if networks.get("ema") is networks.get("generator"):  # one tensor cannot be saved twice
        networks.pop("ema", None)
    tensors = {f"{kind}.{name}": tensor for kind, network in networks.items() for name, tensor in network.items()}
    save_tensors(file, tensors, {"config": json.dumps(source.options), "sha256": split_init(source.init)[1]})


def with_options_of(source: Source, config: TrainConfig) -> TrainConfig:
    """The configuration of a new run that starts from these weights: what it leaves open is the source's.

    Raises `UsageError` if the weights are of networks with other options.
    """
    given, theirs = explicit_values(config), source.options
    wrong = [name for name in OPTIONS if given.get(name, theirs[name]) != theirs[name]]
    if "discriminator" not in source.networks and "join" in wrong:
        wrong.remove("join")
    if wrong:
        name, _ = split_init(source.init)
        problems = [
            f"{_as_options(given, option)}: the weights of --init {name} need {_as_options(theirs, option)}."
            for option in wrong
        ]
        raise UsageError(problems, "Omit these options to take them from that run, or omit --init.")
    return TrainConfig(**{**theirs, **given, "init": source.init})


def take_over(source: Source, networks: Mapping[str, nn.Module]) -> str:
    """Copies the layers with the same names and shapes; returns a sentence that says how many these are.

    networks: `generator`, `ema` and `discriminator`. Their layers are numbered from 4 px up, so that those of a scale
    have the same names at every resolution. Raises `CheckpointError` if no layer fits.
    """
    taken = {kind: _copy_layers(network, source.networks.get(kind, {})) for kind, network in networks.items()}
    if not any(taken.values()):
        raise CheckpointError(f"{source.file}: none of its weights fit these networks.", KINDS)
    shares = [_share_of(kind, networks[kind].state_dict(), taken[kind]) for kind in ("generator", "discriminator")]
    name, _ = split_init(source.init)
    of = name if name == str(source.file) else f"{name} ({source.file})"
    return f"Starting from {of}: {' and '.join(shares)}. Optimizers and counters begin anew."


def _copy_layers(network: nn.Module, theirs: Mapping[str, Tensor]) -> set[str]:
    """Copies each layer whose tensors are all there in the same shape; returns the names of the tensors."""
    ours, taken = network.state_dict(), set[str]()
    for _, names in groupby(ours, key=lambda name: name.rpartition(".")[0]):
        layer = list(names)
        if all(name in theirs and theirs[name].shape == ours[name].shape for name in layer):
            taken.update(layer)
            for name in layer:
                ours[name].copy_(theirs[name])
    return taken


def _share_of(kind: str, ours: Mapping[str, Tensor], taken: set[str]) -> str:
    if not taken:
        return f"none of the {kind}'s weights"
    share = sum(ours[name].numel() for name in taken) / sum(tensor.numel() for tensor in ours.values())
    new = ", ".join(map(str, sorted({4 << _level(name) for name in ours.keys() - taken})))
    return f"{100 * share:.3g} % of the {kind}'s weights{f' (new: {new} px)' if new else ''}"


def _level(name: str) -> int:
    """The index of the scale that a tensor belongs to: block 0 is between 4 and 8 px."""
    found = re.match(r"(blocks|to_rgb|from_rgb)\.(\d+)\.", name)
    return int(found[2]) + (found[1] == "blocks") if found else 0


def _as_options(values: Mapping[str, Any], name: str) -> str:
    return " ".join(to_argv(TrainConfig(**{name: values[name]})))


# --- Reading ----------------------------------------------------------------------------------------------------------


def _find(name: str, runs_dir: Path) -> Path:
    """The path of a run or a file. The trials of a sweep are in its folder `trials`, beside which the run is not."""
    folder = runs_dir.parent.parent if runs_dir.name == "trials" else runs_dir
    if path := next((path for path in (folder / name, Path(name)) if path.exists()), None):
        return path
    meant = did_you_mean(nearest(name, os.listdir(folder) if folder.is_dir() else ()))
    hint = f"{KINDS} A run on Azure has to be downloaded first: msggan-aml download NAME"
    raise UsageError([f"--init {name}: no such run in {folder}, and no such file.{meant}"], hint)


def _file_of_run(folder: Path) -> Path:
    """The newest checkpoint of a run, or its generator if it has none. Raises `CheckpointError` if it has neither."""
    checkpoint, _ = newest_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        return chosen_weights(folder)
    return folder / "checkpoints" / f"{checkpoint.images_seen:09d}.safetensors"


def _read(file: Path) -> tuple[Networks, dict[str, Any], str]:
    """The networks, the options and the SHA-256 of a checkpoint, or of a file with a generator alone."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        run = file.parent.parent / "config.json"  # of a checkpoint, which does not have a configuration itself
        content = metadata.get("config") or (run.read_bytes() if file.parent.name == "checkpoints" else "{}")
        values = {name: value for name, value in json.loads(content).items() if name not in NO_FIELDS}
        stored = stored_fields(values, needed=("resolution", "latent_size", "equalized"))
        tensors = load_file(file)
    except UsageError as error:
        raise CheckpointError(f"{file}: cannot be read as weights of msggan: {error.message}.", KINDS) from error
    except UNREADABLE as error:
        raise CheckpointError(f"{file}: is not a file of weights ({reason_of(error)}).", KINDS) from error
    networks = {kind: part for kind in LEGACY_NETWORKS if (part := part_of(tensors, kind))} or {"generator": tensors}
    options = {name: stored[name] for name in ("resolution", *OPTIONS)}
    return networks, options, metadata.get("sha256") or sha256_of(file)


def _read_legacy(file: Path) -> tuple[Networks, dict[str, Any], str]:
    """The networks of BMSG-GAN that were saved with this one, their options, and the SHA-256 of this one's file."""
    if found := LEGACY_NAME.fullmatch(file.name):
        beside = {kind: file.with_name(f"GAN_{part}_{found[2]}.pth") for kind, part in LEGACY_NETWORKS.items()}
        networks = {kind: load_legacy(path) for kind, path in beside.items() if path.exists()}
    else:
        weights = load_legacy(file)
        networks = {"generator": weights} if "first.conv_1.weight" in weights else {"discriminator": weights}
    try:
        depth, latent_size, is_equalized = sizes_of(next(iter(networks.values())))
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{file}: is not a network of BMSG-GAN.", KINDS) from error
    options = {"resolution": 2 << depth, "latent_size": latent_size, "equalized": is_equalized}
    return networks, {**options, "resampling": "nearest", "join": "lin-cat"}, sha256_of(file)
