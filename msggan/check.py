"""`python -m msggan.check --data PATH [options]`: examine images as training reads them, and what a run would need."""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msggan.commands.options import command, data_option, output_option
from msggan.commands.program import run_program
from msggan.commands.verbs import CheckOptions, check_options, parse_check, show_check
from msggan.config import RECOMMENDED_IMAGES, TrainConfig, decoding_options, explicit_values, resolve, too_few
from msggan.display.check_page import page
from msggan.display.progress import duration, progress_callback
from msggan.errors import OutOfMemoryError, RefusedError, plural
from msggan.resources import check as check_resources
from msggan.resources import machine_memory, plan
from msggan.runs.files import write_whole

if TYPE_CHECKING:
    import numpy as np

    from msggan.data.dataset import Dataset, Skipped
    from msggan.data.survey import Header, Measures, Mirroring

NAMES_LISTED = 5
PICTURES_SHOWN = 12  # of each finding
WHOLE_PX = 192  # of an image shown with what is cut off
MUCH_CUT_OFF = 0.5
MUCH_CUT_OFF_MEDIAN = 0.35  # a photograph of 3:2 loses a third
NOTABLE_CUT_OFF = 0.1  # from which on a page shows what is cut off
TIMED_SECONDS = 10.0

Pictures = Mapping[str, Sequence[tuple[str, bytes]]]
"""by kind of finding: names and PNG files"""


@command()
@data_option
@check_options
@output_option
def check(*, data: str, output: str, problems: Sequence[str], **values: Any) -> int:
    """Examine images before training: unreadable, repeated, small, blank and blurred ones, and what cropping cuts off.

    Reads them as training does, and says what a run would need here. The exit code is 2 if no run can train on them.
    """
    return show_check(examine(data, parse_check(problems, **values)), output)


@dataclass(frozen=True)
class Finding:
    """What makes images worse to train on, or useless.

    kind: for scripts. names: of the images, at most a few. numbers: of those that a page shows, in the dataset.
    is_fatal: no run can train on these images. is_note: it may be as it should be.
    """

    kind: str
    count: int
    message: str
    hint: str
    names: Sequence[str] = ()
    numbers: Sequence[int] = ()
    is_fatal: bool = False
    is_note: bool = False

    def as_json(self) -> dict[str, Any]:
        more = [f"and {self.count - NAMES_LISTED} more"] if len(self.names) > NAMES_LISTED else []
        files = [*self.names[:NAMES_LISTED], *more]
        return {"kind": self.kind, "count": self.count, "message": self.message, "hint": self.hint, "files": files}


@dataclass(frozen=True)
class Examined:
    """The images at `data`, as training would read them with this configuration, and what they are like.

    first: (N,), of each image the first that it is a copy of. headers: of the files, none for a pack.
    """

    data: str
    config: TrainConfig
    dataset: Dataset
    measures: Measures
    first: np.ndarray
    headers: Sequence[Header]
    mirroring: Mirroring | None

    @property
    def different(self) -> int:
        return len(set(self.first.tolist()))


