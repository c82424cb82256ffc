"""Probe a checkpoint by tasks of SUPERB: a sweep of rates for each, and one table.

    hubert-pretrain superb runs/base_ls960/it2/pretrain --roots librispeech=/corpora/LibriSpeech
    hubert-pretrain superb /models/hubert-base-ls960 --tasks ks ic --output scores/base \\
        --roots speech_commands=/corpora/speech_commands fluent_speech_commands=/corpora/fsc \\
        --set trainer=gpus_1

Each task is a recipe (recipes/superb). It is trained once for each rate, the best by the valid
split is scored on the test split, and superb.md and superb.json in the output folder hold the
table. The same command goes on after an interruption, and adds tasks and rates.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.files import read_json, write_json, write_text
from hubert_pretrain.tools.command import command_parser, run_command

RATES = (1e-2, 1e-3, 1e-4, 1e-5)


@dataclass(frozen=True)
class Probe:
    """A task of SUPERB."""

    root: str
    """Name of its corpus in --roots."""
    metric: str
    higher_is_better: bool
    published: float
    """HuBERT Base, in per cent (arXiv 2105.01051, as printed in 2112.08778, table 3)."""
    folds: Sequence[str] = ("",)
    """Word of each run whose scores are averaged."""


PROBES = {
    "pr": Probe("librispeech", "per", False, 5.41),
    "asr": Probe("librispeech", "wer", False, 6.42),
    "ks": Probe("speech_commands", "accuracy", True, 96.30),
    "ic": Probe("fluent_speech_commands", "accuracy", True, 98.34),
    "sid": Probe("voxceleb1", "accuracy", True, 81.42),
    "asv": Probe("voxceleb1", "eer", False, 5.11),
    "er": Probe(
        "iemocap", "accuracy", True, 64.92, [f"data.corpus.test_session={n}" for n in range(1, 6)]
    ),
}


@dataclass(frozen=True)
class Run:
    """One fold of a task: all rates in one folder."""

    recipe: Path
    """Its whole configuration, with a task for each rate."""
    work_dir: Path


@dataclass(frozen=True)
class Result:
    """A row of the table, in per cent."""

    task: str
    metric: str
    test: float
    valid: float
    rate: float
    intervals: Sequence[Sequence[float]]
    """Of each fold."""
    swept: dict[str, float]
    """Rate -> score of the valid split."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("checkpoint", help="any checkpoint that can be read (docs/checkpoints.md)")
    parser.add_argument(
        "--roots", nargs="+", default=[], metavar="CORPUS=FOLDER", help="folders of the corpora"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        help=f"of {', '.join(PROBES)} (default: all whose corpus has a root)",
    )
    parser.add_argument("--lexicon", help="of pr: a file with a word and its phones per line")
    parser.add_argument(
        "--learning-rates",
        nargs="+",
        type=float,
        default=list(RATES),
        help="rates to choose from (default: %(default)s)",
    )
    parser.add_argument("--output", default="runs/superb", help="folder of runs and table")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="words for every run, e.g. trainer=gpus_4; TASK in a key stands for the task: "
        "finetune.TASK.steps=1000",
    )
    return run_command(superb, parser.parse_args(arguments))


def superb(options: argparse.Namespace) -> int:
    """Run each task; returns 0."""
    rates = check_rates(options.learning_rates)
    roots = roots_of(options.roots)
    output = Path(options.output).expanduser().absolute()
    results = earlier_results(output, options.checkpoint)
    for task in tasks_of(options.tasks, roots, options.lexicon):
        words = [word.replace("TASK", task) for word in options.set]
        if task == "pr":
            words.append(f"finetune.pr.task.lexicon={Path(options.lexicon).absolute()}")
        runs = [
            plan_run(task, fold, roots, options.checkpoint, rates, output, words)
            for fold in PROBES[task].folds
        ]
        for run in runs:
            execute(run, "prepare")
            execute(run, "finetune")
        results[task] = choose(task, runs, rates)
        write_table(output, options.checkpoint, list(results.values()))
    print((output / "superb.md").read_text(), end="")
    return 0


# -- arguments


def check_rates(rates: Sequence[float]) -> list[float]:
    """The rates, highest first. Raises ConfigError for one that is none, or is there twice."""
    wrong = [rate for rate in rates if not 0 < rate < 1]
    if wrong:
        raise ConfigError(f"--learning-rates {wrong[0]:g}: expected rates above 0 and below 1")
    if len(set(rates)) < len(rates):
        raise ConfigError("--learning-rates: a rate is there twice; name each once")
    return sorted(rates, reverse=True)


def roots_of(words: Sequence[str]) -> dict[str, str]:
    """`librispeech=/corpora/LibriSpeech` -> corpus and folder. Raises ConfigError."""
    known = sorted({probe.root for probe in PROBES.values()})
    found = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or name not in known:
            raise ConfigError(
                f"--roots {word}: expected CORPUS=FOLDER with one of {', '.join(known)}"
                f"{did_you_mean(name, known)}"
            )
        found[name] = folder
    return found


def tasks_of(names: Sequence[str] | None, roots: dict[str, str], lexicon: str | None) -> list[str]:
    """The tasks to run. Raises ConfigError for an unknown one, or one without a root or lexicon."""
    there = [task for task, probe in PROBES.items() if probe.root in roots]
    chosen = names or [task for task in there if task != "pr" or lexicon]
    if not chosen:
        raise ConfigError("nothing to do: name the folder of a corpus, --roots CORPUS=FOLDER")
    for task in chosen:
        if task not in PROBES:
            raise ConfigError(
                f"--tasks {task}: expected some of {', '.join(PROBES)}"
                f"{did_you_mean(task, list(PROBES))}"
            )
        if PROBES[task].root not in roots:
            root = PROBES[task].root
            raise ConfigError(f"--tasks {task}: needs its corpus, --roots {root}=FOLDER")
        if task == "pr" and not lexicon:
            raise ConfigError("--tasks pr: needs the phones of words, --lexicon FILE")
    return list(chosen)


