"""Micro-batches as tensors: audio, targets and masks belong to the same frames, and depend on
nothing but the number.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hubert_pretrain.data.batching import BatchShape, BucketSampler, MicroBatch
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain import dataset
from hubert_pretrain.pretrain.dataset import (
    CropSource,
    MicroBatches,
    ValidationBatches,
    describe_micro_batch,
)
from hubert_pretrain.pretrain.loss import SupervisedLayer, masked_prediction_loss
from hubert_pretrain.targets.store import TargetStore


@pytest.fixture
def corpus(prepared: Workspace) -> Corpus:
    return Corpus.open(prepared.folder("prepare"))


@pytest.fixture
def plan(corpus: Corpus) -> BucketSampler:
    sizes = {
        "batch_seconds": 8,
        "micro_batch_seconds": 4,
        "max_crop_seconds": 1.2,
        "min_seconds": 0.5,
        "max_shapes": 2,
    }
    return BucketSampler(
        corpus.manifest.length_sorted("train"),
        grid=MODEL_GRID,
        seed=3,
        masked_frames=lambda frames: frames // 2,
        **sizes,
    )


def source(
    prepared: Workspace, corpus: Corpus, *, normalize: bool = False, seed: int = 3
) -> CropSource:
    spans = SpanMask(probability=0.8, span_frames=5, min_spans=2)
    targets = TargetStore.open(prepared.folder("it1/label")).targets
    return CropSource(
        corpus, targets, split="train", grid=MODEL_GRID, normalize=normalize, spans=spans, seed=seed
    )


def test_audio_targets_and_masks_are_of_the_same_frames(
    prepared: Workspace, corpus: Corpus, plan: BucketSampler
) -> None:
    store = TargetStore.open(prepared.folder("it1/label"))
    items = MicroBatches(plan, source(prepared, corpus))
    for index in range(10):
        item = items[index]
        batch = plan.micro_batch(index)
        frames = batch.shape.num_frames
        assert item["waveform"].shape == (len(batch.rows), MODEL_GRID.num_samples(frames))
        assert item["targets"].shape == item["mask"].shape == (len(batch.rows), frames)
        for b, (row, start) in enumerate(
            zip(batch.rows.tolist(), batch.starts.tolist(), strict=True)
        ):
            whole = corpus.read(row)[MODEL_GRID.start_sample(start) :]
            assert np.array_equal(
                item["waveform"][b].numpy(), whole[: MODEL_GRID.num_samples(frames)]
            )
            assert (
                item["targets"][b].tolist() == store.targets(row)[start : start + frames].tolist()
            )
        assert (item["mask"].sum(dim=1) == batch.shape.masked_frames).all()
        assert item["masked_frames"] == item["mask"].sum()
        assert item["step_frames"] == plan.step_frames(index // plan.micro_batches)


def test_items_depend_on_seed_and_number_only(
    prepared: Workspace, corpus: Corpus, plan: BucketSampler
) -> None:
    first = MicroBatches(plan, source(prepared, corpus))
    second = MicroBatches(plan, source(prepared, corpus))
    other = MicroBatches(plan, source(prepared, corpus, seed=4))
    for index in (5, 1, 5, 123_456):
        a = first[index]
        b = second[index]
        c = other[index]
        assert all(torch.equal(a[name], b[name]) for name in ("waveform", "targets", "mask"))
        assert not torch.equal(a["mask"], c["mask"])


def test_a_corpus_too_large_for_memory_gives_the_same(
    prepared: Workspace, corpus: Corpus, plan: BucketSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = MicroBatches(plan, source(prepared, corpus, normalize=True))
    monkeypatch.setattr(dataset, "CACHE_BYTES", 0)
    streamed = MicroBatches(plan, source(prepared, corpus, normalize=True))
    for index in range(5):
        torch.testing.assert_close(cached[index]["waveform"], streamed[index]["waveform"])
    assert not streamed.source._cache


def test_crops_are_normalised_as_part_of_the_whole(prepared: Workspace, corpus: Corpus) -> None:
    reader = source(prepared, corpus, normalize=True)
    row = int(corpus.manifest.rows("train")[0])
    whole = corpus.read(row)
    expected = torch.nn.functional.layer_norm(torch.from_numpy(whole), whole.shape, eps=1e-5)
    start = MODEL_GRID.start_sample(7)
    length = MODEL_GRID.num_samples(20)
    crop = reader.read(row, 7, 20, out=np.empty(length, dtype=np.float32))
    np.testing.assert_allclose(crop, expected[start : start + length], rtol=1e-4, atol=1e-5)


def test_validation_masks_never_change(
    prepared: Workspace, corpus: Corpus, plan: BucketSampler
) -> None:
    batches = plan.validation(corpus.manifest.length_sorted("valid"))
    first, second = (ValidationBatches(batches, source(prepared, corpus)) for _ in range(2))
    assert len(first) == len(batches)
    assert all(torch.equal(first[i]["mask"], second[i]["mask"]) for i in range(len(first)))


def test_a_micro_batch_has_a_name_for_people(corpus: Corpus, plan: BucketSampler) -> None:
    text = describe_micro_batch(5, plan=plan, manifest=corpus.manifest)
    assert text.startswith("step 3, utterances u")
    assert corpus.manifest[int(plan.micro_batch(5).rows[0])].id in text


def test_targets_of_several_codebooks_and_soft_ones(
    prepared: Workspace, corpus: Corpus, plan: BucketSampler
) -> None:
    store = TargetStore.open(prepared.folder("it1/label"))
    plain = source(prepared, corpus)
    several = source(prepared, corpus)
    soft = source(prepared, corpus)
    several.targets = lambda row: np.stack([store.targets(row), store.targets(row) + 1], axis=1)
    soft.targets = lambda row: np.eye(5, dtype=np.float16)[store.targets(row)]
    ids, both, shares = (
        each.tensors(plan.micro_batch(0), "mask")["targets"] for each in (plain, several, soft)
    )
    assert (both.dtype, shares.dtype) == (torch.int64, torch.float32)
    assert torch.equal(both, torch.stack([ids, ids + 1], dim=2))
    assert torch.equal(shares, torch.nn.functional.one_hot(ids, 5).float())


def test_a_mask_depends_on_the_micro_batch_and_the_row_alone() -> None:
    shape = BatchShape(num_frames=300, batch_rows=2, masked_frames=150)

    def masks(rows: list[int], *, index: int = 7, seed: int = 1) -> np.ndarray:
        starts = np.zeros(len(rows), dtype=np.int64)
        micro_batch = MicroBatch(index, np.array(rows), starts, shape)
        return dataset.draw_masks(micro_batch, SpanMask(), seed, "mask")

    first, second = masks([3, 4])
    assert not np.array_equal(first, second)
    assert np.array_equal(masks([4, 9])[0], second)
    assert not np.array_equal(masks([3, 4], index=8)[0], first)
    assert not np.array_equal(masks([3, 4], seed=2)[0], first)


def test_a_filler_of_the_valid_split_counts_nothing() -> None:
    class Source:
        def tensors(self, micro_batch: MicroBatch, purpose: str) -> dict[str, int]:
            assert purpose == "valid mask"
            return {"index": micro_batch.index, "counted_rows": micro_batch.counted_rows}

    shape = BatchShape(num_frames=30, batch_rows=2, masked_frames=15)
    rows = np.array([4, 5])
    covered = [MicroBatch(index, rows, rows, shape, fillers=index % 2) for index in (10, 11, 12)]
    batches = ValidationBatches(covered, Source())  # type: ignore[arg-type]
    assert [batches[index] for index in (1, 2, 3, 4)] == [
        {"index": 11, "counted_rows": 1},
        {"index": 12, "counted_rows": 2},
        {"index": 10, "counted_rows": 0},
        {"index": 11, "counted_rows": 0},
    ]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("codebooks", [1, 2])
def test_rows_that_only_fill_a_shape_leave_the_metrics_as_they_are(
    prepared: Workspace, corpus: Corpus, plan: BucketSampler, soft: bool, codebooks: int
) -> None:
    """The sums of a full micro-batch are those of the one that was not filled up."""
    reader = source(prepared, corpus)
    store = TargetStore.open(prepared.folder("it1/label"))
    reader.targets = lambda row: (
        np.tile(np.eye(5, dtype=np.float16)[store.targets(row)], codebooks)
        if soft
        else np.stack([store.targets(row)] * codebooks, axis=1)
    )
    covered = plan.validation(corpus.manifest.length_sorted("valid"))
    filled = next(each for each in covered if each.fillers)
    assert len(filled.rows) == filled.shape.batch_rows
    short = dataclasses.replace(
        filled,
        rows=filled.rows[: filled.counted_rows],
        starts=filled.starts[: filled.counted_rows],
        fillers=0,
    )
    head = CodebookHead(16, 8, [5] * codebooks)
    states = torch.randn(len(filled.rows), filled.shape.num_frames, 16)
    found, expected = (
        masked_prediction_loss(
            [SupervisedLayer(head, states[: len(each.rows)])],
            batch["targets"],
            batch["mask"],
            torch.zeros(()),
            n_clusters=head.n_clusters,
            masked_frames=batch["masked_frames"],
            normaliser=1,
            measure_unmasked=True,
        )
        for each in (filled, short)
        for batch in [reader.tensors(each, "valid mask")]
    )
    for one, other in ((found.masked, expected.masked), (found.unmasked, expected.unmasked)):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.nll, other.nll, rtol=1e-6, atol=0.0)
        assert one.correct == other.correct
        share = filled.counted_rows / len(filled.rows)
        assert one.frames * share == other.frames
