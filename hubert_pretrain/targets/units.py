"""Units as a product: waveform -> cluster ids and their runs, of whole recordings or of a stream.

Letters: S samples, T frames, N codebooks, R runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.clustering.quality import run_lengths
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.extractor import FeatureExtractor
from hubert_pretrain.frames import FrameGrid, samples, seconds
from hubert_pretrain.targets.smoothing import check_penalty, smoothable, smoothed_units

# Default streaming policies: of a network's layer, and of features that see only a few frames.
LAYER_CHUNK_SECONDS = 0.5
LAYER_PAST_SECONDS = 4.0
LAYER_FUTURE_SECONDS = 0.5
LOCAL_CHUNK_FRAMES = 5


@dataclass(frozen=True)
class Run:
    """Consecutive frames with the same unit."""

    unit: int | tuple[int, ...]
    """The id, or one per codebook."""
    start_frame: int
    num_frames: int

    def start_seconds(self, grid: FrameGrid) -> float:
        """Start of the hop of the first frame."""
        return seconds(grid.start_sample(self.start_frame))

    def num_seconds(self, grid: FrameGrid) -> float:
        """Duration."""
        return seconds(self.num_frames * grid.hop)


def runs(ids: NDArray[np.integer], start_frame: int = 0) -> list[Run]:
    """Units without repetitions: ids (T,) or (T, N) -> R runs, the first at `start_frame`."""
    starts, lengths = run_lengths(ids)
    return [
        Run(_as_unit(ids[start]), start_frame + start, length)
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]


def _as_unit(ids: Any) -> int | tuple[int, ...]:
    return tuple(map(int, ids)) if np.ndim(ids) else int(ids)


class UnitExtractor:
    """Waveform -> units, with an extractor and codebooks that were fitted on its frames."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        codebooks: CodebookSet,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            extractor: already on `device`.
            codebooks: of a cluster stage.
            device: computes the frames.

        Raises:
            ArtefactError: the codebooks were fitted on other features; the message names each
                difference.
        """
        codebooks.check_features(extractor)
        self.extractor = extractor
        self.codebooks = codebooks.to(device)
        self.device = torch.device(device)
        self.switch_penalty = 0.0
        """Above 0: units of whole recordings are smoothed (smoothing.py)."""

    @property
    def grid(self) -> FrameGrid:
        """The grid of the units."""
        return self.codebooks.grid

    def __call__(self, waveform: NDArray[np.float32] | Tensor) -> NDArray[np.int64]:
        """Units of a recording of any length: (S,) at 16 kHz, not normalised -> (T,), or (T, N) for
        several codebooks.
        """
        if len(waveform) < self.grid.window:
            return self.no_units
        with torch.inference_mode():
            tensor = torch.as_tensor(waveform, dtype=torch.float32, device=self.device)
            frames = self.extractor(tensor[None])[0]  # (T, D)
            if self.switch_penalty > 0:
                codebook = self.codebooks.parts[0].codebook
                return smoothed_units(codebook, frames, self.switch_penalty).numpy()
            return np.asarray(self.codebooks.assign(frames).cpu().numpy())

    def smooth(self, penalty: float) -> UnitExtractor:
        """Smooth the units of whole recordings: a switch costs `penalty` times the mean squared
        distance of a frame to its centroid. Returns itself. Raises ConfigError.
        """
        check_penalty(penalty)
        if penalty > 0:
            smoothable(self.codebooks)
        self.switch_penalty = penalty
        return self

    @property
    def no_units(self) -> NDArray[np.int64]:
        """Units of no audio: (0,) or (0, N)."""
        num_codebooks = self.codebooks.num_codebooks
        return np.empty((0,) if num_codebooks == 1 else (0, num_codebooks), dtype=np.int64)


# -- streaming


@dataclass(frozen=True)
class StreamPolicy:
    """Division of a stream into chunks, each computed with context as one short recording.

    Chunks begin at multiples of `chunk_frames`, whatever the size of the pieces in which the audio
    arrives. So the units do not depend on the pieces.
    """

    chunk_frames: int
    past_frames: int
    """Context before a chunk."""
    future_frames: int
    """Context after a chunk, for which it waits."""
    exact: bool
    """True if the units equal those of the whole recording, except for ties. If False, the units
    are specific to this policy."""

    def __post_init__(self) -> None:
        if self.chunk_frames < 1 or min(self.past_frames, self.future_frames) < 0:
            raise ConfigError(
                f"chunks of {self.chunk_frames} frames with {self.past_frames} before and "
                f"{self.future_frames} after; expected a chunk of at least one frame, and 0 or "
                "more around it"
            )

    def latency_seconds(self, grid: FrameGrid) -> float:
        """Longest time from the first sample of a frame to its unit, without computing time: the
        chunk and the context after it.
        """
        return seconds(grid.num_samples(self.chunk_frames + self.future_frames))

    @staticmethod
    def of(extractor: FeatureExtractor, *, chunk_frames: int | None = None) -> StreamPolicy:
        """The exact policy for features with a finite receptive field (MFCC: 5 frames at a time,
        145 ms), else the default policy of layers.
        """
        field = receptive_field(extractor.fingerprint())
        if field is not None:
            past, future = field
            return StreamPolicy(chunk_frames or LOCAL_CHUNK_FRAMES, past, future, exact=True)
        hop = extractor.grid.hop
        return StreamPolicy(
            chunk_frames=chunk_frames or samples(LAYER_CHUNK_SECONDS) // hop,
            past_frames=samples(LAYER_PAST_SECONDS) // hop,
            future_frames=samples(LAYER_FUTURE_SECONDS) // hop,
            exact=False,
        )


def receptive_field(features: dict[str, Any]) -> tuple[int, int] | None:
    """Frames before and after a frame that its features depend on, from their fingerprint; None
    when they depend on the whole recording.
    """
    kind = features.get("kind")
    if kind == "mfcc":
        # Two derivatives over five frames of 10 ms: four such frames, two of ours, on each side.
        return 2, 2
    if kind == "log_mel":
        return 0, 0
    if kind == "concatenate":
        parts = features["parts"]
        before = 0
        after = 0
    elif kind == "splice":
        parts = [features["of"]]
        before = features["left"]
        after = features["right"]
    elif kind == "deltas":
        parts = [features["of"]]
        before = 2 * features["order"]
        after = before
    else:
        return None
    fields = [receptive_field(part) for part in parts]
    finite = [field for field in fields if field is not None]
    if len(finite) < len(fields):
        return None
    most_before = max(part_before for part_before, _ in finite)
    most_after = max(part_after for _, part_after in finite)
    return most_before + before, most_after + after


class UnitStream:
    """Units of audio that arrives in pieces of any size, independent of the size of the pieces.

    A chunk is computed by itself. What a network layer takes from the whole recording (attention,
    the statistics of a group norm, the normalisation of the waveform) it takes here from the chunk
    and its context. So its units differ from those of `UnitExtractor` on the whole recording. With
    an exact policy they are equal.
    """

    def __init__(self, extract: UnitExtractor, policy: StreamPolicy | None = None) -> None:
        self.extract = extract
        self.policy = policy or StreamPolicy.of(extract.extractor)
        self._samples = np.empty(0, dtype=np.float32)
        """Audio from the first frame that is still needed."""
        self._first_frame = 0
        """Frame at which `_samples` begins."""
        self._next_frame = 0
        """First frame without a unit."""

    @property
    def latency_seconds(self) -> float:
        """See `StreamPolicy.latency_seconds`."""
        return self.policy.latency_seconds(self.extract.grid)

    def push(self, piece: NDArray[np.float32]) -> NDArray[np.int64]:
        """Adds audio (S,) at 16 kHz in [-1, 1], of any length, and returns the new units: (T,) or
        (T, N).
        """
        self._samples = np.concatenate([self._samples, np.asarray(piece, dtype=np.float32)])
        units = [self.extract.no_units]
        ahead = self.policy.chunk_frames + self.policy.future_frames
        while self._available_frames >= self._next_frame + ahead:
            num_frames = self._next_frame + ahead - self._first_frame
            units.append(self._next_chunk(self.extract.grid.num_samples(num_frames)))
        return np.concatenate(units)

    def finish(self) -> NDArray[np.int64]:
        """Ends the recording and returns the remaining units. The stream can then be used for
        another recording.
        """
        units = [self.extract.no_units]
        while self._next_frame < self._available_frames:
            # All samples: the frames inside a feature may be denser than those of the grid.
            units.append(self._next_chunk(len(self._samples)))
        self._samples = np.empty(0, dtype=np.float32)
        self._first_frame = 0
        self._next_frame = 0
        return np.concatenate(units)

    @property
    def _available_frames(self) -> int:
        """Frames of the recording whose audio has arrived."""
        return self._first_frame + int(self.extract.grid.num_frames(len(self._samples)))

    def _next_chunk(self, num_samples: int) -> NDArray[np.int64]:
        """Units of the next chunk, computed from the first `num_samples` of the stored samples."""
        start = self._first_frame
        stop = min(self._next_frame + self.policy.chunk_frames, self._available_frames)
        units = self.extract(self._samples[:num_samples])[self._next_frame - start : stop - start]
        self._next_frame = stop
        # Forget the audio before the context of the next chunk.
        self._first_frame = max(0, stop - self.policy.past_frames)
        grid = self.extract.grid
        self._samples = self._samples[grid.start_sample(self._first_frame - start) :]
        return units


class RunStream:
    """Runs of units that arrive in pieces. A run is returned when the next one begins."""

    def __init__(self) -> None:
        self._open: Run | None = None
        self._num_frames = 0

    def push(self, units: NDArray[np.integer]) -> list[Run]:
        """Adds units (T,) or (T, N) and returns the runs that have ended."""
        found = runs(units, self._num_frames)
        self._num_frames += len(units)
        if not found:
            return []
        if self._open is not None and self._open.unit == found[0].unit:
            # The open run goes on.
            num_frames = self._open.num_frames + found[0].num_frames
            found[0] = replace(self._open, num_frames=num_frames)
        elif self._open is not None:
            found.insert(0, self._open)
        self._open = found.pop()
        return found

    def finish(self) -> list[Run]:
        """Ends the recording and returns the last run, if there is one."""
        last = self._open
        self._open = None
        self._num_frames = 0
        return [] if last is None else [last]
