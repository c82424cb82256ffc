"""Stage `finetune/*`: checkpoint + labels -> task model, and its predictions on the test split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import FinetuneConfig, Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.fields import raise_faults
from hubert_pretrain.finetune.batching import PaddedBucketSampler
from hubert_pretrain.finetune.dataset import TrainingDataset, WholeUtterances, loaders
from hubert_pretrain.finetune.feature_cache import FeatureCache, fill_cache, make_cache
from hubert_pretrain.finetune.inference import predict
from hubert_pretrain.finetune.long_speech import UTTERANCE_SECONDS_KEY
from hubert_pretrain.finetune.lora import add_lora, merge_lora
from hubert_pretrain.finetune.masks import make_masks
from hubert_pretrain.finetune.module import FinetuneModule
from hubert_pretrain.finetune.rates import Rates
from hubert_pretrain.finetune.results import score, write_results
from hubert_pretrain.finetune.scoring import TASK_KEY
from hubert_pretrain.finetune.search import write_language
from hubert_pretrain.finetune.start import load_start, random_start, start_head, start_language
from hubert_pretrain.finetune.task import Examples, Results, Task, gather_examples
from hubert_pretrain.frames import seconds as in_seconds
from hubert_pretrain.interop.languages import copy_languages
from hubert_pretrain.interop.transformers_reader import EXTRA_KEY
from hubert_pretrain.model.checkpoint import LoadedModel, load_model, save_model
from hubert_pretrain.model.config import faults_of_streaming
from hubert_pretrain.model.heads import TaskHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.language_adapters import TARGET_LANG, language_of, save_language
from hubert_pretrain.model.spec_augment import SpecAugment
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.seeds import derive
from hubert_pretrain.stages.prepare import open_corpus
from hubert_pretrain.stages.training import stage_trainer
from hubert_pretrain.training import loggers as logs
from hubert_pretrain.training.curves import plot_finetuning
from hubert_pretrain.training.dynamic_chunks import DynamicChunks, describe_chunks
from hubert_pretrain.training.module import Monitor
from hubert_pretrain.training.optim import AdamWSettings, finetuning_schedule
from hubert_pretrain.training.trainer import fit, take_best, validate


def open_finetuned(workspace: Workspace, task: str) -> LoadedModel:
    """Encoder and head of a task. Raises ArtefactError when the stage has not finished."""
    return load_model(workspace.artefact(f"finetune/{task}").path)


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Train from the newest checkpoint in `folder`, or from the start.

    Writes weights, predictions on the valid split and curves.png; returns the scores of the valid
    split. (Those of test splits are made by stages/evaluate.py.)
    """
    task_name = stage.split("/")[1]
    config = recipe.finetune[task_name]
    seed = derive(recipe.seed, stage)
    corpus = open_corpus(recipe, workspace)
    task: Task = compose.build(config.task)
    start = workspace.resolve(config.checkpoint).path if config.checkpoint is not None else None
    loaded = load_encoder(recipe, config, task, start, seed, f"finetune.{task_name}")
    model = loaded.model
    train, valid, *_ = gather_examples(
        task,
        corpus,
        model.grid,
        {
            "train_split": config.train_split,
            "valid_split": config.valid_split,
            "test_split": config.test_split,
        },
        f"finetune.{task_name}",
        config.train_hours,
    )
    key = f"finetune.{task_name}.decoding"
    task.decoder(config.decoding, train.references, model.grid, key)  # refuses what cannot be
    torch.manual_seed(derive(seed, "head"))
    head = start_head(task, loaded, start, keep_head=config.start_head == "keep")
    if config.lora.rank:
        add_lora(model, config.lora, derive(seed, "lora"))
    cache = open_cache(config, corpus, model, head, [train, valid], folder)
    data = build_dataset(config, corpus, model, train, seed, cache, task.views)
    module = build_module(recipe, config, task, model, head, data, seed)
    made_by = describe(recipe, config, stage, task, corpus.manifest.num_samples[train.rows])
    if config.keep_best == "auto":
        config = dataclasses.replace(config, keep_best=f"valid/{task.metrics[0].name}")
    trainer = stage_trainer(
        recipe,
        config,
        folder,
        stage=stage,
        micro_batches=data.plan.micro_batches,
        extra=made_by,
    )
    valid_set = WholeUtterances(corpus, valid, model, cache)
    workers = recipe.trainer.loader_workers
    train_loader, valid_loader = loaders(trainer, data, valid_set, workers=workers)
    if trainer.is_global_zero:
        print(
            data.plan.describe(),
            *describe_chunks(model.config, module.chunks),
            sep="\n",
            flush=True,
        )
    fit(trainer, module, train_loader, valid_loader, folder)
    if module.validated_step != trainer.global_step:
        validate(trainer, module, valid_loader)
    best = take_best(trainer, module)
    module.head.finish()
    merge_lora(model)
    results = predict(model, module.head, task, valid_set, trainer.strategy.root_device)
    if trainer.is_global_zero:
        write_language(folder, config.decoding, train.references)
        write_languages(folder, loaded, module, {**made_by, **best})
        write(recipe, folder, stage, module, trainer, results, {**made_by, **best})
        if cache is not None:
            cache.remove()
    logs.close(trainer.loggers)
    scores = score(task, results, stage)
    return {
        **scores,
        "steps": config.steps,
        **best,
        "utterances": len(valid),
    }


def write(
    recipe: Recipe,
    folder: Path,
    stage: str,
    module: FinetuneModule,
    trainer: L.Trainer,
    results: Results,
    extra: dict[str, Any],
) -> None:
    """Weights with their `extra`, predictions, curves. Call it on the first rank."""
    save_model(folder, module.model, head=module.head, extra=extra)
    write_results(folder, trainer.loggers, module.task, results)
    plot_finetuning(
        logs.read_metrics(folder / "logs" / "metrics.csv"),
        folder / "curves.png",
        title=f"{recipe.name} {stage}",
    )
    if recipe.trainer.log_artefacts:
        logs.keep_folder(trainer.loggers, f"{stage}-model", "model", folder)


def write_languages(
    folder: Path, start: LoadedModel, module: FinetuneModule, extra: dict[str, Any]
) -> None:
    """The language that was trained, if one was, and those of the checkpoint that it started from.
    Call it on the first rank.
    """
    if name := extra.get(TARGET_LANG):
        copy_languages(start, folder, but=name)
        head: Any = module.head
        save_language(folder, language_of(name, module.model, head, extra))


def describe(
    recipe: Recipe,
    config: FinetuneConfig,
    stage: str,
    task: Task,
    num_samples: NDArray[np.int64],
) -> dict[str, Any]:
    """The "extra" of the checkpoint: origin, the task's card, and the masks for exports.

    Args:
        num_samples: lengths of the training utterances.
    """
    card = task.card()
    masks = vars(SpecAugment.of_spans(config.mask, config.channel_mask))
    language = {TARGET_LANG: config.target_lang} if config.target_lang is not None else {}
    made_by = {
        **language,
        "recipe": recipe.name,
        "stage": stage,
        "steps": config.steps,
        TASK_KEY: config.task,
        UTTERANCE_SECONDS_KEY: round(in_seconds(int(num_samples.max())), 2),
    }
    return {**made_by, **card, EXTRA_KEY: {**masks, **card.get(EXTRA_KEY, {})}}


def load_encoder(
    recipe: Recipe,
    config: FinetuneConfig,
    task: Task,
    path: Path | None,
    seed: int,
    key: str = "finetune.NAME",
) -> LoadedModel:
    """The checkpoint to start from, or random weights of the recipe's model where there is none;
    the encoder has the dropouts and chunks of fine-tuning. `key`: of the task, for messages.
    """
    settings = {
        "conv_gradient_scale": config.conv_gradient_scale,
        "hidden_dropout": config.hidden_dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "feat_proj_dropout": config.feat_proj_dropout,
        "layerdrop": config.layerdrop,
        "chunk_frames": None,  # of this task: below
        "left_context_frames": None,
    }
    if config.normalize_waveform is not None:
        settings["normalize_waveform"] = config.normalize_waveform
    if path is None:
        loaded = random_start(recipe.model, derive(seed, "model"), **settings)
    else:
        loaded = load_start(
            path,
            task,
            keep_head=config.start_head == "keep",
            target_lang=config.target_lang,
            **settings,
        )
    if config.target_lang is not None:
        loaded = start_language(loaded, config, task, derive(seed, "adapters"), key)
    lengths = config.chunk_frames or list(config.dynamic_chunks.chunk_frames)
    if lengths:
        name = "chunk_frames" if config.chunk_frames else "dynamic_chunks.chunk_frames"
        asked = f"{key}.{name}={lengths}"
        raise_faults(faults_of_streaming(loaded.model.config, asked, key))
    loaded.model.in_chunks(config.chunk_frames, config.left_context_frames)
    loaded.model.configure(
        attention=recipe.trainer.attention,
        gradient_checkpointing=recipe.trainer.gradient_checkpointing,
        residual=recipe.trainer.residual,
        positions=recipe.trainer.positions,
    )
    return loaded


def open_cache(
    config: FinetuneConfig,
    corpus: Corpus,
    model: Hubert,
    head: TaskHead,
    splits: Sequence[Examples],
    folder: Path,
) -> FeatureCache | None:
    """The cache of the encoder's outputs; None where they change from step to step, or would not
    fit.
    """
    if config.feature_cache_gb == 0 or not is_constant(config, model):
        return None
    rows = np.concatenate([examples.rows for examples in splits])
    return make_cache(folder, corpus, rows, model, head, config.feature_cache_gb)


def is_constant(config: FinetuneConfig, model: Hubert) -> bool:
    """True if the encoder gives an utterance the same outputs in each step and each batch."""
    dropouts = (
        config.hidden_dropout,
        config.attention_dropout,
        config.activation_dropout,
        config.feat_proj_dropout,
        config.layerdrop,
    )
    masks = (config.mask.probability, config.channel_mask.probability)
    statistics_of_batch = model.config.conv_pos_batch_norm
    sees_padding = model.config.feat_extract_norm == "group" and not config.norm_over_valid
    return (
        config.freeze_encoder_steps >= config.steps
        and not any([*dropouts, *masks])
        and not config.dynamic_chunks.chunk_frames
        and not (statistics_of_batch or sees_padding)
    )


def build_dataset(
    config: FinetuneConfig,
    corpus: Corpus,
    model: Hubert,
    train: Examples,
    seed: int,
    cache: FeatureCache | None = None,
    views: int = 1,
) -> TrainingDataset:
    """The micro-batches of the training, with their masks. All views of an utterance count as
    audio of its batch.
    """
    plan = PaddedBucketSampler(
        train.rows,
        corpus.manifest.num_samples[train.rows],
        seed=seed,
        batch_seconds=config.batch_seconds / views,
        micro_batch_seconds=config.micro_batch_seconds / views,
    )
    masks = make_masks(config.mask_sampler, config.mask, config.channel_mask, seed, views)
    return TrainingDataset(corpus, train, plan, model, masks, cache, views)


def build_module(
    recipe: Recipe,
    config: FinetuneConfig,
    task: Task,
    model: Hubert,
    head: TaskHead,
    data: TrainingDataset,
    seed: int,
) -> FinetuneModule:
    """The encoder, the head of the task and how they are trained."""
    return FinetuneModule(
        model,
        head,
        task,
        seed=seed,
        optimiser=AdamWSettings.of(config),
        schedule=finetuning_schedule(config),
        monitor=Monitor.of(config, recipe.trainer),
        freeze_encoder_steps=config.freeze_encoder_steps,
        norm_over_valid=config.norm_over_valid,
        chunks=DynamicChunks.of(config.dynamic_chunks),
        describe_micro_batch=data.describe,
        rates=Rates.of_config(config),
        cache=data.cache,
        fill_cache=partial(
            fill_cache, data.cache, model, data.corpus, recipe.trainer.loader_workers
        ),
    )
