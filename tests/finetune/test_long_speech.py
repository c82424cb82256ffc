"""Chunks of a recording that arrives in blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.chunking import plan_chunks
from hubert_pretrain.finetune.long_speech import Chunking, chunks
from hubert_pretrain.frames import MODEL_GRID, FrameGrid, seconds

GRID = FrameGrid(window=7, hop=5)


def blocks_of(waveform: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    edges = np.cumsum([0, *sizes])
    return [waveform[a:b] for a, b in zip(edges, [*edges[1:], len(waveform)], strict=True)]


@settings(max_examples=300)
@given(
    num_samples=st.integers(0, 1200),
    context=st.integers(0, 6),
    more=st.integers(1, 20),
    sizes=st.lists(st.integers(0, 90), max_size=30),
)
def test_chunks_are_those_of_the_plan(
    num_samples: int, context: int, more: int, sizes: list[int]
) -> None:
    """However the audio arrives; and each chunk holds the samples of its frames."""
    waveform = np.arange(num_samples, dtype=np.float32)
    length = 2 * context + more
    chunking = Chunking(seconds(GRID.num_samples(length)), context / GRID.frames_per_second)
    found = list(chunks(blocks_of(waveform, sizes), GRID, chunking))
    num_frames = GRID.num_frames(num_samples)
    plan = plan_chunks(num_frames, length, context)
    assert len(found) == len(plan)
    for chunk, planned in zip(found, plan, strict=True):
        frames = GRID.num_frames(len(chunk.waveform))
        assert (chunk.first_frame, frames) == (planned.start, planned.stop - planned.start)
        used = range(frames)[chunk.used]
        assert chunk.first_frame + used.start == planned.keep_start
        assert chunk.first_frame + used.stop == planned.keep_stop
        if num_samples:
            assert chunk.waveform[0] == GRID.start_sample(planned.start)
    if num_samples:
        assert found[-1].waveform[-1] == num_samples - 1  # nothing of the end is lost


def test_a_chunk_comes_as_soon_as_its_audio_is_there() -> None:
    taken = 0

    def arriving():
        nonlocal taken
        for _ in range(100):
            taken += 1600
            yield np.zeros(1600, dtype=np.float32)

    chunking = Chunking(chunk_seconds=2.0, context_seconds=0.5)
    next(chunks(arriving(), MODEL_GRID, chunking))
    assert taken <= 2 * 16000 + 2 * 1600


def test_memory_does_not_grow_with_the_recording() -> None:
    """The audio that is held at once, over 100 chunks."""
    chunking = Chunking(chunk_seconds=1.0, context_seconds=0.25)
    blocks = (np.zeros(4000, dtype=np.float32) for _ in range(400))
    most = max(
        len(chunk.waveform if chunk.waveform.base is None else chunk.waveform.base)
        for chunk in chunks(blocks, MODEL_GRID, chunking)
    )
    assert most < 3 * 16000


@pytest.mark.parametrize(
    ("chunk", "context"),
    [(2.0, 1.0), (0.01, 0.0), (10.0, -1.0)],
)
def test_chunks_of_context_alone_are_refused(chunk: float, context: float) -> None:
    with pytest.raises(ConfigError, match="expected chunk-seconds above twice context-seconds"):
        Chunking(chunk, context).frames(MODEL_GRID)
