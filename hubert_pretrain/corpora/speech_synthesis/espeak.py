"""espeak-ng through ctypes: text to speech, with the sample at which every phone begins.

The library and its data come from the wheel `espeakng-loader` (extra `demo`). The structures are
those of `speak_lib.h`, version 1.52. A process can speak only once: the synthesiser keeps the phase
and noise of its oscillators, so a second call gives other samples. `render.py` forks a process for
each utterance.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.errors import DataError, HubertPretrainError, did_you_mean

SILENCE = "sil"
"""The phone name of pauses."""

STOPS = ("p", "b", "t", "d", "k", "ɡ", "ʔ", "ɾ")
"""First letters of phones that begin with a closure (plosives, and the affricates tʃ and dʒ)."""

VOWELS = tuple("aeiouyæɐɑɒɔəɚɛɜɪɵʉʊʌ")
"""First letters of vowels."""

SHORTEST_PAUSE_SECONDS = 0.02
"""A silent gap before a sound other than a stop is a pause from this length on (one hop of the
model).
"""

# espeak_Initialize
_SYNCHRONOUS = 2
_PHONEME_EVENTS = 0x0001
_PHONEME_IPA = 0x0002
_DONT_EXIT = 0x8000
# espeak_Synth, espeak_SetParameter
_UTF8 = 1
_RATE = 1
_VOLUME = 2
_PITCH = 3
_RANGE = 4
# espeak_EVENT_TYPE
_LIST_TERMINATED = 0
_PHONEME = 7
_HEADROOM = 70  # per cent of the usual volume, which clips
_NOISE_SEED = 1  # espeak_Initialize seeds its noise with the time of day


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds: too coarse for us
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Phone(NamedTuple):
    """One phone and the samples [start, end) that it occupies."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Speech:
    """Output of the synthesiser: waveform (S,) int16 at `sample_rate`, and (IPA symbol, sample) of
    its phoneme events.
    """

    waveform: NDArray[np.int16]
    sample_rate: int
    events: list[tuple[str, int]]

    def phones(self) -> list[Phone]:
        """The phones in order, without gaps or overlaps, from sample 0 to the end of the waveform.

        A symbol without a name is a pause where its samples are zero. Elsewhere it is one of
        espeak-ng's two nameless sounds: a glide between vowels ("the air"), or a very short schwa
        ("cam-ra").

        The event of a stop is its release. The silence that espeak-ng inserts before it (its
        "prepause") would be assigned to the previous phone; since its samples are exactly zero, the
        stop is extended to begin with this closure. Before any other sound, a gap of a hop or more
        is a pause, and a shorter one stays with the previous sound. After a pause, a stop has no
        audible closure and begins at its release.
        """
        shortest_pause = round(SHORTEST_PAUSE_SECONDS * self.sample_rate)
        starts: list[tuple[str, int]] = [(SILENCE, 0)]
        for name, sample in self._named_events():
            before = starts[-1][0]
            gap = silent_run(self.waveform, starts[-1][1], sample)
            if name.startswith(STOPS) and before != SILENCE:
                sample -= gap
            elif gap >= shortest_pause and SILENCE not in (name, before):
                starts.append((SILENCE, sample - gap))
            elif name == SILENCE:
                sample -= gap
            starts.append((name, sample))
        return segments(starts, len(self.waveform))

    def _named_events(self) -> list[tuple[str, int]]:
        names = [phone_name(symbol) for symbol, _ in self.events]
        samples = [sample for _, sample in self.events]
        for index, end in enumerate([*samples[1:], len(self.waveform)]):
            if names[index] == SILENCE and self.waveform[samples[index] : end].any():
                next_name = names[index + 1] if index + 1 < len(names) else SILENCE
                names[index] = "j" if next_name.startswith(VOWELS) else "ə"
        return list(zip(names, samples, strict=True))


def segments(starts: list[tuple[str, int]], num_samples: int) -> list[Phone]:
    """Segments from start points. Empty ones (boundary marks without sound) are dropped, adjacent
    pauses joined.
    """
    phones: list[Phone] = []
    ends = [start for _, start in starts[1:]] + [num_samples]
    for (name, start), end in zip(starts, ends, strict=True):
        if end <= start:
            continue
        if phones and name == SILENCE == phones[-1].name:
            phones[-1] = Phone(SILENCE, phones[-1].start, end)
        else:
            phones.append(Phone(name, start, end))
    return phones


def silent_run(waveform: NDArray[np.int16], start: int, end: int) -> int:
    """Number of samples directly before `end`, and not before `start`, that are exactly zero."""
    sounding = np.flatnonzero(waveform[start:end])
    return end - start - (int(sounding[-1]) + 1 if len(sounding) else 0)


