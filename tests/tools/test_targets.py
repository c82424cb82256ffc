"""The commands for targets and units: score, convert, inspect, extract."""

from __future__ import annotations

import importlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import DataError
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.files import write_json
from hubert_pretrain.pipeline.workspace import FORMAT
from hubert_pretrain.targets.labelling import label_corpus
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.targets.writer import TargetWriter
from tests.targets.conftest import make_corpus

Tool = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`prepare` and `it1/{cluster,label}` of a run."""
    root = tmp_path_factory.mktemp("run")
    corpus = make_corpus(root / "prepare")
    frames = torch.cat([Mfcc()(torch.from_numpy(corpus.read(row))[None])[0] for row in range(6)])
    codebooks = CodebookSet.of(Codebook(frames[::40].clone(), Mfcc().fingerprint(), Mfcc().grid))
    codebooks.save(root / "it1/cluster")
    features = {"_target_": "hubert_pretrain.features.mfcc.Mfcc"}
    write_json(
        root / "it1/cluster/meta.json",
        {"format": FORMAT, "fingerprint": "x", "facts": {}, "config": {"features": features}},
    )
    (root / "it1/label").mkdir()
    label_corpus(
        corpus,
        TargetWriter.create(root / "it1/label", corpus.manifest, codebooks),
        Mfcc(),
        codebooks,
    )
    return root


@pytest.fixture
def tool(capsysbinary: pytest.CaptureFixture[bytes]) -> Tool:
    """Run a command: exit code, stdout, stderr."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        module = importlib.import_module(f"hubert_pretrain.tools.{name}")
        code = module.main(list(map(str, arguments)))
        found = capsysbinary.readouterr()
        return code, found.out.decode(), found.err.decode()

    return run


def test_score(tool: Tool, run: Path, tmp_path: Path) -> None:
    arguments = [run / "it1/label", "--corpus", run / "prepare"]
    code, out, _ = tool(
        "score_targets", *arguments, "--against", run / "it1/label", "--picture", tmp_path / "x.png"
    )
    facts = json.loads(out)
    assert code == 0
    assert facts["adjusted_mutual_information"] == [pytest.approx(1.0)]
    assert 0.3 < facts["pnmi"] <= 1
    assert facts["speaker_nmi"] is None, "nobody is named"
    assert facts["mean_phone_ms"] == pytest.approx(200, rel=0.1)
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_score_against_scikit_learn(tool: Tool, run: Path) -> None:
    arguments = [run / "it1/label", "--corpus", run / "prepare", "--codebook", run / "it1/cluster"]
    code, out, _ = tool("score_targets", *arguments, "--hours", 0.002)
    found = json.loads(out)["against_scikit_learn"]
    assert code == 0
    assert found["frames"] > 100
    assert found["inertia_ratio"] == pytest.approx(
        found["inertia"] / found["inertia_of_scikit_learn"]
    )
    assert 1.0 < found["inertia_ratio"] < 10, "its centroids are frames taken evenly, not fitted"


def test_convert_there_and_back(tool: Tool, run: Path, tmp_path: Path) -> None:
    corpus = ["--corpus", run / "prepare"]
    code, out, _ = tool(
        "convert_targets", "export", run / "it1/label", *corpus, "--out", tmp_path / "km"
    )
    assert code == 0
    assert "train.km" in out
    code, out, _ = tool(
        "convert_targets", "import", tmp_path / "km", *corpus, "--out", tmp_path / "store"
    )
    assert code == 0
    assert "targets of 12 utterances" in out
    np.testing.assert_array_equal(
        TargetStore.open(tmp_path / "store").ids, TargetStore.open(run / "it1/label").ids
    )
    code, out, err = tool(
        "convert_targets", "import", run / "prepare", *corpus, "--out", tmp_path / "other"
    )
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_inspect(tool: Tool, run: Path) -> None:
    arguments = [run / "it1/label", "--corpus", run / "prepare"]
    code, out, _ = tool("inspect_targets", *arguments)
    assert code == 0
    assert "mfcc (dim 39)" in out
    code, out, _ = tool("inspect_targets", *arguments, "utterance-000")
    store = TargetStore.open(run / "it1/label")
    runs = out.splitlines()[1:]
    assert len(runs) == 1 + int((store.targets(0)[1:] != store.targets(0)[:-1]).sum())
    code, _, err = tool("inspect_targets", *arguments, "utterance-999")
    assert code == 1
    assert "no utterance 'utterance-999'" in err


