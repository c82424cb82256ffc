"""Copy a prepared corpus into tar shards (the form of WebDataset).

    hubert-pretrain make-shards runs/base_ls960/prepare /fast/ls960 --format pcm --workers 8
    hubert-pretrain +recipe=base_ls960 data=webdataset data.root=/fast/ls960/shards

--format pcm writes 16-bit WAV members, 115 MB an hour, which are cropped without decoding; flac
takes half of that. Both are 16 kHz mono, and audio of that form in 16 bits is copied without loss.
The same command after a kill keeps finished shards and gives the same bytes. `data.shards=pcm` does
the same inside the prepare stage.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hubert_pretrain.data.shards.writer import FORMATS
from hubert_pretrain.tools.command import command_parser, run_command


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("corpus", type=Path, help="folder of a finished prepare stage")
    parser.add_argument(
        "out", type=Path, help="folder for shards/, manifest.arrow, alignments.arrow and card.json"
    )
    parser.add_argument("--format", choices=list(FORMATS), default="pcm")
    parser.add_argument("--megabytes", type=int, default=512, help="size of a shard, roughly")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core")
    parser.add_argument(
        "--url",
        help="future place of the shards, e.g. s3://bucket/corpus: the manifest then names it",
    )
    parser.add_argument(
        "--verify", action="store_true", help="read every shard again and compare its SHA-256"
    )
    return run_command(make_shards, parser.parse_args(arguments))


def make_shards(options: argparse.Namespace) -> None:
    """Write the shards, and print their number and size."""
    from hubert_pretrain.data.corpus import ALIGNMENTS, CARD, MANIFEST, Corpus
    from hubert_pretrain.data.shards.index import verify
    from hubert_pretrain.data.shards.writer import SHARDS, convert
    from hubert_pretrain.files import refuse_other_content
    from hubert_pretrain.frames import seconds

    corpus = Corpus.open(options.corpus.expanduser())
    out = options.out.expanduser()
    refuse_other_content(
        out, (SHARDS, *((MANIFEST, ALIGNMENTS, CARD) if (out / SHARDS).is_dir() else ()))
    )
    manifest = convert(
        corpus,
        out,
        format=options.format,
        megabytes=options.megabytes,
        workers=options.workers,
        url=options.url,
    )
    shards = sorted((out / SHARDS).glob("*.tar"))
    gigabytes = sum(verify(shard, content=options.verify).size for shard in shards) / 1e9
    hours = seconds(int(manifest.num_samples.sum())) / 3600
    print(
        f"{out}: {len(manifest)} utterances, {hours:.2f} h "
        f"in {len(shards)} shards, {gigabytes:.2f} GB"
    )


if __name__ == "__main__":
    sys.exit(main())
