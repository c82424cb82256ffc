"""Kills and signals a pretraining at random moments, resumes it, and compares what it made with an
undisturbed run, byte for byte.

    python tools/fault_campaign.py --trials 100 --out /tmp/campaign

The run is `it1/pretrain` of the recipe `smoke` on the CPU in fp32, with TMPDIR on another file
system. Every trial draws what happens (kill
-9, TERM, USR2), to whom (one rank, all ranks, a loader's worker), when (at any moment, while a
  checkpoint is written, while it validates)
and how often (once or twice before it may finish). Prints a row per kind of fault; the exit code is
1 when anything was lost.

Processes are forked from this one, which has imported everything: importing would take longer than
training. What they mark (a save or a validation begins, a checkpoint is done) comes through a pipe,
so that a fault can hit it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import hubert_pretrain.preflight.check
import hubert_pretrain.stages.pretrain  # noqa: F401
from hubert_pretrain import run as program
from hubert_pretrain.errors import EXIT_PREEMPTED
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.stages import pretrain as pretrain_stage
from hubert_pretrain.training.resilience.checkpoint_callback import CheckpointWriter
from hubert_pretrain.training.resilience.checkpoint_io import checkpoints, newest, step_of, verified

STAGE = "it1/pretrain"
SIGNALS = ("KILL", "TERM", "USR2")
VICTIMS = ("all ranks", "one rank", "loader worker")
MOMENTS = ("any moment", "during a save", "during validation")
MARKS = {"during a save": "save", "during validation": "validate"}
PATIENCE_SECONDS = 240.0
SMALL: dict[str, Any] = {
    **{
        "conv_dim": "[8,8,8,8,8,8,8]",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    **{
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "projection_size": 16,
        "layerdrop": 0.3,
    },
}
"""A network for which most of the time goes into what faults can hit: starting, saving, validating,
logging.
"""
HUNG = "hung"
KINDS_PER_SEED = 7
"""Another seed begins with other kinds of faults, for campaigns in parts."""


@dataclass
class Row:
    """Results of the trials of one kind."""

    trials: int = 0
    faults: int = 0
    equal: int = 0
    checkpoints_lost: int = 0
    codes: dict[int | str, int] = field(default_factory=lambda: defaultdict(int))


class Run:
    """The processes of one start of the stage, and what the first of them has marked."""

    def __init__(
        self, work_dir: Path, words: list[str], *, stage: str = STAGE, ranks: int = 1
    ) -> None:
        reading, writing = os.pipe()
        arguments = [*words, f"work_dir={work_dir}", f"stage={stage}"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.marks: list[str] = []
        self._pipe = reading
        self._text = ""
        self._log = work_dir.parent / "log.txt"
        fork = get_context("fork").Process
        everyone = {
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        self.processes: list[BaseProcess] = []
        for rank in range(ranks):
            own = {
                **everyone,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "GROUP_RANK": "0",
                "TORCHELASTIC_RUN_ID": "campaign",
            }
            process = fork(
                target=child,
                args=(
                    arguments,
                    own if ranks > 1 else {},
                    writing if rank == 0 else None,
                    self._log,
                ),
            )
            process.start()
            self.processes.append(process)
        os.close(writing)

    @property
    def alive(self) -> bool:
        """True while any process runs."""
        return any(process.exitcode is None for process in self.processes)

    def listen(self, seconds: float) -> None:
        """Reads marks for up to so long."""
        if select.select([self._pipe], [], [], seconds)[0]:
            data = os.read(self._pipe, 1 << 16).decode()
            if not data:
                time.sleep(min(seconds, 0.05))  # it has ended: the pipe is always readable
            *lines, self._text = (self._text + data).split("\n")
            self.marks += lines

    def reaches(self, mark: str, times: int) -> bool:
        """Waits until it was marked so often; False when it ends before."""
        while self.marks.count(mark) < times and self.alive:
            self.listen(0.5)
        return self.marks.count(mark) >= times and self.alive

    def finish(self) -> list[int | str]:
        """Exit codes; a process that does not end in time is ended, and hung."""
        end = time.monotonic() + PATIENCE_SECONDS
        codes = list[int | str]()
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
                codes.append(HUNG)
            else:
                codes.append(process.exitcode)
        while True:
            before = len(self.marks)
            self.listen(0)
            if len(self.marks) == before:
                break
        os.close(self._pipe)
        return codes

    @property
    def saved(self) -> int:
        """The last step whose checkpoint was said to be on disk; -1: none was."""
        return max(
            (int(mark.split()[1]) for mark in self.marks if mark.startswith("saved ")), default=-1
        )


def child(arguments: list[str], env: dict[str, str], pipe: int | None, log: Path) -> None:
    """One process: what `python -m hubert_pretrain.run` does, with marks, and without curves.png,
    which takes longer than the rest.
    """
    os.environ |= env
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if pipe is not None:
        mark_calls(pipe)
    pretrain_stage.plot_pretraining = lambda *args, **values: None
    sys.argv = ["hubert_pretrain.run", *arguments]
    program.main()


def mark_calls(pipe: int) -> None:
    """Every save and validation says so when it begins and ends."""

    def around(owner: Any, name: str, before: str, after: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def marked(self: Any, *args: Any, **more: Any) -> Any:
            os.write(pipe, f"{before}\n".encode() if before else b"")
            result = original(self, *args, **more)
            os.write(pipe, f"{after(self, *args)}\n".encode())
            return result

        setattr(owner, name, marked)

    def outcome(writer: CheckpointWriter, checkpoint: Any, path: Any, *rest: Any) -> str:
        return f"saved {step_of(Path(path))}" if writer.failure is None else "failed"

    around(CheckpointWriter, "save_checkpoint", "save", outcome)
    around(PretrainModule, "on_validation_start", "", lambda *_: "validate")
    around(PretrainModule, "on_validation_epoch_end", "", lambda *_: "validated")


def main() -> None:
    """Trials, then the table."""
    options = parse()
    base = options.out / "base"
    ranks = options.ranks
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # a process forked from one with several may wait for them for ever
    os.environ |= {"OMP_NUM_THREADS": "1"} | (
        {"TMPDIR": "/dev/shm"} if Path("/dev/shm").is_dir() else {}
    )
    words = [
        "+recipe=smoke",
        "trainer.threads=1",
        "trainer.loader_workers=1",
        f"trainer.devices={ranks}",
        *options.override,
    ]
    words += [f"model.{name}={value}" for name, value in SMALL.items()]
    # Two micro-batches per step, so that two ranks can share them.
    pretrain = {
        "steps": options.steps,
        "checkpoint_every_steps": 3,
        "valid_every_steps": 4,
        "log_every_steps": 1,
        "ema_decay": 0.9,
    }
    pretrain |= {"batch_seconds": 8, "micro_batch_seconds": 4, "probe.every_steps": 0}
    words += [f"iterations.it1.pretrain.{key}={value}" for key, value in pretrain.items()]
    for stage in ("prepare", "it1/cluster", "it1/label"):
        well(Run(base, words, stage=stage), options.out)
    undisturbed = copy(base, options.out / "undisturbed")
    started = time.monotonic()
    well(Run(undisturbed, words, ranks=ranks), options.out)
    duration = time.monotonic() - started
    kinds = [
        kind
        for kind in itertools.product(SIGNALS, MOMENTS, VICTIMS)
        if ranks > 1 or kind[2] != "one rank"
    ]
    draw = random.Random(options.seed)
    rows = defaultdict[str, Row](Row)
    last_start = time.monotonic() + 60 * options.minutes
    for number in range(options.trials):
        if time.monotonic() > last_start:
            break
        what, when, whom = kinds[(number + options.seed * KINDS_PER_SEED) % len(kinds)]
        name = f"{what} to {whom}, {when}"
        row = rows[name]
        folder = copy(base, options.out / "trial")
        trial(
            folder,
            words,
            row,
            draw,
            what=what,
            when=when,
            whom=whom,
            duration=duration,
            ranks=ranks,
        )
        equal = same(folder / STAGE, undisturbed / STAGE)
        row.equal += equal
        print(
            f"{number + 1}/{options.trials} {name}: {'equal' if equal else 'NOT EQUAL'}", flush=True
        )
        if equal:
            shutil.rmtree(folder)
        else:
            folder.rename(options.out / f"trial-{number + 1}")
    report(rows, duration)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1, help="processes of the training")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="no trial begins after so long"
    )
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for runs")
    parser.add_argument("override", nargs="*", help="more words for the command line of the run")
    return parser.parse_args()


def well(run: Run, out: Path) -> None:
    """Waits for the end, which has to be a good one."""
    if any(run.finish()):
        raise SystemExit(f"a run without faults failed; see {out / 'log.txt'}")


def trial(
    folder: Path,
    words: list[str],
    row: Row,
    draw: random.Random,
    *,
    what: str,
    when: str,
    whom: str,
    duration: float,
    ranks: int,
) -> None:
    """Up to two faults, then to the end. No checkpoint that was said to be on disk before a fault
    may be gone or damaged after it.
    """
    row.trials += 1
    partial = folder / f"{STAGE}.partial" / "checkpoints"
    done = folder / STAGE
    for _ in range(draw.randint(1, 2)):
        run = Run(folder, words, ranks=ranks)
        if come(run, when, draw, duration):
            row.faults += strike(victims(run, whom, draw), what)
        for code in run.finish():
            row.codes[code] += 1
        after = newest(done / "checkpoints" if done.is_dir() else partial)
        row.checkpoints_lost += run.saved > (-1 if after is None else step_of(after))
    for code in Run(folder, words, ranks=ranks).finish():
        row.codes[code] += 1
    finished = done / "checkpoints"
    row.checkpoints_lost += (
        sum(not verified(path) for path in checkpoints(finished)) if finished.is_dir() else 1
    )


def come(run: Run, when: str, draw: random.Random, duration: float) -> bool:
    """Waits for the moment; False when the run has ended before it."""
    if when not in MARKS:
        end = time.monotonic() + draw.uniform(0.05, 0.95) * duration
        while (left := end - time.monotonic()) > 0 and run.alive:
            run.listen(min(left, 0.2))
        return run.alive
    if not run.reaches(MARKS[when], draw.randint(1, 3)):
        return False
    time.sleep(draw.uniform(0, 0.03))  # saves take some 30 ms here, validations longer
    return run.alive


def victims(run: Run, whom: str, draw: random.Random) -> list[int]:
    """Process ids."""
    everyone = [
        process.pid
        for process in run.processes
        if process.exitcode is None and process.pid is not None
    ]
    if whom == "loader worker":
        return (
            [draw.choice(found)]
            if (found := [pid for process in everyone for pid in children(process)])
            else []
        )
    return [draw.choice(everyone)] if whom == "one rank" and everyone else everyone


def strike(pids: list[int], what: str) -> int:
    """Sends the signal. Returns to how many."""
    hit = 0
    for pid in pids:
        try:
            os.kill(pid, getattr(signal, f"SIG{what}"))
            hit += 1
        except ProcessLookupError:
            continue
    return hit


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    try:
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return []


def copy(base: Path, target: Path) -> Path:
    """A workspace that has everything up to the stage."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(base, target)
    return target


