"""The prepare stage and what it is made of, on small corpora of noise and on real speech."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from hubert_pretrain.config.schema import DataConfig, Recipe
from hubert_pretrain.corpora.folder import Folder
from hubert_pretrain.corpora.librispeech import LibriSpeech
from hubert_pretrain.corpora.mixture import Mixture
from hubert_pretrain.corpora.speed_perturbation import SpeedPerturbation
from hubert_pretrain.data.arrow_table import ColumnSpool
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.preparation import build
from hubert_pretrain.data.preparation.corpus_card import describe
from hubert_pretrain.data.preparation.quarantine import Quarantine
from hubert_pretrain.data.preparation.raw_utterances import COLUMNS, RawUtterances, collect
from hubert_pretrain.data.preparation.scan_journal import RECORD
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.seeds import share_of
from hubert_pretrain.stages import prepare as stage


def noise(path: Path, num_samples: int = 8_000, rate: int = 16_000, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(num_samples), rate)
    return path


def run_stage(folder: Path, target: str, root: Path, **values: object) -> dict:
    """Runs stage prepare as the pipeline does, on a corpus class of this package or of this
    file.
    """
    corpus = {"_target_": f"hubert_pretrain.corpora.{target}", "root": str(root)} | dict(
        values.pop("corpus", {})
    )
    folder.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(
        name="test",
        work_dir=str(folder.parent),
        data=DataConfig(corpus=corpus, root=str(root), workers=1, **values),
    )
    return stage.run(recipe, Workspace(folder.parent), "prepare", folder)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for speaker in ("anna", "bob"):
        for number in range(10):
            noise(
                tmp_path / f"audio/{speaker}/{number}.wav",
                6_000 + number,
                rate=8_000,
                seed=hash_of(speaker, number),
            )
    return tmp_path / "audio"


def hash_of(speaker: str, number: int) -> int:
    return number + 100 * len(speaker)


def folder_stage(tmp_path: Path, root: Path, **values: object) -> dict:
    return run_stage(
        tmp_path / "prepare", "folder.Folder", root, **{"corpus": {"speaker_level": 1}} | values
    )


def test_prepare_makes_a_corpus_of_a_folder(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = folder_stage(tmp_path, root)
    assert list(facts) == [
        "utterances",
        "hours",
        "aligned_utterances",
        "speakers",
        "quarantined",
        "splits",
    ]
    assert (
        facts["utterances"],
        facts["speakers"],
        facts["quarantined"],
        facts["aligned_utterances"],
    ) == (20, 2, 0, 0)
    assert set(facts["splits"]) == {"train", "valid"}
    assert "20 utterances" in capsys.readouterr().out

    corpus = Corpus.open(tmp_path / "prepare")
    assert corpus.alignments is None
    assert corpus.card["source_rates"] == {"8000": 20}
    for row in range(20):
        utterance = corpus.manifest[row]
        whole = corpus.read(row)
        assert len(whole) == utterance.num_samples == 2 * soundfile.info(utterance.path).frames
        assert (utterance.source_rate, utterance.corpus, utterance.speaker) == (
            8_000,
            "folder",
            Path(utterance.path).parent.name,
        )
        assert utterance.variance == pytest.approx(whole.var(), rel=1e-4)
        assert np.allclose(corpus.read(row, 320, 720), whole[320:1040], atol=1e-6)


def test_a_rerun_gives_the_same_bytes_after_any_interruption(tmp_path: Path, root: Path) -> None:
    folder_stage(tmp_path, root)
    files = ["manifest.arrow", "card.json", "quarantine.jsonl"]
    left = sorted(path.name for path in (tmp_path / "prepare").iterdir())
    assert left == sorted([*files, "read.journal"])
    before = [(tmp_path / "prepare" / name).read_bytes() for name in files]
    for name in [*files, "alignments.arrow", "read.journal"]:
        (tmp_path / "prepare" / name).write_bytes(b"half")
    folder_stage(tmp_path, root)
    assert [(tmp_path / "prepare" / name).read_bytes() for name in files] == before
    assert Corpus.open(tmp_path / "prepare").alignments is None


def test_bad_files_are_quarantined_with_their_reason(tmp_path: Path, root: Path) -> None:
    (root / "anna/3.wav").write_bytes(b"")
    noise(root / "bob/4.wav", 100)
    facts = folder_stage(tmp_path, root, max_bad_fraction=0.1)
    assert (facts["utterances"], facts["quarantined"]) == (18, 2)
    lines = [
        json.loads(line)
        for line in (tmp_path / "prepare/quarantine.jsonl").read_text().splitlines()
    ]
    assert [(line["id"], line["path"]) for line in lines] == [
        ("anna/3", str(root / "anna/3.wav")),
        ("bob/4", str(root / "bob/4.wav")),
    ]
    assert lines[0]["reason"].startswith("not readable as audio")
    assert lines[1]["reason"].startswith(
        "100 samples at 16000 Hz, shorter than one model frame (400)"
    )
    card = Corpus.open(tmp_path / "prepare").card
    assert card["quarantined"]["utterances"] == 2
    assert "1 x # samples at # Hz, shorter than one model frame (#)" in describe(card)


def test_too_many_bad_files_are_an_error(tmp_path: Path, root: Path) -> None:
    (root / "anna/3.wav").write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"^1 of 20 .*5\.00%.*0\.10%.*anna/3\.wav: not readable.*"
        r"quarantine\.jsonl.*max_bad_fraction$",
    ):
        folder_stage(tmp_path, root)
    assert "anna/3" in (tmp_path / "prepare/quarantine.jsonl").read_text()
    assert not (tmp_path / "prepare/manifest.arrow").exists()


def test_only_bad_files_are_an_error_with_any_max_bad_fraction(tmp_path: Path) -> None:
    noise(tmp_path / "audio/1.wav", 10)
    with pytest.raises(DataError, match=r"1 of 1 utterances cannot be used"):
        run_stage(tmp_path / "prepare", "folder.Folder", tmp_path / "audio", max_bad_fraction=1.0)


def test_a_corpus_without_train_is_an_error(tmp_path: Path) -> None:
    noise(tmp_path / "audio/test/1.wav")
    with pytest.raises(DataError, match=r"audio: no utterances in split 'train', only in test"):
        run_stage(tmp_path / "prepare", "folder.Folder", tmp_path / "audio")


def test_an_invalid_value_is_an_error_of_one_line(tmp_path: Path, root: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^data\.corpus\.split_by='fold': expected auto, folders or hash "
        r"\(did you mean 'folders'\?\)$",
    ):
        run_stage(tmp_path / "prepare", "folder.Folder", root, corpus={"split_by": "fold"})


def test_duplicate_ids_are_an_error(tmp_path: Path) -> None:
    noise(tmp_path / "audio/1.wav")
    noise(tmp_path / "audio/2.wav")
    (tmp_path / "list.csv").write_text("id,path\n1,1.wav\n1,2.wav\n")
    corpus = {"table": str(tmp_path / "list.csv")}
    with pytest.raises(DataError, match=r"2\.wav: its id '1' is also the id of .*1\.wav"):
        run_stage(tmp_path / "prepare", "folder.Folder", tmp_path / "audio", corpus=corpus)


def test_a_corpus_without_utterances_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=rf"{tmp_path}: no utterances found"),
        ColumnSpool(tmp_path / "utterances", COLUMNS) as spool,
        Quarantine(tmp_path / "bad") as quarantine,
    ):
        collect(LibriSpeech(root=str(tmp_path), train=[]), tmp_path, spool, quarantine)


def test_duplicates_across_splits_are_on_the_card(tmp_path: Path, root: Path) -> None:
    noise(root / "train/s/copy.wav")
    noise(root / "train/s/original.flac")
    noise(root / "test/s/leak.wav")
    noise(root / "test/s/other.wav", seed=1)
    run_stage(
        tmp_path / "prepare", "folder.Folder", root, corpus={"split_by": "hash"}, valid_fraction=0.0
    )
    card = Corpus.open(tmp_path / "prepare").card
    assert card["duplicates"]["utterances"] in (
        2,
        3,
    )  # a FLAC made from floats may differ from the WAV by rounding
    assert card["duplicates"]["across_splits"] == 0
    (root / "anna").rename(tmp_path / "anna")
    (root / "bob").rename(tmp_path / "bob")
    run_stage(tmp_path / "prepare", "folder.Folder", root, valid_fraction=0.0)
    assert Corpus.open(tmp_path / "prepare").card["duplicates"]["across_splits"] in (2, 3)


class Spoken:
    """A corpus with alignments that writes its own audio, as the synthetic one does."""

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        for number, end in enumerate((8_000, 400, 9_000)):
            path = noise(folder / f"audio/{number}.wav")
            yield SourceUtterance(
                id=str(number),
                path=path,
                split="train",
                phones=[("a", 0, 200), ("b", 200, end)] if number else None,
            )


def test_alignments_follow_their_rows_and_must_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.compose, "build", lambda _: Spoken())
    (tmp_path / "prepare.partial").mkdir()
    recipe = Recipe(
        name="test",
        work_dir=str(tmp_path),
        data=DataConfig(corpus={}, max_bad_fraction=0.5, workers=1, valid_fraction=0.0),
    )
    facts = stage.run(recipe, Workspace(tmp_path), "prepare", tmp_path / "prepare.partial")
    assert (facts["aligned_utterances"], facts["quarantined"]) == (1, 1)
    assert (
        "alignment ends at sample 9000, the audio has 8000"
        in (tmp_path / "prepare.partial/quarantine.jsonl").read_text()
    )
    (tmp_path / "prepare.partial").rename(tmp_path / "prepare")
    corpus = Corpus.open(tmp_path / "prepare")
    assert corpus.alignments is not None
    assert corpus.alignments.rows().tolist() == [1]
    assert corpus.alignments.frame_phones(1, 2) == ["b", ""]
    assert len(corpus.read(0)) == 8_000


class Named:
    """Ids in splits, and audio that nobody reads."""

    def __init__(self, splits: dict[str, str]) -> None:
        self.splits = splits

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """The corpus is what stands before a dash."""
        named = {id: id.rpartition("-")[0] for id in self.splits}
        return (
            SourceUtterance(id=id, path="/none.wav", split=split, corpus=named[id])
            for id, split in self.splits.items()
        )


def held_out(
    folder: Path, splits: dict[str, str], fraction: float, bad: set[str] = frozenset()
) -> dict[str, str]:
    """Id -> split of the usable utterances after `hold_out_validation`, in the order of the
    manifest."""
    with (
        ColumnSpool(folder / "utterances", COLUMNS) as spool,
        Quarantine(folder / "bad") as quarantine,
    ):
        utterances: RawUtterances = collect(Named(splits), folder, spool, quarantine)
        ids = utterances.columns["id"].to_pylist()
        record = np.array([-1 if id in bad else number for number, id in enumerate(ids)])
        facts = np.zeros(len(ids), dtype=RECORD)
        facts["content"][:, 0] = np.arange(len(ids))
        column = utterances.columns["split"]
        scanned = build.ScannedCorpus(
            utterances,
            SimpleNamespace(records=lambda: facts),
            record,
            column.indices.to_numpy().copy(),
            column.dictionary.to_pylist(),
        )
        build.hold_out_validation(scanned, fraction)
        return {
            utterances.columns["id"][position].as_py(): scanned.names[scanned.splits[position]]
            for position in scanned.rows().tolist()
        }


def train(*ids: str) -> dict[str, str]:
    return dict.fromkeys(ids, "train")


def test_valid_is_held_out_by_hash(tmp_path: Path) -> None:
    def held(splits: dict[str, str]) -> set[str]:
        return {id for id, split in held_out(tmp_path, splits, 0.1).items() if split == "valid"}

    before = held(train(*map(str, range(1000))))
    more = held(train(*map(str, range(1500))))
    assert 70 <= len(before) <= 130
    assert {id for id in more if int(id) < 1000} == before
    assert before == {str(i) for i in range(1000) if share_of(str(i), "valid") < 0.1}


def test_valid_gets_at_least_one_and_never_all(tmp_path: Path) -> None:
    assert sorted(held_out(tmp_path, train("a", "b", "c"), 1e-9).values()) == [
        "train",
        "train",
        "valid",
    ]
    assert held_out(tmp_path, train("a"), 0.5) == train("a")
    assert held_out(tmp_path, train("a", "b"), 0.0) == train("a", "b")
    assert list(held_out(tmp_path, train(*map(str, range(50))), 1.0).values()).count("train") == 1


def test_a_valid_split_of_the_corpus_stays_unless_all_of_it_is_bad(tmp_path: Path) -> None:
    both = train("a", "b", "c") | {"d": "valid"}
    assert held_out(tmp_path, both, 0.5) == both
    assert list(held_out(tmp_path, both, 0.5, bad={"d"}).values()).count("valid") >= 1


def test_valid_is_held_out_of_each_corpus(tmp_path: Path) -> None:
    """One corpus has a `valid` of its own; it is held out of the two others only."""
    splits = train(*(f"{name}{i}" for name in ("own-", "b-", "c-") for i in range(40))) | {
        "own-v": "valid"
    }
    found = held_out(tmp_path, splits, 0.1)
    valid = {
        name: {id for id, split in found.items() if split == "valid" and id.startswith(name)}
        for name in ("own-", "b-", "c-")
    }
    assert valid["own-"] == {"own-v"}
    for name in ("b-", "c-"):
        assert (
            valid[name]
            == {f"{name}{i}" for i in range(40) if share_of(f"{name}{i}", "valid") < 0.1}
            != set()
        )


def test_rows_are_ordered_by_split_and_id_without_quarantined_ones(tmp_path: Path) -> None:
    splits = {"z": "train", "b": "other", "a": "test", "c": "train", "y": "valid", "x": "train"}
    assert list(held_out(tmp_path, splits, 0.0, bad={"c"})) == ["x", "z", "y", "a", "b"]


def test_a_file_changed_since_prepare_is_named(tmp_path: Path, root: Path) -> None:
    folder_stage(tmp_path, root)
    corpus = Corpus.open(tmp_path / "prepare")
    utterance = corpus.manifest[0]
    noise(Path(utterance.path), 1_000, rate=8_000)
    with pytest.raises(
        DataError,
        match=r"has 2000 samples at 0, the manifest promises 1200\d; "
        "the file changed since stage=prepare",
    ):
        corpus.read(0)
    with pytest.raises(ValueError, match="of an utterance of"):
        corpus.read(1, 100, 10**6)


class Meeting:
    """Segments of one long recording at 8 kHz: one reaches beyond its end, one is silent."""

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        path = folder / "audio/long.wav"
        if not path.exists():
            noise(path, 40_000, rate=8_000)
            samples = soundfile.read(path)[0]
            samples[30_000:] = 0.0
            soundfile.write(path, samples, 8_000)
        for number, start in enumerate(range(0, 80_000, 8_000)):
            length = 8_001 if start == 72_000 else 8_000
            yield SourceUtterance(
                id=f"meeting-{number}",
                path=path,
                split="train",
                start=start,
                num_samples=length,
                speaker=str(number % 3),
            )


def test_segments_of_a_recording_become_utterances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.compose, "build", lambda _: Meeting())
    folder = tmp_path / "prepare"
    folder.mkdir()
    recipe = Recipe(
        name="test",
        work_dir=str(tmp_path),
        data=DataConfig(corpus={}, max_bad_fraction=0.5, workers=1, valid_fraction=0.0),
    )
    facts = stage.run(recipe, Workspace(tmp_path), "prepare", folder)
    assert (facts["utterances"], facts["quarantined"], facts["speakers"]) == (8, 2, 3)
    reasons = {
        line["id"]: line["reason"]
        for line in map(json.loads, (folder / "quarantine.jsonl").read_text().splitlines())
    }
    assert reasons["meeting-9"].startswith("segment ends at sample 80001, the recording has 80000")
    assert reasons["meeting-8"].startswith("no sound")
    corpus = Corpus.open(folder)
    whole = np.concatenate([corpus.read(row) for row in range(8)])
    assert len(whole) == 64_000
    for row in range(8):
        utterance = corpus.manifest[row]
        waveform = corpus.read(row)
        assert (utterance.start, utterance.num_samples) == (8_000 * row, 8_000)
        assert utterance.variance == pytest.approx(waveform.var(), rel=1e-3)
        assert np.allclose(corpus.read(row, 320, 400), waveform[320:720], atol=1e-5)


def test_facts_of_the_audio_are_on_the_card(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio/stereo.wav", 0.1 * rng.standard_normal((8_000, 2)), 8_000)
    soundfile.write(
        tmp_path / "audio/clipped.wav", np.clip(4 * rng.standard_normal(16_000), -1, 1), 16_000
    )
    soundfile.write(tmp_path / "audio/nan.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    whole = noise(tmp_path / "audio/cut.wav", 16_000)
    whole.write_bytes(whole.read_bytes()[:16_000])
    run_stage(tmp_path / "prepare", "folder.Folder", tmp_path / "audio", max_bad_fraction=0.5)
    card = Corpus.open(tmp_path / "prepare").card
    assert (card["channels"], card["source_rates"]) == ({"1": 1, "2": 1}, {"8000": 1, "16000": 1})
    assert (card["clipped_utterances"], card["peak"]) == (1, 1.0)
    assert set(card["quarantined"]["reasons"]) == {
        "NaN or infinity among samples #..#",
        "truncated or damaged, holds # samples, # bytes fewer than its header says",
    }


def test_a_name_that_is_not_utf_8_is_quarantined(tmp_path: Path) -> None:
    with (
        ColumnSpool(tmp_path / "utterances", COLUMNS) as spool,
        Quarantine(tmp_path / "bad") as quarantine,
    ):
        found = collect(Named(train("a\udcff", "b")), tmp_path, spool, quarantine)
        assert (len(found), quarantine.examples[0].id) == (1, r"a\xff")
    assert r"a\\xff" in (tmp_path / "bad").read_text()


def test_too_many_bad_files_are_counted_by_reason(tmp_path: Path, root: Path) -> None:
    for number in range(5):
        (root / f"anna/{number}.wav").write_bytes(b"garbage")
    for number in range(3):
        noise(root / f"bob/{number}.wav", 100 + number)
    found = (
        r"8 of 20 utterances cannot be used \(40\.00%, data\.max_bad_fraction is 1\.00%\): "
        r"5 x not readable as audio .*, 3 x # samples at # Hz, shorter than one model frame \(#\); "
        r"the first: .*anna/0\.wav: not readable"
    )
    with pytest.raises(DataError, match=found):
        folder_stage(tmp_path, root, max_bad_fraction=0.01)


def test_a_missing_file_is_bad_and_a_corpus_that_lies_elsewhere_is_an_error(
    tmp_path: Path, root: Path
) -> None:
    """One policy for every corpus; here a table of two files, of which one is there."""
    table = tmp_path / "list.csv"
    table.write_text("path\nanna/0.wav\nbob/1.wav\nbob/gone.wav\n")
    corpus = {"table": str(table)}
    facts = folder_stage(tmp_path, root, corpus=corpus, max_bad_fraction=0.5, valid_fraction=0.0)
    assert (facts["utterances"], facts["quarantined"]) == (2, 1)
    (line,) = (tmp_path / "prepare/quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"].startswith("no such file; ")
    table.write_text("path\naudio/anna/0.wav\naudio/bob/1.wav\n")
    with pytest.raises(DataError, match=r"audio/anna/0\.wav: no such file, nor any of 1 others"):
        folder_stage(tmp_path, root, corpus=corpus, max_bad_fraction=0.5)


def test_a_missing_card_is_named(tmp_path: Path, root: Path) -> None:
    folder_stage(tmp_path, root)
    (tmp_path / "prepare/card.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"card\.json: missing or damaged"):
        _ = Corpus.open(tmp_path / "prepare").card


def test_real_speech(tmp_path: Path, shared: Path) -> None:
    corpus = {"train": ["train-clean-100"], "test": ["test-other"]}
    facts = run_stage(
        tmp_path / "prepare", "librispeech.LibriSpeech", shared / "data/librispeech", corpus=corpus
    )
    assert facts["utterances"] == 217
    assert facts["hours"] == pytest.approx(0.617, abs=1e-3)
    assert set(facts["splits"]) == {"train", "valid", "test"}
    found = Corpus.open(tmp_path / "prepare")
    assert found.card["duplicates"]["utterances"] == 0
    for row in (0, 150):
        utterance = found.manifest[row]
        assert (
            soundfile.info(utterance.path).frames == utterance.num_samples == len(found.read(row))
        )


# -- nothing that is trained on is held out, in any form


class Cuts:
    """Cuts of `recordings` files; the file with number r is spoken by speaker r % 5."""

    def __init__(
        self, root: Path, recordings: int, cuts: int = 6, *, speakers: bool = True
    ) -> None:
        self.root = root
        self.recordings = recordings
        self.cuts = cuts
        self.speakers = speakers

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        for number in range(self.recordings):
            path = self.root / f"{number}.wav"
            if not path.exists():
                noise(path, 4_000 * self.cuts, seed=number)
            for cut in range(self.cuts):
                yield SourceUtterance(
                    id=f"{number}-{cut}",
                    path=path,
                    split="train",
                    start=4_000 * cut,
                    num_samples=4_000,
                    speaker=f"s{number % 5}" if self.speakers else "",
                )


def prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: object, **values: object
) -> tuple[Corpus, dict[str, set[str]]]:
    """The corpus, and the ids of each split."""
    monkeypatch.setattr(stage.compose, "build", lambda _: source)
    folder = tmp_path / "prepare"
    folder.mkdir(exist_ok=True)
    data = DataConfig(corpus={}, root=str(tmp_path / "audio"), workers=1, **values)
    recipe = Recipe(name="test", work_dir=str(tmp_path), data=data)
    stage.run(recipe, Workspace(tmp_path), "prepare", folder)
    corpus = Corpus.open(folder)
    manifest = corpus.manifest
    return corpus, {
        split: set(manifest.take("id", manifest.rows(split)).to_pylist())
        for split in manifest.splits
    }


def first_parts(ids: set[str]) -> set[str]:
    return {id.partition("-")[0] for id in ids}


def test_a_recording_is_held_out_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Cuts(tmp_path / "audio", recordings=20)
    _, splits = prepared(tmp_path, monkeypatch, source, valid_fraction=0.2)
    assert first_parts(splits["valid"]) & first_parts(splits["train"]) == set()
    assert 6 <= len(splits["valid"]) <= 48
    assert len(splits["valid"]) % 6 == 0
    # The same recordings, wherever the corpus lies.
    moved = Cuts(tmp_path / "moved/audio", recordings=20)
    (tmp_path / "moved").mkdir()
    assert prepared(tmp_path / "moved", monkeypatch, moved, valid_fraction=0.2)[1] == splits


def test_a_speaker_is_held_out_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Cuts(tmp_path / "audio", recordings=20, cuts=2)
    corpus, splits = prepared(tmp_path, monkeypatch, source, hold_out_by="speaker")
    speakers = {
        split: {int(number) % 5 for number in first_parts(ids)} for split, ids in splits.items()
    }
    assert speakers["train"] & speakers["valid"] == set()
    assert corpus.card["splits"]["valid"]["speakers_in_train"] == 0
    corpus, _ = prepared(tmp_path, monkeypatch, source, hold_out_by="recording")
    assert corpus.card["splits"]["valid"]["speakers_in_train"] > 0
    assert "of them in train" in describe(corpus.card)


def test_without_names_of_speakers_recordings_are_held_out_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Cuts(tmp_path / "audio", recordings=20, cuts=2, speakers=False)
    _, splits = prepared(tmp_path, monkeypatch, source, hold_out_by="speaker", valid_fraction=0.2)
    assert first_parts(splits["valid"]) & first_parts(splits["train"]) == set()
    assert len(splits["valid"]) >= 4
    by_recording = {"hold_out_by": "recording", "valid_fraction": 0.2}
    assert prepared(tmp_path, monkeypatch, source, **by_recording)[1] == splits


def test_the_only_recording_is_held_out_by_utterance_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Cuts(tmp_path / "audio", recordings=1, cuts=20)
    _, splits = prepared(tmp_path, monkeypatch, source, valid_fraction=0.1)
    assert 1 <= len(splits["valid"]) <= 6
    assert "all 20 utterances are of one recording" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_no_copy_of_a_held_out_utterance_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixed: bool, bad: bool
) -> None:
    """Also in a mixture in which another corpus has a `valid` of its own, and where the utterance
    that a hash would choose first cannot be read."""
    ids = [f"{number}.wav" for number in range(12)]
    for number, name in enumerate(ids):
        noise(tmp_path / "audio/one" / name, seed=number)
    worst = min(range(12), key=lambda number: share_of(f"one/{number}", "valid"))
    if bad:
        (tmp_path / f"audio/one/{worst}.wav").write_bytes(b"no audio")
    noise(tmp_path / "audio/two/train/x.wav", seed=50)
    noise(tmp_path / "audio/two/valid/y.wav", seed=51)
    source = Mixture(
        corpora={
            name: Folder(root=str(tmp_path / "audio" / name))
            for name in (["one", "two"] if mixed else ["one"])
        }
    )
    _, splits = prepared(
        tmp_path,
        monkeypatch,
        SpeedPerturbation(corpus=source, factors=[1.0, 1.25], workers=1),
        valid_fraction=0.3,
        max_bad_fraction=0.2,
    )
    originals = {id for id in splits["train"] if "speed" not in id}
    copied = {id.removesuffix("-speed1.25") for id in splits["train"] - originals}
    assert copied == originals
    assert splits["valid"] & copied == set()
    assert not [id for id in splits["valid"] if "speed" in id]
    assert len([id for id in splits["valid"] if id.startswith("one/")]) >= 1


def test_the_same_audio_is_not_held_out_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        noise(tmp_path / f"audio/{number}.wav", seed=number % 10)
    source = Folder(root=str(tmp_path / "audio"))
    corpus, splits = prepared(tmp_path, monkeypatch, source, valid_fraction=0.2)
    seeds = {split: {int(id) % 10 for id in ids} for split, ids in splits.items()}
    assert seeds["valid"] & seeds["train"] == set()
    assert (len(splits["valid"]) % 3, corpus.card["duplicates"]["across_splits"]) == (0, 0)
    groups = [
        json.loads(line)
        for line in (tmp_path / "prepare/duplicates.jsonl").read_text().splitlines()
    ]
    assert len(groups) == 10
    assert sorted(int(one["id"]) for group in groups for one in group) == list(range(30))
    assert groups[0][0]["path"].startswith(str(tmp_path / "audio"))


def test_duplicates_can_be_dropped_first_those_of_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        noise(tmp_path / f"audio/train/{number}.wav", seed=number % 5)
    noise(tmp_path / "audio/test/t.wav", seed=0)
    noise(tmp_path / "audio/valid/v.wav", seed=1)
    source = Folder(root=str(tmp_path / "audio"))
    corpus, splits = prepared(tmp_path, monkeypatch, source)
    assert corpus.card["duplicates"]["across_splits"] == 6
    corpus, splits = prepared(tmp_path, monkeypatch, source, duplicates="drop")
    assert splits == {
        "train": {"train/2", "train/3", "train/4"},
        "valid": {"valid/v"},
        "test": {"test/t"},
    }
    assert corpus.card["duplicates"]["utterances"] == 0
    assert not (tmp_path / "prepare/duplicates.jsonl").exists()
    listed = [
        json.loads(line)
        for line in (tmp_path / "prepare/quarantine.jsonl").read_text().splitlines()
    ]
    assert [one["reason"] for one in listed if one["id"] == "train/5"] == [
        "the same audio as another utterance; 'test/t' of test stays"
    ]


def test_the_channel_is_that_of_the_configuration_or_of_the_list(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    samples = 0.1 * rng.standard_normal((8_000, 2)).astype(np.float32)
    samples[:, 0] *= 0.1
    soundfile.write(tmp_path / "audio/a.wav", samples, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "audio/b.wav", 1e-4 * samples[:, 1], 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "audio/c.wav", samples * [[1, -1]], 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "audio/d.wav", samples[:, 1:] * [[1, -0.9]], 16_000)
    for channel, expected in (("mix", [-1] * 4), ("loudest", [1, -1, 1, 0]), ("0", [0, -1, 0, 0])):
        folder = tmp_path / channel
        run_stage(folder, "folder.Folder", tmp_path / "audio", valid_fraction=0.0, channel=channel)
        corpus = Corpus.open(folder)
        assert corpus.manifest.numbers("channel").tolist() == expected
        for row, number in enumerate(expected):
            stored = soundfile.read(corpus.manifest[row].path, dtype="float32", always_2d=True)[0]
            mono = stored.mean(axis=1) if number < 0 else stored[:, number]
            np.testing.assert_allclose(corpus.read(row), mono, atol=1e-7)
        warned = describe(corpus.card).count("warning:")
        assert warned == (3 if channel == "mix" else 1)
    table = tmp_path / "list.csv"
    table.write_text("path,channel\naudio/a.wav,0\naudio/c.wav,1\naudio/d.wav,\n")
    run_stage(
        tmp_path / "table",
        "manifest.ManifestFile",
        tmp_path,
        corpus={"path": str(table)},
        valid_fraction=0.0,
        channel="loudest",
    )
    assert Corpus.open(tmp_path / "table").manifest.numbers("channel").tolist() == [0, 1, 0]
