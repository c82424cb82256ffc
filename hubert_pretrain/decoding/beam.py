"""CTC prefix beam search (Hannun et al. 2014) in log space, for many utterances at once.

A prefix is held once, with the probability that it ends in a blank and that it ends in its last
symbol; all paths of a prefix are added up. B utterances, K prefixes, C symbols of a frame,
T frames, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.decoding.hypothesis import Hypothesis, LogProbabilities, hypothesis_of
from hubert_pretrain.decoding.ngram import ROOT
from hubert_pretrain.decoding.spelling import BLANK_ID, SEPARATES, STARTS, WITHIN, Spelling
from hubert_pretrain.decoding.word_scores import WordScores
from hubert_pretrain.frames import MODEL_GRID, FrameGrid

ROWS = 32
"""Utterances that are searched at once."""
STAYS = -1
"""In place of a symbol: the prefix is that of the frame before."""
_FIRST = np.uint64(0x9E3779B97F4A7C15)
_FACTOR = np.uint64(0x100000001B3)
_DEAD = np.uint64(1)
"""Hash of an empty place; no prefix has it for its parent."""

Array = NDArray[np.float64]


class BeamDecoder:
    """Prefix beam search with word scores."""

    def __init__(
        self,
        symbols: Sequence[str],
        config: DecodingConfig,
        words: WordScores | None = None,
        *,
        grid: FrameGrid = MODEL_GRID,
    ) -> None:
        """
        Args:
            symbols: of the model's V outputs, the blank first.
            words: language model, lexicon, hot words; None: the acoustic score alone.
            grid: of the frames, for times.
        """
        self.spelling = Spelling(symbols)
        self.config = config
        self.words = words
        self.grid = grid

    def reweighted(self, lm_weight: float, word_score: float) -> BeamDecoder:
        """The same decoder with other weights of the language model and of words."""
        config = replace(self.config, lm_weight=lm_weight, word_score=word_score)
        words = self.words.reweighted(config) if self.words else None
        return BeamDecoder(self.spelling.symbols, config, words, grid=self.grid)

    def decode(self, log_probabilities: LogProbabilities) -> Hypothesis:
        """The best hypothesis of one utterance (T, V)."""
        return self._search([log_probabilities], 1)[0][0]

    def decode_batch(self, batch: Sequence[LogProbabilities]) -> list[Hypothesis]:
        """The best hypothesis of each utterance."""
        return [found[0] for found in self.n_best_batch(batch, 1)]

    def n_best(self, log_probabilities: LogProbabilities) -> list[Hypothesis]:
        """`n_best` hypotheses of one utterance with different texts, the best first."""
        return self._search([log_probabilities], self.config.n_best)[0]

    def n_best_batch(
        self, batch: Sequence[LogProbabilities], count: int | None = None
    ) -> list[list[Hypothesis]]:
        """`n_best` (or `count`) hypotheses of each utterance."""
        order = sorted(range(len(batch)), key=lambda index: -len(batch[index]))
        found: dict[int, list[Hypothesis]] = {}
        for first in range(0, len(order), ROWS):
            rows = order[first : first + ROWS]
            results = self._search([batch[row] for row in rows], count or self.config.n_best)
            found |= dict(zip(rows, results, strict=True))
        return [found[index] for index in range(len(batch))]

    def _search(self, batch: Sequence[LogProbabilities], count: int) -> list[list[Hypothesis]]:
        """The hypotheses of utterances, the longest first."""
        frames = Frames.of(batch, self.config)
        beams = Beams(len(batch), frames, self.config, self.spelling, self.words)
        for frame in range(frames.most):
            beams.advance(frame)
        scores, whole = beams.finish()
        chosen = np.argsort(-scores, axis=1, kind="stable")
        if count == 1:
            chosen = chosen[:, :1]  # of more all, because different symbols may spell one text
        ids, onsets = beams.trace(chosen)
        return [
            self._hypotheses(
                batch[row],
                [
                    (ids[row][place], onsets[row][place], scores[row, beam], whole[row, beam])
                    for place, beam in enumerate(chosen[row])
                    if scores[row, beam] > -np.inf or place == 0
                ],
                count,
            )
            for row in range(len(batch))
        ]

    def _hypotheses(
        self,
        log_probabilities: LogProbabilities,
        found: list[tuple[list[int], list[int], float, bool]],
        count: int,
    ) -> list[Hypothesis]:
        """Hypotheses with different texts."""
        texts: dict[str, Hypothesis] = {}
        for ids, onsets, score, is_whole in found:
            end = len(ids) if is_whole else self._whole_words(ids)
            hypothesis = hypothesis_of(
                ids[:end],
                onsets[:end],
                float(score),
                log_probabilities,
                self.spelling,
                self.grid,
                self.words.names if self.words else None,
            )
            texts.setdefault(hypothesis.text, hypothesis)
        return list(texts.values())[:count]

    def _whole_words(self, ids: list[int]) -> int:
        """Symbols before the last word."""
        words = self.spelling.words(ids)
        return words[-1][1] if words else 0


@dataclass(frozen=True)
class Frames:
    """Log-probabilities of a batch, and the symbols of each frame that may extend a prefix."""

    values: Array  # (B, T, V + 1); the last column stands for the last symbol of an empty prefix
    lengths: NDArray[np.int64]  # (B,) descending
    symbols: NDArray[np.int64]  # (B, T, C) the most probable ones, without the blank
    ranks: NDArray[np.int64]  # (B, T, V + 1) place of each symbol among them
    counts: NDArray[np.int64]  # (B, T) that are probable enough

    @staticmethod
    def of(batch: Sequence[LogProbabilities], config: DecodingConfig) -> Frames:
        """From utterances (T, V), the longest first."""
        lengths = np.array([len(each) for each in batch])
        num_symbols = batch[0].shape[1]
        values = np.full((len(batch), max(1, lengths[0]), num_symbols + 1), -np.inf)
        for row, each in enumerate(batch):
            values[row, : len(each), :num_symbols] = each
        without_blank = -values[:, :, 1:num_symbols]
        most = min(config.beam_tokens, num_symbols - 1)
        if most < num_symbols - 1:
            chosen = np.argpartition(without_blank, most - 1, axis=2)[:, :, :most]
            within = np.argsort(np.take_along_axis(without_blank, chosen, 2), 2, kind="stable")
            symbols = np.take_along_axis(chosen, within, 2) + 1
        else:
            symbols = np.argsort(without_blank, axis=2, kind="stable") + 1
        ranks = np.full(values.shape, num_symbols)
        np.put_along_axis(ranks, symbols, np.arange(most)[None, None], 2)
        best = values.max(axis=2, keepdims=True)
        with np.errstate(invalid="ignore"):  # rows after their end
            near = np.take_along_axis(values, symbols, 2) >= best - config.token_threshold
        return Frames(values, lengths, symbols, ranks, near.sum(axis=2))

    @property
    def most(self) -> int:
        """Frames of the longest utterance."""
        return int(self.lengths[0])


class Beams:
    """The prefixes of every utterance at a frame, (B, K) each."""

    def __init__(
        self,
        rows: int,
        frames: Frames,
        config: DecodingConfig,
        spelling: Spelling,
        words: WordScores | None,
    ) -> None:
        self.frames = frames
        self.config = config
        self.words = words
        self.places = np.append(spelling.places, WITHIN)
        size = config.beam_size
        shape = (rows, size)
        self.blank: Array = np.full(shape, -np.inf)  # ends in a blank
        self.symbol: Array = np.full(shape, -np.inf)  # ends in its last symbol
        self.last = np.full(shape, len(spelling))
        self.hash = np.full(shape, _DEAD)
        self.parent = np.zeros(shape, np.uint64)
        self.blank[:, 0] = 0.0
        self.hash[:, 0] = _FIRST
        # Of word scores:
        self.score: Array = np.zeros(shape)
        self.node = np.full(shape, ROOT)
        self.context = np.full(shape, words.start if words else ROOT)
        self.closing: Array = np.zeros(shape)  # the score of the last word if it ends now
        self.context_after = self.context.copy()
        self._history: list[tuple[NDArray[np.int32], NDArray[np.int32]] | None] = []

    def advance(self, frame: int) -> None:
        """One frame more."""
        rows = int(np.searchsorted(-self.frames.lengths, -frame, side="left"))
        count = int(self.frames.counts[:rows, frame].max())
        values = self.frames.values[:rows, frame]  # (B, V + 1)
        last = self.last[:rows]
        of_last = np.take_along_axis(values, last, 1)  # (B, K)
        total = np.logaddexp(self.blank[:rows], self.symbol[:rows])
        blank = total + values[:, BLANK_ID, None]
        symbol = self.symbol[:rows] + of_last
        if not count:  # only the blank is probable
            self.blank[:rows] = blank
            self.symbol[:rows] = symbol
            self._history.append(None)
            return
        symbols = self.frames.symbols[:rows, frame, :count]  # (B, C)
        probable = np.arange(count) < self.frames.counts[:rows, frame, None]
        of_symbols = np.where(probable, np.take_along_axis(values, symbols, 1), -np.inf)
        # After the same symbol a blank must lie between.
        repeats = symbols[:, None, :] == last[:, :, None]
        longer = np.where(repeats, self.blank[:rows, :, None], total[:, :, None])
        longer += of_symbols[:, None, :]  # (B, K, C)
        came_from = self._merge(frame, symbol, blank, longer)
        scores = longer
        nodes = None
        if self.words is not None:
            gain, nodes = self._gain(symbols)
            scores = longer + gain + self.score[:rows, :, None]
        stays = np.logaddexp(blank, symbol) + self.score[:rows]
        everything = np.concatenate([stays[:, :, None], scores], axis=2)  # (B, K, 1 + C)
        self._select(everything, blank, symbol, longer, symbols, nodes, came_from)

    def _merge(
        self, frame: int, symbol: Array, blank: Array, longer: Array
    ) -> tuple[NDArray[np.int64], ...]:
        """Adds paths that extend one prefix to another of the beam to the latter.

        Returns (row, prefix, shorter prefix) where that is the better way to come to the prefix:
        its last symbol begins at this frame.
        """
        rows = len(symbol)
        same = self.parent[:rows, :, None] == self.hash[:rows, None, :]
        row, prefix, shorter = np.nonzero(same)
        place = self.frames.ranks[row, frame, self.last[row, prefix]]
        inside = place < longer.shape[2]
        row, prefix, shorter, place = (each[inside] for each in (row, prefix, shorter, place))
        arriving = longer[row, shorter, place]
        longer[row, shorter, place] = -np.inf
        staying = np.logaddexp(symbol[row, prefix], blank[row, prefix])
        symbol[row, prefix] = np.logaddexp(symbol[row, prefix], arriving)
        better = arriving > staying
        return row[better], prefix[better], shorter[better]

    def _gain(self, symbols: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
        """Word scores that symbols (B, C) add to prefixes, and the places after them, (B, K, C)."""
        assert self.words is not None
        rows = len(symbols)
        node = self.node[:rows, :, None]
        places = self.places[symbols][:, None, :]
        before = np.where(places == STARTS, ROOT, node)
        nodes = np.where(places == SEPARATES, ROOT, self.words.child(before, symbols[:, None, :]))
        ends = (places != WITHIN) & (node != ROOT)
        potential = self.words.potential
        gain = potential[nodes] + np.where(ends, self.closing[:rows, :, None], 0.0)
        gain += self.words.unknown_symbols(before, nodes)
        return gain - potential[node], nodes

    def _select(
        self,
        everything: Array,
        blank: Array,
        symbol: Array,
        longer: Array,
        symbols: NDArray[np.int64],
        nodes: NDArray[np.int64] | None,
        came_from: tuple[NDArray[np.int64], ...],
    ) -> None:
        """The best K of all candidates (B, K, 1 + C) become the prefixes."""
        rows, size, width = everything.shape
        flat = everything.reshape(rows, -1)
        chosen = np.argpartition(-flat, size - 1, axis=1)[:, :size]
        scores = np.take_along_axis(flat, chosen, 1)
        least = scores.max(axis=1, keepdims=True) - self.config.beam_threshold
        alive = (scores >= least) & (scores > -np.inf)
        source, place = np.divmod(chosen, width)  # (B, K)
        at = np.arange(rows)[:, None]
        stays = place == 0
        added = np.where(stays, 0, place - 1)
        new = symbols[at, added]
        way = longer[at, source, added]
        stayed = stays & alive
        grown = ~stays & alive
        if self.words is not None and nodes is not None:
            self._move_words(grown, source, new, nodes[at, source, added], scores, way)
        self.blank[:rows] = np.where(stayed, blank[at, source], -np.inf)
        self.symbol[:rows] = np.where(stayed, symbol[at, source], np.where(grown, way, -np.inf))
        old_hash = self.hash[:rows][at, source]
        old_parent = self.parent[:rows][at, source]
        extended = (old_hash + new.astype(np.uint64)) * _FACTOR
        extended ^= extended >> np.uint64(29)
        self.hash[:rows] = np.where(alive, np.where(stays, old_hash, extended), _DEAD)
        self.parent[:rows] = np.where(alive, np.where(stays, old_parent, old_hash), 0)
        # History: the last symbol of a prefix may begin here although the prefix is older.
        parents = np.broadcast_to(np.arange(size), (rows, size)).copy()
        begins = np.full((rows, size), STAYS)
        row, prefix, shorter = came_from
        parents[row, prefix] = shorter
        begins[row, prefix] = self.last[row, prefix]
        self.last[:rows] = np.where(stays, self.last[:rows][at, source], new)
        self._history.append(
            (
                np.where(stays, parents[at, source], source).astype(np.int32),
                np.where(stays, begins[at, source], new).astype(np.int32),
            )
        )

    def _move_words(
        self,
        grown: NDArray[np.bool_],
        source: NDArray[np.int64],
        new: NDArray[np.int64],
        new_node: NDArray[np.int64],
        scores: Array,
        way: Array,
    ) -> None:
        """Word scores and places of the chosen prefixes."""
        assert self.words is not None
        rows = len(source)
        at = np.arange(rows)[:, None]
        old_node = self.node[:rows][at, source]
        ended = grown & (self.places[new] != WITHIN) & (old_node != ROOT)
        context = np.where(
            ended, self.context_after[:rows][at, source], self.context[:rows][at, source]
        )
        with np.errstate(invalid="ignore"):
            score = np.where(grown, scores - way, self.score[:rows][at, source])
        node = np.where(grown, new_node, old_node)
        closing = self.closing[:rows][at, source]
        after = self.context_after[:rows][at, source]
        changed = np.nonzero(grown & (node != ROOT))
        closing[changed], after[changed] = self.words.close(node[changed], context[changed])
        self.score[:rows] = score
        self.node[:rows] = node
        self.context[:rows] = context
        self.closing[:rows] = closing
        self.context_after[:rows] = after

    def finish(self) -> tuple[Array, NDArray[np.bool_]]:
        """Scores of whole sentences (B, K), and where the last word is one of the lexicon. A row in
        which no prefix ends with a word has the scores of the words before.
        """
        acoustic = np.logaddexp(self.blank, self.symbol)
        if self.words is None:
            return acoustic, np.full(acoustic.shape, True)
        open_word = self.node != ROOT
        before = acoustic + self.score - self.words.potential[self.node]
        context = np.where(open_word, self.context_after, self.context)
        ends = self.words.finish(context.ravel()).reshape(context.shape)
        whole = before + np.where(open_word, self.closing, 0.0) + ends
        is_whole = whole > -np.inf
        some = is_whole.any(axis=1, keepdims=True)
        return np.where(some, whole, before), is_whole | (acoustic == -np.inf)

    def trace(
        self, chosen: NDArray[np.int64]
    ) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
        """Symbols and the frames in which they begin, of chosen prefixes (B, M)."""
        begins = np.full((len(self._history), *chosen.shape), STAYS, np.int32)
        beam = chosen.copy()
        for frame in reversed(range(len(self._history))):
            step = self._history[frame]
            if step is None:
                continue
            parents, symbols = step
            rows = len(parents)
            begins[frame, :rows] = np.take_along_axis(symbols, beam[:rows], 1)
            beam[:rows] = np.take_along_axis(parents, beam[:rows], 1)
        ids: list[list[list[int]]] = []
        onsets: list[list[list[int]]] = []
        for row in range(len(chosen)):
            frames = [np.flatnonzero(each != STAYS) for each in begins[:, row].T]
            onsets.append([each.tolist() for each in frames])
            ids.append([begins[each, row, place].tolist() for place, each in enumerate(frames)])
        return ids, onsets
