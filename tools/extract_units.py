"""Speech -> units: python tools/extract_units.py runs/demo/it2/cluster speech.wav folder/
runs/demo/prepare > units.jsonl

Reads audio files, folders of them, prepared corpora, or with - raw PCM (16 kHz, mono, signed 16-bit
little-endian) from a microphone:

    arecord -q -t raw -f S16_LE -r 16000 | python tools/extract_units.py runs/demo/it2/cluster -

jsonl: an object per recording with units, how many frames each lasts, and when it begins; from a
microphone an object per run of equal units, as soon as it is over. km: all units of a recording,
one per frame, on a line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubert_pretrain.errors import DataError, HubertPretrainError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hubert_pretrain.targets.units import Run, UnitExtractor

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".opus"}
PIECE_BYTES = 3200
"""A tenth of a second."""


def main(arguments: list[str] | None = None) -> int:
    """Writes units to stdout. A file that cannot be read is named on stderr and makes the exit code
    1; the others are done.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("codebook", help="folder of a cluster stage, such as runs/demo/it2/cluster")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="input",
        help="audio file, folder of audio files, prepared corpus, or -",
    )
    parser.add_argument(
        "--checkpoint",
        help="where the features' checkpoint lies, when it is no longer beside the codebook",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--format", choices=["jsonl", "km"], default="jsonl")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="files: the units that they would have if they arrived in pieces, as from -",
    )
    parser.add_argument(
        "--chunk-frames",
        type=int,
        help="frames that are computed at a time when streaming: less is sooner, and slower",
    )
    options = parser.parse_args(arguments)

    from hubert_pretrain.stages.units import load_units

    try:
        extract = load_units(options.codebook, checkpoint=options.checkpoint, device=options.device)
        if "-" in options.inputs:
            return _listen(extract, options)
        return max(
            [_write(extract, options, *found) for found in _recordings(options.inputs)], default=0
        )
    except HubertPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # who read our units has seen enough
        sys.stdout = None  # type: ignore[assignment]
        return 0


def _recordings(inputs: list[str]) -> Iterator[tuple[str, Any]]:
    """(name, function that reads the waveform) of everything that is named."""
    from functools import partial

    from hubert_pretrain.data import audio
    from hubert_pretrain.data.corpus import MANIFEST, Corpus

    for path in map(Path, inputs):
        if (path / MANIFEST).is_file():
            corpus = Corpus.open(path)
            yield from (
                (corpus.manifest[row].id, partial(corpus.read, row))
                for row in range(len(corpus.manifest))
            )
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not files:
                raise DataError(
                    f"{path}: no audio in it; expected files ending in {', '.join(sorted(SUFFIXES))}, or a prepared corpus"
                )
            yield from ((str(file), partial(audio.read, str(file))) for file in files)
        else:
            yield str(path), partial(audio.read, str(path))


def _write(extract: UnitExtractor, options: argparse.Namespace, name: str, read: Any) -> int:
    from hubert_pretrain.targets.units import runs

    try:
        units = _streamed(extract, options, read()) if options.stream else extract(read())
    except HubertPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.format == "km":
        print(
            " ".join(map(str, units.tolist()))
            if units.ndim == 1
            else " ".join("-".join(map(str, each)) for each in units.tolist())
        )
    else:
        found = runs(units)
        frames = [run.num_frames for run in found]
        starts = [round(run.start_seconds(extract.grid), 3) for run in found]
        print(
            json.dumps(
                {
                    "id": name,
                    "units": [run.unit for run in found],
                    "frames": frames,
                    "start_seconds": starts,
                }
            )
        )
    return 0


def _streamed(
    extract: UnitExtractor, options: argparse.Namespace, waveform: NDArray[np.float32]
) -> NDArray[np.int64]:
    import numpy as np

    stream = _stream(extract, options)
    return np.concatenate([stream.push(waveform), stream.finish()])


def _stream(extract: UnitExtractor, options: argparse.Namespace) -> Any:
    from hubert_pretrain.targets.units import StreamPolicy, UnitStream

    return UnitStream(
        extract, StreamPolicy.of(extract.extractor, chunk_frames=options.chunk_frames)
    )


def _listen(extract: UnitExtractor, options: argparse.Namespace) -> int:
    import numpy as np

    from hubert_pretrain.targets.units import RunStream

    stream = _stream(extract, options)
    runs = RunStream()
    left = b""
    print(
        f"a unit comes at most {stream.latency_seconds:.3f} s after the first sample of its frame",
        file=sys.stderr,
    )
    while piece := sys.stdin.buffer.read1(PIECE_BYTES):  # type: ignore[attr-defined]
        data = left + piece
        left = b""
        if len(data) % 2:
            data, left = data[:-1], data[-1:]
        _say(
            runs.push(stream.push(np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768)),
            extract,
            options,
        )
    _say([*runs.push(stream.finish()), *runs.finish()], extract, options)
    return 0


def _say(found: list[Run], extract: UnitExtractor, options: argparse.Namespace) -> None:
    for run in found:
        if options.format == "km":
            print(" ".join([str(run.unit)] * run.num_frames), flush=True)
        else:
            start = round(run.start_seconds(extract.grid), 3)
            print(
                json.dumps({"unit": run.unit, "frames": run.num_frames, "start_seconds": start}),
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
