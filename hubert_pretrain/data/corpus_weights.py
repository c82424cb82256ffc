"""Sampling weights of several corpora: weights or a temperature -> exact numbers of utterances per
epoch.

C corpora, K buckets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.length_index import Ints, LengthIndex
from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.seeds import permute

Floats = NDArray[np.float64]


def sampling_weights(
    utterances: Sequence[LengthIndex], weights: Mapping[str, float], temperature: float
) -> Floats | None:
    """Share of the audio that is sampled from each corpus, (C,); None when every utterance is
    sampled once per epoch.

    Args:
        utterances: of each corpus.
        weights: of every corpus by name, in proportion to the audio sampled from it; empty: by
            temperature.
        temperature: T; weights are hours ** (1 / T), so that 1 samples every corpus in proportion
            to its size and more favours the small ones (Conneau et al. 2020, section 3.1, where
            1 / T is alpha).

    Raises:
        ConfigError: a weight is negative, all are 0, the temperature is not positive, or both are
            given.
        DataError: corpora without a weight, or weights without a corpus.
    """
    names = [one.corpus for one in utterances]
    _check_weights(names, weights, temperature)
    if weights:
        shares = np.array([weights[name] for name in names])
        return np.asarray(shares / shares.sum(), dtype=np.float64)
    if temperature == 1.0 or len(utterances) < 2:
        return None
    sizes = np.array([one.total_samples for one in utterances], dtype=np.float64)
    shares = (sizes / sizes.max()) ** (1.0 / temperature)
    return np.asarray(shares / shares.sum(), dtype=np.float64)


def _check_weights(names: list[str], weights: Mapping[str, float], temperature: float) -> None:
    if (
        temperature <= 0
        or any(weight < 0 for weight in weights.values())
        or (weights and not sum(weights.values()))
    ):
        raise ConfigError(
            f"pretrain.corpus_weights={dict(weights)}, corpus_temperature={temperature}: "
            "expected positive numbers"
        )
    if not weights:
        return
    if temperature != 1.0:
        raise ConfigError(
            "pretrain.corpus_temperature: has no meaning beside pretrain.corpus_weights; "
            "set one of them"
        )
    for name in [*weights, *names]:
        if name not in names:
            raise DataError(
                f"pretrain.corpus_weights: no corpus {name!r}{did_you_mean(name, names)}, "
                f"the manifest has {', '.join(names)}; use one of these names"
            )
        if name not in weights:
            raise DataError(
                f"pretrain.corpus_weights: has no weight for corpus {name!r} of the manifest; "
                "give it one, 0 leaves it out"
            )


def passes_per_epoch(audio: Ints, shares: Floats | None) -> Floats:
    """Number of times that an utterance of each corpus is sampled per epoch, (C,).

    Args:
        audio: (C,) amount of audio in one pass over each corpus. An epoch is as long as their sum.
        shares: (C,) of the epoch's audio, see `sampling_weights`; None: one pass over each.
    """
    if shares is None:
        return np.ones(len(audio))
    present = np.where(audio > 0, shares, 0.0)
    return np.divide(
        present * audio.sum(), audio * present.sum(), out=np.zeros(len(audio)), where=present > 0
    )


@dataclass(frozen=True)
class Bucket:
    """The utterances of all corpora that are cropped to one length. An epoch samples `quotas[c]`
    of the `sizes[c]` utterances of corpus c.
    """

    firsts: Ints
    """(C,) position of the shortest utterance in the length index of each corpus."""
    sizes: Ints
    """(C,) utterances of each corpus."""
    quotas: Ints
    """(C,) utterances sampled of each corpus per epoch."""

    @property
    def total(self) -> int:
        """Utterances sampled per epoch."""
        return int(self.quotas.sum())

    def sample(self, numbers: Ints, epoch: int, *key: int | str) -> tuple[Ints, Ints]:
        """Numbers below `total` -> (corpus, position in its length index) of each.

        A corpus that is not sampled exactly once per epoch is sampled from one endless sequence of
        shuffles through all epochs: after any epoch, the counts of two of its utterances in this
        bucket differ by one at most.
        """
        ends = np.cumsum(self.quotas)
        corpora = np.searchsorted(ends, numbers, side="right")
        positions = numbers - (ends - self.quotas)[corpora]
        for c in np.flatnonzero((self.quotas != self.sizes) & (self.quotas > 0)).tolist():
            quota = int(self.quotas[c])
            size = int(self.sizes[c])
            mine = np.flatnonzero(corpora == c)
            shuffles, inside = np.divmod(epoch * quota + positions[mine], size)
            for shuffle in np.unique(shuffles).tolist():
                chosen = shuffles == shuffle
                positions[mine[chosen]] = permute(inside[chosen], size, *key, "corpus", c, shuffle)
        return corpora, self.firsts[corpora] + positions


def make_bucket(firsts: Ints, sizes: Ints, passes: Floats, batch_rows: int) -> Bucket:
    """A bucket with quotas in proportion to `passes * sizes`, exactly `sizes` where every utterance
    is sampled once.

    Otherwise the quotas are rounded down to fill whole micro-batches of `batch_rows`, so that no
    sampled utterance is left over.
    """
    if (passes == 1.0).all():
        return Bucket(firsts, sizes, sizes)
    ideal = passes * sizes
    total = int(ideal.sum() + 1e-6) // batch_rows * batch_rows
    exact = ideal * (total / max(1.0, float(ideal.sum())))
    quotas = np.floor(exact).astype(np.int64)
    # The remainder goes to the corpora that were rounded down most.
    largest = np.argsort(quotas - exact, kind="stable")[: total - int(quotas.sum())]
    quotas[largest] += 1
    return Bucket(firsts, sizes, quotas)
