"""Choice of the training data by measures of the audio: share of silence, and length."""

from __future__ import annotations

import numpy as np

from hubert_pretrain.data.preparation.build import ScannedCorpus
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import seconds

NOTHING = {"silence": 0, "short": 0, "hours": 0.0}


def choose_train(
    scanned: ScannedCorpus, *, keep_longest: float, max_silence_share: float
) -> dict[str, float]:
    """Leaves out utterances of `train`: first those with more silence, then the shorter ones, until
    `keep_longest` of the audio is left. Other splits stay whole, so that scores can be compared.

    Returns how many are left out for which reason, and their hours. Raises DataError when nothing
    is left.
    """
    if (keep_longest == 1 and max_silence_share == 1) or "train" not in scanned.names:
        return dict(NOTHING)
    is_train = scanned.splits == scanned.names.index("train")
    train = np.flatnonzero((scanned.record >= 0) & is_train)
    facts = scanned.journal.records()[scanned.record[train]]
    silence = np.asarray(facts["silence"], dtype=np.float64).reshape(-1)
    lengths = np.asarray(facts["num_samples"], dtype=np.int64).reshape(-1)
    quiet = silence > max_silence_share
    if len(train) and quiet.all():
        raise DataError(
            f"data.max_silence_share={max_silence_share:g} leaves nothing of `train`: its "
            f"{len(train)} utterances are {silence.min():.0%} to {silence.max():.0%} silence "
            "(40 dB below the loudest 20 ms); raise it, or cut recordings at pauses first "
            "(data.segmentation.max_seconds)"
        )
    longest = np.flatnonzero(~quiet)[np.argsort(-lengths[~quiet], kind="stable")]
    before = np.cumsum(lengths[longest]) - lengths[longest]
    short = longest[before >= keep_longest * lengths[longest].sum()]
    left_out = np.flatnonzero(quiet).tolist() + short.tolist()
    scanned.record[train[left_out]] = -1
    hours = seconds(int(lengths[left_out].sum())) / 3600
    if left_out:
        print(
            f"choice       {len(left_out)} of {len(train)} utterances of train are left out, "
            f"{hours:.2f} h: {int(quiet.sum())} for their silence, {len(short)} for their length",
            flush=True,
        )
    return {"silence": int(quiet.sum()), "short": len(short), "hours": round(hours, 4)}
