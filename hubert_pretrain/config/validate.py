"""Checks of a recipe that concern two or more fields. The allowed values of one field stand on it
(schema.py).

Each check raises ConfigError with one line: key and value, what was expected, the fix.
"""

from __future__ import annotations

from typing import Any

from hubert_pretrain.config.fields import check_values
from hubert_pretrain.config.schema import (
    AugmentConfig,
    ClusteringConfig,
    FinetuneConfig,
    IterationConfig,
    LossConfig,
    PretrainConfig,
    Recipe,
    TrainerConfig,
)
from hubert_pretrain.distributed import accumulation
from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.frames import MODEL_GRID, FrameGrid, samples, seconds
from hubert_pretrain.model.config import SPAN_LENGTHS, HubertConfig, SpanMask

MAX_CLUSTERS = 2**16
"""Targets are 16-bit numbers."""
CODEBOOK_KEYS = ["name", "columns", "n_clusters", "residual"]
"""Keys of an entry of `clustering.codebooks`."""


def check(recipe: Recipe) -> None:
    """Raises ConfigError for the first value that cannot be."""
    _check_root(recipe)
    recipe.model.validate()
    check_values(recipe)
    if not recipe.iterations:
        raise ConfigError(
            "iterations: the recipe has none; give it at least it1 with features, clustering and "
            "pretrain"
        )
    for name, iteration in recipe.iterations.items():
        _check_iteration(f"iterations.{name}", iteration, recipe)
    _check_trainer(recipe.trainer, recipe.model)
    for name, task in recipe.finetune.items():
        _check_finetune(f"finetune.{name}", task, recipe.trainer)
    _check_devices(recipe)


def _check_root(recipe: Recipe) -> None:
    corpus = recipe.data.corpus
    if recipe.data.root is None and corpus.get("path", corpus.get("root", "")) is None:
        raise ConfigError("data.root has no value: add data.root=<folder of the corpus>")


# -- iterations


def _check_iteration(key: str, iteration: IterationConfig, recipe: Recipe) -> None:
    _check_clustering(f"{key}.clustering", iteration.clustering)
    _check_grid(f"{key}.features", iteration.features, recipe.model.grid)
    pretrain = iteration.pretrain
    _check_lengths(f"{key}.pretrain", pretrain, recipe.model.grid)
    _check_start(f"{key}.pretrain", pretrain, recipe.model)
    if pretrain.mask.probability <= 0:
        raise ConfigError(
            f"{key}.pretrain.mask.probability={pretrain.mask.probability}: expected a share above "
            "0 and up to 1"
        )
    _check_spans(f"{key}.pretrain.mask", pretrain.mask)
    _check_loss(f"{key}.pretrain.loss", pretrain.loss, recipe.model.num_hidden_layers)
    _check_augment(f"{key}.pretrain.augment", pretrain.augment)
    _check_mixture(f"{key}.pretrain", pretrain, recipe.data.corpus.get("corpora"))


def _check_clustering(key: str, config: ClusteringConfig) -> None:
    if config.spherical and config.engine == "minibatch":
        raise ConfigError(
            f"{key}.spherical=true needs engine=torch or engine=faiss: scikit-learn's mini-batches "
            "know no cosines"
        )
    sizes = {f"{key}.n_clusters": config.n_clusters}
    for number, entry in enumerate(config.codebooks):
        where = f"{key}.codebooks[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ConfigError(
                f"{where}={entry!r}: expected {{name: ..., columns: [start, stop], "
                "n_clusters: ..., residual: ...}"
            )
        for name in entry:
            if name not in CODEBOOK_KEYS:
                raise ConfigError(
                    f"{where}.{name}: no such key{did_you_mean(name, CODEBOOK_KEYS)}; "
                    f"the keys are {', '.join(CODEBOOK_KEYS)}"
                )
        sizes[f"{where}.n_clusters"] = entry.get("n_clusters", config.n_clusters)
    for name, size in sizes.items():
        if size <= 0:
            raise ConfigError(f"{name}={size}: expected a number above 0")
        if size > MAX_CLUSTERS:
            raise ConfigError(f"{name}={size}: targets are 16-bit, so at most {MAX_CLUSTERS}")


