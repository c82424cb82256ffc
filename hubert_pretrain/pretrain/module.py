"""PretrainModule: training of an encoder by masked prediction. B utterances, S samples, T frames,
K clusters.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from hubert_pretrain import distributed
from hubert_pretrain.data.batching import BatchShape
from hubert_pretrain.fields import AUTO
from hubert_pretrain.frames import seconds as in_seconds
from hubert_pretrain.model.compile import Compiler
from hubert_pretrain.model.heads import CodebookHead, SoftmaxHead
from hubert_pretrain.model.hubert import ActiveLayers, Hubert
from hubert_pretrain.model.positional_conv import fastest_form, measures_forms
from hubert_pretrain.pretrain.alarms import COLUMN, Alarms
from hubert_pretrain.pretrain.health import Health, embedding_norms, training_flops
from hubert_pretrain.pretrain.layer_supervision import LayerSupervision
from hubert_pretrain.pretrain.loss import (
    LN_2,
    LossWeights,
    Prediction,
    PretrainLoss,
    masked_prediction_loss,
    predict_frames,
)
from hubert_pretrain.seeds import derive
from hubert_pretrain.training.dynamic_chunks import DynamicChunks
from hubert_pretrain.training.loggers import report
from hubert_pretrain.training.module import Meter, Monitor, TrainingModule
from hubert_pretrain.training.optim import AdamWSettings, Schedule

logger = logging.getLogger(__name__)

SHOWN = ("loss/masked", "accuracy/masked", "accuracy/unmasked", "audio_seconds_per_second")
"""Values of the progress display."""


class PretrainModule(TrainingModule):
    """Masked prediction loss of a network and its head, with diagnostics.

    Everything random is seeded by (seed, step) or (seed, micro-batch), so the step number is all
    there is to resume.
    """

    head: CodebookHead | SoftmaxHead

    def __init__(
        self,
        model: Hubert,
        head: CodebookHead | SoftmaxHead,
        *,
        seed: int,
        optimiser: AdamWSettings,
        schedule: Schedule,
        monitor: Monitor,
        loss_weights: LossWeights | None = None,
        supervision: LayerSupervision | None = None,
        freeze_conv_after_steps: int | None = None,
        chunks: DynamicChunks | None = None,
        compiler: Compiler | None = None,
    ) -> None:
        """
        Args:
            head: of the last layer.
            loss_weights: None: the paper's.
            supervision: layers that predict; None: the last one alone.
            freeze_conv_after_steps: step from which on the conv encoder does not learn; None: it
                always does.
            chunks: attention in chunks of drawn lengths; None: as the network is configured.
            compiler: of a network whose parts are compiled; it compiles the head and its loss too.
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
        self.loss_weights = loss_weights or LossWeights()
        self.supervision = supervision or LayerSupervision(model.config)
        self.freeze_conv_after_steps = freeze_conv_after_steps
        self.chunks = chunks or DynamicChunks()
        self.compiler = compiler
        self._predict = predict_frames
        if compiler is not None and not compiler.sharded:
            self._predict = compiler(predict_frames)
        self.validated_step = -1
        self._valid = Meter()
        self._health = Health(head.n_clusters)
        self._alarms = Alarms(warmup_steps=monitor.warmup_steps)
        self._flops_by_shape: dict[tuple[int, int, bool], float] = {}

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """On a GPU, choose the form of the positional convolution in the first micro-batch."""
        super().on_train_batch_start(batch, batch_idx)
        positions = self.model.context_encoder.positions
        if positions.form == AUTO and measures_forms(self.device):
            rows, frames = batch["mask"].shape
            with self.trainer.precision_plugin.train_step_context():
                form = fastest_form(rows, frames, self.model.config, self.device)
            positions.form = distributed.from_first(form)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also store the form of the positional convolution: a resumed run keeps it."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["positions"] = self.model.context_encoder.positions.form

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also restore the form of the positional convolution, unless the configuration has one."""
        super().on_load_checkpoint(checkpoint)
        positions = self.model.context_encoder.positions
        if positions.form == AUTO:
            positions.form = checkpoint.get("positions", AUTO)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """This micro-batch's share of the loss of its step."""
        units = range(batch["index"], batch["index"] + batch["micro_batches"])
        # torch's dropout has no generator argument.
        torch.manual_seed(derive(self.seed, "dropout", batch["index"]))
        masked_frames, all_frames = batch["step_frames"]
        result = self._loss(
            batch,
            active_layers=self.active_layers(units, len(batch["waveform"])),
            frozen=self.is_frozen(self.trainer.global_step),
            normaliser=self.loss_weights.predicted_frames(
                masked_frames, all_frames - masked_frames
            ),
            measure_unmasked=self.is_logging_step,
            measure_layers=self.is_logging_step,
            chunk_frames=self.chunks.draw(self.seed, batch["step"]),
        )
        audio_seconds = in_seconds(batch["waveform"].numel())
        flops = self._flops_of(batch)
        self.watch(batch["index"], result.loss, audio_seconds=audio_seconds, flops=flops)
        self.meter.add(torch.isfinite(result.loss), **self._sums(result), loss=result.loss)
        self.meter.add(audio=audio_seconds)
        if self.is_logging_step:
            self._health.add(result.masked)
        # The gradient of the step is the sum over its micro-batches. Lightning divides by their
        # number per rank, DDP (and FSDP) by the number of ranks, so both are multiplied back.
        return result.loss * (self.trainer.accumulate_grad_batches * distributed.world_size())

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss on crops of the valid split, with masks that never change."""
        result = self._loss(
            batch,
            active_layers=None,
            frozen=False,
            normaliser=1,
            measure_unmasked=True,
            measure_layers=False,
        )
        rows = len(batch["waveform"])
        sums = self._sums(result)
        for name, value in sums.items():
            if name.endswith("_frames"):
                sums[name] = value * batch["counted_rows"] / rows
        self._valid.add(**sums)

    def on_validation_epoch_end(self) -> None:
        """Compute validation metrics: means over every frame of the split, on all ranks."""
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

    @property
    def valid_values(self) -> dict[str, float]:
        """Results of the last validation."""
        values = {name.removeprefix("valid/"): value for name, value in self.validated.items()}
        return {
            "masked_loss_nats": values["loss/masked"],
            "masked_accuracy": values["accuracy/masked"],
            "unmasked_loss_nats": values["loss/unmasked"],
            "unmasked_accuracy": values["accuracy/unmasked"],
        }

    def blank_batch(
        self, shape: BatchShape, micro_batches: int, device: torch.device
    ) -> dict[str, Any]:
        """A batch of a shape without content, to measure what its training step needs."""
        rows = shape.batch_rows * micro_batches
        mask = torch.zeros(rows, shape.num_frames, dtype=torch.bool, device=device)
        mask[:, : shape.masked_frames] = True
        samples = self.model.grid.num_samples(shape.num_frames)
        codebooks = len(self.head.n_clusters)
        targets = torch.zeros(rows, shape.num_frames, codebooks, dtype=torch.int64, device=device)
        return {
            "waveform": torch.randn(rows, samples, device=device),
            "targets": targets,
            "mask": mask,
            "masked_frames": rows * shape.masked_frames,
        }

    def loss_of(self, batch: dict[str, Any]) -> Tensor:
        """The loss of a micro-batch in which all layers run and learn, in the shortest chunks."""
        result = self._loss(
            batch,
            active_layers=None,
            frozen=False,
            normaliser=batch["masked_frames"],
            measure_unmasked=False,
            measure_layers=False,
            chunk_frames=self.chunks.costliest,
        )
        return result.loss

    def summarise(self, sums: dict[str, float], steps: int, seconds: float) -> dict[str, float]:
        """Means over the masked frames since the last logging step.

        Without a weight, unmasked frames are predicted in logging steps alone, so their means are
        of those.
        """
        values = {
            "loss": sums["loss"] / max(1, steps),
            **_means(sums),
            "feature_penalty": sums["penalty"] / max(1, sums["micro_batches"]),
            "audio_seconds_per_second": sums["audio"] / max(seconds, 1e-9),
        }
        if self.compiler is not None:
            values["compile_seconds"] = self.compiler.clock.seconds
            values["compiled_graphs"] = self.compiler.clock.graphs
        return values

    def health(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Diagnostics (pretrain/health.py). Alarms are told once, and counted in
        `health/alarms`; each that stands has a metric of its own.
        """
        measured = {**self._health.read(), **embedding_norms(self.head)}
        on_gpu = self.device.type == "cuda"
        fired = self._alarms.check(step, {**values, **measured}, on_gpu=on_gpu)
        for advice in fired.values():
            if self.trainer.is_global_zero:
                logger.warning("step %d: %s", step, advice)
        standing = {COLUMN + name: float(logs) for name, logs in self._alarms.standing.items()}
        return {**measured, "health/alarms": float(len(self._alarms.raised)), **standing}

    def is_frozen(self, step: int) -> bool:
        """True from the step on at which the conv encoder stops learning."""
        return self.freeze_conv_after_steps is not None and step >= self.freeze_conv_after_steps

    def frozen_parts(self, step: int) -> list[nn.Module]:
        """The conv encoder, from the step on at which it stops learning."""
        return [self.model.conv_encoder] if self.is_frozen(step) else []

    def _loss(
        self,
        batch: dict[str, Any],
        *,
        active_layers: ActiveLayers | None,
        normaliser: float,
        measure_unmasked: bool,
        measure_layers: bool,
        frozen: bool,
        chunk_frames: int | None = None,
    ) -> PretrainLoss:
        output = self.model(
            batch["waveform"],
            mask=batch["mask"],
            active_layers=active_layers,
            hidden_states=measure_layers or bool(self.supervision.intermediate),
            freeze_front_end=frozen,
            chunk_frames=chunk_frames,
        )
        if measure_layers:
            self._health.measure(output.hidden_states, active_layers)
        return masked_prediction_loss(
            self.supervision(output, self.head),
            batch["targets"],
            batch["mask"],
            output.feature_penalty,
            n_clusters=self.head.n_clusters,
            masked_frames=batch["masked_frames"],
            normaliser=normaliser,
            weights=self.loss_weights,
            measure_unmasked=measure_unmasked,
            predict=self._predict,
        )

    def _sums(self, result: PretrainLoss) -> dict[str, Tensor | float]:
        """Values that the meter sums up."""
        sums: dict[str, Tensor | float] = {"penalty": result.feature_penalty, "micro_batches": 1}
        _add(sums, "masked", result.masked)
        intermediate = zip(self.supervision.intermediate, result.intermediate, strict=True)
        for layer, prediction in intermediate:
            _add(sums, f"masked/layer_{layer}", prediction)
        if result.unmasked is not None:
            _add(sums, "unmasked", result.unmasked)
        return sums

    def _flops_of(self, batch: dict[str, Any]) -> float:
        """Operations of a micro-batch, computed once per shape."""
        rows, samples = batch["waveform"].shape
        frozen = self.is_frozen(self.trainer.global_step)
        shape = (rows, samples, frozen)
        if shape not in self._flops_by_shape:
            self._flops_by_shape[shape] = training_flops(
                self.model.config,
                rows,
                samples,
                sum(self.head.n_clusters),
                batch["masked_frames"] / batch["mask"].numel(),
                head="softmax" if isinstance(self.head, SoftmaxHead) else "cosine",
                supervised_layers=1 + len(self.supervision.intermediate),
                frozen=frozen,
            )
        return self._flops_by_shape[shape]


