"""Checks of a recipe that concern two or more fields. The allowed values of one field stand on it
(schema.py).

A fault is one line: key and value, what was expected, the fix. All faults are found in one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from hubert_pretrain.config.nodes import TARGET, attribute_of, is_ours, nodes_of
from hubert_pretrain.config.schema import (
    MAX_CLUSTERS,
    AugmentConfig,
    ClusteringConfig,
    DynamicChunksConfig,
    FinetuneConfig,
    IterationConfig,
    LossConfig,
    PretrainConfig,
    Recipe,
    SpinConfig,
    TrainerConfig,
    TrainingConfig,
)
from hubert_pretrain.data.config import SpeakerPerturbation
from hubert_pretrain.decoding.config import check_sources
from hubert_pretrain.distributed import accumulation, check_groups
from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.fields import AUTO, between, faults_of_values, positive, share_above_zero
from hubert_pretrain.frames import MODEL_GRID, FrameGrid, samples, seconds
from hubert_pretrain.model.config import (
    ADAPTER_WIDTH,
    HubertConfig,
    SpanMask,
    faults_of_streaming,
)
from hubert_pretrain.model.export_limits import faults_of_export

LAYER_WORDS = ("auto", "all")
"""Layers of features that are no numbers."""
LEAST_EPSILON = 0.005
"""Of `spin.NAME.epsilon`."""
CODEBOOK_KEYS = ["name", "columns", "n_clusters", "residual"]
"""Keys of an entry of `clustering.codebooks`."""


def faults(recipe: Recipe, wrong: Mapping[str, str] | None = None) -> list[str]:
    """A line for each value that cannot be. Checks of several fields are left out where one of
    these fields is wrong alone.

    wrong: faults of values that the recipe has not, by their keys.
    """
    wrong = {**(wrong or {}), **faults_of_values(recipe)}
    found = [*wrong.values(), *_faults_of_root(recipe)]
    model_is_sound = not any(key.startswith("model.") for key in wrong)
    if model_is_sound:
        try:
            recipe.model.validate()
        except ConfigError as error:
            model_is_sound = False
            found.append(str(error))
    parts = (recipe.iterations, recipe.spin, recipe.finetune, recipe.evaluate)
    if not any((*parts, recipe.export.checkpoints)):
        found.append(
            "the recipe has no stages; give it iterations (it1 with features, clustering and "
            "pretrain), spin.NAME, tasks (finetune.NAME), evaluations (evaluate.NAME) or "
            "export.checkpoints"
        )
    for name, iteration in recipe.iterations.items():
        key = f"iterations.{name}"
        if model_is_sound and not any(each.startswith(f"{key}.") for each in wrong):
            found += _faults_of_iteration(key, iteration, recipe)
    for name, spin in recipe.spin.items():
        key = f"spin.{name}"
        if model_is_sound and not any(each.startswith(f"{key}.") for each in wrong):
            found += _faults_of_spin(key, spin, recipe)
    for name, task in recipe.finetune.items():
        key = f"finetune.{name}"
        if not any(each.startswith(f"{key}.") for each in wrong):
            found += _faults_of_finetune(key, task, recipe.trainer)
            if model_is_sound:
                found += _faults_of_streaming_task(key, task, recipe)
    for name, evaluation in recipe.evaluate.items():
        if evaluation.checkpoint is None and name not in recipe.finetune:
            found.append(
                f"evaluate.{name}.checkpoint has no value, and there is no task finetune.{name}; "
                "name a fine-tuned checkpoint"
            )
    if model_is_sound:
        found += _faults_of_trainer(recipe.trainer, recipe.model)
    if model_is_sound and "export.format" not in wrong:
        found += _faults_of_export(recipe)
    return found if found else list(_faults_of_devices(recipe))


def _faults_of_root(recipe: Recipe) -> Iterator[str]:
    corpus = recipe.data.corpus
    node = corpus if isinstance(corpus, dict) else {}
    if recipe.data.root is None and node.get("path", node.get("root", "")) is None:
        yield "data.root has no value: add data.root=<folder of the corpus>"


# -- iterations


def _faults_of_iteration(key: str, iteration: IterationConfig, recipe: Recipe) -> Iterator[str]:
    if iteration.codebook and iteration.targets:
        yield (
            f"{key}.codebook={iteration.codebook} and {key}.targets={iteration.targets}: targets "
            "need no codebook; remove one of them"
        )
    if iteration.switch_penalty > 0 and not iteration.targets:
        yield from _faults_of_smoothing(key, iteration)
    yield from _faults_of_clustering(f"{key}.clustering", iteration.clustering)
    yield from _faults_of_layers(key, iteration, recipe)
    yield from _faults_of_grid(f"{key}.features", iteration.features, recipe.model.grid)
    pretrain = iteration.pretrain
    yield from _faults_of_lengths(f"{key}.pretrain", pretrain, recipe.model.grid)
    yield from _faults_of_schedule(f"{key}.pretrain", pretrain)
    yield from _faults_of_start(f"{key}.pretrain", pretrain, recipe.model)
    if fault := share_above_zero.fault(
        f"{key}.pretrain.mask.probability", pretrain.mask.probability
    ):
        yield fault
    yield from _faults_of_spans(f"{key}.pretrain.mask", pretrain.mask)
    yield from _faults_of_chunks(f"{key}.pretrain", pretrain.dynamic_chunks, recipe.model)
    yield from _faults_of_loss(
        f"{key}.pretrain.loss", pretrain.loss, recipe.model.num_hidden_layers
    )
    yield from _faults_of_augment(f"{key}.pretrain.augment", pretrain.augment)
    yield from _faults_of_spikes(f"{key}.pretrain", pretrain, recipe.trainer)
    yield from _faults_of_mixture(f"{key}.pretrain", pretrain, _corpora(recipe.data.corpus))


def _faults_of_clustering(key: str, config: ClusteringConfig) -> Iterator[str]:
    if config.spherical and config.engine == "minibatch":
        yield (
            f"{key}.spherical=true needs engine=torch or engine=faiss: scikit-learn's mini-batches "
            "know no cosines"
        )
    for number, entry in enumerate(config.codebooks):
        where = f"{key}.codebooks[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            yield (
                f"{where}={entry!r}: expected {{name: ..., columns: [start, stop], "
                "n_clusters: ..., residual: ...}"
            )
            continue
        for name in entry:
            if name not in CODEBOOK_KEYS:
                yield (
                    f"{where}.{name}: no such key{did_you_mean(name, CODEBOOK_KEYS)}; "
                    f"the keys are {', '.join(CODEBOOK_KEYS)}"
                )
        size = entry.get("n_clusters", config.n_clusters)
        if fault := between(1, MAX_CLUSTERS).fault(f"{where}.n_clusters", size):
            yield fault


def _faults_of_smoothing(key: str, iteration: IterationConfig) -> Iterator[str]:
    layer = iteration.features.get("layer")
    if iteration.clustering.codebooks or isinstance(layer, list) or layer == "all":
        yield (
            f"{key}.switch_penalty={iteration.switch_penalty:g} needs one codebook over all "
            f"columns; set {key}.switch_penalty=0, or take one layer and leave out "
            f"{key}.clustering.codebooks"
        )


def _faults_of_layers(key: str, iteration: IterationConfig, recipe: Recipe) -> Iterator[str]:
    """Layers of this recipe's network. Those of other checkpoints are checked when it is opened."""
    depth = recipe.model.num_hidden_layers
    layer = iteration.pretrain.probe.layer
    if layer > depth:
        yield f"{key}.pretrain.probe.layer={layer}: expected 0 to {depth}, the layers of the model"
    own = [f"{name}/pretrain" for name in recipe.iterations]
    own += [f"spin/{name}" for name in recipe.spin]
    own += [f"finetune/{name}" for name in recipe.finetune]
    for name, node in nodes_of(f"{key}.features", iteration.features):
        if node.get("checkpoint") not in own:
            continue
        value = node.get("layer")
        if isinstance(value, str) and value not in LAYER_WORDS:
            yield f"{name}.layer={value!r}: expected {' or '.join(LAYER_WORDS)}, or 1 to {depth}"
        layers = value if isinstance(value, list) else [value]
        if any(isinstance(each, int) and not 1 <= each <= depth for each in layers):
            yield f"{name}.layer={value}: expected 1 to {depth}, the layers of the model"


