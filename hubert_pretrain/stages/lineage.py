"""History of a checkpoint from the files of its run: corpus, stages in order, scores. For the
model card of an export.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.interop.model_card import Origin, Score
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.fingerprint import TARGET
from hubert_pretrain.pipeline.workspace import Artefact, Workspace

SHOWN = {
    "hours": ("hours of speech", ".4g"),
    "pnmi": ("PNMI", ".3f"),
    "masked_accuracy": ("accuracy on masked frames", ".3f"),
}
"""Fact of a stage -> its name in a card, and its form."""


def origin(recipe: Recipe, workspace: Workspace, reference: str) -> Origin:
    """The history of a checkpoint: a stage of this run, one of another run, or a file."""
    artefact = workspace.resolve(reference)
    stage = str(artefact.meta.get("stage", ""))
    home = workspace
    name = f"{recipe.name} {stage}" if stage else artefact.path.name
    if stage and artefact.path != workspace.folder(stage):  # of another run
        home = Workspace(artefact.path.parents[len(Path(stage).parts) - 1])
        name = f"{home.root.name} {stage}"
    made = {one: home.artefact(one) for one in _ancestors(home, stage)} if stage else {}
    corpus = _corpus(made["prepare"]) if "prepare" in made else ""
    scores = list(_scores(recipe, workspace, reference))
    return Origin(
        name=name,
        corpus=corpus,
        data=_data(corpus, made["prepare"].facts) if corpus else "",
        lineage=[_line(one, made[one]) for one in made],
        scores=[score for score, _ in scores],
        confidence=scores[0][1] if scores else 0.95,
        licence=recipe.export.licence,
        languages=list(recipe.export.languages),
    )


def _ancestors(workspace: Workspace, stage: str) -> list[str]:
    """A stage and those of its run that it was made from, inputs first."""
    found: list[str] = []
    if not stage or not workspace.is_done(stage):
        return found
    for name in workspace.artefact(stage).meta.get("inputs", {}):
        found += [one for one in _ancestors(workspace, name) if one not in found]
    return [*found, stage]


def _corpus(prepared: Artefact) -> str:
    """Class of the corpus, e.g. LibriSpeech."""
    node = prepared.meta.get("config", {}).get("data", {}).get("corpus", {})
    return str(node.get(TARGET, "")).rpartition(".")[2]


def _data(corpus: str, facts: dict[str, Any]) -> str:
    splits = "; ".join(
        f"{name}: {about['utterances']:,} utterances, {about['hours']:.4g} h"
        for name, about in facts.get("splits", {}).items()
    )
    speakers = facts.get("speakers")
    return f"{corpus}{f', {speakers:,} speakers' if speakers else ''}. {splits}."


def _line(stage: str, artefact: Artefact) -> str:
    """`it1/pretrain`: the inputs from elsewhere, and what it did in a few numbers."""
    facts = artefact.facts
    config = artefact.meta.get("config", {})
    outside = [Path(name).name for name in artefact.meta["inputs"] if Path(name).is_absolute()]
    about = [f"from {', '.join(outside)}"] if outside else []
    section = config.get("pretrain") or config.get("spin") or config.get("finetune")
    if section is not None:
        about.append(
            f"{facts.get('steps', section['steps']):,} steps of {section['batch_seconds']:g} s, "
            f"peak rate {section['learning_rate']:g}"
        )
    elif "clustering" in config:
        about.append(f"{facts.get('n_clusters')} clusters of {_features(config['features'])}")
    about += [
        f"{words} {facts[key]:{form}}"
        for key, (words, form) in SHOWN.items()
        if facts.get(key) is not None  # a PNMI without alignments
    ]
    return f"`{stage}`: {'; '.join(about)}" if about else f"`{stage}`"


def _features(node: dict[str, Any]) -> str:
    """Mfcc, or HubertLayer (layer 6 of it1/pretrain)."""
    kind = str(node.get(TARGET, "")).rpartition(".")[2]
    if "layer" not in node:
        return kind
    return f"{kind} (layer {node['layer']} of {node.get('checkpoint', 'a checkpoint')})"


def _scores(recipe: Recipe, workspace: Workspace, reference: str) -> Iterator[tuple[Score, float]]:
    """Scores of this checkpoint as it is now, and the confidence of their intervals."""
    now = workspace.resolve(reference)
    for name, config in plan.evaluations(recipe).items():
        for split in config.splits:
            stage = f"evaluate/{name}/{split}"
            if not workspace.is_done(stage):
                continue
            done = workspace.artefact(stage)
            facts = done.facts
            if str(workspace.resolve(str(config.checkpoint)).path) != str(now.path):
                continue
            if now.fingerprint not in done.meta.get("inputs", {}).values():
                continue  # of a checkpoint that was made again since
            for metric, (low, high) in facts.get("intervals", {}).items():
                if metric in facts:
                    found = Score(metric, facts[metric], low, high, split, facts["utterances"])
                    yield found, config.confidence
