"""Stage `prepare`: a corpus on disk -> manifest.arrow, alignments.arrow, quarantine.jsonl and card.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubert_pretrain import compose
from hubert_pretrain.config import Recipe
from hubert_pretrain.data import card, prepare
from hubert_pretrain.data.alignment import write_alignments
from hubert_pretrain.data.corpus import ALIGNMENTS, CARD, MANIFEST, QUARANTINE, CorpusSource
from hubert_pretrain.data.journal import Journal
from hubert_pretrain.data.manifest import write_manifest
from hubert_pretrain.data.prepare import Measured
from hubert_pretrain.workspace import Workspace, write_json

JOURNAL = "read.jsonl"


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Prepares `recipe.data` in `folder`. Of what a killed run left there, the facts of files it had read are used, the rest written anew.

    Raises:
        ConfigError: a value of `data.corpus` cannot be.
        DataError: the corpus is missing or empty, too much of it is unreadable, ids are not unique, or nothing is left to train on.
    """
    data = recipe.data
    source: CorpusSource = compose.build(data.corpus)
    corpus = type(source).__name__.lower()

    claims = prepare.gather(source, folder)
    with Journal(folder / JOURNAL) as journal:
        measured, bad = prepare.measure(claims, journal, data.workers)
    prepare.write_quarantine(folder / QUARANTINE, bad)
    prepare.refuse_too_bad(bad, len(claims), data.max_bad_fraction, folder / QUARANTINE)
    measured = prepare.hold_out(measured, data.valid_fraction)
    prepare.refuse_no_train(measured, str(data.root or corpus))

    _write_tables(folder, measured, corpus, Path(data.root or folder).expanduser())
    summary = card.make_card(measured, bad)
    write_json(folder / CARD, summary)
    (folder / JOURNAL).unlink()
    print(card.describe(summary), flush=True)
    return card.facts_of(summary)


def _write_tables(folder: Path, measured: list[Measured], corpus: str, root: Path) -> None:
    utterances = write_manifest(folder / MANIFEST, (prepare.utterance_of(one, corpus) for one in measured), root)
    phones = {one.claim.id: one.claim.phones for one in measured if one.claim.phones is not None}
    (folder / ALIGNMENTS).unlink(missing_ok=True)
    if phones:
        write_alignments(folder / ALIGNMENTS, ((u.row, phones[u.id]) for u in utterances if u.id in phones))
