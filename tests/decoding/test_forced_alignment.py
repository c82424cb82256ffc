"""Forced alignment: times of known texts, and texts that do not fit."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from hubert_pretrain.decoding.forced_alignment import align, best_path
from hubert_pretrain.decoding.greedy import collapse
from hubert_pretrain.decoding.spelling import Spelling
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats import ctm, textgrid
from hubert_pretrain.formats.alignments import AlignmentFiles, AlignmentOptions
from hubert_pretrain.frames import MODEL_GRID, samples
from tests.decoding.emissions import CHARACTERS, emission, spelling_out

SPELLING = Spelling(CHARACTERS)
STEP = 0.02
BEFORE = 0.0025


@pytest.mark.parametrize("seed", range(10))
def test_the_path_is_the_most_probable_that_spells_the_text(seed: int) -> None:
    values = emission(seed, 6, 4)
    ids = [2, 2] if seed % 2 else [3, 1, 2]
    paths = [path for path in itertools.product(range(4), repeat=6) if collapse(path) == ids]
    scores = [float(values[np.arange(6), path].sum()) for path in paths]
    assert tuple(best_path(values, ids).tolist()) == paths[int(np.argmax(scores))]
    assert align(values, ids, SPELLING).score == pytest.approx(max(scores) / 6)


def test_symbols_share_the_blanks_between_them() -> None:
    # Frames: A A _ B B _ | | _ C C _
    found = align(spelling_out("AB|C", CHARACTERS), [2, 3, 1, 4], SPELLING)
    assert [(each.text, round((each.start - BEFORE) / STEP)) for each in found.symbols] == [
        ("A", 0),
        ("B", 3),
        ("C", 9),
    ]
    ends = [round((each.end - BEFORE) / STEP) for each in found.symbols]
    assert ends == [3, 5, 11]
    assert [(each.text, each.start, each.end) for each in found.words] == [
        ("AB", found.symbols[0].start, found.symbols[1].end),
        ("C", found.symbols[2].start, found.symbols[2].end),
    ]
    assert found.words[0].confidence == pytest.approx(0.9, abs=1e-5)


def test_a_text_that_does_not_belong_to_its_audio_has_a_low_score() -> None:
    values = spelling_out("AB|CAB", CHARACTERS)
    right = align(values, [2, 3, 1, 4, 2, 3], SPELLING).score
    wrong = align(values, [6, 5, 1, 5, 6, 6], SPELLING).score
    assert right == pytest.approx(np.log(0.9), abs=1e-5)
    assert wrong < right - 1.0


@pytest.mark.parametrize(("ids", "needed"), [([2, 3, 4, 5, 6], 5), ([2, 2, 2], 5)])
def test_a_text_that_the_frames_cannot_spell(ids: list[int], needed: int) -> None:
    message = f"the text needs {needed} frames, the audio has 4; check that they belong together"
    with pytest.raises(DataError, match=message):
        align(emission(0, 4, len(CHARACTERS)), ids, SPELLING)


def test_too_long_to_align_at_once() -> None:
    values = np.zeros((60_000, 2), np.float32)
    with pytest.raises(DataError, match="60000 frames and 20000 symbols are too many"):
        align(values, [1] * 20_000, Spelling(("<pad>", "A")))


def test_an_empty_text() -> None:
    found = align(emission(0, 4, len(CHARACTERS)), [], SPELLING)
    assert found.words == found.symbols == ()


@pytest.mark.parametrize("format", ["ctm", "textgrid"])
def test_written_alignments_are_read_with_their_times(tmp_path: Path, format: str) -> None:
    found = align(spelling_out("AB|C", CHARACTERS), [2, 3, 1, 4], SPELLING).symbols
    if format == "ctm":
        rows = [(each.text, each.start, each.end, each.confidence) for each in found]
        (tmp_path / "a.ctm").write_text("".join(ctm.ctm_lines("speech", rows)))
    else:
        pytest.importorskip("praatio")
        rows_of_tier = [(each.text, each.start, each.end) for each in found]
        textgrid.write(tmp_path / "speech.TextGrid", {"phones": rows_of_tier, "words": []}, 0.3)
    phones = AlignmentFiles(AlignmentOptions(str(tmp_path))).find("speech")
    assert phones is not None
    assert [each[0] for each in phones] == ["A", "B", "C"]
    for (_, start, end), each in zip(phones, found, strict=True):
        assert abs(start - samples(each.start)) <= 2
        assert abs(end - samples(each.end)) <= 4
    # The frame of a symbol is the frame whose centre lies in its interval.
    centres = [MODEL_GRID.centre_sample(frame) for frame in (0, 2, 3, 4, 9, 10)]
    labels = [
        next(name for name, start, end in phones if start <= centre < end) for centre in centres
    ]
    assert labels == ["A", "A", "B", "B", "C", "C"]


def test_quotes_and_other_scripts_in_a_textgrid(tmp_path: Path) -> None:
    pytest.importorskip("praatio")
    textgrid.write(tmp_path / "a.TextGrid", {"words": [('"ж"', 0.1, 0.2)]}, 0.5)
    assert textgrid.read(tmp_path / "a.TextGrid", "words") == [('"ж"', 1600, 3200)]
