"""A loop passes smoothly through each of its latents, and a film has exactly the given frames."""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from msggan.errors import DataError, FilmError
from msggan.networks import Generator
from msggan.pictures.films import MIN_FRAME_PX, Film, interpolation, loop, size_of_all, slides, write_film
from msggan.pictures.grids import enlarged
from msggan.randomness import latents


def keys(count: int, size: int = 16) -> torch.Tensor:
    return torch.cat([latents(seed, [0], size) for seed in range(count)])


def steps(points: torch.Tensor) -> np.ndarray:
    """(frames,): how far each frame is from the next, and the last from the first."""
    path = points.double().numpy()
    return np.linalg.norm(np.roll(path, -1, axis=0) - path, axis=1)


def coloured(count: int, side: int = 64) -> list[Image.Image]:
    """Frames of one colour each, every one another."""
    return [Image.new("RGB", (side, side), (20 * index, 255 - 20 * index, 128)) for index in range(count)]


def read_mp4(path: Path, side: int) -> tuple[str, list[np.ndarray]]:
    """What ffmpeg says of a film, and its frames."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    ended = subprocess.run(command, capture_output=True, check=True)
    return ended.stderr.decode(), list(np.frombuffer(ended.stdout, np.uint8).reshape(-1, side, side, 3))


# The loop


@given(count=st.integers(2, 12), size=st.sampled_from([8, 64, 512]), frames_a_key=st.integers(4, 20))
@settings(deadline=None, max_examples=15)
def test_a_loop_has_constant_speed_also_across_its_end_and_stays_on_the_sphere(
    count: int, size: int, frames_a_key: int
) -> None:
    points = loop(keys(count, size), count * frames_a_key)
    assert points.shape == (count * frames_a_key, size)
    assert points.dtype == torch.float32
    assert np.allclose(points.norm(dim=1), size**0.5, rtol=1e-5)
    # A chord cuts a bend short; among few frames that shows, and the seam is still no longer than the rest.
    assert steps(points)[-1] <= steps(points)[:-1].max() * 1.001


@pytest.mark.parametrize("count", [2, 3, 7])
def test_frames_in_great_number_are_equally_far_apart(count: int) -> None:
    between = steps(loop(keys(count), count * 100))
    assert between.max() / between.min() < 1.01


@pytest.mark.parametrize("count", [3, 5, 12])
def test_a_loop_starts_at_its_first_latent_and_passes_each_in_turn(count: int) -> None:
    expected = keys(count)
    points = loop(expected, count * 24)
    nearest = torch.cdist(expected, points).min(dim=1)
    assert torch.allclose(points[0], expected[0], atol=1e-5)
    assert nearest.values.max() <= steps(points).max() / 2 * 1.01
    assert nearest.indices.tolist() == sorted(nearest.indices.tolist())


def test_a_loop_turns_no_corner() -> None:
    """In small steps the direction hardly changes, at its latents and at the seam too; at a corner it would leap."""
    points = loop(keys(5), 5000).double().numpy()
    ways = np.roll(points, -1, axis=0) - points
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    cosines = (ways * np.roll(ways, -1, axis=0)).sum(axis=1)
    assert np.degrees(np.arccos(cosines.clip(-1, 1))).max() < 2


def test_two_latents_are_joined_by_the_great_circle_through_both() -> None:
    expected = keys(2)
    points = loop(expected, 200)
    assert torch.linalg.matrix_rank(points, rtol=1e-4) == 2
    assert torch.cdist(expected, points).min(dim=1).values.max() < steps(points).max()


# Frames


@pytest.mark.parametrize(
    ("size", "larger"),
    [((4, 4), (256, 256)), ((32, 32), (256, 256)), ((100, 60), (500, 300)), ((256, 300), (256, 300))],
)
def test_small_frames_are_enlarged_pixel_by_pixel(size: tuple[int, int], larger: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    shown = enlarged(Image.fromarray(pixels), min_side_px=MIN_FRAME_PX)
    factor = larger[0] // size[0]
    assert shown.size == larger
    assert np.array_equal(np.asarray(shown), pixels.repeat(factor, axis=0).repeat(factor, axis=1))


def test_slides_are_shown_equally_long_and_smaller_ones_on_white(tmp_path: Path) -> None:
    paths = [tmp_path / f"{side}.png" for side in (256, 300)]
    for path in paths:
        Image.new("RGB", (int(path.stem), int(path.stem)), "red").save(path)
    shown = list(slides(paths, 6))
    assert size_of_all(paths) == (300, 300)
    assert [frame.size for frame in shown] == [(300, 300)] * 6
    assert [frame.getpixel((299, 299)) for frame in shown] == [(255, 255, 255)] * 3 + [(255, 0, 0)] * 3


def test_an_old_small_grid_fills_its_slide_beside_new_large_ones(tmp_path: Path) -> None:
    """Grids that were written at 206 pixels, before they were enlarged to 618, stay on people's disks."""
    pixels = np.random.default_rng(0).integers(0, 256, (206, 206, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "old.png")
    Image.fromarray(255 - pixels.repeat(3, axis=0).repeat(3, axis=1)).save(tmp_path / "new.png")
    old, new = slides([tmp_path / "old.png", tmp_path / "new.png"], 2)
    assert old.size == new.size == (618, 618)
    assert np.array_equal(255 - np.asarray(old), np.asarray(new))


def test_an_unreadable_slide_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"a\.png: cannot be read as a picture"):
        size_of_all([tmp_path / "a.png"])


