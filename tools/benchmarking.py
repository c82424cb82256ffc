"""Alternating runs of two sides, the ratio of each pair, and one line of JSON at the end."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubert_pretrain.files import write_json
from hubert_pretrain.frames import SAMPLE_RATE, samples
from hubert_pretrain.pipeline.workspace import FORMAT, META

if TYPE_CHECKING:
    import torch

LIBRISPEECH_SECONDS = (1.4, 3.3, 6.4, 10.8, 12.9, 13.9, 14.5, 15.0, 15.5, 16.0, 24.5)
"""Generated: deciles of the seconds per utterance, made to resemble LibriSpeech's train subsets.
Their mean is 12.1 s (train-960: 12.3 s); three speakers of train-clean-100 have 2.0, 4.8, 10.8,
12.6, 13.0, 13.6, 14.2, 14.6, 15.0, 15.6, 16.7 s."""


def librispeech_seconds(uniform: float) -> float:
    """A length as LibriSpeech has them, from a random number in [0, 1)."""
    place = uniform * (len(LIBRISPEECH_SECONDS) - 1)
    low, high = LIBRISPEECH_SECONDS[int(place) : int(place) + 2]
    return low + (high - low) * (place - int(place))


def noise_files(num_samples: int, folder: Path) -> list[Path]:
    """FLAC files of noise whose loudness changes, of LibriSpeech's lengths, so many samples in
    all.
    """
    import numpy as np
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    paths: list[Path] = []
    total = 0
    while total < num_samples:
        length = samples(librispeech_seconds(draw.random()))
        loudness = np.repeat(draw.uniform(0.001, 0.1, length // 1_600 + 1), 1_600)[:length]
        paths.append(folder / f"{len(paths):05}.flac")
        soundfile.write(paths[-1], draw.normal(size=length) * loudness, SAMPLE_RATE)
        total += length
    return paths


def seal(folder: Path) -> None:
    """The mark of a finished stage."""
    write_json(folder / META, {"format": FORMAT, "fingerprint": folder.name, "facts": {}})


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def device_seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call, with the device at rest before and after."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def done() -> None:
        work()
        wait()

    wait()
    return seconds_of(done)


def matmul_flops(device: torch.device) -> float:
    """FLOP/s of a large matrix product, in bf16 on a GPU and in fp32 elsewhere: what a data sheet's
    figure is worth on this machine.
    """
    import torch

    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def product() -> torch.Tensor:
        return a @ b

    product()
    return 2 * size**3 / min(device_seconds_of(product, device) for _ in range(5))


def in_turns(
    sides: Mapping[str, Callable[[], float]], turns: int, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Results of each side, in alternating turns: a machine that slows down slows all sides
    down. `warm_up` turns do not count.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm_up + turns):
        for name, side in sides.items():
            value = side()
            if turn >= warm_up:
                found[name].append(value)
    return found


def compared(ours: Sequence[float], peer: Sequence[float]) -> dict[str, float]:
    """Medians of two sides' rates (larger is better), and of the ratio of each turn with its
    smallest and largest.
    """
    ratios = [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]
    return {
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def cpu_seconds() -> float:
    """Processor time of this process, all threads, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def speeds(
    amount: float, ours: Callable[[], Any], peer: Callable[[], Any], turns: int
) -> dict[str, float]:
    """Amount per second of both sides, in alternating turns after one that warms up (when there
    are several).

    `cpu_ratio` is the ratio by processor time of all threads, and of the processes that were
    started: it is what other jobs on the machine change least, and it leaves out what more cores
    bring.
    """
    spent: dict[str, list[float]] = {"ours": [], "peer": []}

    def timed(name: str, work: Callable[[], Any]) -> float:
        begin = cpu_seconds()
        elapsed = seconds_of(work)
        spent[name].append(cpu_seconds() - begin)
        return amount / elapsed

    sides = {"ours": lambda: timed("ours", ours), "peer": lambda: timed("peer", peer)}
    found = in_turns(sides, turns, warm_up=1 if turns > 1 else 0)
    cpu = [
        theirs / mine
        for mine, theirs in zip(spent["ours"][-turns:], spent["peer"][-turns:], strict=True)
    ]
    return compared(found["ours"], found["peer"]) | {"cpu_ratio": statistics.median(cpu)}


def faster_threads(work: Callable[[int], Any]) -> int:
    """With how many threads, an argument of `work`, a single process does it in less time: one, or
    one per core.
    """
    counts = (
        1,
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
    return min(counts, key=lambda threads: min(seconds_of(lambda: work(threads)) for _ in range(2)))


def has_compiler() -> bool:
    """True where torch.compile finds a C compiler: $CXX, or one of the usual names."""
    names = (os.environ.get("CXX", ""), os.environ.get("CC", ""), "g++", "gcc", "clang++", "clang")
    return any(shutil.which(name) for name in names if name)


def machine(*, gpu: bool = False) -> str:
    """The processor or, with `gpu`, the GPU; cores that this process may use; versions."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = torch.cuda.get_device_name() if gpu else f"{_processor()}, {cores} cores"
    return f"{processor}, Python {platform.python_version()}, torch {torch.__version__}"


def _processor() -> str:
    return platform.processor() or platform.machine()


def print_rows(
    bench: str, works: Mapping[str, Callable[[Path], Mapping[str, float]]], *, gpu: bool = False
) -> None:
    """Runs each work in a scratch folder of its own, prints its figures, and at the end all of them
    as JSON.
    """
    found = {}
    for name, work in works.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = work(Path(folder))
        print(
            f"{name}: " + ", ".join(f"{key} {value:.5g}" for key, value in found[name].items()),
            flush=True,
        )
    print_json(bench, found, gpu=gpu)


def print_json(bench: str, rows: Mapping[str, Any], *, gpu: bool = False) -> None:
    """The last line of every benchmark: `ratio` > 1 means that ours is better. Numbers have four
    digits.
    """
    print(
        json.dumps({"bench": bench, "machine": machine(gpu=gpu), "rows": _rounded(rows)}),
        flush=True,
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
