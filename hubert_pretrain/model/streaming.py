"""Streaming: frames of audio that arrives in pieces, by a network whose frames see only their own
chunk and what precedes it.

`HubertConfig.chunk_frames` and `left_context_frames` make a network stream. Three parts of HuBERT
look ahead, and are dealt with so that no frame depends on audio after its chunk:

| part | in chunks |
|---|---|
| attention | a mask (attention.py, `Chunks`): the chunk, and `left_context_frames` before it |
| positional convolution | taps beyond the chunk see zeros (positional_conv.py, `chunked_conv`) |
| norms over the whole utterance (conv encoder of Base, normalised waveforms) | refused |

`StreamingEncoder` computes the same frames from what it keeps of the past: keys and values of each
layer, and half a kernel of projected frames. With a chunk that is as long as the utterance all of
this is the offline network. Training with chunks of several lengths (training/dynamic_chunks.py)
makes one network for both.

B streams, S samples, T frames, D width, H heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.fields import raise_faults
from hubert_pretrain.frames import seconds
from hubert_pretrain.model.attention import AttentionMask, sdpa
from hubert_pretrain.model.config import HubertConfig, faults_of_streaming
from hubert_pretrain.model.hubert import Hubert, HubertOutput


def latency_seconds(config: HubertConfig, chunk_frames: int | None = None) -> float:
    """Longest time from the first sample of a frame until all audio is there that it depends on:
    the chunk, and what its last frame sees beyond its hop. Computing time comes on top.

    chunk_frames: None: that of the network.
    """
    frames = chunk_frames or config.chunk_frames
    if frames is None:
        raise ConfigError(
            "this network sees whole utterances (model.chunk_frames=null); say chunk_frames"
        )
    return seconds(config.grid.num_samples(frames))


def describe_streaming(config: HubertConfig, chunk_frames: int | None = None) -> str:
    """One line about the latency of a network, e.g. for a log."""
    longest = latency_seconds(config, chunk_frames)
    grid = config.grid
    frames = chunk_frames or config.chunk_frames or 0
    chunk = seconds(frames * grid.hop)
    beyond = seconds(grid.window - grid.hop)
    average = (longest + seconds(grid.window)) / 2
    left = "everything before it"
    if config.left_context_frames is not None:
        left = f"{seconds(config.left_context_frames * grid.hop):g} s before it"
    return (
        f"streaming: chunks of {frames} frames ({chunk:g} s), attention sees the chunk and {left}; "
        f"a frame is known at most {longest:.3f} s after its first sample (the chunk, and "
        f"{beyond:g} s that its last frame sees beyond), on average {average:.3f} s, computing "
        "time not counted"
    )


class StreamingEncoder:
    """Frames of streams that arrive in pieces of any size: those that the network computes from the
    whole recording with this chunk, to rounding.

        encoder = StreamingEncoder(load_checkpoint("runs/demo/it2/pretrain").model, chunk_frames=50)
        for piece in microphone:          # (B, S) at 16 kHz
            frames = encoder.push(piece)  # (B, T, D): none, or those of one or more chunks
        frames = encoder.finish()         # of the last chunk, which may be shorter
    """

    def __init__(
        self,
        model: Hubert,
        *,
        chunk_frames: int | None = None,
        left_context_frames: int | None = None,
        layers: int | None = None,
        hidden_states: bool = False,
    ) -> None:
        """
        Args:
            model: in eval mode.
            chunk_frames: None: chunk and left context of the network's configuration.
            left_context_frames: frames before the chunk that attention sees; None: all, for which
                memory grows with the stream.
            layers: run only the first so many layers.
            hidden_states: outputs hold those of every layer.

        Raises ConfigError for a network that needs whole utterances, or has no chunk.
        """
        config = model.config
        if chunk_frames is None:
            chunk_frames = config.chunk_frames
            left_context_frames = config.left_context_frames
        if chunk_frames is None or chunk_frames < 1:
            raise ConfigError(
                f"chunk_frames={chunk_frames}: this network sees whole utterances; say how many "
                "frames a chunk has, e.g. chunk_frames=50"
            )
        raise_faults(faults_of_streaming(config, f"chunk_frames={chunk_frames}"))
        if model.training:
            raise ConfigError("a stream is computed in eval mode; call model.eval() first")
        self.model = model
        self.chunk_frames = chunk_frames
        self.layers = layers
        self.hidden_states = hidden_states
        self.left_context_frames = left_context_frames
        self._half_kernel = config.num_conv_pos_embeddings // 2
        self._streams = 1
        self._begin()

    def _begin(self) -> None:
        self._samples: Tensor | None = None  # (B, S) from the first frame of the next chunk on
        self._past: Tensor | None = None  # (B, at most half a kernel, D) projected frames
        depth = self.model.config.num_hidden_layers
        self._caches = [_Cache(self.left_context_frames) for _ in range(self.layers or depth)]

    @property
    def latency_seconds(self) -> float:
        """See `latency_seconds`."""
        return latency_seconds(self.model.config, self.chunk_frames)

    def push(self, piece: Tensor) -> Tensor:
        """Adds audio (B, S) or (S,) of any length, and returns the frames (B, T, D) of the chunks
        that are complete now.
        """
        return self._joined(self.outputs(piece))

    def finish(self) -> Tensor:
        """Ends the streams and returns the remaining frames (B, T, D). The encoder can then be used
        for other streams.
        """
        return self._joined(self.last_outputs())

    @torch.inference_mode()
    def outputs(self, piece: Tensor) -> list[HubertOutput]:
        """`push`, with an output of the network for each chunk."""
        self._samples = self._appended(piece)
        grid = self.model.grid
        needed = grid.num_samples(self.chunk_frames)
        found = []
        start = 0
        while self._samples.shape[1] - start >= needed:
            found.append(self._chunk(self._samples[:, start : start + needed]))
            start += self.chunk_frames * grid.hop
        self._samples = self._samples[:, start:]
        return found

    @torch.inference_mode()
    def last_outputs(self) -> list[HubertOutput]:
        """`finish`, with the output of the last chunk, if there is a frame left."""
        rest = self._samples
        found = []
        if rest is not None and rest.shape[1] >= self.model.grid.window:
            found.append(self._chunk(rest))
        self._begin()
        return found

    def _appended(self, piece: Tensor) -> Tensor:
        piece = piece[None] if piece.ndim == 1 else piece
        if piece.ndim != 2 or not piece.is_floating_point():
            raise DataError(
                f"expected a float piece of audio (S,) or (B, S), found {piece.dtype} "
                f"{tuple(piece.shape)}"
            )
        if self._samples is None:
            self._streams = len(piece)
            return piece
        if len(piece) != self._streams:
            raise DataError(
                f"a piece of {len(piece)} streams after one of {self._streams}; "
                "call finish() before other streams"
            )
        return torch.cat([self._samples, piece], dim=1)

    def _chunk(self, samples: Tensor) -> HubertOutput:
        """The network on the samples (B, S) of one chunk, with what is kept of the past."""
        features = self.model.encode_frames(samples)
        x = self.model.projection(features)
        encoder = self.model.context_encoder

        # The convolution sees half a kernel of the past; to the right of the chunk are zeros.
        window = x if self._past is None else torch.cat([self._past, x], dim=1)
        self._past = window[:, max(0, window.shape[1] - self._half_kernel) :]
        x = x + encoder.positions(window)[:, -x.shape[1] :]
        if not encoder.pre_norm:
            x = encoder.norm(x)
        encoder_input = x

        states = []
        for layer, cache in zip(encoder.layers, self._caches, strict=False):
            x, _ = layer(x, None, cache.attend)
            states.append(x)
        last = encoder.norm(x) if encoder.pre_norm and self.layers is None else x
        return HubertOutput(
            last=last,
            feature_penalty=features.float().square().mean(),
            encoder_input=encoder_input,
            hidden_states=states if self.hidden_states else None,
        )

    def _joined(self, outputs: list[HubertOutput]) -> Tensor:
        width = self.model.config.hidden_size
        nothing = self.model.mask_embedding.new_zeros(self._streams, 0, width)
        return torch.cat([nothing, *(output.last for output in outputs)], dim=1)


class _Cache:
    """Keys and values of a layer for the frames that later chunks see."""

    def __init__(self, left: int | None) -> None:
        self.left = left
        self.keys: Tensor | None = None  # (B, H, T, d)
        self.values: Tensor | None = None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, attention_mask: AttentionMask, dropout: float
    ) -> tuple[Tensor, None]:
        """Attention to the chunk and the cached frames, and these for the next chunk."""
        if self.keys is not None and self.values is not None:
            k = torch.cat([self.keys, k], dim=2)
            v = torch.cat([self.values, v], dim=2)
        first = 0 if self.left is None else max(0, k.shape[2] - self.left)
        # Copies: a view would keep the frames before it in memory.
        self.keys = k[:, :, first:].clone()
        self.values = v[:, :, first:].clone()
        return sdpa(q, k, v, attention_mask, dropout)
