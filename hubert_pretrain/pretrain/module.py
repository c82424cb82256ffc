"""Training of an encoder on masked prediction. B utterances, T frames, K clusters, L layer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hubert_pretrain import distributed
from hubert_pretrain.frames import seconds as in_seconds
from hubert_pretrain.model.compile import CompileClock
from hubert_pretrain.model.heads import CodebookHead, SoftmaxHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pretrain.alarms import Alarms
from hubert_pretrain.pretrain.health import Health, embedding_norms, training_flops
from hubert_pretrain.pretrain.layer_supervision import LayerSupervision
from hubert_pretrain.pretrain.loss import LN_2, Prediction, PretrainLoss, masked_prediction_loss
from hubert_pretrain.seeds import derive, generator
from hubert_pretrain.training.loggers import report
from hubert_pretrain.training.module import Meter, TrainingModule
from hubert_pretrain.training.strategies import zero_grad_term

logger = logging.getLogger(__name__)


class PretrainModule(TrainingModule):
    """Loss on hidden frames, and what a person wants to see of it. Everything random is seeded by
    (seed, step) or (seed, micro-batch).
    """

    def __init__(
        self,
        model: Hubert,
        head: CodebookHead | SoftmaxHead,
        *,
        seed: int,
        supervision: LayerSupervision | None = None,
        masked_weight: float = 1.0,
        unmasked_weight: float = 0.0,
        feature_penalty: float = 10.0,
        describe_micro_batch: Callable[[int], str] = "micro-batch {}".format,
        freeze_conv_after_steps: int | None = None,
        compile_clock: CompileClock | None = None,
        warmup_steps: int = 0,
        **training: Any,
    ) -> None:
        """
        Args:
            head: of the last layer. supervision: which layers predict; the last one alone when
            there is none. freeze_conv_after_steps: updates after which the conv encoder does not
            learn any more; None: it always does. compile_clock: of a network whose parts are
            compiled. warmup_steps: before them nobody is alarmed that the network knows nothing.
            describe_micro_batch: names the step and the utterances of a micro-batch. training: goes
            to `TrainingModule`.
        """
        super().__init__(
            shown=(
                "loss/masked",
                "accuracy/masked",
                "accuracy/unmasked",
                "audio_seconds_per_second",
            ),
            **training,
        )
        self.model = model
        self.head = head
        self.seed = seed
        self.masked_weight = masked_weight
        self.unmasked_weight = unmasked_weight
        self.feature_penalty = feature_penalty
        self.freeze_conv_after_steps = freeze_conv_after_steps
        self.supervision = supervision or LayerSupervision(model.config)
        self._describe = describe_micro_batch
        self.valid_values: dict[str, float] = {}
        """What the last validation found: masked_loss_nats, masked_accuracy, unmasked_loss_nats,
        unmasked_accuracy.
        """
        self.validated_step = -1
        self._valid = Meter()
        self._health = Health(head.n_clusters)
        self._alarms = Alarms(warmup_steps=warmup_steps)
        self.compile_clock = compile_clock
        self._flops_by_shape: dict[tuple[int, int, bool], float] = {}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """This micro-batch's share of the loss of its step."""
        step = self.trainer.global_step
        torch.manual_seed(
            derive(self.seed, "dropout", batch["index"])
        )  # torch's dropout has no generator argument
        if batch["waveform"].is_cuda and self.compile_clock is not None:
            # CUDA graphs may now write over what the last micro-batch left behind
            torch.compiler.cudagraph_mark_step_begin()
        masked_frames, all_frames = batch["step_frames"]
        result = self._loss(
            batch,
            layer_keep=self.layer_keep(step),
            frozen=self.is_frozen(step),
            normaliser=(self.masked_weight > 0) * masked_frames
            + (self.unmasked_weight > 0) * (all_frames - masked_frames),
            measure_unmasked=self.is_logging_step,
            measure_layers=self.is_logging_step,
        )
        audio = in_seconds(batch["waveform"].numel())
        self.watch(batch["index"], result.loss, audio_seconds=audio, flops=self._flops_of(batch))
        self.meter.add(torch.isfinite(result.loss), **{**self._sums(result), "loss": result.loss})
        self.meter.add(audio=audio)
        if self.is_logging_step:
            self._health.add(result.masked)
        loss = result.loss + zero_grad_term(self, self._idle(step))
        # The wanted gradient is the sum over micro-batches. Lightning divides by their number per
        # rank, DDP (and FSDP) by that of ranks.
        return loss * (self.trainer.accumulate_grad_batches * distributed.world_size())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """What had no part in this step (dropped layers, a frozen conv encoder) does not move, on
        any number of ranks: not even by Adam's momentum."""
        for parameter in self._idle(self.trainer.global_step):
            parameter.grad = None

    def health(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Codebook use, scales, norms (pretrain/health.py); alarms are logged, and counted in
        `health/alarms`.
        """
        measured = {**self._health.read(), **embedding_norms(self.head)}
        for advice in self._alarms.check(step, {**values, **measured}).values():
            if self.trainer.is_global_zero:
                logger.warning("step %d: %s", step, advice)
        return {**measured, "health/alarms": float(len(self._alarms.raised))}

    def _flops_of(self, batch: dict[str, Any]) -> float:
        (rows, samples), frozen = batch["waveform"].shape, self.is_frozen(self.trainer.global_step)
        if (rows, samples, frozen) not in self._flops_by_shape:
            share = batch["masked_frames"] / batch["mask"].numel()
            head = "softmax" if isinstance(self.head, SoftmaxHead) else "cosine"
            form: dict[str, Any] = {
                "head": head,
                "supervised_layers": 1 + len(self.supervision.intermediate),
                "frozen": frozen,
            }
            flops = training_flops(
                self.model.config, rows, samples, sum(self.head.n_clusters), share, **form
            )
            self._flops_by_shape[rows, samples, frozen] = flops
        return self._flops_by_shape[rows, samples, frozen]

    def describe_batch(self, index: int) -> str:
        """Its step and the ids of its utterances."""
        return self._describe(index)

    def is_frozen(self, step: int) -> bool:
        """Whether the conv encoder does not learn any more."""
        return self.freeze_conv_after_steps is not None and step >= self.freeze_conv_after_steps

    def layer_keep(self, step: int) -> list[bool] | None:
        """Which layers run at a step: the same on every rank and in every micro-batch of it. None
        for all.
        """
        config = self.model.config
        if config.layerdrop == 0:
            return None
        return [
            bool(keep)
            for keep in generator(self.seed, "layerdrop", step).random(config.num_hidden_layers)
            >= config.layerdrop
        ]

    def summarise(self, sums: dict[str, float], steps: int, seconds: float) -> dict[str, float]:
        """Means over the hidden frames since the last logging step; those of visible frames are of
        this step alone, unless they weigh.
        """
        return {
            "loss": sums["loss"] / max(1, steps),
            **_means(sums),
            "feature_penalty": sums["penalty"] / max(1, sums["micro_batches"]),
            "audio_seconds_per_second": sums["audio"] / max(seconds, 1e-9),
            **(
                {}
                if self.compile_clock is None
                else {"compile_seconds": self.compile_clock.seconds}
            ),
        }

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Crops of utterances that are not trained on, with masks that never change."""
        sums = self._sums(
            self._loss(
                batch,
                layer_keep=None,
                frozen=False,
                normaliser=1,
                measure_unmasked=True,
                measure_layers=False,
            )
        )
        self._valid.add(**{name: value * batch["counts"] for name, value in sums.items()})

    def on_validation_epoch_end(self) -> None:
        """Means over every frame of the split, on all ranks."""
        means = _means(self._valid.read(self.device))
        values = {f"valid/{name}": value for name, value in means.items()}
        report(
            self.trainer,
            self.trainer.global_step,
            values,
            shown=[name for name in values if "_bits" not in name],
            kind="valid",
        )
        self.validated_step = self.trainer.global_step
        self.validated = values
        self.valid_values = {
            "masked_loss_nats": means["loss/masked"],
            "masked_accuracy": means["accuracy/masked"],
            "unmasked_loss_nats": means["loss/unmasked"],
            "unmasked_accuracy": means["accuracy/unmasked"],
        }

    def _loss(
        self,
        batch: dict[str, Any],
        *,
        layer_keep: list[bool] | None,
        normaliser: float,
        measure_unmasked: bool,
        measure_layers: bool,
        frozen: bool,
    ) -> PretrainLoss:
        shown: dict[str, Any] = {
            "hidden_states": measure_layers or bool(self.supervision.intermediate),
            "freeze_front_end": frozen,
        }
        output = self.model(batch["waveform"], mask=batch["mask"], layer_keep=layer_keep, **shown)
        if measure_layers:
            self._health.measure(output.hidden_states, layer_keep)
        return masked_prediction_loss(
            self.supervision(output, self.head),
            batch["targets"],
            batch["mask"],
            output.feature_penalty,
            n_clusters=self.head.n_clusters,
            masked_frames=batch["masked_frames"],
            normaliser=normaliser,
            masked_weight=self.masked_weight,
            unmasked_weight=self.unmasked_weight,
            feature_penalty_weight=self.feature_penalty,
            measure_unmasked=measure_unmasked,
        )

    def _sums(self, result: PretrainLoss) -> dict[str, Tensor | float]:
        """What the meter adds up."""
        sums: dict[str, Tensor | float] = {"penalty": result.feature_penalty, "micro_batches": 1}
        _add(sums, "masked", result.masked)
        for layer, prediction in zip(
            self.supervision.intermediate, result.intermediate, strict=True
        ):
            _add(sums, f"masked/layer_{layer}", prediction)
        if result.unmasked is not None:
            _add(sums, "unmasked", result.unmasked)
        return sums

    def _idle(self, step: int) -> list[nn.Parameter]:
        keep = self.layer_keep(step) or []
        frozen = list(self.model.conv_encoder.parameters()) if self.is_frozen(step) else []
        return frozen + [
            parameter
            for layer, kept in zip(self.model.context_encoder.layers, keep, strict=False)
            if not kept
            for parameter in layer.parameters()
        ]


def _add(sums: dict[str, Tensor | float], name: str, prediction: Prediction) -> None:
    """Adds what the meter is to sum up: of the prediction, and of each of several codebooks under
    `<name>/codebook_<n>`, from 1.
    """
    sums |= {
        f"{name}_nll": prediction.nll,
        f"{name}_correct": prediction.correct,
        f"{name}_frames": prediction.frames,
    }
    for number, codebook in enumerate(prediction.codebooks, start=1):
        _add(sums, f"{name}/codebook_{number}", codebook)


def _means(sums: dict[str, float]) -> dict[str, float]:
    """{"loss/masked" in nats, "loss/masked_bits", "accuracy/masked"}, the same of visible frames
    where they were measured, and loss and accuracy of what else there is a sum of, such as
    "loss/masked/layer_6" or "accuracy/masked/codebook_1"."""
    means: dict[str, float] = {}
    for name in [key.removesuffix("_frames") for key in sums if key.endswith("_frames")]:
        if frames := sums[f"{name}_frames"]:
            means[f"loss/{name}"] = sums[f"{name}_nll"] / frames
            if "/" not in name:
                means[f"loss/{name}_bits"] = means[f"loss/{name}"] / LN_2
            means[f"accuracy/{name}"] = sums[f"{name}_correct"] / frames
    return means
