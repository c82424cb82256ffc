"""A corpus on disk against the one that was read: utterances added, removed or changed since, by
their number and the sizes and times of their files. No audio is decoded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from hubert_pretrain.data.arrow_table import chunks
from hubert_pretrain.data.preparation.raw_utterances import Ints, RawUtterances
from hubert_pretrain.data.preparation.scan_journal import ScanJournal, identity

_TEXTS = ("id", "split", "speaker", "text", "label")


def describe_listing(utterances: RawUtterances, folder: Path) -> dict[str, Any]:
    """Number of the utterances that `prepare` did not make in `folder`, and a hash of their
    splits, speakers, texts and labels."""
    positions = _originals(utterances, folder)
    digest = hashlib.blake2b(digest_size=16)
    for part in chunks(len(positions)):
        columns = [utterances.take(name, positions[part]).to_pylist() for name in _TEXTS]
        digest.update(json.dumps(columns).encode())
    return {"utterances": len(positions), "texts": digest.hexdigest()}


def compare(
    utterances: RawUtterances,
    folder: Path,
    *,
    before: dict[str, Any],
    journal: ScanJournal,
    quarantined: Collection[str],
    moved: bool,
) -> str:
    """`2 utterances added, 1 changed; the first: PATH`; "" when the corpus is as it was.

    Args:
        utterances: that the corpus lists now.
        folder: of stage `prepare`.
        before: `describe_listing` of those that were read.
        journal: facts of the files that were read.
        quarantined: ids of those that could not be used.
        moved: the files lie elsewhere now, and their times say nothing.
    """
    positions = set(_originals(utterances, folder).tolist())
    counts = {"added": 0, "removed": 0, "changed": 0}
    first = ""
    for location, members, segments in utterances.recordings():
        now = identity(location)
        for position, segment in zip(members, segments, strict=True):
            known = journal.newest(location, segment)
            kind = ""
            if known is None and utterances.columns["id"][position].as_py() not in quarantined:
                kind = "added"
            elif known is not None and known[: 1 if moved else 2] != now[: 1 if moved else 2]:
                kind = "changed"
            if kind and position in positions:
                counts[kind] += 1
                first = first or location.path
    counts["removed"] = before["utterances"] - (len(positions) - counts["added"])
    found = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number > 0)
    if found:
        return f"utterances: {found}{f'; the first: {first}' if first else ''}"
    if describe_listing(utterances, folder) != before:
        return "utterances have other texts, speakers, labels or splits"
    return ""


def _originals(utterances: RawUtterances, folder: Path) -> Ints:
    """Positions, in order of ids, of utterances that are no copies and lie elsewhere."""
    columns = utterances.columns
    made = pc.starts_with(columns["path"], f"{folder.absolute()}/")
    recorded = pc.and_(pc.equal(columns["original"], ""), pc.invert(made))
    by_id: Ints = utterances.by_id
    return by_id[np.asarray(recorded.to_numpy(zero_copy_only=False))[by_id]]
