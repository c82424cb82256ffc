"""Corpus statistics: hours, speakers, lengths, clipping, duplicates, quarantine.

The card shows the faults of a corpus before training. It is computed from columns, in parts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from hubert_pretrain.data import audio_files
from hubert_pretrain.data.arrow_table import chunks
from hubert_pretrain.data.manifest import Manifest, Utterance
from hubert_pretrain.data.preparation.build import ScannedCorpus
from hubert_pretrain.data.preparation.quarantine import Quarantine
from hubert_pretrain.data.preparation.raw_utterances import Ints
from hubert_pretrain.files import human_bytes, replacing
from hubert_pretrain.frames import seconds

_CLIPPED_UTTERANCE = 1e-3
"""An utterance counts as clipped when more than this share of its samples is at full scale."""
_SOFT_MIX = 5.0
_CANCELLED_MIX = 10.0
"""Decibels that a mix is below its loudest channel: 6 when another channel is silent, 3 for two
that are independent, more when they cancel each other."""
_QUIET = 1e-4
"""A peak below this is that of samples that were scaled down twice."""
_EXAMPLES = 5
_QUANTILES = {"min": 0.0, "p05": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


def make_card(
    manifest: Manifest, scanned: ScannedCorpus, rows: Ints, bad: Quarantine, duplicates: Path
) -> dict[str, Any]:
    """The card of a non-empty corpus, as plain JSON values. Row r of the manifest is the utterance
    at position `rows[r]`. The file `duplicates` gets a line of JSON for each group of utterances
    with the same audio.
    """
    lengths = seconds(manifest.num_samples)
    quantiles = np.quantile(lengths, list(_QUANTILES.values()), overwrite_input=True)
    return {
        "utterances": len(manifest),
        "hours": _hours(
            sum(
                group.total_samples
                for split in manifest.splits
                for group in manifest.length_sorted(split)
            )
        ),
        "speakers": _distinct(manifest, "speaker", range(len(manifest))),
        "labels": _distinct(manifest, "label", range(len(manifest))),
        "transcribed_utterances": sum(
            pc.sum(pc.not_equal(manifest.take("text", part), "")).as_py()
            for part in _parts(range(len(manifest)))
        ),
        "aligned_utterances": sum(
            int(scanned.utterances.take("aligned", rows[part]).to_numpy().sum())
            for part in chunks(len(rows))
        ),
        "splits": {split: _split(manifest, split) for split in manifest.splits},
        "corpora": _corpora(manifest),
        "length_seconds": {
            name: round(float(value), 3) for name, value in zip(_QUANTILES, quantiles, strict=True)
        },
        **_sound(scanned, rows),
        "duplicates": _duplicates(manifest, scanned, rows, duplicates),
        "quarantined": _quarantined(bad),
    }


def facts_of(card: dict[str, Any]) -> dict[str, Any]:
    """The part of a card that the run's summary keeps."""
    splits = {
        name: {"utterances": split["utterances"], "hours": split["hours"]}
        for name, split in card["splits"].items()
    }
    facts = {name: card[name] for name in ("utterances", "hours", "aligned_utterances", "speakers")}
    return facts | {"quarantined": card["quarantined"]["utterances"], "splits": splits}


def describe(card: dict[str, Any]) -> str:
    """A card as a few lines for the terminal."""
    length = card["length_seconds"]
    duplicates = card["duplicates"]
    bad = card["quarantined"]
    corpora = card["corpora"]
    rates = ", ".join(f"{rate} Hz: {count}" for rate, count in card["source_rates"].items())
    channels = ", ".join(f"{name}: {count}" for name, count in card["channels"].items())
    lines = [
        f"corpus       {_amount(card)}, {card['speakers']} speakers, {card['labels']} labels",
        *(
            f"  {name:10} {_amount(split)}, {split['speakers']} speakers{_shared(split)}"
            for name, split in card["splits"].items()
        ),
        *(
            f"  from {name}: {_amount(corpus)}"
            for name, corpus in corpora.items()
            if len(corpora) > 1
        ),
        f"text         {card['transcribed_utterances']} transcribed, "
        f"{card['aligned_utterances']} with phone alignments",
        f"length       {length['min']:.2f} to {length['max']:.2f} s, "
        f"median {length['median']:.2f} s",
        f"source       {rates}; channels: {channels}",
        f"sound        {card['silence']:.0%} silence, "
        f"{card['clipped_utterances']} clipped utterances, peak {card['peak']:.2f}",
        *_warnings(card),
        *_segmentation(card),
        *_recoded(card),
        f"duplicates   {duplicates['utterances']} utterances, "
        f"{duplicates['across_splits']} of them in several splits",
        f"quarantined  {bad['utterances']}",
        *(f"  {count} x {reason}" for reason, count in bad["reasons"].items()),
        *(f"passed over  {line}" for line in audio_files.describe(card.get("passed_over", {}))),
    ]
    return "\n".join(lines)


