"""Another corpus joined with phone alignments: TextGrid, CTM, .phn or LibriSpeech's lists, matched
by utterance id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hubert_pretrain.data.source import CorpusSource, SourceUtterance, corpus_name, originals
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.alignments import AlignmentFiles, AlignmentOptions


class WithAlignments:
    """The utterances of a corpus with phones from alignment files, which replace the corpus's own
    phones.
    """

    def __init__(self, *, corpus: CorpusSource, alignments: str | Mapping[str, str]) -> None:
        """No file is read before `utterances` is called.

        Args:
            corpus: the corpus; in a recipe, a node with its own `_target_`.
            alignments: a path, or a mapping with `path` and other fields of `AlignmentOptions`.
        """
        self.corpus = corpus
        self.options = AlignmentOptions.of(alignments)
        self.root = getattr(corpus, "root", None)

    def originals(self) -> CorpusSource | None:
        """The corpus, without alignments."""
        return originals(self.corpus)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every utterance of the corpus; phones are None without an alignment. Prints how many
        match.

        One with a malformed alignment has a fault. Raises DataError when none match, with a name of
        each side.
        """
        files = AlignmentFiles(self.options)
        name = corpus_name(self.corpus)
        total = 0
        matched = 0
        unmatched = ""  # the first id without an alignment
        for utterance in self.corpus.utterances(folder):
            total += 1
            try:
                phones = files.find(utterance.id)
            except DataError as error:
                matched += 1
                yield replace(utterance, fault=str(error), corpus=utterance.corpus or name)
                continue
            if phones is not None:
                matched += 1
            elif not unmatched:
                unmatched = utterance.id
            yield replace(utterance, phones=phones, corpus=utterance.corpus or name)
        if total and not matched:
            raise DataError(
                f"{files.path}: aligns none of the {total} utterances; they are called such as "
                f"{unmatched!r}, the alignments such as {files.example()!r}; "
                "rename one side, or choose other alignments"
            )
        report = f"{matched} of {total} utterances are aligned by {files.path} ({files.format})"
        if unmatched:
            report += f"; without, e.g. {unmatched}"
        if len(files) > matched:
            report += f"; {len(files) - matched} alignments of others"
        print(f"alignments: {report}", flush=True)
