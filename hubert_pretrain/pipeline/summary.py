"""`summary.json`: the results of a run so far, and the tables printed from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.files import age_in_seconds, human_bytes, size_in_bytes, write_json
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import Workspace

ITERATION_FACTS = {
    "cluster": ["n_clusters", "inertia"],
    "label": ["n_clusters", "pnmi", "phone_purity", "cluster_purity", "unigram_entropy_nats"],
    "pretrain": ["masked_loss_nats", "masked_accuracy", "unmasked_accuracy"],
}
"""Facts of an iteration's stages in the summary, by verb."""


def write(recipe: Recipe, workspace: Workspace) -> dict[str, Any]:
    """Write `summary.json` from the facts of every finished stage. Unknown values are null."""
    collected = collect(recipe, workspace)
    write_json(workspace.summary_path, collected)
    return collected


def collect(recipe: Recipe, workspace: Workspace) -> dict[str, Any]:
    """The content of `summary.json`."""
    stages = plan.stages(recipe)
    facts = {stage.name: _facts(workspace, stage.name) for stage in stages}
    export = facts.get("export", {})
    return {
        "recipe": recipe.name,
        "work_dir": str(workspace.root),
        "stages": [
            {
                "name": stage.name,
                "state": plan.state(stage, workspace),
                "seconds": _seconds(workspace, stage.name),
            }
            for stage in stages
        ],
        "data": facts.get("prepare") or None,
        "iterations": {name: _iteration_facts(facts, name) for name in recipe.iterations},
        "spin": {name: facts[f"spin/{name}"] or None for name in recipe.spin},
        "finetune": {name: facts[f"finetune/{name}"] or None for name in recipe.finetune},
        "evaluate": {
            stage.name.partition("/")[2]: facts[stage.name] or None
            for stage in stages
            if stage.verb == "evaluate"
        },
        "export": {
            "path": export.get("path"),
            "folders": export.get("folders"),
            "max_difference": export.get("max_difference"),
        },
    }


def _iteration_facts(facts: dict[str, dict[str, Any]], iteration: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for verb, keys in ITERATION_FACTS.items():
        of_stage = facts.get(f"{iteration}/{verb}", {})
        found |= {key: of_stage.get(key, found.get(key)) for key in keys}
    return found


def _facts(workspace: Workspace, stage: str) -> dict[str, Any]:
    return workspace.artefact(stage).facts if workspace.is_done(stage) else {}


def _seconds(workspace: Workspace, stage: str) -> float | None:
    return float(workspace.artefact(stage).meta["seconds"]) if workspace.is_done(stage) else None


# -- tables


def print_stages(recipe: Recipe, workspace: Workspace, jobs: Mapping[str, str]) -> None:
    """Table for `stage=list`: stage, state, artefact, size, age, and the SLURM job of each stage in
    `jobs`.
    """
    from rich.table import Table

    table = Table(title=f"{recipe.name} in {workspace.root}")
    columns = ["stage", "state", "artefact", "size", "age"]
    if jobs:
        columns.append("job")
    for column in columns:
        table.add_column(column, overflow="fold")
    for stage in plan.stages(recipe):
        state = plan.state(stage, workspace)
        folder = workspace.folder(stage.name)
        if not workspace.is_done(stage.name):
            folder = workspace.partial_folder(stage.name)
        cells = [stage.name, state, "", "", ""]
        if folder.is_dir():
            cells[2] = str(folder.relative_to(workspace.root))
            cells[3] = human_bytes(size_in_bytes(folder))
            cells[4] = human_age(age_in_seconds(folder))
        if jobs:
            cells.append(jobs.get(stage.name, ""))
        table.add_row(*cells)
    _print(table)


def print_results(summary: dict[str, Any]) -> None:
    """The loop at a glance: one row per iteration, one line per task."""
    from rich.table import Table

    table = Table(title=f"HuBERT loop: {summary['recipe']}")
    columns = [
        "iteration",
        "K",
        "PNMI",
        "phone purity",
        "cluster purity",
        "entropy (nats)",
        "masked loss",
        "under entropy",
        "masked acc.",
    ]
    for column in columns:
        table.add_column(column, justify="right")
    for name, facts in summary["iterations"].items():
        cells = [
            _number(facts["n_clusters"]),
            _number(facts["pnmi"]),
            _number(facts["phone_purity"]),
            _number(facts["cluster_purity"]),
            _number(facts["unigram_entropy_nats"]),
            _number(facts["masked_loss_nats"]),
            _under_entropy(facts),
            _number(facts["masked_accuracy"]),
        ]
        table.add_row(name, *cells)
    _print(table)
    for name, facts in summary["spin"].items():
        print(f"spin/{name}: {_agreement(facts) if facts else '-'}")
    for name, facts in summary["evaluate"].items():
        print(scores_line(f"evaluate/{name}", facts or {}))
        for message in (facts or {}).get("warnings", []):
            print(f"  warning: {message}")
    if summary["export"]["path"]:
        print(f"exported: {summary['export']['path']}")
    seconds = sum(stage["seconds"] or 0 for stage in summary["stages"])
    done = sum(stage["state"] == plan.DONE for stage in summary["stages"])
    print(f"{done} stages done, {seconds / 60:.1f} minutes of work")


def scores_line(stage: str, facts: dict[str, Any]) -> str:
    """Scores of an evaluation with their intervals, beside a search also those of greedy."""
    intervals = facts.get("intervals", {})
    shown = [_with_interval(key, facts[key], intervals[key]) for key in intervals if key in facts]
    greedy = [key for key in facts if key.startswith("greedy_")]
    shown += [f"{key.replace('_', ' ')} {_number(facts[key])}" for key in greedy]
    return f"{stage}: {', '.join(shown) or '-'}"


def _agreement(facts: dict[str, Any]) -> str:
    return (
        f"{facts['agreement']:.1%} of the frames have the same codeword in another voice, "
        f"{facts['perplexity']:.0f} of {facts['n_codewords']} codewords in use"
    )


def _with_interval(name: str, value: float, interval: list[float]) -> str:
    """`wer 0.664 [0.621, 0.706]`."""
    low, high = interval
    return f"{name} {_number(value)} [{_number(low)}, {_number(high)}]"


def _under_entropy(facts: dict[str, Any]) -> str:
    """Share by which the masked loss is below the unigram entropy of the targets: what the network
    knows beyond the frequencies of the clusters."""
    loss = facts["masked_loss_nats"]
    entropy = facts["unigram_entropy_nats"]
    return "-" if loss is None or not entropy else f"{1 - loss / entropy:.1%}"


def _print(table: Any) -> None:
    """Print a table; at its full width where the output is a file or a pipe."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def human_age(age_seconds: float) -> str:
    """`3 h ago`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if age_seconds >= length:
            return f"{age_seconds / length:.0f} {unit} ago"
    return f"{age_seconds:.0f} s ago"
