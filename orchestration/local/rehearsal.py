"""The rehearsal of preemption: a short local run is killed and resumed, then compared with an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from msggan.commands.program import EXIT_CODES, NO_TRACKING, OUTPUT_VARIABLE, TRACKING_VARIABLES
from msggan.config import TrainConfig, resolve
from msggan.display.progress import duration
from msggan.runs.folder import RunFolder, RunState, read_state
from msggan.tracking.metrics_log import read_metrics
from orchestration.errors import RehearsalError
from orchestration.local.process import Ending, silent_death, start, told_by
from orchestration.spec import RunSpec, is_remote

LOSSES = 3
REPORT_IMAGES = 250  # images between two reports of a run
STEPS_BETWEEN_LOSSES = 5  # the minimum; fewer would leave no step between a checkpoint and a loss
CHECKPOINTS_PER_LOSS = 1.25  # not a whole number, so that losses come at different distances from the last checkpoint
TIMINGS = ("seconds", "images_per_second")
LOOK_SECONDS = 0.01
SHOWS_WHY = "To see why, run the same command with --target local instead of --rehearse-preemption."
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

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "images_again": self.images_again}


@dataclass(frozen=True)
class Outlook:
    """The cost of one loss to a run that saves a checkpoint every `checkpoint_images`."""

    checkpoint_images: int
    images_per_second: float

    @property
    def minutes_at_most(self) -> float:
        return self.checkpoint_images / self.images_per_second / 60

    @property
    def checkpoint_kimg(self) -> float | None:
        """A smaller interval to try, None if a loss costs only minutes."""
        if self.minutes_at_most <= MINUTES_WORTH_A_HINT:
            return None
        return float(f"{MINUTES_HINTED * 60 * self.images_per_second / 1000:.1g}")

    def as_json(self) -> dict[str, Any]:
        return {
            "images_per_second": self.images_per_second,
            "checkpoint_images": self.checkpoint_images,
            "on_average": {"images": self.checkpoint_images / 2, "minutes": self.minutes_at_most / 2},
            "at_most": {"images": self.checkpoint_images, "minutes": self.minutes_at_most},
            "try_checkpoint_kimg": self.checkpoint_kimg,
        }


@dataclass(frozen=True)
class Rehearsal:
    """The result. differs: the files in which the killed run differs from the uninterrupted one."""

    losses: tuple[Loss, ...]
    differs: tuple[str, ...]
    outlook: Outlook

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
        return {
            "losses": [loss.as_json() for loss in self.losses],
            "equal": not self.differs,
            "differs": list(self.differs),
            **self.outlook.as_json(),
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
        return [*lines, *outlook_lines(self.outlook)]


def outlook_lines(outlook: Outlook) -> list[str]:
    most, seconds = outlook.checkpoint_images, 60 * outlook.minutes_at_most
    lines = [
        f"The requested run saves a checkpoint every {most / 1000:g} kimg. "
        f"At {outlook.images_per_second:.0f} images/s, as measured here, one loss costs {most / 2:.0f} images "
        f"({_time(seconds / 2)}) on average and {most} ({_time(seconds)}) at most, plus the start-up."
    ]
    if outlook.checkpoint_kimg is not None:
        lines.append(f"--checkpoint-kimg {outlook.checkpoint_kimg:g} would reduce that to about {MINUTES_HINTED} min.")
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


def rehearse(spec: RunSpec, tell: Callable[[str], None]) -> Rehearsal:
    """Trains a short run of `spec` without interruption, and one that is killed three times, in a temporary folder.

    Raises the error of a run that cannot train.
    """
    asked = resolved_asked(spec.config)
    step = images_between_losses(asked)
    short = replace(spec, config=short_config(spec.config, step))
    with tempfile.TemporaryDirectory(prefix="msggan-rehearsal-") as place:
        alone, killed = RunFolder(Path(place) / "alone"), RunFolder(Path(place) / "killed")
        tell(f"Rehearsal: training a run of {(LOSSES + 1) * step} images without interruption.")
        with _training(short, alone) as child:
            _reach_end(child)
        tell(f"Training the same run again, killed {LOSSES} times.")
        losses = _train_with_losses(short, killed, [step * (number + 1) for number in range(LOSSES)], tell)
        return Rehearsal(tuple(losses), tuple(differences(alone, killed)), build_outlook(asked, alone))


# --- The short run ----------------------------------------------------------------------------------------------------


def resolved_asked(config: TrainConfig) -> TrainConfig:
    """The requested configuration with its defaults for length, interval and batch, which are the same for all images
    and devices."""
    return resolve(config, shorter_side_px=32, device="cpu", has_fast_bfloat16=False)


def images_between_losses(asked: TrainConfig) -> int:
    """The number of images between two losses: enough for a report and several steps."""
    fewest = STEPS_BETWEEN_LOSSES * asked.batch_size
    return REPORT_IMAGES * -(-fewest // REPORT_IMAGES)


def short_config(config: TrainConfig, step: int) -> TrainConfig:
    """The same training, shortened to one interval more than there are losses, sampled and measured once."""
    kimg = (LOSSES + 1) * step / 1000
    return replace(
        config,
        kimg=kimg,
        sample_kimg=kimg,
        metric_kimg=kimg,
        checkpoint_kimg=step / CHECKPOINTS_PER_LOSS / 1000,
    )


# --- Killing it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Child:
    """A training process, with the file that receives its result."""

    process: subprocess.Popen[str]
    stdout: IO[str]
    folder: RunFolder

    def note(self) -> RunState | None:
        """Its record in the run folder; None while the record is the previous process's."""
        note = read_state(self.folder)
        return note if note is not None and note.process == self.process.pid else None

    def check_end(self) -> None:
        """Raises the error of a process that ended without a result."""
        self.stdout.seek(0)
        told = told_by(Ending(self.process.wait(), self.stdout.read(), wrote_to_stderr=False))
        if told.get("state") not in EXIT_CODES:
            raise silent_death(self.process.returncode, process="training", hint=SHOWS_WHY)


