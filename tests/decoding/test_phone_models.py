"""Phone models: paths against all paths, and learning from what is not labelled."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from hubert_pretrain.decoding.phone_models import (
    SILENCE_PROBABILITY,
    STATES,
    PhoneModels,
    Positions,
)
from hubert_pretrain.errors import DataError

DIM = 4
NUM_PHONES = 4


def spoken(seed: int, noise: float = 0.5) -> tuple[Tensor, Positions, list[tuple[int, int, int]]]:
    """Frames of random words, their positions, and the true segments (phone, start, stop).

    The first number of a frame is its loudness, -3 in silence.
    """
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(0, 3, (NUM_PHONES, STATES, DIM))
    centres[:, :, 0] = 1
    silence = np.array([-3.0] + [0.0] * (DIM - 1))
    words = [draw.permutation(NUM_PHONES)[:2].tolist() for _ in range(4)]
    frames = [np.tile(silence, (int(draw.integers(3, 9)), 1))]
    segments = []
    for word in words:
        for phone in word:
            start = sum(map(len, frames))
            frames += [np.tile(centre, (draw.integers(1, 6), 1)) for centre in centres[phone]]
            segments.append((phone, start, sum(map(len, frames))))
        if draw.random() < 0.4:
            frames.append(np.tile(silence, (int(draw.integers(2, 9)), 1)))
    together = np.concatenate(frames)
    together += draw.normal(0, noise, together.shape)
    return torch.from_numpy(together.astype(np.float32)), Positions.of(words), segments


def test_phones_are_found_without_any_label() -> None:
    frames, utterances, truth = zip(*map(spoken, range(40)), strict=True)
    models = PhoneModels(frames, utterances)
    scores = [models.learn(frames, utterances) for _ in range(6)]
    assert scores == sorted(scores)
    # A state lasts 1 to 5 frames, 3 on average.
    assert models.stay[1:].mean() == pytest.approx(2 / 3, abs=0.08)
    paths, _ = models.align(frames, utterances)
    near = []
    for utterance, path, segments in zip(utterances, paths, truth, strict=True):
        found = utterance.segments(path)
        assert [phone for phone, *_ in found] == [phone for phone, *_ in segments]
        edges = np.array(found)[:, 1:] - np.array(segments)[:, 1:]
        near += (abs(edges) <= 1).ravel().tolist()
    assert np.mean(near) > 0.95


def test_the_best_of_all_paths_is_found() -> None:
    """Every path of a short utterance, scored step by step."""
    frames, utterances, _ = zip(*map(spoken, range(12)), strict=True)
    models = PhoneModels(frames, utterances)
    models.learn(frames, utterances, 2)
    words = Positions.of([[0], [2]])
    few = frames[0][:9]
    likely = models.log_likelihoods(few)[:, words.states].numpy()
    stay = models.stay[words.states]
    jump_to = 1 + STATES + 1  # over the silence between the words

    def score(path: tuple[int, ...]) -> float:
        total = float(likely[0, path[0]])
        for frame, (last, place) in enumerate(pairwise(path), start=1):
            total += float(np.log(stay[last] if place == last else 1 - stay[last]))
            if place == jump_to and last == place - 2:
                total += float(np.log(1 - SILENCE_PROBABILITY))
            elif place == jump_to - 1 and last == place - 1:
                total += float(np.log(SILENCE_PROBABILITY))
            total += float(likely[frame, place])
        return total

    size = len(words.states)
    found = []
    for first, steps in product((0, 1), product((0, 1, 2), repeat=len(few) - 1)):
        path = (first, *(first + np.cumsum(steps)).tolist())
        jumps = [place for (_, place), step in zip(pairwise(path), steps, strict=True) if step == 2]
        if size - 2 <= path[-1] < size and all(place == jump_to for place in jumps):
            found.append(path)
    best = max(found, key=score)
    (path,), (mean,) = models.align([few], [words])
    assert path.tolist() == list(best)
    assert mean == pytest.approx(score(best) / len(few), rel=1e-4)


def test_utterances_do_not_change_each_other() -> None:
    frames, utterances, _ = zip(*map(spoken, range(20)), strict=True)
    models = PhoneModels(frames, utterances)
    together = models.align(frames, utterances)[0]
    for each, positions, path in zip(frames, utterances, together, strict=True):
        np.testing.assert_array_equal(models.align([each], [positions])[0][0], path)


def test_likelihoods_are_those_of_torch() -> None:
    frames, utterances, _ = zip(*map(spoken, range(20)), strict=True)
    models = PhoneModels(frames, utterances)
    models.learn(frames, utterances, 4)
    theirs = MixtureSameFamily(
        Categorical(models.weights),
        Independent(Normal(models.means, models.variances.sqrt()), 1),
    )
    expected = theirs.log_prob(frames[0][:, None])
    torch.testing.assert_close(models.log_likelihoods(frames[0]), expected, rtol=1e-4, atol=1e-3)


def test_an_utterance_that_is_too_short_is_refused() -> None:
    frames, utterances, _ = zip(*map(spoken, range(4)), strict=True)
    models = PhoneModels(frames, utterances)
    needed = utterances[0].fewest_frames
    (path,), (score,) = models.align([frames[0][:needed]], [utterances[0]])
    assert utterances[0].states[path].tolist() == [each for each in utterances[0].states if each]
    assert score > -1e6
    with pytest.raises(DataError, match=f"of {needed - 1} frames has {needed} states of phones"):
        models.align([frames[0][: needed - 1]], [utterances[0]])
