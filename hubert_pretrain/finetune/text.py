"""Vocabulary of a CTC model. U characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hubert_pretrain.decoding.spelling import BOUNDARY
from hubert_pretrain.errors import ArtefactError

BLANK = "<pad>"
"""CTC's blank, under its name in `transformers`, where the padding token is the blank."""
UNKNOWN = "<unk>"
"""Stands for a character that no training transcript has. It is never trained, so a model does not
predict it.
"""


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a CTC model. Index 0 is the blank, so a checkpoint only stores the list of
    symbols. Decoding needs no other; models from elsewhere may lack `UNKNOWN` and `BOUNDARY`.
    """

    symbols: tuple[str, ...]
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        is_blank_first = self.symbols[:1] == (BLANK,)
        is_distinct = len(set(self.symbols)) == len(self.symbols)
        if not (is_blank_first and is_distinct):
            raise ArtefactError(
                f"not a CTC vocabulary: {list(self.symbols)[:8]}...; expected distinct symbols, "
                f"{BLANK!r} first"
            )
        ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        object.__setattr__(self, "_ids", ids)

    @staticmethod
    def of_texts(texts: Iterable[str]) -> Vocabulary:
        """The vocabulary of normalised training transcripts: three special symbols, then every
        character they use, sorted.
        """
        characters = sorted(set().union(*map(set, texts)) - {" "})
        return Vocabulary((BLANK, UNKNOWN, BOUNDARY, *characters))

    def __len__(self) -> int:
        return len(self.symbols)

    def ids(self, text: str) -> list[int]:
        """A normalised transcript as U ids; a character that is not in the vocabulary becomes
        `UNKNOWN`.
        """
        lacking = [symbol for symbol in (UNKNOWN, BOUNDARY) if symbol not in self._ids]
        if lacking:
            raise ArtefactError(
                f"a vocabulary without {' and '.join(lacking)} can be decoded, not trained on"
            )
        unknown = self._ids[UNKNOWN]
        symbols = [BOUNDARY if character == " " else character for character in text]
        return [self._ids.get(symbol, unknown) for symbol in symbols]

    def text(self, ids: Sequence[int]) -> str:
        """Text of ids without blanks and repeats, as `transformers.Wav2Vec2CTCTokenizer` joins
        them.
        """
        symbols = [self.symbols[index] for index in ids]
        return "".join(" " if symbol == BOUNDARY else symbol for symbol in symbols).strip()

    def count_unknown(self, texts: Iterable[str]) -> int:
        """Number of characters of normalised transcripts that are not in the vocabulary."""
        unknown = self._ids.get(UNKNOWN, -1)
        return sum(self.ids(text).count(unknown) for text in texts)


def frames_needed(ids: Sequence[int]) -> int:
    """The fewest frames in which CTC can spell U ids: one each, and a blank between two equal
    neighbours (Graves et al. 2006, eq. 2).
    """
    return len(ids) + sum(left == right for left, right in pairwise(ids))
