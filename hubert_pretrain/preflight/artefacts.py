"""Checks of artefacts: targets, task labels and foreign checkpoints fit the recipe."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hubert_pretrain import finetune
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.finetune.task import Task, gather_examples
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight.corpus import blocks
from hubert_pretrain.preflight.report import CheckResult, error, of_error, ok, warning
from hubert_pretrain.targets.store import TargetStore


def readable_checkpoints(
    workspace: Workspace, outside: Mapping[str, str]
) -> tuple[CheckResult, dict[str, HubertConfig]]:
    """Can the checkpoints be read that other runs or projects made (`outside`: reference -> the
    stage that reads it)? And their forms.
    """
    found: dict[str, HubertConfig] = {}
    for reference, stage in outside.items():
        try:
            found[reference] = load_checkpoint(workspace.resolve(reference).path).model.config
        except HubertPretrainError as failure:
            return error(
                "inputs",
                f"{stage} reads {failure}",
                "give another checkpoint: docs/checkpoints.md says which can be read",
            ), found
    return ok(
        "inputs",
        f"can be read: {', '.join(outside)}" if outside else "no checkpoints of other runs",
    ), found


def normalisation(models: Mapping[str, HubertConfig]) -> CheckResult:
    """Does each network (by its name) get the waveform that its front end wants?

    HuBERT Large and XLarge, whose conv layers norm over channels, were trained on normalised
    waveforms (task.normalize=true), Base, with its norm over time, on raw ones. A converter that
    writes `do_normalize` the same for both is how it goes wrong.
    """
    states = {
        name: "normalised" if model.normalize_waveform else "as recorded"
        for name, model in models.items()
    }
    found = ", ".join(f"{name} gets waveforms {state}" for name, state in states.items())
    for name, model in models.items():
        if model.feat_extract_norm == "layer" and not model.normalize_waveform:
            what = f"with feat_extract_norm=layer {name} wants them normalised"
            return warning(
                "normalisation",
                f"{found}; {what}",
                "set model.normalize_waveform=true, or mend the checkpoint's",
            )
        if model.feat_extract_norm == "group" and model.normalize_waveform:
            what = f"released models with feat_extract_norm=group, as {name} has, take them as recorded"
            return warning(
                "normalisation",
                f"{found}; {what}",
                "set model.normalize_waveform=false, unless it was trained so",
            )
    return ok("normalisation", found)


def task_labels(
    name: str, task: Task, manifest: Manifest, grid: FrameGrid, splits: Mapping[str, str]
) -> CheckResult:
    """Vocabulary or classes, transcripts that CTC cannot spell (T < U + repeats), characters that
    training never sees: what the stage itself would find when it starts. `splits`: their names by
    their key in the recipe, the one that is trained on first."""
    try:
        with _warnings() as said:
            found = gather_examples(task, manifest, grid, splits, name.replace("/", "."))
    except HubertPretrainError as failure:
        return of_error(name, failure)
    counts = ", ".join(
        f"{split} {len(examples)}" for split, examples in zip(splits.values(), found, strict=True)
    )
    shown = f"{task.kind}: {counts} utterances" + _size(task)
    if said:
        return warning(
            name,
            f"{shown}; {said[0]}",
            "check that texts belong to their audio, and the splits to one another",
        )
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

    log = logging.getLogger(finetune.__name__)
    listener = Listener(logging.WARNING)
    propagate = log.propagate
    log.propagate = False
    log.addHandler(listener)
    try:
        yield said
    finally:
        log.removeHandler(listener)
        log.propagate = propagate


LOW_ENTROPY = 0.5
"""Targets below this share of ln K are dominated by few clusters."""
FEW_USED = 0.9
"""A smaller share of the clusters that occur is a warning."""


def stored_targets(
    name: str, folder: Path, corpus: Corpus, grid: FrameGrid, cluster: Path | None
) -> CheckResult:
    """Targets of these utterances, one for each frame, of this codebook. `cluster`: the folder of
    the codebook; None: it is not here.
    """
    try:
        store = TargetStore.open(folder)
        store.check(corpus.manifest, grid)
        codebook = CodebookSet.load(cluster) if cluster is not None else None
    except HubertPretrainError as failure:
        return of_error(name, failure)
    row = _first_misfit(store, corpus.manifest, grid)
    if row is not None:
        utterance = corpus.manifest[row]
        count = int(store.offsets[row + 1] - store.offsets[row])
        what = f"{utterance.id!r} has {count} targets for {grid.num_frames(utterance.num_samples)} frames"
        return error(name, what, f"delete {folder} and label again")
    made_by = store.codebook.get("sha256", "")
    if codebook is not None and codebook.fingerprint != made_by:
        found = f"labelled with codebook {made_by[:12]}, but {cluster} holds {codebook.fingerprint[:12]}"
        return error(name, found, f"delete {folder} and label again")
    return ok(
        name, f"{len(store)} utterances, {int(store.offsets[-1])} frames, codebook {made_by[:12]}"
    )


def _first_misfit(store: TargetStore, manifest: Manifest, grid: FrameGrid) -> int | None:
    """The first row that has another number of targets than frames."""
    for part in blocks(len(manifest)):
        found = np.diff(store.offsets[part.start : part.stop + 1])
        differ = np.flatnonzero(found != grid.num_frames(manifest.num_samples[part]))  # type: ignore[arg-type]
        if len(differ):
            return int(part.start + differ[0])
    return None


def target_quality(name: str, facts: dict[str, Any]) -> CheckResult:
    """Entropy and use of the clusters, from the facts of the label stage."""
    sizes = facts.get("n_clusters") or 0
    each = sizes if isinstance(sizes, list) else [sizes]
    entropy = facts.get("unigram_entropy_nats")
    used = facts.get("used_clusters")
    if entropy is None or used is None or not all(each):
        return ok(name, "not measured")
    most = sum(map(math.log, each))
    mean_size = sum(each) / len(each)
    found = f"K {' + '.join(map(str, each))}, {used:g} used, entropy {entropy:.2f} of at most {most:.2f} nats"
    if most > 0 and entropy < LOW_ENTROPY * most:
        return warning(
            name,
            f"{found}: a few clusters are most frames",
            "look for silence or noise in the corpus, or cluster again",
        )
    if used < FEW_USED * mean_size:
        return warning(
            name,
            f"{found}: {mean_size - used:g} clusters never occur",
            "choose fewer, or more audio (clustering.fraction)",
        )
    return ok(name, found)
