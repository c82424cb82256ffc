"""The configuration: every key once, with its type, default, unit and allowed values.

docs/configuration.md is generated from this file. The yaml files in conf/ and recipes/ state only
what differs from the defaults. Parts that can be exchanged (`Any`) are `_target_` nodes: the class
that does the work, and its keyword arguments. A name in brackets is fairseq's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from hubert_pretrain.data.config import Segmentation, SpeakerPerturbation
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.fields import (
    AUTO,
    MISSING,
    all_positive,
    audio_channel,
    auto_or_positive,
    between,
    choice,
    decay_rates,
    decibels,
    field,
    first_and_last,
    hub_languages,
    hub_licence,
    language_name,
    one_or_several,
    positive,
    share,
    share_above_zero,
    share_below_one,
    signal_names,
    split_names,
    steps_to_profile,
    zero_or_above_one,
    zero_or_more,
)
from hubert_pretrain.model.config import (
    ATTENTIONS,
    COMPILE_MODES,
    COMPILED,
    MASK_SAMPLERS,
    NO_CUDA_GRAPHS,
    POSITIONAL_FORMS,
    HubertConfig,
    SpanMask,
)

MAX_CLUSTERS = 2**16
"""Targets are 16-bit numbers."""


@dataclass
class DataConfig:
    """Speech on disk -> a prepared corpus."""

    corpus: Any = MISSING
    """`_target_` of a class in hubert_pretrain/corpora/, and its arguments."""
    root: str | None = field(MISSING, path=True)
    """Folder of the corpus on disk; null for a corpus that makes its own audio."""
    download: bool = field(False, science=False)
    """Fetch missing parts of the corpus first, where its licence allows it (docs/corpora.md)."""
    mirror: str | None = field(None, science=False)
    """URL of a folder with the same archives, to fetch them from instead of the publisher."""
    alignments: Any = field(None, path=True)
    """Phone alignments from elsewhere, joined by utterance id: a file or folder, or its path,
    format, tier, silence and symbols."""
    valid_fraction: float = field(0.05, share)
    """Share of `train` that is held out as `valid`, by a hash, where the corpus has no such
    split."""
    hold_out_by: str = field("recording", choice("recording", "speaker", "utterance"))
    """Unit that is held out whole: all parts of one audio file; all that one speaker says; or each
    utterance alone, though parts of its recording are trained on."""
    duplicates: str = field("keep", choice("keep", "drop"))
    """Utterances with the same audio: keep (they are listed), or drop all but one, first those of
    `train`."""
    max_silence_share: float = field(1.0, share_above_zero)
    """Leave utterances of `train` out that are more silence than this (40 dB below their loudest
    20 ms); 1: none."""
    keep_longest: float = field(1.0, share_above_zero)
    """Share of the audio of `train` that is kept, the longest utterances first; 1: everything."""
    max_bad_fraction: float = field(0.001, share, science=False)
    """A larger share of unreadable files is an error; fewer are quarantined."""
    channel: str = field("mix", audio_channel)
    """Of files with several channels: mix (the mean), a number (0 is the first; a file without it
    is quarantined), or loudest, of each utterance. A corpus may name it for each utterance."""
    segmentation: Segmentation = field(Segmentation)
    """Long recordings are cut at pauses."""
    recode_minutes: float = field(2.0, zero_or_more)
    """`prepare` writes longer recordings of formats without exact positions (MP3, Ogg, AAC) as
    16-bit FLAC at 16 kHz, because each crop would be decoded from their beginning; 0: none."""
    workers: int = field(0, zero_or_more, science=False)
    """Processes that read audio in `prepare`; 0: one per core."""
    shards: str = field("none", choice("none", "pcm", "flac"))
    """pcm or flac: `prepare` also writes the audio into tar shards, 16 kHz mono, and training reads
    those."""
    shard_megabytes: int = field(512, positive)
    """Approximate size of a shard."""
    cache_dir: str | None = field(None, science=False)
    """Folder on a local disk for audio that is fetched from URLs; null: fetched again each time."""
    cache_gigabytes: float = field(100.0, positive, science=False)
    """Size limit of the cache; the longest unused files are removed first."""


@dataclass
class ClusteringConfig:
    """Frames -> codebook (fairseq's learn_kmeans.py). The defaults are the paper's mini-batch
    k-means."""

    n_clusters: int = field(MISSING, between(1, MAX_CLUSTERS))
    """K, the number of clusters. Targets are 16-bit numbers."""
    fraction: float = field(0.1, share_above_zero)
    """Share of the training utterances that the codebook is fitted on; at least an hour of audio,
    or everything [percent]."""
    max_hours: float = field(100.0, positive)
    """Never more than this much audio, however large the share; an utterance that would pass it is
    skipped."""
    max_frames: int = field(0, zero_or_more)
    """Nor more than this many frames; 0: no limit."""
    max_memory_gb: float = field(4.0, positive)
    """Memory of the process (10^9 bytes), frames included. Frames that do not fit lie in a scratch
    file."""
    engine: str = field("minibatch", choice("minibatch", "torch", "faiss"))
    """minibatch: scikit-learn's mini-batches, as in the paper; torch: full batch, also on a GPU or
    several processes; faiss: full batch by faiss."""
    codebooks: list[Any] = field([])
    """Several codebooks, each {name, columns, n_clusters, residual}; []: one over all columns."""
    pca_dims: int = field(0, zero_or_more)
    """Principal components that frames are reduced to first; 0: no reduction."""
    whiten: bool = False
    """Scale the principal components (all, or pca_dims of them) to variance 1."""
    spherical: bool = False
    """Scale frames to length 1: clusters by cosine (torch, faiss)."""
    batch_frames: int = field(10_000, positive)
    """Frames per mini-batch [batch_size]."""
    max_iterations: int = field(100, positive)
    """Passes over the sample, at most [max_iter]."""
    max_no_improvement: int = field(100, zero_or_more)
    """Stop after this many mini-batches without improvement (minibatch)."""
    restarts: int = field(20, positive)
    """k-means++ initialisations, of which the best is kept [n_init]."""
    tolerance: float = field(0.0, zero_or_more)
    """torch, faiss: stop when a pass improves the inertia by less than this share. minibatch: stop
    when centroids move less than this; 0: never."""
    reassignment_ratio: float = field(0.0, zero_or_more)
    """Draw clusters again that are smaller than this share of the largest; 0: never (minibatch)."""

    @property
    def max_memory_bytes(self) -> int:
        """`max_memory_gb` in bytes."""
        return int(self.max_memory_gb * 1e9)


@dataclass
class LossConfig:
    """The head and the loss of pretraining (paper section 2.3)."""

    masked_weight: float = field(1.0, zero_or_more)
    """alpha, the weight of masked frames [pred_masked_weight]."""
    unmasked_weight: float = field(0.0, zero_or_more)
    """1 - alpha, the weight of unmasked frames [pred_nomask_weight]."""
    feature_penalty: float = field(10.0, zero_or_more)
    """Weight of the mean square of the conv encoder's output [loss_weights]."""
    head: str = field("cosine", choice("cosine", "softmax"))
    """cosine: similarity to unit embeddings (equation 3); softmax: a linear classifier, as good or
    better in published runs, as fast here (docs/benchmarks.md)."""
    temperature: float = field(0.1, positive)
    """tau, the temperature of the cosine head [logit_temp]."""
    tie_projections: bool = False
    """Several codebooks: one projection for all of them [not untie_final_proj]."""
    supervised_layers: list[int] = field([])
    """Layers that predict the targets, ascending, the last layer among them; []: the last alone."""
    layer_weights: list[float] = field([], all_positive)
    """Weights of their losses, one for each; []: 1 each."""
    separate_layer_heads: bool = False
    """Give each supervised layer a head of its own."""


@dataclass
class AugmentConfig:
    """Augmentation of training crops (data/augment.py); off by default, as in the paper. Targets
    stay those of the clean audio."""

    mix_probability: float = field(0.0, share)
    """Share of the rows that get a part of another row of the micro-batch (WavLM: 0.2)."""
    mix_ratio_db: list[float] = field([-5.0, 5.0], decibels)
    """Range of the energy of the row over that of the part."""
    mix_noise_share: float = field(0.0, share)
    """Share of those rows that get a part of the noise instead (WavLM Base+ and Large: 0.1)."""
    mix_noise_ratio_db: list[float] = field([-5.0, 20.0], decibels)
    """Range of the energy of the row over that of the noise."""
    noise: str | None = field(None, path=True)
    """Folder of noise: audio files, or a prepared corpus."""
    noise_probability: float = field(0.0, share)
    """Share of the rows that get noise from beginning to end."""
    noise_ratio_db: list[float] = field([5.0, 20.0], decibels)
    """Range of the energy of the row over that of this noise."""
    gain_probability: float = field(0.0, share)
    """Share of the rows that are made louder or softer."""
    gain_db: list[float] = field([-6.0, 6.0], decibels)
    """Range of that gain."""
    voice_probability: float = field(0.0, share)
    """Share of the rows that are heard in another voice (ContentVec, arXiv:2204.09224)."""
    voice: SpeakerPerturbation = field(SpeakerPerturbation)
    """That voice."""


@dataclass
class ProbeConfig:
    """PNMI of a layer during pretraining, logged as `health/pnmi` (pretrain/phone_probe.py). Needs
    phone alignments."""

    every_steps: int = field(0, zero_or_more)
    """Steps between two measurements; 0: not measured."""
    layer: int = field(0, zero_or_more)
    """Layer, counted from 1; 0: the middle one, rounded up."""
    split: str = "valid"
    """Split whose frames are clustered."""
    seconds: float = field(120.0, positive)
    """Aligned speech, at most."""
    n_clusters: int = field(100, positive)
    """K of the clustering that is scored."""


@dataclass
class DynamicChunksConfig:
    """Dynamic chunk training (U2++): attention in chunks of a length that is drawn for each step,
    so that one network serves whole utterances and streams (docs/streaming.md)."""

    chunk_frames: list[int] = field([], all_positive)
    """Lengths to draw from, in frames, e.g. [50, 100, 200, 400]; []: model.chunk_frames in each
    step. Frames before the chunk that it sees: model.left_context_frames."""
    full_context_probability: float = field(0.5, share_below_one)
    """Share of the steps in which frames see the whole utterance."""


@dataclass
class PretrainConfig:
    """Corpus + targets -> checkpoint."""

    start_from: str | None = field(None, path=True)
    """Continued pretraining: a stage ("it1/pretrain") or any checkpoint (docs/checkpoints.md);
    null: new weights."""
    start_head: str = field("auto", choice("auto", "keep", "new", "warm"))
    """Head of that checkpoint: keep it, make a new one, or warm: what it has for matching clusters
    (unit embeddings, or rows of a softmax). auto: keep if K and codebook are the same, else new
    (docs/distributed.md)."""
    steps: int = field(MISSING, positive)
    """Optimiser updates [max_update]."""
    batch_seconds: float = field(MISSING, positive)
    """Audio per update, over all devices [max_tokens x GPUs x update_freq]."""
    micro_batch_seconds: float = field(MISSING, positive)
    """Audio of a micro-batch, to a tenth; divides batch_seconds."""
    learning_rate: float = field(5e-4, positive)
    """Peak learning rate."""
    warmup_fraction: float = field(0.08, share)
    """Share of the steps with a linear rise from 0."""
    schedule: str = field("linear", choice("linear", "cosine", "wsd"))
    """Fall after the rise: linear (as fairseq) or half a cosine to the end; wsd: the peak, then a
    fall in the last decay_fraction of the steps (formulas: training/optim.py)."""
    decay_fraction: float = field(0.2, share_above_zero)
    """wsd: share of the steps in which the rate falls."""
    final_lr_scale: float = field(0.0, share)
    """Last rate, as a share of the peak."""
    betas: list[float] = field([0.9, 0.98], decay_rates)
    """AdamW's decay rates of the two moments."""
    eps: float = field(1e-6, positive)
    """AdamW's epsilon."""
    weight_decay: float = field(0.01, zero_or_more)
    """Pull of the weights to 0, times the learning rate."""
    weight_decay_on: str = field("all", choice("all", "matrices"))
    """all: every parameter, as in fairseq; matrices: not biases, gains of norms, and embeddings."""
    clip_norm: float = field(10.0, zero_or_more)
    """Limit of the global gradient norm."""
    max_gradient_spike: float = field(0.0, zero_or_above_one)
    """Skip an update whose gradient norm is above this many medians of the last 128, e.g. 10; 0:
    never."""
    min_seconds: float = field(2.0, positive)
    """Shorter utterances are left out [min_sample_size]."""
    max_crop_seconds: float = field(15.625, positive)
    """Longer utterances are cropped [max_sample_size]."""
    max_shapes: int = field(16, positive)
    """Number of crop lengths (buckets)."""
    corpus_weights: dict[str, float] = field({})
    """Mixture: how much audio of each corpus is drawn, in proportion; {}: everything once."""
    corpus_temperature: float = field(1.0, positive)
    """Mixture, instead of weights: hours ** (1 / temperature); above 1 small corpora are drawn more
    often."""
    utterance_clusters: str | None = field(None, path=True)
    """File of cluster-utterances (an utterance id, a tab, its cluster): its clusters stand for the
    corpora in corpus_weights and corpus_temperature."""
    mask: SpanMask = field(SpanMask)
    """Span masks over time."""
    loss: LossConfig = field(LossConfig)
    """Head and loss."""
    dynamic_chunks: DynamicChunksConfig = field(DynamicChunksConfig)
    """Attention in chunks, for streaming."""
    augment: AugmentConfig = field(AugmentConfig)
    """Augmentation of the audio."""
    probe: ProbeConfig = field(ProbeConfig, science=False)
    """PNMI of a layer during training."""
    ema_decay: float = field(0.0, share_below_one)
    """Validate and export an average of the weights over about 1 / (1 - ema_decay) updates; 0: no
    average."""
    freeze_conv_after_steps: int | None = field(None, zero_or_more)
    """From this step on the conv encoder is frozen, which saves a fifth of the work of Base; null:
    never."""
    log_every_steps: int = field(50, positive, science=False)
    """Steps between two rows of logs/metrics.csv."""
    valid_every_steps: int = field(5000, positive, science=False)
    """Steps between two validations."""
    checkpoint_every_steps: int = field(10_000, positive, science=False)
    """Most steps between two checkpoints to resume from."""
    checkpoint_every_minutes: float = field(15.0, zero_or_more, science=False)
    """And most minutes, by the clock of the first process; 0: only steps count."""
    keep_best: str = ""
    """Result: the weights that scored best by this value of the valid split, e.g.
    valid/loss/masked; "": those of the last step."""


@dataclass
class LayerChoiceConfig:
    """`features.layer=auto`: every layer is clustered and scored, the best is taken
    (clustering/layer_selection.py)."""

    criterion: str = field("pnmi", choice("pnmi", "phone_purity", "abx", "stability"))
    """pnmi, phone_purity: need alignments; abx: needs alignments or one word per utterance;
    stability: needs neither."""
    split: str = "valid"
    """Split whose speech the layers are scored on."""
    n_clusters: int = field(100, positive)
    """K of the clusterings that are scored."""
    max_hours: float = field(0.5, positive)
    """Never more than this much of the split."""


@dataclass
class IterationConfig:
    """One round of HuBERT: features -> codebook -> targets -> checkpoint."""

    features: Any = MISSING
    """`_target_` of a class in hubert_pretrain/features/, and its arguments."""
    clustering: ClusteringConfig = field(ClusteringConfig)
    """Frames -> codebook."""
    pretrain: PretrainConfig = field(PretrainConfig)
    """Targets -> checkpoint."""
    layer_choice: LayerChoiceConfig = field(LayerChoiceConfig)
    """Only for features.layer=auto."""
    switch_penalty: float = field(0.0, zero_or_more)
    """Above 0: the ids of an utterance are smoothed (targets/smoothing.py): each switch costs this
    many mean squared distances of a frame to its centroid. Not those of `targets`."""
    codebook: str | None = field(None, path=True)
    """Instead of clustering: the cluster stage of another run or iteration, or a codebook of
    import-kmeans. `features` are those that it was fitted on."""
    targets: str | None = field(None, path=True)
    """Instead of features and clustering: a folder of fairseq's .tsv and .km files, or the label
    stage of another run."""


@dataclass
class SpinConfig:
    """Checkpoint + audio -> checkpoint that hears less of the speaker (Spin, arXiv:2305.11072): the
    last layers and a codebook learn to give the same codeword to a frame in another voice."""

    checkpoint: str = field(MISSING, path=True)
    """A stage of this run ("it2/pretrain"), or any checkpoint (docs/checkpoints.md)."""
    n_codewords: int = field(MISSING, between(2, MAX_CLUSTERS))
    """Size of the codebook. A step needs more frames than codewords."""
    n_layers: int = field(2, positive)
    """The last layers, which learn; everything before them is frozen."""
    projection_size: int = field(256, positive)
    """Width of the codewords; not above that of the network."""
    temperature: float = field(0.1, positive)
    """tau, divisor of the cosines in the prediction."""
    epsilon: float = field(0.02, positive)
    """Softness of the targets: 0.02 to 0.05 in the paper; below 0.005 they are refused."""
    sinkhorn_iterations: int = field(3, positive)
    """Rounds that bring the codewords to equal shares of the frames."""
    perturbation: SpeakerPerturbation = field(SpeakerPerturbation)
    """The other voice."""
    steps: int = field(MISSING, positive)
    """Optimiser updates."""
    batch_seconds: float = field(MISSING, positive)
    """Audio per update, over all devices; the second view does not count."""
    micro_batch_seconds: float = field(MISSING, positive)
    """Audio of a forward pass of a device. Codewords get equal shares of the frames that all
    devices compute together."""
    learning_rate: float = field(1e-4, positive)
    """Peak learning rate; the rate rises and falls linearly."""
    warmup_fraction: float = field(0.5, share)
    """Share of the steps with a linear rise from 0."""
    final_lr_scale: float = field(0.01, share)
    """Last rate, as a share of the peak."""
    betas: list[float] = field([0.9, 0.999], decay_rates)
    """AdamW's decay rates of the two moments."""
    eps: float = field(1e-8, positive)
    """AdamW's epsilon."""
    weight_decay: float = field(0.0, zero_or_more)
    """Pull of the weights to 0, times the learning rate."""
    weight_decay_on: str = field("all", choice("all", "matrices"))
    """all: every parameter that learns; matrices: not biases, gains of norms, and codewords."""
    clip_norm: float = field(10.0, zero_or_more)
    """Limit of the global gradient norm."""
    max_gradient_spike: float = field(0.0, zero_or_above_one)
    """Skip an update whose gradient norm is above this many medians of the last 128, e.g. 10; 0:
    never."""
    min_seconds: float = field(2.5, positive)
    """Shorter utterances are left out."""
    max_crop_seconds: float = field(17.0, positive)
    """Longer utterances are cropped."""
    max_shapes: int = field(16, positive)
    """Number of crop lengths (buckets)."""
    ema_decay: float = field(0.0, share_below_one)
    """Validate and keep an average of the weights over about 1 / (1 - ema_decay) updates; 0: no
    average."""
    log_every_steps: int = field(50, positive, science=False)
    """Steps between two rows of logs/metrics.csv."""
    valid_every_steps: int = field(1000, positive, science=False)
    """Steps between two validations."""
    checkpoint_every_steps: int = field(1000, positive, science=False)
    """Most steps between two checkpoints to resume from."""
    checkpoint_every_minutes: float = field(15.0, zero_or_more, science=False)
    """And most minutes, by the clock of the first process; 0: only steps count."""
    keep_best: str = ""
    """Result: the weights that scored best by this value of the valid split, valid/agreement or
    valid/loss; "": those of the last step."""


@dataclass
class LoraConfig:
    """Low-rank adaptation: the encoder is frozen, and small matrices beside its weights learn."""

    rank: int = field(0, zero_or_more)
    """Rank of the matrices; 0: the encoder itself learns. Needs peft (pip install peft)."""
    alpha: float = field(16.0, positive)
    """Their product is scaled by alpha / rank."""
    dropout: float = field(0.0, share_below_one)
    """Dropout of their input."""
    targets: list[str] = field(["qkv", "out"], one_or_several("qkv", "out", "up", "down"))
    """Products of each layer that get them: qkv and out of the attention (qkv: queries, keys and
    values, one matrix), up and down of the feed-forward part."""


@dataclass
class SeriesConfig:
    """Many iterations from one short form: `it1` as it is stated, and further ones like `it2`, each
    on clusters of the network before it (config/series.py)."""

    count: int = field(0, zero_or_more)
    """Number of iterations; 0: those that the recipe states."""
    steps: list[int] = field([], first_and_last)
    """`pretrain.steps` of the first and the last iteration, the others on a line between them; []:
    as stated."""
    n_clusters: list[int] = field([], first_and_last)
    """`clustering.n_clusters` of the first and the last iteration; []: as stated."""
    layers: list[int] = field([], first_and_last)
    """`features.layer` of the second and the last iteration; []: as stated."""


@dataclass
class FinetuneConfig:
    """Checkpoint + labels -> task model."""

    task: Any = MISSING
    """`_target_` of a task in hubert_pretrain/finetune/, and its arguments."""
    checkpoint: str | None = field(MISSING, path=True)
    """A stage of this run ("it2/pretrain"), or any checkpoint, pretrained or fine-tuned
    (docs/checkpoints.md); null: random weights of the recipe's model, for comparison."""
    start_head: str = field("new", choice("new", "keep"))
    """Head of a fine-tuned checkpoint: new leaves it out; keep goes on with it, and with its
    vocabulary or classes."""
    train_split: str = "train"
    """Split to train on."""
    train_hours: float = field(0.0, zero_or_more)
    """Most speech of that split to train on, drawn at random, the same for every seed: shows what
    few labels give; 0: all of it."""
    valid_split: str = "valid"
    """Split to validate on."""
    test_split: Any = field("test", split_names, science=False)
    """Split to score in the end, or several, [test-clean, test-other]: each is a stage of its own,
    evaluate/asr/test-clean, so another split is scored without training again."""
    decoding: DecodingConfig = field(DecodingConfig, science=False)
    """CTC: decoding of the final scores; validation is greedy. When this changes, the task is
    scored again, and not trained."""
    steps: int = field(MISSING, positive)
    """Optimiser updates [max_update]."""
    batch_seconds: float = field(MISSING, positive)
    """Audio per update, padding included, over all devices; each view of CR-CTC counts."""
    micro_batch_seconds: float = field(MISSING, positive)
    """Audio per forward pass; divides batch_seconds."""
    learning_rate: float = field(5e-5, positive)
    """Peak of the tri-stage schedule: linear rise, constant, exponential fall."""
    head_learning_rate: float | None = field(None, positive)
    """Peak of the head; null: learning_rate."""
    layer_decay: float = field(1.0, share_above_zero)
    """Rate of each layer, as a share of that of the layer above it."""
    warmup_fraction: float = field(0.1, share)
    """Share of the steps in which the rate rises."""
    hold_fraction: float = field(0.4, share)
    """Share of the steps in which the rate stays at its peak."""
    initial_lr_scale: float = field(0.01, share)
    """First rate, as a share of the peak."""
    final_lr_scale: float = field(0.05, share_above_zero)
    """Last rate, as a share of the peak."""
    betas: list[float] = field([0.9, 0.98], decay_rates)
    """AdamW's decay rates of the two moments."""
    eps: float = field(1e-8, positive)
    """AdamW's epsilon."""
    weight_decay: float = field(0.0, zero_or_more)
    """Pull of the weights to 0, times the learning rate."""
    weight_decay_on: str = field("all", choice("all", "matrices"))
    """all: every parameter, as in fairseq; matrices: not biases, gains of norms, and embeddings."""
    clip_norm: float = field(10.0, zero_or_more)
    """Limit of the global gradient norm."""
    max_gradient_spike: float = field(0.0, zero_or_above_one)
    """Skip an update whose gradient norm is above this many medians of the last 128, e.g. 10; 0:
    never."""
    freeze_encoder_steps: int = field(0, zero_or_more)
    """Only the new head is trained until this step [freeze_finetune_updates]."""
    feature_cache_gb: float = field(20.0, zero_or_more, science=False)
    """Limit of a file with the outputs of an encoder that is frozen throughout, which then runs
    once per utterance, not in each step; 0: no file. Only without masks, dropout and layer drop,
    and with norm_over_valid where the norm is over time."""
    conv_gradient_scale: float = field(0.0, zero_or_more)
    """Gradient into the conv encoder times this; 0: frozen throughout [feature_grad_mult]."""
    lora: LoraConfig = field(LoraConfig)
    """Low-rank adaptation in place of training the encoder."""
    chunk_frames: int | None = field(None, between(1, 100_000))
    """Streaming: model.chunk_frames of the task model; null: it sees whole utterances. Replaces
    that of the checkpoint, as does left_context_frames."""
    left_context_frames: int | None = field(None, zero_or_more)
    """Frames before its chunk that a frame attends to; null: all."""
    dynamic_chunks: DynamicChunksConfig = field(DynamicChunksConfig)
    """Chunks of drawn lengths while training; chunk_frames is that of scoring and of the result."""
    normalize_waveform: bool | None = None
    """Zero mean and unit variance per utterance; null: as in pretraining. A stream needs false."""
    target_lang: str | None = field(None, language_name)
    """CTC: the language to train adapters and a head for, in the file
    adapter.LANGUAGE.safetensors, while the encoder is frozen. A checkpoint with other languages
    keeps them; null: no adapters."""
    adapter_attn_dim: int | None = field(None, between(1, 32_768))
    """Width of the adapters of target_lang; null: that of the checkpoint, 16 where it has none."""
    norm_over_valid: bool = False
    """The norm over time (Base) leaves padding out, as in exports and scoring, where there is
    none."""
    hidden_dropout: float = field(0.0, share_below_one)
    """Dropout after attention, feed-forward and positions. Dropouts replace those of
    pretraining."""
    attention_dropout: float = field(0.0, share_below_one)
    """Dropout of attention weights."""
    activation_dropout: float = field(0.1, share_below_one)
    """Dropout inside the feed-forward layers."""
    feat_proj_dropout: float = field(0.0, share_below_one)
    """Dropout after the projection of frames."""
    layerdrop: float = field(0.1, share_below_one)
    """Probability that a layer is left out of a training step."""
    mask: SpanMask = field(lambda: SpanMask(probability=0.65))
    """Masks over time while training."""
    channel_mask: SpanMask = field(lambda: SpanMask(probability=0.5, span_frames=64, min_spans=0))
    """Masks over channels while training; spans are counted in channels."""
    mask_sampler: str = field("reference", choice(*MASK_SAMPLERS))
    """reference: fairseq's sampler; transformers: its mask_time_* and mask_feature_*."""
    ema_decay: float = field(0.0, share_below_one)
    """Validate and export an average of the weights over about 1 / (1 - ema_decay) updates; 0: no
    average."""
    log_every_steps: int = field(50, positive, science=False)
    """Steps between two rows of logs/metrics.csv."""
    valid_every_steps: int = field(1000, positive, science=False)
    """Steps between two validations."""
    checkpoint_every_steps: int = field(10_000, positive, science=False)
    """Most steps between two checkpoints to resume from."""
    checkpoint_every_minutes: float = field(15.0, zero_or_more, science=False)
    """And most minutes, by the clock of the first process; 0: only steps count."""
    keep_best: str = "auto"
    """Result: the weights that scored best by this value of the valid split, e.g. valid/cer,
    valid/macro_f1; auto: the main metric of the task; "": those of the last step."""


TrainingConfig: TypeAlias = PretrainConfig | SpinConfig | FinetuneConfig
"""Settings of a stage that trains."""


@dataclass
class EvaluateConfig:
    """Fine-tuned checkpoint + labels of a split -> scores with intervals, error analysis, tables.
    Each task of the recipe has an evaluation under its name; further names score other
    checkpoints."""

    checkpoint: str | None = field(None, path=True)
    """A stage of this run or any fine-tuned checkpoint (docs/checkpoints.md); null:
    finetune/<name>."""
    splits: Any = field(None, split_names, science=False)
    """Splits to score, one or several, each in a stage of its own; null: test_split of the task of
    that name, else test."""
    task: Any = None
    """`_target_` of the task, and its arguments; null: that of the recipe of that name, else as the
    checkpoint states it."""
    target_lang: str | None = field(None, language_name)
    """Language of a checkpoint with adapters; null: that which it was trained for last."""
    decoding: DecodingConfig = field(DecodingConfig)
    """CTC: decoding; where nothing is set, that of the task of that name."""
    resamples: int = field(1000, positive)
    """Resamples of the bootstrap."""
    confidence: float = field(0.95, share_above_zero)
    """Share of the resamples inside an interval."""


@dataclass
class ExportConfig:
    """Checkpoint -> the files of another project."""

    format: Any = field(
        "huggingface",
        one_or_several("huggingface", "fairseq", "s3prl", "torchaudio", "onnx", "torch"),
    )
    """The project that reads the files (docs/checkpoints.md); several, [huggingface, onnx], get a
    folder each."""
    checkpoints: list[str] = field([], path=True)
    """Stages of this run or other checkpoints; `summary.json` names the first."""
    target_lang: str | None = field(None, language_name)
    """Of checkpoints with adapters, the language to export. null: huggingface gets all, as
    Wav2Vec2ForCTC, the others that which was trained last."""
    licence: str = field("", hub_licence)
    """Licence in the model card (README.md) of each export, as the hub spells it: apache-2.0,
    cc-by-4.0, other; "": not stated."""
    languages: list[str] = field([], hub_languages)
    """Languages in the model card, as ISO codes, e.g. [en]."""


@dataclass
class TrainerConfig:
    """The hardware, and how a training survives it. Nothing here changes what is computed."""

    accelerator: str = field("auto", choice("auto", "cpu", "gpu", "cuda", "mps"))
    """auto: a GPU where there is one."""
    devices: int = field(1, positive)
    """Processes per node, one for each GPU."""
    num_nodes: int = field(1, positive)
    """Machines."""
    strategy: str = field("auto", choice("auto", "ddp", "fsdp", "hsdp"))
    """Several processes: ddp (auto) copies the weights, fsdp shards them, hsdp shards them in each
    node (docs/distributed.md)."""
    shard_size: str = field(AUTO, auto_or_positive)
    """Processes that share one copy of the weights under hsdp. auto: those of a node."""
    reduce_gradients: str = field("step", choice("step", "micro_batch"))
    """Under fsdp and hsdp. step: once per step; each process has the gradients of all weights
    meanwhile. micro_batch: with each one, sharded at once; hsdp: between nodes once per step."""
    gradient_compression: str = field("none", choice("none", "bf16"))
    """bf16: ddp sends half as much, and gradients are rounded."""
    precision: str = field("auto", choice("auto", "32-true", "bf16-mixed", "16-mixed"))
    """auto: bf16-mixed on a GPU, 32-true elsewhere."""
    loader_workers: int = field(2, zero_or_more)
    """Processes per device that decode audio; 0: the training process does."""
    threads: int = field(0, zero_or_more)
    """CPU threads per process; 0: PyTorch's choice."""
    fuse: str = field(AUTO, auto_or_positive)
    """Most micro-batches of pretraining in one forward pass. auto: as many as fit into the GPU's
    memory, measured at the start; 1 on a CPU. Another value gives the same run to rounding, except
    that dropout draws other numbers."""
    attention: str = field("sdpa", choice(*ATTENTIONS))
    """Back end of attention: sdpa, eager, or flex (CUDA, without attention dropout)."""
    positions: str = field(AUTO, choice(AUTO, *POSITIONAL_FORMS))
    """Form of the positional convolution. auto: on a GPU, pretraining measures which is fastest in
    its first micro-batch and keeps it; on a CPU a rule."""
    residual: str = field("fp32", choice("fp32", "bf16"))
    """Residual stream under bf16-mixed. bf16: less memory and memory traffic; not shown to be
    harmless."""
    tf32: bool = False
    """On a GPU, fp32 products and convolutions use TF32 (factors of ten bits)."""
    gradient_checkpointing: bool = False
    """Compute layers again for their gradients: less memory for a third more time."""
    compile: str = field(AUTO, choice(*COMPILED))
    """torch.compile of pretraining. parts: conv encoder, positional convolution, each layer, head
    with loss, separately; auto: parts on a GPU where Triton and a C compiler are, else none."""
    compile_mode: str = field("default", choice(*COMPILE_MODES, reason=NO_CUDA_GRAPHS))
    """max-autotune-no-cudagraphs tries kernels for minutes per shape."""
    profile: list[int] = field([], steps_to_profile)
    """First and last step that the profiler of torch records, e.g. [20, 23], into the stage's logs;
    on a GPU also what lay in memory when it was full. []: none."""
    progress_bar: bool = True
    """Show a progress bar on a terminal."""
    signals: list[str] = field(["SIGTERM", "SIGUSR2"], signal_names)
    """Signals on which a training saves at the next step and ends with exit code 75."""
    time_limit_minutes: float = field(0.0, zero_or_more)
    """The same after this time; 0: no limit (a SLURM job's end always counts)."""
    hang_minutes: float = field(30.0, zero_or_more)
    """Without a step for this long: print the stacks of all threads, exit code 76; 0: never. Ranks
    wait as long for each other."""
    max_skipped_steps: int = field(10, zero_or_more)
    """Steps in a row with a non-finite loss or gradient that are skipped (ten times as many in
    all) before training ends."""
    keep_checkpoints: int = field(2, positive)
    """Newest checkpoints to keep."""
    keep_every_steps: int = field(0, zero_or_more)
    """Also keep those of multiples of this step; 0: none."""
    async_checkpoints: bool = True
    """Copy the state to CPU memory, then write it while training goes on; false: training waits for
    the disk."""
    max_failed_checkpoints: int = field(3, zero_or_more)
    """Checkpoints in a row that could not be written (full disk) before training ends."""
    log_artefacts: bool = False
    """Send codebook, targets' card and weights to loggers that keep files (W&B)."""


@dataclass
class CheckConfig:
    """`stage=check`: tests of machine, corpus and artefacts before anything expensive runs."""

    sample: int = field(200, positive)
    """Utterances whose audio is read whole."""
    all: bool = False
    """Read every utterance."""
    stages: list[str] = field([])
    """Only what these stages need, e.g. [finetune/asr]; []: all stages."""
    labels: bool = False
    """stage=prepare ends with an error when a task cannot learn from the corpus; stage=all does so
    in any case."""


@dataclass
class PlanConfig:
    """`stage=plan`: the cost of what is pending (preflight/costs.py)."""

    gpu: str = ""
    """GPU to plan for, by a name of the data sheets, e.g. H100; "": this machine, measured now."""
    devices: list[int] = field([], all_positive)
    """Numbers of devices to compare, e.g. [1, 8, 32]; []: those of `trainer`."""
    mfu: float = field(0.0, share)
    """Share of the peak of `gpu` that training reaches (health/mfu of a run); 0: an estimate."""
    hours: float = field(0.0, zero_or_more)
    """Audio of the corpus before it is prepared; 0: unknown."""
    price: float = field(0.0, zero_or_more)
    """Price of a GPU-hour, in any currency; 0: no price."""


@dataclass
class ResourcesConfig:
    """Resources of a stage's SLURM job. null: the value of launch.resources; null there: the
    cluster's default."""

    partition: str | None = None
    """Partition."""
    account: str | None = None
    """Account."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Required node features."""
    time_minutes: int | None = field(None, positive)
    """Time limit; a stage that needs longer saves, and its job is requeued."""
    memory_gb: float | None = field(None, positive)
    """Memory per node."""
    cpus: int | None = field(None, positive)
    """Cores per process."""
    gpus: int | None = field(None, zero_or_more)
    """GPUs per process; null: 1 where the stage computes and trainer.accelerator is gpu."""
    nodes: int | None = field(None, positive)
    """Machines; null: trainer.num_nodes where it trains, else 1."""
    tasks: int | None = field(None, positive)
    """Processes per node; null: trainer.devices where it trains, else 1."""
    array: int | None = field(None, zero_or_more)
    """label only: this many independent jobs share the work, each started when there is room."""
    options: dict[str, Any] = field({})
    """Other options of sbatch: {reservation: winter, exclusive: true}."""


@dataclass
class LaunchConfig:
    """Processes of the pending stages: here, or as SLURM jobs."""

    kind: str = field("local", choice("local", "slurm"))
    """local: here, one after another; slurm: jobs with dependencies (docs/cluster.md)."""
    dry_run: bool = False
    """slurm: print the jobs instead of submitting them."""
    wait: bool = False
    """slurm: stay and report every change until all jobs have ended."""
    poll_seconds: float = field(30.0, positive)
    """Time between two questions while it waits."""
    signal_seconds: int = field(300, positive)
    """A job is told to save (SIGUSR2) this long before its time limit."""
    max_requeues: int = field(100, zero_or_more)
    """Requeues of a job that saved before it was done, at most."""
    python: str | None = None
    """Python interpreter on the nodes; null: the one that submits."""
    setup: list[str] = field([])
    """Lines of shell before the stage: module load, export NCCL_SOCKET_IFNAME=..."""
    srun: list[str] = field([])
    """More options of srun, e.g. --mpi=pmix, --container-image=..."""
    resources: ResourcesConfig = field(ResourcesConfig)
    """Resources of every stage."""
    stages: dict[str, ResourcesConfig] = field({})
    """Differences for a verb (pretrain) or one stage (it2/pretrain)."""


@dataclass
class Recipe:
    """A whole run."""

    name: str = MISSING
    """Name of the recipe: its folder."""
    work_dir: str = MISSING
    """Folder of the run; runs/<recipe> unless given."""
    stage: str = "all"
    """all (every pending stage), list, check, plan, report, or one stage such as it2/cluster."""
    redo: str = "false"
    """A stage that is made again, and what follows from it, e.g. redo=it1/cluster; true: with
    stage=all what is not up to date, else that one stage. What is removed is named, and the same
    command goes on after an interruption."""
    seed: int = 1
    """Of everything random."""
    data: DataConfig = field(DataConfig)
    """The corpus."""
    model: HubertConfig = field(HubertConfig)
    """The network."""
    iterations: dict[str, IterationConfig] = field({})
    """it1, it2, ... in order."""
    series: SeriesConfig = field(SeriesConfig)
    """Further iterations from a short form."""
    spin: dict[str, SpinConfig] = field({})
    """Speaker-invariant stages by name."""
    finetune: dict[str, FinetuneConfig] = field({})
    """Tasks by name."""
    evaluate: dict[str, EvaluateConfig] = field({})
    """Evaluations by name, of tasks of the recipe and of other checkpoints."""
    export: ExportConfig = field(ExportConfig)
    """Formats of other projects."""
    trainer: TrainerConfig = field(TrainerConfig)
    """Hardware."""
    logger: Any = MISSING
    """{name: `_target_` of a Lightning logger}."""
    check: CheckConfig = field(CheckConfig)
    """stage=check."""
    plan: PlanConfig = field(PlanConfig, science=False)
    """stage=plan."""
    report: bool = field(True, science=False)
    """Write report.html after each stage; stage=report writes it at any time."""
    launch: LaunchConfig = field(LaunchConfig)
    """Here, or on a SLURM cluster."""
