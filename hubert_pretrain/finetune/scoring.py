"""Scores of a fine-tuned checkpoint on a split: the task that its head belongs to, its predictions,
and their analysis.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError, did_you_mean
from hubert_pretrain.evaluation.analysis import Analysis
from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.utterances import ScoredUtterances
from hubert_pretrain.finetune.classify import ClassifyTask
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.frames import FramesTask
from hubert_pretrain.finetune.multi_label import MultiLabelTask
from hubert_pretrain.finetune.regression import RegressionTask
from hubert_pretrain.finetune.search import FineTuned, final_results
from hubert_pretrain.finetune.slots import SlotsTask
from hubert_pretrain.finetune.task import Examples, Results, Task, strings
from hubert_pretrain.finetune.utterance import UtteranceTask
from hubert_pretrain.finetune.verify import VerifyTask
from hubert_pretrain.interop.model_card import TaskCard
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.heads import TASK_HEADS

TASK_KEY = "task"
"""Key of a checkpoint's "extra" for the `_target_` node of its task."""
TASKS: dict[str, tuple[type[Task], ...]] = {
    CtcTask.kind: (CtcTask,),
    UtteranceTask.kind: (ClassifyTask, MultiLabelTask, RegressionTask, SlotsTask),
    FramesTask.kind: (FramesTask,),
    VerifyTask.kind: (VerifyTask,),
}
"""Kind of checkpoint -> tasks that one may have been trained for that does not state its own."""


@dataclass(frozen=True)
class Evaluation:
    """The result on one split."""

    results: Results
    scored: ScoredUtterances
    analysis: Analysis
    decoded: dict[str, Any]
    """Facts of the search that made the predictions; {}: none did."""


@dataclass(frozen=True)
class Search:
    """The search for the text of CTC's output, and the splits that it learns from."""

    config: DecodingConfig = field(default_factory=DecodingConfig)
    train_split: str = ""
    """Of its language model and lexicon; "": they are files."""
    valid_split: str = ""
    """On which weights are chosen; "": they are stated."""


def task_node(loaded: LoadedModel, where: str) -> dict[str, Any]:
    """The `_target_` node of the task that a checkpoint was trained for: as it states itself, else
    by its head and its names.

    Raises ArtefactError for a checkpoint without the head of a task.
    """
    if not loaded.head_state or loaded.kind not in TASK_HEADS:
        raise ArtefactError(
            f"{where}: holds a {loaded.kind!r} checkpoint without the head of a task, which cannot "
            "be scored; give a fine-tuned one, such as runs/demo/finetune/asr"
        )
    if TASK_KEY in loaded.extra:
        return dict(loaded.extra[TASK_KEY])
    for task in TASKS.get(loaded.kind, ()):
        if (settings := task.settings_of(loaded.extra)) is not None:
            return {"_target_": f"{task.__module__}.{task.__qualname__}", **settings}
    raise ArtefactError(
        f"{where}: does not say which task its {loaded.kind!r} head was trained for; name it, "
        "evaluate.NAME.task=... in a recipe"
    )


def task_class(loaded: LoadedModel) -> type[Task] | None:
    """The class of the task that a checkpoint was trained for; None where it is not known, or its
    module is not there.
    """
    try:
        module, _, name = str(task_node(loaded, "")["_target_"]).rpartition(".")
        return getattr(importlib.import_module(module), name)
    except (ArtefactError, ImportError, AttributeError):
        return None


def card_of(loaded: LoadedModel) -> TaskCard:
    """The part of the model card that the task of a checkpoint states."""
    task = task_class(loaded)
    if task is None:
        return TaskCard()
    metrics = (*task.metrics, *task.more_metrics)
    return TaskCard(
        task.summary,
        frozenset(each.name for each in metrics if each.percent),
        {each.name: each.hub for each in metrics if each.hub},
    )


def adopt(task: Task, loaded: LoadedModel, where: str) -> None:
    """Give a task the names of the outputs of a checkpoint.

    Raises ArtefactError when the checkpoint is of another kind or states no names.
    """
    if loaded.kind != task.kind:
        raise ArtefactError(
            f"{where}: holds a {loaded.kind!r} checkpoint, the task is {task.kind!r}; give another "
            "checkpoint, or the task that it was trained for"
        )
    task.adopt(loaded.extra, where)
    task.needs_all_layers = bool(loaded.config["head"].get("weighted_layers"))


def check_split(corpus: Corpus, split: str, key: str) -> None:
    """Raises DataError, with the nearest name, for a split without utterances."""
    manifest = corpus.manifest
    if split not in manifest.splits:
        raise DataError(
            f"{manifest.path}: split {split!r} has no utterances"
            f"{did_you_mean(split, list(manifest.splits))}; set {key} to one of "
            f"{', '.join(manifest.splits)}"
        )


def evaluate(
    task: Task,
    loaded: LoadedModel,
    corpus: Corpus,
    split: str,
    device: torch.device,
    sampling: Sampling,
    folder: Path,
    search: Search | None = None,
    key: str = "decoding",
) -> Evaluation:
    """Predict and score every utterance of a split. Ranks share the predictions.

    Args:
        task: of the checkpoint, which has `adopt`ed its names.
        folder: for the weights that a search has tried.
        search: None: greedy.
        key: of the settings of the search, for messages.

    Raises:
        DataError: the split cannot be scored: no transcripts, unknown classes.
        ConfigError: settings of a search that cannot be.
    """
    from hubert_pretrain.finetune.dataset import WholeUtterances  # Lightning: seconds

    search = search or Search()
    manifest = corpus.manifest
    model = loaded.model

    def examples_of(name: str) -> Examples:
        return task.examples(corpus, manifest.rows(name), model.grid)

    examples = examples_of(split)
    utterances = WholeUtterances(corpus, examples, model)
    learns = search.config.kind != "greedy" and bool(search.train_split)
    texts = examples_of(search.train_split).references if learns else None
    decoder = task.decoder(search.config, texts, model.grid, key)
    valid = utterances
    if decoder is not None and (search.config.lm_weights or search.config.word_scores):
        if not search.valid_split:
            raise ConfigError(
                f"{key}: lm_weights and word_scores are chosen on the valid split of a task; set "
                "lm_weight and word_score for another checkpoint"
            )
        valid = WholeUtterances(corpus, examples_of(search.valid_split), model)
    head: Any = loaded.build_head()
    tuned = FineTuned(model, head, task, device)
    results, decoded = final_results(tuned, valid, utterances, decoder, search.config, folder)
    scored = ScoredUtterances(
        results.ids,
        *task.shown(results),
        strings(manifest, "speaker", examples.rows),
        manifest.num_samples[examples.rows],
    )
    return Evaluation(results, scored, task.analyse(results, scored, sampling), decoded)
