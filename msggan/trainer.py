"""A run from its first image to its last: begin or resume, step, report, sample, measure, save, stop politely."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TextIO

import torch
from torch import Tensor

from msggan.config import TrainConfig, explicit_values, resolve
from msggan.data.dataset import SampleStream, to_float
from msggan.data.sources import describe_skipped, open_source
from msggan.device import choose_device, has_fast_bfloat16, is_out_of_memory, memory_errors
from msggan.display.progress import choose_progress
from msggan.errors import DataError, OutOfMemoryError, RunFolderError, SupersededError, TrainingError
from msggan.metrics import Patches, distances
from msggan.networks import Discriminator, Generator
from msggan.pictures.grids import find_samples, generate, generate_parts, write_samples
from msggan.randomness import Purpose, latents
from msggan.runs.checkpoint import CheckpointWriter, newest_checkpoint
from msggan.runs.folder import RunFolder
from msggan.runs.run import Run
from msggan.runs.state import RunState, begin, end, ensure_ours, is_owned, owned, read_note, taken
from msggan.steps import TrainingState
from msggan.tracking.metrics_log import Tracker

REPORT_IMAGES = 250
MEASURED_IMAGES_AT_MOST = 512
IMAGES_NEEDED = 200  # with fewer, training runs and its results are poor
DROPPED_AT_MOST = 10


@dataclass(frozen=True)
class RunResult:
    """How a run ended. state: completed, interrupted (Ctrl-C) or cancelled (SIGTERM).

    notice: empty, or that there was nothing to do; the state is then the one that was recorded before, also `failed`.
    """

    state: str
    run_dir: Path
    images_seen: int
    metrics: dict[str, float]
    next: list[str] = field(default_factory=list)
    notice: str = ""

    def _repr_html_(self) -> str:
        return Run(self.run_dir)._repr_html_()


@dataclass
class Interval:
    """What has happened since the last report. The losses are sums, on the device, so that no step waits for them.

    d_missing, g_missing: in how many steps the loss was not finite, and is in no sum.
    """

    steps: int = 0
    seconds: float = 0.0
    d_loss: Tensor | float = 0.0
    g_loss: Tensor | float = 0.0
    d_missing: Tensor | int = 0
    g_missing: Tensor | int = 0
    clock: float = field(default_factory=time.perf_counter)

    def add(self, losses: dict[str, Tensor]) -> None:
        self.steps += 1
        self.d_loss = self.d_loss + _finite(losses["d_loss"])
        self.g_loss = self.g_loss + _finite(losses["g_loss"])
        self.d_missing = self.d_missing + ~torch.isfinite(losses["d_loss"])
        self.g_missing = self.g_missing + ~torch.isfinite(losses["g_loss"])

    def stop_clock(self) -> None:
        """Counts the time since the clock was started, once the device has done what it was given."""
        float(self.d_loss)
        self.seconds += time.perf_counter() - self.clock

    def start_clock(self) -> None:
        self.clock = time.perf_counter()

    def plain(self) -> dict[str, float]:
        """What a checkpoint keeps, while the clock is stopped."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "d_loss": float(self.d_loss),
            "g_loss": float(self.g_loss),
            "d_missing": int(self.d_missing),
            "g_missing": int(self.g_missing),
        }

    def losses(self) -> dict[str, float]:
        """The mean of each loss; one that was finite in no step is left out."""
        counted = {"d_loss": self.steps - int(self.d_missing), "g_loss": self.steps - int(self.g_missing)}
        return {name: float(getattr(self, name)) / steps for name, steps in counted.items() if steps}


def _finite(loss: Tensor) -> Tensor:
    return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0)


