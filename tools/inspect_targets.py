"""Print what a target store holds, or the targets of single utterances.

    hubert-pretrain inspect-targets runs/demo/it1/label --corpus runs/demo/prepare [UTTERANCE ...]

Without utterances: the features and codebook of the targets, their frame grid, sizes and counts.
With ids: every run of equal targets, its start, its length, and the phones under it where the
corpus is aligned.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from hubert_pretrain.errors import DataError, did_you_mean
from hubert_pretrain.tools.command import command_parser, run_command

if TYPE_CHECKING:
    from hubert_pretrain.data.corpus import Corpus
    from hubert_pretrain.targets.store import TargetStore


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("store", help="folder of a label stage")
    parser.add_argument("--corpus", required=True, help="the prepared corpus of the targets")
    parser.add_argument("utterances", nargs="*", metavar="UTTERANCE", help="ids")
    return run_command(inspect, parser.parse_intermixed_args(arguments))


def inspect(options: argparse.Namespace) -> None:
    """Print the store, or the utterances named."""
    from hubert_pretrain.data.corpus import Corpus
    from hubert_pretrain.targets.store import TargetStore

    corpus = Corpus.open(options.corpus)
    store = TargetStore.open(options.store)
    store.check(corpus.manifest)
    if not options.utterances:
        print_store(store, corpus)
    for utterance in options.utterances:
        print_utterance(store, corpus, utterance)


def print_store(store: TargetStore, corpus: Corpus) -> None:
    """Print origin, grid, K and counts of a store."""
    from hubert_pretrain.features.extractor import describe

    frames = int(store.offsets[-1])
    sizes = ", ".join(map(str, store.sizes))
    print(
        f"{store.folder}: {len(store)} utterances, {frames} frames "
        f"at {store.grid.frames_per_second:g} Hz, K={sizes}"
    )
    print(
        f"features: {describe(store.codebook['features'])}; "
        f"codebook {store.codebook['sha256'][:12]}"
    )
    for split in corpus.manifest.splits:
        rows = corpus.manifest.split_range(split)
        split_frames = int(store.offsets[rows.stop] - store.offsets[rows.start])
        print(f"{split}: {len(rows)} utterances, {split_frames} frames")


def print_utterance(store: TargetStore, corpus: Corpus, utterance: str) -> None:
    """Print the runs of equal targets of one utterance, with the phones under them."""
    from hubert_pretrain.targets.units import runs

    ids = corpus.manifest.column("id").to_pylist()
    if utterance not in ids:
        raise DataError(
            f"{corpus.manifest.path}: no utterance {utterance!r}{did_you_mean(utterance, ids)}"
        )
    row = ids.index(utterance)
    targets = store.targets(row)
    phones = [""] * len(targets)
    if corpus.alignments is not None and corpus.alignments.has(row):
        phones = corpus.alignments.frame_phones(row, len(targets), store.grid)
    print(f"{utterance}: {len(targets)} frames  {corpus.manifest[row].text}")
    for run in runs(targets):
        end_frame = run.start_frame + run.num_frames
        phones_under = " ".join(dict.fromkeys(phones[run.start_frame : end_frame]))
        start = run.start_seconds(store.grid)
        milliseconds = 1000 * run.num_seconds(store.grid)
        print(f"{start:8.2f} s  {milliseconds:5.0f} ms  {run.unit!s:>6}  {phones_under}")


if __name__ == "__main__":
    sys.exit(main())
