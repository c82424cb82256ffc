"""Quality of cluster ids: against phones (HuBERT paper, section 4.3) and speakers, against other
ids, and the distribution of the ids themselves.

Every measure is a function of counts. So frames can be counted in any order, by any number of
processes, and the counts added.

Letters: K clusters, P phones, T frames, R runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STANDARD_DEVIATIONS = 12.0
"""`expected_information` sums counts within this many standard deviations of their mean."""


@dataclass(frozen=True)
class PhoneQuality:
    """Relation between cluster ids z and phones y. None where it is undefined (no frames; for
    `pnmi`, a single phone).
    """

    phone_purity: float | None
    """E_z[max_y p(y|z)]: accuracy of predicting the phone from the cluster."""
    cluster_purity: float | None
    """E_y[max_z p(z|y)]: accuracy of predicting the cluster from the phone. Falls as K grows."""
    pnmi: float | None
    """Phone-normalised mutual information I(y; z) / H(y): share of the uncertainty about the phone
    that the cluster removes."""
    frames: int
    """Number of counted frames."""


def count_pairs(
    ids: NDArray[np.integer], phones: NDArray[np.integer], n_clusters: int, n_phones: int
) -> NDArray[np.int64]:
    """Joint counts (K, P) of cluster ids (T,) and phone numbers (T,).

    Frames with a negative phone number (no aligned phone) are ignored.
    """
    is_aligned = phones >= 0
    pairs = ids[is_aligned].astype(np.int64) * n_phones + phones[is_aligned]
    return np.bincount(pairs, minlength=n_clusters * n_phones).reshape(n_clusters, n_phones)


def phone_quality(joint: NDArray[np.int64]) -> PhoneQuality:
    """The three measures of the paper from joint counts (K, P)."""
    total = int(joint.sum())
    if total == 0:
        return PhoneQuality(None, None, None, 0)
    phone_entropy = entropy(joint.sum(axis=0))
    information = phone_entropy + entropy(joint.sum(axis=1)) - entropy(joint)
    return PhoneQuality(
        phone_purity=float(joint.max(axis=1).sum() / total),
        cluster_purity=float(joint.max(axis=0).sum() / total),
        # Rounding can give -1e-16 for independent clusters.
        pnmi=max(0.0, information / phone_entropy) if phone_entropy > 0 else None,
        frames=total,
    )


def entropy(counts: NDArray[np.integer]) -> float:
    """Entropy in nats of the distribution that counts (of any shape) estimate; 0.0 for no counts.

    Of the ids of a corpus this is the unigram entropy: the cross-entropy of a model that knows only
    how frequent each cluster is.
    """
    positive = counts[counts > 0].astype(np.float64)
    probabilities = positive / positive.sum()
    return float(-(probabilities * np.log(probabilities)).sum()) + 0.0


def perplexity(counts: NDArray[np.integer]) -> float:
    """exp(entropy): number of equally frequent clusters with the same entropy, at most K."""
    return float(np.exp(entropy(counts)))


def run_lengths(ids: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First frames (R,) and lengths (R,) of the runs of equal ids (T,), or of equal rows (T, N)."""
    rows = ids[:, None] if ids.ndim == 1 else ids  # (T, 1) or (T, N)
    is_change = (rows[1:] != rows[:-1]).any(axis=1)
    first = np.zeros(min(1, len(ids)), dtype=np.int64)
    starts = np.concatenate([first, np.flatnonzero(is_change) + 1])
    return starts, np.diff(np.append(starts, len(ids)))


def adjusted_mutual_information(joint: NDArray[np.int64]) -> float:
    """Agreement of two clusterings from joint counts (X, Y): 1 when they are equal up to a
    renumbering, about 0 when they are independent.

    (I - E) / ((H(x) + H(y)) / 2 - E), where E is the expected mutual information of two random
    clusterings of the same sizes (Vinh et al. 2010, eq. 24a). Plain mutual information grows with
    the number of clusters; subtracting E removes that. Equal to scikit-learn's, which takes labels
    instead of counts.
    """
    rows = joint.sum(axis=1)
    columns = joint.sum(axis=0)
    rows = rows[rows > 0]
    columns = columns[columns > 0]
    if len(rows) == len(columns) == np.count_nonzero(joint):
        return 1.0  # equal up to a renumbering; also when there are no frames
    entropy_sum = entropy(rows) + entropy(columns)
    information = entropy_sum - entropy(joint)
    expected = expected_information(rows, columns)
    # As scikit-learn: the denominator is kept away from 0.
    denominator = entropy_sum / 2 - expected
    epsilon = float(np.finfo(np.float64).eps)
    denominator = min(denominator, -epsilon) if denominator < 0 else max(denominator, epsilon)
    return (information - expected) / denominator


def expected_information(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> float:
    """Expected mutual information, in nats, of two random clusterings with the cluster sizes `rows`
    (X,) and `columns` (Y,), which have the same sum.

    The count n of a pair of clusters is hypergeometric (Vinh et al. 2010). Terms further than
    STANDARD_DEVIATIONS from its mean are left out: they are below 1e-20, and without them 500 x 500
    clusters of a million frames take seconds, not minutes.
    """
    from scipy.special import gammaln

    total = int(rows.sum())
    expected = 0.0
    for size in rows.tolist():
        # Possible counts n of this cluster and each of the others, near their mean.
        mean = size * columns / total
        spread = STANDARD_DEVIATIONS * (np.sqrt(mean) + 1)
        smallest = np.maximum(1, size + columns - total)
        largest = np.minimum(size, columns)
        low = np.maximum(smallest, np.floor(mean - spread)).astype(np.int64)
        high = np.minimum(largest, np.ceil(mean + spread)).astype(np.int64)
        counts = low[:, None] + np.arange(int((high - low).max(initial=-1)) + 1)  # (Y, terms)

        # Rows have different numbers of terms: entries beyond `high` get harmless values here and
        # probability 0 below.
        is_term = counts <= high[:, None]
        n = np.where(is_term, counts, 1)
        other = np.broadcast_to(columns[:, None], counts.shape)
        rest = np.where(is_term, total - size - other + n, 0)

        # log P(n), hypergeometric.
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
        probability = np.exp(np.where(is_term, log_probability, -np.inf))
        terms = n / total * np.log(total * n / (size * other)) * probability
        expected += float(terms.sum())
    return expected
