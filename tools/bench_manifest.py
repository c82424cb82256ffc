"""Cost of a manifest by its size: opening, a random row, memory of a worker, first batch, resuming.

    python tools/bench_manifest.py --rows 10_000 1_000_000 100_000_000
    # 13 GB in /scratch while it runs, three times that while it is written
    python tools/bench_manifest.py --rows 200_000_000 --folder /scratch

The manifests are generated (utterances in tar shards, lengths like those of LibriSpeech's
train-960), measured in a process of their own that is started for it, and removed; with `--keep`
they stay, and the next run measures them without writing. `growth` is what opening the manifest and
the plan, reading 1,000 random rows and planning 200 micro-batches adds to the private memory of
that process, with the pages of the file that it alone has mapped (USS) and without those (`own`).
`row us` is the best of five passes over rows that were read once before (`cold us`: that first
time, from the disk where the page cache had lost them). Ends with one JSON line, where the peer is
what is asked for; ratio > 1 means better than that.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hubert_pretrain.data.arrow_table import TEXT, chunks
from hubert_pretrain.data.batching import BucketSampler
from hubert_pretrain.data.manifest import TYPES, Manifest, write_columns
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE
from hubert_pretrain.tools import benchmarking

LIMITS = {
    "open_seconds": 1.0,
    "row_us": 100.0,
    "growth_mb": 200.0,
    "own_mb": 200.0,
    "first_batch_seconds": 60.0,
    "resume_ms": 1000.0,
}
PER_SHARD = 500
VALID_SHARE = 0.001
PLAN: dict[str, Any] = {
    "grid": MODEL_GRID,
    "seed": 1,
    "batch_seconds": 2800.0,
    "micro_batch_seconds": 87.5,
    "max_crop_seconds": 15.625,
    "min_seconds": 2.0,
    "max_shapes": 16,
}


def main() -> None:
    """Measures every size in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000, 100_000_000])
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where the manifests are written",
    )
    parser.add_argument("--keep", action="store_true", help="leave them there for the next run")
    options = parser.parse_args()
    found = {}
    print(
        "        rows  write s     GB   open s  row us   cold us "
        "growth MB  own MB  first s resume ms"
    )
    for rows in options.rows:
        values = measure(rows, options.folder / f"bench_manifest.{rows}", keep=options.keep)
        found[rows] = values
        written = (
            f"{rows:12} {values['write_seconds']:8.1f} {values['gigabytes']:6.2f} "
            f"{values['open_seconds']:8.4f}"
        )
        read = (
            f"{values['row_us']:7.1f} {values['cold_row_us']:9.1f} "
            f"{values['growth_mb']:9.1f} {values['own_mb']:7.1f}"
        )
        print(
            written,
            read,
            f"{values['first_batch_seconds']:8.3f} {values['resume_ms']:9.2f}",
            flush=True,
        )
    lines = {
        f"{rows}/{name}": {
            "ours": values[name],
            "peer": limit,
            "ratio": limit / max(values[name], 1e-9),
        }
        for rows, values in found.items()
        for name, limit in LIMITS.items()
    }
    benchmarking.print_json("manifest", lines)


def measure(rows: int, folder: Path, *, keep: bool) -> dict[str, float]:
    """Writes a manifest of so many rows unless it is there, measures it in a new process, and
    removes it unless `keep`.
    """
    try:
        begin = time.perf_counter()
        if not (folder / "manifest.arrow").exists():
            folder.mkdir(exist_ok=True)
            write_columns(folder / "manifest.arrow", columns(rows))
        written = time.perf_counter() - begin
        with get_context("spawn").Pool(1) as pool:
            values = pool.apply(use, (folder,))
        return values | {
            "write_seconds": written,
            "gigabytes": (folder / "manifest.arrow").stat().st_size / 1e9,
        }
    finally:
        if not keep:
            shutil.rmtree(folder)


