"""The form of a recipe: every field once, with its unit. The values live in conf/ (what can be
chosen) and recipes/ (what was chosen).

Swappable parts (`Any` below) are `_target_` nodes: the class that does the work and its keyword
arguments. A comment in brackets is fairseq's name of the field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from hubert_pretrain.model.config import HubertConfig


@dataclass
class DataConfig:
    """Speech on disk -> a corpus."""

    corpus: Any = MISSING  # `_target_` of a class in data/corpora/
    root: str | None = MISSING  # folder of the corpus on disk; null for a corpus that makes itself
    # fetch what is missing of the corpus first, from its publisher, where the licence allows it
    # (docs/corpora.md)
    download: bool = False
    mirror: str | None = (
        None  # URL of a folder with the same archives, to fetch them from in place of the publisher
    )
    # phone alignments from elsewhere, joined by id: a folder or file, or its path, format, tier,
    # silence, symbols
    alignments: Any = None
    # share of `train` held out as `valid`, by a hash of the id, where the corpus has no such split
    valid_fraction: float = 0.05
    max_bad_fraction: float = (
        0.001  # more unreadable files than this share is an error, fewer are quarantined
    )
    workers: int = 0  # processes that read audio in `prepare`; 0: one per core
    # pcm or flac: `prepare` also writes the audio into tar shards, 16 kHz mono, and training reads
    # those
    shards: str = "none"
    shard_megabytes: int = 512  # size of a shard, roughly
    cache_dir: str | None = (
        None  # folder on local disk for audio fetched from URLs; null: fetched anew each time
    )
    cache_gigabytes: float = 100.0  # how large it may grow; the longest unused goes first


@dataclass
class ClusteringConfig:
    """Frames -> codebook (learn_kmeans.py). The defaults are the paper's MiniBatchKMeans
    settings.
    """

    n_clusters: int = MISSING
    fraction: float = (
        0.1  # share of the training utterances that the codebook is fitted on [percent]
    )
    max_hours: float = 100.0  # never more than this much audio, however large the share
    max_frames: int = 0  # nor more than so many frames; 0: no limit
    # 10^9 bytes of the process, frames and all; what does not fit of the frames lies in a scratch
    # file
    max_memory_gb: float = 4.0
    # minibatch (the paper's), torch (full batch) or faiss, see clustering/kmeans.py
    engine: str = "minibatch"
    codebooks: list[Any] = field(
        default_factory=list
    )  # of {name, columns, n_clusters, residual}; []: one over all columns
    pca_dims: int = 0  # principal components that frames are reduced to before; 0: none
    whiten: bool = False  # principal components, all or pca_dims of them, scaled to variance 1
    spherical: bool = False  # frames are scaled to length 1: clusters by cosine (torch, faiss)
    batch_frames: int = 10_000  # [batch_size]
    max_iterations: int = 100  # passes over the sample [max_iter]
    max_no_improvement: int = 100
    restarts: int = 20  # k-means++ starts, the best is kept [n_init]
    # torch, faiss: stop below this relative gain of a pass; minibatch: when centroids move less
    tolerance: float = 0.0
    reassignment_ratio: float = 0.0


@dataclass
class MaskConfig:
    """Which frames are hidden (paper section 2.2)."""

    probability: float = (
        0.8  # expected share of frames that start inside a span, before overlaps [mask_prob]
    )
    span_frames: int = 10  # [mask_length]
    min_spans: int = 2
    # of spans: static, uniform, normal or poisson, see model/masking.py [mask_selection]
    lengths: str = "static"
    length_other: float = (
        0.0  # the second number of uniform (shortest) and normal (standard deviation) [mask_other]
    )
    overlap: bool = True  # whether spans may overlap [not no_mask_overlap]
    min_space: int = 1  # visible frames between spans that may not overlap [mask_min_space]


@dataclass
class LossConfig:
    """The head and the loss of pretraining (paper section 2.3)."""

    masked_weight: float = 1.0  # alpha [pred_masked_weight]
    unmasked_weight: float = 0.0  # 1 - alpha [pred_nomask_weight]
    feature_penalty: float = (
        10.0  # times the mean square of the conv encoder's output [loss_weights]
    )
    # cosine: to unit embeddings (eq. 3); softmax: a linear classifier, which has no temperature
    head: str = "cosine"
    temperature: float = 0.1  # tau [logit_temp]
    tie_projections: bool = False  # several codebooks read one projection [not untie_final_proj]
    supervised_layers: list[int] = field(
        default_factory=list
    )  # layers that predict, the last one among them; []: it alone
    layer_weights: list[float] = field(
        default_factory=list
    )  # of their losses, one each; []: 1 each
    separate_layer_heads: bool = False  # each supervised layer has a head of its own


@dataclass
class AugmentConfig:
    """What is done to the audio of a crop in training, data/augment.py; nothing by default, as in
    the paper. Targets stay as they are.
    """

    mix_probability: float = (
        0.0  # share of the rows that get a part of another row of the micro-batch [WavLM: 0.2]
    )
    mix_ratio_db: list[float] = field(
        default_factory=lambda: [-5.0, 5.0]
    )  # energy of the row over that of the part: drawn from here
    # of those rows, how many get a part of the noise instead [WavLM Base+, Large: 0.1, Base: 0]
    mix_noise_share: float = 0.0
    mix_noise_ratio_db: list[float] = field(default_factory=lambda: [-5.0, 20.0])
    noise: str | None = None  # folder of audio files, or of a prepared corpus
    noise_probability: float = 0.0  # share of the rows that get noise from beginning to end
    noise_ratio_db: list[float] = field(default_factory=lambda: [5.0, 20.0])
    gain_probability: float = 0.0  # share of the rows made louder or softer
    gain_db: list[float] = field(default_factory=lambda: [-6.0, 6.0])


@dataclass
class ProbeConfig:
    """How much a layer says about phones while it learns (pretrain/phone_probe.py): PNMI of its
    clusters, `health/pnmi`. Needs alignments.
    """

    every_steps: int = 0  # 0: not measured
    layer: int = 0  # 1-based; 0: the middle one, rounded up
    split: str = "valid"
    seconds: float = 120.0  # of aligned speech, at most
    n_clusters: int = 100


@dataclass
class PretrainConfig:
    """Corpus + targets -> checkpoint: the science of one pretraining."""

    start_from: str | None = (
        # continued pretraining: a stage ("it1/pretrain") or any checkpoint (docs/checkpoints.md);
        # null: anew
        None
    )
    # keep, new, warm (units of matching clusters), auto: keep if K and codebook are the same, else
    # new
    start_head: str = "auto"
    steps: int = MISSING  # optimiser updates [max_update]
    batch_seconds: float = (
        MISSING  # audio per update, over all devices [max_tokens x GPUs x update_freq]
    )
    micro_batch_seconds: float = MISSING  # audio per forward pass; divides batch_seconds
    learning_rate: float = 5e-4  # peak
    warmup_fraction: float = 0.08  # of the steps, linear from 0; then linear to 0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-6
    weight_decay: float = 0.01  # on every parameter, as fairseq does
    clip_norm: float = 10.0  # global gradient norm
    min_seconds: float = 2.0  # shorter utterances are left out [min_sample_size]
    max_crop_seconds: float = 15.625  # longer ones are cropped [max_sample_size]
    max_shapes: int = 16  # number of crop lengths (buckets)
    corpus_weights: dict[str, float] = field(
        default_factory=dict
    )  # of each corpus: in proportion to its audio drawn; {}: all there is, once
    # instead of weights: hours ** (1 / temperature), more than 1 brings out the small corpora
    corpus_temperature: float = 1.0
    mask: MaskConfig = field(default_factory=MaskConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    # what is validated and exported is an average of the weights over about 1 / (1 - this) updates;
    # 0: no average
    ema_decay: float = 0.0
    freeze_conv_after_steps: int | None = (
        None  # from this step on the conv encoder learns no more: a fifth of the work of Base saved
    )
    log_every_steps: int = 50
    valid_every_steps: int = 5000
    checkpoint_every_steps: int = 1000


@dataclass
class LayerChoiceConfig:
    """How `features.layer=auto` becomes a layer: every layer is clustered on some speech and scored
    (clustering/layer_selection.py).
    """

    # pnmi, phone_purity (with alignments), abx (with them, or one word per utterance), stability
    # (nothing needed)
    criterion: str = "pnmi"
    split: str = "valid"  # the speech that layers are scored on
    n_clusters: int = 100
    max_hours: float = 0.5  # never more than this much of the split


@dataclass
class IterationConfig:
    """One round of HuBERT: features -> codebook -> targets -> checkpoint."""

    features: Any = MISSING  # `_target_` of a class in features/
    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    layer_choice: LayerChoiceConfig = field(
        default_factory=LayerChoiceConfig
    )  # only for features.layer=auto
    targets: str | None = (
        # instead of features and clustering: folder of fairseq's .tsv and .km, or of another run's
        # label stage
        None
    )


@dataclass
class FinetuneConfig:
    """Checkpoint + labels -> task model."""

    task: Any = MISSING  # `_target_` of a class in finetune/ (ctc, classify) and its own values
    # a stage of this run ("it2/pretrain"), or any pretrained checkpoint (docs/checkpoints.md)
    checkpoint: str = MISSING
    train_split: str = "train"
    valid_split: str = "valid"
    test_split: str = "test"
    steps: int = MISSING
    batch_seconds: float = MISSING  # audio per update, padding included, over all devices
    micro_batch_seconds: float = MISSING
    learning_rate: float = 5e-5
    warmup_fraction: float = 0.1  # tri-stage schedule: up from initial_lr_scale x peak,
    hold_fraction: float = 0.4  # hold,
    initial_lr_scale: float = 0.01
    final_lr_scale: float = 0.05  # then exponentially down to this share of the peak
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 10.0
    freeze_encoder_steps: int = 0  # only the new head learns until then [freeze_finetune_updates]
    conv_gradient_scale: float = 0.0  # 0: the conv encoder is frozen throughout [feature_grad_mult]
    norm_over_valid: bool = (
        False  # a norm over time (Base) leaves padding out, as no other implementation does
    )
    hidden_dropout: float = 0.0  # dropouts replace those of pretraining
    attention_dropout: float = 0.0
    activation_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    layerdrop: float = 0.1
    mask: MaskConfig = field(
        default_factory=lambda: MaskConfig(probability=0.65)
    )  # time mask while training
    channel_mask: MaskConfig = field(
        default_factory=lambda: MaskConfig(probability=0.5, span_frames=64, min_spans=0)
    )
    # who draws both: reference (fairseq's) or transformers (mask_time_*, mask_feature_* mean the
    # same)
    mask_sampler: str = "reference"
    # what is validated and exported is an average of the weights over about 1 / (1 - this) updates;
    # 0: no average
    ema_decay: float = 0.0
    log_every_steps: int = 50
    valid_every_steps: int = 1000
    checkpoint_every_steps: int = 1000


@dataclass
class ExportConfig:
    """Checkpoint -> what others load."""

    format: str = "huggingface"
    checkpoints: list[str] = field(
        default_factory=list
    )  # stages or other checkpoints; the first is what `summary.json` names


@dataclass
class TrainerConfig:
    """The hardware. Nothing here changes what is computed, only where."""

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    # of several processes: ddp (auto) or fsdp, which cuts the weights over them
    # (docs/distributed.md)
    strategy: str = "auto"
    gradient_compression: str = "none"  # bf16: ddp sends half as much, gradients are rounded
    precision: str = (
        "auto"  # auto: bf16-mixed on a GPU, 32-true elsewhere; or any name Lightning knows
    )
    loader_workers: int = 2  # processes per device that decode audio
    threads: int = 0  # CPU threads per process; 0: torch's choice
    # how attention is computed: sdpa, eager or (CUDA, without attention dropout) flex, see
    # model/attention.py
    attention: str = "sdpa"
    # on a GPU fp32 products and convolutions take factors of ten bits (model/precision.py); False:
    # fp32 is fp32
    tf32: bool = False
    # gradient checkpointing: layers run again for their gradients, less memory for a third more
    # time
    recompute: bool = False
    # of pretraining: none, layers (each transformer layer) or model (all as one graph, without
    # layer drop)
    compile: str = "none"
    # of torch.compile; reduce-overhead replays CUDA graphs, max-autotune tries kernels for minutes
    compile_mode: str = "default"
    progress_bar: bool = True
    signals: list[str] = field(
        default_factory=lambda: ["SIGTERM", "SIGUSR2"]
    )  # save at the next step boundary and leave with code 75
    time_limit_minutes: float = (
        0.0  # the same after this long; 0: never (the end of a SLURM job counts in any case)
    )
    # without a step: stacks of all threads, exit code 76; 0: no watchdog. Ranks wait for each other
    # as long
    hang_minutes: float = 30.0
    max_skipped_steps: int = (
        10  # in a row whose loss or gradient is no number, ten times as many in all; then it ends
    )
    keep_checkpoints: int = 2  # the newest so many
    keep_every_steps: int = 0  # and those of multiples of this step; 0: none
    # and the best by this value of the valid split: valid/loss/masked, valid/wer ...; "": none
    keep_best: str = ""
    async_checkpoints: bool = False  # copied to CPU memory, then written while training goes on
    max_failed_checkpoints: int = (
        3  # in a row that could not be written (full disk) before training ends
    )
    # loggers that keep files (W&B) get the codebook, the card of the targets and the weights
    log_artefacts: bool = False


@dataclass
class CheckConfig:
    """`stage=check`: what can be known before anything expensive runs."""

    sample: int = 200  # utterances whose audio is read whole, chosen by the seed
    all: bool = False  # read every utterance


@dataclass
class ResourcesConfig:
    """What the SLURM job of a stage asks for. Null: what `launch.resources` says; null there: the
    cluster's own default.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time_minutes: int | None = None  # a stage that needs longer saves, and the job is requeued
    memory_gb: float | None = None  # per node
    cpus: int | None = None  # cores per process
    gpus: int | None = (
        None  # per process; null: 1 where trainer.accelerator is gpu and the stage computes
    )
    nodes: int | None = None  # null: trainer.num_nodes where it trains, else 1
    tasks: int | None = None  # processes per node; null: trainer.devices where it trains, else 1
    array: int | None = (
        None  # label only: so many independent jobs share the work, each started when there is room
    )
    options: dict[str, Any] = field(
        default_factory=dict
    )  # any other option of sbatch: {reservation: winter, exclusive: true}


