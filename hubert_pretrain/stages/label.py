"""Stage `it*/label`: corpus x codebook -> the target store, and its quality; or targets of another
project, brought in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubert_pretrain import distributed
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.extraction import extraction
from hubert_pretrain.stages.prepare import open_corpus
from hubert_pretrain.targets.import_targets import import_targets
from hubert_pretrain.targets.labelling import label_corpus
from hubert_pretrain.targets.plots import plot_targets
from hubert_pretrain.targets.quality import measure_targets
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.targets.writer import TargetWriter


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Labels every utterance of the corpus with the codebooks of the iteration. A killed run goes
    on at its first unfinished block.

    Started as several processes (torchrun, srun, or RANK and WORLD_SIZE by hand) they share the
    blocks; rank 0 measures.
    """
    iteration = stage.split("/")[0]
    rank = distributed.rank()
    corpus = open_corpus(recipe, workspace)
    if source := recipe.iterations[iteration].targets:
        if rank == 0:
            print(
                import_targets(
                    workspace.resolve(source).path, folder, corpus.manifest, grid=recipe.model.grid
                ),
                flush=True,
            )
    else:
        codebooks = CodebookSet.load(workspace.artefact(f"{iteration}/cluster").path)
        if rank == 0:
            writer: TargetWriter | None = TargetWriter.create(folder, corpus.manifest, codebooks)
        else:
            writer = TargetWriter.join(
                folder, corpus.manifest, codebooks, is_done=lambda: workspace.is_done(stage)
            )
        if writer is not None:
            with extraction(
                recipe, workspace, iteration, layer=codebooks.features.get("layer")
            ) as at:
                ranks = {"rank": rank, "world_size": distributed.launched()}
                label_corpus(
                    corpus,
                    writer,
                    at.extractor,
                    codebooks,
                    device=at.device,
                    workers=at.workers,
                    **ranks,
                )
    if rank > 0:
        return {}
    store = TargetStore.open(folder)
    plot_targets(store, corpus, folder / "quality.png")
    return measure_targets(store, corpus)
