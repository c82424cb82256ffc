"""Values that have the right type and still cannot be: one line each, with the fix, before anything runs."""

from __future__ import annotations

from hubert_pretrain.config import (
    AugmentConfig,
    ClusteringConfig,
    FinetuneConfig,
    LossConfig,
    MaskConfig,
    PretrainConfig,
    Recipe,
    TrainerConfig,
)
from hubert_pretrain.errors import ConfigError, nearest
from hubert_pretrain.frames import samples
from hubert_pretrain.model.config import ATTENTIONS, MASK_SAMPLERS, SPAN_LENGTHS

ENGINES = ["minibatch", "torch", "faiss"]
"""Of k-means (clustering/kmeans.py, which imports torch)."""


def check(recipe: Recipe) -> None:
    """Raises ConfigError for the first value that cannot be."""
    if recipe.data.root is None and recipe.data.corpus.get("path", recipe.data.corpus.get("root", "")) is None:
        raise ConfigError("data.root has no value: add data.root=<folder of the corpus>")
    recipe.model.validate()
    if not recipe.iterations:
        raise ConfigError("iterations: the recipe has none; give it at least it1 with features, clustering and pretrain")
    for name, iteration in recipe.iterations.items():
        _check_clustering(f"iterations.{name}.clustering", iteration.clustering)
        _check_pretrain(f"iterations.{name}.pretrain", iteration.pretrain, recipe)
    _check_attention("model", recipe.model.attention_dropout, recipe.trainer)
    for name, task in recipe.finetune.items():
        _check_batches(f"finetune.{name}", task, recipe.trainer)
        _check_attention(f"finetune.{name}", task.attention_dropout, recipe.trainer)
        for mask in ("mask", "channel_mask"):
            _check_spans(f"finetune.{name}.{mask}", getattr(task, mask))
        _one_of(f"finetune.{name}.mask_sampler", task.mask_sampler, MASK_SAMPLERS)
        if task.warmup_fraction + task.hold_fraction > 1:
            raise ConfigError(f"finetune.{name}: warmup_fraction + hold_fraction is above 1; nothing is left for the decay")


