"""The utterances that are left out, and why: a line each on disk, and their number by reason."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from hubert_pretrain.errors import DataError

_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An utterance that is left out, and why."""

    id: str
    path: str
    reason: str


class Quarantine:
    """A list on disk of which only a few examples are in memory. Use it in a `with`; it is empty
    when nothing is bad.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reasons: Counter[str] = Counter()
        """Reasons without their numbers, so that like counts with like."""
        self.examples: list[Quarantined] = []
        """The first few."""
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
        """Adds an utterance."""
        self._file.write(json.dumps(asdict(one), ensure_ascii=False) + "\n")
        self.reasons[re.sub(r"\d+", "#", one.reason.partition("; ")[0])] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(one)

    def refuse_too_many(self, total: int, max_bad_fraction: float) -> None:
        """Raises DataError when more than `max_bad_fraction` of all utterances are here, or all."""
        if len(self) < total and len(self) <= max_bad_fraction * total:
            return
        more = (
            ""
            if len(self) == total
            else f" ({len(self) / total:.2%}, data.max_bad_fraction is {max_bad_fraction:.2%})"
        )
        allow = "" if len(self) == total else ", or raise data.max_bad_fraction"
        raise DataError(
            f"{len(self)} of {total} utterances cannot be used{more}; the first: {self.examples[0].path}: {self.examples[0].reason}. "
            f"All are listed in {self.path}; mend or remove them{allow}"
        )