def _faults_of_grid(key: str, features: Any, grid: FrameGrid) -> Iterator[str]:
    """Targets lie on the model's frames. Features of other classes are checked when their
    checkpoint is opened."""
    if not isinstance(features, dict):
        return
    if str(features.get("_target_", "")).split(".")[-1] not in ("Mfcc", "LogMel"):
        return
    hop = features.get("hop_seconds", seconds(MODEL_GRID.hop))
    window = features.get("window_seconds", seconds(MODEL_GRID.window))
    if any(positive.fault("", value) for value in (hop, window)):
        return  # nodes.py says so
    if FrameGrid(window=samples(window), hop=samples(hop)) != grid:
        yield (
            f"{key}: hop_seconds={hop:g}, window_seconds={window:g}, but the model's frames are "
            f"{seconds(grid.hop):g} s apart and {seconds(grid.window):g} s long; "
            f"set {key}.hop_seconds={seconds(grid.hop):g} and "
            f"{key}.window_seconds={seconds(grid.window):g}"
        )


def _faults_of_lengths(key: str, config: PretrainConfig, grid: FrameGrid) -> Iterator[str]:
    yield from _faults_of_batches(key, config)
    yield from _faults_of_crops(key, config)
    shortest = grid.num_frames(samples(config.min_seconds))
    if shortest <= config.mask.span_frames:
        yield (
            f"{key}.min_seconds={config.min_seconds} gives {shortest} frames, not more than one "
            f"span of {key}.mask.span_frames={config.mask.span_frames}; raise one or lower the "
            "other"
        )


