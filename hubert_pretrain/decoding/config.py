"""Settings of decoding: a plain dataclass, quick to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.fields import (
    all_finite,
    choice,
    field,
    finite,
    none_negative,
    positive,
    zero_or_more,
)

KINDS = ("greedy", "beam", "lexicon")
ENGINES = ("own", "flashlight")
TRAIN = "train"
"""Language model or lexicon that comes from the training transcripts."""


@dataclass
class DecodingConfig:
    """CTC log-probabilities -> text. Log-probabilities are natural logarithms throughout."""

    kind: str = field("greedy", choice(*KINDS))
    """greedy: the best symbol of each frame; beam: prefix beam search over any words; lexicon:
    the same over the words of a lexicon."""
    lm: str | None = field(None, path=True)
    """Word n-gram model: an ARPA file (also .gz), or train: estimated from the training
    transcripts; null: none."""
    lm_order: int = field(3, positive)
    """Order of an estimated n-gram model."""
    lm_weight: float = field(0.5, zero_or_more)
    """Weight of the language model's log-probabilities."""
    word_score: float = field(1.5, finite)
    """Added for each word; it makes up for the language model's cost of a word."""
    lm_weights: list[float] = field([], none_negative)
    """Weights to choose from, with each of word_scores, by the word error rate of the valid split;
    []: lm_weight."""
    word_scores: list[float] = field([], all_finite)
    """Word scores to choose from; []: word_score."""
    unknown_score: float = field(-2.0, finite)
    """Added for each symbol of a word that the language model does not know (beam)."""
    lexicon: str | None = field(None, path=True)
    """Words of kind lexicon: a file with a word per line (a spelling in symbols may follow it), or
    train: those of the training transcripts; null: those of the language model."""
    hot_words: list[str] = field([])
    """Words that are expected, such as names: each gets hot_word_score."""
    hot_word_score: float = field(5.0, zero_or_more)
    """Added for each hot word."""
    beam_size: int = field(100, positive)
    """Prefixes that are held at each frame."""
    beam_tokens: int = field(40, positive)
    """Symbols that may extend a prefix at a frame: the most probable ones."""
    beam_threshold: float = field(25.0, positive)
    """Prefixes that are worse than the best by more than this are dropped."""
    token_threshold: float = field(12.0, positive)
    """Symbols that are less probable than the best of the frame by more than this extend no
    prefix."""
    n_best: int = field(1, positive)
    """Hypotheses of each utterance."""
    engine: str = field("own", choice(*ENGINES), science=False)
    """Search of kind lexicon: own, or flashlight (pip install flashlight-text)."""
    workers: int = field(0, zero_or_more, science=False)
    """Processes that decode; 0: one per core for many utterances."""


def check_sources(config: DecodingConfig, *, has_texts: bool, key: str = "decoding") -> None:
    """Check settings against each other, and that the files are there; reads none of them.

    Raises ConfigError as `build_decoder`.
    """
    if config.kind == "greedy":
        for name in ("lm", "lexicon", "hot_words", "lm_weights", "word_scores"):
            if value := getattr(config, name):
                raise ConfigError(
                    f"{key}.{name}={value} with {key}.kind=greedy, which uses none; set "
                    f"{key}.kind=beam or lexicon, or remove {key}.{name}"
                )
        return
    if config.kind == "beam" and config.lexicon:
        raise ConfigError(
            f"{key}.lexicon={config.lexicon} with {key}.kind=beam, which takes any word; set "
            f"{key}.kind=lexicon, or remove {key}.lexicon"
        )
    if config.kind == "lexicon" and not (config.lexicon or config.lm):
        raise ConfigError(
            f"{key}.kind=lexicon has no words: set {key}.lexicon to a file with a word per line, "
            f"or to {TRAIN}, or set {key}.lm"
        )
    if config.engine == "flashlight":
        _check_flashlight(config, key)
    if (config.lm_weights or config.word_scores) and not config.lm:
        raise ConfigError(
            f"{key}.lm_weights={config.lm_weights}, {key}.word_scores={config.word_scores}: there "
            f"is no language model to weigh; set {key}.lm"
        )
    for name in ("lm", "lexicon"):
        value = getattr(config, name)
        if value == TRAIN and not has_texts:
            raise ConfigError(
                f"{key}.{name}={TRAIN}: no training transcripts are known here; name the file of "
                "one, such as the lm.arpa of a fine-tuning"
            )
        if value not in (None, TRAIN) and not Path(value).expanduser().is_file():
            raise ConfigError(
                f"{key}.{name}={value}: there is no such file; name one, or {TRAIN} to take it "
                "from the training transcripts"
            )


def _check_flashlight(config: DecodingConfig, key: str) -> None:
    if config.kind != "lexicon":
        raise ConfigError(
            f"{key}.engine=flashlight is for {key}.kind=lexicon, found kind={config.kind}; set "
            f"{key}.engine=own"
        )
    if config.hot_words:
        raise ConfigError(
            f"{key}.hot_words={config.hot_words}: flashlight knows none; set {key}.engine=own"
        )
    import_flashlight()


def import_flashlight() -> Any:
    """Its decoders. Raises ConfigError where the package is not installed."""
    try:
        from flashlight.lib.text import decoder, dictionary
    except ImportError as error:
        raise ConfigError(
            "decoding.engine=flashlight needs flashlight-text (wheels for Python 3.10 to 3.12): "
            "pip install flashlight-text, or use decoding.engine=own"
        ) from error
    return decoder, dictionary
