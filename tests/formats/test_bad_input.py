"""Malformed manifests: one-line errors with file, line and fix; no row is skipped, no code
executed.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.corpora.manifest import ManifestFile
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.formats.kaldi import command_for, path_of_command
from hubert_pretrain.formats.text import lines, safe_name

from .conftest import write_audio


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a.wav, b.wav and `ü c.wav`, a second each."""
    for name in ("a", "b", "ü c"):
        write_audio(tmp_path / f"{name}.wav", 16_000)
    return tmp_path


def read(path: Path, **options: Any) -> list[SourceUtterance]:
    return list(ManifestFile(path=str(path), **options).utterances(path.parent / "out"))


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


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
    (
        "x.csv",
        "path,text\ngone.wav,hi\n",
        r"x\.csv: line 2 names '.*/gone\.wav', which is not there; .*data\.corpus\.root",
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
        read(write(place / name, content))
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
        found = read(write(place / name, bom + content.replace("\n", ending)))
        assert [(utterance.id, utterance.text, str(utterance.path)) for utterance in found] == [
            ("a", "HI YOU", str(place / "a.wav")),
            ("ü c", "HO", str(place / "ü c.wav")),
        ]


def test_a_text_may_hold_unicode_line_breaks(place: Path) -> None:
    (utterance,) = read(write(place / "x.jsonl", '{"path": "a.wav", "text": "a\u2028b\x85c"}\n'))
    assert utterance.text == "a\u2028b\x85c"


def test_quoted_lines_are_counted(place: Path) -> None:
    write(place / "x.csv", 'path,text\na.wav,"one\ntwo\nthree"\nb.wav,x,y\n')
    with pytest.raises(DataError, match="line 5 has 3 fields"):
        read(place / "x.csv")


def test_paths_absolute_relative_and_below_a_root(place: Path) -> None:
    manifest = write(place / "lists" / "x.csv", f"path\n{place}/a.wav\n../b.wav\n")
    assert [str(utterance.path) for utterance in read(manifest)] == [
        str(place / "a.wav"),
        str(place / "b.wav"),
    ]
    manifest = write(place / "lists" / "y.csv", "path\na.wav\n")
    assert [str(utterance.path) for utterance in read(manifest, root=str(place))] == [
        str(place / "a.wav")
    ]


def test_an_error_names_a_damaged_gzip(place: Path) -> None:
    content = gzip.compress(b"path\n" + b"a.wav\n" * 10_000)
    with pytest.raises(DataError, match=r"x\.csv\.gz: damaged gzip"):
        list(lines(write(place / "x.csv.gz", content[: len(content) // 2])))


@pytest.mark.parametrize("name", ["train.wrd", "train.ltr"])
@pytest.mark.parametrize(
    ("texts", "fewer"), [("HI\n", "train.(wrd|ltr)"), ("HI\nHO\nHU\n", "train.tsv")]
)
def test_texts_that_do_not_fit_the_rows_are_refused(
    place: Path, name: str, texts: str, fewer: str
) -> None:
    write(place / name, texts)
    with pytest.raises(DataError, match=rf"{fewer}: ends after [12] utterances.*joined by line"):
        read(write(place / "train.tsv", ".\na.wav\t16000\nb.wav\t16000\n"))


def test_counts_at_the_files_rate_are_detected(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 8000, 8000)
    manifest = write(tmp_path / "train.tsv", ".\na.wav\t8000\n")
    with pytest.raises(
        DataError,
        match=r"line 2: counts samples at the 8000 Hz of the file; .*data\.corpus\.rate=8000",
    ):
        read(manifest)
    assert [utterance.expected_samples for utterance in read(manifest, rate=8000)] == [16_000]


def test_invalid_options_are_refused(place: Path) -> None:
    for options, message in [
        ({"format": "kladi"}, r"format=kladi: .*did you mean 'kaldi'"),
        ({"ids": "nam"}, r"ids='nam'.*did you mean 'name'"),
        ({"columns": {"txt": "x"}}, r"columns: 'txt' .*did you mean 'text'"),
        ({"rate": 0}, r"rate=0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read(place / "x.csv", **options)
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        read(place / "nowhere")
    with pytest.raises(DataError, match=r"no manifest in it, it has a\.wav, .*data=folder"):
        read(place)


# -- Kaldi


def kaldi(place: Path, **files: str) -> list[SourceUtterance]:
    folder = place / "data"
    for name, content in files.items():
        write(folder / name.replace("wav", "wav.scp"), content)
    return read(folder)


BAD_KALDI = [
    (
        {"wav": "u rm -rf / |\n"},
        r"wav\.scp: line 1: is the command 'rm -rf /', which would be code to execute",
    ),
    ({"wav": "u flac -c -d -s $(id).flac |\n"}, "code to execute"),
    ({"wav": "u flac -c -d -s a.flac; id |\n"}, "code to execute"),
    ({"wav": "u flac -c -d -s a.flac > b |\n"}, "code to execute"),
    ({"wav": "u flac -c -d -s `id` |\n"}, "code to execute"),
    ({"wav": "u cat a.wav | sox - -t wav - |\n"}, "code to execute"),
    ({"wav": "u sox a.wav -t wav - vol 2 |\n"}, "code to execute"),
    ({"wav": "u sph2pipe -f wav -c 2 a.sph |\n"}, "code to execute"),
    ({"wav": "u ffmpeg -i a.wav -af volume=2 -f wav - |\n"}, "code to execute"),
    ({"wav": "u a.ark:17\n"}, r"wav\.scp: line 1: 'a\.ark:17' is no audio file"),
    ({"wav": "u\n"}, r"wav\.scp: line 1 is 'u' alone"),
    ({"wav": "\n"}, r"its wav\.scp is empty"),
    ({"wav": "u ../a.wav\nu ../b.wav\n"}, r"line 2: repeats utterance 'u' of .*line 1"),
    ({"wav": "u ../a.wav\n", "text": "v HI\n"}, r"text: has no line of utterance 'u'"),
    (
        {"wav": "u ../a.wav\n", "text": "u HI\nv HO\n"},
        r"text: has a text of 'v', which has no audio",
    ),
    ({"wav": "u ../a.wav\n", "text": "u HI\nu HO\n"}, r"text: line 2 repeats 'u'"),
    ({"wav": "u ../a.wav\n", "utt2spk": "v x\n"}, r"utt2spk: has no line of utterance 'u'"),
    (
        {"wav": "r ../a.wav\n", "segments": "u r 0.5 0.2\n"},
        r"segments: line 1: ends at 0\.2 s, which is not after its start at 0\.5 s",
    ),
    (
        {"wav": "r ../a.wav\n", "segments": "u q 0 1\n"},
        r"segments: line 1: recording 'q' is not in .*wav\.scp",
    ),
    ({"wav": "r ../a.wav\n", "segments": "u r 0\n"}, r"segments: line 1 has 3 fields"),
    (
        {"wav": "r ../a.wav\nr ../b.wav\n", "segments": "u r 0 1\n"},
        r"wav\.scp: line 2 repeats recording 'r'",
    ),
]


@pytest.mark.parametrize(("files", "message"), BAD_KALDI)
def test_errors_of_a_data_directory(place: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        kaldi(place, **files)


def test_a_data_directory(place: Path) -> None:
    waves = "r ../a.wav\ns cat '../ü c.wav' |\n"
    found = kaldi(
        place,
        wav=waves,
        segments="u r 0.25 0.5\nv s 0.5 -1\n",
        text="u HI  YOU\nv\n",
        spk2utt="x u v\n",
    )
    assert [(one.id, one.start, one.num_samples, one.text, one.speaker) for one in found] == [
        ("u", 4000, 4000, "HI YOU", "x"),
        ("v", 8000, None, "", "x"),
    ]
    assert [str(one.path) for one in found] == [str(place / "a.wav"), str(place / "ü c.wav")]


@pytest.mark.parametrize(
    "command",
    [
        "flac -c -d -s {} ",
        "/usr/bin/flac -cds {}",
        "flac --decode --stdout --silent {}",
        "sox {} -t wav -",
        "sox -t flac {} -t wav -r 16k -b 16 -e signed -c 1 - rate 16k",
        "ffmpeg -nostdin -v error -i {} -f wav -ar 16000 -ac 1 -",
        "sph2pipe -f wav -p {}",
        "cat {}",
    ],
)
@pytest.mark.parametrize("path", ["/x/a.flac", "/x/it's $(here) `b` *.flac", "ü/(1).flac"])
def test_commands_that_only_decode_are_paths(command: str, path: str) -> None:
    import shlex

    assert path_of_command(command.format(shlex.quote(path)), "wav.scp: line 1") == path


@pytest.mark.parametrize("path", ["/x/a b.wav", "/x/a'b.flac", "/x/$(id).mp3", "/x/ü;.opus"])
def test_our_own_commands_are_read_back(path: str) -> None:
    command = command_for(path)
    assert (path_of_command(command[:-1], "") if command.endswith("|") else command) == path


# -- lhotse

CUT: dict[str, Any] = {
    "id": "c",
    "start": 0.25,
    "duration": 0.5,
    "channel": 0,
    "supervisions": [
        {
            "id": "2",
            "recording_id": "r",
            "start": 0.3,
            "duration": 0.2,
            "channel": 0,
            "text": "YOU",
            "speaker": "x",
        },
        {
            "id": "1",
            "recording_id": "r",
            "start": 0.0,
            "duration": 0.3,
            "channel": 0,
            "text": "HI",
            "speaker": "x",
            "alignment": {"phone": [["h", 0.25, 0.125, None], ["i", 0.375, 0.125, None]]},
        },
    ],
    "recording": {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
        "sampling_rate": 16000,
        "num_samples": 16000,
        "duration": 1.0,
        "channel_ids": [0],
    },
    "type": "MonoCut",
}


def cut(place: Path, change: Callable[[dict[str, Any]], Any]) -> SourceUtterance:
    row = json.loads(json.dumps(CUT))
    change(row)
    (utterance,) = read(write(place / "cuts_dev-clean.jsonl", json.dumps(row) + "\n"))
    return utterance


def test_a_cut(place: Path) -> None:
    utterance = cut(place, lambda row: None)
    assert utterance == SourceUtterance(
        id="c",
        path=str(place / "a.wav"),
        split="valid",
        start=4000,
        num_samples=8000,
        text="HI YOU",
        speaker="x",
        phones=[("h", 0, 2000), ("i", 2000, 4000)],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(type="MixedCut"), "line 1: is a MixedCut, expected a MonoCut"),
        (lambda row: row.update(type="PaddingCut"), "is a PaddingCut"),
        (lambda row: row.update(channel=1), "is about channel 1, only channel 0"),
        (lambda row: row.update(channel=[0, 1]), r"is about channel \[0, 1\]"),
        (
            lambda row: row["recording"]["sources"][0].update(type="command", source="rm -rf /"),
            "is the command 'rm -rf /', .*code to execute",
        ),
        (
            lambda row: row["recording"]["sources"][0].update(type="memory"),
            "is of type 'memory', expected file or url",
        ),
        (lambda row: row["recording"]["sources"][0].update(channels=[0, 1]), "several channels"),
        (
            lambda row: row["recording"].update(transforms=[{"name": "Speed"}]),
            "changed while it is read",
        ),
        (lambda row: row.pop("recording"), "is a cut without its recording"),
        (lambda row: row.update(start=2.0), r"begins at 2\.0 s of a recording of 1 s"),
        (lambda row: row.update(duration=-1), "duration is -1, expected a number"),
        (lambda row: row.pop("id"), r"is no MonoCut of lhotse \(KeyError: 'id'\)"),
        (lambda row: row.update(supervisions=3), "is no MonoCut of lhotse"),
    ],
)
def test_other_cuts_are_refused(
    place: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        cut(place, change)


# -- names


@pytest.mark.parametrize(
    "id",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a/../../b",
        ".hidden",
        "-rf",
        "x" * 300,
        "ü" * 300,
        "",
        "a\0b",
        "a\nb",
        "CON/../x",
    ],
)
def test_an_id_is_never_a_path(id: str) -> None:
    name = safe_name(id)
    assert re.fullmatch(r"[\w.-]+", name)
    assert not name.startswith((".", "-"))
    assert len(name.encode()) < 200
    assert safe_name(id) != safe_name(f"{id}x")


def test_plain_ids_are_unchanged() -> None:
    assert [safe_name(id) for id in ("84-121123-0001", "anna_1.a", "ü")] == [
        "84-121123-0001",
        "anna_1.a",
        "ü",
    ]
