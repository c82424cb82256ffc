"""Relative positions from a wide grouped convolution over time.

Source: wav2vec 2.0, arXiv:2006.11477, section 2.
Shapes: B utterances, T frames, D width, K taps, G groups.
"""

from __future__ import annotations

import logging
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubert_pretrain.fields import AUTO
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.conv_encoder import ACTIVATIONS, convolve

logger = logging.getLogger(__name__)

BLOCK = 16
"""Frames of one product of `by_products`."""
LONG = 64
"""Taps from which on a CPU computes gradients faster by FFT."""


class PositionalConv(nn.Module):
    """Activation of a grouped convolution with normalised weights, to be added to its input.

    (B, T, D) -> (B, T, D). The kernel is `g * v / |v|`, the norm taken per tap (weight_norm over
    dim 2), computed in fp32 in each forward.
    """

    form = AUTO
    """Form of the convolution, a name in FORMS; auto: as suits the device."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.taps = config.num_conv_pos_embeddings
        self.groups = config.num_conv_pos_embedding_groups
        self.weight_v = nn.Parameter(torch.empty(width, width // self.groups, self.taps))
        nn.init.normal_(self.weight_v, std=math.sqrt(4.0 / (self.taps * width)))
        norm = self.weight_v.detach().norm(dim=(0, 1), keepdim=True)  # (1, 1, K)
        self.weight_g = nn.Parameter(norm.clone())
        self.bias = nn.Parameter(torch.zeros(width))
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def forward(self, x: Tensor, chunk_frames: int | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D). chunk_frames: see `chunked_conv`; None: no chunks."""
        weight = torch._weight_norm(self.weight_v, self.weight_g, 2)  # (D, D / G, K)
        y = chunked_conv(x.transpose(1, 2), weight, self.bias, self.groups, self.form, chunk_frames)
        return self.activation(y).transpose(1, 2)


