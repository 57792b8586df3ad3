"""Tests of the tests: no test module imports another, and the local Azure does not depend on this project."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.programs import REPOSITORY

TESTS = REPOSITORY / "tests"
AZURE_LOCAL = TESTS / "azure_local"


def files_below(folder: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(folder.rglob(pattern)) if not {"node_modules", "__pycache__"} & {*path.parts}]


def imported_by(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, `from package import name` also as package.name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", files_below(TESTS, "*.py"), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_file_imports_a_test_module(path: Path) -> None:
    parts = {part for module in imported_by(path) for part in module.split(".")}
    assert [part for part in parts if part.startswith("test_")] == []


def test_the_local_azure_does_not_name_this_project() -> None:
    files = [path for path in files_below(AZURE_LOCAL, "*") if path.is_file()]
    assert len(files) > 30
    named = [path.name for path in files if re.search("msggan|orchestration", path.read_text("utf-8"), re.IGNORECASE)]
    assert named == []


@pytest.mark.parametrize("path", files_below(AZURE_LOCAL, "*.py"), ids=lambda path: path.name)
def test_the_local_azure_does_not_import_the_tests(path: Path) -> None:
    assert {module.split(".")[0] for module in imported_by(path)}.isdisjoint({"support", "tests", "environments"})
