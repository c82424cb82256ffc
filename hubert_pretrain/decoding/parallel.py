"""Decoding by several processes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from hubert_pretrain.decoding.beam import BeamDecoder
from hubert_pretrain.decoding.hypothesis import Decoder, Hypothesis, LogProbabilities
from hubert_pretrain.distributed import end_with_parent, usable_cores
from hubert_pretrain.errors import HubertPretrainError

FEW_FRAMES = 50_000
"""Less than this is decoded by one process: starting others takes longer."""

_decoder: Decoder | None = None
"""In a worker: what it decodes with."""


class ParallelDecoder:
    """A decoder whose batches are shared by processes; results are those of one process."""

    def __init__(
        self, decoder: BeamDecoder, workers: int = 0, *, few_frames: int = FEW_FRAMES
    ) -> None:
        """
        Args:
            decoder: what each process decodes with; it is sent to them.
            workers: processes; 0: one per core.
            few_frames: a batch with fewer frames is decoded by this process.
        """
        self.decoder = decoder
        self.workers = workers or usable_cores()
        self.few_frames = few_frames

    def decode(self, log_probabilities: LogProbabilities) -> Hypothesis:
        """The best hypothesis of one utterance (T, V)."""
        return self.decoder.decode(log_probabilities)

    def n_best(self, log_probabilities: LogProbabilities) -> list[Hypothesis]:
        """Several hypotheses of one utterance."""
        return self.decoder.n_best(log_probabilities)

    def reweighted(self, lm_weight: float, word_score: float) -> ParallelDecoder:
        """The same decoder with other weights; see `BeamDecoder.reweighted`."""
        decoder = self.decoder.reweighted(lm_weight, word_score)
        return ParallelDecoder(decoder, self.workers, few_frames=self.few_frames)

    def decode_batch(self, batch: Sequence[LogProbabilities]) -> list[Hypothesis]:
        """The best hypothesis of each utterance.

        Raises HubertPretrainError when a process dies.
        """
        workers = min(self.workers, len(batch))
        if workers <= 1 or sum(map(len, batch)) < self.few_frames:
            return self.decoder.decode_batch(batch)
        # By length, in turns: every process gets as much, and rows of similar length.
        order = sorted(range(len(batch)), key=lambda index: len(batch[index]))
        shares = [order[first::workers] for first in range(workers)]
        executor = ProcessPoolExecutor(
            workers,
            # A process that has threads cannot be forked safely.
            mp_context=get_context("spawn"),
            initializer=_start,
            initargs=(self.decoder,),
        )
        try:
            futures = [
                executor.submit(_decode, [batch[index] for index in share]) for share in shares
            ]
            results = [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise HubertPretrainError(
                "a process that decodes died, killed or out of memory; run again with fewer, e.g. "
                "decoding.workers=1, or a smaller beam_size"
            ) from error
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
        found = {
            index: hypothesis
            for share, hypotheses in zip(shares, results, strict=True)
            for index, hypothesis in zip(share, hypotheses, strict=True)
        }
        return [found[index] for index in range(len(batch))]


def _start(decoder: Decoder) -> None:
    global _decoder
    _decoder = decoder
    end_with_parent()


def _decode(batch: list[LogProbabilities]) -> list[Hypothesis]:
    assert _decoder is not None
    return _decoder.decode_batch(batch)
