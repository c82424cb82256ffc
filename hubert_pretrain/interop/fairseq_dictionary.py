"""fairseq's dictionaries: which symbol each row of a head stands for. Four special symbols come
first; clusters are written as numbers.
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
"""Rows that a dictionary puts before its symbols; for clusters they are never a target."""
BLANK_SWAP = {"<s>": "<pad>", "<pad>": "<s>"}
"""fairseq's CTC blank is its row 0, `<s>`; here and in `transformers` the blank is called `<pad>`.
The rows stay, the names swap.
"""


def read_dictionary(path: str | Path) -> list[str]:
    """All symbols of a `dict.km.txt` or `dict.ltr.txt` ("symbol count" in each line), the four
    special ones first.

    Raises ArtefactError naming the line that is none.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(
            f"{path}: cannot be read as a dictionary ({error}); expected lines such as 'E 51860'"
        ) from error
    symbols = list(SPECIAL_NAMES)
    for number, line in enumerate(lines, start=1):
        symbol, _, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not symbol or not count.isdigit():
            raise ArtefactError(
                f"{path}: line {number} is {line[:40]!r}, expected a symbol and a count such as 'E 51860'"
            )
        symbols.append(symbol)
    return symbols


def write_dictionary(path: str | Path, counts: Mapping[str, int]) -> None:
    """Writes a `dict.km.txt` or `dict.ltr.txt`, the most frequent symbol first as fairseq sorts
    them, equal counts by name.

    Raises ArtefactError for a symbol with a blank in it, or one of the four special ones.
    """
    for symbol in counts:
        if not symbol or symbol.split() != [symbol] or symbol in SPECIAL_NAMES:
            raise ArtefactError(
                f"{path}: {symbol!r} cannot be a symbol of a dictionary (empty, with a blank, or special); rename it"
            )
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    write_text(Path(path), "".join(f"{symbol} {count}\n" for symbol, count in ordered))


def stored_dictionaries(content: dict[str, Any]) -> list[list[str]] | None:
    """The symbols of each dictionary in a checkpoint, of fairseq's task or of s3prl; None when
    there are none.
    """
    state = content.get("task_state")
    found = (
        state.get("target_dictionary") or state.get("dictionaries")
        if isinstance(state, dict)
        else None
    )
    found = content.get("dictionaries_symbols") if "dictionaries_symbols" in content else found
    items = found if isinstance(found, list) else [found]
    symbols = [vars(item).get("symbols") if isinstance(item, Inert) else item for item in items]
    if not symbols or not all(isinstance(item, list) for item in symbols):
        return None
    return [[str(symbol) for symbol in item] for item in symbols if isinstance(item, list)]


def cluster_rows(symbols: list[str]) -> list[int]:
    """Of each cluster 0 ... K-1, its row in a dictionary (after the special ones): they differ when
    it is sorted by frequency.

    Symbols that are not the numbers 0 ... K-1 stand for clusters in their order.
    """
    clusters = symbols[SPECIAL_SYMBOLS:]
    rows = {symbol: row for row, symbol in enumerate(clusters)}
    numbers = [str(cluster) for cluster in range(len(clusters))]
    return (
        [rows.get(number, -1) for number in numbers]
        if rows.keys() == set(numbers)
        else list(range(len(clusters)))
    )


def cluster_dictionary(n_clusters: int) -> list[str]:
    """The symbols of a codebook in its own order."""
    return [*SPECIAL_NAMES, *map(str, range(n_clusters))]
