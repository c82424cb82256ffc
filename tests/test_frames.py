"""The frame grid against layer-by-layer convolution arithmetic, over all lengths."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.frames import MFCC_GRID, MODEL_GRID, FrameGrid, samples, seconds
from hubert_pretrain.model.config import HubertConfig

KERNELS = HubertConfig().conv_kernel
STRIDES = HubertConfig().conv_stride


def layer_by_layer(num_samples: int) -> int:
    length = num_samples
    for kernel, stride in zip(KERNELS, STRIDES, strict=True):
        length = max(0, (length - kernel) // stride + 1)
    return length


@given(st.integers(0, 2_000_000))
def test_num_frames_equals_the_convolutions(num_samples: int) -> None:
    assert MODEL_GRID.num_frames(num_samples) == layer_by_layer(num_samples)


def test_known_lengths() -> None:
    known = {399: 0, 400: 1, 719: 1, 720: 2, 16000: 49, 32000: 99, 160000: 499, 250000: 781}
    assert {length: MODEL_GRID.num_frames(length) for length in known} == known
    assert MODEL_GRID.num_frames(np.array(list(known))).tolist() == list(known.values())


@given(st.integers(400, 2_000_000))
def test_every_second_mfcc_frame_is_a_model_frame(num_samples: int) -> None:
    assert len(range(0, MFCC_GRID.num_frames(num_samples), 2)) == MODEL_GRID.num_frames(num_samples)
    assert MFCC_GRID.start_sample(2 * 7) == MODEL_GRID.start_sample(7)


@given(st.integers(1, 5000))
def test_num_samples_is_the_shortest(num_frames: int) -> None:
    shortest = MODEL_GRID.num_samples(num_frames)
    assert MODEL_GRID.num_frames(shortest) == num_frames
    assert MODEL_GRID.num_frames(shortest - 1) == num_frames - 1


def test_grid_of_the_conv_encoder() -> None:
    assert FrameGrid.of_convolutions(KERNELS, STRIDES) == MODEL_GRID == HubertConfig().grid
    assert MODEL_GRID.frames_per_second == 50.0


def test_seconds_and_samples() -> None:
    assert samples(15.625) == 250_000
    assert seconds(32_000) == 2.0
