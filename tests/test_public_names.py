"""Public names of `import hubert_pretrain`: offered lazily, seen by type checkers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hubert_pretrain


def python(code: str) -> str:
    """Output of a new interpreter."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, hubert_pretrain; dir(hubert_pretrain); print('torch' in sys.modules)"
    assert python(code) == "False\n"


def test_the_configuration_of_a_network_needs_no_torch() -> None:
    code = "import sys; from hubert_pretrain import HubertConfig; print('torch' in sys.modules)"
    assert python(code) == "False\n"


def test_what_does_not_train_needs_no_lightning() -> None:
    code = (
        "import sys, hubert_pretrain as h; [getattr(h, name) for name in h.__all__]; "
        "print([name for name in ('lightning', 'transformers', 'sklearn') if name in sys.modules])"
    )
    assert python(code) == "[]\n"


@pytest.mark.parametrize("name", hubert_pretrain.__all__)
def test_each_name_is_the_object_of_its_module(name: str) -> None:
    value = getattr(hubert_pretrain, name)
    assert value is getattr(sys.modules[value.__module__], name)
    assert name in dir(hubert_pretrain)
    assert value.__doc__


def test_type_checkers_see_the_same_names(repository: Path) -> None:
    tree = ast.parse((repository / "hubert_pretrain" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert seen == {
        name: f"hubert_pretrain.{module}" for name, module in hubert_pretrain._MODULE_OF.items()
    }
    assert set(seen) == set(hubert_pretrain.__all__)


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Huber'"):
        hubert_pretrain.Huber  # noqa: B018
    with pytest.raises(ImportError, match="Huber"):
        from hubert_pretrain import Huber  # noqa: F401
