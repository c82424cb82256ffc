"""The tables of docs/architecture.md are those of tools/architecture.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hubert_pretrain.tools import architecture

TOLERANCE = 0.1
"""Relative difference of lines per room after which the page has to be written again."""


@pytest.fixture(scope="module")
def table(repository: Path) -> str:
    page = (repository / "docs" / "architecture.md").read_text()
    return page.partition(architecture.BEGIN)[2].partition(architecture.END)[0]


def test_no_rule_is_broken_more_often_than_the_page_says(table: str) -> None:
    for rule, count in architecture.breaches().items():
        (written,) = re.findall(rf"^\| {rule} \| (\d+) \|$", table, re.MULTILINE)
        assert count <= int(written), rule


def test_the_rooms_are_those_of_the_package(table: str) -> None:
    rows = re.findall(r"^\| (\S+) \| (\d+) \| ([\d,]+) \|$", table, re.MULTILINE)
    written = {name: int(lines.replace(",", "")) for name, _, lines in rows}
    rooms = architecture.rooms()
    assert set(written) == set(rooms)
    for name, files in rooms.items():
        lines = sum(len(file.read_text().splitlines()) for file in files)
        assert written[name] == pytest.approx(lines, rel=TOLERANCE, abs=100), (
            f"{name}: run python tools/architecture.py --write"
        )


def test_every_room_is_explained(repository: Path) -> None:
    page = (repository / "docs" / "architecture.md").read_text()
    for name in architecture.rooms():
        assert f"`{name}`" in page or name == "(top)", name


@pytest.mark.slow
def test_files_of_a_training_step(table: str, tmp_path: Path) -> None:
    step, iteration = architecture.files_entered(tmp_path)
    for what, files in (("one training step", step), ("one iteration", iteration)):
        (written,) = re.findall(rf"^\| {what} \|.* (\d+) \|$", table, re.MULTILINE)
        assert int(written) == pytest.approx(len(files), rel=TOLERANCE), what
    assert {"model/hubert.py", "pretrain/loss.py", "pretrain/module.py"} <= step
