from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Manifest, write_manifest
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError, HubertPretrainError
from hubert_pretrain.frames import MFCC_GRID, MODEL_GRID
from hubert_pretrain.targets import store as module
from hubert_pretrain.targets import writer as writing
from hubert_pretrain.targets.store import TargetStore, check_ids
from hubert_pretrain.targets.writer import TargetWriter


def one_codebook(centroids: torch.Tensor) -> CodebookSet:
    return CodebookSet.of(Codebook(centroids, {"kind": "test", "dim": 4}, MODEL_GRID))


CODEBOOK = one_codebook(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))


def ids_of(manifest: Manifest, row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(
        0, 9, MODEL_GRID.num_frames(manifest[row].num_samples)
    )


def fill(
    folder: Path, manifest: Manifest, *, blocks: int | None = None, block_rows: int = 5
) -> TargetWriter:
    folder.mkdir(exist_ok=True)
    writer = TargetWriter.create(folder, manifest, CODEBOOK, block_rows=block_rows)
    for block in writer.pending()[:blocks]:
        writer.write(int(block), [ids_of(manifest, int(row)) for row in writer.rows(int(block))])
    return writer


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_targets_are_read_as_they_were_written(tmp_path: Path, corpus: Corpus) -> None:
    fill(tmp_path / "store", corpus.manifest)
    store = TargetStore.open(tmp_path / "store")
    assert (len(store), store.sizes, store.grid) == (12, [9], MODEL_GRID)
    assert store.codebook == {"sha256": CODEBOOK.fingerprint, "features": CODEBOOK.features}
    for row in range(len(store)):
        assert store.targets(row).dtype == np.uint16
        np.testing.assert_array_equal(store.targets(row), ids_of(corpus.manifest, row))
    store.check(corpus.manifest, MODEL_GRID)
    with pytest.raises(IndexError):
        store.targets(12)


def test_a_pickled_store_is_its_path(tmp_path: Path, corpus: Corpus) -> None:
    fill(tmp_path / "store", corpus.manifest)
    pickled = pickle.dumps(TargetStore.open(tmp_path / "store"))
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).targets(3), ids_of(corpus.manifest, 3))


def test_an_interrupted_store_is_not_finished_and_goes_on_byte_for_byte(
    tmp_path: Path, corpus: Corpus
) -> None:
    fill(tmp_path / "whole", corpus.manifest)
    fill(tmp_path / "killed", corpus.manifest, blocks=1)
    with pytest.raises(ArtefactError, match="2 blocks of targets were never written"):
        TargetStore.open(tmp_path / "killed")
    with open(tmp_path / "killed" / module.TARGETS, "r+b") as file:
        file.seek(-100, 2)
        file.write(b"\xff" * 100)  # a block of which a part was written
    writer = fill(tmp_path / "killed", corpus.manifest)
    assert writer.pending().size == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_blocks_may_be_written_in_any_order_by_anyone(tmp_path: Path, corpus: Corpus) -> None:
    fill(tmp_path / "whole", corpus.manifest)
    (tmp_path / "shared").mkdir()
    writers = [
        TargetWriter.create(tmp_path / "shared", corpus.manifest, CODEBOOK, block_rows=5)
        for _ in range(2)
    ]
    for block in (2, 0, 1):
        writers[block % 2].write(
            block, [ids_of(corpus.manifest, int(row)) for row in writers[0].rows(block)]
        )
    assert content(tmp_path / "shared") == content(tmp_path / "whole")


