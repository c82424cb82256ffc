"""FinetuneModule: training of an encoder with the head of a task. B utterances, T frames."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from hubert_pretrain import distributed
from hubert_pretrain.finetune.dataset import Batch
from hubert_pretrain.finetune.feature_cache import FeatureCache
from hubert_pretrain.finetune.inference import Scored, gather, logits_of_item
from hubert_pretrain.finetune.lora import lora_scale
from hubert_pretrain.finetune.rates import Rates
from hubert_pretrain.finetune.task import Task
from hubert_pretrain.frames import seconds as in_seconds
from hubert_pretrain.model.checkpoint import LORA_KEY
from hubert_pretrain.model.heads import TaskHead
from hubert_pretrain.model.hubert import Hubert, HubertOutput
from hubert_pretrain.seeds import derive
from hubert_pretrain.training.dynamic_chunks import DynamicChunks
from hubert_pretrain.training.loggers import report
from hubert_pretrain.training.module import Meter, Monitor, TrainingModule, direction
from hubert_pretrain.training.optim import AdamWSettings, Schedule
from hubert_pretrain.training.resilience.watchdog import Watchdog

log = logging.getLogger(__name__)


class FinetuneModule(TrainingModule):
    """An encoder with the head of a task, trained as fairseq's HubertEncoder under its CTC
    criterion.

    The conv encoder is frozen when its gradient scale is 0. For the first `freeze_encoder_steps`
    updates the whole encoder is, though it stays in training mode: masks, dropout and layer drop
    are at work, as in the reference. Everything random is seeded by (seed, step) or (seed,
    micro-batch), so the step number is all there is to resume.
    """

    head: TaskHead

    def __init__(
        self,
        model: Hubert,
        head: TaskHead,
        task: Task,
        *,
        seed: int,
        optimiser: AdamWSettings,
        schedule: Schedule,
        monitor: Monitor,
        freeze_encoder_steps: int = 0,
        norm_over_valid: bool = False,
        chunks: DynamicChunks | None = None,
        describe_micro_batch: Callable[[int], str] = "micro-batch {}".format,
        rates: Rates | None = None,
        cache: FeatureCache | None = None,
        fill_cache: Callable[[torch.device, Callable[[], None]], None] | None = None,
    ) -> None:
        """
        Args:
            head: `task.head(model.config)`.
            freeze_encoder_steps: steps in which only the head learns.
            norm_over_valid: a norm over time (group-norm models) leaves padding out, so that a
                padded row counts as it does alone, which is how it is scored and exported. The
                reference's does not.
            chunks: attention in chunks of drawn lengths; None: as the network is configured.
            describe_micro_batch: see `TrainingModule`.
            rates: learning rates of head and layers; None: all learn with that of `optimiser`.
            cache: outputs of the encoder, which is frozen throughout.
            fill_cache: computes them on a device, once the ranks form a group, and calls a function
                after each utterance.
        """
        super().__init__(
            model,
            head,
            seed=seed,
            optimiser=optimiser,
            schedule=schedule,
            monitor=monitor,
            describe_micro_batch=describe_micro_batch,
            shown=("loss", "lr", "audio_seconds_per_second"),
        )
        self.task = task
        self.freeze_encoder_steps = freeze_encoder_steps
        self.norm_over_valid = norm_over_valid
        self.chunks = chunks or DynamicChunks()
        self.part_rates = rates
        self.cache = cache
        self.fill_cache = fill_cache
        self.train()  # a loaded model is in eval mode, and Lightning leaves modes as they are
        for part in self.model.modules():
            if isinstance(part, nn.BatchNorm1d) and not any(
                each.requires_grad for each in part.parameters()
            ):
                part.eval()  # a frozen encoder keeps its statistics too
        self.validated_step = -1
        self._valid = Meter()
        self._validated: list[Scored] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss per utterance of the step, as this micro-batch's share of it."""
        valid = batch["valid"]
        # torch's dropout has no generator argument.
        torch.manual_seed(derive(self.seed, "dropout", batch["index"]))
        output = self._encode(batch)
        logits = self.task.logits(self.head, output, valid.repeat(self.task.views, 1))
        loss = self.task.loss(logits, valid.sum(dim=1), batch["labels"], batch["label_lengths"])
        audio_seconds = in_seconds(batch["padded_samples"])
        self.watch(batch["index"], loss, audio_seconds=audio_seconds)
        self.meter.add(loss=loss, utterances=len(valid), audio=audio_seconds)
        # The gradient of the step is d(sum over all its micro-batches) / utterances of the step.
        # Lightning divides by the number of accumulated micro-batches and DDP by the number of
        # ranks, so both are multiplied back.
        return loss * (
            self.trainer.accumulate_grad_batches
            * distributed.world_size()
            / batch["step_utterances"]
        )

    def _encode(self, batch: Batch) -> HubertOutput:
        """The output of the encoder for a micro-batch, computed or read."""
        if self.cache is not None:
            return self.cache.contents.unpack(batch["features"])
        views = self.task.views
        valid = batch["valid"].repeat(views, 1)  # (views x B, T)
        unit = range(batch["index"], batch["index"] + 1)
        with torch.set_grad_enabled(batch["step"] >= self.freeze_encoder_steps):
            return self.model(
                batch["waveform"],
                valid=valid,
                mask=batch["mask"],
                channel_mask=batch["channel_mask"],
                active_layers=self.active_layers(unit, len(valid)),
                hidden_states=self.task.needs_all_layers,
                num_samples=batch["num_samples"] if self.norm_over_valid else None,
                views=views,
                chunk_frames=self.chunks.draw(self.seed, batch["step"]),
            )

    def on_fit_start(self) -> None:
        """Run a frozen encoder over all utterances, once."""
        if self.fill_cache is None:
            return
        callbacks: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        (watchdog,) = (each for each in callbacks if isinstance(each, Watchdog))
        self.fill_cache(self.device, watchdog.beat)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `TrainingModule`; with the scale by which readers merge LoRA."""
        super().on_save_checkpoint(checkpoint)
        if scale := lora_scale(self.model):
            checkpoint["network"][LORA_KEY] = scale

    def rates(self) -> Mapping[nn.Parameter, float]:
        """Those of the head and of each layer."""
        return self.part_rates.of(self.model, self.head) if self.part_rates else {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """One utterance, without padding or masks.

        An item that only keeps this rank in step with the others is not scored, and one whose
        frames cannot spell its labels has no part in the mean loss.
        """
        if not batch["counts"]:
            self._valid.add(loss=0.0, utterances=0.0)
            return
        logits = logits_of_item(self.model, self.head, self.task, batch, self.cache)
        if batch["has_loss"]:
            frames = self.model.grid.num_frames(batch["num_samples"])
            num_frames = torch.tensor([frames], device=logits.device)
            loss = self.task.loss(logits, num_frames, batch["labels"], batch["label_lengths"])
            self._valid.add(loss=loss, utterances=1.0)
        else:
            self._valid.add(loss=0.0, utterances=0.0)
        self._validated.append(Scored(batch["id"], batch["reference"], self.task.predict(logits)))

    def on_validation_epoch_end(self) -> None:
        """Compute validation metrics over all ranks."""
        results = gather(self._validated)
        self._validated = []
        sums = self._valid.read(self.device)
        values = self.task.score(results)
        if sums["utterances"] > 0:
            values = {"loss": sums["loss"] / sums["utterances"], **values}
        self.validated = {f"valid/{name}": value for name, value in values.items()}
        self.validated_step = self.trainer.global_step
        report(self.trainer, self.trainer.global_step, self.validated, kind="valid")
        if self.trainer.is_global_zero:
            for message in self.task.warnings(results):
                log.warning("valid step %d: %s", self.trainer.global_step, message)

    def summarise(self, sums: dict[str, float], steps: int, seconds: float) -> dict[str, float]:
        """Loss per utterance in nats, and speed."""
        return {
            "loss": sums["loss"] / sums["utterances"],
            "audio_seconds_per_second": sums["audio"] / max(seconds, 1e-9),
        }

    def higher_is_better(self, name: str) -> bool:
        """The direction of a validated value, as the task states it. A loss is better when low."""
        stated = {each.name: each.higher_is_better for each in self.task.metrics}
        return direction(name, {"loss": False, **stated}, name.removeprefix("valid/"))

    def frozen_parts(self, step: int) -> list[nn.Module]:
        """The encoder, while only the head learns, else a final norm that a mixture of layers does
        not use: it comes after the last layer.
        """
        if step < self.freeze_encoder_steps:
            return [self.model]
        encoder = self.model.context_encoder
        return [encoder.norm] if self.task.needs_all_layers and encoder.pre_norm else []
