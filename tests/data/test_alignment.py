import pickle
from pathlib import Path

import numpy as np
import pytest

from hubert_pretrain.data import alignment
from hubert_pretrain.data.alignment import NO_PHONE, Alignments, write_alignments
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.frames import MODEL_GRID, FrameGrid
from tests.counted import Counted


@pytest.fixture
def alignments(tmp_path: Path) -> Alignments:
    phones = [("b", 320, 600), ("a", 600, 1000), ("b", 1400, 1500)]
    write_alignments(tmp_path / "alignments.arrow", [(2, phones), (7, [("ʃ", 0, 500)]), (9, [])])
    return Alignments.open(tmp_path)


def test_rows_and_inventory(alignments: Alignments) -> None:
    assert alignments.phones == ["a", "b", "ʃ"]
    assert alignments.rows().tolist() == [2, 7, 9]
    assert [row for row in range(12) if alignments.has(row)] == [2, 7, 9]
    assert len(alignments) == 3


def test_a_frame_has_the_phone_at_its_centre_sample(alignments: Alignments) -> None:
    # Centres: 200, 520, 840, 1160, 1480, 1800.
    assert alignments.frame_phones(2, 6) == ["", "b", "a", "", "b", ""]
    assert alignments.frame_phone_ids(2, 6).tolist() == [NO_PHONE, 1, 0, NO_PHONE, 1, NO_PHONE]
    assert alignments.frame_phones(7, 3) == ["ʃ", "", ""]
    assert alignments.frame_phones(9, 2) == ["", ""]
    assert alignments.frame_phone_ids(2, 0).tolist() == []


def test_ends_are_exclusive_and_starts_inclusive(tmp_path: Path) -> None:
    centre = MODEL_GRID.centre_sample(0)
    write_alignments(tmp_path / "a.arrow", [(0, [("x", 0, centre), ("y", centre, centre + 1)])])
    assert Alignments.open(tmp_path / "a.arrow").frame_phones(0, 2) == ["y", ""]


def test_frames_equal_a_plain_search(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    grid = FrameGrid(window=10, hop=7)
    for trial in range(20):
        bounds = np.sort(generator.integers(0, 300, 12))
        phones = [
            (f"p{i}", int(start), int(end))
            for i, (start, end) in enumerate(zip(bounds[::2], bounds[1::2], strict=True))
        ]
        write_alignments(tmp_path / "a.arrow", [(trial, phones)])
        expected = [
            next((p for p, s, e in phones if s <= grid.centre_sample(t) < e), "") for t in range(45)
        ]
        assert Alignments.open(tmp_path / "a.arrow").frame_phones(trial, 45, grid) == expected


def test_pickles_by_path(alignments: Alignments) -> None:
    assert pickle.loads(pickle.dumps(alignments)).rows().tolist() == [2, 7, 9]


def test_a_row_without_alignment_is_named(alignments: Alignments) -> None:
    with pytest.raises(DataError, match="row 3 has no alignment"):
        alignments.frame_phones(3, 5)


@pytest.mark.parametrize(
    "phones", [[("a", 5, 3)], [("a", 0, 10), ("b", 9, 12)], [("", 0, 3)], [("a", -1, 3)]]
)
def test_disordered_phones_are_refused(tmp_path: Path, phones: list[tuple[str, int, int]]) -> None:
    with pytest.raises(DataError, match="alignment of row 4"):
        write_alignments(tmp_path / "a.arrow", [(4, phones)])


def test_rows_must_ascend(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 4 after that of row 4"):
        write_alignments(tmp_path / "a.arrow", [(4, []), (4, [])])
    assert list(tmp_path.iterdir()) == []


def test_parts_of_a_long_table_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [
        (3 * i, [(f"p{7 * i % 11}", 0, 5 + i), (f"p{i % 11}", 10 + i, 20 + i)][: i % 3])
        for i in range(50)
    ]
    write_alignments(tmp_path / "one.arrow", pairs)
    monkeypatch.setattr(alignment, "CHUNK", 7)
    write_alignments(tmp_path / "parts.arrow", iter(pairs))
    assert (tmp_path / "one.arrow").read_bytes() == (tmp_path / "parts.arrow").read_bytes()
    found = Alignments.open(tmp_path / "parts.arrow")
    for row, phones in pairs:
        ids, starts, ends = found.intervals(row)
        assert [
            (found.phones[i], start, end) for i, start, end in zip(ids, starts, ends, strict=True)
        ] == phones


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"alignments\.arrow: not found"):
        Alignments.open(tmp_path)


@pytest.mark.parametrize("count", [1_000, 3_000])
def test_a_large_inventory_is_numbered_in_linear_time(tmp_path: Path, count: int) -> None:
    """Words are aligned too, and there are many of them."""
    Counted.compared = 0
    words = [Counted(f"word {number * 7919 % count:05d}") for number in range(count)]
    write_alignments(tmp_path / "alignments.arrow", [(0, [(word, 0, 0) for word in words])])
    assert Counted.compared < 5 * count
    alignments = Alignments.open(tmp_path)
    assert alignments.phones == sorted(words)
    numbers, _, _ = alignments.intervals(0)
    assert [alignments.phones[number] for number in numbers] == words
