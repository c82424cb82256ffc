"""Sort the utterances of a corpus into clusters, to sample these by weights.

    hubert-pretrain cluster-utterances runs/base/prepare clusters.tsv --n-clusters 30
    hubert-pretrain +recipe=base_ls960 iterations.it1.pretrain.corpus_temperature=2 \\
        iterations.it1.pretrain.utterance_clusters=clusters.tsv

K-means over the mean and the spread of the frames of each training utterance: what sounds alike on
the whole (voice, room, channel, language) is together, without labels. The file has a line for each
utterance: its id, a tab, the name of its cluster; c00 has most audio. Clusters from elsewhere (a
language, a source) are used in the same way. The table shows the utterances nearest to each centre,
to listen to.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hubert_pretrain.tools.command import add_device, command_parser, run_command
from hubert_pretrain.tools.feature_options import add_feature_options, feature_node

if TYPE_CHECKING:
    from hubert_pretrain.clustering.utterances import UtteranceClustering
    from hubert_pretrain.data.corpus import Corpus

SHOWN = 3
"""Utterances of each cluster in the table."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("corpus", type=Path, help="a prepared corpus, such as runs/demo/prepare")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--n-clusters", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument(
        "--features",
        default="mfcc",
        help="mfcc, log_mel, or a checkpoint with --layer (default: %(default)s)",
    )
    add_feature_options(parser)
    parser.add_argument("--split", default="train", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of k-means (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="threads (default: one per core)")
    add_device(parser)
    return run_command(write_clusters, parser.parse_args(arguments))


def write_clusters(options: argparse.Namespace) -> None:
    """Cluster the utterances, write the file, print the table."""
    import torch

    from hubert_pretrain.clustering.utterances import cluster_utterances
    from hubert_pretrain.config import compose
    from hubert_pretrain.data.corpus import Corpus
    from hubert_pretrain.distributed import usable_cores
    from hubert_pretrain.files import write_text

    corpus = Corpus.open(options.corpus)
    extractor = compose.build(feature_node(options)).to(options.device)
    torch.set_num_threads(1)
    found = cluster_utterances(
        corpus,
        corpus.manifest.rows(options.split),
        extractor,
        n_clusters=options.n_clusters,
        seed=options.seed,
        device=options.device,
        workers=options.workers or usable_cores(),
    )
    ids = corpus.manifest.take("id", found.rows).to_pylist()
    lines = [f"{each}\t{name}\n" for each, name in zip(ids, found.names, strict=True)]
    write_text(options.out, "".join(lines))
    print(table(corpus, found, ids))


def table(corpus: Corpus, found: UtteranceClustering, ids: list[str]) -> str:
    """Utterances and hours of each cluster, its most frequent speaker, the most central ones."""
    import numpy as np

    from hubert_pretrain.frames import seconds

    names = np.array(found.names)
    speakers = np.array(corpus.manifest.take("speaker", found.rows).to_pylist(), dtype=object)
    lengths = corpus.manifest.num_samples[found.rows]
    lines = [f"{'cluster':<8} {'utterances':>10} {'hours':>8}  most frequent speaker; central ones"]
    for name in sorted(set(found.names)):
        inside = np.flatnonzero(names == name)
        known = [each for each in speakers[inside].tolist() if each]
        often = max(sorted(set(known)), key=known.count, default=None)
        share = f"{often} {known.count(often) / len(inside):.0%}; " if often else ""
        central = inside[np.argsort(found.distances[inside], kind="stable")][:SHOWN]
        hours = seconds(int(lengths[inside].sum())) / 3600
        shown = ", ".join(ids[place] for place in central.tolist())
        lines.append(f"{name:<8} {len(inside):>10} {hours:>8.2f}  {share}{shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
