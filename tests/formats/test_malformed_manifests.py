"""Malformed tables and fairseq lists: one-line errors with file, line and fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubert_pretrain.errors import ConfigError, DataError

from .conftest import read_manifest, write, write_audio

BAD = [
    (
        "x.csv",
        "path,text\na.wav,hi\na.wav,ho,hu\n",
        r"x\.csv: line 3 has 3 fields, its header 2; quote a text",
    ),
    (
        "x.tsv",
        "path\ttext\na.wav\thi\tho\n",
        r"x\.tsv: line 2 has 3 fields, its header 2; a text may hold no tab",
    ),
    ("x.csv", "path,text\n", r"x\.csv: has no lines below its header"),
    ("x.csv", "", r"x\.csv: begins with '', which is no manifest; expected"),
    ("x.csv", b"path,text\na.wav,caf\xe9\n", r"x\.csv: line 2, byte 19 is not UTF-8 text \(0xe9\)"),
    ("x.csv", "path,text\na.wav,hi\n".encode("utf-16"), r"x\.csv: is UTF-16 text, expected UTF-8"),
    (
        "x.csv",
        "id,path\nu,a.wav\nv,b.wav\nu,b.wav\n",
        r"x\.csv: line 4: repeats utterance 'u' of .*x\.csv: line 2",
    ),
    ("x.csv", "path,text\n,hi\n", r"x\.csv: line 2 has no 'path'"),
    ("x.csv", "path,start\na.wav,-3\n", r"x\.csv: line 2: start is '-3', expected a whole number"),
    (
        "x.csv",
        "path,start\na.wav,1.5\n",
        r"x\.csv: line 2: start is '1\.5', expected a whole number",
    ),
    (
        "x.csv",
        "path,start_seconds\na.wav,nan\n",
        r"x\.csv: line 2: start_seconds is 'nan', expected a number",
    ),
    ("x.csv", "path,num_samples\na.wav,0\n", r"x\.csv: line 2: has no samples"),
    (
        "x.csv",
        "path,start,start_seconds\na.wav,0,0\n",
        r"x\.csv: line 2: has both start and start_seconds",
    ),
    ("x.csv", "path,path\na.wav,b.wav\n", r"x\.csv: has two columns 'path'"),
    ("x.csv", 'path,text\na.wav,"hi\n', r"x\.csv: line 2 is not of a csv"),
    ("x.csv", "paht,text\na.wav,hi\n", r"x\.csv: no column 'path' \(did you mean 'paht'\?\)"),
    ("x.csv", "path,text\na.wav,h\0i\n", r"x\.csv: line 2.*"),
    ("x.jsonl", '{"path": "a.wav"}\n{"path": \n', r"x\.jsonl: line 2 is no JSON"),
    ("x.jsonl", '{"path": "a.wav"}\n[1]\n', r"x\.jsonl: line 2 holds list"),
    (
        "x.jsonl",
        '{"path": "a.wav", "text": ["a"]}\n',
        r"x\.jsonl: line 1: text is \['a'\], expected a text",
    ),
    (
        "x.jsonl",
        '{"path": "a.wav", "text": "\\ud800"}\n',
        r"x\.jsonl: line 1: text is .* half a character",
    ),
    ("x.jsonl", '{"path": "a.wav", "start": true}\n', r"x\.jsonl: line 1: start is True"),
    ("x.jsonl", '{"path": "a.wav"}\n{"text": "b"}\n', r"x\.jsonl: line 2 has no 'path'"),
    ("train.tsv", ".\n", r"train\.tsv: has no lines below its root"),
    ("train.tsv", ".\na.wav\t16000\t3\n", r"train\.tsv: line 2 has 3 fields"),
    (
        "train.tsv",
        ".\na.wav\t16000\nb.wav\tmany\n",
        r"train\.tsv: line 3: number of samples is 'many'",
    ),
    (
        "train.tsv",
        ".\na.wav\t16000\na.wav\t16000\n",
        r"train\.tsv: line 3: repeats utterance 'a' of .*line 2",
    ),
    (
        "x.txt",
        "once upon a time\n",
        r"x\.txt: begins with 'once upon a time', which is no manifest; expected .*fairseq",
    ),
]


@pytest.mark.parametrize(
    ("name", "content", "message"), BAD, ids=[f"{i}-{name}" for i, (name, *_) in enumerate(BAD)]
)
def test_errors_name_the_fault(place: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_manifest(write(place / name, content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_line_ends_blank_lines_and_byte_order_marks_are_ignored(
    place: Path, ending: str, bom: str
) -> None:
    for name, content in [
        ("train.csv", "path,text\n\na.wav,HI YOU\n   \nü c.wav,HO\n\n"),
        (
            "train.jsonl",
            '\n{"path": "a.wav", "text": "HI YOU"}\n\n{"path": "ü c.wav", "text": "HO"}\n',
        ),
        ("train.tsv", ".\na.wav\t16000\n\nü c.wav\t16000\n\n"),
    ]:
        write(place / "train.wrd", f"HI YOU{ending}HO{ending}{ending}")
        found = read_manifest(write(place / name, bom + content.replace("\n", ending)))
        assert [(utterance.id, utterance.text, str(utterance.path)) for utterance in found] == [
            ("a", "HI YOU", str(place / "a.wav")),
            ("ü c", "HO", str(place / "ü c.wav")),
        ]


def test_a_text_may_hold_unicode_line_breaks(place: Path) -> None:
    (utterance,) = read_manifest(
        write(place / "x.jsonl", '{"path": "a.wav", "text": "a\u2028b\x85c"}\n')
    )
    assert utterance.text == "a\u2028b\x85c"


def test_quoted_lines_are_counted(place: Path) -> None:
    write(place / "x.csv", 'path,text\na.wav,"one\ntwo\nthree"\nb.wav,x,y\n')
    with pytest.raises(DataError, match="line 5 has 3 fields"):
        read_manifest(place / "x.csv")


def test_paths_absolute_relative_and_below_a_root(place: Path) -> None:
    manifest = write(place / "lists" / "x.csv", f"path\n{place}/a.wav\n../b.wav\n")
    assert [str(utterance.path) for utterance in read_manifest(manifest)] == [
        str(place / "a.wav"),
        str(place / "b.wav"),
    ]
    manifest = write(place / "lists" / "y.csv", "path\na.wav\n")
    assert [str(utterance.path) for utterance in read_manifest(manifest, root=str(place))] == [
        str(place / "a.wav")
    ]


@pytest.mark.parametrize("name", ["train.wrd", "train.ltr"])
@pytest.mark.parametrize(
    ("texts", "fewer"), [("HI\n", "train.(wrd|ltr)"), ("HI\nHO\nHU\n", "train.tsv")]
)
def test_texts_that_do_not_fit_the_rows_are_refused(
    place: Path, name: str, texts: str, fewer: str
) -> None:
    write(place / name, texts)
    with pytest.raises(DataError, match=rf"{fewer}: ends after [12] utterances.*joined by line"):
        read_manifest(write(place / "train.tsv", ".\na.wav\t16000\nb.wav\t16000\n"))


def test_counts_at_the_files_rate_are_detected(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 8000, 8000)
    manifest = write(tmp_path / "train.tsv", ".\na.wav\t8000\n")
    with pytest.raises(
        DataError,
        match=r"line 2: counts samples at the 8000 Hz of the file; .*data\.corpus\.rate=8000",
    ):
        read_manifest(manifest)
    assert [utterance.expected_samples for utterance in read_manifest(manifest, rate=8000)] == [
        16_000
    ]


def test_invalid_options_are_refused(place: Path) -> None:
    for options, message in [
        ({"format": "kladi"}, r"format=kladi: .*did you mean 'kaldi'"),
        ({"ids": "nam"}, r"ids='nam'.*did you mean 'name'"),
        ({"columns": {"txt": "x"}}, r"columns: 'txt' .*did you mean 'text'"),
        ({"rate": 0}, r"rate=0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_manifest(place / "x.csv", **options)
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        read_manifest(place / "nowhere")
    with pytest.raises(DataError, match=r"no manifest in it, it has a\.wav, .*data=folder"):
        read_manifest(place)
