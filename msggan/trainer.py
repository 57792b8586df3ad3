"""`Trainer`: a run from its first image to its last. Start or resume, step, sample, measure, report, save, stop."""

from __future__ import annotations

import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, Concatenate, ParamSpec, TextIO, TypeVar

import torch
from torch import Tensor

from msggan.commands.program import signal_handlers
from msggan.config import (
    RECOMMENDED_IMAGES,
    TrainConfig,
    decoding_options,
    explain,
    explicit_values,
    resolve,
    too_few,
)
from msggan.data.classes import check_classes
from msggan.data.index import index_path
from msggan.data.pack_file import Pack
from msggan.data.sources import ImageFiles, describe_skipped, open_source
from msggan.data.stream import SampleStream, to_float
from msggan.data.survey import refuse_useless
from msggan.device import (
    choose_device,
    device_memory,
    has_fast_bfloat16,
    is_out_of_memory,
    memory_errors,
    peak_memory,
    reusing_memory,
)
from msggan.display.progress import choose_progress, duration
from msggan.errors import DataError, OutOfMemoryError, RunFolderError, SupersededError, TrainingError, plural
from msggan.measuring import RunMeasures, better
from msggan.networks import Discriminator, Generator
from msggan.pictures.grids import find_samples, generate, rows_of_classes, write_samples
from msggan.randomness import Purpose, latents
from msggan.resources import MIB, check
from msggan.runs.checkpoint import Best, CheckpointWriter, ensure_best, newest_checkpoint, save_generator
from msggan.runs.folder import (
    RunFolder,
    RunState,
    ensure_ours,
    in_use_error,
    is_owned,
    owned,
    read_state,
    record_end,
    record_start,
    version_of,
)
from msggan.runs.initial import Source, load_source, take_over, with_options_of
from msggan.runs.run import Run
from msggan.signs import judge, sentences
from msggan.steps import MEASURED, TrainingState
from msggan.tracking.metrics_log import Tracker

REPORT_IMAGES = 250  # an interval has so many images, so that its losses do not depend on the speed
REPORT_SECONDS = 5.0  # between two reports; an evaluation or the end is always reported
MAX_DROPPED_IN_A_ROW = 10
STEPS_TIMED = 100  # before a run says how long it will take

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
TrainerMethod = Callable[Concatenate["Trainer", Arguments], Result]


