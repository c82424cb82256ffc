"""Normalisation of transcripts: one spelling for each word, by stated rules.

In this order:

1. Unicode NFC. Full-width and half-width forms, Arabic presentation forms and Latin ligatures
   become the letters that they stand for. Characters without a shape disappear, and do not cut the
   word that they stand in: joiners, soft hyphen, marks of direction, variation selectors, tatweel.
2. Tags are dropped: <unk>, [laughter], {breath}, and (noise) where the word names a noise.
3. Apostrophes of every form between two letters, and at the edge of a word that no quotation mark
   begins or ends, become '. Those in pairs are quotation marks. The dot of l·l and the gershayim
   of Hebrew stay between letters.
4. Case. Only a letter whose other case leads back to it is changed: ß becomes ẞ, never SS; ı stays
   what it is, unless the language has it as a small I; Georgian has no capitals in running text.
5. Everything else that is no letter, mark or digit separates words.

The result of a normalised text is that text.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from hubert_pretrain.errors import ConfigError, did_you_mean

Case = Literal["upper", "lower", "keep"]
Tags = Literal["drop", "keep"]
Language = Literal["", "az", "tr"]
CASES = list(get_args(Case))
TAGS = list(get_args(Tags))
LANGUAGES = list(get_args(Language))
"""Languages whose letters have another case than in the rest of the world: i İ, ı I."""

APOSTROPHE = "'"
_QUOTES = (
    "'\u2018\u2019\u201b\u2032\u00b4`\u02bc\u02bb\u02bd\u02b9\u055a\ua78b\ua78c\u05f3\u07f4\u07f5"
)
"""Characters that stand for an apostrophe, or begin and end a quotation. Those of the second line
are letters, or belong to one: in Hawaiian, Uzbek, Ukrainian, Hebrew (geresh).
"""
_OPENING = "\u2018\u201b`"
"""Those that are no apostrophe at the beginning of a word."""
_DOTS = "\u00b7\u2027\u22c5\u2219"
"""The dot between two l of Catalan, and what is written for it."""
_GERSHAYIM = "\u05f4"
_IGNORED = re.compile(
    "[\u00ad\u034f\u061c\u0640\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
"""Characters without a shape of their own, and the tatweel, which only makes a word longer."""
_FORMS = {"<wide>", "<narrow>", "<initial>", "<medial>", "<final>", "<isolated>"}
"""Kinds of compatibility characters that are another form of a letter."""
_COMPATIBLE = ("LATIN ", "GREEK ", "MICRO SIGN")
"""Scripts in which <compat> means that too. (In Thai and Lao it would split vowels.)"""
_PLAIN = re.compile("(?:[A-Z0-9 ]|(?<=[A-Z0-9])'(?=[A-Z0-9]))*")
"""Texts that have only spaces too many."""

_NOISES = (
    "applause breath breathing click cough crosstalk foreign inaudible laugh laughing laughs "
    "laughter lipsmack music noise overlap pause sigh silence sneeze sniff static throat "
    "unclear unintelligible unk unknown vocalized-noise"
)
_TAG = re.compile(
    r"<[^\s<>][^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}"
    rf"|\(+\s*(?:{'|'.join(_NOISES.split())})?\s*\)+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TextRules:
    """The choices of a normaliser."""

    case: str = "upper"
    """upper, lower, or keep: as written."""
    punctuation: str = ""
    """Punctuation marks that are symbols to be learnt, e.g. ",.?!"; others separate words."""
    tags: str = "drop"
    """drop: <unk>, [laughter] are no speech; keep: the words in them are."""
    language: str = ""
    """tr or az: İ is the capital of i, and I that of ı."""

    def __post_init__(self) -> None:
        for name, choices in (("case", CASES), ("tags", TAGS), ("language", LANGUAGES)):
            value = getattr(self, name)
            if value not in choices:
                expected = ", ".join(choice or "''" for choice in choices)
                raise ConfigError(
                    f"task.{name}={value!r}: expected one of {expected}"
                    f"{did_you_mean(str(value), choices)}"
                )
        for character in self.punctuation:
            if character in "'|" or unicodedata.category(character)[0] not in "PS":
                raise ConfigError(
                    f"task.punctuation={self.punctuation!r}: {character!r} cannot be a symbol; "
                    "expected punctuation marks other than | and ', which have a meaning already"
                )

    @staticmethod
    def of_checkpoint(extra: Mapping[str, Any]) -> TextRules:
        """The rules of the texts of a CTC model: those that its "extra" states, else the case of
        its letters, and the marks among its symbols.
        """
        if stated := extra.get(RULES_KEY):
            return TextRules(**stated)
        symbols = [str(symbol) for symbol in extra.get("vocabulary") or ()]
        characters = [symbol for symbol in symbols if len(symbol) == 1]
        upper = any(each.isupper() for each in characters)
        lower = any(each.islower() for each in characters)
        case = "lower" if lower else "upper"
        marks = [each for each in characters if unicodedata.category(each).startswith("P")]
        return TextRules(
            "keep" if upper and lower else case,
            "".join(mark for mark in marks if mark != APOSTROPHE),
        )


RULES_KEY = "text_rules"
"""Key of a checkpoint's "extra" for the rules of its texts."""
DEFAULT_RULES = TextRules()


