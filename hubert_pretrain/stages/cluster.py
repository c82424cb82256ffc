"""Stage `it*/cluster`: frames of a sample of the training audio -> codebooks."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hubert_pretrain import distributed, seeds
from hubert_pretrain.clustering import layer_selection, sample
from hubert_pretrain.clustering.codebook_set import ALL, CodebookSet
from hubert_pretrain.clustering.fit import CodebookFitter, describe_fit, fit_facts, parse_specs
from hubert_pretrain.clustering.frame_source import rank_range
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.features.layer import ALL as ALL_LAYERS
from hubert_pretrain.features.layer import LayerFeatures
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.extraction import AUTO, extraction
from hubert_pretrain.stages.prepare import open_corpus


@dataclass(frozen=True)
class LayerChoice:
    """The layer that stands for `features.layer=auto`."""

    layer: int | None = None
    """None where the recipe names a layer."""
    facts: dict[str, Any] | None = None
    """Settings and scores of the choice."""


def open_codebooks(recipe: Recipe, workspace: Workspace, iteration: str) -> CodebookSet:
    """The codebooks of an iteration: those that the recipe names, or those of its cluster stage.

    Raises ArtefactError when they do not exist or the stage has not finished.
    """
    named = recipe.iterations[iteration].codebook
    if named is not None:
        return CodebookSet.load(workspace.resolve(named).path)
    return CodebookSet.load(workspace.artefact(f"{iteration}/cluster").path)


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Fit the codebooks of an iteration and write them to `folder`. Several processes (torchrun)
    share the frames.

    A killed run computes its frames again, unless they were in a file already; engine `torch` then
    resumes after its last whole pass.
    """
    iteration, _, _ = stage.partition("/")
    config = recipe.iterations[iteration].clustering
    corpus = open_corpus(recipe, workspace)
    chosen = None
    if distributed.rank() == 0:
        chosen = choose_layer(recipe, workspace, iteration, corpus, folder)
    with distributed.group():
        choice: LayerChoice = distributed.from_first(chosen)
        codebooks, facts = fit(recipe, workspace, stage, folder, corpus, choice.layer)
        facts |= {"layer_choice": choice.facts} if choice.facts else {}
        if distributed.rank() == 0:
            provenance = facts | {"seed": recipe.seed, "clustering": asdict(config)}
            replace(codebooks, fit=provenance).save(folder)
            print(describe_fit(facts), flush=True)
        distributed.barrier()
    sample.remove_scratch(folder)
    return facts | {"features": codebooks.features}


def choose_layer(
    recipe: Recipe, workspace: Workspace, iteration: str, corpus: Corpus, folder: Path
) -> LayerChoice:
    """Cluster and score every layer, where the recipe says `features.layer=auto`."""
    if recipe.iterations[iteration].features.get("layer") != AUTO:
        return LayerChoice()
    config = recipe.iterations[iteration].layer_choice
    rows = layer_selection.choose_rows(
        corpus, config.split, config.criterion, max_hours=config.max_hours, seed=recipe.seed
    )
    with extraction(recipe, workspace, iteration, layer=ALL_LAYERS) as at:
        assert isinstance(at.extractor, LayerFeatures)
        scores = layer_selection.score_layers(
            corpus,
            rows,
            at.extractor,
            n_clusters=config.n_clusters,
            seed=recipe.seed,
            device=at.device,
            workers=at.workers,
            scratch=folder,
        )
    layer = layer_selection.best_layer(scores, config.criterion)
    table = layer_selection.score_table(scores)
    found = {"layer": layer, "utterances": len(rows), "scores": table}
    return LayerChoice(layer, asdict(config) | found)


def fit(
    recipe: Recipe,
    workspace: Workspace,
    stage: str,
    folder: Path,
    corpus: Corpus,
    layer: int | None,
) -> tuple[CodebookSet, dict[str, Any]]:
    """The codebooks, the same on every rank, and the measured facts."""
    iteration, _, _ = stage.partition("/")
    config = recipe.iterations[iteration].clustering
    with extraction(recipe, workspace, iteration, layer=layer) as at:
        grid = at.extractor.grid
        dim = at.extractor.dim
        features = at.extractor.fingerprint()
        device = str(at.device)
        specs = parse_specs(config.codebooks, dim=dim, n_clusters=config.n_clusters)
        rows = sample.choose_rows(
            corpus.manifest.num_samples,
            corpus.manifest.split_range("train"),
            fraction=config.fraction,
            max_hours=sample.hours_limit(config.max_hours, config.max_frames, grid),
            seed=recipe.seed,
        )
        estimator = KMeans.of(config, device=device)
        total = int(np.sum(grid.num_frames(corpus.manifest.num_samples[rows])))
        memory_bytes = estimator.memory.frame_bytes(
            config.max_memory_bytes, len(rank_range(total)), dim
        )
        frames = sample.gather_rank_frames(
            corpus,
            rows,
            at.extractor,
            memory_bytes=memory_bytes,
            scratch=folder,
            device=at.device,
            workers=at.workers,
        )
    size = sample.SampleSize.of(corpus.manifest, rows, frames.total)
    if distributed.rank() == 0:
        print(size.describe(), flush=True)
        if warning := size.warning(max(spec.n_clusters for spec in specs)):
            print(warning, flush=True)
    fitter = CodebookFitter(
        estimator,
        functools.partial(seed_of, recipe.seed, stage),
        pca_dims=config.pca_dims,
        whiten=config.whiten,
        folder=folder,
    )
    codebooks = fitter.fit(frames, specs, features=features, grid=grid)
    return codebooks, fit_facts(codebooks) | {"dim": dim} | asdict(size)


def seed_of(seed: int, stage: str, codebook: str) -> int:
    """The seed of one codebook; the only codebook of an iteration has no name of its own."""
    names = () if codebook == ALL else (codebook,)
    return seeds.derive(seed, stage, "k-means", *names)
