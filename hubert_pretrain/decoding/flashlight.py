"""Lexicon decoding by flashlight-text (an optional package), with KenLM inside. T frames, V
vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hubert_pretrain.decoding.config import DecodingConfig, import_flashlight
from hubert_pretrain.decoding.hypothesis import Hypothesis, LogProbabilities, hypothesis_of
from hubert_pretrain.decoding.ngram import LN_10
from hubert_pretrain.decoding.spelling import BLANK_ID, Spelling
from hubert_pretrain.decoding.word_scores import Lexicon, names_of
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import MODEL_GRID, FrameGrid

_IMPOSSIBLE = -1e4


class FlashlightDecoder:
    """Words of a lexicon, with an n-gram model or none; scores are those of `BeamDecoder`."""

    def __init__(
        self,
        symbols: Sequence[str],
        config: DecodingConfig,
        lexicon: Lexicon,
        arpa: Path | None = None,
        *,
        grid: FrameGrid = MODEL_GRID,
    ) -> None:
        """
        Args:
            symbols: of the model's V outputs, the blank first, characters with a boundary.
            arpa: file of the n-gram model.
            grid: of the frames, for times.

        Raises:
            ConfigError: the package is not installed, or the symbols have no boundary.
        """
        decoder, dictionary = import_flashlight()
        self.spelling = Spelling(symbols)
        self.config = config
        self.grid = grid
        self._names = names_of(self.spelling, lexicon)
        if self.spelling.boundary is None:
            raise ConfigError(
                "decoding.engine=flashlight needs a vocabulary of characters with a boundary "
                f"between words, this one has {self.spelling.unit}; use decoding.engine=own"
            )
        self._boundary = self.spelling.boundary
        words = dictionary.Dictionary(list(lexicon))
        lm = decoder.ZeroLM()
        if arpa is not None:
            from flashlight.lib.text.decoder.kenlm import KenLM

            lm = KenLM(str(arpa), words)
        trie = decoder.Trie(len(symbols), self._boundary)
        start = lm.start(False)
        for word, spellings in lexicon.items():
            index = words.get_index(word)
            _, score = lm.score(start, index)
            for ids in spellings:
                trie.insert([*ids, self._boundary], index, score)
        trie.smear(decoder.SmearingMode.MAX)
        self._parts: tuple[Any, ...] = (
            trie,
            lm,
            self._boundary,
            BLANK_ID,
            words.index_size(),
            [],
            False,
        )
        self._has_lm = arpa is not None
        self._decoder = self._search(config)

    def reweighted(self, lm_weight: float, word_score: float) -> FlashlightDecoder:
        """The same decoder with other weights of the language model and of words."""
        other = copy.copy(self)
        other.config = replace(self.config, lm_weight=lm_weight, word_score=word_score)
        other._decoder = self._search(other.config)
        return other

    def _search(self, config: DecodingConfig) -> Any:
        decoder, _ = import_flashlight()
        options = decoder.LexiconDecoderOptions(
            beam_size=config.beam_size,
            beam_size_token=min(config.beam_tokens, len(self.spelling)),
            beam_threshold=config.beam_threshold,
            lm_weight=config.lm_weight * LN_10,  # its language models count in log10
            word_score=config.word_score if self._has_lm else 0.0,
            unk_score=-np.inf,
            sil_score=0.0,
            log_add=True,
            criterion_type=decoder.CriterionType.CTC,
        )
        return decoder.LexiconDecoder(options, *self._parts)

    def decode(self, log_probabilities: LogProbabilities) -> Hypothesis:
        """The best hypothesis of one utterance (T, V)."""
        return self.n_best(log_probabilities)[0]

    def decode_batch(self, batch: Sequence[LogProbabilities]) -> list[Hypothesis]:
        """The best hypothesis of each utterance."""
        return [self.decode(each) for each in batch]

    def n_best(self, log_probabilities: LogProbabilities) -> list[Hypothesis]:
        """`n_best` hypotheses of one utterance with different texts, the best first."""
        # A word ends with a boundary, which the last one may lack: a frame more has it for certain.
        end = np.full((1, log_probabilities.shape[1]), _IMPOSSIBLE)
        end[0, self._boundary] = 0.0
        values = np.ascontiguousarray(np.concatenate([log_probabilities, end]), dtype=np.float32)
        texts: dict[str, Hypothesis] = {}
        for result in self._decoder.decode(values.ctypes.data, *values.shape):
            path = np.array(result.tokens[1:-2])  # without the silence at both ends, and the end
            begins = np.flatnonzero(np.diff(path, prepend=-1))
            onsets = begins[path[begins] != BLANK_ID]
            hypothesis = hypothesis_of(
                path[onsets].tolist(),
                onsets.tolist(),
                float(result.score),
                log_probabilities,
                self.spelling,
                self.grid,
                self._names,
            )
            texts.setdefault(hypothesis.text, hypothesis)
            if len(texts) == self.config.n_best:
                break
        return list(texts.values())
