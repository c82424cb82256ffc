"""Settings -> decoder: language model, lexicon and search, with checks of what is missing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from hubert_pretrain.decoding.arpa import read_arpa, write_arpa
from hubert_pretrain.decoding.beam import BeamDecoder
from hubert_pretrain.decoding.config import TRAIN, DecodingConfig, check_sources
from hubert_pretrain.decoding.estimate import estimate
from hubert_pretrain.decoding.greedy import GreedyDecoder
from hubert_pretrain.decoding.hypothesis import Decoder
from hubert_pretrain.decoding.lexicon import lexicon_of, read_lexicon
from hubert_pretrain.decoding.ngram import BEGIN, END, UNKNOWN, NgramModel, model_of
from hubert_pretrain.decoding.parallel import ParallelDecoder
from hubert_pretrain.decoding.spelling import Spelling
from hubert_pretrain.decoding.word_scores import Lexicon, WordScores
from hubert_pretrain.fields import check_values
from hubert_pretrain.frames import MODEL_GRID, FrameGrid


def build_decoder(
    config: DecodingConfig,
    symbols: Sequence[str],
    *,
    texts: Sequence[str] | None = None,
    grid: FrameGrid = MODEL_GRID,
    key: str = "decoding",
    spell: Callable[[str], list[int] | None] | None = None,
) -> Decoder:
    """The decoder of some settings.

    Args:
        symbols: of the model's outputs, the blank first.
        texts: normalised training transcripts, for a language model or lexicon of `train`.
        grid: of the frames, for times.
        key: of the settings, for messages.
        spell: the symbols of a word as the model has learnt it (BPE); None: see `Spelling.ids`.

    Raises:
        ConfigError: settings that do not go together, or need transcripts where there are none.
        DataError: a file that is missing or damaged, or words that the symbols cannot spell.
    """
    check_values(config, key)
    check_sources(config, has_texts=texts is not None, key=key)
    if config.kind == "greedy":
        return GreedyDecoder(symbols, grid=grid)
    spelling = Spelling(symbols, spell)
    lm = language_model(config, texts)
    lexicon = _lexicon(config, spelling, lm, texts, key)
    if config.engine == "flashlight" and lexicon is not None:
        return _flashlight(config, symbols, lexicon, texts, grid)
    words = None
    if lm is not None or lexicon is not None or config.hot_words:
        words = WordScores(spelling, config, lm, lexicon)
    beam = BeamDecoder(symbols, config, words, grid=grid)
    return ParallelDecoder(beam, config.workers) if config.workers != 1 else beam


def _flashlight(
    config: DecodingConfig,
    symbols: Sequence[str],
    lexicon: Lexicon,
    texts: Sequence[str] | None,
    grid: FrameGrid,
) -> Decoder:
    """flashlight's decoder, which reads its language model from a file."""
    from hubert_pretrain.decoding.flashlight import FlashlightDecoder

    if config.lm != TRAIN:
        arpa = Path(config.lm).expanduser() if config.lm else None
        return FlashlightDecoder(symbols, config, lexicon, arpa, grid=grid)
    with tempfile.TemporaryDirectory() as folder:
        arpa = Path(folder) / "lm.arpa"
        write_arpa(arpa, estimate(texts or (), config.lm_order))
        return FlashlightDecoder(symbols, config, lexicon, arpa, grid=grid)


def language_model(config: DecodingConfig, texts: Sequence[str] | None) -> NgramModel | None:
    """The language model of some settings. Raises DataError for a file that is missing or damaged,
    or texts without words.
    """
    if config.lm is None:
        return None
    if config.lm != TRAIN:
        return read_arpa(Path(config.lm).expanduser())
    return model_of(estimate(texts or (), config.lm_order), "training transcripts")


def _lexicon(
    config: DecodingConfig,
    spelling: Spelling,
    lm: NgramModel | None,
    texts: Sequence[str] | None,
    key: str,
) -> Lexicon | None:
    """The words of kind lexicon, and hot words."""
    if config.kind != "lexicon":
        if lm is not None:
            lexicon_of(lm.words, spelling, f"{key}.lm={config.lm}")
        return None
    hot = [part for phrase in config.hot_words for part in phrase.split()]
    if config.lexicon == TRAIN:
        words = sorted({word for text in texts or () for word in text.split()})
        return lexicon_of([*words, *hot], spelling, f"{key}.lexicon={TRAIN}")
    if config.lexicon is not None:
        lexicon = read_lexicon(Path(config.lexicon).expanduser(), spelling)
        return {**lexicon_of(hot, spelling, f"{key}.hot_words"), **lexicon} if hot else lexicon
    assert lm is not None
    words = [word for word in lm.words if word not in (BEGIN, END, UNKNOWN)]
    return lexicon_of([*words, *hot], spelling, f"{key}.lm={config.lm}")
