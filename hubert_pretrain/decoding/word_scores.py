"""Scores of words in a beam search: lexicon, n-gram model, hot words. M queries, W words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.decoding.ngram import BEGIN, END, NOWHERE, ROOT, UNKNOWN, Integers, NgramModel
from hubert_pretrain.decoding.spelling import Spelling
from hubert_pretrain.decoding.trie import Trie

Scores = NDArray[np.float64]
Lexicon = Mapping[str, Sequence[Sequence[int]]]
"""Word -> its spellings as ids."""


class WordScores:
    """Places of unfinished words in a tree of spellings, and what a finished word adds to a score.

    The place of an unfinished word is a node of the tree, or NOWHERE where it is no beginning of a
    known word. An unfinished word counts as the best one that it can become: otherwise prefixes
    would be compared with and without the score of their last word.
    """

    def __init__(
        self,
        spelling: Spelling,
        config: DecodingConfig,
        lm: NgramModel | None = None,
        lexicon: Lexicon | None = None,
    ) -> None:
        """
        Args:
            lm: of words.
            lexicon: the only words that there are; None: any.
        """
        self.spelling = spelling
        self.lm = lm
        self.lexicon = lexicon
        self.lm_weight = config.lm_weight
        self.unknown_score = 0.0
        hot = {part for phrase in config.hot_words for part in phrase.split()}
        spellings = _spellings(spelling, lm, lexicon, hot)
        words = list(spellings)
        self._trie = Trie(
            ((ids, number) for number, word in enumerate(words) for ids in spellings[word]),
            len(spelling),
        )
        self.names = names_of(spelling, spellings)
        self._gain = np.array([config.hot_word_score * (word in hot) for word in words] + [0.0])
        self._lm_words = np.zeros(len(words) + 1, dtype=np.int64)
        if lm is not None:
            self._lm_words[:] = [lm.number(word) for word in [*words, UNKNOWN]]
            self._gain += config.word_score
            self.unknown_score = config.unknown_score
        if lexicon is not None:
            self._gain[NOWHERE] = -np.inf
        # The last entry of each array is that of NOWHERE, which is -1.
        self._ends = np.append(self._trie.words, NOWHERE)
        self._depths = np.append(self._trie.depths, 0)
        self.potential = np.append(self._trie.best_below(self._alone), self._alone_unknown())
        """(nodes + 1,) the score of the best word that an unfinished one can become."""
        self.potential[ROOT] = 0.0

    def reweighted(self, config: DecodingConfig) -> WordScores:
        """The same words with other weights."""
        return WordScores(self.spelling, config, self.lm, self.lexicon)

    @property
    def start(self) -> int:
        """The context of the first word."""
        return self.lm.start if self.lm is not None else ROOT

    def child(self, nodes: Integers, symbols: Integers) -> Integers:
        """The places of unfinished words after one more symbol, of arrays that broadcast."""
        return self._trie.child(nodes, symbols)

    def unknown_symbols(self, nodes: Integers, after: Integers) -> Scores:
        """The scores of symbols that turn out to be of an unknown word, where it goes on from nodes
        to `after`, of arrays that broadcast.
        """
        return np.where(after == NOWHERE, self.unknown_score * (self._depths[nodes] + 1), 0.0)

    def close(self, nodes: Integers, contexts: Integers) -> tuple[Scores, Integers]:
        """The scores of words that end at nodes (M,), and the contexts after them."""
        words = self._ends[nodes]
        scores = self._gain[words] + np.where(
            words == NOWHERE, self.unknown_score * self._depths[nodes], 0.0
        )
        if self.lm is None:
            return scores, contexts
        probabilities, after = self.lm.advance(contexts, self._lm_words[words])
        return scores + self.lm_weight * probabilities, after

    def finish(self, contexts: Integers) -> Scores:
        """The scores of the end of a sentence after contexts (M,)."""
        if self.lm is None or END not in self.lm.numbers:
            return np.zeros(len(contexts))
        ends = np.full(len(contexts), self.lm.numbers[END])
        return self.lm_weight * self.lm.advance(contexts, ends)[0]

    def _alone(self, words: Integers) -> Scores:
        """The scores of words without their context."""
        if self.lm is None:
            return self._gain[words]
        return self._gain[words] + self.lm_weight * self.lm.probability[self._lm_words[words] + 1]

    def _alone_unknown(self) -> float:
        return float(self._alone(np.array([NOWHERE]))[0])


def names_of(spelling: Spelling, lexicon: Lexicon) -> dict[tuple[int, ...], str]:
    """Words that are written in another way than their symbols, by their symbols."""
    return {
        tuple(ids): word
        for word, all_ids in reversed(list(lexicon.items()))
        for ids in all_ids
        if spelling.text(ids) != word
    }


def _spellings(
    spelling: Spelling, lm: NgramModel | None, lexicon: Lexicon | None, hot: set[str]
) -> Lexicon:
    """The words of the tree with their spellings: the lexicon, or else those of the language model,
    and hot words; words that the vocabulary cannot spell are left out.
    """
    if lexicon is not None:
        return lexicon
    words = [*(lm.words if lm is not None else ()), *sorted(hot)]
    found = {word: spelling.ids(word) for word in words if word not in (BEGIN, END, UNKNOWN)}
    return {word: [ids] for word, ids in found.items() if ids}
