"""Everything that only a GPU can show, in eight minutes: tests, benchmarks, a profile, a training.

    python tools/gpu_report.py --out gpu_report
    python tools/gpu_report.py --out gpu_report --minutes 18 --audio /corpora/LibriSpeech/dev-clean
    python tools/gpu_report.py --out gpu_report --only machine "base, fuse 1" profile
    python tools/gpu_report.py --out gpu_report --dry    # every part on a CPU, tiny, to try it

Needs a checkout with its environment and an NVIDIA GPU, no network. Each part runs in a process of
its own and may take a share of the time; `report.json` and `report.md` (one table) are written
again after every part. A part that fails or does not end in time is `failed` with the reason, one
for which no time is left is `not run`; its output is in `logs/`. The exit code is 1 when a part
failed.

Real speech comes from --audio, or from data/ in the folder HUBERT_SHARED; without either the
pretraining has synthetic speech (or noise, where espeak-ng is not installed), the benchmarks noise.
The last part pretrains a network of 26 M parameters for the time that is left, ten minutes at most.
`bound` is the speed of tools/roofline.py with the products, copies and launches of this machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubert_pretrain.files import read_json, write_json, write_text
from hubert_pretrain.frames import samples
from hubert_pretrain.tools import benchmarking, roofline

REPOSITORY = Path(__file__).resolve().parent.parent
OK = "ok"
FAILED = "failed"
NOT_RUN = "not run"
KILL_SECONDS = 5.0
"""Grace of a process that ran out of time."""
WRITING_SECONDS = 3.0
"""Kept for the report itself."""
PRETRAINING_SECONDS = 600.0
"""Most of the last part, and the share of it that its stages before the training take."""
START_SECONDS = 60.0
NARROW = (
    "model.hidden_size=384",
    "model.num_attention_heads=6",
    "model.intermediate_size=1536",
)
"""26 M parameters: twelve layers, half as wide as Base."""
TINY = (
    "model.conv_dim=[8,8,8,8,8,8,8]",
    "model.hidden_size=16",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "model.num_conv_pos_embeddings=8",
    "model.num_conv_pos_embedding_groups=2",
    "model.projection_size=8",
    "iterations.it2.features.layer=1",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.loader_workers=0",
    "iterations.it1.pretrain.batch_seconds=8",
    "iterations.it1.pretrain.micro_batch_seconds=4",
    "iterations.it1.pretrain.max_crop_seconds=2",
)
"""--dry: a network of a few thousand parameters on the CPU."""
SHAPES = "iterations.it1.pretrain.max_shapes=2"
"""Two crop lengths in place of sixteen: what is compiled is compiled twice, not sixteen times."""
PASSES = 3
"""Of the step that is profiled."""
Figures = dict[str, Any]


@dataclass
class Result:
    """The outcome of a part."""

    name: str
    status: str = NOT_RUN
    reason: str = ""
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)


@dataclass
class Session:
    """One call of this program: its options, its clock and the results so far."""

    out: Path
    dry: bool
    minutes: float
    audio: Path | None
    began: float = field(default_factory=time.monotonic)
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds until the report has to be whole."""
        return self.began + 60 * self.minutes - WRITING_SECONDS - time.monotonic()

    @property
    def device(self) -> str:
        """Of the benchmarks."""
        return "cpu" if self.dry else "cuda"

    def log(self, name: str) -> Path:
        """File of the output of a part."""
        return self.out / "logs" / f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}.log"

    def figures(self, name: str) -> Figures:
        """Of a part that is done; {} otherwise."""
        return self.results[name].figures if name in self.results else {}


@dataclass(frozen=True)
class Part:
    """One row of the report."""

    name: str
    command: Callable[[Session, float], list[str]]
    """From the session and the seconds that it may take."""
    read: Callable[[Session, str], Figures]
    """Figures from its output. Raises ValueError when they are not there."""
    most: float
    """Seconds that it may take."""
    least: float
    """Seconds without which it is not begun."""
    describe: Callable[[Figures], str]
    """Figures in a cell of the table."""


