"""Images on this machine as a pack in a datastore: packed, hashed and uploaded once for each content.

`PACKS_FILE` records the pack that a folder gave, so that an unchanged folder is neither packed nor hashed again.
Without it, or if it is damaged, images are packed once more.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msggan
from msggan.commands.options import PACK_SUFFIX, to_argv
from msggan.config import TrainConfig, decoding_options, resolve, too_few
from msggan.errors import DataError
from msggan.runs.files import sha256_of, walk_visible
from orchestration.azure.blobs import PROJECT_FOLDER, Store
from orchestration.azure.records import Records
from orchestration.data_source import DatastorePath
from orchestration.local.process import result_of
from orchestration.spec import RunSpec

if TYPE_CHECKING:
    from orchestration.azure.client import Client

DATA_FOLDER = f"{PROJECT_FOLDER}/data"  # in the datastore
PACKS_FILE = ".azure-packs.json"
PACK_MARK = b'"msggan-pack"'  # in the first bytes of every pack
CLASSES_MARK = b'"class_names"'  # in the header of those with classes
DECODERS = ("pillow", "pillow-heif")  # which decide the pixels


@dataclass(frozen=True)
class Pack:
    """A pack by its content. size: in bytes."""

    sha256: str
    size: int

    @classmethod
    def read(cls, recorded: tuple[Any, Any] | None) -> Pack | None:
        """The pack in a record, None if it is not one."""
        sha256, size = recorded or ("", 0)
        return cls(sha256, size) if re.fullmatch("[0-9a-f]{64}", str(sha256)) and type(size) is int else None

    def path(self, datastore: str) -> DatastorePath:
        return pack_path(self.sha256, datastore)


def pack_path(sha256: str, datastore: str) -> DatastorePath:
    return DatastorePath(datastore, f"{DATA_FOLDER}/{sha256}{PACK_SUFFIX}")


def ensure_pack(data: str, spec: RunSpec, store: Store, client: Client) -> Pack:
    """The pack of a folder, zip or pack on this machine, which the datastore has afterwards. Raises MsgganError."""
    if is_pack := data.lower().endswith(PACK_SUFFIX) and Path(data).is_file():
        refuse_other_file(data, spec.config)
    config = TrainConfig(**decoding_options(spec.config))
    if spec.config.labels == "folders":
        config = replace(config, labels="folders")
    options = [] if is_pack else to_argv(config)
    records, key = Records(Path(client.settings.runs_dir) / PACKS_FILE), fingerprint(Path(data), options)
    known = Pack.read(records.find(key))
    if known is not None and is_stored(known, store, client):
        return known
    pack = upload_pack(Path(data), store, client) if is_pack else make_pack(data, options, spec, store, client)
    if key is not None and fingerprint(Path(data), options) == key:  # nothing has changed in the meantime
        records.add(key, pack.sha256, pack.size)
    return pack


def refuse_other_file(data: str, config: TrainConfig) -> None:
    """Raises `DataError` unless the file is a pack, by its first bytes, and with classes if they are needed."""
    with open(data, "rb") as file:
        beginning = file.read(4096)
    if PACK_MARK not in beginning[:256]:
        raise DataError(f"--data {data}: is not a pack of images.", "Create one: msggan-aml pack FOLDER OUT")
    if config.labels == "folders" and CLASSES_MARK not in beginning:
        raise DataError(
            f"--data {data}: is a pack without classes.", "Pack the images again: msggan-aml pack FOLDER OUT"
        )


def make_pack(data: str, options: Sequence[str], spec: RunSpec, store: Store, client: Client) -> Pack:
    with tempfile.TemporaryDirectory(prefix="msggan-pack-") as folder:
        pack = Path(folder) / f"images{PACK_SUFFIX}"
        args = ["--data", data, "--out", str(pack), *options]
        args += ["--workers", str(spec.hardware.workers)] if spec.hardware.workers else []
        hint = "Run the same command again; it packs the images again."
        result = result_of("msggan.pack", args, expects="path", process="packing", hint=hint)
        refuse_too_few(data, spec.config, result)
        client.reporter.info(f"Packed {result['images']} images at {result['resolution']} px.")
        return upload_pack(pack, store, client)


def refuse_too_few(data: str, config: TrainConfig, packed: Mapping[str, Any]) -> None:
    """Raises `DataError` if the job would refuse so few images. packed: what `msggan-aml pack` prints."""
    images, side = packed["images"], packed["resolution"]
    resolved = resolve(config, shorter_side_px=side, device="cuda", has_fast_bfloat16=False, images=images)
    if problem := too_few(images, resolved.batch_size):
        raise DataError(f"--data {data}: {problem[0]}", problem[1])


def upload_pack(file: Path, store: Store, client: Client) -> Pack:
    """Uploads a pack unless the datastore has it."""
    pack, report = Pack(sha256_of(file), file.stat().st_size), client.reporter
    if not is_stored(pack, store, client):
        with client.errors(f"Uploading the images to the datastore {store.datastore}"):
            report.info(f"Uploading {_mib(pack)} of images to the datastore {store.datastore}.")
            path = pack.path(store.datastore).path
            store.upload(file, path, lambda done, total: report.progress("Uploading", done, total))
    return pack


def is_stored(pack: Pack, store: Store, client: Client) -> bool:
    """Whether the datastore has the whole pack."""
    with client.errors(f"Looking for the images in the datastore {store.datastore}"):
        if store.size_of(pack.path(store.datastore).path) != pack.size:
            return False
    client.reporter.info(f"The images are already in the datastore {store.datastore} ({_mib(pack)}).")
    return True


def _mib(pack: Pack) -> str:
    return f"{pack.size / 2**20:.1f} MiB"


# --- Which pack a folder gave -----------------------------------------------------------------------------------------


def fingerprint(data: Path, options: Sequence[str]) -> str | None:
    """A hash of what a pack depends on, without reading an image; None if the images cannot be listed.

    Of each file its path below `data`, its size and its times; of packing its options and the code that decodes. The
    time of a file's last change of any kind (ctime) also reveals content that was replaced with its old time restored.
    """
    try:
        files = sorted(_stamps(data))
    except OSError:
        return None
    return hashlib.sha256(json.dumps([list(options), _decoding_version(), files]).encode()).hexdigest()


def _stamps(data: Path) -> Iterator[tuple[str, int, int, int]]:
    """Path, size, and times in nanoseconds of the files that are not hidden."""
    if not data.is_dir():
        about = data.stat()
        yield data.suffix, about.st_size, about.st_mtime_ns, about.st_ctime_ns
        return
    for folder, names in walk_visible(data):
        for name in names:
            if not name.startswith("."):
                path = os.path.join(folder, name)
                with suppress(FileNotFoundError):  # a broken link
                    about = os.stat(path)
                    # In UTF-8 with surrogates escaped: names need not be text.
                    yield repr(os.path.relpath(path, data)), about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _decoding_version() -> list[str]:
    """The code that packs, and the versions of the libraries that decode."""
    digest = hashlib.sha256()
    for package in msggan.__path__:
        for path in sorted((Path(package) / "data").glob("*.py")):
            digest.update(path.read_bytes())
    found = [digest.hexdigest()]
    for library in DECODERS:
        with suppress(PackageNotFoundError):
            found.append(f"{library} {version(library)}")
    return found
