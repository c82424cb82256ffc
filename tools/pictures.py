"""Draw the pictures of docs/how-hubert-works.md from a finished run of recipe demo.

    python tools/pictures.py runs/demo            # docs/pictures/{frames,units,masking}.svg

Everything shown is computed by the package: audio and phones of one utterance of the held-out
split, its targets in both iterations, a mask of the sampler of training, and what the network of
the first iteration then predicts. The same run gives the same files.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE, seconds
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.model.log_mel import MelEnergies
from hubert_pretrain.model.masking import span_mask
from hubert_pretrain.model.preprocess import prepare_waveform
from hubert_pretrain.targets.store import TargetStore

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
SPLIT = "valid"
UNITS_SECONDS = 1.6
MASKING_SECONDS = 0.9
FRAMES_SHOWN = 4
MEL_BANDS = 80
SHOWN_RANGE = 12.0
"""Of the log-mel energies, from the highest down."""
SEED = 3
INK = "#1c2733"
PALE = "#5b6672"
BLUE = "#4a6fa5"
ORANGE = "#b5763a"
GREEN = "#3f8f5f"
RED = "#c0504d"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "hubert_pretrain",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "xtick.color": PALE,
    "ytick.color": PALE,
}


class Utterance:
    """A held-out utterance of the run, from the first phone that is no silence."""

    def __init__(self, run: Path, num_seconds: float) -> None:
        corpus = Corpus.open(run / "prepare")
        assert corpus.alignments is not None, f"{run}: needs a corpus with phone alignments"
        manifest = corpus.manifest
        self.row = next(row for row in range(len(manifest)) if manifest[row].split == SPLIT)
        phones, starts, ends = corpus.alignments.intervals(self.row)
        names = [corpus.alignments.phones[phone] for phone in phones]
        spoken = next(n for n, name in enumerate(names) if name != "sil")
        self.first = max(0, int(starts[spoken]) // MODEL_GRID.hop - 4)
        self.num_frames = MODEL_GRID.num_frames(int(num_seconds * SAMPLE_RATE))
        self.whole = corpus.read(self.row)
        start = self.first * MODEL_GRID.hop
        self.waveform = self.whole[start : start + MODEL_GRID.num_samples(self.num_frames)]
        self.phones = [
            (name, (int(left) - start) / MODEL_GRID.hop, (int(right) - start) / MODEL_GRID.hop)
            for name, left, right in zip(names, starts, ends, strict=True)
            if right > start and left < start + len(self.waveform)
        ]
        """Name, start and end in frames of the stretch."""

    def targets(self, folder: Path) -> NDArray[np.int64]:
        """Those of the stretch, (T,)."""
        ids = np.asarray(TargetStore.open(folder).targets(self.row), dtype=np.int64)
        return ids[self.first : self.first + self.num_frames]

    def spectrogram(self) -> NDArray[np.float32]:
        """Log-mel energies of the stretch, (bands, T)."""
        energies = MelEnergies(MODEL_GRID, MEL_BANDS).of(torch.from_numpy(self.waveform)[None])
        return np.asarray(energies[0].T.numpy())


def main(arguments: list[str] | None = None) -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run of recipe demo")
    parser.add_argument("--to", type=Path, default=PICTURES)
    options = parser.parse_args(arguments)
    options.to.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        save(frames(Utterance(options.run, UNITS_SECONDS)), options.to / "frames.svg")
        save(units(options.run), options.to / "units.svg")
        save(masking(options.run), options.to / "masking.svg")


def save(figure: Figure, path: Path) -> None:
    """The figure as SVG, with the same bytes at any time."""
    FigureCanvasSVG(figure).print_svg(str(path), metadata={"Date": None})
    lines = [line.rstrip() for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


# -- the pictures


def frames(utterance: Utterance) -> Figure:
    """Frames in the middle of the longest phone, on the waveform."""
    spoken = [phone for phone in utterance.phones if phone[0] != "sil"]
    _, left, right = max(spoken, key=lambda phone: phone[2] - phone[1])
    start = int((left + right) / 2) * MODEL_GRID.hop
    waveform = utterance.waveform[start : start + MODEL_GRID.num_samples(FRAMES_SHOWN)]
    time = np.arange(len(waveform)) / SAMPLE_RATE * 1000
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(time, waveform / np.abs(waveform).max(), color=BLUE, linewidth=0.9)
    for frame in range(FRAMES_SHOWN):
        begin = seconds(frame * MODEL_GRID.hop) * 1000
        height = -1.4 - 0.42 * (frame % 2)
        end = begin + seconds(MODEL_GRID.window) * 1000
        axes.plot([begin, end], [height, height], color=ORANGE, linewidth=5, solid_capstyle="butt")
        axes.text((begin + end) / 2, height - 0.13, f"frame {frame}", ha="center", va="top")
    axes.set(xlabel="milliseconds", ylim=(-2.5, 1.15), yticks=[], xlim=(0, time[-1]))
    axes.set_xticks([seconds(n * MODEL_GRID.hop) * 1000 for n in range(FRAMES_SHOWN + 1)])
    axes.spines[["left", "right", "top"]].set_visible(False)
    return figure


def units(run: Path) -> Figure:
    """Spectrogram and phones of a stretch of speech, with the targets of both iterations."""
    utterance = Utterance(run, UNITS_SECONDS)
    figure, (sound, phones, first, second) = stacked([3.2, 0.5, 0.5, 0.5], 3.9)
    spectrogram(sound, utterance)
    cells(phones, utterance.phones, "phones", ["#eef1f4", "#dfe4ea"])
    for axes, iteration in ((first, "it1"), (second, "it2")):
        ids = utterance.targets(run / iteration / "label")
        strip(axes, ids, f"units, {iteration}")
    in_seconds(second, utterance.num_frames)
    return figure


def masking(run: Path) -> Figure:
    """A mask, the targets of a stretch, and the network's predictions where it is masked."""
    utterance = Utterance(run, MASKING_SECONDS)
    network = load_checkpoint(run / "it1" / "pretrain")
    # Two spans in this stretch, drawn as training draws them.
    generator = np.random.default_rng(SEED)
    spans = SpanMask(probability=0.5, span_frames=10)
    hidden = np.zeros(MODEL_GRID.num_frames(len(utterance.whole)), dtype=bool)
    shown = slice(utterance.first, utterance.first + utterance.num_frames)
    hidden[shown] = span_mask(utterance.num_frames, spans, generator)
    waveform = prepare_waveform(
        utterance.whole, sampling_rate=SAMPLE_RATE, config=network.model.config
    )
    with torch.inference_mode():
        output = network.model.eval()(waveform, mask=torch.from_numpy(hidden)[None])
        scores = network.build_head().eval()(output.last[0])  # (T, K)
    predicted = scores.argmax(-1).numpy()[shown]
    targets = utterance.targets(run / "it1" / "label")

    figure, (sound, phones, hidden_targets, predictions) = stacked([3.2, 0.5, 0.6, 0.6], 4.0)
    spectrogram(sound, utterance)
    mask = hidden[shown]
    for left, right in stretches(mask):
        sound.axvspan(left, right, facecolor="#c9ced6", edgecolor=PALE)
        middle = (left + right) / 2
        sound.text(middle, MEL_BANDS / 2, "masked", ha="center", va="center")
    cells(phones, utterance.phones, "phones", ["#eef1f4", "#dfe4ea"])
    numbers(hidden_targets, targets, mask, "targets", [PALE] * len(targets))
    colours = [GREEN if right else RED for right in predicted == targets]
    numbers(predictions, predicted, mask, "predictions", colours)
    in_seconds(predictions, utterance.num_frames)
    return figure