class BatchNormPositionalConv(nn.Module):
    """ConvPositions with a batch norm before a plain convolution (`conv_pos_batch_norm`).

    As in the reference, padded frames (zeros) are part of the batch statistics in training.
    """

    form = AUTO

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        taps = config.num_conv_pos_embeddings
        self.batch_norm = nn.BatchNorm1d(width)
        self.conv = nn.Conv1d(
            width,
            width,
            taps,
            padding=taps // 2,
            groups=config.num_conv_pos_embedding_groups,
        )
        nn.init.normal_(self.conv.weight, std=math.sqrt(4.0 / (taps * width)))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def forward(self, x: Tensor, chunk_frames: int | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D). chunk_frames: see `chunked_conv`; None: no chunks."""
        y = self.batch_norm(x.transpose(1, 2))
        y = chunked_conv(
            y, self.conv.weight, self.conv.bias, self.conv.groups, self.form, chunk_frames
        )
        return self.activation(y).transpose(1, 2)


def chunked_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    form: str = AUTO,
    chunk_frames: int | None = None,
) -> Tensor:
    """`same_length_conv` in which no frame sees beyond its chunk: taps to the right of the chunk
    see zeros, as at the end of an utterance. (B, D, T) -> (B, D, T).

    Each chunk is a row of its own, with the half kernel of frames before it, so a chunk of the
    length of that half doubles the work.
    """
    if chunk_frames is None:
        return same_length_conv(x, weight, bias, groups, form)
    past = weight.shape[2] // 2
    batch, _, frames = x.shape
    chunks = -(-frames // chunk_frames)
    padded = F.pad(x, (past, chunks * chunk_frames - frames))
    rows = padded.unfold(2, past + chunk_frames, chunk_frames)  # (B, D, chunks, past + chunk)
    rows = rows.transpose(1, 2).flatten(0, 1)
    y = same_length_conv(rows, weight, bias, groups, form)[..., past:]  # (B chunks, D, chunk)
    return y.unflatten(0, (batch, chunks)).transpose(1, 2).flatten(2)[..., :frames]


def same_length_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, form: str = AUTO
) -> Tensor:
    """Grouped convolution that keeps the number of frames: (B, D, T), (D, D / G, K) -> (B, D, T).

    form: a name in FORMS.
    """
    if form == AUTO:
        form = "fft" if prefers_fft(x, weight) else "conv"
    return FORMS[form](x, weight, bias, groups)


def prefers_fft(x: Tensor, weight: Tensor) -> bool:
    """On a CPU gradients of long kernels are faster by FFT. Without gradients a CPU's bits are
    those of other libraries.
    """
    return x.device.type == "cpu" and torch.is_grad_enabled() and weight.shape[2] >= LONG


def by_conv(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """The library's own convolution."""
    y = convolve(x, weight, bias, padding=weight.shape[2] // 2, groups=groups)
    return y[..., : x.shape[2]]  # an even kernel makes one frame too many


def by_fft(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Products of spectra, in fp32."""
    batch, width, frames = x.shape
    taps = weight.shape[2]
    size = _fft_size(frames + taps - 1)
    with torch.autocast(x.device.type, enabled=False):
        padded = F.pad(x.float(), (taps // 2, 0)).view(batch, groups, width // groups, -1)
        spectra = torch.fft.rfft(padded, size)  # (B, G, C, F)
        kernels = torch.fft.rfft(weight.float().unflatten(0, (groups, -1)), size)  # (G, O, C, F)
        product = torch.einsum("bgcf,gocf->bgof", spectra, kernels.conj())
        y = torch.fft.irfft(product, size)[..., :frames].reshape(batch, width, frames)
        y = y if bias is None else y + bias.float()[:, None]
    return y.to(_product_dtype(x))


def by_products(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """BLOCK frames of a group by one product with a block-Toeplitz matrix, which holds the kernel
    once for each of the frames, a tap further on each time.
    """
    batch, width, frames = x.shape
    taps = weight.shape[2]
    blocks = -(-frames // BLOCK)
    reach = BLOCK + taps - 1  # frames that BLOCK frames of the result depend on
    # Row l of the matrix: l zeros, the kernel, zeros.
    rows = F.pad(weight, (0, BLOCK))[:, :, None].expand(-1, -1, BLOCK, -1).flatten(2)
    matrix = rows[..., : BLOCK * reach].unflatten(2, (BLOCK, reach))  # (D, C, l, reach)
    matrix = matrix.unflatten(0, (groups, -1)).permute(0, 2, 4, 1, 3)  # (G, C, reach, O, l)
    last = blocks * BLOCK + taps - 1 - frames - taps // 2
    windows = F.pad(x, (taps // 2, last)).unfold(2, reach, BLOCK)  # (B, D, blocks, reach)
    windows = windows.unflatten(1, (groups, -1)).permute(1, 0, 3, 2, 4)  # (G, B, blocks, C, reach)
    y = torch.bmm(windows.flatten(1, 2).flatten(2), matrix.flatten(1, 2).flatten(2))
    y = y.view(groups, batch, blocks, -1, BLOCK).permute(1, 0, 3, 2, 4)  # (B, G, O, blocks, l)
    y = y.reshape(batch, width, -1)[..., :frames]
    return y if bias is None else y + bias[:, None].to(y.dtype)


FORMS = {"conv": by_conv, "fft": by_fft, "products": by_products}
"""Ways to compute the same convolution: (B, D, T), weight, bias, groups -> (B, D, T)."""


def measures_forms(device: torch.device) -> bool:
    """True where `auto` means the fastest form: on a GPU. On a CPU it is a rule, so that no result
    there depends on the load of the machine.
    """
    return device.type == "cuda"


def fastest_form(
    rows: int, frames: int, config: HubertConfig, device: torch.device, *, repeats: int = 3
) -> str:
    """The form whose forward and backward pass is fastest on a device, under the caller's autocast.

    Measured on zeros: no generator of random numbers moves on.
    """
    width = config.hidden_size
    groups = config.num_conv_pos_embedding_groups
    shape = (width, width // groups, config.num_conv_pos_embeddings)
    x = torch.zeros(rows, frames, width, device=device, requires_grad=True)
    weight = torch.zeros(shape, device=device, requires_grad=True)
    bias = torch.zeros(width, device=device, requires_grad=True)
    seconds: dict[str, float] = {}
    for name, form in FORMS.items():
        times = []
        for _ in range(1 + repeats):  # the first plans and allocates
            start = _now(device)
            y = form(x.transpose(1, 2), weight, bias, groups)
            torch.autograd.grad(y, [x, weight, bias], torch.zeros_like(y))
            times.append(_now(device) - start)
        seconds[name] = min(times[1:])
    fastest = min(seconds, key=lambda name: seconds[name])
    measured = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in seconds.items())
    logger.info("positional convolution of %d x %d frames: %s", rows, frames, measured)
    return fastest


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a product of x is returned."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _fft_size(least: int) -> int:
    """The next number without prime factors above 5."""
    size = least
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 1
