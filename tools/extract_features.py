"""Write features (MFCC, log-mel, layers of a checkpoint) to disk.

    hubert-pretrain extract-features mfcc runs/demo/prepare features/mfcc
    hubert-pretrain extract-features runs/demo/it1/pretrain --layer 2 /my/recordings \\
        features/layer2 --dtype float16

The first argument is mfcc, log_mel, or a checkpoint (with --layer). The input is a prepared corpus,
an audio file or a folder of them. The output is a folder of .npy shards, offsets and ids
(hubert_pretrain/features/dump.py). The same command again continues an interrupted dump. The stages
cluster and label need no dump: they compute features while they run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hubert_pretrain.errors import DataError
from hubert_pretrain.tools.command import add_device, command_parser, run_command
from hubert_pretrain.tools.feature_options import add_feature_options, feature_node

if TYPE_CHECKING:
    from hubert_pretrain.data.corpus import Corpus
    from hubert_pretrain.features.extractor import FeatureExtractor


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("features", help="mfcc, log_mel, or a checkpoint (docs/checkpoints.md)")
    parser.add_argument(
        "input", type=Path, help="prepared corpus, audio file, or folder of audio files"
    )
    parser.add_argument("output", type=Path, help="folder")
    add_feature_options(parser)
    parser.add_argument("--split", help="only this split of a prepared corpus (default: all)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16"])
    parser.add_argument(
        "--fairseq",
        action="store_true",
        help="also write <split>_<shard>_<shards>.npy and .len, in OUTPUT/fairseq",
    )
    add_device(parser)
    parser.add_argument("--workers", type=int, default=0, help="threads (default: one per core)")
    parser.add_argument(
        "--rank", type=int, default=0, help="of this process, when several write one dump"
    )
    parser.add_argument("--world-size", type=int, default=1, help="number of these processes")
    return run_command(extract, parser.parse_args(arguments))


def extract(options: argparse.Namespace) -> None:
    """Write the dump; nothing is written when the output holds anything else."""
    from hubert_pretrain.features.dump import OWN
    from hubert_pretrain.files import refuse_other_content
    from hubert_pretrain.stages.units import build_features

    refuse_other_content(options.output, OWN)
    extractor = build_features(feature_node(options)).to(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        write(options, open_corpus(options.input, Path(scratch)), extractor)


def write(options: argparse.Namespace, corpus: Corpus, extractor: FeatureExtractor) -> None:
    """Write the dump of a corpus, and print its size."""
    import torch

    from hubert_pretrain.distributed import usable_cores
    from hubert_pretrain.features.dump import FrameDump, write_dump, write_fairseq

    rows = corpus.manifest.rows(options.split) if options.split else corpus.manifest.rows()
    if len(rows) == 0:
        where = f" in split {options.split!r}" if options.split else ""
        raise DataError(f"{options.input}: no utterances{where}; name another")
    torch.set_num_threads(1)
    write_dump(
        corpus,
        rows,
        extractor,
        options.output,
        dtype=options.dtype,
        device=options.device,
        workers=options.workers or usable_cores(),
        rank=options.rank,
        world_size=options.world_size,
    )
    if options.world_size > 1:
        print(
            f"{options.output}: the shards of process {options.rank} "
            f"of {options.world_size} are written"
        )
        return
    dump = FrameDump.open(options.output)
    print(
        f"{options.output}: {len(dump)} frames of dimension {dump.shape[1]} "
        f"of {len(rows)} utterances in {len(dump.paths)} shards"
    )
    if options.fairseq:
        write_fairseq(dump, options.output / "fairseq", options.split or "all")


def open_corpus(path: Path, scratch: Path) -> Corpus:
    """A prepared corpus; for audio files, one whose manifest is written into folder `scratch`."""
    from hubert_pretrain.data.audio_files import all_audio_below
    from hubert_pretrain.data.corpus import MANIFEST, Corpus
    from hubert_pretrain.data.manifest import Utterance, write_manifest
    from hubert_pretrain.data.preparation.scan import scan

    if (path / MANIFEST).is_file():
        return Corpus.open(path)
    files = [path] if path.is_file() else []
    if path.is_dir():
        files = all_audio_below(path)
    if not files:
        raise DataError(
            f"{path}: neither audio, nor a folder with audio files, nor a prepared corpus; name one"
        )
    utterances = []
    for file in files:
        facts = scan(file)
        utterances.append(
            Utterance(
                id=file.name if file == path else str(file.relative_to(path)),
                path=str(file.absolute()),
                num_samples=facts.num_samples,
                source_rate=facts.source_rate,
                mean=facts.mean,
                variance=facts.variance,
            )
        )
    write_manifest(scratch / MANIFEST, utterances)
    return Corpus.open(scratch)


if __name__ == "__main__":
    sys.exit(main())
