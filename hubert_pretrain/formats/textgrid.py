"""Praat TextGrids (long, short or JSON; UTF-8 or UTF-16), one file per utterance, as the Montreal
Forced Aligner writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hubert_pretrain.errors import DataError, did_you_mean
from hubert_pretrain.files import write_text
from hubert_pretrain.formats.intervals import Interval
from hubert_pretrain.frames import samples

TIERS = {
    "phones": ("phones", "phone", "phonemes", "phoneme", "segments", "mau"),
    "words": ("words", "word", "ort", "ort-mau"),
}
"""Kind of tier -> its usual names, in lower case. With several speakers in a file, MFA puts the
speaker in front ("anna - phones").
"""


def read(path: Path, tier: str) -> list[Interval]:
    """The intervals of one tier.

    Args:
        path: the file.
        tier: phones, words, auto (phones, or else words), or the name of a tier.

    Raises:
        DataError: no such tier or two of them, a point tier, a file that is not a TextGrid, or
            praatio is not installed.
    """
    try:
        from praatio import textgrid
        from praatio.data_classes.interval_tier import IntervalTier
    except ImportError as error:
        raise DataError(f"{path}: TextGrids are read with praatio; pip install praatio") from error
    try:
        grid = textgrid.openTextgrid(
            str(path), includeEmptyIntervals=False, reportingMode="silence"
        )
    except Exception as error:  # praatio raises errors of many types
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        raise DataError(
            f"{path}: not readable as a TextGrid ({reason}); align the file again"
        ) from error
    chosen = grid.getTier(_choose(path, tier, list(grid.tierNames)))
    if not isinstance(chosen, IntervalTier):
        raise DataError(
            f"{path}: tier {chosen.name!r} has points, expected intervals; "
            "name another with data.alignments.tier"
        )
    return [(label, samples(start), samples(end)) for start, end, label in chosen.entries]


def _choose(path: Path, tier: str, names: list[str]) -> str:
    """The name of the tier to read."""
    if tier in names:
        return tier
    kinds = ("phones", "words") if tier == "auto" else (tier,)
    for kind in kinds:
        found = [name for name in names if name.lower().rpartition(" - ")[2] in TIERS.get(kind, ())]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(
                f"{path}: has {len(found)} tiers of {kind}, {', '.join(found)}; "
                "name one with data.alignments.tier"
            )
    raise DataError(
        f"{path}: no tier {tier!r}{did_you_mean(tier, names)}, it has "
        f"{', '.join(names) or 'none'}; name one with data.alignments.tier"
    )


def write(path: Path, tiers: Mapping[str, Sequence[tuple[str, float, float]]], end: float) -> None:
    """Write a TextGrid in Praat's long form.

    Args:
        tiers: name -> intervals (label, start, end) in seconds, in order without overlaps; the time
            between them gets empty intervals, as Praat wants it.
        end: of the recording.
    """
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {end:.4f}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for number, (name, intervals) in enumerate(tiers.items(), start=1):
        filled = list(_filled(intervals, end))
        lines += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            f"        name = {_quoted(name)}",
            "        xmin = 0",
            f"        xmax = {end:.4f}",
            f"        intervals: size = {len(filled)}",
        ]
        for place, (label, start, stop) in enumerate(filled, start=1):
            lines += [
                f"        intervals [{place}]:",
                f"            xmin = {start:.4f}",
                f"            xmax = {stop:.4f}",
                f"            text = {_quoted(label)}",
            ]
    write_text(path, "\n".join([*lines, ""]))


def _filled(
    intervals: Sequence[tuple[str, float, float]], end: float
) -> Iterator[tuple[str, float, float]]:
    """Intervals from 0 to the end without gaps."""
    last = 0.0
    for label, start, stop in intervals:
        if start > last:
            yield "", last, start
        yield label, max(start, last), min(stop, end)
        last = min(stop, end)
    if last < end:
        yield "", last, end


def _quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'
