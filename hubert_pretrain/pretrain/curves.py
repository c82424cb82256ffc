"""A picture of a pretraining: loss against the unigram entropy, accuracies, from the run's `metrics.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw(metrics: Sequence[dict[str, float]], path: Path, *, title: str, unigram_entropy_nats: float | None = None) -> None:
    """Writes a PNG with the loss and the accuracy on hidden and visible frames against the step.

    Args:
        metrics: rows of `training.loggers.read_metrics`: train values under their names, those of the valid split under `valid/`.
        path: the PNG.
        unigram_entropy_nats: the loss of a model that knows nothing but how frequent each cluster is: the line to get below.
    """
    # The object interface, without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    losses, accuracies = figure.subplots(1, 2)
    for kind, colour in (("masked", "tab:blue"), ("unmasked", "tab:orange")):
        for axes, name in ((losses, f"loss/{kind}"), (accuracies, f"accuracy/{kind}")):
            _line(axes, metrics, name, color=colour, label=f"{kind} frames, train")
            _line(axes, metrics, f"valid/{name}", color=colour, linestyle="none", marker="o", label=f"{kind} frames, valid")
    if unigram_entropy_nats is not None:
        losses.axhline(unigram_entropy_nats, color="black", linestyle="--", linewidth=1, label="unigram entropy of the targets")
    losses.set(title=f"{title}: loss", xlabel="step", ylabel="nats per frame")
    accuracies.set(title=f"{title}: accuracy", xlabel="step", ylabel="share of frames", ylim=(0, None))
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
    figure.legend(*losses.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    figure.savefig(path, dpi=120, format="png")


def _line(axes: Any, metrics: Sequence[dict[str, float]], name: str, **style: Any) -> None:
    points = [(row["step"], row[name]) for row in metrics if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
