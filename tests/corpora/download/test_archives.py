"""Fetching, verifying and unpacking archives; interruptions at every point."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.corpora.download import unpack
from hubert_pretrain.corpora.download.archives import WORK_FOLDER, Archive, fetch_all, is_present
from hubert_pretrain.corpora.fsdd import Fsdd
from hubert_pretrain.corpora.librispeech import LibriSpeech
from hubert_pretrain.errors import DataError


def test_archives_are_fetched_verified_unpacked_and_removed_once(
    server: Any, tmp_path: Path, archive: Any
) -> None:
    archives = [archive("dev-clean"), archive("test-clean")]
    reports: list[str] = []
    fetch_all(archives, tmp_path, report=reports.append)
    fetch_all(archives, tmp_path, report=reports.append)
    assert len(server.requests) == len(reports) == 2
    assert "dev-clean.tar.gz: 0.0 MB, verified" in reports[0]
    found = list(
        LibriSpeech(root=str(tmp_path), train=["dev-clean"], test=["test-clean"]).utterances(
            tmp_path
        )
    )
    assert [(utterance.split, utterance.text) for utterance in found] == [
        ("train", "A TEXT"),
        ("test", "A TEXT"),
    ]
    assert sorted(path.name for path in (tmp_path / WORK_FOLDER).iterdir()) == [
        "dev-clean.tar.gz.json",
        "lock",
        "test-clean.tar.gz.json",
    ]


def test_archives_may_be_kept(server: Any, tmp_path: Path, archive: Any) -> None:
    fetch_all([archive()], tmp_path, keep=True)
    assert (tmp_path / WORK_FOLDER / "dev-clean.tar.gz").read_bytes() == server.files[
        "dev-clean.tar.gz"
    ]


def test_a_wrong_checksum_is_refused_and_nothing_unpacked(
    server: Any, tmp_path: Path, archive: Any
) -> None:
    wrong = archive(checksum="md5:" + "0" * 32)
    with pytest.raises(
        DataError,
        match=r"dev-clean\.tar\.gz: its md5 is [0-9a-f]{32}, expected 0{32}; the file is removed",
    ):
        fetch_all([wrong], tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [WORK_FOLDER, "lock"]
    md5 = hashlib.md5(server.files["dev-clean.tar.gz"]).hexdigest()
    fetch_all([archive(checksum=f"md5:{md5}")], tmp_path)
    assert (tmp_path / "LibriSpeech/dev-clean").is_dir()


def test_without_a_published_checksum_the_sha256_is_recorded(
    server: Any, tmp_path: Path, archive: Any
) -> None:
    reports: list[str] = []
    fetch_all([archive(checksum="")], tmp_path, report=reports.append)
    sha256 = hashlib.sha256(server.files["dev-clean.tar.gz"]).hexdigest()
    assert f"unverified, no checksum is published; sha256 {sha256}" in reports[0]
    mark = json.loads((tmp_path / WORK_FOLDER / "dev-clean.tar.gz.json").read_text())
    assert (mark["sha256"], mark["verified"], mark["placed"]) == (sha256, False, True)


def test_a_mirror_holds_the_same_names(server: Any, tmp_path: Path, archive: Any) -> None:
    archive("dev-clean")
    server.files["mirror/dev-clean.tar.gz"] = server.files.pop("dev-clean.tar.gz")
    dev_clean = Archive(
        url="https://nowhere.invalid/resources/12/dev-clean.tar.gz",
        provides="LibriSpeech/dev-clean",
    )
    fetch_all([dev_clean], tmp_path, f"{server.url}/mirror/")
    assert (tmp_path / "LibriSpeech/dev-clean").is_dir()


def test_a_plain_file_is_not_unpacked(server: Any, tmp_path: Path) -> None:
    server.files["list.tsv.gz"] = b"a table"
    fetch_all([Archive(url=f"{server.url}/list.tsv.gz", provides="lists/list.tsv.gz")], tmp_path)
    assert (tmp_path / "lists/list.tsv.gz").read_bytes() == b"a table"


def test_existing_content_is_not_fetched(server: Any, tmp_path: Path, archive: Any) -> None:
    (tmp_path / "LibriSpeech/dev-clean").mkdir(parents=True)
    fetch_all([archive()], tmp_path)
    assert not server.requests
    assert not (tmp_path / WORK_FOLDER).exists()


def test_an_archive_with_other_content_is_refused(
    server: Any, tmp_path: Path, archive: Any
) -> None:
    dev_clean = archive()
    other = Archive(
        url=dev_clean.url, provides="LibriSpeech/dev-other", checksum=dev_clean.checksum
    )
    with pytest.raises(
        DataError, match=r"does not contain LibriSpeech/dev-other, which was expected"
    ):
        fetch_all([other], tmp_path)


def test_a_second_process_is_refused(server: Any, tmp_path: Path, archive: Any) -> None:
    import fcntl

    (tmp_path / WORK_FOLDER).mkdir()
    with open(tmp_path / WORK_FOLDER / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"another process is downloading there"):
            fetch_all([archive()], tmp_path)


@pytest.mark.parametrize("when", ["unpacking", "moving", "marking"])
def test_an_interrupted_step_is_finished_by_the_next_run(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, archive: Any
) -> None:
    """An unfinished download counts neither as done nor as damaged: the next run finishes it
    without fetching again.
    """
    from hubert_pretrain.corpora.download import archives as module

    dev_clean = archive()

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if when == "unpacking":
            refuse = unpack._refuse  # called before each member
            count = iter(range(9))
            patch.setattr(
                unpack,
                "_refuse",
                lambda *arguments: stop() if next(count) == 2 else refuse(*arguments),
            )
        elif when == "moving":
            move = module._merge_into
            patch.setattr(
                module,
                "_merge_into",
                lambda source, target: (
                    stop() if target.name == "LibriSpeech" else move(source, target)
                ),
            )
            (tmp_path / "LibriSpeech").mkdir()
        else:
            write_json = module.write_json
            patch.setattr(
                module,
                "write_json",
                lambda path, value: stop() if value["placed"] else write_json(path, value),
            )
        with pytest.raises(KeyboardInterrupt):
            fetch_all([dev_clean], tmp_path)
    assert not is_present(dev_clean, tmp_path)
    fetch_all([dev_clean], tmp_path)
    assert is_present(dev_clean, tmp_path)
    assert len(server.requests) == 1
    assert (
        tmp_path / "LibriSpeech/dev-clean/19/198/19-198.trans.txt"
    ).read_bytes() == b"19-198-0000 A TEXT\n"
    assert sorted(path.name for path in (tmp_path / WORK_FOLDER).iterdir()) == [
        "dev-clean.tar.gz.json",
        "lock",
    ]


def test_a_kill_in_the_middle_of_a_file(
    server: Any, tmp_path: Path, repository: Path, tar_of: Any
) -> None:
    content = tar_of(
        {
            f"free-spoken-digit-dataset-1.0.10/recordings/0_a_{number}.wav": os.urandom(20_000)
            for number in range(50)
        }
    )
    server.files["v1.0.10.tar.gz"] = content
    server.stall_after = 400_000
    words = ["fsdd", "--to", str(tmp_path), "--mirror", server.url]
    part = tmp_path / WORK_FOLDER / "v1.0.10.tar.gz.part"
    with subprocess.Popen(
        [sys.executable, str(repository / "tools/download_corpus.py"), *words]
    ) as process:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size >= 300_000):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    server.stall_after = None
    server.stalled.set()
    fetch_all(
        [
            Archive(
                url=f"{server.url}/v1.0.10.tar.gz",
                provides="free-spoken-digit-dataset-1.0.10/recordings",
            )
        ],
        tmp_path,
    )
    begun = int(str(server.requested_ranges()[-1]).removeprefix("bytes=").rstrip("-"))
    assert begun >= 300_000
    assert len(list(Fsdd(root=str(tmp_path)).utterances(tmp_path))) == 50
