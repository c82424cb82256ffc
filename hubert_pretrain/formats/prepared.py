"""A corpus that stage `prepare` made, as a manifest like any other: read row by row from its
table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hubert_pretrain.data.corpus import MANIFEST, Corpus
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.formats.record import Reading, Record


def folder_of(path: Path) -> Path | None:
    """The folder with the manifest: the given one, or `prepare/` in the folder of a run; None for
    others.
    """
    return next(
        (folder for folder in (path, path / "prepare") if (folder / MANIFEST).is_file()), None
    )


def read(path: Path, reading: Reading) -> Iterator[Record]:
    """Every row, with its alignment. Raises ArtefactError for a damaged table."""
    folder = folder_of(path) or path
    corpus = Corpus.open(folder)
    for row in range(len(corpus.manifest)):
        one = corpus.manifest[row]
        phones = None
        if corpus.alignments is not None and corpus.alignments.has(row):
            ids, starts, ends = (values.tolist() for values in corpus.alignments.intervals(row))
            phones = [
                (corpus.alignments.phones[id], start, end)
                for id, start, end in zip(ids, starts, ends, strict=True)
            ]
        yield (
            f"{folder / MANIFEST}: row {row}",
            SourceUtterance(
                id=one.id,
                path=one.path,
                start=one.start,
                num_samples=one.num_samples,
                offset=one.offset,
                num_bytes=one.num_bytes,
                speaker=one.speaker,
                text=one.text,
                label=one.label,
                split=one.split,
                corpus=one.corpus,
                phones=phones,
            ),
        )