# -- the parts


def tool(name: str, *words: str) -> list[str]:
    """Command of a program in tools/."""
    return [sys.executable, str(REPOSITORY / "tools" / f"{name}.py"), *words]


def json_row(_: Session, text: str) -> Figures:
    """The last line of a benchmark."""
    lines = [line for line in text.splitlines() if line.startswith('{"bench"')]
    if not lines:
        raise ValueError("it printed no line of JSON")
    return dict(json.loads(lines[-1])["rows"])


def first_row(session: Session, text: str) -> Figures:
    """The only row of a benchmark."""
    return dict(next(iter(json_row(session, text).values())))


def recipe_step(
    name: str,
    recipe: str,
    *overrides: str,
    most: float,
    least: float,
    census: roofline.Counts | None = None,
) -> Part:
    """The step of a recipe in its own trainer, by bench_train.py. `census`: counts of its step."""

    def command(session: Session, _: float) -> list[str]:
        if session.dry:
            changes = [*without(overrides, TINY), SHAPES, *of_recipe(TINY, recipe)]
            return recipe_command(session, recipe, changes, windows=1, window_steps=1)
        changes = [*overrides, SHAPES]
        return recipe_command(session, recipe, changes, windows=2, window_steps=4)

    def read(session: Session, text: str) -> Figures:
        row = first_row(session, text)
        return row | {"bound": bound(session, row, census)}

    return Part(name, command, read, most, least, describe_step)


def recipe_command(
    session: Session, recipe: str, changes: Sequence[str], *, windows: int, window_steps: int
) -> list[str]:
    """Some steps of a recipe in its own trainer."""
    words = ["--recipe", recipe, "--windows", str(windows), "--window-steps", str(window_steps)]
    if session.dry:
        words += ["--hours", "0.05"]
    elif session.audio is not None:
        words += ["--audio", str(session.audio)]
    return tool("bench_train", *words, *changes)


def without(words: Sequence[str], others: Sequence[str]) -> list[str]:
    """The overrides whose keys are not among those of the others."""
    keys = {word.partition("=")[0] for word in others}
    return [word for word in words if word.partition("=")[0] not in keys]


def of_recipe(words: Sequence[str], recipe: str) -> list[str]:
    """The overrides of iterations that the recipe has."""
    return [word for word in words if "iterations.it2" not in word or recipe == "base_ls960"]


def bound(session: Session, row: Figures, census: roofline.Counts | None) -> float | None:
    """Audio-seconds per second that this machine can reach; None without counts or speeds."""
    speeds = session.figures("machine")
    if not speeds or census is None:
        return None
    gpu = roofline.Gpu(
        product_flops=1e12 * speeds["product_tflops"],
        memory_bytes=1e9 * speeds["copy_gb_per_second"],
        launch_seconds=1e-6 * speeds["launch_microseconds"],
    )
    flops = row["mfu"] * row["peak_tflops"] * 1e12 / row["audio_seconds_per_second"]
    work = roofline.work_of(census, flops, row["fuse"])
    return roofline.expect(work, gpu).audio_seconds_per_second


def describe_step(row: Figures) -> str:
    """Speed, utilisation, waiting, memory."""
    compiled = f", compiled in {row['compile_seconds']:.0f} s" if row["compile_seconds"] else ""
    known = f"; bound {row['bound']:,.0f}" if row.get("bound") else ""
    return (
        f"{row['audio_seconds_per_second']:,.0f} audio-s/s "
        f"({row['slowest']:,.0f} to {row['fastest']:,.0f}), MFU {row['mfu']:.1%} "
        f"({row['mfu_of_product']:.1%} of a large product), fuse {row['fuse']}, "
        f"{row['memory_gb']:.1f} GB, waiting {row['data_wait']:.1%}{compiled}{known}"
    )


def machine_command(session: Session, _: float) -> list[str]:
    """Speeds of the device."""
    return tool("machine_speed", "--device", session.device)


