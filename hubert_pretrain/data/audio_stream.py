"""An open audio file as a stream of samples at its own rate. S samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float32]

_BLOCK_VALUES = 1 << 18
"""Values (samples x channels) decoded at a time: a recording of hours takes a few megabytes."""


class AudioStream(AbstractContextManager["AudioStream"]):
    """An open audio file. As a context it is closed at the end."""

    rate: int
    """Samples per second."""
    channels: int
    kind: str
    """libsndfile's name of the format; FFMPEG for one that FFmpeg decodes."""
    log: str = ""
    """Notes of libsndfile on the header."""
    stated: int | None = None
    """Samples that the header promises; None where it has no number, or only an estimate."""
    seeks: bool = False
    """`seek` goes to its sample at once, and does not decode all before it."""

    def seek(self, position: int) -> None:
        """Goes to a sample, or to the end. Called once, before the first `read`."""
        while position > 0:
            block = self.read(min(position, _BLOCK_VALUES))
            if not len(block):
                return
            position -= len(block)

    @abstractmethod
    def read(self, count: int) -> Waveform:
        """The next samples, (S, channels). Fewer than `count` only at the end. Raises DataError
        when they cannot be decoded.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes the file."""

    def blocks(self) -> Iterator[Waveform]:
        """The rest of the file in blocks (S, channels)."""
        count = max(1, _BLOCK_VALUES // self.channels)
        while len(block := self.read(count)):
            yield block

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