def _faults_of_crops(key: str, config: PretrainConfig | SpinConfig) -> Iterator[str]:
    if config.max_crop_seconds < config.min_seconds:
        yield (
            f"{key}.max_crop_seconds={config.max_crop_seconds} is below "
            f"min_seconds={config.min_seconds}; raise it"
        )
    if config.max_crop_seconds > config.micro_batch_seconds:
        yield (
            f"{key}.micro_batch_seconds={config.micro_batch_seconds} holds not even one crop of "
            f"max_crop_seconds={config.max_crop_seconds}; raise the first or lower the second"
        )


def _faults_of_schedule(key: str, config: PretrainConfig) -> Iterator[str]:
    if config.schedule == "wsd" and config.warmup_fraction + config.decay_fraction > 1:
        yield (
            f"{key}: warmup_fraction={config.warmup_fraction} + "
            f"decay_fraction={config.decay_fraction} is above 1; lower one of them"
        )


def _faults_of_start(key: str, config: PretrainConfig, model: HubertConfig) -> Iterator[str]:
    if config.start_head != "auto" and config.start_from is None:
        yield (
            f"{key}.start_head={config.start_head} needs {key}.start_from: a stage such as "
            "it1/pretrain, or a checkpoint"
        )
    if config.freeze_conv_after_steps is not None and model.front_end != "conv":
        yield (
            f"{key}.freeze_conv_after_steps={config.freeze_conv_after_steps} with "
            f"model.front_end={model.front_end}: there is no conv encoder to freeze; set it to null"
        )


def _faults_of_chunks(
    key: str, chunks: DynamicChunksConfig, model: HubertConfig, normalize: str = "model"
) -> Iterator[str]:
    """Networks that need whole utterances. (model.validate() checks model.chunk_frames.)"""
    if chunks.chunk_frames and model.chunk_frames is None:
        where = f"{key}.dynamic_chunks.chunk_frames={list(chunks.chunk_frames)}"
        yield from faults_of_streaming(model, where, normalize)