@contextmanager
def _training(spec: RunSpec, folder: RunFolder) -> Iterator[_Child]:
    """A training process in its own process group, which is killed at the end."""
    command = spec.command(data=str(spec.data), run_dir=str(folder), python=sys.executable)
    environ = {**os.environ, OUTPUT_VARIABLE: "json", TRACKING_VARIABLES[0]: NO_TRACKING}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stdout:
        process = start(
            command,
            environ,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield _Child(process, stdout, folder)
        finally:
            _kill_group(process)


def _kill_group(process: subprocess.Popen[str]) -> None:
    """Kills a process and its children, as the loss of a machine does."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _train_with_losses(spec: RunSpec, folder: RunFolder, kill_at: list[int], tell: Callable[[str], None]) -> list[Loss]:
    """Trains to the end, killed after each of these numbers of images."""
    losses: list[Loss] = []
    lost_at = 0
    for limit in [*kill_at, None]:
        started = time.monotonic()
        with _training(spec, folder) as child:
            resumed_from = _wait_for_start(child)
            if lost_at:
                _reach(child, lost_at)
                losses.append(Loss(lost_at, resumed_from, time.monotonic() - started))
            if limit is None or not _reach(child, limit):
                _reach_end(child)
                break
        lost_at = _images_seen(folder)
        tell(f"Killed after {lost_at} images.")
    return losses


def _wait_for_start(child: _Child) -> int:
    """Waits until it trains. Returns the images seen by then."""
    while (note := child.note()) is None:
        if child.process.poll() is not None:
            child.check_end()
        time.sleep(LOOK_SECONDS)
    return note.images_seen


def _reach(child: _Child, images: int) -> bool:
    """Waits until it has seen that number of images. Returns whether it is still training."""
    while _images_seen(child.folder) < images:
        if child.process.poll() is not None:
            child.check_end()
            return False
        time.sleep(LOOK_SECONDS)
    return child.process.poll() is None


def _reach_end(child: _Child) -> None:
    child.process.wait()
    child.check_end()


def _images_seen(folder: RunFolder) -> int:
    """The number of images in the newest report or checkpoint."""
    reported = [int(report["images"]) for report in read_metrics(folder.metrics)]
    saved = [int(path.stem) for path in folder.checkpoints.glob("*.json")]
    return max([0, *reported, *saved])


# --- Comparing ----------------------------------------------------------------------------------------------------


def differences(one: RunFolder, other: RunFolder) -> list[str]:
    """The files in which two runs differ, apart from timings."""
    looks: tuple[tuple[str, Callable[[RunFolder], object]], ...] = (
        ("generator.safetensors", lambda folder: _weights(folder.generator)),
        ("metrics.jsonl", _metrics_without_timings),
    )
    return [name for name, look in looks if look(one) != look(other)]


def _weights(path: Path) -> tuple[Any, bytes]:
    """The header and the data of a safetensors file. The JSON header is parsed because the order of its keys varies."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _metrics_without_timings(folder: RunFolder) -> list[str]:
    """Each report as text, in which NaN equals NaN."""
    reports = read_metrics(folder.metrics)
    return [
        json.dumps({name: value for name, value in report.items() if name not in TIMINGS}, sort_keys=True)
        for report in reports
    ]


def build_outlook(asked: TrainConfig, measured: RunFolder) -> Outlook:
    """The cost of a loss to the requested run, at the speed of the short one after its first report."""
    first, *_, last = read_metrics(measured.metrics)
    images_per_second = (last["images"] - first["images"]) / (last["seconds"] - first["seconds"])
    return Outlook(round(1000 * min(asked.checkpoint_kimg, asked.kimg)), images_per_second)
