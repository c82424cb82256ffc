"""A prepared corpus -> the same corpus in tar shards (WebDataset's form), as a new prepared folder.

    python tools/make_shards.py runs/base_ls960/prepare /fast/ls960 --format pcm --workers 8
    python -m hubert_pretrain.run +recipe=base_ls960 data=webdataset data.root=/fast/ls960/shards

pcm: 16-bit WAV members, 115 MB an hour, cropped without decoding. flac: about half of that. Both
are 16 kHz mono; audio of that form in 16 bits is kept to the bit. Run again after a kill: finished
shards stay, and the result is the same to the byte. `data.shards=pcm` does the same inside
`stage=prepare`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.shards.index import verify
from hubert_pretrain.data.shards.writer import FORMATS, SHARDS, convert
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.frames import seconds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="folder of a finished `prepare`")
    parser.add_argument(
        "out", type=Path, help="folder for shards/, manifest.arrow, alignments.arrow and card.json"
    )
    parser.add_argument("--format", choices=list(FORMATS), default="pcm")
    parser.add_argument("--megabytes", type=int, default=512, help="size of a shard, roughly")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core")
    parser.add_argument(
        "--url",
        help="where you will put the shards, e.g. s3://bucket/corpus: the manifest then names that place",
    )
    parser.add_argument(
        "--verify", action="store_true", help="read every shard once more and compare its sha256"
    )
    args = parser.parse_args()
    try:
        corpus = Corpus.open(args.corpus.expanduser())
        out = args.out.expanduser()
        manifest = convert(
            corpus,
            out,
            format=args.format,
            megabytes=args.megabytes,
            workers=args.workers,
            url=args.url,
        )
        shards = sorted((out / SHARDS).glob("*.tar"))
        gigabytes = sum(verify(shard, content=args.verify).size for shard in shards) / 1e9
    except HubertPretrainError as error:
        sys.exit(f"error: {error}")
    hours = seconds(int(manifest.num_samples.sum())) / 3600
    print(
        f"{out}: {len(manifest)} utterances, {hours:.2f} h in {len(shards)} shards, {gigabytes:.2f} GB"
    )


if __name__ == "__main__":
    main()
