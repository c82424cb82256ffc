"""Tar and zip extraction, with damaged and hostile archives."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.corpora.download import unpack
from hubert_pretrain.errors import DataError


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz")],
)
def test_tar(tmp_path: Path, name: str, mode: str, tar_of: Any) -> None:
    files = {f"x/{number}/a.flac": bytes([number]) * 5000 for number in range(20)} | {
        "./y.txt": b""
    }
    (tmp_path / name).write_bytes(tar_of(files, special("x/empty", tarfile.DIRTYPE), mode=mode))
    assert unpack.unpack(tmp_path / name, tmp_path / "out") == 21
    assert all((tmp_path / "out" / path).read_bytes() == content for path, content in files.items())
    assert (tmp_path / "out/x/empty").is_dir()


def test_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x/a.wav", b"123")
        file.mkdir("x/y") if hasattr(file, "mkdir") else file.writestr("x/y/", b"")
    assert unpack.unpack(tmp_path / "a.zip", tmp_path / "out") == 1
    assert (tmp_path / "out/x/a.wav").read_bytes() == b"123"
    link = zipfile.ZipInfo("x/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(
        DataError, match=r"a\.zip: member 'x/link' is a link; only files and folders are unpacked"
    ):
        unpack.unpack(tmp_path / "a.zip", tmp_path / "out")


Hostile = tuple[dict[str, bytes], list[tarfile.TarInfo], str]
HOSTILE: dict[str, Hostile] = {
    "absolute": ({"/tmp/evil": b"x"}, [], "would land outside"),
    "climbing": ({"a/../../evil": b"x"}, [], "would land outside"),
    "backslash": ({"..\\evil": b"x"}, [], "would land outside"),
    "symbolic link": ({}, [special("evil", tarfile.SYMTYPE, "/etc")], "is a link"),
    "hard link": ({}, [special("evil", tarfile.LNKTYPE, "../secret")], "is a link"),
    "device": ({}, [special("evil", tarfile.CHRTYPE)], "is a device"),
    "pipe": ({}, [special("evil", tarfile.FIFOTYPE)], "is a device"),
    "through a link": (
        {},
        [special("d", tarfile.SYMTYPE, ".."), special("d/evil", tarfile.REGTYPE)],
        "is a link",
    ),
}
"""Case -> files, other members, and the reason for which the archive is refused."""


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_members_are_refused_and_write_nothing_outside(
    tmp_path: Path, case: str, tar_of: Any
) -> None:
    files, members, message = HOSTILE[case]
    folder = tmp_path / "deep/out"
    (tmp_path / "a.tar.gz").write_bytes(tar_of(files, *members))
    with pytest.raises(DataError, match=rf"a\.tar\.gz: member '.*' {message}"):
        unpack.unpack(tmp_path / "a.tar.gz", folder)
    assert {path.name for path in tmp_path.rglob("*")} <= {"a.tar.gz", "deep", "out"}


def test_zip_members_outside_the_folder_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("../evil", b"x")
    with pytest.raises(DataError, match=r"member '\.\./evil' would land outside the folder"):
        unpack.unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz", "a.zip"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_errors_name_damaged_archives(tmp_path: Path, name: str, damage: str, tar_of: Any) -> None:
    files = {f"{number}": bytes([number]) * 3000 for number in range(9)}
    mode = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tar.xz": "w:xz"}.get(name)
    content = tar_of(files, mode=mode) if mode else b"PK\x03\x04" + bytes(500)
    broken = {"cut": content[: len(content) * 2 // 3], "garbage": b"garbage" * 200, "empty": b""}[
        damage
    ]
    (tmp_path / name).write_bytes(broken)
    with pytest.raises(DataError, match=rf"{name}: (damaged|.*has \d+ of \d+ bytes)"):
        unpack.unpack(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("blocks", [1, 4, 8])
def test_a_tar_truncated_between_two_members_is_found(
    tmp_path: Path, mode: str, blocks: int, tar_of: Any
) -> None:
    """Each member is two blocks of 512 bytes, header and content. tarfile itself accepts such a
    file.
    """
    plain = tar_of({f"{number}": bytes(512) for number in range(9)}, mode="w")[: blocks * 1024]
    name = "a.tar" if mode == "w" else "a.tar.gz"
    (tmp_path / name).write_bytes(plain if mode == "w" else gzip.compress(plain))
    with tarfile.open(tmp_path / name) as tar:
        assert len(tar.getmembers()) == blocks
    with pytest.raises(DataError, match=rf"{name}: damaged \(it ends before its end mark\)"):
        unpack.unpack(tmp_path / name, tmp_path / "out")


def test_a_flipped_bit_in_a_gzip_is_found(tmp_path: Path, tar_of: Any) -> None:
    content = bytearray(tar_of({"a.txt": b"A" * 100}))
    content[-5] ^= 1  # in the checksum at the end
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar\.gz: damaged"):
        unpack.unpack(tmp_path / "a.tar.gz", tmp_path / "out")
