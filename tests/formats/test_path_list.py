from pathlib import Path

import pytest

from hubert_pretrain.corpora.manifest import ManifestFile
from hubert_pretrain.errors import DataError

from .conftest import write_audio


@pytest.mark.parametrize("name", ["train.txt", "train.lst", "train.csv", "train.tsv", "train"])
def test_a_plain_list_gives_every_path(tmp_path: Path, name: str) -> None:
    paths = [write_audio(tmp_path / f"{stem}.wav", 1000) for stem in ("a", "b, c", "d")]
    (tmp_path / name).write_text("a.wav\n\nb, c.wav\n" + f"{paths[2]}\n")
    found = list(ManifestFile(path=str(tmp_path / name), ids="name").utterances(tmp_path))
    assert [(one.id, str(one.path)) for one in found] == [(path.stem, str(path)) for path in paths]


def test_a_list_of_one_path(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("/elsewhere/a.m4a\n")
    (one,) = ManifestFile(path=str(tmp_path / "list.txt")).utterances(tmp_path)
    assert str(one.path) == "/elsewhere/a.m4a"


def test_a_list_is_no_fairseq_manifest_and_holds_paths_alone(tmp_path: Path) -> None:
    """fairseq's first line is the root: the first file of a list would be lost."""
    (tmp_path / "list.txt").write_text("a.wav\nb.wav\thi\n")
    with pytest.raises(DataError, match=r"list\.txt: line 2 has several fields, expected a path"):
        list(ManifestFile(path=str(tmp_path / "list.txt")).utterances(tmp_path))
    with pytest.raises(DataError, match=r"begins with the audio file 'a\.wav', .*format=list"):
        list(ManifestFile(path=str(tmp_path / "list.txt"), format="fairseq").utterances(tmp_path))
