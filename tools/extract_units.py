"""Extract discrete units (cluster ids) from speech.

    hubert-pretrain extract-units runs/demo/it2/cluster speech.wav folder/ > units.jsonl
    arecord -q -t raw -f S16_LE -r 16000 | hubert-pretrain extract-units runs/demo/it2/cluster -

Reads audio files, folders of them, prepared corpora, or with - standard input: an audio file, or
raw PCM from a microphone (16 kHz, mono, signed 16-bit little-endian).

--format jsonl writes one object per recording: its units (equal neighbours merged), the frames that
each lasts, and its start. From a microphone it writes one object per unit as soon as the unit ends.
--format km writes one line per recording with the unit of every frame. --format discophon writes
objects {"file": name, "units": [...]} with the unit of every frame, which the DiscoPhon benchmark
(units-LANG-SPLIT.jsonl) and score-units read.

--smooth PENALTY lets units switch less often: a switch costs PENALTY times the mean squared
distance of a frame to its centroid; score-units tells which value is best.

--soft probabilities writes soft units: for each recording the file OUTPUT/NAME.npy with an array
(frames, clusters), and OUTPUT/soft-units.json with what it holds. They come from the distances to
the centroids of a cluster stage, or from the head of a pretrain stage (docs/targets.md); of a head
--soft projection gives the vectors before the cosines.

    hubert-pretrain extract-units runs/demo/it2/pretrain folder/ --soft probabilities --output soft/

A file that cannot be read is reported on stderr and makes the exit code 1; the others are done.
With --format km it has an empty line, so that lines and recordings stay together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hubert_pretrain.errors import ConfigError, DataError, HubertPretrainError
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.tools.command import add_device, command_parser, report, run_command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hubert_pretrain import UnitExtractor
    from hubert_pretrain.targets.soft_units import SoftUnits
    from hubert_pretrain.targets.units import Run, UnitStream

PCM_BYTES = 3200
"""Read from a microphone at a time: a tenth of a second."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "codebook",
        help="folder of a cluster stage, such as runs/demo/it2/cluster; with --soft also a "
        "pretrain stage",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="input",
        help="audio file, folder of audio files, prepared corpus, or -",
    )
    parser.add_argument(
        "--checkpoint",
        help="checkpoint of the features, when it is no longer beside the codebook",
    )
    add_device(parser)
    parser.add_argument("--format", choices=["jsonl", "km", "discophon"], default="jsonl")
    parser.add_argument(
        "--smooth", type=float, default=0.0, metavar="PENALTY", help="cost of a switch (default: 0)"
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="process files in chunks, as audio from a microphone is",
    )
    parser.add_argument(
        "--chunk-frames",
        type=int,
        help="frames per chunk when streaming: fewer give units sooner, and cost more",
    )
    parser.add_argument(
        "--soft",
        choices=["probabilities", "logits", "projection"],
        help="soft units, as arrays in --output",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        help="of --soft: lower is nearer to hard units (default: .1 of a codebook, 1 of a head)",
    )
    parser.add_argument("--output", type=Path, help="of --soft: folder")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16"])
    return run_command(extract, parser.parse_args(arguments))


def extract(options: argparse.Namespace) -> int:
    """Write the units of all inputs; returns the highest exit code of a recording."""
    from hubert_pretrain.stages.units import load_units

    if options.soft:
        return extract_soft(options)
    if options.output or options.temperature:
        raise ConfigError("--output and --temperature are of --soft; hard units are printed")
    extractor = load_units(options.codebook, checkpoint=options.checkpoint, device=options.device)
    if options.smooth and (options.stream or options.inputs == ["-"]):
        raise ConfigError(
            f"--smooth {options.smooth:g} looks at whole recordings; leave out --stream and -"
        )
    extractor.smooth(options.smooth)
    if options.inputs == ["-"]:
        return extract_from_stdin(extractor, options)
    if "-" in options.inputs:
        raise ConfigError(
            f"input - is standard input and stands alone; leave out {len(options.inputs) - 1} "
            "other inputs, or the -"
        )
    codes = [
        extract_recording(extractor, options, name, read)
        for name, read in recordings(options.inputs)
    ]
    return max(codes, default=0)


