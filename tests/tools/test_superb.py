"""`hubert-pretrain superb`: a sweep of rates on a tiny corpus in the form of Fluent Speech
Commands, resumed, and its table; the recipes of the tasks; arguments that cannot be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hubert_pretrain.config import compose
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.tools import superb
from tests.finetune.conftest import TINY

INTENTS = ("increase|heat|none", "decrease|heat|none")
FAST = [
    *("trainer=cpu", "trainer.loader_workers=0", "trainer.threads=1", "data.workers=1"),
    *("finetune.TASK.steps=3", "finetune.TASK.batch_seconds=4", "report=false"),
    *("finetune.TASK.micro_batch_seconds=4", "finetune.TASK.valid_every_steps=3"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A checkpoint, and commands: each intent is a pitch."""
    folder = tmp_path_factory.mktemp("superb")
    torch.manual_seed(0)
    save_model(folder / "model", Hubert(TINY))
    time = np.arange(16_000) / 16_000
    for split, count in (("train", 8), ("valid", 4), ("test", 4)):
        rows = ["path,speakerId,transcription,action,object,location"]
        for number in range(count):
            name = f"wavs/speakers/s{number}/{split}{number}.wav"
            (folder / "fsc" / name).parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).normal(0, 0.01, len(time))
            tone = 0.2 * np.sin(2 * np.pi * (300, 1500)[number % 2] * time) + noise
            soundfile.write(folder / "fsc" / name, tone, 16_000)
            rows.append(f"{name},{split}{number},turn it,{INTENTS[number % 2].replace('|', ',')}")
        (folder / "fsc" / "data").mkdir(exist_ok=True)
        (folder / "fsc" / "data" / f"{split}_data.csv").write_text("\n".join(rows))
    return str(folder / "model"), str(folder / "fsc")


def in_this_process(run: superb.Run, stage: str) -> None:
    """As `superb.execute`, without the seconds that a process takes to start."""
    from hubert_pretrain.stages.runner import run_stage

    recipe = compose.recipe_of([f"+recipe={run.recipe}"])
    for each in plan.matching(recipe, stage):
        run_stage(recipe, Workspace(recipe.work_dir), each)


def test_a_sweep_ends_in_a_table_and_goes_on(
    places: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, root = places
    monkeypatch.setattr(superb, "execute", in_this_process)
    words = [checkpoint, "--roots", f"fluent_speech_commands={root}", "--output", str(tmp_path)]
    words += ["--set", *FAST, "--learning-rates", "1e-2", "1e-6"]
    assert superb.main(words) == 0
    table = capsys.readouterr().out.splitlines()[-1]
    found = json.loads((tmp_path / "superb.json").read_text())["tasks"]["ic"]
    assert table.startswith(f"| IC | accuracy ↑ | {found['test']:.2f} | ")
    assert table.endswith(" (end of the sweep) | 98.34 |")
    assert set(found["swept"]) == {"0.01", "1e-06"}
    assert found["valid"] == max(found["swept"].values())
    # Only the chosen rate was scored on the test split.
    assert len(list((tmp_path / "ic" / "evaluate").iterdir())) == 1
    weights = (tmp_path / "ic" / "finetune").rglob("model.safetensors")
    before = {path: path.stat().st_mtime_ns for path in weights}
    assert len(before) == 2
    # The same command makes nothing again, another rate is added.
    assert superb.main([*words, "1e-3"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list((tmp_path / "ic" / "finetune").rglob("model.safetensors"))) == 3
    assert superb.main(["other", *words[1:]]) == 2
    assert "has the scores of" in capsys.readouterr().err


def test_the_best_rate_is_that_of_all_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emotion recognition: the mean over the folds decides, and the mean is reported."""
    valid = {"er_0_01": [0.9, 0.2], "er_0_001": [0.6, 0.6]}
    runs = [superb.Run(tmp_path / str(fold), tmp_path / str(fold)) for fold in range(2)]
    monkeypatch.setattr(superb, "execute", lambda run, stage: None)

    def facts(run: superb.Run, stage: str) -> dict[str, Any]:
        fold = int(run.work_dir.name)
        name = stage.split("/")[1]
        scores = [0.5, 0.7] if stage.startswith("evaluate") else valid[name]
        return {"accuracy": scores[fold], "intervals": {"accuracy": [0.1, 0.9]}}

    monkeypatch.setattr(superb, "facts_of", facts)
    found = superb.choose("er", runs, [1e-2, 1e-3])
    assert (found.rate, found.valid, found.test) == pytest.approx((1e-3, 60, 60))
    assert "| ER | accuracy ↑ | 60.00 |  | 60.00 | 0.001 (end of the sweep) | 64.92 |" in (
        superb.row_of(found)
    )


LIBRISPEECH = {"train": ["train-clean-100"], "valid": ["dev-clean"], "test": ["test-clean"]}
SPLITS = {
    "asr": LIBRISPEECH,
    "pr": LIBRISPEECH,
    "ks": {"classes": 12, "official_test": True},
    "asv": {"splits": "verification"},
}


@pytest.mark.parametrize("task", superb.PROBES)
def test_a_recipe_is_a_probe_of_the_benchmark(task: str) -> None:
    """Frozen encoder, mixture of all layers, constant rate of Adam, its splits."""
    words = [f"+recipe=superb/{task}", "data.root=/corpora", f"finetune.{task}.checkpoint=/model"]
    words += ["finetune.pr.task.lexicon=/lexicon"] if task == "pr" else []
    recipe = compose.recipe_of(words)
    found = recipe.finetune[task]
    assert recipe.name == f"superb_{task}"
    assert found.task["weighted_layers"] is True
    assert found.freeze_encoder_steps == found.steps
    assert found.steps == {"er": 30_000, "pr": 100_000}.get(task, 200_000)
    assert (found.warmup_fraction, found.hold_fraction, found.clip_norm) == (0, 1, 1)
    assert found.mask.probability == found.channel_mask.probability == found.layerdrop == 0
    assert found.norm_over_valid  # so that the encoder runs once per utterance
    assert {key: recipe.data.corpus[key] for key in SPLITS.get(task, {})} == SPLITS.get(task, {})
    if task == "asr":
        assert found.task["lstm_layers"] == 2


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--roots", "librispech=/x"], "did you mean 'librispeech'"),
        (["--tasks", "kws", "--roots", "librispeech=/x"], "expected some of .*did you mean 'ks'"),
        (["--tasks", "pr", "--roots", "librispeech=/x"], "needs the phones of words, --lexicon"),
        (["--tasks", "er", "--roots", "librispeech=/x"], "needs its corpus, --roots iemocap="),
        ([], "nothing to do"),
        (["--learning-rates", "0"], "expected rates above 0 and below 1"),
        (["--learning-rates", "1e-3", "0.001"], "a rate is there twice"),
    ],
)
def test_arguments_that_cannot_be(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert superb.main(["model", *words]) == 2
    assert re.search(problem, capsys.readouterr().err)