# Films


@pytest.mark.parametrize("fps", [1, 24, 60])
def test_an_mp4_has_exactly_its_frames_in_their_colours_and_order(tmp_path: Path, fps: int) -> None:
    path = tmp_path / "-a film.mp4"
    write_film(path, iter(coloured(12)), fps=fps)
    about, frames = read_mp4(path, 64)
    assert "Video: h264" in about
    assert re.search(r"yuv420p\(.*bt709.*\)", about)  # what every player and browser can show, and in which colours
    assert f" {fps} fps" in about
    assert len(frames) == 12
    for frame, expected in zip(frames, coloured(12), strict=True):
        assert abs(frame.astype(int) - np.asarray(expected).astype(int)).max() <= 8


def test_an_mp4_is_of_the_colours_that_it_names_and_plays_before_it_is_loaded_whole(tmp_path: Path) -> None:
    path, colour = tmp_path / "a.mp4", (220, 35, 128)
    write_film(path, iter([Image.new("RGB", (64, 64), colour)] * 2), fps=10)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "yuv420p", "pipe:1"]
    luma = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)[: 64 * 64]
    expected = 16 + 219 * np.dot(colour, (0.2126, 0.7152, 0.0722)) / 255  # ITU-R BT.709, section 3
    assert abs(luma - expected).max() <= 2


def test_an_mp4_keeps_a_size_that_is_no_multiple_of_sixteen(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4", coloured(3, side=206), fps=10)
    assert len(read_mp4(tmp_path / "a.mp4", 206)[1]) == 3


@pytest.mark.parametrize(("fps", "milliseconds"), [(1, 12_000), (24, 500), (60, 200)])
def test_a_webp_has_exactly_its_frames_and_duration_and_loops(tmp_path: Path, fps: int, milliseconds: int) -> None:
    path = tmp_path / "a.webp"
    write_film(path, iter(coloured(12)), fps=fps)
    lasting = 0
    with Image.open(path) as film:
        assert (film.n_frames, film.info["loop"], film.size) == (12, 0, (64, 64))
        for index, expected in enumerate(coloured(12)):
            film.seek(index)
            film.load()
            lasting += film.info["duration"]
            shown = np.asarray(film.convert("RGB")).astype(int)
            assert abs(shown - np.asarray(expected).astype(int)).max() <= 8
    assert lasting == milliseconds


def test_a_film_that_ffmpeg_cannot_write_is_an_error_with_its_message(tmp_path: Path) -> None:
    with pytest.raises(FilmError, match=r"a\.mp4: ffmpeg could not write it .*\.") as raised:
        write_film(tmp_path / "none" / "a.mp4", coloured(50, side=640), fps=10)
    assert "No such file or directory" in raised.value.message
    assert ".webp" in raised.value.hint


def test_without_ffmpeg_webp_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "no-ffmpeg"))
    with pytest.raises(FilmError, match="cannot be started") as raised:
        write_film(tmp_path / "a.mp4", coloured(3), fps=10)
    assert ".webp" in raised.value.hint


def test_an_error_while_a_film_is_written_ends_ffmpeg_too(tmp_path: Path) -> None:
    def frames() -> Iterator[Image.Image]:
        yield from coloured(3)
        raise DataError("A picture is gone.")

    with pytest.raises(DataError, match="gone"):
        write_film(tmp_path / "a.mp4", frames(), fps=10)


# In a notebook


@pytest.mark.parametrize(("name", "kind"), [("a.mp4", "video/mp4"), ("a.webp", "image/webp")])
def test_a_notebook_is_given_the_whole_film(tmp_path: Path, name: str, kind: str) -> None:
    film = interpolation(Generator(2, 8), [1, 2], tmp_path / name, seconds=0.2)
    (content,) = re.findall(f'src="data:{kind};base64,([^"]+)"', film._repr_html_())
    assert base64.b64decode(content) == (tmp_path / name).read_bytes()


def test_a_film_that_was_removed_is_no_longer_shown() -> None:
    assert Film(Path("<b>.mp4"))._repr_html_() == "<p>&lt;b&gt;.mp4: not found.</p>"


@pytest.mark.parametrize(("seeds", "name"), [([1], "a.mp4"), ([1, 2], "a.gif")])
def test_a_film_of_one_seed_or_of_another_kind_is_refused(tmp_path: Path, seeds: list[int], name: str) -> None:
    with pytest.raises(FilmError, match=r"Give two seeds or more, and a path that ends in \.mp4 or \.webp"):
        interpolation(Generator(2, 8), seeds, tmp_path / name)
    assert not (tmp_path / name).exists()
