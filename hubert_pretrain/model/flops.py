"""FLOPs of a training step, counted from the configuration of the network.

A multiplication and an addition are two operations (FLOPs). Norms, activations and the softmax are
left out, as is usual. The backward pass costs twice the forward pass, because both factors of a
product need a gradient. MACs: multiplications, each with its addition.
"""

from __future__ import annotations

from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.config import HubertConfig


def forward_macs(config: HubertConfig, num_samples: int) -> dict[str, int]:
    """MACs of one utterance by part of the network, without the head (see `head_macs`)."""
    width = config.hidden_size
    inner = config.intermediate_size
    layers = config.num_hidden_layers
    frames = config.grid.num_frames(num_samples)
    channels = config.frame_channels
    adapter = 2 * width * config.adapter_attn_dim if config.adapter_attn_dim else 0
    channels_per_group = width // config.num_conv_pos_embedding_groups
    return {
        "front end": _front_end_macs(config, num_samples),
        "projection": frames * channels * width,
        "positions": frames * width * channels_per_group * config.num_conv_pos_embeddings,
        "linear": layers * frames * (4 * width * width + 2 * width * inner + adapter),
        "attention": layers * 2 * frames * frames * width,
    }


def _front_end_macs(config: HubertConfig, num_samples: int) -> int:
    if config.front_end == "log_mel":
        fft_size = 1 << (config.mel_grid.window - 1).bit_length()
        bins = fft_size // 2 + 1  # the Fourier transform itself is left out, too
        return config.mel_grid.num_frames(num_samples) * bins * config.mel_bins
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
    """MACs of the head of each supervised layer (model/heads.py).

    Args:
        config: of the network.
        n_clusters: K.
        predicted_frames: frames that the head is computed for.
        head: "cosine" or "softmax".
        layers: number of supervised layers.
    """
    per_frame = config.hidden_size * n_clusters
    if head == "cosine":
        per_frame = config.projection_size * (config.hidden_size + n_clusters)
    return layers * predicted_frames * per_frame


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
    """FLOPs of forward and backward passes per second of audio.

    Args:
        config: of the network.
        clip_seconds: length of a clip; attention costs more in longer ones.
        n_clusters: K.
        masked: share of frames that are predicted.
        head: "cosine" or "softmax".
        supervised_layers: number of layers with a loss.
        frozen: the front end has no backward pass, as with `conv_gradient_scale` 0 and log-mel.
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
