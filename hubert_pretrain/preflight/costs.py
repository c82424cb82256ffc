"""`stage=plan`: operations, time, disk, memory and price of each stage, before anything is spent.

Operations are counted from the form of the network (model/flops.py). Time is operations divided by
a speed: on this machine the speed of a few training steps, measured now; on a GPU that `plan.gpu`
names, its data sheet times `plan.mfu`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import ClusteringConfig, FinetuneConfig, PlanConfig, Recipe
from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.files import human_bytes, write_json
from hubert_pretrain.frames import SAMPLE_RATE, samples
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.flops import forward_macs
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight import budget, report, training_cost
from hubert_pretrain.preflight.budget import Audio, Work
from hubert_pretrain.preflight.training_cost import Training
from hubert_pretrain.training.dynamic_chunks import DynamicChunks, describe_chunks

STARTUP_SECONDS = 5.0
"""Of a stage's process: imports, and the corpus is opened."""
READ_RATE = 1500.0
"""Audio seconds that one core decodes per second: FLAC at 16 kHz (docs/benchmarks.md)."""
VOICE_SECONDS = 0.0036
"""Of a core, for a second of audio in another voice (docs/spin.md)."""
UTTERANCE_SECONDS = 12.0
"""Mean length of an utterance before the corpus is prepared: LibriSpeech's."""
PASSES = 20
"""Passes of k-means over its frames, its start included."""
MEASURED_SECONDS = 2.0
"""Time that the speed of a training on this machine is measured for."""
_MEASURED_AUDIO = 16.0
"""Seconds of audio, at most, of the micro-batch that is measured."""
_ASSUMED_MFU = 0.2
"""Of a GPU when `plan.mfu` is 0: the estimate for this package before anything was measured."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device that the work is planned for."""

    name: str
    peak: float
    """Operations per second, from the data sheet; 0: this machine, whose speed is measured."""
    mfu: float
    """Share of the peak that a training reaches."""

    @property
    def is_here(self) -> bool:
        """True for this machine."""
        return self.peak == 0


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """The cost of one stage."""

    stage: str
    operations: float
    """Floating point operations of the network and of k-means; multiply-adds count as two."""
    audio_seconds: float
    """Audio that passes through the stage."""
    seconds: float
    """On one device."""
    parts: int = 1
    """Devices that can share it, at most: the micro-batches of a step."""
    disk: int = 0
    """Bytes that it writes, at most at one time."""
    memory: int = 0
    """Bytes on each device."""

    def seconds_on(self, devices: int) -> float | None:
        """Time on so many devices, without what they tell each other; None: they cannot share a
        step equally. A stage of one process takes as long as on one.
        """
        if self.parts == 1:
            return self.seconds
        if self.parts % devices:
            return None
        work = self.seconds - STARTUP_SECONDS
        return STARTUP_SECONDS + work / devices

    @property
    def loader_rate(self) -> float:
        """Audio seconds per second that the loader of one device must supply."""
        work = self.seconds - STARTUP_SECONDS
        return self.audio_seconds / work if self.parts > 1 and work > 0 else 0.0


def run(recipe: Recipe, workspace: Workspace) -> None:
    """Print the table and its assumptions, and write plan.json.

    Raises ConfigError for a GPU that is not in the table of data sheets.
    """
    config = recipe.plan
    device = chosen_device(config)
    audio = _audio(recipe, workspace)
    utterance = _utterance_seconds(workspace)
    stages = [each for each in plan.stages(recipe) if not workspace.is_done(each.name)]
    costs = list(_costs(recipe, workspace, stages, device, audio, utterance))
    counts = config.devices or [recipe.trainer.devices * recipe.trainer.num_nodes]
    done = len(plan.stages(recipe)) - len(stages)
    assumptions = _assumptions(device, audio, utterance, config, done)
    assumptions += [
        f"{stage.name}: {line}"
        for stage in stages
        for line in _streaming(recipe, stage) + _other_voices(recipe, stage)
    ]
    _show(f"{recipe.name} on {device.name}", costs, counts, device, config.price)
    for line in assumptions:
        print(f"- {line}")
    write_json(
        workspace.plan_path,
        {
            "recipe": recipe.name,
            "device": asdict(device),
            "stages": [
                {
                    **asdict(cost),
                    "loader_rate": cost.loader_rate,
                    "seconds_on": {str(count): cost.seconds_on(count) for count in counts},
                }
                for cost in costs
            ],
            "total": {
                "operations": sum(cost.operations for cost in costs),
                "seconds_on": {str(count): total_seconds(costs, count) for count in counts},
                "price": _price(costs, config.price),
            },
            "assumptions": assumptions,
        },
    )