def test_a_store_of_other_work_is_replaced(tmp_path: Path, corpus: Corpus) -> None:
    fill(tmp_path / "store", corpus.manifest)
    other = one_codebook(torch.ones(9, 4))
    assert (
        len(TargetWriter.create(tmp_path / "store", corpus.manifest, other, block_rows=5).pending())
        == 3
    )


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            np.zeros(20, dtype=np.int64),
            "20 ids, expected 10 frames; twice as many: are these 100 Hz",
        ),
        (np.zeros(19, dtype=np.int64), "twice as many: are these 100 Hz"),
        (np.zeros(5, dtype=np.int64), "half as many: are these 25 Hz"),
        (np.zeros(9, dtype=np.int64), "'u1': 9 ids, expected 10 frames; label the audio"),
        (
            np.array([0] * 7 + [9] * 3),
            r"'u1': id 9 at frame 7, but the codebook has K=9 clusters \(0 to 8\)",
        ),
        (np.array([-1] + [0] * 9), "id -1 at frame 0"),
        (np.zeros(10), "float64 of shape .* expected a row of integers"),
    ],
)
def test_ids_that_do_not_fit_are_refused(ids: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_ids(ids, num_frames=10, n_clusters=9, utterance="u1")


def test_a_refused_block_stays_pending(tmp_path: Path, corpus: Corpus) -> None:
    writer = fill(tmp_path / "store", corpus.manifest, blocks=0)
    ids = [ids_of(corpus.manifest, int(row)) for row in writer.rows(0)]
    ids[2] = ids[2][:-1]
    with pytest.raises(DataError, match=corpus.manifest[2].id):
        writer.write(0, ids)
    assert writer.pending().tolist() == [0, 1, 2]


def test_a_store_that_does_not_fit_the_manifest_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    fill(tmp_path / "store", corpus.manifest)
    store = TargetStore.open(tmp_path / "store")
    utterances = [corpus.manifest[row] for row in range(12)]

    def manifest(name: str, changed: list) -> Manifest:  # type: ignore[type-arg]
        write_manifest(tmp_path / name, changed)
        return Manifest.open(tmp_path / name)

    with pytest.raises(
        ArtefactError,
        match=r"targets of 12 utterances, but .* has 11; redo=NAME/label makes them again",
    ):
        store.check(manifest("fewer.arrow", utterances[:-1]))
    halved = [
        replace(utterance, num_samples=utterance.num_samples // 2) for utterance in utterances
    ]
    with pytest.raises(
        ArtefactError, match=f"'{utterances[0].id}': .*twice as many: are these 100 Hz"
    ):
        store.check(manifest("halved.arrow", halved))
    renamed = [replace(utterance, id=f"{utterance.id}-b") for utterance in utterances]
    with pytest.raises(ArtefactError, match="made for other utterances"):
        store.check(manifest("renamed.arrow", renamed))
    with pytest.raises(
        ArtefactError, match=r"targets come 50 times a second .*, the model's frames 100 times"
    ):
        store.check(corpus.manifest, MFCC_GRID)


def test_damage_is_noticed(tmp_path: Path, corpus: Corpus) -> None:
    with pytest.raises(ArtefactError, match="missing, damaged"):
        TargetStore.open(tmp_path)
    fill(tmp_path / "store", corpus.manifest)
    path = tmp_path / "store" / module.TARGETS
    data = path.read_bytes()
    path.write_bytes(b"\xff\xff" + data[2:])
    with pytest.raises(ArtefactError, match="row 0 holds id 65535, but K=9"):
        TargetStore.open(tmp_path / "store").targets(0)
    path.write_bytes(data[:-2])
    with pytest.raises(ArtefactError, match="it was cut"):
        TargetStore.open(tmp_path / "store")


def test_more_clusters_than_numbers_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    many = one_codebook(torch.zeros((1 << 16) + 1, 4))
    with pytest.raises(ConfigError, match="16-bit"):
        TargetWriter.create(tmp_path, corpus.manifest, many)


def test_a_full_disk_is_found_before_the_work(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "posix_fallocate", full)
    with pytest.raises(HubertPretrainError, match=r"the disk has no room for .* bytes"):
        fill(tmp_path / "store", corpus.manifest)
    monkeypatch.undo()
    fill(tmp_path / "store", corpus.manifest)
    TargetStore.open(tmp_path / "store").check(corpus.manifest)


def cut(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])

    return edit


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            cut(module.TARGETS),
            r"targets.bin: has \d+ bytes, expected \d+; it was cut, redo=NAME/label",
        ),
        (
            cut(module.MARKS),
            r"blocks.done: has 2 marks, expected one for each of 3 blocks; it was cut",
        ),
        (cut(module.OFFSETS), r"offsets.npy: missing or damaged"),
        (
            lambda folder: np.save(folder / module.OFFSETS, np.zeros(5, np.int64)),
            r"offsets.npy: has 5 numbers, expected 13",
        ),
        (cut(module.DESCRIPTION), None),
        (remove(module.TARGETS), r"targets.bin: cannot be read \(No such file"),
        (remove(module.OFFSETS), r"offsets.npy: missing or damaged"),
        (remove(module.MARKS), r"blocks.done: cannot be read \(No such file"),
        (remove(module.DESCRIPTION), r"store.json: missing, damaged or not a"),
    ],
)
def test_any_file_missing_or_cut_is_named(
    damage: Callable[[Path], None], message: str | None, tmp_path: Path, corpus: Corpus
) -> None:
    fill(tmp_path / "store", corpus.manifest)
    damage(tmp_path / "store")
    if message is None:  # only the newline was lost
        TargetStore.open(tmp_path / "store")
    else:
        with pytest.raises(ArtefactError, match=message):
            TargetStore.open(tmp_path / "store")