def test_units_of_files_folders_and_a_corpus(tool: Tool, run: Path) -> None:
    store = TargetStore.open(run / "it1/label")
    corpus = Corpus.open(run / "prepare")
    cluster = run / "it1/cluster"
    audio = Path(corpus.manifest[0].path)
    code, out, _ = tool("extract_units", cluster, run / "prepare")
    assert code == 0
    for row, line in enumerate(map(json.loads, out.splitlines())):
        assert line["id"] == corpus.manifest[row].id
        assert np.repeat(line["units"], line["frames"]).tolist() == store.targets(row).tolist()
        assert line["start_seconds"][0] == 0.0
    expected = " ".join(map(str, store.targets(0).tolist())) + "\n"
    assert tool("extract_units", cluster, audio, "--format", "km")[1] == expected
    assert (
        tool("extract_units", cluster, audio, "--format", "km", "--stream", "--chunk-frames", 3)[1]
        == expected
    )
    assert len(tool("extract_units", cluster, audio.parent)[1].splitlines()) == 12


def test_units_of_every_frame_are_scored_against_phones(
    tool: Tool, run: Path, tmp_path: Path
) -> None:
    cluster = run / "it1/cluster"
    corpus = Corpus.open(run / "prepare")
    store = TargetStore.open(run / "it1/label")
    switches = []
    for penalty in (0, 3):
        words = ("--format", "discophon", "--smooth", penalty)
        code, out, _ = tool("extract_units", cluster, run / "prepare", *words)
        assert code == 0
        path = tmp_path / f"units-{penalty}.jsonl"
        path.write_text(out)
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line["file"] for line in lines] == [
            corpus.manifest[row].id for row in range(len(corpus.manifest))
        ]
        switches.append(sum(int(np.count_nonzero(np.diff(line["units"]))) for line in lines))
        if penalty == 0:
            assert [line["units"] for line in lines] == [
                store.targets(row).tolist() for row in range(len(corpus.manifest))
            ]
    assert switches[1] < switches[0]
    code, out, err = tool("score_units", tmp_path / "units-0.jsonl", "--corpus", run / "prepare")
    assert code == 0, err
    scores = json.loads(out)
    assert (scores["files"], scores["without_alignment"]) == (11, 1)
    assert scores["many_to_one"]["phone_error_rate"] >= 0
    assert 0 < scores["many_to_one"]["f1"] <= 1
    code, _, err = tool("extract_units", cluster, "-", "--smooth", 1)
    assert code == 2
    assert "--smooth 1 looks at whole recordings" in err
    code, _, err = tool("extract_units", cluster, run / "prepare", "--smooth", -1)
    assert "switch penalty -1.0: expected a number of 0 or more" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no units in it"),
        ('{"file": "a"}', 'bad.jsonl:1: expected {"file": name, "units": [numbers from 0 on]}'),
        ('{"file": "a", "units": [1, -1]}', "bad.jsonl:1: expected"),
        ('\n{"file": "a", "units": [1.5]}', "bad.jsonl:2: expected"),
        ('{"file": "a", "units": [1]}\n{"file": "a", "units": [1]}', "'a' for the second time"),
    ],
)
def test_files_that_are_no_units(text: str, message: str, tmp_path: Path) -> None:
    from hubert_pretrain.tools.score_units import read_units

    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        read_units(tmp_path / "bad.jsonl")


