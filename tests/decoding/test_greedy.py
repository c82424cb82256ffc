"""Greedy decoding."""

from __future__ import annotations

from hubert_pretrain.decoding.greedy import collapse, greedy_decode


def test_collapse_merges_repeats_before_it_removes_blanks() -> None:
    assert collapse([0, 3, 3, 0, 3, 4, 4, 0, 0]) == [3, 3, 4]
    assert collapse([0, 0]) == []


def test_greedy_follows_the_best_symbol_of_each_frame() -> None:
    import torch

    path = torch.tensor([4, 4, 0, 2, 3, 0])
    assert greedy_decode(torch.nn.functional.one_hot(path, 5).float()) == [4, 2, 3]
