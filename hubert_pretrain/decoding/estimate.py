"""Estimation of n-gram models: interpolated modified Kneser-Ney (Chen and Goodman 1998, section 3),
as KenLM's lmplz, without pruning.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import islice

from hubert_pretrain.decoding.ngram import BEGIN, END, UNKNOWN, Entry, Ngram
from hubert_pretrain.errors import DataError

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""Of n-grams that occur once, twice, and more often, where a text is too small to tell."""
_NEVER = -99.0
"""log10 of the probability of the beginning of a sentence, which is never predicted."""

Counts = Mapping[Ngram, int]


def estimate(sentences: Iterable[str], order: int) -> list[dict[Ngram, Entry]]:
    """The n-grams of each order up to `order`, from sentences of words with spaces between them.

    The model knows each word that occurs, the end of a sentence, and `UNKNOWN` for all others.

    Raises DataError when there is no word.
    """
    counts = adjusted_counts(sentences, order)
    if len(counts[0]) < 2:
        raise DataError("the texts have no word; a language model needs sentences")
    size = len(counts[0]) + 1  # words, the end of a sentence, and the unknown word
    lower: dict[Ngram, float] = {}
    entries: list[dict[Ngram, tuple[float, float]]] = []
    for number, of_order in enumerate(counts, start=1):
        found, left_over = _smooth(of_order)
        if number == 1:
            uniform = left_over[()] / size
            probability = {ngram: share + uniform for ngram, share in found.items()}
            probability[(UNKNOWN,)] = uniform
        else:
            probability = {
                ngram: share + left_over[ngram[:-1]] * lower[ngram[1:]]
                for ngram, share in found.items()
            }
            for context, weight in left_over.items():
                logarithm, _ = entries[-1][context]
                entries[-1][context] = (logarithm, math.log10(weight))
        entries.append({ngram: (math.log10(p), 0.0) for ngram, p in probability.items()})
        if number == 1:
            entries[0][(BEGIN,)] = (_NEVER, 0.0)
        lower = probability
    return entries


def adjusted_counts(sentences: Iterable[str], order: int) -> list[dict[Ngram, int]]:
    """For each order the counts of Kneser-Ney: of the highest order, and of n-grams that begin a
    sentence, how often they occur; of others, the number of different words before them.
    """
    raw: list[Counter[Ngram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        words = (BEGIN, *sentence.split(), END)
        if len(words) == 2:
            continue  # no transcript
        for length in range(1, order + 1):
            raw[length - 1].update(
                zip(*(islice(words, i, None) for i in range(length)), strict=False)
            )
    found = [dict(raw[-1])]
    for longer, shorter in zip(reversed(raw[1:]), reversed(raw[:-1]), strict=True):
        before = Counter(ngram[1:] for ngram in longer)
        found.insert(
            0,
            {
                ngram: count if ngram[0] == BEGIN else before[ngram]
                for ngram, count in shorter.items()
            },
        )
    found[0].pop((BEGIN,), None)
    return found


def discounts(counts: Iterable[int]) -> tuple[float, float, float]:
    """The part that is taken from n-grams that occur once, twice, and more often (equation 26);
    `FALLBACK_DISCOUNTS` where some of one to four occurrences are missing or the formula gives a
    value that cannot be taken.
    """
    counted = Counter(counts)
    if not all(counted[n] for n in range(1, 5)):
        return FALLBACK_DISCOUNTS
    share = counted[1] / (counted[1] + 2 * counted[2])
    found = tuple(n - (n + 1) * share * counted[n + 1] / counted[n] for n in range(1, 4))
    if not all(0 < value < n for n, value in enumerate(found, start=1)):
        return FALLBACK_DISCOUNTS
    return found  # type: ignore[return-value]


def _smooth(counts: Counts) -> tuple[dict[Ngram, float], dict[Ngram, float]]:
    """Shares of n-grams after their contexts, discounted, and for each context the probability that
    is left over.
    """
    off = discounts(counts.values())
    total: defaultdict[Ngram, int] = defaultdict(int)
    taken: defaultdict[Ngram, float] = defaultdict(float)
    for ngram, count in counts.items():
        total[ngram[:-1]] += count
        taken[ngram[:-1]] += off[min(count, 3) - 1]
    shares = {
        ngram: (count - off[min(count, 3) - 1]) / total[ngram[:-1]]
        for ngram, count in counts.items()
    }
    return shares, {context: amount / total[context] for context, amount in taken.items()}
