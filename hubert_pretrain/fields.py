"""Fields of configurations: defaults with their allowed values, and the check of all of them."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hubert_pretrain.errors import ConfigError, did_you_mean

MISSING: Any = "???"
"""Mark of a value that has no default (OmegaConf's): a recipe or the command line gives it."""

MAX_SHOWN = 200
"""Characters of a value in a message."""
_CATCHABLE = set(signal.Signals.__members__) - {"SIGKILL", "SIGSTOP"}


@dataclass(frozen=True)
class Allowed:
    """The values that a field takes, beyond its type."""

    expected: str
    """As messages and docs/configuration.md say it, e.g. "a number above 0"."""
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()
    """All values, where they are names."""

    def fault(self, key: str, value: Any) -> str | None:
        """One line about a value that is not allowed, with the nearest name; None for any other."""
        try:
            if self.holds(value):
                return None
        except (TypeError, AttributeError):
            pass  # a value of another type
        found = repr(value) if isinstance(value, str) else str(value)
        if len(found) > MAX_SHOWN:
            found = f"{found[:MAX_SHOWN]}..."
        nearest = did_you_mean(str(value), list(self.names))
        return f"{key}={found}: expected {self.expected}{nearest}"

    def check(self, key: str, value: Any) -> None:
        """Raises ConfigError for a value that is not allowed."""
        raise_faults([fault] if (fault := self.fault(key, value)) else [])


positive = Allowed("a number above 0", lambda value: 0 < value < math.inf)
at_least_one = Allowed("1 or more", lambda value: 1 <= value < math.inf)
zero_or_more = Allowed("0 or more", lambda value: 0 <= value < math.inf)
finite = Allowed("a number", math.isfinite)
all_finite = Allowed("numbers", lambda values: all(math.isfinite(value) for value in values))
none_negative = Allowed("numbers of 0 or more", lambda values: all(value >= 0 for value in values))
zero_or_above_one = Allowed(
    "0 or a number above 1", lambda value: value == 0 or 1 < value < math.inf
)
steps_to_profile = Allowed(
    "[] or two steps from 1 on, the first and the last, e.g. [20, 23]",
    lambda steps: not steps or (len(steps) == 2 and 1 <= steps[0] <= steps[1]),
)
first_and_last = Allowed(
    "the first and the last value, numbers above 0, or []",
    lambda values: not values or (len(values) == 2 and all(value > 0 for value in values)),
)
share = Allowed("a share from 0 to 1", lambda value: 0 <= value <= 1)
share_above_zero = Allowed("a share above 0 and up to 1", lambda value: 0 < value <= 1)
share_below_one = Allowed("a share from 0 up to, but not, 1", lambda value: 0 <= value < 1)
all_positive = Allowed("numbers above 0", lambda values: all(value > 0 for value in values))
decay_rates = Allowed(
    "two numbers from 0 up to, but not, 1, e.g. [0.9, 0.98]",
    lambda values: len(values) == 2 and all(0 <= value < 1 for value in values),
)
signal_names = Allowed(
    "names of signals that a process can catch, e.g. [SIGTERM, SIGUSR2]",
    lambda names: all(f"SIG{name.removeprefix('SIG')}" in _CATCHABLE for name in names),
)
decibels = Allowed(
    "a range in dB, the lower end first, e.g. [-5, 5]",
    lambda limits: len(limits) == 2 and limits[0] <= limits[1],
)
audio_channel = Allowed(
    "mix, loudest or the number of a channel, 0 for the first",
    lambda value: value in ("mix", "loudest") or value.isdecimal(),
    ("mix", "loudest"),
)


def between(least: int, most: int) -> Allowed:
    """A number within limits."""
    return Allowed(f"a number from {least} to {most}", lambda value: least <= value <= most)


def all_between(least: int, most: int) -> Allowed:
    """Numbers within limits."""
    return Allowed(
        f"numbers from {least} to {most}",
        lambda values: all(least <= value <= most for value in values),
    )


AUTO = "auto"
"""The value that leaves a choice to the program."""
auto_or_positive = Allowed(
    "auto or a whole number above 0",
    lambda value: value == AUTO or (value.isdecimal() and int(value) > 0),
    (AUTO,),
)


def choice(*names: str, reason: str = "") -> Allowed:
    """One of several names. `reason`: why others that exist elsewhere are missing."""
    because = f" ({reason})" if reason else ""
    return Allowed(f"one of {', '.join(names)}{because}", lambda value: value in names, names)


def one_or_several(*names: str) -> Allowed:
    """One of several names, or a list of them."""

    def holds(value: Any) -> bool:
        listed = value if isinstance(value, (list, tuple)) else [value]
        return bool(listed) and all(each in names for each in listed)

    return Allowed(f"one of {', '.join(names)}, or a list of them", holds, names)


hub_licence = Allowed(
    "the hub's name of a licence, e.g. apache-2.0, cc-by-4.0, other",
    lambda value: re.fullmatch(r"[a-z0-9.+-]*", value) is not None,
)
hub_languages = Allowed(
    "a list of ISO codes of languages, e.g. [en, de]",
    lambda values: all(re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]+)?", value) for value in values),
)

