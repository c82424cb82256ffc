"""Scores of labels of frames: frame accuracy, phone error rate, a row per phone, confusions. N
utterances, T frames, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.evaluation.analysis import Analysis, Table, groups
from hubert_pretrain.evaluation.bootstrap import Sampling, ratio
from hubert_pretrain.evaluation.classes import table_by_class
from hubert_pretrain.evaluation.texts import (
    MOST_CONFUSIONS,
    confusions,
    count_errors,
    worst_utterances,
)
from hubert_pretrain.evaluation.utterances import ScoredUtterances

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LabelledFrames:
    """The classes of the frames of an utterance, (T,) each; below 0 where there is no label."""

    truth: Ints
    guess: Ints

    @property
    def counts(self) -> tuple[int, int]:
        """Right frames, labelled frames."""
        return int((self.truth == self.guess).sum()), int((self.truth >= 0).sum())


def analyse_frames(
    scored: ScoredUtterances,
    frames: Sequence[LabelledFrames],
    classes: Sequence[str],
    sampling: Sampling,
) -> Analysis:
    """Frame accuracy and phone error rate with intervals, and what is taken for what.

    Args:
        scored: with the phones of each utterance as words.
        frames: of each utterance.
        classes: their names.
    """
    hits = np.array([each.counts for each in frames], dtype=np.int64)
    phones = count_errors(scored.references, scored.predictions, "words")
    bootstraps = scored.bootstraps(sampling)
    joint = _joint(frames, len(classes))
    columns = zip(
        scored.ids,
        scored.speakers,
        scored.seconds,
        hits[:, 1].tolist(),
        _shares(hits),
        phones.counts[:, 3].tolist(),
        [phones.rate([row]) for row in range(len(scored))],
        scored.references,
        scored.predictions,
        strict=True,
    )
    return Analysis(
        {
            "frame_accuracy": {
                unit: each.of_sums(hits, ratio) for unit, each in bootstraps.items()
            },
            "per": {unit: each.of_sums(phones.ratios, ratio) for unit, each in bootstraps.items()},
        },
        sampling,
        counts={
            "phones": phones.totals(),
            "labelled_frames": int(hits[:, 1].sum()),
            "right_frames": int(hits[:, 0].sum()),
        },
        tables={
            "by class": table_by_class(
                list(classes), np.concatenate([np.diag(joint), joint.sum(1), joint.sum(0)])[None]
            ),
            "confused frames": _confused(joint, classes),
            **confusions(phones, "phones"),
            **groups(
                scored,
                {"frame_accuracy": lambda rows: _shares(hits[rows].sum(0)[None])[0]}
                | {"per": phones.rate},
                higher_is_better=True,
            ),
            "worst utterances": worst_utterances(scored, phones, "phones"),
        },
        utterances=Table(
            (
                "id",
                "speaker",
                "seconds",
                "frames",
                "frame_accuracy",
                "phones",
                "per",
                "reference",
                "prediction",
            ),
            list(columns),
        ),
        transcripts=True,
    )


def _joint(frames: Sequence[LabelledFrames], n_classes: int) -> NDArray[np.float64]:
    """(K, K) counts of labelled frames: a row per class of the references."""
    joint = np.zeros((n_classes, n_classes))
    for each in frames:
        labelled = each.truth >= 0
        np.add.at(joint, (each.truth[labelled], each.guess[labelled]), 1)
    return joint


def _confused(joint: NDArray[np.float64], classes: Sequence[str]) -> Table:
    wrong = joint - np.diag(np.diag(joint))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    rows = [
        (classes[truth], classes[guess], int(wrong[truth, guess]))
        for truth, guess in pairs
        if wrong[truth, guess]
    ]
    return Table(("reference", "prediction", "frames"), rows)


def _shares(hits: Ints) -> list[float]:
    """The first count over the second."""
    return [right / max(1, labelled) for right, labelled in hits.tolist()]