def markdown(recipe: Recipe) -> str:
    """The trainings of a recipe as a table for a page: the same numbers as those of `run`.

    Of the other stages it has the disk alone: they take little, and their time depends on the
    machine that reads the audio.
    """
    config = recipe.plan
    workspace = Workspace(recipe.work_dir)
    device = chosen_device(config)
    every = plan.stages(recipe)
    stages = [each for each in every if each.verb in plan.TRAININGS]
    audio = _audio(recipe, workspace)
    works = [budget.work_of(each, recipe.model, workspace) for each in every]
    disk = sum(budget.disk(works, audio, checkpoints=recipe.trainer.keep_checkpoints).values())
    costs = list(_costs(recipe, workspace, stages, device, audio, UTTERANCE_SECONDS))
    counts = config.devices or [1]
    header = ["stage", "PFLOP", "GPU-hours"]
    header += [f"on {count} GPU{'s' * (count > 1)}" for count in counts]
    header += ["audio-s/s a GPU reads", "memory", "disk", "price"]
    rows = [
        [f"`{cost.stage}`", *_row(cost, counts)[1:], f"{_price([cost], config.price):,.0f}"]
        for cost in costs
    ]
    rest = human_bytes(disk - sum(cost.disk for cost in costs))
    rows.append(["other stages", *[""] * (len(counts) + 4), rest, ""])
    total = [
        "all",
        _number(sum(cost.operations for cost in costs) / 1e15),
        _number(sum(cost.seconds for cost in costs) / 3600),
        *(_duration(total_seconds(costs, count)) for count in counts),
        "",
        human_bytes(max(cost.memory for cost in costs)),
        human_bytes(disk),
        f"{_price(costs, config.price):,.0f}",
    ]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows, total]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def chosen_device(config: PlanConfig) -> Device:
    """The GPU that `plan.gpu` names, or this machine."""
    if not config.gpu:
        return Device(name="this machine", peak=0.0, mfu=0.0)
    from hubert_pretrain.training.utilisation import data_sheet_flops, known_gpus

    peak = data_sheet_flops(config.gpu)
    if peak is None:
        known = known_gpus()
        raise ConfigError(
            f"plan.gpu={config.gpu}: no such GPU in the table{did_you_mean(config.gpu, known)}; "
            f"expected one of {', '.join(known)}"
        )
    return Device(name=config.gpu, peak=peak, mfu=config.mfu or _ASSUMED_MFU)


def total_seconds(costs: Sequence[StageCost], devices: int) -> float | None:
    """Time of all stages, one after another; None when one of them cannot be shared so."""
    times = [cost.seconds_on(devices) for cost in costs]
    return None if None in times else sum(each for each in times if each is not None)


def _audio(recipe: Recipe, workspace: Workspace) -> Audio:
    """The size of the corpus: as it was prepared, or `plan.hours`."""
    found = budget.audio_of(workspace)
    if found.all or not recipe.plan.hours:
        return found
    total = samples(3600 * recipe.plan.hours)
    return Audio(all=total, train=total, valid=0)


def _utterance_seconds(workspace: Workspace) -> float:
    """Mean length of an utterance of the corpus."""
    facts = workspace.artefact("prepare").facts if workspace.is_done("prepare") else {}
    utterances = int(facts.get("utterances", 0))
    return 3600 * float(facts["hours"]) / utterances if utterances else UTTERANCE_SECONDS


