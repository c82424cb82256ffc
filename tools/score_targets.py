"""Measure the quality of targets.

    hubert-pretrain score-targets runs/demo/it1/label --corpus runs/demo/prepare

Prints the measures that a label stage records, as JSON: PNMI and purities against phones, purity
and information against speakers, entropy, cluster use, run lengths, ABX. Measures against phones
need alignments. Where each utterance is one word (spoken digits, commands), ABX compares words.
docs/glossary.md explains the measures.

--against OTHER adds the agreement with other targets of the same corpus, as adjusted mutual
information, codebook by codebook.

--codebook DIR adds the inertia of a cluster stage's codebook, such as runs/demo/it1/cluster, beside
that of scikit-learn's MiniBatchKMeans (the paper's settings) fitted on an hour of `train`, or on
--hours. With K=500 clusters of a layer scikit-learn takes an hour for that; --hours 0.05 gives a
first answer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.tools.command import command_parser, run_command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hubert_pretrain.clustering.codebook import Codebook
    from hubert_pretrain.data.corpus import Corpus

PROJECT_FRAMES = 1 << 14
"""Frames whose projection by a codebook's transform is computed at once."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("store", help="folder of a label stage, or of imported targets")
    parser.add_argument(
        "--corpus",
        required=True,
        help="the prepared corpus of the targets, such as runs/demo/prepare",
    )
    parser.add_argument(
        "--against",
        metavar="STORE",
        help="other targets of the same corpus, such as those of the iteration before",
    )
    parser.add_argument(
        "--codebook",
        metavar="DIR",
        help="folder of a cluster stage with one codebook: its inertia against scikit-learn's",
    )
    parser.add_argument(
        "--hours", type=float, default=1.0, help="of audio for --codebook (default: 1)"
    )
    parser.add_argument(
        "--picture", metavar="PNG", help="draw P(phone | unit), use of units and run lengths"
    )
    return run_command(print_scores, parser.parse_args(arguments))


def print_scores(options: argparse.Namespace) -> None:
    """Measure the targets, and print JSON."""
    from hubert_pretrain.data.corpus import Corpus
    from hubert_pretrain.targets.plots import plot_targets
    from hubert_pretrain.targets.quality import measure_targets, stability
    from hubert_pretrain.targets.store import TargetStore

    corpus = Corpus.open(options.corpus)
    store = TargetStore.open(options.store)
    store.check(corpus.manifest)
    facts = measure_targets(store, corpus)
    if options.against:
        facts["adjusted_mutual_information"] = stability(store, TargetStore.open(options.against))
    if options.codebook:
        facts["against_scikit_learn"] = compare_inertia(options.codebook, corpus, options.hours)
    if options.picture:
        plot_targets(store, corpus, Path(options.picture))
    print(json.dumps(facts, indent=2))


def compare_inertia(folder: str, corpus: Corpus, hours: float) -> dict[str, float]:
    """Inertia of a codebook and of scikit-learn's k-means on the same frames."""
    from hubert_pretrain.clustering import sample
    from hubert_pretrain.stages.units import load_units

    units = load_units(folder)
    if not units.codebooks.is_plain:
        raise ArtefactError(
            f"{folder}: holds {units.codebooks.num_codebooks} codebooks; "
            "--codebook compares one over all columns"
        )
    rows = sample.choose_rows(
        corpus.manifest.num_samples,
        corpus.manifest.split_range("train"),
        fraction=1.0,
        max_hours=hours,
        seed=0,
    )
    with tempfile.TemporaryDirectory() as scratch:
        frames = sample.gather(corpus, rows, units.extractor, scratch=Path(scratch))
    return against_scikit_learn(units.codebooks.parts[0].codebook, frames)


def against_scikit_learn(
    codebook: Codebook, frames: NDArray[np.float32], *, restarts: int = 20, seed: int = 0
) -> dict[str, float]:
    """Inertia per frame of a codebook on frames (N, D), beside that of MiniBatchKMeans with the
    paper's settings (section 3.2), fitted on the same frames.

    `inertia_ratio` <= 1 means that the codebook is no worse, although the other was fitted on these
    very frames. Both are measured in the space of the codebook's centroids. Raises ConfigError when
    there are fewer frames than clusters.
    """
    import torch

    from hubert_pretrain.clustering.engines.statistics import measure_fit
    from hubert_pretrain.clustering.frame_source import RankFrames
    from hubert_pretrain.clustering.kmeans import KMeans

    blocks = torch.from_numpy(frames).split(PROJECT_FRAMES)
    projected = torch.cat([codebook.project(block) for block in blocks]).contiguous().numpy()
    reference = KMeans("minibatch", codebook.n_clusters, restarts=restarts, seed=seed)
    theirs = reference.fit(projected).inertia_
    ours = measure_fit(RankFrames.whole(projected), codebook.centroids).inertia
    return {
        "frames": len(frames),
        "inertia": ours / len(frames),
        "inertia_of_scikit_learn": theirs / len(frames),
        "inertia_ratio": ours / theirs,
    }


if __name__ == "__main__":
    sys.exit(main())
