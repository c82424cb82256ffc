"""Features on disk: python tools/extract_features.py mfcc runs/demo/prepare features/mfcc
                  python tools/extract_features.py runs/demo/it1/pretrain --layer 2 /my/recordings
                  features/layer2 --dtype float16

The first argument is mfcc, log_mel, or a checkpoint (with --layer). Reads a prepared corpus, an
audio file or a folder of them. Writes .npy shards, offsets and ids
(hubert_pretrain/features/dump.py); run it again and it goes on. Clustering and labelling need none
of this.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubert_pretrain.errors import ConfigError, DataError, HubertPretrainError

if TYPE_CHECKING:
    from hubert_pretrain.data.corpus import Corpus


def main(arguments: list[str] | None = None) -> int:
    """Writes the dump and says where its parts are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("features", help="mfcc, log_mel, or a checkpoint (docs/checkpoints.md)")
    parser.add_argument(
        "input", type=Path, help="prepared corpus, audio file, or folder of audio files"
    )
    parser.add_argument("output", type=Path, help="folder")
    parser.add_argument("--layer", help="of the checkpoint: a number, several with commas, or all")
    parser.add_argument(
        "--transformers",
        action="store_true",
        help="run the checkpoint with transformers: wav2vec 2.0, WavLM",
    )
    parser.add_argument("--num-mel-bins", type=int, default=80, help="log_mel (default: 80)")
    parser.add_argument("--split", help="only this split of a prepared corpus (default: all)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16"])
    parser.add_argument(
        "--fairseq",
        action="store_true",
        help="also write <split>_<shard>_<shards>.npy and .len, in OUTPUT/fairseq",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--workers", type=int, default=0, help="threads (default: one per core)")
    parser.add_argument(
        "--rank", type=int, default=0, help="of this process, when several write one dump"
    )
    parser.add_argument("--world-size", type=int, default=1, help="how many they are")
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except HubertPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(options: argparse.Namespace) -> None:
    import torch

    from hubert_pretrain.distributed import usable_cores
    from hubert_pretrain.features.dump import FrameDump, write_dump, write_fairseq

    extractor = _extractor(options).to(options.device)
    corpus = _corpus(options.input, options.output)
    rows = corpus.manifest.rows(options.split) if options.split else corpus.manifest.rows()
    if len(rows) == 0:
        raise DataError(
            f"{options.input}: no utterances{f' in split {options.split!r}' if options.split else ''}; name another"
        )
    torch.set_num_threads(1)
    ranks = {"rank": options.rank, "world_size": options.world_size}
    workers = options.workers or usable_cores()
    write_dump(
        corpus,
        rows,
        extractor,
        options.output,
        dtype=options.dtype,
        device=options.device,
        workers=workers,
        **ranks,
    )
    if options.world_size > 1:
        print(
            f"{options.output}: the shards of process {options.rank} of {options.world_size} are written"
        )
        return
    dump = FrameDump.open(options.output)
    print(
        f"{options.output}: {len(dump)} frames of dimension {dump.shape[1]} of {len(rows)} utterances in {len(dump.paths)} shards"
    )
    if options.fairseq:
        write_fairseq(dump, options.output / "fairseq", options.split or "all")


def _extractor(options: argparse.Namespace) -> Any:
    from hubert_pretrain.features.hubert_layer import HubertLayer
    from hubert_pretrain.features.log_mel import LogMel
    from hubert_pretrain.features.mfcc import Mfcc
    from hubert_pretrain.features.transformers_layer import TransformersLayer

    if options.features in ("mfcc", "log_mel"):
        return Mfcc() if options.features == "mfcc" else LogMel(options.num_mel_bins)
    if options.layer is None:
        raise ConfigError(
            f"--layer has no value: which layer of {options.features}? A number from 1 on, several with commas, or all"
        )
    words = options.layer.split(",")
    try:
        layer = (
            "all"
            if options.layer == "all"
            else [int(word) for word in words]
            if len(words) > 1
            else int(words[0])
        )
    except ValueError:
        raise ConfigError(
            f"--layer {options.layer}: expected a number, several with commas, or all"
        ) from None
    return (TransformersLayer if options.transformers else HubertLayer)(options.features, layer)


def _corpus(path: Path, output: Path) -> Corpus:
    """A prepared corpus as it is; files become one whose manifest lies with the features."""
    from hubert_pretrain.data.audio import audio_below
    from hubert_pretrain.data.corpus import MANIFEST, Corpus
    from hubert_pretrain.data.manifest import Utterance, write_manifest
    from hubert_pretrain.data.preparation.scan import scan

    if (path / MANIFEST).is_file():
        return Corpus.open(path)
    files = [path] if path.is_file() else list(audio_below(path)) if path.is_dir() else []
    if not files:
        raise DataError(
            f"{path}: neither audio, nor a folder with audio files, nor a prepared corpus; name one"
        )
    utterances = []
    for file in files:
        facts = scan(file)
        name = file.name if file == path else str(file.relative_to(path))
        measured = {
            "source_rate": facts.source_rate,
            "mean": facts.mean,
            "variance": facts.variance,
        }
        utterances.append(
            Utterance(id=name, path=str(file.absolute()), num_samples=facts.num_samples, **measured)
        )
    output.mkdir(parents=True, exist_ok=True)
    write_manifest(output / MANIFEST, utterances)
    return Corpus.open(output)


if __name__ == "__main__":
    sys.exit(main())
