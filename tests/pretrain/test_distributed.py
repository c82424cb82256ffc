"""One process or two: the same run, also when it changes hands in the middle."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.pretrain import run
from tests.killed import killed_at_micro_batch

pytestmark = pytest.mark.slow

SCRIPT = """
import pickle, sys
from pathlib import Path
from hubert_pretrain import distributed
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.pipeline.workspace import Workspace

recipe, root, folder = pickle.loads(Path(sys.argv[1]).read_bytes())
run(recipe, Workspace(root), "it1/pretrain", folder)
distributed.leave_group()
"""


def test_two_processes_finish_what_one_began(
    recipe: Callable[..., Recipe],
    prepared: Workspace,
    tmp_path: Path,
) -> None:
    """Four micro-batches per step, 1 x 4 and then 2 x 2: gradients are sums over the step, whoever
    computes which part of it.
    """
    run(recipe(batch_seconds=16), prepared, "it1/pretrain", tmp_path / "one")

    with killed_at_micro_batch(19):  # in step 5; the last checkpoint is of step 3
        run(recipe(batch_seconds=16), prepared, "it1/pretrain", tmp_path / "two")

    both = recipe(batch_seconds=16, trainer={"devices": 2, "strategy": "ddp"})
    (tmp_path / "recipe.pickle").write_bytes(pickle.dumps((both, prepared.root, tmp_path / "two")))
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "recipe.pickle")]
    root = str(Path(__file__).resolve().parents[2])
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": root}
    )
    assert result.returncode == 0, result.stderr[-2000:]

    one = load_model(tmp_path / "one")
    two = load_model(tmp_path / "two")
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
