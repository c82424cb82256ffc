"""Plot of a codebook's targets: P(phone | unit), use of the units, run lengths.

Letters: K clusters, P phones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.clustering.quality import entropy, perplexity
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.targets.quality import (
    count_ids,
    count_phones,
    mean_phone_ms,
    train_run_lengths,
)
from hubert_pretrain.targets.store import TargetStore

LONGEST_RUN_MS = 400.0


def plot_targets(store: TargetStore, corpus: Corpus, path: Path, codebook: int = 0) -> None:
    """Writes a PNG of one codebook's targets."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # High enough for the name of every phone.
    num_phones = 0 if corpus.alignments is None else len(corpus.alignments.phones)
    figure = Figure(figsize=(12, max(7.0, 0.13 * num_phones)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=[1.7, 1])

    _plot_phones(figure.add_subplot(grid[:, 0]), figure, store, corpus, codebook)
    id_counts = count_ids(store, corpus.manifest.rows("train"), codebook)
    _plot_use(figure.add_subplot(grid[0, 1]), id_counts)
    frame_ms = 1000 / store.grid.frames_per_second
    lengths = train_run_lengths(store, corpus, codebook)
    run_ms = lengths * 1000 / store.grid.frames_per_second
    _plot_runs(figure.add_subplot(grid[1, 1]), run_ms, frame_ms, mean_phone_ms(corpus))

    which = f", codebook {codebook + 1} of {len(store.sizes)}" if len(store.sizes) > 1 else ""
    kind = store.codebook["features"].get("kind", "targets")
    figure.suptitle(f"{kind}, K={store.sizes[codebook]}{which}")
    figure.savefig(path, dpi=110)


def phone_given_unit(joint: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """P(phone | unit) as (P, used units) from joint counts (K, P), and the order of the phones.

    Phones are sorted by frequency, units by their most likely phone.
    """
    phones = np.argsort(-joint.sum(axis=0), kind="stable")
    used = joint[joint.sum(axis=1) > 0][:, phones]
    shares = used / used.sum(axis=1, keepdims=True)
    units = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1)))
    return shares[units].T, phones


def _plot_phones(axes: Any, figure: Any, store: TargetStore, corpus: Corpus, codebook: int) -> None:
    axes.set_xlabel("units, sorted by their phone")
    joint = count_phones(store, corpus, codebook)
    if corpus.alignments is None or not joint.any():
        axes.text(
            0.5, 0.5, "no phone alignments", ha="center", va="center", transform=axes.transAxes
        )
        return
    shares, phones = phone_given_unit(joint)
    image = axes.imshow(
        shares, aspect="auto", interpolation="nearest", cmap="magma", vmin=0, vmax=1
    )
    axes.set_yticks(
        range(len(phones)),
        [corpus.alignments.phones[phone] for phone in phones],
        fontsize=max(6, min(9, 450 / len(phones))),
    )
    axes.set_title("P(phone | unit)", fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)


def _plot_use(axes: Any, counts: NDArray[np.int64]) -> None:
    """Frequency of each unit, from counts (K,)."""
    share = 100 * np.sort(counts)[::-1] / max(1, counts.sum())
    axes.fill_between(range(len(share)), share, step="mid", color="tab:blue", alpha=0.7)
    axes.axhline(100 / len(share), color="black", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="units, most frequent first",
        ylabel="% of train",
        xlim=(0, max(1, len(share) - 1)),
        ylim=(0, None),
    )
    used = int((counts > 0).sum())
    axes.set_title(
        f"use: {used} of {len(counts)}, perplexity {perplexity(counts):.0f}, "
        f"entropy {entropy(counts):.2f} nats",
        fontsize=10,
    )


def _plot_runs(
    axes: Any, run_ms: NDArray[np.float64], frame_ms: float, phone_ms: float | None
) -> None:
    """Histogram of the durations of runs (runs,), with the mean durations of runs and phones."""
    edges = np.arange(0.5, LONGEST_RUN_MS / frame_ms + 1) * frame_ms
    axes.hist(np.minimum(run_ms, LONGEST_RUN_MS), bins=edges, color="tab:orange", alpha=0.7)
    if len(run_ms):
        axes.axvline(run_ms.mean(), color="tab:red", label=f"mean run {run_ms.mean():.0f} ms")
    if phone_ms is not None:
        axes.axvline(phone_ms, color="black", linestyle="--", label=f"mean phone {phone_ms:.0f} ms")
    axes.set(xlabel="length of a run (ms)", ylabel="runs", yscale="log")
    axes.set_title("runs of equal units", fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
