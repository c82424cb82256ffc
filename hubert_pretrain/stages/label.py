"""Stage `it*/label`: corpus x codebooks -> targets and their quality; or targets made elsewhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from hubert_pretrain import distributed
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.cluster import open_codebooks
from hubert_pretrain.stages.extraction import extraction
from hubert_pretrain.stages.prepare import open_corpus
from hubert_pretrain.targets.import_targets import import_targets
from hubert_pretrain.targets.labelling import label_corpus
from hubert_pretrain.targets.plots import plot_targets
from hubert_pretrain.targets.quality import describe_targets, measure_targets
from hubert_pretrain.targets.regrid import OnGrid
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.targets.writer import TargetWriter


def open_targets(workspace: Workspace, iteration: str) -> TargetStore:
    """The targets of an iteration. Raises ArtefactError when the stage has not finished."""
    return TargetStore.open(workspace.artefact(f"{iteration}/label").path)


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Write the targets of every utterance to `folder`; returns their quality, measured by rank 0.

    Several processes (torchrun, srun, or RANK and WORLD_SIZE by hand) share the blocks of the
    corpus. A killed run resumes at its first unfinished block.
    """
    iteration, _, _ = stage.partition("/")
    corpus = open_corpus(recipe, workspace)
    source = recipe.iterations[iteration].targets
    if source is None:
        label(recipe, workspace, stage, folder, corpus)
    elif distributed.rank() == 0:
        path = workspace.resolve(source).path
        print(import_targets(path, folder, corpus.manifest, grid=recipe.model.grid), flush=True)
    if distributed.rank() > 0:
        return {}
    store = TargetStore.open(folder)
    plot_targets(store, corpus, folder / "quality.png")
    facts = measure_targets(store, corpus)
    print(describe_targets(facts), flush=True)
    return facts


def label(recipe: Recipe, workspace: Workspace, stage: str, folder: Path, corpus: Corpus) -> None:
    """Assign cluster ids to this process's share of the corpus."""
    iteration, _, _ = stage.partition("/")
    codebooks = open_codebooks(recipe, workspace, iteration)
    to_grid = OnGrid.of(codebooks, recipe.model.grid)
    to_grid.check(corpus.manifest)
    if distributed.rank() == 0:
        if line := to_grid.describe():
            print(line, flush=True)
        writer: TargetWriter | None = TargetWriter.create(folder, corpus.manifest, to_grid)
    else:
        # None: rank 0 finished the stage before this process came.
        is_done = partial(workspace.is_done, stage)
        writer = TargetWriter.join(folder, corpus.manifest, to_grid, is_done=is_done)
    if writer is None:
        return
    with extraction(recipe, workspace, iteration, layer=codebooks.features.get("layer")) as at:
        label_corpus(
            corpus,
            writer,
            at.extractor,
            codebooks,
            to_grid=to_grid,
            switch_penalty=recipe.iterations[iteration].switch_penalty,
            device=at.device,
            workers=at.workers,
            rank=distributed.rank(),
            world_size=distributed.launched(),
        )
