"""Words as a tree of symbols, walked for many prefixes at once. M queries, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.decoding.ngram import NOWHERE, ROOT, Integers

DENSE_LIMIT = 2**26
"""Up to so many cells children are looked up in a table, else by bisection."""


class Trie:
    """A tree of spellings; node 0 is the empty one."""

    def __init__(self, spellings: Iterable[tuple[Sequence[int], int]], num_symbols: int) -> None:
        """
        Args:
            spellings: (ids, number of the word). Of two words with one spelling the first counts.
            num_symbols: V.
        """
        children: list[dict[int, int]] = [{}]
        words = [NOWHERE]
        for ids, word in spellings:
            node = ROOT
            for index in ids:
                node = children[node].setdefault(index, len(children))
                if node == len(children):
                    children.append({})
                    words.append(NOWHERE)
            if words[node] == NOWHERE:
                words[node] = word
        self.num_symbols = num_symbols
        self.words: Integers = np.array(words)
        """(nodes,) number of the word that ends there, else NOWHERE."""
        edges = sorted(
            (node * num_symbols + index, child)
            for node, inner in enumerate(children)
            for index, child in inner.items()
        )
        self._keys: Integers = np.array([key for key, _ in edges], dtype=np.int64)
        self._children: Integers = np.array([child for _, child in edges], dtype=np.int64)
        self._parents = np.zeros(len(words), dtype=np.int64)
        self._parents[self._children] = self._keys // num_symbols
        self._table: NDArray[np.int32] | None = None
        if len(words) * num_symbols <= DENSE_LIMIT:
            self._table = np.full((len(words) + 1) * num_symbols, NOWHERE, np.int32)
            self._table[self._keys] = self._children

    def __len__(self) -> int:
        return len(self.words)

    def child(self, nodes: Integers, symbols: Integers) -> Integers:
        """The nodes that follow by symbols, of arrays that broadcast; NOWHERE after NOWHERE and
        where no word goes on so.
        """
        keys = nodes * self.num_symbols + symbols
        if self._table is not None:
            # After NOWHERE the key is negative and reads the last row, which has no children.
            return self._table[keys].astype(np.int64)
        if not len(self._keys):
            return np.full(keys.shape, NOWHERE)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[places] == keys, self._children[places], NOWHERE)

    def best_below(
        self, value_of: Callable[[Integers], NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """(nodes,) for each node the largest value of the words that it can become.

        Args:
            value_of: numbers of words (M,) -> values (M,).
        """
        best = np.full(len(self), -np.inf)
        ends = np.flatnonzero(self.words != NOWHERE)
        best[ends] = value_of(self.words[ends])
        for node in range(len(self) - 1, 0, -1):  # children have higher numbers
            best[self._parents[node]] = max(best[self._parents[node]], best[node])
        return best

    @property
    def depths(self) -> Integers:
        """(nodes,) symbols of each node."""
        depths = np.zeros(len(self), dtype=np.int64)
        for node in range(1, len(self)):
            depths[node] = depths[self._parents[node]] + 1
        return depths