def _check_grid(key: str, features: Any, grid: FrameGrid) -> None:
    """Targets lie on the model's frames. Features of other classes are checked when their
    checkpoint is opened."""
    if not isinstance(features, dict):
        return
    if str(features.get("_target_", "")).split(".")[-1] not in ("Mfcc", "LogMel"):
        return
    hop = features.get("hop_seconds", seconds(MODEL_GRID.hop))
    window = features.get("window_seconds", seconds(MODEL_GRID.window))
    if FrameGrid(window=samples(window), hop=samples(hop)) != grid:
        raise ConfigError(
            f"{key}: hop_seconds={hop:g}, window_seconds={window:g}, but the model's frames are "
            f"{seconds(grid.hop):g} s apart and {seconds(grid.window):g} s long; "
            f"set {key}.hop_seconds={seconds(grid.hop):g} and "
            f"{key}.window_seconds={seconds(grid.window):g}"
        )


def _check_lengths(key: str, config: PretrainConfig, grid: FrameGrid) -> None:
    _check_batches(key, config)
    shortest = grid.num_frames(samples(config.min_seconds))
    if shortest <= config.mask.span_frames:
        raise ConfigError(
            f"{key}.min_seconds={config.min_seconds} gives {shortest} frames, not more than one "
            f"span of {key}.mask.span_frames={config.mask.span_frames}; raise one or lower the "
            "other"
        )
    if config.max_crop_seconds < config.min_seconds:
        raise ConfigError(
            f"{key}.max_crop_seconds={config.max_crop_seconds} is below "
            f"min_seconds={config.min_seconds}; raise it"
        )
    if config.max_crop_seconds > config.micro_batch_seconds:
        raise ConfigError(
            f"{key}.micro_batch_seconds={config.micro_batch_seconds} holds not even one crop of "
            f"max_crop_seconds={config.max_crop_seconds}; raise the first or lower the second"
        )


def _check_start(key: str, config: PretrainConfig, model: HubertConfig) -> None:
    if config.start_head != "auto" and config.start_from is None:
        raise ConfigError(
            f"{key}.start_head={config.start_head} needs {key}.start_from: a stage such as "
            "it1/pretrain, or a checkpoint"
        )
    if config.freeze_conv_after_steps is not None and model.front_end != "conv":
        raise ConfigError(
            f"{key}.freeze_conv_after_steps={config.freeze_conv_after_steps} with "
            f"model.front_end={model.front_end}: there is no conv encoder to freeze; set it to null"
        )


def _check_loss(key: str, config: LossConfig, depth: int) -> None:
    if config.masked_weight + config.unmasked_weight == 0:
        raise ConfigError(
            f"{key}: masked_weight={config.masked_weight} and "
            f"unmasked_weight={config.unmasked_weight}; expected 0 or more, and not both 0"
        )
    layers = list(config.supervised_layers)
    if layers and (layers != sorted(set(layers)) or layers[0] < 1 or layers[-1] != depth):
        raise ConfigError(
            f"{key}.supervised_layers={layers}: expected ascending numbers from 1 on that end with "
            f"the last layer, {depth}: its head is the one that the checkpoint keeps"
        )
    weights = list(config.layer_weights)
    heads = max(1, len(layers))
    if weights and len(weights) != heads:
        raise ConfigError(
            f"{key}.layer_weights={weights}: expected one for each of the {heads} supervised layers"
        )


def _check_augment(key: str, config: AugmentConfig) -> None:
    for name in ("mix_noise_share", "noise_probability"):
        if getattr(config, name) > 0 and config.noise is None:
            raise ConfigError(
                f"{key}.{name}={getattr(config, name)} needs noise: set {key}.noise to a folder of "
                "audio files"
            )


def _check_mixture(key: str, config: PretrainConfig, corpora: Any) -> None:
    """`corpora`: those of a mixture by name; the names of any other corpus are in its manifest."""
    weights = dict(config.corpus_weights)
    if not weights:
        return
    if config.corpus_temperature != 1.0:
        raise ConfigError(
            f"{key}.corpus_temperature: has no meaning beside {key}.corpus_weights; set one of them"
        )
    if min(weights.values()) < 0 or not sum(weights.values()):
        raise ConfigError(
            f"{key}.corpus_weights={weights}: expected numbers from 0 up, and not all 0"
        )
    names = list(corpora) if isinstance(corpora, dict) else list(weights)
    for name in weights:
        if name not in names:
            raise ConfigError(
                f"{key}.corpus_weights: no corpus {name!r} in the mixture"
                f"{did_you_mean(name, names)}; it has {', '.join(names)}"
            )
    for name in names:
        if name not in weights:
            raise ConfigError(
                f"{key}.corpus_weights: has no weight for corpus {name!r}; give it one, 0 "
                "leaves it out"
            )


# -- fine-tuning


