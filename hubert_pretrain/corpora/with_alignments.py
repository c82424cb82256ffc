"""Any corpus, with alignments from elsewhere: TextGrids, CTM, .phn or LibriSpeech's lists, joined
by the ids of its utterances.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hubert_pretrain.data.source import CorpusSource, SourceUtterance, corpus_name
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.formats.alignments import AlignmentFiles


class WithAlignments:
    """A corpus whose utterances get their phones from files of alignments; those that the corpus
    brings itself are put aside.
    """

    def __init__(
        self,
        *,
        corpus: CorpusSource,
        alignments: str,
        format: str = "auto",
        tier: str = "auto",
        silence: str = "gap",
        symbols: str | None = None,
    ) -> None:
        """Nothing is read until `utterances`.

        Args:
            corpus: the corpus, in a recipe a `_target_` node of its own.
            alignments: a folder, searched to its depth, or a file.
            format: see `AlignmentFiles`, as for the others.
            tier: phones, words or the name of a tier.
            silence: gap, keep or a label.
            symbols: Kaldi's phones.txt, for a ctm of numbers.
        """
        self.corpus = corpus
        self.alignments = alignments
        self._options = {"format": format, "tier": tier, "silence": silence}
        self._symbols = symbols
        self.root = getattr(corpus, "root", None)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """The corpus, aligned. Prints how many utterances and alignments found each other.

        Raises DataError when none did, with a name of each side, and for an alignment that is none.
        """
        files = AlignmentFiles(self.alignments, symbols=self._symbols, **self._options)
        name = corpus_name(self.corpus)
        total = matched = 0
        other = ""
        for utterance in self.corpus.utterances(folder):
            phones = files.find(utterance.id)
            total = total + 1
            matched = matched + (phones is not None)
            other = other or ("" if phones is not None else utterance.id)
            yield replace(utterance, phones=phones, corpus=utterance.corpus or name)
        if total and not matched:
            raise DataError(
                f"{files.path}: aligns none of the {total} utterances; they are called such as {other!r}, the alignments such as "
                f"{files.example()!r}; rename one side, or choose other alignments"
            )
        print(
            f"alignments: {matched} of {total} utterances are aligned by {files.path} ({files.format})"
            + (f"; without, e.g. {other}" if other else "")
            + (f"; {len(files) - matched} alignments of others" if len(files) > matched else ""),
            flush=True,
        )


def with_alignments(corpus: CorpusSource, alignments: str | Mapping[str, str]) -> WithAlignments:
    """`data.alignments`: a path, or {path, format, tier, silence, symbols}. Raises ConfigError for
    other keys.
    """
    options = {"path": alignments} if isinstance(alignments, str) else dict(alignments)
    known = ("path", "format", "tier", "silence", "symbols")
    if unknown := [name for name in options if name not in known] or ["path"] * (
        "path" not in options
    ):
        raise ConfigError(
            f"data.alignments: expected a path, or path and any of {', '.join(known[1:])}, found {unknown[0]!r} wrong or missing"
        )
    return WithAlignments(corpus=corpus, alignments=options.pop("path"), **options)
