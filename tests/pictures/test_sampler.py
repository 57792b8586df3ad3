"""The pictures of a run: reproducible by seed, complete, and computed in bounded memory."""

from __future__ import annotations

import io
import os
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.builders import CLASSES, save_run
from torch import Tensor

from msggan import Generator, load_generator
from msggan.commands.verbs import SampleOptions
from msggan.errors import CheckpointError, UsageError
from msggan.pictures import sampler
from msggan.pictures.films import interpolation, loop
from msggan.pictures.grids import (
    PADDING_PX,
    TruncatedGenerator,
    all_scales_sheet,
    enlarged,
    generate,
    grid,
    inputs_of,
)
from msggan.pictures.sampler import Sampler
from msggan.randomness import latents
from msggan.runs.checkpoint import save_generator


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_run(tmp_path / "runs" / "one", samples=3)


def sample(run: Path, **options: Any) -> list[Path]:
    return Sampler(run, SampleOptions(device="cpu", **options), messages=io.StringIO()).run()


def problems(run: Path, **options: Any) -> tuple[str, ...]:
    with pytest.raises(UsageError) as raised:
        sample(run, **options)
    return raised.value.problems


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as shown:
        return np.asarray(shown.convert("RGB"))


# Pictures


def test_the_same_seed_gives_the_same_file_whatever_else_is_made(run: Path, tmp_path: Path) -> None:
    many = sample(run, files=True, seeds=range(70), out=str(tmp_path / "many"))
    few = sample(run, files=True, grid=True, seeds=[65, 3], out=str(tmp_path / "few"))
    assert [path.name for path in few] == ["grid_seeds65,3_16px.png", "seed000065_16px.png", "seed000003_16px.png"]
    assert [path.name for path in many] == [f"seed{seed:06d}_16px.png" for seed in range(70)]
    for path in few[1:]:
        assert path.read_bytes() == (tmp_path / "many" / path.name).read_bytes()
    assert len({path.read_bytes() for path in many}) == 70


def test_a_file_is_what_the_generator_makes_of_the_seeds_latent(run: Path) -> None:
    (path,) = sample(run, files=True, seeds=[7])
    (expected,) = generate(load_generator(run), latents(seed=7, positions=[0], latent_size=8))[-1].numpy()
    assert path == run / "generated" / "seed000007_16px.png"
    assert np.array_equal(pixels(path), expected.transpose(1, 2, 0))


