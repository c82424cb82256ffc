"""Randomness as pure functions: the same (seed, step, utterance) gives the same draw on any
machine, process or worker count.

Nothing here keeps state, so there is no state to save: to resume at step n is to ask for step n.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = (1 << 64) - 1
_FEW = 64
"""So many numbers are shuffled sooner one by one, as Python's, than as an array."""


def derive(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and their order, the same on every platform and
    Python version.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """A fresh generator for one purpose, e.g. ``generator(seed, "mask", step, utterance)``."""
    return np.random.Generator(np.random.PCG64(derive(*parts)))


def permute(index: NDArray[np.int64] | int, size: int, *key: int | str) -> NDArray[np.int64]:
    """Where a shuffle of ``range(size)`` puts ``index``, in O(1) time and memory per element
    whatever ``size`` is.

    A four-round Feistel network over the smallest power of four that holds ``size``; values outside
    are walked on until they fall inside (at most four walks on average), which keeps it a
    bijection. This is what lets 200 million utterances be shuffled without a list of them, and the
    order of any step be known without the steps before it.
    """
    if size <= 0:
        raise ValueError(f"cannot shuffle {size} things")
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = [derive(*key, "round", r) for r in range(4)]
    value = np.atleast_1d(np.asarray(index, dtype=np.uint64))
    if value.size and int(value.max()) >= size:
        raise ValueError(f"index {int(value.max())} is outside a shuffle of {size}")
    if value.size <= _FEW:
        return np.array(
            [_walk(number, size, keys, bits) for number in value.ravel().tolist()], dtype=np.int64
        ).reshape(value.shape)
    value = _feistel(value, keys, bits)
    while (outside := value >= size).any():
        value[outside] = _feistel(value[outside], keys, bits)
    return value.astype(np.int64)


def _walk(number: int, size: int, keys: list[int], bits: int) -> int:
    number = _feistel(number, keys, bits)
    while number >= size:
        number = _feistel(number, keys, bits)
    return number


def _feistel(value: Any, keys: list[int], bits: int) -> Any:
    """Of a Python number, or of each of an array of uint64."""
    left = value >> bits
    right = value & (1 << bits) - 1
    low = (1 << bits) - 1
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & low)
    return (left << bits) | right


def _mix(value: Any) -> Any:
    """The finaliser of SplitMix64 (Steele et al. 2014): every output bit depends on every input
    bit. Wraps around on purpose.
    """
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _WORD
    return value ^ (value >> 31)


def share_of(id: str, purpose: str) -> float:
    """A number in [0, 1) that depends on an id and nothing else: `share_of(id, "valid") < 0.05`
    holds for 5 % of all ids.
    """
    return derive("split", purpose, id) / 2.0**63
