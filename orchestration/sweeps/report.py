"""How does a sweep look as a page? One HTML file, complete in itself, that a browser opens from the disk."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from msggan.display.html import embedded, escaped
from msggan.runs.files import write_whole
from orchestration.sweeps.charts import NARROW, WIDE, against, curves, drawable
from orchestration.sweeps.space import SearchSpace, written
from orchestration.sweeps.spec import Objective, SweepStatus, Trial, sorted_trials

# The page may fetch nothing, so that nothing in it can tell anyone that it was opened.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
PNG_BEGINS = b"\x89PNG\r\n\x1a\n"
MAKES_THE_LATENTS = ("latent_size", "seed")
WITHOUT_PICTURES = {
    "queued": "It has not begun.",
    "preparing": "It has made no pictures yet.",
    "running": "It has made no pictures yet.",
}


def write_report(
    path: Path, status: SweepStatus, *, space: SearchSpace, facts: Mapping[str, str], grids: Mapping[int, Path]
) -> None:
    """Writes the page of a sweep; an older one at `path` is replaced at once, whole.

    facts: what else is to be said of the sweep, by name, such as its data. grids: each trial's sample grid, a PNG
    file, by the trial's number; a trial whose file is missing or cannot be read gets the reason in its place. Raises
    `OSError` where the page cannot be written.
    """
    write_whole(path, report(status, space=space, facts=facts, grids=grids).encode())


def newest_grid(names: Iterable[str]) -> str | None:
    """Of the names of a run's sample files that of the last grid in full resolution, None where there is none."""
    found = {}
    for name in names:
        if match := re.fullmatch(r"(\d{9,})_(\d+)px\.png", name):
            found[int(match[1]), int(match[2])] = name
    return found[max(found)] if found else None


def report(status: SweepStatus, *, space: SearchSpace, facts: Mapping[str, str], grids: Mapping[int, Path]) -> str:
    """The page as text; see `write_report`."""
    trials = sorted_trials(status.trials, status.objective)
    best = None if status.warnings else status.best  # what may be chance is not marked as the best
    body = [
        _heading(status, facts),
        _answer(status),
        _contact_sheet(trials, best, status.objective, space, grids),
        _curves(trials, best, status.objective),
        _plots(trials, best, status.objective, space),
        _table(trials, best, status.objective, space),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Sweep {escaped(status.name)}</title>\n<style>\n{_packaged('report.css')}</style>\n</head>\n"
        f"<body>\n{''.join(part for part in body if part)}"
        f"<script>\n{_packaged('report.js')}</script>\n</body>\n</html>\n"
    )


def _packaged(name: str) -> str:
    return (files("orchestration.sweeps") / name).read_text(encoding="utf-8")


# --- The answer -------------------------------------------------------------------------------------------------------


def _heading(status: SweepStatus, facts: Mapping[str, str]) -> str:
    states = Counter(trial.state for trial in status.trials)
    counted = ", ".join(f"{count} {state}" for state, count in states.most_common())
    said = {"state": status.state, "target": status.target, "trials": counted or "none", **facts}
    if status.run_dir:
        said["folder"] = status.run_dir
    reason = f"<p>{escaped(status.reason)}</p>\n" if status.reason else ""
    portal = _link(status.portal_url, "In Azure ML studio")
    return f"<h1>Sweep {escaped(status.name)}</h1>\n{_definitions(said)}{reason}{portal}"


def _link(address: str | None, words: str) -> str:
    if address is None or not address.startswith("https://"):  # an address may also be a script
        return ""
    return f'<p><a href="{escaped(address)}" rel="noreferrer">{words}</a></p>\n'


def _definitions(said: Mapping[str, str]) -> str:
    pairs = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(text)}</dd></div>" for name, text in said.items())
    return f"<dl>{pairs}</dl>\n"


def _answer(status: SweepStatus) -> str:
    if status.best is None:
        said = _no_answer(status)
    elif status.warnings:
        said = _unclear_answer(status, status.best)
    else:
        best = status.best
        said = (
            f"<p><strong>Trial {best.number} is the best: {escaped(_reached(best, status.objective))}</strong> "
            f'<span class="faint">({_better(status.objective)})</span></p>\n{_settings_of(best)}'
        )
    commands = "".join(f"<pre>{escaped(command)}</pre>\n" for command in status.next)
    then = f"<p>What to type next:</p>\n{commands}" if commands else ""
    return f'<section class="answer">\n{said}{then}</section>\n'


