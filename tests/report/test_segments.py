"""The table of segments, read back with pyarrow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.features.log_mel import LogMel
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.report import segments
from hubert_pretrain.report.segments import SegmentTable, segment_means
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.tools import report

MakeRun = Callable[..., tuple[Recipe, Workspace]]


@pytest.fixture
def table(make_run: MakeRun) -> SegmentTable:
    _, workspace = make_run(up_to="it2/label")
    corpus = Corpus.open(workspace.folder("prepare"))
    store = TargetStore.open(workspace.folder("it1/label"))
    return SegmentTable(corpus, store, LogMel(), torch.device("cpu"), workers=1)


def test_a_row_per_run_of_one_unit(table: SegmentTable, tmp_path: Path) -> None:
    count = table.write(tmp_path / "s.parquet", table.corpus.manifest.rows())
    found = parquet.read_table(tmp_path / "s.parquet")
    assert found.num_rows == count
    assert found.schema.names == [
        "id",
        "unit",
        "start",
        "end",
        "x",
        "y",
        "speaker",
        "phone",
        "path",
    ]
    rows = [row for row in found.to_pylist() if row["id"] == "u03"]
    manifest = table.corpus.manifest
    number = manifest.column("id").to_pylist().index("u03")
    # The units written out frame by frame again are the targets.
    ids = [row["unit"] for row in rows for _ in range(round((row["end"] - row["start"]) / 0.02))]
    assert ids == table.store.target_matrix(number)[:, 0].tolist()
    assert {row["path"] for row in rows} == {manifest[number].path}
    assert {row["speaker"] for row in rows} == {manifest[number].speaker}
    assert rows[0]["phone"] == "a"
    assert rows[-1]["phone"] == "b"
    assert np.isfinite([(row["x"], row["y"]) for row in rows]).all()


def test_places_are_means_on_the_first_two_components(table: SegmentTable) -> None:
    rows = table.corpus.manifest.rows()
    frames = [
        table.extractor(torch.from_numpy(table.corpus.read(int(row)))[None])[0] for row in rows
    ]
    starts = [np.flatnonzero(np.diff(table.ids(int(row)), prepend=-1)) for row in rows]
    means = torch.cat([segment_means(*each) for each in zip(frames, starts, strict=True)])
    found = torch.cat(
        [
            torch.tensor(np.stack([each["x"].to_numpy(), each["y"].to_numpy()], axis=1))
            for each in table.tables(rows, table.fit(rows))
        ]
    )
    centred = (means - means.mean(0)).double()
    variances = torch.linalg.svdvals(centred)[:2].square()
    assert found.double().square().sum(0) == pytest.approx(variances.numpy(), rel=1e-3)


def test_the_memory_holds_one_group(
    table: SegmentTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "ROW_GROUP", 60)
    table.write(tmp_path / "s.parquet", table.corpus.manifest.rows())
    file = parquet.ParquetFile(tmp_path / "s.parquet")
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert len(sizes) > 5
    assert max(sizes) < 60 + 50  # an utterance of one second has 49 frames
    assert set(parquet.read_table(tmp_path / "s.parquet")["phone"].to_pylist()) == {"a", "b"}


def test_a_corpus_without_phones(make_run: MakeRun) -> None:
    _, workspace = make_run(up_to="it2/label", aligned=False)
    corpus = Corpus.open(workspace.folder("prepare"))
    store = TargetStore.open(workspace.folder("it1/label"))
    table = SegmentTable(corpus, store, LogMel(), torch.device("cpu"), workers=1)
    assert set(table.of_utterance(0, torch.zeros(49, 2))["phone"].to_pylist()) == {None}


def test_means_of_segments() -> None:
    frames = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0]])
    assert segment_means(frames, np.array([0, 2])).tolist() == [[2.0, 0.0], [5.0, 6.0]]


def test_an_unknown_iteration_is_named(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    _, workspace = make_run(up_to="prepare")
    words = [str(workspace.root), "--export", "parquet", "--iteration", "it3"]
    assert report.main(words) == 2
    assert "no such iteration" in capsys.readouterr().err
    assert report.main(words[:3]) != 0  # nothing is labelled
    assert "stage=it2/label" in capsys.readouterr().err
