"""How good cluster ids are as targets: against phones (HuBERT paper section 4.3) and speakers,
against other ids, and in themselves.

Every measure is a function of counts, so frames can be counted in any order, on any number of
processes, and counts added up. K clusters, P phones, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTHS = 12.0
"""Standard deviations of a count that `expected_information` looks at."""


@dataclass(frozen=True)
class PhoneQuality:
    """How much cluster ids say about phones. None where there is nothing to measure (no frames; for
    `pnmi`, a single phone).
    """

    phone_purity: float | None
    """E_z[max_y p(y|z)]: accuracy of guessing the phone from the cluster."""
    cluster_purity: float | None
    """E_y[max_z p(z|y)]: accuracy of guessing the cluster from the phone. Falls as K grows."""
    pnmi: float | None
    """I(y; z) / H(y): share of the uncertainty about the phone that the cluster removes."""
    frames: int
    """Frames that were counted."""


def count_pairs(
    ids: NDArray[np.integer], phones: NDArray[np.integer], n_clusters: int, n_phones: int
) -> NDArray[np.int64]:
    """Joint counts (K, P) of cluster ids (T,) and phone numbers (T,); frames with a negative phone
    (none is aligned) are left out.
    """
    spoken = phones >= 0
    pairs = ids[spoken].astype(np.int64) * n_phones + phones[spoken]
    return np.bincount(pairs, minlength=n_clusters * n_phones).reshape(n_clusters, n_phones)


def phone_quality(joint: NDArray[np.int64]) -> PhoneQuality:
    """The paper's three measures from joint counts (K, P)."""
    total = int(joint.sum())
    if total == 0:
        return PhoneQuality(None, None, None, 0)
    phone_entropy = entropy(joint.sum(axis=0))
    information = phone_entropy + entropy(joint.sum(axis=1)) - entropy(joint)
    return PhoneQuality(
        phone_purity=float(joint.max(axis=1).sum() / total),
        cluster_purity=float(joint.max(axis=0).sum() / total),
        # Rounding can leave -1e-16 where the cluster says nothing.
        pnmi=max(0.0, information / phone_entropy) if phone_entropy > 0 else None,
        frames=total,
    )


def entropy(counts: NDArray[np.integer]) -> float:
    """Entropy in nats of the distribution that counts (of any shape) estimate; 0.0 for no
    counts.
    """
    positive = counts[counts > 0].astype(np.float64)
    probabilities = positive / positive.sum()
    return float(-(probabilities * np.log(probabilities)).sum()) + 0.0


def perplexity(counts: NDArray[np.integer]) -> float:
    """exp(entropy): how many equally frequent clusters would be as uncertain. K when all are used
    equally.
    """
    return float(np.exp(entropy(counts)))


def run_lengths(ids: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the runs of equal ids (T,), or of equal rows of ids (T, N), begin, and how many frames
    each has: (R,) and (R,).
    """
    changed = ids[1:] != ids[:-1] if ids.ndim == 1 else (ids[1:] != ids[:-1]).any(axis=1)
    starts = np.concatenate(
        [np.zeros(min(1, len(ids)), dtype=np.int64), np.flatnonzero(changed) + 1]
    )
    return starts, np.diff(np.append(starts, len(ids)))


def adjusted_mutual_information(joint: NDArray[np.int64]) -> float:
    """Agreement of two clusterings from joint counts (X, Y): 1 when they are the same but for the
    numbers, about 0 for unrelated ones.

    (I - E) / ((H(x) + H(y)) / 2 - E), with E the information that two random clusterings of these
    sizes have (Vinh et al. 2010, eq. 24a), which plain mutual information rewards more the more
    clusters there are. Equal to scikit-learn's, from counts instead of labels.
    """
    rows = joint.sum(axis=1)
    columns = joint.sum(axis=0)
    rows = rows[rows > 0]
    columns = columns[columns > 0]
    if len(rows) == len(columns) == np.count_nonzero(joint):
        return 1.0  # the same but for the numbers, also where there is nothing to be measured
    entropies = entropy(rows), entropy(columns)
    information = sum(entropies) - entropy(joint)
    expected = expected_information(rows, columns)
    span = sum(entropies) / 2 - expected
    tiny = float(np.finfo(np.float64).eps)
    return (information - expected) / (min(span, -tiny) if span < 0 else max(span, tiny))


def expected_information(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> float:
    """Mean mutual information, in nats, of two random clusterings with these sizes (X,) and (Y,),
    each with the same sum.

    The count of each pair is hypergeometric. Terms further than WIDTHS standard deviations from its
    mean are left out: they are below 1e-20, and without them 500 x 500 clusters of a million frames
    take seconds, not minutes.
    """
    from scipy.special import gammaln

    total = int(rows.sum())
    expected = 0.0
    for size in rows.tolist():
        mean = size * columns / total
        spread = WIDTHS * (np.sqrt(mean) + 1)
        low = np.maximum(np.maximum(1, size + columns - total), np.floor(mean - spread)).astype(
            np.int64
        )
        high = np.minimum(np.minimum(size, columns), np.ceil(mean + spread)).astype(np.int64)
        counts = low[:, None] + np.arange(int((high - low).max(initial=-1)) + 1)  # (Y, terms)
        inside = counts <= high[:, None]
        n = np.where(inside, counts, 1)
        other = np.broadcast_to(columns[:, None], counts.shape)
        rest = np.where(inside, total - size - other + n, 0)
        log_probability = (
            gammaln(size + 1)
            + gammaln(other + 1)
            + gammaln(total - size + 1)
            + gammaln(total - other + 1)
        )
        log_probability = log_probability - gammaln(total + 1) - gammaln(n + 1) - gammaln(rest + 1)
        log_probability = (
            log_probability
            - gammaln(np.maximum(size - n, 0) + 1)
            - gammaln(np.maximum(other - n, 0) + 1)
        )
        terms = (
            n
            / total
            * np.log(total * n / (size * other))
            * np.exp(np.where(inside, log_probability, -np.inf))
        )
        expected += float(terms.sum())
    return expected
