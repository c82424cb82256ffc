"""A picture of a fine-tuning: loss and scores against the step, from the run's `metrics.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def draw(metrics: Sequence[dict[str, float]], path: Path, *, title: str) -> None:
    """Writes a PNG: the loss of training and validation at the left, every score of the validation at the right.

    ``metrics`` are rows of `training.loggers.read_metrics`: train values under their names, those of the valid split under `valid/`.
    """
    # The object interface, without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores = figure.subplots(1, 2)
    losses.plot(*_points(metrics, "loss"), label="train, with masks and dropout")
    losses.plot(*_points(metrics, "valid/loss"), marker="o", label="valid")
    losses.set(title=f"{title}: loss", xlabel="step", ylabel="nats per utterance", yscale="log")
    names = sorted({name for row in metrics for name in row if name.startswith("valid/")} - {"valid/loss"})
    for name in names:
        scores.plot(*_points(metrics, name), marker="o", label=name.removeprefix("valid/"))
    scores.set(title=f"{title}: valid split", xlabel="step", ylim=(0, None))
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=120, format="png")


def _points(metrics: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    found = [(row["step"], row[name]) for row in metrics if name in row]
    return [step for step, _ in found], [value for _, value in found]
