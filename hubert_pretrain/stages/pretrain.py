"""Stage `it*/pretrain`: corpus + targets -> checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from hubert_pretrain.config.schema import AugmentConfig, PretrainConfig, Recipe, TrainerConfig
from hubert_pretrain.data.augment import Augmentation
from hubert_pretrain.data.batching import BucketSampler
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.distributed import accumulation, local_rank
from hubert_pretrain.fields import AUTO
from hubert_pretrain.formats.utterance_clusters import training_utterances
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.interop.transformers_reader import EXTRA_KEY
from hubert_pretrain.model.checkpoint import LoadedModel, load_model, save_model
from hubert_pretrain.model.compile import Compiler, keep_compiled
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.masking import expected_count
from hubert_pretrain.model.spec_augment import SpecAugment
from hubert_pretrain.pipeline.workspace import Artefact, Workspace
from hubert_pretrain.pretrain.dataset import CropSource, describe_micro_batch, loaders
from hubert_pretrain.pretrain.layer_supervision import LayerSupervision, new_head
from hubert_pretrain.pretrain.loss import LossWeights
from hubert_pretrain.pretrain.memory import measured_fuse
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.pretrain.phone_probe import make_probe
from hubert_pretrain.pretrain.warm_start import warm_start
from hubert_pretrain.seeds import derive
from hubert_pretrain.stages.prepare import open_corpus
from hubert_pretrain.stages.training import stage_trainer
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.training import loggers as logs
from hubert_pretrain.training.curves import plot_pretraining
from hubert_pretrain.training.dynamic_chunks import DynamicChunks, describe_chunks
from hubert_pretrain.training.module import Monitor
from hubert_pretrain.training.optim import AdamWSettings, pretraining_schedule
from hubert_pretrain.training.sharding import shard_size
from hubert_pretrain.training.strategies import gather_module
from hubert_pretrain.training.trainer import (
    fit,
    on_gpu,
    resolve_compile,
    resolve_precision,
    take_best,
    validate,
)


def open_pretrained(workspace: Workspace, iteration: str) -> LoadedModel:
    """Encoder and head of an iteration. Raises ArtefactError when the stage has not finished."""
    return load_model(workspace.artefact(f"{iteration}/pretrain").path)


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Train from the newest checkpoint in `folder`, or from the start.

    Writes weights and curves.png; returns the results of the last validation.
    """
    iteration = stage.split("/")[0]
    config = recipe.iterations[iteration].pretrain
    seed = derive(recipe.seed, stage)
    corpus = open_corpus(recipe, workspace)
    label = workspace.artefact(f"{iteration}/label")
    targets = TargetStore.open(label.path)
    targets.check(corpus.manifest, recipe.model.grid)

    plan = build_plan(config, corpus, recipe.model.grid, seed)
    keep_compiled(workspace.compiled_path)
    module = build_module(recipe, config, targets.sizes, seed)
    fuse = choose_fuse(recipe.trainer, module, plan)
    module.nonfinite.describe = partial(
        describe_micro_batch, plan=plan, manifest=corpus.manifest, fuse=fuse
    )
    if config.start_from:
        checkpoint = workspace.resolve(config.start_from).path
        choice = config.start_head
        print(warm_start(module.model, module.head, checkpoint, targets, choice=choice, seed=seed))

    crops = partial(
        CropSource,
        corpus,
        targets.targets,
        grid=recipe.model.grid,
        normalize=recipe.model.normalize_waveform,
        spans=config.mask,
        seed=seed,
    )
    probe = make_probe(
        config.probe,
        plan,
        corpus,
        crops(split=config.probe.split),
        num_layers=recipe.model.num_hidden_layers,
        seed=seed,
    )
    made_by = {
        "recipe": recipe.name,
        "stage": stage,
        "steps": config.steps,
        "codebook": targets.codebook,
        EXTRA_KEY: vars(SpecAugment.of_spans(config.mask)),
    }
    trainer = stage_trainer(
        recipe,
        config,
        folder,
        stage=stage,
        micro_batches=plan.micro_batches // fuse,
        inputs={"targets": label.fingerprint, "codebook": targets.codebook},
        extra=made_by,
        callbacks=[probe] if probe else [],
    )
    train, valid = loaders(
        trainer,
        plan,
        train=crops(split="train", augmentation=augmentation(config.augment, seed)),
        valid=crops(split="valid"),
        workers=recipe.trainer.loader_workers,
        fuse=fuse,
    )
    if trainer.is_global_zero:
        print(plan.describe(), *describe_chunks(recipe.model, module.chunks), sep="\n", flush=True)
    fit(trainer, module, train, valid, folder)
    if module.validated_step != trainer.global_step:
        validate(trainer, module, valid)
    best = take_best(trainer, module)

    # Every rank gathers the weights, the first one writes.
    model = gather_module(module.model, lambda: Hubert(recipe.model))
    head = gather_module(module.head, lambda: type(module.head)(**module.head.settings))
    if trainer.is_global_zero:
        save_model(folder, model, head=head, extra={**made_by, **best})
        plot_pretraining(
            logs.read_metrics(folder / "logs" / "metrics.csv"),
            folder / "curves.png",
            title=f"{recipe.name} {stage}",
            unigram_entropy_nats=label.facts.get("unigram_entropy_nats"),
            published=iteration,
        )
        if recipe.trainer.log_artefacts:
            log_artefacts(trainer, stage, workspace.folder(f"{iteration}/cluster"), label, folder)
    logs.close(trainer.loggers)
    return {
        "steps": config.steps,
        "fuse": fuse,
        **best,
        **module.valid_values,
        "audio_seconds_per_second": module.audio_seconds_per_second,
    }


