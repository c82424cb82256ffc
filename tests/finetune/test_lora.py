"""LoRA: what learns, what a checkpoint holds, and the merged network that is its result."""

from __future__ import annotations

import builtins
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hubert_pretrain.config.schema import FinetuneConfig, LoraConfig
from hubert_pretrain.config.validate import _faults_of_finetune
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.finetune import lora
from hubert_pretrain.finetune import module as training
from hubert_pretrain.finetune.lora import add_lora, lora_scale, merge_lora
from hubert_pretrain.finetune.rates import Rates
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.transformers_writer import export_huggingface
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import Workspace
from tests.finetune.conftest import run_task

pytest.importorskip("peft")

CTC = {"_target_": "hubert_pretrain.finetune.ctc.CtcTask"}
ALL = LoraConfig(rank=4, alpha=6.0, targets=["qkv", "out", "up", "down"])


def _trained(config: HubertConfig, settings: LoraConfig) -> Hubert:
    """With matrices that change the output, as after a training."""
    torch.manual_seed(0)
    model = Hubert(config).eval()
    add_lora(model, settings, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2)
    return model


def test_new_matrices_change_nothing_and_alone_learn(tiny: HubertConfig) -> None:
    torch.manual_seed(0)
    model = Hubert(tiny).eval()
    waveform = torch.randn(2, 8000)
    before = model(waveform).last
    add_lora(model, LoraConfig(rank=2), seed=1)
    assert torch.equal(model(waveform).last, before)
    learning = {name for name, each in model.named_parameters() if each.requires_grad}
    expected = {
        f"context_encoder.layers.{layer}.attention.{place}.lora_{side}.default.weight"
        for layer in range(2)
        for place in ("qkv", "out")
        for side in "AB"
    }
    assert learning == expected
    again = Hubert(tiny)
    add_lora(again, LoraConfig(rank=2), seed=1)
    name = "context_encoder.layers.1.attention.out.lora_A.default.weight"
    assert torch.equal(again.state_dict()[name], model.state_dict()[name])


def test_the_merged_network_is_the_same(tiny: HubertConfig) -> None:
    """Its logits, and its tensors by the formula, under the names of a network without LoRA."""
    model = _trained(tiny, ALL)
    waveform = torch.randn(2, 8000)
    head = CTCHead(16, 7)
    stored = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = head(model(waveform).last)
        merge_lora(model)
        torch.testing.assert_close(head(model(waveform).last), expected, rtol=1e-4, atol=1e-5)
    assert lora_scale(model) is None
    plain = Hubert(tiny)
    assert model.state_dict().keys() == plain.state_dict().keys()
    place = "context_encoder.layers.0.feed_forward.up"
    update = stored[f"{place}.lora_B.default.weight"] @ stored[f"{place}.lora_A.default.weight"]
    torch.testing.assert_close(
        model.state_dict()[f"{place}.weight"],
        stored[f"{place}.base_layer.weight"] + 6.0 / 4 * update,
    )
    with torch.no_grad():
        base = plain.eval()
        base.load_state_dict(
            {
                name.replace(".base_layer.", "."): tensor
                for name, tensor in stored.items()
                if ".lora_" not in name
            }
        )
        assert not torch.allclose(head(base(waveform).last), expected, atol=1e-2)


def test_matrices_have_the_rates_of_their_layers(tiny: HubertConfig) -> None:
    model = _trained(tiny, ALL)
    head = CTCHead(16, 5)
    rates = Rates(encoder=0.4, head=3.0, layer_decay=0.5).of(model, head)
    found = {
        name.split(".")[2]: rates[each]
        for name, each in model.named_parameters()
        if each.requires_grad
    }
    assert found == {"0": 0.2, "1": 0.4}


