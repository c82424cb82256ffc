"""Any manifest, or a prepared corpus -> another format: python tools/convert_manifest.py IN OUT
--to fairseq.

IN is recognised by what it holds: fairseq's .tsv, csv, tsv or jsonl with a column `path`, a data
directory of Kaldi, cuts of lhotse, a folder of Hugging Face datasets, the folder of a run or of its
stage prepare. OUT is a file for --to csv, tsv, jsonl and lhotse, a folder for the others.
docs/formats.md says what each format can hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from hubert_pretrain.errors import ConfigError, HubertPretrainError
from hubert_pretrain.formats import fairseq, registry
from hubert_pretrain.formats.record import Reading
from hubert_pretrain.interop.fairseq_dictionary import write_dictionary


def main(arguments: list[str] | None = None) -> int:
    """Converts, and prints how many utterances each split has. Exit code 0; not 0 when IN cannot be
    read or does not fit into OUT.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    parser.add_argument("--root", type=Path, help="what relative paths in IN are relative to")
    parser.add_argument(
        "--rate",
        type=int,
        default=16_000,
        help="samples per second in which IN counts, where it does not say",
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
    options = parser.parse_args(arguments)
    try:
        return _convert(options)
    except HubertPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _convert(options: argparse.Namespace) -> int:
    source = Path(options.source).absolute()
    target = Path(options.target).absolute()
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target}: OUT is IN; give another place, so that nothing is lost")
    with tempfile.TemporaryDirectory() as passing:
        # Audio inside a table becomes files beside what names them; huggingface copies all audio
        # anyway.
        home = {"huggingface": Path(passing), "fairseq": target, "kaldi": target}.get(
            options.to, target.parent
        )
        reading = Reading(
            root=options.root,
            rate=options.rate,
            ids=options.ids,
            columns=_columns(options.column),
            folder=home,
        )
        counts = registry.convert(
            source, target, options.to, format=options.format, reading=reading, splits=options.split
        )
    for split, count in counts.items():
        print(f"{split:<12} {count} utterances")
    print(f"wrote        {target}")
    if options.to == "fairseq" and (letters := sorted(target.glob("*.ltr"))):
        write_dictionary(target / "dict.ltr.txt", fairseq.count_symbols(letters))
        print(f"wrote        {target / 'dict.ltr.txt'}")
    return 0


def _columns(settings: list[str]) -> dict[str, str]:
    for setting in settings:
        if "=" not in setting:
            raise ConfigError(f"--column {setting}: expected OURS=THEIRS, e.g. path=audio_filepath")
    return {ours: theirs for ours, _, theirs in (setting.partition("=") for setting in settings)}


if __name__ == "__main__":
    sys.exit(main())