# -- parts of pictures


def stacked(heights: list[float], height: float) -> tuple[Figure, Sequence[Any]]:
    """A figure with panels above each other that share their time."""
    layout = ConstrainedLayoutEngine(h_pad=0.02, hspace=0)
    figure = Figure(figsize=(9, height), layout=layout)
    panels = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    for axes in panels:
        axes.set(yticks=[])
        axes.tick_params(bottom=False, labelbottom=False)
        axes.spines[:].set_visible(False)
    return figure, panels


def spectrogram(axes: Any, utterance: Utterance) -> None:
    """The log-mel energies."""
    energies = utterance.spectrogram()
    axes.imshow(
        energies,
        vmin=energies.max() - SHOWN_RANGE,
        aspect="auto",
        origin="lower",
        cmap="Blues",
        extent=(0, utterance.num_frames, 0, MEL_BANDS),
        interpolation="nearest",
    )
    axes.set_ylabel("mel bands")


def cells(
    axes: Any, parts: Sequence[tuple[str, float, float]], label: str, colours: Sequence[str]
) -> None:
    """Named stretches of time, side by side."""
    for number, (name, left, right) in enumerate(parts):
        axes.axvspan(left, right, facecolor=colours[number % len(colours)], edgecolor="white")
        axes.text((left + right) / 2, 0.5, name, ha="center", va="center", clip_on=True)
    labelled(axes, label)


def strip(axes: Any, ids: NDArray[np.int64], label: str) -> None:
    """Runs of equal units, each unit in a colour of its own, with its number where it has room."""
    colours = matplotlib.colormaps["tab20"]
    borders = np.flatnonzero(np.diff(ids)) + 1
    for left, right in zip([0, *borders], [*borders, len(ids)], strict=True):
        unit = int(ids[left])
        axes.axvspan(left, right, facecolor=(*colours(unit % 20)[:3], 0.55), edgecolor="white")
        if right - left > 1:
            axes.text((left + right) / 2, 0.5, str(unit), ha="center", va="center", fontsize=9)
    labelled(axes, label)


def numbers(
    axes: Any, ids: NDArray[np.int64], mask: NDArray[np.bool_], label: str, colours: Sequence[str]
) -> None:
    """A number for each masked frame."""
    for frame in np.flatnonzero(mask).tolist():
        axes.text(
            frame + 0.5,
            0.5,
            str(ids[frame]),
            ha="center",
            va="center",
            fontsize=9,
            color=colours[frame],
        )
    labelled(axes, label)


def labelled(axes: Any, label: str) -> None:
    """A panel with its name at the left."""
    axes.set(ylim=(0, 1))
    axes.set_ylabel(label, rotation=0, ha="right", va="center")


def stretches(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Start and end of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def in_seconds(axes: Any, num_frames: int) -> None:
    """The time at the bottom."""
    per_second = SAMPLE_RATE // MODEL_GRID.hop
    ticks = np.arange(0, num_frames + 1, per_second // 5)
    axes.tick_params(bottom=True, labelbottom=True)
    axes.set_xticks(ticks, [f"{tick / per_second:.1f} s" for tick in ticks])
    axes.set_xlim(0, num_frames)


if __name__ == "__main__":
    main()
