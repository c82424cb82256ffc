"""How good cluster ids are as targets: against phones (HuBERT paper section 4.3) and in themselves.

Every measure is a function of counts, so frames can be counted in any order, on any number of processes, and counts added up.
K clusters, P phones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PhoneQuality:
    """How much cluster ids say about phones. None where there is nothing to measure (no frames; for `pnmi`, a single phone)."""

    phone_purity: float | None
    """E_z[max_y p(y|z)]: accuracy of guessing the phone from the cluster."""
    cluster_purity: float | None
    """E_y[max_z p(z|y)]: accuracy of guessing the cluster from the phone. Falls as K grows."""
    pnmi: float | None
    """I(y; z) / H(y): share of the uncertainty about the phone that the cluster removes."""
    frames: int
    """Frames that were counted."""


def count_pairs(ids: NDArray[np.integer], phones: NDArray[np.integer], n_clusters: int, n_phones: int) -> NDArray[np.int64]:
    """Joint counts (K, P) of cluster ids (T,) and phone numbers (T,); frames with a negative phone (none is aligned) are left out."""
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
    """Entropy in nats of the distribution that counts (of any shape) estimate; 0.0 for no counts."""
    positive = counts[counts > 0].astype(np.float64)
    probabilities = positive / positive.sum()
    return float(-(probabilities * np.log(probabilities)).sum()) + 0.0


def perplexity(counts: NDArray[np.integer]) -> float:
    """exp(entropy): how many equally frequent clusters would be as uncertain. K when all are used equally."""
    return float(np.exp(entropy(counts)))
