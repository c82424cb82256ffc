"""Targets of fairseq, out and in, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Manifest, write_manifest
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.frames import MFCC_GRID, MODEL_GRID, FrameGrid
from hubert_pretrain.targets.fairseq_km import KmTargets, write_km
from hubert_pretrain.targets.import_targets import import_targets
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.targets.writer import TargetWriter
from tests.targets.test_store import CODEBOOK, fill
from tests.targets.test_store import ids_of as ids_of_row

SPLITS = ("test", "train", "valid")


@pytest.fixture
def km(tmp_path: Path, corpus: Corpus) -> Path:
    """A folder as fairseq wants it, of a store with K=9."""
    fill(tmp_path / "store", corpus.manifest)
    write_km(tmp_path / "km", corpus, TargetStore.open(tmp_path / "store"))
    return tmp_path / "km"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_export_has_the_format_of_fairseq(km: Path, corpus: Corpus) -> None:
    """The rules of its `load_audio` and `load_label`: a root, then path and samples; labels for
    each; all of them in the dictionary.
    """
    assert sorted(path.name for path in km.iterdir()) == [
        "dict.km.txt", "test.km", "test.tsv", "train.km", "train.tsv", "valid.km", "valid.tsv",
    ]  # fmt: skip
    dictionary = {line.split()[0] for line in lines(km / "dict.km.txt")}
    assert dictionary == set(map(str, range(9)))
    for split in ("train", "valid", "test"):
        root, *rows = lines(km / f"{split}.tsv")
        labels = lines(km / f"{split}.km")
        assert len(rows) == len(labels) == len(corpus.manifest.rows(split))
        for row, line, label in zip(
            corpus.manifest.rows(split).tolist(), rows, labels, strict=True
        ):
            path, samples = line.split("\t")
            assert Path(root, path) == Path(corpus.manifest[row].path)
            assert int(samples) == corpus.manifest[row].num_samples
            assert set(label.split()) <= dictionary
            assert list(map(int, label.split())) == ids_of_row(corpus.manifest, row).tolist()


def same_targets(one: Path, other: Path) -> bool:
    first = TargetStore.open(one)
    second = TargetStore.open(other)
    return np.array_equal(first.ids, second.ids) and first.sizes == second.sizes


def test_export_and_import_give_the_same_targets(km: Path, corpus: Corpus, tmp_path: Path) -> None:
    report = import_targets(km, tmp_path / "again", corpus.manifest, grid=MODEL_GRID)
    assert report == f"targets of 12 utterances from {km} (K=9)"
    assert same_targets(tmp_path / "store", tmp_path / "again")
    store = TargetStore.open(tmp_path / "again")
    store.check(corpus.manifest, MODEL_GRID)
    assert store.codebook["features"]["kind"] == "imported labels"


def manifest_lines(km: Path, split: str) -> list[tuple[str, str]]:
    """(path, samples) of each line of a `.tsv`."""
    fields = [line.split("\t") for line in lines(km / f"{split}.tsv")[1:]]
    return [(path, samples) for path, samples in fields]


def test_order_root_and_splits_do_not_matter(km: Path, corpus: Corpus, tmp_path: Path) -> None:
    """Utterances are found by id: here all in one split, backwards, in a folder that has moved."""
    rows = [
        pair
        for split in SPLITS
        for pair in zip(manifest_lines(km, split), lines(km / f"{split}.km"), strict=True)
    ][::-1]
    renamed = [
        replace(corpus.manifest[row], id=Path(corpus.manifest[row].path).stem) for row in range(12)
    ]
    write_manifest(tmp_path / "renamed.arrow", renamed)
    manifest = Manifest.open(tmp_path / "renamed.arrow")
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "all.tsv").write_text(
        "/elsewhere\n" + "".join(f"{Path(path).name}\t{samples}\n" for (path, samples), _ in rows)
    )
    (moved / "all.km").write_text("".join(f"{label}\n" for _, label in rows))
    (moved / "dict.km.txt").write_bytes((km / "dict.km.txt").read_bytes())
    import_targets(moved, tmp_path / "again", manifest, grid=MODEL_GRID)
    by_id = {manifest[row].id: row for row in range(12)}
    store = TargetStore.open(tmp_path / "again")
    for row in range(12):
        name = Path(corpus.manifest[row].path).stem
        np.testing.assert_array_equal(store.targets(by_id[name]), ids_of_row(corpus.manifest, row))


def test_two_utterances_of_one_name_are_not_mistaken_for_each_other(
    km: Path, corpus: Corpus
) -> None:
    """Only the path below the root tells them apart."""
    for split in SPLITS:
        rows = [
            f"speaker/{number}/utterance.wav\t{samples}\n"
            for number, (_, samples) in enumerate(manifest_lines(km, split))
        ]
        (km / f"{split}.tsv").write_text("/elsewhere\n" + "".join(rows))
    with pytest.raises(DataError, match=r"no line for utterance 'utterance-000' .* among 12"):
        KmTargets(km, corpus.manifest, MODEL_GRID)


def at_100_hz(corpus: Corpus, km: Path, missing: int = 0) -> None:
    for split in ("train", "valid", "test"):
        rows = []
        for row in corpus.manifest.rows(split).tolist():
            ids = ids_of_row(corpus.manifest, row)
            twice = np.full(MFCC_GRID.num_frames(corpus.manifest[row].num_samples), 8)
            twice[::2] = ids
            rows.append(" ".join(map(str, twice[: len(twice) - missing].tolist())) + "\n")
        (km / f"{split}.km").write_text("".join(rows))


def test_100_hz_is_recognised(km: Path, corpus: Corpus, tmp_path: Path) -> None:
    at_100_hz(corpus, km)
    report = import_targets(km, tmp_path / "again", corpus.manifest, grid=MODEL_GRID)
    assert "100 Hz, every second label taken ([::2])" in report
    assert same_targets(tmp_path / "store", tmp_path / "again")


def test_lengths_are_fixed_within_the_tolerance_only(
    km: Path, corpus: Corpus, tmp_path: Path
) -> None:
    first = corpus.manifest[0]
    frames = MODEL_GRID.num_frames(first.num_samples)
    rows = lines(km / "train.km")
    rows[0] = " ".join(rows[0].split()[:-2])
    rows[1] += " 3"
    (km / "train.km").write_text("\n".join(rows) + "\n")
    with pytest.raises(
        DataError,
        match=rf"train.km, line 1: targets of '{first.id}': {frames - 2} ids, "
        rf"expected {frames} frames.*--tolerance",
    ):
        import_targets(km, tmp_path / "again", corpus.manifest, grid=MODEL_GRID)
    with pytest.raises(DataError, match=f"{frames - 2} ids, expected {frames}"):
        import_targets(km, tmp_path / "again", corpus.manifest, grid=MODEL_GRID, tolerance=1)
    report = import_targets(km, tmp_path / "fixed", corpus.manifest, grid=MODEL_GRID, tolerance=2)
    assert "1 utterances cut and 1 filled by up to 2 frames" in report
    store = TargetStore.open(tmp_path / "fixed")
    expected = ids_of_row(corpus.manifest, 0)
    assert store.targets(0).tolist() == [*expected[:-2], expected[-3], expected[-3]]
    np.testing.assert_array_equal(store.targets(1), ids_of_row(corpus.manifest, 1))


def first_label(word: str) -> Callable[[Path], None]:
    def edit(km: Path) -> None:
        rows = lines(km / "train.km")
        rows[0] = " ".join([word, *rows[0].split()[1:]])
        (km / "train.km").write_text("\n".join(rows) + "\n")

    return edit


def one_line_less(km: Path) -> None:
    (km / "train.km").write_text("\n".join(lines(km / "train.km")[:-1]) + "\n")


def other_samples(km: Path) -> None:
    (km / "train.tsv").write_text((km / "train.tsv").read_text().replace("\t", "\t1"))


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda km: (km / name).write_text(text) and None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            first_label("9"),
            r"train.km, line 1: targets of 'utterance-000': id 9 at frame 0, "
            r"but the codebook has K=9 clusters \(0 to 8\)",
        ),
        (first_label("-1"), r"line 1: .*id -1 at frame 0"),
        (first_label("3.0"), r"line 1: label '3.0' at place 0 of 'utterance-000' is no integer"),
        (first_label("nan"), r"label 'nan' at place 0"),
        (one_line_less, r"train.km: has 5 lines, train.tsv names 6"),
        (lambda km: (km / "train.km").unlink(), r"train.km: missing"),
        (
            lambda km: (km / "dict.km.txt").unlink(),
            r"dict.km.txt: missing, so K is not known; .*--n-clusters",
        ),
        (write("dict.km.txt", ""), r"dict.km.txt: lists 0 labels with no label"),
        (
            write("dict.km.txt", "0 1\n2 1\n"),
            r"dict.km.txt: lists 2 labels with '1' where 0 to 1 are expected",
        ),
        (
            write("train.tsv", "/\nno tab here\n"),
            r"train.tsv, line 2: found 'no tab here', expected <path><TAB><samples>",
        ),
        (other_samples, r"line 2: 1\d+ samples for utterance"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    edit: Callable[[Path], object], message: str, km: Path, corpus: Corpus, tmp_path: Path
) -> None:
    edit(km)
    with pytest.raises(DataError, match=message):
        import_targets(km, tmp_path / "again", corpus.manifest, grid=MODEL_GRID)


def test_n_clusters_replaces_a_missing_dictionary(km: Path, corpus: Corpus, tmp_path: Path) -> None:
    (km / "dict.km.txt").unlink()
    import_targets(km, tmp_path / "again", corpus.manifest, grid=MODEL_GRID, n_clusters=[9])
    assert same_targets(tmp_path / "store", tmp_path / "again")


def test_labels_that_are_all_the_same_are_refused(km: Path, corpus: Corpus, tmp_path: Path) -> None:
    """fairseq#4521: a month of training on one label."""
    for split in ("train", "valid", "test"):
        (km / f"{split}.km").write_text(
            "".join(
                " ".join("0" for _ in line.split()) + "\n" for line in lines(km / f"{split}.km")
            )
        )
    with pytest.raises(DataError, match="every label is 0, of K=9; there is nothing to learn"):
        import_targets(km, tmp_path / "again", corpus.manifest, grid=MODEL_GRID)


