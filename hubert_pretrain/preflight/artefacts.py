"""Checks of artefacts against the recipe: checkpoints from elsewhere, labels of a task, targets."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hubert_pretrain import finetune
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.finetune.task import Task, gather_examples, names_of_splits
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import TASK_HEADS
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight.corpus import blocks
from hubert_pretrain.preflight.report import CheckResult, error, of_error, ok, warning
from hubert_pretrain.targets.store import TargetStore

LOW_ENTROPY = 0.5
"""Warning: targets whose entropy is below this share of ln K are dominated by few clusters."""
FEW_USED = 0.9
"""Warning: a smaller share of the clusters occurs."""

# -- checkpoints


def readable_checkpoints(
    workspace: Workspace, readers: Mapping[str, str]
) -> tuple[CheckResult, dict[str, HubertConfig]]:
    """Checkpoints of other runs and projects can be read.

    Args:
        workspace: of the run.
        readers: the stage that reads each checkpoint, by reference.

    Returns the result, and the form of each network.
    """
    models: dict[str, HubertConfig] = {}
    for reference, stage in readers.items():
        try:
            models[reference] = load_checkpoint(workspace.resolve(reference).path).model.config
        except HubertPretrainError as failure:
            fix = "give another checkpoint: docs/checkpoints.md says which can be read"
            return error("inputs", f"{stage} reads {failure}", fix), models
    if not readers:
        return ok("inputs", "no checkpoints of other runs"), models
    return ok("inputs", f"can be read: {', '.join(readers)}"), models


def normalisation(models: Mapping[str, HubertConfig]) -> CheckResult:
    """Each network (by its name) gets waveforms as its front end expects them.

    HuBERT Large and XLarge, whose conv layers norm over channels, were trained on normalised
    waveforms (task.normalize=true); Base, with its norm over time, on waveforms as recorded. A
    converter that writes the same `do_normalize` for both gets one of them wrong.
    """
    states = []
    for name, model in models.items():
        state = "normalised" if model.normalize_waveform else "as recorded"
        states.append(f"{name} gets waveforms {state}")
    found = ", ".join(states)
    for name, model in models.items():
        if model.feat_extract_norm == "layer" and not model.normalize_waveform:
            return warning(
                "normalisation",
                f"{found}; with feat_extract_norm=layer {name} expects them normalised",
                "set model.normalize_waveform=true, or fix the checkpoint's",
            )
        if model.feat_extract_norm == "group" and model.normalize_waveform:
            return warning(
                "normalisation",
                f"{found}; released models with feat_extract_norm=group, as {name} has, take them "
                "as recorded",
                "set model.normalize_waveform=false, unless it was trained so",
            )
    return ok("normalisation", found)


# -- labels of a task


def task_labels(
    name: str,
    task: Task,
    corpus: Corpus,
    grid: FrameGrid,
    splits: Mapping[str, str | Sequence[str]],
    decoding: DecodingConfig | None = None,
    train_hours: float = 0.0,
) -> CheckResult:
    """The labels can be learnt: vocabulary or classes, transcripts that CTC can emit (T >= U +
    repeats), characters that training has seen; and a language model or lexicon of `decoding` has
    words of that vocabulary. The stage makes the same tests when it starts.

    `splits`: names of the splits by their key in the recipe, the one to train on first.
    """
    try:
        with captured_warnings() as messages:
            where = name.replace("/", ".")
            examples = gather_examples(task, corpus, grid, splits, where, train_hours)
            if decoding is not None:
                task.decoder(decoding, examples[0].references, grid, f"{where}.decoding")
    except HubertPretrainError as failure:
        return of_error(name, failure)
    sizes = [len(part) for part in examples]
    names = [split for _, split in names_of_splits(splits)]
    counts = ", ".join(f"{split} {size}" for split, size in zip(names, sizes, strict=True))
    shown = f"{task.kind}: {counts} utterances{_label_count(task)}"
    if messages:
        found = "\n".join(
            [shown, *(message.removeprefix(f"{corpus.manifest.path}: ") for message in messages)]
        )
        fix = "check that texts belong to their audio, and the splits to one another"
        return warning(name, found, fix)
    return ok(name, shown)


def _label_count(task: Task) -> str:
    """`, 28 symbols` or `, 35 classes`, where the task's card states them."""
    key = TASK_HEADS[task.kind].names
    names = task.card().get(key)
    word = {"vocabulary": "symbols"}.get(key, key)
    return f", {len(names)} {word}" if isinstance(names, list) else ""