def same(first: Path, second: Path) -> bool:
    """True if two finished stages have the same weights, to the bit."""
    if not (first / "meta.json").is_file():
        return False
    one = load_model(first)
    other = load_model(second)
    states = [{**each.model.state_dict(), **each.head_state} for each in (one, other)]
    return all(value.equal(states[1][name]) for name, value in states[0].items())


def report(rows: dict[str, Row], duration: float) -> None:
    """The table, and one line of JSON."""
    print(
        "\n| fault | trials | signals sent | exit codes | checkpoints lost "
        "| equal to undisturbed |\n|---|---|---|---|---|---|"
    )
    for name, row in sorted(rows.items()):
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(row.codes.items(), key=str))
        print(
            f"| {name} | {row.trials} | {row.faults} | {codes} "
            f"| {row.checkpoints_lost} | {row.equal} |"
        )
    names = ("trials", "faults", "equal", "checkpoints_lost")
    total = {name: sum(getattr(row, name) for row in rows.values()) for name in names}
    total |= {
        name: sum(row.codes[code] for row in rows.values())
        for name, code in (("preempted", EXIT_PREEMPTED), ("hung", HUNG))
    }
    print(json.dumps({"campaign": "faults", "seconds_undisturbed": round(duration, 1), **total}))
    sys.exit(
        int(total["checkpoints_lost"] > 0 or total["hung"] > 0 or total["equal"] < total["trials"])
    )


if __name__ == "__main__":
    main()
