"""docs/reliability.md: every fault is there, and every test that it names."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_fault_has_its_row_and_its_tests(repository: Path) -> None:
    text = (repository / "docs" / "reliability.md").read_text()
    rows = dict(re.findall(r"^\| (F\d+) \|(.*)$", text, re.MULTILINE))
    assert {f"F{number}" for number in range(1, 32)} <= set(rows)
    assert all("`tests/" in row for row in rows.values())


def test_every_test_that_is_named_exists(repository: Path) -> None:
    named = re.findall(
        r"`(tests/[\w/.]+)::(\w+)`", (repository / "docs" / "reliability.md").read_text()
    )
    assert named
    missing = [f"{path}::{name}" for path, name in named if not _has(repository / path, name)]
    assert not missing


def _has(path: Path, name: str) -> bool:
    return (
        path.is_file() and re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE) is not None
    )
