"""One spelling for each word: every rule of the normaliser, its options, and its report."""

from __future__ import annotations

import dataclasses
import random
import unicodedata

import pytest

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.normalisation import (
    CASES,
    TAGS,
    TextReport,
    TextRules,
    normalise,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don\u2019t  stop -- now!", "DON'T STOP NOW"),
        ("MISTER QUILTER IS", "MISTER QUILTER IS"),
        ("e\u0301te\u0301, 1984", "ÉTÉ 1984"),
        (" \t\n?! ", ""),
        ("a|b c", "A B C"),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u0646\u200c\u0645 a\u200db", "\u0646\u0645 AB"),  # joiners
        ("so\u00adft", "SOFT"),
        ("le\u200eft \u2067right\u2069", "LEFT RIGHT"),  # marks of direction
        ("a\ufe0fb 1\ufe0f\u20e3 \u2764\ufe0f", "AB 1"),  # variation selectors
        ("\u0643\u0640\u062a\u0627\u0628", "\u0643\u062a\u0627\u0628"),  # tatweel
        ("zero\u200bwidth", "ZERO WIDTH"),  # this one is a space
    ],
)
def test_characters_without_a_shape_cut_no_word(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize("mark", list("'\u2018\u2019\u201b\u2032\u00b4`\u02bc\u02bb\uff07\u055a"))
def test_every_apostrophe_between_letters_is_the_same(mark: str) -> None:
    assert normalise(f"don{mark}t") == "DON'T"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u2018Hello\u2019 he said", "HELLO HE SAID"),
        ("'hello' he said", "HELLO HE SAID"),
        ("\u201cHello\u201d he said", "HELLO HE SAID"),
        ("\u2018I\u2019m not a serpent!\u2019", "I'M NOT A SERPENT"),
        ("''hello'' ``there''", "HELLO THERE"),
        ("'he said 'no' to me'", "HE SAID NO TO ME"),
        ("the dogs' bowl", "THE DOGS' BOWL"),
        ("'tis true, rock 'em", "'TIS TRUE ROCK 'EM"),
        ("a ' b", "A B"),
    ],
)
def test_quotation_marks_are_no_letters(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("col\u00b7lega co\u0140lega", "COL·LEGA COL·LEGA"),
        ("\u99ac\u514b\u00b7\u5410\u6eab", "\u99ac\u514b \u5410\u6eab"),
        ("\u05d2\u05f3\u05d9", "\u05d2'\u05d9"),
        ('\u05e6\u05d4"\u05dc \u05e6\u05d4\u05f4\u05dc', "\u05e6\u05d4\u05f4\u05dc " * 2),
        ('a"b', "A B"),
    ],
)
def test_marks_inside_words_of_some_languages(text: str, expected: str) -> None:
    assert normalise(text) == expected.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[laughter] hello <unk> (noise) {breath}", "HELLO"),
        ("a <pad> ((unintelligible)) b </s>", "A B"),
        ("the man (my uncle) and 3 < 5 > 2", "THE MAN MY UNCLE AND 3 5 2"),
        ("\uff1cunk\uff1e b", "B"),
    ],
)
def test_tags_are_no_words(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_tags_are_words_on_request() -> None:
    assert normalise("[laughter] hello", TextRules(tags="keep")) == "LAUGHTER HELLO"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Stra\u00dfe Strasse", "STRA\u1e9eE STRASSE"),
        ("\u1e9e", "\u1e9e"),
        ("\u03bb\u03cc\u03b3\u03bf\u03c2", "\u039b\u038c\u0393\u039f\u03a3"),
        ("\u0390", "\u03aa\u0301"),
        ("\u0149", "'N"),
        ("\u10d0\u10d1 \u1c90\u1c91", "\u10d0\u10d1 \u10d0\u10d1"),  # Georgian
        ("\uff28\uff45\uff4c\uff4c\uff4f\uff11", "HELLO1"),
        ("\uff76\uff9e", "\u30ac"),
        ("\ufb01 \u0133 \u017f", "FI IJ S"),
        ("\u0e19\u0e49\u0e33", "\u0e19\u0e49\u0e33"),  # a vowel of Thai stays whole
        ("\ufe8f\ufe90", "\u0628\u0628"),
    ],
)
def test_letters_keep_apart_and_forms_become_one(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_the_turkish_letters() -> None:
    assert normalise("\u0131l\u0131k ilik") == "\u0131L\u0131K ILIK"  # two words
    turkish = TextRules(language="tr")
    assert normalise("\u0131s\u0131 istanbul \u0130 I", turkish) == "ISI \u0130STANBUL \u0130 I"
    small = TextRules(language="tr", case="lower")
    assert normalise("ISI \u0130STANBUL", small) == "\u0131s\u0131 istanbul"


def test_case_and_punctuation_are_choices() -> None:
    text = "Hello, World! \u039b\u039f\u0393\u039f\u03a3"
    assert normalise(text, TextRules(case="lower")) == "hello world \u03bb\u03bf\u03b3\u03bf\u03c2"
    assert normalise(text, TextRules(case="keep")) == "Hello World \u039b\u039f\u0393\u039f\u03a3"
    assert normalise("Hello, World!", TextRules(punctuation=",!")) == "HELLO, WORLD!"


@pytest.mark.parametrize(
    "wrong", [{"case": "uper"}, {"tags": "no"}, {"language": "xx"}, {"punctuation": "|"}]
)
def test_a_choice_that_is_none(wrong: dict[str, str]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=rf"^task\.{name}="):
        TextRules(**wrong)


def test_normalising_twice_changes_nothing() -> None:
    """Over every letter of the basic plane, and over random mixtures of what is special."""
    draw = random.Random(0)
    special = (
        "aBé'\u2019\u2018\u02bc`\"·lL .,-\u200d\u0301iıİIßςσ(<[>])noise \u05f4\u05d0\uff76\uff9e\n"
    )
    texts = ["".join(draw.choice(special) for _ in range(draw.randrange(14))) for _ in range(8000)]
    texts += [f"a{chr(code)}'b {chr(code)}" for code in range(0x20, 0xD800)]
    for text in texts:
        rules = TextRules(
            case=draw.choice(CASES),
            punctuation=draw.choice(["", ".,!-"]),
            tags=draw.choice(TAGS),
            language=draw.choice(["", "tr"]),
        )
        once = normalise(text, rules)
        assert normalise(once, rules) == once, (text, rules)
        assert unicodedata.is_normalized("NFC", once), (text, rules)


def test_the_report_counts_what_was_changed() -> None:
    report = TextReport()
    for text in ("HELLO THERE", "Hello, <unk> you!", "[Laughter] a\u200db", "\u0131"):
        normalise(text, report=report)
    assert (report.texts, report.changed, report.with_tags, report.dotless) == (4, 2, 2, 1)
    assert report.tags == {"<unk>": 1, "[laughter]": 1}
    assert report.characters["\u200d"] == 1
    assert report.as_json()["characters"]["\u200d ZERO WIDTH JOINER"] == 1
    assert report.examples[0] == ["Hello, <unk> you!", "HELLO YOU"]
    tags, dotless = report.warnings()
    assert tags.startswith("2 of 4 transcripts hold tags, which are dropped: <unk>, [laughter]")
    assert "task.language=tr" in dotless


@pytest.mark.parametrize(
    ("symbols", "case", "punctuation"),
    [
        (["<pad>", "|", "A", "'"], "upper", ""),
        (["<pad>", "|", "a", ",", "-", "¿"], "lower", ",-¿"),
        (["<pad>", "|", "a", "B"], "keep", ""),
        (["<pad>", "你"], "upper", ""),
    ],
)
def test_a_checkpoint_without_rules_has_those_of_its_symbols(
    symbols: list[str], case: str, punctuation: str
) -> None:
    """The same for scores and for alignments."""
    found = TextRules.of_checkpoint({"vocabulary": symbols})
    assert found == TextRules(case, punctuation)
    assert CtcTask.settings_of({"vocabulary": symbols}) == dataclasses.asdict(found)
    stated = {"vocabulary": symbols, "text_rules": {"case": "keep", "language": "tr"}}
    assert TextRules.of_checkpoint(stated) == TextRules("keep", language="tr")