def _check_finetune(key: str, config: FinetuneConfig, trainer: TrainerConfig) -> None:
    _check_batches(key, config)
    _check_attention(key, config.attention_dropout, trainer)
    _check_spans(f"{key}.mask", config.mask)
    _check_spans(f"{key}.channel_mask", config.channel_mask)
    if config.warmup_fraction + config.hold_fraction > 1:
        raise ConfigError(
            f"{key}: warmup_fraction + hold_fraction is above 1; nothing is left for the decay"
        )


# -- both trainings


def _check_batches(key: str, config: PretrainConfig | FinetuneConfig) -> None:
    """A step is a whole number of micro-batches."""
    micro_batches = config.batch_seconds / config.micro_batch_seconds
    if abs(micro_batches - round(micro_batches)) > 1e-6:
        example = config.batch_seconds / max(1, round(micro_batches))
        raise ConfigError(
            f"{key}: batch_seconds={config.batch_seconds} is {micro_batches:.3f} x "
            f"micro_batch_seconds={config.micro_batch_seconds}; it must be a whole multiple, "
            f"e.g. micro_batch_seconds={example:g}"
        )


def _check_spans(key: str, config: SpanMask) -> None:
    if config.lengths not in SPAN_LENGTHS:
        raise ConfigError(
            f"{key}.lengths={config.lengths!r}: expected one of {', '.join(SPAN_LENGTHS)}"
            f"{did_you_mean(config.lengths, SPAN_LENGTHS)}"
        )
    if not 0 <= config.probability <= 1:
        raise ConfigError(f"{key}.probability={config.probability}: expected a share from 0 to 1")
    if config.span_frames <= 0:
        raise ConfigError(f"{key}.span_frames={config.span_frames}: expected a number above 0")
    for name in ("length_other", "min_space", "min_spans"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{key}.{name}={getattr(config, name)}: expected 0 or more")
    if config.lengths == "uniform" and config.length_other > 2 * config.span_frames:
        raise ConfigError(
            f"{key}.length_other={config.length_other} is the shortest span of lengths=uniform, "
            f"above the longest, 2 x span_frames={2 * config.span_frames}; lower it"
        )


# -- hardware


def _check_trainer(trainer: TrainerConfig, model: HubertConfig) -> None:
    _check_attention("model", model.attention_dropout, trainer)
    if trainer.compile == "model" and model.layerdrop > 0:
        raise ConfigError(
            "trainer.compile=model makes a graph of every choice of layers, but "
            f"model.layerdrop={model.layerdrop}; set that to 0, or trainer.compile=layers"
        )
    if trainer.strategy != "fsdp":
        return
    if trainer.compile != "none":
        raise ConfigError(
            f"trainer.compile={trainer.compile} does not go with trainer.strategy=fsdp; use ddp, "
            "or trainer.compile=none"
        )
    if trainer.precision == "16-mixed":
        raise ConfigError(
            "trainer.strategy=fsdp has no loss scaler for trainer.precision=16-mixed; use "
            "bf16-mixed or 32-true"
        )
    if trainer.gradient_compression != "none":
        raise ConfigError(
            f"trainer.gradient_compression={trainer.gradient_compression} is for ddp; remove it, "
            "or use trainer.strategy=ddp"
        )


def _check_attention(key: str, dropout: float, trainer: TrainerConfig) -> None:
    if trainer.attention == "flex" and dropout > 0:
        raise ConfigError(
            f"trainer.attention=flex has no dropout, but {key}.attention_dropout={dropout}; set "
            "that to 0 or choose sdpa"
        )


def _check_devices(recipe: Recipe) -> None:
    """Every training of this command can be shared by the devices. With launch=slurm each stage has
    a number of its own (launch/resources.py)."""
    if recipe.launch.kind == "slurm":
        return
    devices = recipe.trainer.devices * recipe.trainer.num_nodes
    pretrainings = [f"{name}/pretrain" for name in recipe.iterations]
    tasks = [f"finetune/{name}" for name in recipe.finetune]
    for stage in pretrainings + tasks:
        if recipe.stage in ("all", "list", "check", stage):
            check_shares(recipe, stage, devices)


def check_shares(recipe: Recipe, stage: str, devices: int) -> None:
    """Raises ConfigError when this many devices cannot share the micro-batches of a step of this
    training stage equally."""
    first, second = stage.split("/")
    if first == "finetune":
        key = f"finetune.{second}"
        config: PretrainConfig | FinetuneConfig = recipe.finetune[second]
    else:
        key = f"iterations.{first}.pretrain"
        config = recipe.iterations[first].pretrain
    count = round(config.batch_seconds / config.micro_batch_seconds)
    accumulation(count, devices, key=key)
