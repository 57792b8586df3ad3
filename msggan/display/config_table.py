"""How does a notebook show a configuration? A table of what was said, and of what fills the rest."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

from msggan.config import RECIPES, TrainConfig, explicit_values
from msggan.display.html import FAINT, escaped

GROUPS = {
    "What to make": ("recipe", "resolution", "latent_size", "kimg", "seed"),
    "Learning": ("batch_size", "loss", "g_lr", "d_lr", "beta1", "beta2", "precision"),
    "Penalties": ("r1_gamma", "r2_gamma", "penalty_interval"),
    "Moving average": ("ema_half_life_kimg", "ema_ramp"),
    "Networks": ("equalized", "stddev_group"),
    "Images": ("mirror", "background"),
    "Reports": ("sample_kimg", "metric_kimg", "checkpoint_kimg", "num_samples"),
}
CELL = "text-align:left;padding:1px 12px 1px 0"


def config_table(config: TrainConfig) -> str:
    """HTML: a table for each group of options. The first is open, and those where something but not all was said."""
    values = explicit_values(config)
    asked_for = values if len(values) < len(fields(TrainConfig)) else {}
    parts = []
    for number, (group, names) in enumerate(GROUPS.items()):
        is_open = " open" if number == 0 or asked_for.keys() & set(names) else ""
        rows = "".join(_row(config, name) for name in names)
        summary = f"<summary>{group} <span style='{FAINT}'>{', '.join(names) if not is_open else ''}</span></summary>"
        parts.append(f"<details{is_open}>{summary}<table>{rows}</table></details>")
    return f"<div><b>TrainConfig</b>{''.join(parts)}</div>"


def _row(config: TrainConfig, name: str) -> str:
    spec = next(spec for spec in fields(TrainConfig) if spec.name == name)
    value = getattr(config, name)
    shown = (
        f"<b>{escaped(value)}</b>" if value is not None else f"<span style='{FAINT}'>{_filling(config, spec)}</span>"
    )
    title = escaped(spec.metadata["help"])
    return f"<tr title=\"{title}\"><td style='{CELL}'>{name}</td><td style='{CELL}'>{shown}</td></tr>"


def _filling(config: TrainConfig, spec: Field[Any]) -> str:
    """What an option becomes that was not said."""
    recipe = config.recipe or "auto"
    if spec.name in RECIPES[recipe]:
        return f"{escaped(RECIPES[recipe][spec.name])} (recipe {recipe})"
    if spec.metadata["default"] is not None:
        return escaped(spec.metadata["default"])
    _, _, in_words = spec.metadata["help"].partition("Default: ")
    return escaped(in_words.rstrip(".")) or "from the batch size"
