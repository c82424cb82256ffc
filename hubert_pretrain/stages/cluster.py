"""Stage `it*/cluster`: a sample of the training audio -> codebook.safetensors and codebook.json."""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hubert_pretrain import distributed, seeds
from hubert_pretrain.clustering import layer_selection, sample
from hubert_pretrain.clustering.codebook_set import ALL, CodebookSet
from hubert_pretrain.clustering.fit import CodebookFitter, fit_facts, parse_specs
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.features.layer import ALL as ALL_LAYERS
from hubert_pretrain.features.layer import LayerFeatures
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.extraction import AUTO, extraction
from hubert_pretrain.stages.prepare import open_corpus


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Fits the codebooks of an iteration. Started as several processes (torchrun) they share the
    frames.

    A killed run computes its frames again (unless they were in a file already); engine `torch` then
    goes on after its last whole pass.
    """
    iteration = stage.split("/")[0]
    corpus = open_corpus(recipe, workspace)
    chosen = (
        choose_layer(recipe, workspace, iteration, corpus, folder)
        if distributed.rank() == 0
        else None
    )
    with distributed.group():
        layer, choice = distributed.from_first(chosen)
        codebooks, facts = fit(recipe, workspace, stage, folder, corpus, layer)
        if distributed.rank() == 0:
            replace(
                codebooks, fit=facts | choice | {"seed": recipe.seed} | _settings(recipe, iteration)
            ).save(folder)
        distributed.barrier()
    sample.remove_scratch(folder)
    for path in folder.glob("*.state"):
        path.unlink(missing_ok=True)
    return (
        {name: value for name, value in facts.items() if name != "utterances"}
        | choice
        | {"features": codebooks.features}
    )


def fit(
    recipe: Recipe,
    workspace: Workspace,
    stage: str,
    folder: Path,
    corpus: Corpus,
    layer: int | None,
) -> tuple[CodebookSet, dict[str, Any]]:
    """The codebooks, the same on every rank, and what was measured."""
    iteration = stage.split("/")[0]
    config = recipe.iterations[iteration].clustering
    budget = int(config.max_memory_gb * 1e9)
    with extraction(recipe, workspace, iteration, layer=layer) as at:
        grid = at.extractor.grid
        dim = at.extractor.dim
        features = at.extractor.fingerprint()
        specs = parse_specs(config.codebooks, dim=dim, n_clusters=config.n_clusters)
        max_hours = min(
            config.max_hours,
            sample.hours_of(config.max_frames, grid) if config.max_frames else math.inf,
        )
        train = corpus.manifest.split_range("train")
        rows = sample.choose_rows(
            corpus.manifest.num_samples,
            train,
            fraction=config.fraction,
            max_hours=max_hours,
            seed=recipe.seed,
        )
        shard = sample.gather_rank_frames(
            corpus,
            rows,
            at.extractor,
            scratch=folder,
            memory_bytes=sample.frame_bytes(budget),
            device=at.device,
            workers=at.workers,
        )
        device = str(at.device)
    estimator = KMeans.of(config, device=device, max_sample_bytes=sample.sample_bytes(budget))
    seed = functools.partial(_seed, recipe.seed, stage)
    fitter = CodebookFitter(
        estimator, seed, pca_dims=config.pca_dims, whiten=config.whiten, folder=folder
    )
    codebooks = fitter.fit(shard, specs, features=features, grid=grid)
    return codebooks, {
        **fit_facts(codebooks),
        "frames": shard.total,
        "dim": dim,
        "utterances": len(rows),
    }


def _seed(seed: int, stage: str, name: str) -> int:
    return seeds.derive(seed, stage, "k-means", *([] if name == ALL else [name]))


def _settings(recipe: Recipe, iteration: str) -> dict[str, Any]:
    settings = asdict(recipe.iterations[iteration].clustering)
    return {
        name: value
        for name, value in settings.items()
        if name not in ("n_clusters", "fraction", "max_hours")
    }


def choose_layer(
    recipe: Recipe, workspace: Workspace, iteration: str, corpus: Corpus, folder: Path
) -> tuple[int | None, dict[str, Any]]:
    """The layer that stands for `features.layer=auto`, and the facts of how it was chosen; (None,
    {}) where the recipe names a layer.
    """
    if recipe.iterations[iteration].features.get("layer") != AUTO:
        return None, {}
    choice = recipe.iterations[iteration].layer_choice
    rows = layer_selection.choose_rows(
        corpus, choice.split, choice.criterion, max_hours=choice.max_hours, seed=recipe.seed
    )
    with extraction(recipe, workspace, iteration, layer=ALL_LAYERS) as at:
        assert isinstance(at.extractor, LayerFeatures)
        scores = layer_selection.score_layers(
            corpus,
            rows,
            at.extractor,
            n_clusters=choice.n_clusters,
            seed=recipe.seed,
            device=at.device,
            workers=at.workers,
            scratch=folder,
        )
    layer = layer_selection.best_layer(scores, choice.criterion)
    return layer, {
        "layer_choice": asdict(choice)
        | {"layer": layer, "utterances": len(rows), "scores": layer_selection.score_table(scores)}
    }
