"""A corpus joined with alignments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.corpora.with_alignments import WithAlignments
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError

CTM = ";; by hand\nu 1 0.00 0.10 SIL\nu 1 0.10 0.10 HH 0.9\nu 1 0.20 0.10 AY\nv A 0.00 0.30 AY\n"
HI = [("HH", 1600, 3200), ("AY", 3200, 4800)]
"""The phones of utterance `u` in CTM."""


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


class Three:
    """Utterances u, v, w."""

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        yield from (
            SourceUtterance(id=id, path=folder / f"{id}.wav", split="train", phones=[("old", 0, 1)])
            for id in "uvw"
        )


def test_a_corpus_with_alignments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.ctm", f"{CTM}z 1 0 1 A\n")
    found = list(WithAlignments(corpus=Three(), alignments=str(path)).utterances(tmp_path))
    before = list(Three().utterances(tmp_path))
    expected = [HI, [("AY", 0, 4800)], None]
    assert found == [
        replace(utterance, phones=phones, corpus="three")
        for utterance, phones in zip(before, expected, strict=True)
    ]
    assert "2 of 3 utterances are aligned" in (out := capsys.readouterr().out)
    assert "without, e.g. w; 1 alignments of others" in out


def test_no_match_shows_a_name_of_each_side(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ctm", "other-1 1 0 1 A\n")
    with pytest.raises(
        DataError,
        match=r"aligns none of the 3 utterances; .* such as 'u', the alignments such as 'other-1'",
    ):
        list(WithAlignments(corpus=Three(), alignments=str(path)).utterances(tmp_path))


@pytest.mark.parametrize("options", [{"path": "x", "tiers": "y"}, {"tier": "phones"}])
def test_invalid_data_alignments_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.alignments: expected a path, or path and any of format, tier"
    ):
        WithAlignments(corpus=Three(), alignments=options)


def test_data_alignments_is_a_path_or_a_mapping(tmp_path: Path) -> None:
    path = str(write(tmp_path / "x.ctm", CTM))
    for value in (path, {"path": path, "silence": "sil"}):
        first = next(WithAlignments(corpus=Three(), alignments=value).utterances(tmp_path))
        assert first.phones is not None
        assert first.phones[-2:] == HI
