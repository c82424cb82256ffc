"""Base class of the extractors that return layers of a wav2vec-like network: waveform
normalisation, batches, long recordings.

Tensor letters: B utterances, S samples, T frames, N frames of all utterances, C conv channels, D
width of a frame, L layer (from 1).
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
from hubert_pretrain.features.chunking import ConvStack, plan_chunks
from hubert_pretrain.features.extractor import MAX_PADDING, Batches, padded_batches
from hubert_pretrain.files import sha256
from hubert_pretrain.frames import FrameGrid, samples
from hubert_pretrain.model.checkpoint import WEIGHTS
from hubert_pretrain.model.preprocess import normalize

Layers = int | Sequence[int] | str
"""One layer (1 is the first), several, or ALL."""
ALL = "all"
PRECISIONS = ["float32", "bfloat16"]
BATCH_SECONDS = {"cpu": 4.0, "cuda": 320.0}
"""Audio per batch, padding included. On a CPU core only utterances of a word or two gain from
batches (1.2 times as fast at 1 s, 0.9 at 7 s, because of the padding); a GPU needs hundreds of
seconds (Base: 2 GB per activation)."""
PIECE_SECONDS = 10.0
"""Audio per pass of a long recording through the conv encoder: 65 MB per activation in Base."""


class LayerFeatures(nn.Module):
    """Output of one or several transformer blocks: (B, S) -> (B, T, D).

    A layer's output is taken after its residual connection (and after its norm in post-norm
    models), never after the final norm. Only the blocks up to the last requested one are computed.
    Several layers stand side by side in each frame. The waveform is normalised over the whole
    utterance when the network was trained that way.

    Recordings up to `chunk_seconds` are computed whole. Longer ones give exactly as many frames;
    only attention is limited to chunks (features/chunking.py), which overlap by `context_seconds`
    on each side of the frames that are used.

    `center_utterances` subtracts the mean of an utterance's frames from each of them. It takes part
    of the speaker away, so that clusters follow phones (per speaker in van Niekerk et al. 2021,
    arXiv:2108.00917).

    A subclass calls `_configure` and implements `encode`, `context`, `conv_stack`, `fingerprint`
    and `dim`.
    """

    grid: FrameGrid
    normalize_waveform: bool
    padding_invariant: bool
    """A padded row gives the same frames as alone. If False, only utterances of equal length are
    computed together."""

    def _configure(
        self,
        layer: Layers,
        depth: int,
        *,
        name: str,
        chunk_seconds: float,
        context_seconds: float,
        center_utterances: bool,
        precision: str,
    ) -> None:
        """Checks and stores the settings; `depth` is the number of blocks of the model `name`."""
        self.layer: Any
        if layer == ALL:
            self.layer = list(range(1, depth + 1))
        elif isinstance(layer, (int, str)):
            self.layer = layer
        else:
            self.layer = list(layer)
        self.layers: list[int] = self.layer if isinstance(self.layer, list) else [self.layer]
        for number in self.layers:
            if not isinstance(number, int) or not 1 <= number <= depth:
                raise ConfigError(
                    f"{name}: features.layer={self.layer}, but the model has layers 1 to {depth}; "
                    "choose one of them"
                )
        if precision not in PRECISIONS:
            raise ConfigError(
                f"features.precision={precision!r}: expected one of {', '.join(PRECISIONS)}"
                f"{did_you_mean(precision, PRECISIONS)}"
            )
        self.precision = precision
        self.center_utterances = center_utterances
        self.chunk_frames = self.grid.num_frames(samples(chunk_seconds))
        self.context_frames = round(context_seconds * self.grid.frames_per_second)
        if self.chunk_frames <= 2 * self.context_frames:
            raise ConfigError(
                f"chunk_seconds={chunk_seconds} must be more than twice "
                f"context_seconds={context_seconds}"
            )

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of the network times the number of layers."""

    @abstractmethod
    def encode(self, waveform: Tensor, num_samples: Tensor | None) -> Tensor:
        """The conv encoder: (B, S) -> (B, T, C).

        `num_samples` (B,) counts the real samples of padded rows; None when nothing is padded.
        """

    @abstractmethod
    def context(self, features: Tensor, valid: Tensor | None) -> Tensor:
        """The transformer layers: (B, T, C) -> (B, T, D).

        `valid` (B, T) marks the real frames of padded rows; None when nothing is padded.
        """

    @abstractmethod
    def conv_stack(self) -> ConvStack:
        """The layers of the conv encoder, for long recordings."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines the values: the hash of the weights, and `settings()`."""

    def settings(self) -> dict[str, Any]:
        """The part of a fingerprint that does not depend on the weights."""
        settings = {
            "layer": self.layer,
            "convention": "block output after its residual",
            "normalize_waveform": self.normalize_waveform,
            "chunk_frames": self.chunk_frames,
            "context_frames": self.context_frames,
        }
        # Only where they are not the default: older codebooks lack them.
        if self.center_utterances:
            settings["center_utterances"] = True
        if self.precision != "float32":
            settings["precision"] = self.precision
        return settings

    def forward(self, waveform: Tensor) -> Tensor:
        """Frames of whole utterances of equal length: (B, S) -> (B, T, D) float32."""
        num_frames = self.grid.num_frames(waveform.shape[-1])
        return self.extract_packed(list(waveform)).view(len(waveform), num_frames, self.dim)

    @torch.inference_mode()
    def extract_packed(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Concatenated frames (N, D) float32 of whole utterances (S_i,). Long ones are computed one
        at a time.
        """
        device = waveforms[0].device
        use_bfloat16 = self.precision == "bfloat16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bfloat16):
            if self.normalize_waveform:
                waveforms = [normalize(waveform) for waveform in waveforms]
            counts = [self.grid.num_frames(len(waveform)) for waveform in waveforms]
            frames = self._extract(waveforms, counts)  # (N, D)
        if self.center_utterances:
            frames = torch.cat([part - part.mean(dim=0) for part in frames.split(counts)])
        return frames

    def plan_batches(self, num_samples: NDArray[np.int64]) -> Batches:
        """Utterances of similar length together (of equal length where padding would change
        values); long recordings one at a time.
        """
        device = next(self.parameters()).device.type
        longest = self.grid.num_samples(self.chunk_frames + 1) - 1
        single = np.flatnonzero(num_samples > longest)
        rest = np.flatnonzero(num_samples <= longest)
        together = padded_batches(
            num_samples[rest],
            samples(BATCH_SECONDS[device]),
            max_padding=MAX_PADDING if self.padding_invariant else 0.0,
        )
        alone = [np.array([position]) for position in single]
        return alone + [rest[positions] for positions in together]

    def _extract(self, waveforms: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        """(S_i,) and their numbers of frames -> (N, D)."""
        if max(counts) <= self.chunk_frames:
            return self._extract_batch(waveforms)
        frames = []
        for waveform, count in zip(waveforms, counts, strict=True):
            is_long = count > self.chunk_frames
            frames.append(
                self._extract_long(waveform) if is_long else self._extract_batch([waveform])
            )
        return torch.cat(frames)

    def _extract_batch(self, waveforms: Sequence[Tensor]) -> Tensor:
        """(S_i,) -> (N, D), all in one pass where that gives the same values."""
        lengths = [len(waveform) for waveform in waveforms]
        counts = [self.grid.num_frames(length) for length in lengths]

        # Utterances shorter than one frame have no rows in the result.
        if min(counts) == 0:
            nonempty = [
                waveform for waveform, count in zip(waveforms, counts, strict=True) if count
            ]
            if not nonempty:
                return waveforms[0].new_zeros(0, self.dim)
            return self._extract_batch(nonempty)

        # Equal lengths need no padding.
        if min(lengths) == max(lengths):
            x = torch.stack(list(waveforms))  # (B, S)
            return self.context(self.encode(x, None), None).flatten(0, 1).float()
        if not self.padding_invariant:
            return torch.cat([self._extract_batch([waveform]) for waveform in waveforms])

        # Different lengths: pad, compute with a mask of the real frames, cut the padding off.
        x = nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)  # (B, S)
        num_samples = torch.tensor(lengths, device=x.device)  # (B,)
        num_frames = torch.tensor(counts, device=x.device)  # (B,)
        valid = torch.arange(max(counts), device=x.device) < num_frames[:, None]  # (B, T)
        frames = self.context(self.encode(x, num_samples), valid)  # (B, T, D)
        return torch.cat([row[:count] for row, count in zip(frames, counts, strict=True)]).float()

    def _extract_long(self, waveform: Tensor) -> Tensor:
        """(S,) -> (T, D): the conv encoder in pieces, the transformer in overlapping chunks."""
        pieces = self.conv_stack().encode_pieces(waveform[None], samples(PIECE_SECONDS))
        features = torch.cat(list(pieces), dim=1)  # (1, T, C)
        frames = features.new_empty(features.shape[1], self.dim, dtype=torch.float32)  # (T, D)
        for chunk in plan_chunks(len(frames), self.chunk_frames, self.context_frames):
            output = self.context(features[:, chunk.start : chunk.stop], None)[0]
            frames[chunk.keep_start : chunk.keep_stop] = output[
                chunk.keep_start - chunk.start : chunk.keep_stop - chunk.start
            ]
        return frames


def weights_sha256(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint's weights.

    That of `model.safetensors` in a folder that has one, of the file itself when it is a file, else
    of the names and hashes of all files in the folder.
    """
    if checkpoint.is_file():
        return sha256(checkpoint)
    if (checkpoint / WEIGHTS).is_file():
        return sha256(checkpoint / WEIGHTS)
    lines = [
        f"{sha256(path)}  {path.name}\n" for path in sorted(checkpoint.iterdir()) if path.is_file()
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
