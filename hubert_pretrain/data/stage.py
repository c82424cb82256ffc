"""Stage `prepare`: a corpus on disk -> manifest.arrow, alignments.arrow, quarantine.jsonl and card.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from hubert_pretrain.config import Recipe
from hubert_pretrain.data import card, prepare
from hubert_pretrain.data.alignment import write_alignments
from hubert_pretrain.data.corpus import ALIGNMENTS, CARD, MANIFEST, QUARANTINE
from hubert_pretrain.data.manifest import write_manifest
from hubert_pretrain.workspace import Workspace, write_json


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Prepares `recipe.data` in `folder`. What a killed run left there is written anew; a corpus that makes audio may use its own again.

    Raises:
        DataError: the corpus is missing or empty, too much of it is unreadable, ids are not unique, or nothing is left to train on.
    """
    config = recipe.data
    source = instantiate(config.corpus)
    corpus = type(source).__name__.lower()

    claims = prepare.gather(source, folder)
    measured, bad = prepare.measure(claims, config.workers)
    prepare.write_quarantine(folder / QUARANTINE, bad)
    prepare.refuse_too_bad(bad, len(claims), config.max_bad_fraction, folder / QUARANTINE)
    measured = prepare.hold_out(measured, config.valid_fraction)
    prepare.refuse_no_train(measured, str(config.root or corpus))

    utterances = write_manifest(folder / MANIFEST, (prepare.utterance_of(one, corpus) for one in measured), config.root)
    phones = {one.claim.id: one.claim.phones for one in measured if one.claim.phones is not None}
    (folder / ALIGNMENTS).unlink(missing_ok=True)
    if phones:
        write_alignments(folder / ALIGNMENTS, ((u.row, phones[u.id]) for u in utterances if u.id in phones))
    summary = card.make_card(measured, bad)
    write_json(folder / CARD, summary)
    print(card.describe(summary), flush=True)
    return card.facts_of(summary)
