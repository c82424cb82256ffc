"""Stages `evaluate/<name>/<split>`: fine-tuned checkpoint + labels of a split -> scores and error
analysis.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hubert_pretrain import distributed
from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import EvaluateConfig, Recipe
from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.report import EVALUATION, write_evaluation
from hubert_pretrain.finetune.results import score, write_results
from hubert_pretrain.finetune.scoring import Search, adopt, check_split, evaluate, task_node
from hubert_pretrain.finetune.task import Task
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.summary import scores_line
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.extraction import device_of
from hubert_pretrain.stages.prepare import open_corpus


def open_evaluation(workspace: Workspace, name: str, split: str) -> dict[str, Any]:
    """The content of evaluation.json. Raises ArtefactError when the stage has not finished."""
    folder = workspace.artefact(f"evaluate/{name}/{split}").path
    return dict(json.loads((folder / EVALUATION).read_text(encoding="utf-8")))


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Score the checkpoint on every utterance of the split; returns the scores with intervals.

    Writes evaluation.json, report.md, the predictions as tables, and transcripts as trn. An
    interrupted evaluation begins again.
    """
    _, name, split = stage.split("/")
    config = plan.evaluations(recipe)[name]
    corpus = open_corpus(recipe, workspace)
    check_split(corpus, split, f"evaluate.{name}.splits")
    path = workspace.resolve(str(config.checkpoint)).path
    own = is_own(recipe, name, config)
    node = config.task
    if node is None and own and config.target_lang in (None, recipe.finetune[name].target_lang):
        node = recipe.finetune[name].task  # that of another language is as its file states it
    task, loaded = load_task(path, node, target_lang=config.target_lang)
    loaded.model.configure(attention=recipe.trainer.attention)
    # The same draws for every checkpoint, so that intervals on a split can be compared.
    sampling = Sampling(config.resamples, config.confidence, recipe.seed)
    search = Search(config.decoding)
    if own:
        trained = recipe.finetune[name]
        search = Search(config.decoding, trained.train_split, trained.valid_split)
    with distributed.group():
        found = evaluate(
            task,
            loaded,
            corpus,
            split,
            device_of(recipe),
            sampling,
            folder,
            search,
            f"evaluate.{name}.decoding",
        )
    if distributed.rank() == 0:
        about = {"model": str(config.checkpoint), "corpus": str(corpus.folder), "split": split}
        write_evaluation(folder, found.scored, found.analysis, about)
        write_results(folder, [], task, found.results)
    facts = {
        **score(task, found.results, stage, found.analysis.warnings),
        **found.decoded,
        "intervals": found.analysis.intervals(),
        "utterances": len(found.scored),
        "checkpoint": str(config.checkpoint),
        "split": split,
    }
    if distributed.rank() == 0:
        print(scores_line(stage, facts), flush=True)
    return facts


def load_task(path: Path, node: Any = None, **overrides: Any) -> tuple[Task, LoadedModel]:
    """A fine-tuned checkpoint and its task, with the names of the checkpoint's outputs.

    Args:
        path: of any checkpoint that `load_checkpoint` reads.
        node: `_target_` of the task; None: as the checkpoint states it.
        overrides: of `load_checkpoint`, and target_lang.
    """
    loaded = load_checkpoint(path, **overrides)
    task: Task = compose.build(node or task_node(loaded, str(path)))
    adopt(task, loaded, str(path))
    return task, loaded


def is_own(recipe: Recipe, name: str, config: EvaluateConfig) -> bool:
    """True for the checkpoint of the task of that name."""
    return name in recipe.finetune and config.checkpoint == f"finetune/{name}"
