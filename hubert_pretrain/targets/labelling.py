"""Assigns targets to a corpus: frames -> nearest centroids, in one or several processes.

Letters: T frames of an utterance, N codebooks.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.distributed import share
from hubert_pretrain.features.corpus_frames import map_groups
from hubert_pretrain.features.extractor import FeatureExtractor
from hubert_pretrain.targets.regrid import OnGrid
from hubert_pretrain.targets.smoothing import smoothable, smoothed_units
from hubert_pretrain.targets.store import DTYPE
from hubert_pretrain.targets.writer import TargetWriter

PARTS_PER_SHARE = 16
"""Number of parts into which a process divides its share; before each part it looks which blocks
the other processes have finished."""


def label_corpus(
    corpus: Corpus,
    writer: TargetWriter,
    extractor: FeatureExtractor,
    codebooks: CodebookSet,
    *,
    to_grid: OnGrid | None = None,
    switch_penalty: float = 0.0,
    device: torch.device | str = "cpu",
    workers: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Fills the pending blocks of a store. Features are not stored.

    Process `rank` of `world_size` fills its own share of the blocks, then blocks that the others
    have not finished. So no process waits for another, all blocks are done when the first process
    returns, and processes that died or never started only make it slower.

    Args:
        corpus: reads the audio.
        writer: of the store.
        extractor: waveform -> frames, on `device`.
        codebooks: frames -> ids.
        to_grid: brings the ids to the frames of the store, where these are not the extractor's.
        switch_penalty: above 0, the ids of an utterance are smoothed (smoothing.py).
        device, workers: see `map_groups`.
        rank, world_size: this process, of how many.

    Raises:
        ConfigError: several codebooks cannot be smoothed.
        ArtefactError: the codebooks were fitted on other features than the extractor's.
        DataError: audio cannot be read or gives NaN; the message names the utterance. Earlier
            blocks stay done.
        HubertPretrainError: the disk is full.
    """
    codebooks.check_features(extractor)
    codebooks = codebooks.to(device)

    smoothed = smoothable(codebooks) if switch_penalty > 0 else None

    def assign(frames: Tensor) -> NDArray[np.uint16]:
        if smoothed is None:
            ids = codebooks.assign(frames)
        else:
            ids = smoothed_units(smoothed, frames, switch_penalty)
        return np.asarray(ids.cpu().numpy(), dtype=DTYPE)  # (T,) or (T, N)

    own = share(writer.num_blocks, rank, world_size)
    most = writer.num_blocks if world_size == 1 else max(1, len(own) // PARTS_PER_SHARE)
    while True:
        blocks = _next_blocks(writer.pending(), own, most, rank)
        if not blocks:
            return
        ids_of_blocks = map_groups(
            corpus,
            [writer.rows(block) for block in blocks],
            extractor,
            assign,
            device=device,
            workers=workers,
            description="labelling",
            framewise=smoothed is None,
        )
        for block, ids in zip(blocks, ids_of_blocks, strict=True):
            if to_grid is not None:
                lengths = corpus.manifest.num_samples[writer.rows(block)].tolist()
                ids = [to_grid.ids(each, length) for each, length in zip(ids, lengths, strict=True)]
            writer.write(block, ids)


def _next_blocks(pending: NDArray[np.int64], own: range, most: int, rank: int) -> list[int]:
    """At most `most` pending blocks of the own share.

    When there are none, a single block of another process, from the end of the list, which that
    process reaches last.
    """
    mine = [block for block in pending.tolist() if block in own]
    if mine or len(pending) == 0:
        return mine[:most]
    return [int(pending[-1 - rank % len(pending)])]