def _faults_of_loss(key: str, config: LossConfig, depth: int) -> Iterator[str]:
    if config.masked_weight + config.unmasked_weight == 0:
        yield (
            f"{key}: masked_weight={config.masked_weight} and "
            f"unmasked_weight={config.unmasked_weight}; expected 0 or more, and not both 0"
        )
    layers = list(config.supervised_layers)
    if layers and (layers != sorted(set(layers)) or layers[0] < 1 or layers[-1] != depth):
        yield (
            f"{key}.supervised_layers={layers}: expected ascending numbers from 1 on that end with "
            f"the last layer, {depth}: its head is the one that the checkpoint keeps"
        )
    weights = list(config.layer_weights)
    heads = max(1, len(layers))
    if weights and len(weights) != heads:
        yield (
            f"{key}.layer_weights={weights}: expected one for each of the {heads} supervised layers"
        )


def _faults_of_augment(key: str, config: AugmentConfig) -> Iterator[str]:
    for name in ("mix_noise_share", "noise_probability"):
        if getattr(config, name) > 0 and config.noise is None:
            yield (
                f"{key}.{name}={getattr(config, name)} needs noise: set {key}.noise to a folder of "
                "audio files"
            )
    if config.voice_probability > 0 and _is_same_voice(config.voice):
        yield (
            f"{key}.voice changes nothing; raise formant_ratio or pitch_ratio above 1, or set "
            f"{key}.voice_probability=0"
        )


def _is_same_voice(ranges: SpeakerPerturbation) -> bool:
    return ranges.formant_ratio == ranges.pitch_ratio == 1 and ranges.equaliser_db == 0


def _corpora(node: Any) -> Any:
    return node.get("corpora") if isinstance(node, dict) else None


def _faults_of_mixture(key: str, config: PretrainConfig, corpora: Any) -> Iterator[str]:
    """`corpora`: those of a mixture by name; the names of any other corpus are in its manifest, and
    those of clusters in their file."""
    weights = dict(config.corpus_weights)
    if config.utterance_clusters and not weights and config.corpus_temperature == 1.0:
        yield (
            f"{key}.utterance_clusters={config.utterance_clusters} changes nothing without "
            f"{key}.corpus_temperature above 1, or {key}.corpus_weights"
        )
    if not weights:
        return
    if config.corpus_temperature != 1.0:
        yield (
            f"{key}.corpus_temperature: has no meaning beside {key}.corpus_weights; set one of them"
        )
    if min(weights.values()) < 0 or not sum(weights.values()):
        yield f"{key}.corpus_weights={weights}: expected numbers from 0 up, and not all 0"
    is_mixture = isinstance(corpora, dict) and config.utterance_clusters is None
    names = list(corpora) if is_mixture else list(weights)
    for name in weights:
        if name not in names:
            yield (
                f"{key}.corpus_weights: no corpus {name!r} in the mixture"
                f"{did_you_mean(name, names)}; it has {', '.join(names)}"
            )
    for name in names:
        if name not in weights:
            yield (
                f"{key}.corpus_weights: has no weight for corpus {name!r}; give it one, 0 "
                "leaves it out"
            )


# -- the speaker-invariant stage


def _faults_of_spin(key: str, config: SpinConfig, recipe: Recipe) -> Iterator[str]:
    yield from _faults_of_batches(key, config)
    yield from _faults_of_crops(key, config)
    yield from _faults_of_spikes(key, config, recipe.trainer)
    if config.epsilon < LEAST_EPSILON:
        yield (
            f"{key}.epsilon={config.epsilon:g}: below {LEAST_EPSILON:g} the targets leave the "
            "range of numbers; the paper has 0.02 to 0.05"
        )
    if _is_same_voice(config.perturbation):
        yield (
            f"{key}.perturbation changes nothing, so both views are the same; raise formant_ratio "
            "or pitch_ratio above 1"
        )
    devices = recipe.trainer.devices * recipe.trainer.num_nodes
    frames = devices * recipe.model.grid.num_frames(samples(config.micro_batch_seconds))
    if recipe.launch.kind == "local" and frames < config.n_codewords:
        together = f" x {devices} devices" if devices > 1 else ""
        yield (
            f"{key}.n_codewords={config.n_codewords}: more than the {frames} frames of "
            f"{key}.micro_batch_seconds={config.micro_batch_seconds:g}{together}, so they cannot "
            "get equal shares of them; lower the first or raise the second (the paper: 6 or more "
            "frames for each)"
        )
    if config.checkpoint.endswith("/pretrain") and config.checkpoint[:-9] in recipe.iterations:
        yield from faults_of_spin_network(key, config, recipe.model)


