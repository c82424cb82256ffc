"""Looks into a target store: python tools/inspect_targets.py runs/demo/it1/label --corpus
runs/demo/prepare [UTTERANCE ...]

Without utterances: what made the targets, their grid, sizes, counts. With ids: every run of equal
targets, when it begins, how long it is, and the phones it lies on where the corpus is aligned.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from hubert_pretrain.errors import DataError, HubertPretrainError, did_you_mean

if TYPE_CHECKING:
    from hubert_pretrain.data.corpus import Corpus
    from hubert_pretrain.targets.store import TargetStore


def main(arguments: list[str] | None = None) -> int:
    """Prints text for people."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", help="folder of a label stage")
    parser.add_argument(
        "--corpus", required=True, help="the prepared corpus that the targets are of"
    )
    parser.add_argument("utterances", nargs="*", metavar="UTTERANCE", help="ids")
    options = parser.parse_intermixed_args(arguments)

    from hubert_pretrain.data.corpus import Corpus
    from hubert_pretrain.targets.store import TargetStore

    try:
        corpus = Corpus.open(options.corpus)
        store = TargetStore.open(options.store)
        store.check(corpus.manifest)
        if not options.utterances:
            _describe(store, corpus)
        for utterance in options.utterances:
            _show(store, corpus, utterance)
    except HubertPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _describe(store: TargetStore, corpus: Corpus) -> None:
    from hubert_pretrain.features.extractor import describe

    frames = int(store.offsets[-1])
    sizes = ", ".join(map(str, store.sizes))
    print(
        f"{store.folder}: {len(store)} utterances, {frames} frames at {store.grid.frames_per_second:g} Hz, K={sizes}"
    )
    print(
        f"features: {describe(store.codebook['features'])}; codebook {store.codebook['sha256'][:12]}"
    )
    for split in corpus.manifest.splits:
        rows = corpus.manifest.split_range(split)
        print(
            f"{split}: {len(rows)} utterances, {int(store.offsets[rows.stop] - store.offsets[rows.start])} frames"
        )


def _show(store: TargetStore, corpus: Corpus, utterance: str) -> None:
    from hubert_pretrain.targets.units import runs

    ids = corpus.manifest.column("id").to_pylist()
    if utterance not in ids:
        raise DataError(
            f"{corpus.manifest.path}: no utterance {utterance!r}{did_you_mean(utterance, ids)}"
        )
    row = ids.index(utterance)
    targets = store.targets(row)
    aligned = corpus.alignments is not None and corpus.alignments.has(row)
    phones = (
        corpus.alignments.frame_phones(row, len(targets), store.grid)
        if aligned and corpus.alignments
        else [""] * len(targets)
    )
    print(f"{utterance}: {len(targets)} frames  {corpus.manifest[row].text}")
    for run in runs(targets):
        under = dict.fromkeys(phones[run.start_frame : run.start_frame + run.num_frames])
        print(
            f"{run.start_seconds(store.grid):8.2f} s  {1000 * run.num_seconds(store.grid):5.0f} ms  {run.unit!s:>6}  {' '.join(under)}"
        )


if __name__ == "__main__":
    sys.exit(main())
