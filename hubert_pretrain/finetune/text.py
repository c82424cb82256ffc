"""Vocabulary of a CTC model: characters, pieces of words (BPE), or phones. U symbols of a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubert_pretrain.decoding.pieces import bpe_tokenizer, misfits, train_pieces
from hubert_pretrain.decoding.spelling import BOUNDARY, PIECE_MARK, Spelling
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.files import read_json
from hubert_pretrain.interop.transformers_reader import PRESERVED_FILE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BLANK = "<pad>"
"""CTC's blank, under its name in `transformers`, where the padding token is the blank."""
UNKNOWN = "<unk>"
"""Stands for a character that no training transcript has. It is never trained, so a model does not
predict it.
"""
MERGES_KEY = "merges"
"""Key of a checkpoint's "extra" for the merges of BPE."""
PHONES_KEY = "phones"
"""Key of a checkpoint's "extra" that is true where symbols are phones."""
_SPECIAL = {BLANK, UNKNOWN, BOUNDARY, "<s>", "</s>", "<blank>", "<blk>", "[PAD]", "[UNK]"}
_SHOWN = 30


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a CTC model. Index 0 is the blank, so a checkpoint only stores the list of
    symbols. Decoding needs no other; models from elsewhere may lack `UNKNOWN` and `BOUNDARY`.
    """

    symbols: tuple[str, ...]
    merges: tuple[tuple[str, str], ...] = ()
    """Of BPE; without them pieces are the longest that fit."""
    phones: bool = False
    """A text is phones with spaces between them."""
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        is_blank_first = self.symbols[:1] == (BLANK,)
        is_distinct = len(set(self.symbols)) == len(self.symbols)
        if not (is_blank_first and is_distinct):
            raise ArtefactError(
                f"not a CTC vocabulary: {list(self.symbols)[:8]}...; expected distinct symbols, "
                f"{BLANK!r} first"
            )
        if lacking := misfits(self.symbols, self.merges):
            raise ArtefactError(
                f"not a vocabulary of BPE: its merges name {lacking[0]!r}, which is no symbol"
            )
        ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        object.__setattr__(self, "_ids", ids)

    @staticmethod
    def of_texts(texts: Iterable[str]) -> Vocabulary:
        """The characters of normalised training transcripts: three special symbols, then every
        character they use, sorted.
        """
        characters = sorted(set().union(*map(set, texts)) - {" "})
        return Vocabulary((BLANK, UNKNOWN, BOUNDARY, *characters))

    @staticmethod
    def of_pieces(texts: Sequence[str], size: int, key: str = "task.vocabulary_size") -> Vocabulary:
        """Pieces of words of normalised training transcripts; see `train_pieces`."""
        symbols, merges = train_pieces(texts, size, (BLANK, UNKNOWN), key)
        return Vocabulary(tuple(symbols), tuple((first, second) for first, second in merges))

    @staticmethod
    def of_phones(texts: Iterable[str]) -> Vocabulary:
        """The phones of training transcripts in phones: two special symbols, then every phone."""
        found = sorted(set().union(*(text.split() for text in texts)) - {UNKNOWN})
        return Vocabulary((BLANK, UNKNOWN, *found), phones=True)

    @staticmethod
    def of_card(card: Mapping[str, Any]) -> Vocabulary:
        """That of a checkpoint, from its "extra"."""
        return Vocabulary(
            tuple(str(symbol) for symbol in card["vocabulary"]),
            tuple((str(first), str(second)) for first, second in card.get(MERGES_KEY, ())),
            bool(card.get(PHONES_KEY)),
        )

    def card(self) -> dict[str, Any]:
        """Plain JSON values for `of_card`."""
        found: dict[str, Any] = {"vocabulary": list(self.symbols)}
        if self.merges:
            found[MERGES_KEY] = [list(pair) for pair in self.merges]
        if self.phones:
            found[PHONES_KEY] = True
        return found

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def unit(self) -> str:
        """Name of a symbol in messages."""
        if self.phones:
            return "phones"
        return "pieces" if self._has_pieces else "characters"

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling(self.symbols)

    @property
    def _has_pieces(self) -> bool:
        return self._spelling.unit == "pieces"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """That of BPE."""
        return bpe_tokenizer(self.symbols, self.merges, UNKNOWN)

    def ids(self, text: str) -> list[int]:
        """A normalised transcript as U ids; what the vocabulary cannot spell becomes
        `UNKNOWN`.
        """
        has_boundary = not (self.phones or self._has_pieces)
        needed = (UNKNOWN, BOUNDARY) if has_boundary else (UNKNOWN,)
        lacking = [symbol for symbol in needed if symbol not in self._ids]
        if lacking:
            raise ArtefactError(
                f"a vocabulary without {' and '.join(lacking)} can be decoded, not trained on"
            )
        unknown = self._ids[UNKNOWN]
        if self.merges:
            return list(self.tokenizer.encode(text).ids)
        if self._has_pieces and not self.phones:
            spelt = [self._spelling.ids(word) for word in text.split()]
            return [index for ids in spelt for index in ids or [unknown]]
        symbols: Sequence[str] = text.replace(" ", BOUNDARY)
        if self.phones:
            symbols = text.split()
        return [self._ids.get(symbol, unknown) for symbol in symbols]

    @property
    def spell(self) -> Callable[[str], list[int] | None] | None:
        """The symbols of a word as a model of BPE has learnt it; None where `Spelling.ids` has
        them.
        """
        return self._spell if self.merges else None

    def _spell(self, word: str) -> list[int] | None:
        ids = self.ids(word)
        return None if self._ids[UNKNOWN] in ids else ids

    def text(self, ids: Sequence[int]) -> str:
        """Text of ids without blanks and repeats, as `transformers.Wav2Vec2CTCTokenizer` joins
        characters, and with spaces between words of pieces, and phones.
        """
        if self.phones:
            return " ".join(self.symbols[index] for index in ids)
        if self._has_pieces:
            return self._spelling.text(ids)
        symbols = [self.symbols[index] for index in ids]
        return "".join(" " if symbol == BOUNDARY else symbol for symbol in symbols).strip()

    def unknown(self, text: str) -> list[str]:
        """The characters of a normalised transcript that the vocabulary lacks, or its phones."""
        if self.phones:
            return [phone for phone in text.split() if phone not in self._ids or phone == UNKNOWN]
        return [each for each in text if each != " " and each not in self._ids]

    def count_unknown(self, texts: Iterable[str]) -> Counter[str]:
        """Counts of `unknown` over normalised transcripts."""
        return Counter(symbol for text in texts for symbol in self.unknown(text))


def listed(counts: Counter[str]) -> str:
    """Symbols with their counts, the most frequent first: "É 3, Ñ 1"."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = ", ".join(f"{symbol} {count}" for symbol, count in ordered[:_SHOWN])
    return shown + (", ..." if len(ordered) > _SHOWN else "")


