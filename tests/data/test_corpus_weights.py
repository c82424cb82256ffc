"""Several corpora in one manifest are sampled exactly by their weights."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.data.batching import BucketSampler
from hubert_pretrain.data.corpus_weights import make_bucket, sampling_weights
from hubert_pretrain.data.length_index import LengthIndex
from hubert_pretrain.data.manifest import Manifest, Utterance, write_manifest
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE

NAMES = ("large", "middle", "small")


def manifest_of(folder: Path, counts: tuple[int, ...] = (400, 100, 20), seed: int = 0) -> Manifest:
    draw = np.random.default_rng(seed)
    rows = [
        Utterance(
            id=f"{i:03d}-{name}",
            path="/none",
            num_samples=int(draw.uniform(2.0, 9.0) * SAMPLE_RATE),
            corpus=name,
        )
        for name, count in zip(NAMES, counts, strict=True)
        for i in range(count)
    ]
    return write_manifest(folder / "manifest.arrow", rows)


def build(utterances: Manifest | list[LengthIndex], **changes: object) -> BucketSampler:
    values = {
        "grid": MODEL_GRID,
        "seed": 1,
        "batch_seconds": 40.0,
        "micro_batch_seconds": 20.0,
        "max_crop_seconds": 8.0,
        "min_seconds": 2.0,
        "max_shapes": 4,
        "masked_frames": lambda frames: frames // 2,
    }
    if isinstance(utterances, Manifest):
        utterances = utterances.length_sorted("train")
    return BucketSampler(utterances, **{**values, **changes})


def sampled_by(plan: BucketSampler, first: int, stop: int) -> tuple[Counter[int], Counter[int]]:
    """Number of times that each row was sampled, and its frames."""
    rows: Counter[int] = Counter()
    frames: Counter[int] = Counter()
    for index in range(first, stop):
        batch = plan.micro_batch(index)
        rows.update(batch.rows.tolist())
        for row in batch.rows.tolist():
            frames[row] += batch.shape.num_frames
    return rows, frames


def by_corpus(manifest: Manifest, counts: Counter[int]) -> dict[str, list[int]]:
    return {
        group.corpus: [counts[row] for row in group.rows(np.arange(len(group))).tolist()]
        for group in manifest.length_sorted("train")
    }


def test_without_weights_several_corpora_are_sampled_as_one(tmp_path: Path) -> None:
    plan = build(manifest_of(tmp_path))
    rows, _ = sampled_by(plan, 0, plan.epoch_micro_batches)
    assert set(rows.values()) == {1}
    assert len(rows) > 0.93 * 520
    same = build(Manifest.open(tmp_path), corpus_weights={}, corpus_temperature=1.0)
    assert np.array_equal(plan.micro_batch(7).rows, same.micro_batch(7).rows)


@pytest.mark.parametrize(
    "weights",
    [
        {"large": 1, "middle": 1, "small": 1},
        {"large": 5, "middle": 0, "small": 1},
        {"large": 0, "middle": 1, "small": 3},
    ],
)
@pytest.mark.parametrize("epochs", [1, 4])
def test_weights_are_shares_of_the_audio_and_counts_differ_by_one(
    tmp_path: Path, weights: dict[str, float], epochs: int
) -> None:
    manifest = manifest_of(tmp_path)
    plan = build(manifest, corpus_weights=weights)
    rows, frames = sampled_by(plan, 0, epochs * plan.epoch_micro_batches)
    total = sum(frames.values())
    sampled = {name: sum(counts) / total for name, counts in by_corpus(manifest, frames).items()}
    for name, weight in weights.items():
        assert sampled[name] == pytest.approx(weight / sum(weights.values()), abs=0.02)
    crops = [shape.num_frames for shape in plan.shapes]
    bounds = [MODEL_GRID.num_samples(t) for t in crops] + [10**9]
    lengths = manifest.num_samples
    for group in manifest.length_sorted("train"):
        every = group.rows(np.arange(len(group)))
        for low, high in itertools.pairwise(bounds):
            counts = [rows[row] for row in every.tolist() if low <= lengths[row] < high]
            assert max(counts, default=0) - min(counts, default=0) <= 1


def test_temperature_favours_small_corpora(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path)
    plan = build(manifest, corpus_temperature=2.0)
    _, frames = sampled_by(plan, 0, 3 * plan.epoch_micro_batches)
    sampled = {name: sum(counts) for name, counts in by_corpus(manifest, frames).items()}
    roots = {group.corpus: group.total_samples**0.5 for group in manifest.length_sorted("train")}
    for name in NAMES:
        assert sampled[name] / sum(sampled.values()) == pytest.approx(
            roots[name] / sum(roots.values()), abs=0.02
        )
    assert "an epoch samples large 0." in plan.describe()


def test_any_micro_batch_is_known_without_those_before_it(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path)
    first = build(manifest, corpus_temperature=3.0)
    second = build(manifest, corpus_temperature=3.0)
    for index in (0, 10**9, 12_345):
        one = first.micro_batch(index)
        other = pickle.loads(pickle.dumps(second)).micro_batch(index)
        assert np.array_equal(one.rows, other.rows)
        assert np.array_equal(one.starts, other.starts)
    assert len(pickle.dumps(first)) < 10_000


@given(
    st.lists(st.tuples(st.integers(0, 60), st.floats(0, 5)), min_size=1, max_size=4).filter(
        lambda some: sum(n * r for n, r in some) > 8
    ),
    st.integers(1, 8),
    st.integers(0, 3),
)
def test_a_bucket_samples_its_utterances_equally_often(
    corpora: list[tuple[int, float]], batch_rows: int, seed: int
) -> None:
    sizes = np.array([n for n, _ in corpora])
    repeat = np.array([r for _, r in corpora])
    firsts = np.arange(len(sizes)) * 100
    bucket = make_bucket(firsts, sizes, repeat, batch_rows)
    if not (repeat == 1.0).all():
        assert bucket.total % batch_rows == 0
        assert (bucket.quotas <= np.ceil(repeat * sizes + 1e-9)).all()
        assert (np.abs(bucket.quotas - repeat * sizes) < batch_rows + 1).all()
    seen: Counter[tuple[int, int]] = Counter()
    for epoch in range(4):
        found, positions = bucket.sample(np.arange(bucket.total), epoch, seed)
        seen.update(zip(found.tolist(), positions.tolist(), strict=True))
        for c, size in enumerate(sizes.tolist()):
            counts = [seen[c, int(firsts[c]) + i] for i in range(size)]
            assert max(counts, default=0) - min(counts, default=0) <= 1
            assert sum(counts) == (epoch + 1) * bucket.quotas[c]


@pytest.mark.parametrize(
    ("weights", "temperature", "error", "message"),
    [
        (
            {"large": 1, "midle": 1, "small": 1},
            1.0,
            DataError,
            r"no corpus 'midle' \(did you mean 'middle'\?\)",
        ),
        ({"large": 1, "small": 1}, 1.0, DataError, "no weight for corpus 'middle'"),
        ({"large": -1.0, "middle": 1, "small": 1}, 1.0, ConfigError, "expected positive"),
        ({"large": 0, "middle": 0, "small": 0}, 1.0, ConfigError, "expected positive"),
        ({}, 0.0, ConfigError, "expected positive"),
        ({"large": 1, "middle": 1, "small": 1}, 2.0, ConfigError, "set one of them"),
    ],
)
def test_invalid_weights_are_refused(
    tmp_path: Path,
    weights: dict[str, float],
    temperature: float,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        build(manifest_of(tmp_path), corpus_weights=weights, corpus_temperature=temperature)


def test_temperature_one_and_equal_weights() -> None:
    utterances = [
        LengthIndex.of(np.full(count, SAMPLE_RATE), name) for name, count in (("a", 90), ("b", 10))
    ]
    assert sampling_weights(utterances, {}, 1.0) is None
    shares = sampling_weights(utterances, {}, 1e9)
    assert shares is not None
    np.testing.assert_allclose(shares, [0.5, 0.5], atol=1e-6)
