"""Utterances of a corpus -> frames, several at a time and in order, without ever holding or writing them all.

Each utterance is computed by itself and by one thread, so its frames depend neither on its neighbours nor on how many workers there
are: that is what makes targets byte-identical after a kill. Tensor alphabet: S samples, T frames, D width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.progress import progress
from hubert_pretrain.errors import DataError
from hubert_pretrain.features.extractor import Extractor

Result = TypeVar("Result")


def map_frames(
    corpus: Corpus,
    rows: NDArray[np.int64],
    extractor: Extractor,
    function: Callable[[Tensor], Result],
    *,
    device: torch.device | str = "cpu",
    workers: int = 1,
    what: str = "frames",
) -> Iterator[Result]:
    """Yields `function(frames)` for each row, in the order of `rows`; frames are (T, D) float32 on `device`.

    Args:
        corpus: where the audio is read.
        rows: rows of its manifest.
        extractor: waveform -> frames, already on `device`.
        function: what is wanted of the frames; it runs in the worker, so return something small.
        device: where frames are computed.
        workers: threads that decode and compute. With several on a CPU, let torch use one thread in each (`torch.set_num_threads(1)`).
        what: a word for the progress bar.

    Raises:
        DataError: audio cannot be read, or frames hold NaN or infinity; the message names the utterance.
    """

    def work(row: int) -> Result:
        waveform = corpus.read(row)
        with torch.inference_mode():
            frames = extractor(torch.from_numpy(waveform).to(device)[None])[0]  # (S,) -> (1, S) -> (T, D)
            _check(frames, len(waveform), extractor, corpus, row)
            return function(frames)

    with progress(len(rows), what) as advance:
        for result in _in_order(work, rows, workers):
            yield result
            advance()


def _in_order(work: Callable[[int], Result], rows: NDArray[np.int64], workers: int) -> Iterator[Result]:
    """`map(work, rows)` on threads, at most two rows per thread ahead of the reader, so that memory stays bounded."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="frames") as pool:
        try:
            for row in rows:
                waiting.append(pool.submit(work, int(row)))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _check(frames: Tensor, num_samples: int, extractor: Extractor, corpus: Corpus, row: int) -> None:
    expected = (extractor.grid.num_frames(num_samples), extractor.dim)
    if tuple(frames.shape) != expected:
        raise ValueError(f"{type(extractor).__name__} made frames of shape {tuple(frames.shape)} of {num_samples} samples, not {expected}")
    if not bool(frames.isfinite().all()):
        utterance = corpus.manifest[row]
        frame = int(frames.isfinite().all(dim=-1).logical_not().nonzero()[0])
        raise DataError(
            f"{utterance.path}: frame {frame} of {len(frames)} of utterance {utterance.id!r} holds NaN or infinity "
            f"({extractor.fingerprint().get('kind')}); mend or remove the file, or use another checkpoint"
        )
