"""Folders that cannot be listed, also by root, whom permissions do not stop."""

from __future__ import annotations

import os

import pytest


def refuse_to_list(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let `os.scandir` fail for every folder of that name."""
    real = os.scandir

    def scandir(folder: object = ".") -> object:
        if str(folder).endswith(name):
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
