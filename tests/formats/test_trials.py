"""Trial lists and labels of frames."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.frame_labels import read_frame_labels
from hubert_pretrain.formats.trials import match_names, read_trials
from hubert_pretrain.frames import MODEL_GRID


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_both_forms_of_a_list(tmp_path: Path) -> None:
    expected = [("a.wav", "b.wav", True), ("a.wav", "c.wav", False)]
    voxceleb = write(tmp_path / "1.txt", "1 a.wav b.wav\n\n0 a.wav c.wav\n")
    kaldi = write(tmp_path / "2.txt", "a.wav b.wav target\na.wav c.wav nontarget\n")
    numbers = write(tmp_path / "3.txt", "a.wav b.wav 1\na.wav c.wav 0\n")
    for path in (voxceleb, kaldi, numbers):
        assert read_trials(path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 a b\nyes a b\n", r"line 2 is 'yes a b', expected '1 first second'"),
        ("1 a b\n1 a\n", "line 2 is '1 a'"),
        ("1 a b\n1 a c\n", "2 of 2 trials are targets; expected trials of both kinds"),
        ("", "0 of 0 trials are targets"),
    ],
)
def test_lines_that_are_no_trials(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_trials(write(tmp_path / "list", text))


def test_names_match_by_their_ends() -> None:
    ids = ["id1/x/00001", "id1/y/00001", "id2/x/00001", "v1.2/talk"]
    names = ["id1/x/00001.wav", "wav/id2/x/00001.FLAC", "y/00001.m4a", "v1.2/talk"]
    assert match_names(names, ids, "list") == dict(zip(names, (0, 2, 1, 3), strict=True))
    with pytest.raises(DataError, match=r"'00001.wav' may be 'id1/x/00001' or 'id1/y/00001'"):
        match_names(["00001.wav"], ids, "list")
    with pytest.raises(
        DataError, match=r"list: 4 of 5 names are no .* \('a.wav', 'b', 'c', ...\).*'id1/x/00001'"
    ):
        match_names(["talk", "a.wav", "b", "c", "d"], ids, "list")
    assert match_names(["a", "b/a"], ["a", "b/a"], "list") == {"a": 0, "b/a": 1}


def test_labels_of_frames(tmp_path: Path) -> None:
    """One for each frame, or the one at its centre."""
    path = write(tmp_path / "labels", "a x x y\nb z z z z z z z z z\nother q\n")
    samples = {"a": MODEL_GRID.num_samples(3), "b": MODEL_GRID.num_samples(4)}
    found = read_frame_labels(path, {"a": samples["a"]}, MODEL_GRID)
    assert found == {"a": ["x", "x", "y"]}
    names = [f"l{number}" for number in range(9)]
    path = write(tmp_path / "fine", f"b {' '.join(names)}\n")
    found = read_frame_labels(path, {"b": samples["b"]}, MODEL_GRID, per_second=100)
    centres = [(MODEL_GRID.centre_sample(frame)) / 16000 for frame in range(4)]
    assert found["b"] == [names[int(centre * 100)] for centre in centres]
    short = write(tmp_path / "short", "a x x\n")
    assert read_frame_labels(short, samples, MODEL_GRID) == {"a": ["x", "x", ""]}


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    lengths = {"a": MODEL_GRID.num_samples(100), "b": MODEL_GRID.num_samples(100)}
    path = write(tmp_path / "labels", f"a {'x ' * 200}\nb {'x ' * 100}\n")
    with pytest.raises(
        DataError, match=r"1 utterances have .*\('a' has 200 for 100\); expected 50"
    ):
        read_frame_labels(path, lengths, MODEL_GRID)
    path = write(tmp_path / "twice", f"a {'x ' * 100}\na {'x ' * 100}\n")
    with pytest.raises(DataError, match="line 2 labels 'a' again"):
        read_frame_labels(path, lengths, MODEL_GRID)
