"""Join a corpus source and the scan of its audio: quarantine what does not fit, hold out `valid`.

N utterances of the source.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.data.arrow_table import chunks
from hubert_pretrain.data.manifest import order_by_split
from hubert_pretrain.data.preparation.quarantine import Quarantine, Quarantined
from hubert_pretrain.data.preparation.raw_utterances import PASSTHROUGH, Ints, RawUtterances
from hubert_pretrain.data.preparation.recode import Recoder
from hubert_pretrain.data.preparation.scan import Recording, scan_all
from hubert_pretrain.data.preparation.scan_journal import Identity, ScanJournal, identity
from hubert_pretrain.data.source import other_length
from hubert_pretrain.data.storage import Cache, Location, is_url
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE
from hubert_pretrain.progress import progress
from hubert_pretrain.seeds import share_of

_LOOKED_AT = 1000
"""Files that are looked for before any is read."""
_SCANNED = {
    "num_samples": np.int64,
    "source_rate": np.int32,
    "channel": np.int16,
    "mean": np.float32,
    "variance": np.float32,
}
"""Columns of the manifest that are measured on the audio."""
_PRIORITY = {"test": 0, "valid": 1, "train": 3}
"""Order of the splits in which an utterance stays of several with the same audio; 2: others."""


@dataclass
class ScannedCorpus:
    """The utterances of a source together with the facts of their audio."""

    utterances: RawUtterances
    journal: ScanJournal
    record: Ints
    """(N,) number of each utterance's facts in the journal; -1: quarantined."""
    splits: NDArray[np.int32]
    """(N,) split of each utterance, as a number into `names`."""
    names: list[str]
    recoder: Recoder | None = None
    """Made the files of the utterances that were recoded."""

    def content(self, positions: Ints) -> NDArray[np.uint64]:
        """A hash of the decoded audio of each position."""
        return self.journal.records()["content"][self.record[positions], 0].astype(np.uint64)

    def describe(self, position: int) -> tuple[str, str, str]:
        """Id, path and split of an utterance."""
        id, path = (self.utterances.columns[name][position].as_py() for name in ("id", "path"))
        return id, path, self.names[self.splits[position]]

    def rows(self) -> Ints:
        """Positions of the usable utterances in the order of the manifest's rows."""
        by_id = self.utterances.by_id
        usable = by_id[self.record[by_id] >= 0]
        return order_by_split(usable, self.splits, self.names)

    def manifest(self, rows: Ints) -> Iterator[dict[str, pa.Array]]:
        """The columns of the manifest, in parts."""
        records = self.journal.records()
        for part in chunks(len(rows)):
            positions = rows[part]
            facts = records[self.record[positions]]
            columns = {name: self.utterances.take(name, positions) for name in PASSTHROUGH}
            for name, kind in _SCANNED.items():
                columns[name] = pa.array(facts[name].astype(kind))
            recoded = self.recoded_paths(positions)
            if recoded:
                _name_recoded(columns, recoded)
            columns["split"] = pa.DictionaryArray.from_arrays(
                self.splits[positions], pa.array(self.names, pa.large_string())
            )
            yield columns

    def recoded_paths(self, positions: Ints) -> dict[int, str]:
        """Index into `positions` -> the FLAC that `prepare` made of the recording."""
        facts = self.journal.records()[self.record[positions]]
        indices = np.flatnonzero(facts["recoded"])
        if self.recoder is None or not len(indices):
            return {}
        names = ("path", "offset", "num_bytes")
        places = zip(
            *(self.utterances.take(name, positions[indices]).to_pylist() for name in names),
            strict=True,
        )
        return {
            int(i): str(
                self.recoder.path_of(
                    Location(*place), (int(facts["size"][i]), int(facts["modified"][i]))
                )
            )
            for i, place in zip(indices, places, strict=True)
        }

    def alignments(self, rows: Ints) -> Iterator[tuple[int, Phones]]:
        """(row, phones) of the rows that have an alignment."""
        for part in chunks(len(rows)):
            aligned = self.utterances.take("aligned", rows[part]).to_numpy()
            for row in (np.flatnonzero(aligned) + part.start).tolist():
                yield row, self.utterances.phones(int(rows[row]))


