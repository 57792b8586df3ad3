"""Which processor trains, and whether it is built for bfloat16."""

from __future__ import annotations

import torch

from msggan.errors import UsageError


def choose_device(name: str) -> torch.device:
    """`auto` takes a CUDA device where there is one, then Apple's, then the CPU. Raises `UsageError` if absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch says "not compiled with CUDA" by an assertion
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError([f"--device {name}: cannot be used here ({reason})."], "Try --device cpu.") from error
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is done by units of its own and not imitated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return any(_cpu_says(question) for question in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return False


def _cpu_says(question: str) -> bool:
    """Asks torch about the CPU; a release that does not know the question counts as no."""
    return bool(getattr(torch.cpu, question, bool)())
