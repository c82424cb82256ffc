"""The corpus card: what a corpus is, in numbers that show what is wrong with it before a GPU sees it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.manifest import split_order
from hubert_pretrain.data.prepare import Measured, Quarantined
from hubert_pretrain.frames import seconds

_CLIPPED_UTTERANCE = 1e-3
"""An utterance counts as clipped when more than this share of its samples is at full scale."""
_EXAMPLES = 5
_QUANTILES = {"min": 0.0, "p05": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


def make_card(measured: Sequence[Measured], bad: Sequence[Quarantined]) -> dict[str, Any]:
    """The card of a non-empty corpus, as plain JSON values."""
    lengths = np.array([seconds(one.facts.num_samples) for one in measured])
    splits = sorted({one.claim.split for one in measured}, key=split_order)
    return {
        "utterances": len(measured),
        "hours": _hours(lengths),
        "speakers": _distinct(one.claim.speaker for one in measured),
        "labels": _distinct(one.claim.label for one in measured),
        "transcribed_utterances": sum(bool(one.claim.text) for one in measured),
        "aligned_utterances": sum(one.claim.phones is not None for one in measured),
        "splits": {split: _split([one for one in measured if one.claim.split == split]) for split in splits},
        "length_seconds": {name: round(float(np.quantile(lengths, q)), 3) for name, q in _QUANTILES.items()},
        "source_rates": _counts(one.facts.source_rate for one in measured),
        "channels": _counts(one.facts.channels for one in measured),
        "silence": round(float(np.average([one.facts.silence for one in measured], weights=lengths)), 4),
        "clipped_utterances": sum(one.facts.clipped > _CLIPPED_UTTERANCE for one in measured),
        "peak": round(max(one.facts.peak for one in measured), 4),
        "duplicates": _duplicates(measured),
        "quarantined": _quarantined(bad),
    }


def facts_of(card: dict[str, Any]) -> dict[str, Any]:
    """The part of a card that the run's summary keeps."""
    splits = {name: {"utterances": split["utterances"], "hours": split["hours"]} for name, split in card["splits"].items()}
    kept = {name: card[name] for name in ("utterances", "hours", "aligned_utterances", "speakers")}
    return kept | {"quarantined": card["quarantined"]["utterances"], "splits": splits}


def describe(card: dict[str, Any]) -> str:
    """A card as a few lines for the terminal."""
    length, duplicates, bad = card["length_seconds"], card["duplicates"], card["quarantined"]
    rates = ", ".join(f"{rate} Hz: {count}" for rate, count in card["source_rates"].items())
    lines = [
        f"corpus       {card['utterances']} utterances, {card['hours']:.2f} h, {card['speakers']} speakers, {card['labels']} labels",
        *(f"  {name:10} {s['utterances']} utterances, {s['hours']:.2f} h, {s['speakers']} speakers" for name, s in card["splits"].items()),
        f"text         {card['transcribed_utterances']} transcribed, {card['aligned_utterances']} with phone alignments",
        f"length       {length['min']:.2f} to {length['max']:.2f} s, median {length['median']:.2f} s",
        f"source       {rates}; channels: {', '.join(f'{name}: {count}' for name, count in card['channels'].items())}",
        f"sound        {card['silence']:.0%} silence, {card['clipped_utterances']} clipped utterances, peak {card['peak']:.2f}",
        f"duplicates   {duplicates['utterances']} utterances, {duplicates['across_splits']} of them in several splits",
        f"quarantined  {bad['utterances']}",
        *(f"  {count} x {reason}" for reason, count in bad["reasons"].items()),
    ]
    return "\n".join(lines)


def _split(measured: Sequence[Measured]) -> dict[str, Any]:
    lengths = np.array([seconds(one.facts.num_samples) for one in measured])
    return {"utterances": len(measured), "hours": _hours(lengths), "speakers": _distinct(one.claim.speaker for one in measured)}


def _hours(lengths: NDArray[np.float64]) -> float:
    return round(float(lengths.sum()) / 3600, 4)


def _distinct(names: Iterable[str]) -> int:
    return len(set(names) - {""})


def _counts(values: Iterable[int]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items())}


def _duplicates(measured: Sequence[Measured]) -> dict[str, Any]:
    """Utterances whose decoded audio is that of another one; those in several splits are a leak from training into the test."""
    ordered = sorted(measured, key=lambda one: (one.facts.content, one.claim.id))
    groups = [list(same) for _, same in groupby(ordered, key=lambda one: one.facts.content)]
    groups = [group for group in groups if len(group) > 1]
    return {
        "utterances": sum(map(len, groups)),
        "across_splits": sum(len(group) for group in groups if len({one.claim.split for one in group}) > 1),
        "examples": [[one.claim.id for one in group[:_EXAMPLES]] for group in groups[:_EXAMPLES]],
    }


def _quarantined(bad: Sequence[Quarantined]) -> dict[str, Any]:
    """Reasons without their numbers, so that like counts with like."""
    reasons = Counter(re.sub(r"\d+", "#", one.reason.partition("; ")[0]) for one in bad)
    return {
        "utterances": len(bad),
        "reasons": dict(reasons.most_common()),
        "examples": [{"id": one.id, "path": one.path, "reason": one.reason} for one in bad[:_EXAMPLES]],
    }