def _name_recoded(columns: dict[str, pa.Array], recoded: dict[int, str]) -> None:
    """Puts the recoded files into columns of the manifest."""
    paths = columns["path"].to_pylist()
    numbers = {
        name: columns[name].to_numpy(zero_copy_only=False).copy()
        for name in ("offset", "num_bytes", "source_rate")
    }
    for i, path in recoded.items():
        paths[i] = path
        numbers["offset"][i] = numbers["num_bytes"][i] = -1
        numbers["source_rate"][i] = SAMPLE_RATE
    columns["path"] = pa.array(paths, columns["path"].type)
    for name, values in numbers.items():
        columns[name] = pa.array(values, columns[name].type)


# -- scanning
# -------------------------------------------------------------------------------------------------


def refuse_all_missing(utterances: RawUtterances) -> None:
    """Raises DataError when none of the files that are looked at exist (up to a thousand, evenly
    spaced): the corpus lies elsewhere, and there is nothing to read.
    """
    positions = np.unique(np.linspace(0, len(utterances) - 1, _LOOKED_AT).astype(np.int64))
    paths = utterances.take("path", positions).to_pylist()
    if any(is_url(path) or os.path.exists(path) for path in paths):
        return
    others = f", nor any of {len(paths) - 1} others" if len(paths) > 1 else ""
    raise DataError(
        f"{paths[0]}: no such file{others} that the corpus names; restore the audio, or set "
        "data.root (data.corpus.root for a list) to the folder that its paths start from"
    )


@dataclass(frozen=True)
class _Scanning:
    """A recording that is being read, the position of each of its segments, and its identity."""

    recording: Recording
    positions: list[int]
    identity: Identity


def scan_corpus(
    utterances: RawUtterances,
    journal: ScanJournal,
    quarantine: Quarantine,
    workers: int = 0,
    cache: Cache | None = None,
    recoder: Recoder | None = None,
) -> ScannedCorpus:
    """Reads the audio of every utterance that the journal does not know, each file once.

    Args:
        utterances: of the source.
        journal: facts of files that an interrupted run has read; the new ones are added.
        quarantine: takes the utterances that cannot be used.
        workers: processes; 0 is one per usable core.
        cache: for audio behind URLs.
        recoder: see `scan_segments`.
    """
    record = np.full(len(utterances), -1, dtype=np.int64)
    with progress(len(utterances), "reading audio") as advance:
        scanning: deque[_Scanning] = deque()

        def unread() -> Iterator[Recording]:
            for location, positions, segments in utterances.recordings():
                now = identity(location)
                found = [journal.find(location, segment, now) for segment in segments]
                if any(map(journal.is_recoded, found)) and not (
                    recoder and recoder.path_of(location, now).exists()
                ):
                    found = [-1] * len(segments)
                record[positions] = found
                missing = [i for i, number in enumerate(found) if number < 0]
                for _ in range(len(found) - len(missing)):
                    advance()
                if missing:
                    recording = Recording(location, [segments[i] for i in missing])
                    scanning.append(_Scanning(recording, [positions[i] for i in missing], now))
                    yield recording

        # `scan_all` takes recordings ahead of its results, which come in the same order.
        for results in scan_all(unread(), workers, cache, recoder):
            read = scanning.popleft()
            location = read.recording.location
            for position, segment, facts in zip(
                read.positions, read.recording.segments, results, strict=True
            ):
                if isinstance(facts, str):
                    id = utterances.columns["id"][position].as_py()
                    quarantine.add(Quarantined(id, location.path, facts))
                else:
                    record[position] = journal.add(location, segment, read.identity, facts)
                advance()
    _quarantine_misfits(utterances, journal, record, quarantine)
    splits = utterances.columns["split"]
    return ScannedCorpus(
        utterances,
        journal,
        record,
        splits=splits.indices.to_numpy().copy(),
        names=splits.dictionary.to_pylist(),
        recoder=recoder,
    )