def timed(activity: str) -> Callable[[TrainerMethod[Arguments, Result]], TrainerMethod[Arguments, Result]]:
    """Adds the time that a method of the trainer takes to what it has spent on an activity."""

    def decorate(method: TrainerMethod[Arguments, Result]) -> TrainerMethod[Arguments, Result]:
        @wraps(method)
        def with_clock(trainer: Trainer, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            with trainer.spent.on(activity):
                return method(trainer, *args, **kwargs)

        return with_clock

    return decorate


@dataclass(frozen=True)
class RunResult:
    """How a run ended. state: completed, interrupted (Ctrl-C) or cancelled (SIGTERM).

    notice: empty, or that there was nothing to do; the state is then the one recorded before, which may be `failed`.
    """

    state: str
    run_dir: Path
    images_seen: int
    metrics: dict[str, float]
    next: list[str] = field(default_factory=list)
    notice: str = ""

    def _repr_html_(self) -> str:
        return Run(self.run_dir)._repr_html_()


class Trainer:
    """Trains on the images at `data` and keeps everything in `run_dir`; a folder that holds a run is resumed.

    device: auto, cpu, cuda, cuda:N or mps. workers: threads that decode images; 0: one per core.
    init_file: where the weights of the configuration's `init` are, if they are not found by that name.
    tracking_uri: an MLflow server or database to log to as well; the run does not depend on it.
    messages: where progress is printed; by default stderr, and in a notebook a display that is updated in place.
    Raises `UsageError`, `DataError`, `RunFolderError`, `RefusedError` or `OutOfMemoryError` before anything is written
    in `run_dir`; `run` may also raise `CheckpointError` and `TrainingError`.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        data: str | Path,
        run_dir: str | Path,
        device: str = "auto",
        workers: int = 0,
        init_file: str | Path | None = None,
        tracking_uri: str | None = None,
        messages: TextIO | None = None,
    ) -> None:
        self.folder = RunFolder(run_dir)
        if is_owned(self.folder):  # before images are read, which may take minutes
            raise in_use_error(self.folder)
        self.folder.recover()
        if self.folder.path.resolve() == Path(data).resolve():
            raise DataError(f"--run-dir {run_dir}: is the folder of the images.", "Use another --name or --run-dir.")
        self.device = choose_device(device)
        self.data, self.config, self.init_file = data, config, init_file
        self.initial: Source | None = None  # the weights that a new run starts from
        self.choices = ""  # of its recipe, in words
        with memory_errors(self._out_of_memory):
            source = open_source(data)
            self.config = self.folder.continued(config) or self._resolved(config, source)
            self.total_images = self.config.kimg * 1000
            self.progress = choose_progress(self.folder, total_images=round(self.total_images), stream=messages)
            self._check_resources(source.memory_bytes(self.config.resolution))
            self.dataset = source.dataset(
                **decoding_options(self.config),
                labels=self.config.labels,
                workers=workers,
                index=index_path(self.folder.path.parent, data),
                progress=self.progress.decoding,
            )
            self._check_images()
            self.samples = SampleStream(
                self.dataset, seed=self.config.seed, batch_size=self.config.batch_size, mirror=self.config.mirror
            )
            self.training_state = TrainingState(
                self.config, self.device, classes=self.dataset.classes, inform=self.progress.info
            )
            if self.initial:
                take_over(self.initial, self.training_state.networks)
        self.measures = RunMeasures(self.dataset, seed=self.config.seed, device=self.device)
        self.generator: Generator = self.training_state.generator
        self.discriminator: Discriminator = self.training_state.discriminator
        self.ema: Generator = self.training_state.ema  # the moving average, of which samples and weights are made
        self.tracker = Tracker(self.folder.metrics, tracking_uri=tracking_uri)
        self.writer = CheckpointWriter(self.folder, may_write=self._ensure_ours)
        self.best: Best | None = None
        self.state: RunState | None = None  # None until this process has started the run
        self.state_version: tuple[int, ...] = ()
        self.stop_state: str | None = None  # how the run ends if a signal has requested a stop
        self.samples_fail = False
        self.interval = Interval()
        self.seconds = 0.0  # spent on steps, by all the processes that have worked on this run
        self.saved_images = 0
        self.spent, self.started_images = TimeSpent(), 0  # since this process took its first step, at that image
        self.reported_at = -math.inf  # by time.perf_counter
        self.is_timed = False  # whether this process has said how long the run will take
        self.metrics: dict[str, float] = {}
        self.evaluations: list[dict[str, float]] = []  # their reports, of the whole run

    @property
    def images_seen(self) -> int:
        return self.training_state.images_seen

    def step(self, reals: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """One step outside of `run`: reals (N, 3, R, R) float in [-1, 1], latents (N, L) of norm √L → d_loss, g_loss.

        `run` starts from what is in the run folder all the same.
        """
        return self.training_state.step(reals, latents)

    def run(self) -> RunResult:
        """Trains to the end of the configuration, or until Ctrl-C or SIGTERM. Called again, it resumes.

        It always starts from the newest checkpoint in the run folder, however an earlier call ended. If that has
        reached --kimg already, it writes nothing and returns the recorded state with a `notice`.
        """
        with memory_errors(self._out_of_memory), self._graceful_stop(), owned(self.folder), self._failures():
            self._resume()
            if recorded := self._recorded_end():
                return self._nothing_to_do(recorded)
            self._start()
            latent_size, pinned = self.config.latent_size, self.device.type == "cuda"
            batches = self.samples.batches(self.images_seen, latent_size=latent_size, pinned=pinned)
            with closing(batches), reusing_memory(self.device):
                try:
                    self._train(self.spent.waiting_for(batches), pinned=pinned)
                finally:
                    self.writer.wait()  # before another process may take over the run
            return self._finish("completed" if self._is_finished() else self.stop_state or "completed")

    def _train(self, batches: Iterator[tuple[Tensor, Tensor]], *, pinned: bool) -> None:
        """The loop: a step, then what is due after it; at the end, or when stopped, a checkpoint."""
        if self.initial and self.images_seen == 0:
            self._start_saving()  # from here on, resuming does not need what the run started from
            self.initial = None
        self.interval.start_clock()
        while not self._is_finished() and self.stop_state is None:
            images, drawn = (each.to(self.device, non_blocking=pinned) for each in next(batches))
            self.interval.add(self.step(to_float(images), drawn))
            self._adapt_augmentation()
            self._check_memory()
            self._check_dropped_updates()

            sample, measure, snapshot, save = (
                self._is_due(getattr(self.config, name) * 1000)
                for name in ("sample_kimg", "metric_kimg", "snapshot_kimg", "checkpoint_kimg")
            )
            report = measure or self._is_due(REPORT_IMAGES)
            if not (sample or snapshot or save or report):
                continue
            self.interval.stop_clock()
            if sample:
                self._sample()
            if report:
                self._report(self._measure(images, drawn) if measure else {})
            if snapshot:
                self._keep_snapshot()
            if save and not self.training_state.dropped_in_a_row:  # the networks may never recover
                self._save()
            self.interval.start_clock()
        self.interval.stop_clock()
        self._save(wait=True)

    def _is_due(self, interval_images: float) -> bool:
        """Whether the last step reached or passed a multiple of the interval, or was the last of all; 0: never."""
        before = self.images_seen - self.config.batch_size
        return interval_images > 0 and (
            self._is_finished() or self.images_seen // interval_images > before // interval_images
        )

    def _is_finished(self) -> bool:
        return self.images_seen >= self.total_images

    def _adapt_augmentation(self) -> None:
        """After every second step, in adaptive augmentation: as many held-out images are scored as a step has."""
        every_second, within_two = divmod(self.images_seen, 2 * self.config.batch_size)
        if self.config.augment == "adaptive" and within_two == 0:
            first = (every_second - 1) * self.config.batch_size
            positions = range(first, first + self.config.batch_size)
            images, labels = self.measures.held_out_images
            shown = [position % len(images) for position in positions]
            self.training_state.adapt_augmentation(to_float(images[shown]), positions, labels[shown])

    def _check_memory(self) -> None:
        """Keeps the size of the parts in the run folder if the last step had to compute its batch in smaller ones."""
        part = self.training_state.part
        if part < self.config.part:
            self.config = replace(self.config, micro_batch=part)
            self._ensure_ours()
            self.folder.change_config(self.config)
            self.progress.info(
                f"Out of memory on {self.device}: from now on, each batch is computed in parts of "
                f"{plural(part, 'image')} (--micro-batch {part}), with the same results."
            )

    def _check_dropped_updates(self) -> None:
        """Raises `TrainingError` after ten dropped updates in a row. Checked every ten steps on a GPU, to wait less."""
        steps = self.images_seen // self.config.batch_size
        if self.device.type != "cpu" and steps % MAX_DROPPED_IN_A_ROW:
            return
        if self.training_state.most_dropped_in_a_row >= MAX_DROPPED_IN_A_ROW:
            networks = " and ".join(f"the {name}'s" for name in self.training_state.dropped_networks())
            raise TrainingError(
                f"{MAX_DROPPED_IN_A_ROW} updates in a row were dropped by {self._kimg()}: "
                f"{networks or 'a'} loss or gradient is not finite.",
                f"Use another name, and lower --g-lr {self.config.g_lr:g} and --d-lr {self.config.d_lr:g}"
                + (" or try --precision float32." if self.config.precision == "bfloat16" else ".")
                + f" The last checkpoint is from before, at {self.saved_images / 1000:g} kimg.",
            )

    # What is due

    @timed("samples")
    def _sample(self) -> None:
        fixed = latents(self.config.seed, range(self.config.num_samples), self.config.latent_size, Purpose.SAMPLE)
        inputs, columns = rows_of_classes(self.ema, fixed)
        pictures = generate(self.ema, inputs)
        self._ensure_ours()
        try:
            self.progress.sample = write_samples(self.folder.samples, self.images_seen, pictures, columns=columns)
        except OSError as error:  # a picture is not worth a run; printed once
            if not self.samples_fail:
                self.progress.info(f"{self.folder.samples}: samples cannot be written ({error.strerror or error}).")
            self.samples_fail = True

    @timed("evaluation")
    def _measure(self, images: Tensor, latents: Tensor) -> dict[str, float]:
        """images: (N, 3, R, R) uint8; latents: (N, L): those of the last step."""
        measured = self.measures.of(self.ema)
        self.best = better(self.best, self.ema, measured, images_seen=self.images_seen, best_by=self.config.best_by)
        received = self.training_state.scale_gradients(to_float(images), latents)
        return measured | {f"scale_gradient_{side}": norm for side, norm in received.items() if math.isfinite(norm)}

    @timed("reports")
    def _report(self, measured: dict[str, float]) -> None:
        """Ends an interval. Reports it if an evaluation, the end, or enough time since the last report requires that.

        What a report says of an interval does not depend on which others are reported.
        """
        self.seconds += self.interval.seconds
        speed = self.interval.steps * self.config.batch_size / self.interval.seconds
        memory = peak_memory(self.device)
        self.metrics = {
            "images": self.images_seen,
            "kimg": self.images_seen / 1000,
            **self.interval.means(),
            **self._augmentation_metrics(),
            "dropped_updates": int(self.training_state.dropped),
            "images_per_second": speed,
            "seconds_per_kimg": 1000 / speed,
            "seconds": self.seconds,
            **({"peak_memory_mib": memory / MIB} if memory else {}),
            **measured,
        }
        self.interval = Interval()
        if measured:
            self._look_for_signs()
        now = time.perf_counter()
        if now - self.reported_at < REPORT_SECONDS and not (measured or self._is_finished()):
            return
        self.reported_at = now
        self._ensure_ours(reread=False)
        self.tracker.report(self.metrics)
        self._info(self.tracker.messages())
        # At the average speed of this process, which includes sampling, measuring and saving.
        speed = (self.images_seen - self.started_images) / (now - self.spent.began)
        seconds_left = max(0, self.total_images - self.images_seen) / speed
        steps = (self.images_seen - self.started_images) // self.config.batch_size
        if steps >= STEPS_TIMED and seconds_left and not self.is_timed:
            self.is_timed = True
            self.progress.info(f"At this speed, the rest of the run takes about {duration(seconds_left)}.")
        self.progress.report(self.metrics, seconds_left=seconds_left)

    def _look_for_signs(self) -> None:
        """Adds the signs of trouble to the metrics of an evaluation, and reports each the first time."""
        earlier, self.evaluations = self.evaluations, [*self.evaluations, self.metrics]
        self.metrics |= judge(self.evaluations, total_images=self.total_images)
        known = {name for report in earlier for name in sentences(report)}
        self._info([sentence for name, sentence in sentences(self.metrics).items() if name not in known])

    def _augmentation_metrics(self) -> dict[str, float]:
        if self.config.augment != "adaptive":
            return {}
        augmentation = self.training_state.augmentation
        metrics = {"augment_strength": augmentation.strength, "overfitting": augmentation.overfitting}
        return {name: value for name, value in metrics.items() if value is not None}

    @timed("checkpoints")
    def _keep_snapshot(self) -> None:
        self._ensure_ours()
        self.folder.snapshots.mkdir(exist_ok=True)
        path = self.folder.snapshots / f"{self.images_seen:09d}.safetensors"
        save_generator(path, self.ema.state_dict(), self._stored_config())

    @timed("checkpoints")
    def _save(self, *, wait: bool = False) -> None:
        """Starts writing a checkpoint of this step, unless there is one. wait: until it is written."""
        if self.images_seen != self.saved_images:
            self._start_saving()
        if wait:
            self.writer.finish()

    def _start_saving(self) -> None:
        state = {
            "data_fingerprint": self.dataset.fingerprint,
            "data_images": self.dataset.training + self.dataset.held_out,
            "data_notes": list(self.dataset.notes),
            "interval": self.interval.plain(),
            "seconds": self.seconds,
            "dropped_updates": int(self.training_state.dropped),
            "dropped_in_a_row": int(self.training_state.dropped_in_a_row),
            "best": self.best and self.best.about,
            **({"augmentation": self.training_state.augmentation.plain()} if self.config.augment == "adaptive" else {}),
        }
        tensors = self.training_state.tensors() | (self.best.to_checkpoint() if self.best else {})
        self._ensure_ours()
        self.tracker.write()  # resuming from this checkpoint keeps all reports up to it
        self.writer.save(self.images_seen, tensors, state, config=self._stored_config())
        self.saved_images = self.images_seen

    def _stored_config(self) -> dict[str, Any]:
        """The configuration that weights are stored with."""
        return {**asdict(self.config), **({"classes": self.ema.classes} if self.ema.classes else {})}

    def _ensure_ours(self, *, reread: bool = True) -> None:
        """Before each write: without working locks, another process may have taken over the run.

        reread: also read a `run.json` whose file is the same as before, as a network drive may show it for a while.
        """
        if self.state is not None and (version_of(self.folder.state) != self.state_version or reread):
            ensure_ours(self.folder, self.state)

    # Before the first step

    def _resolved(self, config: TrainConfig, source: ImageFiles | Pack) -> TrainConfig:
        """The configuration of a new run, with what the images and the weights that it starts from determine."""
        requested = TrainConfig(**{**source.fixed_options, **explicit_values(config)})
        if requested.has_init:
            self.initial = load_source(requested.init, self.folder.path.parent, self.init_file)
            requested = with_options_of(self.initial, requested)
        resolved = resolve(
            requested,
            shorter_side_px=requested.resolution or source.median_shorter_side(),  # reads headers only if needed
            device=self.device.type,
            has_fast_bfloat16=has_fast_bfloat16(self.device),
            images=source.images,
        )
        self.choices = explain(requested, resolved, device=self.device.type, images=source.images)
        return resolved

    def _check_resources(self, image_bytes: int) -> None:
        recorded = read_state(self.folder)
        if recorded is None or recorded.images_seen < self.total_images:
            device, available = self.device.type, device_memory(self.device)
            self.progress.info(check(self.config, self.folder.path, device, available, image_bytes=image_bytes))

    def _check_images(self) -> None:
        training, held_out, batch_size = self.dataset.training, self.dataset.held_out, self.config.batch_size
        self._info([*describe_skipped(self.dataset.skipped), *self.dataset.notes])
        if problem := too_few(training, batch_size):
            raise DataError(f"--data {self.data}: {problem[0]}", problem[1])
        if self.config.augment == "adaptive" and not held_out:
            raise DataError(
                f"--data {self.data}: --augment adaptive compares with held-out images, and of {training} images none "
                "is held out.",
                "Use --augment fixed, or add images: with 400 or more, about one in ten is held out.",
            )
        if is_new := not self.folder.config.exists():  # a run that has started is not refused what it trains on
            refuse_useless(self.dataset, str(self.data), option="--data ")
        if training < RECOMMENDED_IMAGES:
            self.progress.info(
                f"Few images ({training}): the generator may copy them. {RECOMMENDED_IMAGES} or more give varied "
                "results."
            )
        reference = (
            f"{held_out} more are held out to measure swd"
            if held_out
            else "too few to hold any out, so swd is measured against the same images"
        )
        self.progress.info(f"{training} images to train on at {self.config.resolution} px; {reference}.")
        if self.dataset.classes:
            self._info(check_classes(self.data, self.dataset.classes))
        if self.dataset.enlarged:
            self.progress.info(f"{self.dataset.enlarged} of the images were smaller and have been enlarged.")
        if self.choices:
            self.progress.info(self.choices)
        if is_new:
            self.progress.info("msggan-aml check finds copies and blurred images, and shows what cropping cuts off.")

    def _resume(self) -> None:
        """Restores the state of the newest checkpoint, or the initial one if there is none."""
        with suppress(Exception):  # how an earlier call ended does not matter: what counts is on the disk
            self.writer.finish()
        self.state = None
        checkpoint, damaged = newest_checkpoint(self.folder.checkpoints)
        for path, reason in damaged:
            self.progress.info(f"{path}: damaged ({reason}); using the one before.")
        if checkpoint is None:
            recorded = read_state(self.folder)
            if recorded and recorded.state == "completed" and self.folder.generator.exists() and not damaged:
                raise RunFolderError(  # it was imported, or has lost its checkpoints
                    f"{self.folder}: has a generator but no checkpoint to resume from.",
                    "Use another name or run folder, or remove this one to train it from scratch.",
                )
            self.training_state.reset()
            if self.config.has_init:
                self.initial = self.initial or load_source(self.config.init, self.folder.path.parent, self.init_file)
                self.progress.info(take_over(self.initial, self.training_state.networks))
            self.interval, self.seconds, self.saved_images, self.best = Interval(), 0.0, 0, None
            return
        state = checkpoint.state
        if state["data_fingerprint"] != self.dataset.fingerprint:
            raise RunFolderError(
                f"--data {self.data}: these are not the images{' and classes' if self.dataset.classes else ''} that "
                f"{self.folder} was trained on "
                f"({state['data_images']} then, {self.dataset.training + self.dataset.held_out} now).",
                "Use the same images to resume, or another name or run folder to train on these.",
            )
        if state.get("data_notes", []) != list(self.dataset.notes):
            self.progress.info("Until now, this run was trained on images that were decoded differently.")
        self.best = checkpoint.best
        self.training_state.load(checkpoint.tensors, images_seen=checkpoint.images_seen)
        if self.config.augment == "adaptive":
            self.training_state.augmentation.restore(state["augmentation"])
        self.interval = Interval.from_plain(state["interval"])
        self.seconds = state["seconds"]
        self.training_state.dropped.fill_(state.get("dropped_updates", 0))
        self.training_state.dropped_in_a_row.fill_(state.get("dropped_in_a_row", 0))
        self.saved_images = checkpoint.images_seen

    def _start(self) -> None:
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.folder.prepare(self.config, networks)
        self.state = record_start(
            self.folder, data=str(self.data), images_seen=self.images_seen, classes=[*self.dataset.classes]
        )
        self.state_version = version_of(self.folder.state)
        self.tracker.forget_after(self.images_seen)
        ensure_best(self.folder, self.best, self._stored_config())
        self.folder.forget_snapshots_after(self.images_seen)
        self.metrics = self.tracker.newest()
        self.evaluations = self.tracker.evaluations()
        self.progress.open_log(self.folder.log)
        self._info(self.tracker.start())
        self.spent, self.started_images, self.reported_at = TimeSpent(), self.images_seen, -math.inf
        self.progress.info(
            f"{'Resuming' if self.images_seen else 'Training'} {self.folder} on {self.device} in "
            f"{self.config.precision}, {self.config.batch_size} images a step: {self.images_seen / 1000:g} of "
            f"{self.config.kimg:g} kimg done."
        )

    # After the last step

    def _finish(self, state: str) -> RunResult:
        self.progress.close()
        self._record_end(state)
        self._info([*self.tracker.close(state), *describe_skipped(self.dataset.skipped)])
        self.progress.info(self.spent.line())
        result, following = f"Stopped at {self._kimg()}.", "Run the same command to resume."
        if state == "completed":
            result, following = f"Done: {self._kimg()}.", "Use a larger --kimg to train further."
        self.progress.info(f"{result}{self._newest_samples()} {following}")
        return self._result(state)

    def _recorded_end(self) -> RunState | None:
        """How the run has ended if there is nothing left to train, else None."""
        recorded, stored = read_state(self.folder), self.folder.load_config()
        if recorded is None or stored is None or not self._is_finished():
            return None
        # Else its process died after the last checkpoint, before it recorded the end.
        is_recorded = recorded.state == "completed" or self.config.kimg < stored.kimg
        return recorded if is_recorded else None

    def _nothing_to_do(self, recorded: RunState) -> RunResult:
        """Writes nothing; a part of the run that MLflow has not received is delivered."""
        notice = f"Nothing to do: {self.folder} has {self._kimg()}.{self._newest_samples()} Use a larger --kimg."
        self.progress.close_log()  # a notebook shows what follows where `run` was called
        self.progress.info(notice)
        if not self.tracker.is_delivered(recorded.state):
            self._info(self.tracker.start() + self.tracker.close(recorded.state))
        self.progress.close()
        self.metrics = self.tracker.newest()
        return self._result(recorded.state, notice)

    def _result(self, state: str, notice: str = "") -> RunResult:
        again = [sys.executable, "-m", "msggan.train", "--data", str(self.data), "--run-dir", str(self.folder)]
        following = [] if state == "completed" else [shlex.join(again)]
        return RunResult(state, self.folder.path, self.images_seen, self.metrics, following, notice)

    def _record_end(self, state: str, reason: str = "") -> None:
        """Records in the run folder how the run ended, if this process had started it."""
        if self.state is None:
            return
        with suppress(OSError, SupersededError):  # the disk may be what ended it, or another process
            self._ensure_ours()
            if reason:
                self.progress.record(f"{state.capitalize()}: {reason}")
            record_end(self.folder, self.state, state, images_seen=self.images_seen, reason=reason)
            self.tracker.write()

    def _kimg(self) -> str:
        return f"{self.images_seen / 1000:g} kimg"

    def _newest_samples(self) -> str:
        """A sentence that names the newest samples, empty if there are none."""
        grids = find_samples(self.folder.samples)
        return f" Samples: {grids[max(grids)][-1]}." if grids else ""

    def _info(self, lines: list[str]) -> None:
        for line in lines:
            self.progress.info(line)

    # Signals and failures

    @contextmanager
    def _graceful_stop(self) -> Iterator[None]:
        """Within, Ctrl-C and SIGTERM request a stop after the current step; a second Ctrl-C stops at once.

        A signal that this process ignores stays ignored: a job in a script's background (`&`) ignores Ctrl-C.
        """
        self.stop_state = None
        signals = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]

        def request_stop(number: int, frame: FrameType | None) -> None:
            self.stop_state = "interrupted" if number == signal.SIGINT else "cancelled"
            if signal.SIGINT in signals:
                signal.signal(signal.SIGINT, signal.default_int_handler)

        with signal_handlers(dict.fromkeys(signals, request_stop)):
            yield

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Records in the run folder and in MLflow that the run failed or was interrupted, and explains the error."""
        try:
            yield
        except BaseException as error:
            explained = self._explained(error)
            self.progress.close()
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            self._record_end(state, reason=str(explained))  # the last reports too, which MLflow is to have
            if not isinstance(error, Exception) or isinstance(error, SupersededError):
                self.tracker.close("interrupted", wait=False)  # it must stop at once
            else:
                self._info(self.tracker.close("failed"))
            if explained is error:
                raise
            raise explained from error
        finally:
            self.progress.close_log()

    def _explained(self, error: BaseException) -> BaseException:
        """What a person can do about too little memory, and about the disk or an image once the run has started."""
        if is_out_of_memory(error):
            return self._out_of_memory()
        if self.state is not None and isinstance(error, OSError):
            where = f"{error.filename or self.folder}: {error.strerror or error}"
            return TrainingError(
                f"{where}, at {self._kimg()}.",
                f"The checkpoints in {self.folder.checkpoints} are good. Fix this and run the same command again.",
            )
        if self.state is not None and isinstance(error, DataError):  # an image changed or is damaged
            return TrainingError(error.message, error.hint)
        return error

    def _out_of_memory(self) -> OutOfMemoryError:
        hint = "Use a smaller --batch-size, --resolution or --latent-size"
        if self.folder.config.exists():
            hint += ", and another name: a run that has started keeps its own"
        sizes = [
            f"--{name.replace('_', '-')} {value}"
            for name in ("resolution", "latent_size", "batch_size")
            if (value := getattr(self.config, name)) is not None
        ]
        return OutOfMemoryError(f"Out of memory on {self.device} at {', '.join(sizes) or 'the start'}.", f"{hint}.")


@dataclass
class Interval:
    """The steps since the last report. What they measured is summed on the device, so that no step waits for it.

    sums, counts: of the finite values of each of MEASURED, and how many these are.
    """

    steps: int = 0
    seconds: float = 0.0
    sums: Tensor | Sequence[float] = ()
    counts: Tensor | Sequence[float] = ()

    def add(self, measured: dict[str, Tensor]) -> None:
        """measured: what a step returned, the first few of MEASURED."""
        values = torch.stack(tuple(measured.values()))
        if not isinstance(self.sums, Tensor) or not isinstance(self.counts, Tensor):
            self.sums, self.counts = (_as_tensor(numbers, values) for numbers in (self.sums, self.counts))
        self.steps += 1
        self.sums[: len(values)] += torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        self.counts[: len(values)] += torch.isfinite(values)

    def start_clock(self) -> None:
        self._clock = time.perf_counter()

    def stop_clock(self) -> None:
        """Adds the time since the clock was started, once the device has computed what it was given."""
        self._numbers()
        self.seconds += time.perf_counter() - self._clock

    def plain(self) -> dict[str, Any]:
        """Its fields as plain values, for a checkpoint."""
        sums, counts = self._numbers()
        return {"steps": self.steps, "seconds": self.seconds, "sums": sums, "counts": counts}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Interval:
        """What `plain` returned; checkpoints of earlier versions have the two losses only."""
        if "sums" in plain:
            return cls(**plain)
        counts = [plain["steps"] - plain[f"{network}_missing"] for network in "dg"]
        return cls(plain["steps"], plain["seconds"], [plain["d_loss"], plain["g_loss"]], counts)

    def means(self) -> dict[str, float]:
        """The mean of each of MEASURED; what was finite in no step is omitted."""
        means = zip(MEASURED, *self._numbers(), strict=False)
        return {name: total / count for name, total, count in means if count}

    def _numbers(self) -> tuple[list[float], list[float]]:
        sums, counts = (list(torch.as_tensor(each).tolist()) for each in (self.sums, self.counts))
        return sums, counts


def _as_tensor(numbers: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """As many numbers as MEASURED has, on the device and in the dtype of another tensor; those missing are 0."""
    padded = like.new_zeros(len(MEASURED))
    if len(numbers):
        padded[: len(numbers)] = like.new_tensor(numbers)
    return padded


class TimeSpent:
    """The time since the first step, and how much of it was not spent on steps."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds = dict.fromkeys(("data", "evaluation", "samples", "checkpoints", "reports"), 0.0)

    @contextmanager
    def on(self, activity: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - began

    def waiting_for(self, batches: Iterator[Result]) -> Iterator[Result]:
        """The same batches; the time until each is there is spent on data."""
        while True:
            with self.on("data"):
                batch = next(batches)
            yield batch

    def line(self) -> str:
        """The share of each activity, as `Time: 52 s, of which 95.8 % steps, 0.4 % data, …, 0.3 % reports.`"""
        total = time.perf_counter() - self.began
        seconds = {"steps": total - sum(self.seconds.values()), **self.seconds}
        shares = ", ".join(f"{100 * spent / total:.1f} % {activity}" for activity, spent in seconds.items())
        return f"Time: {duration(total)}, of which {shares}."
