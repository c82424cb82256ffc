"""Transcribe speech of any length with a CTC model.

    hubert-pretrain transcribe runs/demo/finetune/asr speech.wav folder/
    hubert-pretrain transcribe runs/demo/finetune/asr talk.mp3 --format srt > talk.srt
    hubert-pretrain transcribe runs/demo/finetune/asr folder/ --format vtt --output subtitles/
    arecord -q -t raw -f S16_LE -r 16000 | hubert-pretrain transcribe MODEL - --stream

--set decoding.KEY=VALUE searches with a language model, a lexicon, hot words (docs/decoding.md):

    hubert-pretrain transcribe runs/demo/finetune/asr speech.wav \\
        --set decoding.kind=lexicon decoding.lm=runs/demo/finetune/asr/lm.arpa

Any CTC model that the package reads will do: a finetune stage of a run, a folder of transformers, a
*.pt of fairseq. Inputs are audio files, folders of them, prepared corpora, or - for standard input:
an audio file, a list of paths, or raw PCM (16 kHz, mono, signed 16-bit little-endian).

Speech that is longer than --chunk-seconds is cut at its pauses, and where nobody pauses computed in
overlapping chunks, in memory that does not depend on its length. A network for streams
(docs/streaming.md) computes its own chunks instead, each as its audio arrives;
--set chunk_frames=50 left_context_frames=200 makes a stream of a network that was trained with
chunks. A file that cannot be read is reported on stderr and makes the exit code 1; the others are
transcribed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hubert_pretrain.errors import ConfigError, HubertPretrainError
from hubert_pretrain.tools.command import (
    add_device,
    add_set,
    add_target_lang,
    command_parser,
    decoding_of,
    parse_fields,
    report,
    run_command,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hubert_pretrain import SpeechRecognizer
    from hubert_pretrain.decoding.hypothesis import Hypothesis, Word
    from hubert_pretrain.finetune.long_speech import Chunking
    from hubert_pretrain.tools.recordings import Recording

FORMATS = ("txt", "jsonl", "srt", "vtt")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "model", help="CTC model: a stage such as runs/demo/finetune/asr, a folder or a *.pt"
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="input",
        help="audio of any rate (wav, flac, ogg, mp3, ...), a folder, a prepared corpus, or -",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="txt",
        help="txt: path<TAB>text; jsonl: an object with words, times and confidences; srt, vtt: "
        "subtitles (default: %(default)s)",
    )
    parser.add_argument(
        "--output", help="folder for a file of each recording; without it to standard output"
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="print words as soon as they are known: txt in lines, jsonl an object for each word",
    )
    parser.add_argument(
        "--chunk-seconds",
        type=float,
        help="speech of one forward pass, with its context (default: twice the longest utterance "
        "that the model was trained on, at most 20; 20 where the checkpoint does not state it)",
    )
    parser.add_argument(
        "--context-seconds",
        type=float,
        help="context on each side of what is used of a chunk (default: 3 for chunks of 20 s)",
    )
    parser.add_argument(
        "--piece-seconds",
        type=float,
        help="speech between two pauses that is computed together; 0: chunks of equal length, "
        "pauses or not (default: the longest utterance that the model was trained on, at most 15)",
    )
    add_device(parser)
    add_target_lang(parser)
    parser.add_argument(
        "--dictionary", help="dict.ltr.txt, for a model that does not hold its characters"
    )
    add_set(parser)
    return run_command(transcribe, parser.parse_args(arguments))


def transcribe(options: argparse.Namespace) -> int:
    """Transcribe all recordings; returns the highest exit code of one."""
    from hubert_pretrain import SpeechRecognizer
    from hubert_pretrain.model.streaming import describe_streaming
    from hubert_pretrain.tools.recordings import recordings

    if options.stream and (options.output or options.format in ("srt", "vtt")):
        raise ConfigError("--stream prints txt or jsonl; leave out --output and other formats")
    fields = parse_fields(options.set)
    recogniser = SpeechRecognizer.load(
        options.model,
        options.device,
        decoding=decoding_of(fields),
        dictionary=options.dictionary,
        target_lang=options.target_lang,
        **fields,
    )
    recogniser.chunking = chunking(options, recogniser.chunking)
    recogniser.chunking.frames(recogniser.model.grid)  # refuses lengths that cannot be
    if recogniser.streams:
        print(describe_streaming(recogniser.model.config), file=sys.stderr)
    with recordings(options.inputs) as found:
        show = stream if options.stream else write
        codes = [attempt(show, recogniser, recording, options) for recording in found]
    return max(codes, default=0)


def chunking(options: argparse.Namespace, default: Chunking) -> Chunking:
    """The lengths of chunks that the options give, else those of the model."""
    if options.chunk_seconds is not None:
        default = replace(default, chunk_seconds=options.chunk_seconds)
    if options.context_seconds is not None:
        default = replace(default, context_seconds=options.context_seconds)
    if options.piece_seconds is not None:
        default = replace(default, piece_seconds=options.piece_seconds)
    return default


def attempt(
    show: Callable[[SpeechRecognizer, Recording, argparse.Namespace], None],
    recogniser: SpeechRecognizer,
    recording: Recording,
    options: argparse.Namespace,
) -> int:
    """Transcribe one recording; returns its exit code."""
    try:
        show(recogniser, recording, options)
    except HubertPretrainError as error:
        return report(error)
    return 0


def stream(recogniser: SpeechRecognizer, recording: Recording, options: argparse.Namespace) -> None:
    """Print the words of a recording as they are known."""
    for word in recogniser.words(recording.blocks(), name=recording.name):
        if options.format == "jsonl":
            print(json.dumps({"file": recording.name, **as_object(word)}, ensure_ascii=False))
        else:
            print(f"{recording.name}\t{word.start:.2f}\t{word.text}")
        sys.stdout.flush()


def write(recogniser: SpeechRecognizer, recording: Recording, options: argparse.Namespace) -> None:
    """Print the text of a recording, or write it to its file."""
    from hubert_pretrain.files import write_text

    found = recogniser.recognise(recording.blocks(), name=recording.name)
    if options.output:
        path = Path(options.output) / f"{recording.stem}.{options.format}"
        write_text(path, content(found, recording, options.format, alone=True))
    else:
        print(content(found, recording, options.format, alone=False), end="", flush=True)


def content(found: Hypothesis, recording: Recording, form: str, *, alone: bool) -> str:
    """The text of a recording in a format; `alone`: in a file of its own, which needs no name."""
    from hubert_pretrain.formats.subtitles import srt, vtt

    if form == "srt":
        return srt(found.words)
    if form == "vtt":
        return vtt(found.words)
    if form == "jsonl":
        words = [as_object(word) for word in found.words]
        confidence = round(found.confidence, 4)
        line = {"file": recording.name, "text": found.text, "confidence": confidence}
        return json.dumps({**line, "words": words}, ensure_ascii=False) + "\n"
    return f"{found.text}\n" if alone else f"{recording.name}\t{found.text}\n"


def as_object(word: Word) -> dict[str, object]:
    """A word as a JSON object."""
    return {
        "word": word.text,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "confidence": round(word.confidence, 4),
    }


if __name__ == "__main__":
    sys.exit(main())
