"""Convert a manifest, or a prepared corpus, to the format of another toolkit.

    hubert-pretrain convert-manifest IN OUT --to fairseq

IN is recognised by its content: fairseq's .tsv, csv, tsv or jsonl with a column `path`, a data
directory of Kaldi, cuts of lhotse, a folder of Hugging Face datasets, the folder of a run or of its
prepare stage. OUT is a file for --to csv, tsv, jsonl and lhotse, a folder for the others.
docs/formats.md tells what each format can hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.formats import registry
from hubert_pretrain.tools.command import command_parser, run_command


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code, not 0 when IN cannot be read or does not fit OUT."""
    parser = command_parser(__doc__)
    parser.add_argument("source", metavar="IN", help="file or folder of any readable kind")
    parser.add_argument("target", metavar="OUT", help="where to write")
    parser.add_argument("--to", required=True, choices=registry.WRITTEN, help="format of OUT")
    parser.add_argument(
        "--from",
        dest="format",
        default="auto",
        help=f"format of IN: auto or {', '.join(registry.FORMATS)}",
    )
    parser.add_argument(
        "--split", action="append", default=[], help="only this split; may be given several times"
    )
    parser.add_argument("--root", type=Path, help="folder that relative paths in IN start from")
    parser.add_argument(
        "--rate",
        type=int,
        default=16_000,
        help="samples per second of the lengths in IN, where it does not tell (default: 16000)",
    )
    parser.add_argument(
        "--ids", choices=["path", "name"], default="path", help="ids of rows without one"
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="e.g. --column path=audio_filepath",
    )
    return run_command(convert, parser.parse_args(arguments))


def convert(options: argparse.Namespace) -> None:
    """Convert, and print the number of utterances of each split."""
    from hubert_pretrain.formats.record import ReadOptions

    source = Path(options.source).absolute()
    target = Path(options.target).absolute()
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target}: OUT is IN; give another place, so that nothing is lost")
    with tempfile.TemporaryDirectory() as scratch:
        read_options = ReadOptions(
            root=options.root,
            rate=options.rate,
            ids=options.ids,
            columns=parse_columns(options.column),
            folder=audio_folder(options.to, target, Path(scratch)),
        )
        counts = registry.convert(
            source,
            target,
            options.to,
            format=options.format,
            options=read_options,
            splits=options.split,
        )
    for split, count in counts.items():
        print(f"{split:<12} {count} utterances")
    print(f"wrote        {target}")
    if options.to == "fairseq":
        write_letter_dictionary(target)


def audio_folder(target_format: str, target: Path, scratch: Path) -> Path:
    """Folder for audio that IN holds inside a table: beside the file that will name it."""
    if target_format == "huggingface":  # copies all audio into its own files
        return scratch
    return target if target_format in ("fairseq", "kaldi") else target.parent


def write_letter_dictionary(folder: Path) -> None:
    """Write dict.ltr.txt where there are transcripts (.ltr)."""
    from hubert_pretrain.formats.fairseq import count_symbols
    from hubert_pretrain.interop.fairseq_dictionary import write_dictionary

    transcripts = sorted(folder.glob("*.ltr"))
    if transcripts:
        write_dictionary(folder / "dict.ltr.txt", count_symbols(transcripts))
        print(f"wrote        {folder / 'dict.ltr.txt'}")


def parse_columns(settings: list[str]) -> dict[str, str]:
    """`["path=audio_filepath"]` -> {"path": "audio_filepath"}."""
    columns = {}
    for setting in settings:
        ours, equals, theirs = setting.partition("=")
        if not equals:
            raise ConfigError(f"--column {setting}: expected OURS=THEIRS, e.g. path=audio_filepath")
        columns[ours] = theirs
    return columns


if __name__ == "__main__":
    sys.exit(main())
