"""Lexicons: words and their spellings in the symbols of a model."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from hubert_pretrain.decoding.ngram import BEGIN, END, UNKNOWN
from hubert_pretrain.decoding.spelling import BOUNDARY, Spelling
from hubert_pretrain.decoding.word_scores import Lexicon
from hubert_pretrain.errors import DataError

MOST_UNSPELT = 0.5
"""A larger share of words that the symbols cannot spell is an error: the vocabulary is another."""

log = logging.getLogger(__name__)


def read_lexicon(path: Path, spelling: Spelling) -> Lexicon:
    """The words of a file: one a line, alone or with its spelling, symbols with spaces between them
    and a boundary at the end or not (`HELLO H E L L O |`, as fairseq and flashlight have it). A
    word may have several lines.

    Raises DataError for a file that is not there, a spelling in symbols that the model has not, or
    words of another vocabulary.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a lexicon with a word per line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text; save the file as UTF-8") from error
    ids = {symbol: index for index, symbol in enumerate(spelling.symbols)}
    alone: list[str] = []
    found: dict[str, list[list[int]]] = {}
    for number, line in enumerate(lines, start=1):
        word, *symbols = line.split() or [""]
        if not word:
            continue
        if not symbols:
            alone.append(word)
            continue
        if symbols[-1] == BOUNDARY:
            symbols.pop()
        unknown = [symbol for symbol in symbols if symbol not in ids]
        if unknown:
            raise DataError(
                f"{path}: line {number} spells {word!r} with {unknown[0]!r}, which the model has "
                f"not; its symbols are {' '.join(spelling.symbols[:12])}...: give a lexicon of "
                "this vocabulary, or words alone"
            )
        found.setdefault(word, []).append([ids[symbol] for symbol in symbols])
    return {**(lexicon_of(alone, spelling, str(path)) if alone or not found else {}), **found}


def lexicon_of(words: Iterable[str], spelling: Spelling, place: str) -> Lexicon:
    """Words spelt by the symbols of a model. Words that they cannot spell are left out and counted.

    Args:
        place: of the words, for messages.

    Raises:
        DataError: no word, or most of them cannot be spelt.
    """
    found: dict[str, list[list[int]]] = {}
    unspelt = []
    for word in words:
        if word in (BEGIN, END, UNKNOWN):
            continue
        ids = spelling.ids(word)
        if ids is None:
            unspelt.append(word)
        else:
            found[word] = [ids]
    if not found and not unspelt:
        raise DataError(f"{place}: has no words; give a file or a text with words")
    if unspelt:
        text = (
            f"{place}: {len(unspelt)} of {len(unspelt) + len(found)} words ({_some(unspelt)}) have "
            f"{spelling.unit} that the model has not"
        )
        if len(unspelt) > MOST_UNSPELT * (len(unspelt) + len(found)):
            raise DataError(
                f"{text}; its symbols are {' '.join(spelling.symbols[:12])}...: give words in the "
                "case and the writing of the model"
            )
        log.warning("%s; they are left out", text)
    return found


def _some(words: list[str]) -> str:
    return ", ".join(words[:5]) + (", ..." if len(words) > 5 else "")
