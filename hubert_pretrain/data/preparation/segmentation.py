"""Long recordings cut at their pauses into utterances, by the energy of 20 ms hops.

T hops of MODEL_GRID.hop samples at 16 kHz.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hubert_pretrain.data.arrow_table import ColumnSpool, chunks
from hubert_pretrain.data.config import Segmentation
from hubert_pretrain.data.pauses import LOUD_PERCENTILE, decibels, stretches
from hubert_pretrain.data.preparation.audio_stats import AudioFacts
from hubert_pretrain.data.preparation.raw_utterances import COLUMNS, Ints, RawUtterances
from hubert_pretrain.data.preparation.recode import Recoder
from hubert_pretrain.data.preparation.scan import Recording, in_processes, measure
from hubert_pretrain.data.preparation.scan_journal import Identity, ScanJournal, identity
from hubert_pretrain.data.storage import Cache
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import MODEL_GRID, samples, seconds

_CHANGED = ("id", "start", "num_samples", "expected_samples")
"""Columns that a piece does not have from its recording."""

Found = tuple[AudioFacts | None, list[tuple[int, int]]]
"""Facts of an utterance, None when it cannot be used, and its pieces."""
Pieces = list[tuple[int, int]]
"""(first sample, number of samples) of each piece of an utterance."""


def cut(power: NDArray[np.float32], settings: Segmentation) -> Iterator[tuple[int, int]]:
    """(first, end) of each piece, in hops.

    Args:
        power: (T,) mean power of each hop.
        settings: lengths and levels.
    """
    longest, shortest, pause, margin = (
        max(1, samples(length) // MODEL_GRID.hop)
        for length in (
            settings.max_seconds,
            settings.min_seconds,
            settings.pause_seconds,
            settings.margin_seconds,
        )
    )
    loud = power >= np.percentile(power, LOUD_PERCENTILE) * decibels(-settings.pause_db)
    starts, ends = stretches(loud, pause)
    first = (starts - min(margin, pause // 2)).clip(0)
    after = (ends + min(margin, pause // 2)).clip(0, len(power))
    pieces = _joined(zip(first.tolist(), after.tolist(), strict=True), longest)
    for start, end in pieces:
        for left, right in _at_quietest(power, start, end, longest):
            if right - left >= shortest:
                yield left, right


def _joined(regions: Iterator[tuple[int, int]], longest: int) -> Iterator[tuple[int, int]]:
    """Neighbouring regions as one, as long as it is not too long."""
    start, end = next(regions)
    for first, stop in regions:
        if stop - start > longest:
            yield start, end
            start = first
        end = stop
    yield start, end


def _at_quietest(
    power: NDArray[np.float32], start: int, end: int, longest: int
) -> Iterator[tuple[int, int]]:
    """A region cut at its quietest hops, so that no part is too long."""
    while end - start > longest:
        half = start + longest // 2
        at = half + int(power[half : start + longest].argmin())
        yield start, max(at, start + 1)
        start = max(at, start + 1)
    yield start, end


def pieces_of(
    recording: Recording,
    settings: Segmentation,
    cache: Cache | None = None,
    recoder: Recoder | None = None,
) -> list[Found]:
    """The facts and pieces of every segment of a recording; no pieces where it is not long, or
    cannot be used, which the scan reports.
    """
    try:
        stats = measure(recording, cache, recoder)
    except (DataError, ValueError, RuntimeError, OSError):
        return [(None, [])] * len(recording.segments)
    found: list[Found] = []
    for facts, power in zip(stats.results(), stats.powers(), strict=True):
        if not isinstance(facts, AudioFacts) or facts.num_samples <= samples(settings.max_seconds):
            found.append((None, []))
            continue
        hops = cut(power, settings)
        found.append((facts, [_in_samples(*piece, facts) for piece in hops]))
    return found


def _in_samples(first: int, end: int, facts: AudioFacts) -> tuple[int, int]:
    start = first * MODEL_GRID.hop
    return start, min(end * MODEL_GRID.hop, facts.num_samples) - start


@dataclass(frozen=True)
class Cuts:
    """Counts of a segmentation, for the corpus card."""

    recordings: int
    utterances: int
    seconds_left_out: float
    kept_whole: int
    """Long utterances with a transcript, label or alignment."""


def segment(
    utterances: RawUtterances,
    settings: Segmentation,
    spool: ColumnSpool,
    journal: ScanJournal,
    *,
    workers: int = 0,
    cache: Cache | None = None,
    recoder: Recoder | None = None,
) -> tuple[RawUtterances, Cuts]:
    """The utterances with long ones cut; the pieces have the id of the recording and a number.

    Args:
        utterances: of the source.
        settings: lengths and levels.
        spool: has the columns `COLUMNS`; it stores the result as long as it is used.
        journal: notes the recordings that are cut, so that a later change of them is seen.
        workers: processes; 0 is one per usable core.
        cache: for audio behind URLs.
        recoder: see `scan_segments`.
    """
    plain = _without_annotation(utterances)
    lengths = utterances.columns["num_samples"].to_numpy()
    may_be_long = (lengths < 0) | (lengths > samples(settings.max_seconds))
    chosen_of = plain & may_be_long
    waiting: deque[tuple[list[int], Recording, Identity]] = deque()

    def long_ones() -> Iterator[Recording]:
        for location, positions, segments in utterances.recordings():
            chosen = [i for i, position in enumerate(positions) if chosen_of[position]]
            if chosen:
                recording = Recording(location, [segments[i] for i in chosen])
                waiting.append(([positions[i] for i in chosen], recording, identity(location)))
                yield recording

    pieces: dict[int, Pieces] = {}
    left_out = 0
    function = partial(pieces_of, settings=settings, cache=cache, recoder=recoder)
    for found in in_processes(function, long_ones(), workers):
        positions, recording, now = waiting.popleft()
        for position, place, (facts, parts) in zip(
            positions, recording.segments, found, strict=True
        ):
            if facts is None or not parts:
                continue
            if _has_stated_length(utterances, position, facts.num_samples):
                pieces[position] = parts
                left_out += facts.num_samples - sum(count for _, count in parts)
                if journal.find(recording.location, place, now) < 0:
                    journal.add(recording.location, place, now, facts)
    _append(utterances, pieces, spool)
    cuts = Cuts(
        recordings=len(pieces),
        utterances=sum(map(len, pieces.values())),
        seconds_left_out=round(float(seconds(left_out)), 1),
        kept_whole=int((~plain & (lengths > samples(settings.max_seconds))).sum()),
    )
    return RawUtterances(spool.columns(), utterances.phone_names), cuts


def _without_annotation(utterances: RawUtterances) -> NDArray[np.bool_]:
    """(N,) True for utterances without transcript, label and alignment."""
    plain = np.empty(len(utterances), dtype=np.bool_)
    for part in chunks(len(utterances)):
        positions = np.arange(part.start, part.stop)
        texts = utterances.take("text", positions).to_pylist()
        labels = utterances.take("label", positions).to_pylist()
        aligned = utterances.take("aligned", positions).to_numpy()
        plain[part] = [
            not (text or label or phones)
            for text, label, phones in zip(texts, labels, aligned, strict=True)
        ]
    return plain


def _has_stated_length(utterances: RawUtterances, position: int, length: int) -> bool:
    expected, within = (
        utterances.columns[name][position].as_py()
        for name in ("expected_samples", "expected_within")
    )
    return expected < 0 or abs(length - expected) <= within


def _append(utterances: RawUtterances, pieces: dict[int, Pieces], spool: ColumnSpool) -> None:
    """Writes every utterance, or its pieces in place of it."""
    counts = np.ones(len(utterances), dtype=np.int64)
    for position, parts in pieces.items():
        counts[position] = len(parts)
    positions: Ints = np.repeat(np.arange(len(utterances)), counts)
    firsts = np.cumsum(counts) - counts
    for part in chunks(len(positions)):
        rows = positions[part]
        columns = {name: utterances.take(name, rows) for name in COLUMNS}
        changed = {name: columns[name].to_pylist() for name in _CHANGED}
        for i, position in enumerate(rows.tolist()):
            if position not in pieces:
                continue
            number = part.start + i - int(firsts[position])
            start, count = pieces[position][number]
            changed["id"][i] = f"{changed['id'][i]}-{number:04d}"
            changed["start"][i] += start
            changed["num_samples"][i] = count
            changed["expected_samples"][i] = -1
        columns |= {name: pa.array(values, COLUMNS[name]) for name, values in changed.items()}
        spool.append(columns)
