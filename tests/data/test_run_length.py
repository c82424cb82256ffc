"""Columns by their runs: whichever way a column is stored, every way of reading it gives the
same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_pretrain.data import run_length
from hubert_pretrain.data.arrow_table import NAME, TEXT, open_table, write_table
from hubert_pretrain.data.manifest import Manifest, Utterance, write_manifest

KINDS = {"int64": pa.int64(), "float32": pa.float32(), "text": TEXT, "name": NAME}


def column(kind: pa.DataType, numbers: list[int]) -> pa.Array:
    if kind == NAME:
        return pa.DictionaryArray.from_arrays(
            pa.array(numbers, pa.int32()), pa.array([f"näme {i}" for i in range(9)], TEXT)
        )
    return pa.array([f"é{i}" if i else "" for i in numbers] if kind == TEXT else numbers, kind)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(1, 30)), max_size=30),
    st.sampled_from(list(KINDS)),
)
def test_an_encoded_column_reads_as_the_plain_one(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, int]], kind: str
) -> None:
    plain = column(KINDS[kind], [number for number, count in pieces for _ in range(count)])
    stored = run_length.encode_runs(plain)
    path = tmp_path_factory.mktemp("table") / "t.arrow"
    write_table(path, {"x": stored}, {})
    table = open_table(path, "test")
    found = table.batch.column("x")
    rows = np.random.default_rng(0).permutation(len(plain))
    assert run_length.take(found, np.arange(len(plain))).to_pylist() == plain.to_pylist()
    assert run_length.take(found, rows).to_pylist() == plain.take(pa.array(rows)).to_pylist()
    if kind == "text":
        assert [table.text("x")(row) for row in range(len(plain))] == plain.to_pylist()
        return
    numbers = (plain.indices if kind == "name" else plain).to_numpy()
    cells = table.numbers("x")
    assert len(cells) == len(numbers)
    assert [cells[row] for row in range(len(numbers))] == numbers.tolist()
    assert cells.take(rows.reshape(1, -1)).tolist() == [numbers[rows].tolist()]
    if kind != "name":
        view = run_length.as_numpy(found)
        assert (view.tolist(), view.dtype, view.flags.writeable) == (
            numbers.tolist(),
            numbers.dtype,
            False,
        )


def test_only_columns_with_long_runs_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_length.is_encoded(run_length.encode_runs(column(pa.int64(), [1] * 4)))
    assert not run_length.is_encoded(run_length.encode_runs(column(pa.int64(), [1] * 3)))
    assert not run_length.is_encoded(run_length.encode_runs(column(TEXT, [*range(9)] * 4)))
    long = column(NAME, [i // 100 % 9 for i in range(200_000)])  # seen in several pieces
    assert len(run_length.encode_runs(long).run_ends) == 2_000
    monkeypatch.setattr(run_length, "MOST_RUNS", 1_999)
    assert not run_length.is_encoded(run_length.encode_runs(long))


def test_a_row_of_a_shard_takes_few_bytes(tmp_path: Path) -> None:
    count = 20_000
    draw = np.random.default_rng(0)
    rows = [
        Utterance(
            id=f"utterance-{i:09d}",
            path=f"/corpus/shard-{i // 500:06d}.tar",
            offset=i % 500 * 250_000,
            num_bytes=int(draw.integers(1, 10**6)),
            num_samples=int(draw.integers(16_000, 10**6)),
            speaker=f"speaker {i // 90}",
            corpus="c",
            mean=float(draw.standard_normal()),
            variance=float(draw.random()),
        )
        for i in range(count)
    ]
    manifest = write_manifest(tmp_path / "manifest.arrow", rows, root="/corpus")
    assert (tmp_path / "manifest.arrow").stat().st_size < 65 * count
    for row in draw.integers(0, count, 300).tolist():
        found = manifest[row]
        assert (found.id, found.path, found.speaker) == (
            rows[row].id,
            rows[row].path,
            rows[row].speaker,
        )
    assert manifest.take("path", np.array([499, 500])).to_pylist() == [
        "shard-000000.tar",
        "shard-000001.tar",
    ]
    assert manifest.numbers("start").strides == (0,), "a constant takes no memory"
    assert Manifest.open(tmp_path).column("speaker").to_pylist() == [row.speaker for row in rows]
