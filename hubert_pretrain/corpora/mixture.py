"""Several corpora as one. Each keeps its splits; `pretrain.corpus_weights` or
`pretrain.corpus_temperature` set how often it is sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hubert_pretrain.corpora.download.archives import download
from hubert_pretrain.data.source import CorpusSource, SourceUtterance, originals
from hubert_pretrain.errors import ConfigError


class Mixture:
    """Named corpora: an utterance's id becomes `<name>/<id>`, its corpus `<name>`."""

    def __init__(self, *, corpora: Mapping[str, CorpusSource]) -> None:
        """No file is read before `utterances` is called.

        Args:
            corpora: name -> corpus; in a recipe, each a node of conf/data/*.yaml with its own
                `root`.
        """
        if not corpora:
            raise ConfigError(
                "data.corpus.corpora: is empty, expected a name and a corpus for each"
            )
        for name in corpora:
            if not name or "/" in name:
                raise ConfigError(
                    f"data.corpus.corpora: {name!r} cannot be a name; take one without a slash"
                )
        self.corpora = dict(corpora)

    def originals(self) -> Mixture | None:
        """The corpora that do not make their audio."""
        given = {name: originals(source) for name, source in self.corpora.items()}
        corpora = {name: source for name, source in given.items() if source is not None}
        return Mixture(corpora=corpora) if corpora else None

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every utterance of every corpus, one corpus after the other."""
        for name, source in self.corpora.items():
            for utterance in source.utterances(folder / name):
                original = utterance.original and f"{name}/{utterance.original}"
                yield replace(
                    utterance, id=f"{name}/{utterance.id}", corpus=name, original=original
                )

    def download(self, mirror: str | None = None) -> None:
        """Downloads the corpora that can be downloaded. `utterances` reports others that are
        missing.
        """
        for source in self.corpora.values():
            if hasattr(source, "download"):
                download(source, mirror)
