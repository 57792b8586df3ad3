"""How do weights come from BMSG-GAN's own files (`GAN_GEN_SHADOW_12.pth`) and go back? The one place for .pth files."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from msggan.errors import CheckpointError
from msggan.runs.files import write_whole

GENERATOR_NAMES = (
    (r"layers\.0\.(.+)", lambda match: f"first.{match[1]}"),
    (r"layers\.(\d+)\.(.+)", lambda match: f"blocks.{int(match[1]) - 1}.{match[2]}"),
    (r"rgb_converters\.(.+)", lambda match: f"to_rgb.{match[1]}"),
)
DISCRIMINATOR_NAMES = (
    (r"layers\.(.+)", lambda match: f"blocks.{match[1]}"),
    (r"final_converter\.(.+)", lambda match: f"from_rgb.0.{match[1]}"),
    (r"rgb_to_features\.(\d+)\.(.+)", lambda match: f"from_rgb.{int(match[1]) + 1}.{match[2]}"),
    (r"final_block\.(.+)", lambda match: f"last.{match[1]}"),
)
# The way back.
OUR_GENERATOR_NAMES = (
    (r"first\.(.+)", lambda match: f"layers.0.{match[1]}"),
    (r"blocks\.(\d+)\.(.+)", lambda match: f"layers.{int(match[1]) + 1}.{match[2]}"),
    (r"to_rgb\.(.+)", lambda match: f"rgb_converters.{match[1]}"),
)
OUR_DISCRIMINATOR_NAMES = (
    (r"blocks\.(.+)", lambda match: f"layers.{match[1]}"),
    (r"from_rgb\.0\.(.+)", lambda match: f"final_converter.{match[1]}"),
    (r"from_rgb\.(\d+)\.(.+)", lambda match: f"rgb_to_features.{int(match[1]) - 1}.{match[2]}"),
    (r"last\.(.+)", lambda match: f"final_block.{match[1]}"),
)
# What BMSG-GAN wraps for data parallelism: the generator as a whole, the discriminator's layers one by one.
WRAPPED_IN_GENERATOR = r"^"
WRAPPED_IN_DISCRIMINATOR = r"^(layers|rgb_to_features)\.\d+\."


def load_legacy(path: str | Path) -> dict[str, Tensor]:
    """A .pth state dict of BMSG-GAN's generator or discriminator, under our names.

    Only tensors are read (`weights_only`): a file that holds code raises `CheckpointError` and executes nothing.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.", "Give the path of a .pth file that BMSG-GAN saved.") from None
    except Exception as error:  # a damaged file makes torch's reader fail in any way at all
        raise CheckpointError(
            f"{path}: is not a file of plain weights.", "Only state dicts of tensors are read; code in a file is not."
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f"{path}: holds no state dict.", "Give a GAN_GEN_*.pth or GAN_DIS_*.pth of BMSG-GAN.")
    return convert_state_dict(state)


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BMSG-GAN's names → ours, for a generator or a discriminator, with or without `module.` anywhere in them.

    Raises `CheckpointError` for a name that is in neither network.
    """
    plain = {re.sub(r"\bmodule\.", "", name): tensor for name, tensor in state.items()}
    rules = GENERATOR_NAMES if any(name.startswith("rgb_converters.") for name in plain) else DISCRIMINATOR_NAMES
    return {
        _renamed(name, rules, network="BMSG-GAN", hint="Give a state dict that BMSG-GAN saved."): tensor
        for name, tensor in plain.items()
    }


def to_legacy_state_dict(state: Mapping[str, Tensor], *, data_parallel: bool = False) -> dict[str, Tensor]:
    """Our names → BMSG-GAN's, for a generator or a discriminator: the inverse of `convert_state_dict`.

    data_parallel: spelt as BMSG-GAN saves and loads them on a GPU, with `module.` where it wraps its networks; without,
    as on a CPU. Raises `CheckpointError` for a name that is in neither network.
    """
    is_generator = any(name.startswith("to_rgb.") for name in state)
    rules = OUR_GENERATOR_NAMES if is_generator else OUR_DISCRIMINATOR_NAMES
    wrapped = WRAPPED_IN_GENERATOR if is_generator else WRAPPED_IN_DISCRIMINATOR
    theirs = {
        _renamed(name, rules, network="our networks", hint="Give the state dict of one of them."): tensor
        for name, tensor in state.items()
    }
    if not data_parallel:
        return theirs
    return {re.sub(wrapped, r"\g<0>module.", name): tensor for name, tensor in theirs.items()}


def save_legacy(path: Path, state: Mapping[str, Tensor], *, data_parallel: bool = True) -> None:
    """Writes a state dict of ours as a .pth file of tensors alone, under BMSG-GAN's names; whole or not at all.

    BMSG-GAN's programs that make pictures wrap the generator for data parallelism on any machine, and so does its
    training on a GPU; its training on a CPU wants `data_parallel=False`. Raises `OSError` as the disk does.
    """
    theirs = to_legacy_state_dict(state, data_parallel=data_parallel)
    content = io.BytesIO()
    # Copies: a part of a larger tensor would take all of that along.
    torch.save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in theirs.items()}, content)
    write_whole(path, content.getvalue())


def _renamed(name: str, rules: tuple, *, network: str, hint: str) -> str:  # type: ignore[type-arg]  # pattern, function
    for pattern, other in rules:
        if match := re.fullmatch(pattern, name):
            return str(other(match))
    raise CheckpointError(f"{name}: no weight of {network} has this name.", hint)
