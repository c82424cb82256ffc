"""Fixtures of all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# The same examples on every run: a test that fails does so for everyone.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _no_group_is_left() -> Iterator[None]:
    """A process group that a test leaves behind would be the group of every later test."""
    yield
    if "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized():
        from hubert_pretrain import distributed

        distributed.leave_group()
        pytest.fail("the test left a process group")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real speech: `shared` beside the repository, or HUBERT_SHARED."""
    folder = Path(os.environ.get("HUBERT_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(
            f"no real speech in {folder}: set HUBERT_SHARED to a folder with data/librispeech (the "
            "layout of LibriSpeech) and data/fsdd (the recordings of the Free Spoken Digit Dataset)"
        )
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def fairseq_outputs() -> Path:
    """The folder with what fairseq's own HuBERT computed, see its README.md."""
    return REPOSITORY / "tests" / "parity" / "reference"
