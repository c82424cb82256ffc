"""The phones of texts by espeak-ng, in any of its languages, without speaking them."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence

from hubert_pretrain.corpora.speech_synthesis import espeak
from hubert_pretrain.errors import DataError

# espeak_Initialize, espeak_TextToPhonemes
_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_UTF8 = 1
_IPA = 0x02
_SEPARATOR = "_"

SOUND = re.compile(r"t[ʃɕs]|d[ʒʑz]|[aeoɑɔəɛ][ɪʊ]|[a-zɐ-ʯæçðøŋœβθχ]")
"""An affricate, a diphthong or one letter of the IPA."""
SAME = {"ʔ": "t", "ɐ": "ə", "ɫ": "l"}
"""Sounds that espeak-ng tells apart, and few recordings can."""


def pronounce(texts: Sequence[str], voice: str) -> list[list[list[str]]]:
    """The phones of the words of each text. Words that are spoken as one (out of) are one.

    Args:
        texts: any case; capitals are not spelt.
        voice: a file of espeak-ng's `lang`, such as "gmw/en-US".

    Raises:
        DataError: espeak-ng is missing or has no such voice.
    """
    library, data = espeak.locate()
    espeak.check_voice(voice, data)
    speaker = ctypes.CDLL(str(library))
    speaker.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), _DONT_EXIT)
    if speaker.espeak_SetVoiceByName(voice.encode()) != 0:
        raise DataError(
            f"espeak-ng refuses the voice {voice!r}; choose a file of {data / 'lang'}, such as "
            "'gmw/en-US'"
        )
    convert = speaker.espeak_TextToPhonemes
    convert.restype = ctypes.c_char_p
    form = _IPA | ord(_SEPARATOR) << 8
    found = []
    for text in texts:
        words: list[list[str]] = []
        left = ctypes.c_char_p(text.lower().encode())
        while left.value is not None:  # a clause at a time
            clause = convert(ctypes.byref(left), _UTF8, form).decode()
            words += [phones for word in clause.split() if (phones := phones_of(word))]
        found.append(words)
    return found


def phones_of(word: str) -> list[str]:
    """The phones of a word of espeak-ng's, with _ between its phonemes. A phoneme of two sounds
    (ɔːɹ, əl, aɪɚ) is two phones; diphthongs and affricates are one.
    """
    phones = []
    for symbol in word.split(_SEPARATOR):
        name = espeak.phone_name(symbol) if symbol else espeak.SILENCE
        if name != espeak.SILENCE:
            phones += [SAME.get(sound, sound) for sound in SOUND.findall(name)]
    return phones