def examine(data: str, options: CheckOptions) -> dict[str, Any]:
    """Examines the images and writes the page that was asked for. Raises `DataError` if there are none to read."""
    import numpy as np

    from msggan.data.pack_file import Pack
    from msggan.data.sources import open_source
    from msggan.data.survey import compare_mirrored, find_copies, measure, read_headers

    source = open_source(data)
    device, has_fast_bfloat16 = find_device(options.hardware.device, may_load_torch=not options.no_time)
    config = resolve(
        TrainConfig(**{**source.fixed_options, **explicit_values(options.config)}),
        shorter_side_px=options.resolution or source.median_shorter_side(),
        device=device.split(":")[0],
        has_fast_bfloat16=has_fast_bfloat16,
        images=source.images,
    )
    workers = options.hardware.workers
    with progress_callback(f"Reading {source.images} images", source.images) as progress:
        dataset = source.dataset(**decoding_options(config), labels="auto", workers=workers, progress=progress)
    with progress_callback(f"Examining {len(dataset.digests)} images", len(dataset.digests)) as progress:
        measures = measure(dataset, progress=progress)
    first = find_copies(measures.thumbnails, workers=dataset.workers)
    examined = Examined(
        data,
        config,
        dataset,
        measures,
        first,
        [] if isinstance(source, Pack) else read_headers(source.files, workers=workers),
        compare_mirrored(measures.thumbnails[np.unique(first)]),
    )
    needs, refused = needed(config, device, source.memory_bytes(config.resolution))
    findings = [*image_findings(examined), *refused]
    is_usable = not any(finding.is_fatal for finding in findings)
    speed = measured_speed(config, dataset, device) if is_usable and not refused and not options.no_time else None
    result = as_json(examined, findings, device=device, needs=needs, images_per_second=speed, html=options.html)
    if options.html:
        Path(options.html).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(options.html), page(result, pictures(examined, findings)).encode())
    return result


# --- What is found ----------------------------------------------------------------------------------------------------


def image_findings(examined: Examined) -> list[Finding]:
    """What is wrong with the images, the gravest first."""
    found = [*_fatal(examined), *_unreadable(examined.dataset.skipped), *_copies(examined), *_small(examined)]
    return [*found, *_cut_off(examined), *_blank_and_blurred(examined), *_mirrored(examined)]


def _fatal(examined: Examined) -> Iterator[Finding]:
    from msggan.data.survey import USELESS_HINT, useless

    dataset, different = examined.dataset, examined.different
    if problem := too_few(dataset.training, examined.config.batch_size):
        yield Finding("too_few", dataset.training, *problem, is_fatal=True)
    elif found := useless(examined.measures):
        count, what = found
        which = "All" if count == len(dataset.digests) else f"{count} of {len(dataset.digests)}"
        yield Finding("useless", count, f"{which} images {what}.", USELESS_HINT, is_fatal=True)
    elif different < RECOMMENDED_IMAGES:
        message = f"Few different images ({different}): the generator may copy them."
        hint = f"Add images of the same kind: {RECOMMENDED_IMAGES} or more give varied results."
        yield Finding("few", different, message, hint)


def _unreadable(skipped: Sequence[Skipped]) -> Iterator[Finding]:
    from msggan.data.sources import RUN_FOLDER, describe_skipped

    broken = [each for each in skipped if each.kind is None and each.reason != RUN_FOLDER]
    names = [f"{each.name}: {each.reason}" for each in broken]
    if broken:
        message = f"{plural(len(broken), 'file')} cannot be read."
        yield Finding("unreadable", len(broken), message, "Repair or remove them; training skips them.", names)
    unsupported = [each for each in skipped if each.kind is not None and each.reason]
    if unsupported:
        hint = "Convert them, or install what reads them; training skips them."
        yield Finding("unsupported", len(unsupported), " ".join(describe_skipped(unsupported)), hint)


