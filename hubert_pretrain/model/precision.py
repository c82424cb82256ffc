"""Which of PyTorch's ways to compute on an NVIDIA GPU may be taken: said for the whole process,
instead of left to defaults that differ.

By default PyTorch rounds the factors of convolutions to ten bits (TF32) but not those of matrix
products, and newer versions give attention to cuDNN where it is fast.
"""

from __future__ import annotations

import torch


def set_matmul_precision(*, tf32: bool) -> None:
    """Sets them. No part of what a network is, and without effect on a CPU.

    Args:
        tf32: round the factors of fp32 products and convolutions to ten bits, several times as
        fast; False: fp32 means fp32. In bf16-mixed
            only the heads' and the statistics' small products are fp32.
    """
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    # cuDNN plans its attention for each new shape, which takes about a second: flash attention is
    # as fast and plans nothing.
    torch.backends.cuda.enable_cudnn_sdp(False)
