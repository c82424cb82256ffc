"""Estimated cost of a training, from the form of its network: parameters, disk, memory, days.

N frames of a micro-batch, T frames of one crop, D width, L layers, C conv channels.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hubert_pretrain.distributed import accumulation
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.files import human_bytes
from hubert_pretrain.frames import samples
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.flops import forward_macs, training_flops_per_second
from hubert_pretrain.preflight.report import CheckResult, of_error, ok, warning

FLOAT = 4
"""Bytes of a number in fp32."""
MANY_DAYS = 2.0
"""Warning: a CPU would take longer."""
_CPU_EFFICIENCY = 0.3
"""Share of the speed of a large matrix product that training reaches on a CPU (measured on the
demo).
"""
_RESERVE = 1.15
"""Buffers of the allocator and of the libraries."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A stage that trains, before it has begun."""

    stage: str
    model: HubertConfig
    steps: int
    batch_seconds: float
    micro_batch_seconds: float
    crop_seconds: float
    """Longest row of a micro-batch."""
    freezes_encoder: bool = False
    """True when the conv encoder needs no gradients."""
    learning_layers: int | None = None
    """Number of the last layers that learn, where the others need no gradients; None: all."""
    n_clusters: int = 500
    """K of the targets."""
    head: str = "cosine"
    """Head of each supervised layer: cosine or softmax."""
    supervised_layers: int = 1
    """Number of layers with a loss."""
    shard_size: int = 1
    """Processes that share weights and moments (fsdp, hsdp)."""
    whole_gradients: bool = True
    """False when they share the gradients too, between the micro-batches of a step."""

    @property
    def micro_batches(self) -> int:
        """Forward passes of a step, over all devices."""
        return round(self.batch_seconds / self.micro_batch_seconds)

    @property
    def audio_bytes(self) -> int:
        """The audio of a micro-batch."""
        return FLOAT * samples(self.micro_batch_seconds)


def parameters(model: HubertConfig) -> int:
    """Parameters of the encoder, counted without making them."""
    import torch

    from hubert_pretrain.model.hubert import Hubert

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Hubert(model).parameters())


def checkpoint_bytes(model: HubertConfig, checkpoints: int) -> int:
    """Largest size on disk: weights and Adam's two moments in fp32, for each of the `checkpoints`
    and the next one while it is written, and the weights of the result.
    """
    return FLOAT * parameters(model) * (3 * (checkpoints + 1) + 1)


def activation_bytes(
    training: Training, *, number_bytes: int, gradient_checkpointing: bool, eager: bool = False
) -> int:
    """Activations of one micro-batch for the backward pass.

    A layer needs 18 D + 4 I bytes of a frame in half precision (Korthikanti et al. 2022, arXiv
    2205.05198, section 4.1: 34 D for I = 4 D), attention's matrices only where it is computed
    eagerly. A conv layer needs the outputs of its convolution, norm and activation, or where they
    are recomputed only the first, and the first layer none (model/conv_encoder.py).
    """
    model = training.model
    num_samples = samples(training.micro_batch_seconds)
    num_frames = model.grid.num_frames(num_samples)
    crop_frames = model.grid.num_frames(samples(training.crop_seconds))

    # One transformer layer, then all: with checkpointing each layer stores its input, and one
    # layer at a time is computed again.
    layer = (9 * model.hidden_size + 2 * model.intermediate_size) * num_frames
    if eager:
        layer += 5 * model.num_attention_heads * crop_frames * num_frames // 2
    learning = training.learning_layers or model.num_hidden_layers
    layers = learning * layer
    if gradient_checkpointing and training.learning_layers is None:
        layers = model.num_hidden_layers * model.hidden_size * num_frames + layer

    # The conv encoder; a frozen one needs half.
    conv = 0
    if model.front_end == "conv":
        length = num_samples
        stored = 3 if model.feat_extract_norm == "layer" else 2  # outputs of each operation
        for index, (channels, stride) in enumerate(
            zip(model.conv_dim, model.conv_stride, strict=True)
        ):
            length //= stride
            if not gradient_checkpointing:
                conv += stored * channels * length
            elif index > 0:
                conv += channels * length
    if training.freezes_encoder:
        conv //= 2
    return int(number_bytes * (layers + conv))


def training_bytes(
    training: Training, *, precision: str, gradient_checkpointing: bool = False, eager: bool = False
) -> int:
    """Memory of a device: weights, gradients and Adam's moments in fp32, the copies that mixed
    precision makes, and activations.

    Processes that shard the weights have their part of them and of the moments, and gather two
    layers at a time.
    """
    mixed = not precision.startswith("32")
    count = parameters(training.model)
    if training.shard_size == 1:
        weights = count * (4 * FLOAT + (2 if mixed else 0))
    else:
        gradients = FLOAT if training.whole_gradients else FLOAT / training.shard_size
        gathered = 2 * (2 if mixed else FLOAT) / (training.model.num_hidden_layers + 1)
        weights = int(count * (3 * FLOAT / training.shard_size + gradients + gathered))
    activations = activation_bytes(
        training,
        number_bytes=2 if mixed else FLOAT,
        gradient_checkpointing=gradient_checkpointing,
        eager=eager,
    )
    # The first conv layer needs most at one moment: its output, that of its norm and a gradient, in
    # fp32.
    model = training.model
    moment = 0
    if model.front_end == "conv":
        length = samples(training.micro_batch_seconds) // model.conv_stride[0]
        moment = 3 * FLOAT * model.conv_dim[0] * length
    return int(_RESERVE * (weights + activations + moment))