def build_plan(config: PretrainConfig, corpus: Corpus, grid: FrameGrid, seed: int) -> BucketSampler:
    """The micro-batches of the training."""
    return BucketSampler(
        training_utterances(corpus.manifest, config.utterance_clusters),
        grid=grid,
        seed=seed,
        batch_seconds=config.batch_seconds,
        micro_batch_seconds=config.micro_batch_seconds,
        max_crop_seconds=config.max_crop_seconds,
        min_seconds=config.min_seconds,
        max_shapes=config.max_shapes,
        masked_frames=partial(expected_count, spans=config.mask),
        corpus_weights=config.corpus_weights,
        corpus_temperature=config.corpus_temperature,
    )


def choose_fuse(trainer: TrainerConfig, module: PretrainModule, plan: BucketSampler) -> int:
    """Micro-batches of one forward pass: as `trainer.fuse` says, or as many as fit."""
    devices = trainer.devices * trainer.num_nodes
    # Raises ConfigError where the devices cannot share a step.
    accumulation(plan.micro_batches, devices)
    if trainer.fuse != AUTO:
        return plan.fuse(int(trainer.fuse), devices)
    if not on_gpu(trainer.accelerator):
        return 1
    device = torch.device("cuda", local_rank())
    dtype = torch.bfloat16 if "bf16" in resolve_precision(trainer.precision) else torch.float16
    enabled = "mixed" in resolve_precision(trainer.precision)
    autocast = partial(torch.autocast, "cuda", dtype=dtype, enabled=enabled)
    return measured_fuse(
        module, plan, device, devices=devices, shard_size=shard_size(trainer), autocast=autocast
    )


def build_module(
    recipe: Recipe, config: PretrainConfig, n_clusters: list[int], seed: int
) -> PretrainModule:
    """The network, its head and how they are trained."""
    torch.manual_seed(derive(seed, "weights"))
    model = Hubert(recipe.model).configure(
        attention=recipe.trainer.attention,
        gradient_checkpointing=recipe.trainer.gradient_checkpointing,
        residual=recipe.trainer.residual,
        positions=recipe.trainer.positions,
    )
    lengths = 1 + len(config.dynamic_chunks.chunk_frames)  # of chunks: each has graphs of its own
    compiler = make_compiler(recipe.trainer, shapes=lengths * config.max_shapes)
    if compiler is not None:
        compiler.compile_network(model)
    return PretrainModule(
        model,
        new_head(recipe.model, config.loss, n_clusters),
        seed=seed,
        optimiser=AdamWSettings.of(config),
        schedule=pretraining_schedule(config),
        monitor=Monitor.of(config, recipe.trainer),
        loss_weights=LossWeights.of(config.loss),
        supervision=LayerSupervision.of(recipe.model, config.loss, n_clusters),
        freeze_conv_after_steps=config.freeze_conv_after_steps,
        chunks=DynamicChunks.of(config.dynamic_chunks),
        compiler=compiler,
    )


def make_compiler(trainer: TrainerConfig, *, shapes: int) -> Compiler | None:
    """The compiler of a training with this many shapes; None where nothing is compiled."""
    if not resolve_compile(trainer):
        return None
    return Compiler(
        mode=trainer.compile_mode,
        shapes=2 * shapes,  # of training, where `fuse` adds rows, and of validation
        sharded=trainer.strategy not in (AUTO, "ddp"),
    )


def augmentation(config: AugmentConfig, seed: int) -> Augmentation | None:
    """The augmentation of training crops; None for none."""
    result = Augmentation(
        seed=seed,
        mix_probability=config.mix_probability,
        mix_ratio_db=config.mix_ratio_db,
        mix_noise_share=config.mix_noise_share,
        mix_noise_ratio_db=config.mix_noise_ratio_db,
        noise_probability=config.noise_probability,
        noise_ratio_db=config.noise_ratio_db,
        gain_probability=config.gain_probability,
        gain_db=config.gain_db,
        voice_probability=config.voice_probability,
        voice=config.voice,
    )
    return result.with_noise(config.noise) if result.is_active else None


def log_artefacts(
    trainer: L.Trainer, stage: str, cluster: Path, label: Artefact, folder: Path
) -> None:
    """Hand codebook, targets and weights to the loggers that keep files (W&B)."""
    logs.keep_folder(trainer.loggers, f"{stage}-codebook", "codebook", cluster)
    logs.keep_folder(trainer.loggers, f"{stage}-targets", "targets", label.path)
    logs.keep_folder(trainer.loggers, f"{stage}-model", "model", folder)
