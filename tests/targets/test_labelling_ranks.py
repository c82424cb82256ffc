"""Labelling by several processes: any number, killed at any moment, leave the same bytes."""

from __future__ import annotations

import multiprocessing.process
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.distributed import launched
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.targets.labelling import label_corpus
from hubert_pretrain.targets.store import DESCRIPTION, MARKS, TargetStore
from hubert_pretrain.targets.writer import TargetWriter
from tests.targets.conftest import CLEAN_PROCESSES, end_when_hanging, exit_codes, make_corpus

pytestmark = pytest.mark.slow


class Slow(Corpus):
    """So slow that there is a moment at which to kill."""

    def read(self, row: int, start: int = 0, num_samples: int | None = None) -> NDArray[np.float32]:
        time.sleep(0.02)
        return super().read(row, start, num_samples)


def work(place: Path, folder: Path, rank: int, ranks: int) -> None:
    """One process of the label stage."""
    end_when_hanging()
    torch.set_num_threads(1)
    corpus = Slow(place)
    codebooks = CodebookSet.load(place)
    if rank == 0:
        writer: TargetWriter | None = TargetWriter.create(
            folder, corpus.manifest, codebooks, block_rows=2
        )
    else:
        writer = TargetWriter.join(
            folder, corpus.manifest, codebooks, block_rows=2, is_done=lambda: False
        )
    assert writer is not None
    label_corpus(corpus, writer, Mfcc(), codebooks, rank=rank, world_size=ranks)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 40 utterances with a codebook beside it."""
    folder = tmp_path_factory.mktemp("ranks") / "corpus"
    corpus = make_corpus(folder, 40)
    frames = [Mfcc()(torch.from_numpy(corpus.read(row))[None])[0] for row in range(8)]
    centroids = torch.cat(frames)[::40].clone()
    CodebookSet.of(Codebook(centroids, Mfcc().fingerprint(), Mfcc().grid)).save(folder)
    return folder


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, bytes]:
    """Files that one process writes without interruption."""
    folder = place.parent / "whole"
    folder.mkdir()
    corpus = Corpus.open(place)
    codebooks = CodebookSet.load(place)
    label_corpus(
        corpus,
        TargetWriter.create(folder, corpus.manifest, codebooks, block_rows=2),
        Mfcc(),
        codebooks,
    )
    return content(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(place: Path, folder: Path, ranks: int) -> list[multiprocessing.process.BaseProcess]:
    processes = [
        CLEAN_PROCESSES.Process(target=work, args=(place, folder, rank, ranks))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_writes_the_same_bytes(
    ranks: int, place: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    assert exit_codes(start(place, tmp_path, ranks)) == [0] * ranks
    assert content(tmp_path) == expected


def test_killed_again_and_again_on_two_ranks(
    place: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """kill -9 of one rank and then of both, at moments drawn at random, then a run to the end on
    another number of ranks.
    """
    draw = np.random.default_rng(7)
    killed = 0
    for _ in range(3):
        processes = start(place, tmp_path, 2)
        limit = time.monotonic() + 60
        blocks = done(tmp_path)
        while done(tmp_path) == blocks and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.05))
        for process in (processes[i] for i in draw.permutation(2)):
            process.kill()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
            time.sleep(draw.uniform(0, 0.03))
    assert killed == 6
    assert 0 < done(tmp_path) < 20
    with pytest.raises(ArtefactError, match="blocks of targets were never written"):
        TargetStore.open(tmp_path)
    assert exit_codes(start(place, tmp_path, 3)) == [0] * 3
    assert content(tmp_path) == expected


def done(folder: Path) -> int:
    return sum((folder / MARKS).read_bytes()) if (folder / DESCRIPTION).is_file() else 0


def test_no_rank_waits_for_a_missing_one(
    place: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    corpus = Corpus.open(place)
    codebooks = CodebookSet.load(place)
    writer = TargetWriter.create(tmp_path, corpus.manifest, codebooks, block_rows=2)
    label_corpus(corpus, writer, Mfcc(), codebooks, rank=0, world_size=5)
    assert content(tmp_path) == expected


def test_a_rank_that_lags_behind_may_write_into_a_finished_folder(
    place: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    corpus = Corpus.open(place)
    codebooks = CodebookSet.load(place)
    (tmp_path / "partial").mkdir()
    first = TargetWriter.create(tmp_path / "partial", corpus.manifest, codebooks, block_rows=2)
    late = TargetWriter.join(
        tmp_path / "partial", corpus.manifest, codebooks, block_rows=2, is_done=lambda: False
    )
    label_corpus(corpus, first, Mfcc(), codebooks)
    (tmp_path / "partial").rename(tmp_path / "final")
    assert late is not None
    late.write(
        3, [TargetStore.open(tmp_path / "final").targets(row) for row in late.rows(3).tolist()]
    )
    assert late.pending().size == 0
    assert content(tmp_path / "final") == expected


def test_joining_a_store(place: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(place)
    codebooks = CodebookSet.load(place)
    assert TargetWriter.join(tmp_path, corpus.manifest, codebooks, is_done=lambda: True) is None
    with pytest.raises(
        ArtefactError, match=r"no store of these targets after 0.2 seconds; rank 0 makes it"
    ):
        TargetWriter.join(
            tmp_path, corpus.manifest, codebooks, is_done=lambda: False, patience_seconds=0.2
        )


def test_a_bad_utterance_of_another_rank_is_an_error_here_too(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 8)
    frames = Mfcc()(torch.from_numpy(corpus.read(0))[None])[0]
    codebooks = CodebookSet.of(Codebook(frames[:5].clone(), Mfcc().fingerprint(), Mfcc().grid))
    Path(corpus.manifest[7].path).write_bytes(b"no audio")
    writer = TargetWriter.create(tmp_path, corpus.manifest, codebooks, block_rows=2)
    with pytest.raises(DataError, match=Path(corpus.manifest[7].path).name):
        label_corpus(corpus, writer, Mfcc(), codebooks, rank=0, world_size=2)
    assert 3 in writer.pending()


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 1),
        ({"RANK": "1", "WORLD_SIZE": "4"}, 4),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}, 3),
        ({"LOCAL_RANK": "1"}, 2),
    ],
)
def test_how_many_were_launched(
    environment: dict[str, str], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == count
