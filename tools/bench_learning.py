"""Compare recipes by what they learn in equal processor time, on held-out voices.

    python tools/bench_learning.py variants.yaml runs/bench_learning

Every variant is trained with every seed. All trainings of a run get the same multiple of the
recipe's steps, so that clustering, labelling and training together take `cpu_seconds` of processor
time: steps are timed before the first training, and what is left is shared again after each stage.
Preparing the corpus, timing and scoring do not count. variants.yaml:

    base: [+recipe=demo, '~finetune.speakers', data.corpus.test_voices=3]
    cpu_seconds: 1200
    seeds: [1, 2, 3]
    score: {n_clusters: 50, fit_minutes: 30, choose_on: valid, split: test, minutes: 20}
    variants:
      cosine: []
      softmax:
      - iterations.it1.pretrain.loss.head=softmax
      - iterations.it2.pretrain.loss.head=softmax

The networks of all iterations, and the features of the first one, are scored on `split` with
codebooks of the same K: PNMI, phone error rate with two mappings, F1 and R-value of boundaries
(20 ms), ABX, information about the speaker. Tasks have their scores with bootstrap intervals.
Whatever is finished stays; the same command goes on, and begins the stage again that it was in.
The folder gets learning.json and learning.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import FinetuneConfig, PretrainConfig, Recipe, SpinConfig
from hubert_pretrain.errors import ConfigError, HubertPretrainError, did_you_mean
from hubert_pretrain.files import read_json, write_json, write_text
from hubert_pretrain.pipeline import locks, plan
from hubert_pretrain.pipeline.plan import TRAININGS, WITH_NAMES, Stage
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.tools import benchmarking
from hubert_pretrain.tools.command import command_parser, run_command

if TYPE_CHECKING:
    from hubert_pretrain.tools.learning_scores import Scoring

SETTINGS = (
    "trainer.accelerator=cpu",
    "trainer.loader_workers=0",  # their time is known only when they end
    "trainer.progress_bar=false",
    "report=false",
)
"""Of every variant."""
NEVER = 10**9
FORWARD_SHARE = 1 / 3
"""Part of a training step that is the forward pass."""
TIMED_STEPS = 8
MOST_TIMED_STEPS = 512
"""More steps are timed, up to this many, until they take this long, and half as long as a training
of two steps: processor time of other things varies by tenths of a second, and that of a few steps
by a third where other programs share the cores."""
MIN_TIMED_SECONDS = 2.0
FEWEST_STEPS = 10
"""Of a training, or the budget is refused."""
COUNTED = ("cluster", "label", *TRAININGS)
"""Verbs whose time is part of the budget."""
BEFORE = "features"
"""Stands for a network before the first iteration."""
Row = dict[str, Any]
Training = PretrainConfig | SpinConfig | FinetuneConfig


@dataclass(frozen=True)
class Bench:
    """The content of variants.yaml."""

    variants: dict[str, list[str]]
    cpu_seconds: float
    base: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    score: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(path: Path) -> Bench:
        """Raises ConfigError naming the file and the key."""
        import yaml

        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: no readable YAML: {' '.join(str(error).split())}") from None
        known = [each.name for each in dataclasses.fields(Bench)]
        if not isinstance(content, dict) or not isinstance(content.get("variants"), dict):
            raise ConfigError(f"{path}: expected the keys {', '.join(known)}; --help shows a file")
        for key in content:
            if key not in known:
                raise ConfigError(f"{path}: no key {key!r}{did_you_mean(str(key), known)}")
        bench = Bench(**{"cpu_seconds": 0.0, **content})
        for name, words in {"base": bench.base, **bench.variants}.items():
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise ConfigError(f"{path}: {name}: expected a list of overrides, found {words!r}")
        if not isinstance(bench.cpu_seconds, int | float) or bench.cpu_seconds <= 0:
            raise ConfigError(
                f"{path}: cpu_seconds={bench.cpu_seconds!r}: expected a number above 0"
            )
        if not bench.variants or not bench.seeds:
            raise ConfigError(f"{path}: variants and seeds must not be empty")
        bench.scoring(str(path))
        return bench

    def scoring(self, where: str = "") -> Scoring:
        """Settings of the scores. Raises ConfigError for a key that does not exist."""
        from hubert_pretrain.tools.learning_scores import Scoring

        known = [each.name for each in dataclasses.fields(Scoring)]
        for key in self.score:
            if key not in known:
                raise ConfigError(f"{where}: score: no key {key!r}{did_you_mean(key, known)}")
        return Scoring(**self.score)

    def words(self, variant: str, seed: int) -> list[str]:
        """The command line of a run."""
        return [*self.base, *self.variants[variant], f"seed={seed}", *SETTINGS]

    def fingerprint(self, variant: str, seed: int) -> str:
        """Of everything that a run's results depend on."""
        content = [self.words(variant, seed), self.cpu_seconds, self.score]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("variants", type=Path, help="YAML file")
    parser.add_argument("folder", type=Path, help="of the runs and the table")
    return run_command(compare, parser.parse_args(arguments))


