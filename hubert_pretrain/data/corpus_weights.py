"""How often each corpus is drawn: weights or a temperature -> exact numbers of utterances per
epoch. C corpora, K buckets.
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
    """(C,) share of the audio that is drawn from each corpus, or None: every utterance once per
    epoch.

    Args:
        utterances: of each corpus. weights: of every corpus by name, in proportion to the audio
        drawn from it; empty: by temperature. temperature: T; weights are hours ** (1 / T), so 1
        takes every corpus as it is and more brings out the small ones
            (Conneau et al. 2020, section 3.1, where 1 / T is alpha).

    Raises:
        ConfigError: values that cannot be.
        DataError: corpora without a weight, or weights without a corpus.
    """
    names = [one.corpus for one in utterances]
    if (
        temperature <= 0
        or any(weight < 0 for weight in weights.values())
        or (weights and not sum(weights.values()))
    ):
        raise ConfigError(
            f"pretrain.corpus_weights={dict(weights)}, corpus_temperature={temperature}: expected positive numbers"
        )
    if weights and temperature != 1.0:
        raise ConfigError(
            "pretrain.corpus_temperature: has no meaning beside pretrain.corpus_weights; set one of them"
        )
    for name in [*weights, *names] if weights else []:
        if name not in names:
            raise DataError(
                f"pretrain.corpus_weights: no corpus {name!r}{did_you_mean(name, names)}, the manifest has {', '.join(names)}; mend it"
            )
        if name not in weights:
            raise DataError(
                f"pretrain.corpus_weights: has no weight for corpus {name!r} of the manifest; give it one, 0 leaves it out"
            )
    if not weights and (temperature == 1.0 or len(utterances) < 2):
        return None
    sizes = np.array([one.total_samples for one in utterances], dtype=np.float64)
    shares = (
        np.array([weights[name] for name in names])
        if weights
        else (sizes / sizes.max()) ** (1.0 / temperature)
    )
    return np.asarray(shares / shares.sum(), dtype=np.float64)


def passes_per_epoch(audio: Ints, shares: Floats | None) -> Floats:
    """(C,) how often an utterance is drawn per epoch, given the audio (C,) of one pass over each
    corpus.

    An epoch is as long as all of it.
    """
    if shares is None:
        return np.ones(len(audio))
    present = np.where(audio > 0, shares, 0.0)
    return np.divide(
        present * audio.sum(), audio * present.sum(), out=np.zeros(len(audio)), where=present > 0
    )


@dataclass(frozen=True)
class Bucket:
    """The utterances of all corpora that are cropped to one length. An epoch draws `quotas[c]` from
    the `sizes[c]` of corpus c.
    """

    firsts: Ints
    """(C,) the place of the shortest in each corpus."""
    sizes: Ints
    quotas: Ints

    @property
    def total(self) -> int:
        """Draws of an epoch."""
        return int(self.quotas.sum())

    def draw(self, numbers: Ints, epoch: int, *key: int | str) -> tuple[Ints, Ints]:
        """Numbers below `total` -> (their corpora, their places there).

        Where a corpus is drawn more or less than once, its draws follow one endless sequence of
        shuffles through all epochs: after any epoch, two of its utterances here have been drawn
        equally often or once more.
        """
        ends = np.cumsum(self.quotas)
        corpora = np.searchsorted(ends, numbers, side="right")
        places = numbers - (ends - self.quotas)[corpora]
        for c in np.flatnonzero((self.quotas != self.sizes) & (self.quotas > 0)).tolist():
            mine = np.flatnonzero(corpora == c)
            shuffles, inside = np.divmod(
                epoch * int(self.quotas[c]) + places[mine], int(self.sizes[c])
            )
            for shuffle in np.unique(shuffles).tolist():
                chosen = shuffles == shuffle
                places[mine[chosen]] = permute(
                    inside[chosen], int(self.sizes[c]), *key, "corpus", c, shuffle
                )
        return corpora, self.firsts[corpora] + places


def make_bucket(firsts: Ints, sizes: Ints, repeat: Floats, batch_rows: int) -> Bucket:
    """A bucket with quotas in proportion to `repeat * sizes`, exactly `sizes` where every utterance
    is drawn once.

    Otherwise they fill whole micro-batches of `batch_rows`, rounded down, so that nothing is left
    over.
    """
    if (repeat == 1.0).all():
        return Bucket(firsts, sizes, sizes)
    wanted = repeat * sizes
    total = int(wanted.sum() + 1e-6) // batch_rows * batch_rows
    exact = wanted * (total / max(1.0, float(wanted.sum())))
    quotas = np.floor(exact).astype(np.int64)
    largest = np.argsort(quotas - exact, kind="stable")[: total - int(quotas.sum())]
    quotas[largest] += 1
    return Bucket(firsts, sizes, quotas)
