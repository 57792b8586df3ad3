"""Films: the path through the latents, the frames, and mp4 or WebP files."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from msggan.display.html import embedded, escaped
from msggan.errors import DataError, FilmError
from msggan.pictures.grids import Label, Network, enlarged, generate, inputs_of, picture

Paint = Callable[[Tensor], Tensor]
STEPS_PER_KEY = 256
# Smaller frames are enlarged by a whole factor: players blur them, and video has colour at every second pixel only.
MIN_FRAME_PX = 256
# 0 is lossless, 51 the worst; 18 and less look like the original.
X264_QUALITY = 16
WEBP_QUALITY = 90
WITHOUT_FFMPEG = "A film that ends in .webp needs no ffmpeg."


@dataclass(frozen=True)
class Film:
    """A film on disk. A notebook plays it and keeps a copy in its output."""

    path: Path

    def _repr_html_(self) -> str:
        if not self.path.exists():
            return f"<p>{escaped(self.path)}: not found.</p>"
        if self.path.suffix.lower() == ".webp":
            return f'<img src="{embedded(self.path.read_bytes(), "image/webp")}" alt="{escaped(self.path)}">'
        return f'<video src="{embedded(self.path.read_bytes(), "video/mp4")}" autoplay loop muted controls></video>'


def interpolation(
    generator: Network,
    seeds: Sequence[int],
    path: str | Path,
    *,
    seconds: float | None = None,
    fps: int = 24,
    level: int = -1,
    labels: Label | Sequence[Label] | None = None,
) -> Film:
    """Writes the film of a smooth loop through the pictures of these seeds, at least two; overwrites an existing file.

    path: ends in .mp4 or .webp. seconds: by default one per seed. level: which scale, by default the finest. labels:
    a class by its name or number, or a class for each seed; the seeds may then be the same.
    Raises `FilmError` if there are fewer seeds or the film cannot be written.
    """
    path = Path(path)
    if len(seeds) < 2 or path.suffix.lower() not in (".mp4", ".webp"):
        raise FilmError(
            f"{path}: a film of {len(seeds)} seeds.", "Give two seeds or more, and a path that ends in .mp4 or .webp."
        )
    count = max(2, round((len(seeds) if seconds is None else seconds) * fps))
    keys, size = inputs_of(generator, seeds, labels), generator.latent_size
    path.parent.mkdir(parents=True, exist_ok=True)

    def paint(latent: Tensor) -> Tensor:
        return generate(generator, latent, chunk=1)[level]

    frames = loop_frames(keys, count, latent_size=size, paint=paint)
    write_film(path, frames, fps=fps)
    return Film(path)


def loop_frames(keys: Tensor, frames: int, *, latent_size: int, paint: Paint) -> Iterator[Image.Image]:
    """keys: (K, L), or (K, L + C) → the frames of their loop, one at a time. paint: (1, L + C) → (1, 3, r, r) uint8."""
    for latent in loop(keys, frames, latent_size=latent_size).split(1):
        yield enlarged(picture(paint(latent)[0]), min_side_px=MIN_FRAME_PX)


def loop(keys: Tensor, frames: int, *, latent_size: int | None = None) -> Tensor:
    """keys: (K, L) of norm √L, at least two → (frames, L): a closed, smooth path through the keys, from the first.

    It stays on the sphere that latents are drawn from, at constant speed, also from the last frame to the first.
    Catmull and Rom's spline ("A class of local interpolating splines", 1974), laid on the sphere, in steps of equal
    length. Two latents are joined by the great circle through both. latent_size: L, where keys are (K, L + C), with
    classes, whose weights go straight from one key to the next.
    """
    ring, size = keys.double().numpy(), latent_size or keys.shape[1]
    if len(ring) == 2 and (ring[0, :size] != ring[1, :size]).any():
        ring = np.concatenate([ring, ring * np.where(np.arange(ring.shape[1]) < size, -1, 1)])
    times = np.arange(len(ring) * STEPS_PER_KEY + 1) / STEPS_PER_KEY
    points = [_point(ring, time, size) for time in times]
    lengths = [np.linalg.norm(end - start) for start, end in itertools.pairwise(points)]
    distances = np.concatenate([[0.0], np.cumsum(lengths)])
    frame_times = np.interp(np.arange(frames) / frames * distances[-1], distances, times)
    return torch.from_numpy(np.stack([_point(ring, time, size) for time in frame_times]).astype(np.float32))


def _point(ring: np.ndarray, time: float, size: int) -> np.ndarray:
    """(L + C,): the spline at a time, whose whole numbers are the keys, its first `size` numbers on the sphere."""
    key, t = divmod(time, 1)
    before, start, end, after = (ring[(int(key) + shift) % len(ring)] for shift in (-1, 0, 1, 2))
    square = 2 * before - 5 * start + 4 * end - after
    cube = 3 * (start - end) + after - before
    point: np.ndarray = start + (t * (end - before) + t**2 * square + t**3 * cube) / 2
    point[:size] *= np.sqrt(size) / max(1e-12, float(np.linalg.norm(point[:size])))
    point[size:] = (start + t * (end - start))[size:]
    return point


def size_of_all(paths: Sequence[Path]) -> tuple[int, int]:
    """The smallest size that holds each of these pictures; only headers are read."""
    sizes = [_read(path, header_only=True).size for path in paths]
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def slides(paths: Sequence[Path], frames: int) -> Iterator[Image.Image]:
    """Frames that show pictures one after another, each for the same time, one in memory at a time.

    A smaller picture is enlarged by the largest whole factor that fits, so that grids of different sizes match.
    """
    size = size_of_all(paths)
    for index, repeats in itertools.groupby(index * len(paths) // frames for index in range(frames)):
        canvas = Image.new("RGB", size, "white")
        slide = _read(paths[index])
        factor = min(size[0] // slide.width, size[1] // slide.height)
        canvas.paste(ImageOps.scale(slide, factor, Image.Resampling.NEAREST))
        frame = enlarged(canvas, min_side_px=MIN_FRAME_PX)
        for _ in repeats:
            yield frame


def _read(path: Path, *, header_only: bool = False) -> Image.Image:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture if header_only else picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise DataError(f"{path}: cannot be read as a picture.", "Remove this file and try again.") from error


def write_film(path: Path, frames: Iterable[Image.Image], *, fps: int) -> None:
    """frames: at least one, all of one even size, RGB. The suffix is .mp4 or .webp; WebP's frames stay in memory."""
    rest = iter(frames)
    first = next(rest)
    if path.suffix.lower() != ".webp":
        _write_mp4(path, first, rest, fps)
        return
    others = list(rest)
    starts = [round(1000 * index / fps) for index in range(len(others) + 2)]
    durations = [end - start for start, end in itertools.pairwise(starts)]
    first.save(
        path, "WEBP", save_all=True, append_images=others, duration=durations, loop=0, quality=WEBP_QUALITY, method=4
    )


