"""Utterances of a corpus -> frames, many at a time and in order, without ever holding or writing
them all.

Rows are handed over in groups. Utterances of a group are computed together where that is faster;
which ones is a pure function of their lengths. So frames depend on their group and on nothing else:
not on workers, ranks, or what was done before a kill. That is what makes targets byte-identical.
Tensor alphabet: S samples, T frames, N frames of all utterances of a batch, D width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import DataError
from hubert_pretrain.features.extractor import Extractor, extract, plan_batches
from hubert_pretrain.frames import rate_hint
from hubert_pretrain.progress import progress

Result = TypeVar("Result")
Rows = NDArray[np.int64]

GROUP_ROWS = 64
"""Rows per group of `map_frames`."""


def map_frames(
    corpus: Corpus,
    rows: Rows,
    extractor: Extractor,
    function: Callable[[Tensor], Result],
    *,
    device: torch.device | str = "cpu",
    workers: int = 1,
    what: str = "frames",
    rowwise: bool = False,
) -> Iterator[Result]:
    """Yields `function(frames)` for each row, in the order of `rows`; groups are stretches of
    `GROUP_ROWS` rows. See `map_groups`.
    """
    groups = [rows[start : start + GROUP_ROWS] for start in range(0, len(rows), GROUP_ROWS)]
    for results in map_groups(
        corpus,
        groups,
        extractor,
        function,
        device=device,
        workers=workers,
        what=what,
        rowwise=rowwise,
    ):
        yield from results


def map_groups(
    corpus: Corpus,
    groups: Sequence[Rows],
    extractor: Extractor,
    function: Callable[[Tensor], Result],
    *,
    device: torch.device | str = "cpu",
    workers: int = 1,
    what: str = "frames",
    rowwise: bool = False,
) -> Iterator[list[Result]]:
    """Yields, for each group of rows in order, `function(frames)` of each of its rows.

    Args:
        corpus: where the audio is read. groups: rows of its manifest, e.g. the blocks of a target
        store. extractor: waveform -> frames, already on `device`. function: what is wanted of the
        frames of an utterance, (T, D) float32 on `device`; return something small. device: where
        frames are computed. On a GPU only what `function` returns leaves it. workers: threads that
        decode and, on a CPU, compute. With several, let torch use one thread in each
        (`torch.set_num_threads(1)`). what: a word for the progress bar. rowwise: `function` treats
        each frame by itself and returns an array or tensor with one row per frame. Then it is
        called with the
            frames (N, D) of several utterances behind one another, which is faster, and its result
            is cut up.

    Raises:
        DataError: audio cannot be read, or frames hold NaN or infinity; the message names the
        utterance.
    """
    stream = _Stream(corpus, extractor, function, torch.device(device), rowwise)
    with progress(sum(map(len, groups)), what) as advance:
        for results in stream.run(groups, workers):
            yield results
            for _ in results:
                advance()


@dataclass(frozen=True)
class _Stream:
    corpus: Corpus
    extractor: Extractor
    function: Callable[[Tensor], Any]
    device: torch.device
    rowwise: bool

    def run(self, groups: Sequence[Rows], workers: int) -> Iterator[list[Any]]:
        """Batches are at most two per thread ahead of the reader, so that memory stays bounded."""
        # On a CPU threads do everything. A GPU is fed by this thread alone: kernels of several
        # would wait for each other.
        on_cpu = self.device.type == "cpu"
        job: Callable[[Rows], Any] = (
            (lambda rows: self.compute(rows, self.read(rows))) if on_cpu else self.read
        )
        waiting: deque[tuple[Rows, Rows, Future[Any]]] = deque()
        done: dict[int, Any] = {}
        batches = self._batches(groups)
        with ThreadPoolExecutor(workers, thread_name_prefix="frames") as pool:
            try:
                for group in groups:
                    done = {}
                    while len(done) < len(group):
                        while (
                            len(waiting) <= 2 * workers
                            and (batch := next(batches, None)) is not None
                        ):
                            places, rows = batch
                            waiting.append((places, rows, pool.submit(job, rows)))
                        places, rows, future = waiting.popleft()
                        results = future.result() if on_cpu else self.compute(rows, future.result())
                        done.update(zip(map(int, places), results, strict=True))
                    yield [done[place] for place in range(len(group))]
            finally:
                for _, _, future in waiting:
                    future.cancel()

    def _batches(self, groups: Sequence[Rows]) -> Iterator[tuple[Rows, Rows]]:
        """(places in the group, rows of the manifest) of every batch, group after group."""
        for group in groups:
            for places in plan_batches(self.extractor, self.corpus.manifest.num_samples[group]):
                yield places, group[places]

    def read(self, rows: Rows) -> list[Tensor]:
        """The waveforms of a batch, for a GPU in memory that it copies from by itself."""
        waveforms = [torch.from_numpy(self.corpus.read(int(row))) for row in rows]
        return (
            waveforms
            if self.device.type == "cpu"
            else [waveform.pin_memory() for waveform in waveforms]
        )

    def compute(self, rows: Rows, waveforms: list[Tensor]) -> list[Any]:
        """The results of a batch."""
        lengths = [len(waveform) for waveform in waveforms]
        counts = [self.extractor.grid.num_frames(length) for length in lengths]
        with torch.inference_mode():
            frames = extract(
                self.extractor,
                [waveform.to(self.device, non_blocking=True) for waveform in waveforms],
            )
            if tuple(frames.shape) != (sum(counts), self.extractor.dim):
                hint = rate_hint(len(frames), sum(counts))
                raise ValueError(
                    f"{type(self.extractor).__name__} made frames of shape {tuple(frames.shape)} of {lengths} samples, not "
                    f"{(sum(counts), self.extractor.dim)}{'; ' if hint else ''}{hint}"
                )
            stretches = [slice(*ends) for ends in pairwise([0, *accumulate(counts)])]
            if not bool(
                frames.sum().isfinite()
                # a sum, because it needs no second copy of the frames; it is finite when they all are
            ):
                self._check_finite(frames, stretches, rows)
            if not self.rowwise:
                return [self.function(frames[stretch]) for stretch in stretches]
            results = self.function(frames)
            return [results[stretch] for stretch in stretches]

    def _check_finite(self, frames: Tensor, stretches: list[slice], rows: Rows) -> None:
        for row, stretch in zip(rows, stretches, strict=True):
            finite = frames[stretch].isfinite().all(dim=-1)
            if bool(finite.all()):
                continue
            utterance = self.corpus.manifest[int(row)]
            frame = int(finite.logical_not().nonzero()[0])
            raise DataError(
                f"{utterance.path}: frame {frame} of {len(finite)} of utterance {utterance.id!r} holds NaN or infinity "
                f"({self.extractor.fingerprint().get('kind')}); mend or remove the file, or use another checkpoint"
            )