def _copies(examined: Examined) -> Iterator[Finding]:
    import numpy as np

    first, name = examined.first, examined.dataset.name
    copies = np.flatnonzero(first != np.arange(len(first)))
    if len(copies):
        which = plural(len(copies), "image", "is a copy of another", "are copies of others")
        counts = f"{examined.different} of {len(first)} are different"
        message = f"{which}, unchanged, mirrored or nearly: {counts}."
        names = [f"{name(number)} is a copy of {name(first[number])}" for number in copies[: NAMES_LISTED + 1]]
        shown = [number for copy in copies[: PICTURES_SHOWN // 2] for number in (first[copy], copy)]
        hint = "Remove them: training would show these images more often, and measure itself against copies."
        yield Finding("copies", len(copies), message, hint, names, shown)


def _small(examined: Examined) -> Iterator[Finding]:
    side, small = examined.config.resolution, examined.dataset.enlarged
    if small:
        few = sorted(examined.headers, key=lambda header: min(header.width, header.height))[:small]
        names = [f"{header.file.name}: {header.width} x {header.height} px" for header in few]
        half = f"--resolution {side // 2}" if side > 4 else "larger images"
        hint = f"They are enlarged, which blurs them. Use larger files, or {half}."
        message = f"{plural(small, 'image', 'is', 'are')} smaller than {side} px."
        yield Finding("too_small", small, message, hint, names)


def _cut_off(examined: Examined) -> Iterator[Finding]:
    if examined.config.fit == "pad" or not examined.headers:
        return
    largest = sorted(examined.headers, key=lambda each: -each.cut_off)
    names = [f"{each.file.name}: {each.width} x {each.height} px" for each in largest]
    much, usual = sum(each.cut_off > MUCH_CUT_OFF for each in largest), largest[len(largest) // 2].cut_off
    if much:
        message = f"{plural(much, 'image', 'loses', 'lose')} more than half when cropped to the centre square."
        hint = "Use --fit pad to keep whole images, or crop them yourself, around what they show."
        yield Finding("extreme_aspect", much, message, hint, names[:much])
    if usual > MUCH_CUT_OFF_MEDIAN:
        message = f"Cropping to the centre square cuts off {100 * usual:.0f} % of an image (median)."
        hint = "Use --fit pad to keep whole images, if what they show is not in their centre square."
        yield Finding("much_cut_off", len(largest), message, hint, is_note=True)


def _blank_and_blurred(examined: Examined) -> Iterator[Finding]:
    import numpy as np

    measures, side = examined.measures, examined.config.resolution
    blank, blurred = np.flatnonzero(measures.is_blank), np.flatnonzero(measures.is_blurred)
    blurred = blurred[np.argsort(measures.detail[blurred])]
    for kind, numbers, verbs, what, hint in (
        ("blank", blank, ("has", "have"), "one colour only", "Remove them."),
        (
            "blurred",
            blurred,
            ("is", "are"),
            f"blurred, with less than a sixteenth of the usual share of fine detail at {side} px",
            "Look at them, and remove those that are out of focus.",
        ),
    ):
        if len(numbers) and (kind != "blank" or len(numbers) < len(measures.is_blank)):
            names = [examined.dataset.name(number) for number in numbers[: NAMES_LISTED + 1]]
            shown = numbers[:PICTURES_SHOWN].tolist()
            message = f"{plural(len(numbers), 'image', *verbs)} {what}."
            yield Finding(kind, len(numbers), message, hint, names, shown)


def _mirrored(examined: Examined) -> Iterator[Finding]:
    mirroring = examined.mirroring
    if mirroring is not None and mirroring.differs:
        message = (
            "Left and right differ, as in text and asymmetric objects: a classifier distinguishes images from their "
            f"mirrored copies in {100 * mirroring.accuracy:.0f} % of cases (by chance in at most "
            f"{100 * mirroring.by_chance:.0f} %)."
        )
        hint = "Use --no-mirror if generated images must not be mirrored."
        yield Finding("mirrored", mirroring.images, message, hint, is_note=True)


def verdict(examined: Examined, findings: Sequence[Finding]) -> str:
    """Whether to train on these images, and what to do first."""
    fatal = [finding for finding in findings if finding.is_fatal]
    if fatal:
        return f"Unusable. {fatal[0].message} {fatal[0].hint}"
    different = f"{plural(examined.different, 'different image')}."
    improvable = [finding for finding in findings if not finding.is_note]
    notes = [finding.hint for finding in findings if finding.is_note]
    if not improvable:
        return " ".join([f"Fine: {different}", *notes])
    first, others = improvable[0], len(improvable) - 1
    more = [f"There {'is' if others == 1 else 'are'} {plural(others, 'other finding')}."] if others else []
    return " ".join([f"Usable: {different}", first.message, first.hint, *more, *notes])


# --- What training needs ----------------------------------------------------------------------------------------------


def find_device(name: str, *, may_load_torch: bool) -> tuple[str, bool]:
    """The device that training would use, and whether it has fast bfloat16. Without torch `auto` is only a guess."""
    if may_load_torch:
        with suppress(ModuleNotFoundError):
            from msggan.device import choose_device, has_fast_bfloat16

            device = choose_device(name)
            return str(device), has_fast_bfloat16(device)
    return ("cuda" if shutil.which("nvidia-smi") else "cpu") if name == "auto" else name, False


def needed(config: TrainConfig, device: str, image_bytes: int) -> tuple[str, list[Finding]]:
    """The memory and the disk space of a run, and a finding if this machine has too little."""
    kind = device.split(":", maxsplit=1)[0]
    needs = str(plan(config, device=kind, image_bytes=image_bytes))
    available = machine_memory() if kind != "cuda" else None
    try:
        check_resources(config, Path("runs") / "of-this-check", kind, available, image_bytes=image_bytes)
    except RefusedError as error:
        return needs, [Finding("resources", 1, error.message, error.hint)]
    return needs, []


def measured_speed(config: TrainConfig, dataset: Dataset, device: str) -> float | None:
    """The images per second of a few steps, in about ten seconds; None without torch or with too little memory."""
    try:
        from msggan.device import memory_errors
    except ModuleNotFoundError:
        return None
    try:
        with memory_errors(lambda: OutOfMemoryError("too little memory")):
            seconds = _timed_steps(config, dataset, device)
    except OutOfMemoryError:
        return None
    # The first steps are slower, and so are those beside another program; a step with penalties takes longer.
    interval = config.penalty_interval
    rounds = [seconds[at : at + interval] for at in range(interval, len(seconds) + 1 - interval, interval)]
    return config.batch_size / min(sum(each) / len(each) for each in rounds or [seconds[1:]])


def _timed_steps(config: TrainConfig, dataset: Dataset, device: str) -> list[float]:
    """The seconds of each of two steps or more."""
    import torch

    from msggan.data.stream import SampleStream, to_float
    from msggan.steps import TrainingState

    stream = SampleStream(dataset, seed=config.seed, batch_size=config.batch_size, mirror=config.mirror)
    state = TrainingState(config, torch.device(device), classes=dataset.classes, inform=lambda line: None)
    began, seconds = time.perf_counter(), []
    with closing(stream.batches(0, latent_size=config.latent_size, pinned=False)) as batches:
        for images, latents in batches:
            step_began = time.perf_counter()
            float(state.step(to_float(images), latents)["d_loss"])  # waits for the device
            seconds.append(time.perf_counter() - step_began)
            is_late = time.perf_counter() - began > TIMED_SECONDS
            if len(seconds) == 4 * config.penalty_interval or (is_late and len(seconds) > 1):
                break
    return seconds


# --- The result -------------------------------------------------------------------------------------------------------


def as_json(
    examined: Examined,
    findings: Sequence[Finding],
    *,
    device: str,
    needs: str,
    images_per_second: float | None,
    html: str | None,
) -> dict[str, Any]:
    """The result. facts: the same as text, by name, for people."""
    dataset, config, headers = examined.dataset, examined.config, examined.headers
    mirroring = examined.mirroring
    seconds = 1000 * config.kimg / images_per_second if images_per_second else None
    sides = _spread([min(each.width, each.height) for each in headers])
    outside, is_cropped = _spread([each.cut_off for each in headers]), config.fit == "crop"
    result: dict[str, Any] = {
        "data": examined.data,
        "usable": not any(finding.is_fatal for finding in findings),
        "verdict": verdict(examined, findings),
        "images": len(dataset.digests),
        "different": examined.different,
        "formats": dict(Counter(each.format for each in headers).most_common()),
        "modes": dict(Counter(each.mode for each in headers).most_common()),
        "shorter_side_px": sides,
        "cut_off": outside if is_cropped else None,
        "padding": None if is_cropped else outside,
        "classes": dataset.classes,
        "mirrored": mirroring and {**mirroring._asdict(), "differs": mirroring.differs},
        "training": {
            "images": dataset.training,
            "held_out": dataset.held_out,
            "device": device,
            **{name: getattr(config, name) for name in ("recipe", "resolution", "batch_size", "kimg")},
            "needs": needs,
            "images_per_second": images_per_second,
            "seconds": seconds,
        },
        "findings": [finding.as_json() for finding in findings],
        "html": html,
    }
    return {**result, "facts": facts(result)}


def facts(result: Mapping[str, Any]) -> dict[str, str]:
    """What the images are and what training needs, by name, as text."""
    from msggan.data.classes import describe_classes

    found = {"Images": f"{result['images']} in {result['data']}, {result['different']} different"}
    for name in ("formats", "modes"):
        if result[name]:
            found[name.capitalize()] = ", ".join(f"{count} {kind}" for kind, count in result[name].items())
    if sides := result["shorter_side_px"]:
        found["Shorter side"] = "{least} to {most} px, median {median} px".format_map(sides)
        what, name = ("an image", "Cut off by cropping") if result["cut_off"] else ("a square", "Added by padding")
        shares = {each: f"{100 * share:.0f} %" for each, share in (result["cut_off"] or result["padding"]).items()}
        found[name] = f"{shares['median']} of {what} (median), at most {shares['most']}"
    else:
        found["Files"] = "a pack, which holds the images decoded: check the folder that it was made from"
    if classes := result["classes"]:
        found["Classes"] = f"{describe_classes(classes)}, if you use --labels folders"
    mirrored = result["mirrored"]
    found["Left and right"] = (
        "not tested, since there are too few different images, or they are too small"
        if mirrored is None
        else "differ"
        if mirrored["differs"]
        else "no difference was found; whether it matters is not decided"
    )
    training = result["training"]
    found["Training"] = (
        "{images} images at {resolution} px, {batch_size} a step, on {device}; {held_out} held out".format_map(training)
    )
    found["Needs"] = f"about {training['needs']}"
    if training["seconds"]:
        found["Time"] = f"about {duration(training['seconds'])} for {training['kimg']:g} kimg"
    return found


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"least": min(values), "median": sorted(values)[len(values) // 2], "most": max(values)} if values else None


def pictures(examined: Examined, findings: Sequence[Finding]) -> dict[str, list[tuple[str, bytes]]]:
    """The images of each finding; also those that cropping cuts off most, whole, or to which padding adds most."""
    import numpy as np

    from msggan.data.decoding import Decoder
    from msggan.data.survey import whole_image

    shown = {
        finding.kind: [
            (examined.dataset.name(number), _as_png(examined.dataset.rows(np.array([number]))[0].transpose(1, 2, 0)))
            for number in finding.numbers
        ]
        for finding in findings
    }
    read = {examined.dataset.name(number) for number in range(len(examined.dataset.digests))}
    oblong = [each for each in examined.headers if each.cut_off > NOTABLE_CUT_OFF and each.file.name in read]
    most = sorted(oblong, key=lambda each: -each.cut_off)[:PICTURES_SHOWN]
    decoder, is_padded = Decoder(WHOLE_PX, examined.config.background, fit="pad"), examined.config.fit == "pad"
    shown["padding" if is_padded else "cut_off"] = [
        (f"{each.file.name}: {100 * each.cut_off:.0f} %", _as_png(whole_image(each, decoder, is_padded=is_padded)))
        for each in most
    ]
    return shown


def _as_png(pixels: np.ndarray) -> bytes:
    """pixels: (H, W, 3) uint8."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def main() -> None:
    sys.exit(run_program(check, name="python -m msggan.check"))


if __name__ == "__main__":
    main()
