"""Folders in the layouts of the corpora, made for each test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Tree = Callable[[Mapping[str, str | bytes]], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Writes files below a folder: path -> content. Listing opens no audio, so audio is empty
    unless a test needs its length.
    """

    def write(files: Mapping[str, str | bytes]) -> Path:
        for path, content in files.items():
            place = tmp_path / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path

    return write
