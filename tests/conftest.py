"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# The same examples on every run: a test that fails does so for everyone.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real speech and fairseq's own outputs, beside the repository (or where
    HUBERT_SHARED says).
    """
    folder = Path(os.environ.get("HUBERT_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set HUBERT_SHARED to the folder with data/ and reference/")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY
