"""Stage `finetune/*`: checkpoint + labels -> task model, and what it says of the test split."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import FinetuneConfig, Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.files import write_text
from hubert_pretrain.finetune.batching import PaddedBucketSampler
from hubert_pretrain.finetune.dataset import TrainingDataset, WholeUtterances, loaders
from hubert_pretrain.finetune.inference import predict, pretrained
from hubert_pretrain.finetune.masks import Masking, make_masks
from hubert_pretrain.finetune.module import FinetuneModule
from hubert_pretrain.finetune.task import Examples, Task, gather_examples, strings
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.seeds import derive
from hubert_pretrain.stages.prepare import open_corpus
from hubert_pretrain.stages.training import trainer_of
from hubert_pretrain.training.curves import plot_finetuning
from hubert_pretrain.training.loggers import close, keep_folder, keep_table, read_metrics
from hubert_pretrain.training.module import Optimisation
from hubert_pretrain.training.optim import tri_stage_schedule
from hubert_pretrain.training.trainer import fit

# Values of the encoder that fine-tuning has its own of.
REPLACED = (
    "conv_gradient_scale",
    "hidden_dropout",
    "attention_dropout",
    "activation_dropout",
    "feat_proj_dropout",
    "layerdrop",
)


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Trains from the newest checkpoint in `folder`, or from the start; writes weights, predictions
    on the test split and curves.
    """
    task_name = stage.split("/")[1]
    config = recipe.finetune[task_name]
    seed = derive(recipe.seed, stage)
    corpus = open_corpus(recipe, workspace)
    model = pretrained(
        workspace.resolve(config.checkpoint).path,
        **{name: getattr(config, name) for name in REPLACED},
    )
    model.computed(
        attention=recipe.trainer.attention, recompute=recipe.trainer.gradient_checkpointing
    )
    task: Task = compose.build(config.task)
    splits = {key: getattr(config, key) for key in ("train_split", "valid_split", "test_split")}
    train, valid, test = gather_examples(
        task, corpus.manifest, model.grid, splits, f"finetune.{task_name}"
    )
    data = _training_data(config, corpus, model, train, seed)
    module = _module(config, task, model, seed, data, recipe.trainer.max_skipped_steps)
    trainer = trainer_of(recipe, config, folder, stage=stage, micro_batches=data.plan.micro_batches)
    loading = loaders(
        trainer, data, WholeUtterances(corpus, valid, model), workers=recipe.trainer.loader_workers
    )
    if trainer.is_global_zero:
        print(data.plan.describe(), flush=True)
    fit(trainer, module, *loading, folder)
    guesses = predict(
        model, module.head, task, WholeUtterances(corpus, test, model), trainer.strategy.root_device
    )
    if trainer.is_global_zero:
        save_model(
            folder,
            model,
            head=module.head,
            extra={"recipe": recipe.name, "stage": stage, "steps": config.steps, **task.card()},
        )
        file_name, table = task.table(
            strings(corpus.manifest, "id", test.rows), test.references, guesses
        )
        write_text(folder / file_name, table)
        plot_finetuning(
            read_metrics(folder / "logs" / "metrics.csv"),
            folder / "curves.png",
            title=f"{recipe.name} {stage}",
        )
        header, *rows = [line.split("\t") for line in table.splitlines()]
        keep_table(trainer.loggers, file_name.removesuffix(".tsv"), header, rows)
        if recipe.trainer.log_artefacts:
            keep_folder(trainer.loggers, f"{stage}-model", "model", folder)
    close(trainer.loggers)
    return {**task.score(test.references, guesses), "steps": config.steps, "utterances": len(test)}


def _training_data(
    config: FinetuneConfig, corpus: Corpus, model: Hubert, train: Examples, seed: int
) -> TrainingDataset:
    seconds = {name: getattr(config, name) for name in ("batch_seconds", "micro_batch_seconds")}
    plan = PaddedBucketSampler(
        train.rows, corpus.manifest.num_samples[train.rows], seed=seed, **seconds
    )
    spans = Masking(**vars(config.mask)), Masking(**vars(config.channel_mask))
    return TrainingDataset(
        corpus, train, plan, model, make_masks(config.mask_sampler, *spans, seed)
    )


def _module(
    config: FinetuneConfig,
    task: Task,
    model: Hubert,
    seed: int,
    data: TrainingDataset,
    max_skipped_steps: int,
) -> FinetuneModule:
    torch.manual_seed(derive(seed, "head"))
    schedule = partial(
        tri_stage_schedule,
        steps=config.steps,
        warmup_fraction=config.warmup_fraction,
        hold_fraction=config.hold_fraction,
        initial_scale=config.initial_lr_scale,
        final_scale=config.final_lr_scale,
    )
    values = {
        name: getattr(config, name)
        for name in ("learning_rate", "betas", "eps", "weight_decay", "clip_norm")
    }
    return FinetuneModule(
        model,
        task.head(model.config),
        task,
        **{name: getattr(config, name) for name in ("freeze_encoder_steps", "norm_over_valid")},
        seed=seed,
        describe_micro_batch=data.describe,
        optimisation=Optimisation(factor=schedule, **values),
        log_every_steps=config.log_every_steps,
        max_skipped_steps=max_skipped_steps,
    )
