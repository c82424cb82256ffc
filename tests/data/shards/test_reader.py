import gzip
import io
import json
import os
import pickle
import tarfile
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.shards import writer
from hubert_pretrain.data.shards.index import expand
from hubert_pretrain.data.shards.reader import Sample, stream
from hubert_pretrain.data.shards.tar import Shard
from hubert_pretrain.errors import DataError
from tests.data.shards.conftest import sound

MakeTar = Callable[..., Path]


def read(path: Path | str) -> list[Sample]:
    return list(stream([str(path)]))


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def test_shards_written_by_webdataset_are_read(tmp_path: Path) -> None:
    import webdataset as wds

    options = {"opus": {"format": "OGG", "subtype": "OPUS"}}
    files = {
        suffix: sound(1, suffix=suffix, **options.get(suffix, {}))
        for suffix in ("wav", "flac", "ogg", "mp3", "opus")
    }
    with wds.TarWriter(str(tmp_path / "s.tar"), encoder=False) as tar:
        for number, (suffix, data) in enumerate(files.items()):
            tar.write(
                {
                    "__key__": f"a/b{number}",
                    suffix: data,
                    "txt": f"Wort {number} ü ".encode(),
                    "json": b'{"speaker": "x"}',
                }
            )
    samples = read(tmp_path / "s.tar")
    assert [sample.key for sample in samples] == [f"a/b{number}" for number in range(5)]
    for number, (sample, (suffix, data)) in enumerate(zip(samples, files.items(), strict=True)):
        expected = soundfile.read(io.BytesIO(data), dtype="float32")[0]
        # dr_mp3 rounds to 16 bits, libsndfile does not.
        tolerance = 2**-14 if suffix == "mp3" else 1e-7
        np.testing.assert_allclose(sample.waveform, expected, atol=tolerance)
        assert (sample.text, sample.json) == (f"Wort {number} ü", {"speaker": "x"})


def test_our_own_shards_stream_in_the_order_of_the_manifest(corpus: Corpus, tmp_path: Path) -> None:
    writer.convert(corpus, tmp_path / "out", format="flac", megabytes=0.06, workers=1)
    sharded = Corpus.open(tmp_path / "out")
    samples = list(
        stream(
            expand(["train-*.tar", "valid-{000000..000000}.tar"], str(tmp_path / "out" / "shards"))
        )
    )
    assert [sample.json["id"] for sample in samples] == [
        sharded.manifest[row].id for row in range(len(sharded.manifest))
    ]
    for row, sample in enumerate(samples):
        assert np.array_equal(sample.waveform, sharded.read(row))


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_processes_share_any_number_of_shards(make_tar: MakeTar, shards: int, parts: int) -> None:
    paths = [
        str(make_tar([(f"{shard}-{number}.txt", b"x") for number in range(5)], f"{shard}.tar"))
        for shard in range(shards)
    ]
    shares = [[sample.key for sample in stream(paths, part, parts)] for part in range(parts)]
    assert sorted(key for share in shares for key in share) == sorted(
        f"{shard}-{number}" for shard in range(shards) for number in range(5)
    )
    assert all(shares), "no process without work"


def test_compressed_and_remote_shards_stream(make_tar: MakeTar, tmp_path: Path) -> None:
    import fsspec

    members = [("a.wav", sound(1)), ("a.txt", b"one"), ("b.wav", sound(2))]
    path = make_tar(members)
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    fsspec.filesystem("memory").pipe("/x/s.tar", path.read_bytes())
    for where in (path, tmp_path / "s.tar.gz", "memory://x/s.tar"):
        assert [(sample.key, sample.text, len(sample.waveform)) for sample in read(where)] == [
            ("a", "one", 8_000),
            ("b", "", 8_000),
        ]
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "s.tar.gz").read_bytes()[:-3_000])
    with pytest.raises(DataError, match=r"cut\.tar\.gz: not readable as a tar"):
        read(tmp_path / "cut.tar.gz")


def test_a_server_without_byte_ranges_is_named(make_tar: MakeTar) -> None:
    """Python's own http.server sends whole files only."""
    path = make_tar(
        [(f"{i}.wav", np.random.default_rng(i).bytes(600_000)) for i in range(20)]
    )  # more than is read ahead at first
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SilentHandler, directory=str(path.parent))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(
        DataError, match=r"s\.tar: its server sends whole files only.*or copy the shards to a disk"
    ):
        read(f"http://127.0.0.1:{server.server_port}/s.tar")
    server.shutdown()
    server.server_close()


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def test_long_names_and_folders_are_read(make_tar: MakeTar) -> None:
    folder = tarfile.TarInfo("deep")
    folder.type = tarfile.DIRTYPE
    name = "deep/" + "n" * 200
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = make_tar(
            [(folder, b""), (f"{name}.seg.txt", b"x"), (".hidden", b""), ("README", b"")],
            format=format,
        )
        (sample,) = read(path)
        assert (sample.key, sample.members) == (name, {"seg.txt": b"x"})


# -- damaged shards
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage" * 1_000, os.urandom(512), b"\0" * 512],
    ids=["empty", "garbage", "noise", "half an end"],
)
def test_a_file_that_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.tar: (not readable as a tar|ends after)"):
        read(tmp_path / "bad.tar")


