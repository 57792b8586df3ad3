"""A stress test: `python tests/torture.py` kills runs a hundred times and more, and prints a table.

It exits with code 1 if a killed run differs from the undisturbed one, or if the time was too short for the requested
number of kills.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parent))  # as pytest does for the other modules here

from support.images import draw_tiny_images
from support.kills import everything, kill_and_start_again
from support.programs import run_in

SMALL = ("--latent-size", 8, "--num-samples", 4, "--device", "cpu")
OFTEN = ("--checkpoint-kimg", 0.2, "--metric-kimg", 0.1, "--sample-kimg", 0.3)
HEADINGS = ("setting", "images from", "kills", "images trained on again", "equal to the uninterrupted run")


@dataclass(frozen=True)
class Setting:
    """A way to train. data: a folder, a zip or a pack. workers: loader threads, attempt by attempt."""

    options: tuple[object, ...]
    data: str = "folder"
    workers: tuple[int, ...] = (0,)

    def __str__(self) -> str:
        threads = f" --workers {'/'.join(map(str, self.workers))}" if len(self.workers) > 1 else ""
        return " ".join(map(str, self.options)) + threads


SETTINGS = (
    Setting(("--precision", "float32", "--resolution", 8, "--batch-size", 4)),
    Setting(("--precision", "bfloat16", "--resolution", 8, "--batch-size", 4), workers=(1, 3, 2)),
    Setting(("--recipe", "bmsg", "--resolution", 8, "--batch-size", 8), data="zip"),
    Setting(("--loss", "wgan-gp", "--resolution", 8, "--batch-size", 4, "--penalty-interval", 1), data="pack"),
    Setting(("--precision", "float32", "--resolution", 16, "--batch-size", 8, "--stddev-group", 4), workers=(0, 3)),
    Setting(("--precision", "bfloat16", "--resolution", 8, "--batch-size", 4, "--ema-ramp", 0, "--no-mirror")),
)


@click.command()
@click.option("--kills", default=102, show_default=True, help="How many kills, over all settings.")
@click.option("--minutes", default=20.0, show_default=True, help="Kill nothing any more after so long.")
@click.option("--kimg", default=4.0, show_default=True, help="The length of each run.")
@click.option("--seed", default=0, show_default=True, help="Of the moments of the kills.")
def torture(kills: int, minutes: float, kimg: float, seed: int) -> None:
    """Kill runs at random moments, start them again, and compare what is left with runs that were left alone."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    give_up_at = time.monotonic() + 60 * minutes
    total, are_equal = 0, True
    _row(HEADINGS)
    _row(("---",) * len(HEADINGS))
    with tempfile.TemporaryDirectory(prefix="msggan-torture-") as folder:
        images = _images(Path(folder))
        for number, setting in enumerate(SETTINGS):
            left = (kills - total) // (len(SETTINGS) - number)
            args = ["--data", images[setting.data], *SMALL, *setting.options, *OFTEN, "--kimg", kimg]
            whole, killed = Path(folder) / f"{number}-whole", Path(folder) / f"{number}-killed"
            ended = run_in(Path(folder), "msggan.train", *args, "--run-dir", whole)
            if ended.exit_code:
                raise click.ClickException(ended.stderr)
            loss = kill_and_start_again(
                args, killed, kills=left, chance=chance, give_up_at=give_up_at, workers=setting.workers
            )
            is_equal = everything(killed) == everything(whole)
            _row((setting, setting.data, loss.kills, loss.images_again, "yes" if is_equal else "NO"))
            total, are_equal = total + loss.kills, are_equal and is_equal
            shutil.rmtree(whole)
            shutil.rmtree(killed)
    click.echo(f"\n{total} of {kills} kills; {'all runs equal' if are_equal else 'SOME RUNS DIFFER'}.")
    sys.exit(0 if are_equal and total == kills else 1)


def _images(folder: Path) -> dict[str, Path]:
    """The same images in three forms."""
    images = draw_tiny_images(folder / "tiny")
    shutil.make_archive(str(folder / "tiny-zip"), "zip", images)
    pack = folder / "tiny-pack.safetensors"
    ended = run_in(folder, "msggan.pack", "--data", images, "--out", pack, "--resolution", 8)
    if ended.exit_code:
        raise click.ClickException(ended.stderr)
    return {"folder": images, "zip": folder / "tiny-zip.zip", "pack": pack}


def _row(cells: Sequence[object]) -> None:
    click.echo(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    torture()