def faults_of_spin_network(key: str, config: SpinConfig, network: HubertConfig) -> Iterator[str]:
    """Faults of a stage whose checkpoint holds this network."""
    depth = network.num_hidden_layers
    if config.n_layers > depth:
        yield f"{key}.n_layers={config.n_layers}: expected 1 to {depth}, the layers of the network"
    if config.projection_size > network.hidden_size:
        yield (
            f"{key}.projection_size={config.projection_size}: expected at most "
            f"{network.hidden_size}, the width of the network"
        )


# -- fine-tuning


def _faults_of_finetune(key: str, config: FinetuneConfig, trainer: TrainerConfig) -> Iterator[str]:
    try:
        check_sources(config.decoding, has_texts=True, key=f"{key}.decoding")
    except ConfigError as error:
        yield str(error)
    if config.checkpoint is None and config.start_head == "keep":
        yield (
            f"{key}.start_head=keep needs a checkpoint with a head, but {key}.checkpoint is null "
            "(random weights); set start_head=new, or name a fine-tuned checkpoint"
        )
    yield from _faults_of_batches(key, config)
    yield from _faults_of_spikes(key, config, trainer)
    yield from _faults_of_attention(key, config.attention_dropout, trainer)
    yield from _faults_of_spans(f"{key}.mask", config.mask)
    yield from _faults_of_spans(f"{key}.channel_mask", config.channel_mask)
    if config.warmup_fraction + config.hold_fraction > 1:
        yield f"{key}: warmup_fraction + hold_fraction is above 1; nothing is left for the decay"
    if config.lora.rank:
        yield from _faults_of_lora(key, config)
    if config.target_lang is not None:
        yield from _faults_of_adapters(key, config)
    elif config.adapter_attn_dim is not None:
        yield (
            f"{key}.adapter_attn_dim={config.adapter_attn_dim} needs {key}.target_lang, the "
            "language that the adapters are of; set it, or adapter_attn_dim=null"
        )
    weight = config.task.get("consistency_weight") if isinstance(config.task, dict) else 0
    if weight and config.mask.probability == config.channel_mask.probability == 0:
        yield (
            f"{key}.task.consistency_weight={weight} compares two views of an utterance, which are "
            f"the same without masks; set {key}.mask.probability, or the weight to 0"
        )


def _faults_of_streaming_task(key: str, config: FinetuneConfig, recipe: Recipe) -> Iterator[str]:
    """Of tasks that start from this recipe's network; others are checked when it is opened."""
    if config.checkpoint not in (None, *(f"{name}/pretrain" for name in recipe.iterations)):
        return
    model = replace(recipe.model, chunk_frames=None)
    if config.normalize_waveform is not None:
        model.normalize_waveform = config.normalize_waveform
    if config.chunk_frames is not None:
        yield from faults_of_streaming(model, f"{key}.chunk_frames={config.chunk_frames}", key)
    else:
        yield from _faults_of_chunks(key, config.dynamic_chunks, model, key)


def _faults_of_lora(key: str, config: FinetuneConfig) -> Iterator[str]:
    where = f"{key}.lora.rank={config.lora.rank}"
    if not find_spec("peft"):
        yield f"{where} needs peft, which is missing: pip install 'peft>=0.17', or set it to 0"
    yield from _faults_of_frozen(key, config, where, "lora.rank=0")


