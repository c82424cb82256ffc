"""Scored utterances of one split, and their division by speaker and by length. N utterances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.evaluation.bootstrap import Bootstrap, Sampling
from hubert_pretrain.frames import seconds

LENGTHS = (0, 1, 2, 5, 10, 15, 20, 30, 60)
"""Lower ends of the lengths [s] that are scored apart."""


@dataclass(frozen=True)
class ScoredUtterances:
    """References and predictions of N utterances, in one order."""

    ids: Sequence[str]
    references: Sequence[str]
    predictions: Sequence[str]
    speakers: Sequence[str]
    """"" where the speaker is not known."""
    num_samples: NDArray[np.int64]

    def __post_init__(self) -> None:
        counts = {len(column) for column in vars(self).values()}
        if len(counts) != 1 or counts == {0}:
            raise ValueError(f"found columns of lengths {sorted(counts)}, expected one, above 0")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_speakers(self) -> int:
        """Number of known speakers."""
        return len(set(self.speakers) - {""})

    @property
    def seconds(self) -> list[float]:
        """Length of each utterance."""
        return [round(seconds(count), 3) for count in self.num_samples.tolist()]

    def by_speaker(self) -> dict[str, NDArray[np.int64]]:
        """Known speaker -> numbers of its utterances."""
        return {name: rows for name, rows in _groups(self.speakers) if name}

    def by_length(self) -> dict[str, NDArray[np.int64]]:
        """Range of lengths, such as "5-10 s" -> numbers of its utterances."""
        places = np.searchsorted(LENGTHS, seconds(self.num_samples), side="right") - 1
        found = {}
        for place in np.unique(places).tolist():
            upper = f"-{LENGTHS[place + 1]} s" if place + 1 < len(LENGTHS) else " s and more"
            found[f"{LENGTHS[place]}{upper}"] = np.flatnonzero(places == place)
        return found

    def hours(self, rows: NDArray[np.int64]) -> float:
        """Hours of some utterances."""
        return seconds(int(self.num_samples[rows].sum())) / 3600

    def bootstraps(self, sampling: Sampling) -> dict[str, Bootstrap]:
        """Unit -> draws: single utterances, and, where every speaker is known and there are
        several, speakers: recordings of one voice are not independent.
        """
        found = {"utterance": Bootstrap([str(number) for number in range(len(self))], sampling)}
        if "" not in self.speakers and self.n_speakers > 1:
            found["speaker"] = Bootstrap(self.speakers, sampling)
        return found


def _groups(names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Each name with the places where it occurs, in the order of names."""
    array = np.asarray(names, dtype=object)
    for name in sorted(set(names)):
        yield name, np.flatnonzero(array == name)
