"""SpinModule: training of the last layers of an encoder and of a codebook by swapped prediction.

B utterances, T frames, D width, K codewords.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubert_pretrain import distributed
from hubert_pretrain.frames import seconds as in_seconds
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pretrain.swapped_prediction import SwappedPrediction, swapped_prediction
from hubert_pretrain.seeds import derive
from hubert_pretrain.training.loggers import report
from hubert_pretrain.training.module import Meter, Monitor, TrainingModule, direction
from hubert_pretrain.training.optim import AdamWSettings, Schedule

SHOWN = ("loss", "agreement", "audio_seconds_per_second")
"""Values of the progress display."""


def spin_head(
    hidden_size: int, projection_size: int, n_codewords: int, temperature: float
) -> CodebookHead:
    """A projection and random codewords of length 1, in all directions."""
    head = CodebookHead(hidden_size, projection_size, n_codewords, temperature)
    with torch.no_grad():
        nn.init.normal_(head.unit_embeddings)
        head.unit_embeddings.copy_(F.normalize(head.unit_embeddings, dim=-1))
    return head


class SpinModule(TrainingModule):
    """Swapped prediction of codewords by the last layers of a network; the others are frozen, and
    in eval mode.

    Everything random is seeded by (seed, micro-batch), so the step number is all there is to
    resume.
    """

    head: CodebookHead

    def __init__(
        self,
        model: Hubert,
        head: CodebookHead,
        *,
        n_layers: int,
        epsilon: float,
        iterations: int,
        seed: int,
        optimiser: AdamWSettings,
        schedule: Schedule,
        monitor: Monitor,
    ) -> None:
        """
        Args:
            n_layers: number of the last layers that learn.
            epsilon, iterations: see `equal_partition`.
        """
        super().__init__(
            model,
            head,
            seed=seed,
            optimiser=optimiser,
            schedule=schedule,
            monitor=monitor,
            shown=SHOWN,
        )
        self.epsilon = epsilon
        self.iterations = iterations
        self.learning = [*model.context_encoder.layers][-n_layers:]
        model.requires_grad_(False)
        for layer in self.learning:
            layer.requires_grad_(True)
        self.train()
        self.validated_step = -1
        self._valid = Meter()
        self._used = torch.zeros(head.n_clusters[0], dtype=torch.int64)

    def train(self, mode: bool = True) -> SpinModule:
        """The frozen parts stay in eval mode: they have no dropout."""
        super().train(mode)
        self.model.eval()
        for layer in self.learning:
            layer.train(mode)
        return self

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Bring the codewords back to length 1 after each update: then the rate of each is the
        same in every step.
        """
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            with torch.no_grad():
                units = self.head.unit_embeddings
                units.copy_(F.normalize(units, dim=-1))
        super().on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """This micro-batch's share of the loss of its step, a mean over its frames."""
        # torch's dropout has no generator argument.
        torch.manual_seed(derive(self.seed, "dropout", batch["index"]))
        result = self._predict(batch["waveform"], len(batch["waveform"]) // 2)
        _, step_frames = batch["step_frames"]
        loss = result.loss / step_frames
        audio_seconds = in_seconds(batch["waveform"].numel() // 2)
        self.watch(batch["index"], loss, audio_seconds=audio_seconds)
        self.meter.add(
            torch.isfinite(loss),
            nll=result.loss,
            agreeing=result.agreeing,
            frames=len(result.codewords) // 2,
        )
        self.meter.add(audio=audio_seconds)
        # Lightning divides by the number of micro-batches per rank and DDP by the number of ranks,
        # so both are multiplied back.
        return loss * (self.trainer.accumulate_grad_batches * distributed.world_size())

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The same on crops of the valid split, in voices that never change."""
        result = self._predict(batch["waveform"], batch["counted_rows"])
        frames = len(result.codewords) // 2
        self._valid.add(nll=result.loss, agreeing=result.agreeing, frames=float(frames))
        used = torch.bincount(result.codewords, minlength=len(self._used))
        self._used = self._used.to(used.device) + used

    def on_validation_epoch_end(self) -> None:
        """Compute validation metrics over all ranks."""
        sums = self._valid.read(self.device)
        used = distributed.sum_over_ranks(self._used.to(self.device)).double()
        self._used = torch.zeros_like(self._used)
        shares = used / used.sum().clamp_min(1)
        perplexity = torch.special.entr(shares).sum().exp()
        frames = max(1.0, sums["frames"])
        self.validated = {
            "valid/loss": sums["nll"] / frames,
            "valid/agreement": sums["agreeing"] / frames,
            "valid/perplexity": float(perplexity),
        }
        self.validated_step = self.trainer.global_step
        report(self.trainer, self.trainer.global_step, self.validated, kind="valid")

    def summarise(self, sums: dict[str, float], steps: int, seconds: float) -> dict[str, float]:
        """Loss per frame in nats, the share of frames whose codeword is the same in both views, and
        speed.
        """
        frames = max(1.0, sums["frames"])
        return {
            "loss": sums["nll"] / frames,
            "agreement": sums["agreeing"] / frames,
            "audio_seconds_per_second": sums["audio"] / max(seconds, 1e-9),
        }

    def higher_is_better(self, name: str) -> bool:
        """The direction of a validated value. Raises ConfigError for one that has none."""
        return direction(name, {"loss": False, "agreement": True}, name.removeprefix("valid/"))

    def _predict(self, waveform: Tensor, rows: int) -> SwappedPrediction:
        """The loss of the first `rows` rows of each view."""
        depth = len(self.model.context_encoder.layers)
        last = self.model(waveform, layers=depth).last  # (2 B, T, D), before a final norm
        views = [view[:rows] for view in last.chunk(2)]
        first, second = self.head(torch.cat(views).flatten(0, 1)).chunk(2)  # (B T, K) each
        with torch.autocast(waveform.device.type, enabled=False):
            return swapped_prediction(
                first,
                second,
                temperature=self.head.temperature,
                epsilon=self.epsilon,
                iterations=self.iterations,
            )
