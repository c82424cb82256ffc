"""Randomness as pure functions: the same (seed, step, utterance) gives the same draw on any machine, process or worker count.

Nothing here keeps state, so there is no state to save: to resume at step n is to ask for step n.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and their order, the same on every platform and Python version."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """A fresh generator for one purpose, e.g. ``generator(seed, "mask", step, utterance)``."""
    return np.random.Generator(np.random.PCG64(derive(*parts)))


def permute(index: NDArray[np.int64] | int, size: int, *key: int | str) -> NDArray[np.int64]:
    """Where a shuffle of ``range(size)`` puts ``index``, in O(1) time and memory per element whatever ``size`` is.

    A four-round Feistel network over the smallest power of four that holds ``size``; values outside are walked on until they fall
    inside (at most four walks on average), which keeps it a bijection. This is what lets 200 million utterances be shuffled without a
    list of them, and the order of any step be known without the steps before it.
    """
    if size <= 0:
        raise ValueError(f"cannot shuffle {size} things")
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << bits) - 1)
    keys = [np.uint64(derive(*key, "round", r)) for r in range(4)]
    value = np.atleast_1d(np.asarray(index, dtype=np.uint64))
    if value.size and int(value.max()) >= size:
        raise ValueError(f"index {int(value.max())} is outside a shuffle of {size}")
    value = _feistel(value, keys, bits, low)
    while (outside := value >= np.uint64(size)).any():
        value[outside] = _feistel(value[outside], keys, bits, low)
    return value.astype(np.int64)


def _feistel(value: NDArray[np.uint64], keys: list[np.uint64], bits: int, low: np.uint64) -> NDArray[np.uint64]:
    left, right = value >> np.uint64(bits), value & low
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & low)
    return (left << np.uint64(bits)) | right


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): every output bit depends on every input bit. Wraps around on purpose."""
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
