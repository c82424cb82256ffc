"""Values that have the right type and still cannot be: one line each, with the fix, before anything
runs.
"""

from __future__ import annotations

from typing import Any

from hubert_pretrain.config.schema import (
    AugmentConfig,
    ClusteringConfig,
    FinetuneConfig,
    LossConfig,
    MaskConfig,
    PretrainConfig,
    Recipe,
    TrainerConfig,
)
from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.frames import MODEL_GRID, FrameGrid, samples, seconds
from hubert_pretrain.model.config import (
    ATTENTIONS,
    COMPILE_MODES,
    COMPILED,
    MASK_SAMPLERS,
    SPAN_LENGTHS,
)

ENGINES = ["minibatch", "torch", "faiss"]
"""Of k-means (clustering/kmeans.py, which imports torch)."""


LAUNCHES = ["local", "slurm"]
STRATEGIES = ["auto", "ddp", "fsdp"]
"""How processes share a training (training/strategies.py, which imports torch)."""


def check(recipe: Recipe) -> None:
    """Raises ConfigError for the first value that cannot be."""
    if (
        recipe.data.root is None
        and recipe.data.corpus.get("path", recipe.data.corpus.get("root", "")) is None
    ):
        raise ConfigError("data.root has no value: add data.root=<folder of the corpus>")
    recipe.model.validate()
    if not recipe.iterations:
        raise ConfigError(
            "iterations: the recipe has none; give it at least it1 with features, clustering and pretrain"
        )
    for name, iteration in recipe.iterations.items():
        _check_clustering(f"iterations.{name}.clustering", iteration.clustering)
        _check_pretrain(f"iterations.{name}.pretrain", iteration.pretrain, recipe)
        _check_grid(f"iterations.{name}.features", iteration.features, recipe.model.grid)
    _check_compile(recipe.trainer, recipe.model.layerdrop)
    _check_strategy(recipe.trainer)
    _check_attention("model", recipe.model.attention_dropout, recipe.trainer)
    for name, task in recipe.finetune.items():
        _check_batches(f"finetune.{name}", task)
        _check_attention(f"finetune.{name}", task.attention_dropout, recipe.trainer)
        for mask in ("mask", "channel_mask"):
            _check_spans(f"finetune.{name}.{mask}", getattr(task, mask))
        _one_of(f"finetune.{name}.mask_sampler", task.mask_sampler, MASK_SAMPLERS)
        if task.warmup_fraction + task.hold_fraction > 1:
            raise ConfigError(
                f"finetune.{name}: warmup_fraction + hold_fraction is above 1; nothing is left for the decay"
            )
    _check_launch(recipe)


def _check_launch(recipe: Recipe) -> None:
    """Which processes share which work. With launch=slurm every stage has its own number of them:
    launch/resources.py.
    """
    _one_of("launch.kind", recipe.launch.kind, LAUNCHES)
    trainings = [
        *[f"{name}/pretrain" for name in recipe.iterations],
        *[f"finetune/{name}" for name in recipe.finetune],
    ]
    if recipe.launch.kind == "slurm":
        return
    for stage in trainings:
        if recipe.stage in ("all", "list", "check", stage):
            check_shares(recipe, stage, recipe.trainer.devices * recipe.trainer.num_nodes)