def _add(sums: dict[str, Tensor | float], name: str, prediction: Prediction) -> None:
    """Add the sums of a prediction to `sums`, and those of each of several codebooks under
    `<name>/codebook_<n>`, from 1.
    """
    sums[f"{name}_nll"] = prediction.nll
    sums[f"{name}_correct"] = prediction.correct
    sums[f"{name}_frames"] = prediction.frames
    for number, codebook in enumerate(prediction.codebooks, start=1):
        _add(sums, f"{name}/codebook_{number}", codebook)


def _means(sums: dict[str, float]) -> dict[str, float]:
    """Mean loss and accuracy of everything that `_add` summed up.

    {"loss/masked" in nats, "loss/masked_bits", "accuracy/masked"}, the same of unmasked frames
    where they were measured, and loss and accuracy of single layers and codebooks, such as
    "loss/masked/layer_6" or "accuracy/masked/codebook_1".
    """
    means: dict[str, float] = {}
    for name in [key.removesuffix("_frames") for key in sums if key.endswith("_frames")]:
        frames = sums[f"{name}_frames"]
        if not frames:
            continue
        means[f"loss/{name}"] = sums[f"{name}_nll"] / frames
        if "/" not in name:
            means[f"loss/{name}_bits"] = means[f"loss/{name}"] / LN_2
        means[f"accuracy/{name}"] = sums[f"{name}_correct"] / frames
    return means