def compare(options: argparse.Namespace) -> int:
    """Run what is missing and write the table; 1 when a run failed."""
    # As run.py: waiting threads give their core away, which also keeps processor time honest.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    bench = Bench.read(options.variants)
    folder = options.folder.expanduser().absolute()
    recipes = {
        name: compose.recipe_of([*bench.words(name, bench.seeds[0]), f"work_dir={folder}"])
        for name in bench.variants
    }
    for name, recipe in recipes.items():
        check_recipe(name, recipe)
    rows: list[Row] = []
    with locks.acquire(folder / ".bench.lock", "the bench"):
        for seed in bench.seeds:
            for name in bench.variants:
                try:
                    rows.append(LearningRun(bench, name, seed, folder).result())
                except HubertPretrainError as error:
                    print(f"{name}, seed {seed}: {error}", file=sys.stderr, flush=True)
                    rows.append({"variant": name, "seed": seed, "error": str(error)})
                write_table(folder, bench, rows)
    print((folder / "learning.md").read_text(encoding="utf-8"))
    return int(any("error" in row for row in rows))


def check_recipe(name: str, recipe: Recipe) -> None:
    """Raises ConfigError for a recipe that cannot be compared."""
    if not recipe.iterations:
        raise ConfigError(f"variants.{name}: the recipe has no iteration to pretrain")
    if recipe.trainer.devices * recipe.trainer.num_nodes > 1:
        raise ConfigError(
            f"variants.{name}: trainer.devices={recipe.trainer.devices}: the processor time of one "
            "process is measured; set trainer.devices=1"
        )


# -- one run


