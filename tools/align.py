"""Times of words and symbols from speech and its transcripts, by a CTC model.

    hubert-pretrain align runs/demo/finetune/asr runs/demo alignments
    hubert-pretrain align MODEL corpus.csv alignments --format textgrid
    hubert-pretrain align MODEL speech.wav alignments   # the transcript lies in speech.txt

MODEL is any CTC model that the package reads. Its symbols are the units: characters for most,
phones for a phone recogniser. IN is the folder of a run or of its prepare stage, a manifest with
transcripts (as convert-manifest reads them), an audio file with its transcript beside it in a file
of the same name that ends in .txt, or a folder of those. OUT is a folder:

--format ctm       alignments.ctm with the symbols, or with --units words the words
--format textgrid  a TextGrid for each utterance, with a tier of each

`data.alignments=OUT` gives a corpus these alignments: PNMI and the choice of a layer then work from
transcripts alone, with characters (or words) in place of phones. Scores of utterances lie in
OUT/scores.tsv, the worst first: a transcript that does not belong to its audio is among them.
An utterance without transcript, or one that its frames cannot spell, is reported and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.tools.command import (
    add_device,
    add_set,
    add_target_lang,
    command_parser,
    parse_fields,
    report,
    run_command,
)

if TYPE_CHECKING:
    from hubert_pretrain.data.source import SourceUtterance
    from hubert_pretrain.decoding.hypothesis import Word
    from hubert_pretrain.finetune.alignment import AlignedUtterance, Aligner

CTM = "alignments.ctm"
SCORES = "scores.tsv"


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("model", metavar="MODEL", help="CTC model: a stage, a folder or a *.pt")
    parser.add_argument("source", metavar="IN", help="run, manifest, audio file, or folder of them")
    parser.add_argument("target", metavar="OUT", help="folder to write, new or empty")
    parser.add_argument("--format", choices=["ctm", "textgrid"], default="ctm")
    parser.add_argument(
        "--units", choices=["symbols", "words"], default="symbols", help="of --format ctm"
    )
    parser.add_argument(
        "--split", action="append", default=[], help="only this split; may be given several times"
    )
    add_device(parser)
    add_target_lang(parser)
    parser.add_argument(
        "--dictionary", help="dict.ltr.txt, for a model that does not hold its characters"
    )
    add_set(parser)
    return run_command(align, parser.parse_args(arguments))


def align(options: argparse.Namespace) -> int:
    """Align all utterances; returns the highest exit code of one."""
    from hubert_pretrain.files import refuse_other_content
    from hubert_pretrain.finetune.alignment import Aligner

    source = Path(options.source).expanduser().absolute()
    target = Path(options.target).expanduser().absolute()
    refuse_other_content(target, ())
    utterances = list(chosen(source, options.split))
    aligner = Aligner.load(
        options.model,
        options.device,
        dictionary=options.dictionary,
        target_lang=options.target_lang,
        **parse_fields(options.set),
    )
    codes = [0]
    found = list(aligned(aligner, utterances, codes))
    if not found:
        raise DataError(f"{source}: none of the {len(utterances)} utterances could be aligned")
    write(target, found, options)
    left_out = Counter("".join(each.left_out for each in found))
    if left_out:
        shown = " ".join(f"{character!r} x {count}" for character, count in left_out.most_common(8))
        print(f"left out     characters that the model has not: {shown}")
    words = sum(len(each.alignment.words) for each in found)
    symbols = sum(len(each.alignment.symbols) for each in found)
    print(f"aligned      {len(found)} of {len(utterances)} utterances")
    print(f"units        {symbols} {aligner.unit}, {words} words")
    print(f"wrote        {target}")
    return max(codes)


def chosen(source: Path, splits: list[str]) -> Iterator[SourceUtterance]:
    """The utterances of some splits, or all."""
    found: list[str] = []
    some = False
    for utterance in utterances_of(source):
        if utterance.split not in found:
            found.append(utterance.split)
        if not splits or utterance.split in splits:
            some = True
            yield utterance
    missing = [split for split in splits if split not in found]
    if missing:
        raise DataError(
            f"{source}: no utterances in split {missing[0]!r}, it has {', '.join(found)}"
            f"{did_you_mean(missing[0], found)}"
        )
    if not some:
        raise DataError(f"{source}: has no utterances; name a corpus with transcripts")


def utterances_of(source: Path) -> Iterator[SourceUtterance]:
    """The utterances of a manifest, or of audio files with texts beside them."""
    from hubert_pretrain.data.audio_files import SUFFIXES, all_audio_below
    from hubert_pretrain.data.source import SourceUtterance
    from hubert_pretrain.formats.prepared import folder_of
    from hubert_pretrain.formats.record import ReadOptions, without_duplicates
    from hubert_pretrain.formats.registry import read

    files = []
    if source.is_file() and source.suffix.lower() in SUFFIXES:
        files = [source]
    elif source.is_dir() and folder_of(source) is None and any(source.glob("**/*.txt")):
        files = [path for path in all_audio_below(source) if path.with_suffix(".txt").is_file()]
    if not files:
        yield from without_duplicates(lambda: read(source, "auto", ReadOptions()))
    home = source.parent if source.is_file() else source
    for path in files:
        text = path.with_suffix(".txt")
        if not text.is_file():
            raise DataError(f"{path}: has no transcript beside it; write it into {text.name}")
        yield SourceUtterance(
            id=path.relative_to(home).with_suffix("").as_posix(),
            path=path,
            split="train",
            text=" ".join(text.read_text(encoding="utf-8-sig").split()),
        )


def aligned(
    aligner: Aligner, utterances: list[SourceUtterance], codes: list[int]
) -> Iterator[AlignedUtterance]:
    """Those that can be aligned; the exit codes of the others are added to `codes`."""
    from hubert_pretrain.progress import progress

    with progress(len(utterances), "aligning") as advance:
        for utterance in utterances:
            try:
                yield aligner.align(utterance)
            except DataError as error:
                codes.append(report(error))
            advance()


def write(target: Path, found: list[AlignedUtterance], options: argparse.Namespace) -> None:
    """Write the alignments, then the scores."""
    from hubert_pretrain.files import write_text
    from hubert_pretrain.formats import ctm, textgrid

    if options.format == "textgrid":
        for each in found:
            tiers = {
                "words": intervals(each.alignment.words),
                "symbols": intervals(each.alignment.symbols),
            }
            textgrid.write(path_of(target, each.id), tiers, each.seconds)
    else:
        lines: list[str] = []
        for each in found:
            refuse_spaces(each.id)
            words = each.alignment.words if options.units == "words" else each.alignment.symbols
            rows = [(word.text, word.start, word.end, word.confidence) for word in words]
            lines += ctm.ctm_lines(each.id, rows)
        write_text(target / CTM, "".join(lines))
    worst = sorted(found, key=lambda each: each.alignment.score)
    rows_of_scores = [f"{each.id}\t{each.alignment.score:.4f}\n" for each in worst]
    write_text(target / SCORES, "".join(["id\tscore\n", *rows_of_scores]))


def refuse_spaces(id: str) -> None:
    """Raises ConfigError for an id that a ctm cannot hold."""
    if len(id.split()) != 1:
        raise ConfigError(
            f"utterance {id!r}: a ctm cannot hold an id with spaces; use --format textgrid"
        )


def path_of(target: Path, id: str) -> Path:
    """The TextGrid of an utterance."""
    if id.startswith("/") or ".." in id.split("/"):
        raise ConfigError(f"utterance {id!r}: its id leads out of {target}; use --format ctm")
    return target / f"{id}.TextGrid"


def intervals(words: Iterable[Word]) -> list[tuple[str, float, float]]:
    """(text, start, end) of words."""
    return [(word.text, word.start, word.end) for word in words]


if __name__ == "__main__":
    sys.exit(main())
