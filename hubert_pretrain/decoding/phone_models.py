"""Hidden Markov models of phones that learn the times of phones from speech and its phones alone.

T frames, D width of a frame, N states of the models, M Gaussians of a state, S positions of an
utterance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.errors import DataError

STATES = 3
"""Of a phone: none is shorter than so many frames."""
FRAMES_PER_GAUSSIAN = 40
"""A Gaussian with fewer frames keeps its mean."""
VARIANCE_FLOOR = 0.05
"""Smallest variance of a state, as a share of that of all frames."""
QUIET_SHARE = 0.15
"""Of the frames of an utterance, silence in the first division."""
SILENCE_PROBABILITY = 0.2
"""Of a pause between two words."""
BATCH = 16
"""Utterances aligned side by side."""
NEVER = -1e30
"""Log-probability of what cannot be."""

Path = NDArray[np.int64]


@dataclass(frozen=True)
class Positions:
    """The states that an utterance passes: silence, then the states of the phones of each word and
    a silence. A silence may be left out.
    """

    states: NDArray[np.int64]
    """(S,) state of the models. 0 is silence; phone p has 1 + STATES * p and those after it."""
    begins: NDArray[np.bool_]
    """(S,) True where a phone or a silence begins."""
    words: NDArray[np.int64]
    """(W,) position of the first state of each word; the silence is before it."""

    @staticmethod
    def of(words: Sequence[Sequence[int]]) -> Positions:
        """From the numbers of the phones of each word."""
        states = [0]
        begins = [True]
        firsts = []
        for word in words:
            firsts.append(len(states))
            for phone in word:
                first = 1 + STATES * phone
                states += range(first, first + STATES)
                begins += [True] + [False] * (STATES - 1)
            states.append(0)
            begins.append(True)
        return Positions(np.array(states), np.array(begins), np.array(firsts, dtype=np.int64))

    @property
    def fewest_frames(self) -> int:
        """Of an utterance without any silence."""
        return int(np.count_nonzero(self.states))

    def segments(self, path: Path) -> list[tuple[int, int, int]]:
        """(phone, first frame, frame after its last) along a path (T,) of positions."""
        numbers = np.cumsum(self.begins)[path]
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(path)]
        found = []
        for start, stop in pairwise(edges):
            state = int(self.states[path[start]])
            if state:
                found.append(((state - 1) // STATES, start, stop))
        return found


class PhoneModels:
    """A mixture of Gaussians with diagonal variances for each state."""

    def __init__(self, frames: Sequence[Tensor], utterances: Sequence[Positions]) -> None:
        """Learnt from even divisions: the quietest frames are silence, and the others are divided
        evenly among the states of the utterance.

        Args:
            frames: (T, D) of each utterance; the first of the D numbers grows with loudness.
            utterances: their positions.
        """
        together = torch.cat(list(frames))
        variance = together.var(0)
        num_states = 1 + max(int(each.states.max()) for each in utterances)
        self.floor = VARIANCE_FLOOR * variance  # (D,)
        self.means = together.mean(0).expand(num_states, 1, -1).clone()  # (N, M, D)
        self.variances = variance.expand(num_states, 1, -1).clone()  # (N, M, D)
        self.weights = torch.ones(num_states, 1)  # (N, M)
        self.stay = np.full(num_states, 0.5, np.float32)  # (N,) the next frame is in the same state
        self._maximise(
            frames, [even_states(*each) for each in zip(frames, utterances, strict=True)]
        )

    def learn(
        self, frames: Sequence[Tensor], utterances: Sequence[Positions], num_gaussians: int = 1
    ) -> float:
        """One round: the most likely paths, then the states from their frames, with at least so
        many Gaussians. Returns the log-likelihood of a frame before it.
        """
        paths, scores = self.align(frames, utterances)
        while self.weights.shape[1] < num_gaussians:
            self._split()
        states = [each.states[path] for each, path in zip(utterances, paths, strict=True)]
        self._maximise(frames, states)
        return float(np.average(scores, weights=[len(each) for each in frames]))

    def align(
        self, frames: Sequence[Tensor], utterances: Sequence[Positions]
    ) -> tuple[list[Path], list[float]]:
        """The most likely path (T,) of each utterance, and the log-likelihood of its frames.

        Raises DataError for an utterance with fewer frames than states.
        """
        paths: list[Path] = [np.zeros(0, np.int64)] * len(frames)
        scores = [0.0] * len(frames)
        order = sorted(range(len(frames)), key=lambda row: len(frames[row]))
        for first in range(0, len(order), BATCH):
            rows = order[first : first + BATCH]
            found = self._align([frames[row] for row in rows], [utterances[row] for row in rows])
            for row, (path, score) in zip(rows, found, strict=True):
                paths[row] = path
                scores[row] = score
        return paths, scores

    def log_likelihoods(self, frames: Tensor) -> Tensor:
        """Of frames (T, D) in each state: (T, N)."""
        each = gaussians(frames, self.means.flatten(0, 1), self.variances.flatten(0, 1))
        return (each.view(len(frames), *self.weights.shape) + self.weights.log()).logsumexp(2)

    def _split(self) -> None:
        step = 0.2 * self.variances.sqrt()
        self.means = torch.cat([self.means - step, self.means + step], 1)
        self.variances = torch.cat([self.variances, self.variances], 1)
        self.weights = torch.cat([self.weights, self.weights], 1) / 2

    def _maximise(self, frames: Sequence[Tensor], states: Sequence[NDArray[np.int64]]) -> None:
        """One step of expectation and maximisation within each state."""
        together = torch.cat(list(frames))
        of_frames = np.concatenate(list(states))
        order = np.argsort(of_frames, kind="stable")
        counts = np.bincount(of_frames, minlength=len(self.means))
        for state, rows in enumerate(np.split(order, np.cumsum(counts)[:-1])):
            if len(rows) > STATES:
                self._maximise_state(state, together[torch.from_numpy(rows)])
        leaves = np.zeros(len(counts))
        for each in states:
            leaves += np.bincount(each[np.flatnonzero(np.diff(each))], minlength=len(counts))
        self.stay = np.clip(1 - (leaves + 1) / (counts + 3), 0.1, 0.98).astype(np.float32)

    def _maximise_state(self, state: int, frames: Tensor) -> None:
        each = gaussians(frames, self.means[state], self.variances[state])
        shares = (each + self.weights[state].log()).softmax(1)  # (T, M)
        total = shares.sum(0)
        enough = total > (FRAMES_PER_GAUSSIAN if len(total) > 1 else 0)
        mean = shares.T @ frames / total[:, None]
        variance = shares.T @ frames.square() / total[:, None] - mean.square()
        self.means[state, enough] = mean[enough]
        self.variances[state, enough] = variance.maximum(self.floor)[enough]
        self.weights[state] = total.clamp(min=1e-3) / total.clamp(min=1e-3).sum()

    def _align(
        self, frames: Sequence[Tensor], utterances: Sequence[Positions]
    ) -> list[tuple[Path, float]]:
        """Of a few utterances of similar lengths."""
        longest = max(map(len, frames))
        shape = (len(frames), max(len(each.states) for each in utterances))  # (B, S)
        emitted = np.full((longest, *shape), NEVER, np.float32)
        loops = np.zeros(shape, np.float32)
        steps = np.full(shape, NEVER, np.float32)
        jumps = np.full(shape, NEVER, np.float32)  # over a silence
        best = np.full(shape, NEVER, np.float32)
        for row, (each, utterance) in enumerate(zip(frames, utterances, strict=True)):
            if len(each) < utterance.fewest_frames:
                raise DataError(
                    f"an utterance of {len(each)} frames has {utterance.fewest_frames} states of "
                    "phones; check that its transcript belongs to its audio"
                )
            width = len(utterance.states)
            likely = self.log_likelihoods(each).numpy()
            emitted[: len(each), row, :width] = likely[:, utterance.states]
            stay = self.stay[utterance.states]
            leave = np.log1p(-stay)
            loops[row, :width] = np.log(stay)
            steps[row, 1:width] = leave[:-1]
            later = utterance.words[1:]
            jumps[row, later] = leave[later - 2] + np.log(1 - SILENCE_PROBABILITY)
            steps[row, later - 1] += np.log(SILENCE_PROBABILITY)
            best[row, :2] = emitted[0, row, :2]  # with and without silence before the first word
        came = np.zeros((longest, *shape), np.int8)
        ends = [(0, 0.0)] * len(frames)
        for frame in range(longest):
            if frame:
                stayed = best + loops
                moved = np.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=NEVER) + steps
                jumped = np.pad(best[:, :-2], ((0, 0), (2, 0)), constant_values=NEVER) + jumps
                came[frame] = np.where(jumped > np.maximum(stayed, moved), 2, moved > stayed)
                best = np.maximum(np.maximum(stayed, moved), jumped) + emitted[frame]
            for row, each in enumerate(frames):
                if len(each) == frame + 1:
                    width = len(utterances[row].states)
                    last = width - 2 + int(best[row, width - 2 : width].argmax())
                    ends[row] = (last, float(best[row, last]) / len(each))
        return [
            (backwards(came[: len(each), row], last), score)
            for row, (each, (last, score)) in enumerate(zip(frames, ends, strict=True))
        ]


def even_states(frames: Tensor, utterance: Positions) -> NDArray[np.int64]:
    """The first division of an utterance: states (T,)."""
    loudness = frames[:, 0]
    loud = np.flatnonzero((loudness >= torch.quantile(loudness, QUIET_SHARE)).numpy())
    of_phones = utterance.states[utterance.states > 0]
    states = np.zeros(len(frames), np.int64)
    states[loud] = of_phones[np.arange(len(loud)) * len(of_phones) // len(loud)]
    return states


def gaussians(frames: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """Log-densities (T, K) of frames (T, D) for K Gaussians."""
    precision = 1 / variances
    constant = variances.log().sum(1) + (means.square() * precision).sum(1)
    constant = constant + frames.shape[1] * math.log(2 * math.pi)
    return frames @ (means * precision).T - 0.5 * (frames.square() @ precision.T + constant)


def backwards(came: NDArray[np.int8], last: int) -> Path:
    """The path (T,) that ends at a position; `came` (T, S) has the step to each position."""
    path = np.zeros(len(came), np.int64)
    for frame in range(len(came) - 1, -1, -1):
        path[frame] = last
        last -= int(came[frame, last])
    return path
