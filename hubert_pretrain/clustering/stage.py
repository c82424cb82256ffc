"""Stage `it*/cluster`: a sample of the training audio -> codebook.safetensors and codebook.json."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hubert_pretrain import compose, seeds
from hubert_pretrain.clustering import kmeans, sample
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.config import Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.probe import usable_cores
from hubert_pretrain.features.extractor import Extractor
from hubert_pretrain.workspace import Workspace

MAX_WORKERS = 16
"""Utterances in flight at once: each may need some 700 MB in the conv encoder of Base."""


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Fits the codebook of an iteration. A killed run is done again from the start, with the same outcome."""
    iteration = stage.split("/")[0]
    settings = asdict(recipe.iterations[iteration].clustering)
    corpus = Corpus.open(workspace.artefact("prepare").path)
    rows = sample.choose_rows(
        corpus.manifest.num_samples,
        corpus.manifest.rows("train"),
        fraction=settings.pop("fraction"),
        max_hours=settings.pop("max_hours"),
        seed=recipe.seed,
    )
    with extraction(recipe, workspace, iteration) as at:
        frames = sample.gather(corpus, rows, at.extractor, scratch=folder, device=at.device, workers=at.workers)
        features, grid = at.extractor.fingerprint(), at.extractor.grid
    centroids = kmeans.fit(frames, **settings, seed=seeds.derive(recipe.seed, stage, "k-means"))
    codebook = Codebook(torch.from_numpy(centroids), features, grid)
    facts = {"n_clusters": codebook.n_clusters, "inertia": kmeans.inertia(frames, codebook), "frames": len(frames), "dim": codebook.dim}
    Codebook(codebook.centroids, features, grid, fit=facts | {"utterances": len(rows), "seed": recipe.seed} | settings).save(folder)
    (folder / sample.SCRATCH).unlink(missing_ok=True)
    return facts | {"features": features}


@dataclass(frozen=True)
class Extraction:
    """What computes frames in this process, and where."""

    extractor: Extractor
    device: torch.device
    workers: int


@contextmanager
def extraction(recipe: Recipe, workspace: Workspace, iteration: str) -> Iterator[Extraction]:
    """The extractor of an iteration on its device. On a CPU each worker computes with one torch thread, for as long as this is open."""
    node = dict(recipe.iterations[iteration].features)
    if "checkpoint" in node:
        node["checkpoint"] = str(workspace.resolve(node["checkpoint"]).path)
    on_gpu = recipe.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    workers = min(MAX_WORKERS, recipe.trainer.threads or usable_cores())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield Extraction(compose.build(node).to(device), device, workers)
    finally:
        torch.set_num_threads(threads)
