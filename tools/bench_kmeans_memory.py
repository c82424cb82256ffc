"""Peak memory and time of k-means against its budget: python tools/bench_kmeans_memory.py
--budget-gb 1 --frames 1e6 1e7 1e8

The frames (39 numbers each, K=100) are generated as they are asked for, so that 10^8 of them need
no 16 GB of disk; with --disk they lie in a scratch file, as those of the cluster stage do. Each
size runs in a process of its own, because a process never forgets its peak. Generating is part of
the time. `start_seconds` is what a fit of the sample alone takes, which every size pays once; the
rest, per frame and pass, is `ns_per_frame_and_pass`: the same for every size when the time is
linear. The peak is of the whole process, interpreter and libraries included (0.4 GB of it); it
stays below the budget, and far below it where frames lie on the disk. 10^8 frames take some
minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.tools import benchmarking

DIM = 39
K = 100
SAMPLE = 256 * K
"""Frames that the start is found on, whatever their number."""
BASE_FRAMES = 1 << 17


class Generated:
    """Frames around random centres: any range of rows, the same each time, without holding them."""

    def __init__(self, count: int) -> None:
        self.shape = (count, DIM)
        draw = np.random.default_rng(0)
        centres = draw.normal(size=(300, DIM)) * np.geomspace(30, 3, DIM)
        self._base = (
            centres[draw.integers(0, 300, BASE_FRAMES)] + 3 * draw.normal(size=(BASE_FRAMES, DIM))
        ).astype(np.float32)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(self.shape[0])
        # Every repetition of the base is moved and stretched a little, so that no frame comes
        # twice. No chunk crosses from one to the next.
        turn, first = divmod(start, BASE_FRAMES)
        made = self._base[first : first + stop - start] * np.float32(1 + 0.1 * np.sin(turn))
        made += np.float32(0.3 * np.cos(1.7 * turn))
        return made


def measure(answer: Connection, count: int, budget: int, disk: Path | None, passes: int) -> None:
    """Fits in this process and sends its figures."""
    from hubert_pretrain.clustering import memory
    from hubert_pretrain.clustering.frame_source import CHUNK_FRAMES, FrameFile, Frames
    from hubert_pretrain.clustering.kmeans import KMeans

    frames: Frames = Generated(count)
    in_memory = 4 * count * DIM <= memory.free_bytes(budget)
    held: FrameFile | NDArray[np.float32]
    if in_memory or disk:
        held = (
            np.empty(frames.shape, dtype=np.float32)
            if in_memory or disk is None
            else FrameFile(disk / "frames", (count, DIM))
        )
        for start in range(0, count, CHUNK_FRAMES):
            part = frames[start : start + CHUNK_FRAMES]
            if isinstance(held, FrameFile):
                held.write(start, part)
            else:
                held[start : start + len(part)] = part
        frames = held
    settings = {
        "restarts": 3,
        "max_iterations": passes,
        "max_sample_bytes": memory.sample_bytes(budget),
    }
    start = benchmarking.seconds_of(lambda: KMeans("torch", K, **settings).fit(frames[0:SAMPLE]))
    estimator = KMeans("torch", K, **settings)
    seconds = benchmarking.seconds_of(lambda: estimator.fit(frames))
    found: dict[str, Any] = {
        "seconds": seconds,
        "start_seconds": start,
        "passes": estimator.n_iter_,
        "in_memory": int(in_memory),
    }
    answer.send(
        found | {"peak_gb": memory.peak_bytes() / 1e9, "inertia": estimator.inertia_ / count}
    )


def main() -> None:
    """Prints a line per size, and all of them as one line of JSON. `ratio` is the budget over the
    peak.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=float, nargs="+", default=[1e6, 1e7, 1e8])
    parser.add_argument(
        "--budget-gb",
        type=float,
        default=1.0,
        help="of the whole process, as clustering.max_memory_gb",
    )
    parser.add_argument(
        "--passes",
        type=int,
        default=2,
        help="over all frames, the same for every size so that times compare",
    )
    parser.add_argument(
        "--disk", type=Path, help="folder for a scratch file of frames that do not fit"
    )
    options = parser.parse_args()
    rows = {}
    context = multiprocessing.get_context("spawn")
    for count in map(int, options.frames):
        with tempfile.TemporaryDirectory(dir=options.disk) as folder:
            receive, send = context.Pipe(duplex=False)
            disk = Path(folder) if options.disk else None
            process = context.Process(
                target=measure,
                args=(send, count, int(options.budget_gb * 1e9), disk, options.passes),
            )
            process.start()
            send.close()
            found = receive.recv()
            process.join()
        found |= {
            "ours": found["peak_gb"],
            "peer": options.budget_gb,
            "ratio": options.budget_gb / found["peak_gb"],
        }
        found["ns_per_frame_and_pass"] = (
            1e9 * (found["seconds"] - found["start_seconds"]) / count / (found["passes"] + 2)
        )
        rows[f"{count:.0e}_frames"] = {name: float(f"{value:.4g}") for name, value in found.items()}
        print(
            f"{count:.0e} frames: "
            + ", ".join(f"{name} {value:g}" for name, value in rows[f"{count:.0e}_frames"].items()),
            flush=True,
        )
    benchmarking.print_json("kmeans_memory", rows)


if __name__ == "__main__":
    main()
