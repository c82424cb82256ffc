"""finetune: checkpoint + labels -> task model, its predictions on the test split, and curves."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from lightning import Trainer
from numpy.typing import NDArray
from torch import nn

from hubert_pretrain.config import FinetuneConfig, Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.finetune.batches import PaddedPlan
from hubert_pretrain.finetune.curves import draw
from hubert_pretrain.finetune.dataset import Masking, TrainingDataset, WholeUtterances
from hubert_pretrain.finetune.module import FinetuneModule
from hubert_pretrain.finetune.predict import predict
from hubert_pretrain.finetune.task import Examples, Task, strings
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pretrain.dataset import FromStep, loader
from hubert_pretrain.seeds import derive
from hubert_pretrain.training.loggers import close, logger_arguments
from hubert_pretrain.training.module import Optimisation
from hubert_pretrain.training.schedule import tri_stage
from hubert_pretrain.training.trainer import accumulation, build_trainer, fit
from hubert_pretrain.workspace import Workspace, write_text

log = logging.getLogger(__name__)

ENCODER_FIELDS = ("conv_gradient_scale", "hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop")
"""Values of the encoder that fine-tuning replaces."""


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Fine-tunes, then writes the model (model.safetensors, config.json), its predictions and curves.png into `folder`."""
    config, seed = recipe.finetune[stage.split("/")[1]], derive(recipe.seed, stage)
    corpus = Corpus.open(workspace.artefact("prepare").path)
    model = _pretrained(workspace.resolve(config.checkpoint).path, config)
    task: Task = instantiate(config.task)
    train = task.fit(corpus.manifest, _rows(corpus, stage, "train_split", config.train_split), model.grid)
    valid, test = (
        task.examples(corpus.manifest, _rows(corpus, stage, name, split))
        for name, split in (("valid_split", config.valid_split), ("test_split", config.test_split))
    )
    torch.manual_seed(derive(seed, "head"))
    head = task.head(model.config)
    trainer = _train(recipe, config, stage, folder, corpus, task, model, head, train, valid, seed)
    guesses = predict(model, head, task, _alone(corpus, test, model), trainer.strategy.root_device)
    scores = task.score(test.references, guesses)
    if trainer.is_global_zero:
        save_model(folder, model, head=head, extra=task.card())
        name, table = task.table(strings(corpus.manifest, "id", test.rows), test.references, guesses)
        write_text(folder / name, table)
        draw(folder / "logs" / "metrics.csv", folder / "curves.png", title=stage)
    return {**scores, "steps": config.steps, "utterances": len(test)}