def _check_clustering(key: str, config: ClusteringConfig) -> None:
    if config.engine not in ENGINES:
        raise ConfigError(f"{key}.engine={config.engine!r}: expected one of {', '.join(ENGINES)}{nearest(config.engine, ENGINES)}")
    if config.spherical and config.engine == "minibatch":
        raise ConfigError(f"{key}.spherical=true needs engine=torch or engine=faiss: scikit-learn's mini-batches know no cosines")
    for name in ("max_memory_gb", "restarts", "max_iterations"):
        _positive(f"{key}.{name}", getattr(config, name))
    for name in ("max_frames", "pca_dims", "tolerance"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{key}.{name}={getattr(config, name)}: expected 0 or more")
    sizes = {f"{key}.n_clusters": config.n_clusters}
    for number, each in enumerate(config.codebooks):
        where, known = f"{key}.codebooks[{number}]", ["name", "columns", "n_clusters", "residual"]
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise ConfigError(f"{where}={each!r}: expected {{name: ..., columns: [start, stop], n_clusters: ..., residual: ...}}")
        for name in each:
            if name not in known:
                raise ConfigError(f"{where}.{name}: no such key{nearest(name, known)}; the keys are {', '.join(known)}")
        sizes[f"{where}.n_clusters"] = each.get("n_clusters", config.n_clusters)
    for name, size in sizes.items():
        _positive(name, size)
        if size > 2**16:
            raise ConfigError(f"{name}={size}: targets are 16-bit, so at most {2**16}")


def _check_pretrain(key: str, config: PretrainConfig, recipe: Recipe) -> None:
    _check_batches(key, config, recipe.trainer)
    shortest = recipe.model.grid.num_frames(samples(config.min_seconds))
    if shortest <= config.mask.span_frames:
        raise ConfigError(
            f"{key}.min_seconds={config.min_seconds} gives {shortest} frames, not more than one span of "
            f"{key}.mask.span_frames={config.mask.span_frames}; raise one or lower the other"
        )
    if config.max_crop_seconds < config.min_seconds:
        raise ConfigError(f"{key}.max_crop_seconds={config.max_crop_seconds} is below min_seconds={config.min_seconds}")
    if config.max_crop_seconds > config.micro_batch_seconds:
        raise ConfigError(
            f"{key}.micro_batch_seconds={config.micro_batch_seconds} holds not even one crop of "
            f"max_crop_seconds={config.max_crop_seconds}; raise the first or lower the second"
        )
    if not 0 < config.mask.probability <= 1:
        raise ConfigError(f"{key}.mask.probability={config.mask.probability}: expected a share above 0 and up to 1")
    _check_spans(f"{key}.mask", config.mask)
    _check_loss(f"{key}.loss", config.loss, recipe.model.num_hidden_layers)
    _check_augment(f"{key}.augment", config.augment)


def _check_augment(key: str, config: AugmentConfig) -> None:
    for name in ("mix_probability", "mix_noise_share", "noise_probability", "gain_probability"):
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{key}.{name}={getattr(config, name)}: expected a share from 0 to 1")
    for name in ("mix_ratio_db", "mix_noise_ratio_db", "noise_ratio_db", "gain_db"):
        limits = list(getattr(config, name))
        if len(limits) != 2 or limits[0] > limits[1]:
            raise ConfigError(f"{key}.{name}={limits}: expected a range in dB, the lower end first, e.g. [-5, 5]")
    for name in ("mix_noise_share", "noise_probability"):
        if getattr(config, name) > 0 and config.noise is None:
            raise ConfigError(f"{key}.{name}={getattr(config, name)} needs noise: set {key}.noise to a folder of audio files")


def _check_loss(key: str, config: LossConfig, depth: int) -> None:
    heads, layers, weights = ["cosine", "softmax"], config.supervised_layers, config.layer_weights
    if min(config.masked_weight, config.unmasked_weight) < 0 or config.masked_weight + config.unmasked_weight == 0:
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
        raise ConfigError(f"{key}.layer_weights={list(weights)}: expected one for each of the {max(1, len(layers))} supervised layers")
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


def _check_attention(key: str, dropout: float, trainer: TrainerConfig) -> None:
    name = trainer.attention
    _one_of("trainer.attention", name, ATTENTIONS)
    if name == "flex" and dropout > 0:
        raise ConfigError(f"trainer.attention=flex has no dropout, but {key}.attention_dropout={dropout}; set that to 0 or choose sdpa")


def _check_batches(key: str, config: PretrainConfig | FinetuneConfig, trainer: TrainerConfig) -> None:
    """A step is a whole number of micro-batches, and every device gets equally many of them."""
    for name in ("steps", "batch_seconds", "micro_batch_seconds", "learning_rate"):
        _positive(f"{key}.{name}", getattr(config, name))
    micro_batches = config.batch_seconds / config.micro_batch_seconds
    if abs(micro_batches - round(micro_batches)) > 1e-6:
        raise ConfigError(
            f"{key}: batch_seconds={config.batch_seconds} is {micro_batches:.3f} x micro_batch_seconds={config.micro_batch_seconds}; "
            f"it must be a whole multiple, e.g. micro_batch_seconds={config.batch_seconds / max(1, round(micro_batches)):g}"
        )
    devices = trainer.devices * trainer.num_nodes
    count = round(micro_batches)
    if count % devices:
        legal = [str(n) for n in range(1, count + 1) if count % n == 0]
        raise ConfigError(
            f"{key}: a step has {count} micro-batches, which {devices} devices cannot share equally; "
            f"use {', '.join(legal)} devices, or another micro_batch_seconds"
        )


def _positive(key: str, value: float) -> None:
    if value <= 0:
        raise ConfigError(f"{key}={value}: expected a number above 0")


def _one_of(key: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{key}={value!r}: expected one of {', '.join(choices)}{nearest(value, choices)}")
