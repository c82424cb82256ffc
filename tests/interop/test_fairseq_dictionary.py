"""fairseq's dictionaries, written and read again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.fairseq_dictionary import (
    SPECIAL_NAMES,
    read_dictionary,
    write_dictionary,
)

SYMBOLS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=4).filter(
    lambda symbol: symbol not in SPECIAL_NAMES
)


@given(st.dictionaries(SYMBOLS, st.integers(0, 10**12)))
def test_symbols_come_back_by_frequency(
    tmp_path_factory: pytest.TempPathFactory, counts: dict[str, int]
) -> None:
    path = tmp_path_factory.mktemp("dictionary") / "dict.ltr.txt"
    write_dictionary(path, counts)
    symbols = read_dictionary(path)
    assert symbols[:4] == SPECIAL_NAMES
    assert sorted(symbols[4:]) == sorted(counts)
    found = [counts[symbol] for symbol in symbols[4:]]
    assert found == sorted(found, reverse=True)


def test_the_file_is_as_fairseq_writes_it(tmp_path: Path) -> None:
    write_dictionary(tmp_path / "dict.ltr.txt", Counter(["|", "E", "E", "T", "|", "|", "|"]))
    assert (tmp_path / "dict.ltr.txt").read_text() == "| 4\nE 2\nT 1\n"


@pytest.mark.parametrize("symbol", ["", "a b", "\t", "<pad>"])
def test_symbols_that_a_dictionary_cannot_hold(tmp_path: Path, symbol: str) -> None:
    with pytest.raises(ArtefactError, match="cannot be a symbol"):
        write_dictionary(tmp_path / "dict.ltr.txt", {symbol: 1})
