"""Checks of tar shards and of the cache for audio behind URLs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.arrow_table import chunks
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.shards.index import INDEX_FOLDER, foreign_index_path, verify
from hubert_pretrain.data.storage import Cache, is_url
from hubert_pretrain.distributed import usable_cores
from hubert_pretrain.errors import DataError
from hubert_pretrain.files import human_bytes, size_in_bytes
from hubert_pretrain.preflight.corpus import choose
from hubert_pretrain.preflight.report import CheckResult, error, ok, skipped, warning
from hubert_pretrain.progress import progress


def shards(
    corpus: Corpus | None, *, sample: int, everything: bool, seed: int, workers: int
) -> CheckResult:
    """The shards are as their indexes say: those of a sample of the rows by size, or
    (`everything`) all of them by SHA-256.
    """
    if corpus is None:
        return skipped("shards", "prepare")
    found = sorted(
        set(_shards_of(corpus, choose(corpus, sample=sample, everything=everything, seed=seed)))
    )
    here = [path for path in found if not is_url(path)]
    if not found:
        return ok("shards", "none: the audio lies in files")
    check = partial(_shard_fault, indexes=corpus.folder / INDEX_FOLDER, content=everything)
    bad = []
    with (
        progress(len(here), "reading shards") as advance,
        ThreadPoolExecutor(workers or usable_cores()) as pool,
    ):
        for reason in pool.map(check, here):
            bad += [reason] if reason else []
            advance()
    how = (
        "read to the end, their sha256 is that of their indexes"
        if everything
        else "have the sizes of their indexes"
    )
    away = (
        f"; {len(found) - len(here)} behind URLs are not checked" if len(found) > len(here) else ""
    )
    if bad:
        return error(
            "shards",
            f"{len(bad)} of {len(here)} bad, the first: {bad[0]}",
            "copy the shards again",
            tuple(bad),
        )
    return ok("shards", f"{len(here)} {how}{away}")


def _shards_of(corpus: Corpus, rows: NDArray[np.int64]) -> Iterator[str]:
    """The path of every shard that holds one of the rows, some more than once."""
    manifest = corpus.manifest
    offsets = corpus.manifest.numbers("offset")
    for part in chunks(len(rows)):
        inside = rows[part][offsets[rows[part]] >= 0]
        numbers = manifest.take("path", inside).dictionary_encode().indices.to_numpy()
        yield from (
            manifest.audio_path(int(inside[first]))
            for first in np.unique(numbers, return_index=True)[1]
        )


def _shard_fault(shard: str, indexes: Path, content: bool) -> str:
    try:
        verify(Path(shard), content=content, otherwise=foreign_index_path(indexes, shard))
    except DataError as failure:
        return str(failure).rpartition("; ")[0]
    except OSError as failure:
        return f"{shard}: cannot be read ({failure.strerror})"
    return ""


def cache(folder: str | None, gigabytes: float) -> CheckResult:
    """The cache can be written to, and has room to grow to its limit."""
    store = Cache.of(folder, gigabytes)
    if store is None:
        return ok("cache", "none: audio behind URLs would be fetched again each time")
    place = next(path for path in (store.folder, *store.folder.parents) if path.exists())
    if not os.access(place, os.W_OK):
        return error(
            "cache", f"{store.folder}: cannot be written to", "choose another data.cache_dir"
        )
    there = size_in_bytes(store.folder)
    free = shutil.disk_usage(place).free
    found = (
        f"{human_bytes(there)} of {human_bytes(store.max_bytes)} in {store.folder}, "
        f"{human_bytes(free)} free"
    )
    if store.max_bytes - there > free:
        return warning(
            "cache",
            found,
            "lower data.cache_gigabytes, or choose a data.cache_dir on a larger disk",
        )
    return ok("cache", found)
