"""Settings of decoding: a plain dataclass, quick to import."""

from __future__ import annotations

from dataclasses import dataclass

from hubert_pretrain.fields import choice, field, positive, zero_or_more

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
    word_score: float = 1.5
    """Added for each word; it makes up for the language model's cost of a word."""
    lm_weights: list[float] = field([])
    """Weights to choose from, with each of word_scores, by the word error rate of the valid split;
    []: lm_weight."""
    word_scores: list[float] = field([])
    """Word scores to choose from; []: word_score."""
    unknown_score: float = -2.0
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
    """Search of kind lexicon: own, or flashlight (pip install 'hubert-pretrain[decode]')."""
    workers: int = field(0, zero_or_more, science=False)
    """Processes that decode; 0: one per core for many utterances."""