def phone_name(symbol: str) -> str:
    """The phone of an espeak-ng IPA symbol: without stress, length and dental marks; "" (a pause)
    is `SILENCE`.

    Accents keep their own vowels. Diphthongs and r-coloured vowels stay one phone, because the
    synthesiser makes each as one sound.
    """
    for mark in ("ˈ", "ˌ", "ː", ":", "̪", "̩", "͡"):
        symbol = symbol.replace(mark, "")
    return {"": SILENCE, "aa": "a", "ᵻ": "ɪ", "ʲ": "j"}.get(symbol, symbol)


def speak(
    text: str, *, voice: str, words_per_minute: int, pitch: int = 50, pitch_range: int = 50
) -> Speech:
    """Speaks `text`. Call it once per process (see the top of this file).

    Args:
        text: the sentence.
        voice: such as "gmw/en-US+f1": a file of espeak-ng's `lang`, and one of its `voices/!v`.
        words_per_minute: speaking rate.
        pitch: 0 to 99; 50 is the voice's own.
        pitch_range: 0 to 99; 50 is the voice's own.

    Raises:
        HubertPretrainError: a second call in this process.
        DataError: espeak-ng is missing, has no such voice, or makes no sound.
    """
    library, data = locate()
    check_voice(voice, data)
    _claim_process()
    espeak = ctypes.CDLL(str(library))
    sample_rate = espeak.espeak_Initialize(
        _SYNCHRONOUS, 0, str(data).encode(), _PHONEME_EVENTS | _PHONEME_IPA | _DONT_EXIT
    )
    espeak.espeak_ng_SetRandSeed(ctypes.c_long(_NOISE_SEED))
    blocks: list[bytes] = []
    events: list[tuple[str, int]] = []

    def receive(
        samples: ctypes._Pointer[ctypes.c_short], count: int, event: ctypes._Pointer[_Event]
    ) -> int:
        if samples and count > 0:
            blocks.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while event[index].type != _LIST_TERMINATED:
            if event[index].type == _PHONEME:
                events.append(
                    (event[index].id.string.decode("utf-8", errors="replace"), event[index].sample)
                )
            index += 1
        return 0

    callback = _Callback(receive)
    espeak.espeak_SetSynthCallback(callback)
    if espeak.espeak_SetVoiceByName(voice.encode()) != 0:
        raise DataError(
            f"espeak-ng refuses the voice {voice!r}; "
            f"choose a file of {data / 'lang'}, such as 'gmw/en-US+f1'"
        )
    for parameter, value in (
        (_RATE, words_per_minute),
        (_VOLUME, _HEADROOM),
        (_PITCH, pitch),
        (_RANGE, pitch_range),
    ):
        espeak.espeak_SetParameter(parameter, value, 0)
    content = text.encode()
    espeak.espeak_Synth(content, ctypes.c_size_t(len(content) + 1), 0, 0, 0, _UTF8, None, None)
    waveform = np.frombuffer(b"".join(blocks), dtype=np.int16)
    if not waveform.any():
        raise DataError(
            f"espeak-ng made no sound of {text!r} with the voice {voice!r}; "
            "expected words of its language"
        )
    return Speech(waveform=waveform, sample_rate=sample_rate, events=events)


_has_spoken = False


def _claim_process() -> None:
    global _has_spoken
    if _has_spoken:
        raise HubertPretrainError(
            "espeak-ng has already spoken in this process and would give other samples; "
            "use a process per utterance"
        )
    _has_spoken = True


def locate() -> tuple[Path, Path]:
    """The library and the data folder of the installed wheel. Raises DataError with the command
    that installs it.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise DataError(
            "the synthetic corpus speaks with espeak-ng, which is not installed: "
            "pip install espeakng-loader"
        ) from None
    return Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())


def check_voice(voice: str, data: Path) -> None:
    """Raises DataError for a voice without a file (espeak-ng ignores an unknown variant), and for
    a variant with an echo, which would be heard in the pauses.
    """
    language, _, variant = voice.partition("+")
    for name, folder in ((language, data / "lang"), (variant, data / "voices" / "!v")):
        if name and not (folder / name).is_file():
            known = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
            raise DataError(
                f"voice {voice!r}: espeak-ng has no {name!r} among the files of {folder}"
                f"{did_you_mean(name, known)}; choose one of them"
            )
    settings = (data / "voices" / "!v" / variant).read_text(errors="replace") if variant else ""
    if re.search(r"^echo", settings, re.MULTILINE):
        raise DataError(
            f"voice {voice!r}: its echo would sound on in the pauses; "
            "choose a variant without one, such as 'f1'"
        )