def _quarantine_misfits(
    utterances: RawUtterances, journal: ScanJournal, record: Ints, quarantine: Quarantine
) -> None:
    """Quarantines utterances whose stated length or alignment does not fit their audio."""
    records = journal.records()
    for part in chunks(len(utterances)):
        positions = utterances.by_id[part]
        positions = positions[record[positions] >= 0]
        lengths = records["num_samples"][record[positions]]
        reasons = _other_lengths(utterances, positions, lengths)
        reasons |= _long_alignments(utterances, positions, lengths)
        for i, reason in reasons.items():
            position = int(positions[i])
            id, path = (utterances.columns[name][position].as_py() for name in ("id", "path"))
            quarantine.add(Quarantined(id, path, reason))
            record[position] = -1


def _other_lengths(utterances: RawUtterances, positions: Ints, lengths: Ints) -> dict[int, str]:
    """Index into `positions` -> reason, for files longer or shorter than their list states."""
    stated = utterances.take("expected_samples", positions).to_numpy()
    within = utterances.take("expected_within", positions).to_numpy()
    differ = np.flatnonzero((stated >= 0) & (np.abs(lengths - stated) > within)).tolist()
    return {i: other_length(int(lengths[i]), int(stated[i])) for i in differ}


def _long_alignments(utterances: RawUtterances, positions: Ints, lengths: Ints) -> dict[int, str]:
    """Index into `positions` -> reason, for alignments that end after their audio."""
    ends = utterances.phone_ends(positions)
    # Times of alignments are rounded, to 10 ms at worst: an end less than a hop beyond the audio
    # covers no frame's centre.
    beyond = np.flatnonzero(ends >= lengths + MODEL_GRID.hop).tolist()
    return {
        i: f"alignment ends at sample {ends[i]}, the audio has {lengths[i]}; fix the alignment"
        for i in beyond
    }


# -- duplicates and validation split
# -------------------------------------------------------------------------------------------------


def drop_duplicates(scanned: ScannedCorpus, quarantine: Quarantine) -> None:
    """Leaves out every utterance with the same decoded audio as another one. The first in the order
    test, valid, other splits, train stays, so that what is trained on is not tested on.
    """
    rows = scanned.rows()
    priority = np.array([_PRIORITY.get(name, 2) for name in scanned.names])
    order = rows[np.argsort(priority[scanned.splits[rows]], kind="stable")]
    _, firsts, groups = np.unique(scanned.content(order), return_index=True, return_inverse=True)
    repeated = np.flatnonzero(firsts[groups] != np.arange(len(order)))
    for i in repeated.tolist():
        one, other = (scanned.describe(int(order[j])) for j in (i, firsts[groups[i]]))
        reason = f"the same audio as another utterance; {other[0]!r} of {other[2]} stays"
        quarantine.add(Quarantined(one[0], one[1], reason))
    scanned.record[order[repeated]] = -1


def hold_out_validation(
    scanned: ScannedCorpus, fraction: float, *, by: str = "recording", root: str = ""
) -> None:
    """Moves a share of `train` to `valid`, for each corpus that brings no `valid` split, and leaves
    out copies of what is not trained on.

    Chosen by a hash, so that an utterance stays in its split when others are added. Utterances of
    one recording (or speaker) stay together, and so do those with the same audio. At least one
    moves and at least one stays.

    Args:
        scanned: the corpus; its splits are changed.
        fraction: share to hold out; 0: none.
        by: recording, speaker or utterance. A speaker without a name is a recording.
        root: folder of the corpus: the hash is of the path below it.
    """
    corpora = scanned.utterances.columns["corpus"].indices.to_numpy()
    usable = scanned.record >= 0
    for number in np.unique(corpora[usable]).tolist():
        mine = np.flatnonzero(usable & (corpora == number))
        splits = scanned.splits[mine]
        present = {scanned.names[split] for split in np.unique(splits).tolist()}
        if fraction > 0 and "train" in present and "valid" not in present:
            train = mine[splits == scanned.names.index("train")]
            originals = train[~_is_copy(scanned, train)]
            _hold_out_of(scanned, originals, fraction, by, root)
    _leave_out_copies(scanned)


