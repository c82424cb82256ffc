"""Training of an encoder with a head on it. B utterances, T frames, L layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hubert_pretrain import distributed
from hubert_pretrain.finetune.dataset import Batch
from hubert_pretrain.finetune.inference import gather, scores
from hubert_pretrain.finetune.task import Task
from hubert_pretrain.frames import seconds as in_seconds
from hubert_pretrain.model.heads import ClassificationHead, CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.seeds import derive, generator
from hubert_pretrain.training.loggers import report
from hubert_pretrain.training.module import Meter, TrainingModule
from hubert_pretrain.training.strategies import zero_grad_term


class FinetuneModule(TrainingModule):
    """The task says what is predicted; this says how it is trained (fairseq's HubertEncoder and CTC
    criterion).

    The conv encoder is frozen when its gradient scale is 0. For the first `freeze_encoder_steps`
    updates the whole encoder is, though it stays in training mode: masks, dropout and layer drop
    are at work, as in the reference. Everything random is seeded by (seed, step) or (seed,
    micro-batch), so the step number is all there is to resume.
    """

    def __init__(
        self,
        model: Hubert,
        head: CTCHead | ClassificationHead,
        task: Task,
        *,
        freeze_encoder_steps: int,
        seed: int,
        norm_over_valid: bool = False,
        describe_micro_batch: Callable[[int], str] = "micro-batch {}".format,
        **training: Any,
    ) -> None:
        """
        Args:
            norm_over_valid: a norm over time (group-norm models) leaves padding out, so that a
            padded row counts as it does alone, which is
                how it is scored and exported. The reference's does not.
            describe_micro_batch: names the step and the utterances of a micro-batch.
            training: goes to `TrainingModule`.
        """
        super().__init__(shown=("loss", "lr", "audio_seconds_per_second"), **training)
        self.model = model
        self.head = head
        self.task = task
        self.freeze_encoder_steps = freeze_encoder_steps
        self.seed = seed
        self.norm_over_valid = norm_over_valid
        self.train()  # a loaded model is in eval mode, and Lightning leaves modes as they are
        self.describe_batch = describe_micro_batch  # type: ignore[method-assign, assignment]
        self._heard: list[
            tuple[str, str]
        ] = []  # (reference, prediction) of the validation that runs
        self._valid = Meter()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss per utterance of the step, as this micro-batch's share of it."""
        step = batch["step"]
        valid = batch["valid"]
        torch.manual_seed(derive(self.seed, "dropout", batch["index"]))
        with torch.set_grad_enabled(step >= self.freeze_encoder_steps):
            output = self.model(
                batch["waveform"],
                valid=valid,
                mask=batch["mask"],
                channel_mask=batch["channel_mask"],
                layer_keep=self.layer_keep(step),
                hidden_states=self.task.every_layer,
                num_samples=batch["num_samples"] if self.norm_over_valid else None,
            )
        logits = self.task.logits(self.head, output, valid)
        loss = self.task.loss(logits, valid.sum(dim=1), batch["labels"], batch["label_lengths"])
        audio_seconds = in_seconds(batch["waveform"].numel())
        self.watch(batch["index"], loss, audio_seconds=audio_seconds)
        self.meter.add(loss=loss, utterances=len(valid), audio=audio_seconds)
        loss = loss + zero_grad_term(self, self._idle(step))
        # The gradient wanted is d(sum over all micro-batches of the step) / utterances of the step.
        # Lightning divides by the number of accumulated micro-batches and DDP by the number of
        # ranks, so both are multiplied back.
        return loss * (
            self.trainer.accumulate_grad_batches
            * distributed.world_size()
            / batch["step_utterances"]
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Parameters that had no part in this step do not move, on any number of ranks: not even by
        Adam's momentum.
        """
        for parameter in self._idle(self.trainer.global_step):
            parameter.grad = None

    def layer_keep(self, step: int) -> list[bool]:
        """Which layers run at a step: the same on every rank."""
        layers = self.model.config.num_hidden_layers
        return [
            bool(keep)
            for keep in generator(self.seed, "layerdrop", step).random(layers)
            >= self.model.config.layerdrop
        ]

    def _idle(self, step: int) -> list[nn.Parameter]:
        if step < self.freeze_encoder_steps:
            return [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        encoder = self.model.context_encoder
        idle = [
            layer
            for layer, kept in zip(encoder.layers, self.layer_keep(step), strict=True)
            if not kept
        ]
        if self.task.every_layer and encoder.pre_norm:
            idle.append(
                encoder.norm
            )  # comes after the last layer, and a mixture of layers is taken before it
        return [parameter for part in idle for parameter in part.parameters()]

    def summarise(self, sums: dict[str, float], steps: int, seconds: float) -> dict[str, float]:
        """Loss per utterance in nats, and speed."""
        return {
            "loss": sums["loss"] / sums["utterances"],
            "audio_seconds_per_second": sums["audio"] / max(seconds, 1e-9),
        }

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """One utterance, without padding or masks; one that only keeps this rank in step with the
        others is not heard.
        """
        if not batch["counts"]:
            self._valid.add(loss=0.0, utterances=0.0)
            return
        logits = scores(self.model, self.head, self.task, batch["waveform"])
        num_frames = torch.tensor(
            [self.model.grid.num_frames(batch["waveform"].shape[1])], device=logits.device
        )
        self._valid.add(
            loss=self.task.loss(logits, num_frames, batch["labels"], batch["label_lengths"]),
            utterances=1.0,
        )
        self._heard.append((batch["reference"], self.task.predict(logits)))

    def on_validation_epoch_end(self) -> None:
        """Scores everything that was heard, on all ranks."""
        heard = gather(self._heard)
        sums = self._valid.read(self.device)
        self._heard = []
        scored = self.task.score([said for said, _ in heard], [guess for _, guess in heard])
        values = {"loss": sums["loss"] / sums["utterances"], **scored}
        self.validated = {f"valid/{name}": value for name, value in values.items()}
        report(self.trainer, self.trainer.global_step, self.validated, kind="valid")
