"""The memory and the disk space of a run: computed from its shapes, and held against real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.programs import Ended, environment

from msggan.config import TrainConfig, resolve
from msggan.errors import RefusedError
from msggan.networks import Discriminator, Generator
from msggan.resources import _weights, as_size, check, plan

# Trains a run in the working directory, and prints the planned and the highest resident memory of this process.
PROGRAM = """
import json, re, sys
from msggan import TrainConfig, Trainer
from msggan.resources import plan
trainer = Trainer(TrainConfig(**json.loads(sys.argv[1])), data=sys.argv[2], run_dir="run", device="cpu")
trainer.run()
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
images = 3 * trainer.dataset.training * trainer.config.resolution**2
print(plan(trainer.config, image_bytes=images).memory_bytes, peak)
"""


def resolved(resolution: int, latent_size: int, **options: object) -> TrainConfig:
    config = TrainConfig(resolution=resolution, latent_size=latent_size, **options)  # type: ignore[arg-type]
    return resolve(config, shorter_side_px=resolution, device="cpu", has_fast_bfloat16=False)


@pytest.mark.parametrize(
    ("resolution", "latent_size", "join"),
    [(4, 64, "lin-cat"), (8, 32, "lin-cat"), (64, 64, "simple"), (512, 64, "lin-cat")],
)
def test_the_weights_are_those_of_the_networks(resolution: int, latent_size: int, join: str) -> None:
    depth = resolution.bit_length() - 2
    networks = [Generator(depth, latent_size), Discriminator(depth, latent_size, join=join)]
    counted = [sum(weight.numel() for weight in network.parameters()) for network in networks]
    assert _weights(resolved(resolution, latent_size, join=join)) == pytest.approx(counted, rel=0.03)


def test_more_of_anything_needs_more() -> None:
    base, memory = resolved(64, 64), plan(resolved(64, 64, batch_size=32)).memory_bytes
    for larger in (resolved(128, 64, batch_size=32), resolved(64, 128, batch_size=32), resolved(64, 64, batch_size=64)):
        assert plan(larger).memory_bytes > memory
    for smaller in ({"r2_gamma": 0.0}, {"micro_batch": 4}, {"precision": "bfloat16"}):
        assert plan(resolved(64, 64, batch_size=32, **smaller)).memory_bytes < memory
    for more in ({"kimg": 200.0, "sample_kimg": 5.0}, {"snapshot_kimg": 10.0}):
        assert plan(resolved(64, 64, **more)).disk_bytes > plan(base).disk_bytes


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_cannot_fit_is_refused_with_what_fits(tmp_path: Path, device: str) -> None:
    config = resolved(1024, 256, batch_size=16)
    needed = plan(config, device=device).memory_bytes
    sentence = check(config, tmp_path, device, needed)
    assert sentence.startswith(f"This run needs about {as_size(needed)} of memory and ")
    assert f"; {device} has {as_size(needed)}, and the disk has " in sentence
    with pytest.raises(RefusedError, match=rf"of memory on {device}, which has 2\.0 GiB\.") as raised:
        check(config, tmp_path, device, 2 * 2**30)
    assert raised.value.exit_code == 3
    assert raised.value.hint == "Use --resolution 512 --micro-batch 1, or a smaller --latent-size."
    if device == "cpu":
        with pytest.raises(RefusedError) as raised:
            check(config, tmp_path, device, 8 * 2**30)
        assert raised.value.hint == "Use --micro-batch 2, or a smaller --latent-size."
    else:  # it finds out by itself which parts fit
        check(config, tmp_path, device, 8 * 2**30)


def test_a_disk_that_will_be_full_before_the_end_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with pytest.raises(RefusedError, match=r"runs/one: the run needs about .* disk space, and .* free"):
        check(resolved(256, 256, kimg=1e9, sample_kimg=0.01), folder, "cpu", None)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_refused_before_an_image_is_decoded(
    run_program: Callable[..., Ended], tiny_images: Path, tmp_path: Path
) -> None:
    (tiny_images / "broken.png").write_bytes(b"never read")
    sizes = ["--resolution", 1024, "--latent-size", 512, "--batch-size", 32768, "--device", "cpu"]
    ended = run_program("msggan.train", "--data", tiny_images, "--run-dir", "run", *sizes, "-o", "json")
    assert (ended.exit_code, ended.json["error"]["code"]) == (3, "refused")
    assert "of memory on cpu, which has" in ended.stderr
    assert "broken.png" not in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux reports the peak of a process")
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"resolution": 32, "latent_size": 64, "batch_size": 4},
        {"resolution": 64, "latent_size": 128, "batch_size": 4, "r1_gamma": 0.0, "r2_gamma": 0.0},
        {"resolution": 64, "latent_size": 64, "batch_size": 16, "micro_batch": 4, "precision": "bfloat16"},
        {"resolution": 512, "latent_size": 32, "batch_size": 2, "num_samples": 4},
        {"resolution": 1024, "latent_size": 32, "batch_size": 2, "micro_batch": 1, "num_samples": 4},
    ],
)
def test_the_plan_is_within_a_fifth_of_the_peak_of_a_process(
    options: dict[str, float], tiny_images: Path, tmp_path: Path
) -> None:
    """Two steps, of which the first has penalties, samples, an evaluation and a checkpoint."""
    options = {"precision": "float32", "kimg": 2 * options["batch_size"] / 1000, **options}
    command = [sys.executable, "-c", PROGRAM, json.dumps(options), str(tiny_images)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 0, ended.stderr
    planned, peak = map(int, ended.stdout.split())
    assert f"This run needs about {as_size(planned)} of memory and " in ended.stderr
    assert planned == pytest.approx(peak, rel=0.2)