def describe_machine(row: Figures) -> str:
    """Name and speeds."""
    sheet = row.get("data_sheet_tflops")
    beside = f" of {sheet:,.0f}" if sheet else ""
    return (
        f"{row.get('name', 'CPU')}: product {row['product_tflops']:,.3g}{beside} TFLOP/s, copy "
        f"{row['copy_gb_per_second']:,.0f} GB/s, launch {row['launch_microseconds']:.1f} us"
    )


def tests_command(session: Session, _: float) -> list[str]:
    """The tests with the mark `gpu`, of the files that have one."""
    files = [
        str(path.relative_to(REPOSITORY))
        for path in sorted((REPOSITORY / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    return [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "--no-header", *files]


OUTCOME = re.compile(r"^(\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR)\b", re.MULTILINE)


def read_tests(session: Session, text: str) -> Figures:
    """Outcomes by test. Raises ValueError for none, and, on a GPU, for a test that failed."""
    outcomes = dict(OUTCOME.findall(text))
    if not outcomes:
        raise ValueError("no test ran")
    found = {
        name.lower(): sum(each == name for each in outcomes.values())
        for name in ("PASSED", "FAILED", "ERROR", "SKIPPED")
    }
    return found | {
        "names_failed": [name for name, each in outcomes.items() if each in ("FAILED", "ERROR")]
    }


def describe_tests(row: Figures) -> str:
    """Numbers, and names of those that failed."""
    failed = row["failed"] + row["error"]
    names = f": {', '.join(row['names_failed'])}" if row["names_failed"] else ""
    return f"{row['passed']} passed, {row['skipped']} skipped, {failed} failed{names}"


def profile_command(session: Session, _: float) -> list[str]:
    """A step of three passes of Base, in its own trainer."""
    fused = session.figures("base").get("fuse", 1)
    unit = 4 if session.dry else 87.5
    changes = [f"trainer.fuse={fused}", "trainer.compile=none", "trainer.profile=[3,3]", SHAPES]
    changes += of_recipe(TINY, "base_ls960") if session.dry else []
    changes += [
        f"iterations.it1.pretrain.micro_batch_seconds={unit}",
        f"iterations.it1.pretrain.batch_seconds={PASSES * fused * unit}",
    ]
    return recipe_command(session, "base_ls960", changes, windows=1, window_steps=2)


def read_profile(session: Session, text: str) -> Figures:
    """Figures of the step that was profiled."""
    return dict(first_row(session, text)["profile"])


def describe_profile(row: Figures) -> str:
    """Share of the time that the device works, and the largest kernel."""
    largest = row["kernels"][0]
    return (
        f"device busy {row['busy']:.0%}, {row['calls']:,} kernels in {row['audio_seconds']:.0f} s "
        f"of audio; largest {largest['name'][:40]} {largest['share']:.0%}"
    )


def targets_command(row: str, minutes: float) -> Callable[[Session, float], list[str]]:
    """A row of bench_targets.py."""

    def command(session: Session, _: float) -> list[str]:
        words = [row, "--pairs", "1", "--device", session.device]
        words += ["--minutes", "0.3" if session.dry else str(minutes)]
        if row == "layer_features":
            words += ["--precision", "float32" if session.dry else "bfloat16"]
        if session.audio is not None:
            words += ["--audio", str(session.audio)]
        return tool("bench_targets", *words)

    return command


def describe_pair(row: Figures) -> str:
    """Both sides."""
    return f"{row['ours']:,.0f} audio-s/s, {row['ratio']:.1f} times the peer's {row['peer']:,.0f}"


def peers_command(session: Session, _: float) -> list[str]:
    """A bare step of ours and of the peers."""
    if session.dry:
        words = ["--rows", "tiny_step", "--batch-rows", "1", "--pairs", "1"]
        return tool("bench_train", *words, "--compile-peers", "no")
    return tool("bench_train", "--rows", "base_step_gpu", "--pairs", "3")


def describe_peers(row: Figures) -> str:
    """Ours, each peer, and those that failed."""
    sides = [f"{name} {rate:,.0f}" for name, rate in row["peers"].items()]
    sides += [f"{name} failed ({reason})" for name, reason in row["failed"].items()]
    return f"ours {row['ours']:,.0f} audio-s/s, MFU {row['mfu']:.1%}; {', '.join(sides)}"


def pretraining_command(session: Session, allowed: float) -> list[str]:
    """Iteration 1 of base_ls100 with the narrow network: prepare, cluster, label, pretrain."""
    iteration = "iterations.it1.pretrain"
    rate = session.figures("26 M step").get("audio_seconds_per_second", 1000.0)
    steps = max(20, int(rate * 0.8 * (allowed - START_SECONDS) / 350))
    changes = [
        *NARROW,
        f"{iteration}.batch_seconds=350",
        f"{iteration}.micro_batch_seconds=175",
        f"{iteration}.learning_rate=5e-4",
        SHAPES,
    ]
    if session.dry:
        steps = 4
        changes = [*TINY, SHAPES, f"{iteration}.min_seconds=1"]
        changes += ["iterations.it1.clustering.n_clusters=5"]
    return [
        sys.executable,
        "-m",
        "hubert_pretrain.run",
        "+recipe=base_ls100",
        *pretraining_data(session),
        f"work_dir={session.out / 'pretraining'}",
        "iterations.it2=null",
        "finetune.asr=null",
        "export.checkpoints=[]",
        "iterations.it1.clustering.fraction=1.0",
        "trainer.progress_bar=false",
        *of_recipe(changes, "base_ls100 without it2"),
        f"{iteration}.steps={steps}",
        f"{iteration}.log_every_steps={max(1, steps // 50)}",
        f"{iteration}.valid_every_steps={max(1, steps // 5)}",
    ]


def pretraining_data(session: Session) -> list[str]:
    """Overrides of the corpus: a folder, synthetic speech, or noise where nothing speaks."""
    folder = session.audio
    if folder is None:
        if importlib.util.find_spec("espeakng_loader") and not session.dry:
            return ["data=synthetic"]
        folder = session.out / "noise"
        if not folder.exists():
            benchmarking.noise_files(samples(90 if session.dry else 1200), folder)
    return ["data=folder", f"data.root={folder}", "data.valid_fraction=0.1"]


def read_pretraining(session: Session, _: str) -> Figures:
    """Facts of the stages, and the log of the training."""
    root = session.out / "pretraining"
    label = read_json(root / "it1" / "label" / "meta.json") or {}
    made = read_json(root / "it1" / "pretrain" / "meta.json") or {}
    if not made:
        raise ValueError("the training did not end")
    return {
        "steps": made["facts"]["steps"],
        "unigram_entropy_nats": label["facts"]["unigram_entropy_nats"],
        **{
            name: made["facts"][name]
            for name in ("masked_loss_nats", "masked_accuracy", "audio_seconds_per_second", "fuse")
        },
        "seconds_of_training": made["seconds"],
        "curve": curve(root / "it1" / "pretrain" / "logs" / "metrics.csv"),
    }


def curve(path: Path) -> list[list[float]]:
    """[step, loss on masked frames] of the log."""
    from hubert_pretrain.training.loggers import read_metrics

    return [[row["step"], row["loss/masked"]] for row in read_metrics(path) if "loss/masked" in row]


def describe_pretraining(row: Figures) -> str:
    """Loss under the entropy, and speed."""
    under = 1 - row["masked_loss_nats"] / row["unigram_entropy_nats"]
    return (
        f"{row['steps']:,} steps in {row['seconds_of_training']:.0f} s: masked loss "
        f"{row['masked_loss_nats']:.3f} nats, {under:.1%} under the unigram entropy, accuracy "
        f"{row['masked_accuracy']:.1%}, {row['audio_seconds_per_second']:,.0f} audio-s/s"
    )


PARTS = (
    Part("machine", machine_command, json_row, 40, 10, describe_machine),
    recipe_step(
        "base, fuse 1, uncompiled",
        "base_ls960",
        "trainer.fuse=1",
        "trainer.compile=none",
        most=50,
        least=15,
        census=roofline.BASE,
    ),
    recipe_step(
        "base, uncompiled",
        "base_ls960",
        "trainer.compile=none",
        most=50,
        least=15,
        census=roofline.BASE,
    ),
    recipe_step("base, fuse 1", "base_ls960", "trainer.fuse=1", most=90, least=25),
    recipe_step("base", "base_ls960", most=110, least=30),
    Part("profile", profile_command, read_profile, 50, 15, describe_profile),
    Part("tests", tests_command, read_tests, 100, 30, describe_tests),
    recipe_step("large", "large_ll60k", most=90, least=25),
    recipe_step(
        "26 M step",
        "base_ls960",
        *NARROW,
        "iterations.it1.pretrain.batch_seconds=350",
        "iterations.it1.pretrain.micro_batch_seconds=175",
        most=60,
        least=15,
    ),
    Part(
        "layer features",
        targets_command("layer_features", 10),
        first_row,
        50,
        15,
        describe_pair,
    ),
    Part("labelling", targets_command("labelling", 20), first_row, 40, 10, describe_pair),
    Part("k-means", targets_command("kmeans_mfcc", 20), first_row, 50, 10, describe_pair),
    Part("peers", peers_command, first_row, 90, 20, describe_peers),
    Part(
        "pretraining",
        pretraining_command,
        read_pretraining,
        PRETRAINING_SECONDS,
        START_SECONDS + 20,
        describe_pretraining,
    ),
)


# -- running them


def run_part(part: Part, session: Session, allowed: float) -> Result:
    """Run a part in a process group of its own, and end that group when the time is over."""
    began = time.monotonic()
    log = session.log(part.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    result = Result(part.name, FAILED)
    try:
        command = part.command(session, allowed)
        code = execute(command, log, allowed)
    except Exception as error:  # of the command's preparation: a part never ends the report
        result.reason = f"{type(error).__name__}: {error}"
        code = 1
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    result.seconds = round(time.monotonic() - began, 1)
    try:
        result.figures = part.read(session, text)
    except Exception as error:
        result.reason = result.reason or f"{type(error).__name__}: {error}"
    if code == 0 and result.figures:
        result.status = OK
    elif code != 0:
        ended = f"exit code {code}" if code else f"not done after {allowed:.0f} s"
        found = part.describe(result.figures) if result.figures else last_line(text)
        result.reason = f"{ended}; {found or result.reason}"
    return result


def execute(command: Sequence[str], log: Path, allowed: float) -> int | None:
    """Exit code of a command whose output goes to a file; None when it ran out of time."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
        ),
        "PYTHONUNBUFFERED": "1",
    }
    with open(log, "w", encoding="utf-8") as output:
        print(*command, file=output, flush=True)
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=environment,
            start_new_session=True,
        )
        try:
            return process.wait(allowed)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, first kindly."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


def last_line(text: str) -> str:
    """The last line that is no empty one, shortened; "" for none. The first one is the command."""
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    return f"last line: {lines[-1][:200]}" if lines else ""


def allowed_seconds(part: Part, later: Sequence[Part], left: float, *, dry: bool = False) -> float:
    """Seconds that a part may take: those of later parts are kept as far as possible. 0 when not
    even its least is left. A dry run is no measurement, and may take as long as it likes.
    """
    if left < part.least:
        return 0.0
    if dry:
        return left
    reserved = sum(each.least for each in later)
    return min(part.most, left, max(part.least, left - reserved))


def run(session: Session, parts: Sequence[Part]) -> dict[str, Result]:
    """Run the parts in order, and write the report after each."""
    for number, part in enumerate(parts):
        left = session.left - KILL_SECONDS
        allowed = allowed_seconds(part, parts[number + 1 :], left, dry=session.dry)
        if allowed:
            print(f"{part.name}: at most {allowed:.0f} s", flush=True)
            result = run_part(part, session, allowed)
        else:
            reason = f"{max(0, session.left):.0f} s are left, it needs {part.least:.0f}"
            result = Result(part.name, NOT_RUN, reason)
        session.results[part.name] = result
        print(f"{part.name}: {cell(part, result)}", flush=True)
        write(session, parts)
    return session.results


# -- the report


def cell(part: Part, result: Result) -> str:
    """The result of a part in one line."""
    if result.status != OK:
        return f"**{result.status}**: {result.reason}"
    return part.describe(result.figures)


def markdown(session: Session, parts: Sequence[Part]) -> str:
    """The report as tables."""
    form = "a dry run on a CPU, tiny sizes: no figure means anything" if session.dry else "one GPU"
    lines = [
        "# GPU report",
        "",
        f"{time.strftime('%Y-%m-%d')}, {form}; `python tools/gpu_report.py`, "
        f"{session.minutes:g} minutes.",
        "",
        "| part | seconds | result |",
        "|---|---|---|",
    ]
    for part in parts:
        result = session.results.get(part.name, Result(part.name, NOT_RUN, "not begun yet"))
        text = cell(part, result).replace("|", "/")
        lines.append(f"| {part.name} | {result.seconds:.0f} | {text} |")
    if kernels := session.figures("profile").get("kernels"):
        lines += ["", "## Kernels of a step of three passes", ""]
        lines += ["| kernel | calls | ms | share |", "|---|---|---|---|"]
        lines += [
            f"| `{each['name'][:100].replace('|', '/')}` | {each['calls']} | "
            f"{each['milliseconds']:.2f} | {each['share']:.1%} |"
            for each in kernels[:20]
        ]
    return "\n".join(lines) + "\n"


def write(session: Session, parts: Sequence[Part]) -> None:
    """Both files of the report."""
    write_json(
        session.out / "report.json",
        {
            "dry": session.dry,
            "minutes": session.minutes,
            "audio": str(session.audio) if session.audio else None,
            "machine": benchmarking.machine(),
            "parts": [dataclasses.asdict(each) for each in session.results.values()],
        },
    )
    write_text(session.out / "report.md", markdown(session, parts))


def speech(given: Path | None) -> Path | None:
    """The folder of real speech: the one that was given, or LibriSpeech's in HUBERT_SHARED."""
    if given is not None:
        return given.absolute()
    shared = os.environ.get("HUBERT_SHARED")
    if not shared:
        return None
    data = Path(shared).absolute() / "data"
    return next((each for each in (data / "librispeech", data) if each.is_dir()), None)


def main(words: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the report, a new one")
    parser.add_argument("--minutes", type=float, help="for everything (default: 8; with --dry 60)")
    parser.add_argument("--audio", type=Path, help="folder of real speech, 16 kHz, one channel")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], metavar="PART")
    parser.add_argument("--dry", action="store_true", help="on the CPU, tiny sizes")
    options = parser.parse_args(words)
    if not options.dry and not has_gpu():
        parser.error("torch sees no NVIDIA GPU on this machine; --dry tries every part on the CPU")
    if options.audio and not options.audio.is_dir():
        parser.error(f"--audio {options.audio}: no such folder")
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"--out {options.out}: the folder is not empty; name a new one")
    session = Session(
        options.out.absolute(),
        dry=options.dry,
        minutes=options.minutes or (60.0 if options.dry else 8.0),
        audio=speech(options.audio),
    )
    parts = [part for part in PARTS if not options.only or part.name in options.only]
    results = run(session, parts)
    print(markdown(session, parts))
    return 1 if any(each.status == FAILED for each in results.values()) else 0


def has_gpu() -> bool:
    """True when torch sees an NVIDIA GPU; asked in another process, which gives its memory back."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
