"""Chunks of a recording that arrives in blocks."""

from __future__ import annotations

import tracemalloc
from itertools import cycle, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.chunking import plan_chunks
from hubert_pretrain.finetune.long_speech import Chunking, Pause, SpeechChunk, chunks
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
    chunking = Chunking(
        seconds(GRID.num_samples(length)), context / GRID.frames_per_second, piece_seconds=0
    )
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
    """The audio that is held at once, over hundreds of chunks, and of pauses."""
    chunking = Chunking(chunk_seconds=1.0, context_seconds=0.25)
    silent = np.zeros(4000, dtype=np.float32)
    loud = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)
    for blocks in ([loud], [*[loud] * 7, *[silent] * 2], [silent]):
        tracemalloc.start()
        for _ in chunks(islice(cycle(blocks), 270), MODEL_GRID, chunking):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 500_000  # the whole recording has 4,320,000 bytes


def speech(*stretches: tuple[float, float]) -> np.ndarray:
    """Noise of (seconds, level in dB), one stretch after the other; silence from -200 dB down."""
    source = np.random.default_rng(0)
    parts = [
        source.normal(0, 10 ** (level / 20) if level > -200 else 0, round(length * 16000))
        for length, level in stretches
    ]
    return np.concatenate(parts).astype(np.float32)


def parts_of(
    waveform: np.ndarray, chunking: Chunking, block: int = 10_000
) -> list[tuple[str, float, float]]:
    """(speech or pause, first second, last second) of each part."""
    found = []
    after = 0
    blocks = [waveform[place : place + block] for place in range(0, len(waveform), block)]
    for part in chunks(iter(blocks), MODEL_GRID, chunking):
        kind = "pause" if isinstance(part, Pause) else "speech"
        first = part.first_frame
        count = part.num_frames if isinstance(part, Pause) else 0
        if isinstance(part, SpeechChunk):
            frames = MODEL_GRID.num_frames(len(part.waveform))
            used = range(frames)[part.used]
            first += used.start
            count = len(used)
            start = MODEL_GRID.start_sample(part.first_frame)
            np.testing.assert_array_equal(part.waveform, waveform[start:][: len(part.waveform)])
        assert first == after
        after = first + count
        found.append((kind, round(first / 50, 2), round(after / 50, 2)))
    assert after == MODEL_GRID.num_frames(len(waveform))
    return found


FEW = Chunking(chunk_seconds=6.0, context_seconds=1.0, piece_seconds=3.0)


def test_speech_is_cut_at_pauses() -> None:
    """Pieces are joined up to their length; a longer one ends at the first pause; a short pause
    cuts nothing; margins of .1 s remain.
    """
    waveform = speech(
        *[(1.0, -300), (1.0, -20), (0.5, -300), (1.0, -20), (1.0, -300)],
        *[(4.0, -20), (2.0, -300), (1.0, -20), (0.2, -300), (1.0, -20), (9.0, -300)],
    )
    assert parts_of(waveform, FEW) == [
        ("pause", 0.0, 0.9),
        ("speech", 0.9, 3.6),
        ("pause", 3.6, 4.4),
        ("speech", 4.4, 8.6),
        ("pause", 8.6, 10.4),
        ("speech", 10.4, 12.8),
        ("pause", 12.8, 18.68),
        ("pause", 18.68, 21.68),
    ]


@pytest.mark.parametrize("noise", [-300, -70, -45])
def test_noise_between_sentences_is_a_pause(noise: float) -> None:
    """Also noise that is less than 35 dB below the speech."""
    waveform = speech(*[(2.0, -20), (0.6, noise)] * 12)
    found = parts_of(waveform, FEW)
    assert [kind for kind, *_ in found] == ["speech", "pause"] * 12
    starts = [first for kind, first, _ in found if kind == "speech"]
    assert starts == pytest.approx([max(0, 2.6 * number - 0.1) for number in range(12)], abs=0.021)


@pytest.mark.parametrize(
    "stretches",
    [[(30.0, -20)], [(0.1, -20), (0.1, -300)] * 100, [(30.0, -60)], [(2.0, -20), (0.6, -26)] * 12],
    ids=["noise", "short pauses", "quiet noise", "no pause is quiet"],
)
def test_without_a_pause_chunks_overlap(stretches: list[tuple[float, float]]) -> None:
    """As without looking for pauses."""
    waveform = speech(*stretches)
    found = parts_of(waveform, FEW)
    assert found == parts_of(waveform, Chunking(6.0, 1.0, piece_seconds=0))
    assert {kind for kind, *_ in found} == {"speech"}


def test_overlapping_chunks_end_at_the_next_pause() -> None:
    """And what comes before a pause is no context of what follows."""
    waveform = speech((12.0, -20), (1.0, -300), (8.0, -20))
    found = list(chunks(iter([waveform]), MODEL_GRID, FEW))
    kinds = [type(part) for part in found]
    assert kinds == [SpeechChunk] * 3 + [Pause] + [SpeechChunk] * 2
    assert found[0].used.stop == found[1].first_frame + 50
    after = found[4].first_frame
    assert after == pytest.approx(12.9 * 50, abs=1)
    assert found[4].used.start == 0
    assert found[5].first_frame > after


@settings(max_examples=25, deadline=None)
@given(
    stretches=st.lists(
        st.tuples(
            st.floats(0.02, 4.0), st.sampled_from([-300.0, -80.0, -50.0, -30.0, -20.0, -20.0])
        ),
        min_size=1,
        max_size=12,
    ),
    sizes=st.tuples(st.integers(300, 40_000), st.integers(300, 40_000)),
)
def test_parts_do_not_depend_on_how_the_audio_arrives(
    stretches: list[tuple[float, float]], sizes: tuple[int, int]
) -> None:
    """Every frame is in one part, and no part is longer than a chunk."""
    waveform = speech(*stretches)
    found = parts_of(waveform, FEW, sizes[0])
    assert found == parts_of(waveform, FEW, sizes[1])
    assert max((end - first for kind, first, end in found if kind == "speech"), default=0) <= 6.0


@pytest.mark.parametrize(
    ("chunk", "context"),
    [(2.0, 1.0), (0.01, 0.0), (10.0, -1.0)],
)
def test_chunks_of_context_alone_are_refused(chunk: float, context: float) -> None:
    with pytest.raises(ConfigError, match="expected chunk-seconds above twice context-seconds"):
        Chunking(chunk, context).frames(MODEL_GRID)
