"""Rows about fine-tuning: what its task makes of the labels of a corpus, before any training. T frames, U label tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.doctor.row import Row, of_error, ok, warning
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.finetune.task import Task, gather_examples
from hubert_pretrain.frames import FrameGrid


def labels(name: str, task: Task, manifest: Manifest, grid: FrameGrid, splits: Mapping[str, str]) -> Row:
    """Vocabulary or classes, transcripts that CTC cannot spell (T < U + repeats), letters that training never sees: what the stage itself
    would find when it starts. `splits`: their names by their key in the recipe, the one that is trained on first."""
    try:
        with _warnings() as said:
            found = gather_examples(task, manifest, grid, splits, name.replace("/", "."))
    except HubertPretrainError as failure:
        return of_error(name, failure)
    counts = ", ".join(f"{split} {len(examples)}" for split, examples in zip(splits.values(), found, strict=True))
    shown = f"{task.kind}: {counts} utterances" + _size(task)
    if said:
        return warning(name, f"{shown}; {said[0]}", "check that texts belong to their audio, and the splits to one another")
    return ok(name, shown)


def _size(task: Task) -> str:
    """The number of symbols or classes, where the task's card tells it."""
    for key, word in (("vocabulary", "symbols"), ("classes", "classes")):
        if isinstance(values := task.card().get(key), list):
            return f", {len(values)} {word}"
    return ""


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What `finetune` warns of meanwhile, in place of the terminal."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    log, listener = logging.getLogger("hubert_pretrain.finetune"), Listener(logging.WARNING)
    propagate, log.propagate = log.propagate, False
    log.addHandler(listener)
    try:
        yield said
    finally:
        log.removeHandler(listener)
        log.propagate = propagate
