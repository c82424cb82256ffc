"""Frames of a corpus: order, independence of workers and interruptions, memory, messages."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hubert_pretrain.errors import DataError
from hubert_pretrain.features.corpus_frames import GROUP_ROWS, map_frames, map_groups
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.frames import MFCC_GRID, MODEL_GRID, FrameGrid
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert


class FakeManifest:
    def __init__(self, num_samples: np.ndarray) -> None:  # type: ignore[type-arg]
        self.num_samples = num_samples

    def __getitem__(self, row: int) -> Any:
        return SimpleNamespace(path=f"/audio/{row}.wav", id=f"utterance-{row}")


class FakeCorpus:
    """Noise of any lengths, made when it is read."""

    def __init__(self, num_samples: list[int], broken: int = -1) -> None:
        self.manifest = FakeManifest(np.array(num_samples, dtype=np.int64))
        self.broken = broken

    def read(self, row: int) -> np.ndarray:  # type: ignore[type-arg]
        waveform = (
            np.random.default_rng(row)
            .normal(0, 0.1, int(self.manifest.num_samples[row]))
            .astype(np.float32)
        )
        if row == self.broken:
            waveform[5_000:] = np.nan
        return waveform


@pytest.fixture(scope="module")
def corpus() -> Any:
    return FakeCorpus(np.random.default_rng(0).integers(400, 30_000, 2 * GROUP_ROWS + 30).tolist())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    sizes = {
        "conv_dim": [16] * 7,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    save_model(
        folder,
        Hubert(HubertConfig(**sizes, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)),
    )  # type: ignore[arg-type]
    return folder


@pytest.fixture(params=["mfcc", "layer"])
def extractor(checkpoint: Path, request: pytest.FixtureRequest) -> nn.Module:
    return Mfcc() if request.param == "mfcc" else HubertLayer(checkpoint, 2)


def numbers(frames: Tensor) -> np.ndarray:  # type: ignore[type-arg]
    return frames.numpy().copy()


def test_every_row_gets_its_own_frames_in_order(corpus: Any, extractor: Any) -> None:
    rows = np.arange(len(corpus.manifest.num_samples))[::-3].copy()
    found = list(map_frames(corpus, rows, extractor, numbers, workers=2))
    assert len(found) == len(rows)
    for row, frames in zip(rows, found, strict=True):
        expected = extractor(torch.from_numpy(corpus.read(int(row)))[None])[0]
        torch.testing.assert_close(torch.from_numpy(frames), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("workers", [1, 3, 40])
def test_results_come_in_the_order_of_the_rows(corpus: Any, workers: int) -> None:
    rows = np.array([5, 0, 11, 3])
    found = list(map_frames(corpus, rows, Mfcc(), len, workers=workers))
    assert found == [MODEL_GRID.num_frames(int(corpus.manifest.num_samples[row])) for row in rows]


def test_values_depend_on_the_group_and_on_nothing_else(corpus: Any, extractor: Any) -> None:
    rows = np.arange(2 * GROUP_ROWS + 30)
    groups = [rows[:GROUP_ROWS], rows[GROUP_ROWS : 2 * GROUP_ROWS], rows[2 * GROUP_ROWS :]]
    whole = list(map_groups(corpus, groups, extractor, numbers, workers=1))
    for results in (
        list(map_groups(corpus, groups, extractor, numbers, workers=3)),
        [
            next(map_groups(corpus, [group], extractor, numbers, framewise=True))
            for group in groups
        ],  # as after a kill, or on three ranks
    ):
        for expected, found in zip(whole, results, strict=True):
            assert [frames.tobytes() for frames in found] == [
                frames.tobytes() for frames in expected
            ]
    flat = list(map_frames(corpus, rows, extractor, numbers, workers=2))
    assert [frames.tobytes() for frames in flat] == [
        frames.tobytes() for group in whole for frames in group
    ]


def test_groups_may_be_empty_or_their_rows_too_short(extractor: Any) -> None:
    corpus: Any = FakeCorpus([10, 399, 1_000])
    found = list(
        map_groups(
            corpus,
            [np.array([0, 1]), np.array([], dtype=np.int64), np.array([2, 0])],
            extractor,
            len,
            workers=2,
        )
    )
    assert found == [[0, 0], [], [MODEL_GRID.num_frames(1_000), 0]]


@pytest.mark.parametrize("framewise", [False, True])
def test_nan_names_the_utterance_and_the_frame(extractor: Any, framewise: bool) -> None:
    corpus: Any = FakeCorpus([8_000] * 5, broken=3)
    with pytest.raises(
        DataError,
        match=r"/audio/3\.wav: frame \d+ of 24 of utterance 'utterance-3' holds NaN or infinity",
    ):
        list(map_frames(corpus, np.arange(5), extractor, numbers, framewise=framewise))


def test_a_wrong_number_of_frames_is_a_programming_error(corpus: Any) -> None:
    class Short:
        grid = MODEL_GRID
        dim = 1

        def fingerprint(self) -> dict[str, Any]:
            return {"kind": "short"}

        def __call__(self, waveform: Tensor) -> Tensor:
            return torch.zeros(1, 3, 1)

    with pytest.raises(ValueError, match=r"Short made frames of shape \(3, 1\)"):
        list(map_frames(corpus, np.arange(1), Short(), numbers))


def test_an_extractor_of_100_hz_is_diagnosed(corpus: Any) -> None:
    class Kaldi:
        grid = MODEL_GRID
        dim = 1

        def fingerprint(self) -> dict[str, Any]:
            return {"kind": "kaldi"}

        def __call__(self, waveform: Tensor) -> Tensor:
            return torch.zeros(1, MFCC_GRID.num_frames(waveform.shape[-1]), 1)

    with pytest.raises(ValueError, match=r"twice as many: are these 100 Hz\?"):
        list(map_frames(corpus, np.arange(1), Kaldi(), numbers))


def test_an_extractor_without_batches_works_too(corpus: Any) -> None:
    class Means:
        grid = FrameGrid(window=400, hop=400)
        dim = 1

        def fingerprint(self) -> dict[str, Any]:
            return {"kind": "means"}

        def __call__(self, waveform: Tensor) -> Tensor:
            return waveform.unfold(-1, 400, 400).mean(-1, keepdim=True)

    for row, frames in enumerate(map_frames(corpus, np.arange(70), Means(), numbers, workers=2)):
        np.testing.assert_allclose(
            frames[:, 0], corpus.read(row)[: len(frames) * 400].reshape(-1, 400).mean(1), atol=1e-6
        )


def test_only_a_few_waveforms_are_in_memory() -> None:
    corpus: Any = FakeCorpus([30 * 16_000] * 80)  # 154 MB together, 1.9 MB each
    tracemalloc.start()
    for _ in map_frames(corpus, np.arange(80), Mfcc(), len, workers=2):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6  # numpy's memory is traced, torch's is not
