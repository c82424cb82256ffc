"""Frame-wise letter scores -> letters. T frames, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BLANK_ID = 0
"""The blank's place in every vocabulary of this project."""


def greedy(logits: Tensor) -> list[int]:
    """The ids of the best path through ``logits`` (T, V), repeats merged and blanks removed."""
    return collapse(logits.argmax(dim=-1).tolist())


def collapse(path: Sequence[int]) -> list[int]:
    """What a path of T symbols spells: equal neighbours are one symbol, blanks are none (Graves et al. 2006, section 3.1)."""
    return [symbol for symbol, _ in groupby(path) if symbol != BLANK_ID]