def _check_clustering(key: str, config: ClusteringConfig) -> None:
    if config.engine not in ENGINES:
        raise ConfigError(
            f"{key}.engine={config.engine!r}: expected one of {', '.join(ENGINES)}{did_you_mean(config.engine, ENGINES)}"
        )
    if config.spherical and config.engine == "minibatch":
        raise ConfigError(
            f"{key}.spherical=true needs engine=torch or engine=faiss: scikit-learn's mini-batches know no cosines"
        )
    for name in ("max_memory_gb", "restarts", "max_iterations"):
        _positive(f"{key}.{name}", getattr(config, name))
    for name in ("max_frames", "pca_dims", "tolerance"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{key}.{name}={getattr(config, name)}: expected 0 or more")
    sizes = {f"{key}.n_clusters": config.n_clusters}
    for number, each in enumerate(config.codebooks):
        where = f"{key}.codebooks[{number}]"
        known = ["name", "columns", "n_clusters", "residual"]
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise ConfigError(
                f"{where}={each!r}: expected {{name: ..., columns: [start, stop], n_clusters: ..., residual: ...}}"
            )
        for name in each:
            if name not in known:
                raise ConfigError(
                    f"{where}.{name}: no such key{did_you_mean(name, known)}; the keys are {', '.join(known)}"
                )
        sizes[f"{where}.n_clusters"] = each.get("n_clusters", config.n_clusters)
    for name, size in sizes.items():
        _positive(name, size)
        if size > 2**16:
            raise ConfigError(f"{name}={size}: targets are 16-bit, so at most {2**16}")


def _check_pretrain(key: str, config: PretrainConfig, recipe: Recipe) -> None:
    _check_batches(key, config)
    shortest = recipe.model.grid.num_frames(samples(config.min_seconds))
    if shortest <= config.mask.span_frames:
        raise ConfigError(
            f"{key}.min_seconds={config.min_seconds} gives {shortest} frames, not more than one span of "
            f"{key}.mask.span_frames={config.mask.span_frames}; raise one or lower the other"
        )
    if config.max_crop_seconds < config.min_seconds:
        raise ConfigError(
            f"{key}.max_crop_seconds={config.max_crop_seconds} is below min_seconds={config.min_seconds}"
        )
    if config.max_crop_seconds > config.micro_batch_seconds:
        raise ConfigError(
            f"{key}.micro_batch_seconds={config.micro_batch_seconds} holds not even one crop of "
            f"max_crop_seconds={config.max_crop_seconds}; raise the first or lower the second"
        )
    _one_of(f"{key}.start_head", config.start_head, ["auto", "keep", "new", "warm"])
    if config.start_head != "auto" and config.start_from is None:
        raise ConfigError(
            f"{key}.start_head={config.start_head} needs {key}.start_from: a stage such as it1/pretrain, or a checkpoint"
        )
    if not 0 < config.mask.probability <= 1:
        raise ConfigError(
            f"{key}.mask.probability={config.mask.probability}: expected a share above 0 and up to 1"
        )
    if config.freeze_conv_after_steps is not None and (
        config.freeze_conv_after_steps < 0 or recipe.model.front_end != "conv"
    ):
        raise ConfigError(
            f"{key}.freeze_conv_after_steps={config.freeze_conv_after_steps} with model.front_end={recipe.model.front_end}: expected 0 or "
            "more steps and a conv encoder, or null"
        )
    _check_spans(f"{key}.mask", config.mask)
    _check_loss(f"{key}.loss", config.loss, recipe.model.num_hidden_layers)
    _check_augment(f"{key}.augment", config.augment)
    _check_mixing(key, config, recipe.data.corpus.get("corpora"))


def _check_grid(key: str, features: Any, grid: FrameGrid) -> None:
    """Targets lie on the model's frames. (What other features lie on is known when their checkpoint
    is opened.)
    """
    if not isinstance(features, dict) or str(features.get("_target_", "")).split(".")[-1] not in (
        "Mfcc",
        "LogMel",
    ):
        return
    hop = features.get("hop_seconds", seconds(MODEL_GRID.hop))
    window = features.get("window_seconds", seconds(MODEL_GRID.window))
    if FrameGrid(window=samples(window), hop=samples(hop)) != grid:
        raise ConfigError(
            f"{key}: hop_seconds={hop:g}, window_seconds={window:g}, but the model's are {seconds(grid.hop):g} s apart and "
            f"{seconds(grid.window):g} s long; set {key}.hop_seconds={seconds(grid.hop):g} and "
            f"{key}.window_seconds={seconds(grid.window):g}"
        )


def _check_augment(key: str, config: AugmentConfig) -> None:
    for name in ("mix_probability", "mix_noise_share", "noise_probability", "gain_probability"):
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{key}.{name}={getattr(config, name)}: expected a share from 0 to 1")
    for name in ("mix_ratio_db", "mix_noise_ratio_db", "noise_ratio_db", "gain_db"):
        limits = list(getattr(config, name))
        if len(limits) != 2 or limits[0] > limits[1]:
            raise ConfigError(
                f"{key}.{name}={limits}: expected a range in dB, the lower end first, e.g. [-5, 5]"
            )
    for name in ("mix_noise_share", "noise_probability"):
        if getattr(config, name) > 0 and config.noise is None:
            raise ConfigError(
                f"{key}.{name}={getattr(config, name)} needs noise: set {key}.noise to a folder of audio files"
            )


def _check_mixing(key: str, config: PretrainConfig, corpora: Any) -> None:
    """`corpora` are those of a mixture by name; of another corpus the manifest tells the names."""
    weights = dict(config.corpus_weights)
    _positive(f"{key}.corpus_temperature", config.corpus_temperature)
    if weights and config.corpus_temperature != 1.0:
        raise ConfigError(
            f"{key}.corpus_temperature: has no meaning beside {key}.corpus_weights; set one of them"
        )
    if weights and (min(weights.values()) < 0 or not sum(weights.values())):
        raise ConfigError(
            f"{key}.corpus_weights={weights}: expected numbers from 0 up, and not all 0"
        )
    names = list(corpora) if isinstance(corpora, dict) else list(weights)
    for name in [*weights, *names] if weights else []:
        if name not in names:
            raise ConfigError(
                f"{key}.corpus_weights: no corpus {name!r} in the mixture{did_you_mean(name, names)}; it has {', '.join(names)}"
            )
        if name not in weights:
            raise ConfigError(
                f"{key}.corpus_weights: has no weight for corpus {name!r}; give it one, 0 leaves it out"
            )


def _check_loss(key: str, config: LossConfig, depth: int) -> None:
    heads = ["cosine", "softmax"]
    layers = config.supervised_layers
    weights = config.layer_weights
    if (
        min(config.masked_weight, config.unmasked_weight) < 0
        or config.masked_weight + config.unmasked_weight == 0
    ):
        raise ConfigError(
            f"{key}: masked_weight={config.masked_weight} and unmasked_weight={config.unmasked_weight}; expected 0 or more, and not both 0"
        )
    _one_of(f"{key}.head", config.head, heads)
    if layers and (layers != sorted(set(layers)) or layers[0] < 1 or layers[-1] != depth):
        raise ConfigError(
            f"{key}.supervised_layers={list(layers)}: expected ascending numbers from 1 on that end with the last layer, {depth}: "
            "its head is the one that the checkpoint keeps"
        )
    if weights and len(weights) != max(1, len(layers)):
        raise ConfigError(
            f"{key}.layer_weights={list(weights)}: expected one for each of the {max(1, len(layers))} supervised layers"
        )
    for name, values in (("layer_weights", weights), ("temperature", [config.temperature])):
        for value in values:
            _positive(f"{key}.{name}", value)


def _check_spans(key: str, config: MaskConfig) -> None:
    _one_of(f"{key}.lengths", config.lengths, SPAN_LENGTHS)
    _positive(f"{key}.span_frames", config.span_frames)
    for name in ("length_other", "min_space", "min_spans"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{key}.{name}={getattr(config, name)}: expected 0 or more")
    if config.lengths == "uniform" and config.length_other > 2 * config.span_frames:
        raise ConfigError(
            f"{key}.length_other={config.length_other} is the shortest span of lengths=uniform, above the longest, "
            f"2 x span_frames={2 * config.span_frames}; lower it"
        )


def _check_strategy(trainer: TrainerConfig) -> None:
    _one_of("trainer.strategy", trainer.strategy, STRATEGIES)
    _one_of("trainer.gradient_compression", trainer.gradient_compression, ["none", "bf16"])
    if trainer.strategy == "fsdp" and trainer.precision == "16-mixed":
        raise ConfigError(
            "trainer.strategy=fsdp has no loss scaler for trainer.precision=16-mixed; use bf16-mixed or 32-true"
        )
    if trainer.strategy == "fsdp" and trainer.gradient_compression != "none":
        raise ConfigError(
            f"trainer.gradient_compression={trainer.gradient_compression} is for ddp; remove it, or use trainer.strategy=ddp"
        )


def _check_compile(trainer: TrainerConfig, layerdrop: float) -> None:
    _one_of("trainer.compile", trainer.compile, COMPILED)
    _one_of("trainer.compile_mode", trainer.compile_mode, COMPILE_MODES)
    if trainer.compile == "model" and layerdrop > 0:
        raise ConfigError(
            f"trainer.compile=model makes a graph of every choice of layers, but model.layerdrop={layerdrop}; set that to 0, or "
            "trainer.compile=layers"
        )
    if trainer.compile != "none" and trainer.strategy == "fsdp":
        raise ConfigError(
            f"trainer.compile={trainer.compile} does not go with trainer.strategy=fsdp; use ddp, or trainer.compile=none"
        )


def _check_attention(key: str, dropout: float, trainer: TrainerConfig) -> None:
    name = trainer.attention
    _one_of("trainer.attention", name, ATTENTIONS)
    if name == "flex" and dropout > 0:
        raise ConfigError(
            f"trainer.attention=flex has no dropout, but {key}.attention_dropout={dropout}; set that to 0 or choose sdpa"
        )


def check_shares(recipe: Recipe, stage: str, devices: int) -> None:
    """Raises ConfigError when so many devices cannot share the micro-batches of a step of this
    training stage equally.
    """
    first, second = stage.split("/")
    config = recipe.finetune[second] if first == "finetune" else recipe.iterations[first].pretrain
    count = round(config.batch_seconds / config.micro_batch_seconds)
    if count % devices:
        key = f"finetune.{second}" if first == "finetune" else f"iterations.{first}.pretrain"
        legal = [str(n) for n in range(1, count + 1) if count % n == 0]
        raise ConfigError(
            f"{key}: a step has {count} micro-batches, which {devices} devices cannot share equally; "
            f"use {', '.join(legal)} devices, or another micro_batch_seconds"
        )


def _check_batches(key: str, config: PretrainConfig | FinetuneConfig) -> None:
    """A step is a whole number of micro-batches."""
    for name in ("steps", "batch_seconds", "micro_batch_seconds", "learning_rate"):
        _positive(f"{key}.{name}", getattr(config, name))
    micro_batches = config.batch_seconds / config.micro_batch_seconds
    if abs(micro_batches - round(micro_batches)) > 1e-6:
        raise ConfigError(
            f"{key}: batch_seconds={config.batch_seconds} is {micro_batches:.3f} x micro_batch_seconds={config.micro_batch_seconds}; "
            f"it must be a whole multiple, e.g. micro_batch_seconds={config.batch_seconds / max(1, round(micro_batches)):g}"
        )


def _positive(key: str, value: float) -> None:
    if value <= 0:
        raise ConfigError(f"{key}={value}: expected a number above 0")


def _one_of(key: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        raise ConfigError(
            f"{key}={value!r}: expected one of {', '.join(choices)}{did_you_mean(value, choices)}"
        )
