"""A teacher with more or fewer frames a second than the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import MFCC_GRID, MODEL_GRID, FrameGrid
from hubert_pretrain.targets.import_targets import import_targets
from hubert_pretrain.targets.labelling import label_corpus
from hubert_pretrain.targets.regrid import OnGrid
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.targets.writer import TargetWriter

SLOW = FrameGrid(window=880, hop=640)
"""fast_base_ls960: 55 ms every 40 ms."""
MOST_FRAMES = 400
"""More than an utterance of the corpus has."""


class Clock:
    """The number of each frame is its only feature, and its cluster."""

    dim = 1

    def __init__(self, grid: FrameGrid) -> None:
        self.grid = grid
        numbers = torch.arange(MOST_FRAMES, dtype=torch.float32)[:, None]
        self.codebook = CodebookSet.of(Codebook(numbers, self.fingerprint(), grid))

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "clock", "dim": 1}

    def __call__(self, waveform: Tensor) -> Tensor:
        num_frames = self.grid.num_frames(waveform.shape[-1])
        return torch.arange(num_frames, dtype=torch.float32)[None, :, None]


def labelled(folder: Path, corpus: Corpus, teacher: FrameGrid, model: FrameGrid) -> TargetStore:
    folder.mkdir()
    clock = Clock(teacher)
    to_grid = OnGrid.of(clock.codebook, model)
    to_grid.check(corpus.manifest)
    writer = TargetWriter.create(folder, corpus.manifest, to_grid, block_rows=5)
    label_corpus(corpus, writer, clock, clock.codebook, to_grid=to_grid)
    store = TargetStore.open(folder)
    store.check(corpus.manifest, model)
    return store


def assert_nearest(ids: np.ndarray, teacher: FrameGrid, model: FrameGrid, samples: int) -> None:
    """The id of each frame is the number of a teacher's frame whose centre is nowhere nearer."""
    centres = np.arange(teacher.num_frames(samples)) * teacher.hop + teacher.window / 2
    assert len(ids) == model.num_frames(samples)
    for frame, number in enumerate(ids.tolist()):
        distances = np.abs(centres - (frame * model.hop + model.window / 2))
        assert distances[number] == distances.min()


GRIDS = [
    (SLOW, MODEL_GRID),
    (MODEL_GRID, SLOW),
    (MFCC_GRID, SLOW),
    (FrameGrid(560, 320), MODEL_GRID),
]


@pytest.mark.parametrize(("teacher", "model"), GRIDS)
def test_labels_lie_at_the_time_of_the_teachers_frame(
    tmp_path: Path, corpus: Corpus, teacher: FrameGrid, model: FrameGrid
) -> None:
    store = labelled(tmp_path / "own", corpus, teacher, model)
    assert store.codebook["sha256"] == Clock(teacher).codebook.fingerprint
    for row in range(len(store)):
        samples = corpus.manifest[row].num_samples
        assert_nearest(store.targets(row), teacher, model, samples)
    # Finished targets of another run come to the model's frames in the same way.
    labelled(tmp_path / "theirs", corpus, teacher, teacher)
    import_targets(tmp_path / "theirs", tmp_path / "brought", corpus.manifest, grid=model)
    brought = TargetStore.open(tmp_path / "brought")
    assert brought.grid == model
    np.testing.assert_array_equal(brought.ids, store.ids)


def test_each_label_of_a_slow_teacher_counts_twice_and_every_second_of_a_fast_one() -> None:
    assert SLOW.nearest(MODEL_GRID, 16_000).tolist()[:6] == [0, 0, 1, 1, 2, 2]
    assert MODEL_GRID.nearest(SLOW, 16_000).tolist()[:4] == [1, 3, 5, 7]
    assert MODEL_GRID.nearest(MODEL_GRID, 16_000).tolist() == list(range(49))
    assert OnGrid.of(Clock(SLOW).codebook, MODEL_GRID).describe() == (
        "targets: 25 a second from the teacher, 50 for the model, by time"
    )
    assert OnGrid.of(Clock(SLOW).codebook, SLOW).describe() == ""


@given(st.sampled_from(GRIDS), st.integers(880, 20_000))
def test_nearest_at_every_length(grids: tuple[FrameGrid, FrameGrid], samples: int) -> None:
    teacher, model = grids
    assert teacher.fits(model)
    assert model.fits(teacher)
    assert_nearest(teacher.nearest(model, samples), teacher, model, samples)


def test_grids_without_a_whole_ratio_do_not_fit() -> None:
    assert not FrameGrid(400, 480).fits(MODEL_GRID)
    assert not MODEL_GRID.fits(FrameGrid(400, 480))


def test_an_utterance_without_a_frame_of_the_teacher_is_named(corpus: Corpus) -> None:
    wide = FrameGrid(window=10**6, hop=640)
    with pytest.raises(DataError, match=r"12 utterances, first .* of .* s, are shorter than one"):
        OnGrid.of(Clock(wide).codebook, MODEL_GRID).check(corpus.manifest)
    with pytest.raises(ValueError, match="hold no frame of 880 samples"):
        SLOW.nearest(MODEL_GRID, 500)
