"""Micro-batches of a speaker-invariant stage: crops, and the same crops in another voice.

B utterances, S samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hubert_pretrain.data.batching import MicroBatch
from hubert_pretrain.data.config import SpeakerPerturbation
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.speaker_perturbation import change_voice, draw_voice
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.pretrain.dataset import CropSource
from hubert_pretrain.seeds import generator


class ViewSource(CropSource):
    """Micro-batches as tensors, without targets and masks. The voices are a pure function of (seed,
    purpose, number of the micro-batch, manifest row).
    """

    def __init__(
        self,
        corpus: Corpus,
        perturbation: SpeakerPerturbation,
        *,
        split: str,
        grid: FrameGrid,
        normalize: bool,
        seed: int,
    ) -> None:
        """
        Args:
            perturbation: of the second view.
            split, grid, normalize, seed: see `CropSource`.
        """
        super().__init__(
            corpus,
            lambda row: np.empty(0),
            split=split,
            grid=grid,
            normalize=normalize,
            spans=SpanMask(),
            seed=seed,
        )
        self.perturbation = perturbation

    def tensors(self, micro_batch: MicroBatch, purpose: str) -> dict[str, Any]:
        """The tensors of a micro-batch.

        | key | shape | |
        |---|---|---|
        | waveform | (2 B, S) float32 | all crops, then all of them in another voice |
        | counted_rows | int | of each view; the others only make the shape full |
        | index | int | number of the micro-batch |
        """
        clean = torch.from_numpy(self.waveform(micro_batch))  # (B, S)
        draws = [
            generator(self.seed, purpose, "voice", micro_batch.index, row)
            for row in micro_batch.rows.tolist()
        ]
        other = [
            change_voice(row, draw_voice(self.perturbation, draw))
            for row, draw in zip(clean, draws, strict=True)
        ]
        return {
            "waveform": torch.cat([clean, torch.stack(other)]),
            "counted_rows": micro_batch.counted_rows,
            "index": micro_batch.index,
        }
