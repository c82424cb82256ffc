from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hubert_pretrain.clustering.frame_source import as_array
from hubert_pretrain.clustering.sample import (
    SCRATCH,
    SampleSize,
    choose_rows,
    gather,
    gather_rank_frames,
    hours_limit,
    remove_scratch,
)
from hubert_pretrain.data.arrow_table import CHUNK
from hubert_pretrain.errors import DataError, HubertPretrainError
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.frames import MODEL_GRID, samples, seconds
from hubert_pretrain.seeds import permute
from tests.targets.conftest import make_corpus

LENGTHS = np.random.default_rng(0).integers(32_000, 400_000, 5000)
TRAIN = np.arange(1000, 4000)
HOURS = seconds(int(LENGTHS[TRAIN].sum())) / 3600


def hours(rows: np.ndarray) -> float:
    return seconds(int(LENGTHS[rows].sum())) / 3600


def choose(
    fraction: float = 0.25, max_hours: float = 100.0, seed: int = 1, rows: np.ndarray = TRAIN
) -> np.ndarray:
    return choose_rows(LENGTHS, rows, fraction=fraction, max_hours=max_hours, seed=seed)


def test_a_share_of_whole_training_utterances_chosen_by_the_seed() -> None:
    rows = choose()
    assert set(rows) <= set(TRAIN)
    assert np.all(np.diff(rows) > 0)
    assert hours(rows) == pytest.approx(0.25 * HOURS, abs=0.01)
    assert np.array_equal(rows, choose())
    assert not np.array_equal(rows, choose(seed=2))


def test_everything_and_the_limit() -> None:
    assert np.array_equal(choose(fraction=1.0), TRAIN)
    assert 1.9 < hours(choose(max_hours=2.0)) <= 2.0
    assert len(choose(max_hours=1e-6)) == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_long_recording_does_not_end_the_sample(seed: int) -> None:
    """Recordings of 1 to 40 minutes among utterances of seconds: an hour is an hour."""
    draw = np.random.default_rng(seed)
    lengths = samples(1) * np.concatenate([draw.integers(600, 2400, 40), draw.integers(2, 15, 200)])
    rows = choose_rows(lengths, range(240), fraction=1.0, max_hours=1.0, seed=seed)
    assert 0.99 < seconds(int(lengths[rows].sum())) / 3600 <= 1.0
    assert len(set(rows)) == len(rows)
    only_long = choose_rows(lengths, range(40), fraction=1.0, max_hours=1.0, seed=seed)
    assert 0.5 < seconds(int(lengths[only_long].sum())) / 3600 <= 1.0


def test_the_size_of_a_sample_and_too_few_frames(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    size = SampleSize.of(corpus.manifest, corpus.manifest.rows("train"), 300)
    total = int(corpus.manifest.num_samples[corpus.manifest.rows("train")].sum())
    assert size == SampleSize(6, 300, round(total / 16_000 / 3600, 4), 0)
    assert size.describe() == "sample: 300 frames, 0.1 min, 6 utterances"
    assert replace(size, hours=12.34, speakers=3).describe() == (
        "sample: 300 frames, 12.3 h, 6 utterances of 3 speakers"
    )
    assert size.warning(3) is None
    assert size.warning(4) == (
        "warning: 300 frames for K=4 clusters are fewer than 100 for each; raise "
        "clustering.fraction or clustering.max_hours, add audio, or lower clustering.n_clusters"
    )


def test_never_less_than_an_hour_so_small_corpora_are_used_whole() -> None:
    assert hours(choose(fraction=1e-6)) == pytest.approx(1.0, abs=0.01)
    few = TRAIN[:20]
    assert LENGTHS[few].sum() < samples(3600)
    assert np.array_equal(choose(fraction=0.1, rows=few), few)


def test_no_training_utterances_is_refused() -> None:
    with pytest.raises(DataError, match="none in split 'train'"):
        choose(rows=TRAIN[:0])


def test_a_limit_of_frames_is_a_limit_of_hours() -> None:
    rows = choose(fraction=1.0, max_hours=hours_limit(100.0, 1_000_000, MODEL_GRID))
    num_frames = np.asarray(MODEL_GRID.num_frames(LENGTHS[rows]))  # type: ignore[arg-type]
    assert 0.95e6 < num_frames.sum() <= 1e6


def test_many_utterances_are_chosen_part_by_part_as_at_once() -> None:
    """The plain way over all of them, and ours over more than a part; a range of rows is as the
    rows themselves.
    """
    size = CHUNK + 5_000
    lengths = np.random.default_rng(3).integers(16_000, 300_000, size + 7)
    rows = np.arange(7, size + 7)
    order = rows[permute(np.arange(size), size, 5, "codebook sample")]
    ends = np.cumsum(lengths[order])
    for fraction in (0.05, 0.97):
        expected = np.sort(order[: np.searchsorted(ends, fraction * ends[-1]) + 1])
        for given in (rows, range(7, size + 7)):
            found = choose_rows(lengths, given, fraction=fraction, max_hours=1e6, seed=5)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("memory_bytes", [10**9, 0])
def test_frames_are_those_of_each_utterance_in_memory_or_in_a_file(
    tmp_path: Path, memory_bytes: int
) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    rows = np.array([0, 3, 4, 9])
    expected = torch.cat(
        [Mfcc()(torch.from_numpy(corpus.read(int(row)))[None])[0] for row in rows]
    ).numpy()
    shard = gather_rank_frames(corpus, rows, Mfcc(), scratch=tmp_path, memory_bytes=memory_bytes)
    assert (shard.start, shard.total, shard.dim) == (0, len(expected), 39)
    np.testing.assert_allclose(shard.frames[: len(expected)], expected, atol=1e-3)
    np.testing.assert_array_equal(as_array(shard.frames)[5:7], shard.frames[5:7])
    assert bool(list(tmp_path.glob(f"{SCRATCH}*"))) == (memory_bytes == 0)
    if memory_bytes == 0:
        before = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob(f"{SCRATCH}*"))]
        again = gather_rank_frames(corpus, rows, Mfcc(), scratch=tmp_path, memory_bytes=0)
        assert [
            path.stat().st_mtime_ns for path in sorted(tmp_path.glob(f"{SCRATCH}*"))
        ] == before, "a finished file is used again"
        np.testing.assert_array_equal(again.frames[0:9], shard.frames[0:9])
    remove_scratch(tmp_path)
    assert not list(tmp_path.glob(f"{SCRATCH}*"))


def test_a_full_disk_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        HubertPretrainError,
        match=r"frames.scratch.0: the disk has no room for \d+ bytes; free some and run",
    ):
        gather_rank_frames(
            make_corpus(tmp_path / "corpus"), np.arange(3), Mfcc(), scratch=tmp_path, memory_bytes=0
        )


def test_a_large_sample_is_stored_on_disk(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    rows = corpus.manifest.rows("train")
    expected = gather(corpus, rows, Mfcc(), scratch=corpus.folder)
    shard = gather_rank_frames(corpus, rows, Mfcc(), scratch=corpus.folder, memory_bytes=1000)
    assert not isinstance(shard.frames, np.ndarray)
    np.testing.assert_array_equal(shard.frames[: shard.total], expected)
