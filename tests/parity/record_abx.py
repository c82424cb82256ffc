"""Records ABX scores of zerospeech-libriabx2, the program of the ZeroSpeech challenges and of
Libri-light, on small random items; test_abx.py compares ours with them.

That package is compiled when it is installed, so it is no dependency of the tests. To record again,
in an environment of its own:

    pip install zerospeech-libriabx2==0.9.8
    python tests/parity/record_abx.py

It prints the table `RECORDED` of test_abx.py.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

FRAME_SECONDS = 0.02
SEEDS = (0, 1, 2)


class Token(NamedTuple):
    """One phone token: its frames are [start, stop) of the utterance `row`."""

    row: int
    start: int
    stop: int
    phone: str
    before: str
    after: str
    speaker: str


def random_tokens(seed: int) -> tuple[list[Token], list[np.ndarray]]:
    """120 tokens of 3 speakers, 5 phones and 3 contexts, unevenly many of each, and the utterance
    around each: frames (T, 8), one more on each side of the token.
    """
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(5, 8))
    voices = draw.normal(size=(3, 8))
    tokens = []
    frames = []
    for row in range(120):
        phone, context, speaker = (
            int(draw.choice(n, p=np.arange(1, n + 1) / sum(range(1, n + 1)))) for n in (5, 3, 3)
        )
        length = int(draw.integers(1, 7))
        tokens.append(Token(row, 1, 1 + length, "abcde"[phone], "xyz"[context], "r", f"s{speaker}"))
        noise = draw.normal(size=(length + 2, 8))
        frames.append((centres[phone] + 0.5 * voices[speaker] + 1.2 * noise).astype(np.float32))
    return tokens, frames


def their_scores(seed: int, folder: Path) -> tuple[float, float]:
    """(within, across) of the package, from its input files: an array per utterance, and a line
    per token with times in the middle of frames.
    """
    from zrc_abx2.eval_ABX import EvalABX, EvalArgs

    tokens, frames = random_tokens(seed)
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for token, utterance in zip(tokens, frames, strict=True):
        np.save(folder / f"{token.row:03}.npy", utterance)
        onset = FRAME_SECONDS * (token.start + 0.25)
        offset = FRAME_SECONDS * (token.stop + 0.75)
        names = f"{token.phone} {token.before} {token.after} {token.speaker}"
        lines.append(f"{token.row:03} {onset} {offset} {names}")
    (folder / "all.item").write_text("\n".join(lines) + "\n")
    arguments = EvalArgs(
        str(folder),
        str(folder / "all.item"),
        feature_size=FRAME_SECONDS,
        file_extension=".npy",
        max_size_group=120,
        max_x_across=3,
        speaker_mode="all",
        context_mode="within",
    )
    scores = {
        result["abx-s-condition"]: result["score"] for result in EvalABX().eval_abx(arguments)
    }
    return scores["within"], scores["across"]


if __name__ == "__main__":
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as place:
            within, across = their_scores(seed, Path(place))
        print(f"    {seed}: ({within:.8f}, {across:.8f}),")
