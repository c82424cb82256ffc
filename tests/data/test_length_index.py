"""The length-sorted index of a split: order, bisection, histogram of frames."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from hubert_pretrain.data.length_index import LengthIndex
from hubert_pretrain.data.manifest import Utterance, write_manifest
from hubert_pretrain.frames import MODEL_GRID, FrameGrid


def utterance(id: str, split: str = "train", **values: object) -> Utterance:
    return Utterance(
        **(
            {"id": id, "path": f"/corpus/{id}.wav", "num_samples": 16_000 + len(id), "split": split}
            | values
        )
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manifest.arrow"


def test_length_sorted_is_by_split_and_corpus(path: Path) -> None:
    draw = np.random.default_rng(0)
    given = [
        utterance(
            f"{i:03d}",
            str(draw.choice(["train", "valid"])),
            num_samples=int(draw.integers(400, 900)),
            corpus=str(draw.choice(["b", "a", ""])),
        )
        for i in range(300)
    ]
    manifest = write_manifest(path, given, root="/corpus")
    rows = [manifest[row] for row in range(300)]
    for split in ("train", "valid"):
        groups = manifest.length_sorted(split)
        assert [group.corpus for group in groups] == ["", "a", "b"]
        for group in groups:
            mine = [row for row in rows if (row.split, row.corpus) == (split, group.corpus)]
            expected = sorted(mine, key=lambda row: (row.num_samples, row.row))
            assert group.rows(np.arange(len(group))).tolist() == [row.row for row in expected]
            assert group.total_samples == sum(row.num_samples for row in mine)
            bounds = np.arange(380, 920)
            assert group.shorter_than(bounds).tolist() == [
                sum(row.num_samples < bound for row in mine) for bound in bounds.tolist()
            ]
            copy = pickle.loads(pickle.dumps(group))
            assert (len(copy), copy.corpus, copy.total_samples) == (
                len(group),
                group.corpus,
                group.total_samples,
            )
            assert len(pickle.dumps(group)) < 600
    assert manifest.length_sorted("test") == []


@pytest.mark.parametrize(
    "grid", [MODEL_GRID, FrameGrid(window=400, hop=160), FrameGrid(window=1000, hop=700)]
)
def test_frames_are_counted_on_any_grid(grid: FrameGrid) -> None:
    num_samples = np.random.default_rng(1).integers(100, 60_000, 500)
    counts = LengthIndex.of(num_samples).frame_counts(grid, 5_000, 40)
    frames = np.minimum(grid.num_frames(num_samples[num_samples >= 5_000]), 40)
    expected = np.bincount(frames, minlength=41)
    expected[0] = 0
    assert counts.tolist() == expected.tolist()
