"""A back-off n-gram model as sorted arrays, scored for many words at once. M queries, W words.

A node is an n-gram of the model: the empty one is node 0, word `w` is node `w + 1`, longer ones
follow order by order. The child of node `h` by word `w` is found by bisection among the numbers
`h * W + w` of its order. A context is the longest node that the last words make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.errors import DataError

BEGIN = "<s>"
END = "</s>"
UNKNOWN = "<unk>"
ROOT = 0
NOWHERE = -1
"""No such node."""
UNSEEN = -100.0
"""log10 of a word that the model has no place for (KenLM's value)."""
LN_10 = float(np.log(10.0))

Ngram = tuple[str, ...]
Entry = tuple[float, float]
"""log10 of the probability and of the back-off weight (0 for none)."""
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class NgramModel:
    """Log-probabilities in natural logarithms."""

    words: tuple[str, ...]
    order: int
    keys: tuple[Integers, ...]
    """For each order from 2: sorted numbers of its nodes."""
    first: tuple[int, ...]
    """For each order from 1: its first node; and the number of nodes."""
    probability: NDArray[np.float64]
    """Of each node's last word after the others; 0 for node 0."""
    backoff: NDArray[np.float64]
    shorter: Integers
    """For each node: that of the longest end of it that the model has, without its first word."""
    numbers: dict[str, int] = field(init=False, repr=False)
    """Number of each word."""

    def __post_init__(self) -> None:
        numbers = {word: number for number, word in enumerate(self.words)}
        object.__setattr__(self, "numbers", numbers)

    @property
    def start(self) -> int:
        """The context of the first word of a sentence."""
        return self.numbers[BEGIN] + 1 if BEGIN in self.numbers else ROOT

    @property
    def unknown(self) -> int:
        """Number of the word that stands for words that the model has not."""
        return self.numbers[UNKNOWN]

    def number(self, word: str) -> int:
        """Number of a word."""
        return self.numbers.get(word, self.unknown)

    def advance(self, contexts: Integers, words: Integers) -> tuple[NDArray[np.float64], Integers]:
        """Log-probabilities of words (M,) after contexts (M,), and the contexts that follow."""
        scores = np.zeros(len(words))
        places = contexts.copy()
        found = self._child(places, words)
        while (missing := np.flatnonzero(found == NOWHERE)).size:
            scores[missing] += self.backoff[places[missing]]
            places[missing] = self.shorter[places[missing]]
            found[missing] = self._child(places[missing], words[missing])
        scores += self.probability[found]
        # A node of the highest order is no context: nothing follows it.
        return scores, np.where(found >= self.first[-2], self.shorter[found], found)

    def score(self, sentence: Sequence[str], *, end: bool = True) -> float:
        """Log-probability of a sentence, its end included."""
        context = np.array([self.start])
        total = 0.0
        for word in [*sentence, END] if end else sentence:
            score, context = self.advance(context, np.array([self.number(word)]))
            total += float(score[0])
        return total

    def _child(self, nodes: Integers, words: Integers) -> Integers:
        """Nodes (M,) that follow nodes by words; NOWHERE where there is none."""
        found = np.where(nodes == ROOT, words + 1, NOWHERE)
        for number, keys in enumerate(self.keys):
            of_order = (nodes >= self.first[number]) & (nodes < self.first[number + 1])
            which = np.flatnonzero(of_order)
            if not which.size or not keys.size:
                continue
            sought = nodes[which] * len(self.words) + words[which]
            places = np.minimum(np.searchsorted(keys, sought), len(keys) - 1)
            found[which] = np.where(
                keys[places] == sought, self.first[number + 1] + places, NOWHERE
            )
        return found


def model_of(entries: Sequence[Mapping[Ngram, Entry]], place: str = "n-gram model") -> NgramModel:
    """A model from its n-grams.

    Args:
        entries: for each order from 1, n-gram -> log10 of probability and back-off weight.
        place: for messages.

    Raises:
        DataError: an n-gram whose first words the model has not.
    """
    words = [ngram[0] for ngram in entries[0]]
    unigrams = dict(entries[0])
    if UNKNOWN not in words:
        words.append(UNKNOWN)
        unigrams[(UNKNOWN,)] = (UNSEEN, 0.0)
    numbers = {word: number for number, word in enumerate(words)}
    nodes: dict[Ngram, int] = {(): ROOT} | {(word,): number + 1 for word, number in numbers.items()}
    values = [(0.0, 0.0), *(unigrams[(word,)] for word in words)]
    ordered: list[Ngram] = [(), *((word,) for word in words)]
    keys = []
    first = [1]
    for of_order in entries[1:]:
        first.append(len(ordered))
        pairs = []
        for ngram in of_order:
            if ngram[:-1] not in nodes or ngram[-1] not in numbers:
                raise DataError(
                    f"{place}: has {' '.join(ngram)!r} without {' '.join(ngram[:-1])!r}; "
                    "make the model again"
                )
            pairs.append((nodes[ngram[:-1]] * len(words) + numbers[ngram[-1]], ngram))
        pairs.sort()
        for _, ngram in pairs:
            nodes[ngram] = len(ordered)
            ordered.append(ngram)
            values.append(of_order[ngram])
        keys.append(np.array([key for key, _ in pairs], dtype=np.int64))
    first.append(len(ordered))
    shorter = [ROOT] + [_longest_end(nodes, ngram) for ngram in ordered[1:]]
    table = np.array(values) * LN_10  # (nodes, 2)
    return NgramModel(
        tuple(words),
        len(entries),
        tuple(keys),
        tuple(first),
        table[:, 0].copy(),
        table[:, 1].copy(),
        np.array(shorter, dtype=np.int64),
    )


def _longest_end(nodes: Mapping[Ngram, int], ngram: Ngram) -> int:
    """Node of the longest end of an n-gram that the model has, without its first word."""
    return next(
        nodes[ngram[begin:]] for begin in range(1, len(ngram) + 1) if ngram[begin:] in nodes
    )
