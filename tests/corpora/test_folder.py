from pathlib import Path

import pytest

from hubert_pretrain.corpora.folder import Folder
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError


def tree(root: Path, *paths: str) -> Path:
    """Empty files: listing opens no audio."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def utterances(root: Path, **values: object) -> list[SourceUtterance]:
    return list(Folder(**({"root": str(root)} | values)).utterances(root))


def test_all_audio_files_and_nothing_else_are_listed(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "b.WAV",
        "x/a.flac",
        "x/y/c.ogg",
        "d.mp3",
        "e.opus",
        "notes.txt",
        "x/._a.flac",
        "cover.jpg",
    )
    assert [(utterance.id, utterance.split) for utterance in utterances(tmp_path)] == [
        (id, "train") for id in ("b", "d", "e", "x/a", "x/y/c")
    ]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    tree(tmp_path / "elsewhere", "x/1.wav")
    root = tree(tmp_path / "root", "2.wav")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(root)
    assert [utterance.id for utterance in utterances(root)] == ["2", "link/x/1"]


def test_speaker_and_label_from_the_levels_above(tmp_path: Path) -> None:
    tree(tmp_path, "yes/anna/1.wav", "no/bob/1.wav")
    assert [
        (utterance.speaker, utterance.label)
        for utterance in utterances(tmp_path, speaker_level=1, label_level=2)
    ] == [("bob", "no"), ("anna", "yes")]
    assert [(utterance.speaker, utterance.label) for utterance in utterances(tmp_path)] == [
        ("", ""),
        ("", ""),
    ]
    with pytest.raises(DataError, match=r"no/bob/1\.wav: has 2 folders .* level 3"):
        utterances(tmp_path, speaker_level=3)


def test_splits_from_folders(tmp_path: Path) -> None:
    tree(tmp_path, "train/s/1.wav", "dev/s/1.wav", "Test/s/1.wav")
    assert [(utterance.id, utterance.split) for utterance in utterances(tmp_path)] == [
        ("Test/s/1", "test"),
        ("dev/s/1", "valid"),
        ("train/s/1", "train"),
    ]
    assert {utterance.split for utterance in utterances(tmp_path, split_by="hash")} == {"train"}
    tree(tmp_path, "extra/1.wav")
    with pytest.raises(
        DataError,
        match=r"extra/1\.wav: its first folder .* names no split .*but that of other files does"
        r".*split_by=hash",
    ):
        utterances(tmp_path)


def test_splits_from_folders_when_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one/1\.wav: its first folder"):
        utterances(tree(tmp_path, "one/1.wav"), split_by="folders")


def test_test_share_by_hash_does_not_move_when_files_are_added(tmp_path: Path) -> None:
    tree(tmp_path, *[f"{i}.wav" for i in range(300)])
    before = {
        utterance.id: utterance.split for utterance in utterances(tmp_path, test_fraction=0.2)
    }
    assert 40 <= list(before.values()).count("test") <= 80
    tree(tmp_path, *[f"{i}.wav" for i in range(300, 400)])
    after = {utterance.id: utterance.split for utterance in utterances(tmp_path, test_fraction=0.2)}
    assert before.items() <= after.items()


def test_a_table_with_all_columns(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.wav", "2.flac")
    table = tmp_path / "list.csv"
    table.write_bytes(
        (
            "\ufeffpath,speaker,text,label,split,extra\r\n"
            'a/1.wav,anna,"HELLO, YOU",hi,dev,x\r\n'
            "2.flac,,,,,\r\n"
        ).encode()
    )
    one, two = utterances(tmp_path, table="list.csv")
    assert (one.id, one.speaker, one.text, one.label, one.split) == (
        "a/1",
        "anna",
        "HELLO, YOU",
        "hi",
        "valid",
    )
    assert (two.id, two.speaker, two.text, two.label, two.split) == ("2", "", "", "", "train")


def test_a_table_with_other_names_for_columns(tmp_path: Path) -> None:
    tree(tmp_path, "clips/1.mp3")
    elsewhere = tmp_path / "validated.tsv"
    elsewhere.write_text('client_id\tpath\tsentence\nanna\tclips/1.mp3\t"hi" she said\n')
    (utterance,) = utterances(
        tmp_path, table=str(elsewhere), columns={"speaker": "client_id", "text": "sentence"}
    )
    assert (utterance.speaker, utterance.text, utterance.path) == (
        "anna",
        '"hi" she said',
        tmp_path / "clips/1.mp3",
    )
    with pytest.raises(
        DataError,
        match=r"validated\.tsv: no column 'sentense' \(did you mean 'sentence'\?\).*columns\.text",
    ):
        utterances(tmp_path, table=str(elsewhere), columns={"text": "sentense"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file\n1.wav\n", r"no column 'path', it has file"),
        ("", r"no column 'path', it has no header"),
        ("path\n", r"has no lines below its header"),
    ],
)
def test_an_error_names_a_bad_table(tmp_path: Path, content: str, message: str) -> None:
    tree(tmp_path, "1.wav")
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(DataError, match=rf"list\.csv: {message}"):
        utterances(tmp_path, table="list.csv")


def test_one_recording_in_several_formats_is_taken_once(tmp_path: Path) -> None:
    """A folder often holds what was converted beside its original."""
    found = utterances(tree(tmp_path, "a.flac", "a.gsm.wav", "a.wav", "b.mp3", "x/a.sph", "a.WAV"))
    assert [(one.id, one.fault.partition(" in another")[0]) for one in found] == [
        ("a", ""),
        ("a.flac", f"has the name of {tmp_path}/a.WAV"),
        ("a.gsm", ""),
        ("a.wav", f"has the name of {tmp_path}/a.WAV"),
        ("b", ""),
        ("x/a", ""),
    ]


def test_audio_that_a_table_names_and_is_not_there_is_left_to_prepare(tmp_path: Path) -> None:
    tree(tmp_path, "1.wav")
    (tmp_path / "list.csv").write_text("path\n1.wav\nnone.wav\n")
    assert [one.id for one in utterances(tmp_path, table="list.csv")] == ["1", "none"]


def test_a_full_split_column_needs_no_split_in_the_names_of_folders(tmp_path: Path) -> None:
    tree(tmp_path, "train/1.wav", "extra/2.wav")
    table = tmp_path / "list.csv"
    table.write_text("path;split\ntrain/1.wav;dev\nextra/2.wav;train\n")
    assert [one.split for one in utterances(tmp_path, table="list.csv")] == ["valid", "train"]
    table.write_text("path;split\ntrain/1.wav;dev\nextra/2.wav;\n")
    assert [one.split for one in utterances(tmp_path, table="list.csv")] == ["valid", "train"]


def test_an_error_names_a_table_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"path\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"list\.csv: line 2, byte 5 is not UTF-8 text"):
        utterances(tmp_path, table="list.csv")


def test_errors_name_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder; .*data\.root"):
        utterances(tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"no audio files below it, 1 files are not taken \(\.txt: 1\);"
    ):
        utterances(tree(tmp_path, "readme.txt"))
    with pytest.raises(DataError, match=r"list\.csv: no such file; data\.corpus\.table"):
        utterances(tmp_path, table="list.csv")


def test_errors_suggest_the_nearest_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"split_by='folder'.*did you mean 'folders'"):
        utterances(tmp_path, split_by="folder")
    with pytest.raises(ConfigError, match=r"'speakers' is not one of .*did you mean 'speaker'"):
        utterances(tmp_path, columns={"speakers": "x"})
