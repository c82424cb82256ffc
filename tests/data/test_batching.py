"""The batch plan: a pure function, covers the corpus, loses little, never pads."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.data.batching import (
    MAX_EXCESS,
    MAX_GROUP_LOSS,
    BucketSampler,
    choose_crops,
    group_size,
    nearest_rows,
)
from hubert_pretrain.data.length_index import LengthIndex
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE


def lengths(count: int, low: float = 2.0, high: float = 16.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).uniform(low, high, count) * SAMPLE_RATE).astype(np.int64)


def build(num_samples: np.ndarray, **changes: object) -> BucketSampler:
    values = {
        "grid": MODEL_GRID,
        "seed": 1,
        "batch_seconds": 240.0,
        "micro_batch_seconds": 60.0,
        "max_crop_seconds": 15.0,
        "min_seconds": 2.0,
        "max_shapes": 8,
        "masked_frames": lambda frames: frames // 2,
    }
    return BucketSampler([LengthIndex.of(num_samples)], **{**values, **changes})


def test_a_micro_batch_depends_on_seed_and_number_only() -> None:
    num_samples = lengths(500)
    first = build(num_samples)
    second = build(num_samples)
    other = build(num_samples, seed=2)
    for index in (999, 3, 10**9):
        a, b, c = (plan.micro_batch(index) for plan in (first, second, other))
        assert np.array_equal(a.rows, b.rows)
        assert np.array_equal(a.starts, b.starts)
        assert a.shape == b.shape
        assert not np.array_equal(a.rows, c.rows)


def test_crops_lie_inside_their_utterances_and_keep_the_budget() -> None:
    num_samples = lengths(500)
    plan = build(num_samples)
    for index in range(200):
        batch = plan.micro_batch(index)
        frames = MODEL_GRID.num_frames(num_samples[batch.rows])
        assert (batch.starts >= 0).all()
        assert (batch.starts + batch.shape.num_frames <= frames).all()
        assert len(batch.rows) == batch.shape.batch_rows
        audio = len(batch.rows) * MODEL_GRID.num_samples(batch.shape.num_frames)
        assert audio <= (1 + MAX_EXCESS) * 60 * SAMPLE_RATE
    assert len(plan.shapes) <= 8


def test_an_epoch_sees_no_utterance_twice_and_loses_few() -> None:
    num_samples = lengths(2000)
    plan = build(num_samples)
    seen = np.concatenate(
        [plan.micro_batch(index).rows for index in range(plan.epoch_micro_batches)]
    )
    assert len(np.unique(seen)) == len(seen) > 0.97 * len(num_samples)
    later = np.concatenate(
        [
            plan.micro_batch(plan.epoch_micro_batches + index).rows
            for index in range(plan.epoch_micro_batches)
        ]
    )
    assert not np.array_equal(seen, later)
    assert {shape.num_frames for shape in plan.shapes} == {
        plan.micro_batch(g).shape.num_frames for g in range(plan.epoch_micro_batches)
    }


def test_the_frames_of_a_step_are_known_before_it_runs() -> None:
    plan = build(lengths(60))  # an epoch is shorter than a few steps, so steps cross its end
    for step in range(12):
        batches = [
            plan.micro_batch(index)
            for index in range(step * plan.micro_batches, (step + 1) * plan.micro_batches)
        ]
        hidden = sum(len(batch.rows) * batch.shape.masked_frames for batch in batches)
        total = sum(len(batch.rows) * batch.shape.num_frames for batch in batches)
        assert plan.step_frames(step) == (hidden, total)


def test_a_step_holds_the_audio_that_the_recipe_says() -> None:
    plan = build(
        librispeech(20_000),
        batch_seconds=2800.0,
        micro_batch_seconds=87.5,
        max_crop_seconds=15.625,
        max_shapes=16,
    )
    held = [plan.step_frames(step)[1] * MODEL_GRID.hop / SAMPLE_RATE for step in range(100)]
    assert np.mean(held) == pytest.approx(2800, rel=0.02)


def test_rows_are_the_nearest_number_within_a_tenth_of_the_budget() -> None:
    assert [nearest_rows(exact) for exact in (0.3, 1.0, 1.6, 5.4, 5.6, 9.5, 9.7)] == [
        *(1, 1, 1, 5, 6),
        *(10, 10),
    ]


@pytest.mark.parametrize("micro_batches", [1, 4, 12, 32])
def test_micro_batches_of_one_shape_follow_each_other(micro_batches: int) -> None:
    plan = build(librispeech(20_000), batch_seconds=60.0 * micro_batches)
    assert plan.micro_batches % plan.group == 0
    assert plan.group == {1: 1, 4: 4, 12: 4, 32: 8}[micro_batches]
    assert plan.epoch_micro_batches % plan.group == 0
    for first in range(0, 40 * plan.group, plan.group):
        indices = range(first, first + plan.group)
        assert len({plan.micro_batch(index).shape for index in indices}) == 1
    shapes = {plan.micro_batch(g * plan.group).shape for g in range(60)}
    assert len(shapes) > 3  # groups are shuffled


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(1, 40))
def test_groups_leave_little_over(per_epoch: list[int], micro_batches: int) -> None:
    size = group_size(np.array(per_epoch), micro_batches)
    assert micro_batches % size == 0
    assert sum(count % size for count in per_epoch) <= MAX_GROUP_LOSS * sum(per_epoch)


def test_devices_fuse_what_they_share_of_a_group() -> None:
    plan = build(librispeech(20_000), batch_seconds=60.0 * 32)
    assert plan.group == 8
    fused = {
        (most, devices): plan.fuse(most, devices) for most in (1, 3, 8, 99) for devices in (1, 8)
    }
    assert fused == {
        (1, 1): 1,
        (3, 1): 2,
        (8, 1): 8,
        (99, 1): 8,
        (1, 8): 1,
        (3, 8): 2,
        (8, 8): 4,
        (99, 8): 4,
    }
    assert plan.fuse(8, 32) == 1


def test_crop_starts_spread_over_the_utterance() -> None:
    plan = build(
        np.full(40, 10 * SAMPLE_RATE),
        max_crop_seconds=3.0,
        micro_batch_seconds=12.0,
        batch_seconds=12.0,
    )
    starts = np.concatenate([plan.micro_batch(index).starts for index in range(300)])
    room = MODEL_GRID.num_frames(10 * SAMPLE_RATE) - plan.shapes[0].num_frames
    assert starts.min() < 0.05 * room
    assert starts.max() > 0.95 * room
    assert abs(starts.mean() / room - 0.5) < 0.05


def librispeech(count: int, seed: int = 3) -> np.ndarray:
    """Lengths as those of train-960 (281,241 utterances, 960 h): most between 13 and 16 s, some
    shorter, a few up to 24.5.
    """
    draw = np.random.default_rng(seed)
    choice = draw.random(count)
    most = np.where(
        choice < 0.65, draw.normal(14.6, 1.0, count), draw.uniform(1.4, 14.6, count)
    ).clip(1.4, 17.0)
    return (np.where(choice > 0.9995, draw.uniform(17.0, 24.5, count), most) * SAMPLE_RATE).astype(
        np.int64
    )


@pytest.mark.parametrize("micro_batch_seconds", [87.5, 175.0])
def test_librispeech_loses_less_than_six_percent(micro_batch_seconds: float) -> None:
    num_samples = librispeech(281_241)
    assert num_samples.sum() / SAMPLE_RATE / 3600 == pytest.approx(960, abs=5)
    plan = build(
        num_samples,
        micro_batch_seconds=micro_batch_seconds,
        batch_seconds=2800,
        max_crop_seconds=15.625,
        max_shapes=16,
    )
    # All of an epoch is of full shapes, so the shares of the shapes say what is used; some
    # micro-batches are looked at.
    share = float(re.search(r"([\d.]+)% of the audio used", plan.describe())[1])
    assert share > 94.0
    assert len(plan.shapes) <= 16
    chosen = np.random.default_rng(0).integers(0, plan.epoch_micro_batches, 200)
    batches = [plan.micro_batch(int(index)) for index in chosen]
    used = sum(
        len(batch.rows) * MODEL_GRID.num_samples(batch.shape.num_frames) for batch in batches
    )
    whole = sum(int(num_samples[batch.rows].sum()) for batch in batches)
    assert used / whole > 0.94
    assert all(
        (
            MODEL_GRID.num_frames(num_samples[batch.rows]) >= batch.starts + batch.shape.num_frames
        ).all()
        for batch in batches
    )


def test_real_lengths_lose_less_than_six_percent(shared: Path) -> None:
    files = sorted((shared / "data/librispeech/train-clean-100").rglob("*.flac"))
    draw = np.random.default_rng(0)
    real = np.array([soundfile.info(path).frames for path in files])
    num_samples = (draw.choice(real, 28_539) * draw.uniform(0.98, 1.02, 28_539)).astype(np.int64)
    plan = build(
        num_samples,
        micro_batch_seconds=87.5,
        batch_seconds=2800,
        max_crop_seconds=15.625,
        max_shapes=16,
    )
    assert float(re.search(r"([\d.]+)% of the audio used", plan.describe())[1]) > 94.0


def test_the_described_share_of_the_audio_is_used() -> None:
    num_samples = librispeech(3_000)
    plan = build(num_samples)
    used = sum(
        len(b.rows) * b.shape.num_frames
        for b in map(plan.micro_batch, range(plan.epoch_micro_batches))
    )
    assert f"{used * MODEL_GRID.hop / num_samples.sum():.1%} of the audio used" in plan.describe()


def test_short_utterances_are_left_out() -> None:
    num_samples = np.concatenate([lengths(100, 0.5, 1.9), lengths(100, 3, 5)])
    plan = build(num_samples)
    assert all((plan.micro_batch(index).rows >= 100).all() for index in range(50))


@pytest.mark.parametrize(
    "num_samples", [lengths(3, 3, 4), lengths(100, 0.2, 1.0), np.array([], dtype=np.int64)]
)
def test_too_little_audio_is_one_clear_error(num_samples: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"micro-batch of 60\.0 s"):
        build(num_samples)


def test_validation_takes_every_long_enough_utterance_once_in_the_same_shapes() -> None:
    plan = build(lengths(500))
    num_samples = lengths(77, 1.0, 20.0, seed=5)
    batches = plan.validation(
        [
            LengthIndex.of(num_samples[:50]),
            LengthIndex(50 + np.argsort(num_samples[50:]), num_samples),
        ]
    )
    rows = np.concatenate([batch.rows[: batch.counted_rows] for batch in batches])
    enough = np.flatnonzero(MODEL_GRID.num_frames(num_samples) >= plan.shapes[0].num_frames)
    assert sorted(rows) == sorted(enough)
    assert {batch.shape for batch in batches} <= set(plan.shapes)
    assert all(len(batch.rows) == batch.shape.batch_rows for batch in batches)
    assert any(batch.fillers for batch in batches)
    assert set(np.concatenate([batch.rows for batch in batches])) == set(rows)
    assert all((batch.starts >= 0).all() for batch in batches)
    assert [batch.index for batch in batches] == list(range(len(batches)))
    assert (
        len(plan.validation([]))
        == len(plan.validation([LengthIndex.of(np.array([], dtype=np.int64))]))
        == 0
    )
    with pytest.raises(IndexError, match=f"micro-batch {len(batches)} of {len(batches)}"):
        batches[len(batches)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 4), st.integers(9, 30))
def test_crops_are_the_best_choice(frames: list[int], max_shapes: int, budget: int) -> None:
    def used(crops: tuple[int, ...]) -> int | None:
        total = 0
        for low, high in itertools.pairwise([*crops, 10**6]):
            micro_batches = sum(low <= t < high for t in frames) // (budget // low)
            if micro_batches == 0:
                return None
            total += micro_batches * (budget // low) * low
        return total

    choices = [
        crops
        for k in range(1, max_shapes + 1)
        for crops in itertools.combinations(sorted(set(frames)), k)
    ]
    best = max((total for crops in choices if (total := used(crops)) is not None), default=None)
    crops = choose_crops(np.bincount(frames), lambda t: budget // t, max_shapes, tolerance=0.0)
    assert (used(tuple(crops)) if crops else None) == best


def test_enough_audio_in_too_few_recordings_is_to_be_cut() -> None:
    """A quarter of an hour in 3 recordings: no audio is missing, but crops."""
    with pytest.raises(
        DataError,
        match=r"^3 of 3 training utterances are at least .* one crop of at most [\d.]+ s of each, "
        r"which does not fill one micro-batch of 60\.0 s; their 15\.0 min would: cut the "
        r"recordings into segments \(.*start_seconds and duration_seconds",
    ) as refused:
        build(np.full(3, 300 * 16_000))
    assert "add audio" not in str(refused.value)
