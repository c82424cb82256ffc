"""Compare settings of a fine-tuning over seeds: one table with intervals.

    hubert-pretrain ablate runs/demo asr --seeds 3 --variant it2 \\
        --variant it1 checkpoint=it1/pretrain --variant random checkpoint=null

Each variant is trained and scored with several seeds; intervals are over seeds and utterances. A
variant is a name and keys of the task (finetune.asr in the run's recipe) with other values; the
others are compared with the first. Everything lies in RUN/ablate/TASK, a run of its
own; the same command resumes it, and further variants or seeds are added to it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubert_pretrain.errors import ArtefactError, ConfigError, did_you_mean
from hubert_pretrain.files import write_json, write_text
from hubert_pretrain.tools.command import command_parser, run_command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hubert_pretrain.evaluation.repeats import Repeats

RECIPE = "ablation.yaml"
TABLE = "ablation.md"
RESULTS = "ablation.json"
NAME = re.compile(r"[A-Za-z0-9_]+")

Counts = dict[str, "NDArray[np.int64]"]
"""Rate -> (N, 2): errors and units of each utterance."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, such as runs/demo")
    parser.add_argument("task", help="a task of its recipe, such as asr")
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "KEY=VALUE"),
        help="a setting to compare; once for each",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="trainings of each variant (default: %(default)s)"
    )
    parser.add_argument(
        "--split", default="", help="split to score (default: test_split of the task)"
    )
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument(
        "--run-with",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="other words of the command line of the run, e.g. trainer=gpus_8 launch=slurm",
    )
    return run_command(ablate, parser.parse_args(arguments))


def ablate(options: argparse.Namespace) -> int:
    """Train and score what is pending, then write the table; returns 0."""
    from hubert_pretrain.evaluation.bootstrap import Sampling
    from hubert_pretrain.evaluation.repeats import compare

    if options.seeds < 1:
        raise ConfigError(f"--seeds {options.seeds}: expected 1 or more")
    variants = read_variants(options.variant)
    folder = (options.run / "ablate" / options.task).absolute()
    split = write_recipe(options, variants, folder)
    train_and_score(folder, options.run_with)
    counts = {
        name: [
            read_counts(folder / "evaluate" / stage_name(options.task, name, seed) / split)
            for seed in range(1, options.seeds + 1)
        ]
        for name in variants
    }
    sampling = Sampling(resamples=options.resamples)
    rates = {
        rate: dict(
            zip(
                variants,
                compare(
                    {name: [each[rate] for each in of_seeds] for name, of_seeds in counts.items()},
                    sampling,
                ),
                strict=True,
            )
        )
        for rate in next(iter(counts.values()))[0]
    }
    text = table(rates, variants, options, split)
    write_text(folder / TABLE, text)
    write_json(folder / RESULTS, as_json(rates, variants))
    print(f"\n{text}\n{folder / TABLE}", flush=True)
    return 0


def read_variants(given: list[list[str]]) -> dict[str, list[str]]:
    """Name -> its settings KEY=VALUE. Raises ConfigError."""
    found: dict[str, list[str]] = {}
    for name, *settings in given:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"--variant {name}: expected a name of letters, digits and _ first, then KEY=VALUE"
            )
        if name in found:
            raise ConfigError(f"--variant {name}: is given twice; choose another name")
        for setting in settings:
            if "=" not in setting:
                raise ConfigError(f"--variant {name}: found {setting!r}, expected KEY=VALUE")
        found[name] = settings
    return found


def stage_name(task: str, variant: str, seed: int) -> str:
    """The task of one training; the seed of a training depends on its name."""
    return f"{task}-{variant}-{seed}"