def columns(rows: int) -> Iterator[dict[str, pa.Array]]:
    """The columns of a manifest of so many rows, in parts."""
    draw = np.random.default_rng(0)
    valid = max(1, int(rows * VALID_SHARE))
    for part in chunks(rows, 1 << 20):
        number = np.arange(part.start, part.stop)
        count = len(number)
        is_train = number < rows - valid
        seconds = np.where(
            draw.random(count) < 0.75, draw.normal(14.6, 1.1, count), draw.uniform(1.4, 14.5, count)
        ).clip(1.4, 24.5)
        yield {
            "id": numbered("utterance-", number, 9),
            "path": pc.binary_join_element_wise(
                numbered("/corpora/shards/", number // PER_SHARD, 7),
                pa.scalar(".tar", TEXT),
                pa.scalar("", TEXT),
            ),
            "offset": pa.array(number % PER_SHARD * 250_000),
            "num_bytes": pa.array((seconds * 17_000).astype(np.int64)),
            "start": pa.array(np.zeros(count, dtype=np.int64)),
            "num_samples": pa.array((seconds * SAMPLE_RATE).astype(np.int64)),
            "source_rate": pa.array(np.full(count, SAMPLE_RATE, dtype=np.int32)),
            "speaker": named(number // 200 % 50_000, [f"speaker-{i}" for i in range(50_000)]),
            "text": pa.array([""], TEXT).take(pa.array(np.zeros(count, dtype=np.int64))),
            "label": named(np.zeros(count), [""]),
            "split": named(np.where(is_train, 0, 1), ["train", "valid"]),
            "corpus": named(np.zeros(count), ["generated"]),
            "mean": pa.array(draw.normal(0, 1e-4, count).astype(np.float32)),
            "variance": pa.array(draw.random(count, dtype=np.float32)),
        }


def numbered(prefix: str, numbers: np.ndarray[Any, Any], digits: int) -> pa.Array:
    """Text such as utterance-000000017."""
    text = pc.utf8_lpad(pa.array(numbers).cast(TEXT), digits, "0")
    return pc.binary_join_element_wise(pa.scalar(prefix, TEXT), text, pa.scalar("", TEXT))


def named(numbers: np.ndarray[Any, Any], names: list[str]) -> pa.Array:
    """A column of names."""
    return pa.DictionaryArray.from_arrays(
        pa.array(numbers.astype(np.int32)), pa.array(names, TYPES["speaker"].value_type)
    )


def use(folder: Path) -> dict[str, float]:
    """Measure the work of a loader's worker."""
    before = private_megabytes()
    begin = time.perf_counter()
    manifest = Manifest.open(folder)
    opened = time.perf_counter() - begin
    chosen = np.random.default_rng(7).integers(0, len(manifest), 1_000).tolist()
    passes = [seconds_for(manifest, chosen) / len(chosen) for _ in range(6)]
    begin = time.perf_counter()
    plan = BucketSampler(
        manifest.length_sorted("train"), masked_frames=lambda frames: frames // 2, **PLAN
    )
    plan.micro_batch(0)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    plan.micro_batch(10**6 * plan.micro_batches)
    resumed = time.perf_counter() - begin
    for index in range(200):
        plan.micro_batch(index)
    after = private_megabytes()
    return {
        "open_seconds": opened,
        "row_us": 1e6 * min(passes[1:]),
        "cold_row_us": 1e6 * passes[0],
        "growth_mb": after[0] - before[0],
        "own_mb": after[1] - before[1],
        "first_batch_seconds": first,
        "resume_ms": 1e3 * resumed,
    }


def seconds_for(manifest: Manifest, rows: list[int]) -> float:
    """Time to read some rows."""

    def read() -> None:
        for row in rows:
            assert manifest[row].row == row

    return benchmarking.seconds_of(read)


def private_megabytes() -> tuple[float, float]:
    """(USS, the part of it that is not pages of files) of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {
        line.split(":")[0]: int(line.split()[1])
        for line in lines
        if line.startswith(("Private", "Anonymous"))
    }
    return (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) / 1000, kilobytes[
        "Anonymous"
    ] / 1000


if __name__ == "__main__":
    main()
