"""Process-wide CUDA precision settings: TF32, and attention without cuDNN.

PyTorch's defaults differ: convolutions round their factors to ten bits (TF32), matrix products do
not, and newer versions choose cuDNN's attention where it is fast.
"""

from __future__ import annotations

import torch


def set_matmul_precision(*, tf32: bool) -> None:
    """Sets the precision of fp32 products and convolutions on NVIDIA GPUs, for the whole process.

    Without effect on a CPU.

    Args:
        tf32: round the factors of fp32 products and convolutions to ten bits, several times as
            fast. False: full fp32. In bf16-mixed training only the small products of heads and
            statistics are fp32.
    """
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    # cuDNN plans its attention for each new shape, which takes about a second. Flash attention is
    # as fast and needs no plan.
    torch.backends.cuda.enable_cudnn_sdp(False)