def _shared(split: dict[str, Any]) -> str:
    shared = split.get("speakers_in_train", 0)
    return f", {shared} of them in train" if shared else ""


def _segmentation(card: dict[str, Any]) -> list[str]:
    cuts = card.get("segmentation")
    if not cuts:
        return []
    return [
        f"cut          {cuts['recordings']} long recordings into {cuts['utterances']} pieces, "
        f"{_long(cuts['seconds_left_out'] / 3600)} of pauses left out; {cuts['kept_whole']} long "
        "ones with a transcript, label or alignment kept whole"
    ]


def _recoded(card: dict[str, Any]) -> list[str]:
    recoded = card.get("recoded", {})
    if not recoded.get("recordings"):
        return []
    return [
        f"recoded      {recoded['recordings']} long recordings (MP3, Ogg, ...) written as FLAC, "
        f"{human_bytes(recoded['bytes'])}: data.recode_minutes"
    ]


def _warnings(card: dict[str, Any]) -> list[str]:
    """Lines about audio that is much softer than it should be."""
    lines = []
    mixes = card.get("mixes", {})
    if cancelled := mixes.get("cancelled"):
        lines.append(
            f"  warning: {cancelled} utterances whose channels cancel each other, at least "
            f"{_CANCELLED_MIX:.0f} dB: data.channel=loudest takes one of them"
        )
    if softer := mixes.get("softer"):
        lines.append(
            f"  warning: {softer} utterances at least {_SOFT_MIX:.0f} dB softer than their loudest "
            "channel (another is silent): data.channel=loudest"
        )
    if quiet := card.get("quiet_utterances"):
        lines.append(
            f"  warning: {quiet} utterances with a peak below {_QUIET:g}: scaled down twice?"
        )
    return lines


def _amount(part: dict[str, Any]) -> str:
    return f"{part['utterances']} utterances, {_long(part['hours'])}"