def _unclear_answer(status: SweepStatus, first: Trial) -> str:
    """What is said of a sweep whose first trial may be first by chance."""
    reasons = "".join(f"<p>{escaped(warning)}</p>\n" for warning in status.warnings)
    reached = escaped(_reached(first, status.objective))
    return (
        f"<p><strong>No trial is clearly the best.</strong></p>\n{reasons}"
        f"<p>Trial {first.number} comes first: {reached} "
        f'<span class="faint">({_better(status.objective)})</span>. Compare the samples.</p>\n{_settings_of(first)}'
    )


def _settings_of(trial: Trial) -> str:
    return _definitions({name: written(value) for name, value in trial.settings.items()})


def _no_answer(status: SweepStatus) -> str:
    if not status.trials:
        return "<p><strong>This sweep has no trials yet.</strong></p>\n"
    every = len(status.trials) == sum(trial.state == "failed" for trial in status.trials)
    said = "Every trial failed." if every else f"No trial has a value of {status.objective.metric} yet."
    reasons = Counter(trial.reason for trial in status.trials if trial.state == "failed" and trial.reason)
    counted = "".join(f"<p>{count} × {escaped(reason)}</p>\n" for reason, count in reasons.most_common(5))
    return f"<p><strong>{escaped(said)}</strong></p>\n{counted}"


def _better(objective: Objective) -> str:
    return "lower is better" if objective.direction == "minimize" else "higher is better"


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _reached(trial: Trial, objective: Objective) -> str:
    return f"{objective.metric} {trial.objective:.4g}" if _is_finite(trial.objective) else f"no {objective.metric}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else written(value)


# --- Pictures ---------------------------------------------------------------------------------------------------------


def _contact_sheet(
    trials: Sequence[Trial], best: Trial | None, objective: Objective, space: SearchSpace, grids: Mapping[int, Path]
) -> str:
    if not trials:
        return ""
    differ = [name for name in MAKES_THE_LATENTS if name in space.names]
    note = (
        f"Best first. {' and '.join(differ)} {'is' if len(differ) == 1 else 'are'} swept, so the latents differ from "
        "trial to trial: the same place in two grids is not the same latent."
        if differ
        else "Best first. The same place in each grid is the same latent."
    )
    figures = "".join(_figure(trial, objective, grids.get(trial.number), is_best=trial is best) for trial in trials)
    return f'<h2>Samples</h2>\n<p class="faint">{note}</p>\n<div class="sheet">\n{figures}</div>\n'


def _figure(trial: Trial, objective: Objective, grid: Path | None, *, is_best: bool) -> str:
    settings = ", ".join(f"{name} {_short(value)}" for name, value in trial.settings.items())
    ended = "" if trial.state == "completed" else f"<span>{escaped(trial.state)}</span>"
    return (
        f'<figure{_best_class(is_best)} data-trial="{trial.number}">{_picture(trial, grid)}<figcaption>'
        f"<b>Trial {trial.number}</b> · {escaped(_reached(trial, objective))}{ended}"
        f"<span>{escaped(settings)}</span></figcaption></figure>\n"
    )


def _best_class(is_best: bool) -> str:
    return ' class="best"' if is_best else ""


def _picture(trial: Trial, grid: Path | None) -> str:
    if grid is None:
        return _no_picture(trial)
    try:
        content = grid.read_bytes()
    except FileNotFoundError:
        return _no_picture(trial)
    except OSError as error:
        return _instead(f"Its pictures could not be read: {error.strerror}.")
    if not content.startswith(PNG_BEGINS):
        return _instead(f"Its pictures could not be read: {grid.name} is no PNG file.")
    return f'<img src="{embedded(content, "image/png")}" alt="Samples of trial {trial.number}">'


def _no_picture(trial: Trial) -> str:
    said = WITHOUT_PICTURES.get(trial.state, "It ended without pictures.")
    return _instead(said, *([trial.reason] if trial.reason else []))