@pytest.mark.parametrize("scale", [4, 8, 16])
def test_a_grid_shows_the_same_pictures_at_one_scale_in_order(run: Path, scale: int) -> None:
    (path,) = sample(run, scale=scale, seeds=[9, 1, 2, 4])
    side = 2 * (scale + PADDING_PX) + PADDING_PX
    factor = -(-512 // side)
    assert path.name == f"grid_seeds9,1-2,4_{scale}px.png"
    assert pixels(path).shape == (factor * side, factor * side, 3)
    shown = pixels(path)[::factor, ::factor]
    for position, file in enumerate(sample(run, scale=scale, seeds=[9, 1, 2, 4], files=True)):
        top, left = (PADDING_PX + index * (scale + PADDING_PX) for index in divmod(position, 2))
        assert np.array_equal(shown[top : top + scale, left : left + scale], pixels(file))


def test_a_sheet_shows_all_scales_of_eight_seeds(run: Path) -> None:
    first, second = sample(run, all_scales=True, seeds=range(10))
    assert (first.name, second.name) == ("scales_seeds0-7.png", "scales_seeds8-9.png")
    generator = load_generator(run)
    pyramids = [generate(generator, latents(seed, [0], 8), chunk=1) for seed in (8, 9)]
    expected = all_scales_sheet([torch.cat(level) for level in zip(*pyramids, strict=True)])
    assert np.array_equal(pixels(second), np.asarray(enlarged(expected)))


def test_more_samples_than_fit_a_grid_continue_in_a_second(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "MAX_GRID_PX", 40)  # two columns of 16 and a margin
    paths = sample(run, seeds=range(9))
    assert [path.name for path in paths] == [f"grid_{name}_16px.png" for name in ("seeds0-3", "seeds4-7", "seed8")]
    assert [pixels(path).shape for path in paths] == [(532, 532, 3), (532, 532, 3), (512, 512, 3)]


def test_each_request_has_files_of_its_own(run: Path) -> None:
    """The names say the seeds, the scale and the truncation: nothing has to be forced and nothing is lost."""
    requests: list[dict[str, Any]] = [
        {"seeds": range(5, 21)},
        {"seeds": range(6, 22)},
        {"seeds": [5]},
        {"seeds": range(5, 21), "truncation": 0.7},
        {"seeds": range(5, 21), "scale": 8},
        {"seeds": range(8), "all_scales": True},
        {"seeds": range(8), "all_scales": True, "truncation": 0.5},
        {"seeds": [5], "files": True},
        {"seeds": [5], "files": True, "truncation": 0.7},
    ]
    made = [path.name for options in requests for path in sample(run, **options)]
    assert made == [
        "grid_seeds5-20_16px.png",
        "grid_seeds6-21_16px.png",
        "grid_seed5_16px.png",
        "grid_seeds5-20_16px_trunc0.7.png",
        "grid_seeds5-20_8px.png",
        "scales_seeds0-7.png",
        "scales_seeds0-7_trunc0.5.png",
        "seed000005_16px.png",
        "seed000005_16px_trunc0.7.png",
    ]


def test_a_long_list_of_seeds_has_a_short_name_of_its_own(run: Path) -> None:
    one, other = ([*range(0, 40, 2), last] for last in (99, 98))
    names = [path.name for seeds in (one, other) for path in sample(run, seeds=seeds)]
    assert all(re.fullmatch(r"grid_21seeds-[0-9a-f]{8}_16px\.png", name) for name in names)
    assert len(set(names)) == 2


def test_truncated_pictures_are_nearer_to_each_other(run: Path, tmp_path: Path) -> None:
    spreads = [
        np.stack([pixels(path) for path in sample(run, files=True, truncation=psi, out=str(tmp_path / str(psi)))])
        .std(axis=0)
        .mean()
        for psi in (1.0, 0.5, 0.0)
    ]
    assert spreads[0] > spreads[1] > spreads[2] == 0


def test_weights_without_other_files_are_sufficient(run: Path, tmp_path: Path) -> None:
    weights = (tmp_path / "elsewhere").with_suffix(".safetensors")
    (run / "generator.safetensors").rename(weights)
    (path,) = sample(weights, files=True, seeds=[3], out=str(tmp_path / "out"))
    assert pixels(path).shape == (16, 16, 3)


def test_pictures_of_the_best_weights_and_of_a_snapshot_have_names_of_their_own(run: Path) -> None:
    (run / "snapshots").mkdir()
    for seed, name in enumerate(("generator_best", "snapshots/000010016")):
        torch.manual_seed(2 + seed)
        weights = Generator(3, 8).state_dict()
        save_generator(run / f"{name}.safetensors", weights, {"resolution": 16, "latent_size": 8, "equalized": True})
    (newest,), (best,), (early,) = (sample(run, seeds=[3], **which) for which in ({}, {"best": True}, {"at": 10.0}))
    assert [path.name for path in (best, early)] == ["grid_seed3_16px_best.png", "grid_seed3_16px_at10.016kimg.png"]
    assert len({path.read_bytes() for path in (newest, best, early)}) == 3
    with pytest.raises(CheckpointError, match=r"Snapshots of this run: at 10\.016 kimg"):
        sample(run, at=20.0)
    with pytest.raises(CheckpointError, match="has one generator"):
        sample(run / "generator.safetensors", best=True)


# Classes


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return save_run(tmp_path / "runs" / "labelled", classes=CLASSES)


def test_a_grid_of_classes_has_each_in_a_row_of_the_same_seeds(labelled: Path) -> None:
    (grid_path,) = sample(labelled, seeds=[3, 1])
    assert grid_path.name == "grid_seeds3,1_16px.png"
    files = sample(labelled, seeds=[3, 1], files=True)
    assert [path.name for path in files[:3]] == [
        f"seed{name}_16px.png" for name in ("000003_dress", "000001_dress", "000003_hat")
    ]
    shown = pixels(grid_path)
    factor = shown.shape[1] // (2 * 18 + 2)
    assert shown.shape == (factor * (3 * 18 + 2), factor * (2 * 18 + 2), 3)
    for position, path in enumerate(files):
        top, left = (PADDING_PX + index * 18 for index in divmod(position, 2))
        assert np.array_equal(shown[::factor, ::factor][top : top + 16, left : left + 16], pixels(path))
    generator = load_generator(labelled)
    expected = generate(generator, inputs_of(generator, [1], "hat"))[-1][0].permute(1, 2, 0).numpy()
    assert np.array_equal(pixels(files[3]), expected)
    assert [path.name for path in sample(labelled, label=("hat",), all_scales=True, grid=True)] == [
        "grid_seeds0-15_hat_16px.png",
        "scales_seeds0-7_hat.png",
        "scales_seeds8-15_hat.png",
    ]


def test_a_film_of_one_seed_goes_from_class_to_class(labelled: Path, tmp_path: Path) -> None:
    (path,) = sample(labelled, film="loop.webp", seeds=[3], label=("dress", "shoes"), seconds=0.5)
    generator = load_generator(labelled)
    film = interpolation(generator, [3, 3], tmp_path / "loop.webp", seconds=0.5, labels=["dress", "shoes"])
    assert film.path.read_bytes() == path.read_bytes()
    keys = inputs_of(generator, [3, 3], [0, 2])
    frames = loop(keys, 4, latent_size=8)
    assert torch.allclose(frames[:, :8], keys[[0] * 4, :8])
    assert torch.allclose(frames[:, 8:], torch.tensor([[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1], [0.5, 0, 0.5]]))
    opposite = loop(inputs_of(generator, [3, 4], [0, 2]), 4, latent_size=8)  # of two latents, a great circle
    assert torch.allclose(opposite[:2, :8], -opposite[2:, :8], atol=1e-6)
    assert torch.allclose(opposite[::2, 8:], torch.tensor([[1.0, 0, 0]] * 2))


def test_truncation_leads_to_the_typical_image_of_the_class(labelled: Path) -> None:
    network = TruncatedGenerator(load_generator(labelled), 0.0)
    hats, others = (generate(network, inputs_of(network, range(3), label))[-1] for label in ("hat", "dress"))
    assert (hats == hats[:1]).all()
    assert (others == others[:1]).all()
    assert (hats != others).any()


def test_labels_that_are_not_classes_are_reported(labelled: Path, run: Path) -> None:
    unknown = problems(labelled, label=("hats", "shoes"))
    assert unknown == ("--label hats: must be one of dress, hat, shoes. Did you mean hat?",)
    assert "was not trained with --labels folders" in problems(run, label=("hat",))[0]


# Films


def test_a_loops_frames_are_the_pictures_of_its_latents_enlarged(run: Path) -> None:
    (path,) = sample(run, film="loop.webp", seeds=[3, 7, 9], seconds=0.5, scale=8)
    keys = torch.cat([latents(seed, [0], 8) for seed in (3, 7, 9)])
    expected = generate(load_generator(run), loop(keys, 12), chunk=1)[1].numpy().transpose(0, 2, 3, 1)
    with Image.open(path) as film:
        assert (film.n_frames, film.size) == (12, (256, 256))
        for index in range(12):
            film.seek(index)
            middles = np.asarray(film.convert("RGB"))[16::32, 16::32]  # of pixels 32 times as large
            assert abs(middles.astype(int) - expected[index].astype(int)).mean() < 6


def test_a_film_made_in_python_is_the_one_that_the_command_makes(run: Path, tmp_path: Path) -> None:
    (commands,) = sample(run, film="loop.webp", seeds=[0, 3], seconds=0.5, truncation=0.5)
    generator = TruncatedGenerator(load_generator(run), 0.5)
    film = interpolation(generator, [0, 3], tmp_path / "new" / "loop.webp", seconds=0.5)
    assert film.path.read_bytes() == commands.read_bytes()


def test_a_progress_film_shows_the_runs_grids_in_turn_and_needs_no_weights(run: Path) -> None:
    (run / "generator.safetensors").unlink()
    (path,) = sample(run, progress_film="training.webp", scale=8, seconds=3, fps=1)
    with Image.open(path) as film:
        assert film.n_frames == 3
        for index in range(3):
            film.seek(index)
            expected = pixels(run / "samples" / f"{1000 * index:09d}_8px.png")
            factor = film.size[0] // expected.shape[1]
            middles = np.asarray(film.convert("RGB"))[factor // 2 :: factor, factor // 2 :: factor]
            assert middles.shape == expected.shape
            assert abs(middles.astype(int) - expected.astype(int)).mean() < 8


# Memory


@pytest.mark.parametrize(
    ("options", "most"),
    [({"files": True}, 1), ({"all_scales": True}, 8), ({"grid": True}, 1), ({"film": "a.mp4", "seconds": 2}, 1)],
)
def test_memory_does_not_grow_with_the_number_of_pictures(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], most: int
) -> None:
    """Counted: the pictures that are still held when the next is made."""
    monkeypatch.setattr(sampler, "MAX_GRID_PX", 40)
    made, held = [], []

    def counting(network: Generator, latent: Tensor, *, chunk: int) -> list[Tensor]:
        held.append(sum(reference() is not None for reference in made))
        pyramid = generate(network, latent, chunk=chunk)
        made.append(weakref.ref(pyramid[-1]))
        return pyramid

    monkeypatch.setattr(sampler, "generate", counting)
    for count in (16, 48):
        made.clear()
        held.clear()
        sample(run, seeds=range(count), out=str(tmp_path / str(count)), **options)
        assert len(held) >= count
        assert max(held) <= most


# What stands against it


def test_files_that_exist_are_kept_unless_forced_and_nothing_else_is_written(run: Path) -> None:
    sample(run, files=True, seeds=range(5))
    before = {path: path.read_bytes() for path in (run / "generated").iterdir()}
    result = problems(run, files=True, grid=True, seeds=range(9))
    assert result == (
        *(f"{run / 'generated' / f'seed00000{seed}_16px.png'}: already exists." for seed in range(3)),
        f"{run / 'generated'}: 2 more of these files already exist.",
    )
    assert {path: path.read_bytes() for path in (run / "generated").iterdir()} == before
    for path in before:
        path.write_text("mine")
    sample(run, files=True, seeds=range(5), force=True)
    assert {path: path.read_bytes() for path in before} == before


def test_a_failure_leaves_no_half_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def failing(network: Generator, latent: Tensor, *, chunk: int) -> list[Tensor]:
        calls.append(latent)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return generate(network, latent, chunk=chunk)

    monkeypatch.setattr(sampler, "generate", failing)
    with pytest.raises(KeyboardInterrupt):
        sample(run, grid=True, film="loop.mp4", seeds=range(8))
    assert [path.name for path in (run / "generated").iterdir()] == ["grid_seeds0-7_16px.png"]


def test_unavailable_outputs_are_reported_at_once(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert problems(run, scale=32, out=str(tmp_path / "file"), progress_film="a.mp4") == (
        "--scale 32: must be a scale of this network: 4, 8, 16.",
        f"--out {tmp_path / 'file'}: is not a directory.",
    )


@pytest.mark.parametrize("folder", ["file/out", "read-only/out"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_picture_is_made(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "read-only").mkdir(mode=0o555)
    if folder.startswith("read-only") and os.access(tmp_path / "read-only", os.W_OK):
        pytest.skip("this user may write everywhere")
    made: list[Tensor] = []
    monkeypatch.setattr(sampler, "generate", lambda network, latent, chunk: made.append(latent))
    (problem,) = problems(run, files=True, out=str(tmp_path / folder))
    assert problem.startswith(f"--out {tmp_path / folder}: cannot be written (")
    assert made == []


def test_a_folder_at_the_path_of_a_file_is_refused(run: Path) -> None:
    (run / "generated" / "seed000001_16px.png").mkdir(parents=True)
    assert problems(run, files=True, seeds=[1], force=True) == (
        f"{run / 'generated' / 'seed000001_16px.png'}: is a directory.",
    )


def test_folders_that_are_missing_are_made(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "not" / "yet" / "there"
    assert sample(run, files=True, seeds=[1], out=str(out)) == [out / "seed000001_16px.png"]


@pytest.mark.parametrize(("samples", "complaint"), [(0, "there are no sample grids"), (1, "needs two sample grids")])
def test_a_progress_film_of_less_than_two_grids_is_refused(tmp_path: Path, samples: int, complaint: str) -> None:
    (problem,) = problems(save_run(tmp_path / "run", samples=samples), progress_film="a.mp4")
    assert complaint in problem


def test_a_webp_that_would_not_fit_memory_is_refused(run: Path) -> None:
    (problem,) = problems(run, film="a.webp", seconds=100)
    assert "2400 frames are too many for WebP, at most 1365 of this size. Use .mp4." in problem


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_weights_that_are_damaged_or_not_there_yet_are_an_error(run: Path, content: bytes | None) -> None:
    path = run / "generator.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"has no weights yet|is not a complete generator"):
        sample(run)
    assert not (run / "generated").exists()


def test_a_run_of_another_version_is_refused(run: Path) -> None:
    path = run / "generator.safetensors"
    save_file(load_file(path), path, {"format_version": "99", "config": "{}"})
    with pytest.raises(CheckpointError, match=r"another version of msggan \(format 99, this one has 1\)"):
        sample(run)


def test_progress_goes_to_stderr(run: Path) -> None:
    messages = io.StringIO()
    Sampler(run, SampleOptions(seeds=range(5)), messages=messages).run()
    assert "Making 5 pictures" in messages.getvalue()


def test_one_picture_is_a_grid_of_its_own(run: Path) -> None:
    (path,) = sample(run, seeds=[4])
    pyramid = generate(load_generator(run), latents(4, [0], 8), chunk=1)
    assert np.array_equal(pixels(path), np.asarray(enlarged(grid(pyramid[-1]))))
