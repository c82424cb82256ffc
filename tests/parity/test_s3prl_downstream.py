"""s3prl's own downstream of emotion recognition on our export: its featuriser, head, data and loss,
as its runner puts them together. (The runner itself wants packages that are not installed here.)
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hubert_pretrain.interop.fairseq_writer import export_s3prl
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from tests.finetune.conftest import TINY

EMOTIONS = ("ang", "hap")


@pytest.fixture
def s3prl(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of s3prl; `make` installs it there, without its dependencies."""
    monkeypatch.syspath_prepend(str(Path(sys.prefix) / "s3prl"))
    torchaudio = pytest.importorskip("torchaudio")

    def load(path: str) -> tuple[torch.Tensor, int]:  # torchaudio's own wants torchcodec
        waveform, rate = soundfile.read(path, dtype="float32")
        return torch.from_numpy(waveform)[None], rate

    monkeypatch.setattr(torchaudio, "load", load)

    def get(name: str) -> Any:
        try:
            return importlib.import_module(f"s3prl.{name}")
        except ImportError as error:
            pytest.skip(f"s3prl is not installed ({error})")

    return get


def write_corpus(folder: Path) -> None:
    """Two emotions, each a pitch, in the tables that s3prl's preprocessing writes."""
    time = np.arange(8_000) / 16_000
    for name, count in (("train", 10), ("test", 4)):
        meta = []
        for number in range(count):
            path = f"{name}{number}.wav"
            tone = 0.2 * np.sin(2 * np.pi * (300, 1500)[number % 2] * time)
            soundfile.write(folder / path, tone, 16_000)
            meta.append({"path": path, "label": EMOTIONS[number % 2], "speaker": "x"})
        table = {"labels": {"ang": 0, "hap": 1}, "meta_data": meta}
        (folder / "Session1").mkdir(exist_ok=True)
        (folder / "Session1" / f"{name}_meta_data.json").write_text(json.dumps(table))


def test_the_official_emotion_task_learns_on_our_export(s3prl: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(tmp_path / "model", Hubert(TINY), head=CodebookHead(16, 8, 5))
    export_s3prl(tmp_path / "converted.pt", load_model(tmp_path / "model"))
    write_corpus(tmp_path)
    upstream = s3prl("upstream.hubert.expert").UpstreamExpert(str(tmp_path / "converted.pt"))
    featurizer = s3prl("upstream.interfaces").Featurizer(
        upstream.eval(), "hidden_states", upstream_device="cpu"
    )
    assert featurizer.layer_num == TINY.num_hidden_layers + 1
    settings = {
        "datarc": {
            "root": str(tmp_path),
            "meta_data": str(tmp_path),
            "test_fold": "fold1",
            "pre_load": True,
            "valid_ratio": 0.2,
            "train_batch_size": 8,
            "eval_batch_size": 4,
            "num_workers": 0,
        },
        "modelrc": {
            "projector_dim": 16,
            "select": "UtteranceLevel",
            "UtteranceLevel": {"pooling": "MeanPooling"},
        },
    }
    task = s3prl("downstream.emotion.expert").DownstreamExpert(
        upstream_dim=featurizer.output_dim, downstream_expert=settings, expdir=str(tmp_path)
    )
    optimiser = torch.optim.Adam([*task.parameters(), *featurizer.parameters()], 1e-2)
    (waveforms, labels, names) = next(iter(task.get_dataloader("train")))
    waveforms = [torch.from_numpy(waveform) for waveform in waveforms]
    with torch.no_grad():
        states = upstream(waveforms)  # frozen
    losses = []
    for _ in range(40):
        features = featurizer(waveforms, states)
        loss = task("train", features, labels, names, defaultdict(list))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
