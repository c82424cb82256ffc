"""`prepare` on a corpus that grows, shrinks, changes or moves."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.data.preparation import build
from hubert_pretrain.errors import ArtefactError, HubertPretrainError
from hubert_pretrain.pipeline import plan, redo
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight import changes, check
from hubert_pretrain.stages.prepare import open_corpus
from hubert_pretrain.stages.runner import run_stage
from tests.config.test_recipes import composed

Run = Callable[..., "Prepared"]


def noise(path: Path, seed: int, num_samples: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    waveform = 0.1 * np.random.default_rng(seed).standard_normal(num_samples)
    soundfile.write(path, waveform, 16_000)


class Prepared:
    """A run after stage `prepare`, and the number of files that it decoded."""

    def __init__(self, root: Path, work_dir: Path, *words: str) -> None:
        self.recipe = composed(
            "smoke", "data=folder", f"data.root={root}", "data.workers=1", *words
        )
        self.recipe.stage = "prepare"
        self.workspace = Workspace(work_dir)
        self.decoded = 0

    def run(self, monkeypatch: pytest.MonkeyPatch, redo_: str = "false") -> Prepared:
        really = build.scan_all

        def counted(recordings, *rest):  # type: ignore[no-untyped-def]
            found = list(recordings)
            self.decoded += len(found)
            return really(iter(found), *rest)

        monkeypatch.setattr(build, "scan_all", counted)
        self.recipe.redo = redo_
        redo.apply(self.recipe, self.workspace)
        run_stage(self.recipe, self.workspace, plan.find(self.recipe, "prepare"))
        monkeypatch.setattr(build, "scan_all", really)
        return self

    @property
    def ids(self) -> list[str]:
        return sorted(open_corpus(self.recipe, self.workspace).manifest.column("id").to_pylist())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for number in range(8):
        noise(tmp_path / f"corpus/{number}.wav", number)

    def command(*words: str, root: Path = tmp_path / "corpus", redo_: str = "false") -> Prepared:
        return Prepared(root, tmp_path / "run", *words).run(monkeypatch, redo_)

    return command


def test_files_that_are_added_are_noticed_and_only_they_are_read(run: Run, tmp_path: Path) -> None:
    assert run().decoded == 8
    assert run().decoded == 0, "nothing has changed"
    noise(tmp_path / "corpus/8.wav", 8)
    with pytest.raises(
        ArtefactError,
        match=r"corpus: the corpus has changed since it was prepared \(utterances: 1 added; the "
        r"first: .*/8\.wav\); redo=prepare",
    ):
        run()
    prepared = Prepared(tmp_path / "corpus", tmp_path / "run")
    row = changes.check(prepared.recipe, prepared.workspace)
    assert (row.state, "1 added" in row.found, row.fix) == ("warning", True, changes.FIX)
    again = run(redo_="true")
    assert again.decoded == 1
    assert again.ids == [str(number) for number in range(9)]
    assert changes.check(again.recipe, again.workspace).state == "ok"
    assert run().decoded == 0


def test_files_that_are_removed_or_changed_are_noticed(run: Run, tmp_path: Path) -> None:
    before = run()
    content = before.workspace.artefact("prepare").fingerprint
    (tmp_path / "corpus/0.wav").unlink()
    noise(tmp_path / "corpus/1.wav", 100)
    os.utime(tmp_path / "corpus/1.wav", ns=(10**18, 10**18))
    with pytest.raises(
        ArtefactError, match=r"utterances: 1 removed, 1 changed; the first: .*/1\.wav"
    ):
        run()
    again = run(redo_="prepare")
    assert (again.decoded, again.ids) == (1, [str(number) for number in range(1, 8)])
    assert again.workspace.artefact("prepare").fingerprint != content


def test_files_that_were_only_touched_come_out_the_same(run: Run, tmp_path: Path) -> None:
    content = run().workspace.artefact("prepare").fingerprint
    os.utime(tmp_path / "corpus/1.wav", ns=(10**18, 10**18))
    with pytest.raises(ArtefactError, match="1 changed"):
        run()
    again = run(redo_="true")
    assert again.decoded == 1
    assert again.workspace.artefact("prepare").fingerprint == content


def test_a_file_in_quarantine_is_no_news(run: Run, tmp_path: Path) -> None:
    (tmp_path / "corpus/bad.wav").write_bytes(b"no audio")
    run("data.max_bad_fraction=0.5")
    assert run("data.max_bad_fraction=0.5").decoded == 0


def test_other_texts_are_noticed(run: Run, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    lines = ["path,text", *(f"{number}.wav,HELLO" for number in range(8))]
    table.write_text("\n".join(lines))
    words = f"data.corpus.table={table}"
    run(words)
    table.write_text("\n".join(lines).replace("3.wav,HELLO", "3.wav,GOODBYE"))
    with pytest.raises(ArtefactError, match="other texts, speakers, labels or splits"):
        run(words)
    assert run(words, redo_="true").decoded == 0


def test_speed_copies_are_made_again_only_for_new_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(redo_: str = "false") -> Prepared:
        made = Prepared(tmp_path / "corpus", tmp_path / "run")
        made.recipe.data.corpus = {
            "_target_": "hubert_pretrain.corpora.speed_perturbation.SpeedPerturbation",
            "factors": [1.0, 1.25],
            "workers": 1,
            "corpus": made.recipe.data.corpus,
        }
        return made.run(monkeypatch, redo_)

    def copies() -> dict[str, int]:
        found = (tmp_path / "run/prepare/speed").rglob("*.flac")
        return {path.name: path.stat().st_mtime_ns for path in found}

    for number in range(8):
        noise(tmp_path / f"corpus/{number}.wav", number)
    assert run().decoded == 16
    before = copies()
    assert len(before) == 8
    assert run().decoded == 0, "copies are no change"
    noise(tmp_path / "corpus/8.wav", 8)
    (tmp_path / "corpus/0.wav").unlink()
    assert run(redo_="true").decoded == 2
    assert len(copies()) == 8
    assert len(before.items() & copies().items()) == 7


def test_audio_in_shards_needs_its_files_no_more(run: Run, tmp_path: Path) -> None:
    run("data.shards=flac")
    shutil.rmtree(tmp_path / "corpus")
    assert run("data.shards=flac").decoded == 0


def test_a_corpus_that_is_gone_is_an_error(run: Run, tmp_path: Path) -> None:
    run()
    shutil.rmtree(tmp_path / "corpus")
    with pytest.raises(ArtefactError, match=r"cannot be listed any more: .*corpus: no such folder"):
        run()
    prepared = Prepared(tmp_path / "corpus", tmp_path / "run")
    assert changes.check(prepared.recipe, prepared.workspace).state == "warning"


# -- another place


def test_a_corpus_that_has_moved_is_read_where_it_is(run: Run, tmp_path: Path) -> None:
    before = run()
    corpus = open_corpus(before.recipe, before.workspace)
    sound = [corpus.read(row) for row in range(len(corpus.manifest))]
    state = before.workspace.artefact("prepare").fingerprint
    (tmp_path / "scratch").mkdir()
    shutil.move(tmp_path / "corpus", tmp_path / "scratch/7")
    moved = run(root=tmp_path / "scratch/7")
    assert moved.decoded == 0
    assert moved.workspace.artefact("prepare").fingerprint == state
    assert changes.difference(moved.recipe, moved.workspace) == ""
    check.check_place(moved.recipe, moved.workspace)
    corpus = open_corpus(moved.recipe, moved.workspace)
    for row, expected in enumerate(sound):
        assert corpus.manifest.audio_path(row).startswith(f"{tmp_path}/scratch/7/")
        np.testing.assert_array_equal(corpus.read(row), expected)
    # Workers of a loader get it pickled.
    manifest = pickle.loads(pickle.dumps(corpus.manifest))
    assert manifest[0].path == corpus.manifest[0].path
    assert manifest.audio_path(0).startswith(f"{tmp_path}/scratch/7/")
    noise(tmp_path / "scratch/7/8.wav", 8)
    with pytest.raises(ArtefactError, match="1 added"):
        run(root=tmp_path / "scratch/7")
    assert run(root=tmp_path / "scratch/7", redo_="true").decoded == 1


def test_a_copy_has_other_times(run: Run, tmp_path: Path) -> None:
    run()
    shutil.copytree(tmp_path / "corpus", tmp_path / "copy", copy_function=shutil.copyfile)
    assert run(root=tmp_path / "copy").decoded == 0


def test_each_corpus_of_a_mixture_moves_by_itself(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        noise(tmp_path / name / "train/x.wav", 1)
        noise(tmp_path / name / "valid/y.wav", 2)

    def words(a: str, b: str) -> list[str]:
        folder = "_target_: hubert_pretrain.corpora.folder.Folder, root"
        return [
            "data=mixture",
            "~data.corpus.corpora.librispeech",
            "~data.corpus.corpora.own",
            f"+data.corpus.corpora.a={{{folder}: {tmp_path / a}}}",
            f"+data.corpus.corpora.b={{{folder}: {tmp_path / b}}}",
            "data.root=null",
        ]

    run(*words("a", "b"))
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    moved = run(*words("a", "elsewhere"))
    corpus = open_corpus(moved.recipe, moved.workspace)
    paths = sorted(corpus.manifest.audio_path(row) for row in range(4))
    assert paths == sorted(
        str(tmp_path / name / part)
        for name in ("a", "elsewhere")
        for part in ("train/x.wav", "valid/y.wav")
    )


@pytest.mark.parametrize("kind", ["not there", "another sound"])
def test_another_corpus_is_not_taken_for_the_same(run: Run, tmp_path: Path, kind: str) -> None:
    run()
    for number in range(8):
        name = f"{number}.wav" if kind == "another sound" else f"other{number}.wav"
        noise(tmp_path / "another" / name, number + (kind == "another sound") * 50)
    if kind == "another sound":
        for path in (tmp_path / "another").iterdir():
            soundfile.write(path, 0.5 * soundfile.read(path)[0], 16_000)
    other = Prepared(tmp_path / "another", tmp_path / "run")
    with pytest.raises(
        HubertPretrainError,
        match=r"prepared elsewhere \(.*corpus -> .*another\).*choose another work_dir or add "
        r"redo=prepare",
    ):
        check.check_place(other.recipe, other.workspace)


def test_a_corpus_with_cut_and_recoded_recordings_is_as_it_was(run: Run, tmp_path: Path) -> None:
    long = 0.1 * np.random.default_rng(9).standard_normal(6 * 16_000)
    long[40_000:50_000] = 0.0
    for name in ("long.wav", "long2.mp3"):
        soundfile.write(tmp_path / "corpus" / name, long, 16_000)
    words = ("data.segmentation.max_seconds=4", "data.recode_minutes=0.05")
    made = run(*words)
    assert {"long-0000", "long-0001", "long2-0000", "long2-0001"} < set(made.ids)
    assert run(*words).decoded == 0, "nothing has changed"
    again = run(*words, redo_="true")
    assert (again.decoded, again.ids) == (0, made.ids)
    corpus = open_corpus(again.recipe, again.workspace)
    assert all(len(corpus.read(row)) for row in range(len(corpus.manifest)))
    noise(tmp_path / "corpus/long.wav", 10, 5 * 16_000)
    with pytest.raises(ArtefactError, match=r"1 changed; the first: .*/long\.wav"):
        run(*words)
