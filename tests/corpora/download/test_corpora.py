"""Downloads of whole corpora, through their classes, stage `prepare` and the command."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hubert_pretrain.corpora import librilight, speech_commands
from hubert_pretrain.corpora.download.archives import download
from hubert_pretrain.corpora.folder import Folder
from hubert_pretrain.corpora.fsdd import Fsdd
from hubert_pretrain.corpora.librilight import LibriLight, LibriLightLimited
from hubert_pretrain.corpora.librispeech import LibriSpeech
from hubert_pretrain.corpora.mixture import Mixture
from hubert_pretrain.corpora.speech_commands import TEN_WORDS, SpeechCommands
from hubert_pretrain.corpora.timit import Timit
from hubert_pretrain.corpora.voxpopuli import VoxPopuli
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ConfigError, DataError


@dataclass(frozen=True)
class Tar:
    """A tar to be made."""

    files: dict[str, bytes]
    mode: str = "w:gz"


def voxpopuli(root: str) -> VoxPopuli:
    return VoxPopuli(root=root, languages=["en"], part="raw", years=[2019])


SEGMENTS = gzip.compress(
    b"event_id\tsegment_no\tstart\tend\n20190401-0900-PLENARY_en\t0\t1.0\t3.0\n"
)
CHAPTER = {
    f"{part}/198/19-198{end}": text
    for part in ("clean/19", "other/19")
    for end, text in (("-0.flac", b""), (".trans.txt", b"19-198-0 A\n"))
}
PUBLISHED: dict[str, tuple[Callable[[str], Any], dict[str, Tar | bytes], int]] = {
    "fsdd": (
        lambda root: Fsdd(root=root),
        {"v1.0.10.tar.gz": Tar({"free-spoken-digit-dataset-1.0.10/recordings/0_a_0.wav": b""})},
        1,
    ),
    "librilight": (
        lambda root: LibriLight(root=root, subsets=["small", "medium"], max_seconds=None),
        {
            f"{name}.tar": Tar(
                {f"{name}/100/book/01.flac": b"", f"{name}/100/book/01.json": b"{}"}, mode="w"
            )
            for name in ("small", "medium")
        },
        2,
    ),
    "librilight_limited": (
        lambda root: LibriLightLimited(root=root, size="10min"),
        {
            "librispeech_finetuning.tgz": Tar(
                {f"librispeech_finetuning/1h/0/{path}": text for path, text in CHAPTER.items()}
            )
        },
        2,
    ),
    "speech_commands": (
        lambda root: SpeechCommands(root=root, classes=12, official_test=True),
        {
            "speech_commands_v0.02.tar.gz": Tar(
                {
                    "./yes/0a_nohash_0.wav": b"",
                    "./testing_list.txt": b"",
                    "./validation_list.txt": b"",
                    "./_background_noise_/README.md": b"",
                }
            ),
            "speech_commands_test_set_v0.02.tar.gz": Tar(
                {
                    f"./{word}/0a_nohash_0.wav": b""
                    for word in (*TEN_WORDS, "_unknown_", "_silence_")
                }
            ),
        },
        13,
    ),
    "voxpopuli": (
        voxpopuli,
        {
            "en_2019.tar": Tar({"en/2019/20190401-0900-PLENARY_en.ogg": b""}, mode="w"),
            "unlabelled_v2.tsv.gz": SEGMENTS,
        },
        1,
    ),
}
"""Name -> the corpus, its archives in their published form, and how many utterances they hold."""


@pytest.fixture
def published(tar_of: Any) -> Callable[[str], dict[str, bytes]]:
    """Makes the archives of a corpus: file name -> content."""

    def make(name: str) -> dict[str, bytes]:
        _, archives, _ = PUBLISHED[name]
        return {
            file: tar_of(content.files, mode=content.mode) if isinstance(content, Tar) else content
            for file, content in archives.items()
        }

    return make


def test_a_corpus_fetches_its_missing_subsets(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: Any
) -> None:
    """Through the class that a recipe names; with the checksums of this server's archives."""
    from hubert_pretrain.corpora import librispeech

    for name in ("dev-clean", "test-clean"):
        published_archive = archive(name)
        monkeypatch.setitem(librispeech.PUBLISHED, name, (server.url, published_archive.checksum))
    root = tmp_path / "LibriSpeech"
    source = LibriSpeech(root=str(root), train=["dev-clean"], test=["test-clean"])
    with pytest.raises(DataError, match=r"no such folder; .*data\.download=true"):
        list(source.utterances(tmp_path))
    assert not server.requests  # never unless it is asked for
    download(source)
    download(source)
    assert len(server.requests) == 2
    assert len(list(source.utterances(tmp_path))) == 2
    with pytest.raises(ConfigError, match=r"'dev-clena': expected .*did you mean 'dev-clean'"):
        download(LibriSpeech(root=str(root), train=["dev-clena"]))