def write_recipe(options: argparse.Namespace, variants: dict[str, list[str]], folder: Path) -> str:
    """Write the recipe with a task for each training, beside the prepared corpus of the run; return
    the split that they are scored on.
    """
    from omegaconf import OmegaConf

    source = options.run / "recipe.yaml"
    prepared = options.run / "prepare"
    for path in (source, prepared / "meta.json"):
        if not path.is_file():
            raise ArtefactError(
                f"{path}: no such file; name the folder of a run whose stage prepare is done"
            )
    recipe: Any = OmegaConf.load(source)
    if options.task not in recipe.finetune:
        known = [str(name) for name in recipe.finetune]
        raise ConfigError(
            f"{source}: has no task {options.task!r}{did_you_mean(options.task, known)}; "
            f"it has {', '.join(known) or 'none'}"
        )
    base = recipe.finetune[options.task]
    split = options.split or base.test_split
    if not isinstance(split, str):
        raise ConfigError(f"--split: choose one of {', '.join(split)}")
    evaluation = recipe.evaluate.get(options.task)
    tasks = {}
    evaluations = {}
    for name, settings in variants.items():
        task = OmegaConf.merge(base, OmegaConf.from_dotlist(settings), {"test_split": split})
        place = options.run / str(task.checkpoint)
        if task.checkpoint is not None and (place / "meta.json").is_file():
            task.checkpoint = str(place.absolute())
        for seed in range(1, options.seeds + 1):
            tasks[stage_name(options.task, name, seed)] = task
            if evaluation is not None:
                evaluations[stage_name(options.task, name, seed)] = {
                    **evaluation,
                    "checkpoint": None,
                    "splits": split,
                }
    folder.mkdir(parents=True, exist_ok=True)
    recipe.name = f"{recipe.name}-{options.task}"
    recipe.work_dir = str(folder)
    recipe.iterations = {}
    recipe.finetune = tasks
    recipe.evaluate = evaluations
    recipe.export.checkpoints = []
    write_text(folder / RECIPE, OmegaConf.to_yaml(recipe))
    if not (folder / "prepare").exists():
        (folder / "prepare").symlink_to(prepared.absolute())
    return str(split)


def train_and_score(folder: Path, words: list[str]) -> None:
    """Run what is pending. Raises ArtefactError when it fails; the run has said why."""
    command = [sys.executable, "-m", "hubert_pretrain.run", f"+recipe={folder / RECIPE}", *words]
    done = subprocess.run(command, env=dict(os.environ), check=False)
    if done.returncode:
        raise ArtefactError(
            f"{folder}: the run ended with exit code {done.returncode}, see above; "
            f"the same command resumes it ({shlex.join(command)})"
        )


def read_counts(folder: Path) -> Counts:
    """The errors of an evaluation: words and characters of texts, or wrong classes."""
    import numpy as np

    from hubert_pretrain.evaluation.report import UTTERANCES
    from hubert_pretrain.evaluation.texts import UNITS, count_errors

    path = folder / UTTERANCES
    if not path.is_file():
        raise ArtefactError(f"{path}: no such file; run the command again without stage=")
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = sorted(map(json.loads, lines), key=lambda row: str(row["id"]))
    references = [row["reference"] for row in rows]
    if "hypothesis" in rows[0]:
        hypotheses = [row["hypothesis"] for row in rows]
        return {
            rate: count_errors(references, hypotheses, unit).ratios for rate, unit in UNITS.items()
        }
    wrong = [row["prediction"] != row["reference"] for row in rows]
    return {"error rate": np.stack([wrong, np.ones(len(rows))], axis=1).astype(np.int64)}


def table(
    rates: dict[str, dict[str, Repeats]],
    variants: dict[str, list[str]],
    options: argparse.Namespace,
    split: str,
) -> str:
    """The results for people, in Markdown."""
    first = next(iter(variants))
    parts = [f"# {options.run} {options.task}, split {split}, {options.seeds} seeds\n"]
    for rate, found in rates.items():
        lines = [
            f"| {rate} | all seeds | 95 % interval | each seed | minus {first} | 95 % interval |",
            "|---|---|---|---|---|---|",
        ]
        for name, each in found.items():
            seeds = ", ".join(f"{value:.3f}" for value in each.by_seed)
            pooled = each.pooled
            cells = [name, f"{pooled.value:.3f}", f"{pooled.low:.3f} to {pooled.high:.3f}", seeds]
            difference = each.difference
            cells += (
                ["", ""]
                if name == first
                else [
                    f"{difference.value:+.3f}",
                    f"{difference.low:+.3f} to {difference.high:+.3f}",
                ]
            )
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines) + "\n")
    parts.append(
        "\n".join(
            f"- {name}: {' '.join(each) or 'as in the run'}" for name, each in variants.items()
        )
        + "\n"
    )
    return "\n".join(parts)


def as_json(
    rates: dict[str, dict[str, Repeats]], variants: dict[str, list[str]]
) -> dict[str, dict[str, Any]]:
    """The results for programs."""
    return {
        name: {
            "settings": settings,
            "rates": {
                rate: {
                    "seeds": found[name].by_seed,
                    "pooled": found[name].pooled.as_json(),
                    "difference": found[name].difference.as_json(),
                }
                for rate, found in rates.items()
            },
        }
        for name, settings in variants.items()
    }


if __name__ == "__main__":
    sys.exit(main())
