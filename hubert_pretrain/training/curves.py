"""Training curves as `curves.png`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_finetuning(metrics: Sequence[dict[str, float]], path: Path, *, title: str) -> None:
    """Writes a PNG: the loss of training and validation at the left, every score of the validation
    at the right.

    ``metrics`` are rows of `training.loggers.read_metrics`: train values under their names, those
    of the valid split under `valid/`.
    """
    # The object interface, without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores = figure.subplots(1, 2)
    losses.plot(*_finetuning_points(metrics, "loss"), label="train, with masks and dropout")
    losses.plot(*_finetuning_points(metrics, "valid/loss"), marker="o", label="valid")
    losses.set(title=f"{title}: loss", xlabel="step", ylabel="nats per utterance", yscale="log")
    names = sorted(
        {name for row in metrics for name in row if name.startswith("valid/")} - {"valid/loss"}
    )
    for name in names:
        scores.plot(
            *_finetuning_points(metrics, name), marker="o", label=name.removeprefix("valid/")
        )
    scores.set(title=f"{title}: valid split", xlabel="step", ylim=(0, None))
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=120, format="png")


def _finetuning_points(
    metrics: Sequence[dict[str, float]], name: str
) -> tuple[list[float], list[float]]:
    found = [(row["step"], row[name]) for row in metrics if name in row]
    return [step for step, _ in found], [value for _, value in found]


PUBLISHED = {
    "it1": {
        "label": "a public 6-GPU run, K=100",
        250_000: (3.33, 0.365, 0.049),
        400_000: (3.14, 0.390, 0.089),
    },
    "it2": {
        "label": "a public 8-GPU run, K=500",
        250_000: (3.71, 0.383, 0.635),
        400_000: (3.42, 0.417, 0.662),
    },
}
"""Of healthy runs of fairseq's code on LibriSpeech 960 h: step -> loss in bits and accuracy on
hidden frames, accuracy on visible ones.
"""
_HEALTH = (
    (
        "perplexity",
        (
            ("health/perplexity/targets", "targets"),
            ("health/perplexity/predictions", "predictions"),
        ),
        "clusters",
    ),
    (
        "norms",
        (
            ("gradient_norm", "gradient"),
            ("health/update_norm", "update"),
            ("health/embedding_norm/mean", "unit embeddings"),
        ),
        "log",
    ),
    (
        "hardware",
        (
            ("health/mfu", "share of the peak (MFU)"),
            ("health/data_wait", "share spent waiting for data"),
        ),
        "share",
    ),
)


def plot_pretraining(
    metrics: Sequence[dict[str, float]],
    path: Path,
    *,
    title: str,
    unigram_entropy_nats: float | None = None,
    published: str | None = None,
) -> None:
    """Writes a PNG: loss and accuracy on hidden and visible frames, scales of the layers;
    perplexity, norms, use of the hardware.

    Args:
        metrics: rows of `training.loggers.read_metrics`: train values under their names, those of
        the valid split under `valid/`. path: the PNG. unigram_entropy_nats: the loss of a model
        that knows nothing but how frequent each cluster is: the line to get below. published: a key
        of PUBLISHED, to be drawn beside; another: none.
    """
    # The object interface, without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    (losses, accuracies, scales), below = figure.subplots(2, 3)
    for kind, colour in (("masked", "tab:blue"), ("unmasked", "tab:orange")):
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
    if published in PUBLISHED:
        _published(
            losses,
            accuracies,
            published,
            last_step=max((row["step"] for row in metrics), default=0),
        )
    losses.set(title=f"{title}: loss", ylabel="nats per frame")
    accuracies.set(title=f"{title}: accuracy", ylabel="share of frames", ylim=(0, None))
    _scales(scales, metrics)
    for axes, (name, lines, unit) in zip(below, _HEALTH, strict=True):
        for value, label in lines:
            _line(axes, metrics, value, label=label)
        axes.set(title=name, ylabel="" if unit == "log" else unit)
        if unit == "log":
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, None)
        _legend(axes)
    for axes in (losses, accuracies, scales, *below):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    for axes in (
        losses,
        accuracies,
    ):  # outside: the entropy and the published lines may lie anywhere
        axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    figure.savefig(path, dpi=110, format="png")


def _published(losses: Any, accuracies: Any, name: str, *, last_step: float) -> None:
    """At their own steps where ours come near, else where they ended, as lines across."""
    run = {step: values for step, values in PUBLISHED[name].items() if isinstance(step, int)}
    label = PUBLISHED[name]["label"]
    end = max(run)
    for axes, index, scale, colour, what in (
        (losses, 0, math.log(2), "tab:blue", "masked"),
        (accuracies, 1, 1.0, "tab:blue", "masked"),
        (accuracies, 2, 1.0, "tab:orange", "unmasked"),
    ):
        points = {step: values[index] * scale for step, values in run.items()}  # type: ignore[index, operator]
        if last_step >= min(run) / 2:
            axes.plot(
                points.keys(),
                points.values(),
                color=colour,
                linestyle=":",
                marker="s",
                label=f"{what}, {label}",
            )
        else:
            axes.axhline(
                points[end],
                color=colour,
                linestyle=":",
                linewidth=1,
                label=f"{what}, {label}, after {end:,} steps",
            )


def _scales(axes: Any, metrics: Sequence[dict[str, float]]) -> None:
    """One line per layer, the first dark, the last bright."""
    from matplotlib import colormaps

    names = sorted(
        {name for row in metrics for name in row if name.startswith("health/layer_scale/")}
    )
    for number, name in enumerate(names):
        label = f"layer {number + 1}" if number in (0, len(names) - 1) else None
        _line(
            axes,
            metrics,
            name,
            color=colormaps["viridis"](number / max(1, len(names) - 1)),
            label=label,
        )
    axes.set(title="size of the layers' outputs", ylabel="root of the mean square", ylim=(0, None))
    _legend(axes)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="x-small")


def _line(axes: Any, metrics: Sequence[dict[str, float]], name: str, **style: Any) -> None:
    points = [(row["step"], row[name]) for row in metrics if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
