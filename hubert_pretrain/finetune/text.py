"""Vocabulary, text normalisation and greedy CTC decoding."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from hubert_pretrain.errors import ArtefactError

BLANK = "<pad>"
"""CTC's blank. It is called as `transformers` calls it, where the padding token is the blank."""
UNKNOWN = "<unk>"
"""Stands for a character that no training transcript has. It is never trained, so a model does not
say it.
"""
BOUNDARY = "|"
"""The gap between two words."""

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'", "\uff07": "'"})


def normalise(text: str) -> str:
    """Upper-case words with single spaces between them: letters, marks, digits and ' stay,
    everything else separates words.

    >>> normalise("Don\u2019t  stop -- now!")
    "DON'T STOP NOW"
    """
    text = unicodedata.normalize("NFC", text.translate(_APOSTROPHES)).upper()
    kept = (
        letter if letter == "'" or unicodedata.category(letter)[0] in "LMN" else " "
        for letter in text
    )
    return " ".join("".join(kept).split())


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a letter model. Index 0 is the blank, so a list of symbols is all that a
    checkpoint needs to keep.
    """

    symbols: tuple[str, ...]
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (
            self.symbols[:1] != (BLANK,)
            or not {UNKNOWN, BOUNDARY} <= set(self.symbols)
            or len(set(self.symbols)) < len(self.symbols)
        ):
            raise ArtefactError(
                f"not a CTC vocabulary: {list(self.symbols)[:8]}...; expected distinct symbols, {BLANK!r} first, "
                f"and among them {UNKNOWN!r} and {BOUNDARY!r}"
            )
        object.__setattr__(
            self, "_ids", {symbol: index for index, symbol in enumerate(self.symbols)}
        )

    @staticmethod
    def of_texts(texts: Iterable[str]) -> Vocabulary:
        """The vocabulary of normalised training transcripts: three special symbols, then every
        letter they use, sorted.
        """
        letters = sorted(set().union(*map(set, texts)) - {" "})
        return Vocabulary((BLANK, UNKNOWN, BOUNDARY, *letters))

    def __len__(self) -> int:
        return len(self.symbols)

    def ids(self, text: str) -> list[int]:
        """A normalised transcript as U ids; a character that is not in the vocabulary becomes
        `UNKNOWN`.
        """
        unknown = self._ids[UNKNOWN]
        return [self._ids.get(BOUNDARY if letter == " " else letter, unknown) for letter in text]

    def text(self, ids: Sequence[int]) -> str:
        """Ids without blanks and repeats as text: `transformers.Wav2Vec2CTCTokenizer` joins them in
        the same way.
        """
        return "".join(
            " " if symbol == BOUNDARY else symbol for symbol in map(self.symbols.__getitem__, ids)
        ).strip()

    def count_unknown(self, texts: Iterable[str]) -> int:
        """How many characters of normalised transcripts are not in the vocabulary."""
        unknown = self._ids[UNKNOWN]
        return sum(self.ids(text).count(unknown) for text in texts)


def frames_needed(ids: Sequence[int]) -> int:
    """The fewest frames in which CTC can spell U ids: one each, and a blank between two equal
    neighbours (Graves et al. 2006, eq. 2).
    """
    return len(ids) + sum(left == right for left, right in pairwise(ids))


if TYPE_CHECKING:
    from torch import Tensor

BLANK_ID = 0
"""The blank's place in every vocabulary of this project."""


def greedy_decode(logits: Tensor) -> list[int]:
    """The ids of the best path through ``logits`` (T, V), repeats merged and blanks removed."""
    return collapse(logits.argmax(dim=-1).tolist())


def collapse(path: Sequence[int]) -> list[int]:
    """What a path of T symbols spells: equal neighbours are one symbol, blanks are none (Graves et
    al. 2006, section 3.1).
    """
    return [symbol for symbol, _ in groupby(path) if symbol != BLANK_ID]