def test_a_shard_that_is_cut_anywhere_is_refused(make_tar: MakeTar, tmp_path: Path) -> None:
    path = make_tar(
        [
            (f"{key}.{suffix}", os.urandom(size))
            for key in "abc"
            for suffix, size in (("wav", 1_500), ("txt", 20))
        ]
    )
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        boundaries = {info.offset for info in tar} | {info.offset_data for info in tar}
        end = tar.offset
    places = {
        *boundaries,
        *(place + 512 for place in boundaries),
        *range(1, end, 333),
        end,
        end + 512,
        end + 1_023,
    }
    for place in sorted(places):
        (tmp_path / "cut.tar").write_bytes(whole[:place])
        with pytest.raises(DataError, match=r"cut\.tar: "):
            read(tmp_path / "cut.tar")
    (tmp_path / "cut.tar").write_bytes(whole[: end + 1_024])
    assert len(read(tmp_path / "cut.tar")) == 3


def test_garbage_between_members_is_not_the_end(make_tar: MakeTar, tmp_path: Path) -> None:
    path = make_tar([(f"{key}.wav", os.urandom(1_000)) for key in "abc"])
    damaged = bytearray(path.read_bytes())
    damaged[1_536 : 1_536 + 512] = os.urandom(512)  # the header of b
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"s\.tar: ends after 1536 of \d+ bytes without the mark"):
        read(path)


def test_a_missing_shard_and_a_command_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tar: cannot be opened"):
        read(tmp_path / "none.tar")
    mark = tmp_path / "mark"
    for refused in (lambda: read(f"pipe:mkdir {mark}"), lambda: expand([f"pipe:mkdir {mark}"])):
        with pytest.raises(DataError, match="is a command, which is not run"):
            refused()
    assert not mark.exists()


# -- hostile shards
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../evil.wav", "/etc/evil.wav", "a/../../evil.wav", "a/..", "ev\nil.wav"]
)
def test_names_that_lead_out_of_the_folder_are_refused(make_tar: MakeTar, name: str) -> None:
    with pytest.raises(DataError, match=r"s\.tar: member .* leads out of its folder"):
        read(make_tar([("ok.txt", b""), (name, b"x")]))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(make_tar: MakeTar, kind: bytes) -> None:
    info = tarfile.TarInfo("a.wav")
    info.type = kind
    info.linkname = "/etc/passwd"
    with pytest.raises(DataError, match=r"s\.tar: member 'a\.wav' is (a link|no plain file)"):
        read(make_tar([(info, b"")]))


@pytest.mark.parametrize(
    "extension",
    ["pkl", "pyd", "pickle", "pth", "pt", "PKL", "meta.pickle", "pkl.gz", "ckpt", "joblib", "npy"],
)
def test_members_that_would_execute_code_are_handed_on_unread(
    make_tar: MakeTar, tmp_path: Path, extension: str
) -> None:
    mark = tmp_path / "mark"
    file = io.BytesIO()
    if extension == "npy":
        np.save(file, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    else:
        pickle.dump(Bomb(mark), file)
    (sample,) = read(make_tar([("a.wav", sound()), (f"a.{extension}", file.getvalue())]))
    assert (len(sample.waveform), sample.text, sample.json) == (8_000, "", {})
    assert sample.members[extension.lower()] == file.getvalue()
    assert not mark.exists()


def test_plain_arrays_are_accepted(make_tar: MakeTar) -> None:
    file = io.BytesIO()
    np.save(file, np.arange(3))
    (sample,) = read(make_tar([("a.npy", file.getvalue())]))
    assert sample.members == {"npy": file.getvalue()}


@pytest.mark.parametrize(
    "names", [["a.wav", "a.wav"], ["a.wav", "b.wav", "a.txt"], ["a.wav", "a.txt", "b.wav", "a.wav"]]
)
def test_keys_that_come_twice_are_refused(make_tar: MakeTar, names: list[str]) -> None:
    with pytest.raises(DataError, match=r"s\.tar: .*a.* comes twice"):
        read(make_tar([(name, b"x") for name in names]))


def test_samples_without_audio_or_with_invalid_fields_are_named(make_tar: MakeTar) -> None:
    none, two, broken, listed, latin = read(
        make_tar(
            [
                *[
                    ("none.txt", b""),
                    ("two.wav", b"x"),
                    ("two.flac", b"x"),
                    ("broken.wav", b"RIFFnothing"),
                    ("broken.json", b"{"),
                ],
                *[("listed.json", b"[1]"), ("latin.txt", "ü".encode("latin-1"))],
            ]
        )
    )
    for sample, message in [
        (none, "none has txt; expected one member of"),
        (two, "two has wav, flac"),
        (broken, r"broken\.wav: not readable"),
    ]:
        with pytest.raises(DataError, match=message):
            sample.waveform  # noqa: B018
    for bad in (broken, listed):
        with pytest.raises(DataError, match=r"\.json: is "):
            bad.json  # noqa: B018
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8"):
        latin.text  # noqa: B018


def test_one_pass_measures_the_shard(make_tar: MakeTar) -> None:
    import hashlib

    path = make_tar([("a.json", json.dumps({"text": "x"}).encode()), ("b.txt", b"y" * 3_000_000)])
    shard = Shard(str(path))
    with open(path, "rb") as file:
        ((a,), (b,)) = shard.samples(file)
    content = path.read_bytes()
    assert (shard.size, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    for member in (a, b):
        assert content[member.offset : member.offset + len(member.data)] == member.data
