"""Score units of recordings against the phones of a prepared corpus.

    hubert-pretrain score-units units-en-test.jsonl --corpus runs/demo/prepare

Reads lines {"file": name, "units": [...]}, a unit every 20 ms, as the DiscoPhon benchmark takes
them and extract-units --format discophon writes them. Prints its measures as JSON: PNMI, and for
two mappings of units to phones the phone error rate, and precision, recall, F1 and R-value of the
boundaries (20 ms). many_to_one: each unit stands for its most frequent phone. one_to_one: each
phone has one unit at most. A file is an utterance of the corpus with that id, or with that name of
its audio; those without alignment do not count. docs/targets.md explains the measures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.tools.command import command_parser, run_command

if TYPE_CHECKING:
    from hubert_pretrain.data.corpus import Corpus


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("units", type=Path, help="file of units, one recording a line")
    parser.add_argument("--corpus", required=True, help="a prepared corpus with phone alignments")
    parser.add_argument(
        "--n-units", type=int, help="number of units (default: the largest in the file and 1)"
    )
    parser.add_argument(
        "--unit-ms", type=int, default=20, help="milliseconds of a unit (default: 20)"
    )
    return run_command(print_scores, parser.parse_args(arguments))


def print_scores(options: argparse.Namespace) -> None:
    """Score the units, and print JSON."""
    import numpy as np

    from hubert_pretrain.data.corpus import Corpus
    from hubert_pretrain.targets.phone_discovery import phones_of, score_units

    if options.unit_ms < 10 or options.unit_ms % 10:
        raise ConfigError(f"--unit-ms {options.unit_ms}: expected a multiple of 10")
    corpus = Corpus.open(options.corpus)
    if corpus.alignments is None:
        raise DataError(f"{options.corpus}: has no phone alignments; give it some: data.alignments")
    units = read_units(options.units)
    rows = rows_by_name(corpus)
    unknown = [name for name in units if name not in rows]
    if unknown:
        raise DataError(
            f"{options.units}: {len(unknown)} of {len(units)} files are not in {options.corpus}, "
            f"the first is {unknown[0]!r}; expected its ids or names of audio files"
        )
    scored = {name: each for name, each in units.items() if corpus.alignments.has(rows[name])}
    n_units = max((max(each, default=0) for each in units.values()), default=0) + 1
    if options.n_units is not None and options.n_units < n_units:
        raise ConfigError(f"--n-units {options.n_units}: the file has unit {n_units - 1}")
    scores = score_units(
        [np.array(each, dtype=np.int64) for each in scored.values()],
        list(phones_of(corpus, np.array([rows[name] for name in scored], dtype=np.int64))),
        n_units=options.n_units or n_units,
        n_phones=max(1, len(corpus.alignments.phones)),
        repeat=options.unit_ms // 10,
    )
    found = {"files": len(scored), "without_alignment": len(units) - len(scored)}
    print(json.dumps(found | {"n_units": options.n_units or n_units} | scores.table(), indent=2))


def read_units(path: Path) -> dict[str, list[int]]:
    """Units by name of the file. Raises DataError naming the line."""
    found: dict[str, list[int]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name = entry["file"]
            units = entry["units"]
            is_sound = isinstance(name, str) and all(type(each) is int for each in units)
        except (ValueError, KeyError, TypeError):
            is_sound = False
        if not is_sound or min(units, default=0) < 0:
            raise DataError(
                f'{path}:{number}: expected {{"file": name, "units": [numbers from 0 on]}}, found '
                f"{line[:80]!r}; extract-units --format discophon writes such lines"
            )
        if name in found:
            raise DataError(f"{path}:{number}: file {name!r} for the second time; leave one out")
        found[name] = units
    if not found:
        raise DataError(f"{path}: no units in it; expected a line for each recording")
    return found


def rows_by_name(corpus: Corpus) -> dict[str, int]:
    """Rows of the manifest by the name of their audio, and by id."""
    manifest = corpus.manifest
    names = {Path(manifest[row].path).stem: row for row in range(len(manifest))}
    return names | {manifest[row].id: row for row in range(len(manifest))}


if __name__ == "__main__":
    sys.exit(main())
