"""A prepared corpus (output of stage `prepare`) as a manifest, read row by row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.data.corpus import MANIFEST, Corpus
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.formats.record import ReadOptions, Record


def folder_of(path: Path) -> Path | None:
    """Folder with the manifest: `path` itself, or `prepare/` in the folder of a run; else None."""
    for folder in (path, path / "prepare"):
        if (folder / MANIFEST).is_file():
            return folder
    return None


def read(path: Path, options: ReadOptions) -> Iterator[Record]:
    """Every row, with its alignment. Raises ArtefactError for a damaged table."""
    folder = folder_of(path) or path
    corpus = Corpus.open(folder)
    for row in range(len(corpus.manifest)):
        entry = corpus.manifest[row]
        yield (
            f"{folder / MANIFEST}: row {row}",
            SourceUtterance(
                id=entry.id,
                path=entry.path,
                start=entry.start,
                num_samples=entry.num_samples,
                offset=entry.offset,
                num_bytes=entry.num_bytes,
                channel=entry.channel,
                speaker=entry.speaker,
                text=entry.text,
                label=entry.label,
                split=entry.split,
                corpus=entry.corpus,
                phones=_phones(corpus, row),
            ),
        )


def _phones(corpus: Corpus, row: int) -> Phones | None:
    alignments = corpus.alignments
    if alignments is None or not alignments.has(row):
        return None
    ids, starts, ends = (values.tolist() for values in alignments.intervals(row))
    return [
        (alignments.phones[id], start, end)
        for id, start, end in zip(ids, starts, ends, strict=True)
    ]
