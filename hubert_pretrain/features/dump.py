"""Features on disk, for other programs: NumPy arrays that can be memory-mapped.

Nothing in this package needs them: the stages `cluster` and `label` compute features on the fly
(768-dimensional features of LibriSpeech's 960 hours are 531 GB, their targets 346 MB).

A dump is a folder with

    frames-00002-of-00010.npy   (frames, D) float32 or float16, consecutive utterances
    offsets.npy                 int64 (utterances + 1): utterance i has the frames
                                [offsets[i], offsets[i + 1]) of all shards concatenated
    ids.txt                     the id of each utterance, one a line
    features.json               grid, width, extractor, first utterance of each shard

Tensor letters: T frames of an utterance, N frames of all utterances, D width of a frame.
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
from hubert_pretrain.features.extractor import FeatureExtractor, describe
from hubert_pretrain.files import disk_room, read_json, refuse_other_content, replacing, write_json
from hubert_pretrain.frames import FrameGrid

FORMAT = "hubert_pretrain.features.1"
DESCRIPTION = "features.json"
OFFSETS = "offsets.npy"
IDS = "ids.txt"
OWN = (DESCRIPTION, OFFSETS, IDS, "frames-*-of-*.npy", "fairseq")
"""Content of the folder."""
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
SHARD_BYTES = 1 << 30
FULL_DISK_FIX = "free some room and run it again, what is finished stays (float16 needs half)"


class FrameDump:
    """Read access to a dump: as one array (N, D) of all frames, or utterance by utterance.

    `KMeans().fit(FrameDump.open(folder))` clusters the frames.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        description = read_json(folder / DESCRIPTION)
        if not isinstance(description, dict) or description.get("format") != FORMAT:
            raise ArtefactError(
                f"{folder / DESCRIPTION}: missing, damaged or not a {FORMAT}; extract the features "
                "again"
            )
        self.features: dict[str, Any] = description["features"]
        """Fingerprint of the extractor."""
        self.grid = FrameGrid(**description["grid"])
        self.shard_starts: list[int] = description["shards"]
        """First utterance of each shard, and the number of utterances at the end."""
        self.offsets: NDArray[np.int64] = np.load(folder / OFFSETS)
        missing = [path.name for path in self.paths if not path.is_file()]
        if missing:
            raise ArtefactError(
                f"{folder}: {len(missing)} of {len(self.paths)} shards are missing, {missing[0]} "
                "first; extract the features again, finished shards are not repeated"
            )
        self._shards = [np.load(path, mmap_mode="r") for path in self.paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        if int(self._ends[-1]) != int(self.offsets[-1]):
            raise ArtefactError(
                f"{folder}: the shards hold {self._ends[-1]} frames, {OFFSETS} says "
                f"{self.offsets[-1]}; extract the features again"
            )

    @staticmethod
    def open(folder: str | Path) -> FrameDump:
        """Opens a dump. Raises ArtefactError when it is missing, damaged or unfinished."""
        return FrameDump(Path(folder).absolute())

    @property
    def paths(self) -> list[Path]:
        """The files of the shards, in order."""
        count = len(self.shard_starts) - 1
        return [shard_path(self.folder, number, count) for number in range(count)]

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
        """Frames [start, stop) of all frames, as float32; `rows` has no step."""
        start, stop, _ = rows.indices(len(self))
        parts = []
        position = start
        while position < stop:
            number = int(np.searchsorted(self._ends, position, side="right"))
            shard = self._shards[number]
            shard_begin = int(self._ends[number]) - len(shard)
            parts.append(shard[position - shard_begin : stop - shard_begin])
            position = shard_begin + len(shard)
        if len(parts) == 1:
            return np.asarray(parts[0], dtype=np.float32)
        parts.insert(0, np.empty((0, self.shape[1]), dtype=np.float32))
        return np.asarray(np.concatenate(parts), dtype=np.float32)

    def utterance(self, number: int) -> NDArray[np.float32]:
        """Frames (T, D) of an utterance."""
        return self[int(self.offsets[number]) : int(self.offsets[number + 1])]


def write_dump(
    corpus: Corpus,
    rows: NDArray[np.int64],
    extractor: FeatureExtractor,
    folder: Path,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    device: torch.device | str = "cpu",
    workers: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Writes the frames of utterances. Existing shards are not written again, so an interrupted
    dump continues.

    Args:
        corpus: reads the audio.
        rows: rows of the manifest, ascending.
        extractor: already on `device`.
        folder: the dump, created if necessary.
        dtype: float32, or float16 for half the disk space.
        shard_bytes: approximate size of a shard.
        device: computes the frames.
        workers: threads.
        rank: number of this process.
        world_size: processes that write the same dump; each takes every `world_size`-th shard.

    Raises:
        ArtefactError: the folder holds another dump, or something else.
        HubertPretrainError: the disk is full. Finished shards stay.
        DataError: audio cannot be read or gives NaN, or a frame exceeds the range of float16.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    counts: NDArray[np.int64] = np.asarray(
        extractor.grid.num_frames(corpus.manifest.num_samples[rows])  # type: ignore[arg-type]
    )
    frame_bytes = DTYPES[dtype].itemsize * extractor.dim
    starts = _shard_starts(counts, max(1, shard_bytes // frame_bytes))
    description = {
        "format": FORMAT,
        "features": extractor.fingerprint(),
        "grid": {"window": extractor.grid.window, "hop": extractor.grid.hop},
        "dtype": dtype,
        "utterances": len(rows),
        "manifest": corpus.manifest.fingerprint,
        "shards": starts,
    }
    _write_index(folder, description, corpus, rows, counts)
    num_shards = len(starts) - 1
    for shard in range(rank, num_shards, world_size):
        path = shard_path(folder, shard, num_shards)
        if path.exists():
            continue
        of_shard = slice(starts[shard], starts[shard + 1])
        frames = map_frames(
            corpus,
            rows[of_shard],
            extractor,
            _to_numpy,
            device=device,
            workers=workers,
            description=path.name,
            framewise=True,
        )
        shape = int(counts[of_shard].sum()), extractor.dim
        _write_shard(path, shape, DTYPES[dtype], frames)


def shard_path(folder: Path, shard: int, count: int) -> Path:
    """File of a shard."""
    return folder / f"frames-{shard:05}-of-{count:05}.npy"


def write_fairseq(dump: FrameDump, folder: Path, split: str) -> None:
    """Copies a dump into the layout of fairseq's dump_*_feature.py: `<split>_<rank>_<nshard>.npy`,
    and `.len` with the number of frames of each utterance.

    The frames stay on this package's grid: MFCC are every second of fairseq's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_shards = len(dump.paths)
    for number, path in enumerate(dump.paths):
        frames = np.load(path, mmap_mode="r").astype(np.float32, copy=False)
        first = dump.shard_starts[number]
        last = dump.shard_starts[number + 1]
        lengths = np.diff(dump.offsets[first : last + 1])
        target = folder / f"{split}_{number}_{num_shards}.npy"
        with disk_room(target, fix=FULL_DISK_FIX):
            np.save(target, frames)
            target.with_suffix(".len").write_text("".join(f"{length}\n" for length in lengths))


def _shard_starts(counts: NDArray[np.int64], max_frames: int) -> list[int]:
    """First utterance of each shard, and the number of utterances at the end.

    Shards hold whole groups, so frames do not depend on the size of the shards.
    """
    starts = [0]
    num_frames = 0
    for start in range(0, len(counts), GROUP_ROWS):
        of_group = int(counts[start : start + GROUP_ROWS].sum())
        if num_frames and num_frames + of_group > max_frames:
            starts.append(start)
            num_frames = 0
        num_frames += of_group
    return [*starts, len(counts)]


def _write_index(
    folder: Path,
    description: dict[str, Any],
    corpus: Corpus,
    rows: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    """Writes everything but the frames. Raises ArtefactError when the folder holds another dump."""
    existing = read_json(folder / DESCRIPTION)
    if existing is not None and existing != description:
        _refuse_other_dump(folder, existing, description)
    refuse_other_content(folder, OWN)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    ids = "".join(f"{corpus.manifest[int(row)].id}\n" for row in rows)
    folder.mkdir(parents=True, exist_ok=True)
    with disk_room(folder, fix=FULL_DISK_FIX):
        np.save(folder / OFFSETS, offsets)
        (folder / IDS).write_text(ids, encoding="utf-8")
        write_json(folder / DESCRIPTION, description)


def _refuse_other_dump(folder: Path, existing: Any, description: dict[str, Any]) -> None:
    content = "something else"
    differing = list(description)
    if isinstance(existing, dict):
        differing = [name for name in description if existing.get(name) != description[name]]
        if "features" in existing:
            content = describe(existing["features"])
    raise ArtefactError(
        f"{folder}: holds {content}, extracted in another way (other {', '.join(differing)}); "
        "choose another folder or delete it"
    )


def _write_shard(
    path: Path, shape: tuple[int, int], dtype: np.dtype[Any], frames: Iterable[NDArray[np.float32]]
) -> None:
    """Writes a .npy file utterance by utterance.

    Not through a memory map: with one, a full disk would be a crash instead of an error.
    """
    with (
        disk_room(path, fix=FULL_DISK_FIX),
        replacing(path) as temporary,
        open(temporary, "wb") as file,
    ):
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in frames:
            # A value beyond the range of float16 becomes infinite.
            with np.errstate(over="ignore"):
                values = part.astype(dtype)
            if not np.isfinite(values).all():
                raise DataError(
                    f"{path}: a frame has values up to {np.abs(part).max():g}, more than "
                    "float16 holds; use dtype=float32"
                )
            file.write(values.tobytes())


def _to_numpy(frames: Tensor) -> NDArray[np.float32]:
    return np.asarray(frames.cpu().numpy(), dtype=np.float32)
