"""Alignments in every format, looked up by utterance id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.formats.alignments import AlignmentFiles, AlignmentOptions
from hubert_pretrain.formats.intervals import phones_of

HI = [("HH", 1600, 3200), ("AY", 3200, 4800)]
"""Content of most files of these tests: silence for 0.1 s, two phones of 0.1 s each, silence for
0.1 s.
"""


def write(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding=encoding)
    return path


def open_alignments(path: Path, **options: Any) -> AlignmentFiles:
    return AlignmentFiles(AlignmentOptions(str(path), **options))


def textgrid(tiers: dict[str, list[tuple[float, float, str]]], end: float = 0.4) -> str:
    """A long TextGrid, written by hand as Praat does."""
    text = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n'
    text += f"xmin = 0\nxmax = {end}\ntiers? <exists>\nsize = {len(tiers)}\nitem []:\n"
    for number, (name, intervals) in enumerate(tiers.items(), start=1):
        text += f'    item [{number}]:\n        class = "IntervalTier"\n'
        text += f'        name = "{name}"\n        xmin = 0\n        xmax = {end}\n'
        text += f"        intervals: size = {len(intervals)}\n"
        for i, (start, stop, label) in enumerate(intervals, start=1):
            text += f"        intervals [{i}]:\n            xmin = {start}\n"
            text += f'            xmax = {stop}\n            text = "{label}"\n'
    return text


PHONES = [(0.0, 0.1, "sil"), (0.1, 0.2, "HH"), (0.2, 0.3, "AY"), (0.3, 0.4, "")]
WORDS = [(0.0, 0.1, ""), (0.1, 0.3, "hi"), (0.3, 0.4, "")]
SHORT = (
    'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n0.4\n<exists>\n1\n'
    '"IntervalTier"\n"phones"\n0\n0.4\n4\n'
    '0\n0.1\n"sil"\n0.1\n0.2\n"HH"\n0.2\n0.3\n"AY"\n0.3\n0.4\n""\n'
)
JSON = json.dumps(
    {
        "start": 0,
        "end": 0.4,
        "tiers": {
            "phones": {"type": "IntervalTier", "entries": [[0.1, 0.2, "HH"], [0.2, 0.3, "AY"]]}
        },
    }
)


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (textgrid({"words": WORDS, "phones": PHONES}), "utf-8"),
        (textgrid({"words": WORDS, "anna - phones": PHONES}), "utf-8"),
        (textgrid({"phones": PHONES}), "utf-16"),
        (textgrid({"phones": PHONES}).replace("\n", "\r\n"), "utf-8"),
        (SHORT, "utf-8"),
        (JSON, "utf-8"),
    ],
    ids=["long", "of a speaker", "utf-16", "crlf", "short", "json"],
)
def test_textgrids(tmp_path: Path, content: str, encoding: str) -> None:
    write(tmp_path / "dev-clean/84/1/84-1-0.TextGrid", content, encoding)
    assert open_alignments(tmp_path).find("84-1-0") == HI


def test_tiers_of_a_textgrid(tmp_path: Path) -> None:
    write(tmp_path / "u.TextGrid", textgrid({"words": WORDS, "phones": PHONES}))
    assert open_alignments(tmp_path, tier="words").find("u") == [("hi", 1600, 4800)]
    with pytest.raises(
        DataError,
        match=r"u\.TextGrid: no tier 'phnes' \(did you mean 'phones'\?\), it has words, phones",
    ):
        open_alignments(tmp_path, tier="phnes").find("u")
    write(tmp_path / "u.TextGrid", textgrid({"a - phones": PHONES, "b - phones": PHONES}))
    with pytest.raises(DataError, match="has 2 tiers of phones, a - phones, b - phones"):
        open_alignments(tmp_path).find("u")
    write(tmp_path / "u.TextGrid", "no TextGrid at all")
    with pytest.raises(DataError, match=r"u\.TextGrid: not readable as a TextGrid"):
        open_alignments(tmp_path).find("u")


CTM = ";; by hand\nu 1 0.00 0.10 SIL\nu 1 0.10 0.10 HH 0.9\nu 1 0.20 0.10 AY\nv A 0.00 0.30 AY\n"


def test_ctm(tmp_path: Path) -> None:
    files = open_alignments(write(tmp_path / "phones.ctm", CTM))
    assert (len(files), files.find("u"), files.find("v"), files.find("w")) == (
        2,
        HI,
        [("AY", 0, 4800)],
        None,
    )


def test_ctm_of_numbers_with_the_phones_beside(tmp_path: Path) -> None:
    write(tmp_path / "phones.txt", "<eps> 0\nSIL 1\nHH_B 2\nAY_E 3\n")
    path = write(tmp_path / "ali.ctm", "u 1 0 0.1 1\nu 1 0.1 0.1 2\nu 1 0.2 0.1 3\n")
    assert open_alignments(path).find("u") == HI
    other = write(tmp_path / "other" / "symbols.txt", "HH_B 3\nAY_E 2\nSIL 1\n")
    assert open_alignments(path, symbols=str(other)).find("u") == [
        ("AY", 1600, 3200),
        ("HH", 3200, 4800),
    ]


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 50), st.integers(1, 50), st.sampled_from(["AA", "ü"])),
            min_size=1,
            max_size=5,
        ),
        max_size=8,
    )
)
def test_ctm_of_many(
    tmp_path_factory: pytest.TempPathFactory, utterances: list[list[tuple[int, int, str]]]
) -> None:
    """Lengths in hundredths of a second: pause, phone. Written to the hundredth, read to the
    sample.
    """
    expected: dict[str, list[tuple[str, int, int]]] = {}
    text = ""
    for number, parts in enumerate(utterances):
        time = 0
        phones = []
        for pause, length, name in parts:
            time += pause
            phones.append((name, time * 160, (time + length) * 160))
            text += f"u{number} 1 {time / 100:.2f} {length / 100:.2f} {name}\n"
            time += length
        expected[f"u{number}"] = phones
    files = open_alignments(write(tmp_path_factory.mktemp("ctm") / "x.ctm", text))
    assert {id: files.find(id) for id in expected} == expected


def test_librispeech_lists(tmp_path: Path) -> None:
    """`",HI," "0.100,0.300,0.400"`, of many chapters."""
    write(
        tmp_path / "84/1/84-1.alignment.txt",
        '84-1-0 ",HI," "0.100,0.300,0.400"\n84-1-1 "HI,YOU" "0.1,0.25"\n',
    )
    write(tmp_path / "85/1/85-1.alignment.txt", '85-1-0 "," "0.100,0.2"\n')
    files = open_alignments(tmp_path)
    assert files.find("84-1-0") == [("HI", 1600, 4800)]
    assert files.find("x/84-1-1") == [("HI", 0, 1600), ("YOU", 1600, 4000)]
    assert files.find("85-1-0") == []


def test_timit(tmp_path: Path) -> None:
    write(tmp_path / "TRAIN/DR1/F/SA1.PHN", "0 1600 h#\n1600 3200 HH\n3200 4800 AY\n4800 6400 h#\n")
    write(tmp_path / "TRAIN/DR1/F/SA1.WRD", "1600 4800 hi\n")
    write(tmp_path / "TRAIN/DR1/M/SA1.PHN", "0 1600 AY\n")
    assert open_alignments(tmp_path).find("TRAIN/DR1/F/SA1") == HI
    assert open_alignments(tmp_path / "TRAIN").find("TRAIN/DR1/F/SA1") == HI
    assert open_alignments(tmp_path, tier="words").find("TRAIN/DR1/F/SA1") == [("hi", 1600, 4800)]
    with pytest.raises(DataError, match=r"'SA1' may be 'TRAIN/DR1/F/SA1' or 'TRAIN/DR1/M/SA1'"):
        open_alignments(tmp_path).find("SA1")
    assert open_alignments(tmp_path).find("TRAIN/DR2/F/SA1") is None


@pytest.mark.parametrize(
    ("silence", "expected"),
    [
        ("gap", [("AY", 160, 320)]),
        ("sil", [("sil", 0, 160), ("AY", 160, 320), ("sil", 320, 480), ("sil", 480, 640)]),
        ("keep", [("SP", 0, 160), ("AY", 160, 320), ("<eps>", 320, 480)]),
    ],
)
def test_silence(silence: str, expected: list[tuple[str, int, int]]) -> None:
    intervals = [
        ("", 480, 640),
        ("AY", 160, 320),
        ("<eps>", 320, 480),
        ("SP", 0, 160),
        ("AY", 7, 7),
    ]
    assert phones_of(intervals, silence, "here") == expected


def test_overlaps() -> None:
    """Up to 10 ms come from rounding; the later phone gives way."""
    assert phones_of([("A", 0, 260), ("B", 160, 400)], "gap", "here") == [
        ("A", 0, 260),
        ("B", 260, 400),
    ]
    with pytest.raises(
        DataError, match=r"here: 'B' begins at 0\.100 s, before 'A' ends at 0\.200 s"
    ):
        phones_of([("A", 0, 3200), ("B", 1600, 4000)], "gap", "here")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.ctm", "u 1 0 0.1\n", r"x\.ctm: utterance 'u': 'u 1 0 0\.1' has 4 fields"),
        ("x.ctm", "u 1 0 zero A\n", r"duration is 'zero', expected a number"),
        (
            "x.ctm",
            "u 1 0 1 A\nv 1 0 1 A\nu 1 1 1 A\n",
            r"x\.ctm: line 3 comes back to utterance 'u'",
        ),
        (
            "u.phn",
            "0 1600 h#\n1600 AY\n",
            r"u\.phn: line 2 is '1600 AY', expected 'start end label'",
        ),
        ("u.phn", "1600 0 h#\n", r"u\.phn: line 1: 'h#' ends at 0, before its start 1600"),
        ("x.alignment.txt", 'u "A,B" "0.1"\n', "has 2 labels and 1 ends"),
        ("x.alignment.txt", "u A 0.1\n", "'u A 0.1' is not"),
    ],
)
def test_errors_name_the_fault(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_alignments(write(tmp_path / name, content)).find("u")


def test_no_alignments_and_several_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_alignments(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no alignments there; expected files \*\.textgrid"):
        open_alignments(tmp_path)
    write(tmp_path / "a" / "u.phn", "0 1600 A\n")
    write(tmp_path / "b" / "x.ctm", "u 1 0 1 A\n")
    with pytest.raises(DataError, match="has alignments of ctm and timit; choose one"):
        open_alignments(tmp_path)
    assert open_alignments(tmp_path, format="timit").find("a/u") == [("A", 0, 1600)]
    with pytest.raises(ConfigError, match="did you mean 'timit'"):
        open_alignments(tmp_path, format="timmit")
