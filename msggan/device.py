"""Which processor trains, whether it is built for bfloat16, and what an error says where its memory is too small."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from msggan.errors import OutOfMemoryError, UsageError

# A RuntimeError is all that torch raises where the CPU, Apple's GPU or a library of CUDA's cannot allocate.
NO_MEMORY = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory|out of memory|bad_?\s?alloc"
    r"|CU(DNN|BLAS|SOLVER|FFT)_STATUS_(INTERNAL_ERROR_\w*)?ALLOC(ATION)?_FAILED",
    re.IGNORECASE,
)


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or its cause, is that memory could not be allocated, on the CPU or on a device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


@contextmanager
def memory_errors(explain: Callable[[], OutOfMemoryError]) -> Iterator[None]:
    """Within, what cannot be allocated raises the error that `explain` returns."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise explain() from error


def _cpu_says(question: str) -> bool:
    """Asks torch about the CPU; a release that does not know the question counts as no."""
    return bool(getattr(torch.cpu, question, bool)())
