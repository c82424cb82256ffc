"""Dynamic chunk training: attention in chunks whose length is drawn for each step, so that one
network serves whole utterances and streams of any latency.

Source: Zhang et al. 2020 (U2, arXiv:2012.05481) and Wu et al. 2021 (U2++, arXiv:2106.05642), for
speech recognition; GigaAM (arXiv:2506.01192) in pretraining.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import WHOLE_UTTERANCE
from hubert_pretrain.model.streaming import describe_streaming
from hubert_pretrain.seeds import generator

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import DynamicChunksConfig


@dataclass(frozen=True)
class DynamicChunks:
    """The draw of a chunk length for each step.

    All micro-batches of a step have the same, on all ranks: the ranks do equal work, and how many
    micro-batches share a forward pass changes nothing.
    """

    lengths: Sequence[int] = ()
    """Frames; one of them is drawn. None given: the network's own chunk in each step."""
    full_context_probability: float = 0.5
    """Share of the steps with whole utterances."""

    @staticmethod
    def of(config: DynamicChunksConfig) -> DynamicChunks:
        """The settings of a training stage."""
        return DynamicChunks(tuple(config.chunk_frames), config.full_context_probability)

    def draw(self, seed: int, step: int) -> int | None:
        """The `chunk_frames` of Hubert.forward in a step."""
        if not self.lengths:
            return None
        random = generator(seed, "chunk", step)
        if random.random() < self.full_context_probability:
            return WHOLE_UTTERANCE
        return self.lengths[int(random.integers(len(self.lengths)))]

    @property
    def costliest(self) -> int | None:
        """The length with the most work and memory: the positional convolution sees the half kernel
        before each chunk again.
        """
        return min(self.lengths, default=None)


def describe_chunks(config: HubertConfig, chunks: DynamicChunks) -> list[str]:
    """One line for each length of chunk that a training has in mind, with its latency."""
    lengths = [*chunks.lengths, *([config.chunk_frames] if config.chunk_frames else [])]
    return [describe_streaming(config, length) for length in dict.fromkeys(lengths)]
