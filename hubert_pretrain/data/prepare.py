"""What a corpus claims -> what is there: gather the claims, read the audio, quarantine the bad, hold out `valid`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from hubert_pretrain import seeds
from hubert_pretrain.data.corpus import Claim, CorpusSource
from hubert_pretrain.data.journal import Journal
from hubert_pretrain.data.manifest import Utterance
from hubert_pretrain.data.probe import AudioFacts, probe_all
from hubert_pretrain.data.progress import progress
from hubert_pretrain.errors import DataError
from hubert_pretrain.workspace import write_text


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An utterance that is left out, and why."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Measured:
    """A claim whose audio was read and is sound."""

    claim: Claim
    facts: AudioFacts


def gather(source: CorpusSource, folder: Path) -> list[Claim]:
    """All claims of a corpus, ordered by id. Raises DataError when there are none or two share an id."""
    claims = sorted(source.utterances(folder), key=lambda claim: claim.id)
    if not claims:
        where = getattr(source, "root", None) or type(source).__name__
        raise DataError(f"{where}: no utterances found, expected at least one; check data.root and the names of the subsets")
    for one, other in pairwise(claims):
        if one.id == other.id:
            raise DataError(f"{other.path}: its id {other.id!r} is also the id of {one.path}; ids must be unique, rename or remove one")
    return claims


def measure(claims: list[Claim], journal: Journal, workers: int = 0) -> tuple[list[Measured], list[Quarantined]]:
    """Reads the audio of every claim that the journal does not know; see `probe_all` for `workers`. Keeps the order of the claims."""
    sound, bad = [], []
    known = [journal.find(str(claim.path)) for claim in claims]
    unread = probe_all([str(claim.path) for claim, facts in zip(claims, known, strict=True) if facts is None], workers)
    with progress(len(claims), "reading audio") as advance:
        for claim, old in zip(claims, known, strict=True):
            facts = next(unread) if old is None else old
            if isinstance(facts, AudioFacts) and old is None:
                journal.add(str(claim.path), facts)
            reason = facts if isinstance(facts, str) else _misfit(claim, facts)
            if isinstance(facts, str) or reason:
                bad.append(Quarantined(claim.id, str(claim.path), reason))
            else:
                sound.append(Measured(claim, facts))
            advance()
    return sound, bad


def _misfit(claim: Claim, facts: AudioFacts) -> str:
    """Why what is said of an utterance does not fit its audio, or ""."""
    if claim.phones and claim.phones[-1][2] > facts.num_samples:
        return f"alignment ends at sample {claim.phones[-1][2]}, the audio has {facts.num_samples}; mend the alignment"
    return ""


def write_quarantine(path: Path, bad: list[Quarantined]) -> None:
    """One JSON line for each utterance left out; the file is empty when there are none."""
    lines = [json.dumps({"id": one.id, "path": one.path, "reason": one.reason}, ensure_ascii=False) for one in bad]
    write_text(path, "".join(f"{line}\n" for line in lines))


def refuse_too_bad(bad: list[Quarantined], total: int, max_bad_fraction: float, listing: Path) -> None:
    """Raises DataError when more than `max_bad_fraction` of the utterances are bad, or all."""
    if len(bad) == total or len(bad) > max_bad_fraction * total:
        more = "" if len(bad) == total else f" ({len(bad) / total:.2%}, data.max_bad_fraction is {max_bad_fraction:.2%})"
        allow = "" if len(bad) == total else ", or raise data.max_bad_fraction"
        raise DataError(
            f"{len(bad)} of {total} utterances cannot be used{more}; the first: {bad[0].path}: {bad[0].reason}. "
            f"All are listed in {listing}; mend or remove them{allow}"
        )


def hold_out(measured: list[Measured], fraction: float) -> list[Measured]:
    """Moves a share of `train` to `valid` when a corpus brings no `valid` split.

    Chosen by a hash of the id: an utterance stays where it is when others are added. At least one moves and at least one stays.
    """
    train = [i for i, one in enumerate(measured) if one.claim.split == "train"]
    if fraction <= 0 or len(train) < 2 or any(one.claim.split == "valid" for one in measured):
        return measured
    place = {i: share_of(measured[i].claim.id, "valid") for i in train}
    count = sum(share < fraction for share in place.values())
    chosen = set(sorted(train, key=place.__getitem__)[: min(max(count, 1), len(train) - 1)])
    return [replace(one, claim=replace(one.claim, split="valid")) if i in chosen else one for i, one in enumerate(measured)]


def share_of(id: str, purpose: str) -> float:
    """A number in [0, 1) that depends on an id and nothing else: `share_of(id, "valid") < 0.05` holds for 5 % of all ids."""
    return seeds.derive("split", purpose, id) / 2.0**63


def refuse_no_train(measured: Iterable[Measured], where: str) -> None:
    """Raises DataError when nothing is left to train on."""
    splits = sorted({one.claim.split for one in measured})
    if "train" not in splits:
        raise DataError(f"{where}: no utterances in split 'train', only in {', '.join(splits)}; give it some for training")


def utterance_of(measured: Measured, corpus: str) -> Utterance:
    """The manifest row of a measured claim."""
    claim, facts = measured.claim, measured.facts
    return Utterance(
        id=claim.id,
        path=str(claim.path.absolute()),
        num_samples=facts.num_samples,
        source_rate=facts.source_rate,
        speaker=claim.speaker,
        text=claim.text,
        label=claim.label,
        split=claim.split,
        corpus=corpus,
        mean=facts.mean,
        variance=facts.variance,
    )
