"""Model cards of exports: what the hub reads, lineage and scores from the files of a run, and an
example that runs in the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard

from hubert_pretrain.config.schema import ExportConfig, FinetuneConfig, Recipe
from hubert_pretrain.files import write_json
from hubert_pretrain.finetune.classify import ClassifyTask
from hubert_pretrain.finetune.scoring import card_of
from hubert_pretrain.finetune.task import Metric
from hubert_pretrain.interop.model_card import TaskCard
from hubert_pretrain.interop.registry import FORMATS
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.heads import ClassificationHead, CodebookHead, CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import FORMAT, Workspace
from hubert_pretrain.stages.export import run
from tests.stages.test_export import SMALL


class OwnTask(ClassifyTask):
    """A task of a user."""

    summary = "fine-tuned to count"
    metrics = (Metric("distance", higher_is_better=False, percent=True, hub="mae"),)


STAGES = ("it2/pretrain", "finetune/asr", "finetune/voices")


def finish(workspace: Workspace, stage: str, facts: Any, config: Any, **inputs: str) -> None:
    meta = {
        "format": FORMAT,
        "stage": stage,
        "fingerprint": f"print of {stage}",
        "facts": facts,
        "config": config,
        "inputs": inputs,
    }
    workspace.folder(stage).mkdir(parents=True, exist_ok=True)
    write_json(workspace.folder(stage) / "meta.json", meta)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run with two tasks, one of which is evaluated."""
    torch.manual_seed(0)
    workspace = Workspace(tmp_path_factory.mktemp("cards") / "run")
    training = {"steps": 50, "batch_seconds": 8.0, "learning_rate": 0.01}
    corpus = {"data": {"corpus": {"_target_": "hubert_pretrain.corpora.fsdd.Fsdd"}}}
    splits = {"train": {"utterances": 1200, "hours": 2.5}, "test": {"utterances": 9, "hours": 0.1}}
    finish(workspace, "prepare", {"speakers": 6, "hours": 2.6, "splits": splits}, corpus)
    features = {"_target_": "hubert_pretrain.features.hubert_layer.HubertLayer", "layer": 6}
    features["checkpoint"] = "it1/pretrain"
    clustering = {"features": features, "clustering": {}}
    finish(workspace, "it2/cluster", {"n_clusters": 7}, clustering, prepare="p")
    label = {"pnmi": 0.5, "hours": None}  # None: what could not be measured
    finish(workspace, "it2/label", label, {}, **{"prepare": "p", "it2/cluster": "c"})
    heads = (CodebookHead(16, 8, 10), CTCHead(16, 4), ClassificationHead(16, 2))
    extra = ({}, {"vocabulary": ["<pad>", "<unk>", "|", "A"]}, {"classes": ["low", "high"]})
    for stage, head, more in zip(STAGES, heads, extra, strict=True):
        save_model(workspace.folder(stage), Hubert(SMALL), head=head, extra=more)
    start = {"prepare": "p", "it2/label": "l"}
    finish(workspace, STAGES[0], {"steps": 50}, {"pretrain": training}, **start)
    for stage in STAGES[1:]:
        start = {"prepare": "p", "it2/pretrain": "x"}
        finish(workspace, stage, {"steps": 50}, {"finetune": training}, **start)
    scores = {"wer": 0.25, "empty": 0.0, "utterances": 9}
    facts = {**scores, "intervals": {"wer": [0.2, 0.31], "empty": [0.0, 0.0]}}
    now = workspace.artefact("finetune/asr").fingerprint
    finish(workspace, "evaluate/asr/test", facts, {}, **{"prepare": "p", "finetune/asr": now})
    finish(workspace, "evaluate/asr/old", facts, {}, **{"prepare": "p", "finetune/asr": "before"})
    return workspace


def recipe(formats: str | list[str], *stages: str) -> Recipe:
    task = FinetuneConfig(task={}, checkpoint="it2/pretrain", test_split=["test", "old"])
    return Recipe(
        name="digits",
        finetune={"asr": task, "voices": task},
        export=ExportConfig(formats, list(stages), licence="cc-by-4.0", languages=["en"]),
    )


