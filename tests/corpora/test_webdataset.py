import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hubert_pretrain.corpora.webdataset import WebDataset
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.shards import writer
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError
from tests.data.shards.conftest import corpus, make_tar, sound  # noqa: F401

MakeTar = Callable[..., Path]


def utterances(tmp_path: Path, **values: object) -> list[SourceUtterance]:
    return list(
        WebDataset(**{"root": str(tmp_path), "train": ["*.tar"], **values}).utterances(
            tmp_path / "out"
        )
    )  # type: ignore[arg-type]


def test_shards_of_other_tools_are_indexed(make_tar: MakeTar, tmp_path: Path) -> None:
    fields = json.dumps({"transcript": " hello ", "spk": 7, "label": "x"}).encode()
    make_tar(
        [
            ("a/u1.flac", sound(1, suffix="flac")),
            ("a/u1.json", fields),
            ("a/u2.wav", sound(2)),
            ("a/u2.txt", b"two\nlines "),
        ],
        "t-0.tar",
    )
    make_tar([("v.mp3", sound(3, suffix="mp3"))], "v-0.tar")
    found = utterances(
        tmp_path, train=["t-{0..0}.tar"], valid=["v-*.tar"], text="transcript", speaker="spk"
    )
    assert [(one.id, one.split, one.speaker, one.text, one.label) for one in found] == [
        ("a/u1", "train", "7", " hello ", "x"),
        ("a/u2", "train", "", "two lines", ""),
        ("v", "valid", "", "", ""),
    ]
    for one, expected in zip(
        found, [sound(1, suffix="flac"), sound(2), sound(3, suffix="mp3")], strict=True
    ):
        assert Path(one.path).read_bytes()[one.offset : one.offset + one.num_bytes] == expected


def test_a_shard_is_read_once(
    make_tar: MakeTar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tar([("a.wav", sound(1))])
    first = utterances(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(WebDataset, "_read", lambda *args: pytest.fail("read again"))
        assert utterances(tmp_path) == first
    make_tar([("b.wav", sound(2))])
    os.utime(path, (1, 1))
    assert [one.id for one in utterances(tmp_path)] == ["b"]


def test_ids_of_shards_that_all_number_from_zero(make_tar: MakeTar, tmp_path: Path) -> None:
    for name in ("x.tar", "y.tar"):
        make_tar([("0.wav", sound(1))], name)
    for ids in ("shard", "auto"):
        assert [one.id for one in utterances(tmp_path, ids=ids)] == ["x/0", "y/0"]
    assert [one.id for one in utterances(tmp_path, ids="key")] == ["0", "0"]
    make_tar([("1.wav", sound(2))], "y.tar")
    assert [one.id for one in utterances(tmp_path)] == ["0", "1"]
    with pytest.raises(ConfigError, match=r"ids='shards'"):
        utterances(tmp_path, ids="shards")


def test_ids_survive_our_own_shards(corpus: Corpus, tmp_path: Path) -> None:
    writer.convert(corpus, tmp_path / "out", format="pcm", megabytes=0.06, workers=1)
    found = utterances(
        tmp_path,
        root=str(tmp_path / "out" / "shards"),
        train=["train-*.tar"],
        valid=["valid-*.tar"],
    )
    sharded = Corpus.open(tmp_path / "out")
    expected = [sharded.manifest[row] for row in range(len(sharded.manifest))]
    assert [(one.id, one.text, one.speaker, one.split) for one in found] == [
        (u.id, u.text, u.speaker, u.split) for u in expected
    ]
    assert [(str(one.path), one.offset, one.num_bytes) for one in found] == [
        (u.path, u.offset, u.num_bytes) for u in expected
    ]


def test_shards_behind_a_url(make_tar: MakeTar, tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/wds/s-0.tar", make_tar([("a.wav", sound(1))]).read_bytes())
    for pattern in ("s-*.tar", "s-{0..0}.tar"):
        (one,) = utterances(tmp_path, root="memory://wds", train=[pattern])
        assert (one.id, one.path) == ("a", "memory://wds/s-0.tar")


def test_a_shard_that_differs_from_its_index_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    writer.convert(corpus, tmp_path / "out", format="pcm", workers=1)
    shard = tmp_path / "out" / "shards" / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        DataError,
        match=r"train-000000\.tar: has \d+ bytes .* with another content; copy the shard again",
    ):
        utterances(tmp_path, root=str(shard.parent), train=["train-*.tar"])


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ([("a.txt", b"x")], r"a has txt; expected one member of \.wav"),
        ([("a.wav", b"x"), ("a.flac", b"x")], r"a has wav, flac; expected one member"),
        ([("a.wav", b"x"), ("a.json", b"[]")], r"a\.json: is a list"),
        ([("a.wav", b"x"), ("a.cls", b"\xff")], r"a\.cls: not UTF-8 text"),
    ],
)
def test_a_bad_sample_has_a_fault(
    make_tar: MakeTar, tmp_path: Path, members: list[tuple[str, bytes]], fault: str
) -> None:
    make_tar([*members, ("b.wav", sound(1))])
    bad, good = utterances(tmp_path)
    assert re.match(fault, bad.fault)
    assert (good.id, good.fault) == ("b", "")


