"""Prepared corpus -> WebDataset tar shards of 16 kHz mono audio, as 16-bit PCM (fast to read) or
FLAC (half the size).

Every byte of a shard depends only on the corpus and the settings. So any number of processes write
the same files, and after a kill the missing shards are written to the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
from numpy.typing import NDArray

from hubert_pretrain.data import audio
from hubert_pretrain.data.corpus import ALIGNMENTS, CARD, MANIFEST, Corpus
from hubert_pretrain.data.manifest import Manifest, Utterance, write_manifest
from hubert_pretrain.data.shards.index import Entry, ShardIndex, key_of, shard_name, sidecar, verify
from hubert_pretrain.distributed import end_with_parent, usable_cores
from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.files import human_bytes, remove_temporaries, replacing
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.progress import progress

FORMATS = {"pcm": "wav", "flac": "flac"}
"""Name of a format -> extension of its members."""

SHARDS = "shards"
"""Folder of the shards in that of a prepared corpus."""

_SHARE_OF_PCM = {"pcm": 1.0, "flac": 0.55}
"""Expected size relative to PCM: utterances are assigned to shards before they are encoded."""
_OVERHEAD = 2_048
"""Bytes per utterance for headers, JSON and padding."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A shard to write: rows [first, last) of the manifest."""

    name: str
    first: int
    last: int


def check_format(format: str) -> None:
    """Raises ConfigError unless there is such a format."""
    if format not in FORMATS:
        raise ConfigError(
            f"data.shards={format!r}: expected none, {', '.join(FORMATS)}"
            f"{did_you_mean(format, ['none', *FORMATS])}"
        )


def assign(manifest: Manifest, format: str, megabytes: int) -> list[Assignment]:
    """Assigns the utterances of each split, in the order of their rows, to shards of about
    `megabytes`.
    """
    check_format(format)
    shards = []
    for split in manifest.splits:
        rows = manifest.split_range(split)
        sizes = _sizes(manifest, rows, format)
        number = (np.cumsum(sizes) - sizes) // (megabytes * 1e6)
        starts = [rows.start + int(i) for i in np.flatnonzero(np.diff(number, prepend=-1))]
        shards += [
            Assignment(shard_name(split, i), first, last)
            for i, (first, last) in enumerate(zip(starts, [*starts[1:], rows.stop], strict=True))
        ]
    return shards


def _sizes(manifest: Manifest, rows: range, format: str) -> NDArray[np.float64]:
    """Estimated bytes of each of these rows in a shard."""
    return np.asarray(
        manifest.num_samples[rows.start : rows.stop] * (2 * _SHARE_OF_PCM[format]) + _OVERHEAD,
        dtype=np.float64,
    )


def write_shards(
    corpus: Corpus, folder: Path, *, format: str, megabytes: int = 512, workers: int = 0
) -> Iterator[Utterance]:
    """Writes a corpus as shards and yields the rows of the manifest that reads from them.

    The mean and variance of a row are those of the stored samples: 16-bit audio at 16 kHz is stored
    to the bit; any other is resampled, rounded to 16 bits and measured again.

    Args:
        corpus: the prepared corpus.
        folder: for the shards; those that a killed run finished there stay.
        format: pcm or flac.
        megabytes: size of a shard, roughly.
        workers: processes; 0 is one per core.

    Raises:
        ConfigError: there is no such format.
        DataError: the disk has no room, audio cannot be read any more, the folder holds other
            shards, or a process died.
    """
    assignments = assign(corpus.manifest, format, megabytes)
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    _refuse_others(folder, {assignment.name for assignment in assignments})
    _refuse_full_disk(corpus.manifest, folder, assignments, format)
    with progress(len(assignments), "writing shards") as advance:
        for _ in _each(corpus, assignments, folder, format, workers):
            advance()
    for assignment in assignments:
        index = verify(folder / assignment.name)
        for row, entry in zip(range(assignment.first, assignment.last), index.entries, strict=True):
            yield replace(
                corpus.manifest[row],
                path=str(folder.absolute() / assignment.name),
                offset=entry.offset,
                num_bytes=entry.num_bytes,
                start=0,
                source_rate=SAMPLE_RATE,
                channel=audio.MIX,
                mean=entry.mean,
                variance=entry.variance,
            )


def convert(
    corpus: Corpus,
    out: Path,
    *,
    format: str,
    megabytes: int = 512,
    workers: int = 0,
    url: str | None = None,
) -> Manifest:
    """A prepared corpus whose audio lies in shards: `out/shards/*.tar`, `out/manifest.arrow`, and
    the alignments and card of `corpus`.

    Args:
        corpus: the corpus; `out` may be its own folder, whose manifest then reads from the shards.
        out: the folder to write.
        format, megabytes, workers: see `write_shards`.
        url: future place of the shards, e.g. `s3://bucket/corpus`, for the manifest; copy them
            there yourself.
    """
    rows = write_shards(corpus, out / SHARDS, format=format, megabytes=megabytes, workers=workers)
    if url is not None:
        rows = (replace(row, path=f"{url.rstrip('/')}/{Path(row.path).name}") for row in rows)
    manifest = write_manifest(out / MANIFEST, rows)
    for name in (ALIGNMENTS, CARD):
        if (corpus.folder / name).is_file() and corpus.folder != out.absolute():
            shutil.copyfile(corpus.folder / name, out / name)
    return manifest


