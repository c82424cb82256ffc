"""The one place for atomic writing, hashes and full disks; and that it is the only one."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from pathlib import Path

import pytest

import hubert_pretrain
from hubert_pretrain import files
from hubert_pretrain.errors import ArtefactError, HubertPretrainError
from hubert_pretrain.files import (
    checksums,
    disk_room,
    publish,
    read_json,
    remove_temporaries,
    replacing,
    sha256,
    write_bytes,
    write_json,
    write_text,
)

PACKAGE = Path(hubert_pretrain.__file__).parent


# -- replacing
# -------------------------------------------------------------------------------------------------


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == path.parent  # on the same disk, so that the rename is atomic
        assert not path.exists()
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as temporary:
        temporary.write_text("half \ud800", encoding="utf-8")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask_whatever_wrote_the_file(
    tmp_path: Path, umask: int, mode: int
) -> None:
    old = os.umask(umask)
    try:
        with replacing(tmp_path / "file") as temporary:
            temporary.unlink()
            temporary.touch(mode=0o600)  # as safetensors does
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_content_and_name_are_flushed_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync = os.fsync
    replace = os.replace

    def recorded_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("folder" if is_folder else "content")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", recorded_fsync)
    monkeypatch.setattr(files.os, "replace", recorded_replace)
    write_bytes(tmp_path / "file", b"abc")
    assert events == ["content", "rename", "folder"]
    events.clear()
    write_bytes(tmp_path / "file", b"abc", sync=False)
    assert events == ["rename"]


def test_a_folder_is_published_with_all_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    (work / "below").mkdir(parents=True)
    (work / "below" / "file").write_text("x")
    (work / "link").symlink_to(tmp_path / "absent")
    flushed: list[int] = []
    monkeypatch.setattr(files.os, "fsync", flushed.append)
    publish(work, tmp_path / "done")
    assert (tmp_path / "done" / "below" / "file").read_text() == "x"
    assert len(flushed) == 4  # the file, its folder, the published folder, the folder of its name


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / ".a.flac.123.tmp").write_text("half")
    (tmp_path / ".b[1].json.7.tmp").write_text("half")
    (tmp_path / ".folder.tmp").mkdir()
    (tmp_path / "notes.tmp").write_text("of a user")
    remove_temporaries(tmp_path / "b[1].json")
    assert not (tmp_path / ".b[1].json.7.tmp").exists()
    assert (tmp_path / ".folder.tmp").exists()
    remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["below", "notes.tmp"]
    remove_temporaries(tmp_path / "absent" / "file")


# -- JSON, hashes, full disks
# -------------------------------------------------------------------------------------------------


def test_json_and_text_come_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": [1, None]})
    assert read_json(tmp_path / "a.json") == {"é": [1, None]}
    write_json(tmp_path / "a.json", {"wer": float("inf"), "of": [float("nan"), {"a": 1.5}]})
    assert read_json(tmp_path / "a.json") == {"wer": None, "of": [None, {"a": 1.5}]}
    write_text(tmp_path / "a.txt", "é\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"


def test_damaged_json_is_none_and_a_huge_one_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert read_json(path) is None
    path.write_text("{")
    assert read_json(path) is None
    path.write_text("0" * 2000)
    with pytest.raises(ArtefactError, match=r"a\.json: has 2\.0 kB, but at most 1\.0 kB were"):
        read_json(path, max_bytes=1000)


def test_hashes_of_one_and_of_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_HASH_BLOCK_BYTES", 2)
    one = tmp_path / "one"
    two = tmp_path / "two"
    one.write_bytes(b"abc")
    two.write_bytes(b"def")
    assert sha256(one) == hashlib.sha256(b"abc").hexdigest()
    assert sha256(one, two) == hashlib.sha256(b"abcdef").hexdigest()
    read: list[int] = []
    found = checksums([one, two], ["md5", "sha256"], read.append)
    assert found == {
        "md5": hashlib.md5(b"abcdef").hexdigest(),
        "sha256": hashlib.sha256(b"abcdef").hexdigest(),
    }
    assert read == [2, 3, 5, 6]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_error_with_its_fix(number: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    message = r"file: the disk has no room for 7 bytes; free some and run the stage again"
    with pytest.raises(HubertPretrainError, match=message), disk_room(path, 7):
        raise OSError(number, "full")
    message = r"file: the disk is full; buy one"
    with pytest.raises(HubertPretrainError, match=message), disk_room(path, fix="buy one"):
        raise OSError(number, "full")


def test_other_errors_of_the_system_pass_a_full_disk_by(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), disk_room(tmp_path):
        raise PermissionError(errno.EACCES, "no")


# -- one place
# -------------------------------------------------------------------------------------------------


def modules_with(pattern: str) -> list[str]:
    """Modules of the package with a line that matches, comments aside."""
    return sorted(
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(
            re.search(pattern, line) and not line.lstrip().startswith("#")
            for line in path.read_text(encoding="utf-8").splitlines()
        )
    )


def test_only_files_py_moves_a_file_into_its_place() -> None:
    assert modules_with(r"os\.replace|os\.rename|shutil\.move|\.rename\(") == ["files.py"]


def test_only_files_py_flushes_whole_files() -> None:
    """The scratch files of frames and of encoder outputs stay open and flush their own
    descriptors.
    """
    scratch = ["clustering/frame_source.py", "finetune/feature_cache.py"]
    assert modules_with(r"os\.fsync") == sorted([*scratch, "files.py"])


def test_only_files_py_knows_the_error_numbers_of_a_full_disk() -> None:
    """A checkpoint that would not fit raises the system's error before the first byte."""
    found = modules_with(r"ENOSPC|EDQUOT")
    assert found == ["files.py", "training/resilience/checkpoint_io.py"]


def test_only_files_py_hashes_files() -> None:
    """Elsewhere a hash takes tensors, texts, or the bytes of a shard that pass through."""
    streaming = r"hashlib\.(sha256|md5)\(\)|hashlib\.new|file_digest"
    assert modules_with(rf"{streaming}|hashlib\.\w+\(.*read") == [
        "clustering/codebook.py",
        "data/shards/tar.py",
        "data/shards/writer.py",
        "decoding/sweep.py",
        "files.py",
    ]