def extract_soft(options: argparse.Namespace) -> int:
    """Write the soft units of all inputs; returns the highest exit code of a recording."""
    from hubert_pretrain.clustering.codebook_io import CENTROIDS
    from hubert_pretrain.files import write_json
    from hubert_pretrain.stages.units import load_units
    from hubert_pretrain.targets.soft_units import soft_units_of_codebook, soft_units_of_head

    if options.output is None or options.stream or options.smooth or "-" in options.inputs:
        raise ConfigError(
            "--soft writes arrays of whole recordings: give --output FOLDER, and leave out "
            "--stream, --smooth and -"
        )
    if (Path(options.codebook) / CENTROIDS).is_file():
        soft = soft_units_of_codebook(
            load_units(options.codebook, checkpoint=options.checkpoint, device=options.device),
            values=options.soft,
            temperature=options.temperature,
        )
    else:
        soft = soft_units_of_head(
            options.codebook,
            values=options.soft,
            temperature=options.temperature,
            device=options.device,
        )
    hop = soft.grid.hop / SAMPLE_RATE
    about = {**soft.about, "width": soft.width, "hop_seconds": hop, "dtype": options.dtype}
    write_json(options.output / "soft-units.json", about)
    codes = [0]
    names: dict[Path, str] = {}
    for name, read in recordings(options.inputs):
        file = array_file(options.output, name)
        other = names.setdefault(file, name)
        if other != name:
            raise ConfigError(f"{file}: would hold both {other} and {name}; extract them apart")
        codes.append(write_soft(soft, file, read, options.dtype))
    return max(codes)


def array_file(folder: Path, name: str) -> Path:
    """The file of a recording: a folder's part of its path stays, as far as it is relative."""
    from hubert_pretrain.data.audio_files import SUFFIXES

    path = Path(name)
    inside = Path(path.name) if path.is_absolute() or ".." in path.parts else path
    stem = inside.with_suffix("") if inside.suffix.lower() in SUFFIXES else inside
    return folder / f"{stem}.npy"


def write_soft(
    soft: SoftUnits, file: Path, read: Callable[[], NDArray[np.float32]], dtype: str
) -> int:
    """Write the array of one recording; returns its exit code."""
    import numpy as np

    from hubert_pretrain.files import replacing

    try:
        values = soft(read()).astype(dtype)
    except HubertPretrainError as error:
        return report(error)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, open(temporary, "wb") as opened:
        np.save(opened, values)
    return 0


def recordings(inputs: list[str]) -> Iterator[tuple[str, Callable[[], NDArray[np.float32]]]]:
    """Name of every recording, and the function that reads its waveform (S,)."""
    from hubert_pretrain.data import audio
    from hubert_pretrain.data.audio_files import SUFFIXES, all_audio_below
    from hubert_pretrain.data.corpus import MANIFEST, Corpus

    for path in map(Path, inputs):
        if (path / MANIFEST).is_file():
            corpus = Corpus.open(path)
            for row in range(len(corpus.manifest)):
                yield corpus.manifest[row].id, partial(corpus.read, row)
        elif path.is_dir():
            files = all_audio_below(path)
            if not files:
                raise DataError(
                    f"{path}: no audio in it; expected files ending in "
                    f"{', '.join(SUFFIXES)}, or a prepared corpus"
                )
            for file in files:
                yield str(file), partial(audio.read, str(file))
        else:
            yield str(path), partial(audio.read, str(path))


