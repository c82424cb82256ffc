"""Features on disk, for people who want them there: NumPy arrays that any tool can map into memory.

Nothing in this project needs them: `cluster` and `label` compute features when they want them
(LibriSpeech's 960 hours of 768 dimensions are 531 GB, their targets 346 MB). A folder with
    frames-00002-of-00010.npy   (frames, D) float32 or float16, the frames of neighbouring utterances behind one another
    offsets.npy                 int64 (utterances + 1): utterance i has frames [offsets[i], offsets[i + 1]) of all shards behind one another
    ids.txt                     the id of each utterance, a line each
    features.json               grid, width, what made them, first utterance of each shard
T frames, N frames of all utterances, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError
from hubert_pretrain.features.corpus_frames import GROUP_ROWS, map_frames
from hubert_pretrain.features.extractor import Extractor, describe
from hubert_pretrain.files import disk_room, read_json, replacing, write_json
from hubert_pretrain.frames import FrameGrid

FORMAT = "hubert_pretrain.features.1"
DESCRIPTION = "features.json"
OFFSETS = "offsets.npy"
IDS = "ids.txt"
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
SHARD_BYTES = 1 << 30
_FULL_DISK_FIX = "free some room and run it again, what is finished stays (float16 needs half)"


class FrameDump:
    """Frames that `write_dump` wrote. They are read like a NumPy array (N, D) of all of them, or
    utterance by utterance.

    `KMeans().fit(FrameDump.open(folder))` clusters them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        description = read_json(folder / DESCRIPTION)
        if not isinstance(description, dict) or description.get("format") != FORMAT:
            raise ArtefactError(
                f"{folder / DESCRIPTION}: missing, damaged or not a {FORMAT}; extract the features again"
            )
        self.features: dict[str, Any] = description["features"]
        """Fingerprint of the extractor."""
        self.grid = FrameGrid(**description["grid"])
        self.firsts: list[int] = description["shards"]
        """First utterance of each shard, and the number of utterances."""
        self.offsets: NDArray[np.int64] = np.load(folder / OFFSETS)
        missing = [path.name for path in self.paths if not path.is_file()]
        if missing:
            found = f"{len(missing)} of {len(self.paths)} shards are missing, {missing[0]} first"
            raise ArtefactError(
                f"{folder}: {found}; extract the features again, it goes on where it was"
            )
        self._shards = [np.load(path, mmap_mode="r") for path in self.paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        if int(self._ends[-1]) != int(self.offsets[-1]):
            raise ArtefactError(
                f"{folder}: the shards hold {self._ends[-1]} frames, {OFFSETS} says {self.offsets[-1]}; extract again"
            )

    @staticmethod
    def open(folder: str | Path) -> FrameDump:
        """Raises ArtefactError when it is missing, damaged or unfinished."""
        return FrameDump(Path(folder).absolute())

    @property
    def paths(self) -> list[Path]:
        """The shards."""
        return [
            shard_path(self.folder, number, len(self.firsts) - 1)
            for number in range(len(self.firsts) - 1)
        ]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return int(self.offsets[-1]), int(self.features["dim"])

    def __len__(self) -> int:
        return self.shape[0]

    @cached_property
    def ids(self) -> list[str]:
        """The id of each utterance."""
        return (self.folder / IDS).read_text(encoding="utf-8").splitlines()

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """Frames [start, stop) of all, as float32; `rows` has no step."""
        start, stop, _ = rows.indices(len(self))
        parts = []
        position = start
        while position < stop:
            shard = int(np.searchsorted(self._ends, position, side="right"))
            begin = int(self._ends[shard]) - len(self._shards[shard])
            parts.append(self._shards[shard][position - begin : stop - begin])
            position = begin + len(self._shards[shard])
        frames = (
            parts[0]
            if len(parts) == 1
            else np.concatenate([np.empty((0, self.shape[1]), dtype=np.float32), *parts])
        )
        return np.asarray(frames, dtype=np.float32)

    def utterance(self, number: int) -> NDArray[np.float32]:
        """Frames (T, D) of an utterance."""
        return self[int(self.offsets[number]) : int(self.offsets[number + 1])]


def write_dump(
    corpus: Corpus,
    rows: NDArray[np.int64],
    extractor: Extractor,
    folder: Path,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    device: torch.device | str = "cpu",
    workers: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Writes the frames of utterances. Shards that are there are not written again, so that an
    interrupted dump goes on.

    Args:
        corpus: where the audio is read.
        rows: of its manifest, ascending.
        extractor: already on `device`.
        folder: where to; made if need be.
        dtype: float32, or float16 for half the room.
        shard_bytes: size of a shard, about.
        device: where frames are computed.
        workers: threads.
        rank: of this process, among
        world_size: processes that write the same dump; each takes every so many-th shard.

    Raises:
        ArtefactError: the folder holds another dump.
        HubertPretrainError: the disk is full. What is finished stays.
        DataError: audio cannot be read or gives NaN, or a frame that float16 cannot hold.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    counts: NDArray[np.int64] = np.asarray(
        extractor.grid.num_frames(corpus.manifest.num_samples[rows])
    )  # type: ignore[arg-type]
    firsts = _first_rows(counts, max(1, shard_bytes // (DTYPES[dtype].itemsize * extractor.dim)))
    description = {
        "format": FORMAT,
        "features": extractor.fingerprint(),
        "grid": {"window": extractor.grid.window, "hop": extractor.grid.hop},
        "dtype": dtype,
        "utterances": len(rows),
        "manifest": corpus.manifest.fingerprint,
        "shards": firsts,
    }
    _begin(folder, description, corpus, rows, counts)
    for shard in range(rank, len(firsts) - 1, world_size):
        path = shard_path(folder, shard, len(firsts) - 1)
        if not path.exists():
            of_shard = slice(firsts[shard], firsts[shard + 1])
            parts = map_frames(
                corpus,
                rows[of_shard],
                extractor,
                _to_numpy,
                device=device,
                workers=workers,
                what=path.name,
                rowwise=True,
            )
            shape = int(counts[of_shard].sum()), extractor.dim
            _write_shard(path, shape, DTYPES[dtype], parts)


def shard_path(folder: Path, shard: int, count: int) -> Path:
    """Where a shard lies."""
    return folder / f"frames-{shard:05}-of-{count:05}.npy"


def write_fairseq(dump: FrameDump, folder: Path, split: str) -> None:
    """The layout of fairseq's dump_*_feature.py: `<split>_<rank>_<nshard>.npy`, and `.len` with the
    frames of each utterance.

    The frames stay on this project's grid: of MFCC those are every second of fairseq's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = len(dump.paths)
    with disk_room(folder, fix=_FULL_DISK_FIX):
        for number, path in enumerate(dump.paths):
            first = dump.firsts[number]
            last = dump.firsts[number + 1]
            np.save(
                folder / f"{split}_{number}_{shards}.npy",
                np.load(path, mmap_mode="r").astype(np.float32, copy=False),
            )
            lengths = np.diff(dump.offsets[first : last + 1])
            (folder / f"{split}_{number}_{shards}.len").write_text(
                "".join(f"{length}\n" for length in lengths)
            )


def _first_rows(counts: NDArray[np.int64], max_frames: int) -> list[int]:
    """The first utterance of each shard, and their number. Shards hold whole groups, so that frames
    do not depend on the shards.
    """
    firsts = [0]
    held = 0
    for start in range(0, len(counts), GROUP_ROWS):
        frames = int(counts[start : start + GROUP_ROWS].sum())
        if held and held + frames > max_frames:
            firsts.append(start)
            held = 0
        held += frames
    return [*firsts, len(counts)]


def _begin(
    folder: Path,
    description: dict[str, Any],
    corpus: Corpus,
    rows: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    """Writes everything but the frames, or checks that it is there."""
    there = read_json(folder / DESCRIPTION)
    if there is not None and there != description:
        differing = [
            name
            for name in description
            if not isinstance(there, dict) or there.get(name) != description[name]
        ]
        kept = (
            describe(there["features"])
            if isinstance(there, dict) and "features" in there
            else "something else"
        )
        raise ArtefactError(
            f"{folder}: holds {kept}, extracted in another way (other {', '.join(differing)}); choose another folder or delete it"
        )
    with disk_room(folder, fix=_FULL_DISK_FIX):
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / OFFSETS, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
        (folder / IDS).write_text(
            "".join(f"{corpus.manifest[int(row)].id}\n" for row in rows), encoding="utf-8"
        )
        write_json(folder / DESCRIPTION, description)


def _write_shard(
    path: Path, shape: tuple[int, int], dtype: np.dtype[Any], parts: Iterable[NDArray[np.float32]]
) -> None:
    """Writes a .npy file part by part and gives it its name when it is whole. (Not through a memory
    map: a full disk would be a crash.)
    """
    with (
        disk_room(path, fix=_FULL_DISK_FIX),
        replacing(path) as temporary,
        open(temporary, "wb") as file,
    ):
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            with np.errstate(over="ignore"):  # it is looked at below
                values = part.astype(dtype)
            if not np.isfinite(values).all():
                raise DataError(
                    f"{path}: a frame has values up to {np.abs(part).max():g}, more than float16 holds; use dtype=float32"
                )
            file.write(values.tobytes())


def _to_numpy(frames: Tensor) -> NDArray[np.float32]:
    return np.asarray(frames.cpu().numpy(), dtype=np.float32)