def _write_mp4(path: Path, first: Image.Image, rest: Iterator[Image.Image], fps: int) -> None:
    try:
        ffmpeg = subprocess.Popen(  # noqa: S603 - imageio-ffmpeg's own program, without a shell
            _ffmpeg_command(path, first.size, fps), stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except (OSError, RuntimeError) as error:  # RuntimeError: imageio-ffmpeg has none for this platform
        raise FilmError(f"{path.name}: ffmpeg cannot be started ({str(error).rstrip('.')}).", WITHOUT_FFMPEG) from error
    with ffmpeg:
        try:
            for frame in itertools.chain([first], rest):
                cast(IO[bytes], ffmpeg.stdin).write(frame.tobytes())
        except BrokenPipeError:
            pass  # it has ended; its reason is read below
        except BaseException:
            ffmpeg.kill()
            raise
        _, output = ffmpeg.communicate()
    if ffmpeg.returncode != 0:
        reason = (output.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1].rstrip(".")
        raise FilmError(f"{path.name}: ffmpeg could not write it ({reason}).", WITHOUT_FFMPEG)


def _ffmpeg_command(path: Path, size: tuple[int, int], fps: int) -> list[str]:
    """ffmpeg reads raw RGB frames and writes what every player and browser can show: H.264 in 4:2:0."""
    import imageio_ffmpeg

    frames = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{size[0]}x{size[1]}", "-framerate", str(fps)]
    codec = ["-c:v", "libx264", "-crf", str(X264_QUALITY), "-pix_fmt", "yuv420p"]
    # Without colour metadata a player guesses from the size, and small and large films would differ in hue.
    colour = ["-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709"]
    colour += ["-color_primaries", "bt709", "-color_trc", "bt709"]
    streamable = ["-movflags", "+faststart"]  # a browser starts before it has the whole file
    target = str(path.absolute())  # which ffmpeg cannot mistake for an option or an address
    return [
        *[imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *frames, "-i", "pipe:0"],
        *[*codec, *colour, *streamable, "-f", "mp4", target],
    ]
