"""Weights of BMSG-GAN (`GAN_GEN_SHADOW_12.pth`): load them, import them as a run, and write them."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from msggan.errors import CheckpointError, RunFolderError
from msggan.networks import Generator
from msggan.runs.checkpoint import check_shapes, save_generator
from msggan.runs.files import write_whole
from msggan.runs.folder import RunFolder, record_end, record_start

# (BMSG-GAN's prefix, ours, how much smaller our index N is); the first pair that fits a name applies.
GENERATOR_NAMES = (("layers.0", "first", 0), ("layers.N", "blocks.N", 1), ("rgb_converters", "to_rgb", 0))
DISCRIMINATOR_NAMES = (
    ("layers", "blocks", 0),
    ("final_converter", "from_rgb.0", 0),
    ("rgb_to_features.N", "from_rgb.N", -1),
    ("final_block", "last", 0),
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
        raise CheckpointError(f"No such file: {path}", "Specify a .pth file that BMSG-GAN saved.") from None
    except Exception as error:  # torch raises anything for a damaged file
        raise CheckpointError(
            f"{path}: is not a file of weights.", "Only state dicts of tensors are read; code is never executed."
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CheckpointError(
            f"{path}: is not a state dict.", "Specify a GAN_GEN_*.pth or GAN_DIS_*.pth file that BMSG-GAN saved."
        )
    return convert_state_dict(state)


def import_generator(path: str | Path, run_dir: str | Path, *, equalized: bool | None = None) -> Path:
    """Creates a run folder from a generator that BMSG-GAN saved; returns its path.

    `msggan-aml sample` and `export`, `load_generator` and `Run` accept the folder. It cannot be trained further, which
    needs the discriminator and the optimizers too. The depth and the latent size are read from the weights'
    shapes, and equalized, unless specified, from their size. Raises `CheckpointError` if the file is not a whole
    generator, `RunFolderError` if `run_dir` is not a new or empty folder.
    """
    folder = RunFolder(run_dir)
    if folder.path.exists() and not (folder.path.is_dir() and not any(folder.path.iterdir())):
        raise RunFolderError(f"{folder}: is not an empty folder.", "Specify a folder that does not exist yet.")
    weights = load_legacy(path)
    generator = _generator_of(path, weights, equalized)
    config = folder.prepare_imported(generator)
    save_generator(folder.generator, weights, config)
    state = record_start(folder, data=str(path), images_seen=0)
    record_end(folder, state, "completed", images_seen=0, reason=f"Imported from {path}.")
    return folder.path


def _generator_of(path: str | Path, weights: Mapping[str, Tensor], equalized: bool | None) -> Generator:
    """An untrained generator that the weights fit."""
    try:
        depth, latent_size, is_equalized = sizes_of(weights)
        generator = Generator(depth, latent_size, equalized=is_equalized if equalized is None else equalized)
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is not a whole generator of BMSG-GAN.", "Specify a GAN_GEN_*.pth file that BMSG-GAN saved."
        ) from error
    check_shapes(path, generator.state_dict(), weights)
    return generator


def sizes_of(weights: Mapping[str, Tensor]) -> tuple[int, int, bool]:
    """depth, latent_size and equalized of a generator or a discriminator. Raises `KeyError` for other weights."""
    depth = len([name for name in weights if re.fullmatch(r"(to|from)_rgb\.\d+\.weight", name)])
    layer = "first.conv_1.weight" if "first.conv_1.weight" in weights else "last.conv_2.weight"
    return depth, len(weights[layer]), _is_equalized(weights)


def _is_equalized(weights: Mapping[str, Tensor]) -> bool:
    """Whether the convolutions' weights are nearer to N(0, 1), scaled at run time, than to PyTorch's own initial ones.

    Those are uniform with a standard deviation of 1/√(3·fan_in). The names and shapes are the same in both cases.
    """
    kernels = [tensor for name, tensor in weights.items() if re.fullmatch(r".*\.conv_2\.weight", name)]
    evidence = [
        math.log(max(kernel.double().square().mean().item(), 1e-30)) + math.log(3 * kernel[0].numel()) / 2
        for kernel in kernels
    ]
    return sum(evidence) > 0


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BMSG-GAN's names → ours, for a generator or a discriminator, with or without `module.` anywhere in them.

    Raises `CheckpointError` for a name that is in neither network.
    """
    plain = {re.sub(r"\bmodule\.", "", name): tensor for name, tensor in state.items()}
    rules = GENERATOR_NAMES if any(name.startswith("rgb_converters.") for name in plain) else DISCRIMINATOR_NAMES
    return _renamed(plain, rules, network="BMSG-GAN", hint="Specify a state dict that BMSG-GAN saved.")


def to_legacy_state_dict(state: Mapping[str, Tensor], *, data_parallel: bool = False) -> dict[str, Tensor]:
    """Our names → BMSG-GAN's, for a generator or a discriminator: the inverse of `convert_state_dict`.

    data_parallel: the names that BMSG-GAN saves and loads on a GPU, with `module.` where it wraps its networks;
    otherwise those on a CPU. Raises `CheckpointError` for a name that is in neither network.
    """
    is_generator = any(name.startswith("to_rgb.") for name in state)
    names = GENERATOR_NAMES if is_generator else DISCRIMINATOR_NAMES
    rules = [(ours, theirs, -less) for theirs, ours, less in names]
    legacy = _renamed(state, rules, network="our networks", hint="Specify the state dict of one of them.")
    if not data_parallel:
        return legacy
    wrapped = WRAPPED_IN_GENERATOR if is_generator else WRAPPED_IN_DISCRIMINATOR
    return {re.sub(wrapped, r"\g<0>module.", name): tensor for name, tensor in legacy.items()}


def save_legacy(path: Path, state: Mapping[str, Tensor], *, data_parallel: bool = True) -> None:
    """Writes a state dict of ours as a .pth file that BMSG-GAN loads, of tensors only; whole or not at all.

    data_parallel: with `module.` in the names, as BMSG-GAN's sampling on any machine and its training on a GPU load
    them; its training on a CPU needs False. Raises `OSError` if the file cannot be written.
    """
    theirs = to_legacy_state_dict(state, data_parallel=data_parallel)
    content = io.BytesIO()
    # Copies: a view would be saved with the whole tensor that it is a part of.
    torch.save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in theirs.items()}, content)
    write_whole(path, content.getvalue())


def _renamed(
    state: Mapping[str, Tensor], rules: Sequence[tuple[str, str, int]], *, network: str, hint: str
) -> dict[str, Tensor]:
    """The tensors under their new names, by rules of (old prefix, new prefix, how much smaller the new index is)."""
    renamed = {}
    for name, tensor in state.items():
        for old, new, less in rules:
            pattern = re.escape(old).replace("N", r"(?P<index>\d+)") + r"\.(?P<rest>.+)"
            if match := re.fullmatch(pattern, name):
                prefix = new.replace("N", str(int(match["index"]) - less)) if "N" in new else new
                renamed[f"{prefix}.{match['rest']}"] = tensor
                break
        else:
            raise CheckpointError(f"{name!r} is not the name of a weight of {network}.", hint)
    return renamed