def test_several_codebooks(corpus: Corpus, tmp_path: Path) -> None:
    class Two:
        sizes = [9, 4]
        grid = MODEL_GRID
        features = {"kind": "test"}
        fingerprint = "two"

    (tmp_path / "store").mkdir()
    writer = TargetWriter.create(tmp_path / "store", corpus.manifest, Two())
    for block in writer.pending().tolist():
        ids = [ids_of_row(corpus.manifest, row) for row in writer.rows(block).tolist()]
        writer.write(block, [np.stack([each, each % 4], axis=1) for each in ids])
    written = write_km(tmp_path / "km", corpus, TargetStore.open(tmp_path / "store"))
    assert {"train.km1", "train.km2", "dict.km2.txt"} <= {path.name for path in written}
    report = import_targets(tmp_path / "km", tmp_path / "again", corpus.manifest, grid=MODEL_GRID)
    assert "K=9, 4" in report
    assert same_targets(tmp_path / "store", tmp_path / "again")


def test_export_refuses_utterances_that_fairseq_cannot_read(corpus: Corpus, tmp_path: Path) -> None:
    for change, message in (
        ({"start": 160}, "begins inside a file"),
        ({"source_rate": 8000}, "is stored at 8000 Hz"),
    ):
        folder = tmp_path / message
        folder.mkdir()
        rows = [corpus.manifest[row] for row in range(12)]
        rows[0] = replace(rows[0], **change)  # type: ignore[arg-type]
        write_manifest(folder / "manifest.arrow", rows)
        changed = Corpus.open(folder)
        fill(folder / "store", changed.manifest)
        with pytest.raises(DataError, match=f"utterance '{rows[0].id}' {message}"):
            write_km(folder / "km", changed, TargetStore.open(folder / "store"))


def test_a_store_of_another_run(corpus: Corpus, tmp_path: Path) -> None:
    fill(tmp_path / "store", corpus.manifest)
    import_targets(tmp_path / "store", tmp_path / "again", corpus.manifest, grid=MODEL_GRID)
    assert same_targets(tmp_path / "store", tmp_path / "again")
    assert TargetStore.open(tmp_path / "again").codebook["sha256"] == CODEBOOK.fingerprint
    with pytest.raises(ArtefactError, match="targets come 50 times a second"):
        import_targets(
            tmp_path / "store", tmp_path / "other", corpus.manifest, grid=FrameGrid(400, 480)
        )
    with pytest.raises(ArtefactError, match="holds no targets"):
        import_targets(corpus.folder, tmp_path / "other", corpus.manifest, grid=MODEL_GRID)
