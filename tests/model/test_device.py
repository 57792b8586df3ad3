"""Out of memory: recognized, on the CPU under a real limit, and explained with a next step."""

from __future__ import annotations

import errno
import json
import platform
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.builders import save_run
from support.programs import Ended, environment

from msggan.device import is_out_of_memory, release_memory, reusing_memory
from msggan.errors import ExportError

# What a process may use beyond its modules, in MiB, is its first argument; the second is the program that it runs.
LIMITED = """
import importlib, numpy.random, re, resource, sys
import msggan.pictures.onnx_model, msggan.pictures.sampler, msggan.trainer
mib, program = int(sys.argv.pop(1)), importlib.import_module(sys.argv.pop(1))
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + mib * 2**20,) * 2)
program.main()
"""

limitable = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory can be limited on Linux")


def run_limited(mib: int, program: str, *args: object) -> Ended:
    command = [sys.executable, "-c", LIMITED, str(mib), program, *map(str, args), "-o", "json"]
    variables = environment(MALLOC_ARENA_MAX="1")
    ended = subprocess.run(command, env=variables, capture_output=True, encoding="utf-8", check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def train_limited(mib: int, data: Path, run_dir: Path) -> Ended:
    """The networks take 200 MiB, and with Adam's averages and the average of the weights 700."""
    args = ["--resolution", 8, "--latent-size", 512, "--batch-size", 8, "--kimg", 0.1, "--workers", 1]
    return run_limited(mib, "msggan.train", "--data", data, "--run-dir", run_dir, "--device", "cpu", *args)


# Two steps of 64 images, which may use as many MiB beyond the networks as the first argument says.
LIMITED_STEPS = """
import re, resource, sys, torch
from msggan.config import TrainConfig, resolve
from msggan.device import reusing_memory
from msggan.randomness import latents
from msggan.steps import TrainingState
asked = TrainConfig(resolution=64, latent_size=32, batch_size=64, precision="float32")
config = resolve(asked, shorter_side_px=64, device="cpu", has_fast_bfloat16=False)
state = TrainingState(config, torch.device("cpu"))
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
with reusing_memory(state.device):
    for step in range(2):
        state.step(torch.zeros(64, 3, 64, 64), latents(0, range(64), 32))
updates = {int(value) for name, value in state.tensors().items() if name.endswith(".step")}
print(state.part, state.images_seen, *updates)
"""


@limitable
@pytest.mark.slow
def test_a_step_is_computed_in_parts_where_memory_does_not_suffice_for_its_batch() -> None:
    """Under the first limit that its smallest parts fit into, found from below."""
    for mib in range(180, 1000, 40):
        command = [sys.executable, "-c", LIMITED_STEPS, str(mib)]
        ended = subprocess.run(command, env=environment(), capture_output=True, encoding="utf-8", check=False)
        if ended.returncode == 0:
            break
    assert ended.returncode == 0, ended.stderr
    part, images, *updates = map(int, ended.stdout.split())
    assert (images, updates) == (128, [2])
    assert part < 64


@limitable
def test_training_with_too_little_memory_names_the_sizes_and_what_to_change(tiny_images: Path, tmp_path: Path) -> None:
    """In the constructor, where nothing has been written."""
    ended = train_limited(100, tiny_images, tmp_path / "run")
    error = ended.json["error"]
    assert (ended.exit_code, error["code"]) == (1, "memory"), ended.stderr
    assert error["message"] == "Out of memory on cpu at --resolution 8, --latent-size 512, --batch-size 8."
    assert error["hint"] == "Use a smaller --batch-size, --resolution or --latent-size."
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


# A run that may use as many MiB beyond what its constructor has taken as its third argument says.
LIMITED_RUN = """
import json, re, resource, sys
from msggan import TrainConfig, Trainer
from msggan.errors import OutOfMemoryError
config = TrainConfig(resolution=8, latent_size=512, batch_size=8, kimg=0.1)
trainer = Trainer(config, data=sys.argv[1], run_dir=sys.argv[2], device="cpu", workers=1)
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]) * 2**20,) * 2)
try:
    trainer.run()
except OutOfMemoryError as error:
    print(json.dumps(error.as_json()))
"""


@limitable
@pytest.mark.slow
def test_a_run_that_has_started_fails_for_too_little_memory(tiny_images: Path, tmp_path: Path) -> None:
    """Its first step, for the gradients of 200 MiB.

    Under the first limit at which an allocation of PyTorch fails, and not one of a library that does not check it.
    """
    variables = environment(MALLOC_ARENA_MAX="1")
    for mib in (60, 50, 70):
        command = [sys.executable, "-c", LIMITED_RUN, str(tiny_images), str(tmp_path / "run"), str(mib)]
        ended = subprocess.run(command, env=variables, capture_output=True, encoding="utf-8", check=False)
        if ended.returncode != -signal.SIGSEGV:
            break
    assert ended.returncode == 0, ended.stderr
    error = json.loads(ended.stdout)["error"]
    assert error["message"] == "Out of memory on cpu at --resolution 8, --latent-size 512, --batch-size 8."
    assert error["hint"].endswith("and another name: a run that has started keeps its own.")
    assert "Failed: Out of memory on cpu" in (tmp_path / "run" / "log.txt").read_text()


@limitable
@pytest.mark.parametrize(
    ("program", "args", "message"),
    [
        ("msggan.sample", ["--num", "2"], "Out of memory while making pictures"),
        pytest.param(
            *("msggan.export", ["--onnx", "out.onnx"], "Out of memory while exporting"), marks=pytest.mark.slow
        ),
    ],
)
def test_using_a_network_with_too_little_memory_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run_limited(20, program, "--run-dir", save_run(tmp_path / "run", latent_size=512), *args)
    error = ended.json["error"]
    assert (ended.exit_code, error["code"]) == (1, "memory"), ended.stderr
    assert error["message"].startswith(message)
    assert error["hint"]
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_tensors_take_the_memory_of_freed_ones_while_training() -> None:
    """Which the page faults show: the first access to each page that is new to the process."""

    def page_faults() -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        tensors = [torch.ones(2**24, dtype=torch.uint8) for _ in range(12)]
        del tensors
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    of_one_tensor = 2**24 // resource.getpagesize()
    release_memory(torch.device("cpu"))
    assert page_faults() > 4 * of_one_tensor  # freed tensors are returned at once
    with reusing_memory(torch.device("cpu")):
        for _ in range(5):
            page_faults()
        assert page_faults() < of_one_tensor
    assert page_faults() > 4 * of_one_tensor  # what was kept has been returned


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ...",
        "[enforce fail at ..\\c10\\core\\impl\\alloc_cpu.cpp:72] data. DefaultCPUAllocator: not enough memory",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "MPS backend out of memory (MPS allocated: 9.05 GB, other allocations: 1.2 MB, max allowed: 9.07 GB).",
        "std::bad_alloc",
        "can't start new thread",
    ],
)
def test_the_messages_of_torch_for_too_little_memory_are_recognized(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


def test_memory_errors_are_recognized_by_type_or_cause() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert is_out_of_memory(ImportError("libx265.so.217: failed to map segment from shared object"))
    wrapped = ExportError("torch could not make an ONNX model.")
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_are_not_recognized_as_memory_errors(error: Exception) -> None:
    assert not is_out_of_memory(error)
