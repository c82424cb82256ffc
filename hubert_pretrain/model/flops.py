"""What a training step must compute, counted from the form of the network. Shapes: S samples, T frames, D width, K clusters.

A multiplication and an addition are two operations (FLOPs); norms, activations and the softmax are left out, as everyone does. The backward
pass costs twice the forward pass: a product has two factors that want gradients.
"""

from __future__ import annotations

from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.config import HubertConfig


def forward_macs(config: HubertConfig, num_samples: int) -> dict[str, int]:
    """Multiplications of one utterance of S samples, by part of the network. Without the head: see `head_macs`."""
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    frames, channels, conv = num_samples, 1, 0
    for out, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
        conv += frames * channels * out * kernel
        channels = out
    adapter = 2 * width * config.adapter_attn_dim if config.adapter_attn_dim else 0
    return {
        "conv encoder": conv,
        "projection": frames * channels * width,
        "positions": frames * width * width // config.num_conv_pos_embedding_groups * config.num_conv_pos_embeddings,
        "linear": layers * frames * (4 * width * width + 2 * width * inner + adapter),
        "attention": layers * 2 * frames * frames * width,
    }


def head_macs(config: HubertConfig, n_clusters: int, predicted_frames: int) -> int:
    """Multiplications of a cosine head on so many frames."""
    return predicted_frames * config.projection_size * (config.hidden_size + n_clusters)


def training_flops_per_second(config: HubertConfig, *, clip_seconds: float = 15.0, n_clusters: int = 500, masked: float = 0.53) -> float:
    """FLOPs of forward and backward passes per second of audio, in clips of one length of which a share of frames is predicted.

    A conv encoder that is frozen (`conv_gradient_scale` 0) has no backward pass.
    """
    num_samples = round(clip_seconds * SAMPLE_RATE)
    macs = forward_macs(config, num_samples)
    head = head_macs(config, n_clusters, round(masked * config.grid.num_frames(num_samples)))
    forward = sum(macs.values()) + head
    backward = 2 * (forward - (macs["conv encoder"] if config.conv_gradient_scale == 0 else 0))
    return 2 * (forward + backward) / clip_seconds
