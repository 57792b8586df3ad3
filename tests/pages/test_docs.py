"""The pages in docs/ match the commands."""

from __future__ import annotations

import re
import runpy

from support.programs import REPOSITORY

from msggan.tracking.metrics_log import EVENTS_VARIABLE
from orchestration.settings import SECRETS


def test_the_page_of_options_matches_the_commands() -> None:
    page = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    written = runpy.run_path(str(REPOSITORY / "docs" / "write_options.py"))["page"]()
    assert page == written, "Run: make docs"


def test_the_page_on_azure_names_only_existing_options_and_variables() -> None:
    options = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    page = (REPOSITORY / "docs" / "azure.md").read_text(encoding="utf-8")
    ours = "\n".join(line for line in page.splitlines() if not line.startswith("    az "))
    ours = re.sub(r"`az [^`]+`", "", ours)
    flags = set(re.findall(r"--[a-z][a-z-]+", ours))
    assert len(flags) > 10
    assert {flag for flag in flags if not re.search(rf"{flag}\b", options)} == set()
    assert set(re.findall(r"MSGGAN_\w+", page)) == {*SECRETS, EVENTS_VARIABLE}
