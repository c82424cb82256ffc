"""Run of one stage in this process: lock, resume, call its code, publish `meta.json`."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from hubert_pretrain import distributed
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ArtefactError, Preempted
from hubert_pretrain.files import sha256
from hubert_pretrain.pipeline.fingerprint import digest, places
from hubert_pretrain.pipeline.plan import (
    SHARED,
    Stage,
    check_sources,
    check_unchanged,
    fingerprint_of,
    is_complete,
    raised_steps,
    raised_while_interrupted,
)
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight import changes
from hubert_pretrain.preflight.check import check_machine, check_place

READ_BY_OTHERS = (".safetensors", ".bin", ".npy")
"""Suffixes of codebooks, targets and weights."""
TRAINING = ("pretrain", "spin", "finetune", "evaluate")
"""Verbs whose stage imports Lightning."""
FOLLOW_SECONDS = 600.0
"""Longest wait of the other ranks for rank 0 to begin."""


def run_stage(recipe: Recipe, workspace: Workspace, stage: Stage) -> None:
    """Run one stage in this process, unless it is done.

    Rank 0 holds the lock and writes `partial.json` and `meta.json`; the other ranks only work.
    """
    for name in stage.inputs:
        if name in stage.run_stages:
            workspace.artefact(name)  # says which stage to run first
        else:
            workspace.resolve(name)
    check_sources(stage, workspace)
    check_unchanged(stage, workspace)
    if is_complete(stage, workspace):
        _say_done(recipe, workspace, stage)
        return
    if distributed.rank() > 0:
        _follow(recipe, workspace, stage)
        return
    check_machine(recipe, workspace, stage)
    if "prepare" in stage.inputs:
        check_place(recipe, workspace)
    fingerprint = fingerprint_of(stage, workspace)
    assert fingerprint is not None  # every input was resolved above
    with workspace.lock(stage.name):
        if workspace.is_done(stage.name):
            _go_on(workspace, stage, fingerprint)
        else:
            _go_on_from_interruption(workspace, stage, fingerprint)
        folder = workspace.begin(stage.name, fingerprint, stage.config)
        started = time.time()
        facts = _call(recipe, workspace, stage, folder)
        hashes = _hashes(folder)
        workspace.finish(
            stage.name,
            {
                "stage": stage.name,
                "fingerprint": fingerprint,
                "identity": digest(stage.identity),
                "output": _output(stage, folder, hashes),
                "config": stage.config,
                "places": places(stage.sections["data"]) if stage.verb == "prepare" else [],
                "inputs": {name: workspace.resolve(name).fingerprint for name in stage.inputs},
                "facts": facts,
                "continued": workspace.interrupted(stage.name).get("continued", []),
                "seconds": round(time.time() - started, 1),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "versions": versions(),
                "command": shlex.join(["hubert-pretrain", *sys.argv[1:]]),
                "machine": machine(),
                "sha256": hashes,
            },
        )


def _go_on(workspace: Workspace, stage: Stage, fingerprint: str) -> None:
    """Begin a finished training again, whose steps were raised, at its last checkpoint."""
    from hubert_pretrain.stages.longer import begin_again

    made = workspace.artefact(stage.name)
    raised = raised_steps(stage, made)
    assert raised is not None  # any other finished stage is complete
    where = begin_again(made.path, stage.sections[stage.verb], raised[0])
    workspace.reopen(stage.name, fingerprint, stage.config)
    print(f"{stage.name}: trained further, {raised[0]} -> {raised[1]} steps, {where}", flush=True)


def _go_on_from_interruption(workspace: Workspace, stage: Stage, fingerprint: str) -> None:
    """The same for a training that was interrupted. Does nothing for any other work."""
    from hubert_pretrain.stages.longer import begin_again

    raised = raised_while_interrupted(stage, workspace)
    if raised is None:
        return
    folder = workspace.partial_folder(stage.name)
    where = begin_again(folder, stage.sections[stage.verb], raised[0])
    workspace.prolong(stage.name, fingerprint, stage.config)
    print(f"{stage.name}: goes on with {raised[0]} -> {raised[1]} steps, {where}", flush=True)


def _follow(recipe: Recipe, workspace: Workspace, stage: Stage) -> None:
    """The part of the other ranks: wait until rank 0 holds the stage and has opened its folder,
    then work in it. Does nothing in a stage of one process.
    """
    if stage.verb not in SHARED:
        return
    fingerprint = fingerprint_of(stage, workspace)
    assert fingerprint is not None  # every input was resolved by run_stage

    def has_begun() -> bool:
        return workspace.has_begun(stage.name, fingerprint) or is_complete(stage, workspace)

    if not distributed.wait_for_first(has_begun, FOLLOW_SECONDS):
        message = f"{stage.name}: rank 0 has not begun after {FOLLOW_SECONDS:g} seconds"
        if "SLURM_ARRAY_TASK_ID" in os.environ:  # it may still be waiting for a node
            raise Preempted(f"{message}; trying again later")
        raise ArtefactError(
            f"{message}; see what it says, and that all ranks have the same work_dir"
        )
    if is_complete(stage, workspace):
        return
    _call(recipe, workspace, stage, workspace.partial_folder(stage.name))


def _call(recipe: Recipe, workspace: Workspace, stage: Stage, folder: Path) -> dict[str, Any]:
    """Call the code of the stage's verb, `stages/<verb>.py`. Returns the facts it measured."""
    if stage.verb in SHARED:
        from hubert_pretrain.model.precision import set_matmul_precision

        # Crops have few lengths; other stages see every length of the corpus.
        set_matmul_precision(
            tf32=recipe.trainer.tf32, static_shapes=stage.verb in ("pretrain", "spin")
        )
    return dict(import_stage(stage.verb).run(recipe, workspace, stage.name, folder))


def import_stage(verb: str) -> ModuleType:
    """The module `stages/<verb>.py`."""
    if verb in TRAINING:
        from hubert_pretrain.training.lightning_import import import_lightning

        import_lightning()
    return importlib.import_module(f"hubert_pretrain.stages.{verb}")


def _say_done(recipe: Recipe, workspace: Workspace, stage: Stage) -> None:
    """A stage that was asked for and is not run again says so. Raises ArtefactError for `prepare`
    when the corpus is no longer as it was read.
    """
    if distributed.rank() > 0:
        return
    if stage.verb == "prepare" and (found := changes.difference(recipe, workspace)):
        raise ArtefactError(f"{found}; {changes.FIX}")
    finished = workspace.artefact(stage.name).meta.get("finished", "")
    print(
        f"{stage.name}: done before ({finished}), nothing to do; redo=true makes it again",
        flush=True,
    )


def _output(stage: Stage, folder: Path, hashes: dict[str, str]) -> str | None:
    """A hash of what the stage made for others to read: the same when it came out the same. None
    for what no stage reads.
    """
    if stage.verb == "prepare":
        return Manifest.open(folder).content()
    read = {name: found for name, found in hashes.items() if Path(name).suffix in READ_BY_OTHERS}
    return digest(read) if read else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute."""
    packages = ["hubert-pretrain", "torch", "lightning", "numpy", "scikit-learn", "transformers"]
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }


def machine() -> dict[str, Any]:
    """The processors that a stage may use; the name of the machine stays out of it."""
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": distributed.usable_cores(),
        "gpus": [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)],
        "processes": distributed.launched(),
    }


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that lie directly in an artefact."""
    hashes = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != "partial.json":
            hashes[path.name] = sha256(path)
    return hashes
