"""How does the page of a sweep on Azure come to be? Written here, with the newest grids of its trials fetched."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from msggan.commands.options import to_argv
from msggan.config import TrainConfig
from msggan.errors import MsgganError
from msggan.runs.files import write_whole
from orchestration.azure.session import Session
from orchestration.runs import COPY_NOTE, is_copy
from orchestration.sweeps.report import newest_grid, write_report
from orchestration.sweeps.space import read_space
from orchestration.sweeps.spec import SweepStatus, Trial

FETCHED_AT_ONCE = 4


def page_of(session: Session, sweep: str) -> Path:
    """Where the page of a sweep is written: beside what else is brought here of it."""
    return Path(session.settings.runs_dir) / sweep / "report.html"


def write_page(session: Session, status: SweepStatus) -> SweepStatus:
    """Writes the sweep's page; where that cannot be done it is said, and the sweep stands as it does."""
    page, tell = page_of(session, status.name), session.reporter.info
    if page.parent.exists() and not is_copy(page.parent):
        tell(f"No report: {page.parent} is of this machine. Give another --runs-dir to have it there.")
        return status
    facts = {"data": status.data, "each trial": " ".join(to_argv(TrainConfig(**status.said))) or "as by default"}
    try:
        with tempfile.TemporaryDirectory(prefix="msggan-grids-") as folder:
            grids = dict(_grids(session, status.trials, Path(folder)))
            page.parent.mkdir(parents=True, exist_ok=True)
            note = {"scope": session.agreement.scope, "run": status.name}
            write_whole(page.with_name(COPY_NOTE), json.dumps(note).encode())
            write_report(page, status, space=read_space(status.space, TrainConfig()), facts=facts, grids=grids)
    except (OSError, MsgganError) as error:
        reason = error.message if isinstance(error, MsgganError) else error.strerror or error
        tell(f"{page}: cannot be written ({reason}).")
        return status
    tell(f"Report: {page}")
    return replace(status, report=str(page))


def _grids(session: Session, trials: Sequence[Trial], to: Path) -> Iterator[tuple[int, Path]]:
    """Brings each trial's newest sample grid here: its trial's number and the file."""
    with ThreadPoolExecutor(FETCHED_AT_ONCE) as threads:
        contents = list(threads.map(partial(_newest_grid, session), trials))
    for trial, content in zip(trials, contents, strict=True):
        if content is not None:
            path = to / f"{trial.number}.png"
            path.write_bytes(content)
            yield trial.number, path


def _newest_grid(session: Session, trial: Trial) -> bytes | None:
    """The PNG file of a trial's last sample grid, in full resolution; None where there is none yet."""
    store, folder = session.folder_at(trial.run_dir)
    with session.client.errors(f"Fetching the samples of {trial.name}"):
        newest = newest_grid(blob.name for blob in store.list_blobs(f"{folder}samples/"))
        return None if newest is None else store.read(f"{folder}samples/{newest}")
