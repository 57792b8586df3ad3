"""The device: choosing it, whether it has units for bfloat16, and recognizing that its memory is too small."""

from __future__ import annotations

import ctypes
import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import torch

from msggan.errors import OutOfMemoryError, UsageError
from msggan.resources import machine_memory

# torch raises a plain RuntimeError if the CPU, Apple's GPU or a CUDA library cannot allocate memory, Python if a thread
# has no memory for its stack, and an ImportError if a library has none for its code.
NO_MEMORY = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory|out of memory|bad_?\s?alloc"
    r"|can't start new thread|failed to map segment|cannot allocate memory"
    r"|could not create a primitive$"  # oneDNN has chosen an implementation, and has no memory for its code
    r"|CU(DNN|BLAS|SOLVER|FFT)_STATUS_(INTERNAL_ERROR_\w*)?ALLOC(ATION)?_FAILED",
    re.IGNORECASE | re.MULTILINE,
)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_MMAP_THRESHOLD_BYTES = 2**25  # glibc refuses larger ones, and raises its own up to this one


def choose_device(name: str) -> torch.device:
    """The device of a name, `auto` being CUDA, else Apple's GPU, else the CPU. Raises `UsageError` if not available."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises AssertionError if not compiled with CUDA
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError([f"--device {name}: is not available ({reason})."], "Try --device cpu.") from error
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has units for bfloat16 arithmetic, instead of emulating it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # A release of torch that does not have one of these functions cannot use the units either.
        features = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, feature, bool)() for feature in features)
    return False


def device_memory(device: torch.device) -> int | None:
    """The bytes of memory that the device has, None if that is unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return machine_memory()  # Apple's GPUs share it


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process has had so far: of a CUDA device's memory, else of the machine's.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    with suppress(ImportError):  # Windows
        from resource import RUSAGE_SELF, getrusage

        # In KiB, on macOS in bytes. It includes what a program had that became this one, as a shell that ran `exec`.
        return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None


def convolution_settings(device: torch.device) -> AbstractContextManager[object]:
    """Within, cuDNN tries out its convolutions and uses the fastest, and float32 is float32 and not TF32.

    No effect on other devices than CUDA.
    """
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or its cause, is a failed memory allocation, on the CPU or on a device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError | ImportError) and NO_MEMORY.search(str(error)):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


@contextmanager
def reusing_memory(device: torch.device) -> Iterator[None]:
    """Within, tensors on the CPU are put where others have been freed, if the C library is glibc.

    By default, glibc returns freed tensors to the system at once. The pages of the next ones are then new to the
    process and have to be cleared: up to 40 % of a step's time. Only tensors of more than 32 MiB are still returned.
    """
    if device.type != "cpu":
        yield
        return
    _set_malloc_options(trim_threshold=-1, mmap_threshold=LARGEST_MMAP_THRESHOLD_BYTES)
    try:
        yield
    finally:
        _set_malloc_options(trim_threshold=2**26, mmap_threshold=LARGEST_MMAP_THRESHOLD_BYTES)  # as after large tensors


def release_memory(device: torch.device) -> None:
    """Returns freed memory, so that what does not fit now may fit in smaller parts.

    The holes that glibc keeps do not fit what differs in size, or another library's code. Afterwards, it returns each
    freed tensor at once, which makes training on the CPU slower, in less memory.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        _set_malloc_options(trim_threshold=2**17, mmap_threshold=2**16)


def _set_malloc_options(*, trim_threshold: int, mmap_threshold: int) -> None:
    """Also returns what can be returned now. No effect with other C libraries than glibc."""
    if sys.platform != "linux":
        return
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, trim_threshold)
        libc.mallopt(M_MMAP_THRESHOLD, mmap_threshold)
        libc.malloc_trim(0)


@contextmanager
def memory_errors(explain: Callable[[], OutOfMemoryError]) -> Iterator[None]:
    """Within, a failed allocation raises the error that `explain` returns."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise explain() from error
