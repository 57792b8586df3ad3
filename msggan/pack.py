"""`python -m msggan.pack --data PATH --out FILE [options]`: decode images into one file to train on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from msggan.commands.options import command, data_option, option, output_option, required
from msggan.commands.program import run_program
from msggan.commands.verbs import PackOptions, pack_file, pack_options, parse_pack, show_pack
from msggan.display.progress import progress_callback

# Decoded images kept in memory until they are written, in the order of their hashes; those beyond are decoded again.
MEMORY_BYTES = 2**30


@command()
@data_option
@option(
    "--out",
    metavar="FILE",
    type=pack_file,
    help="The file to write, which ends in .safetensors.",
    callback=required("--out", "Name the file to write, which ends in .safetensors."),
)
@pack_options
@output_option
def pack(*, data: str, out: str, output: str, problems: Sequence[str], **values: Any) -> int:
    """Decode a folder or zip of images into one file, for --data.

    Training on a pack gives the same result as training on the images, and starts without decoding them. The same
    images give the same file. If each image is in one of several folders, these are its classes.
    """
    options = parse_pack(problems, out, **values)
    show_pack(make_pack(data, out, options), output)
    return 0


def make_pack(data: str, out: str, options: PackOptions) -> dict[str, Any]:
    """Packs the images at `data`; returns the JSON result. Raises `DataError`; then nothing is left behind."""
    from msggan.config import decoding_options, resolve
    from msggan.data.classes import check_classes
    from msggan.data.pack_file import Pack, ensure_writable, write_pack
    from msggan.data.sources import describe_skipped, open_source
    from msggan.data.survey import refuse_useless
    from msggan.errors import DataError

    try:
        source = open_source(data)
        if isinstance(source, Pack):
            with progress_callback(f"Verifying {source.contents.images} images", source.contents.images) as progress:
                source.verify(progress)
            raise DataError(
                f"{data}: is already a pack, and undamaged.", f"Train on it: msggan-aml submit --data {data}"
            )
    except DataError as error:  # msggan-aml calls it FOLDER
        raise DataError(error.message.removeprefix("--data "), error.hint) from error
    side = options.config.resolution or source.median_shorter_side()  # reads headers only if needed
    ensure_writable(Path(out))  # before an hour of decoding, not after it
    # The default resolution is that of a GPU: a pack is made once, and usually for a faster machine than this one.
    config = resolve(options.config, shorter_side_px=side, device="cuda", has_fast_bfloat16=False)
    with progress_callback(f"Reading {len(source.files)} images", len(source.files)) as progress:
        dataset = source.dataset(
            **decoding_options(config),
            workers=options.workers,
            labels="folders" if options.labels == "folders" else "auto",
            memory_budget_bytes=MEMORY_BYTES,
            progress=progress,
        )
    refuse_useless(dataset, data)
    if options.labels == "folders":
        for sentence in check_classes(data, dataset.classes):
            click.echo(sentence, err=True)
    with progress_callback(f"Writing {len(dataset.digests)} images", len(dataset.digests)) as progress:
        contents = write_pack(Path(out), dataset, background=config.background, fit=config.fit, progress=progress)
    for sentence in [*dataset.notes, *describe_skipped(dataset.skipped)]:
        click.echo(sentence, err=True)
    return {
        "path": out,
        "images": contents.images,
        "bytes": Path(out).stat().st_size,
        "resolution": contents.resolution,
        "skipped": len(dataset.skipped),
    }


def main() -> None:
    sys.exit(run_program(pack, name="python -m msggan.pack"))


if __name__ == "__main__":
    main()
