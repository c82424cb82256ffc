from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.features.chunking import plan_chunks


@given(num_frames=st.integers(1, 2000), context=st.integers(0, 40), more=st.integers(1, 200))
def test_chunks_cover_every_frame_once_with_its_context(
    num_frames: int, context: int, more: int
) -> None:
    length = 2 * context + more
    plan = plan_chunks(num_frames, length, context)
    assert [frame for chunk in plan for frame in range(chunk.keep_start, chunk.keep_stop)] == list(
        range(num_frames)
    )
    for chunk in plan:
        assert chunk.stop - chunk.start == min(length, num_frames)
        assert chunk.start == 0 or chunk.keep_start - chunk.start >= context
        assert chunk.stop == num_frames or chunk.stop - chunk.keep_stop >= context
