"""Subwords by byte-pair encoding (Sennrich et al. 2016) through `tokenizers`: pieces of words, the
first of each word with `PIECE_MARK`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hubert_pretrain.decoding.spelling import PIECE_MARK
from hubert_pretrain.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Merges = Sequence[Sequence[str]]
"""Pairs of pieces that become one, in the order in which they are joined."""


def train_pieces(
    texts: Sequence[str], size: int, special: Sequence[str], key: str
) -> tuple[list[str], list[list[str]]]:
    """Symbols and merges of texts whose words have single spaces between them. All characters of
    the texts are symbols. The same for the same texts in any order.

    Args:
        size: symbols, `special` ones included; there are fewer where the texts have no more pairs.
        special: symbols that no text contains, which come first, the unknown one last.
        key: of the size, for messages.

    Raises ConfigError for a size that does not hold all characters.
    """
    from tokenizers.trainers import BpeTrainer

    characters = set().union(*map(set, texts)) - {" "} | {PIECE_MARK}
    least = len(special) + len(characters)
    if size < least:
        raise ConfigError(
            f"{key}={size}: the training transcripts have {len(characters) - 1} characters, so "
            f"at least {least} symbols are needed, and more for pieces of words; raise it"
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers are forked later
    tokenizer = bpe_tokenizer([*special], [], special[-1])
    trainer = BpeTrainer(vocab_size=size, special_tokens=[*special], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    symbols = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return symbols, [list(pair) for pair in model["merges"]]


def bpe_tokenizer(symbols: Sequence[str], merges: Merges, unknown: str) -> Tokenizer:
    """The tokenizer with these symbols, numbered in their order. It reads a text as words with
    spaces between them; a character that is no symbol becomes `unknown`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    numbers = {symbol: number for number, symbol in enumerate(symbols)}
    pairs = [(first, second) for first, second in merges]
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=pairs, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(PIECE_MARK, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(PIECE_MARK, prepend_scheme="always")
    return tokenizer


def misfits(symbols: Iterable[str], merges: Merges) -> list[str]:
    """Pieces that merges name and symbols lack."""
    known = set(symbols)
    return [
        piece
        for first, second in merges
        for piece in (first, second, first + second)
        if piece not in known
    ]