def test_members_of_other_tools(make_tar: MakeTar, tmp_path: Path) -> None:
    """Classes as `cls`, audio under two extensions, and members beside it that are not read."""
    make_tar(
        [
            ("a.audio.wav", sound(1)),
            ("a.cls", b"7\n"),
            ("a.json", b'{"label": 3, "text": "hi"}'),
            ("b.wav", sound(2)),
            ("b.json", b'{"label": 0}'),
            ("b.pyd", b"\x80\x04"),
            ("b.pth", b"\x80\x04"),
            ("README", b""),
            ("._b.wav", b""),
        ]
    )
    for _ in range(2):  # the second time from the stored index
        source = WebDataset(root=str(tmp_path), train=["*.tar"])
        found = list(source.utterances(tmp_path / "out"))
        assert [(one.id, one.label, one.text, one.fault) for one in found] == [
            ("a", "7", "hi", ""),
            ("b", "0", "", ""),
        ]
        assert source.passed_over.kinds == {".pyd": 1, ".pth": 1, "no suffix": 1, "hidden": 1}
        content = Path(found[0].path).read_bytes()
        assert content[found[0].offset :].startswith(sound(1))


def test_access_that_is_refused_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems behind URLs have errors of their own, as s3 without credentials."""
    import fsspec

    class NoCredentialsError(Exception):
        """As botocore's."""

    def fail(*arguments: object, **options: object) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    system = type(fsspec.filesystem("memory"))
    for name in ("_open", "glob", "cat_file"):
        monkeypatch.setattr(system, name, fail)
    for pattern, message in [("s-*.tar", "cannot be listed"), ("s-0.tar", "cannot be opened")]:
        with pytest.raises(
            DataError, match=rf"{message} \(Unable to locate credentials\); .*access"
        ):
            utterances(tmp_path, root="memory://wds", train=[pattern])


def test_a_pipe_in_the_place_of_a_shard_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.tar")
    with pytest.raises(DataError, match=r"s\.tar: no such shard, it is a folder, a pipe"):
        utterances(tmp_path)


def test_errors_name_missing_truncated_and_compressed_shards(
    make_tar: MakeTar, tmp_path: Path
) -> None:
    path = make_tar([("a.wav", sound(1)), ("b.wav", sound(2))])
    with pytest.raises(DataError, match=r"n-1\.tar: no such shard"):
        utterances(tmp_path, train=["n-1.tar"])
    os.truncate(path, 512 + (len(sound(1)) + 511) // 512 * 512)  # between a and b
    with pytest.raises(DataError, match=r"s\.tar: ends after .* it was cut"):
        utterances(tmp_path)
    (tmp_path / "s.tar.gz").touch()
    with pytest.raises(DataError, match=r"s\.tar\.gz: is compressed as a whole"):
        utterances(tmp_path, train=["s.tar.gz"])
