"""Utterances that the page plays: their choice, their audio as Opus, their phones and units."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.files import read_json, write_json
from hubert_pretrain.frames import SAMPLE_RATE, samples, seconds
from hubert_pretrain.targets.quality import evenly_spaced
from hubert_pretrain.targets.store import TargetStore

MAX_SECONDS = 240.0
"""Audio in the page: 60 utterances of 4 s are some 700 kB of Opus, which base64 makes a third
larger."""
MAX_CLIP_SECONDS = 10.0
"""A longer utterance is cut here."""
CANDIDATES = 500
"""Utterances that the choice is made from."""
ENOUGH_RUNS = 12
"""Runs of a unit that are required; further ones do not count."""


def choose(
    stores: Sequence[TargetStore], corpus: Corpus, required: Sequence[int] = ()
) -> list[int]:
    """Manifest rows: the `required` ones first, then those that add most runs of units that are
    still rare, until there are MAX_SECONDS.

    Utterances of valid and test come first: nobody trained on them.
    """
    candidates = _candidates(corpus)
    lengths = {row: _clip_seconds(corpus, row) for row in [*required, *candidates]}
    chosen: list[int] = []
    total = 0.0
    for row in required:
        if row not in chosen and total + lengths[row] <= MAX_SECONDS / 2:
            chosen.append(row)
            total += lengths[row]
    if not stores:
        return chosen + [row for row in candidates if row not in chosen][:10]

    store = stores[-1]
    runs = {row: _runs(store, row, lengths[row]) for row in [*chosen, *candidates]}
    missing = np.full(store.sizes[0], ENOUGH_RUNS, dtype=np.int64)
    for row in chosen:
        missing -= runs[row]
    left = [row for row in candidates if row not in chosen]
    while left and total < MAX_SECONDS:
        gains = [
            int(np.minimum(runs[row], np.maximum(missing, 0)).sum()) / lengths[row] for row in left
        ]
        best = int(np.argmax(gains))
        row = left.pop(best)
        if total + lengths[row] > MAX_SECONDS:
            continue
        chosen.append(row)
        total += lengths[row]
        missing -= runs[row]
    return chosen


def make(
    rows: Sequence[int],
    stores: Mapping[str, TargetStore],
    corpus: Corpus,
    cache_path: Path,
    *,
    keep: bool = True,
) -> list[dict[str, Any]]:
    """Plain JSON values of the clips; one whose audio cannot be read says so and has none.

    Args:
        cache_path: of a file with the audio that was encoded before, which takes longest.
        keep: write that file again when there is more. A comparison leaves a run as it is.
    """
    fingerprint = corpus.manifest.fingerprint
    before = read_json(cache_path) or {}
    known: dict[str, str] = before.get("audio", {}) if before.get("of") == fingerprint else {}
    made = [_clip(row, stores, corpus, known.get(str(row))) for row in rows]
    audio = {str(row): clip["audio"] for row, clip in zip(rows, made, strict=True)}
    if keep and audio != known:
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache_path, {"of": fingerprint, "audio": audio})
    return made


def _clip(
    row: int, stores: Mapping[str, TargetStore], corpus: Corpus, audio: str | None
) -> dict[str, Any]:
    """One clip; `audio` is None where it is not encoded yet."""
    utterance = corpus.manifest[row]
    length = samples(_clip_seconds(corpus, row))
    clip: dict[str, Any] = {
        "id": utterance.id,
        "split": utterance.split,
        "speaker": utterance.speaker,
        "text": utterance.text,
        "seconds": round(seconds(length), 3),
        "cut": length < utterance.num_samples,
        "phones": _phones(corpus, row, length),
        "units": {
            name: store.target_matrix(row)[: store.grid.num_frames(length), 0].tolist()
            for name, store in stores.items()
        },
    }
    try:
        clip["audio"] = audio or opus(corpus.read(row, 0, length))
    except HubertPretrainError as error:
        clip["audio"] = ""
        clip["error"] = str(error)
    return clip


def opus(waveform: NDArray[np.float32]) -> str:
    """A data URL of the waveform (S,) at 16 kHz in Ogg Opus."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(
        buffer, waveform, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=0.9
    )
    return "data:audio/ogg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _candidates(corpus: Corpus) -> list[int]:
    """Held-out utterances first, aligned ones before others, the shorter ones of each."""
    manifest = corpus.manifest
    held_out = [manifest.rows(split) for split in manifest.splits if split != "train"]
    rows = np.concatenate([*held_out, np.empty(0, np.int64)])
    found = evenly_spaced(np.sort(rows), CANDIDATES).tolist()
    others = evenly_spaced(manifest.rows("train"), CANDIDATES).tolist()
    found += others[: max(0, CANDIDATES - len(found))]
    if corpus.alignments is not None and len(corpus.alignments):
        aligned = corpus.alignments
        found.sort(key=lambda row: not aligned.has(row))
    return found


def _clip_seconds(corpus: Corpus, row: int) -> float:
    return min(MAX_CLIP_SECONDS, seconds(int(corpus.manifest.number("num_samples", row))))


def _runs(store: TargetStore, row: int, clip_seconds: float) -> NDArray[np.int64]:
    """Runs of each unit in a clip: (K,)."""
    ids = store.target_matrix(row)[: store.grid.num_frames(samples(clip_seconds)), 0]
    starts = ids[np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))] if len(ids) else ids
    return np.bincount(starts, minlength=store.sizes[0])


def _phones(corpus: Corpus, row: int, length: int) -> list[tuple[str, float, float]]:
    """Phones of the first `length` samples, with start and end in seconds."""
    alignments = corpus.alignments
    if alignments is None or not alignments.has(row):
        return []
    phones, starts, ends = alignments.intervals(row)
    return [
        (
            alignments.phones[phone],
            round(start / SAMPLE_RATE, 3),
            round(min(end, length) / SAMPLE_RATE, 3),
        )
        for phone, start, end in zip(phones.tolist(), starts.tolist(), ends.tolist(), strict=True)
        if start < length
    ]