def _costs(
    recipe: Recipe,
    workspace: Workspace,
    stages: Sequence[Stage],
    device: Device,
    audio: Audio,
    utterance: float,
) -> Iterator[StageCost]:
    """The cost of each stage, in order. `utterance`: mean length in seconds."""
    works = [budget.work_of(stage, recipe.model, workspace) for stage in stages]
    disk = budget.disk(works, audio, checkpoints=recipe.trainer.keep_checkpoints)
    precision = "32-true" if device.is_here else "bf16-mixed"
    speeds = Speeds(device, recipe.model)
    for stage, work in zip(stages, works, strict=True):
        if work.training is None:
            cost = _cost_of(stage, work, speeds, audio)
            memory = 0
        else:
            usual = _planned(work.training, recipe, stage, utterance)
            cost = _training_cost(usual, stage, speeds)
            memory = training_cost.training_bytes(
                budget.sharded(work.training, recipe.trainer),
                precision=precision,
                gradient_checkpointing=recipe.trainer.gradient_checkpointing,
                eager=recipe.trainer.attention == "eager",
            )
        yield replace(cost, disk=disk[stage.name], memory=memory)


def _planned(training: Training, recipe: Recipe, stage: Stage, utterance: float) -> Training:
    """The training with its head, and with rows of the usual length: the longest need most memory,
    but do not tell the time.
    """
    training = replace(training, crop_seconds=min(training.crop_seconds, utterance))
    if stage.verb != "pretrain":
        return training
    iteration = recipe.iterations[stage.name.split("/")[0]]
    loss = iteration.pretrain.loss
    clustered = not (iteration.codebook or iteration.targets)
    return replace(
        training,
        n_clusters=iteration.clustering.n_clusters if clustered else training.n_clusters,
        head=loss.head,
        supervised_layers=max(1, len(loss.supervised_layers)),
    )


def _cost_of(stage: Stage, work: Work, speeds: Speeds, audio: Audio) -> StageCost:
    if stage.verb == "prepare":
        read = audio.all / SAMPLE_RATE
        seconds = read / (READ_RATE * (os.cpu_count() or 1))
        return _cost(stage, operations=0.0, audio_seconds=read, seconds=seconds)
    if stage.verb == "cluster":
        return _clustering_cost(stage, work, speeds, audio)
    if stage.verb == "label":
        return _feature_cost(stage, stage.sections.get("features", {}), speeds, audio.all)
    return _cost(stage, operations=0.0, audio_seconds=0.0, seconds=0.0)


def _cost(stage: Stage, *, operations: float, audio_seconds: float, seconds: float) -> StageCost:
    return StageCost(
        stage=stage.name,
        operations=operations,
        audio_seconds=audio_seconds,
        seconds=STARTUP_SECONDS + seconds,
    )


def _training_cost(training: Training, stage: Stage, speeds: Speeds) -> StageCost:
    # While the encoder is frozen it has no backward pass, two thirds of the work.
    config = stage.sections[stage.verb]
    frozen_steps = 0
    if isinstance(config, FinetuneConfig):
        frozen_steps = min(config.freeze_encoder_steps, training.steps)
    steps = training.steps - frozen_steps * 2 / 3
    operations = steps * training_cost.step_operations(training)
    return StageCost(
        stage=training.stage,
        operations=operations,
        audio_seconds=training.steps * training.batch_seconds,
        seconds=STARTUP_SECONDS + operations / speeds.training(training),
        parts=training.micro_batches,
    )


def _clustering_cost(stage: Stage, work: Work, speeds: Speeds, audio: Audio) -> StageCost:
    config: ClusteringConfig = stage.sections["clustering"]
    num_samples = budget.clustered_samples(work, audio)
    num_frames = num_samples // work.grid.hop
    cost = _feature_cost(stage, stage.sections["features"], speeds, num_samples)
    operations = 2.0 * num_frames * work.dim * config.n_clusters * PASSES
    return replace(
        cost,
        operations=cost.operations + operations,
        seconds=cost.seconds + operations / speeds.products(),
    )


def _feature_cost(
    stage: Stage, features: Mapping[str, Any], speeds: Speeds, num_samples: int
) -> StageCost:
    """Features of so much audio."""
    audio_seconds = num_samples / SAMPLE_RATE
    if features.get("checkpoint"):
        operations = audio_seconds * forward_operations(speeds.model, features.get("layer"))
        seconds = operations / speeds.products()
    else:
        operations = 0.0
        seconds = audio_seconds / speeds.features(features) if features else 0.0
    seconds = max(seconds, audio_seconds / (READ_RATE * (os.cpu_count() or 1)))
    return _cost(stage, operations=operations, audio_seconds=audio_seconds, seconds=seconds)


