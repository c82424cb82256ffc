from pathlib import Path

import pytest

from hubert_pretrain.data.audio_files import (
    PassedOver,
    all_audio_below,
    audio_below,
    audio_in,
    describe,
    files_below,
    is_loss,
)
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats import registry
from hubert_pretrain.formats.alignments import AlignmentFiles, AlignmentOptions
from tests.folders import refuse_to_list


@pytest.fixture
def unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that cannot be listed, also by root, beside one with audio."""
    for name in ("locked", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").touch()
    refuse_to_list(monkeypatch, "locked")
    return tmp_path


def test_a_folder_that_cannot_be_read_is_named(unreadable: Path) -> None:
    passed_over = PassedOver()
    assert [path.name for path in audio_below(unreadable, passed_over)] == ["a.wav"]
    assert passed_over.folders == [f"{unreadable}/locked: Permission denied"]
    assert is_loss(passed_over.card())
    assert "chmod" in " ".join(describe(passed_over.card()))
    with pytest.raises(DataError, match=r"locked: cannot be read \(Permission denied\)"):
        audio_in(unreadable / "locked")
    for call in (
        lambda: list(files_below(unreadable)),
        lambda: AlignmentFiles(AlignmentOptions(str(unreadable))),
        lambda: registry.find_manifests(unreadable, "auto", {}),
    ):
        with pytest.raises(DataError, match=r"locked: cannot be read \(Permission denied\)"):
            call()
    with pytest.warns(UserWarning, match=r"1 folders cannot be read, the first: .*/locked"):
        assert len(all_audio_below(unreadable)) == 1


def test_every_file_is_taken_or_counted(tmp_path: Path) -> None:
    taken = ["a.WAV", "b.oga", "c.aiff", "d.au", "e.caf", "f.sph", "g.w64"]
    others = ["a.txt", "b.TXT", "c.tar.gz", "noise", ".hidden", "._a.wav", "a.b-long-dotted-name"]
    for name in [*taken, *others]:
        (tmp_path / name).touch()
    (tmp_path / ".git").mkdir()
    passed_over = PassedOver()
    found = [path.name for path in audio_below(tmp_path, passed_over)]
    assert found == sorted(taken)
    assert passed_over.kinds == {
        ".txt": 2,
        ".gz": 1,
        "no suffix": 1,
        "hidden": 3,
        "others": 1,
    }
    assert sum(passed_over.kinds.values()) == len(others) + 1
    assert not is_loss(passed_over.card())


def test_many_kinds_count_together() -> None:
    passed_over = PassedOver()
    for number in range(2_000):
        passed_over.add(f"a.{number}")
    assert len(passed_over.kinds) == 1_001
    assert passed_over.kinds["others"] == 1_000