class LearningRun:
    """A variant with a seed: steps for its budget, stages, scores."""

    def __init__(self, bench: Bench, variant: str, seed: int, folder: Path) -> None:
        self.bench = bench
        self.variant = variant
        self.seed = seed
        self.folder = folder
        self.workspace = Workspace(folder / variant / f"seed{seed}")
        self.recipe = compose.recipe_of(
            [*bench.words(variant, seed), f"work_dir={self.workspace.root}"]
        )
        self.schedule: Row = {"fingerprint": bench.fingerprint(variant, seed)}
        self.schedule |= {"steps": {}, "seconds": {}, "step_seconds": {}, "start_seconds": {}}

    @property
    def schedule_path(self) -> Path:
        """Steps and seconds so far."""
        return self.workspace.root / "schedule.json"

    def result(self) -> Row:
        """The scores, from an earlier run of the same settings or from this one.

        Raises ConfigError when the folder holds a run of other settings, or the budget is too
        small.
        """
        left = read_json(self.schedule_path)
        if left is not None:
            if left["fingerprint"] != self.schedule["fingerprint"]:
                raise ConfigError(
                    f"{self.workspace.root}: holds a run of other overrides, cpu_seconds or "
                    "scores; choose another folder, or remove this one"
                )
            self.schedule = left
        if "result" not in self.schedule:
            print(f"{self.variant}, seed {self.seed}", flush=True)
            self.train()
            self.schedule["result"] = self.score()
            self.save()
        return {"variant": self.variant, "seed": self.seed, **self.schedule["result"]}

    def save(self) -> None:
        """Keep what was measured."""
        write_json(self.schedule_path, self.schedule)

    def train(self) -> None:
        """Every stage that learns."""
        prepare(self.recipe, self.workspace, self.folder / "corpora")
        for stage in self.stages(COUNTED):
            if self.workspace.is_done(stage.name):
                continue
            if stage.verb in TRAININGS:
                self.choose_steps(stage)
            # Work of a killed bench: its processor time is not known, so it begins again.
            self.workspace.discard(stage.name)
            self.schedule["seconds"][stage.name] = run(self.planned(), self.workspace, stage.name)
            self.save()

    def stages(self, verbs: Sequence[str]) -> list[Stage]:
        """The stages of these verbs, in order."""
        return [stage for stage in plan.stages(self.planned()) if stage.verb in verbs]

    def planned(self) -> Recipe:
        """The recipe with the steps that are known."""
        recipe = self.recipe
        for stage, steps in self.schedule["steps"].items():
            settings = dataclasses.replace(training(recipe, stage), steps=steps)
            recipe = with_training(recipe, stage, settings)
        return recipe

    # -- steps

    def choose_steps(self, stage: Stage) -> None:
        """As many steps of this training as its part of the time that is left allows.

        Raises ConfigError when that is next to nothing.
        """
        if stage.name not in self.schedule["step_seconds"]:
            self.time_steps()
        planned_steps = {
            each.name: training(self.recipe, each.name).steps
            for each in self.stages(TRAININGS)
            if each.name not in self.schedule["seconds"]
        }
        spent = sum(self.schedule["seconds"].values()) + self.seconds_of_targets()
        spent += sum(self.start_seconds(name) for name in planned_steps)
        left = self.bench.cpu_seconds - spent
        needed = sum(steps * self.step_seconds(name) for name, steps in planned_steps.items())
        steps = round(planned_steps[stage.name] * left / needed)
        if steps < FEWEST_STEPS:
            least = spent + needed * FEWEST_STEPS / planned_steps[stage.name]
            raise ConfigError(
                f"cpu_seconds={self.bench.cpu_seconds:g} leaves {max(0, steps)} steps for "
                f"{stage.name} of variant {self.variant}; raise it to {2 * least:.0f} or more"
            )
        self.schedule["steps"][stage.name] = steps
        self.save()

    def time_steps(self) -> None:
        """Time the steps of every training on the first one's targets: new weights, a few steps."""
        scratch = self.workspace.root / "timing"
        shutil.rmtree(scratch, ignore_errors=True)
        first = self.stages(["pretrain"])[0]
        for stage in self.stages(TRAININGS):
            settings = dataclasses.replace(
                training(self.recipe, stage.name), steps=2, valid_every_steps=NEVER
            )
            if isinstance(settings, PretrainConfig):
                settings = dataclasses.replace(settings, start_from=None)
            else:
                settings = dataclasses.replace(settings, checkpoint=str(scratch / first.name))
            self.seconds_of_training(stage, scratch, settings)  # loads what the others find loaded
            few = self.seconds_of_training(stage, scratch, settings)
            count = TIMED_STEPS
            longer = dataclasses.replace(settings, steps=2 + count)
            more = self.seconds_of_training(stage, scratch, longer)
            while more < few + max(MIN_TIMED_SECONDS, few / 2) and count < MOST_TIMED_STEPS:
                count *= 4
                longer = dataclasses.replace(settings, steps=2 + count)
                more = self.seconds_of_training(stage, scratch, longer)
            of_step = max(1e-3, (more - few) / count)
            self.schedule["step_seconds"][stage.name] = of_step
            self.schedule["start_seconds"][stage.name] = max(0.0, few - 2 * of_step)
        shutil.rmtree(scratch, ignore_errors=True)
        self.save()

    def seconds_of_training(self, stage: Stage, scratch: Path, settings: Training) -> float:
        """Processor time of a short training. Those of later iterations run on the targets of the
        first one: their own do not exist yet.
        """
        from hubert_pretrain.stages.runner import import_stage

        folder = scratch / stage.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        name = stage.name if stage.verb in WITH_NAMES else self.stages(["pretrain"])[0].name
        recipe = with_training(self.recipe, name, settings)
        before = benchmarking.cpu_seconds()
        import_stage(stage.verb).run(recipe, self.workspace, name, folder)
        spent = benchmarking.cpu_seconds() - before
        benchmarking.seal(folder)  # a task is timed on this network
        return spent

    def step_seconds(self, stage: str) -> float:
        """Processor time of a step: as it was timed, corrected by how long the steps of the last
        training of that kind took.
        """
        timed: dict[str, float] = self.schedule["step_seconds"]
        steps = self.schedule["steps"]
        similar = [
            name
            for name in steps
            if name in self.schedule["seconds"] and training_verb(name) == training_verb(stage)
        ]
        if not similar:
            return timed[stage]
        last = similar[-1]
        took = (self.schedule["seconds"][last] - self.start_seconds(last)) / steps[last]
        return timed[stage] * took / timed[last]

    def start_seconds(self, stage: str) -> float:
        """Processor time of a training beside its steps."""
        return float(self.schedule["start_seconds"][stage])

    def seconds_of_targets(self) -> float:
        """Estimate for the clusterings and labels to come: forward passes over the audio."""
        from hubert_pretrain.data.corpus import Corpus
        from hubert_pretrain.frames import seconds

        lengths = Corpus.open(self.workspace.artefact("prepare").path).manifest.num_samples
        audio = seconds(int(lengths.sum()))
        total = 0.0
        for stage in self.stages(["cluster", "label"]):
            if stage.name in self.schedule["seconds"]:
                continue
            name = stage.name.split("/")[0]
            share = 1.0
            if stage.verb == "cluster":
                share = self.recipe.iterations[name].clustering.fraction
            of_step = self.step_seconds(f"{name}/pretrain")
            per_second = of_step / self.recipe.iterations[name].pretrain.batch_seconds
            total += FORWARD_SHARE * per_second * audio * share
        return total

    # -- scores

    def score(self) -> Row:
        """The scores of all networks and tasks."""
        from hubert_pretrain.tools.learning_scores import score_network

        from hubert_pretrain.data.corpus import Corpus
        from hubert_pretrain.features.hubert_layer import HubertLayer
        from hubert_pretrain.features.layer import ALL
        from hubert_pretrain.stages.extraction import resolved

        recipe = self.planned()
        scoring = self.bench.scoring()
        center = scoring.center_utterances
        corpus = Corpus.open(self.workspace.artefact("prepare").path)
        first = next(iter(recipe.iterations))
        networks = {}
        if not recipe.iterations[first].targets:
            networks[BEFORE] = compose.build(
                resolved(dict(recipe.iterations[first].features), self.workspace)
            )
        for name in recipe.iterations:
            folder = self.workspace.artefact(f"{name}/pretrain").path
            networks[name] = HubertLayer(folder, ALL, center_utterances=center)
        for stage in self.stages(["spin"]):
            folder = self.workspace.artefact(stage.name).path
            networks[stage.name] = HubertLayer(folder, ALL, center_utterances=center)
        scores = {
            name: score_network(corpus, network, scoring, seed=0)
            for name, network in networks.items()
        }
        tasks = {}
        for stage in self.stages(["evaluate"]):
            self.workspace.discard(stage.name)
            run(recipe, self.workspace, stage.name)
            tasks[stage.name.removeprefix("evaluate/")] = self.workspace.artefact(stage.name).facts
        return {
            "networks": scores,
            "tasks": tasks,
            "cpu_seconds": sum(self.schedule["seconds"].values()),
            "seconds": self.schedule["seconds"],
            "steps": self.schedule["steps"],
        }