def _faults_of_adapters(key: str, config: FinetuneConfig) -> Iterator[str]:
    where = f"{key}.target_lang={config.target_lang}"
    if config.lora.rank:
        yield (
            f"{where} trains adapters, {key}.lora.rank={config.lora.rank} other matrices; remove "
            "one of them"
        )
    target = str(config.task.get(TARGET, "")) if isinstance(config.task, dict) else ""
    if is_ours(target) and not attribute_of(target, "has_languages"):
        yield (
            f"{where}: a language is adapters with a vocabulary, and {target} has none; remove it, "
            "or take the task hubert_pretrain.finetune.ctc.CtcTask"
        )
    yield from _faults_of_frozen(key, config, where, "target_lang=null")


def _faults_of_frozen(key: str, config: FinetuneConfig, where: str, fix: str) -> Iterator[str]:
    """Settings that have no meaning for an encoder that is frozen but for what was added to it."""
    if config.freeze_encoder_steps >= config.steps:
        yield (
            f"{where} trains nothing with {key}.freeze_encoder_steps={config.freeze_encoder_steps} "
            f"of {config.steps} steps, in which only the head learns; lower it, or set {fix}"
        )
    if config.conv_gradient_scale:
        yield (
            f"{key}.conv_gradient_scale={config.conv_gradient_scale}: the conv encoder is frozen "
            f"with {where}; set it to 0"
        )


# -- all trainings


def _faults_of_batches(key: str, config: TrainingConfig) -> Iterator[str]:
    """A step is a whole number of micro-batches."""
    micro_batches = config.batch_seconds / config.micro_batch_seconds
    if abs(micro_batches - round(micro_batches)) > 1e-6:
        example = config.batch_seconds / max(1, round(micro_batches))
        yield (
            f"{key}: batch_seconds={config.batch_seconds} is {micro_batches:.3f} x "
            f"micro_batch_seconds={config.micro_batch_seconds}; it must be a whole multiple, "
            f"e.g. micro_batch_seconds={example:g}"
        )


def _faults_of_spikes(key: str, config: TrainingConfig, trainer: TrainerConfig) -> Iterator[str]:
    if config.max_gradient_spike > 0 and trainer.precision == "16-mixed":
        yield (
            f"{key}.max_gradient_spike={config.max_gradient_spike:g} does not go with "
            "trainer.precision=16-mixed, whose loss scaler skips updates itself; set it to 0, or "
            "use bf16-mixed or 32-true"
        )


def _faults_of_spans(key: str, config: SpanMask) -> Iterator[str]:
    if config.lengths == "uniform" and config.length_other > 2 * config.span_frames:
        yield (
            f"{key}.length_other={config.length_other} is the shortest span of lengths=uniform, "
            f"above the longest, 2 x span_frames={2 * config.span_frames}; lower it"
        )


# -- export


def _faults_of_export(recipe: Recipe) -> Iterator[str]:
    """Networks of this run that a chosen format cannot hold."""
    trainings = {f"{name}/pretrain": each.pretrain for name, each in recipe.iterations.items()}
    targets = {
        f"finetune/{name}": str(each.task.get(TARGET, ""))
        for name, each in recipe.finetune.items()
        if isinstance(each.task, dict)
    }
    spins = {f"spin/{name}" for name, each in recipe.spin.items() if each.checkpoint in trainings}
    known = {*trainings, *spins, *targets}
    own = [name for name in recipe.export.checkpoints if name in known]
    formats = recipe.export.format
    for format in formats if isinstance(formats, list) else [formats]:
        if own:
            yield from faults_of_export(format, recipe.model)
        yield from _faults_of_languages(recipe, own, format)
        for name in own:
            softmax = name in trainings and trainings[name].loss.head == "softmax"
            if format in ("fairseq", "s3prl") and softmax:
                yield (
                    f"export.format={format} cannot hold the softmax head of {name}: its HuBERT "
                    "has unit embeddings only; export to huggingface or torchaudio"
                )
            able = attribute_of(targets.get(name, ""), "exports")
            if able and format not in able:
                yield (
                    f"export.format={format} cannot hold {name}: it has no HuBERT with such a "
                    f"head; export to {', '.join(able[:-1])} or {able[-1]}"
                )


