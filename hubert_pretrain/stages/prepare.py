"""Stage `prepare`: a corpus on disk -> manifest, alignments, corpus card and quarantine list."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import DataConfig, Recipe
from hubert_pretrain.corpora.download.archives import download
from hubert_pretrain.corpora.with_alignments import WithAlignments
from hubert_pretrain.data.alignment import write_alignments
from hubert_pretrain.data.arrow_table import ColumnSpool
from hubert_pretrain.data.audio import channel_number
from hubert_pretrain.data.corpus import (
    ALIGNMENTS,
    CARD,
    DUPLICATES,
    JOURNAL,
    MANIFEST,
    QUARANTINE,
    Corpus,
)
from hubert_pretrain.data.manifest import write_columns
from hubert_pretrain.data.preparation import build, corpus_card
from hubert_pretrain.data.preparation.choice import choose_train
from hubert_pretrain.data.preparation.listing import describe_listing
from hubert_pretrain.data.preparation.quarantine import Quarantine
from hubert_pretrain.data.preparation.raw_utterances import COLUMNS, collect
from hubert_pretrain.data.preparation.recode import Recoder
from hubert_pretrain.data.preparation.scan_journal import ScanJournal
from hubert_pretrain.data.preparation.segmentation import segment
from hubert_pretrain.data.shards.writer import convert
from hubert_pretrain.data.source import CorpusSource, corpus_name, passed_over
from hubert_pretrain.data.storage import Cache
from hubert_pretrain.files import write_json
from hubert_pretrain.pipeline import fingerprint, plan
from hubert_pretrain.pipeline.workspace import Workspace

PIECES = ".pieces"
"""Scratch files: the same with long recordings cut."""
RECODED = "recoded"
"""Folder of the FLACs of long recordings (recode.py)."""
RAW_UTTERANCES = ".utterances"
"""Scratch files: the utterances as the corpus states them."""


def open_corpus(recipe: Recipe, workspace: Workspace) -> Corpus:
    """The prepared corpus of a run. Raises ArtefactError when the stage has not finished."""
    folder = workspace.artefact("prepare").path
    return Corpus.open(folder, audio_cache(recipe.data), plan.moved(recipe, workspace))


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Write manifest, alignments, corpus card, quarantine list and, where asked for, tar shards to
    `folder`; returns the facts of the card.

    A killed run, and one that is made again (`redo`), use the journal of the files that were
    scanned; everything else is done again.

    Raises:
        ConfigError: a value of `data.corpus` cannot be.
        DataError: the corpus is missing or empty, too many files are unreadable, ids are not
            unique, or nothing is left to train on.
    """
    data = recipe.data
    source = corpus_source(data)
    card = write_corpus(source, data, folder)
    write_json(folder / CARD, card)
    if data.shards != "none":
        convert(
            Corpus.open(folder, audio_cache(data)),
            folder,
            format=data.shards,
            megabytes=data.shard_megabytes,
            workers=data.workers,
        )
        shutil.rmtree(folder / RECODED, ignore_errors=True)
    print(corpus_card.describe(card), flush=True)
    return corpus_card.facts_of(card)


def read_as_is(source: CorpusSource, folder: Path, workers: int = 0) -> tuple[Corpus, int]:
    """A corpus of which every split is used as it is, in a folder of scratch files; and the number
    of its utterances that cannot be read, which quarantine.jsonl lists. For a command that scores.
    """
    with (
        ColumnSpool(folder / RAW_UTTERANCES, COLUMNS) as spool,
        ScanJournal(folder / JOURNAL, [str(folder.absolute())]) as journal,
        Quarantine(folder / QUARANTINE) as quarantine,
    ):
        utterances = collect(source, folder, spool, quarantine)
        build.refuse_all_missing(utterances)
        scanned = build.scan_corpus(utterances, journal, quarantine, workers)
        write_columns(folder / MANIFEST, scanned.manifest(scanned.rows()), folder)
        return Corpus.open(folder), len(quarantine)


def audio_cache(data: DataConfig) -> Cache | None:
    """The local cache for audio behind URLs."""
    return Cache.of(data.cache_dir, data.cache_gigabytes)


def corpus_source(data: DataConfig) -> CorpusSource:
    """The corpus on disk, downloaded and joined with alignments as the recipe says."""
    source: CorpusSource = compose.build(data.corpus)
    if data.download:
        download(source, data.mirror)
    if data.alignments:
        source = WithAlignments(corpus=source, alignments=data.alignments)
    return source


def write_corpus(source: CorpusSource, data: DataConfig, folder: Path) -> dict[str, Any]:
    """Scan every file, leave out the bad ones, hold out a validation split, and write manifest and
    alignments; returns the corpus card."""
    with (
        ColumnSpool(folder / RAW_UTTERANCES, COLUMNS) as spool,
        ColumnSpool(folder / PIECES, COLUMNS) as pieces,
        ScanJournal(
            folder / JOURNAL, [str(folder.absolute()), *fingerprint.places(data)]
        ) as journal,
    ):
        with Quarantine(folder / QUARANTINE) as quarantine:
            utterances = collect(source, folder, spool, quarantine, channel_number(data.channel))
            total = len(utterances) + len(quarantine)
            listed = describe_listing(utterances, folder)
            build.refuse_all_missing(utterances)
            recoder = None
            if data.recode_minutes > 0:
                recoder = Recoder(folder / RECODED, 60 * data.recode_minutes)
            cuts = None
            if data.segmentation.max_seconds > 0:
                utterances, cuts = segment(
                    utterances,
                    data.segmentation,
                    pieces,
                    journal,
                    workers=data.workers,
                    cache=audio_cache(data),
                    recoder=recoder,
                )
                total = len(utterances) + len(quarantine)
            scanned = build.scan_corpus(
                utterances, journal, quarantine, data.workers, audio_cache(data), recoder
            )
            quarantine.refuse_too_many(total, data.max_bad_fraction)
            if data.duplicates == "drop":
                build.drop_duplicates(scanned, quarantine)
        root = Path(data.root or folder).expanduser().absolute()
        build.hold_out_validation(scanned, data.valid_fraction, by=data.hold_out_by, root=str(root))
        left_out = choose_train(
            scanned, keep_longest=data.keep_longest, max_silence_share=data.max_silence_share
        )
        build.refuse_no_train(scanned, str(data.root or corpus_name(source)))

        rows = scanned.rows()
        manifest = write_columns(folder / MANIFEST, scanned.manifest(rows), root)
        card = corpus_card.make_card(manifest, scanned, rows, quarantine, folder / DUPLICATES)
        card["segmentation"] = asdict(cuts) if cuts is not None else None
        card["left_out"] = left_out
        card["recoded"] = build.remove_unused(scanned, rows)
        card["passed_over"] = passed_over(source).card()
        (folder / ALIGNMENTS).unlink(missing_ok=True)
        if card["aligned_utterances"]:
            write_alignments(folder / ALIGNMENTS, scanned.alignments(rows))
    return card | {"listed": listed}