def prepare(recipe: Recipe, workspace: Workspace, corpora: Path) -> None:
    """The prepared corpus, which runs with the same `data` share."""
    if workspace.is_done("prepare"):
        return
    stage = plan.find(recipe, "prepare")
    name = hashlib.sha256(json.dumps(stage.identity, sort_keys=True).encode()).hexdigest()[:16]
    shared = Workspace(corpora / name)
    if not shared.is_done("prepare"):
        run(recipe, shared, "prepare")
    workspace.root.mkdir(parents=True, exist_ok=True)
    workspace.folder("prepare").symlink_to(shared.folder("prepare"), target_is_directory=True)


def run(recipe: Recipe, workspace: Workspace, name: str) -> float:
    """Run one stage in this process; returns its processor time."""
    from hubert_pretrain.stages.runner import run_stage

    gc.collect()
    before = benchmarking.cpu_seconds()
    run_stage(recipe, workspace, plan.find(recipe, name))
    return benchmarking.cpu_seconds() - before


def training_verb(stage: str) -> str:
    """pretrain, spin or finetune."""
    first = stage.split("/")[0]
    return first if first in WITH_NAMES else "pretrain"


def training(recipe: Recipe, stage: str) -> Training:
    """The settings of a training stage."""
    first, second = stage.split("/")
    if first == "spin":
        return recipe.spin[second]
    if first == "finetune":
        return recipe.finetune[second]
    return recipe.iterations[first].pretrain


