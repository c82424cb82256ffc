"""Units as a product: waveforms -> cluster ids and their runs, of whole recordings or of audio that
is still arriving.

S samples, T frames, D width, N codebooks, R runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.clustering.quality import run_lengths
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.extractor import Extractor
from hubert_pretrain.frames import FrameGrid, samples, seconds

LAYER_CHUNK_SECONDS = 0.5
LAYER_PAST_SECONDS = 4.0
LAYER_FUTURE_SECONDS = 0.5
"""How a layer of a network is streamed unless one says otherwise: each half second, with four
seconds before it and half a second after.
"""


@dataclass(frozen=True)
class Run:
    """Equal units behind one another."""

    unit: int | tuple[int, ...]
    """The id, or one per codebook."""
    start_frame: int
    num_frames: int

    def start_seconds(self, grid: FrameGrid) -> float:
        """When it begins: where the hop of its first frame does."""
        return seconds(grid.start_sample(self.start_frame))

    def num_seconds(self, grid: FrameGrid) -> float:
        """How long it lasts."""
        return seconds(self.num_frames * grid.hop)


def runs(ids: NDArray[np.integer], start_frame: int = 0) -> list[Run]:
    """Units without repetitions: ids (T,) or (T, N) -> R runs, the first of which begins at
    `start_frame`.
    """
    starts, lengths = run_lengths(ids)
    return [
        Run(_unit(ids[at]), start_frame + at, length)
        for at, length in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]


class UnitExtractor:
    """Waveforms -> units, with an extractor and the codebooks that were fitted on its frames."""

    def __init__(
        self, extractor: Extractor, codebooks: CodebookSet, device: torch.device | str = "cpu"
    ) -> None:
        """
        Args:
            extractor: already on `device`.
            codebooks: of a cluster stage.
            device: where frames are computed.

        Raises:
            ArtefactError: the codebooks were fitted on other features; the message names each
            difference.
        """
        codebooks.check_features(extractor)
        self.extractor = extractor
        self.codebooks = codebooks.to(device)
        self.device = torch.device(device)

    @property
    def grid(self) -> FrameGrid:
        """The grid that the units lie on."""
        return self.codebooks.grid

    def __call__(self, waveform: NDArray[np.float32] | Tensor) -> NDArray[np.int64]:
        """A recording of any length (S,), at 16 kHz, not normalised -> units (T,), or (T, N) of
        several codebooks.
        """
        if len(waveform) < self.grid.window:
            return self.nothing
        with torch.inference_mode():
            frames = self.extractor(
                torch.as_tensor(waveform, dtype=torch.float32, device=self.device)[None]
            )[0]  # (T, D)
            return np.asarray(self.codebooks.assign(frames).cpu().numpy())

    @property
    def nothing(self) -> NDArray[np.int64]:
        """Units of no audio: (0,) or (0, N)."""
        codebooks = self.codebooks.num_codebooks
        return np.empty((0,) if codebooks == 1 else (0, codebooks), dtype=np.int64)


# -- audio that is still arriving
# -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StreamPolicy:
    """How arriving audio is cut: `chunk_frames` at a time, each computed with the frames around it
    as one short recording.

    The cuts lie at multiples of `chunk_frames` whatever pieces the audio comes in, so the units do
    not depend on the pieces.
    """

    chunk_frames: int
    past_frames: int
    """That a chunk sees before itself."""
    future_frames: int
    """That it sees after itself, and waits for."""
    exact: bool
    """Whether the units are those of the whole recording, up to ties. If not, they are those of
    this policy on the whole recording.
    """

    def __post_init__(self) -> None:
        if self.chunk_frames < 1 or min(self.past_frames, self.future_frames) < 0:
            raise ConfigError(
                f"chunks of {self.chunk_frames} frames with {self.past_frames} before and {self.future_frames} after; expected a chunk of "
                "at least one frame, and 0 or more around it"
            )

    def latency_seconds(self, grid: FrameGrid) -> float:
        """From the first sample of a frame to its unit, at most, computing apart: its chunk and
        what that waits for.
        """
        return seconds(grid.num_samples(self.chunk_frames + self.future_frames))

    @staticmethod
    def of(extractor: Extractor, *, chunk_frames: int | None = None) -> StreamPolicy:
        """The exact policy where frames depend only on those near them (MFCC: 5 frames at a time,
        145 ms), else one for layers.
        """
        reach = local_reach(extractor.fingerprint())
        grid = extractor.grid
        if reach is not None:
            return StreamPolicy(chunk_frames or 5, *reach, exact=True)
        past, future, chunk = (
            samples(s) // grid.hop
            for s in (LAYER_PAST_SECONDS, LAYER_FUTURE_SECONDS, LAYER_CHUNK_SECONDS)
        )
        return StreamPolicy(chunk_frames or chunk, past, future, exact=False)


def local_reach(features: dict[str, Any]) -> tuple[int, int] | None:
    """How many frames before and after itself a frame of these features depends on; None when on
    the whole recording.
    """
    kind = features.get("kind")
    if kind == "mfcc":
        return (
            2,
            2,
        )  # two derivatives over five frames of 10 ms reach four of them, two of ours, to each side
    if kind == "log_mel":
        return 0, 0
    wider = {
        "concatenate": (0, 0),
        "splice": (features.get("left", 0), features.get("right", 0)),
        "deltas": (2 * features.get("order", 0),) * 2,
    }
    if kind not in wider:
        return None
    inner = [local_reach(part) for part in features.get("parts", [features.get("of", {})])]
    known = [reach for reach in inner if reach is not None]
    if len(known) < len(inner):
        return None
    return max(before for before, _ in known) + wider[kind][0], max(
        after for _, after in known
    ) + wider[kind][1]


class UnitStream:
    """Units of audio that arrives in pieces of any size. The units are the same whatever the pieces
    are.

    A chunk is computed by itself: what a network's layer would take from the whole recording
    (attention, the mean and variance of a group norm, the normalisation of the waveform) it takes
    from the chunk and its surroundings, so there the units differ from those of `UnitExtractor` on
    the whole recording. With an exact policy they do not.
    """

    def __init__(self, extract: UnitExtractor, policy: StreamPolicy | None = None) -> None:
        self.extract = extract
        self.policy = policy or StreamPolicy.of(extract.extractor)
        self._samples = np.empty(0, dtype=np.float32)
        """The audio from the first frame on that is still needed."""
        self._first_frame = 0
        """The frame at which `_samples` begins."""
        self._next_frame = 0
        """The first frame whose unit was not given yet."""

    @property
    def latency_seconds(self) -> float:
        """See `StreamPolicy.latency_seconds`."""
        return self.policy.latency_seconds(self.extract.grid)

    def push(self, piece: NDArray[np.float32]) -> NDArray[np.int64]:
        """More audio (S,) at 16 kHz in [-1, 1], of any length, also none -> the units (T,) or (T,
        N) that are certain now.
        """
        self._samples = np.concatenate([self._samples, np.asarray(piece, dtype=np.float32)])
        found = [self.extract.nothing]
        ahead = self.policy.chunk_frames + self.policy.future_frames
        while self._available >= self._next_frame + ahead:
            found.append(
                self._chunk(
                    self.extract.grid.num_samples(self._next_frame + ahead - self._first_frame)
                )
            )
        return np.concatenate(found)

    def finish(self) -> NDArray[np.int64]:
        """The end of the recording -> the units that were still waited for. The stream is then as
        new, for another recording.
        """
        found = [self.extract.nothing]
        while self._next_frame < self._available:
            found.append(
                self._chunk(len(self._samples))
            )  # all there is: a feature's own frames may be denser than ours
        self._samples = np.empty(0, dtype=np.float32)
        self._first_frame = 0
        self._next_frame = 0
        return np.concatenate(found)

    @property
    def _available(self) -> int:
        """Frames of the recording whose audio has arrived."""
        return self._first_frame + int(self.extract.grid.num_frames(len(self._samples)))

    def _chunk(self, num_samples: int) -> NDArray[np.int64]:
        """The next chunk, from so many of the samples that are there."""
        grid = self.extract.grid
        start = self._first_frame
        available = self._available
        keep_stop = min(self._next_frame + self.policy.chunk_frames, available)
        units = self.extract(self._samples[:num_samples])[
            self._next_frame - start : keep_stop - start
        ]
        self._next_frame = keep_stop
        self._first_frame = max(0, keep_stop - self.policy.past_frames)
        self._samples = self._samples[grid.start_sample(self._first_frame - start) :]
        return units


class RunStream:
    """Runs of units that arrive in pieces: a run is given when the next one begins."""

    def __init__(self) -> None:
        self._open: Run | None = None
        self._frames = 0

    def push(self, units: NDArray[np.integer]) -> list[Run]:
        """More units (T,) or (T, N) -> the runs that are over."""
        found = runs(units, self._frames)
        self._frames += len(units)
        if found and self._open is not None and found[0].unit == self._open.unit:
            found[0] = Run(
                found[0].unit, self._open.start_frame, self._open.num_frames + found[0].num_frames
            )
        elif self._open is not None:
            found.insert(0, self._open)
        self._open = found.pop() if found else None
        return found

    def finish(self) -> list[Run]:
        """The end -> the last run, if there is one."""
        last = self._open
        self._open = None
        self._frames = 0
        return [] if last is None else [last]


def _unit(ids: Any) -> int | tuple[int, ...]:
    return tuple(map(int, ids)) if np.ndim(ids) else int(ids)
