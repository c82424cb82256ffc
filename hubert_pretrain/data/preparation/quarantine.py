"""Excluded utterances and the reasons: a line of JSON each on disk, and counts by reason."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from hubert_pretrain.errors import DataError

_EXAMPLES = 5
_DETAILS = re.compile(r"[^\s:;,]*/[^\s:;,]*|(?<!UTF-)\d+")
"""Paths and numbers."""
_MOST_KINDS = 1000
_REASONS = 8
"""Reasons that are counted in a message."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An excluded utterance and the reason."""

    id: str
    path: str
    reason: str


class Quarantine:
    """The list of excluded utterances, on disk, with a few examples in memory. Use it in a `with`;
    the file is empty when all utterances are usable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reasons: Counter[str] = Counter()
        """Counts of reasons, without the paths and numbers in them, so that equal faults count
        together.
        """
        self.examples: list[Quarantined] = []
        """The first few excluded utterances."""
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self.reasons.total()

    def add(self, one: Quarantined) -> None:
        """Excludes an utterance."""
        one = Quarantined(*(_printable(text) for text in (one.id, one.path, one.reason)))
        self._file.write(json.dumps(asdict(one), ensure_ascii=False) + "\n")
        kind = _DETAILS.sub("#", one.reason.partition("; ")[0])
        known = kind in self.reasons or len(self.reasons) < _MOST_KINDS
        self.reasons[kind if known else "other reasons"] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(one)

    def refuse_too_many(self, total: int, max_bad_fraction: float) -> None:
        """Raises DataError when more than `max_bad_fraction` of the `total` utterances are
        excluded, or all of them.
        """
        if len(self) < total and len(self) <= max_bad_fraction * total:
            return
        share = ""
        fix = "repair or remove them"
        if len(self) < total:
            share = f" ({len(self) / total:.2%}, data.max_bad_fraction is {max_bad_fraction:.2%})"
            fix += ", or raise data.max_bad_fraction"
        counts = [f"{count} x {reason}" for reason, count in self.reasons.most_common()]
        if len(counts) > _REASONS:
            rest = sum(count for _, count in self.reasons.most_common()[_REASONS:])
            counts = [*counts[:_REASONS], f"{rest} x other reasons"]
        first = self.examples[0]
        raise DataError(
            f"{len(self)} of {total} utterances cannot be used{share}: {', '.join(counts)}; "
            f"the first: {first.path}: {first.reason}. All are listed in {self.path}; {fix}"
        )


def _printable(text: str) -> str:
    """A text with the bytes of a file name that are not UTF-8 written as `\\xe9`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
