"""A layer of a HuBERT checkpoint as features: what iteration 2 clusters (paper section 3.2, reference.md 2.10).

Tensor alphabet: B utterances, S samples, T frames, C conv channels, D width, L layer (1-based).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import FrameGrid, samples
from hubert_pretrain.model.checkpoint import WEIGHTS
from hubert_pretrain.model.conv_encoder import ConvLayer, TimeNorm
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.loader import load_checkpoint


class HubertLayer(nn.Module):
    """Output of block `layer` after its residual (and its norm in post-norm models; never the final norm): (B, S) -> (B, T, D).

    The waveform is normalised over the whole utterance when the model was trained so. Recordings up to `chunk_seconds` run whole.
    Longer ones give exactly as many frames, none is lost at the seams: the conv encoder works in pieces that overlap by its window,
    with the group norm's mean and variance taken over the *whole* recording, so its frames equal the unchunked ones; only attention is
    confined to chunks, which overlap by `context_seconds` on each side of what is kept of them.
    """

    def __init__(self, checkpoint: str | Path, layer: int, *, chunk_seconds: float = 60.0, context_seconds: float = 5.0) -> None:
        """
        Args:
            checkpoint: folder of a run, or any other checkpoint that model/loader.py reads.
            layer: which block, 1 to the number of layers.
            chunk_seconds: longest stretch that attention sees at once.
            context_seconds: what is thrown away at each inner end of a chunk.

        Raises:
            ConfigError: the model has no such layer, or the context leaves nothing of a chunk.
        """
        super().__init__()
        self.model: Hubert = load_checkpoint(checkpoint).model.eval().requires_grad_(False)
        depth = self.model.config.num_hidden_layers
        if not 1 <= layer <= depth:
            raise ConfigError(f"{checkpoint}: features.layer={layer}, but the model has layers 1 to {depth}; choose one of them")
        self.layer = layer
        self.chunk_frames = self.grid.num_frames(samples(chunk_seconds))
        self.context_frames = round(context_seconds * self.grid.frames_per_second)
        if self.chunk_frames <= 2 * self.context_frames:
            raise ConfigError(f"chunk_seconds={chunk_seconds} must be more than twice context_seconds={context_seconds}")
        self._sha256 = weights_sha256(Path(checkpoint))

    @property
    def grid(self) -> FrameGrid:
        """The grid of the model's conv encoder."""
        return self.model.grid

    @property
    def dim(self) -> int:
        """The width of the context encoder."""
        return self.model.config.hidden_size

    def fingerprint(self) -> dict[str, Any]:
        """The weights by their hash, so that a checkpoint may be moved but not exchanged; the layer; how the waveform was treated."""
        return {
            "kind": "hubert_layer",
            "dim": self.dim,
            "layer": self.layer,
            "convention": "block output after its residual",
            "normalize_waveform": self.model.config.normalize_waveform,
            "chunk_frames": self.chunk_frames,
            "context_frames": self.context_frames,
            "weights_sha256": self._sha256,
        }

    @torch.inference_mode()
    def forward(self, waveform: Tensor) -> Tensor:
        """Frames of whole, equally long utterances: (B, S) -> (B, T, D) float32."""
        if self.model.config.normalize_waveform:
            # fairseq's layer_norm over the utterance; the 1e-5 matters for quiet audio (reference.md 2.3).
            waveform = nn.functional.layer_norm(waveform, waveform.shape[-1:], eps=1e-5)
        num_frames = self.grid.num_frames(waveform.shape[-1])
        if num_frames <= self.chunk_frames:
            return self.model(waveform, layers=self.layer).last.float()
        x = self.model.projection(torch.cat(list(self._conv_frames(waveform)), dim=1))  # (B, T, C) -> (B, T, D)
        return torch.cat([self._context_frames(x, chunk) for chunk in chunks(num_frames, self.chunk_frames, self.context_frames)], dim=1)

    def _context_frames(self, x: Tensor, chunk: Chunk) -> Tensor:
        last = self.model.context_encoder(x[:, chunk.start : chunk.stop], layers=self.layer).last
        return last[:, chunk.keep_start - chunk.start : chunk.keep_stop - chunk.start].float()

    def _conv_frames(self, waveform: Tensor) -> Iterator[Tensor]:
        """The conv encoder's frames (B, T', C) piece by piece, equal to those of the whole waveform up to rounding."""
        first, others = self._first, self.model.conv_encoder.layers[1:]
        time_norm = self._time_norm(waveform) if isinstance(first.norm, TimeNorm) else None
        for piece in self._pieces(waveform, self.grid):
            if time_norm is None:
                yield self.model.encode_frames(piece)
            else:
                x = first.activation(time_norm(first.conv(piece[:, None])))  # (B, C, S')
                for layer in others:
                    x = layer(x)
                yield x.transpose(1, 2)

    def _time_norm(self, waveform: Tensor) -> Callable[[Tensor], Tensor]:
        """The first layer's group norm with the mean and variance of the whole waveform: (B, C, S') -> (B, C, S')."""
        conv, norm = self._first.conv, self._first.norm
        assert isinstance(norm, TimeNorm)
        zero = waveform.new_zeros(len(waveform), conv.out_channels, 1, dtype=torch.float64)
        count, total, squares = 0, zero, zero
        for piece in self._pieces(waveform, FrameGrid(window=conv.kernel_size[0], hop=conv.stride[0])):
            x = conv(piece[:, None]).double()  # sums over hours of audio lose digits in float32
            count, total, squares = count + x.shape[-1], total + x.sum(-1, keepdim=True), squares + x.square().sum(-1, keepdim=True)
        mean = total / count
        scale = norm.weight[:, None] / (squares / count - mean.square() + norm.eps).sqrt()  # (B, C, 1)
        shift = norm.bias[:, None] - mean * scale
        return lambda x: torch.addcmul(shift.float(), x, scale.float())

    @property
    def _first(self) -> ConvLayer:
        layer = self.model.conv_encoder.layers[0]
        assert isinstance(layer, ConvLayer)
        return layer

    def _pieces(self, waveform: Tensor, grid: FrameGrid) -> Iterator[Tensor]:
        """Stretches of waveform (B, S') of at most a chunk of audio that together give each frame of a grid exactly once."""
        num_frames = grid.num_frames(waveform.shape[-1])
        step = max(1, self.grid.num_samples(self.chunk_frames) // grid.hop)
        for start in range(0, num_frames, step):
            count = min(step, num_frames - start)
            yield waveform[:, grid.start_sample(start) : grid.start_sample(start) + grid.num_samples(count)]


@dataclass(frozen=True)
class Chunk:
    """Frames [start, stop) are computed together, of which [keep_start, keep_stop) are kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def chunks(num_frames: int, chunk_frames: int, context_frames: int) -> list[Chunk]:
    """Covers `num_frames` frames once with chunks that see at least `context_frames` more on each side (except at the ends).

    All chunks are equally long (one shape): the last one starts earlier instead of being shorter.
    """
    if num_frames <= chunk_frames:
        return [Chunk(0, num_frames, 0, num_frames)]
    plan: list[Chunk] = []
    kept = 0
    while kept < num_frames:
        start = min(max(0, kept - context_frames), num_frames - chunk_frames)
        stop = start + chunk_frames
        keep_stop = num_frames if stop == num_frames else stop - context_frames
        plan.append(Chunk(start, stop, kept, keep_stop))
        kept = keep_stop
    return plan


def weights_sha256(checkpoint: Path) -> str:
    """SHA-256 of the weights: of `model.safetensors` in a folder that has one, of a file itself, else of all files of a folder together."""
    if checkpoint.is_file():
        return file_sha256(checkpoint)
    if (checkpoint / WEIGHTS).is_file():
        return file_sha256(checkpoint / WEIGHTS)
    listed = [f"{file_sha256(path)}  {path.name}\n" for path in sorted(checkpoint.iterdir()) if path.is_file()]
    return hashlib.sha256("".join(listed).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