@dataclass
class TextReport:
    """Count of the changes that normalisation made to the transcripts of a split."""

    texts: int = 0
    changed: int = 0
    """Transcripts with another change than of case."""
    with_tags: int = 0
    dotless: int = 0
    """Transcripts with a Turkish ı or İ, read without a language that has them."""
    tags: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    """Characters that normalised transcripts have not: dropped, or written in another way."""
    examples: list[list[str]] = field(default_factory=list)
    """Transcripts before and after, the first ones."""

    def warnings(self) -> list[str]:
        """One line for each change that may lose speech."""
        found = []
        if self.with_tags:
            names = ", ".join(tag for tag, _ in self.tags.most_common(5))
            found.append(
                f"{self.with_tags} of {self.texts} transcripts hold tags, which are dropped: "
                f"{names}; task.tags=keep makes words of them"
            )
        if self.dotless:
            found.append(
                f"{self.dotless} of {self.texts} transcripts hold ı or İ, but task.language is not "
                "set, so that I and i are one letter; set task.language=tr (or az)"
            )
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values; of characters and tags the most frequent."""
        return {
            "texts": self.texts,
            "changed": self.changed,
            "with_tags": self.with_tags,
            "tags": dict(self.tags.most_common(100)),
            "characters": {
                f"{character} {unicodedata.name(character, f'U+{ord(character):04X}')}": count
                for character, count in self.characters.most_common(200)
            },
            "examples": self.examples,
        }


_EXAMPLES = 20


def normalise(text: str, rules: TextRules = DEFAULT_RULES, report: TextReport | None = None) -> str:
    """Words with single spaces between them; see the head of this file.

    Args:
        report: counts what was changed.

    >>> normalise("Don\u2019t  stop -- now!")
    "DON'T STOP NOW"
    """
    if rules.case == "upper" and not rules.language and _PLAIN.fullmatch(text):
        result = " ".join(text.split())
    else:
        result = _normalise(text, rules, report)
    if report is not None:
        _count(report, text, result, rules)
    return result


def _normalise(text: str, rules: TextRules, report: TextReport | None) -> str:
    text = unicodedata.normalize("NFC", _IGNORED.sub("", unicodedata.normalize("NFC", text)))
    text = unicodedata.normalize("NFC", _IGNORED.sub("", text.translate(_forms())))
    if rules.tags == "drop":
        if report is not None:
            tags = [match.lower() for match in _TAG.findall(text)]
            report.tags.update(tags)
            report.with_tags += bool(tags)
        text = _TAG.sub(" ", text)
    if not text.isascii():
        text = _without_stray_marks(text)
    if not _SPECIAL.isdisjoint(text):
        text = _apostrophes(text)
    text = unicodedata.normalize("NFC", text.translate(_characters(rules)))
    if rules.case == "lower":
        text = text.replace("I", "ı").replace("İ", "i") if rules.language else text
        text = unicodedata.normalize("NFC", text.lower())
    return " ".join(text.split())


def _count(report: TextReport, text: str, result: str, rules: TextRules) -> None:
    report.texts += 1
    if not rules.language and rules.case != "keep" and re.search("[ıİ]", text):
        report.dotless += 1
    if result.lower() == text.lower():
        return
    report.changed += 1
    remaining = set(result) | set(result.lower()) | set(result.upper())
    report.characters.update(
        character for character in text if character not in remaining and not character.isspace()
    )
    if len(report.examples) < _EXAMPLES:
        report.examples.append([text, result])


# -- characters


class _Table(dict[int, str]):
    """A table of `str.translate` that is computed as characters occur."""

    def __init__(self, compute: Any) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, code: int) -> str:
        value: str = self._compute(chr(code))
        self[code] = value
        return value


@functools.cache
def _forms() -> _Table:
    return _Table(_form)


def _form(character: str) -> str:
    """The letters that a compatibility form stands for; any other character as it is."""
    if character == "ŉ":
        return "'n"
    kind = unicodedata.decomposition(character).partition(" ")[0]
    compatible = kind == "<compat>" and unicodedata.name(character, "").startswith(_COMPATIBLE)
    if kind in _FORMS or (compatible and unicodedata.category(character)[0] in "LM"):
        return unicodedata.normalize("NFKC", character)
    return character


@functools.cache
def _characters(rules: TextRules) -> _Table:
    """Case, and a space for what is no part of a word."""

    def convert(character: str) -> str:
        if character in (APOSTROPHE, _DOTS[0], _GERSHAYIM):
            return character  # those that remain are parts of words
        if character in rules.punctuation:
            return character
        if not _is_part_of_word(character):
            return " "
        return _upper(character, rules.language) if rules.case == "upper" else character

    return _Table(convert)


def _upper(character: str, language: str) -> str:
    """The capital, where it leads back to the letter; for Georgian the letter of running text."""
    if language:
        if character in "ıI":
            return "I"
        if character in "iİ":
            return "İ"
    if character in "ßẞ":
        return "ẞ"
    if character == "ς":  # the form of σ at the end of a word
        return "Σ"
    small = unicodedata.normalize("NFC", character.lower())
    capital = unicodedata.normalize("NFC", small.title())
    return capital if unicodedata.normalize("NFC", capital.lower()) == small else small


def _is_part_of_word(character: str) -> bool:
    """Letters, marks and numbers (Unicode categories L, M, N), without enclosing marks and letters
    that are apostrophes.
    """
    category = unicodedata.category(character)
    return category[0] in "LMN" and category != "Me" and character not in _QUOTES


def _without_stray_marks(text: str) -> str:
    """The text without combining marks that follow no letter or digit."""
    result: list[str] = []
    for character in text:
        is_mark = unicodedata.category(character)[0] == "M"
        if not is_mark or (result and _is_part_of_word(result[-1])):
            result.append(character)
    return "".join(result)


# -- apostrophes


def _apostrophes(text: str) -> str:
    """Apostrophes as ', quotation marks as spaces, dots and gershayim only inside words."""
    characters = list(_SEVERAL.sub('"', text))
    letters = [_is_part_of_word(character) for character in characters]
    open_quotes: list[int] = []  # places of what may be a quotation mark without its end
    for i, character in enumerate(characters):
        if character not in _SPECIAL:
            continue
        before = i > 0 and letters[i - 1]
        after = i + 1 < len(letters) and letters[i + 1]
        if character in _QUOTES:
            characters[i] = _quote(characters, i, before, after, open_quotes)
        elif not (before and after):
            characters[i] = " "
        elif character in _DOTS:
            latin = _is_latin(_base(characters, i - 1)) and _is_latin(characters[i + 1])
            characters[i] = _DOTS[0] if latin else " "
        elif not (_is_hebrew(characters[i - 1]) and _is_hebrew(characters[i + 1])):
            characters[i] = " "
        else:
            characters[i] = _GERSHAYIM
    return "".join(characters)