def with_training(recipe: Recipe, stage: str, settings: Training) -> Recipe:
    """The recipe with these settings of one training stage."""
    first, second = stage.split("/")
    if isinstance(settings, SpinConfig):
        return dataclasses.replace(recipe, spin={**recipe.spin, second: settings})
    if isinstance(settings, FinetuneConfig):
        return dataclasses.replace(recipe, finetune={**recipe.finetune, second: settings})
    iteration = dataclasses.replace(recipe.iterations[first], pretrain=settings)
    return dataclasses.replace(recipe, iterations={**recipe.iterations, first: iteration})


# -- the table


def write_table(folder: Path, bench: Bench, rows: Sequence[Row]) -> None:
    """learning.json with every run, learning.md with means and intervals over seeds."""
    content = {
        "bench": "learning",
        "machine": benchmarking.machine(),
        "cpu_seconds": bench.cpu_seconds,
        "score": dataclasses.asdict(bench.scoring()),
        "rows": list(rows),
    }
    write_json(folder / "learning.json", content)
    write_text(folder / "learning.md", "\n".join(table_lines(bench, rows)) + "\n")


def table_lines(bench: Bench, rows: Sequence[Row]) -> Iterator[str]:
    """The table in markdown: a line for each network of each variant, then one for each task."""
    scoring = bench.scoring()
    yield (
        f"{bench.cpu_seconds:g} s of processor time a run, {len(bench.seeds)} seeds, scored on "
        f"split {scoring.split}, K = {scoring.n_clusters}. Mean and half the width of the 95 % "
        "interval over seeds (Student's t); layer: of the first seed."
    )
    yield ""
    yield (
        "| variant | network | layer | PNMI | PER many-to-one | PER one-to-one | F1 | R-value "
        "| ABX within | ABX across | speaker | CPU s | steps |"
    )
    yield "|" + "---|" * 13
    for name in bench.variants:
        done = [row for row in rows if row["variant"] == name and "error" not in row]
        steps = done[0]["steps"] if done else {}
        for network in done[0]["networks"] if done else ():
            scores = [row["networks"][network] for row in done]
            many = [each["many_to_one"] for each in scores]
            cells = [
                mean_of([each["pnmi"] for each in scores]),
                mean_of([each["phone_error_rate"] for each in many]),
                mean_of([each["one_to_one"]["phone_error_rate"] for each in scores]),
                mean_of([each["f1"] for each in many]),
                mean_of([each["r_value"] for each in many]),
                mean_of([each["abx_within"] for each in scores]),
                mean_of([each["abx_across"] for each in scores]),
                mean_of([each["speaker_nmi"] for each in scores]),
                mean_of([row["cpu_seconds"] for row in done], digits=0),
                str(steps.get(f"{network}/pretrain", steps.get(network, ""))),
            ]
            yield f"| {name} | {network} | {scores[0]['layer'] or ''} | {' | '.join(cells)} |"
    yield from task_lines(bench, rows)
    yield from difference_lines(bench, rows)
    yield from error_lines(rows)


