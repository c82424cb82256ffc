"""Smoothed units: exact against all sequences, raw without a penalty, fewer switches with one."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.targets.smoothing import smooth, smoothed_units


def cost_of(costs: torch.Tensor, ids: tuple[int, ...], penalty: float) -> float:
    switches = sum(a != b for a, b in pairwise(ids))
    return float(sum(costs[t, k] for t, k in enumerate(ids))) + penalty * switches


@given(
    st.integers(0, 2**31),
    st.integers(1, 6),
    st.integers(1, 3),
    st.floats(0, 3, allow_nan=False),
)
def test_no_sequence_is_better(seed: int, frames: int, clusters: int, penalty: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    costs = torch.rand(frames, clusters, generator=draw, dtype=torch.float64) * 4 - 1
    found = tuple(smooth(costs, penalty).tolist())
    best = min(cost_of(costs, ids, penalty) for ids in product(range(clusters), repeat=frames))
    assert cost_of(costs, found, penalty) == pytest.approx(best, abs=1e-12)


def test_units_are_raw_without_a_penalty_and_switch_less_with_a_larger_one() -> None:
    draw = torch.Generator().manual_seed(0)
    centroids = torch.randn(8, 5, generator=draw)
    codebook = Codebook(centroids, {"kind": "test"}, MODEL_GRID)
    states = torch.arange(8).repeat_interleave(12)
    frames = centroids[states] + 0.9 * torch.randn(96, 5, generator=draw)
    raw = codebook.assign(frames)
    switches = []
    for penalty in (0.0, 0.5, 2.0, 8.0, 1e9):
        ids = smoothed_units(codebook, frames, penalty)
        switches.append(int((ids[1:] != ids[:-1]).sum()))
        if penalty == 0:
            assert torch.equal(ids, raw)
        if penalty == 2.0:
            assert (ids == states).double().mean() > (raw == states).double().mean()
    assert switches == sorted(switches, reverse=True)
    assert switches[0] > 2 * 7  # raw units switch more often than the states
    assert switches[-1] == 0
    assert len(smoothed_units(codebook, frames[:0], 1.0)) == 0
    with pytest.raises(ConfigError, match="penalty -1: expected a number of 0 or more"):
        smooth(torch.zeros(2, 2), -1)
