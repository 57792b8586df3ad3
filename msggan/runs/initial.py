"""The weights that a run starts from (`--init`): found, checked, and taken over as far as they fit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file
from torch import Tensor, nn

from msggan.commands.options import path_problems, to_argv
from msggan.config import TrainConfig, explicit_values, split_init
from msggan.errors import CheckpointError, UsageError
from msggan.legacy import load_legacy, sizes_of
from msggan.runs.checkpoint import UNREADABLE, chosen_weights, newest_checkpoint, part_of, reason_of
from msggan.runs.files import sha256_of
from msggan.runs.folder import stored_fields

KINDS = "Use the name of a run, one of its .safetensors files, or a .pth file that BMSG-GAN saved."
# With other values of these the same weights are another function. Another resolution only adds or removes scales.
OPTIONS = ("latent_size", "equalized", "resampling", "join")
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


def load_source(init: str, runs_dir: Path) -> Source:
    """init: the name of a run in `runs_dir`, or the path of a run folder or of a file; see `split_init`.

    Raises `UsageError` if there is no such run or file, `CheckpointError` if it has no weights, or not those recorded.
    """
    name, recorded = split_init(init)
    path = runs_dir / name if (runs_dir / name).exists() else Path(name)
    if problems := path_problems(str(path), option="--init "):
        raise UsageError([f"{problems[0]} {runs_dir} has no run of that name either."], KINDS)
    file = _file_of_run(path) if path.is_dir() else path
    networks, options = _read_legacy(file) if file.suffix in (".pth", ".pt") else _read(file)
    digest = sha256_of(file)
    if recorded not in ("", digest):
        raise CheckpointError(
            f"--init {name}: {file} is another file than the recorded one (SHA-256 {digest[:12]}…, not "
            f"{recorded[:12]}…).",
            f"Restore that file, or start from this one: --init {name}",
        )
    return Source(f"{name}@sha256:{digest}", file, networks, options)


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
        raise UsageError(problems, "Omit these options to train as that run, or omit --init.")
    return TrainConfig(**{**theirs, **given, "init": source.init})


def take_over(source: Source, networks: Mapping[str, nn.Module]) -> str:
    """Copies the layers with the same names and shapes; returns a sentence that says how many these are.

    networks: `generator`, `ema` and `discriminator`. Their layers are numbered from 4 px up, so that those of a scale
    have the same names at every resolution. Raises `CheckpointError` if no layer fits.
    """
    taken = {kind: _copy_layers(network, source.networks.get(kind, {})) for kind, network in networks.items()}
    if not any(taken.values()):
        raise CheckpointError(f"{source.file}: none of its weights fits these networks.", KINDS)
    shares = [_share_of(kind, networks[kind].state_dict(), taken[kind]) for kind in ("generator", "discriminator")]
    return f"Starting from {source.file}: {' and '.join(shares)}. Optimizers and counters begin anew."


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


def _file_of_run(folder: Path) -> Path:
    """The newest checkpoint of a run, or its generator if it has none. Raises `CheckpointError` if it has neither."""
    checkpoint, _ = newest_checkpoint(folder / "checkpoints")
    return (
        folder / "checkpoints" / f"{checkpoint.images_seen:09d}.safetensors" if checkpoint else chosen_weights(folder)
    )


def _read(file: Path) -> tuple[Networks, dict[str, Any]]:
    """The networks and options of a checkpoint, or of a file with a generator alone."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        run = file.parent.parent / "config.json"  # of a checkpoint, which does not have a configuration itself
        content = metadata.get("config") or (run.read_bytes() if file.parent.name == "checkpoints" else "{}")
        values = {name: value for name, value in json.loads(content).items() if name != "format_version"}
        stored = stored_fields(values, needed=("resolution", "latent_size", "equalized"))
        tensors = load_file(file)
    except UsageError as error:
        raise CheckpointError(f"{file}: is not weights of this msggan: {error.message}.", KINDS) from error
    except UNREADABLE as error:
        raise CheckpointError(f"{file}: is not a file of weights ({reason_of(error)}).", KINDS) from error
    networks = {kind: part_of(tensors, kind) for kind in LEGACY_NETWORKS}
    if not any(networks.values()):
        networks = {"generator": tensors, "ema": tensors}
    return networks, {name: stored[name] for name in ("resolution", *OPTIONS)}


def _read_legacy(file: Path) -> tuple[Networks, dict[str, Any]]:
    """The networks of BMSG-GAN that were saved with this one, and their options."""
    found = LEGACY_NAME.fullmatch(file.name)
    beside = (
        {kind: file.with_name(f"GAN_{part}_{found[2]}.pth") for kind, part in LEGACY_NETWORKS.items()} if found else {}
    )
    networks = {kind: load_legacy(path) for kind, path in beside.items() if path.exists()}
    if not found:
        weights = load_legacy(file)
        networks = {"generator": weights} if "first.conv_1.weight" in weights else {"discriminator": weights}
    for kind, other in (("ema", "generator"), ("generator", "ema")):
        if other in networks:
            networks.setdefault(kind, networks[other])
    try:
        depth, latent_size, is_equalized = sizes_of(next(iter(networks.values())))
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{file}: is not a network of BMSG-GAN.", KINDS) from error
    options = {"resolution": 2 << depth, "latent_size": latent_size, "equalized": is_equalized}
    return networks, {**options, "resampling": "nearest", "join": "lin-cat"}
