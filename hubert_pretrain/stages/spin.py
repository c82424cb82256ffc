"""Stage `spin/*`: checkpoint + audio -> checkpoint that hears less of the speaker, and its
codebook.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.pca import Transform
from hubert_pretrain.config.schema import Recipe, SpinConfig
from hubert_pretrain.config.validate import faults_of_spin_network
from hubert_pretrain.data.batching import BucketSampler
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.fields import raise_faults
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.transformers_reader import EXTRA_KEY
from hubert_pretrain.model.checkpoint import LoadedModel, load_model, save_model
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain.dataset import describe_micro_batch, loaders
from hubert_pretrain.pretrain.spin_dataset import ViewSource
from hubert_pretrain.pretrain.spin_module import SpinModule, spin_head
from hubert_pretrain.seeds import derive
from hubert_pretrain.stages.prepare import open_corpus
from hubert_pretrain.stages.training import stage_trainer
from hubert_pretrain.training import loggers as logs
from hubert_pretrain.training.curves import plot_spin
from hubert_pretrain.training.module import Monitor
from hubert_pretrain.training.optim import AdamWSettings, spin_schedule
from hubert_pretrain.training.trainer import fit, take_best, validate


def open_spin(workspace: Workspace, name: str) -> LoadedModel:
    """Encoder and codebook of a stage. Raises ArtefactError when it has not finished."""
    return load_model(workspace.artefact(f"spin/{name}").path)


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Train from the newest checkpoint in `folder`, or from the start.

    Writes weights, the codebook (a folder that `iterations.NAME.codebook` may name) and curves.png;
    returns the results of the last validation.
    """
    name = stage.split("/")[1]
    config = recipe.spin[name]
    seed = derive(recipe.seed, stage)
    corpus = open_corpus(recipe, workspace)
    loaded = load_checkpoint(workspace.resolve(config.checkpoint).path)
    # The door knows only the model of the recipe.
    raise_faults(list(faults_of_spin_network(f"spin.{name}", config, loaded.model.config)))
    plan = build_plan(config, corpus, loaded.model.grid, seed)
    module = build_module(recipe, config, loaded, seed)
    module.nonfinite.describe = partial(describe_micro_batch, plan=plan, manifest=corpus.manifest)
    made_by = {"recipe": recipe.name, "stage": stage, "steps": config.steps}
    if EXTRA_KEY in loaded.extra:
        made_by[EXTRA_KEY] = loaded.extra[EXTRA_KEY]
    trainer = stage_trainer(
        recipe,
        config,
        folder,
        stage=stage,
        micro_batches=plan.micro_batches,
        extra=made_by,
    )
    views = partial(
        ViewSource,
        corpus,
        config.perturbation,
        grid=loaded.model.grid,
        normalize=loaded.model.config.normalize_waveform,
        seed=seed,
    )
    train, valid = loaders(
        trainer,
        plan,
        train=views(split="train"),
        valid=views(split="valid"),
        workers=recipe.trainer.loader_workers,
    )
    if trainer.is_global_zero:
        print(plan.describe(), describe_speakers(corpus), sep="\n", flush=True)
    fit(trainer, module, train, valid, folder)
    if module.validated_step != trainer.global_step:
        validate(trainer, module, valid)
    best = take_best(trainer, module)
    if trainer.is_global_zero:
        save_model(folder, module.model, head=module.head, extra={**made_by, **best})
        write_codebook(folder, module.head, loaded.model.config.num_hidden_layers)
        plot_spin(
            logs.read_metrics(folder / "logs" / "metrics.csv"),
            folder / "curves.png",
            title=f"{recipe.name} {stage}",
            n_codewords=config.n_codewords,
        )
        if recipe.trainer.log_artefacts:
            logs.keep_folder(trainer.loggers, f"{stage}-model", "model", folder)
    logs.close(trainer.loggers)
    return {
        "steps": config.steps,
        "n_codewords": config.n_codewords,
        **best,
        **{key.removeprefix("valid/"): value for key, value in module.validated.items()},
        "audio_seconds_per_second": module.audio_seconds_per_second,
    }


def build_plan(config: SpinConfig, corpus: Corpus, grid: FrameGrid, seed: int) -> BucketSampler:
    """The micro-batches of the training."""
    return BucketSampler(
        corpus.manifest.length_sorted("train"),
        grid=grid,
        seed=seed,
        batch_seconds=config.batch_seconds,
        micro_batch_seconds=config.micro_batch_seconds,
        max_crop_seconds=config.max_crop_seconds,
        min_seconds=config.min_seconds,
        max_shapes=config.max_shapes,
        masked_frames=lambda num_frames: 0,
    )


def build_module(recipe: Recipe, config: SpinConfig, loaded: LoadedModel, seed: int) -> SpinModule:
    """The network with its new codebook, and how they are trained."""
    torch.manual_seed(derive(seed, "codebook"))
    hidden_size = loaded.model.config.hidden_size
    head = spin_head(hidden_size, config.projection_size, config.n_codewords, config.temperature)
    model = loaded.model.configure(
        attention=recipe.trainer.attention,
        gradient_checkpointing=recipe.trainer.gradient_checkpointing,
        residual=recipe.trainer.residual,
        positions=recipe.trainer.positions,
    )
    return SpinModule(
        model,
        head,
        n_layers=config.n_layers,
        epsilon=config.epsilon,
        iterations=config.sinkhorn_iterations,
        seed=seed,
        optimiser=AdamWSettings.of(config),
        schedule=spin_schedule(config),
        monitor=Monitor.of(config, recipe.trainer),
    )


def describe_speakers(corpus: Corpus) -> str:
    """One line about the voices that the stage hears."""
    rows = np.asarray(corpus.manifest.split_range("train"))
    names = corpus.manifest.take("speaker", rows).unique().to_pylist()
    known = [name for name in names if name]
    if len(known) > 1 or "" in names:
        count = f"{len(known)} speakers" if known else "speakers that nobody named"
        return f"voices: {count}, each beside itself with other formants, pitch and balance"
    return (
        f"voices: one speaker ({known[0]}), so only the changed voices teach what a speaker may "
        "change: units get robust to formants, pitch and balance, and to accents and manners of "
        "speaking only as far as this speaker has them; more speakers are better"
    )


def write_codebook(folder: Path, head: CodebookHead, depth: int) -> None:
    """Write the codebook beside the weights, for frames of the last layer, number `depth`: the
    nearest codeword by cosine, after the projection.
    """
    layer = HubertLayer(folder, depth)
    codebook = Codebook(
        F.normalize(head.unit_embeddings.detach(), dim=-1).cpu(),
        layer.fingerprint(),
        layer.grid,
        fit={"spin": True},
        transform=as_transform(head.projection),
        spherical=True,
    )
    codebook.save(folder)


def as_transform(projection: nn.Linear) -> Transform:
    """W x + b as (x - mean) @ W': the mean is the frame that the projection maps to 0."""
    weight = projection.weight.detach().cpu()
    bias = projection.bias.detach().cpu()
    mean = torch.linalg.lstsq(weight.double(), -bias.double()[:, None], driver="gelsd").solution
    return Transform(mean[:, 0].float(), weight.T.contiguous())
