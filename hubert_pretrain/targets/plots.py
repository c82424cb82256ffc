"""Targets at a glance: which phones each unit stands for, how often units are used, how long their
runs are. K clusters, P phones.
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
    """Writes a picture (PNG) of one codebook's targets."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    phones = 0 if corpus.alignments is None else len(corpus.alignments.phones)
    figure = Figure(
        figsize=(12, max(7.0, 0.13 * phones)), layout="constrained"
    )  # so that every phone can be read
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=[1.7, 1])
    _phones(figure.add_subplot(grid[:, 0]), figure, store, corpus, codebook)
    _use(figure.add_subplot(grid[0, 1]), count_ids(store, corpus.manifest.rows("train"), codebook))
    _runs(
        figure.add_subplot(grid[1, 1]),
        train_run_lengths(store, corpus, codebook) * 1000 / store.grid.frames_per_second,
        corpus,
        store,
    )
    which = f", codebook {codebook + 1} of {len(store.sizes)}" if len(store.sizes) > 1 else ""
    figure.suptitle(
        f"{store.codebook['features'].get('kind', 'targets')}, K={store.sizes[codebook]}{which}"
    )
    figure.savefig(path, dpi=110)


def sorted_shares(joint: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """P(phone | unit) as (P, used units) from counts (K, P), phones by frequency, and units in the
    order of the phone they mostly are.
    """
    phones = np.argsort(-joint.sum(axis=0), kind="stable")
    used = joint[joint.sum(axis=1) > 0][:, phones]
    shares = used / used.sum(axis=1, keepdims=True)
    order = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1)))
    return shares[order].T, phones


def _phones(axes: Any, figure: Any, store: TargetStore, corpus: Corpus, codebook: int) -> None:
    axes.set_xlabel("units, sorted by their phone")
    if corpus.alignments is None or not (joint := count_phones(store, corpus, codebook)).any():
        axes.text(
            0.5, 0.5, "no phone alignments", ha="center", va="center", transform=axes.transAxes
        )
        return
    shares, phones = sorted_shares(joint)
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


def _use(axes: Any, counts: NDArray[np.int64]) -> None:
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
        f"use: {used} of {len(counts)}, perplexity {perplexity(counts):.0f}, entropy {entropy(counts):.2f} nats",
        fontsize=10,
    )


def _runs(axes: Any, lengths_ms: NDArray[np.float64], corpus: Corpus, store: TargetStore) -> None:
    step = 1000 / store.grid.frames_per_second
    edges = np.arange(0.5, LONGEST_RUN_MS / step + 1) * step
    axes.hist(np.minimum(lengths_ms, LONGEST_RUN_MS), bins=edges, color="tab:orange", alpha=0.7)
    if len(lengths_ms):
        axes.axvline(
            lengths_ms.mean(), color="tab:red", label=f"mean run {lengths_ms.mean():.0f} ms"
        )
    if (phone := mean_phone_ms(corpus)) is not None:
        axes.axvline(phone, color="black", linestyle="--", label=f"mean phone {phone:.0f} ms")
    axes.set(xlabel="length of a run (ms)", ylabel="runs", yscale="log")
    axes.set_title("runs of equal units", fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
