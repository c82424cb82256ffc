"""`hubert-pretrain convert-checkpoint`: output, refusals and exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hubert_pretrain.tools.convert_checkpoint import main

from hubert_pretrain.interop import registry
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert

SMALL = HubertConfig(
    conv_dim=[8] * 7,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embedding_groups=2,
)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "ours", Hubert(SMALL), head=CodebookHead(16, 8, 10))
    return tmp_path / "ours"


def test_round_through_every_format(
    ours: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = ours
    for name in ("fairseq", "huggingface", "s3prl", "torchaudio", "ours"):
        target = tmp_path / f"to_{name}"
        assert main([str(source), str(target), "--to", name, "--check"]) == 0
        printed = capsys.readouterr().out
        assert "46 tensors came back bit for bit" in printed
        side = f"and       {tmp_path / 'to_torchaudio.side.safetensors'}, which belongs to it"
        assert (side in printed) is (name == "torchaudio")
        source = target
    assert "taken     54 tensors" in printed
    assert "missing   none\nunexpected none" in printed
    assert (ours / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_a_failed_check_is_an_error(
    ours: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = registry.FORMATS["fairseq"]

    def spoilt(path: Path, loaded: registry.LoadedModel) -> None:
        with torch.no_grad():
            weight = loaded.model.context_encoder.norm.weight
            weight += 1
            whole.export(path, loaded)
            weight -= 1

    monkeypatch.setitem(
        registry.FORMATS, "fairseq", registry.Format(whole.file, spoilt, whole.compare)
    )
    assert main([str(ours), str(tmp_path / "x.pt"), "--to", "fairseq", "--check"]) == 1
    assert "x.pt: layer 1 of the exported model differs" in capsys.readouterr().err


def test_what_it_refuses(
    ours: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "speech.wav").write_bytes(b"RIFF" + bytes(100))
    for arguments, code, message in (
        ([str(tmp_path / "speech.wav"), "x", "--to", "ours"], 1, "speech.wav: is no checkpoint"),
        ([str(ours), str(ours), "--to", "ours"], 2, "OUT is IN"),
        ([str(ours), "x", "--to", "ours", "--set", "layerdrop"], 2, "expected FIELD=VALUE"),
        ([str(ours), "x", "--to", "fairseq", "--int8", "y"], 2, "--int8 needs --to onnx"),
    ):
        assert main(arguments) == code
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
