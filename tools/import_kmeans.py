"""A k-means of fairseq (joblib) -> a codebook: python tools/import_kmeans.py km_100.bin
codebooks/km_100 --trust-pickle --features mfcc

For a layer of a checkpoint: --features runs/demo/it1/pretrain --layer 6. The folder that is written
works wherever a codebook is read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hubert_pretrain.errors import HubertPretrainError


def main(arguments: list[str] | None = None) -> int:
    """Prints what was read. The exit code is not 0 when nothing was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "file",
        type=Path,
        help="what joblib.dump or pickle.dump made of a fitted KMeans or MiniBatchKMeans",
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
        help="read it although it is a program, in a process that can do nothing",
    )
    options = parser.parse_args(arguments)
    if options.features != "mfcc" and options.layer is None:
        parser.error("--features CHECKPOINT needs --layer")

    from hubert_pretrain.clustering.fairseq_kmeans import import_kmeans
    from hubert_pretrain.features.hubert_layer import HubertLayer
    from hubert_pretrain.features.mfcc import Mfcc

    try:
        extractor = (
            Mfcc() if options.features == "mfcc" else HubertLayer(options.features, options.layer)
        )
        codebooks = import_kmeans(options.file, extractor, trust_pickle=options.trust_pickle)
        codebooks.save(options.out)
    except HubertPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.out}: K={codebooks.sizes[0]}, {codebooks.dim} dimensions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
