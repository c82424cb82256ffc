"""English sentences from a small grammar, with a few hundred words that cover the phones of
English.

Every sentence is a pure function of (seed, index). Words and grammar were written for this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from hubert_pretrain import seeds

SENTENCE = (
    "{who} {past} {thing} {place}.",
    "{who} {past} {thing} {when}.",
    "{when_first}, {other} {past} {thing} {place}.",
    "{who} {past} {thing}, but {other} {didnt} {base} {thing}.",
    "{who} {past} {thing}, and {other} {past} {thing}.",
    "{who} will {base} {thing} {soon}, if {weather_if}.",
    "{other} {went} {to_place}, because {weather}.",
    "{who} {went} {to_place} {when}, and {other} stayed at home.",
    "{weather_first} {when}, so {other} {went} {to_place}.",
    "There were {number} {things} {place}, and some of them were {quality}.",
    "{who} counted {number} {things} {place} {when}.",
    "We saw {number} {things} {place}, not {number}.",
    "Did {other} {base} {thing} {when}, or was it {name}?",
    "Where did {other} {base} {thing}, {name}?",
    "How many {things} did {other} {base} {place}?",
    "Could you {base} {thing} {soon}, please?",
    "Please {base} {thing} before you {base} {thing}.",
    "The {noun} {place} is {quality}, but the {noun} {place} is {quality}.",
    "{thing_first} is not as {quality} as {thing}.",
    "{name} and {name} {past} {thing} {when}.",
    "{name} said that {other} {past} {thing} {place}.",
    "{who} is {doing} {place}, while {other} is {doing}.",
    "I think {other} is {doing} {place} {now}.",
    "They've been {doing} for {number} hours, and {other} is {feeling}.",
    "{other} {feels} {feeling}, because {weather}.",
    "It's {hour} o'clock, and {other} is {doing} {place}.",
    "Don't {base} {thing}, {name}, it isn't {yours}.",
    "That {noun} is {yours}, and this {noun} belongs to {name}.",
    "You can't {base} {thing} {soon}, unless {weather_if}.",
    "On {day}, {other} usually {went} {to_place}, and {past} {thing}.",
)
"""Sentence patterns. Each name in braces is replaced by one of its choices below, until none is
left.
"""

# fmt: off
CHOICES: dict[str, tuple[str, ...]] = {
    "name": (
        "Anna", "George", "Ruth", "Joyce", "Victor", "Charlotte", "Oscar", "Keith", "Audrey",
        "Luke", "Bridget", "Roy", "Faith", "Hugh", "Martha", "Jack", "Zoe", "Shane",
    ),
    "who": (
        "{name}", "{name}", "My {kin}", "Your {kin}", "Her {kin}", "Our {kin}", "The {role}",
        "The {age} {role}",
    ),
    "other": (
        "{name}", "{name}", "my {kin}", "your {kin}", "his {kin}", "their {kin}", "the {role}",
        "the {age} {role}",
    ),
    "kin": (
        "brother", "sister", "mother", "father", "cousin", "uncle", "aunt", "daughter", "nephew",
        "wife", "boss",
    ),
    "role": (
        "farmer", "nurse", "judge", "baker", "pilot", "teacher", "captain", "singer", "doctor",
        "boy", "girl", "thief", "king", "neighbour", "child", "painter", "chef",
    ),
    "age": (
        "old", "young", "quiet", "cheerful", "tall", "clever", "poor", "rich", "shy",
    ),
    "thing": (
        "the {noun}", "the {quality} {noun}", "a {colour} {noun}", "my {noun}", "her {noun}",
        "this {noun}", "{number} {things}", "a {portion}", "the {portion}",
    ),
    "thing_first": (
        "The {noun}", "The {colour} {noun}", "My {noun}", "His {noun}", "This {noun}",
    ),
    "noun": (
        "boat", "chair", "jacket", "kettle", "book", "letter", "basket", "guitar", "watch", "coat",
        "picture", "toy", "treasure", "ladder", "engine", "pillow", "shirt", "vase", "mirror",
        "hammer", "television", "garage", "bicycle", "camera", "wheel", "map", "bell", "clock",
        "fish", "bird", "mouse", "tooth brush", "thing", "cushion", "van", "piano",
    ),
    "things": (
        "boats", "chairs", "books", "letters", "birds", "horses", "sheep", "cars", "buses",
        "churches", "stars", "keys", "cups", "spoons", "apples", "cherries", "oranges", "eggs",
        "coins", "gloves", "foxes", "bridges", "cows", "leaves", "roses", "watches",
    ),
    "portion": (
        "bottle of milk", "loaf of bread", "cup of tea", "box of matches", "bag of flour",
        "pair of gloves", "piece of cheese", "glass of water", "bowl of soup", "jar of honey",
        "slice of cake", "bunch of flowers", "sheet of paper",
    ),
    "colour": (
        "red", "blue", "green", "yellow", "black", "white", "brown", "pink", "purple", "silver",
    ),
    "quality": (
        "heavy", "beautiful", "broken", "cheap", "unusual", "smooth", "thick", "large", "dirty",
        "useful", "strange", "empty", "precious", "enormous", "huge", "noisy", "modern",
    ),
    "number": (
        "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
        "thirteen", "twenty", "thirty", "forty five", "a hundred",
    ),
    "hour": (
        "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    ),
    "place": (
        "in the kitchen", "at the station", "near the river", "by the church", "behind the garage",
        "on the beach", "under the bridge", "outside the theatre", "in the garden", "at the market",
        "across the road", "beside the fire", "in the valley", "on the roof", "at school",
        "in the bathroom", "by the window", "around the corner", "on the ship", "in the forest",
        "at the zoo",
    ),
    "to_place": (
        "to the kitchen", "to the station", "to the river", "to church", "to the beach",
        "to the theatre", "to the market", "to the valley", "to school", "to the village",
        "to the north coast", "to the zoo", "to town",
    ),
    "when": (
        "yesterday", "this morning", "last night", "on {day}", "in {month}", "at {hour} o'clock",
        "at half past {hour}", "after lunch", "before noon", "last winter", "{number} years ago",
        "a month ago",
    ),
    "when_first": (
        "Yesterday", "This morning", "Last night", "On {day}", "In {month}", "Last year",
        "After the show", "Once upon a time",
    ),
    "soon": (
        "tomorrow", "tonight", "on {day}", "next week", "in {month}", "this evening",
        "before breakfast",
    ),
    "now": (
        "right now", "as usual", "today", "with {name}",
    ),
    "day": (
        "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
    ),
    "month": (
        "January", "March", "June", "July", "August", "October",
    ),
    "weather": (
        "the wind was too rough", "it was very cold", "the sun was shining", "there was thick fog",
        "the weather was fine", "the rain had stopped", "it was dark outside", "the snow was deep",
        "there was no choice",
    ),
    "weather_first": (
        "The wind was rough", "It was very cold", "The sun was shining", "There was thick fog",
        "The weather was fine", "It rained hard", "The storm was loud", "The air was pure",
    ),
    "weather_if": (
        "the weather is good", "the sun comes out", "it doesn't rain", "the shop is open",
        "you wish", "{other} agrees", "{other} helps",
    ),
    "past": (
        "bought", "found", "forgot", "lost", "washed", "painted", "fixed", "measured", "showed us",
        "carried", "brought", "chose", "took", "sold", "watched", "noticed", "wanted", "enjoyed",
        "pulled", "pushed", "moved", "gave me", "drew",
    ),
    "base": (
        "buy", "find", "forget", "lose", "wash", "paint", "fix", "measure", "show us", "carry",
        "bring", "choose", "take", "sell", "watch", "notice", "want", "enjoy", "pull", "push",
        "move", "give me", "draw",
    ),
    "went": (
        "went", "walked", "ran", "drove", "returned", "hurried", "rode",
    ),
    "didnt": (
        "didn't", "couldn't", "wouldn't", "did not",
    ),
    "doing": (
        "singing", "cooking", "reading", "sleeping", "laughing", "waiting", "playing chess",
        "working", "looking at the moon", "drinking juice", "making noise", "having lunch",
        "talking", "thinking", "learning French", "boiling eggs",
    ),
    "feels": (
        "is", "was", "looks", "feels", "seems",
    ),
    "feeling": (
        "tired", "happy", "sure", "angry", "hungry", "afraid", "proud", "nervous", "joyful",
        "thirsty", "calm",
    ),
    "yours": (
        "yours", "mine", "ours", "theirs", "hers",
    ),
}
"""Name -> its choices, which may contain names themselves."""
# fmt: on

_SLOT = re.compile(r"\{(\w+)\}")
_NOT_SPOKEN = re.compile(r"[^A-Z' ]+")


def sentences(seed: int) -> Iterator[str]:
    """An endless stream of different sentences, with punctuation (the synthesiser makes pauses and
    intonation of it).
    """
    seen: set[str] = set()
    index = 0
    while True:
        sentence = compose(seeds.generator(seed, "sentence", index))
        index += 1
        if sentence not in seen and not repeats_a_word(sentence):
            seen.add(sentence)
            yield sentence


def compose(generator: np.random.Generator) -> str:
    """One sentence."""
    text = SENTENCE[int(generator.integers(len(SENTENCE)))]
    while slot := _SLOT.search(text):
        choices = CHOICES[slot[1]]
        choice = choices[int(generator.integers(len(choices)))]
        text = text[: slot.start()] + choice + text[slot.end() :]
    return text[0].upper() + text[1:]


def transcript(sentence: str) -> str:
    """Transcript of a sentence: upper-case letters, apostrophes and single spaces."""
    return " ".join(_NOT_SPOKEN.sub(" ", sentence.upper()).split())


def repeats_a_word(sentence: str) -> bool:
    """True if a word of five letters or more occurs twice: grammatical, but odd ("George said that
    George ...").
    """
    long_words = [word for word in transcript(sentence).split() if len(word) > 4]
    return len(set(long_words)) < len(long_words)
