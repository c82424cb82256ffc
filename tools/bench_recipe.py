"""The training step of a recipe, measured in the pretraining stage (`bench_train.py --recipe`).

The stage's own trainer runs (`stages/pretrain.py`: loader, meter, accumulation, callbacks,
precision, fuse and compile as the recipe says) on a corpus that costs seconds to make: a manifest
of as many hours as the recipe's corpus, whose utterances are a few audio files again and again, and
random targets. So the plan has the shapes and groups of the real one, files are decoded as in a
training, and nothing is learned. The disk is left out: the files lie in the page cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import IterationConfig, PretrainConfig, Recipe
from hubert_pretrain.data.audio_files import SUFFIXES
from hubert_pretrain.data.corpus import MANIFEST
from hubert_pretrain.data.manifest import Manifest, Utterance, write_manifest
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.files import read_json
from hubert_pretrain.frames import SAMPLE_RATE, FrameGrid, samples, seconds
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.targets.writer import TargetWriter
from hubert_pretrain.tools import benchmarking

NEVER = 10**9
"""Steps between two events that shall not happen."""
VALID_EVERY = 100
"""One utterance in so many is of the split `valid`, of `MOST_VALID` at most."""
MOST_VALID = 100
BLOCK_ROWS = 4096
"""Utterances of a write of targets."""
CSV = {"csv": {"_target_": "hubert_pretrain.training.loggers.CsvLogger"}}
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A recipe, the corpus that it is trained on, and how long."""

    recipe: str
    overrides: tuple[str, ...] = ()
    iteration: str = ""
    """Name of the iteration; "": the first."""
    windows: int = 2
    """Windows that count, after one that does not: in it a GPU compiles and measures."""
    window_steps: int = 10
    """Steps of a window; the last of them logs."""
    hours: float = 960.0
    """Audio of the manifest."""
    audio: Path | None = None
    """Folder of audio files; None: noise of LibriSpeech's lengths."""

    @property
    def steps(self) -> int:
        """All of them. The one after the last window saves a checkpoint, and does not count."""
        return (self.windows + 1) * self.window_steps + 1


@dataclass(frozen=True)
class RandomTargets:
    """Targets that say nothing."""

    sizes: list[int]
    grid: FrameGrid

    @property
    def features(self) -> dict[str, Any]:
        """Of no features."""
        return {"kind": "random"}

    @property
    def fingerprint(self) -> str:
        """Of the sizes."""
        return hashlib.sha256(str(self.sizes).encode()).hexdigest()


