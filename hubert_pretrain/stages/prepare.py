"""Stage `prepare`: a corpus on disk -> manifest.arrow, alignments.arrow, quarantine.jsonl and
card.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.corpora.download.archives import download
from hubert_pretrain.corpora.with_alignments import WithAlignments
from hubert_pretrain.data.alignment import write_alignments
from hubert_pretrain.data.arrow_table import ColumnSpool
from hubert_pretrain.data.corpus import ALIGNMENTS, CARD, MANIFEST, QUARANTINE, Corpus
from hubert_pretrain.data.manifest import write_columns
from hubert_pretrain.data.preparation import build, corpus_card
from hubert_pretrain.data.preparation.quarantine import Quarantine
from hubert_pretrain.data.preparation.raw_utterances import COLUMNS, collect
from hubert_pretrain.data.preparation.scan_journal import ScanJournal
from hubert_pretrain.data.shards.writer import check_format, convert
from hubert_pretrain.data.source import CorpusSource, corpus_name
from hubert_pretrain.data.storage import Cache
from hubert_pretrain.files import write_json
from hubert_pretrain.pipeline.workspace import Workspace

JOURNAL = "read.journal"
RAW_UTTERANCES = ".utterances"


def open_corpus(recipe: Recipe, workspace: Workspace) -> Corpus:
    """The output of this stage, for those that follow. Raises ArtefactError when there is none
    yet.
    """
    return Corpus.open(
        workspace.artefact("prepare").path,
        Cache.of(recipe.data.cache_dir, recipe.data.cache_gigabytes),
    )


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Prepares `recipe.data` in `folder`. Of what a killed run left there, the facts of files it
    had read are used, the rest written anew.

    Raises:
        ConfigError: a value of `data.corpus` cannot be. DataError: the corpus is missing or empty,
        too much of it is unreadable, ids are not unique, or nothing is left to train on.
    """
    data = recipe.data
    source: CorpusSource = compose.build(data.corpus)
    cache = Cache.of(data.cache_dir, data.cache_gigabytes)
    if data.shards != "none":
        check_format(data.shards)
    if data.download:
        download(source, data.mirror)
    if data.alignments:
        source = WithAlignments(corpus=source, alignments=data.alignments)
    with (
        ColumnSpool(folder / RAW_UTTERANCES, COLUMNS) as spool,
        ScanJournal(folder / JOURNAL) as journal,
    ):
        utterances = collect(source, folder, spool)
        with Quarantine(folder / QUARANTINE) as quarantine:
            scanned = build.scan_corpus(utterances, journal, quarantine, data.workers, cache)
        quarantine.refuse_too_many(len(utterances), data.max_bad_fraction)
        build.hold_out_validation(scanned, data.valid_fraction)
        build.refuse_no_train(scanned, str(data.root or corpus_name(source)))

        rows = scanned.rows()
        manifest = write_columns(
            folder / MANIFEST, scanned.manifest(rows), Path(data.root or folder).expanduser()
        )
        summary = corpus_card.make_card(manifest, scanned, rows, quarantine)
        (folder / ALIGNMENTS).unlink(missing_ok=True)
        if summary["aligned_utterances"]:
            write_alignments(folder / ALIGNMENTS, scanned.alignments(rows))
    write_json(folder / CARD, summary)
    if data.shards != "none":
        convert(
            Corpus.open(folder, cache),
            folder,
            format=data.shards,
            megabytes=data.shard_megabytes,
            workers=data.workers,
        )
    (folder / JOURNAL).unlink()
    print(corpus_card.describe(summary), flush=True)
    return corpus_card.facts_of(summary)
