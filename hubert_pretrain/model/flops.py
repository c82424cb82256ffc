"""What a training step must compute, counted from the form of the network. Shapes: S samples, T
frames, D width, K clusters.

A multiplication and an addition are two operations (FLOPs); norms, activations and the softmax are
left out, as everyone does. The backward pass costs twice the forward pass: a product has two
factors that want gradients.
"""

from __future__ import annotations

from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.config import HubertConfig


def forward_macs(config: HubertConfig, num_samples: int) -> dict[str, int]:
    """Multiplications of one utterance of S samples, by part of the network. Without the head: see
    `head_macs`.
    """
    width = config.hidden_size
    inner = config.intermediate_size
    layers = config.num_hidden_layers
    frames = config.grid.num_frames(num_samples)
    channels = config.frame_channels
    adapter = 2 * width * config.adapter_attn_dim if config.adapter_attn_dim else 0
    return {
        "front end": _front_end_macs(config, num_samples),
        "projection": frames * channels * width,
        "positions": frames
        * width
        * width
        // config.num_conv_pos_embedding_groups
        * config.num_conv_pos_embeddings,
        "linear": layers * frames * (4 * width * width + 2 * width * inner + adapter),
        "attention": layers * 2 * frames * frames * width,
    }


def _front_end_macs(config: HubertConfig, num_samples: int) -> int:
    if config.front_end == "log_mel":
        spectrum = (
            1 << (config.mel_grid.window - 1).bit_length()
        )  # points; the Fourier transform itself is left out, too
        return config.mel_grid.num_frames(num_samples) * (spectrum // 2 + 1) * config.mel_bins
    frames = num_samples
    channels = 1
    macs = 0
    for out, kernel, stride in zip(
        config.conv_dim, config.conv_kernel, config.conv_stride, strict=True
    ):
        frames = (frames - kernel) // stride + 1
        macs += frames * channels * out * kernel
        channels = out
    return macs


def head_macs(
    config: HubertConfig,
    n_clusters: int,
    predicted_frames: int,
    *,
    head: str = "cosine",
    layers: int = 1,
) -> int:
    """Multiplications of the head of each supervised layer on so many frames: "cosine" or "softmax"
    (model/heads.py).
    """
    cosine = config.projection_size * (config.hidden_size + n_clusters)
    return (
        layers
        * predicted_frames
        * (cosine if head == "cosine" else config.hidden_size * n_clusters)
    )


def training_flops_per_second(
    config: HubertConfig,
    *,
    clip_seconds: float = 15.0,
    n_clusters: int = 500,
    masked: float = 0.53,
    head: str = "cosine",
    supervised_layers: int = 1,
    frozen: bool = False,
) -> float:
    """FLOPs of forward and backward passes per second of audio, in clips of one length of which a
    share of frames is predicted.

    A front end that is `frozen`, or does not learn at all (`conv_gradient_scale` 0, log-mel), has
    no backward pass.
    """
    num_samples = round(clip_seconds * SAMPLE_RATE)
    macs = forward_macs(config, num_samples)
    predicted = round(masked * config.grid.num_frames(num_samples))
    forward = sum(macs.values()) + head_macs(
        config, n_clusters, predicted, head=head, layers=supervised_layers
    )
    frozen = frozen or config.conv_gradient_scale == 0 or config.front_end == "log_mel"
    backward = 2 * (forward - (macs["front end"] if frozen else 0))
    return 2 * (forward + backward) / clip_seconds
