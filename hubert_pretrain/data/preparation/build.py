"""What a corpus claims -> what is there: read the audio, quarantine the bad, hold out `valid`. N
claims.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.data.arrow_table import chunks
from hubert_pretrain.data.manifest import order_by_split
from hubert_pretrain.data.preparation.quarantine import Quarantine, Quarantined
from hubert_pretrain.data.preparation.raw_utterances import PASSTHROUGH, Ints, RawUtterances
from hubert_pretrain.data.preparation.scan import Recording, scan_all
from hubert_pretrain.data.preparation.scan_journal import ScanJournal, identity
from hubert_pretrain.data.source import other_length
from hubert_pretrain.data.storage import Cache
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.progress import progress
from hubert_pretrain.seeds import share_of


@dataclass
class ScannedCorpus:
    """Claims whose audio was read."""

    claims: RawUtterances
    journal: ScanJournal
    record: Ints
    """(N,) the number of each claim's facts in the journal; -1: it cannot be used."""
    splits: NDArray[np.int32]
    """(N,) as numbers into `names`."""
    names: list[str]

    def rows(self) -> Ints:
        """The places of the sound claims in the order of the manifest's rows."""
        sound = self.claims.by_id[self.record[self.claims.by_id] >= 0]
        return order_by_split(sound, self.splits, self.names)

    def manifest(self, rows: Ints) -> Iterator[dict[str, pa.Array]]:
        """The columns of the manifest, in parts."""
        records = self.journal.records()
        for part in chunks(len(rows)):
            places = rows[part]
            facts = records[self.record[places]]
            measured = {name: facts[name].astype(kind) for name, kind in _SCANNED.items()}
            split = pa.DictionaryArray.from_arrays(
                self.splits[places], pa.array(self.names, pa.large_string())
            )
            said = {name: self.claims.take(name, places) for name in PASSTHROUGH}
            yield (
                said
                | {name: pa.array(values) for name, values in measured.items()}
                | {"split": split}
            )

    def alignments(self, rows: Ints) -> Iterator[tuple[int, Phones]]:
        """(row, phones) of the rows that have them."""
        for part in chunks(len(rows)):
            aligned = self.claims.take("aligned", rows[part]).to_numpy()
            for row in (np.flatnonzero(aligned) + part.start).tolist():
                yield row, self.claims.phones(int(rows[row]))


_SCANNED = {
    "num_samples": np.int64,
    "source_rate": np.int32,
    "mean": np.float32,
    "variance": np.float32,
}


def scan_corpus(
    claims: RawUtterances,
    journal: ScanJournal,
    bad: Quarantine,
    workers: int = 0,
    cache: Cache | None = None,
) -> ScannedCorpus:
    """Reads the audio of every claim that the journal does not know, each file once; see
    `probe_all` for `workers`.
    """
    record = np.full(len(claims), -1, dtype=np.int64)
    with progress(len(claims), "reading audio") as advance:
        todo: deque[tuple[Recording, list[int]]] = deque()  # those that are being read

        def unread() -> Iterator[Recording]:
            for location, places, segments in claims.recordings():
                now = identity(location)
                found = [journal.find(location, segment, now) for segment in segments]
                record[places] = found
                left = [i for i, number in enumerate(found) if number < 0]
                for _ in range(len(found) - len(left)):
                    advance()
                if left:
                    todo.append(
                        (
                            Recording(location, [segments[i] for i in left]),
                            [places[i] for i in left],
                        )
                    )
                    yield todo[-1][0]

        for results in scan_all(unread(), workers, cache):
            recording, places = todo.popleft()
            now = identity(recording.location)
            for place, segment, facts in zip(places, recording.segments, results, strict=True):
                if isinstance(facts, str):
                    bad.add(
                        Quarantined(
                            claims.columns["id"][place].as_py(), recording.location.path, facts
                        )
                    )
                else:
                    record[place] = journal.add(recording.location, segment, now, facts)
                advance()
    _quarantine_misfits(claims, journal, record, bad)
    splits = claims.columns["split"]
    return ScannedCorpus(
        claims, journal, record, splits.indices.to_numpy().copy(), splits.dictionary.to_pylist()
    )


def _quarantine_misfits(
    claims: RawUtterances, journal: ScanJournal, record: Ints, bad: Quarantine
) -> None:
    """Leaves out what is said of an utterance and does not fit its audio."""
    records = journal.records()
    for part in chunks(len(claims)):
        places = claims.by_id[part]
        places = places[record[places] >= 0]
        lengths = records["num_samples"][record[places]]
        for i, reason in (
            _other_lengths(claims, places, lengths) | _long_alignments(claims, places, lengths)
        ).items():
            place = int(places[i])
            bad.add(
                Quarantined(
                    claims.columns["id"][place].as_py(),
                    claims.columns["path"][place].as_py(),
                    reason,
                )
            )
            record[place] = -1


def _other_lengths(claims: RawUtterances, places: Ints, lengths: Ints) -> dict[int, str]:
    """Files that are longer or shorter than their list states: where they stand in `places` -> why
    they cannot be used.
    """
    stated, within = (
        claims.take(name, places).to_numpy() for name in ("expected_samples", "expected_within")
    )
    differ = np.flatnonzero((stated >= 0) & (np.abs(lengths - stated) > within)).tolist()
    return {i: other_length(int(lengths[i]), int(stated[i])) for i in differ}


def _long_alignments(claims: RawUtterances, places: Ints, lengths: Ints) -> dict[int, str]:
    ends = claims.phone_ends(places)
    # Times of alignments are rounded, to 10 ms at worst: what reaches less than a frame beyond the
    # end holds no frame's centre.
    beyond = np.flatnonzero(ends >= lengths + MODEL_GRID.hop).tolist()
    return {
        i: f"alignment ends at sample {ends[i]}, the audio has {lengths[i]}; mend the alignment"
        for i in beyond
    }


def hold_out_validation(measured: ScannedCorpus, fraction: float) -> None:
    """Moves a share of `train` to `valid`, for each corpus that brings no `valid` split.

    Chosen by a hash of the id: an utterance stays where it is when others are added. At least one
    moves and at least one stays.
    """
    corpora = measured.claims.columns["corpus"].indices.to_numpy()
    sound = measured.record >= 0
    for number in np.unique(corpora[sound]).tolist() if fraction > 0 else []:
        mine = np.flatnonzero(sound & (corpora == number))
        present = {measured.names[split] for split in np.unique(measured.splits[mine]).tolist()}
        if "train" in present and "valid" not in present:
            _hold_out_of(
                measured, mine[measured.splits[mine] == measured.names.index("train")], fraction
            )


def _hold_out_of(measured: ScannedCorpus, train: Ints, fraction: float) -> None:
    """Moves a share of these places to `valid`."""
    if len(train) < 2:
        return
    shares = np.empty(len(train))
    for part in chunks(len(train)):
        shares[part] = [
            share_of(id, "valid") for id in measured.claims.take("id", train[part]).to_pylist()
        ]
    chosen = shares < fraction
    chosen[shares.argmin()] = True
    chosen[shares.argmax()] = False
    if "valid" not in measured.names:
        measured.names.append("valid")
    measured.splits[train[chosen]] = measured.names.index("valid")


def refuse_no_train(measured: ScannedCorpus, where: str) -> None:
    """Raises DataError when nothing is left to train on."""
    splits = sorted(
        {
            measured.names[number]
            for number in np.unique(measured.splits[measured.record >= 0]).tolist()
        }
    )
    if "train" not in splits:
        raise DataError(
            f"{where}: no utterances in split 'train', only in {', '.join(splits)}; give it some for training"
        )
