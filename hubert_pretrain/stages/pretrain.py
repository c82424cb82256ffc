"""Stage `it*/pretrain`: corpus x targets -> checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from hubert_pretrain.config.schema import PretrainConfig, Recipe
from hubert_pretrain.data.augment import make_augmentation
from hubert_pretrain.data.batching import BucketSampler
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.compile import compile_network
from hubert_pretrain.model.heads import pretraining_head
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.masking import expected_count
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain.dataset import CropSource, SpanMasking, describe_micro_batch, loaders
from hubert_pretrain.pretrain.layer_supervision import LayerSupervision
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.pretrain.phone_probe import make_probe
from hubert_pretrain.pretrain.warm_start import warm_start
from hubert_pretrain.seeds import derive
from hubert_pretrain.stages.prepare import open_corpus
from hubert_pretrain.stages.training import trainer_of
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.training import loggers as logs
from hubert_pretrain.training.curves import plot_pretraining
from hubert_pretrain.training.module import Optimisation
from hubert_pretrain.training.optim import linear_schedule
from hubert_pretrain.training.strategies import gather_module
from hubert_pretrain.training.trainer import fit, validate


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Trains from the newest checkpoint in `folder`, or from the start; writes weights and
    curves.png, returns what validation found.
    """
    iteration = stage.split("/")[0]
    config = recipe.iterations[iteration].pretrain
    seed = derive(recipe.seed, stage)
    corpus = open_corpus(recipe, workspace)
    label = workspace.artefact(f"{iteration}/label")
    targets = TargetStore.open(label.path)
    targets.check(corpus.manifest, recipe.model.grid)
    plan = _plan(recipe, config, corpus, seed)
    module = _module(
        recipe,
        config,
        targets.sizes,
        seed,
        partial(describe_micro_batch, plan=plan, manifest=corpus.manifest),
    )
    if config.start_from:
        print(
            warm_start(
                module.model,
                module.head,
                workspace.resolve(config.start_from).path,
                targets,
                choice=config.start_head,
                seed=seed,
            )
        )
    inputs = {"targets": label.fingerprint, "codebook": targets.codebook}
    reading: dict[str, Any] = {
        "normalize": recipe.model.normalize_waveform,
        "masking": SpanMasking(seed=seed, **vars(config.mask)),
    }
    probed = CropSource(
        corpus, targets.targets, split=config.probe.split, grid=plan.grid, **reading
    )
    probe = make_probe(
        plan, corpus, probed, **vars(config.probe), depth=recipe.model.num_hidden_layers, seed=seed
    )
    trainer = trainer_of(
        recipe,
        config,
        folder,
        stage=stage,
        micro_batches=plan.micro_batches,
        inputs=inputs,
        callbacks=probe,
    )
    augmentation = make_augmentation(seed=seed, **vars(config.augment))
    workers = recipe.trainer.loader_workers
    train, valid = loaders(
        trainer,
        plan,
        corpus,
        targets.targets,
        augmentation=augmentation,
        workers=workers,
        **reading,
    )
    if trainer.is_global_zero:
        print(plan.describe(), flush=True)
    fit(trainer, module, train, valid, folder)
    if module.validated_step != trainer.global_step:
        validate(trainer, module, valid)
    model = gather_module(module.model, lambda: Hubert(recipe.model))
    head = gather_module(module.head, lambda: type(module.head)(**module.head.settings))
    if trainer.is_global_zero:
        made_by = {
            "recipe": recipe.name,
            "stage": stage,
            "steps": config.steps,
            "codebook": targets.codebook,
        }
        save_model(folder, model, head=head, extra=made_by)
        metrics = logs.read_metrics(folder / "logs" / "metrics.csv")
        entropy = label.facts.get("unigram_entropy_nats")
        plot_pretraining(
            metrics,
            folder / "curves.png",
            title=f"{recipe.name} {stage}",
            unigram_entropy_nats=entropy,
            published=iteration,
        )
        if recipe.trainer.log_artefacts:
            parts = {
                "codebook": workspace.folder(f"{iteration}/cluster"),
                "targets": label.path,
                "model": folder,
            }
            for kind, part in parts.items():
                logs.keep_folder(trainer.loggers, f"{stage}-{kind}", kind, part)
    logs.close(trainer.loggers)
    return {
        "steps": config.steps,
        **module.valid_values,
        "audio_seconds_per_second": module.audio_seconds_per_second,
    }


def _plan(recipe: Recipe, config: PretrainConfig, corpus: Corpus, seed: int) -> BucketSampler:
    lengths = (
        "batch_seconds",
        "micro_batch_seconds",
        "max_crop_seconds",
        "min_seconds",
        "max_shapes",
    )
    values = {
        name: getattr(config, name) for name in (*lengths, "corpus_weights", "corpus_temperature")
    }
    masked_frames = partial(expected_count, **vars(config.mask))
    return BucketSampler(
        corpus.manifest.length_sorted("train"),
        grid=recipe.model.grid,
        seed=seed,
        masked_frames=masked_frames,
        **values,
    )


def _module(
    recipe: Recipe, config: PretrainConfig, n_clusters: list[int], seed: int, describe: Any
) -> PretrainModule:
    torch.manual_seed(derive(seed, "weights"))
    model = Hubert(recipe.model).computed(
        attention=recipe.trainer.attention, recompute=recipe.trainer.gradient_checkpointing
    )
    loss = config.loss
    clock = compile_network(
        model, recipe.trainer.compile, mode=recipe.trainer.compile_mode, shapes=config.max_shapes
    )
    width = recipe.model.projection_size
    cosine = {"temperature": loss.temperature, "tie_projections": loss.tie_projections}
    settings: dict[str, Any] = {"projection_size": width, **cosine} if loss.head == "cosine" else {}
    new_head = partial(pretraining_head, recipe.model.hidden_size, n_clusters, **settings)
    head = new_head()
    own_head = new_head if loss.separate_layer_heads else None
    supervision = LayerSupervision(
        recipe.model, layers=loss.supervised_layers, weights=loss.layer_weights, make_head=own_head
    )
    values = {
        name: getattr(config, name)
        for name in ("learning_rate", "betas", "eps", "weight_decay", "clip_norm")
    }
    factor = partial(
        linear_schedule,
        steps=config.steps,
        warmup_steps=round(config.steps * config.warmup_fraction),
    )
    terms = {
        name: getattr(loss, name)
        for name in ("masked_weight", "unmasked_weight", "feature_penalty")
    }
    training: dict[str, Any] = {
        "optimisation": Optimisation(factor=factor, **values),
        "log_every_steps": config.log_every_steps,
    }
    training |= {"freeze_conv_after_steps": config.freeze_conv_after_steps, "compile_clock": clock}
    training |= {
        "max_skipped_steps": recipe.trainer.max_skipped_steps,
        "warmup_steps": round(config.steps * config.warmup_fraction),
    }
    return PretrainModule(
        model,
        head,
        supervision=supervision,
        seed=seed,
        describe_micro_batch=describe,
        **terms,
        **training,
    )
