"""s3prl's own downstream of emotion recognition on our export: its featuriser, head, data and loss,
as its runner puts them together (the runner itself wants packages that are not installed here, see
recipes/superb/README.md); and its classes of which the probes have twins.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hubert_pretrain.finetune.verify import VerifyTask
from hubert_pretrain.interop.fairseq_writer import export_s3prl
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.feature_masks import spec_augment
from hubert_pretrain.model.heads import CodebookHead, SpeakerHead
from hubert_pretrain.model.hubert import Hubert, HubertOutput
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


def test_the_official_x_vector_and_its_loss(s3prl: Any) -> None:
    """Ours leaves all padding out, so utterances are of one length here."""
    theirs = s3prl("downstream.sv_voxceleb1.model")
    torch.manual_seed(0)
    head = SpeakerHead(16, 3, 12, embedding_size=12, pooling="xvector")
    model = theirs.Model(
        input_dim=12,
        agg_dim=1500,
        agg_module_name="SP",
        module_name="XVector",
        utterance_module_name="UtteranceExtractor",
        hparams={"agg_dim": 1500, "dropout_p": 0.0, "batch_norm": False},
    )
    layers = model.framelevel_feature_extractor.module
    for conv, layer in zip(head.pooling.layers, layers, strict=True):
        layer.kernel.weight.data = conv.weight.transpose(1, 2).flatten(1).detach()
        layer.kernel.bias.data = conv.bias.detach()
    extractor = model.utterancelevel_feature_extractor
    extractor.linear1.load_state_dict(head.embedding.state_dict())
    extractor.linear2.load_state_dict(head.after.state_dict())
    objective = theirs.AMSoftmaxLoss(12, 3, s=30.0, m=0.4)
    objective.W.data = head.speakers.detach().T.contiguous()
    frames = torch.randn(4, 40, 16)
    output = HubertOutput(frames, torch.zeros(()), frames, None)
    inputs = head.projection(frames)
    mask = torch.zeros(4, 26)
    torch.testing.assert_close(
        head.logits(output), torch.nn.functional.normalize(model.inference(inputs, mask), dim=-1)
    )
    task = VerifyTask(pooling="xvector", embedding_size=12, margin=0.4)
    task.speakers = ["a", "b", "c"]
    labels = torch.tensor([0, 2, 1, 1])
    found = task.loss(task.logits(head, output, None), labels, labels[:, None], labels) / 4
    torch.testing.assert_close(found, objective(model(inputs, mask), labels), rtol=1e-4, atol=1e-5)


def test_the_official_spec_augment(s3prl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same random numbers, of recipes/superb/asr."""
    monkeypatch.setitem(sys.modules, "pandas", ModuleType("pandas"))  # imported there, not used
    theirs = s3prl("downstream.specaug").SpecAug(
        time_warp_window=5,
        time_mask_width_range=[0, 40],
        freq_mask_width_range=[0, 50],
        num_freq_mask=4,
        num_time_mask=2,
    )
    lengths = [120, 90, 9]
    x = torch.randn(3, 120, 60, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    expected, _ = theirs([x[row, :length].clone() for row, length in enumerate(lengths)])
    torch.manual_seed(3)
    found = spec_augment(x, torch.arange(120) < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        torch.testing.assert_close(found[row, :length], expected[row])