@contextmanager
def captured_warnings() -> Iterator[list[str]]:
    """Messages that `finetune` logs while this is open, instead of printing them."""
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger = logging.getLogger(finetune.__name__)
    listener = Listener(logging.WARNING)
    propagate = logger.propagate
    logger.propagate = False
    logger.addHandler(listener)
    try:
        yield messages
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagate


# -- targets


def stored_targets(
    name: str, folder: Path, corpus: Corpus, grid: FrameGrid, cluster: Path | None
) -> CheckResult:
    """The targets are of these utterances, one for each frame, and of this codebook.

    `cluster`: folder of the codebook; None: it is not in this run.
    """
    try:
        store = TargetStore.open(folder)
        store.check(corpus.manifest, grid)
        codebook = CodebookSet.load(cluster) if cluster is not None else None
    except HubertPretrainError as failure:
        return of_error(name, failure)
    fix = f"redo={name.removeprefix('targets ')}/label makes them again, and what follows"

    row = _first_misfit(store, corpus.manifest, grid)
    if row is not None:
        utterance = corpus.manifest[row]
        num_targets = int(store.offsets[row + 1] - store.offsets[row])
        num_frames = grid.num_frames(utterance.num_samples)
        return error(
            name, f"{utterance.id!r} has {num_targets} targets for {num_frames} frames", fix
        )

    made_by = store.codebook.get("sha256", "")
    if codebook is not None and codebook.fingerprint != made_by:
        here = f"{cluster} holds {codebook.fingerprint[:12]}"
        return error(name, f"labelled with codebook {made_by[:12]}, but {here}", fix)
    total = int(store.offsets[-1])
    return ok(name, f"{len(store)} utterances, {total} frames, codebook {made_by[:12]}")


def _first_misfit(store: TargetStore, manifest: Manifest, grid: FrameGrid) -> int | None:
    """The first row with another number of targets than frames."""
    for part in blocks(len(manifest)):
        found = np.diff(store.offsets[part.start : part.stop + 1])
        expected = grid.num_frames(manifest.num_samples[part])  # type: ignore[arg-type]
        differ = np.flatnonzero(found != expected)
        if len(differ):
            return int(part.start + differ[0])
    return None


def target_quality(name: str, facts: dict[str, Any]) -> CheckResult:
    """Entropy and use of the clusters, from the facts of the label stage."""
    sizes = facts.get("n_clusters") or 0
    if not isinstance(sizes, list):
        sizes = [sizes]
    entropy = facts.get("unigram_entropy_nats")
    used = facts.get("used_clusters")
    if entropy is None or used is None or not all(sizes):
        return ok(name, "not measured")
    most = sum(math.log(size) for size in sizes)
    mean_size = sum(sizes) / len(sizes)
    found = (
        f"K {' + '.join(map(str, sizes))}, {used:g} used, "
        f"entropy {entropy:.2f} of at most {most:.2f} nats"
    )
    if most > 0 and entropy < LOW_ENTROPY * most:
        return warning(
            name,
            f"{found}: a few clusters are most frames",
            "look for silence or noise in the corpus, or cluster again with redo=NAME/cluster",
        )
    if used < FEW_USED * mean_size:
        return warning(
            name,
            f"{found}: {mean_size - used:g} clusters never occur",
            "choose fewer, or more audio (clustering.fraction)",
        )
    return ok(name, found)