# -- runs


def plan_run(
    task: str,
    fold: str,
    roots: dict[str, str],
    checkpoint: str,
    rates: Sequence[float],
    output: Path,
    words: Sequence[str],
) -> Run:
    """Write the configuration of a fold: the recipe, with its task once for each rate."""
    from omegaconf import OmegaConf

    from hubert_pretrain.config import compose

    folder = output / task / fold.rpartition(".")[2].replace("=", "_")
    path = Path(checkpoint).expanduser()
    recipe = compose.recipe_of(
        [
            f"+recipe=superb/{task}",
            f"data.root={roots[PROBES[task].root]}",
            f"finetune.{task}.checkpoint={path.absolute() if path.exists() else checkpoint}",
            f"work_dir={folder}",
            *([fold] if fold else []),
            *words,
        ]
    )
    config = recipe.finetune[task]
    recipe.finetune = {
        name_of(task, rate): dataclasses.replace(config, learning_rate=rate) for rate in rates
    }
    fields = [each.name for each in dataclasses.fields(recipe)]
    kept = [name for name in fields if name not in ("stage", "redo")]
    folder.mkdir(parents=True, exist_ok=True)
    text = OmegaConf.to_yaml(OmegaConf.masked_copy(OmegaConf.structured(recipe), kept))
    write_text(folder / "sweep.yaml", text)
    return Run(folder / "sweep.yaml", folder)


def name_of(task: str, rate: float) -> str:
    """Name of the task with that rate, e.g. ks_1e-03."""
    return f"{task}_{rate:.3g}".replace(".", "_")


def execute(run: Run, stage: str) -> None:
    """Run stages of a fold that are pending, in a process of their own. Raises StageFailed."""
    words = [f"+recipe={run.recipe}", f"stage={stage}"]
    code = subprocess.run([sys.executable, "-m", "hubert_pretrain.run", *words]).returncode
    if code:
        from hubert_pretrain.launch.local import StageFailed

        raise StageFailed(f"{run.work_dir}: {stage} ended with exit code {code}", code)


def choose(task: str, runs: Sequence[Run], rates: Sequence[float]) -> Result:
    """The rate that is best on the valid splits, scored on the test splits."""
    probe = PROBES[task]
    swept = {
        rate: mean([facts_of(run, f"finetune/{name_of(task, rate)}")[probe.metric] for run in runs])
        for rate in rates
    }
    best = (max if probe.higher_is_better else min)(swept, key=lambda rate: swept[rate])
    for run in runs:
        execute(run, f"evaluate/{name_of(task, best)}")
    tests = [facts_of(run, f"evaluate/{name_of(task, best)}/test") for run in runs]
    return Result(
        task=task,
        metric=probe.metric,
        test=100 * mean([facts[probe.metric] for facts in tests]),
        valid=100 * swept[best],
        rate=best,
        intervals=[
            [100 * end for end in facts.get("intervals", {}).get(probe.metric, [])]
            for facts in tests
        ],
        swept={f"{rate:g}": 100 * value for rate, value in swept.items()},
    )


def facts_of(run: Run, stage: str) -> dict[str, Any]:
    """Values that a finished stage measured."""
    from hubert_pretrain.pipeline.workspace import Workspace

    return Workspace(run.work_dir).artefact(stage).facts


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)


# -- table


def earlier_results(output: Path, checkpoint: str) -> dict[str, Result]:
    """Rows of earlier commands. Raises ConfigError where they are of another checkpoint."""
    place = output / "superb.json"
    if not place.is_file():
        return {}
    found = read_json(place)
    if found["checkpoint"] != checkpoint:
        raise ConfigError(
            f"{place}: has the scores of {found['checkpoint']}; choose another --output for "
            f"{checkpoint}"
        )
    return {task: Result(**row) for task, row in found["tasks"].items()}


def write_table(output: Path, checkpoint: str, results: Sequence[Result]) -> None:
    """superb.md for people, superb.json for programs."""
    rows = [row_of(result) for result in results]
    lines = [
        f"SUPERB probes of {checkpoint}, in per cent",
        "",
        "| task | score | test | 95 % interval | valid | rate | HuBERT Base, published |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    write_text(output / "superb.md", "\n".join(lines) + "\n")
    found = {result.task: dataclasses.asdict(result) for result in results}
    write_json(output / "superb.json", {"checkpoint": checkpoint, "tasks": found})


def row_of(result: Result) -> str:
    """A line of the table; the interval of several folds is left out."""
    probe = PROBES[result.task]
    ends = result.intervals[0] if len(result.intervals) == 1 else []
    interval = " to ".join(f"{end:.2f}" for end in ends)
    arrow = "↑" if probe.higher_is_better else "↓"
    edge = " (end of the sweep)" if at_edge(result) else ""
    return (
        f"| {result.task.upper()} | {result.metric} {arrow} | {result.test:.2f} | {interval} "
        f"| {result.valid:.2f} | {result.rate:g}{edge} | {probe.published:.2f} |"
    )


def at_edge(result: Result) -> bool:
    """True where a better rate may lie outside the sweep."""
    rates = [float(rate) for rate in result.swept]
    return result.rate in (max(rates), min(rates))


if __name__ == "__main__":
    sys.exit(main())