def forward_operations(
    model: HubertConfig, layer: object = None, *, clip_seconds: float = 15.0
) -> float:
    """Operations per second of audio up to a layer. Where it is chosen later (`auto`), all layers
    run.
    """
    macs = forward_macs(model, round(clip_seconds * SAMPLE_RATE))
    depth = layer if isinstance(layer, int) else model.num_hidden_layers
    share = min(depth, model.num_hidden_layers) / model.num_hidden_layers
    before = macs["front end"] + macs["projection"] + macs["positions"]
    return 2.0 * (before + share * (macs["linear"] + macs["attention"])) / clip_seconds


class Speeds:
    """Speeds of a device, in operations per second; those of this machine are measured once."""

    def __init__(self, device: Device, model: HubertConfig) -> None:
        self.device = device
        self.model = model
        self._trainings: dict[str, float] = {}
        self._features: dict[str, float] = {}
        self._products = 0.0

    def training(self, training: Training) -> float:
        """Of a training."""
        if not self.device.is_here:
            return self.device.peak * self.device.mfu
        key = f"{training.crop_seconds} {training.micro_batch_seconds} {training.freezes_encoder}"
        if key not in self._trainings:
            self._trainings[key] = measured_training_speed(training)
        return self._trainings[key]

    def products(self) -> float:
        """Of a network without gradients, and of k-means."""
        if not self.device.is_here:
            return self.device.peak * self.device.mfu
        if not self._products:
            self._products = training_cost.cpu_speed()
        return self._products

    def features(self, node: Mapping[str, Any]) -> float:
        """Seconds of audio per second, of features that no network makes, on one core of this
        machine.
        """
        key = str(node)
        if key not in self._features:
            self._features[key] = measured_feature_rate(node)
        return self._features[key]


def measured_training_speed(training: Training, seconds: float = MEASURED_SECONDS) -> float:
    """Operations per second of forward pass, backward pass and AdamW on this machine, for a network
    and crops of this form.
    """
    import torch

    from hubert_pretrain.model.heads import CodebookHead
    from hubert_pretrain.model.hubert import Hubert

    model = Hubert(training.model).train()
    if training.freezes_encoder:
        model.conv_encoder.requires_grad_(False)
    size = training.model.projection_size
    head = CodebookHead(training.model.hidden_size, size, training.n_clusters)
    parameters = [each for each in [*model.parameters(), *head.parameters()] if each.requires_grad]
    optimiser = torch.optim.AdamW(parameters, fused=True)
    crop_seconds = min(training.crop_seconds, training.micro_batch_seconds)
    rows = max(1, int(min(training.micro_batch_seconds, _MEASURED_AUDIO) / crop_seconds))
    waveform = torch.randn(rows, samples(crop_seconds))
    frames = training.model.grid.num_frames(waveform.shape[1])
    masked = torch.arange(rows * frames) % 2 == 0

    def step() -> None:
        output = model(waveform, mask=masked.view(rows, frames))
        logits = head(output.last.flatten(0, 1)[masked])
        (logits.logsumexp(-1) - logits[:, 0]).mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    step()  # memory is allocated in the first one
    whole = replace(training, learning_layers=None)  # all of it learns here
    operations = rows * crop_seconds * training_cost.operations_per_second(whole)
    steps = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    return operations * steps / (time.perf_counter() - started)


def measured_feature_rate(node: Mapping[str, Any], audio_seconds: float = 30.0) -> float:
    """Seconds of audio per second of a feature extractor on this machine."""
    import torch

    extract = compose.build(dict(node))
    waveform = torch.randn(1, samples(audio_seconds))
    extract(waveform)  # tables are made in the first call
    started = time.perf_counter()
    extract(waveform)
    return audio_seconds / (time.perf_counter() - started)


# -- for people


