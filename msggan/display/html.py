"""HTML for notebooks and reports: pictures, bars and curves, self-contained, for light and dark pages.

The curves are SVG written here: a notebook redraws two of them every half second while it trains, which takes
matplotlib 160 ms each and this 6 ms. Nothing from a file reaches a page unescaped.
"""

from __future__ import annotations

import base64
import html
import itertools
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 360, 150
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 20, 20
MAX_POINTS = 400
# Of middle brightness, and distinguishable for the colour-blind.
COLOURS = ("#3d85c6", "#e07b39", "#7aa32b")
FAINT = "opacity:.65"
NUMBER_STYLE = 'font-size="11" fill="currentColor" font-family="sans-serif"'

Points = Sequence[tuple[float, float]]


def escaped(text: object) -> str:
    """Any text, safe between tags and in double quotes."""
    return html.escape(str(text), quote=True)


def embedded(content: bytes, kind: str) -> str:
    """A file as a data URL. kind: its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png(content: bytes, *, width_px: int, title: str) -> str:
    """A picture of this width; the pixels of small ones keep sharp edges."""
    style = f"width:{width_px}px;max-width:100%;image-rendering:pixelated"
    source = embedded(content, "image/png")
    return f'<img src="{source}" style="{style}" alt="{escaped(title)}" title="{escaped(title)}">'


def bar(share: float) -> str:
    """A progress bar. share: in [0, 1]."""
    done = 100 * min(1.0, max(0.0, share))
    track = "width:360px;max-width:100%;height:6px;border-radius:3px;background:rgba(128,128,128,.3);margin:4px 0"
    return (
        f'<div style="{track}"><div style="width:{done:.1f}%;height:6px;border-radius:3px;background:{COLOURS[0]}">'
        "</div></div>"
    )


def chart(curves: Mapping[str, Points]) -> str:
    """An SVG of curves by name, of points (kimg, value), on axes that just fit; empty if there are no points.

    A value that is not finite leaves a gap.
    """
    drawn = {name: thinned(points) for name, points in curves.items()}
    finite = [point for points in drawn.values() for point in points if math.isfinite(point[1])]
    if not finite:
        return ""
    left, right = min(x for x, _ in finite), max(x for x, _ in finite)
    low, high = min(y for _, y in finite), max(y for _, y in finite)

    def position(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) if right > left else 0.5
        up = (y - low) / (high - low) if high > low else 0.5
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(left, right, low, high)]
    for number, (name, points) in enumerate(drawn.items()):
        colour = COLOURS[number % len(COLOURS)]
        for is_finite, segment in itertools.groupby(points, key=lambda point: math.isfinite(point[1])):
            if is_finite:
                parts.append(_segment([position(*point) for point in segment], colour))
        x = LEFT + 8 + 80 * number
        parts.append(f'<text x="{x}" y="12" font-size="12" fill="{colour}" font-family="sans-serif">')
        parts.append(f"{escaped(name)}</text>")
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{"".join(parts)}</svg>'


def thinned(points: Points) -> Points:
    """At most `MAX_POINTS` evenly chosen points, including the first and the last."""
    if len(points) <= MAX_POINTS:
        return points
    last = len(points) - 1
    return [points[round(index * last / (MAX_POINTS - 1))] for index in range(MAX_POINTS)]


def _segment(points: Points, colour: str) -> str:
    if len(points) == 1:
        ((x, y),) = points
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>'
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _axes(left: float, right: float, low: float, high: float) -> str:
    floor, wall = HEIGHT - BOTTOM, WIDTH - RIGHT
    texts = [
        (LEFT - 4, TOP + 4, "end", f"{high:.3g}"),
        (LEFT - 4, floor, "end", f"{low:.3g}" if high > low else ""),
        (LEFT, HEIGHT - 5, "start", f"{left:.3g}" if right > left else ""),
        (wall, HEIGHT - 5, "end", f"{right:.4g} kimg"),
    ]
    line = f'<path d="M{LEFT} {TOP}V{floor}H{wall}" fill="none" stroke="currentColor" stroke-opacity=".4"/>'
    return line + "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" {NUMBER_STYLE} fill-opacity=".65">{text}</text>'
        for x, y, anchor, text in texts
        if text
    )