@pytest.fixture(scope="module")
def folder(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of several formats, with speech beside every model."""
    folder = tmp_path_factory.mktemp("exports")
    run(recipe("huggingface", *STAGES), workspace, "export", folder / "huggingface")
    run(recipe(["torchaudio", "torch", "onnx"], STAGES[0]), workspace, "export", folder)
    time = np.arange(16_000) / 16_000
    for card in folder.rglob("README.md"):
        soundfile.write(card.parent / "speech.wav", 0.1 * np.sin(440 * time), 16_000)
    return folder


@pytest.mark.parametrize(
    ("form", "stage"),
    [
        *(("huggingface", stage) for stage in STAGES),
        ("torchaudio", STAGES[0]),
        ("torch", STAGES[0]),
        ("onnx", STAGES[0]),
    ],
)
def test_the_example_of_a_card_runs_in_its_folder(
    folder: Path,
    form: str,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = folder / form / stage
    example = (place / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(place)
    exec(compile(example, "README.md", "exec"), {})
    shown = capsys.readouterr().out.splitlines()[-1]
    if form == "huggingface" and stage == "finetune/voices":
        assert "'label': 'high'" in shown
    elif form == "huggingface" and stage == "finetune/asr":
        assert set(shown) <= set("A <unk>")
    else:
        assert shown.removeprefix("torch.Size([").lstrip("(").startswith("1, 49, ")


def test_the_hub_reads_the_front_matter(folder: Path) -> None:
    card = ModelCard.load(folder / "huggingface" / "finetune" / "asr" / "README.md")
    about = card.data.to_dict()
    assert about["license"] == "cc-by-4.0"
    assert about["language"] == ["en"]
    assert about["library_name"] == "transformers"
    assert about["pipeline_tag"] == "automatic-speech-recognition"
    assert about["metrics"] == ["wer"]
    (result,) = card.data.eval_results
    assert (result.metric_value, result.dataset_split, result.dataset_name) == (
        0.25,
        "test",
        "Fsdd",
    )
    other = ModelCard.load(folder / "torchaudio" / "it2" / "pretrain" / "README.md").data
    assert (other.pipeline_tag, other.library_name) == ("feature-extraction", "torchaudio")
    assert "metrics" not in other.to_dict()


def test_a_task_states_what_its_card_says(folder: Path, tmp_path: Path) -> None:
    """Also one of which this package knows nothing but its file."""
    text = (folder / "huggingface" / "finetune" / "asr" / "README.md").read_text()
    assert "HuBERT, fine-tuned for speech recognition with CTC. 2 layers" in text
    assert "Outputs: `<pad>` `<unk>` `|` `A`." in text
    voices = (folder / "huggingface" / "finetune" / "voices" / "README.md").read_text()
    assert "HuBERT, fine-tuned to classify utterances." in voices
    node = {"_target_": f"{__name__}.{OwnTask.__qualname__}"}
    head = ClassificationHead(16, 2)
    save_model(tmp_path, Hubert(SMALL), head=head, extra={"classes": ["a", "b"], "task": node})
    card = card_of(load_model(tmp_path))
    assert card == TaskCard("fine-tuned to count", frozenset({"distance"}), {"distance": "mae"})
    save_model(tmp_path, Hubert(SMALL), head=head, extra={"task": {"_target_": "nowhere.Task"}})
    assert card_of(load_model(tmp_path)) == TaskCard()


def test_a_card_tells_data_lineage_and_scores(folder: Path) -> None:
    text = (folder / "huggingface" / "finetune" / "asr" / "README.md").read_text()
    assert "# digits finetune/asr" in text
    assert "| test | wer | 25.00 % | 20.00 % to 31.00 % | 9 |" in text
    assert "| old |" not in text  # of a checkpoint that was made again since
    assert "Fsdd, 6 speakers. train: 1,200 utterances, 2.5 h; test: 9 utterances, 0.1 h." in text
    lines = [line for line in text.splitlines() if line[:3] in ("1. ", "2. ", "3. ", "4. ", "5. ")]
    assert lines == [
        "1. `prepare`: hours of speech 2.6",
        "2. `it2/cluster`: 7 clusters of HubertLayer (layer 6 of it1/pretrain)",
        "3. `it2/label`: PNMI 0.500",
        "4. `it2/pretrain`: 50 steps of 8 s, peak rate 0.01",
        "5. `finetune/asr`: 50 steps of 8 s, peak rate 0.01",
    ]
    voices = (folder / "huggingface" / "finetune" / "voices" / "README.md").read_text()
    assert "## Scores" not in voices
    assert "Outputs: `low` `high`." in voices


def test_a_checkpoint_of_another_run_brings_its_lineage(
    workspace: Workspace, tmp_path: Path
) -> None:
    chosen = Recipe(
        name="other", export=ExportConfig(checkpoints=[str(workspace.folder("it2/pretrain"))])
    )
    other = Workspace(tmp_path / "run")
    run(chosen, other, "export", tmp_path / "out")
    (card,) = (tmp_path / "out").rglob("README.md")
    text = card.read_text()
    assert "# run it2/pretrain" in text
    assert "3. `it2/label`: PNMI 0.500" in text
    assert "Not stated (`export.licence`)" in text
    assert str(workspace.root.parent) not in text  # no paths of a machine


def test_a_file_from_elsewhere_has_a_card_without_lineage(
    workspace: Workspace, tmp_path: Path
) -> None:
    place = tmp_path / "hubert.pt"
    FORMATS["fairseq"].write(place, load_model(workspace.folder("it2/pretrain")))
    chosen = Recipe(name="other", export=ExportConfig(checkpoints=[str(place)]))
    run(chosen, Workspace(tmp_path / "run"), "export", tmp_path / "out")
    (card,) = (tmp_path / "out").rglob("README.md")
    assert "# hubert.pt" in card.read_text()
    assert "How it was made" not in card.read_text()
