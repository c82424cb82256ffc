"""Corpus x codebook -> targets, on one process or several. T frames, D width, N codebooks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.distributed import share
from hubert_pretrain.features.corpus_frames import map_groups
from hubert_pretrain.features.extractor import Extractor
from hubert_pretrain.targets.store import DTYPE
from hubert_pretrain.targets.writer import TargetWriter

PARTS_OF_A_SHARE = 16
"""With several processes, how often one looks at what the others have done meanwhile."""


def label_corpus(
    corpus: Corpus,
    writer: TargetWriter,
    extractor: Extractor,
    codebooks: CodebookSet,
    *,
    device: torch.device | str = "cpu",
    workers: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Fills the blocks of a store that are not done: each utterance is read, made into frames,
    assigned and forgotten.

    Process `rank` of `world_size` fills its own share of the blocks, then helps with what the
    others have left. So nobody waits for anybody, all is done when the first process returns, and
    processes that died or never started only make it slower.

    Raises:
        ArtefactError: the codebooks were fitted on other features than the extractor's. DataError:
        audio cannot be read or gives NaN; the message names the utterance. Blocks before it stay
        done. HubertPretrainError: the disk is full.
    """
    codebooks.check_features(extractor)
    codebooks = codebooks.to(device)

    def assign(frames: Tensor) -> NDArray[np.uint16]:
        return np.asarray(codebooks.assign(frames).cpu().numpy(), dtype=DTYPE)  # (T,) or (T, N)

    own = share(writer.num_blocks, rank, world_size)
    at_once = writer.num_blocks if world_size == 1 else max(1, len(own) // PARTS_OF_A_SHARE)
    while blocks := _next_blocks(writer.pending(), own, at_once, rank):
        groups = [writer.rows(block) for block in blocks]
        ids = map_groups(
            corpus,
            groups,
            extractor,
            assign,
            device=device,
            workers=workers,
            what="labelling",
            rowwise=True,
        )
        for block, of_block in zip(blocks, ids, strict=True):
            writer.write(block, of_block)


def _next_blocks(pending: NDArray[np.int64], own: range, at_once: int, rank: int) -> list[int]:
    """Pending blocks of the own share; when there are none, a single one of another's, from the
    end, which that one comes to last.
    """
    mine = [block for block in pending.tolist() if block in own]
    if mine or len(pending) == 0:
        return mine[:at_once]
    return [int(pending[-1 - rank % len(pending)])]
