"""Cost of the training diagnostics: steps with and without a log, alternating.

    python tools/bench_health.py    # tiny and Base on the CPU, or Base on the GPU if there is one
    python tools/bench_health.py --works tiny --turns 60

The steps are those of the trainer and the module that recipes use, of one batch of noise. A logged
step measures everything of pretrain/health.py, raises alarms and writes a row of metrics.csv; every
step adds to sums, which is timed by itself, being less than two steps differ by. Time is that of
the process on a CPU, which other jobs change least, and of the clock on a GPU. The share is of the
time of `log_every_steps` steps, of which one is logged.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset

from hubert_pretrain.config.schema import TrainerConfig
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.tools import benchmarking
from hubert_pretrain.training.loggers import CsvLogger, Guarded
from hubert_pretrain.training.module import Monitor
from hubert_pretrain.training.optim import AdamWSettings
from hubert_pretrain.training.trainer import build_trainer

TINY = {
    "conv_dim": [32, 32, 64, 64, 64, 128, 128],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
TINY_MORE = {
    "intermediate_size": 512,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 8,
    "projection_size": 64,
}
KINDS = ("plain", "logged")
"""Of the steps of a turn, in order."""
WARM_UP_TURNS = 2
ALLOWED = 0.01


@dataclass(frozen=True)
class Work:
    """A step, and how often its recipe logs."""

    config: HubertConfig
    n_clusters: int
    rows: int
    seconds: float
    log_every_steps: int
    accelerator: str = "cpu"


WORKS = {
    "tiny": Work(
        HubertConfig(layerdrop=0.0, **TINY, **TINY_MORE),  # type: ignore[arg-type]
        50,
        8,
        2.0,
        25,
    ),
    "base": Work(HubertConfig(layerdrop=0.0), 500, 1, 10.0, 100),
    "base_gpu": Work(HubertConfig(layerdrop=0.0), 500, 6, 14.5, 100, "gpu"),
}


class Turns(L.Callback):
    """Times each step, from its beginning to that of the next, and what of it goes into sums."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.sums: list[float] = []
        self._begun = self._adding = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Every addition is timed from now on."""
        meter: Any = module.meter
        add = meter.add

        def timed(*args: Any, **values: Any) -> None:
            begin = _now(module.device)
            add(*args, **values)
            self._adding += _now(module.device) - begin

        meter.add = timed

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ends one step and begins the next."""
        now = _now(module.device)
        if batch_idx > WARM_UP_TURNS * len(KINDS):
            self.seconds[KINDS[(batch_idx - 1) % len(KINDS)]].append(now - self._begun)
            self.sums.append(self._adding)
        self._adding = 0.0
        self._begun = _now(module.device)


def main() -> None:
    """A row per work, and the line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    parser.add_argument(
        "--works", nargs="+", choices=WORKS, default=["base_gpu"] if on_gpu else ["tiny", "base"]
    )
    parser.add_argument(
        "--turns", type=int, default=30, help="of two steps each, after two that warm up"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="of the processor; 0: torch's choice"
    )
    options = parser.parse_args()
    rows = {name: measured(WORKS[name], options.turns, options.threads) for name in options.works}
    for name, row in rows.items():
        print(
            f"{name}: a step {row['step']:.4g} s, sums of a step +{row['sums']:.2g} s, "
            f"a log +{row['log']:.2g} s every {WORKS[name].log_every_steps} steps: "
            f"{row['ours']:.2%} of the time (allowed {ALLOWED:.0%})"
        )
    benchmarking.print_json("health", rows, gpu=on_gpu)


def measured(work: Work, turns: int, threads: int) -> dict[str, float]:
    """Seconds, and `ours`, the share of the time; `ratio` is what is allowed over it. Differences
    are medians over the turns.
    """
    clock = timed_steps(work, turns, threads)
    pairs = list(zip(*(clock.seconds[kind] for kind in KINDS), strict=True))
    step = statistics.median(plain for plain, _ in pairs)
    sums = statistics.median(clock.sums)
    log = statistics.median(logged - plain for plain, logged in pairs)
    share = (sums + log / work.log_every_steps) / step
    return {
        "ours": share,
        "peer": ALLOWED,
        "ratio": ALLOWED / max(share, 1e-9),
        "step": step,
        "sums": sums,
        "log": log,
    }


def timed_steps(work: Work, turns: int, threads: int) -> Turns:
    """Trains for so many turns."""
    steps = (WARM_UP_TURNS + turns) * len(KINDS) + 1
    clock = Turns()
    torch.manual_seed(0)
    model = Hubert(work.config)
    head = CodebookHead(work.config.hidden_size, work.config.projection_size, work.n_clusters)
    module = PretrainModule(
        model,
        head,
        seed=1,
        optimiser=AdamWSettings(learning_rate=1e-4),
        schedule=lambda updates: 1.0,
        monitor=Monitor(log_every_steps=len(KINDS), max_skipped_steps=10),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer = build_trainer(
            folder,
            TrainerConfig(accelerator=work.accelerator, threads=threads, progress_bar=False),
            steps=steps,
            accumulate=1,
            valid_every_steps=10 * steps,
            checkpoint_every_steps=10 * steps,
            loggers=[Guarded(CsvLogger(str(folder / "logs")))],
            callbacks=[clock],
        )
        trainer.fit(module, DataLoader(Endless(work), batch_size=None))
    return clock


class Endless(IterableDataset[dict[str, Any]]):
    """The same batch of noise again and again, 53 % of it masked."""

    def __init__(self, work: Work) -> None:
        samples = round(work.seconds * SAMPLE_RATE)
        frames = work.config.grid.num_frames(samples)
        masked = round(0.53 * frames)
        mask = torch.stack([torch.randperm(frames) < masked for _ in range(work.rows)])
        targets = torch.randint(0, work.n_clusters, (work.rows, frames))
        self.batch = {
            "waveform": torch.randn(work.rows, samples),
            "targets": targets,
            "mask": mask,
            "masked_frames": masked * work.rows,
        }
        self.batch |= {"step": 0, "step_frames": (masked * work.rows, frames * work.rows)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({**self.batch, "index": index} for index in itertools.count())


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
