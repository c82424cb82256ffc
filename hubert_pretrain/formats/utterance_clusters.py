"""Clusters of utterances in place of corpora: a file says which utterance is of which cluster, and
`pretrain.corpus_weights` or `pretrain.corpus_temperature` set how often each cluster is sampled.

N utterances.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hubert_pretrain.data.length_index import LengthIndex
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.text import nonblank_lines


def training_utterances(manifest: Manifest, clusters: str | None) -> list[LengthIndex]:
    """The utterances of `train`: of each corpus, or of each cluster of a file, by name."""
    if clusters is None:
        return manifest.length_sorted("train")
    return UtteranceClusters(manifest, Path(clusters)).length_sorted("train")


def read_clusters(path: Path) -> dict[str, str]:
    """Utterance id -> cluster. Raises DataError naming the file and the line."""
    found: dict[str, str] = {}
    for number, line in nonblank_lines(path):
        utterance, tab, cluster = line.partition("\t")
        if not utterance or not tab or not cluster.strip() or "\t" in cluster:
            raise DataError(
                f"{path}: line {number}: expected an utterance id, a tab and the name of its "
                f"cluster, found {line[:80]!r}"
            )
        if found.setdefault(utterance, cluster.strip()) != cluster.strip():
            raise DataError(
                f"{path}: line {number}: {utterance!r} is in cluster {cluster.strip()!r} here and "
                f"in {found[utterance]!r} before; keep one of the lines"
            )
    return found


class UtteranceClusters:
    """The utterances of a manifest by cluster. Where it is pickled, the file is read again."""

    def __init__(self, manifest: Manifest, path: Path) -> None:
        """No file is read yet.

        Args:
            manifest: of the corpus. Utterances of other corpora may be in the file too.
            path: lines of an utterance id, a tab and the name of its cluster.
        """
        self._manifest = manifest
        self._path = path
        self._groups: dict[str, list[LengthIndex]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return UtteranceClusters, (self._manifest, self._path)

    def length_sorted(self, split: str) -> list[LengthIndex]:
        """The utterances of a split in order of length: one index per cluster, by name.

        Raises DataError for an utterance without a cluster.
        """
        if split not in self._groups:
            self._groups[split] = self._read(split)
        return self._groups[split]

    def _read(self, split: str) -> list[LengthIndex]:
        clusters = read_clusters(self._path)
        rows = np.asarray(self._manifest.rows(split), dtype=np.int64)
        ids = self._manifest.take("id", rows).to_pylist()
        missing = [each for each in ids if each not in clusters]
        if missing:
            raise DataError(
                f"{self._path}: has no cluster for {len(missing)} of {len(ids)} utterances of "
                f"{split}, first {missing[0]!r}; make it with `hubert-pretrain cluster-utterances "
                f"{self._manifest.path.parent}`, or add them"
            )
        names, numbers = np.unique([clusters[each] for each in ids], return_inverse=True)
        lengths = self._manifest.num_samples
        ordered = rows[np.argsort(lengths[rows], kind="stable")]
        of_ordered = numbers[np.argsort(lengths[rows], kind="stable")]
        return [
            LengthIndex(
                ordered[of_ordered == number],
                lengths,
                corpus=str(name),
                origin=(self, split, number),
            )
            for number, name in enumerate(names.tolist())
        ]
