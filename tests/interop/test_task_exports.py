"""Exports of the tasks that give utterances several labels, numbers or embeddings, and frames
labels: what transformers computes of them, and what only this package and the graphs hold.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.finetune.frames import FramesTask
from hubert_pretrain.finetune.inference import UtteranceClassifier
from hubert_pretrain.finetune.scoring import adopt, task_node
from hubert_pretrain.finetune.task import Task
from hubert_pretrain.finetune.verify import VerifyTask
from hubert_pretrain.interop.compare import probe_waveform
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.registry import FORMATS
from hubert_pretrain.interop.transformers_writer import export_huggingface
from hubert_pretrain.model.checkpoint import LoadedModel, load_model, save_model
from hubert_pretrain.model.heads import (
    ClassificationHead,
    FrameClassificationHead,
    SpeakerHead,
    TaskHead,
)
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.stages.evaluate import load_task
from tests.finetune.conftest import TINY

NAMES = ["music", "noise", "speech"]
LAYERS = TINY.num_hidden_layers
WAVEFORM = torch.from_numpy(probe_waveform(12_000))[None]


def stored(folder: Path, head: TaskHead, extra: dict[str, Any]) -> LoadedModel:
    """A saved and reloaded model of random weights."""
    torch.manual_seed(0)
    save_model(folder, Hubert(TINY), head=head, extra=extra)
    return load_model(folder)


def our_logits(loaded: LoadedModel) -> Tensor:
    head: Any = loaded.build_head()
    with torch.inference_mode():
        return head.logits(loaded.model(WAVEFORM, hidden_states=True))


def classifier(folder: Path, problem: str, weighted: bool) -> LoadedModel:
    torch.manual_seed(1)
    head = ClassificationHead(16, 3, 8, n_layers=LAYERS, weighted_layers=weighted)
    if problem == "regression":
        head.set_units([10.0, 0.1, 1.0], [50.0, 0.0, -3.0])
        head.finish()  # as after training
    return stored(folder, head, {"classes": NAMES, "problem_type": problem, "label": "label"})


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_transformers_computes_the_same_values(
    tmp_path: Path, problem: str, weighted: bool
) -> None:
    from transformers import AutoModelForAudioClassification

    loaded = classifier(tmp_path / "ours", problem, weighted)
    export_huggingface(tmp_path / "theirs", loaded)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["architectures"] == ["HubertForSequenceClassification"]
    assert config["problem_type"] == problem
    assert config["id2label"] == {str(number): name for number, name in enumerate(NAMES)}
    assert config["label2id"] == {name: number for number, name in enumerate(NAMES)}
    model, info = AutoModelForAudioClassification.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.inference_mode():
        theirs = model.eval()(WAVEFORM).logits
    torch.testing.assert_close(theirs, our_logits(loaded), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_the_task_is_found_in_a_folder_of_transformers(tmp_path: Path, problem: str) -> None:
    """By problem_type: its predictions are those of the checkpoint, in the units of the labels."""
    loaded = classifier(tmp_path / "ours", problem, weighted=True)
    export_huggingface(tmp_path / "theirs", loaded)
    found = []
    for name in ("ours", "theirs"):
        task, model = load_task(tmp_path / name)
        assert task.problem == problem
        assert task.classes == NAMES
        with_head = UtteranceClassifier(model.model, model.build_head(), task)
        found.append(with_head.classify(iter([WAVEFORM[0].numpy()])).values)
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    logits = our_logits(loaded)[0]
    expected = logits if problem == "regression" else logits.sigmoid()
    assert list(found[0].values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_pipeline_of_transformers_needs_the_right_function(tmp_path: Path) -> None:
    """Its default depends on the version (docs/finetuning.md); stated, it is ours."""
    from transformers import pipeline

    loaded = classifier(tmp_path / "ours", "multi_label_classification", weighted=False)
    export_huggingface(tmp_path / "theirs", loaded)
    run = pipeline("audio-classification", model=str(tmp_path / "theirs"))
    found = run(WAVEFORM[0].numpy(), top_k=None, function_to_apply="sigmoid")
    values = dict(zip(NAMES, our_logits(loaded)[0].sigmoid().tolist(), strict=True))
    assert {each["label"]: each["score"] for each in found} == pytest.approx(values, abs=1e-4)


def test_the_loss_of_transformers_is_that_of_one_label(tmp_path: Path) -> None:
    """Its class fails at several labels and at numbers, whatever problem_type says: whoever goes on
    training there computes the loss outside. If this fails, transformers has learnt it.
    """
    from transformers import AutoModelForAudioClassification

    export_huggingface(
        tmp_path / "several",
        classifier(tmp_path / "ours", "multi_label_classification", weighted=False),
    )
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "several").eval()
    targets = torch.tensor([[1.0, 0.0, 1.0]])
    logits = model(WAVEFORM).logits
    with pytest.raises((ValueError, RuntimeError)):
        model(WAVEFORM, labels=targets)
    with torch.no_grad():
        loss = model(WAVEFORM, labels=torch.tensor([2])).loss
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, torch.tensor([2])))


# -- heads without a class in other projects


def frame_model(folder: Path) -> LoadedModel:
    torch.manual_seed(1)
    head = FrameClassificationHead(16, 3, n_layers=LAYERS, weighted_layers=True)
    return stored(folder, head, {"classes": ["AA", "B", "K"]})


def speaker_model(folder: Path) -> LoadedModel:
    torch.manual_seed(1)
    head = SpeakerHead(16, 4, 8, embedding_size=6, n_layers=LAYERS, weighted_layers=True)
    return stored(folder, head, {"speakers": ["a", "b", "c", "d"], "label": "speaker"})


MODELS = {"frames": frame_model, "verify": speaker_model}
TASKS: dict[str, type[Task]] = {"frames": FramesTask, "verify": VerifyTask}


@pytest.fixture(params=list(MODELS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("form", ["huggingface", "s3prl", "torchaudio", "torch", "onnx"])
def test_every_format_that_the_task_names_holds_it(tmp_path: Path, kind: str, form: str) -> None:
    assert form in TASKS[kind].exports
    loaded = MODELS[kind](tmp_path / "ours")
    path = tmp_path / "theirs" / FORMATS[form].file
    path.parent.mkdir(exist_ok=True)
    FORMATS[form].write(path, loaded)
    report, equal = FORMATS[form].check(path, loaded)
    assert report.max_difference < 1e-5
    if not FORMATS[form].readable:
        assert any(name.startswith("logits") for name in report.differences)
        return
    assert equal == len(loaded.model.state_dict()) + len(loaded.head_state)
    again = load_checkpoint(path)
    assert torch.equal(our_logits(again), our_logits(loaded))
    assert task_node(again, "there")["_target_"].endswith(TASKS[kind].__name__)
    task = TASKS[kind]()
    adopt(task, again, "there")
    assert task.needs_all_layers
    here = TASKS[kind]()
    adopt(here, loaded, "here")
    assert task.card() == here.card()


def test_transformers_has_the_encoder_only(tmp_path: Path, kind: str) -> None:
    """It has no Hubert twin of Wav2Vec2ForXVector and Wav2Vec2ForAudioFrameClassification."""
    import transformers
    from safetensors.torch import load_file

    assert not hasattr(transformers, "HubertForXVector")
    assert not hasattr(transformers, "HubertForAudioFrameClassification")
    loaded = MODELS[kind](tmp_path / "ours")
    export_huggingface(tmp_path / "theirs", loaded)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["architectures"] == ["HubertModel"]
    model = transformers.AutoModel.from_pretrained(tmp_path / "theirs").eval()
    with torch.inference_mode():
        states = model(WAVEFORM, output_hidden_states=True).hidden_states
    # The head beside it, by hand, on the states of transformers.
    head = load_file(tmp_path / "theirs" / "task_head.safetensors")
    mixed = torch.einsum("n,nbtd->btd", head["layer_weights"].softmax(0), torch.stack(states))
    if kind == "frames":
        found = mixed @ head["linear.weight"].T + head["linear.bias"]
    else:
        frames = mixed @ head["projection.weight"].T + head["projection.bias"]
        hidden = torch.tanh(frames @ head["pooling.down.weight"].T + head["pooling.down.bias"])
        weights = (hidden @ head["pooling.up.weight"].T).softmax(1)
        mean = (weights * frames).sum(1)
        deviation = (weights * frames**2).sum(1).sub(mean**2).sqrt()
        pooled = torch.cat([mean, deviation], dim=1)
        found = pooled @ head["embedding.weight"].T + head["embedding.bias"]
        found = found / found.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, our_logits(loaded), atol=1e-4, rtol=1e-4)


def test_fairseq_has_no_place_for_them(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ArtefactError, match=f"no HuBERT with a head of kind '{kind}'"):
        FORMATS["fairseq"].write(tmp_path / "x.pt", MODELS[kind](tmp_path / "ours"))


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path, kind: str) -> None:
    other = next(name for name in MODELS if name != kind)
    loaded = MODELS[kind](tmp_path / "ours")
    with pytest.raises(ArtefactError, match=f"'{kind}' checkpoint, the task is '{other}'"):
        adopt(TASKS[other](), loaded, "there")
    assert np.isfinite(our_logits(loaded)).all()
