"""Import of Lightning without the optional packages of torchmetrics.

Lightning imports torchmetrics, and torchmetrics imports transformers, scipy.signal and
matplotlib.pyplot when they are installed, for metrics that nothing here computes. Without them
`import lightning` takes two seconds of processor time less (3.9 instead of 5.8, of which PyTorch is
3.4), in every process of every stage that trains.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from types import ModuleType
from typing import Any
from unittest import mock

OPTIONAL = frozenset({"transformers", "scipy", "matplotlib"})
"""Packages that torchmetrics shall not find."""


def import_lightning() -> ModuleType:
    """Import `lightning`, faster where the installed versions allow it.

    For processes that run a stage: metrics of torchmetrics that need one of `OPTIONAL` are not
    available in them.
    """
    with _hidden_from_torchmetrics(OPTIONAL):
        importlib.import_module("torchmetrics")
    return importlib.import_module("lightning")


@contextlib.contextmanager
def _hidden_from_torchmetrics(packages: frozenset[str]) -> Iterator[None]:
    """Let the checks of `lightning_utilities` report that packages are not installed.

    torchmetrics guards each optional import by such a check. A version that checks in another way
    finds the packages and imports them: slower, with the same result.
    """
    try:
        checks: Any = importlib.import_module("lightning_utilities.core.imports")
        version = checks._version
        find_spec = checks.find_spec
        forget = checks.package_available.cache_clear
    except (ImportError, AttributeError):
        yield
        return

    def version_or_absent(name: str) -> str:
        if name in packages:
            raise PackageNotFoundError(name)
        return str(version(name))

    def spec_or_absent(name: str, package: str | None = None) -> Any:
        return None if name in packages else find_spec(name, package)

    forget()
    try:
        with (
            mock.patch.object(checks, "_version", version_or_absent),
            mock.patch.object(checks, "find_spec", spec_or_absent),
        ):
            yield
    finally:
        forget()  # answers given meanwhile would hide the packages from Lightning too
