"""Our ABX against recorded scores of zerospeech-libriabx2, the program of the ZeroSpeech challenges
and of Libri-light, on the same frames.
"""

from __future__ import annotations

import pytest

from hubert_pretrain.clustering.abx import Item, abx
from tests.parity.record_abx import random_tokens

RECORDED = {
    0: (0.15537423, 0.20401558),
    1: (0.16056056, 0.23000605),
    2: (0.20650534, 0.22867532),
}
"""(within, across) for each seed, by version 0.9.8 on Python 3.11 and torch 2.14: the output of
record_abx.py.
"""


@pytest.mark.parametrize("seed", RECORDED)
def test_equals_the_recorded_scores(seed: int) -> None:
    tokens, frames = random_tokens(seed)
    items = [
        Item(
            token.row,
            token.start,
            token.stop,
            token.phone,
            (token.before, token.after),
            token.speaker,
        )
        for token in tokens
    ]
    score = abx(
        items,
        lambda item: frames[item.row][item.start : item.stop],
        distance="angular",
        max_tokens=120,
        max_cells=100_000,
    )
    assert (score.within, score.across) == pytest.approx(RECORDED[seed], abs=1e-6)
