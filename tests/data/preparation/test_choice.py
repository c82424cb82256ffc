"""Training data chosen by silence and by length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.config.schema import DataConfig
from hubert_pretrain.corpora.folder import Folder
from hubert_pretrain.data.corpus import MANIFEST
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.stages.prepare import write_corpus

SPEECH = {
    "train/a": (1.0, 0.0),
    "train/b": (2.0, 0.0),
    "train/c": (3.0, 0.0),
    "train/d": (4.0, 0.0),
    "train/quiet": (1.0, 4.0),
    "valid/short": (0.5, 2.0),
}
"""Seconds of noise, and of silence after it."""


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choice")
    draw = np.random.default_rng(0)
    for name, (loud, quiet) in SPEECH.items():
        path = folder / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        noise = draw.normal(size=round(loud * SAMPLE_RATE)) * 0.1
        samples = np.concatenate([noise, np.zeros(round(quiet * SAMPLE_RATE))])
        soundfile.write(path, samples, SAMPLE_RATE)
    return folder


def chosen(audio: Path, folder: Path, **settings: float) -> tuple[dict[str, float], set[str]]:
    """The facts of the card, and the names of the utterances that are left."""
    folder.mkdir(exist_ok=True)
    data = DataConfig(root=str(audio), workers=1, **settings)  # type: ignore[arg-type]
    card = write_corpus(Folder(root=str(audio)), data, folder)
    manifest = Manifest.open(folder / MANIFEST)
    return card["left_out"], {Path(manifest[row].path).stem for row in range(len(manifest))}


def test_the_longest_that_hold_the_share_stay(audio: Path, tmp_path: Path) -> None:
    everything = {Path(name).stem for name in SPEECH}
    facts, left = chosen(audio, tmp_path / "all")
    assert (facts["short"], left) == (0, everything)
    # 15 s in all; quiet (5 s) and d (4 s) are the fewest that hold half of them.
    facts, left = chosen(audio, tmp_path / "half", keep_longest=0.5)
    assert left == {"quiet", "d", "short"}
    assert (facts["short"], facts["hours"]) == (3, round(6 / 3600, 4))
    # Silence goes first; of the other 10 s, d and c are 7 and b would be more than 70 %.
    facts, left = chosen(audio, tmp_path / "both", keep_longest=0.7, max_silence_share=0.6)
    assert left == {"d", "c", "short"}
    assert (facts["silence"], facts["short"]) == (1, 2)
    # However small the share: one stays.
    assert chosen(audio, tmp_path / "one", keep_longest=1e-6)[1] == {"quiet", "short"}


def test_a_filter_that_leaves_nothing_says_what_there_is(audio: Path, tmp_path: Path) -> None:
    quiet = tmp_path / "audio"
    (quiet / "train").mkdir(parents=True)
    (quiet / "train" / "q.wav").write_bytes((audio / "train" / "quiet.wav").read_bytes())
    with pytest.raises(DataError, match=r"0.6 leaves nothing of `train`: its 1 utterances are 80%"):
        chosen(quiet, tmp_path / "none", max_silence_share=0.6)
