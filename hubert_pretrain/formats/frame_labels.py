"""Labels of frames as text: a line for each utterance, its id and then a label for each frame (as
of Kaldi's `ali-to-phones --per-frame`, or of fairseq's targets with an id before each line).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.text import nonblank_lines
from hubert_pretrain.frames import FrameGrid, seconds

TOLERANCE = 0.05
"""Seconds by which labels may be shorter or longer than their audio: frames at the edges are
counted in several ways.
"""
_MOST_SHOWN = 3


def read_frame_labels(
    path: str | Path, num_samples: Mapping[str, int], grid: FrameGrid, per_second: float = 0.0
) -> dict[str, list[str]]:
    """The labels of the frames of some utterances; "" for frames after the last label.

    Args:
        path: of the file, which may have other utterances too.
        num_samples: of each utterance that is wanted, by id.
        grid: of the frames.
        per_second: labels in a second of audio, of which that at the centre of a frame is taken;
            0: there is one for each frame.

    Raises DataError: an utterance occurs twice, has no labels, or another number than its audio.
    """
    rate = per_second or grid.frames_per_second
    found: dict[str, list[str]] = {}
    wrong = []
    for number, line in nonblank_lines(path):
        id_, *labels = line.split()
        if id_ not in num_samples:
            continue
        if id_ in found:
            raise DataError(f"{path}: line {number} labels {id_!r} again; remove one of its lines")
        frames = int(grid.num_frames(num_samples[id_]))
        expected = frames if per_second == 0 else seconds(num_samples[id_]) * rate
        if abs(len(labels) - expected) > max(1.0, TOLERANCE * rate):
            wrong.append(f"{id_!r} has {len(labels)} for {expected:.0f}")
            continue
        places = np.arange(frames)
        if per_second:
            centres = seconds(np.arange(frames) * grid.hop + grid.centre_sample(0))
            places = np.floor(centres * rate).astype(int)
        found[id_] = [labels[place] if place < len(labels) else "" for place in places]
    if wrong:
        shown = ", ".join(wrong[:_MOST_SHOWN]) + (", ..." if len(wrong) > _MOST_SHOWN else "")
        raise DataError(
            f"{path}: {len(wrong)} utterances have another number of labels than frames ({shown}); "
            f"expected {rate:g} labels per second: set task.labels_per_second, or make the labels "
            "of this audio"
        )
    return found