def _faults_of_languages(recipe: Recipe, checkpoints: list[str], format: str) -> Iterator[str]:
    """Formats that cannot hold the adapters that a task adds to the network."""
    for name in checkpoints:
        verb, _, task = name.partition("/")
        if verb != "finetune" or recipe.finetune[task].target_lang is None:
            continue
        width = recipe.finetune[task].adapter_attn_dim or ADAPTER_WIDTH
        model = replace(recipe.model, adapter_attn_dim=width)
        known = faults_of_export(format, recipe.model)
        yield from (fault for fault in faults_of_export(format, model) if fault not in known)


# -- hardware


def _faults_of_trainer(trainer: TrainerConfig, model: HubertConfig) -> Iterator[str]:
    yield from _faults_of_attention("model", model.attention_dropout, trainer)
    if trainer.residual == "bf16" and trainer.precision not in ("auto", "bf16-mixed"):
        yield (
            f"trainer.residual=bf16 does not go with trainer.precision={trainer.precision}; use "
            "bf16-mixed, or trainer.residual=fp32"
        )
    yield from _faults_of_sharding(trainer)


def _faults_of_sharding(trainer: TrainerConfig) -> Iterator[str]:
    if trainer.strategy != "hsdp" and trainer.shard_size != AUTO:
        yield (
            f"trainer.shard_size={trainer.shard_size} is for hsdp; remove it, or use "
            "trainer.strategy=hsdp"
        )
    if trainer.strategy not in ("fsdp", "hsdp"):
        if trainer.reduce_gradients != "step":
            yield (
                f"trainer.reduce_gradients={trainer.reduce_gradients} is for fsdp and hsdp; remove "
                "it (ddp reduces once per step)"
            )
        return
    if trainer.precision == "16-mixed":
        yield (
            f"trainer.strategy={trainer.strategy} has no loss scaler for "
            "trainer.precision=16-mixed; use bf16-mixed or 32-true"
        )
    if trainer.gradient_compression != "none":
        yield (
            f"trainer.gradient_compression={trainer.gradient_compression} is for ddp; remove it, "
            "or use trainer.strategy=ddp"
        )


def _faults_of_attention(key: str, dropout: float, trainer: TrainerConfig) -> Iterator[str]:
    if trainer.attention == "flex" and dropout > 0:
        yield (
            f"trainer.attention=flex has no dropout, but {key}.attention_dropout={dropout}; set "
            "that to 0 or choose sdpa"
        )


def _faults_of_devices(recipe: Recipe) -> Iterator[str]:
    """Every training of this command can be shared by the devices. With launch=slurm each stage has
    a number of its own (launch/resources.py)."""
    if recipe.launch.kind == "slurm":
        return
    trainer = recipe.trainer
    if trainer.strategy == "hsdp" and trainer.shard_size != AUTO:
        try:
            size = int(trainer.shard_size)
            check_groups(size, trainer.devices, trainer.num_nodes, key="trainer.shard_size")
        except ConfigError as error:
            yield str(error)
    devices = trainer.devices * trainer.num_nodes
    pretrainings = [f"{name}/pretrain" for name in recipe.iterations]
    others = [f"spin/{name}" for name in recipe.spin]
    others += [f"finetune/{name}" for name in recipe.finetune]
    for stage in pretrainings + others:
        if recipe.stage in ("all", "list", "check", stage) or stage.startswith(f"{recipe.stage}/"):
            try:
                check_shares(recipe, stage, devices)
            except ConfigError as error:
                yield str(error)
                return  # the number of devices is one fault, however many trainings share them


def check_shares(recipe: Recipe, stage: str, devices: int) -> None:
    """Raises ConfigError when this many devices cannot share the micro-batches of a step of this
    training stage equally."""
    first, second = stage.split("/")
    if first == "finetune":
        key = f"finetune.{second}"
        config: TrainingConfig = recipe.finetune[second]
    elif first == "spin":
        key = f"spin.{second}"
        config = recipe.spin[second]
    else:
        key = f"iterations.{first}.pretrain"
        config = recipe.iterations[first].pretrain
    count = round(config.batch_seconds / config.micro_batch_seconds)
    accumulation(count, devices, key=key)