_SPECIAL = frozenset(_QUOTES + _DOTS + _GERSHAYIM + '"')
_SEVERAL = re.compile(f"[{_QUOTES}]{{2,}}")
"""Quotation marks, as ``this'' or ''this''."""


def _quote(characters: list[str], i: int, before: bool, after: bool, open_quotes: list[int]) -> str:
    """The character for one of `_QUOTES` at place i; the end of a quotation removes its
    beginning.
    """
    if before and after:
        return APOSTROPHE
    spaced_before = i == 0 or characters[i - 1].isspace()
    spaced_after = i + 1 == len(characters) or characters[i + 1].isspace()
    if after or (spaced_before and not spaced_after):
        open_quotes.append(i)
        return APOSTROPHE if after and characters[i] not in _OPENING else " "
    if not before and spaced_before:
        return " "  # stands alone
    if open_quotes:
        characters[open_quotes.pop()] = " "
        return " "
    return APOSTROPHE if before else " "


def _base(characters: list[str], i: int) -> str:
    """The letter that the combining marks up to place i belong to."""
    while i > 0 and unicodedata.category(characters[i])[0] == "M":
        i -= 1
    return characters[i]


def _is_latin(character: str) -> bool:
    return unicodedata.name(character, "").startswith("LATIN ")


def _is_hebrew(character: str) -> bool:
    return unicodedata.name(character, "").startswith("HEBREW ")
