"""Import a k-means model of another program as a codebook.

    hubert-pretrain import-kmeans km_100.bin codebooks/km_100 --trust-pickle --features mfcc
    hubert-pretrain import-kmeans centroids.npy codebooks/wavlm --features wavlm/ --transformers \\
        --layer 6

Reads fairseq's joblib files, and matrices of centroids (K, D) in .npy, .npz and .pt files.
--features names what the k-means was fitted on: mfcc, log_mel, or a checkpoint (with --layer). The
folder that is written takes the place of a cluster stage: iterations.it1.codebook=FOLDER labels a
corpus with it, and extract-units makes units.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hubert_pretrain.tools.command import command_parser, run_command
from hubert_pretrain.tools.feature_options import add_feature_options, feature_node


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code, not 0 when nothing was written."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "file",
        type=Path,
        help="a fitted KMeans or MiniBatchKMeans of joblib.dump or pickle.dump, or centroids of "
        "np.save, np.savez or torch.save",
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument(
        "--features",
        default="mfcc",
        help="mfcc, log_mel, or the checkpoint whose layer it was fitted on (default: mfcc)",
    )
    add_feature_options(parser)
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read it although a pickle is a program, in a process that has no rights",
    )
    return run_command(convert, parser.parse_args(arguments))


def convert(options: argparse.Namespace) -> None:
    """Write the codebook, and print its size."""
    from hubert_pretrain.clustering.fairseq_kmeans import import_kmeans
    from hubert_pretrain.stages.units import build_features, check_free, save_imported

    check_free(options.out)
    node = feature_node(options)
    codebooks = import_kmeans(options.file, build_features(node), trust_pickle=options.trust_pickle)
    save_imported(codebooks, node, options.out)
    print(f"{options.out}: K={codebooks.sizes[0]}, {codebooks.dim} dimensions")


if __name__ == "__main__":
    sys.exit(main())