def test_prepare_downloads_only_when_asked(server: Any, tmp_path: Path, tar_of: Any) -> None:
    """`data=fsdd` in an empty folder, with and without data.download=true."""
    from hubert_pretrain.config import compose
    from hubert_pretrain.pipeline import plan
    from hubert_pretrain.pipeline.workspace import Workspace
    from hubert_pretrain.stages import prepare

    recordings = {}
    for number, digit in enumerate("0123456789"):
        buffer = io.BytesIO()
        soundfile.write(
            buffer, np.random.default_rng(number).normal(0, 0.1, 8000), 8000, format="WAV"
        )
        recordings[f"free-spoken-digit-dataset-1.0.10/recordings/{digit}_anna_{number}.wav"] = (
            buffer.getvalue()
        )
    server.files["v1.0.10.tar.gz"] = tar_of(recordings)
    words = ["+recipe=smoke", "data=fsdd", f"data.root={tmp_path}/fsdd", "data.workers=1"]
    without, asking = (
        compose.recipe_of([*words, *more])
        for more in ([], ["data.download=true", f"data.mirror={server.url}"])
    )
    folder = tmp_path / "prepare"
    folder.mkdir()
    with pytest.raises(DataError, match=r"fsdd: no such folder"):
        prepare.run(without, Workspace(tmp_path), "prepare", folder)
    assert not server.requests
    prepare.run(asking, Workspace(tmp_path), "prepare", folder)
    assert len(Manifest.open(folder / "manifest.arrow")) == 10
    # Download settings are not part of the artefact's identity.
    assert plan.stages(without)[0].identity == plan.stages(asking)[0].identity


def test_a_mixture_downloads_the_corpora_that_have_a_download(
    server: Any, tmp_path: Path, published: Any
) -> None:
    server.files["v1.0.10.tar.gz"] = published("fsdd")["v1.0.10.tar.gz"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own/a.wav").touch()
    mixture = Mixture(
        corpora={
            "digits": Fsdd(root=str(tmp_path / "fsdd")),
            "own": Folder(root=str(tmp_path / "own")),
        }
    )
    download(mixture, server.url)
    assert [utterance.id for utterance in mixture.utterances(tmp_path)] == ["digits/0_a_0", "own/a"]


def test_a_corpus_without_a_download_says_where_it_is_available(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"Timit has no download: the Linguistic .* LDC93S1; then set data\.root",
    ):
        download(Timit(root=str(tmp_path)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_downloads_of_each_corpus_are_found_by_it(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, published: Any
) -> None:
    build, _, count = PUBLISHED[name]
    files = published(name)
    server.files.update(files)
    checksums = {
        file.partition(".")[0]: f"sha256:{hashlib.sha256(content).hexdigest()}"
        for file, content in files.items()
    }
    monkeypatch.setattr(librilight, "PUBLISHED", checksums)
    monkeypatch.setattr(
        librilight, "_LIMITED_CHECKSUM", checksums.get("librispeech_finetuning", "")
    )
    monkeypatch.setitem(
        speech_commands._CHECKSUMS, "v0.02", checksums.get("speech_commands_v0", "")
    )
    source = build(str(tmp_path / "root"))
    download(source, server.url)
    assert len(list(source.utterances(tmp_path))) == count
    assert len(server.requests) == len(files)
    download(source, server.url)
    assert len(server.requests) == len(files)


def test_the_download_command(
    server: Any,
    tmp_path: Path,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    published: Any,
) -> None:
    """fsdd has no published checksum, so any archive of its form passes."""
    spec = importlib.util.spec_from_file_location(
        "download_corpus", repository / "tools/download_corpus.py"
    )
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    server.files["v1.0.10.tar.gz"] = published("fsdd")["v1.0.10.tar.gz"]
    assert tool.main(["fsdd", "--to", str(tmp_path / "fsdd"), "--mirror", server.url]) == 0
    assert "unverified" in capsys.readouterr().out
    assert (tmp_path / "fsdd/free-spoken-digit-dataset-1.0.10/recordings/0_a_0.wav").is_file()
    assert tool.main(["timit", "--to", str(tmp_path)]) == 2
    assert "Linguistic Data Consortium" in capsys.readouterr().err
    assert tool.main(["librispeech", "--subset", "dev-claen", "--to", str(tmp_path)]) == 2
    assert "did you mean 'dev-clean'" in capsys.readouterr().err
    for words in (["librispeech"], ["fsdd", "--subset", "x"]):
        with pytest.raises(SystemExit):
            tool.main([*words, "--to", str(tmp_path)])
