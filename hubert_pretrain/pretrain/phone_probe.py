"""How much a layer says about phones while it learns: its frames of a little aligned speech,
clustered, every so many steps.

Loss and accuracy say how well targets are predicted, not whether the layer that the next iteration
will cluster becomes better. B utterances, S samples, T frames, N frames of all utterances, D width,
K clusters, L layer (1-based).
"""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain import distributed
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.clustering.quality import count_pairs, phone_quality
from hubert_pretrain.clustering.sample import choose_rows
from hubert_pretrain.data.batching import BucketSampler, MicroBatch
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.length_index import LengthIndex
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.pretrain.dataset import CropSource
from hubert_pretrain.seeds import derive
from hubert_pretrain.training.dataloading import equal_share
from hubert_pretrain.training.ema import ema_weights
from hubert_pretrain.training.loggers import report

logger = logging.getLogger(__name__)

RESTARTS = 3
MAX_ITERATIONS = 30
FRAMES_PER_CLUSTER = 5
"""Fewer would be told apart one by one, and every layer would look good."""


class PhoneProbe(L.Callback):
    """Logs `health/pnmi` at multiples of `every_steps`.

    Changes nothing: no random number is drawn from torch, modes and weights are as before, and the
    time counts as no training. The crops have shapes that training has compiled. Ranks share the
    utterances, equally many each; the first one clusters.
    """

    def __init__(
        self,
        micro_batches: list[MicroBatch],
        phones: list[NDArray[np.int32]],
        source: CropSource,
        *,
        layer: int,
        n_clusters: int,
        every_steps: int,
        seed: int,
    ) -> None:
        """
        Args:
            micro_batches: crops of aligned utterances.
            phones: of each micro-batch, (B, T), -1 where there is none.
            source: reads the crops.
            layer: L.
            n_clusters: K.
        """
        self.micro_batches = micro_batches
        self.source = source
        self.layer = layer
        self.seed = seed
        self.n_clusters = n_clusters
        self.every_steps = every_steps
        self.phones = np.concatenate([each.ravel() for each in phones])  # (N,)
        self._waveforms: dict[int, Tensor] = {}

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After the updates that are due."""
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not whole or trainer.global_step % self.every_steps:
            return
        clock: Any = module.stopwatch
        clock.stop()
        frames = self._frames(trainer, module)
        if trainer.is_global_zero:
            with distributed.alone():
                value = self._pnmi(frames.cpu().numpy())
            report(trainer, trainer.global_step, {"health/pnmi": value}, kind=f"layer {self.layer}")
        clock.start()

    def _frames(self, trainer: L.Trainer, module: L.LightningModule) -> Tensor:
        """(N, D): each rank fills in its share, so that adding up rounds nothing."""
        model: Any = module.model
        modes = [(part, part.training) for part in model.modules()]
        sizes = [len(each.rows) * each.shape.num_frames for each in self.micro_batches]
        ends = np.cumsum(sizes)
        frames = torch.zeros(len(self.phones), model.config.hidden_size, device=module.device)
        model.eval()
        with (
            torch.no_grad(),
            ema_weights(trainer, module),
            trainer.precision_plugin.forward_context(),
        ):
            for number in equal_share(len(sizes), trainer.global_rank, trainer.world_size):
                index = number % len(sizes)
                state = model(
                    self._waveform(index).to(module.device), layers=self.layer
                ).last  # (B, T, D)
                if (
                    number == index
                ):  # beyond the last one they come again, to keep the ranks in step
                    frames[ends[index] - sizes[index] : ends[index]] = state.flatten(0, 1).float()
        for part, mode in modes:
            part.training = mode
        return distributed.sum_over_ranks(frames)

    def _waveform(self, index: int) -> Tensor:
        """(B, S), read once: a few megabytes."""
        if index not in self._waveforms:
            self._waveforms[index] = torch.from_numpy(
                self.source.waveform(self.micro_batches[index])
            )
        return self._waveforms[index]

    def _pnmi(self, frames: NDArray[np.float32]) -> float:
        """Of frames (N, D); those without a phone take part in the clustering only. NaN while the
        weights are no numbers.
        """
        if not np.isfinite(frames).all():
            return float("nan")
        settings: dict[str, Any] = {
            "n_clusters": self.n_clusters,
            "max_iterations": MAX_ITERATIONS,
            "restarts": RESTARTS,
        }
        ids = KMeans(engine="torch", seed=self.seed, **settings).fit(frames).predict(frames)
        quality = phone_quality(
            count_pairs(ids, self.phones, self.n_clusters, int(self.phones.max()) + 1)
        )
        return float("nan") if quality.pnmi is None else quality.pnmi


def make_probe(
    plan: BucketSampler,
    corpus: Corpus,
    source: CropSource,
    *,
    every_steps: int,
    layer: int,
    split: str,
    seconds: float,
    n_clusters: int,
    depth: int,
    seed: int,
) -> list[PhoneProbe]:
    """The callback, or none where none is wanted (`every_steps` 0) or, with a warning, the corpus
    has no phones to measure with.

    Args:
        plan: whose shapes the crops have.
        source: reads crops of `split`.
        layer: L; 0 for the middle one of the network's `depth`.
        seconds: of aligned speech, at most.
        n_clusters: K.

    Raises ConfigError for a layer that does not exist, and for more clusters than the speech has
    frames for.
    """
    if every_steps <= 0:
        return []
    if not 0 <= layer <= depth:
        raise ConfigError(
            f"pretrain.probe.layer={layer}: the network has layers 1 to {depth}; 0 is the middle one"
        )
    micro_batches = _aligned(plan, corpus, split, seconds, seed)
    phones = [_phones(each, plan, corpus) for each in micro_batches]
    spoken = sum(int((each >= 0).sum()) for each in phones)
    if not spoken:
        logger.warning(
            "pretrain.probe: split %r has no alignments, so PNMI is not measured (data.alignments brings them in)",
            split,
        )
        return []
    if spoken < FRAMES_PER_CLUSTER * n_clusters:
        raise ConfigError(
            f"pretrain.probe.n_clusters={n_clusters} needs {FRAMES_PER_CLUSTER} aligned frames per cluster, there are {spoken}; "
            "raise pretrain.probe.seconds or lower n_clusters"
        )
    settings: dict[str, int] = {
        "layer": layer or (depth + 1) // 2,
        "n_clusters": n_clusters,
        "every_steps": every_steps,
    }
    return [PhoneProbe(micro_batches, phones, source, **settings, seed=derive(seed, "probe"))]


def _aligned(
    plan: BucketSampler, corpus: Corpus, split: str, seconds: float, seed: int
) -> list[MicroBatch]:
    """Aligned utterances of the split, a random choice of at most so many seconds, in the shapes of
    training.
    """
    lengths = corpus.manifest.num_samples
    rows = corpus.manifest.rows(split)
    rows = (
        np.intersect1d(rows, corpus.alignments.rows())
        if corpus.alignments is not None
        else rows[:0]
    )
    if not len(rows):
        return []
    rows = choose_rows(
        lengths, rows, fraction=1.0, max_hours=seconds / 3600, seed=derive(seed, "probe")
    )
    return list(
        plan.validation([LengthIndex(rows[np.argsort(lengths[rows], kind="stable")], lengths)])
    )


def _phones(micro_batch: MicroBatch, plan: BucketSampler, corpus: Corpus) -> NDArray[np.int32]:
    """(B, T) of its crops."""
    assert corpus.alignments is not None
    frames = micro_batch.shape.num_frames
    crops = zip(micro_batch.rows.tolist(), micro_batch.starts.tolist(), strict=True)
    return np.stack(
        [
            corpus.alignments.frame_phone_ids(row, start + frames, plan.grid)[start:]
            for row, start in crops
        ]
    )