def test_units_of_a_microphone(tool: Tool, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.open(run / "prepare")
    pcm = np.round(corpus.read(2) * 32768).clip(-32768, 32767).astype("<i2").tobytes()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(pcm)))
    code, out, err = tool("extract_units", run / "it1/cluster", "-")
    assert code == 0
    assert "0.145 s" in err
    lines = [json.loads(line) for line in out.splitlines()]
    units = np.repeat([line["unit"] for line in lines], [line["frames"] for line in lines])
    assert len(units) == len(TargetStore.open(run / "it1/label").targets(2))
    assert (units == TargetStore.open(run / "it1/label").targets(2)).mean() > 0.95, (
        "16 bits instead of floats"
    )


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("form", ["jsonl", "km"])
def test_an_audio_file_on_stdin_is_not_taken_for_pcm(
    tool: Tool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, form: str
) -> None:
    corpus = Corpus.open(run / "prepare")
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, corpus.read(2), 16_000)
    expected = tool("extract_units", run / "it1/cluster", path, "--format", form)[1]
    stdin = SimpleNamespace(buffer=io.BytesIO(path.read_bytes()))
    monkeypatch.setattr("sys.stdin", stdin)
    code, out, _ = tool("extract_units", run / "it1/cluster", "-", "--format", form)
    assert code == 0
    assert out == expected.replace(str(path), "-")
    assert len(out.splitlines()) == 1


def test_a_damaged_file_on_stdin_is_an_error(
    tool: Tool, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"RIFF" + bytes(5000))))
    code, out, err = tool("extract_units", run / "it1/cluster", "-")
    assert (code, out) == (1, "")
    assert err.startswith("error: stdin: not readable as audio")


def test_stdin_stands_alone(tool: Tool, run: Path) -> None:
    code, out, err = tool("extract_units", run / "it1/cluster", "x.wav", "-")
    assert (code, out) == (2, "")
    assert "input - is standard input and stands alone" in err


def test_a_line_of_km_for_every_recording(tool: Tool, run: Path, tmp_path: Path) -> None:
    good = Corpus.open(run / "prepare").manifest[0].path
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    code, out, _ = tool("extract_units", run / "it1/cluster", good, bad, good, "--format", "km")
    first, second, third, end = out.split("\n")
    assert (code, second, end) == (1, "", "")
    assert first == third != ""


def test_nothing_is_written_over_something_else(tool: Tool, run: Path, tmp_path: Path) -> None:
    """The folder of a stage, or of anything else, stays as it is, to the byte."""
    corpus = Corpus.open(run / "prepare")
    convert = ("convert_targets", "import", run / "it1/label", "--corpus", run / "prepare", "--out")
    audio = Path(corpus.manifest[0].path)
    for arguments, folder in (
        (("extract_features", "mfcc", audio), run / "prepare"),
        (("extract_features", "mfcc", run / "prepare"), run / "it1/label"),
        (convert, run / "it1/cluster"),
        (("make_shards", run / "prepare"), run / "prepare"),
    ):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        code, _, err = tool(*arguments, folder)
        assert code == 1, arguments
        assert "of something else, which would be lost or mixed up; name an empty folder" in err
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert after == before
    assert tool("extract_features", "mfcc", audio, tmp_path / "new")[0] == 0
    assert tool("extract_features", "mfcc", audio, tmp_path / "new")[0] == 0, "goes on"
    assert not (tmp_path / "new" / "manifest.arrow").exists()


def test_what_cannot_be_read_is_named_and_the_rest_done(
    tool: Tool, run: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    good = Corpus.open(run / "prepare").manifest[0].path
    code, out, err = tool("extract_units", run / "it1/cluster", bad, good)
    assert code == 1
    assert len(out.splitlines()) == 1
    assert "bad.wav" in err
    code, _, err = tool("extract_units", tmp_path, good)
    assert code == 1
    assert "codebook.json" in err