class Trainer:
    """Trains on the images at `data` and keeps everything in `run_dir`; a folder that holds a run resumes it.

    device: auto, cpu, cuda, cuda:N or mps. workers: threads that decode images; 0 is as many as there are cores.
    tracking_uri: an MLflow that is told too; the run does not depend on it.
    messages: where progress is told; by default stderr, and in a notebook a display that is updated in place.
    Raises `UsageError`, `DataError`, `RunFolderError` or `OutOfMemoryError` before anything is written; `run` may also
    raise `CheckpointError` and `TrainingError`.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        data: str | Path,
        run_dir: str | Path,
        device: str = "auto",
        workers: int = 0,
        tracking_uri: str | None = None,
        messages: TextIO | None = None,
    ) -> None:
        self.folder = RunFolder(run_dir)
        if is_owned(self.folder):  # before images are read, which may take minutes
            raise taken(self.folder)
        self.folder.recover()
        if self.folder.path.resolve() == Path(data).resolve():
            raise DataError(f"--run-dir {run_dir}: is the folder of the images.", "Use another --name or --run-dir.")
        self.device = choose_device(device)
        self.data = data
        source = open_source(data)
        self.config = self.folder.continued(config) or resolve(
            TrainConfig(**{**source.settled, **explicit_values(config)}),
            shorter_side_px=config.resolution or source.median_shorter_side(),  # read only where it decides
            device=self.device.type,
            has_fast_bfloat16=has_fast_bfloat16(self.device),
        )
        total_images = round(self.config.kimg * 1000)
        self.progress = choose_progress(self.folder, total_images=total_images, stream=messages)
        with memory_errors(self._out_of_memory):
            self.dataset = source.dataset(
                resolution=self.config.resolution,
                background=self.config.background,
                workers=workers,
                progress=self.progress.decoding,
            )
            self._check_images()
            self.samples = SampleStream(
                self.dataset, seed=self.config.seed, batch_size=self.config.batch_size, mirror=self.config.mirror
            )
            self.training_state = TrainingState(self.config, self.device)
        self.tracker = Tracker(self.folder.metrics, tracking_uri=tracking_uri)
        self.writer = CheckpointWriter(self.folder, may_write=self._ensure_ours)
        self.state: RunState | None = None
        self.samples_fail = False
        self.interval = Interval()
        self.seconds = 0.0  # spent on steps, over all the processes that have worked on this run
        self.saved_images = 0
        self.began, self.began_images = 0.0, 0  # when this process took its first step, and at which image
        self.metrics: dict[str, float] = {}

    @property
    def generator(self) -> Generator:
        return self.training_state.generator

    @property
    def discriminator(self) -> Discriminator:
        return self.training_state.discriminator

    @property
    def ema(self) -> Generator:
        """The generator's moving average: samples and `generator.safetensors` come from it."""
        return self.training_state.ema

    @property
    def images_seen(self) -> int:
        return self.training_state.images_seen

    def step(self, reals: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """One step by hand: reals (N, 3, R, R) float in [-1, 1], latents (N, L) of norm √L → d_loss and g_loss.

        It is not part of the run: `run` starts from what is in the run folder.
        """
        return self.training_state.step(reals, latents)

    def run(self) -> RunResult:
        """Trains to the end of the configuration, or until Ctrl-C or SIGTERM. Called again, it goes on from there.

        It always starts from the newest checkpoint in the run folder, however an earlier call ended. Where that has
        reached --kimg already, it writes nothing and returns the recorded state with a `notice`.
        """
        with _polite_stop() as stop, owned(self.folder), self._recorded(), memory_errors(self._out_of_memory):
            self._resume()
            recorded = self._recorded_end()
            if recorded is not None:
                return self._leave_as_recorded(recorded)
            self._begin()
            with self._tracked(), self._explained(), closing(self.samples.batches(self.images_seen)) as batches:
                try:
                    self._train(batches, stop)
                finally:
                    self.writer.wait()  # before the run may be another's
            return self._leave("completed" if self._finished() else stop.state or "completed")

    def _train(self, batches: Iterator[Tensor], stop: Stop) -> None:
        """The loop: a step, then what is due after it; at the end, or where a stop is asked for, a checkpoint."""
        self.interval.start_clock()
        while not self._finished() and stop.state is None:
            reals = to_float(next(batches).to(self.device))
            self.interval.add(self.step(reals, self._latents()))
            self._give_up_if_dropping()

            kimgs = (self.config.sample_kimg, self.config.metric_kimg, self.config.checkpoint_kimg)
            sample, measure, save = (self._due(kimg * 1000) for kimg in kimgs)
            report = measure or self._due(REPORT_IMAGES)
            if not (sample or save or report):
                continue
            self.interval.stop_clock()
            if sample:
                self._sample()
            if report:
                self._report(self._measure() if measure else {})
            if save and not self.training_state.dropped_in_a_row:  # which may be for good
                self._save()
            self.interval.start_clock()
        self.interval.stop_clock()
        self._save()
        self.writer.finish()

    def _give_up_if_dropping(self) -> None:
        """Raises TrainingError after ten dropped updates in a row. A GPU is asked every ten steps, as it would wait."""
        steps = self.images_seen // self.config.batch_size
        if self.device.type != "cpu" and steps % DROPPED_AT_MOST:
            return
        if self.training_state.most_dropped_in_a_row >= DROPPED_AT_MOST:
            networks = " and ".join(f"the {name}'s" for name in self.training_state.dropped_networks())
            raise TrainingError(
                f"{DROPPED_AT_MOST} updates in a row were dropped, by {self.images_seen / 1000:g} kimg: "
                f"{networks or 'a'} loss or gradient is not finite.",
                f"Under another name, lower --g-lr {self.config.g_lr:g} and --d-lr {self.config.d_lr:g}"
                + (" or try --precision float32." if self.config.precision == "bfloat16" else ".")
                + f" The last checkpoint is from before, at {self.saved_images / 1000:g} kimg.",
            )

    def _due(self, interval_images: float) -> bool:
        """Whether the last step reached or passed a multiple of the interval, or was the last of all."""
        before = self.images_seen - self.config.batch_size
        return self._finished() or self.images_seen // interval_images > before // interval_images

    def _finished(self) -> bool:
        return self.images_seen >= self.config.kimg * 1000

    def _latents(self) -> Tensor:
        positions = range(self.images_seen, self.images_seen + self.config.batch_size)
        return latents(self.config.seed, positions, self.config.latent_size)

    # What is due

    def _sample(self) -> None:
        fixed = latents(self.config.seed, range(self.config.num_samples), self.config.latent_size, Purpose.SAMPLE)
        pictures = generate(self.ema, fixed)
        self._ensure_ours()
        try:
            self.progress.sample = write_samples(self.folder.samples, self.images_seen, pictures)
        except OSError as error:  # a picture is not worth a run; said once
            if not self.samples_fail:
                self.progress.info(f"{self.folder.samples}: samples cannot be written ({error.strerror or error}).")
            self.samples_fail = True

    def _measure(self) -> dict[str, float]:
        """swd against the held-back images, or against training images where none are held back.

        Of what is generated and of the pyramids of both, no more than a part is in memory at a time.
        """
        if self.dataset.held_back:
            reals = self.dataset.held_back_images(MEASURED_IMAGES_AT_MOST)
        else:
            reals = self.dataset.images(range(min(self.dataset.training, MEASURED_IMAGES_AT_MOST)))
        fixed = latents(self.config.seed, range(len(reals)), self.config.latent_size, Purpose.METRIC)
        real, fake = (Patches(len(reals), self.config.resolution, device=self.device) for _ in range(2))
        real.add(reals)
        for pyramid in generate_parts(self.ema, fixed):
            fake.add(pyramid[-1])
        return distances(real, fake)

    def _report(self, measured: dict[str, float]) -> None:
        self.seconds += self.interval.seconds
        dropped = int(self.training_state.dropped)
        self.metrics = {
            "images": self.images_seen,
            "kimg": self.images_seen / 1000,
            **self.interval.losses(),
            "images_per_second": self.interval.steps * self.config.batch_size / self.interval.seconds,
            "seconds": self.seconds,
            **({"dropped_updates": dropped} if dropped else {}),
            **measured,
        }
        self._ensure_ours()
        self.tracker.report(self.metrics)
        self._say_each(self.tracker.messages())
        self.interval = Interval()
        self.progress.report(self.metrics, seconds_left=self._seconds_left())

    def _seconds_left(self) -> float:
        """At the pace of this process so far, everything that is due included."""
        images_left = max(0, self.config.kimg * 1000 - self.images_seen)
        return images_left * (time.perf_counter() - self.began) / (self.images_seen - self.began_images)

    def _save(self) -> None:
        """A checkpoint of this very step, unless there is one."""
        if self.images_seen == self.saved_images:
            return
        state = {
            "data_fingerprint": self.dataset.fingerprint,
            "data_images": self.dataset.training + self.dataset.held_back,
            "data_notes": list(self.dataset.notes),
            "interval": self.interval.plain(),
            "seconds": self.seconds,
            "dropped_updates": int(self.training_state.dropped),
            "dropped_in_a_row": int(self.training_state.dropped_in_a_row),
        }
        self._ensure_ours()
        self.writer.save(self.images_seen, self.training_state.tensors(), state, config=asdict(self.config))
        self.saved_images = self.images_seen

    def _ensure_ours(self) -> None:
        """Before anything is written: where no lock can tell, another process may have taken over the run."""
        if self.state is not None:
            ensure_ours(self.folder, self.state)

    # Before the first step and after the last

    def _check_images(self) -> None:
        training, batch_size = self.dataset.training, self.config.batch_size
        self._say_each([*describe_skipped(self.dataset.skipped), *self.dataset.notes])
        if training < batch_size:
            smaller = f" Only to see it run, use --batch-size {1 << (training.bit_length() - 1)}."
            raise DataError(
                f"--data {self.data}: {training} images to train on are fewer than --batch-size {batch_size}."
                if training > 1
                else f"--data {self.data}: 1 image is not enough to train on.",
                f"Add images of the same kind: {IMAGES_NEEDED} are a beginning." + (smaller if training > 1 else ""),
            )
        if training < IMAGES_NEEDED:
            self.progress.info(
                f"Few images ({training}): the generator may copy them. {IMAGES_NEEDED} or more give varied results."
            )
        held_back = f"{self.dataset.held_back} more are held back to measure with"
        if not self.dataset.held_back:
            held_back = "too few to hold any back, so swd is measured against the same images"
        self.progress.info(f"{training} images to train on at {self.config.resolution} px; {held_back}.")
        if self.dataset.enlarged:
            self.progress.info(f"{self.dataset.enlarged} of the images were smaller than that and have been enlarged.")

    def _begin(self) -> None:
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.folder.prepare(self.config, networks, checkpoint_bytes=self.training_state.checkpoint_bytes())
        self.state = begin(self.folder, data=str(self.data), images_seen=self.images_seen)
        self.tracker.forget_after(self.images_seen)
        self.metrics = self.tracker.newest()
        self.progress.open_log(self.folder.log)
        self._say_each(self.tracker.start())
        self.began, self.began_images = time.perf_counter(), self.images_seen
        self.progress.info(
            f"{'Resuming' if self.images_seen else 'Training'} {self.folder} on {self.device} in "
            f"{self.config.precision}: {self.images_seen / 1000:g} of {self.config.kimg:g} kimg done."
        )

    def _resume(self) -> None:
        """Makes the networks and counts those of the newest checkpoint, or of the beginning where there is none."""
        with suppress(Exception):  # how an earlier call ended does not matter: the disk says what was saved
            self.writer.finish()
        self.state = None
        checkpoint, damaged = newest_checkpoint(self.folder.checkpoints)
        for path, reason in damaged:
            self.progress.info(f"{path}: damaged ({reason}); using the one before.")
        if checkpoint is None:
            self._refuse_to_overwrite(has_damaged=bool(damaged))
            self.training_state.reset()
            self.interval, self.seconds, self.saved_images = Interval(), 0.0, 0
            return
        state = checkpoint.state
        if state["data_fingerprint"] != self.dataset.fingerprint:
            raise RunFolderError(
                f"--data {self.data}: these are not the images that {self.folder} was trained on "
                f"({state['data_images']} then, {self.dataset.training + self.dataset.held_back} now).",
                "Bring those images back to go on, or give another name or run folder to begin with these.",
            )
        if state.get("data_notes", []) != list(self.dataset.notes):
            self.progress.info("So far, this run was trained on images that were decoded differently.")
        self.training_state.load(checkpoint.tensors, images_seen=checkpoint.images_seen)
        self.interval = Interval(**state["interval"])
        self.seconds = state["seconds"]
        self.training_state.dropped.fill_(state.get("dropped_updates", 0))
        self.training_state.dropped_in_a_row.fill_(state.get("dropped_in_a_row", 0))
        self.saved_images = checkpoint.images_seen

    def _refuse_to_overwrite(self, *, has_damaged: bool) -> None:
        """Raises `RunFolderError` for a completed run without a checkpoint: it was imported, or has lost them."""
        recorded = read_note(self.folder)
        if recorded and recorded.state == "completed" and self.folder.generator.exists() and not has_damaged:
            raise RunFolderError(
                f"{self.folder}: has a generator but no checkpoint to resume from.",
                "Use another name or run folder, or remove this one to train it from scratch.",
            )

    def _recorded_end(self) -> RunState | None:
        """How the run has ended where there is nothing left to train, else None."""
        recorded, stored = read_note(self.folder), self.folder.load_config()
        if recorded is None or stored is None or not self._finished():
            return None
        # Else its process died after the last checkpoint, before it recorded the end.
        is_recorded = recorded.state == "completed" or self.config.kimg < stored.kimg
        return recorded if is_recorded else None

    def _leave_as_recorded(self, recorded: RunState) -> RunResult:
        """Writes nothing, unless MLflow lacks a part of the run, which it then gets."""
        look = _where_to_look(self.folder)
        notice = f"Nothing to do: {self.folder} has {self.images_seen / 1000:g} kimg.{look} Give a larger --kimg."
        self.progress.close_log()  # a notebook shows what follows where `run` was called
        self.progress.info(notice)
        if not self.tracker.is_delivered(recorded.state):
            self._say_each(self.tracker.start() + self.tracker.close(recorded.state))
        self.progress.close()
        self.metrics = self.tracker.newest()
        return self._result(recorded.state, notice)

    def _leave(self, state: str) -> RunResult:
        self.progress.close()
        self._end(state)
        self._say_each(self.tracker.close(state))
        self._say_each(describe_skipped(self.dataset.skipped))
        kimg, look = f"{self.images_seen / 1000:g} kimg", _where_to_look(self.folder)
        if state == "completed":
            self.progress.info(f"Done: {kimg}.{look} A larger --kimg continues training.")
        else:
            self.progress.info(f"Stopped after {kimg}.{look} The same command again continues training.")
        return self._result(state)

    def _result(self, state: str, notice: str = "") -> RunResult:
        again = [sys.executable, "-m", "msggan.train", "--data", str(self.data), "--run-dir", str(self.folder)]
        following = [] if state == "completed" else [shlex.join(again)]
        return RunResult(state, self.folder.path, self.images_seen, self.metrics, following, notice)

    def _say_each(self, lines: list[str]) -> None:
        for line in lines:
            self.progress.info(line)

    @contextmanager
    def _tracked(self) -> Iterator[None]:
        """Tells MLflow of a run that fails. One that is stopped at once does not wait for it."""
        try:
            yield
        except SupersededError:
            self.progress.close_log()
            self.tracker.close("interrupted", wait=False)
            raise
        except Exception:
            self._say_each(self.tracker.close("failed"))
            raise
        except BaseException:
            self.tracker.close("interrupted", wait=False)
            raise

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Sees that the run folder tells of an end that nobody asked for, too."""
        try:
            yield
        except BaseException as error:
            self._end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", reason=str(error))
            raise
        finally:
            self.progress.close_log()

    def _end(self, state: str, reason: str = "") -> None:
        """Notes how the run ended, unless it had not begun."""
        if self.state is None:
            return
        with suppress(OSError, SupersededError):  # the disk may be what ended it, or another process
            self._ensure_ours()
            if reason:
                self.progress.record(f"{state.capitalize()}: {reason}")
            end(self.folder, self.state, state, images_seen=self.images_seen, reason=reason)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what the machine refuses during training into what a person can do about it."""
        try:
            yield
        except OSError as error:
            if is_out_of_memory(error):
                raise
            where = f"{error.filename or self.folder}: {error.strerror or error}"
            raise TrainingError(
                f"{where}, after {self.images_seen / 1000:g} kimg.",
                f"What is in {self.folder.checkpoints} is good. Mend that and run the same command again.",
            ) from error
        except DataError as error:  # an image changed or vanished since it was first read
            raise TrainingError(error.message, error.hint) from error
        finally:
            self.progress.close()

    def _out_of_memory(self) -> OutOfMemoryError:
        hint = "Use a smaller --batch-size, --resolution or --latent-size"
        if self.folder.config.exists():
            hint += " and another name: a run that has begun keeps its own"
        return OutOfMemoryError(
            f"Out of memory on {self.device} at --resolution {self.config.resolution}, --latent-size "
            f"{self.config.latent_size}, --batch-size {self.config.batch_size}.",
            f"{hint}.",
        )


def _where_to_look(folder: RunFolder) -> str:
    """A sentence that names the newest samples, empty where there are none."""
    grids = find_samples(folder.samples)
    return f" Look at {grids[max(grids)][-1]}." if grids else ""


@dataclass
class Stop:
    """Whether the run was asked to stop, and how that is called."""

    state: str | None = None


@contextmanager
def _polite_stop() -> Iterator[Stop]:
    """Within, Ctrl-C and SIGTERM ask for a stop after the step at hand; a second Ctrl-C stops at once.

    A signal that this process ignores stays ignored: a job in a script's background (`&`) ignores Ctrl-C.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread is sent signals
        return
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]

    def ask(number: int, frame: FrameType | None) -> None:
        stop.state = "interrupted" if number == signal.SIGINT else "cancelled"
        if signal.SIGINT in numbers:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
