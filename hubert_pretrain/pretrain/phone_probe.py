"""PNMI of a layer during training: every so many steps, the layer's frames of a little aligned
speech are clustered and compared with the phones.

Loss and accuracy measure how well targets are predicted, not whether the layer that the next
iteration will cluster becomes better. PNMI (phone-normalised mutual information, paper section 4.3)
is the share of the phones' entropy that the clusters explain.

B utterances, S samples, T frames, N frames of all utterances, D width, K clusters, L layer
(1-based).
"""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import ProbeConfig

logger = logging.getLogger(__name__)

RESTARTS = 3
MAX_ITERATIONS = 30
FRAMES_PER_CLUSTER = 5
"""With fewer, nearly every frame has a cluster of its own, and every layer looks good."""


class PhoneProbe(L.Callback):
    """Logs `health/pnmi` at multiples of `every_steps`.

    The training is unchanged by it: no random number is drawn from torch, modes and weights are
    restored, and the time does not count as training. The crops have shapes that training has
    compiled. Ranks share the utterances, equally many each; the first rank clusters.
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
        """Measure after the updates that are due."""
        is_update = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not is_update or trainer.global_step % self.every_steps:
            return
        stopwatch: Any = module.stopwatch
        stopwatch.stop()
        frames = self._frames(trainer, module)
        if trainer.is_global_zero:
            with distributed.alone():
                pnmi = self._pnmi(frames.cpu().numpy())
            report(trainer, trainer.global_step, {"health/pnmi": pnmi}, kind=f"layer {self.layer}")
        stopwatch.start()

    def _frames(self, trainer: L.Trainer, module: L.LightningModule) -> Tensor:
        """(N, D) frames of the layer, on every rank."""
        model: Any = module.model
        modes = [(part, part.training) for part in model.modules()]
        count = len(self.micro_batches)
        sizes = [each.counted_rows * each.shape.num_frames for each in self.micro_batches]
        ends = np.cumsum(sizes)
        # Each rank fills in its share and leaves 0 elsewhere, so that the sum rounds nothing.
        frames = torch.zeros(len(self.phones), model.config.hidden_size, device=module.device)
        model.eval()
        with (
            torch.no_grad(),
            ema_weights(trainer, module),
            trainer.precision_plugin.forward_context(),
        ):
            for number in equal_share(count, trainer.global_rank, trainer.world_size):
                index = number % count
                waveform = self._waveform(index).to(module.device)  # (B, S)
                state = model(waveform, layers=self.layer).last  # (B, T, D)
                # Numbers from `count` on only keep this rank in step with the others.
                if number < count:
                    first = ends[index] - sizes[index]
                    counted = state[: self.micro_batches[index].counted_rows]
                    frames[first : ends[index]] = counted.flatten(0, 1).float()
        for part, mode in modes:
            part.training = mode
        return distributed.sum_over_ranks(frames)

    def _waveform(self, index: int) -> Tensor:
        """(B, S), read once: a few megabytes."""
        if index not in self._waveforms:
            waveform = self.source.waveform(self.micro_batches[index])
            self._waveforms[index] = torch.from_numpy(waveform)
        return self._waveforms[index]

    def _pnmi(self, frames: NDArray[np.float32]) -> float:
        """PNMI of the clusters of frames (N, D); NaN when a frame is not finite.

        Frames without a phone take part in the clustering only.
        """
        if not np.isfinite(frames).all():
            return float("nan")
        kmeans = KMeans(
            n_clusters=self.n_clusters,
            engine="torch",
            max_iterations=MAX_ITERATIONS,
            restarts=RESTARTS,
            seed=self.seed,
        )
        ids = kmeans.fit(frames).predict(frames)
        counts = count_pairs(ids, self.phones, self.n_clusters, int(self.phones.max()) + 1)
        pnmi = phone_quality(counts).pnmi
        return float("nan") if pnmi is None else pnmi


def make_probe(
    settings: ProbeConfig,
    plan: BucketSampler,
    corpus: Corpus,
    source: CropSource,
    *,
    num_layers: int,
    seed: int,
) -> PhoneProbe | None:
    """The callback; None when it is off (`every_steps` 0) or, with a warning, when the corpus has
    no alignments.

    Args:
        settings: of the recipe.
        plan: the crops get its shapes.
        source: reads crops of `settings.split`.
        num_layers: of the network.

    Raises ConfigError for a layer that does not exist, and for more clusters than the speech has
    frames for.
    """
    if settings.every_steps <= 0:
        return None
    if not 0 <= settings.layer <= num_layers:
        raise ConfigError(
            f"pretrain.probe.layer={settings.layer}: the network has layers 1 to {num_layers}; 0 "
            "is the middle one"
        )
    probe_seed = derive(seed, "probe")
    micro_batches = _aligned(plan, corpus, settings, probe_seed)
    phones = [_phones(each, plan, corpus) for each in micro_batches]
    aligned_frames = sum(int((each >= 0).sum()) for each in phones)
    if not aligned_frames:
        logger.warning(
            "pretrain.probe: split %r has no alignments, so PNMI is not measured (data.alignments "
            "brings them in)",
            settings.split,
        )
        return None
    if aligned_frames < FRAMES_PER_CLUSTER * settings.n_clusters:
        raise ConfigError(
            f"pretrain.probe.n_clusters={settings.n_clusters} needs {FRAMES_PER_CLUSTER} aligned "
            f"frames per cluster, there are {aligned_frames}; raise pretrain.probe.seconds or "
            "lower n_clusters"
        )
    return PhoneProbe(
        micro_batches,
        phones,
        source,
        layer=settings.layer or (num_layers + 1) // 2,
        n_clusters=settings.n_clusters,
        every_steps=settings.every_steps,
        seed=probe_seed,
    )


def _aligned(
    plan: BucketSampler, corpus: Corpus, settings: ProbeConfig, seed: int
) -> list[MicroBatch]:
    """Aligned utterances of the split, a random choice of at most `settings.seconds`, in the shapes
    of training.
    """
    if corpus.alignments is None:
        return []
    lengths = corpus.manifest.num_samples
    rows = np.intersect1d(corpus.manifest.rows(settings.split), corpus.alignments.rows())
    if not len(rows):
        return []
    max_hours = settings.seconds / 3600
    rows = choose_rows(lengths, rows, fraction=1.0, max_hours=max_hours, seed=seed)
    by_length = LengthIndex(rows[np.argsort(lengths[rows], kind="stable")], lengths)
    return list(plan.validation([by_length]))


def _phones(micro_batch: MicroBatch, plan: BucketSampler, corpus: Corpus) -> NDArray[np.int32]:
    """(B, T) phone of each frame of the crops that count, -1 for none."""
    assert corpus.alignments is not None
    frames = micro_batch.shape.num_frames
    crops = zip(micro_batch.rows.tolist(), micro_batch.starts.tolist(), strict=True)
    return np.stack(
        [
            corpus.alignments.frame_phone_ids(row, start + frames, plan.grid)[start:]
            for row, start in itertools.islice(crops, micro_batch.counted_rows)
        ]
    )
