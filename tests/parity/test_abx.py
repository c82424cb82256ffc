"""ABX against the program of the ZeroSpeech challenges and Libri-light (zerospeech-libriabx2
0.9.8): its scores of the same frames.

It is compiled when it is installed, so it is no dependency: without it the scores that it gave are
compared, with it those that it gives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hubert_pretrain.clustering.abx import Item, abx

FRAME_SECONDS = 0.02
RECORDED = {0: (0.15537423, 0.20401558), 1: (0.16056056, 0.23000605), 2: (0.20650534, 0.22867532)}
"""(within, across) that it gave for each seed, Python 3.11, torch 2.14."""


def speech(seed: int) -> tuple[list[Item], list[np.ndarray]]:
    """Items of 3 speakers, 5 phones, 3 contexts, unevenly many of each; the frames (T, D) around
    each, one more on each side.
    """
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(5, 8))
    voices = draw.normal(size=(3, 8))
    items = []
    frames = []
    for row in range(120):
        phone, context, speaker = (
            int(draw.choice(n, p=np.arange(1, n + 1) / sum(range(1, n + 1)))) for n in (5, 3, 3)
        )
        length = int(draw.integers(1, 7))
        items.append(Item(row, 1, 1 + length, "abcde"[phone], ("xyz"[context], "r"), f"s{speaker}"))
        frames.append(
            (
                centres[phone] + 0.5 * voices[speaker] + 1.2 * draw.normal(size=(length + 2, 8))
            ).astype(np.float32)
        )
    return items, frames


def ours(seed: int) -> tuple[float | None, float | None]:
    items, frames = speech(seed)
    score = abx(
        items,
        lambda item: frames[item.row][item.start : item.stop],
        distance="angular",
        max_tokens=120,
        max_cells=100_000,
    )
    return score.within, score.across


def theirs(seed: int, folder: Path) -> tuple[float, float]:
    """From its files: an array per utterance, and a line per item with times in the middle of
    frames.
    """
    from zrc_abx2.eval_ABX import EvalABX, EvalArgs

    items, frames = speech(seed)
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for item, of_item in zip(items, frames, strict=True):
        np.save(folder / f"{item.row:03}.npy", of_item)
        times = f"{FRAME_SECONDS * (item.start + 0.25)} {FRAME_SECONDS * (item.stop + 0.75)}"
        lines.append(f"{item.row:03} {times} {item.what} {' '.join(item.context)} {item.speaker}")
    (folder / "all.item").write_text("\n".join(lines) + "\n")
    every = {
        "max_size_group": 120,
        "max_x_across": 3,
        "speaker_mode": "all",
        "context_mode": "within",
    }
    arguments = EvalArgs(
        str(folder),
        str(folder / "all.item"),
        feature_size=FRAME_SECONDS,
        file_extension=".npy",
        **every,
    )
    scores = {
        result["abx-s-condition"]: result["score"] for result in EvalABX().eval_abx(arguments)
    }
    return scores["within"], scores["across"]


@pytest.mark.parametrize("seed", RECORDED)
def test_equals_the_recorded_scores(seed: int) -> None:
    assert ours(seed) == pytest.approx(RECORDED[seed], abs=1e-6)


@pytest.mark.parametrize("seed", RECORDED)
def test_equals_the_package(seed: int, tmp_path: Path) -> None:
    pytest.importorskip("zrc_abx2", reason="not installed: pip install zerospeech-libriabx2")
    assert ours(seed) == pytest.approx(theirs(seed, tmp_path), abs=1e-6)