def test_a_disk_that_fills_up_costs_one_block(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without preallocation, as on network file systems: half of a block is written, then the disk
    is full.
    """
    writer = fill(tmp_path / "store", corpus.manifest, blocks=1)
    real = writing.os.pwrite

    def full(descriptor: int, data: bytes, position: int) -> int:
        if len(data) > 200:
            return real(descriptor, data[: len(data) // 2], position)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "pwrite", full)
    with pytest.raises(
        HubertPretrainError,
        match=r"targets.bin: the disk has no room for \d+ bytes.*run the stage again",
    ):
        writer.write(1, [ids_of(corpus.manifest, int(row)) for row in writer.rows(1)])
    monkeypatch.undo()
    assert writer.pending().tolist() == [1, 2]
    fill(tmp_path / "store", corpus.manifest)
    fill(tmp_path / "whole", corpus.manifest)
    assert content(tmp_path / "store") == content(tmp_path / "whole")


class Three:
    """Three codebooks, as an origin."""

    sizes = [9, 300, 2]
    grid = MODEL_GRID
    features = {"kind": "test"}
    fingerprint = "three"


def three_ids(manifest: Manifest, row: int) -> np.ndarray:
    frames = MODEL_GRID.num_frames(manifest[row].num_samples)
    return np.stack(
        [
            np.random.default_rng((row, k)).integers(size, size=frames)
            for k, size in enumerate(Three.sizes)
        ],
        axis=1,
    )


def test_several_codebooks_lie_side_by_side(tmp_path: Path, corpus: Corpus) -> None:
    writer = TargetWriter.create(tmp_path, corpus.manifest, Three(), block_rows=5)
    for block in (1, 2, 0):
        writer.write(
            block, [three_ids(corpus.manifest, row) for row in writer.rows(block).tolist()]
        )
    store = pickle.loads(pickle.dumps(TargetStore.open(tmp_path)))
    store.check(corpus.manifest, MODEL_GRID)
    assert store.sizes == [9, 300, 2]
    for row in range(12):
        np.testing.assert_array_equal(store.targets(row), three_ids(corpus.manifest, row))
    assert (tmp_path / module.TARGETS).stat().st_size == 2 * 3 * int(store.offsets[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda ids: ids[:, :2],
            r"int64 of shape \(\d+, 2\), expected integers \(frames, 3 codebooks\)",
        ),
        (
            lambda ids: ids[:, 0],
            r"int64 of shape \(\d+,\), expected integers \(frames, 3 codebooks\)",
        ),
        (lambda ids: ids[:-1], r"\d+ ids, expected \d+ frames"),
        (
            lambda ids: ids + np.array([0, 0, 2]),
            r"id [23] at frame 0, but the codebook 3 has K=2 clusters \(0 to 1\)",
        ),
    ],
)
def test_ids_of_several_codebooks_that_do_not_fit(
    change: Callable[[np.ndarray], np.ndarray], message: str, tmp_path: Path, corpus: Corpus
) -> None:
    writer = TargetWriter.create(tmp_path, corpus.manifest, Three(), block_rows=5)
    ids = [three_ids(corpus.manifest, row) for row in writer.rows(0).tolist()]
    with pytest.raises(DataError, match=f"'{corpus.manifest[3].id}'.*{message}"):
        writer.write(0, [*ids[:3], change(ids[3]), ids[4]])
    assert 0 in writer.pending()


def test_an_id_beyond_its_codebook_is_noticed(tmp_path: Path, corpus: Corpus) -> None:
    writer = TargetWriter.create(tmp_path, corpus.manifest, Three(), block_rows=50)
    writer.write(0, [three_ids(corpus.manifest, row) for row in range(12)])
    data = bytearray((tmp_path / module.TARGETS).read_bytes())
    data[4:6] = b"\x07\x00"  # the third codebook, of two clusters, at the first frame
    (tmp_path / module.TARGETS).write_bytes(data)
    with pytest.raises(ArtefactError, match="row 0 holds id 7 of codebook 3, but K=2"):
        TargetStore.open(tmp_path).targets(0)
