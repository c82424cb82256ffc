import re
from pathlib import Path

import pytest

from hubert_pretrain.corpora.librispeech import LibriSpeech
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError


def utterances(root: Path, **values: object) -> list[SourceUtterance]:
    return list(
        LibriSpeech(**({"root": str(root), "train": ["train-clean-100"]} | values)).utterances(root)
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two subsets of empty files: listing opens no audio."""
    for subset, speaker, chapter in [
        ("train-clean-100", "19", "198"),
        ("train-clean-100", "26", "495"),
        ("test-other", "367", "130"),
    ]:
        folder = tmp_path / subset / speaker / chapter
        folder.mkdir(parents=True)
        for number in range(2):
            (folder / f"{speaker}-{chapter}-{number:04d}.flac").touch()
        lines = [f"{speaker}-{chapter}-{number:04d} TEXT OF {number}\n" for number in range(2)]
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return tmp_path


def test_any_subsets_to_any_split(root: Path) -> None:
    found = utterances(root, test=["test-other"])
    assert [
        (utterance.id, utterance.split, utterance.speaker, utterance.text)
        for utterance in found[1:4]
    ] == [
        ("19-198-0001", "train", "19", "TEXT OF 1"),
        ("26-495-0000", "train", "26", "TEXT OF 0"),
        ("26-495-0001", "train", "26", "TEXT OF 1"),
    ]
    assert {utterance.split for utterance in found[4:]} == {"test"}
    assert all(utterance.path.is_file() for utterance in found)


def test_several_subsets_for_testing_are_a_split_each(root: Path) -> None:
    """Never scored together; those of train and valid are one split."""
    subsets = ["test-other", "train-clean-100"]
    found = utterances(root, train=[], valid=subsets, test=subsets)
    assert [(one.split, one.id.split("-")[0]) for one in found[::2]] == [
        ("valid", "367"),
        ("valid", "19"),
        ("valid", "26"),
        ("test-other", "367"),
        ("train-clean-100", "19"),
        ("train-clean-100", "26"),
    ]


def test_the_root_may_be_the_folder_above(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    above = tmp_path_factory.mktemp("above")
    (above / "LibriSpeech").symlink_to(root)
    assert [utterance.id for utterance in utterances(above)] == [
        utterance.id for utterance in utterances(root)
    ]


def test_a_missing_root_shows_the_layout(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere: no such folder; expected <root>/<subset>/<speaker>.*data\.root"
    ):
        utterances(tmp_path / "nowhere")


def test_a_missing_subset_names_the_nearest(root: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"train-clean-10: no such subset \(did you mean 'train-clean-100'\?\), "
        r"found test-other",
    ):
        utterances(root, train=["train-clean-10"])


def test_an_error_names_an_empty_subset(root: Path) -> None:
    (root / "dev-clean").mkdir()
    with pytest.raises(DataError, match=r"dev-clean: no <speaker>/<chapter> folders"):
        utterances(root, valid=["dev-clean"])


def test_an_error_names_a_transcript_without_audio(root: Path) -> None:
    listed = utterances(root)
    (root / "train-clean-100/19/198/19-198-0001.flac").unlink()
    assert utterances(root) == listed


def test_audio_without_a_transcript_is_a_fault_unless_allowed(root: Path) -> None:
    (root / "train-clean-100/19/198/19-198-0002.flac").touch()
    (fault,) = (one.fault for one in utterances(root) if one.fault)
    assert re.fullmatch(
        r"audio without a transcript in 19-198\.trans\.txt; .*require_transcripts=false", fault
    )
    (root / "train-clean-100/26/495/26-495.trans.txt").unlink()
    assert [utterance.text for utterance in utterances(root, require_transcripts=False)] == [
        "TEXT OF 0",
        "TEXT OF 1",
        "",
        "",
        "",
    ]
    (root / "train-clean-100/19/198/19-198-0002.flac").unlink()
    assert [one.id for one in utterances(root) if one.fault] == ["26-495-0000", "26-495-0001"]


def test_a_copy_in_another_format_has_a_fault(root: Path) -> None:
    before = utterances(root)
    (root / "train-clean-100/19/198/19-198-0001.wav").touch()
    (root / "train-clean-100/19/198/19-198-0001.mp3").touch()
    after = utterances(root)
    assert [one.id for one in after if one.fault] == ["19-198-0001.flac", "19-198-0001.mp3"]
    assert [one.id for one in after if not one.fault] == [one.id for one in before]


def test_byte_order_mark_crlf_and_blank_lines_are_ignored(root: Path) -> None:
    transcript = root / "train-clean-100/19/198/19-198.trans.txt"
    transcript.write_bytes(b"\xef\xbb\xbf19-198-0000 A B\r\n\r\n19-198-0001\tC  D \r\n")
    assert [utterance.text for utterance in utterances(root)][:2] == ["A B", "C D"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"19-198-0000\n", "line 1 is '19-198-0000', expected '<utterance> <TEXT>'"),
        (b"19-198-0000 A\n19-198-0000 B\n", "line 2 repeats utterance '19-198-0000'"),
        (b"19-198-0000 \xff\xfe\n", "line 1, byte 12 is not UTF-8"),
    ],
)
def test_an_error_names_the_line_of_a_bad_transcript(
    root: Path, content: bytes, message: str
) -> None:
    (root / "train-clean-100/19/198/19-198.trans.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"19-198\.trans\.txt: {message}"):
        utterances(root)


def test_real_subsets(shared: Path) -> None:
    found = utterances(shared / "data/librispeech", test=["test-other"])
    assert len([utterance for utterance in found if utterance.split == "train"]) == 117
    assert len([utterance for utterance in found if utterance.split == "test"]) == 100
    assert {utterance.speaker for utterance in found if utterance.split == "train"} == {
        "19",
        "26",
        "27",
    }
    assert all(utterance.text == utterance.text.upper() and utterance.text for utterance in found)