def _instead(*said: str) -> str:
    return f'<div class="none">{"".join(f"<p>{escaped(text)}</p>" for text in said)}</div>'


# --- Charts -----------------------------------------------------------------------------------------------------------


def _curves(trials: Sequence[Trial], best: Trial | None, objective: Objective) -> str:
    sizes = {"wide": WIDE, "narrow": NARROW}  # the page shows the one that fits
    drawn = {kind: curves(trials, best, objective.metric, size=size) for kind, size in sizes.items()}
    if not any(drawn.values()):
        return ""
    note = f"One line per trial; {_better(objective)}."
    note += "" if best is None else f" Trial {best.number}, the best, stands out."
    title = f"<h2>{escaped(objective.metric)} during training</h2>\n"
    charts = "".join(f'<div class="{kind}">{svg}</div>\n' for kind, svg in drawn.items())
    return f'{title}<p class="faint">{note}</p>\n{charts}'


def _plots(trials: Sequence[Trial], best: Trial | None, objective: Objective, space: SearchSpace) -> str:
    drawn = [against(dimension, trials, best, objective.metric) for dimension in space.dimensions]
    plots = "".join(f"<div>{svg}</div>\n" for svg in drawn if svg)
    if not plots:
        return ""
    missing = sum(not drawable(trial.objective) for trial in trials)
    counted = "1 trial without a value is" if missing == 1 else f"{missing} trials without a value are"
    note = f" {counted} not drawn." if missing else ""
    title = f"<h2>{escaped(objective.metric)} against each swept value</h2>\n"
    note = f'<p class="faint">One dot per trial; {_better(objective)}.{note}</p>\n'
    return f'{title}{note}<div class="plots">\n{plots}</div>\n'


# --- The table --------------------------------------------------------------------------------------------------------


def _table(trials: Sequence[Trial], best: Trial | None, objective: Objective, space: SearchSpace) -> str:
    """A table whose cells carry what they are sorted by, nothing where there is no value."""
    if not trials:
        return ""
    numeric = [all(_is_number(trial.settings.get(name)) for trial in trials) for name in space.names]
    headings = [
        _head("trial", numeric=True),
        _head(objective.metric, numeric=True),
        *(_head(name, numeric=is_number) for name, is_number in zip(space.names, numeric, strict=True)),
        _head("images seen", numeric=True),
        _head("how it ended", numeric=False),
        _head("reason", numeric=False),
    ]
    rows = "".join(_row(trial, objective, space.names, numeric, is_best=trial is best) for trial in trials)
    return (
        '<h2>Trials</h2>\n<p class="faint">A heading sorts by its column; again, the other way round.</p>\n'
        f'<div class="table" tabindex="0">\n<table>\n<thead><tr>{"".join(headings)}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    )


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _head(text: str, *, numeric: bool) -> str:
    kind = ' class="number"' if numeric else ""
    return f'<th scope="col"{kind} aria-sort="none"><button type="button">{escaped(text)}</button></th>'


def _row(trial: Trial, objective: Objective, names: Sequence[str], numeric: Sequence[bool], *, is_best: bool) -> str:
    cells = [
        _number_cell(trial.number),
        _number_cell(trial.objective),
        *(
            _number_cell(trial.settings.get(name)) if is_number else _text_cell(_text(trial.settings.get(name)))
            for name, is_number in zip(names, numeric, strict=True)
        ),
        _number_cell(trial.images_seen),
        _text_cell(trial.state),
        _text_cell(trial.reason, kind="reason"),
    ]
    return f"<tr{_best_class(is_best)}>{''.join(cells)}</tr>\n"


def _text(value: object) -> str:
    return "" if value is None else written(value)


def _number_cell(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return '<td class="number" data-value="">–</td>'
    said = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f'<td class="number" data-value="{value:.17g}" title="{written(value)}">{said}</td>'


def _text_cell(text: str, kind: str = "") -> str:
    said = f' class="{kind}"' if kind else ""
    return f'<td{said} data-value="{escaped(text)}">{escaped(text) or "–"}</td>'
