"""How many operations does a training step launch on its device, and how often does it wait for the device?

The figures are exact on any machine and need no GPU: a mode of PyTorch sees every operation that reaches a device, also
in the backward pass. On a GPU each is at least one kernel, which takes some microseconds to launch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from msggan.config import TrainConfig, resolve
from msggan.randomness import latents
from msggan.steps import TrainingState

# Neither views of a tensor nor memory without contents launch anything.
SILENT = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach")
# Their results, or the sizes of these, are needed by the program, so that it waits for the device.
SYNCHRONIZING = (
    "_local_scalar_dense",  # item, float, bool, int, a bound of a slice that is a tensor
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "allclose",
    "is_nonzero",
)


class Operations(TorchDispatchMode):
    """Within, counts what is launched by name, and those of them that make the program wait for the device.

    It does not see `tolist`, `numpy` and `cpu` of a tensor that is on the CPU already.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.synchronizing: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in SILENT:
            self.launched[name] += 1
            if name in SYNCHRONIZING or _waits_for_a_size(func, args):
                self.synchronizing[str(func)] += 1
        return func(*args, **(kwargs or {}))


def _waits_for_a_size(func: Any, args: Any) -> bool:
    """Indexing with a mask, and repeating each element its own number of times."""
    if func.overloadpacket.__name__ in ("index", "index_put", "index_put_", "_unsafe_index"):
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return str(func) == "aten.repeat_interleave.Tensor"


def operations_of(call: Callable[[], object]) -> Operations:
    with Operations() as operations:
        call()
    return operations


def step_operations(resolution: int, **options: Any) -> dict[str, Operations]:
    """Of a step and of one with penalties, of recipe `auto` in bfloat16 on the CPU.

    The networks are narrow, which does not change the number: one at 256 px takes a second instead of a minute.
    """
    asked = TrainConfig(resolution=resolution, **{"latent_size": 32, "precision": "bfloat16", **options})
    config = resolve(asked, shorter_side_px=resolution, device="cpu", has_fast_bfloat16=True)
    state = TrainingState(config, torch.device("cpu"))
    reals = torch.rand(config.batch_size, 3, resolution, resolution) * 2 - 1
    drawn = latents(0, range(config.batch_size), config.latent_size)
    state.step(reals, drawn)
    counted = [operations_of(lambda: state.step(reals, drawn)) for _ in range(config.penalty_interval)]
    return {"step": counted[0], "step with penalties": counted[-1]}


if __name__ == "__main__":
    for px in (32, 256):
        for kind, operations in step_operations(px).items():
            print(f"{px} px, {kind}: {operations.launched.total()}, waits {operations.synchronizing.total()}")  # noqa: T201
            print("  " + ", ".join(f"{name} {count}" for name, count in operations.launched.most_common(12)))  # noqa: T201
