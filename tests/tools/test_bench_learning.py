"""tools/bench_learning.py: equal processor time, scores on new voices, and resumption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.pipeline import locks
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.tools import bench_learning, benchmarking

TINY = [
    "+recipe=smoke",
    "~finetune.speakers",
    "~iterations.it2",
    "finetune.asr.checkpoint=it1/pretrain",
    "export.checkpoints=[]",
    "data.corpus.minutes=0.5",
    "data.corpus.num_voices=3",
    "data.corpus.test_voices=1",
    "model.conv_dim=[8,8,8,8,8,8,8]",
    "model.hidden_size=16",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "iterations.it1.clustering.n_clusters=8",
    "iterations.it1.pretrain.batch_seconds=4",
    "iterations.it1.pretrain.micro_batch_seconds=4",
    "iterations.it1.pretrain.probe.every_steps=0",
    "iterations.it1.pretrain.checkpoint_every_steps=1000",
    "finetune.asr.checkpoint_every_steps=1000",
]
NO_STAGES = ["finetune.asr.checkpoint=/"]
SOFTMAX = "iterations.it1.pretrain.loss.head=softmax"
STEP_SECONDS = 0.0625


def variants_file(folder: Path, **changes: Any) -> Path:
    content = {
        "base": TINY,
        "cpu_seconds": 4,
        "seeds": [1],
        "score": {"n_clusters": 8, "restarts": 1},
        "variants": {"cosine": [], "softmax": [SOFTMAX]},
    }
    path = folder / "variants.yaml"
    path.write_text(json.dumps(content | changes))  # JSON is YAML
    return path


@pytest.fixture
def steps_alone_take_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """STEP_SECONDS of processor time each, on any machine."""
    spent = 0.0
    update = L.LightningModule.optimizer_step

    def timed(*arguments: Any, **keywords: Any) -> None:
        nonlocal spent
        spent += STEP_SECONDS
        update(*arguments, **keywords)

    monkeypatch.setattr(L.LightningModule, "optimizer_step", timed)
    monkeypatch.setattr(benchmarking, "cpu_seconds", lambda: spent)


@pytest.mark.slow
@pytest.mark.usefixtures("steps_alone_take_time")
@pytest.mark.filterwarnings("ignore")
def test_two_variants_through_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("espeakng_loader")
    words = [str(variants_file(tmp_path)), str(tmp_path / "bench")]
    monkeypatch.setattr(bench_learning, "MIN_TIMED_SECONDS", 0.25)
    run = bench_learning.run
    ran: list[str] = []

    def interrupted(recipe: Any, workspace: Workspace, name: str) -> float:
        ran.append(f"{workspace.root.parent.name} {name}")
        if ran[-1] == "softmax it1/pretrain":
            raise KeyboardInterrupt
        return run(recipe, workspace, name)

    monkeypatch.setattr(bench_learning, "run", interrupted)
    assert bench_learning.main(words) == 130

    def watched(recipe: Any, workspace: Workspace, name: str) -> float:
        ran.append(f"{workspace.root.parent.name} {name}")
        return run(recipe, workspace, name)

    ran.clear()
    monkeypatch.setattr(bench_learning, "run", watched)
    assert bench_learning.main(words) == 0
    # Neither the first variant nor the targets of the second are made again.
    assert ran == [
        f"softmax {name}" for name in ("it1/pretrain", "finetune/asr", "evaluate/asr/test")
    ]

    found = json.loads((tmp_path / "bench" / "learning.json").read_text())
    assert [row["variant"] for row in found["rows"]] == ["cosine", "softmax"]
    for row in found["rows"]:
        assert list(row["networks"]) == ["features", "it1"]
        # 64 steps of 1/16 s: the recipe trains pretraining for twice as many as the task.
        assert row["steps"] == {"it1/pretrain": 43, "finetune/asr": 21}
        assert row["cpu_seconds"] == sum(row["seconds"].values()) == 4
        assert set(row["seconds"]) == {"it1/cluster", "it1/label", *row["steps"]}
        low, high = row["tasks"]["asr/test"]["intervals"]["wer"]
        assert low <= row["tasks"]["asr/test"]["wer"] <= high
        for scores in row["networks"].values():
            assert 0 < scores["pnmi"] < 1
            assert 0 <= scores["many_to_one"]["f1"] <= 1
            assert scores["speakers"] == ["clara"]  # of whom training hears nothing
    table = (tmp_path / "bench" / "learning.md").read_text()
    assert "| softmax | it1 |" in table
    assert "minus that of cosine, same seed" in table

    capsys.readouterr()
    other = variants_file(tmp_path, cpu_seconds=5)
    assert bench_learning.main([str(other), words[1]]) == 1
    assert "holds a run of other overrides, cpu_seconds or scores" in capsys.readouterr().err


def test_steps_fill_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings get the same multiple of their steps; the next ones follow what the first took."""
    bench = bench_learning.Bench.read(
        variants_file(
            tmp_path,
            base=["+recipe=demo", "~finetune.speakers", "export.checkpoints=[]"],
            cpu_seconds=1000,
        )
    )
    run = bench_learning.LearningRun(bench, "cosine", 1, tmp_path)
    monkeypatch.setattr(run, "seconds_of_targets", lambda: 0.0)
    schedule = run.schedule
    schedule["step_seconds"] = {"it1/pretrain": 0.5, "it2/pretrain": 0.75, "finetune/asr": 0.25}
    schedule["start_seconds"] = {"it1/pretrain": 2.0, "it2/pretrain": 2.0, "finetune/asr": 1.0}
    stages = {stage.name: stage for stage in run.stages(["pretrain", "finetune"])}
    schedule["seconds"] = {"it1/cluster": 20.0, "it1/label": 5.0}
    # 1,200 steps of 0.5 s, 1,800 of 0.75 s and 2,500 of 0.25 s are 2,575 s; there are 975 - 5 s.
    run.choose_steps(stages["it1/pretrain"])
    assert schedule["steps"]["it1/pretrain"] == round(1200 * 970 / 2575) == 452
    # It took twice as long: so will the second, and both others have what is left.
    schedule["seconds"]["it1/pretrain"] = 454.0
    run.choose_steps(stages["it2/pretrain"])
    assert schedule["steps"]["it2/pretrain"] == round(1800 * 518 / (1800 * 1.5 + 625)) == 280
    schedule["seconds"]["it2/pretrain"] = 470.0
    run.choose_steps(stages["finetune/asr"])
    assert schedule["steps"]["finetune/asr"] == 200
    schedule["seconds"]["it2/pretrain"] = 519.0
    with pytest.raises(ConfigError, match=r"cpu_seconds=1000 leaves 4 steps for finetune/asr"):
        run.choose_steps(stages["finetune/asr"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cpu_seconds": 0}, "cpu_seconds=0: expected a number above 0"),
        ({"variants": {"a": "x=1"}}, "a: expected a list of overrides, found 'x=1'"),
        ({"variants": {}}, "must not be empty"),
        ({"seed": [1]}, "no key 'seed' (did you mean 'seeds'?)"),
        ({"score": {"n_cluster": 5}}, "no key 'n_cluster' (did you mean 'n_clusters'?)"),
        ({"variants": {"a": ["data.shard=1"]}}, "data.shard"),
        ({"variants": {"a": ["~iterations.it1", *NO_STAGES]}}, "a: the recipe has no iteration"),
    ],
)
def test_a_file_that_cannot_be_compared(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(variants_file(tmp_path, **changes)), str(tmp_path / "bench")]
    assert bench_learning.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_one_folder_is_run_by_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locks.acquire(tmp_path / ".bench.lock", "the bench"):
        assert bench_learning.main([str(variants_file(tmp_path)), str(tmp_path)]) == 1
    assert "the bench is being run by another process" in capsys.readouterr().err
    assert not (tmp_path / "learning.json").exists()


def test_means_have_intervals_of_student() -> None:
    assert bench_learning.mean_of([]) == ""
    assert bench_learning.mean_of([0.5, None]) == "0.500"
    # Deviation 0.1, three values: 4.303 x 0.1 / sqrt(3).
    assert bench_learning.mean_of([0.4, 0.5, 0.6]) == "0.500 ± 0.248"