@dataclass
class LaunchConfig:
    """How a stage becomes processes."""

    kind: str = (
        "local"  # local: here, one after the other; slurm: jobs with dependencies (docs/cluster.md)
    )
    dry_run: bool = False  # slurm: print the jobs instead of submitting them
    wait: bool = False  # slurm: stay, and report every change, until all jobs have ended
    poll_seconds: float = 30.0  # how often `wait` asks
    signal_seconds: int = 300  # before its time is over, a job is told to save (SIGUSR2)
    max_requeues: int = 100  # of a job that saved and was not done
    python: str | None = None  # interpreter on the nodes; null: this one
    setup: list[str] = field(
        default_factory=list
    )  # lines of shell before the stage: module load, export NCCL_...
    srun: list[str] = field(
        default_factory=list
    )  # more options of srun, e.g. --mpi=pmix, --container-image=...
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)  # of every stage
    stages: dict[str, ResourcesConfig] = field(
        default_factory=dict
    )  # what differs for a verb (pretrain) or one stage (it2/pretrain)


@dataclass
class Recipe:
    """All of a run. `name` is the recipe's folder."""

    name: str = MISSING
    work_dir: str = MISSING
    stage: str = "all"  # all | list | check | the name of one stage
    seed: int = 1
    data: DataConfig = field(default_factory=DataConfig)
    model: HubertConfig = field(default_factory=HubertConfig)
    iterations: dict[str, IterationConfig] = field(default_factory=dict)  # it1, it2, ... in order
    finetune: dict[str, FinetuneConfig] = field(default_factory=dict)
    export: ExportConfig = field(default_factory=ExportConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: Any = MISSING  # {name: `_target_` of a Lightning logger}
    check: CheckConfig = field(default_factory=CheckConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