language_name = Allowed(
    "the name of a language: letters, digits, _ and -, e.g. deu",
    lambda value: value is None or re.fullmatch(r"[\w-]+", value) is not None,
)


def _is_split(name: Any) -> bool:
    return isinstance(name, str) and bool(name) and name not in (".", "..") and "/" not in name


split_names = Allowed(
    "the name of a split, or a list of different ones, e.g. [test-clean, test-other]",
    lambda value: (
        _is_split(value)
        or (
            isinstance(value, (list, tuple))
            and all(map(_is_split, value))
            and len(value) == len(set(value)) > 0
        )
    ),
)


def field(
    default: Any, allowed: Allowed | None = None, *, science: bool = True, path: bool = False
) -> Any:
    """A dataclass field.

    Args:
        default: the value; a list, a dict or a class (a nested section) is made for each instance.
        allowed: the values that it takes.
        science: False for a value that changes how something is done, not what comes out: it is no
            part of a fingerprint.
        path: the value names files (or a stage of the run): in fingerprints it is absolute.
    """
    metadata = {"allowed": allowed, "science": science, "path": path}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass field; MISSING when it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING if field.default is dataclasses.MISSING else field.default


def sections(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """A dataclass and all dataclasses inside it, also as values of dicts, with their keys."""
    yield key, config
    for each in dataclasses.fields(config):
        name = f"{key}.{each.name}" if key else each.name
        value = getattr(config, each.name)
        inner = value if isinstance(value, dict) else {None: value}
        for word, part in inner.items():
            if dataclasses.is_dataclass(part):
                yield from sections(part, name if word is None else f"{name}.{word}")


def faults_of_values(config: Any, key: str = "") -> dict[str, str]:
    """One line for each value that its field does not allow, by the key of the value."""
    faults = {}
    for name, section in sections(config, key):
        for each in dataclasses.fields(section):
            allowed = each.metadata.get("allowed")
            value = getattr(section, each.name)
            if allowed is not None and value is not None:
                inner = f"{name}.{each.name}" if name else each.name
                if fault := allowed.fault(inner, value):
                    faults[inner] = fault
    return faults


def check_values(config: Any, key: str = "") -> None:
    """Raises ConfigError with every value that its field does not allow."""
    raise_faults(list(faults_of_values(config, key).values()))


def raise_faults(faults: list[str]) -> None:
    """Raises one ConfigError for all of these lines, if there are any."""
    if len(faults) == 1:
        raise ConfigError(faults[0])
    if faults:
        raise ConfigError("\n  ".join([f"{len(faults)} faults of the configuration", *faults]))


def names_of(section: type, key: str) -> list[str]:
    """The names that a field chooses from, e.g. `names_of(TrainerConfig, "strategy")`."""
    (found,) = (each for each in dataclasses.fields(section) if each.name == key)
    return list(found.metadata["allowed"].names)
