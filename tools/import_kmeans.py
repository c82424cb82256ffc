"""Import a k-means model of fairseq (a joblib file) as a codebook.

    hubert-pretrain import-kmeans km_100.bin codebooks/km_100 --trust-pickle --features mfcc

For a layer of a checkpoint: --features runs/demo/it1/pretrain --layer 6. The folder that is written
works wherever a codebook is read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hubert_pretrain.tools.command import command_parser, run_command


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code, not 0 when nothing was written."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "file",
        type=Path,
        help="a fitted KMeans or MiniBatchKMeans, written by joblib.dump or pickle.dump",
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument(
        "--features",
        default="mfcc",
        help="mfcc, or the checkpoint whose layer it was fitted on (default: mfcc)",
    )
    parser.add_argument("--layer", type=int, help="of the checkpoint, from 1")
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read it although a pickle is a program, in a process that has no rights",
    )
    options = parser.parse_args(arguments)
    if options.features != "mfcc" and options.layer is None:
        parser.error("--features CHECKPOINT needs --layer")
    return run_command(convert, options)


def convert(options: argparse.Namespace) -> None:
    """Write the codebook, and print its size."""
    from hubert_pretrain.clustering.fairseq_kmeans import import_kmeans
    from hubert_pretrain.features.hubert_layer import HubertLayer
    from hubert_pretrain.features.mfcc import Mfcc

    if options.features == "mfcc":
        extractor = Mfcc()
    else:
        extractor = HubertLayer(options.features, options.layer)
    codebooks = import_kmeans(options.file, extractor, trust_pickle=options.trust_pickle)
    codebooks.save(options.out)
    print(f"{options.out}: K={codebooks.sizes[0]}, {codebooks.dim} dimensions")


if __name__ == "__main__":
    sys.exit(main())
