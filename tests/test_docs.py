"""Are the pages in docs/ true?"""

from __future__ import annotations

import runpy

from conftest import REPOSITORY


def test_the_page_of_options_is_what_the_commands_say() -> None:
    page = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    written = runpy.run_path(str(REPOSITORY / "docs" / "write_options.py"))["page"]()
    assert page == written, "Run: make docs"
