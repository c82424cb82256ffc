"""Kaldi data directories, and commands in wav.scp, none of which is executed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.kaldi import command_for, decoded_by

from .conftest import read_manifest, write


def kaldi(place: Path, **files: str) -> list[SourceUtterance]:
    folder = place / "data"
    for name, content in files.items():
        write(folder / name.replace("wav", "wav.scp"), content)
    return read_manifest(folder)


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
    ({"wav": "u sph2pipe -f wav -c 3 a.sph |\n"}, "code to execute"),
    ({"wav": "u sox a.wav -t wav - remix 0 |\n"}, "code to execute"),
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

    assert decoded_by(command.format(shlex.quote(path)), "wav.scp: line 1") == (path, None)


@pytest.mark.parametrize(
    ("command", "channel"),
    [
        ("sph2pipe -f wav -p -c 1 a.wav", 0),
        ("sph2pipe -c 2 a.wav", 1),
        ("/usr/bin/sox a.wav -t wav - remix 2", 1),
    ],
)
@pytest.mark.parametrize("segments", ["", "u r 0 0.5\n"])
def test_commands_that_take_a_channel(
    place: Path, command: str, channel: int, segments: str
) -> None:
    """Switchboard: two speakers in the channels of one file."""
    files = {"wav": f"r {command} |\n"} | ({"segments": segments} if segments else {})
    (one,) = kaldi(place, **files)
    assert (Path(one.path).name, one.channel) == ("a.wav", channel)


@pytest.mark.parametrize("path", ["/x/a b.wav", "/x/a'b.flac", "/x/$(id).mp3", "/x/ü;.opus"])
def test_our_own_commands_are_read_back(path: str) -> None:
    command = command_for(path)
    assert (decoded_by(command[:-1], "")[0] if command.endswith("|") else command) == path
