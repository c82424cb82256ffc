"""The corpus on disk against the one that was prepared. No audio is read."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.arrow_table import ColumnSpool
from hubert_pretrain.data.audio import channel_number
from hubert_pretrain.data.corpus import JOURNAL, QUARANTINE, Corpus
from hubert_pretrain.data.preparation.listing import compare
from hubert_pretrain.data.preparation.quarantine import Quarantine
from hubert_pretrain.data.preparation.raw_utterances import COLUMNS, collect
from hubert_pretrain.data.preparation.scan_journal import ScanJournal
from hubert_pretrain.data.source import CorpusSource, corpus_name, originals
from hubert_pretrain.errors import DataError, HubertPretrainError
from hubert_pretrain.pipeline import fingerprint, plan
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight.report import CheckResult, of_error, ok, skipped, warning

FIX = "redo=prepare takes that in and reads only new and changed files"


def check(recipe: Recipe, workspace: Workspace) -> CheckResult:
    """The corpus is as it was prepared."""
    name = "corpus files"
    if not workspace.is_done("prepare"):
        return skipped(name, "prepare")
    try:
        found = difference(recipe, workspace)
    except HubertPretrainError as failure:
        return of_error(name, failure)
    return warning(name, found, FIX) if found else ok(name, "as they were prepared")


def difference(recipe: Recipe, workspace: Workspace) -> str:
    """A sentence on the changes of the corpus since it was prepared; "" without any, or when they
    do not matter or cannot be told: audio that was copied into shards and is gone, that the corpus
    makes, or behind URLs.
    """
    made = workspace.artefact("prepare")
    before = Corpus.open(made.path).card.get("listed")
    source = originals(compose.build(recipe.data.corpus))
    is_known = before is not None and (made.path / JOURNAL).is_file()
    places = fingerprint.places(recipe.data)
    if source is None or not is_known or not places or any("://" in place for place in places):
        return ""
    where = recipe.data.root or corpus_name(source)
    try:
        found = _compare(recipe, workspace, source)
    except DataError as failure:
        copied = recipe.data.shards != "none"
        return "" if copied else f"the corpus cannot be listed any more: {failure}"
    return f"{where}: the corpus has changed since it was prepared ({found})" if found else ""


def _compare(recipe: Recipe, workspace: Workspace, source: CorpusSource) -> str:
    folder = workspace.artefact("prepare").path
    roots = [str(folder), *fingerprint.places(recipe.data)]
    lines = (folder / QUARANTINE).read_text(encoding="utf-8").splitlines()
    with (
        tempfile.TemporaryDirectory() as scratch,
        ColumnSpool(Path(scratch) / "utterances", COLUMNS) as spool,
        ScanJournal(folder / JOURNAL, roots, read_only=True) as journal,
        Quarantine(Path(scratch) / QUARANTINE) as faults,
    ):
        channel = channel_number(recipe.data.channel)
        return compare(
            collect(source, folder, spool, faults, channel),
            folder,
            before=Corpus.open(folder).card["listed"],
            journal=journal,
            quarantined={json.loads(line)["id"] for line in lines},
            moved=bool(plan.moved(recipe, workspace)),
        )
