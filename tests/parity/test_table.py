"""tools/parity_table.py: every variant against transformers, torchaudio and fairseq; docs/parity.md
holds its table.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(REPOSITORY / "tools" / "parity_table.py"), run_name="parity_table")
CANNOT = {
    "transformers": {"adapters, base", "all selu"},
    "torchaudio": {
        "no projection norm",
        "layer_norm_eps 1e-3",
        "conv_pos_batch_norm",
        "adapters, large",
        "adapters, base",
        "hidden_act relu",
        "all relu",
        "all gelu_new",
        "all silu",
        "all selu",
    },
}
"""Variants that a library has no network for. (selu: transformers 5.x; test_model_transformers.py
adds it and compares.)
"""


@pytest.mark.parametrize("name", list(TOOL["VARIANTS"]))
def test_every_difference_is_below_the_tolerance(name: str) -> None:
    row = TOOL["against_libraries"](TOOL["VARIANTS"][name])
    for number, column in enumerate(TOOL["COLUMNS"]):
        library = "transformers" if number < 4 else "torchaudio"
        if name in CANNOT[library]:
            assert row[column] == TOOL["CANNOT"], column
        else:
            assert row[column] < 1e-5, column


def test_differences_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table shows the difference of an export with other weights."""
    export = TOOL["against_libraries"].__globals__["export_torchaudio"]

    def export_changed(path: Path, loaded: Any) -> None:
        bias = loaded.model.context_encoder.norm.bias.data
        bias += 3e-5
        export(path, loaded)
        bias -= 3e-5

    monkeypatch.setitem(TOOL["against_libraries"].__globals__, "export_torchaudio", export_changed)
    row = TOOL["against_libraries"](TOOL["VARIANTS"]["base"])
    assert row["torchaudio: layers"] > 1e-5 > row["transformers: layers"]


@pytest.mark.parametrize("name", ["base", "large"])
def test_fairseq(name: str, fairseq_outputs: Path) -> None:
    row = TOOL["against_fairseq"](fairseq_outputs, name)
    assert row["hidden states"] < 1e-5
    assert max(row["loss and its parts (relative)"], row["gradients (relative)"]) < 1e-4


def test_the_document_holds_the_table() -> None:
    """Its rows and columns are the tool's, and each number is below the tolerance."""
    text = (REPOSITORY / "docs" / "parity.md").read_text()
    table = text.partition("python tools/parity_table.py")[2].partition("| variant |")[2]
    header, _, *lines = table.partition("\n\n")[0].splitlines()
    assert len(header.strip("| ").split(" | ")) == len(TOOL["COLUMNS"])
    rows = {}
    for line in lines:
        name, *cells = line.strip("| ").split(" | ")
        rows[name] = cells
    assert list(rows) == list(TOOL["VARIANTS"])
    for name, cells in rows.items():
        assert len(cells) == len(TOOL["COLUMNS"]), name
        for number, cell in enumerate(cells):
            library = "transformers" if number < 4 else "torchaudio"
            if name in CANNOT[library]:
                assert cell == "cannot", (name, number)
            else:
                assert float(cell) < 1e-5, (name, number)
