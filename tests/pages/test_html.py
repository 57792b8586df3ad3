"""Curves pass through exactly their points, and text from files is always escaped in HTML."""

from __future__ import annotations

import base64
import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from msggan.display.html import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    bar,
    chart,
    embedded,
    escaped,
    thinned,
)

NAN, INFINITY = math.nan, math.inf


def drawn(svg: str) -> list[list[tuple[float, float]]]:
    """The places of each polyline and each circle, in order; the SVG must be well-formed XML."""
    elements = ElementTree.fromstring(svg)  # noqa: S314 - our own
    found = []
    for element in elements:
        if element.tag.endswith("polyline"):
            pairs = (pair.split(",") for pair in element.attrib["points"].split())
            found.append([(float(x), float(y)) for x, y in pairs])
        if element.tag.endswith("circle"):
            found.append([(float(element.attrib["cx"]), float(element.attrib["cy"]))])
    return found


def texts(svg: str) -> list[str]:
    return re.findall(r">([^<>]+)</text>", svg)


def test_a_curves_corners_are_at_the_axes_ends() -> None:
    middle_x, middle_y = LEFT + (WIDTH - LEFT - RIGHT) / 2, TOP + (HEIGHT - TOP - BOTTOM) * 3 / 4
    svg = chart({"swd": [(1, 400), (2, 100), (3, 0)]})
    assert drawn(svg) == [[(LEFT, TOP), (middle_x, middle_y), (WIDTH - RIGHT, HEIGHT - BOTTOM)]]
    assert texts(svg) == ["400", "0", "1", "3 kimg", "swd"]


def test_curves_share_their_axes() -> None:
    svg = chart({"d_loss": [(0, 0), (1, 1)], "g_loss": [(0, 2), (1, 1)]})
    floor, half = HEIGHT - BOTTOM, (HEIGHT - BOTTOM + TOP) / 2
    assert drawn(svg) == [[(LEFT, floor), (WIDTH - RIGHT, half)], [(LEFT, TOP), (WIDTH - RIGHT, half)]]
    assert texts(svg)[-2:] == ["d_loss", "g_loss"]


def test_one_point_is_a_dot_in_the_middle() -> None:
    svg = chart({"swd": [(0.25, 131.0)]})
    assert drawn(svg) == [[(LEFT + (WIDTH - LEFT - RIGHT) / 2, (HEIGHT - BOTTOM + TOP) / 2)]]
    assert texts(svg) == ["131", "0.25 kimg", "swd"]


@pytest.mark.parametrize("gap", [NAN, INFINITY, -INFINITY])
def test_non_finite_values_leave_a_gap_and_move_nothing(gap: float) -> None:
    whole = drawn(chart({"g_loss": [(0, 0), (1, 1), (3, 1), (4, 0)]}))[0]
    assert drawn(chart({"g_loss": [(0, 0), (1, 1), (2, gap), (3, 1), (4, 0)]})) == [whole[:2], whole[2:]]


@pytest.mark.parametrize("curves", [{}, {"swd": []}, {"swd": [(1.0, NAN)]}])
def test_without_a_point_there_is_no_chart(curves: dict[str, list[tuple[float, float]]]) -> None:
    assert chart(curves) == ""


@pytest.mark.parametrize("count", [MAX_POINTS, MAX_POINTS + 1, 12345])
def test_a_long_curve_is_thinned_from_its_first_point_to_its_last(count: int) -> None:
    points = thinned([(float(x), 0.0) for x in range(count)])
    assert len(points) == MAX_POINTS
    assert (points[0][0], points[-1][0]) == (0, count - 1)
    gaps = {round(after[0] - before[0]) for before, after in itertools.pairwise(points)}
    assert max(gaps) - min(gaps) <= 1


def test_names_are_written_as_texts() -> None:
    assert texts(chart({"<script>": [(0, 0)]}))[-1] == "&lt;script&gt;"
    assert escaped("""<b a="'">&""") == "&lt;b a=&quot;&#x27;&quot;&gt;&amp;"


def test_a_file_is_wholly_in_its_address() -> None:
    kind, _, content = embedded(b"\x00\xff", "image/png").partition(";base64,")
    assert (kind, base64.b64decode(content)) == ("data:image/png", b"\x00\xff")


@pytest.mark.parametrize(("share", "width"), [(-1, "0.0%"), (0.25, "25.0%"), (7, "100.0%")])
def test_a_bar_is_as_long_as_its_share_and_never_longer(share: float, width: str) -> None:
    assert f"width:{width};" in bar(share)