def step_operations(training: Training) -> float:
    """Floating point operations of an update, over all devices."""
    return training.batch_seconds * operations_per_second(training)


def operations_per_second(training: Training) -> float:
    """Floating point operations of forward and backward pass for a second of audio."""
    if training.learning_layers is not None:
        return _operations_of_last_layers(training, training.learning_layers)
    return training_flops_per_second(
        training.model,
        clip_seconds=training.crop_seconds,
        n_clusters=training.n_clusters,
        head=training.head,
        supervised_layers=training.supervised_layers,
        frozen=training.freezes_encoder,
    )


def _operations_of_last_layers(training: Training, learning_layers: int) -> float:
    """The same where only the last layers learn: their backward pass is twice their forward pass,
    and the others have none.
    """
    model = training.model
    macs = forward_macs(model, samples(training.crop_seconds))
    of_layers = macs["linear"] + macs["attention"]
    learning = learning_layers / model.num_hidden_layers * of_layers
    return 2 * (sum(macs.values()) + 2 * learning) / training.crop_seconds


def cpu_speed(seconds: float = 0.2) -> float:
    """Operations per second of this machine in a matrix product, measured for that long."""
    import torch

    size = 512
    one = torch.randn(size, size)
    other = torch.randn(size, size)
    count = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        one @ other
        count += 1
    return 2.0 * size**3 * count / (time.perf_counter() - started)


def check(
    trainings: Sequence[Training],
    *,
    devices: int,
    device_bytes: int | None,
    precision: str,
    gradient_checkpointing: bool,
    eager: bool,
) -> list[CheckResult]:
    """All checks of the trainings. `device_bytes`: memory of a GPU; None on the CPU."""
    if not trainings:
        return []
    fits = fit(
        trainings,
        device_bytes=device_bytes,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        eager=eager,
    )
    return [share(trainings, devices), fits, days(trainings, on_gpu=device_bytes is not None)]


def share(trainings: Sequence[Training], devices: int) -> CheckResult:
    """The devices share the micro-batches of a step equally."""
    for each in trainings:
        try:
            accumulation(each.micro_batches, devices, key=each.stage)
        except ConfigError as failure:
            return of_error("step", failure)
    counts = sorted({(each.micro_batches, each.micro_batches // devices) for each in trainings})
    where = "on one device" if devices == 1 else f"on {devices} devices"
    each_has = "" if devices == 1 else ", {} on each"
    return ok(
        "step",
        "; ".join(
            f"{n} micro-batch{'es' * (n > 1)} {where}" + each_has.format(mine) for n, mine in counts
        ),
    )


def fit(
    trainings: Sequence[Training],
    *,
    device_bytes: int | None,
    precision: str,
    gradient_checkpointing: bool,
    eager: bool,
) -> CheckResult:
    """A micro-batch fits into the device. `device_bytes`: None on the CPU, whose memory has a check
    of its own.
    """
    needs = [
        training_bytes(
            each, precision=precision, gradient_checkpointing=gradient_checkpointing, eager=eager
        )
        for each in trainings
    ]
    need = max(needs)
    largest = trainings[needs.index(need)]
    found = (
        f"{largest.stage} needs about {human_bytes(need)} (an estimate) for "
        f"{largest.micro_batch_seconds:g} s of audio"
    )
    if largest.shard_size > 1:
        found += f", its weights and moments shared by {largest.shard_size} processes"
    if device_bytes is None:
        return ok("batch fit", found)
    found += f", the GPU has {human_bytes(device_bytes)}"
    if need > device_bytes:
        smaller = replace(largest, micro_batch_seconds=largest.micro_batch_seconds / 2)
        saved = human_bytes(
            training_bytes(
                smaller,
                precision=precision,
                gradient_checkpointing=gradient_checkpointing,
                eager=eager,
            )
        )
        fix = (
            f"halve micro_batch_seconds (about {saved}; the run stays the same but for its "
            "buckets), or set trainer.gradient_checkpointing=true"
        )
        return warning("batch fit", found, fix)
    return ok("batch fit", found)


def days(trainings: Sequence[Training], *, on_gpu: bool, speed: float | None = None) -> CheckResult:
    """Time of the trainings on a CPU of `speed` operations per second (None: measure it). For GPUs
    the recipes state measured times."""
    if on_gpu:
        return ok("time", "on a GPU: see the README of the recipe")
    total = (
        sum(each.steps * step_operations(each) for each in trainings)
        / ((speed or cpu_speed()) * _CPU_EFFICIENCY)
        / 86400
    )
    found = f"training on this CPU takes about {_duration(total)} (an estimate)"
    if total > MANY_DAYS:
        fix = (
            "use GPUs (trainer=gpu, trainer=ddp trainer.devices=8), or a smaller recipe such as "
            "demo"
        )
        return warning("time", found, fix)
    return ok("time", found)


def _duration(days: float) -> str:
    if days >= 1:
        return f"{days:,.0f} days"
    if 24 * days > 1:
        return f"{24 * days:.1f} hours"
    return f"{max(2.0, 24 * 60 * days):.0f} minutes"
