"""Randomness as pure functions: the same (seed, step, utterance) gives the same numbers on any
machine, in any process and with any number of workers.

There is no state, so there is none to save: to resume at step n is to ask for step n.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = (1 << 64) - 1
_FEW = 64
"""Up to this many numbers, Python's integers are faster than an array."""


def derive(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and their order, the same on every platform and
    Python version.
    """
    text = "\x1f".join(map(str, parts)).encode(errors="surrogatepass")
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """A new generator for one purpose, e.g. ``generator(seed, "mask", step, utterance)``."""
    return np.random.Generator(np.random.PCG64(derive(*parts)))


def permute(index: NDArray[np.int64] | int, size: int, *key: int | str) -> NDArray[np.int64]:
    """Element ``index`` of a random permutation of ``range(size)``, in O(1) time and memory per
    element for any ``size``.

    A four-round Feistel network over the smallest power of four that is at least ``size``. Values
    from ``size`` on go through the network again until they are below it (cycle walking, at most
    four passes on average), which makes it a permutation of the range. So 200 million utterances
    are shuffled without a list of them, and the order of a step is known without the steps before.

    Args:
        index: one or several elements, of any shape.
        size: length of the range.
        key: parts of the seed, see `derive`.
    """
    if size <= 0:
        raise ValueError(f"cannot shuffle a range of {size}")
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = [derive(*key, "round", r) for r in range(4)]
    value = np.atleast_1d(np.asarray(index, dtype=np.uint64))
    if value.size and int(value.max()) >= size:
        raise ValueError(f"index {int(value.max())} is outside a shuffle of {size}")
    if value.size <= _FEW:
        return np.array(
            [_walk(number, size, keys, bits) for number in value.ravel().tolist()], dtype=np.int64
        ).reshape(value.shape)
    # Cycle walking, on those that are outside.
    value = _feistel(value, keys, bits)
    while (outside := value >= size).any():
        value[outside] = _feistel(value[outside], keys, bits)
    return value.astype(np.int64)


def _walk(number: int, size: int, keys: list[int], bits: int) -> int:
    """`permute` of one number."""
    number = _feistel(number, keys, bits)
    while number >= size:
        number = _feistel(number, keys, bits)
    return number


def _feistel(value: Any, keys: list[int], bits: int) -> Any:
    """The Feistel network on numbers of 2 * `bits` bits: a Python integer or an array of uint64."""
    low = (1 << bits) - 1
    left = value >> bits
    right = value & low
    for key in keys:
        swapped = left ^ (_mix(right ^ key) & low)
        left = right
        right = swapped
    return (left << bits) | right


def _mix(value: Any) -> Any:
    """The finaliser of SplitMix64 (Steele et al. 2014): every output bit depends on every input
    bit. Arithmetic modulo 2^64.
    """
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _WORD
    return value ^ (value >> 31)


def share_of(id: str, purpose: str) -> float:
    """A number in [0, 1) that depends only on an id and a purpose: `share_of(id, "valid") < 0.05`
    holds for 5 % of all ids.
    """
    return derive("split", purpose, id) / 2.0**63
