"""Reads weights that BMSG-GAN's own code saved (`GAN_GEN_SHADOW_12.pth` and the like): the one place for .pth files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from msggan.errors import CheckpointError

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
    return {_converted(name, rules): tensor for name, tensor in plain.items()}


def _converted(name: str, rules: tuple) -> str:  # type: ignore[type-arg]  # pairs of pattern and function
    for pattern, ours in rules:
        if match := re.fullmatch(pattern, name):
            return str(ours(match))
    raise CheckpointError(f"{name}: no weight of BMSG-GAN has this name.", "Give a state dict that BMSG-GAN saved.")
