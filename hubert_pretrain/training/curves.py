"""Training curves as `curves.png`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

Metrics = Sequence[dict[str, float]]
"""Rows of `training.loggers.read_metrics`: training values under their names, those of the valid
split under `valid/`.
"""
COLOURS = {"masked": "tab:blue", "unmasked": "tab:orange"}


class Point(NamedTuple):
    """Published values at one step."""

    loss_bits: float
    accuracy_masked: float
    accuracy_unmasked: float


@dataclass(frozen=True)
class PublishedRun:
    """A healthy run of fairseq's code on LibriSpeech 960 h."""

    label: str
    points: dict[int, Point]  # by step


PUBLISHED = {
    "it1": PublishedRun(
        "a public 6-GPU run, K=100",
        {250_000: Point(3.33, 0.365, 0.049), 400_000: Point(3.14, 0.390, 0.089)},
    ),
    "it2": PublishedRun(
        "a public 8-GPU run, K=500",
        {250_000: Point(3.71, 0.383, 0.635), 400_000: Point(3.42, 0.417, 0.662)},
    ),
}

_PERPLEXITY = {
    "health/perplexity/targets": "targets",
    "health/perplexity/predictions": "predictions",
}
_NORMS = {
    "gradient_norm": "gradient",
    "health/update_norm": "update",
    "health/embedding_norm/mean": "unit embeddings",
}
_HARDWARE = {
    "health/mfu": "share of the peak (MFU)",
    "health/data_wait": "share spent in the loader",
}


def plot_pretraining(
    metrics: Metrics,
    path: Path,
    *,
    title: str,
    unigram_entropy_nats: float | None = None,
    published: str | None = None,
) -> None:
    """Draw six panels: loss and accuracy on masked and unmasked frames, scales of the layers;
    perplexity, norms, use of the hardware.

    Args:
        metrics: of the run.
        path: of the PNG.
        unigram_entropy_nats: loss of a model that only knows the frequency of each cluster, drawn
            as a line.
        published: key of PUBLISHED, to be drawn beside; any other value: none.
    """
    figure = _new_figure(15, 8.6)
    (losses, accuracies, scales), (perplexity, norms, hardware) = figure.subplots(2, 3)

    for kind, colour in COLOURS.items():
        for axes, name in ((losses, f"loss/{kind}"), (accuracies, f"accuracy/{kind}")):
            _line(axes, metrics, name, color=colour, label=f"{kind} frames, train")
            _line(
                axes,
                metrics,
                f"valid/{name}",
                color=colour,
                linestyle="none",
                marker="o",
                label=f"{kind} frames, valid",
            )
    _line(
        accuracies,
        metrics,
        "health/pnmi",
        color="tab:green",
        marker="o",
        markersize=3,
        label="PNMI of a layer (pretrain.probe)",
    )
    if unigram_entropy_nats is not None:
        losses.axhline(
            unigram_entropy_nats,
            color="black",
            linestyle="--",
            linewidth=1,
            label="unigram entropy of the targets",
        )
    run = PUBLISHED.get(published or "")
    if run is not None:
        last_step = max((row["step"] for row in metrics), default=0)
        _plot_published(losses, accuracies, run, last_step=last_step)
    losses.set(title=f"{title}: loss", ylabel="nats per frame")
    accuracies.set(title=f"{title}: accuracy", ylabel="share of frames", ylim=(0, None))

    _plot_layer_scales(scales, metrics)
    _lines(perplexity, metrics, _PERPLEXITY)
    perplexity.set(title="perplexity", ylabel="clusters", ylim=(0, None))
    _lines(norms, metrics, _NORMS)
    norms.set(title="norms", yscale="log")
    _lines(hardware, metrics, _HARDWARE)
    hardware.set(title="hardware", ylabel="share", ylim=(0, None))

    for axes in (losses, accuracies, scales, perplexity, norms, hardware):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    for axes in (scales, perplexity, norms, hardware):
        _legend(axes)
    # Below the panels: the entropy and the published lines may lie anywhere in them.
    for axes in (losses, accuracies):
        _legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    figure.savefig(path, dpi=110, format="png")