def write_shard(corpus: Corpus, assignment: Assignment, folder: Path, format: str) -> ShardIndex:
    """Writes one shard atomically, and its index after it, unless both are there and of the same
    utterances.
    """
    path = folder / assignment.name
    rows = [corpus.manifest[row] for row in range(assignment.first, assignment.last)]
    made_of = _made_of(rows, format)
    found = ShardIndex.load(sidecar(path))
    if (
        found is not None
        and found.made_of == made_of
        and path.is_file()
        and path.stat().st_size == found.size
    ):
        return found
    with replacing(path) as temporary, open(temporary, "wb") as file:
        output = _Hashing(file)
        with tarfile.open(
            fileobj=output,  # type: ignore[call-overload]
            mode="w",
            format=tarfile.USTAR_FORMAT,
        ) as tar:
            entries = [_add(tar, corpus, utterance, format) for utterance in rows]
    index = ShardIndex(
        shard=path.name,
        size=output.size,
        sha256=output.sha256.hexdigest(),
        made_of=made_of,
        entries=entries,
    )
    index.save(sidecar(path))
    return index


def _add(tar: tarfile.TarFile, corpus: Corpus, utterance: Utterance, format: str) -> Entry:
    """Adds the two members of an utterance, audio and JSON."""
    waveform = corpus.read(utterance.row)
    values = audio.to_int16(waveform)
    # The statistics of the manifest hold as long as no sample was rounded.
    if np.array_equal(values.astype(np.float32) * np.float32(2.0**-15), waveform):
        mean = utterance.mean
        variance = utterance.variance
    else:
        stored = values / 2.0**15
        mean = float(stored.mean())
        variance = float(stored.var())
    key = key_of(utterance.id)
    name = f"{key}.{FORMATS[format]}"
    data = encode(values, format)
    fields = {
        "id": utterance.id,
        "text": utterance.text,
        "speaker": utterance.speaker,
        "label": utterance.label,
    }
    facts = {
        **fields,
        "split": utterance.split,
        "corpus": utterance.corpus,
        "num_samples": len(values),
        "sample_rate": SAMPLE_RATE,
    }
    offset = _member(tar, name, data)
    _member(tar, f"{key}.json", json.dumps(facts, ensure_ascii=False).encode())
    return Entry(
        id=utterance.id,
        name=name,
        offset=offset,
        num_bytes=len(data),
        num_samples=len(values),
        mean=mean,
        variance=variance,
        fields=fields,
    )


def _member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Adds a file without owner and time, so that equal content gives equal shards. Returns the
    position of its content.
    """
    info = tarfile.TarInfo(name)
    info.size = len(data)
    start = int(tar.offset)
    tar.addfile(info, io.BytesIO(data))
    return start + tarfile.BLOCKSIZE


def encode(values: NDArray[np.int16], format: str) -> bytes:
    """A WAV or FLAC file of 16-bit samples at 16 kHz."""
    if format == "pcm":
        return audio.wav_header(len(values)) + values.astype("<i2").tobytes()
    file = io.BytesIO()
    soundfile.write(file, values, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


class _Hashing:
    """A file to write to that counts and hashes the bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.size += len(data)
        self.sha256.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.size


def _made_of(rows: list[Utterance], format: str) -> str:
    """Fingerprint of the utterances of a shard and of its format."""
    digest = hashlib.blake2b(format.encode(), digest_size=16)
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()


def _each(
    corpus: Corpus, assignments: list[Assignment], folder: Path, format: str, workers: int
) -> Iterator[ShardIndex]:
    workers = min(workers or usable_cores(), len(assignments))
    if workers <= 1:
        yield from (write_shard(corpus, assignment, folder, format) for assignment in assignments)
        return
    executor = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=end_with_parent
    )
    try:
        futures = [
            executor.submit(write_shard, corpus, assignment, folder, format)
            for assignment in assignments
        ]
        for future in futures:
            yield future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that writes shards died, killed or out of memory; "
            "run again with fewer, e.g. data.workers=1"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _refuse_full_disk(
    manifest: Manifest, folder: Path, assignments: list[Assignment], format: str
) -> None:
    """Raises DataError before the first byte, from the lengths of the utterances to write."""
    left = [
        range(each.first, each.last) for each in assignments if not (folder / each.name).exists()
    ]
    needed = sum(float(_sizes(manifest, rows, format).sum()) for rows in left)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: about {human_bytes(int(needed))} are needed for shards in {format}, "
            f"{human_bytes(free)} are free; "
            "make room, or write them elsewhere with hubert-pretrain make-shards"
        )


def _refuse_others(folder: Path, names: set[str]) -> None:
    """Raises DataError when the folder holds shards that are not among `names`."""
    others = sorted(path.name for path in folder.glob("*.tar") if path.name not in names)
    if others:
        raise DataError(
            f"{folder / others[0]}: a shard of another corpus or another size; "
            "empty the folder or name another"
        )