def _streaming(recipe: Recipe, stage: Stage) -> list[str]:
    """The latency of the network of a training, if it is for streams."""
    first, _, second = stage.name.partition("/")
    if second == "pretrain":
        config = recipe.iterations[first].pretrain
        return describe_chunks(recipe.model, DynamicChunks.of(config.dynamic_chunks))
    if first != "finetune":
        return []
    task = recipe.finetune[second]
    left = task.left_context_frames
    model = replace(recipe.model, chunk_frames=task.chunk_frames, left_context_frames=left)
    return describe_chunks(model, DynamicChunks.of(task.dynamic_chunks))


def _other_voices(recipe: Recipe, stage: Stage) -> list[str]:
    """The work of the loader of a pretraining beside reading, as a sentence."""
    if stage.verb != "pretrain":
        return []
    config = recipe.iterations[stage.name.split("/")[0]].pretrain
    share = config.augment.voice_probability
    if not share:
        return []
    seconds = share * VOICE_SECONDS * config.steps * config.batch_seconds
    return [
        f"{100 * share:g} % of the crops are heard in another voice, which takes "
        f"{1000 * VOICE_SECONDS:g} ms of a core for each second of audio, {_duration(seconds)} of "
        "one core in all; loaders do that beside the training, and it is not counted"
    ]


def _assumptions(
    device: Device, audio: Audio, utterance: float, config: PlanConfig, done: int
) -> list[str]:
    """The sentences under the table."""
    if device.is_here:
        speed = f"the speed of training is that of {MEASURED_SECONDS:g} s of steps, measured now"
    else:
        source = "plan.mfu" if config.mfu else "an estimate, set plan.mfu to a measured value"
        speed = (
            f"one {device.name} computes {device.peak / 1e12:,.0f} TFLOP/s (16 bits, data sheet), "
            f"of which training reaches {100 * device.mfu:g} % ({source})"
        )
    found = [
        speed,
        f"audio is decoded at {READ_RATE:,.0f} s per second and core, k-means needs {PASSES} "
        f"passes, and a stage {STARTUP_SECONDS:g} s to start; validations, checkpoints and what "
        "devices tell each other are left out",
    ]
    found.append(f"utterances last {utterance:.1f} s on average")
    if audio.all:
        found.append(f"the corpus has {audio.all / SAMPLE_RATE / 3600:,.2f} h")
    else:
        found.append(
            "the size of the corpus is not known before prepare: set plan.hours for prepare, "
            "cluster and label"
        )
    if done:
        found.append(f"{done} stages are done and left out")
    return found


def _show(
    title: str,
    costs: Sequence[StageCost],
    counts: Sequence[int],
    device: Device,
    price: float,
) -> None:
    """Print the table."""
    hours = "hours" if device.is_here else "GPU-hours"
    header = ["stage", "PFLOP", hours]
    header += [f"on {count}" for count in counts]
    header += ["audio-s/s", "memory", "disk"]
    rows = [_row(cost, counts) for cost in costs]
    total: list[str] = [
        "all",
        _number(sum(cost.operations for cost in costs) / 1e15),
        _number(sum(cost.seconds for cost in costs) / 3600),
        *(_duration(total_seconds(costs, count)) for count in counts),
        "",
        human_bytes(max((cost.memory for cost in costs), default=0)),
        human_bytes(sum(cost.disk for cost in costs)),
    ]
    report.show_table(title, header, [*rows, total], caption=_caption(costs, price))


def _row(cost: StageCost, counts: Sequence[int]) -> list[str]:
    return [
        cost.stage,
        _number(cost.operations / 1e15),
        _number(cost.seconds / 3600),
        *(_duration(cost.seconds_on(count)) for count in counts),
        f"{cost.loader_rate:,.0f}" if cost.loader_rate else "",
        human_bytes(cost.memory) if cost.memory else "",
        human_bytes(cost.disk) if cost.disk else "",
    ]


def _caption(costs: Sequence[StageCost], price: float) -> str:
    total = _price(costs, price)
    return f"{total:,.2f} at {price:g} per GPU-hour" if total else ""


def _price(costs: Sequence[StageCost], price: float) -> float:
    """The price of the stages that compute on the device."""
    return price * sum(cost.seconds for cost in costs if cost.operations) / 3600


def _number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float | None) -> str:
    """A time in the unit that suits it, with two digits or more; a dash where there is none."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{seconds:.0f} s"
