"""Augmentation in the training stream: the same whatever reads it, never in validation, normalised
as said, and free when it is off.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import AugmentConfig, Recipe
from hubert_pretrain.data.augment import Augmentation
from hubert_pretrain.data.batching import BucketSampler
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.model.preprocess import normalize
from hubert_pretrain.pipeline import plan as pipeline
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain.dataset import CropSource, MicroBatches
from hubert_pretrain.stages import pretrain
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.training.dataloading import ResumableSampler, loader
from hubert_pretrain.training.limits import CACHE_BYTES

MIXED = {"mix_probability": 0.5, "gain_probability": 0.5}
STEPS = 6


@pytest.fixture
def corpus(prepared: Workspace) -> Corpus:
    return Corpus.open(prepared.folder("prepare"))


@pytest.fixture
def stream(prepared: Workspace, corpus: Corpus) -> Callable[..., MicroBatches]:
    sizes = {
        "batch_seconds": 8,
        "micro_batch_seconds": 4,
        "max_crop_seconds": 1.2,
        "min_seconds": 0.5,
        "max_shapes": 2,
    }
    plan = BucketSampler(
        corpus.manifest.length_sorted("train"),
        grid=MODEL_GRID,
        seed=3,
        masked_frames=lambda frames: frames // 2,
        **sizes,
    )

    def make(
        augmentation: Augmentation | None,
        *,
        normalize: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> MicroBatches:
        spans = SpanMask(probability=0.8, span_frames=5, min_spans=2)
        targets = TargetStore.open(prepared.folder("it1/label")).targets
        shared: dict[str, Any] = {
            "split": "train",
            "grid": MODEL_GRID,
            "spans": spans,
            "seed": 3,
            "cache_bytes": cache_bytes,
        }
        return MicroBatches(
            plan,
            CropSource(corpus, targets, normalize=normalize, augmentation=augmentation, **shared),
        )

    return make


class Enough(Exception):
    """Ends a stage before it trains."""


def stop(*args: object) -> None:
    raise Enough


def read(
    items: MicroBatches, *, workers: int, start: int = 0, rank: int = 0, world_size: int = 1
) -> dict[int, torch.Tensor]:
    """Waveforms by number of the micro-batch, as training from step `start` reads them."""
    numbers = ResumableSampler(
        lambda: start,
        steps=STEPS,
        micro_batches=items.plan.micro_batches,
        rank=rank,
        world_size=world_size,
    )
    return {item["index"]: item["waveform"] for item in loader(items, numbers, workers=workers)}


def test_the_same_for_any_workers_ranks_and_after_a_kill(
    stream: Callable[..., MicroBatches],
) -> None:
    augmentation = Augmentation(seed=3, **MIXED)
    whole = read(stream(augmentation), workers=0)
    assert any(
        not torch.equal(whole[i], plain) for i, plain in read(stream(None), workers=0).items()
    )
    for workers in (1, 2):
        found = read(stream(augmentation), workers=workers)
        assert all(torch.equal(found[i], whole[i]) for i in whole)
    resumed = read(stream(augmentation), workers=0, start=4)
    assert set(resumed) == {i for i in whole if i >= 4 * stream(None).plan.micro_batches}
    shared = read(stream(augmentation), workers=0, rank=0, world_size=2) | read(
        stream(augmentation), workers=0, rank=1, world_size=2
    )
    for part in (resumed, shared):
        assert all(torch.equal(part[i], whole[i]) for i in part)
    assert set(shared) == set(whole)


def test_cached_and_read_from_disk_are_the_same(stream: Callable[..., MicroBatches]) -> None:
    cached = read(stream(Augmentation(seed=3, **MIXED), normalize=True), workers=0)
    again = stream(Augmentation(seed=3, **MIXED), normalize=True)
    assert all(torch.equal(read(again, workers=0)[i], cached[i]) for i in cached)
    assert all(torch.equal(read(again, workers=0)[i], cached[i]) for i in cached), (
        "the cache holds clean audio"
    )
    streamed = read(stream(Augmentation(seed=3, **MIXED), normalize=True, cache_bytes=0), workers=0)
    assert all(torch.equal(streamed[i], cached[i]) for i in cached)


def test_targets_and_masks_stay_those_of_the_clean_audio(
    stream: Callable[..., MicroBatches],
) -> None:
    plain = stream(None)
    augmented = stream(Augmentation(seed=3, **MIXED))
    for index in range(5):
        for name in ("targets", "mask"):
            assert torch.equal(plain[index][name], augmented[index][name])


def test_changed_rows_are_normalised_by_their_own_statistics_and_others_as_ever(
    stream: Callable[..., MicroBatches],
) -> None:
    raw = stream(None)
    clean = stream(None, normalize=True)
    augmentation = Augmentation(seed=3, **MIXED)
    items = stream(augmentation, normalize=True)
    seen = set()
    for index in range(10):
        batch = items.plan.micro_batch(index)
        expected, changed = augmentation(
            raw[index]["waveform"].numpy(), index=index, rows=batch.rows.tolist()
        )
        for b, found in enumerate(items[index]["waveform"].numpy()):
            seen.add(bool(changed[b]))
            if changed[b]:
                np.testing.assert_allclose(
                    found,
                    normalize(torch.from_numpy(expected[b])).numpy(),
                    rtol=1e-5,
                    atol=1e-6,
                )
                assert abs(found.std() - 1) < 0.01
            else:
                assert np.array_equal(found, clean[index]["waveform"][b].numpy())
    assert seen == {True, False}


def test_off_costs_nothing(
    prepared: Workspace,
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the defaults there is no object that could do anything, and the source does not ask."""
    found: list[object] = []
    monkeypatch.setattr(
        pretrain,
        "loaders",
        lambda *args, **values: found.append(values["train"].augmentation) or (None, None),
    )
    monkeypatch.setattr(pretrain, "fit", stop)
    for augment in (AugmentConfig(), AugmentConfig(mix_probability=0.2)):
        with pytest.raises(Enough):
            pretrain.run(recipe(augment=augment), prepared, "it1/pretrain", tmp_path)
    assert found[0] is None
    assert isinstance(found[1], Augmentation)
    assert found[1].mix_probability == 0.2