def task_lines(bench: Bench, rows: Sequence[Row]) -> Iterator[str]:
    """Scores of tasks, with the mean of the bootstrap intervals of the seeds."""
    done = [row for row in rows if row.get("tasks")]
    if not done:
        return
    yield ""
    yield "| variant | task | score | mean over seeds | bootstrap interval, mean of its ends |"
    yield "|---|---|---|---|---|"
    for name in bench.variants:
        mine = [row for row in done if row["variant"] == name]
        for task in mine[0]["tasks"] if mine else ():
            facts = [row["tasks"][task] for row in mine]
            for score in facts[0]["intervals"]:
                values = [each[score] for each in facts if score in each]
                ends = [each["intervals"][score] for each in facts if each["intervals"].get(score)]
                if not values or not ends:
                    continue
                low, high = (sum(end[side] for end in ends) / len(ends) for side in (0, 1))
                yield f"| {name} | {task} | {score} | {mean_of(values)} | {low:.3f} to {high:.3f} |"


def difference_lines(bench: Bench, rows: Sequence[Row]) -> Iterator[str]:
    """Changes of each variant against the first one with the same seed."""
    first, *others = bench.variants
    of_first = {row["seed"]: figures(row) for row in rows if row["variant"] == first}
    lines = []
    for name in others:
        mine = [row for row in rows if row["variant"] == name and of_first.get(row["seed"])]
        pairs = [(figures(row), of_first[row["seed"]]) for row in mine if "error" not in row]
        for figure in pairs[0][0] if pairs else ():
            changes = [each[figure] - base[figure] for each, base in pairs if figure in base]
            lines.append(f"| {name} | {figure} | {mean_of(changes)} |")
    if lines:
        yield ""
        yield f"| variant | figure | minus that of {first}, same seed |"
        yield "|---|---|---|"
        yield from lines


def figures(row: Row) -> dict[str, float]:
    """PNMI of the last network, its gain over the features, and the error rates of the tasks."""
    if "error" in row:
        return {}
    networks = row["networks"]
    last = list(networks)[-1]
    found = {f"PNMI of {last}": networks[last]["pnmi"]}
    if BEFORE in networks:
        found[f"PNMI of {last} over {BEFORE}"] = networks[last]["pnmi"] - networks[BEFORE]["pnmi"]
    for task, facts in row["tasks"].items():
        found |= {f"{task} {name}": facts[name] for name in ("wer", "cer") if name in facts}
    return found


def error_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Runs that failed."""
    for row in rows:
        if "error" in row:
            yield ""
            yield f"{row['variant']}, seed {row['seed']}, failed: {row['error']}"


def mean_of(values: Sequence[float | None], *, digits: int = 3) -> str:
    """Mean and half the width of its 95 % interval; "" for nothing, one value alone."""
    from scipy import stats

    known = [float(value) for value in values if value is not None]
    if not known:
        return ""
    mean = sum(known) / len(known)
    if len(known) == 1:
        return f"{mean:.{digits}f}"
    deviation = (sum((value - mean) ** 2 for value in known) / (len(known) - 1)) ** 0.5
    half = float(stats.t.ppf(0.975, len(known) - 1)) * deviation / len(known) ** 0.5
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
