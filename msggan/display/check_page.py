"""The page of `msggan-aml check`: what was found in a set of images, with pictures, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msggan.display.html import escaped, png

PICTURE_PX = 128
STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
.verdict { border-left: 4px solid; padding: .2rem 1rem; font-size: 1.15rem; }
.usable { border-color: #7aa32b; } .unusable { border-color: #c2410c; }
table { border-collapse: collapse; } td { padding: .2rem 1rem .2rem 0; vertical-align: top; }
td:first-child { white-space: nowrap; opacity: .65; }
.sheet { display: flex; flex-wrap: wrap; gap: .8rem; } figure { margin: 0; width: 8rem; font-size: .8rem; }
"""
FITTED = {
    "cut_off": ("What cropping cuts off", "The images that lose most; the dark parts are lost."),
    "padding": ("What padding adds", "The images to which it adds most, as training sees them."),
}
# It fetches nothing and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(result: Mapping[str, Any], pictures: Mapping[str, Sequence[tuple[str, bytes]]]) -> str:
    """result: what `msggan-aml check -o json` prints. pictures: by kind of finding, names and PNG files."""
    title = f"Images in {escaped(result['data'])}"
    rows = "".join(
        f"<tr><td>{escaped(name)}</td><td>{escaped(text)}</td></tr>" for name, text in result["facts"].items()
    )
    fitted = "".join(
        f"<h2>{heading}</h2><p>{text}</p>{_sheet(shown)}"
        for kind, (heading, text) in FITTED.items()
        if (shown := pictures.get(kind))
    )
    findings = "".join(_finding(each, pictures.get(each["kind"], ())) for each in result["findings"])
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<h1>{title}</h1>"
        f'<p class="verdict {"usable" if result["usable"] else "unusable"}">{escaped(result["verdict"])}</p>'
        f"<table>{rows}</table>"
        f"{findings}{fitted}</body></html>\n"
    )


def _finding(finding: Mapping[str, Any], pictures: Sequence[tuple[str, bytes]]) -> str:
    names = "".join(f"<li>{escaped(name)}</li>" for name in finding["files"])
    heading = escaped(str(finding["kind"]).replace("_", " ").capitalize())
    return (
        f"<h2>{heading}</h2><p>{escaped(finding['message'])}<br>{escaped(finding['hint'])}</p>"
        f"{f'<ul>{names}</ul>' if names else ''}{_sheet(pictures)}"
    )


def _sheet(pictures: Sequence[tuple[str, bytes]]) -> str:
    figures = "".join(
        f"<figure>{png(content, width_px=PICTURE_PX, title=name)}<figcaption>{escaped(name)}</figcaption></figure>"
        for name, content in pictures
    )
    return f'<div class="sheet">{figures}</div>' if figures else ""