def composed(*overrides: str) -> Recipe:
    words = ["+recipe=smoke", *overrides]
    return compose.recipe_of(words)


AUGMENT = "iterations.it1.pretrain.augment"


def test_it_is_off_by_default_and_chosen_by_a_group() -> None:
    assert composed().iterations["it1"].pretrain.augment == AugmentConfig()
    found = composed(f"+augment@{AUGMENT}=wavlm", f"{AUGMENT}.noise=/noise")
    augment = found.iterations["it1"].pretrain.augment
    assert (augment.mix_probability, augment.mix_noise_share, augment.noise) == (0.2, 0.1, "/noise")
    assert composed(f"+augment@{AUGMENT}=mix").iterations["it1"].pretrain.augment == AugmentConfig(
        mix_probability=0.2
    )
    voices = AugmentConfig(voice_probability=0.5)
    assert composed(f"+augment@{AUGMENT}=voice").iterations["it1"].pretrain.augment == voices
    assert found.iterations["it2"].pretrain.augment == voices  # as the recipe has it


def test_off_is_no_part_of_a_fingerprint() -> None:
    def identity(*words: str) -> str:
        (stage,) = [
            each for each in pipeline.stages(composed(*words)) if each.name == "it1/pretrain"
        ]
        return str(stage.identity)

    assert "augment" not in identity()
    assert "mix_probability" in identity(f"{AUGMENT}.mix_probability=0.2")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mix_probability=1.2", r"augment\.mix_probability=1\.2: expected a share from 0 to 1"),
        (
            "mix_ratio_db=[5,-5]",
            r"augment\.mix_ratio_db=\[5\.0, -5\.0\]: expected a range in dB, the lower end first",
        ),
        ("gain_db=[3]", r"augment\.gain_db=\[3\.0\]: expected a range in dB"),
        (
            "noise_probability=0.5",
            r"augment\.noise_probability=0\.5 needs noise: set .*augment\.noise to a folder",
        ),
        ("mix_noise_share=0.5", r"augment\.mix_noise_share=0\.5 needs noise"),
        (
            "voice={formant_ratio: 1, pitch_ratio: 1, equaliser_db: 0}",
            r"augment\.voice changes nothing",
        ),
    ],
)
def test_values_that_cannot_be(override: str, message: str) -> None:
    used = [f"{AUGMENT}.voice_probability=0.5"]
    with pytest.raises(ConfigError, match=message):
        composed(f"{AUGMENT}.{override}", *used)
