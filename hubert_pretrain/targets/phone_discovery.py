"""Units as phones: what a mapping from units to phones makes of an utterance, against its phones.

The measures of the DiscoPhon benchmark (arXiv 2603.18612): PNMI, phone error rate, and precision,
recall, F1 and R-value of the boundaries, for two mappings. Phones are sampled every 10 ms and units
are repeated to that step, as there.

Letters: T units, T' phones of 10 ms, K units, P phones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.clustering.quality import count_pairs, phone_quality, run_lengths
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE, FrameGrid
from hubert_pretrain.targets.segments import BoundaryScores, boundaries, phone_error_rate

PHONE_HOP = SAMPLE_RATE // 100
PHONE_GRID = FrameGrid(window=PHONE_HOP, hop=PHONE_HOP)
"""Every 10 ms."""
TOLERANCE = 2
"""Steps of 10 ms by which a boundary may miss."""


@dataclass(frozen=True)
class Mapped:
    """Scores of the units when each of them stands for a phone."""

    phone_error_rate: float
    precision: float
    """Share of the boundaries found that are boundaries of phones."""
    recall: float
    """Share of the boundaries of phones that are found."""
    f1: float
    r_value: float


@dataclass(frozen=True)
class UnitScores:
    """Scores of units against phones."""

    pnmi: float | None
    """None with a single phone."""
    phone_purity: float | None
    cluster_purity: float | None
    many_to_one: Mapped
    """Each unit stands for the phone that it occurs with most often."""
    one_to_one: Mapped
    """Each phone has one unit, so that most frames are right; further units stand for no phone."""
    mean_run_ms: float
    """Of a unit."""
    mean_phone_ms: float

    def table(self) -> dict[str, Any]:
        """The scores as plain JSON."""
        return asdict(self)


def score_units(
    units: Sequence[NDArray[np.integer]],
    phones: Sequence[NDArray[np.integer]],
    *,
    n_units: int,
    n_phones: int,
    repeat: int = 2,
) -> UnitScores:
    """Scores over utterances.

    Args:
        units: (T,) of each utterance.
        phones: (T',) every 10 ms, -1 where none is known: those steps do not count.
        n_units: K.
        n_phones: P.
        repeat: phones per unit: 2 for units of 20 ms.

    Raises:
        DataError: no step has a phone.
    """
    pairs = [_aligned(*pair, repeat) for pair in zip(units, phones, strict=True)]
    of_units = [pair[0] for pair in pairs]
    of_phones = [pair[1] for pair in pairs]
    joint = np.zeros((n_units, n_phones), dtype=np.int64)
    for ids, numbers in pairs:
        joint += count_pairs(ids, numbers, n_units, n_phones)
    if not joint.sum():
        raise DataError(
            f"{len(units)} utterances of units have no phone to compare with; name a corpus with "
            "phone alignments (data.alignments), and units of its utterances"
        )
    quality = phone_quality(joint)
    return UnitScores(
        pnmi=quality.pnmi,
        phone_purity=quality.phone_purity,
        cluster_purity=quality.cluster_purity,
        many_to_one=_mapped(of_units, of_phones, many_to_one(joint)),
        one_to_one=_mapped(of_units, of_phones, one_to_one(joint)),
        mean_run_ms=_mean_run_ms(of_units),
        mean_phone_ms=_mean_run_ms(of_phones),
    )


def phones_of(corpus: Corpus, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int32]]:
    """The phones of aligned rows every 10 ms."""
    assert corpus.alignments is not None
    for row in rows.tolist():
        count = int(PHONE_GRID.num_frames(corpus.manifest.number("num_samples", row)))
        yield corpus.alignments.frame_phone_ids(row, count, PHONE_GRID)


# -- mappings


def many_to_one(joint: NDArray[np.int64]) -> NDArray[np.int64]:
    """Phone of each unit (K,), from joint counts (K, P): the one that it occurs with most often."""
    return joint.argmax(axis=1)


def one_to_one(joint: NDArray[np.int64]) -> NDArray[np.int64]:
    """Phone of each unit (K,), from joint counts (K, P): at most one unit for each phone, so that
    as many frames as possible are right. A unit without a phone has a number of its own from P on.
    """
    from scipy.optimize import linear_sum_assignment

    n_units, n_phones = joint.shape
    phone_of_unit = n_phones + np.arange(n_units)
    of_units, of_phones = linear_sum_assignment(joint, maximize=True)
    phone_of_unit[of_units] = of_phones
    return phone_of_unit


# -- boundaries


def found(
    detected: NDArray[np.int64], reference: NDArray[np.int64], tolerance: int = TOLERANCE
) -> int:
    """Boundaries of the reference that have a detected one in their region, which ends at the
    tolerance or half way to the next boundary (Räsänen et al. 2009, section 2.3). Both ascending.
    """
    first = reference - tolerance
    last = reference + tolerance
    middle = (reference[:-1] + reference[1:]) // 2
    last[:-1] = np.minimum(last[:-1], middle)
    first[1:] = np.maximum(first[1:], middle + 1)
    before = np.searchsorted(detected, first, side="left")
    after = np.searchsorted(detected, last, side="right")
    return int(np.count_nonzero(after > before))


def _mapped(
    units: Sequence[NDArray[np.int64]],
    phones: Sequence[NDArray[np.int64]],
    phone_of_unit: NDArray[np.int64],
) -> Mapped:
    hits = 0
    num_detected = 0
    num_reference = 0
    for of_units, of_phones in zip(units, phones, strict=True):
        detected = boundaries(phone_of_unit[of_units])
        reference = boundaries(of_phones)
        hits += found(detected, reference)
        num_detected += len(detected)
        num_reference += len(reference)
    scores = BoundaryScores(hits / max(1, num_detected), hits / max(1, num_reference))
    return Mapped(
        phone_error_rate=phone_error_rate(units, phones, phone_of_unit),
        precision=scores.precision,
        recall=scores.recall,
        f1=scores.f1,
        r_value=scores.r_value,
    )


def _aligned(
    units: NDArray[np.integer], phones: NDArray[np.integer], repeat: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Units and phones of the same steps, those that have a phone."""
    repeated = np.repeat(np.asarray(units, dtype=np.int64), repeat)
    length = min(len(repeated), len(phones))
    known = np.asarray(phones[:length]) >= 0
    return repeated[:length][known], np.asarray(phones[:length], dtype=np.int64)[known]


def _mean_run_ms(ids: Sequence[NDArray[np.int64]]) -> float:
    lengths = np.concatenate([run_lengths(each)[1] for each in ids])
    return 10.0 * float(lengths.mean()) if len(lengths) else 0.0
