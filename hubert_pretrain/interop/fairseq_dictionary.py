"""Dictionaries of fairseq: the symbol of each row of a head.

The four special symbols come first. Clusters are written as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import write_text
from hubert_pretrain.interop.pickles import Inert

SPECIAL_NAMES = ["<s>", "<pad>", "</s>", "<unk>"]
SPECIAL_SYMBOLS = len(SPECIAL_NAMES)
"""Rows before the symbols of a dictionary. With clusters they are never a target."""
BLANK = "<pad>"
"""CTC's blank, here and in `transformers`."""
BLANK_SWAP = {"<s>": BLANK, BLANK: "<s>"}
"""Swapped names: fairseq's CTC blank is its row 0, `<s>`; here and in `transformers` the blank is
called `<pad>`. The rows stay.
"""


def read_dictionary(path: str | Path) -> list[str]:
    """All symbols of a `dict.km.txt` or `dict.ltr.txt` ("symbol count" in each line), after the
    four special ones.

    Raises ArtefactError naming the first line of another form.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(
            f"{path}: cannot be read as a dictionary ({error}); expected lines such as 'E 51860'"
        ) from error
    symbols = list(SPECIAL_NAMES)
    for number, line in enumerate(lines, start=1):
        symbol, _, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not symbol or not count.isdigit():
            raise ArtefactError(
                f"{path}: line {number} is {line[:40]!r}, "
                "expected a symbol and a count such as 'E 51860'"
            )
        symbols.append(symbol)
    return symbols


def ctc_symbols(path: str | Path, rows: int) -> list[str]:
    """The symbol of each row of a CTC head by its `dict.ltr.txt`, under our names.

    Of the four special symbols a head has all, or only the blank (torchaudio's published models).
    Raises ArtefactError when the dictionary does not fit.
    """
    symbols = [BLANK_SWAP.get(symbol, symbol) for symbol in read_dictionary(path)]
    if len(symbols) - SPECIAL_SYMBOLS + 1 == rows:
        symbols = [symbols[0], *symbols[SPECIAL_SYMBOLS:]]
    return check_symbols(symbols, rows, Path(path), "dictionary")


def check_symbols(symbols: list[str], rows: int, path: Path, what: str = "vocabulary") -> list[str]:
    """`symbols`, when they are distinct and one for each row of a head; otherwise ArtefactError."""
    if len(symbols) != rows or len(set(symbols)) != rows:
        found = f"{len(symbols)} symbols, {len(set(symbols))} of them distinct"
        raise ArtefactError(
            f"{path}: the {what} does not fit the head: {found}, where {rows} were expected, "
            "one per row of the head"
        )
    return symbols


def write_dictionary(path: str | Path, counts: Mapping[str, int]) -> None:
    """Writes a `dict.km.txt` or `dict.ltr.txt`, sorted as fairseq sorts: the most frequent symbol
    first, equal counts by name.

    Raises ArtefactError for a symbol with a blank in it, or one of the four special ones.
    """
    for symbol in counts:
        if not symbol or symbol.split() != [symbol] or symbol in SPECIAL_NAMES:
            raise ArtefactError(
                f"{path}: {symbol!r} cannot be a symbol of a dictionary "
                "(empty, with a blank, or special); rename it"
            )
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    write_text(Path(path), "".join(f"{symbol} {count}\n" for symbol, count in ordered))


def stored_dictionaries(content: dict[str, Any]) -> list[list[str]] | None:
    """The symbols of each dictionary inside a checkpoint of fairseq or s3prl; None when there are
    none.
    """
    found = None
    state = content.get("task_state")
    if "dictionaries_symbols" in content:  # s3prl
        found = content["dictionaries_symbols"]
    elif isinstance(state, dict):  # fairseq: of a CTC task, or of pretraining
        found = state.get("target_dictionary") or state.get("dictionaries")
    items = found if isinstance(found, list) else [found]
    symbols = [vars(item).get("symbols") if isinstance(item, Inert) else item for item in items]
    if not symbols or not all(isinstance(item, list) for item in symbols):
        return None
    return [[str(symbol) for symbol in item] for item in symbols if isinstance(item, list)]


def cluster_rows(symbols: list[str]) -> list[int]:
    """Row of each cluster 0 ... K-1 in a dictionary, not counting the special symbols.

    Row and cluster differ in a dictionary that is sorted by frequency. Symbols other than the
    numbers 0 ... K-1 stand for the clusters in their order.
    """
    clusters = symbols[SPECIAL_SYMBOLS:]
    rows = {symbol: row for row, symbol in enumerate(clusters)}
    numbers = [str(cluster) for cluster in range(len(clusters))]
    if rows.keys() != set(numbers):
        return list(range(len(clusters)))
    return [rows[number] for number in numbers]


def cluster_dictionary(n_clusters: int) -> list[str]:
    """Symbols of the dictionary of a codebook whose clusters are in their own order."""
    return [*SPECIAL_NAMES, *map(str, range(n_clusters))]
