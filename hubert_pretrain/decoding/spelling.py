"""Symbols of a CTC model and the words that they spell. U symbols, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

BLANK_ID = 0
"""The blank's place in every vocabulary of this project."""
BOUNDARY = "|"
"""The gap between two words."""
PIECE_MARK = "\u2581"
"""Begins the first piece of a word in vocabularies of subwords (sentencepiece)."""
WITHIN, STARTS, SEPARATES = range(3)
"""Places of a symbol: goes on with a word, begins one, stands between two."""


class Spelling:
    """The way in which symbols make words.

    A vocabulary with `BOUNDARY` has characters; one with symbols that begin with `PIECE_MARK` has
    subwords. In any other each symbol is a word, such as a phone.
    """

    def __init__(
        self, symbols: Sequence[str], spell: Callable[[str], list[int] | None] | None = None
    ) -> None:
        """
        Args:
            symbols: of the model's V outputs, the blank first.
            spell: the spelling of a word that the model has learnt; None: see `ids`.
        """
        self.symbols = tuple(symbols)
        self._spell = spell
        self.boundary = self.symbols.index(BOUNDARY) if BOUNDARY in self.symbols else None
        self.has_pieces = any(symbol.startswith(PIECE_MARK) for symbol in self.symbols)
        self.unit = self._unit()
        """Name of what a symbol is, for messages."""

    def __len__(self) -> int:
        return len(self.symbols)

    def _unit(self) -> str:
        if self.boundary is not None:
            return "characters"
        return "pieces" if self.has_pieces else "symbols"

    @cached_property
    def places(self) -> NDArray[np.int8]:
        """(V,) WITHIN, STARTS or SEPARATES."""
        if self.boundary is not None:
            places = np.full(len(self), WITHIN, np.int8)
            places[self.boundary] = SEPARATES
            return places
        starts = [symbol.startswith(PIECE_MARK) or not self.has_pieces for symbol in self.symbols]
        return np.where(starts, STARTS, WITHIN).astype(np.int8)

    def words(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """The words of U ids: (text, place of the first symbol, place after the last)."""
        found: list[tuple[str, int, int]] = []
        text = ""
        first = 0
        for place, index in enumerate(ids):
            if text and self.places[index] != WITHIN:
                found.append((text, first, place))
                text = ""
            symbol = self.symbols[index].removeprefix(PIECE_MARK if self.has_pieces else "")
            if self.places[index] != SEPARATES:
                first = first if text else place
                text += symbol
        if text:
            found.append((text, first, len(ids)))
        return found

    def text(self, ids: Sequence[int]) -> str:
        """The words of U ids with single spaces between them."""
        return " ".join(word for word, _, _ in self.words(ids))

    def ids(self, word: str) -> list[int] | None:
        """The symbols that spell a word: one for each character, or the longest pieces. None where
        the vocabulary cannot spell it.
        """
        if self._spell is not None:
            return self._spell(word)
        if self.unit == "symbols":
            return [self._ids[word]] if word in self._ids else None
        rest = PIECE_MARK + word if self.has_pieces else word
        found = []
        while rest:
            lengths = range(min(len(rest), self._longest), 0, -1)
            length = next((n for n in lengths if rest[:n] in self._ids), 0)
            if not length:
                return None
            found.append(self._ids[rest[:length]])
            rest = rest[length:]
        return found

    @cached_property
    def _ids(self) -> dict[str, int]:
        special = {BLANK_ID, self.boundary}
        return {symbol: index for index, symbol in enumerate(self.symbols) if index not in special}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.symbols)) if self.has_pieces else 1