def plot_finetuning(metrics: Metrics, path: Path, *, title: str) -> None:
    """Draw two panels: the loss of training and validation, and every score of the validation.

    Args:
        metrics: of the run.
        path: of the PNG.
    """
    figure = _new_figure(11, 4)
    losses, scores = figure.subplots(1, 2)
    _line(losses, metrics, "loss", label="train, with masks and dropout")
    _line(losses, metrics, "valid/loss", marker="o", label="valid")
    losses.set(title=f"{title}: loss", ylabel="nats per utterance", yscale="log")

    validated = {name for row in metrics for name in row if name.startswith("valid/")}
    for name in sorted(validated - {"valid/loss"}):
        _line(scores, metrics, name, marker="o", label=name.removeprefix("valid/"))
    scores.set(title=f"{title}: valid split", ylim=(0, None))

    for axes in (losses, scores):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        _legend(axes, fontsize="small")
    figure.savefig(path, dpi=120, format="png")


def plot_spin(metrics: Metrics, path: Path, *, title: str, n_codewords: int) -> None:
    """Draw three panels: the loss, the share of frames with the same codeword in another voice, and
    the codewords in use.

    Args:
        metrics: of the run.
        path: of the PNG.
        n_codewords: size of the codebook.
    """
    figure = _new_figure(15, 4)
    panels = figure.subplots(1, 3)
    names = ("loss", "agreement", "perplexity")
    labels = ("nats per frame", "share of frames", "codewords")
    for axes, name, label in zip(panels, names, labels, strict=True):
        _line(axes, metrics, name, label="train")
        _line(axes, metrics, f"valid/{name}", marker="o", label="valid")
        axes.set(title=f"{title}: {name}", ylabel=label, xlabel="step", ylim=(0, None))
        axes.grid(alpha=0.3)
    panels[2].axhline(
        n_codewords, color="black", linestyle="--", linewidth=1, label="all codewords"
    )
    for axes in panels:
        _legend(axes)
    figure.savefig(path, dpi=110, format="png")


def _new_figure(width: float, height: float) -> Any:
    """A figure by matplotlib's object interface, without pyplot: no display, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plot_published(losses: Any, accuracies: Any, run: PublishedRun, *, last_step: float) -> None:
    """Draw the points of a published run, or only its last ones as horizontal lines while our run
    is far from its first step.
    """
    series = (
        (losses, "masked", {step: p.loss_bits * math.log(2) for step, p in run.points.items()}),
        (accuracies, "masked", {step: p.accuracy_masked for step, p in run.points.items()}),
        (accuracies, "unmasked", {step: p.accuracy_unmasked for step, p in run.points.items()}),
    )
    end = max(run.points)
    is_near = last_step >= min(run.points) / 2
    for axes, kind, points in series:
        label = f"{kind}, {run.label}"
        colour = COLOURS[kind]
        if is_near:
            steps = list(points.keys())
            values = list(points.values())
            axes.plot(steps, values, color=colour, linestyle=":", marker="s", label=label)
        else:
            label += f", after {end:,} steps"
            axes.axhline(points[end], color=colour, linestyle=":", linewidth=1, label=label)


def _plot_layer_scales(axes: Any, metrics: Metrics) -> None:
    """One line per layer, the first dark, the last bright."""
    from matplotlib import colormaps

    prefix = "health/layer_scale/"
    names = sorted({name for row in metrics for name in row if name.startswith(prefix)})
    last = len(names) - 1
    for index, name in enumerate(names):
        label = f"layer {index + 1}" if index in (0, last) else None
        colour = colormaps["viridis"](index / max(1, last))
        _line(axes, metrics, name, color=colour, label=label)
    axes.set(title="scale of the layers' outputs", ylabel="root mean square")
    # Post-norm layers all have the scale 1: the automatic limit would lie on their lines.
    axes.set_ylim(0, 1.1 * axes.dataLim.ymax if names else None)


def _lines(axes: Any, metrics: Metrics, labels: dict[str, str]) -> None:
    """One line per metric, with its label."""
    for name, label in labels.items():
        _line(axes, metrics, name, label=label)


def _line(axes: Any, metrics: Metrics, name: str, **style: Any) -> None:
    """The values of a metric over the steps; nothing when there are none."""
    rows = [row for row in metrics if name in row]
    if rows:
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], **style)


def _legend(axes: Any, fontsize: str = "x-small", **place: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=fontsize, **place)
