"""Lightning is imported without the optional packages of torchmetrics."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

PREPARE = """
import json, sys
from hubert_pretrain.training.lightning_import import import_lightning
"""


def python(code: str) -> dict[str, Any]:
    """JSON that a new interpreter prints last."""
    command = [sys.executable, "-c", PREPARE + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_packages_are_not_imported_and_stay_available() -> None:
    found = python(
        """
module = import_lightning()
absent = {name: name not in sys.modules for name in ("transformers", "scipy.signal", "matplotlib")}
import scipy.signal, transformers, matplotlib.pyplot
from lightning_utilities.core.imports import package_available, RequirementCache
print(json.dumps({
    **absent,
    "trainer": hasattr(module, "Trainer"),
    "scipy available": package_available("scipy"),
    "transformers available": bool(RequirementCache("transformers")),
}))
"""
    )
    assert all(found.values()), found


def test_another_lightning_utilities_only_costs_time() -> None:
    found = python(
        """
from lightning_utilities.core import imports
from hubert_pretrain.training.lightning_import import OPTIONAL, _hidden_from_torchmetrics
for name in ("_version", "find_spec", "package_available"):
    attribute = getattr(imports, name)
    delattr(imports, name)
    with _hidden_from_torchmetrics(OPTIONAL):
        pass
    setattr(imports, name, attribute)
print(json.dumps({"trainer": hasattr(import_lightning(), "Trainer")}))
"""
    )
    assert found == {"trainer": True}


def test_a_stage_that_trains_imports_it_this_way_and_the_others_do_not_import_it() -> None:
    found = python(
        """
from hubert_pretrain.stages.runner import import_stage
def imported():
    return [name for name in ("lightning", "transformers", "scipy.signal") if name in sys.modules]
for verb in ("prepare", "cluster", "label", "export"):
    import_stage(verb)
others = imported()
import_stage("pretrain")
print(json.dumps({"others": others, "pretrain": imported()}))
"""
    )
    assert found == {"others": [], "pretrain": ["lightning"]}