def _hold_out_of(scanned: ScannedCorpus, train: Ints, fraction: float, by: str, root: str) -> None:
    """Moves a share of the utterances at these positions to `valid`."""
    shares = _shares(scanned, train, by, root)
    if by != "utterance" and len(train) > 1 and shares.min() == shares.max():
        print(
            f"warning: all {len(train)} utterances are of one {by}, so that `valid` is held out by "
            "utterance: neighbouring parts of it are trained on; give the corpus a valid split",
            flush=True,
        )
        shares = _shares(scanned, train, "utterance", root)
    if len(train) < 2 or shares.min() == shares.max():
        return
    chosen = (shares < fraction) | (shares == shares.min())
    chosen &= shares < shares.max()
    content = scanned.content(train)
    together = np.isin(content, content[chosen])
    if not together.all():
        chosen = together
    if "valid" not in scanned.names:
        scanned.names.append("valid")
    scanned.splits[train[chosen]] = scanned.names.index("valid")
    if chosen.mean() > 2 * fraction + 1 / len(train) and by != "utterance":
        print(
            f"valid        {chosen.mean():.0%} of train is held out, data.valid_fraction is "
            f"{fraction:.2%}: a {by} is held out whole (data.hold_out_by)",
            flush=True,
        )


def _shares(scanned: ScannedCorpus, positions: Ints, by: str, root: str) -> NDArray[np.float64]:
    """A number in [0, 1) for each position, the same for all utterances of one recording (or
    speaker). A whole file has the one of its id; a channel of a file is a part of it.
    """
    take = scanned.utterances.take
    shares = np.empty(len(positions))
    for part in chunks(len(positions)):
        keys = take("id", positions[part]).to_pylist()
        if by != "utterance":
            names = ("path", "offset", "start", "num_samples", "channel")
            places = zip(*(take(name, positions[part]).to_pylist() for name in names), strict=True)
            keys = [
                id
                if (start, length) == (0, -1) and channel < 0
                else f"{path.removeprefix(root)}@{offset}"
                for id, (path, offset, start, length, channel) in zip(keys, places, strict=True)
            ]
        if by == "speaker":
            speakers = take("speaker", positions[part]).to_pylist()
            keys = [speaker or key for speaker, key in zip(speakers, keys, strict=True)]
        shares[part] = [share_of(key, "valid") for key in keys]
    return shares


def _is_copy(scanned: ScannedCorpus, positions: Ints) -> NDArray[np.bool_]:
    originals = scanned.utterances.take("original", positions)
    return np.asarray(pc.not_equal(originals, "").to_numpy(zero_copy_only=False))


def _leave_out_copies(scanned: ScannedCorpus) -> None:
    """Leaves out copies of utterances that are not in `train` now."""
    usable = np.flatnonzero(scanned.record >= 0)
    copies = usable[_is_copy(scanned, usable)]
    if not len(copies):
        return
    ids = scanned.utterances.columns["id"]
    found = pc.index_in(scanned.utterances.take("original", copies), value_set=ids)
    originals = found.fill_null(-1).to_numpy().astype(np.int64)
    trained = scanned.splits[originals] == scanned.names.index("train")
    left_out = copies[~trained & (originals >= 0)]
    scanned.record[left_out] = -1
    if len(left_out):
        print(f"copies       {len(left_out)} of utterances that are held out are left out")


def remove_unused(scanned: ScannedCorpus, rows: Ints) -> dict[str, int]:
    """Removes the recoded files that no row reads; counts and bytes of the others."""
    used: set[str] = set()
    for part in chunks(len(rows)):
        used.update(scanned.recoded_paths(rows[part]).values())
    if scanned.recoder is not None:
        for path in scanned.recoder.folder.glob("*"):
            if str(path) not in used:
                path.unlink()
    return {"recordings": len(used), "bytes": sum(Path(path).stat().st_size for path in used)}


def refuse_no_train(scanned: ScannedCorpus, where: str) -> None:
    """Raises DataError when there is nothing to train on."""
    numbers = np.unique(scanned.splits[scanned.record >= 0]).tolist()
    splits = sorted({scanned.names[number] for number in numbers})
    if "train" not in splits:
        raise DataError(
            f"{where}: no utterances in split 'train', only in {', '.join(splits)}; "
            "give it some for training"
        )
