"""Stage `it*/label`: corpus x codebook -> the target store, and its quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.stage import extraction
from hubert_pretrain.config import Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.targets.label import label, measure
from hubert_pretrain.targets.store import TargetStore, TargetWriter
from hubert_pretrain.workspace import Workspace


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Labels every utterance of the corpus with the codebook of the iteration. A killed run goes on at its first unfinished block."""
    iteration = stage.split("/")[0]
    corpus = Corpus.open(workspace.artefact("prepare").path)
    codebook = Codebook.load(workspace.artefact(f"{iteration}/cluster").path)
    writer = TargetWriter.create(folder, corpus.manifest, codebook)
    with extraction(recipe, workspace, iteration) as at:
        label(corpus, writer, at.extractor, codebook, device=at.device, workers=at.workers)
    return measure(TargetStore.open(folder), corpus)