def measure(what: Measurement) -> Row:
    """Figures of the training step: medians of the windows that count."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe, iteration = compose_recipe(what, folder)
        workspace = Workspace(recipe.work_dir)
        manifest = make_corpus(workspace.folder("prepare"), what, folder / "audio")
        sizes = cluster_numbers(recipe.iterations[iteration])
        make_targets(workspace.folder(f"{iteration}/label"), manifest, sizes, recipe.model.grid)
        hours = seconds(int(manifest.num_samples.sum())) / 3600
        return run_stage(recipe, workspace, iteration, what) | {"hours": hours}


def compose_recipe(what: Measurement, folder: Path) -> tuple[Recipe, str]:
    """The recipe with as many steps as are measured, and the name of the iteration.

    Raises ConfigError for an iteration that the recipe does not have.
    """
    recipe = compose.recipe_of(
        [
            f"+recipe={what.recipe}",
            f"work_dir={folder / 'run'}",
            "data=folder",
            f"data.root={folder / 'audio'}",
            *what.overrides,
        ]
    )
    iteration = what.iteration or next(iter(recipe.iterations), "")
    if iteration not in recipe.iterations:
        known = ", ".join(recipe.iterations) or "none"
        raise ConfigError(f"--iteration {iteration}: {what.recipe} has {known}")
    if recipe.trainer.devices * recipe.trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.devices={recipe.trainer.devices}, trainer.num_nodes="
            f"{recipe.trainer.num_nodes}: the step of one device is measured; set both to 1"
        )
    changed = dataclasses.replace(
        recipe.iterations[iteration],
        pretrain=short_training(recipe.iterations[iteration].pretrain, what),
    )
    iterations = {**recipe.iterations, iteration: changed}
    return dataclasses.replace(recipe, iterations=iterations, logger=CSV), iteration


def short_training(config: PretrainConfig, what: Measurement) -> PretrainConfig:
    """The training that is measured: new weights, no validation, no checkpoint and no probe before
    its end.
    """
    return dataclasses.replace(
        config,
        steps=what.steps,
        log_every_steps=what.window_steps,
        valid_every_steps=NEVER,
        checkpoint_every_steps=NEVER,
        start_from=None,
        keep_best="",
        probe=dataclasses.replace(config.probe, every_steps=0),
    )


def make_corpus(folder: Path, what: Measurement, scratch: Path) -> Manifest:
    """A finished stage `prepare` of so many hours.

    Raises ConfigError when a folder has no audio.
    """
    if what.audio is None:
        minutes = min(10.0, 60 * what.hours)
        files = benchmarking.noise_files(samples(60 * minutes), scratch)
    else:
        files = sorted(path for path in what.audio.rglob("*") if path.suffix in SUFFIXES)
    lengths = [
        (path.absolute(), info.frames)
        for path in files
        if (info := soundfile.info(path)).samplerate == SAMPLE_RATE and info.channels == 1
    ]
    if not lengths:
        raise ConfigError(
            f"--audio {what.audio}: expected audio files with one channel at {SAMPLE_RATE} Hz, "
            f"found {len(files)} audio files, none of that form"
        )
    folder.mkdir(parents=True)
    manifest = write_manifest(folder / MANIFEST, utterances(lengths, what.hours))
    benchmarking.seal(folder)
    return manifest


def utterances(files: Sequence[tuple[Path, int]], hours: float) -> Iterator[Utterance]:
    """The files again and again, until they have that many hours."""
    left = samples(3600 * hours)
    for number, (path, length) in enumerate(itertools.cycle(files)):
        if left <= 0:
            return
        left -= length
        is_valid = number % VALID_EVERY == 0 and number < VALID_EVERY * MOST_VALID
        yield Utterance(
            id=f"{number:09}",
            path=str(path),
            num_samples=length,
            split="valid" if is_valid else "train",
            mean=0.0,
            variance=1.0,
        )


def cluster_numbers(iteration: IterationConfig) -> list[int]:
    """K of each codebook of an iteration."""
    common = iteration.clustering.n_clusters
    return [int(each.get("n_clusters", common)) for each in iteration.clustering.codebooks] or [
        common
    ]


def make_targets(folder: Path, manifest: Manifest, sizes: list[int], grid: FrameGrid) -> None:
    """A finished stage `label`: random targets, every utterance a part of one long draw."""
    folder.mkdir(parents=True)
    writer = TargetWriter.create(
        folder, manifest, RandomTargets(sizes, grid), block_rows=BLOCK_ROWS
    )
    longest = int(grid.num_frames(int(manifest.num_samples.max())))
    draw = np.random.default_rng(0).integers(sizes, size=(longest, len(sizes)))
    pool = draw[:, 0] if len(sizes) == 1 else draw
    for block in writer.pending():
        frames = grid.num_frames(manifest.num_samples[writer.rows(int(block))])
        writer.write(int(block), [pool[:count] for count in frames])
    benchmarking.seal(folder)


def run_stage(recipe: Recipe, workspace: Workspace, iteration: str, what: Measurement) -> Row:
    """The stage as the pipeline calls it, and its log."""
    import torch

    from hubert_pretrain.model.precision import set_matmul_precision
    from hubert_pretrain.preflight.training_cost import parameters
    from hubert_pretrain.stages.runner import import_stage
    from hubert_pretrain.training.loggers import read_metrics
    from hubert_pretrain.training.profile import FIGURES
    from hubert_pretrain.training.trainer import on_gpu, resolve_precision
    from hubert_pretrain.training.utilisation import peak_flops

    set_matmul_precision(tf32=recipe.trainer.tf32)
    config = recipe.iterations[iteration].pretrain
    folder = workspace.root / "bench"
    stage = import_stage("pretrain")
    facts = stage.run(recipe, workspace, f"{iteration}/pretrain", folder)
    rows = read_metrics(folder / "logs" / "metrics.csv")
    first, *measured = [row for row in rows if row["step"] < what.steps]
    rates = [row["audio_seconds_per_second"] for row in measured]
    device = torch.device("cuda" if on_gpu(recipe.trainer.accelerator) else "cpu")
    precision = resolve_precision(recipe.trainer.precision, recipe.trainer.accelerator)
    peak = peak_flops(device, precision)
    mfu = statistics.median(row["health/mfu"] for row in measured)
    product = benchmarking.matmul_flops(device)
    first_step, last_step = recipe.trainer.profile or (1, 0)
    profiled = {"audio_seconds": config.batch_seconds * (last_step - first_step + 1)}
    return {
        "recipe": recipe.name,
        "iteration": iteration,
        "device": device.type,
        "parameters": parameters(recipe.model),
        "audio_seconds_per_second": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "warm_up": first["audio_seconds_per_second"],
        "mfu": mfu,
        "peak_tflops": peak / 1e12,
        "product_tflops": product / 1e12,
        "mfu_of_product": mfu * peak / product,
        "data_wait": statistics.median(row["health/data_wait"] for row in measured),
        "memory_gb": max(row["health/memory_gb"] for row in measured),
        "compile_seconds": measured[-1].get("compile_seconds", 0.0),
        "compiled_while_measured": measured[-1].get("compile_seconds", 0.0)
        - first.get("compile_seconds", 0.0),
        "loss": measured[-1]["loss/masked"],
        "fuse": facts["fuse"],
        "precision": precision,
        "compile": recipe.trainer.compile,
        "head": config.loss.head,
        "steps": what.windows * what.window_steps,
        "batch_seconds": config.batch_seconds,
        "micro_batch_seconds": config.micro_batch_seconds,
        "max_shapes": config.max_shapes,
        "profile": (read_json(folder / "logs" / FIGURES) or {}) | profiled,
    }