def _long(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _split(manifest: Manifest, split: str) -> dict[str, Any]:
    groups = manifest.length_sorted(split)
    rows = manifest.split_range(split)
    hours = _hours(sum(group.total_samples for group in groups))
    speakers = _present(manifest, "speaker", rows)
    train = _present(manifest, "speaker", _range(manifest, "train"))
    shared = {} if split == "train" else {"speakers_in_train": int((speakers & train).sum())}
    return {"utterances": len(rows), "hours": hours, "speakers": int(speakers.sum())} | shared


def _range(manifest: Manifest, split: str) -> range:
    return manifest.split_range(split) if split in manifest.splits else range(0)


def _corpora(manifest: Manifest) -> dict[str, Any]:
    utterances: Counter[str] = Counter()
    lengths: Counter[str] = Counter()
    for split in manifest.splits:
        for group in manifest.length_sorted(split):
            utterances[group.corpus] += len(group)
            lengths[group.corpus] += group.total_samples
    return {
        name: {"utterances": utterances[name], "hours": _hours(lengths[name])}
        for name in sorted(utterances)
    }


def _hours(num_samples: int) -> float:
    return round(seconds(num_samples) / 3600, 4)


def _parts(rows: range) -> Iterator[Ints]:
    return (
        np.arange(rows.start + part.start, rows.start + part.stop) for part in chunks(len(rows))
    )


def _distinct(manifest: Manifest, name: str, rows: range) -> int:
    """Number of different names in some rows of a column, without ""."""
    return int(_present(manifest, name, rows).sum())


def _present(manifest: Manifest, name: str, rows: range) -> NDArray[np.bool_]:
    """True for each name of a column that is in some rows; "" is in none."""
    names = manifest.take(name, np.arange(0)).dictionary
    seen = np.zeros(len(names), dtype=bool)
    for part in _parts(rows):
        seen[manifest.take(name, part).indices.to_numpy()] = True
    empty = names.index("").as_py()
    if empty >= 0:
        seen[empty] = False
    return seen


def _sound(scanned: ScannedCorpus, rows: Ints) -> dict[str, Any]:
    """Facts of the audio: rates, channels, silence, clipping, peak."""
    records = scanned.journal.records()
    rates: Counter[int] = Counter()
    channels: Counter[int] = Counter()
    silence = 0.0
    total = 0.0
    clipped = 0
    peak = 0.0
    quiet = 0
    soft = 0
    cancelled = 0
    for part in chunks(len(rows)):
        facts = records[scanned.record[rows[part]]]
        rates.update(_counts(facts["source_rate"]))
        channels.update(_counts(facts["channels"]))
        silence += float(facts["silence"] @ facts["num_samples"])
        total += float(facts["num_samples"].sum())
        clipped += int((facts["clipped"] > _CLIPPED_UTTERANCE).sum())
        peak = max(peak, float(facts["peak"].max()))
        quiet += int((facts["peak"] < _QUIET).sum())
        soft += int((facts["mix_loss"] >= _SOFT_MIX).sum())
        cancelled += int((facts["mix_loss"] >= _CANCELLED_MIX).sum())
    return {
        "source_rates": {str(rate): count for rate, count in sorted(rates.items())},
        "channels": {str(number): count for number, count in sorted(channels.items())},
        "silence": round(silence / total, 4),
        "clipped_utterances": clipped,
        "peak": round(peak, 4),
        "quiet_utterances": quiet,
        "mixes": {"softer": soft - cancelled, "cancelled": cancelled},
    }


def _counts(values: NDArray[np.int64]) -> dict[int, int]:
    names, counts = np.unique(values, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _duplicates(
    manifest: Manifest, scanned: ScannedCorpus, rows: Ints, listing: Path
) -> dict[str, Any]:
    """Utterances with the same decoded audio as another one, all of them in the file `listing`.
    Those in several splits leak from training into validation or test.
    """
    records = scanned.journal.records()
    content = np.empty((2, len(rows)), dtype=np.uint64)
    for part in chunks(len(rows)):
        content[:, part] = records["content"][scanned.record[rows[part]]].T
    # Equal content is adjacent in this order; a group begins where the content changes.
    order = np.lexsort(content[::-1])
    new = np.append(True, (content[:, order[1:]] != content[:, order[:-1]]).any(axis=0))
    firsts = np.flatnonzero(new)
    counts = np.diff(np.append(firsts, len(order)))
    splits = scanned.splits[rows[order]]
    mixed = np.minimum.reduceat(splits, firsts) != np.maximum.reduceat(splits, firsts)
    groups = [order[firsts[i] : firsts[i] + counts[i]] for i in np.flatnonzero(counts > 1)]
    with replacing(listing, sync=False) as temporary, open(temporary, "w") as file:
        for group in groups:
            file.write(json.dumps([_listed(manifest[int(row)]) for row in sorted(group)]) + "\n")
    if not groups:
        listing.unlink()
    return {
        "utterances": int(counts[counts > 1].sum()),
        "across_splits": int(counts[mixed].sum()),
        "examples": [
            sorted(manifest[int(row)].id for row in group)[:_EXAMPLES]
            for group in groups[:_EXAMPLES]
        ],
    }


def _listed(utterance: Utterance) -> dict[str, str]:
    return {"id": utterance.id, "split": utterance.split, "path": utterance.path}


def _quarantined(bad: Quarantine) -> dict[str, Any]:
    return {
        "utterances": len(bad),
        "reasons": dict(bad.reasons.most_common()),
        "examples": [
            {"id": one.id, "path": one.path, "reason": one.reason} for one in bad.examples
        ],
    }