def test_a_training_with_lora(workspace: Workspace, tmp_path: Path, monkeypatch: Any) -> None:
    """Only the matrices and the head move; a checkpoint of the training is read as its result; a
    killed run ends as if nothing had happened; the export is the merged network.
    """
    settings: dict[str, Any] = {"lora": ALL, "layer_decay": 0.9, "head_learning_rate": 0.02}
    settings |= {"keep_best": "", "ema_decay": 0.5}
    learnt: list[set[str]] = []
    configure = training.FinetuneModule.configure_optimizers

    def watched(self: Any) -> Any:
        found = configure(self)
        groups = found["optimizer"].param_groups
        chosen = {id(each) for group in groups for each in group["params"]}
        learnt.append({name for name, each in self.named_parameters() if id(each) in chosen})
        return found

    monkeypatch.setattr(training.FinetuneModule, "configure_optimizers", watched)
    run_task(workspace, "asr", CTC, **settings)
    folder = workspace.partial_folder("finetune/asr")
    result = load_model(folder)
    assert {name for name in learnt[0] if name.startswith("head.")} == {
        "head.linear.weight",
        "head.linear.bias",
    }
    assert all(".lora_" in name for name in learnt[0] if not name.startswith("head."))
    start = load_model(workspace.folder("it2/pretrain")).model.state_dict()
    moved = {
        name
        for name, tensor in result.model.state_dict().items()
        if not torch.equal(tensor, start[name])
    }
    places = ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")
    assert moved == {f"context_encoder.layers.{n}.{each}.weight" for n in (0, 1) for each in places}

    state = load_checkpoint(folder / "checkpoints" / "step=00000006.ckpt")
    assert state.config == result.config
    for name, tensor in {**state.model.state_dict(), **state.head_state}.items():
        expected = {**result.model.state_dict(), **result.head_state}[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)

    export_huggingface(tmp_path / "theirs", result)
    again = load_checkpoint(tmp_path / "theirs")
    waveform = torch.randn(1, 8000)
    assert torch.equal(again.model(waveform).last, result.model(waveform).last)

    folder.rename(workspace.root / "whole")
    step = training.FinetuneModule.training_step

    def die(self: Any, batch: Any, batch_idx: int) -> Any:
        if batch["index"] == 7:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(training.FinetuneModule, "training_step", die)
    with pytest.raises(RuntimeError, match="killed"):
        run_task(workspace, "asr", CTC, **settings)
    monkeypatch.setattr(training.FinetuneModule, "training_step", step)
    run_task(workspace, "asr", CTC, **settings)
    first, second = (
        (each / "model.safetensors").read_bytes() for each in (folder, workspace.root / "whole")
    )
    assert first == second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_encoder_steps": 10}, "trains nothing with finetune.asr.freeze_encoder"),
        ({"conv_gradient_scale": 0.1}, "the conv encoder is frozen with"),
    ],
)
def test_settings_that_do_not_go_with_it(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"steps": 10, "batch_seconds": 1, "micro_batch_seconds": 1}
    config = FinetuneConfig(task=CTC, lora=LoraConfig(rank=4), **values | changes)
    trainer: Any = SimpleNamespace(attention="sdpa", precision="32-true", strategy="fsdp")
    faults = list(_faults_of_finetune("finetune.asr", config, trainer))
    assert len(faults) == 1
    assert message in faults[0]


def test_without_peft(tiny: HubertConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"pip install 'peft>=0\.17'"):
        add_lora(Hubert(tiny), ALL, seed=1)
    monkeypatch.undo()
    monkeypatch.setattr("hubert_pretrain.config.validate.find_spec", lambda name: None)
    config = FinetuneConfig(task=CTC, lora=ALL, steps=9, batch_seconds=1, micro_batch_seconds=1)
    trainer: Any = SimpleNamespace(attention="sdpa", precision="32-true", strategy="ddp")
    (fault,) = _faults_of_finetune("finetune.asr", config, trainer)
    assert "pip install 'peft>=0.17'" in fault
    assert lora.import_peft().__name__ == "peft"
