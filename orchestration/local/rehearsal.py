"""The rehearsal of preemption: a short local run is killed and resumed, then compared with an uninterrupted one."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from msggan.commands.program import EXIT_CODES, NO_TRACKING, OUTPUT_VARIABLE, TRACKING_VARIABLES
from msggan.config import TrainConfig, resolve
from msggan.display.progress import duration
from msggan.runs.folder import RunFolder, attempt_of, read_state
from msggan.tracking.metrics_log import TIMINGS, read_metrics
from orchestration.data_source import is_remote
from orchestration.errors import RehearsalError
from orchestration.local.process import BackgroundProcess
from orchestration.spec import RunSpec

LOSSES = 3
REPORT_IMAGES = 250  # the fewest images between two reports of a run
STEPS_BETWEEN_LOSSES = 5  # the minimum; fewer would leave no step between a checkpoint and a loss
CHECKPOINTS_PER_LOSS = 1.25  # not a whole number, so that losses come at different distances from the last checkpoint
POLL_SECONDS = 0.01
SHOW_ERROR_HINT = "To see why, run the same command with --target local instead of --rehearse-preemption."
MINUTES_WORTH_A_HINT = 10
MINUTES_HINTED = 5


@dataclass(frozen=True)
class Loss:
    """One loss of the machine. seconds: from the restart until the run had caught up with the images seen before."""

    images_seen: int
    resumed_from: int
    seconds: float

    @property
    def images_again(self) -> int:
        return self.images_seen - self.resumed_from


@dataclass(frozen=True)
class Rehearsal:
    """The result, and the cost of one loss to the requested run, which saves a checkpoint every `checkpoint_images`.

    differs: the files in which the killed run differs from the uninterrupted one.
    """

    losses: tuple[Loss, ...]
    differs: tuple[str, ...]
    checkpoint_images: int
    images_per_second: float

    @property
    def seconds_at_most(self) -> float:
        """The training that one loss repeats at most."""
        return self.checkpoint_images / self.images_per_second

    @property
    def checkpoint_kimg(self) -> float | None:
        """A smaller interval to try, None if a loss costs only minutes."""
        if self.seconds_at_most <= 60 * MINUTES_WORTH_A_HINT:
            return None
        return float(f"{MINUTES_HINTED * 60 * self.images_per_second / 1000:.1g}")

    @property
    def refusal(self) -> RehearsalError | None:
        """The error if the two runs are not equal."""
        if not self.differs:
            return None
        return RehearsalError(
            f"After {len(self.losses)} losses the run differs from the uninterrupted one: {', '.join(self.differs)}.",
            "On a GPU, two identical runs may differ in the last digits; with --device cpu they must not. If they do, "
            "resuming is broken: please report it.",
        )

    def as_json(self) -> dict[str, Any]:
        most, minutes = self.checkpoint_images, self.seconds_at_most / 60
        return {
            "losses": [{**asdict(loss), "images_again": loss.images_again} for loss in self.losses],
            "equal": not self.differs,
            "differs": list(self.differs),
            "images_per_second": self.images_per_second,
            "checkpoint_images": most,
            "on_average": {"images": most / 2, "minutes": minutes / 2},
            "at_most": {"images": most, "minutes": minutes},
            "try_checkpoint_kimg": self.checkpoint_kimg,
        }

    def as_lines(self) -> list[str]:
        """The same as text."""
        lines = [
            f"Loss {number}: killed after {loss.images_seen} images, resumed from {loss.resumed_from}: "
            f"{loss.images_again} images repeated, caught up in {loss.seconds:.1f} s including start-up."
            for number, loss in enumerate(self.losses, 1)
        ]
        if not self.differs:
            lines.append("Equal to the uninterrupted run: the weights, and the metrics except timings.")
        most, seconds = self.checkpoint_images, self.seconds_at_most
        lines.append(
            f"The requested run saves a checkpoint every {most / 1000:g} kimg. "
            f"At {self.images_per_second:.0f} images/s, as measured here, one loss costs {most / 2:.0f} images "
            f"({_time(seconds / 2)}) on average and {most} ({_time(seconds)}) at most, plus the start-up."
        )
        if kimg := self.checkpoint_kimg:
            lines.append(f"--checkpoint-kimg {kimg:g} would reduce that to about {MINUTES_HINTED} min.")
        return lines


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else "less than 1 s"


def rehearsal_problems(data: str | None, *, dry_run: bool, detach: bool) -> list[str]:
    """Every problem with options that cannot be combined with --rehearse-preemption."""
    problems = [
        f"{name}: cannot be combined with --rehearse-preemption, which starts no run of that name. Omit one of them."
        for name, is_set in (("--dry-run", dry_run), ("--detach", detach))
        if is_set
    ]
    if data and is_remote(data):
        problems.append(
            "--rehearse-preemption: trains on this machine, which cannot read this --data. Use some of the images in a "
            "folder: --data FOLDER --rehearse-preemption."
        )
    return problems


def rehearse(spec: RunSpec, info: Callable[[str], None]) -> Rehearsal:
    """Trains a short run of `spec` without interruption, and one that is killed three times, in a temporary folder.

    info(line): prints progress. Raises the error of a run that cannot train.
    """
    # The length and the interval, whose defaults are the same everywhere, and the largest batch of any device.
    requested = resolve(spec.config, shorter_side_px=32, device="cuda", has_fast_bfloat16=False)
    short, step = short_run(spec, requested.batch_size)
    with tempfile.TemporaryDirectory(prefix="msggan-rehearsal-") as folder:
        whole, killed = RunFolder(Path(folder) / "uninterrupted"), RunFolder(Path(folder) / "killed")
        info(f"Rehearsal: training a run of {(LOSSES + 1) * step} images without interruption.")
        with _training(short, whole) as child:
            _check_end(child)
        info(f"Training the same run again, killed {LOSSES} times.")
        losses = _train_with_losses(short, killed, [step * (number + 1) for number in range(LOSSES)], info)
        return Rehearsal(
            losses=tuple(losses),
            differs=tuple(differences(whole, killed)),
            checkpoint_images=checkpoint_images(requested),
            images_per_second=measured_speed(whole),
        )


def short_run(spec: RunSpec, batch_size: int) -> tuple[RunSpec, int]:
    """The run, shortened to one interval more than there are losses, and sampled once; and the interval.

    The interval, in images, is long enough for a report and several steps. It is measured whenever it may be reported,
    so that the number of its reports does not depend on its speed.
    """
    step = REPORT_IMAGES * math.ceil(STEPS_BETWEEN_LOSSES * batch_size / REPORT_IMAGES)
    kimg, checkpoint_kimg = (LOSSES + 1) * step / 1000, step / CHECKPOINTS_PER_LOSS / 1000
    measured = REPORT_IMAGES / 1000
    config = replace(spec.config, metric_kimg=measured, kimg=kimg, sample_kimg=kimg, checkpoint_kimg=checkpoint_kimg)
    return replace(spec, config=config), step


def checkpoint_images(config: TrainConfig) -> int:
    """The images between two checkpoints of a run. config: resolved."""
    return round(1000 * min(config.checkpoint_kimg, config.kimg))


def measured_speed(folder: RunFolder) -> float:
    """The images per second of a run after its first report."""
    first, *_, last = read_metrics(folder.metrics)
    speed: float = (last["images"] - first["images"]) / (last["seconds"] - first["seconds"])
    return speed


# --- Killing it -------------------------------------------------------------------------------------------------------


@contextmanager
def _training(spec: RunSpec, folder: RunFolder) -> Iterator[BackgroundProcess]:
    """A training process. At the end it is killed with its children, as by the loss of a machine."""
    command = spec.command(data=str(spec.data), run_dir=str(folder), python=sys.executable)
    child = BackgroundProcess(command, {**os.environ, OUTPUT_VARIABLE: "json", TRACKING_VARIABLES[0]: NO_TRACKING})
    try:
        yield child
    finally:
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
        else:
            child.process.kill()
        child.result()


def _check_end(child: BackgroundProcess) -> None:
    """Waits for the end. Raises the error of a process that ended without a response."""
    result = child.result()
    if result.response().get("state") not in EXIT_CODES:
        raise result.no_response_error(process="training", hint=SHOW_ERROR_HINT)


def _train_with_losses(spec: RunSpec, folder: RunFolder, kill_at: list[int], info: Callable[[str], None]) -> list[Loss]:
    """Trains to the end, killed after each of these numbers of images."""
    losses: list[Loss] = []
    lost_at = 0
    for limit in [*kill_at, None]:
        started, before = time.monotonic(), attempt_of(folder)
        with _training(spec, folder) as child:
            resumed_from = _wait_for_start(child, folder, before)
            if lost_at:
                _reach(child, folder, lost_at)
                losses.append(Loss(lost_at, resumed_from, time.monotonic() - started))
            if limit is None or not _reach(child, folder, limit):
                _check_end(child)
                break
        lost_at = _images_seen(folder)
        info(f"Killed after {lost_at} images.")
    return losses


def _wait_for_start(child: BackgroundProcess, folder: RunFolder, before: str) -> int:
    """Waits until it trains: until then the record in the run folder is of the attempt before. → the images seen."""
    while (state := read_state(folder)) is None or state.attempt == before:
        if not child.is_running():
            _check_end(child)
        time.sleep(POLL_SECONDS)
    return state.images_seen


def _reach(child: BackgroundProcess, folder: RunFolder, images: int) -> bool:
    """Waits until it has seen that number of images. Returns whether it is still training."""
    while _images_seen(folder) < images:
        if not child.is_running():
            _check_end(child)
            return False
        time.sleep(POLL_SECONDS)
    return child.is_running()


def _images_seen(folder: RunFolder) -> int:
    """The number of images in the newest report or checkpoint."""
    reported = [int(report["images"]) for report in read_metrics(folder.metrics)]
    saved = [int(path.stem) for path in folder.checkpoints.glob("*.json")]
    return max([0, *reported, *saved])


# --- Comparing ----------------------------------------------------------------------------------------------------


def differences(first: RunFolder, second: RunFolder) -> list[str]:
    """The files in which two runs differ, apart from timings."""
    found = []
    if _weights(first.generator) != _weights(second.generator):
        found.append(first.generator.name)
    if _metrics_without_timings(first) != _metrics_without_timings(second):
        found.append(first.metrics.name)
    return found


def _weights(path: Path) -> tuple[Any, bytes]:
    """The header and the data of a safetensors file. The JSON header is parsed because the order of its keys varies."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _metrics_without_timings(folder: RunFolder) -> list[str]:
    """Each report as text, in which NaN equals NaN."""
    return [
        json.dumps({name: value for name, value in report.items() if name not in TIMINGS}, sort_keys=True)
        for report in read_metrics(folder.metrics)
    ]
