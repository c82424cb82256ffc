"""Kills and signals a pretraining at random moments, resumes it, and compares what it made with an undisturbed run, byte for byte.

    python tools/fault_campaign.py --trials 100 --out /tmp/campaign

The run is `it1/pretrain` of the recipe `smoke` on the CPU in fp32, in real processes, with TMPDIR on another file system. Every trial draws
what happens (kill -9, TERM, USR2; to one rank, all ranks, a loader's worker), how often (one to three times before it may finish) and when.
Prints a row per kind of fault; the exit code is 1 when anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from hubert_pretrain.errors import EXIT_PREEMPTED
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.training.checkpoint_io import checkpoints, newest, step_of, verified

STAGE = "it1/pretrain"
SIGNALS = ("KILL", "TERM", "USR2")
VICTIMS = ("one rank", "all ranks", "loader worker")
PATIENCE_SECONDS = 300.0


@dataclass
class Row:
    """What became of the trials of one kind."""

    trials: int = 0
    faults: int = 0
    equal: int = 0
    checkpoints_lost: int = 0
    codes: dict[int, int] = field(default_factory=lambda: defaultdict(int))


def main() -> None:
    """Trials, then the table."""
    options = parse()
    base = options.out / "base"
    options.out.mkdir(parents=True, exist_ok=True)
    words = ["+recipe=smoke", "trainer.threads=1", "trainer.loader_workers=1", f"trainer.devices={options.ranks}", *options.override]
    words += [f"iterations.it1.pretrain.{key}={value}" for key, value in (("steps", options.steps), ("checkpoint_every_steps", 3))]
    # Two micro-batches per step, so that two ranks can share them.
    words += ["iterations.it1.pretrain.micro_batch_seconds=8", "iterations.it1.pretrain.log_every_steps=1"]
    for stage in ("prepare", "it1/cluster", "it1/label"):
        finish(run(base, stage, words, ranks=1), options.out / "log.txt")
    undisturbed, started = copy(base, options.out / "undisturbed"), time.monotonic()
    finish(run(undisturbed, STAGE, words, ranks=options.ranks), options.out / "log.txt")
    duration = time.monotonic() - started
    draw, rows = random.Random(options.seed), defaultdict(Row)
    for number in range(options.trials):
        what, whom = SIGNALS[number % 3], VICTIMS[number // 3 % 3]
        row = rows[f"{what} to {whom}"]
        folder = copy(base, options.out / "trial")
        trial(folder, words, row, draw, what=what, whom=whom, duration=duration, ranks=options.ranks)
        row.equal += same(folder / STAGE, undisturbed / STAGE)
        shutil.rmtree(folder)
        print(f"{number + 1}/{options.trials} {what} to {whom}", flush=True)
    report(rows, duration)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1, help="processes of the training")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for runs")
    parser.add_argument("override", nargs="*", help="more words for the command line of the run")
    return parser.parse_args()


def run(work_dir: Path, stage: str, words: list[str], *, ranks: int) -> list[subprocess.Popen[str]]:
    """The processes of a stage, as torchrun would start them."""
    command = [sys.executable, "-m", "hubert_pretrain.run", *words, f"work_dir={work_dir}", f"stage={stage}"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        env = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"TMPDIR": "/dev/shm"} if Path("/dev/shm").is_dir() else {})
        if ranks > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
            env |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "campaign"}
        with open(work_dir.parent / "log.txt", "a") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=env, text=True))
    return processes


def finish(processes: list[subprocess.Popen[str]], log: Path) -> None:
    """Waits for the end, which has to be a good one."""
    if any(process.wait(PATIENCE_SECONDS) for process in processes):
        raise SystemExit(f"a run without faults failed; see {log}")


def trial(folder: Path, words: list[str], row: Row, draw: random.Random, *, what: str, whom: str, duration: float, ranks: int) -> None:
    """Up to three faults, then to the end. No checkpoint that was whole before a fault may be gone or damaged after it."""
    row.trials += 1
    kept = folder / f"{STAGE}.partial" / "checkpoints"
    for _ in range(draw.randint(1, 3)):
        processes = run(folder, STAGE, words, ranks=ranks)
        time.sleep(draw.uniform(0.1, 0.9) * duration)
        before = newest(kept)
        victims = [draw.choice(processes).pid] if whom == "one rank" else [process.pid for process in processes]
        if whom == "loader worker":
            victims = [pid for process in processes for pid in children(process.pid)][-1:]
        if all(process.poll() is not None for process in processes):
            victims = []  # it had finished before: no fault (a process that ended but was not waited for would still take a signal)
        for pid in victims:
            try:
                os.kill(pid, getattr(signal, f"SIG{what}"))
            except ProcessLookupError:
                continue
            row.faults += 1
        for process in processes:
            row.codes[process.wait(PATIENCE_SECONDS)] += 1
        after = newest(kept)
        if before is not None and kept.is_dir() and (after is None or step_of(after) < step_of(before)):
            row.checkpoints_lost += 1
    for process in run(folder, STAGE, words, ranks=ranks):
        row.codes[process.wait(PATIENCE_SECONDS)] += 1
    finished = folder / STAGE / "checkpoints"
    row.checkpoints_lost += sum(not verified(path) for path in checkpoints(finished)) if finished.is_dir() else 1


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    try:
        return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return []


def copy(base: Path, target: Path) -> Path:
    """A workspace that has everything up to the stage."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(base, target)
    return target


def same(first: Path, second: Path) -> bool:
    """Whether two finished stages have the same weights, to the bit."""
    if not (first / "meta.json").is_file():
        return False
    one, other = load_model(first), load_model(second)
    states = [{**each.model.state_dict(), **each.head_state} for each in (one, other)]
    return all(value.equal(states[1][name]) for name, value in states[0].items())


def report(rows: dict[str, Row], duration: float) -> None:
    """The table, and one line of JSON."""
    print("\n| fault | trials | faults | exit codes | checkpoints lost | equal to undisturbed |\n|---|---|---|---|---|---|")
    for name, row in sorted(rows.items()):
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(row.codes.items()))
        print(f"| {name} | {row.trials} | {row.faults} | {codes} | {row.checkpoints_lost} | {row.equal} |")
    preempted = sum(row.codes[EXIT_PREEMPTED] for row in rows.values())
    total = {"trials": sum(row.trials for row in rows.values()), "equal": sum(row.equal for row in rows.values()), "preempted": preempted}
    lost = sum(row.checkpoints_lost for row in rows.values())
    print(json.dumps({"campaign": "faults", "seconds_undisturbed": round(duration, 1), **total, "checkpoints_lost": lost}))
    sys.exit(int(lost > 0 or total["equal"] < total["trials"]))


if __name__ == "__main__":
    main()
