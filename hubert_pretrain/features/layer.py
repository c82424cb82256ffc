"""What layers of any wav2vec-like network have in common as features: normalisation, batches, long
recordings.

Tensor alphabet: B utterances, S samples, T frames, N frames of all utterances, C conv channels, D
width, L layer (1-based).
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.features.chunking import ConvStack, chunks
from hubert_pretrain.features.extractor import MAX_PADDING, Batches, padded_batches
from hubert_pretrain.files import sha256
from hubert_pretrain.frames import FrameGrid, samples
from hubert_pretrain.model.checkpoint import WEIGHTS
from hubert_pretrain.model.preprocess import normalize


def weights_sha256(checkpoint: Path) -> str:
    """SHA-256 of the weights: of `model.safetensors` in a folder that has one, of a file itself,
    else of all files of a folder together.
    """
    if checkpoint.is_file():
        return sha256(checkpoint)
    if (checkpoint / WEIGHTS).is_file():
        return sha256(checkpoint / WEIGHTS)
    listed = [
        f"{sha256(path)}  {path.name}\n" for path in sorted(checkpoint.iterdir()) if path.is_file()
    ]
    return hashlib.sha256("".join(listed).encode()).hexdigest()


BATCH_SECONDS = {"cpu": 4.0, "cuda": 320.0}
"""Audio per batch, padding included. On a core only words gain (x 1.2 at 1 s, x 0.9 at 7 s: padding
and its norm cost more than they save); a GPU wants hundreds of seconds (Base: 2 GB per
activation)."""
PIECE_SECONDS = 10.0
"""Audio per pass through the conv encoder of a long recording: 65 MB per activation in Base."""
PRECISIONS = ["float32", "bfloat16"]
Layers = int | Sequence[int] | str
"""One layer (1 is the first), several, or ALL."""
ALL = "all"


class LayerFeatures(nn.Module):
    """Output of one block or several after its residual (and its norm in post-norm models; never
    the final norm): (B, S) -> (B, T, D).

    Only layers up to the last one asked for are run. Several layers come behind one another in each
    frame. The waveform is normalised over the whole utterance when the network was trained so.
    Recordings up to `chunk_seconds` run whole. Longer ones give exactly as many frames, none is
    lost at the seams, and only attention is confined to chunks (see features/chunking.py), which
    overlap by `context_seconds` on each side of what is kept of them.

    A subclass calls `_set_up` and says how to `encode` and what the `context` encoder makes of it.
    """

    grid: FrameGrid
    normalize_waveform: bool
    pads: bool
    """Whether a padded row gives what it gives alone. If not, only equally long utterances are
    computed together.
    """

    def _set_up(
        self,
        layer: Layers,
        depth: int,
        *,
        name: str,
        chunk_seconds: float,
        context_seconds: float,
        precision: str,
    ) -> None:
        self.layer = (
            list(range(1, depth + 1))
            if layer == ALL
            else layer
            if isinstance(layer, (int, str))
            else list(layer)
        )
        self.layers: list[int] = self.layer if isinstance(self.layer, list) else [self.layer]  # type: ignore[list-item]
        for number in self.layers:
            if not isinstance(number, int) or not 1 <= number <= depth:
                raise ConfigError(
                    f"{name}: features.layer={self.layer}, but the model has layers 1 to {depth}; choose one of them"
                )
        if precision not in PRECISIONS:
            choices = ", ".join(PRECISIONS)
            raise ConfigError(
                f"features.precision={precision!r}: expected one of {choices}{did_you_mean(precision, PRECISIONS)}"
            )
        self.precision = precision
        self.chunk_frames = self.grid.num_frames(samples(chunk_seconds))
        self.context_frames = round(context_seconds * self.grid.frames_per_second)
        if self.chunk_frames <= 2 * self.context_frames:
            raise ConfigError(
                f"chunk_seconds={chunk_seconds} must be more than twice context_seconds={context_seconds}"
            )

    @abstractmethod
    def encode(self, waveform: Tensor, num_samples: Tensor | None) -> Tensor:
        """The conv encoder: (B, S) -> (B, T, C). `num_samples` (B,): real samples of padded rows;
        None when nothing is padded.
        """

    @abstractmethod
    def context(self, features: Tensor, valid: Tensor | None) -> Tensor:
        """The layers: (B, T, C) -> (B, T, D). `valid` (B, T): real frames of padded rows; None when
        nothing is padded.
        """

    @abstractmethod
    def conv_stack(self) -> ConvStack:
        """The conv encoder taken apart, for long recordings."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What determines the values: the weights by their hash, and `settings()`."""

    def settings(self) -> dict[str, Any]:
        """The part of a fingerprint that is about more than weights."""
        chosen = {
            "layer": self.layer,
            "convention": "block output after its residual",
            "normalize_waveform": self.normalize_waveform,
            "chunk_frames": self.chunk_frames,
            "context_frames": self.context_frames,
        }
        return chosen if self.precision == "float32" else chosen | {"precision": self.precision}

    def forward(self, waveform: Tensor) -> Tensor:
        """Frames of whole, equally long utterances: (B, S) -> (B, T, D) float32."""
        return self.ragged(list(waveform)).view(
            len(waveform), self.grid.num_frames(waveform.shape[-1]), self.dim
        )

    @torch.inference_mode()
    def ragged(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Frames (N, D) float32 of whole utterances (S_i,) behind one another; long ones are
        computed by themselves.
        """
        device = waveforms[0].device
        with torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"
        ):
            if self.normalize_waveform:
                waveforms = [normalize(waveform) for waveform in waveforms]
            counts = [self.grid.num_frames(len(waveform)) for waveform in waveforms]
            if max(counts) > self.chunk_frames:
                computed = zip(waveforms, counts, strict=True)
                return torch.cat(
                    [
                        self._long(each) if count > self.chunk_frames else self._short([each])
                        for each, count in computed
                    ]
                )
            return self._short(waveforms)

    def batches(self, num_samples: NDArray[np.int64]) -> Batches:
        """Similar lengths together (equal ones where padding would change values); long recordings
        by themselves.
        """
        device = next(self.parameters()).device.type
        longest = self.grid.num_samples(self.chunk_frames + 1) - 1
        single = np.flatnonzero(num_samples > longest)
        rest = np.flatnonzero(num_samples <= longest)
        together = padded_batches(
            num_samples[rest],
            samples(BATCH_SECONDS[device]),
            max_padding=MAX_PADDING if self.pads else 0.0,
        )
        return [np.array([place]) for place in single] + [rest[places] for places in together]

    def _short(self, waveforms: Sequence[Tensor]) -> Tensor:
        """(S_i,) -> (N, D), all at once."""
        lengths = [len(waveform) for waveform in waveforms]
        counts = [self.grid.num_frames(length) for length in lengths]
        if min(counts) == 0:
            heard = [waveform for waveform, count in zip(waveforms, counts, strict=True) if count]
            return self._short(heard) if heard else waveforms[0].new_zeros(0, self.dim)
        if min(lengths) == max(lengths):
            return (
                self.context(self.encode(torch.stack(list(waveforms)), None), None)
                .flatten(0, 1)
                .float()
            )
        if not self.pads:
            return torch.cat([self._short([waveform]) for waveform in waveforms])
        x = nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)  # (B, S)
        valid = (
            torch.arange(max(counts), device=x.device)
            < torch.tensor(counts, device=x.device)[:, None]
        )  # (B, T)
        frames = self.context(self.encode(x, torch.tensor(lengths, device=x.device)), valid)
        return torch.cat([row[:count] for row, count in zip(frames, counts, strict=True)]).float()

    def _long(self, waveform: Tensor) -> Tensor:
        """(S,) -> (T, D) in pieces and chunks."""
        features = torch.cat(
            list(self.conv_stack().frames(waveform[None], samples(PIECE_SECONDS))), dim=1
        )  # (1, T, C)
        frames = features.new_empty(features.shape[1], self.dim, dtype=torch.float32)
        for chunk in chunks(len(frames), self.chunk_frames, self.context_frames):
            made = self.context(features[:, chunk.start : chunk.stop], None)[0]
            frames[chunk.keep_start : chunk.keep_stop] = made[
                chunk.keep_start - chunk.start : chunk.keep_stop - chunk.start
            ]
        return frames

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of a frame: that of the network times the number of layers."""