def extract_recording(
    extractor: UnitExtractor,
    options: argparse.Namespace,
    name: str,
    read: Callable[[], NDArray[np.float32]],
) -> int:
    """Print the units of one recording; returns its exit code."""
    try:
        units = units_in_chunks(extractor, options, read()) if options.stream else extractor(read())
    except HubertPretrainError as error:
        if options.format == "km":
            print()
        return report(error)
    if options.format == "km":
        print(as_km(units))
    elif options.format == "discophon":
        from hubert_pretrain.data.audio_files import SUFFIXES

        path = Path(name)
        file = path.stem if path.suffix.lower() in SUFFIXES else name
        print(json.dumps({"file": file, "units": units.tolist()}))
    else:
        print(as_json(extractor, name, units))
    return 0


def as_km(units: NDArray[np.int64]) -> str:
    """Units (T,) as in a .km file; of several codebooks (T, N), joined by a hyphen."""
    if units.ndim == 1:
        return " ".join(map(str, units.tolist()))
    return " ".join("-".join(map(str, frame)) for frame in units.tolist())


def as_json(extractor: UnitExtractor, name: str, units: NDArray[np.int64]) -> str:
    """Units of a recording as one JSON object, equal neighbours merged."""
    from hubert_pretrain.targets.units import runs

    merged = runs(units)
    return json.dumps(
        {
            "id": name,
            "units": [run.unit for run in merged],
            "frames": [run.num_frames for run in merged],
            "start_seconds": [round(run.start_seconds(extractor.grid), 3) for run in merged],
        }
    )


def units_in_chunks(
    extractor: UnitExtractor, options: argparse.Namespace, waveform: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Units (T,) of a waveform (S,), computed chunk by chunk."""
    import numpy as np

    stream = open_stream(extractor, options)
    return np.concatenate([stream.push(waveform), stream.finish()])


def open_stream(extractor: UnitExtractor, options: argparse.Namespace) -> UnitStream:
    """Stream with the requested chunk size."""
    from hubert_pretrain.targets.units import StreamPolicy, UnitStream

    policy = StreamPolicy.of(extractor.extractor, chunk_frames=options.chunk_frames)
    return UnitStream(extractor, policy)


def extract_from_stdin(extractor: UnitExtractor, options: argparse.Namespace) -> int:
    """Print the units of an audio file on stdin, or of PCM."""
    from hubert_pretrain.data import audio
    from hubert_pretrain.data.container import HEAD_BYTES, container_of
    from hubert_pretrain.data.storage import ByteRange

    head = sys.stdin.buffer.read(HEAD_BYTES)
    if container_of(head) is None:
        return extract_from_microphone(extractor, options, head)
    content = ByteRange.of(head + sys.stdin.buffer.read())
    return extract_recording(extractor, options, "-", partial(audio.decode, "stdin", content))


def extract_from_microphone(
    extractor: UnitExtractor, options: argparse.Namespace, head: bytes
) -> int:
    """Print the units of PCM while it arrives: first `head`, then stdin."""
    import numpy as np

    from hubert_pretrain.targets.units import RunStream

    stream = open_stream(extractor, options)
    runs = RunStream()
    print(
        f"a unit comes at most {stream.latency_seconds:.3f} s after the first sample of its frame",
        file=sys.stderr,
    )
    pcm = head
    while pcm:
        whole = len(pcm) - len(pcm) % 2
        half_sample = pcm[whole:]
        waveform = np.frombuffer(pcm[:whole], dtype="<i2").astype(np.float32) / 32768
        print_runs(runs.push(stream.push(waveform)), extractor, options)
        received = sys.stdin.buffer.read1(PCM_BYTES)  # type: ignore[attr-defined]
        pcm = half_sample + received if received else b""
    print_runs([*runs.push(stream.finish()), *runs.finish()], extractor, options)
    return 0


def print_runs(ended: list[Run], extractor: UnitExtractor, options: argparse.Namespace) -> None:
    """Print units that have ended, and flush."""
    for run in ended:
        if options.format == "km":
            print(" ".join([str(run.unit)] * run.num_frames), flush=True)
        else:
            unit = {
                "unit": run.unit,
                "frames": run.num_frames,
                "start_seconds": round(run.start_seconds(extractor.grid), 3),
            }
            print(json.dumps(unit), flush=True)


if __name__ == "__main__":
    sys.exit(main())
