"""Corpora through stage `prepare`: the prepared corpus has the samples and phones of its source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from hubert_pretrain.config import compose
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages import prepare


def prepared(folder: Path, *words: str) -> Corpus:
    """The output of `stage=prepare`, with one process."""
    overrides = ["+recipe=smoke", "data.workers=1", *words]
    recipe = compose.recipe_of(overrides)
    folder.mkdir()
    prepare.run(recipe, Workspace(folder.parent), "prepare", folder)
    return Corpus.open(folder)


def test_segments_of_a_recording_are_its_exact_samples(tmp_path: Path) -> None:
    """Libri-Light: segments of a long recording are manifest rows; no audio is copied."""
    book = tmp_path / "librilight/small/100/book"
    book.mkdir(parents=True)
    waveform = np.random.default_rng(0).normal(0, 0.1, 60 * 16000).clip(-1, 1)
    soundfile.write(book / "01.flac", waveform, 16000)
    (book / "01.json").write_text(
        json.dumps({"voice_activity": [[1.0, 9.0], [9.5, 14.0], [20.0, 57.3]]})
    )
    corpus = prepared(tmp_path / "prepare", "data=librilight", f"data.root={tmp_path}/librilight")
    whole, _ = soundfile.read(book / "01.flac", dtype="float32")
    rows = [corpus.manifest[row] for row in range(len(corpus.manifest))]
    assert [(row.start, row.num_samples) for row in rows] == [
        (16000, 208000),
        (320000, 198933),
        (518933, 198934),
        (717867, 198933),
    ]
    assert {row.speaker for row in rows} == {"100"}
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(
            corpus.read(number), whole[row.start : row.start + row.num_samples]
        )
        np.testing.assert_array_equal(
            corpus.read(number, 3200, 1600), whole[row.start + 3200 : row.start + 4800]
        )
        assert row.mean == np.float32(corpus.read(number).mean(dtype=np.float64))


def test_silence_of_speech_commands(tmp_path: Path) -> None:
    home = tmp_path / "speech_commands_v0.02"
    generator = np.random.default_rng(0)
    for name, seconds in [
        ("yes/a_nohash_0", 1),
        ("bed/b_nohash_0", 1),
        ("_background_noise_/pink_noise", 10),
    ]:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(home / f"{name}.wav", generator.normal(0, 0.1, seconds * 16000), 16000)
    (home / "validation_list.txt").touch()
    (home / "testing_list.txt").touch()
    corpus = prepared(
        tmp_path / "prepare",
        "data=speech_commands",
        f"data.root={tmp_path}",
        "data.corpus.classes=12",
    )
    labels = [corpus.manifest[row].label for row in range(len(corpus.manifest))]
    assert sorted(labels) == ["_silence_"] * 10 + ["_unknown_", "yes"]
    noise, _ = soundfile.read(home / "_background_noise_/pink_noise.wav", dtype="float32")
    read = np.concatenate(
        [corpus.read(row) for row, label in enumerate(labels) if label == "_silence_"]
    )
    np.testing.assert_array_equal(read, noise)


def test_phones_of_timit_in_nist_sphere(tmp_path: Path) -> None:
    samples = (np.sin(np.arange(16000) / 20) * 12000).astype("<i2")
    header = f"NIST_1A\n   1024\nchannel_count -i 1\nsample_count -i {len(samples)}\n"
    header += "sample_rate -i 16000\nsample_n_bytes -i 2\n"
    header += "sample_byte_format -s2 01\nsample_sig_bits -i 16\nsample_coding -s3 pcm\nend_head\n"
    for path in ("TRAIN/DR1/FCJF0/SX37", "TRAIN/DR1/FCJF0/SX127", "TEST/DR1/MDAB0/SX139"):
        (tmp_path / "timit" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "timit" / f"{path}.WAV").write_bytes(
            header.encode().ljust(1024) + samples.tobytes()
        )
        (tmp_path / "timit" / f"{path}.PHN").write_text("0 4000 h#\n4000 9000 sh\n9000 16000 iy\n")
        (tmp_path / "timit" / f"{path}.TXT").write_text("0 16000 She.\n")
    corpus = prepared(
        tmp_path / "prepare", "data=timit", f"data.root={tmp_path}/timit", "data.corpus.phones=39"
    )
    assert corpus.alignments is not None
    assert corpus.alignments.phones == ["iy", "sh", "sil"]
    assert corpus.alignments.frame_phones(0, 49) == ["sil"] * 12 + ["sh"] * 16 + ["iy"] * 21
    np.testing.assert_array_equal(corpus.read(0), samples.astype(np.float32) / 32768)


def test_eight_kilohertz_from_a_folder_of_real_digits(tmp_path: Path, shared: Path) -> None:
    root = tmp_path / "fsdd"
    root.mkdir()
    for path in sorted((shared / "data/fsdd").glob("3_*_[0-6].wav")):
        (root / path.name).symlink_to(path)
    corpus = prepared(tmp_path / "prepare", "data=fsdd", f"data.root={root}")
    for number in range(len(corpus.manifest)):
        row = corpus.manifest[number]
        assert (row.source_rate, row.label, row.text) == (8000, "3", "THREE")
        assert (
            row.num_samples == 2 * soundfile.info(str(row.path)).frames == len(corpus.read(number))
        )
