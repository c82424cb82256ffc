"""Padded micro-batches with labels and masks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.finetune.batching import PaddedBucketSampler
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.dataset import TrainingDataset, WholeUtterances
from hubert_pretrain.finetune.masks import make_masks
from hubert_pretrain.finetune.task import Examples
from hubert_pretrain.model.config import HubertConfig, SpanMask
from hubert_pretrain.model.hubert import Hubert

NO_MASK = SpanMask(probability=0.0, span_frames=10, min_spans=2)
SPANS = SpanMask(probability=0.5, span_frames=4, min_spans=2)


@pytest.fixture
def model(tiny: HubertConfig) -> Hubert:
    torch.manual_seed(0)
    return Hubert(tiny)


@pytest.fixture
def examples(corpus: Corpus, model: Hubert) -> Examples:
    return CtcTask().fit(corpus, corpus.manifest.rows("train"), model.grid)


def _dataset(
    corpus: Corpus, examples: Examples, model: Hubert, mask: SpanMask = SPANS, seed: int = 3
) -> TrainingDataset:
    lengths = corpus.manifest.num_samples[examples.rows]
    plan = PaddedBucketSampler(
        examples.rows, lengths, seed=seed, batch_seconds=6, micro_batch_seconds=3, max_padding=0.5
    )
    return TrainingDataset(corpus, examples, plan, model, make_masks("reference", mask, mask, seed))


def test_rows_are_whole_utterances_with_their_labels(
    corpus: Corpus, examples: Examples, model: Hubert
) -> None:
    dataset = _dataset(corpus, examples, model)
    padded = False
    for index in range(12):
        batch = dataset[index]
        planned = dataset.plan.micro_batch(index)
        assert batch["waveform"].shape == (len(planned.rows), planned.num_samples)
        assert (
            batch["valid"].shape
            == batch["mask"].shape
            == (len(planned.rows), model.grid.num_frames(planned.num_samples))
        )
        for number, row in enumerate(planned.rows.tolist()):
            waveform = corpus.read(row)
            length = corpus.manifest[row].num_samples
            np.testing.assert_array_equal(batch["waveform"][number, :length], waveform)
            assert not batch["waveform"][number, length:].any()
            assert batch["valid"][number].sum() == model.grid.num_frames(length)
            place = examples.rows.tolist().index(row)
            assert (
                batch["labels"][number, : batch["label_lengths"][number]].tolist()
                == examples.labels[place]
            )
        padded |= not batch["valid"].all()
    assert padded


def test_masks_are_seeded_by_step_and_row_and_never_hide_padding(
    corpus: Corpus, examples: Examples, model: Hubert
) -> None:
    dataset = _dataset(corpus, examples, model)
    again = _dataset(corpus, examples, model)
    masks = {}
    for index in range(12):
        batch = dataset[index]
        assert torch.equal(batch["mask"], again[index]["mask"])
        assert torch.equal(batch["channel_mask"], again[index]["channel_mask"])
        assert not (batch["mask"] & ~batch["valid"]).any()
        assert batch["mask"].any(dim=1).all()
        for number, row in enumerate(dataset.plan.micro_batch(index).rows.tolist()):
            masks.setdefault((index // 2, row), set()).add(
                batch["mask"][number, : batch["valid"][number].sum()].numpy().tobytes()
            )
    assert all(len(found) == 1 for found in masks.values())  # one mask per step and row
    assert len(set().union(*masks.values())) > len(masks) / 2  # and another one in another step


def test_no_mask_when_its_probability_is_0(
    corpus: Corpus, examples: Examples, model: Hubert
) -> None:
    batch = _dataset(corpus, examples, model, NO_MASK)[0]
    assert not batch["mask"].any()
    assert not batch["channel_mask"].any()


def test_waveforms_are_normalised_for_models_that_want_it(
    corpus: Corpus, examples: Examples, tiny: HubertConfig
) -> None:
    model = Hubert(dataclasses.replace(tiny, normalize_waveform=True))
    for item in (WholeUtterances(corpus, examples, model)[n] for n in range(3)):
        assert abs(item["waveform"].mean()) < 1e-3
        assert item["waveform"].var(unbiased=False) == pytest.approx(1.0, abs=0.01)


def test_a_micro_batch_can_be_described(corpus: Corpus, examples: Examples, model: Hubert) -> None:
    assert (
        _dataset(corpus, examples, model)
        .describe(3)
        .startswith("step 1 (micro-batch 3: utterance-0")
    )
