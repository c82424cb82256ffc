"""Praat TextGrids, long, short or JSON, in UTF-8 or UTF-16: one file for each utterance, as the
Montreal Forced Aligner writes them.
"""

from __future__ import annotations

from pathlib import Path

from hubert_pretrain.errors import DataError, did_you_mean
from hubert_pretrain.formats.intervals import Interval
from hubert_pretrain.formats.text import seconds_to_samples

TIERS = {
    "phones": ("phones", "phone", "phonemes", "phoneme", "segments", "mau"),
    "words": ("words", "word", "ort", "ort-mau"),
}
"""Kind -> what a tier of it may be called, in any case; MFA writes "anna - phones" when a file has
several speakers.
"""


def read(path: Path, tier: str) -> list[Interval]:
    """The intervals of one tier.

    Args:
        path: the file.
        tier: phones, words, auto (phones, or else words), or the name of a tier.

    Raises:
        DataError: no such tier or two, a tier of points, a file that is no TextGrid; praatio is not
        installed.
    """
    try:
        from praatio import textgrid
        from praatio.data_classes.interval_tier import IntervalTier
    except ImportError as error:
        raise DataError(
            f"{path}: TextGrids are read with praatio; pip install 'hubert-pretrain[alignments]'"
        ) from error
    try:
        grid = textgrid.openTextgrid(
            str(path), includeEmptyIntervals=False, reportingMode="silence"
        )
    except Exception as error:  # praatio raises whatever its parser trips over
        raise DataError(
            f"{path}: not readable as a TextGrid ({type(error).__name__}: {str(error)[:80]}); align the file again"
        ) from error
    chosen = grid.getTier(_choose(path, tier, list(grid.tierNames)))
    if not isinstance(chosen, IntervalTier):
        raise DataError(
            f"{path}: tier {chosen.name!r} has points, expected intervals; name another with data.alignments.tier"
        )
    return [
        (label, seconds_to_samples(start), seconds_to_samples(end))
        for start, end, label in chosen.entries
    ]


def _choose(path: Path, tier: str, names: list[str]) -> str:
    if tier in names:
        return tier
    for kind in ("phones", "words") if tier == "auto" else (tier,):
        found = [name for name in names if name.lower().rpartition(" - ")[2] in TIERS.get(kind, ())]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(
                f"{path}: has {len(found)} tiers of {kind}, {', '.join(found)}; name one with data.alignments.tier"
            )
    raise DataError(
        f"{path}: no tier {tier!r}{did_you_mean(tier, names)}, it has {', '.join(names) or 'none'}; name one with data.alignments.tier"
    )
