"""Does a configuration show what was said and what fills the rest?"""

from __future__ import annotations

import re
from dataclasses import fields

from support.builders import small_config

from msggan import TrainConfig
from msggan.display.config_table import GROUPS


def rows(html: str) -> dict[str, str]:
    """Each option's value as it is shown; one that was said in **."""
    html = html.replace("<b>", "**").replace("</b>", "**")
    pairs = re.findall(r"<tr.*?<td[^>]*>(.*?)</td><td[^>]*>(.*?)</td></tr>", html)
    return {name: re.sub(r"<[^>]+>", "", value) for name, value in pairs}


def open_groups(html: str) -> list[str]:
    return re.findall(r"<details open><summary>([^<]*?) <", html)


def test_every_option_has_its_place_once() -> None:
    named = [name for names in GROUPS.values() for name in names]
    assert sorted(named) == sorted(spec.name for spec in fields(TrainConfig))


def test_what_was_said_stands_out_and_the_rest_tells_what_fills_it() -> None:
    shown = rows(TrainConfig(resolution=32, g_lr=0.001)._repr_html_())
    assert shown["resolution"] == "**32**"
    assert shown["g_lr"] == "**0.001**"
    assert shown["d_lr"] == "0.002 (recipe auto)"
    assert shown["kimg"] == "100.0"
    assert shown["latent_size"] == "twice the resolution, from 64 to 512"
    assert shown["sample_kimg"] == "a twentieth of --kimg, at least 1"


def test_the_other_recipe_fills_otherwise() -> None:
    shown = rows(TrainConfig(recipe="bmsg")._repr_html_())
    assert shown["batch_size"] == "32 (recipe bmsg)"
    assert shown["ema_half_life_kimg"] == "from the batch size"


def test_only_the_first_group_and_what_was_said_is_open() -> None:
    assert open_groups(TrainConfig()._repr_html_()) == ["What to make"]
    assert open_groups(TrainConfig(kimg=1, r1_gamma=1.0)._repr_html_()) == ["What to make", "Penalties"]
    assert open_groups(small_config()._repr_html_()) == ["What to make"]


def test_a_resolved_configuration_leaves_nothing_open_to_say() -> None:
    assert all(value.startswith("**") for value in rows(small_config()._repr_html_()).values())


def test_in_text_it_is_what_was_said_and_can_be_typed() -> None:
    config = TrainConfig(resolution=32, kimg=2.5, loss="hinge")
    assert repr(config) == "TrainConfig(resolution=32, kimg=2.5, loss='hinge')"
    assert eval(repr(config)) == config  # noqa: S307 - our own words
