"""pyproject.toml declares every package that the code imports, and no package that it does not."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

import hubert_pretrain

tomllib = pytest.importorskip("tomllib")  # of Python 3.11

PACKAGE = Path(hubert_pretrain.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]

NOT_INSTALLED = {"espeakng_loader": "espeakng-loader", "torchao": "torchao"}
"""Modules of optional packages that may be absent here -> their distributions."""
USED_BY_OTHERS = {
    "tensorboard": "Lightning writes through it for logger=tensorboard",
    "s3fs": "fsspec opens s3:// with it",
    "gcsfs": "fsspec opens gs:// with it",
    "onnx": "torch.onnx needs it",
    "onnxscript": "torch.onnx needs it",
    "bitsandbytes": "transformers loads 8 and 4 bits with it",
    "zensical": "tools/site.py runs it",
    "accelerate": "transformers loads quantised models with it",
}
"""Declared packages that the code does not import itself -> the reason to declare them."""


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in requirements}


REQUIRED = names(PROJECT["dependencies"])
OPTIONAL = set().union(
    *(names(lines) for extra, lines in PROJECT["optional-dependencies"].items() if extra != "dev")
)


def imported() -> dict[str, str]:
    """Third-party modules that the package imports -> a file that does."""
    found: dict[str, str] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            else:
                continue
            for module in modules:
                found.setdefault(module.split(".")[0], str(path.relative_to(PACKAGE)))
    own = {"hubert_pretrain", *sys.stdlib_module_names}
    return {module: file for module, file in found.items() if module not in own}


def distributions(module: str) -> set[str]:
    if module in NOT_INSTALLED:
        return {NOT_INSTALLED[module]}
    known = importlib.metadata.packages_distributions()
    return {name.lower() for name in known.get(module, [])}


def test_every_import_is_declared() -> None:
    declared = REQUIRED | OPTIONAL
    undeclared = {
        module: file for module, file in imported().items() if not distributions(module) & declared
    }
    assert undeclared == {}, "add them to pyproject.toml"


def test_every_declared_package_is_imported_or_has_a_reason() -> None:
    used = set().union(*map(distributions, imported()))
    assert (REQUIRED | OPTIONAL) - used == set(USED_BY_OTHERS)