def frames_needed(ids: Sequence[int]) -> int:
    """The fewest frames in which CTC can spell U ids: one each, and a blank between two equal
    neighbours (Graves et al. 2006, eq. 2).
    """
    return len(ids) + sum(left == right for left, right in pairwise(ids))


# -- vocabularies of files


def read_vocabulary(path: Path, key: str) -> Vocabulary:
    """The vocabulary of a file, in an order of its own: the head is new.

    | file | content |
    |---|---|
    | folder of a checkpoint of ours or of an export | its vocabulary, with the merges of BPE |
    | tokenizer.json | BPE of `tokenizers` that marks words as sentencepiece does |
    | vocab.json | {symbol: number} of `transformers` |
    | other | a symbol per line, a count may follow (fairseq's dict.ltr.txt) |

    Raises ConfigError, naming `key`, for anything else.
    """
    path = path.expanduser()
    if path.is_dir():
        return _of_folder(path, key)
    if not path.is_file():
        raise ConfigError(
            f"{key}={path}: there is no such file; name a checkpoint, a vocab.json, or a text file "
            "with a symbol per line"
        )
    if path.suffix == ".json":
        stored = read_json(path)
        if isinstance(stored, dict) and isinstance(stored.get("model"), dict):
            return _of_tokenizer(stored["model"], path, key)
        if not isinstance(stored, dict) or not all(isinstance(n, int) for n in stored.values()):
            raise ConfigError(
                f"{key}={path}: is no vocabulary; expected {{symbol: number}}, or the "
                "tokenizer.json of BPE"
            )
        return _of_symbols(sorted(stored, key=stored.__getitem__), path, key)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{key}={path}: no UTF-8 text; expected a symbol per line (of sentencepiece the .vocab "
            "has no merges: train pieces from the transcripts, task.units=pieces)"
        ) from error
    return _of_symbols([line.split()[0] for line in lines if line.strip()], path, key)


def _of_folder(folder: Path, key: str) -> Vocabulary:
    for name in ("config.json", PRESERVED_FILE):
        stored = read_json(folder / name)
        extra = stored.get("extra") if isinstance(stored, dict) else None
        if isinstance(extra, dict) and extra.get("vocabulary"):
            return Vocabulary.of_card(extra)
    for name in ("tokenizer.json", "vocab.json"):
        if (folder / name).is_file():
            return read_vocabulary(folder / name, key)
    raise ConfigError(
        f"{key}={folder}: no checkpoint of a CTC model with a vocabulary is there; name one, or a "
        "file"
    )


def _of_tokenizer(model: Mapping[str, Any], path: Path, key: str) -> Vocabulary:
    numbers = model.get("vocab")
    marked = isinstance(numbers, dict) and any(each.startswith(PIECE_MARK) for each in numbers)
    if model.get("type") != "BPE" or not marked:
        raise ConfigError(
            f"{key}={path}: is {model.get('type')!r}, expected BPE whose pieces begin with "
            f"{PIECE_MARK!r} where a word does; train pieces from the transcripts, "
            "task.units=pieces"
        )
    assert isinstance(numbers, dict)
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    symbols = [each for each in sorted(numbers, key=numbers.__getitem__) if each not in _SPECIAL]
    return Vocabulary(
        (BLANK, UNKNOWN, *symbols), tuple((first, second) for first, second in merges)
    )


def _of_symbols(symbols: Sequence[str], path: Path, key: str) -> Vocabulary:
    own = [symbol for symbol in symbols if symbol not in _SPECIAL]
    longer = [symbol for symbol in own if len(symbol) != 1]
    if longer or not own or len(set(own)) != len(own):
        found = f"symbols such as {longer[0]!r}" if longer else "no symbols, or one of them twice"
        raise ConfigError(
            f"{key}={path}: holds {found}; expected characters, each once (phones come from the "
            "transcripts, pieces from a tokenizer.json with merges)"
        )
    return Vocabulary((BLANK, UNKNOWN, BOUNDARY, *own))
