"""Text files line by line, and safe file names."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.text import lines, safe_name

from .conftest import write


def test_an_error_names_a_damaged_gzip(place: Path) -> None:
    content = gzip.compress(b"path\n" + b"a.wav\n" * 10_000)
    with pytest.raises(DataError, match=r"x\.csv\.gz: damaged gzip"):
        list(lines(write(place / "x.csv.gz", content[: len(content) // 2])))


@pytest.mark.parametrize(
    "id",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a/../../b",
        ".hidden",
        "-rf",
        "x" * 300,
        "ü" * 300,
        "",
        "a\0b",
        "a\nb",
        "CON/../x",
    ],
)
def test_an_id_is_never_a_path(id: str) -> None:
    name = safe_name(id)
    assert re.fullmatch(r"[\w.-]+", name)
    assert not name.startswith((".", "-"))
    assert len(name.encode()) < 200
    assert safe_name(id) != safe_name(f"{id}x")


def test_plain_ids_are_unchanged() -> None:
    assert [safe_name(id) for id in ("84-121123-0001", "anna_1.a", "ü")] == [
        "84-121123-0001",
        "anna_1.a",
        "ü",
    ]
