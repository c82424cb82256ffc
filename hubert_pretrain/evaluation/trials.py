"""Scores of speaker verification: equal error rate and detection cost of trials, with intervals by
the bootstrap. N utterances, M trials, W weightings of the trials.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.evaluation.analysis import Analysis, Table
from hubert_pretrain.evaluation.bootstrap import Floats, Ints, Sampling
from hubert_pretrain.evaluation.utterances import ScoredUtterances

TARGET_PRIOR = 0.01
"""Prior probability of a target in the detection cost (NIST, VoxCeleb)."""
HARDEST = 50
"""Trials of each kind in the table of the hardest."""


@dataclass(frozen=True)
class Trials:
    """M pairs of utterances, by their numbers, with the scores of a system."""

    first: Ints
    second: Ints
    is_target: NDArray[np.bool_]
    scores: Floats

    def __len__(self) -> int:
        return len(self.first)

    def rates(self, rows: Ints | None = None) -> tuple[float, float]:
        """Equal error rate and smallest detection cost, of all trials or of some."""
        chosen = slice(None) if rows is None else rows
        scores = self.scores[chosen]
        weights = np.ones((1, len(scores)))
        return _pair(Ranked(scores, self.is_target[chosen]).rates(weights)[0])


class Ranked:
    """Trials in the order of their scores, the highest first. A threshold lies between two
    different scores, so equal scores are accepted together.
    """

    def __init__(self, scores: Floats, is_target: NDArray[np.bool_]) -> None:
        self.order = np.argsort(-scores, kind="stable")
        self._sorted = scores[self.order]
        self._is_target = is_target[self.order]
        self._ends = np.flatnonzero(np.diff(self._sorted, append=-np.inf))

    def rates(self, weights: Floats) -> Floats:
        """Weights (W, M) of the trials -> (W, 2): equal error rate and smallest detection cost.
        NaN where a kind of trials has no weight.

        The rate lies where the line between two thresholds crosses equal errors.
        """
        accepted, missed = self._errors(weights)
        return np.stack([self._equal(accepted, missed), _cost(accepted, missed)], axis=1)

    def threshold(self) -> float:
        """The score from which on a trial is accepted where both errors are nearest."""
        accepted, missed = self._errors(np.ones((1, len(self.order))))
        place = int(np.abs(accepted - missed)[0].argmin())
        return float(self._sorted[self._ends[place - 1]]) if place else np.inf

    def _errors(self, weights: Floats) -> tuple[Floats, Floats]:
        """(W, thresholds) shares of false acceptances and of false rejections; the first threshold
        accepts nothing.
        """
        ordered = weights[:, self.order]
        shares = []
        for kind in (~self._is_target, self._is_target):
            sums = np.cumsum(ordered * kind, axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                shares.append(sums[:, self._ends] / sums[:, -1:])
        accepted, found = (np.pad(share, ((0, 0), (1, 0))) for share in shares)
        return accepted, 1.0 - found

    @staticmethod
    def _equal(accepted: Floats, missed: Floats) -> Floats:
        difference = accepted - missed  # from -1 up to 1
        after = np.argmax(difference >= 0, axis=1)
        rows = np.arange(len(difference))
        low = difference[rows, after - 1]
        high = difference[rows, after]
        with np.errstate(invalid="ignore"):
            share = -low / (high - low)
            before = accepted[rows, after - 1]
            return before + share * (accepted[rows, after] - before)


def _cost(accepted: Floats, missed: Floats) -> Floats:
    """Smallest cost over thresholds, both errors equally dear, over that of a system that decides
    without listening.
    """
    costs = TARGET_PRIOR * missed + (1.0 - TARGET_PRIOR) * accepted
    return np.asarray(costs.min(axis=1) / min(TARGET_PRIOR, 1.0 - TARGET_PRIOR))


def analyse_trials(scored: ScoredUtterances, trials: Trials, sampling: Sampling) -> Analysis:
    """Equal error rate and detection cost with intervals, the speakers, the hardest trials."""
    ranked = Ranked(trials.scores, trials.is_target)
    threshold = ranked.threshold()
    estimates = {
        unit: each.of_pairs(trials.first, trials.second, ranked.rates)
        for unit, each in scored.bootstraps(sampling).items()
    }
    wrong = (trials.scores >= threshold) != trials.is_target
    return Analysis(
        {
            name: {unit: found[place] for unit, found in estimates.items()}
            for place, name in enumerate(("eer", "min_dcf"))
        },
        sampling,
        counts={
            "trials": len(trials),
            "targets": int(trials.is_target.sum()),
            "threshold": threshold,
        },
        tables={**_by_speaker(scored, trials), "hardest trials": _hardest(scored, trials)},
        utterances=_utterances(scored, trials, wrong),
    )


def _by_speaker(scored: ScoredUtterances, trials: Trials) -> dict[str, Table]:
    """The trials of each speaker, with itself and with others; the worst first."""
    rows = []
    speakers = np.asarray(scored.speakers, dtype=object).astype(str)
    for name, of_speaker in _members(speakers, trials):
        if not name:
            continue
        targets = int(trials.is_target[of_speaker].sum())
        eer, _ = trials.rates(of_speaker)
        rows.append((name, int((speakers == name).sum()), len(of_speaker), targets, eer))
    rows.sort(key=lambda row: -np.nan_to_num(row[4], nan=-1.0))
    header = ("speaker", "utterances", "trials", "targets", "eer")
    note = "Trials with an utterance of the speaker."
    return {"by speaker": Table(header, rows, note)} if rows else {}


def _members(names: NDArray[np.str_], trials: Trials) -> Iterator[tuple[str, Ints]]:
    """Each name of an utterance, with the trials that it has a part in."""
    both = np.stack([names[trials.first], names[trials.second]], axis=1).reshape(-1)
    places = np.repeat(np.arange(len(trials)), 2)
    order = np.argsort(both, kind="stable")
    found, starts = np.unique(both[order], return_index=True)
    for name, group in zip(found, np.split(places[order], starts[1:]), strict=True):
        yield str(name), np.unique(group)


def _hardest(scored: ScoredUtterances, trials: Trials) -> Table:
    """The targets of the lowest and the others of the highest score, in turn."""
    order = np.argsort(trials.scores, kind="stable")
    kinds = trials.is_target[order]
    chosen = (order[kinds][:HARDEST], order[~kinds][::-1][:HARDEST])
    rows = [
        (
            "target" if trials.is_target[place] else "non-target",
            float(trials.scores[place]),
            scored.ids[trials.first[place]],
            scored.ids[trials.second[place]],
        )
        for pair in zip(*chosen, strict=False)
        for place in pair
    ]
    return Table(("kind", "score", "first", "second"), rows)


def _utterances(scored: ScoredUtterances, trials: Trials, wrong: NDArray[np.bool_]) -> Table:
    """Each utterance with its trials, and those that the threshold decides wrongly."""
    both = np.concatenate([trials.first, trials.second])
    counts = np.bincount(both, minlength=len(scored))
    errors = np.bincount(both, np.tile(wrong, 2), minlength=len(scored)).astype(int)
    columns = (scored.ids, scored.speakers, scored.seconds, counts.tolist(), errors.tolist())
    lines = zip(*columns, scored.references, scored.predictions, strict=True)
    header = ("id", "speaker", "seconds", "trials", "errors", "reference", "prediction")
    return Table(header, list(lines))


def _pair(values: Floats) -> tuple[float, float]:
    first, second = values.tolist()
    return first, second
